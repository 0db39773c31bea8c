"""Count rules of ATen operators that need more than a cost per element.

Tensor arguments are found by their schema name (`attributes["#inputs"]` names each entry of `inputs`), so a
rule holds for every overload and for calls with keyword arguments; without names the position decides.
"""

from __future__ import annotations

from math import prod

from qeil_compile.ir import Op, OpGraph, TensorSpec
from qeil_compile.passes.count import formulas as f
from qeil_compile.passes.count.base import (
    Shape,
    Work,
    at,
    dims,
    int_of,
    ints_of,
    ishape,
    isize,
    oshape,
    osize,
    positive,
    str_of,
    tensor,
)


def arg(op: Op, graph: OpGraph, names: str, position: int = -1) -> TensorSpec | None:
    """The tensor argument with one of these schema names (separated by blanks), or at `position`."""
    known = op.attributes.get("#inputs")
    if isinstance(known, list | tuple):
        wanted = names.split()
        for name, given in zip(op.inputs, known, strict=False):
            if given in wanted:
                return graph.tensors.get(name)
        return None
    return tensor(graph, op.inputs, position) if position >= 0 else None


def args(op: Op, graph: OpGraph, names: str) -> list[TensorSpec]:
    """All tensors of a list argument."""
    known = op.attributes.get("#inputs")
    wanted = names.split()
    if not isinstance(known, list | tuple):
        return [graph.tensors[n] for n in op.inputs if n in graph.tensors]
    pairs = zip(op.inputs, known, strict=False)
    return [graph.tensors[n] for n, given in pairs if given in wanted and n in graph.tensors]


def shape(op: Op, graph: OpGraph, names: str, position: int = -1) -> Shape:
    """Shape of a tensor argument; () when it is omitted."""
    return dims(arg(op, graph, names, position))


def flag(op: Op, name: str) -> bool:
    """A boolean argument that the schema leaves False."""
    return op.attributes.get(name) is True


# Matrix products


def linear(op: Op, graph: OpGraph) -> Work:
    data, weight = shape(op, graph, "input self", 0), shape(op, graph, "weight", 1)
    return f.gemm(prod(data[:-1]), at(data, -1), at(weight, 0) if len(weight) > 1 else 1)


def matmul(op: Op, graph: OpGraph) -> Work:
    """mm, bmm, mv, dot, matmul, and the integer and scaled forms: self times the other."""
    return f.matmul(shape(op, graph, "self", 0), shape(op, graph, "mat2 other vec tensor vec2", 1))


def addmm(op: Op, graph: OpGraph) -> Work:
    """addmm, addmv, baddbmm, addbmm: the first argument is what the accumulator starts from."""
    return f.matmul(shape(op, graph, "mat1 mat batch1", 1), shape(op, graph, "mat2 vec batch2", 2))


def outer(op: Op, graph: OpGraph) -> Work:
    return 2.0 * osize(op, graph), "gemm"


def bilinear(op: Op, graph: OpGraph) -> Work:
    rows, weight = prod(shape(op, graph, "input1", 0)[:-1]), shape(op, graph, "weight", 2)
    return 2.0 * rows * prod(weight) + 2.0 * rows * prod(weight[:2]), "gemm"


def einsum(op: Op, graph: OpGraph) -> Work:
    return f.einsum(str_of(op, "equation"), [dims(t) for t in args(op, graph, "tensors")])


def packed_linear(op: Op, graph: OpGraph) -> Work:
    """Weights in a packed layout: rows and inner from the input, columns from the output."""
    data = ishape(op, graph)
    return f.gemm(prod(data[:-1]), at(data, -1), at(oshape(op, graph), -1))


def distances(op: Op, graph: OpGraph) -> Work:
    """Pairwise distances: difference, square and sum per coordinate, one root per pair."""
    return osize(op, graph) * (3.0 * at(ishape(op, graph), -1) + f.SQRT), "other"


# Convolutions


def convolution(op: Op, graph: OpGraph) -> Work:
    weight = shape(op, graph, "weight", 1)
    if flag(op, "transposed") or "transpose" in op.type:
        return f.conv_transpose(shape(op, graph, "input self", 0), weight)
    return f.conv(oshape(op, graph), weight, shape(op, graph, "input self", 0))


# Attention


def attention(op: Op, graph: OpGraph) -> Work:
    """Query (..., heads, queries, width); grouped heads share keys but do as many products."""
    query, key, value = (shape(op, graph, n, i) for i, n in enumerate(("query", "key", "value")))
    masked = arg(op, graph, "attn_mask attn_bias") is not None
    return f.attention(
        prod(query[:-2]),
        at(query, -2),
        at(key, -2),
        at(query, -1),
        at(value, -1),
        offset=0 if flag(op, "is_causal") else None,  # aligned at the upper left
        extra=float(masked),
    )


def multi_head(op: Op, graph: OpGraph) -> Work:
    """The fused encoder attention: projections of query, key, value and output around attention."""
    query, key = shape(op, graph, "query src", 0), shape(op, graph, "key", 1) or ishape(op, graph)
    rows, embed = prod(query[:-1]), at(query, -1)
    heads = positive(op, "num_head", positive(op, "num_heads"))
    inner, *_ = f.attention(at(query, 0) * heads, at(query, -2), at(key, -2), embed // heads, embed // heads)
    return inner + 4.0 * rows * embed * embed + 4.0 * prod(key[:-1]) * embed * embed, "attention"


def encoder_layer(op: Op, graph: OpGraph) -> Work:
    rows, embed = prod(ishape(op, graph)[:-1]), at(ishape(op, graph), -1)
    hidden = at(shape(op, graph, "ffn_weight_1", 13), 0)
    norms = 2 * f.normalise(rows * embed, rows, 2)[0]
    function = f.FUNCTION["gelu" if flag(op, "use_gelu") else "relu"]
    fed = 4.0 * rows * embed * hidden + function * rows * hidden
    return multi_head(op, graph)[0] + fed + norms + 2.0 * rows * embed, "attention"


# Recurrent layers


def recurrent(op: Op, graph: OpGraph) -> Work:
    """Every matrix of `params` is used once per step of each sequence."""
    data = shape(op, graph, "input data", 0)
    name = op.short_type
    gates, cell = (
        (4, f.LSTM_CELL) if "lstm" in name else (3, f.GRU_CELL) if "gru" in name else (1, f.RNN_CELL)
    )
    matrices = [dims(t) for t in args(op, graph, "params") if len(dims(t)) == 2]
    # Two matrices per layer and direction have gates x hidden rows; a projection (proj_size) has fewer.
    most = max((m[0] for m in matrices), default=0)
    states = most // gates * (sum(m[0] == most for m in matrices) // 2)
    return f.recurrent(prod(data[:-1]), sum(prod(m) for m in matrices), states, cell)


def recurrent_cell(op: Op, graph: OpGraph) -> Work:
    w_ih, w_hh = shape(op, graph, "w_ih", 2), shape(op, graph, "w_hh", 3)
    cell = f.LSTM_CELL if "lstm" in op.type else f.GRU_CELL if "gru" in op.type else f.RNN_CELL
    return f.recurrent(at(ishape(op, graph), 0), prod(w_ih) + prod(w_hh), at(w_hh, 1), cell)


def mkldnn_rnn(op: Op, graph: OpGraph) -> Work:
    """One layer in one direction; mode 2 is LSTM, 3 GRU."""
    products = prod(shape(op, graph, "weight0", 1)) + prod(shape(op, graph, "weight1", 2))
    mode = int_of(op, "mode", 2)
    cell = f.LSTM_CELL if mode == 2 else f.GRU_CELL if mode == 3 else f.RNN_CELL
    return f.recurrent(prod(ishape(op, graph)[:-1]), products, positive(op, "hidden_size"), cell)


# Norms and softmax


def _affine(op: Op, graph: OpGraph) -> int:
    return sum(arg(op, graph, n) is not None for n in ("weight", "bias"))


def layer_norm(op: Op, graph: OpGraph) -> Work:
    data = shape(op, graph, "input self", 0)
    count = prod(ints_of(op, "normalized_shape")) or at(data, -1)
    return f.normalise(
        prod(data), prod(data) // max(1, count), _affine(op, graph), centred="rms" not in op.type
    )


def group_norm(op: Op, graph: OpGraph) -> Work:
    data = shape(op, graph, "input self", 0)
    rows = at(data, 0) * positive(op, "num_groups", positive(op, "group"))
    return f.normalise(prod(data), rows, _affine(op, graph))


def instance_norm(op: Op, graph: OpGraph) -> Work:
    data = shape(op, graph, "input self", 0)
    return f.normalise(prod(data), prod(data[:2]), _affine(op, graph))


def batch_norm(op: Op, graph: OpGraph) -> Work:
    """With running statistics it is one scale and one shift per element; the rest is per channel."""
    return 2.0 * isize(op, graph), "norm"


def softmax(op: Op, graph: OpGraph) -> Work:
    data = ishape(op, graph)
    rows = prod(data) // max(1, at(data, int_of(op, "dim", -1)))
    return f.softmax(prod(data), rows, log="log" in op.type)


# Windows, samples, orders


def pool_mean(op: Op, graph: OpGraph) -> Work:
    kernel = ints_of(op, "kernel_size")
    return osize(op, graph) * (_window(op, graph, kernel) + f.DIV), "reduce"


def pool_max(op: Op, graph: OpGraph) -> Work:
    return float(osize(op, graph) * _window(op, graph, ints_of(op, "kernel_size"))), "reduce"


def _window(op: Op, graph: OpGraph, kernel: Shape) -> int:
    """Elements of the window; one number stands for every axis that the name tells (`max_pool2d`)."""
    axes = next((int(c) for c, d in zip(op.type, op.type[1:], strict=False) if d == "d" and c in "123"), 1)
    return max(1, kernel[0] ** axes if len(kernel) == 1 else prod(kernel))


def upsample(op: Op, graph: OpGraph) -> Work:
    """Taps of the interpolation, a multiply-add each; nearest neighbours are only copied."""
    name = op.short_type
    axes = 2 if "bi" in name else 3 if "tri" in name else 1
    mode = "cubic" if "cubic" in name else "linear" if "linear" in name else "nearest"
    return 2.0 * osize(op, graph) * f.INTERPOLATE[mode] ** axes if mode != "nearest" else 0.0, "gather"


def grid_sample(op: Op, graph: OpGraph) -> Work:
    """interpolation_mode: 0 linear, 1 nearest, 2 cubic."""
    mode = ("linear", "nearest", "cubic")[min(2, max(0, int_of(op, "interpolation_mode")))]
    axes = max(1, len(ishape(op, graph)) - 2)
    return 2.0 * osize(op, graph) * f.INTERPOLATE[mode] ** axes, "gather"


def sort(op: Op, graph: OpGraph) -> Work:
    data = ishape(op, graph)
    return f.sort(prod(data), at(data, int_of(op, "dim", -1)), positive(op, "k", 0) or None)


def fft(op: Op, graph: OpGraph) -> Work:
    """Axes from `dim`; the real forms do half the work."""
    sides = max((ishape(op, graph), oshape(op, graph)), key=prod)
    axes = ints_of(op, "dim") or (-1,)
    return f.fft(
        prod(sides), prod(at(sides, d) for d in axes), real=any(t in op.type for t in ("r2c", "c2r", "rfft"))
    )


def stft(op: Op, graph: OpGraph) -> Work:
    points = positive(op, "n_fft")
    frames = prod(ishape(op, graph)) // max(1, positive(op, "hop_length", points // 4))
    return f.fft(frames * points, points, real=True)


def power(op: Op, graph: OpGraph) -> Work:
    """Small exponents are multiplications or a root, as every library does."""
    exponent = op.attributes.get("exponent")
    cost = {2: 1.0, 3: 2.0, 0.5: f.SQRT, -0.5: f.SQRT + f.DIV, -1: f.DIV, 1: 0.0, 0: 0.0}
    each = cost.get(exponent, f.FUNCTION["pow"]) if isinstance(exponent, int | float) else f.FUNCTION["pow"]
    return osize(op, graph) * each, "elementwise"


def gelu(op: Op, graph: OpGraph) -> Work:
    each = f.FUNCTION["gelu_tanh" if str_of(op, "approximate") == "tanh" else "gelu"]
    return osize(op, graph) * each, "elementwise"


def extremum(op: Op, graph: OpGraph) -> Work:
    """`max` and `min` with two tensors compare element by element; otherwise they reduce."""
    if op.type.endswith(".other"):
        return float(osize(op, graph)), "elementwise"
    return float(isize(op, graph)), "reduce"


def vector_norm(op: Op, graph: OpGraph) -> Work:
    return 2.0 * isize(op, graph) + f.SQRT * osize(op, graph), "reduce"


def embedding_bag(op: Op, graph: OpGraph) -> Work:
    return float(isize(op, graph, 1) * at(ishape(op, graph), 1)), "gather"


def accumulate(op: Op, graph: OpGraph) -> Work:
    """Scatters that add: one operation per value scattered."""
    values = arg(op, graph, "src source values")
    return (float(values.elements) if values else 0.0), "gather"


def index_put(op: Op, graph: OpGraph) -> Work:
    return accumulate(op, graph) if flag(op, "accumulate") else (0.0, "gather")
