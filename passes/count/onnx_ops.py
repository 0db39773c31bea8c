"""Count rules of ONNX operators that need more than a cost per element.

They work from the shapes of inputs and outputs, which shape inference gives, and ask attributes only where no
shape tells: so one rule holds for every opset version (axes as an attribute or as an input).
"""

from __future__ import annotations

from math import prod

from qeil_compile.ir import Op, OpGraph
from qeil_compile.passes.count import formulas as f
from qeil_compile.passes.count.base import (
    Shape,
    Work,
    at,
    has,
    int_of,
    ints_of,
    ishape,
    isize,
    list_len,
    oshape,
    osize,
    positive,
    str_of,
)

# Matrix products and convolutions


def matmul(op: Op, graph: OpGraph) -> Work:
    return f.matmul(ishape(op, graph, 0), ishape(op, graph, 1))


def qlinear_matmul(op: Op, graph: OpGraph) -> Work:
    """Inputs a, scale, zero point, b, ..."""
    return f.matmul(ishape(op, graph, 0), ishape(op, graph, 3))


def gemm(op: Op, graph: OpGraph) -> Work:
    return gemm_of(op, ishape(op, graph, 0), ishape(op, graph, 1))


def gemm_of(op: Op, a: Shape, b: Shape) -> Work:
    """Product of two matrices, either of them transposed."""
    across, down = (0, 1) if int_of(op, "transA") else (1, 0)
    cols, inner = (0, 1) if int_of(op, "transB") else (1, 0)
    return f.gemm(at(a, down), max(at(a, across), at(b, inner)), at(b, cols))


def einsum(op: Op, graph: OpGraph) -> Work:
    return f.einsum(str_of(op, "equation"), [ishape(op, graph, i) for i in range(len(op.inputs))])


def conv(op: Op, graph: OpGraph) -> Work:
    return f.conv(oshape(op, graph), ishape(op, graph, 1), ishape(op, graph))


def qlinear_conv(op: Op, graph: OpGraph) -> Work:
    """Inputs x, scale, zero point, w, ..."""
    return f.conv(oshape(op, graph), ishape(op, graph, 3), ishape(op, graph))


def conv_transpose(op: Op, graph: OpGraph) -> Work:
    return f.conv_transpose(ishape(op, graph, 0), ishape(op, graph, 1))


def deform_conv(op: Op, graph: OpGraph) -> Work:
    """A convolution whose every sample is interpolated between four neighbours (and masked)."""
    out, weight, data = oshape(op, graph), ishape(op, graph, 1), ishape(op, graph)
    samples = at(data, 0) * at(data, 1) * prod(out[2:]) * prod(weight[2:])
    return f.conv(out, weight)[0] + samples * (8.0 + has(op, graph, 4)), "conv"


def causal_conv(op: Op, graph: OpGraph) -> Work:
    """Depthwise: each output element sums over the window; the activation, if any, is SiLU."""
    size, width = osize(op, graph), at(ishape(op, graph, 1), -1)
    function = f.FUNCTION["silu"] if str_of(op, "activation", "none") != "none" else 0.0
    return size * (2.0 * width + function), "conv"


# Attention


def attention(op: Op, graph: OpGraph) -> Work:
    """Attention of the default domain: 4-D, or 3-D with the head counts as attributes."""
    query, key, value = (ishape(op, graph, i) for i in range(3))
    past = at(ishape(op, graph, 4), 2, 0) if has(op, graph, 4) else 0
    if len(query) == 4:
        heads, width, value_width = at(query, 1), at(query, 3), at(value, 3)
    else:
        heads, kv_heads = positive(op, "q_num_heads"), positive(op, "kv_num_heads")
        width, value_width = at(query, -1) // heads, at(value, -1) // kv_heads
    window = int_of(op, "left_window_size", -1)
    causal = int_of(op, "is_causal") != 0
    # The score modifiers of FlexAttention are nested graphs: their elementwise work is not counted.
    extra = has(op, graph, 3) + (f.FUNCTION["tanh"] + f.DIV + 1 if op.attributes.get("softcap") else 0.0)
    return f.attention(
        at(query, 0) * heads,
        at(query, -2),
        at(key, -2) + past,
        width,
        value_width,
        offset=past if causal else None,
        window=window + 1 if causal and window >= 0 else -1,
        extra=extra,
    )


def linear_attention(op: Op, graph: OpGraph) -> Work:
    """Recurrent form, per token and head: update the state by an outer product, read it by a product.

    "gated" rules also scale the state, "delta" rules also read it once more to form the correction.
    """
    query, value = ishape(op, graph, 0), ishape(op, graph, 2)
    heads, kv_heads = positive(op, "q_num_heads"), positive(op, "kv_num_heads")
    rule = str_of(op, "update_rule", "gated_delta")
    state = (at(query, -1) // heads) * (at(value, -1) // kv_heads)
    update = kv_heads * state * (2.0 + ("gated" in rule) + 2.0 * ("delta" in rule))
    return prod(query[:-1]) * (update + 2.0 * heads * state), "attention"


def rotary(op: Op, graph: OpGraph) -> Work:
    """Two multiplications and one addition per element that turns."""
    return 3.0 * osize(op, graph), "elementwise"


# Recurrent layers


def recurrent(op: Op, graph: OpGraph) -> Work:
    """X [time, batch, width], W and R [directions, gates x hidden, ...], peepholes P, no `sequence_lens`."""
    kind = op.short_type
    cell = f.LSTM_CELL if "LSTM" in kind else f.GRU_CELL if kind == "GRU" else f.RNN_CELL
    w, r, data = ishape(op, graph, 1), ishape(op, graph, 2), ishape(op, graph)
    peephole = isize(op, graph, 7) if "LSTM" in kind else 0
    return f.recurrent(at(data, 0) * at(data, 1), prod(w) + prod(r) + peephole, at(r, 0) * at(r, 2), cell)


# Norms and softmax


def layer_norm(op: Op, graph: OpGraph) -> Work:
    """LayerNormalization and RMSNormalization over the axes from `axis`."""
    data = ishape(op, graph)
    axis = int_of(op, "axis", -1)
    rows = prod(data[:axis]) if data else 1
    affine = has(op, graph, 1) + has(op, graph, 2)
    return f.normalise(prod(data), rows, affine, centred=op.short_type == "LayerNormalization")


def group_norm(op: Op, graph: OpGraph) -> Work:
    data = ishape(op, graph)
    return f.normalise(prod(data), at(data, 0) * positive(op, "num_groups"), 2)


def instance_norm(op: Op, graph: OpGraph) -> Work:
    data = ishape(op, graph)
    return f.normalise(prod(data), prod(data[:2]), 2)


def batch_norm(op: Op, graph: OpGraph) -> Work:
    """One scale and one shift per element: the per-channel part is folded into them."""
    return 2.0 * isize(op, graph), "norm"


def lrn(op: Op, graph: OpGraph) -> Work:
    """Squares summed over a window of channels, then a power and a division."""
    each = 2.0 * positive(op, "size") + 2 + f.FUNCTION["pow"] + f.DIV
    return each * isize(op, graph), "norm"


def softmax(op: Op, graph: OpGraph) -> Work:
    """Up to opset 12 the axes from `axis` are one row; from 13 only the axis itself."""
    data = ishape(op, graph)
    old = graph.opsets.get("", graph.opsets.get("ai.onnx", 13)) < 13
    axis = int_of(op, "axis", 1 if old else -1)
    rows = prod(data[:axis]) if old else prod(data) // max(1, at(data, axis))
    return f.softmax(prod(data), max(1, rows), log="Log" in op.type)


# Windows, samples, orders


def _window(op: Op) -> int:
    """Elements of the window."""
    return max(1, prod(ints_of(op, "kernel_shape")))


def pool_max(op: Op, graph: OpGraph) -> Work:
    return float(osize(op, graph) * _window(op)), "reduce"


def pool_mean(op: Op, graph: OpGraph) -> Work:
    return osize(op, graph) * (_window(op) + f.DIV), "reduce"


def pool_lp(op: Op, graph: OpGraph) -> Work:
    """Taken as p = 2: square and sum, one root."""
    return osize(op, graph) * (2.0 * _window(op) + f.SQRT), "reduce"


def resize(op: Op, graph: OpGraph) -> Work:
    """Taps along every axis whose size changes; nearest neighbours are only copied."""
    mode = str_of(op, "mode", "nearest")
    changed = sum(a != b for a, b in zip(ishape(op, graph), oshape(op, graph), strict=False))
    taps = f.INTERPOLATE.get(mode, 2.0)
    return (2.0 * osize(op, graph) * taps**changed if taps else 0.0), "gather"


def grid_sample(op: Op, graph: OpGraph) -> Work:
    """`bilinear` and `bicubic` are the names before opset 20."""
    taps = f.INTERPOLATE.get(str_of(op, "mode", "linear").removeprefix("bi"), 2.0)
    return (2.0 * osize(op, graph) * taps ** max(1, len(ishape(op, graph)) - 2) if taps else 0.0), "gather"


def roi_align(op: Op, graph: OpGraph) -> Work:
    """Four taps per sample, `sampling_ratio` squared samples per bin (0, adaptive: taken as 2)."""
    ratio = positive(op, "sampling_ratio", 2)
    return osize(op, graph) * ratio * ratio * 8.0, "gather"


def max_roi_pool(op: Op, graph: OpGraph) -> Work:
    """Upper bound: every region covers the whole map."""
    return float(at(ishape(op, graph, 1), 0) * prod(ishape(op, graph)[1:])), "reduce"


def top_k(op: Op, graph: OpGraph) -> Work:
    data, axis = ishape(op, graph), int_of(op, "axis", -1)
    return f.sort(prod(data), at(data, axis), at(oshape(op, graph), axis))


def unique(op: Op, graph: OpGraph) -> Work:
    return f.sort(isize(op, graph), isize(op, graph))


def non_max_suppression(op: Op, graph: OpGraph) -> Work:
    """Sort the scores of each class, then 16 FLOP for the overlap of each box with each selected box."""
    scores = ishape(op, graph, 1)
    boxes, selected = prod(scores), at(oshape(op, graph), 0)
    return f.sort(boxes, at(scores, -1))[0] + 16.0 * at(scores, -1) * selected, "sort"


def dft(op: Op, graph: OpGraph) -> Work:
    data = max((ishape(op, graph), oshape(op, graph)), key=prod)
    axis = int_of(op, "axis", -2)
    return f.fft(prod(data[:-1]), at(data, axis), real=at(ishape(op, graph), -1) == 1)


def stft(op: Op, graph: OpGraph) -> Work:
    """Output [batch, frames, bins, 2]; the window gives the number of points."""
    out = oshape(op, graph)
    points = isize(op, graph, 2) or 2 * max(1, at(out, 2) - 1)
    return f.fft(at(out, 0) * at(out, 1) * points, points, real=at(ishape(op, graph), -1) == 1)


def det(op: Op, graph: OpGraph) -> Work:
    """LU factorisation: 2/3 n^3 per matrix."""
    data = ishape(op, graph)
    return prod(data[:-2]) * 2.0 / 3.0 * at(data, -1) ** 3, "other"


# Elementwise operators with a choice inside


def power(op: Op, graph: OpGraph) -> Work:
    """A one-element exponent is nearly always 2, 3 or 0.5: it counts as the dearest of them, a root."""
    each = f.SQRT if isize(op, graph, 1) == 1 < osize(op, graph) else f.FUNCTION["pow"]
    return osize(op, graph) * each, "elementwise"


def gelu(op: Op, graph: OpGraph) -> Work:
    each = f.FUNCTION["gelu_tanh" if str_of(op, "approximate") == "tanh" else "gelu"]
    return osize(op, graph) * each, "elementwise"


def variadic(op: Op, graph: OpGraph) -> Work:
    """Max, Min, Sum, Mean of n tensors: n - 1 operations, and a division for the mean."""
    each = max(0, len(op.inputs) - 1) + (f.DIV if op.short_type == "Mean" else 0.0)
    return osize(op, graph) * each, "elementwise"


def scatter(op: Op, graph: OpGraph) -> Work:
    """One operation per value when values are combined rather than copied."""
    combines = str_of(op, "reduction", "none") != "none"
    return float(isize(op, graph, 2) if combines else 0), "gather"


# ai.onnx.ml


def linear_model(op: Op, graph: OpGraph) -> Work:
    """Coefficients [targets x features] times every row."""
    return f.gemm(at(ishape(op, graph), 0), max(1, list_len(op, "coefficients")), 1)


def support_vectors(op: Op, graph: OpGraph) -> Work:
    """One product with each support vector, one kernel function each."""
    rows, width = at(ishape(op, graph), 0), max(1, at(ishape(op, graph), -1))
    count = max(1, list_len(op, "support_vectors") // width)
    return rows * count * (2.0 * width + f.EXP), "gemm"


def trees(op: Op, graph: OpGraph) -> Work:
    """One comparison per level of each tree, every tree taken as balanced."""
    owners = ints_of(op, "nodes_treeids")
    count = max(1, len(set(owners)) or list_len(op, "tree_roots"))
    depth = max(1, (list_len(op, "nodes_featureids") // count).bit_length())
    return float(at(ishape(op, graph), 0) * count * depth), "other"
