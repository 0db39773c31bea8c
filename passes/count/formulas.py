"""Arithmetic of the operators that both dialects share, from shapes alone.

Conventions:

- A multiply-add counts 2. A bias costs nothing extra: it is the value that the accumulator starts from.
- Direct algorithms: no Winograd, Strassen or FFT convolution, because which one runs is the engine's choice.
- Functions follow the Livermore weights (McMahon, "The Livermore Fortran Kernels", UCRL-53745, 1986): add,
  multiply, compare 1; divide and square root 4; exponential, logarithm, trigonometric 8. Other functions are
  the sum over their usual formula. Integer and logical arithmetic counts like floating point.
- An FFT of n points counts 5 n log2 n (the convention of benchFFT and HPCC), half of that for real input.
- Fused attention counts what its parts count: two matrix products, the scale, the mask and the softmax over
  the *live* scores. A causal mask leaves s (s + 1) / 2 of s^2. A mask handed in as a tensor hides nothing,
  because its values are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2, prod

from qeil_compile.passes.count.base import MOVE, Extent, Kind, Shape, Work, at, spread

DIV = 4.0
SQRT = 4.0
EXP = 8.0

#: FLOP per output element of scalar functions, by their PyTorch name.
FUNCTION = spread(
    (
        1.0,
        """
        abs absolute add bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
        bitwise_shift bitwise_xor ceil conj conj_physical copysign deg2rad eq fix floor fmax fmin frac ge
        greater greater_equal gt heaviside isfinite isinf isnan isneginf isposinf le less less_equal
        logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum mul multiply nan_to_num
        ne neg negative nextafter not_equal rad2deg relu round rsub sgn sign signbit square sub subtract
        threshold trunc where
        """,
    ),
    (2.0, "clamp clamp_max clamp_min clip hardtanh relu6 leaky_relu prelu hardshrink softshrink"),
    (4.0, "addcmul lerp native_dropout hardsigmoid"),
    (5.0, "hardswish"),
    (DIV, "div divide true_divide floor_divide fmod remainder reciprocal"),
    (2 + DIV, "addcdiv softsign"),
    (SQRT, "sqrt"),
    (SQRT + DIV, "rsqrt"),
    (3 + SQRT, "hypot"),
    (
        EXP,
        """
        acos acosh angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2 atanh cos
        cosh erf erfc erfinv exp exp2 expm1 log log10 log1p log2 sin sinh tan tanh
        """,
    ),
    (2 * EXP + 1, "pow float_power softplus"),
    (EXP + 1, "xlogy"),
    (2 * EXP + 4, "logaddexp logaddexp2"),
    (EXP + DIV + 1, "logit sinc"),
    (EXP + DIV + 2, "sigmoid"),
    (EXP + DIV + 3, "silu celu glu"),
    (EXP + DIV + 4, "quick_gelu swiglu"),
    (2 * EXP + 2, "log_sigmoid"),
    (EXP + 4, "gelu selu"),
    (EXP + 8, "gelu_tanh"),
    (EXP + 3, "elu"),
    (3 * EXP + 2, "mish"),
)
#: Any other function of a mathematical library (Bessel, gamma, ...): no usual formula, so one exponential.
LIBRARY = EXP

SOFTMAX = 3 + EXP + DIV  # maximum, subtract, exponential, sum, divide
INTERPOLATE = {"nearest": 0.0, "linear": 2.0, "cubic": 4.0}  # taps per axis; nearest only copies


def matmul(a: Shape, b: Shape) -> Extent:
    """Product with the broadcasting of `numpy.matmul`; "gemv" where one side is a single row or column."""
    a = (1, *(a or (1,))) if len(a) < 2 else a
    b = (*(b or (1,)), 1) if len(b) < 2 else b
    rows, inner, cols = a[-2], max(a[-1], b[-2]), b[-1]
    if len(b) == 2:  # one matrix for the whole batch: its rows share every read of it
        rows, batch = prod(a[:-1]), 1
    else:
        batch = prod(_broadcast(a[:-2], b[:-2]))
    return gemm(rows, inner, cols, batch)


def gemm(rows: int, inner: int, cols: int, batch: int = 1) -> Extent:
    """`batch` products of rows x inner by inner x cols."""
    kind: Kind = "gemv" if min(rows, cols) == 1 else "gemm"
    return 2.0 * batch * rows * inner * cols, kind, (batch, rows, cols, inner)


def _broadcast(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    return tuple(max(at(a, i - rank), at(b, i - rank)) for i in range(rank))


def conv(out: Shape, weight: Shape, data: Shape = ()) -> Extent:
    """Each output element sums over weight[1:], that is input channels of its group x window."""
    return 2.0 * prod(out) * prod(weight[1:]), "conv", _conv_dims(out, weight, data)


def conv_transpose(data: Shape, weight: Shape) -> Extent:
    """Each input element spreads over weight[1:], that is output channels of its group x window."""
    return 2.0 * prod(data) * prod(weight[1:]), "conv", _conv_dims(data, weight, data)


def _conv_dims(out: Shape, weight: Shape, data: Shape) -> Shape:
    """The extents that `devices.work.DIMS` names for a convolution."""
    inner = at(weight, 1)
    groups = max(1, at(data, 1, inner) // max(1, inner))
    # Without padding an output of n at stride s needs at least (n - 1) s + 1 points: rounded down that is s.
    stride = max(1, at(data, -1) // max(1, at(out, -1))) if len(data) > 2 else 1
    width = out[-1] if len(out) > 2 else 1
    return at(out, 0), groups, at(out, 1), inner, prod(out[2:]), prod(weight[2:]), stride, width, len(out) - 2


def live_scores(queries: int, keys: int, offset: int | None, window: int = -1) -> int:
    """Scores that a causal mask leaves: query i sees keys up to i + offset, the last `window` of them.

    No offset: no mask, and every score is live.
    """
    if offset is None:
        return queries * keys

    def up_to(v: int) -> int:
        """Sum of min(max(u, 0), keys) over u <= v."""
        inside = max(0, min(v, keys))
        return inside * (inside + 1) // 2 + max(0, v - keys) * keys

    def visible(first: int) -> int:
        return up_to(first + queries - 1) - up_to(first - 1)

    return visible(offset + 1) - (visible(offset + 1 - window) if window >= 0 else 0)


def attention(
    heads: int,
    queries: int,
    keys: int,
    width: int,
    value_width: int,
    offset: int | None = None,
    window: int = -1,
    extra: float = 0.0,
) -> Extent:
    """`heads` (batch x query heads) attentions; `extra` FLOP per score for masks, soft caps and the like."""
    live = live_scores(queries, keys, offset, window)
    flops = heads * live * (2.0 * width + 2.0 * value_width + 1 + SOFTMAX + extra)
    return flops, "attention", (heads, queries, keys, width, value_width)


def normalise(size: int, rows: int, affine: int, *, centred: bool = True) -> Extent:
    """Layer, group and instance norm, and RMS norm when not centred; `affine` counts scale and shift.

    Per element: mean 1, variance 3, normalise 2 (RMS: square 1, sum 1, multiply 1). Per row: the divisions by
    the count, add epsilon, reciprocal square root.
    """
    per_row = (2 if centred else 1) * DIV + 1 + SQRT + DIV
    flops = size * ((6.0 if centred else 3.0) + affine) + rows * per_row
    return flops, "norm", (rows, size // max(1, rows))


def softmax(size: int, rows: int, *, log: bool = False) -> Extent:
    """Softmax over rows: per element maximum, subtract, exponential, sum, divide (logarithm: subtract)."""
    flops = size * (4 + EXP) + rows * EXP if log else size * SOFTMAX
    return flops, "softmax", (rows, size // max(1, rows))


def recurrent(steps: int, products: int, states: int, cell: float) -> Extent:
    """`steps` x (a multiply-add per matrix entry + `cell` FLOP per state entry); steps = time x batch."""
    return steps * (2.0 * products + cell * states), "recurrent", (steps, products, states)


#: FLOP per hidden unit and step outside the matrix products.
LSTM_CELL = 3 * FUNCTION["sigmoid"] + 2 * FUNCTION["tanh"] + 4
GRU_CELL = 2 * FUNCTION["sigmoid"] + FUNCTION["tanh"] + 5
RNN_CELL = FUNCTION["tanh"]


def sort(size: int, row: int, keep: int | None = None) -> Work:
    """Comparisons: log2(row) per element, or log2(keep) when only the best few are wanted."""
    return float(size * max(1, ceil(log2(max(2, keep or row))))), "sort"


def fft(size: int, points: int, *, real: bool = False) -> Work:
    """Transforms of `points` over `size` elements in all."""
    return size * 5.0 * log2(max(2, points)) * (0.5 if real else 1.0), "other"


def einsum(equation: str, shapes: Sequence[Shape]) -> Work:
    """Contraction from left to right; a label that no later term needs is summed at once."""
    text, _, result = equation.replace(" ", "").partition("->")
    terms = [_labels(t, shape) for t, shape in zip(text.split(","), shapes, strict=False)]
    extent: dict[str, int] = {}
    for labels, shape in zip(terms, shapes, strict=False):
        for label, d in zip(labels, shape, strict=False):
            extent[label] = max(d, extent.get(label, 1))
    if not terms:
        return 0.0, "other"
    if "->" not in equation:
        joined = "".join("".join(t) for t in terms)
        result = "".join(c for c in dict.fromkeys(joined) if joined.count(c) == 1 or c.isdigit())
    wanted = {label for label in extent if label.isdigit() or label in result}
    held, flops = set(terms[0]), 0.0
    for i, labels in enumerate(terms[1:], 1):
        later = wanted.union(*terms[i + 1 :])
        both = held | set(labels)
        held = both & later
        flops += (1.0 if both == held else 2.0) * prod(extent.get(c, 1) for c in both)
    if len(terms) == 1:
        summed = set(terms[0]) - wanted
        return (float(prod(shapes[0])), "reduce") if summed else MOVE
    return flops, "gemm"


def _labels(term: str, shape: Shape) -> tuple[str, ...]:
    """Labels of a term; an ellipsis becomes numbered labels, aligned at the right as broadcasting is."""
    before, dots, after = term.partition("...")
    hidden = max(0, len(shape) - len(before) - len(after)) if dots else 0
    return (*before, *(str(i) for i in reversed(range(hidden))), *after)
