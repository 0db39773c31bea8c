"""What each engine runs as one kernel, as data: the rules that `passes.match` applies.

The rules describe ONNX Runtime 1.32 and OpenVINO 2026.4 on this CPU at their default settings, and eager torch. They
are observed, not promised: `benchmarks/fusion.py` compares them with the profiles of the installed engines.

Operators are named by a class that both dialects share: `family` gives it (`aten.convolution.default` and
`onnx.Conv` are both "conv").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from qeil_compile.devices.cpuinfo import cpu_facts, vector_lanes
from qeil_compile.ir import Op

_ALIASES: dict[str, str] = {
    alias: name
    for name, aliases in {
        "conv": "convolution conv1d conv2d conv3d _convolution mkldnn_convolution",
        "batchnorm": """batchnormalization batch_norm native_batch_norm _native_batch_norm_legit
            _native_batch_norm_legit_no_training cudnn_batch_norm""",
        "layernorm": "layernormalization layer_norm native_layer_norm",
        "rmsnorm": "rms_norm _fused_rms_norm rmsnormalization simplifiedlayernormalization",
        "matmul": "mm bmm mv dot",
        "gemm": "addmm",
        "attention": "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu",
        "reshape": """view _unsafe_view view_as reshape_as _reshape_alias flatten unflatten ravel squeeze unsqueeze
            bitcast""",
        "identity": "dropout alias detach clone contiguous lift_fresh_copy lift_fresh positive",
        "transpose": "permute t numpy_t swapaxes swapdims movedim moveaxis adjoint mt",
        "slice": "narrow slice_copy",
        "split": "split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unbind",
        "expand": "expand_as broadcast_to expand_copy",
        "concat": "cat stack concatenate",
        "mean": "reducemean",
        "sum": "reducesum",
        "softmax": "_softmax _safe_softmax special_softmax",
        "pool": """maxpool averagepool max_pool2d avg_pool2d max_pool2d_with_indices globalaveragepool
            globalmaxpool adaptive_avg_pool2d _adaptive_avg_pool2d""",
        "clip": "clamp hardtanh relu6",
        "leaky_relu": "leakyrelu",
        "quantize": "quantizelinear quantize_per_tensor quantize_per_channel",
        "dequantize": "dequantizelinear dequantize_per_tensor dequantize_per_channel",
        "cast": "_to_copy to castlike type_as",
    }.items()
    for alias in aliases.split()
}


def family(op: Op) -> str:
    """The class of an operator: its own short name in lower case where no other operator shares it."""
    return _family(op.type, op.short_type)


@cache
def _family(kind: str, short: str) -> str:
    name = short.split(".")[0].lower()
    name = name.rstrip("_") if kind.startswith("aten.") else name
    return _ALIASES.get(name, name)


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


Operands = Literal["constant", "tensor"]


@dataclass(frozen=True)
class Stage:
    """Followers that a kernel takes up, one after the other, at most `most`.

    With operands "constant" a follower reads nothing but the kernel's result and weights, one number or one per
    channel; with "tensor" it reads one more tensor. The family "*" is every element-wise operator.
    """

    families: frozenset[str]
    operands: Operands = "constant"
    most: int = 1


@dataclass(frozen=True)
class Pattern:
    """Operators that are one function written out: a walk from the first to the last along readers.

    A step is a set of families (`a|b`); a trailing `?` makes it optional. The walk is a kernel if its only
    results are the last one's, and it reads at most `reads` tensors beside weights.
    """

    name: str
    steps: tuple[str, ...]
    reads: int = 1


@dataclass(frozen=True)
class Layout:
    """A layout of image tensors that only some kernels know: between them and the others the engine reorders.

    `block` channels lie together (0: all of them); a convolution whose channels are no multiple of it stays out.
    `reads_plain`: a convolution with fewer input channels than a block reads the plain layout itself.
    `carriers` keep the layout of what they read.
    """

    block: int
    reads_plain: bool
    carriers: frozenset[str]
    #: Kernels outside that read either layout.
    indifferent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class FusionRules:
    """Rules of one engine.

    What costs nothing: `views` rename memory, and if `views_run` each is still a kernel that costs a launch; `removed`
    vanish; `folds`: what hangs on weights alone is computed before the first run, and equal operators once;
    `in_place`: parts along the outermost axis (concatenation, split, select) are not copied; `free_transpose`: nor
    is a transpose into the order in which a layout already is.

    What is one kernel: `stages` maps the family of a main operator to what it takes up; `patterns`;
    `subgraphs`: connected element-wise operators, at most `subgraph_ports` tensors in and out, save those `alone`;
    `slices` of one tensor; `quantised` operators with the dequantise and quantise operators around them;
    `takes_transposes`: written-out attention with those around it.

    What the engine adds: reorders between `layout` and the plain one; `more` kernels by family, as (type, size):
    the bytes of the "key" or of what is written ("out"); `reshapes_rows`: views around products with a bias over more
    than two axes; `converts_int64`: conversions of 64-bit inputs.
    """

    views: frozenset[str] = names("reshape")
    views_run: bool = False
    removed: frozenset[str] = frozenset()
    folds: bool = False
    stages: Mapping[str, tuple[Stage, ...]] = field(default_factory=dict)
    patterns: tuple[Pattern, ...] = ()
    subgraphs: bool = False
    subgraph_ports: int = 12
    slices: bool = False
    in_place: bool = False
    free_transpose: bool = False
    quantised: frozenset[str] = frozenset()
    takes_transposes: bool = False
    layout: Layout | None = None
    more: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    reshapes_rows: bool = False
    converts_int64: bool = False


_ACTIVATIONS = names("relu sigmoid tanh leaky_relu clip hardsigmoid hardswish")
_LAYER_NORM = Pattern("layernorm", ("mean", "sub", "pow|mul|square", "mean", "add", "sqrt", "div", "mul?", "add?"))
_GELU = Pattern("gelu", ("div|mul", "erf", "add", "mul", "mul"))
_GELU_LAST = Pattern("gelu", ("div|mul", "erf", "add", "mul"))
_SILU = Pattern("silu", ("sigmoid", "mul"))
_RMS = ("pow|mul|square", "mean", "add", "sqrt|rsqrt", "div|reciprocal?", "mul?", "mul?")

#: Eager torch: an operator is a kernel. A view costs its dispatch like a small kernel does (measured: 2.1 to 2.7 us
#: against 2.0 to 2.2 us of an addition of 64 numbers).
TORCH = FusionRules(
    views=names("reshape identity transpose slice select split expand diagonal as_strided unfold"),
    views_run=True,
)



def channel_block() -> int:
    """Channels that ONNX Runtime's convolutions keep together on this processor (`MlasNchwcGetBlockSize`)."""
    lanes = vector_lanes(cpu_facts().flags)
    return 8 if lanes == 8 else 16


ONNXRUNTIME = FusionRules(
    views_run=True,
    removed=names("identity"),
    folds=True,
    stages={
        "conv": (
            Stage(names("batchnorm"), most=1),
            Stage(names("mul add sub div"), most=2),
            Stage(names("add"), "tensor"),
            Stage(_ACTIVATIONS),
        ),
        "gemm": (Stage(_ACTIVATIONS | names("elu selu softplus softsign thresholdedrelu")),),
        "matmul": (Stage(names("add")), Stage(names("mul div"))),
        "transpose": (Stage(names("transpose")),),
        "add": (Stage(names("layernorm")),),
    },
    patterns=(
        _LAYER_NORM,
        Pattern("rmsnorm", ("pow", "mean", "add", "sqrt", "div", "mul?", "mul?")),
        _GELU,
        _GELU_LAST,
        _SILU,
    ),
    slices=True,
    quantised=names("conv matmul gemm add mul concat pool relu leaky_relu sigmoid softmax mean"),
    layout=Layout(channel_block(), True, names("pool add relu concat clip sigmoid tanh sum batchnorm")),
    more={"rsqrt": (("Reciprocal", "out"),), "ne": (("Not", "out"),)},
    reshapes_rows=True,
)

OPENVINO = FusionRules(
    removed=names("identity"),
    folds=True,
    stages={
        "conv": (
            Stage(names("* batchnorm"), most=8),
            Stage(names("add"), "tensor"),
            Stage(names("*"), most=8),
        ),
        "linear": (Stage(names("*"), most=8),),
        "gemm": (Stage(names("*"), most=8),),
        "matmul": (Stage(names("*"), most=8),),
        "mean": (Stage(names("*"), most=8),),
        "sum": (Stage(names("*"), most=8),),
        "layernorm": (Stage(names("*"), most=8),),
    },
    patterns=(
        _LAYER_NORM,
        Pattern("rmsnorm", _RMS),
        _GELU,
        Pattern("softmax", ("reducemax|amax", "reshape?", "sub", "exp", "sum", "reshape?", "div")),
        Pattern("softmax", ("exp", "sum", "reshape?", "div")),
        Pattern("attention", ("matmul", "div|mul?", "add?", "softmax", "expand?", "reshape?", "matmul"), reads=4),
    ),
    subgraphs=True,
    slices=True,
    in_place=True,
    free_transpose=True,
    quantised=names("conv matmul gemm linear add mul concat pool"),
    takes_transposes=True,
    layout=Layout(0, False, names("pool add relu concat clip sigmoid tanh mul"), names("mean")),
    # Attention is one kernel between others: the scale and transposition of the keys, and a guard against rows
    # that a mask hides wholly.
    more={"attention": (("Multiply", "key"), ("IsNaN", "out"), ("Select", "out")), "ne": (("Not", "out"),)},
    alone=names("hardsigmoid selu softsign sign sin cos tan sinh cosh acos asin atan acosh asinh atanh"),
    converts_int64=True,
)

#: Engine -> its rules; any other engine is taken for one that runs each operator by itself and views for nothing.
RULES: Mapping[str, FusionRules] = {"torch": TORCH, "onnxruntime": ONNXRUNTIME, "openvino": OPENVINO}
DEFAULT = FusionRules(views=TORCH.views, removed=names("identity"))
