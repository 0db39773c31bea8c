"""Count rules of ONNX Runtime's own operators (domain com.microsoft).

The semantics are those of ONNX Runtime's ContribOperators.md. Quantised forms count the arithmetic of the
float operator, in the stored integer type; unpacking and rescaling belong to the kernel and are not counted
apart.
"""

from __future__ import annotations

from math import prod

from qeil_compile.ir import Op, OpGraph
from qeil_compile.passes.count import formulas as f
from qeil_compile.passes.count.base import (
    Rule,
    Work,
    at,
    has,
    int_of,
    ishape,
    isize,
    nothing,
    oshape,
    osize,
    per_output,
    positive,
    str_of,
    table,
    tensor,
)
from qeil_compile.passes.count.onnx_ops import gemm, gemm_of, qlinear_conv, unique
from qeil_compile.passes.count.traffic import routed, unpacked

# Matrix products


def matmul_nbits(op: Op, graph: OpGraph) -> Work:
    """A [..., K] times packed B [N, K]."""
    data = ishape(op, graph)
    inner, cols = positive(op, "K", at(data, -1)), positive(op, "N", at(oshape(op, graph), -1))
    return f.gemm(prod(data[:-1]), inner, cols)


def packed_matmul(op: Op, graph: OpGraph) -> Work:
    """Weights in a layout of their own: inner from the input, columns from the output."""
    data = ishape(op, graph)
    return f.gemm(prod(data[:-1]), at(data, -1), at(oshape(op, graph), -1))


def fused_matmul(op: Op, graph: OpGraph) -> Work:
    a, b = ishape(op, graph, 0), ishape(op, graph, 1)
    if int_of(op, "transA") and len(a) > 1:
        a = (*a[:-2], a[-1], a[-2])
    if int_of(op, "transB") and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    return f.matmul(a, b)


def qgemm(op: Op, graph: OpGraph) -> Work:
    """Inputs A, scale, zero point, B, ..."""
    return gemm_of(op, ishape(op, graph, 0), ishape(op, graph, 3))


def experts(op: Op, graph: OpGraph) -> Work:
    """Each row passes the two or three matrices of its k experts."""
    second, third = (5, 8) if op.short_type == "QMoE" else (4, 6)
    flops = 0.0
    for i, name in ((2, "fc1"), (second, "fc2"), (third, "fc3")):
        own = f"{name}_expert_weight_bits"
        bits = own if own in op.attributes else "expert_weight_bits"
        size = unpacked(op, tensor(graph, op.inputs, i), bits, 4) if has(op, graph, i) else 0
        flops += 2.0 * routed(op, graph) * size / max(1, at(ishape(op, graph, i), 0))
    return flops, "gemm"


# Attention


def multi_head(op: Op, graph: OpGraph) -> Work:
    """MultiHeadAttention: inputs already projected, query [B, S, H x D]; packed forms have 5 dimensions."""
    query, key, value = (ishape(op, graph, i) for i in range(3))
    heads = positive(op, "num_heads")
    batch, rows, out = at(query, 0), at(query, 1), at(oshape(op, graph), -1)
    width = at(query, -1) // (heads if len(query) == 3 else 1)
    present = tensor(graph, op.outputs, 1)
    own = at(key, 2 if len(key) == 4 else 1, rows)
    past_index = 5 if op.short_type.startswith("DecoderMasked") else 6
    past = at(ishape(op, graph, past_index), 2, 0)
    keys = at(oshape(op, graph, 1), 2) if present else own + past
    value_width = out // heads if out % heads == 0 else at(value, -1)
    causal = int_of(op, "unidirectional") != 0
    return f.attention(batch * heads, rows, keys, width, value_width, offset=keys - rows if causal else None)


def group_query(op: Op, graph: OpGraph) -> Work:
    """Always causal; `present` tells how many keys there are, which for a shared buffer is its capacity."""
    query, present, past = ishape(op, graph), oshape(op, graph, 1), ishape(op, graph, 3)
    heads, kv_heads = positive(op, "num_heads"), positive(op, "kv_num_heads")
    packed = not has(op, graph, 1)
    width = at(query, -1) // (heads + 2 * kv_heads if packed else heads)
    rows = at(query, 1)
    keys = at(present, 2) if present else rows + at(past, 2, 0)
    extra = (f.FUNCTION["tanh"] + f.DIV + 1 if op.attributes.get("softcap") else 0.0) + has(op, graph, 10)
    flops, kind, extents = f.attention(
        at(query, 0) * heads,
        rows,
        keys,
        width,
        width,
        offset=max(0, keys - rows),
        window=int_of(op, "local_window_size", -1),
        extra=extra,
    )
    turned = at(query, 0) * rows * (heads + kv_heads) * width if int_of(op, "do_rotary") else 0
    return flops + 3.0 * turned, kind, extents


def projected_attention(op: Op, graph: OpGraph) -> Work:
    """Attention: input [B, S, W] times weights [W, Q + K + V], then attention; `past` [2, B, H, P, D]."""
    data, weights = ishape(op, graph), ishape(op, graph, 1)
    heads, rows = positive(op, "num_heads"), at(data, 1)
    value = at(oshape(op, graph), -1)
    width = max(1, (at(weights, -1) - value) // 2)
    past = at(ishape(op, graph, 8 if op.short_type == "QAttention" else 4), 3, 0)
    causal = int_of(op, "unidirectional") != 0
    flops, kind, extents = f.attention(
        at(data, 0) * heads,
        rows,
        rows + past,
        width // heads,
        value // heads,
        offset=past if causal else None,
    )
    return flops + 2.0 * at(data, 0) * rows * prod(weights), kind, extents


# Norms and elementwise


def norm(parts: int, *, centred: bool = True) -> Rule:
    """Norm over the last axis with `parts` scale and shift terms and additions before it."""

    def rule(op: Op, graph: OpGraph) -> Work:
        data = ishape(op, graph)
        return f.normalise(prod(data), prod(data[:-1]), parts, centred=centred)

    return rule


def embed_norm(op: Op, graph: OpGraph) -> Work:
    """Sum of two or three embeddings, then a layer norm."""
    size = osize(op, graph)
    return f.normalise(size, prod(oshape(op, graph)[:-1]), 2 + 1 + has(op, graph, 4))


def group_norm(op: Op, graph: OpGraph) -> Work:
    data = ishape(op, graph)
    each = 2 + (f.FUNCTION["silu"] if int_of(op, "activation") else 0)
    return f.normalise(prod(data), at(data, 0) * positive(op, "groups"), int(each))


def softmax(op: Op, graph: OpGraph) -> Work:
    data = ishape(op, graph)
    return f.softmax(prod(data), prod(data[:-1]))


def fused_conv(op: Op, graph: OpGraph) -> Work:
    """Convolution, a sum if Z is given, an activation."""
    size = osize(op, graph)
    function = f.FUNCTION.get(str_of(op, "activation", "Relu").lower(), 2.0)
    flops, kind, extents = f.conv(oshape(op, graph), ishape(op, graph, 1), ishape(op, graph))
    return flops + size * (function + has(op, graph, 3)), kind, extents


def quantised(cost: float) -> Rule:
    """Dequantise (2), compute, quantise again (8)."""
    return lambda op, graph: ((2 + cost + f.DIV + 4) * osize(op, graph), "quantize")


def pooled(op: Op, graph: OpGraph) -> Work:
    """Quantised pools and means: every input element once."""
    return float(isize(op, graph)) + f.DIV * osize(op, graph), "reduce"


def transform(op: Op, graph: OpGraph) -> Work:
    sides = max((ishape(op, graph), oshape(op, graph)), key=prod)
    return f.fft(prod(sides), at(sides, -2), real=True)


RULES: dict[str, Rule] = table(
    "com.microsoft",
    (matmul_nbits, "MatMulNBits MatMulNBitsQLoRA"),
    (packed_matmul, "MatMulBnb4 MatMulFpQ4 MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight"),
    (
        fused_matmul,
        """
        FusedMatMul FusedMatMulActivation TransposeMatMul MatMulInteger16 SparseToDenseMatMul
        """,
    ),
    (fused_matmul, "MatMulIntegerToFloat DynamicQuantizeMatMul"),
    (
        gemm,
        """
        FusedGemm GemmFloat8 GemmFastGelu
        """,
    ),
    (qgemm, "QGemm"),
    (experts, "MoE QMoE"),
    (multi_head, "MultiHeadAttention DecoderMaskedMultiHeadAttention"),
    (group_query, "GroupQueryAttention"),
    (projected_attention, "Attention QAttention"),
    (per_output(3.0), "RotaryEmbedding GemmaRotaryEmbedding"),
    (norm(3), "SkipLayerNormalization"),
    (norm(2, centred=False), "SkipSimplifiedLayerNormalization"),
    (embed_norm, "EmbedLayerNormalization"),
    (group_norm, "GroupNorm SkipGroupNorm"),
    (softmax, "BiasSoftmax QLinearSoftmax"),
    (fused_conv, "FusedConv NhwcFusedConv NhwcConv"),
    (qlinear_conv, "QLinearConv"),
    (per_output(f.FUNCTION["gelu"]), "Gelu"),
    (per_output(f.FUNCTION["gelu"] + 1), "BiasGelu"),
    (per_output(f.FUNCTION["gelu_tanh"] + 1), "FastGelu"),
    (per_output(f.FUNCTION["quick_gelu"]), "QuickGelu"),
    (per_output(f.FUNCTION["gelu"] + 3), "BiasSplitGelu"),
    (per_output(f.FUNCTION["swiglu"]), "SwiGLU"),
    (per_output(2.0), "BiasAdd"),
    (per_output(2.0), "GatedAdd MulInteger"),
    (per_output(3.0), "ComplexMul ComplexMulConj"),
    (quantised(3.0), "QLinearAdd QLinearMul QLinearWhere"),
    (quantised(f.FUNCTION["sigmoid"]), "QLinearSigmoid"),
    (quantised(f.FUNCTION["leaky_relu"]), "QLinearLeakyRelu"),
    (pooled, "QLinearAveragePool QLinearGlobalAveragePool QLinearReduceMean"),
    (quantised(0.0), "QLinearConcat"),
    (per_output(f.DIV + 4, "quantize"), "QuantizeLinear"),
    (per_output(2.0, "quantize"), "DequantizeLinear"),
    (per_output(2.0, "gather"), "GatherBlockQuantized"),
    (nothing("gather"), "GatherND TorchEmbedding CropAndResize"),
    (nothing("movement"), "Pad Trilu ExpandDims Range UnfoldTensor"),
    (transform, "Rfft Irfft"),
    (unique, "Unique"),
    (lambda op, graph: (osize(op, graph) * (3.0 * at(ishape(op, graph), -1) + f.SQRT), "other"), "CDist"),
)
