"""Count rules of ONNX operators (dialect "onnx"): a table from "onnx.NAME" or "DOMAIN.NAME" to its rule.

Covers every operator of the default domain up to opset 26 (and the previews after it), the classical models
of ai.onnx.ml, the optimisers of the training preview and the usual ones of com.microsoft. Text and
sequence operators do no arithmetic. Needs neither onnx nor torch.
"""

from __future__ import annotations

from qeil_compile.ir import Op, OpGraph
from qeil_compile.passes.count import formulas as f
from qeil_compile.passes.count import onnx_contrib
from qeil_compile.passes.count import onnx_ops as o
from qeil_compile.passes.count.base import (
    Rule,
    Work,
    nothing,
    per_input,
    per_output,
    runs,
    table,
    transposed,
)

#: Functions that PyTorch calls the same, but for the case.
SAME = """
    Abs Acos Acosh Add Asin Asinh Atan Atanh Ceil Celu Cos Cosh Div Elu Erf Exp Floor HardSigmoid HardSwish
    IsInf IsNaN Log Mish Mul Neg PRelu Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign
    Sqrt Sub SwiGLU Tan Tanh Where
"""

#: ONNX name -> name in `formulas.FUNCTION`, for one-to-one functions.
FUNCTIONS = {
    **{name: name.lower() for name in SAME.split()},
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Not": "logical_not",
    "BitShift": "bitwise_shift",
    "BitwiseAnd": "bitwise_and",
    "BitwiseNot": "bitwise_not",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
    "Clip": "clamp",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "LeakyRelu": "leaky_relu",
    "Less": "lt",
    "LessOrEqual": "le",
    "Mod": "remainder",
    "Shrink": "softshrink",
    "Swish": "silu",
    "ThresholdedRelu": "threshold",
}

RULES: dict[str, Rule] = {
    **{f"onnx.{name}": per_output(f.FUNCTION[function]) for name, function in FUNCTIONS.items()},
    **table(
        "onnx",
        (o.matmul, "MatMul MatMulInteger"),
        (o.qlinear_matmul, "QLinearMatMul"),
        (o.gemm, "Gemm"),
        (o.einsum, "Einsum"),
        (o.conv, "Conv ConvInteger"),
        (o.qlinear_conv, "QLinearConv"),
        (o.conv_transpose, "ConvTranspose"),
        (o.deform_conv, "DeformConv"),
        (o.causal_conv, "CausalConvWithState"),
        (o.attention, "Attention"),
        (o.linear_attention, "LinearAttention"),
        (o.rotary, "RotaryEmbedding"),
        (o.recurrent, "LSTM GRU RNN"),
        (o.layer_norm, "LayerNormalization RMSNormalization SimplifiedLayerNormalization"),
        (o.group_norm, "GroupNormalization"),
        (o.instance_norm, "InstanceNormalization"),
        (o.batch_norm, "BatchNormalization"),
        (per_input(2 + f.DIV, kind="norm"), "LpNormalization"),
        (per_input(6.0, kind="norm"), "MeanVarianceNormalization"),
        (o.lrn, "LRN"),
        (o.softmax, "Softmax LogSoftmax"),
        (per_input(2.0, kind="softmax"), "Hardmax"),
        # reductions
        (per_input(1.0), "ReduceSum ReduceProd ReduceMax ReduceMin ArgMax ArgMin CumSum CumProd"),
        (per_input(1.0, f.DIV), "ReduceMean"),
        (per_input(2.0), "ReduceL1 ReduceSumSquare"),
        (per_input(2.0, f.SQRT), "ReduceL2"),
        (per_input(1.0, f.EXP), "ReduceLogSum"),
        (per_input(3 + f.EXP, f.EXP), "ReduceLogSumExp"),
        (o.pool_max, "MaxPool"),
        (o.pool_mean, "AveragePool"),
        (o.pool_lp, "LpPool"),
        (per_input(1.0), "GlobalMaxPool"),
        (per_input(1.0, f.DIV), "GlobalAveragePool"),
        (per_input(2.0, f.SQRT), "GlobalLpPool"),
        (o.max_roi_pool, "MaxRoiPool"),
        (per_input(4 + f.EXP), "SoftmaxCrossEntropyLoss"),
        (per_input(1.0), "NegativeLogLikelihoodLoss"),
        # samples and orders
        (o.resize, "Resize Upsample"),
        (o.grid_sample, "GridSample"),
        (o.roi_align, "RoiAlign"),
        (per_output(6.0), "AffineGrid"),
        (o.top_k, "TopK"),
        (o.unique, "Unique"),
        (o.non_max_suppression, "NonMaxSuppression"),
        (per_input(1.0, kind="gather"), "NonZero"),
        (o.dft, "DFT"),
        (o.stft, "STFT"),
        (o.det, "Det"),
        # elementwise with a choice
        (o.power, "Pow"),
        (o.gelu, "Gelu"),
        (o.variadic, "Max Min Sum Mean"),
        (
            per_output(f.LIBRARY),
            "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
        ),
        (per_output(f.EXP + 3), "HannWindow HammingWindow BlackmanWindow"),
        (per_output(f.DIV + 3), "MelWeightMatrix"),
        # quantisation
        (per_output(f.DIV + 4, "quantize"), "QuantizeLinear"),
        (per_output(f.DIV + 6, "quantize"), "DynamicQuantizeLinear"),
        (per_output(2.0, "quantize"), "DequantizeLinear"),
        # gathers, copies, views, constants
        (
            nothing("gather"),
            "Gather GatherElements GatherND Compress OneHot MaxUnpool ReverseSequence TensorScatter",
        ),
        (o.scatter, "Scatter ScatterElements ScatterND"),
        (per_input(1.0, kind="gather"), "Col2Im"),
        (runs, "Concat Pad Slice Split"),
        (transposed, "Transpose"),
        (
            nothing("movement"),
            """
            Cast CastLike BitCast CenterCropPad Constant ConstantOfShape DepthToSpace Dropout Expand
            EyeLike Flatten Identity Range Reshape Shape Size SpaceToDepth Squeeze Tile
            Trilu Unsqueeze
            """,
        ),
        (
            nothing("control"),
            """
            ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct
            SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence If Loop Scan
            SequenceMap
            """,
        ),
        (nothing("other"), "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer"),
    ),
    **table(
        "ai.onnx.preview",
        (o.attention, "FlexAttention"),
    ),
    **table(
        "ai.onnx.preview.training",
        (per_output(6 + f.SQRT + f.DIV), "Adagrad"),
        (per_output(10 + f.SQRT + f.DIV), "Adam"),
        (per_output(6.0), "Momentum"),
    ),
    **table(
        "ai.onnx.ml",
        (o.linear_model, "LinearClassifier LinearRegressor"),
        (o.support_vectors, "SVMClassifier SVMRegressor"),
        (o.trees, "TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor"),
        (per_output(2.0), "Scaler"),
        (per_output(1.0), "Binarizer Imputer"),
        (per_output(2 + f.DIV, "norm"), "Normalizer"),
        (
            nothing("gather"),
            "ArrayFeatureExtractor LabelEncoder OneHotEncoder CategoryMapper DictVectorizer",
        ),
        (nothing("movement"), "CastMap FeatureVectorizer ZipMap"),
    ),
    **onnx_contrib.RULES,
}


def work(op: Op, graph: OpGraph) -> Work | None:
    """FLOPs and kind; None when no rule exists."""
    rule = RULES.get(op.type)
    return rule(op, graph) if rule else None
