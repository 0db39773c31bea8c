"""Small networks that a calibration times: chains of one kind of operator over a range of shapes.

Each network repeats its operator with weights of its own, so that the call of the engine is spread over many
kernels and weights come from where a real network's come from. They are ONNX models like any other: the fit sees
them through the same count and the same fusion as the models that will be priced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import helper, numpy_helper

_OPSET = 23
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """One network: `kind` is the operator kind that it is for."""

    name: str
    kind: str
    model: onnx.ModelProto


@cache
def _pool() -> np.ndarray:
    """Uniform numbers around 0."""
    return np.random.default_rng(0).random(2**20, dtype=np.float32) - np.float32(0.5)


class Chain:
    """Builds a model node by node; weights are random, of a fixed seed, and scaled so that values stay near 1."""

    def __init__(self, *inputs: Shape, dtype: type = np.float32) -> None:
        self.dtype, self.element = dtype, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info(f"x{i}", self.element, s) for i, s in enumerate(inputs)]

    def weight(self, *shape: int, fan: int = 1) -> str:
        """A random weight with variance 1 / fan."""
        # From a pool, each from another place: a gigabyte of fresh numbers would take seconds to draw.
        values = np.resize(_pool()[97 * len(self.weights) % 65536 :], shape)
        values *= np.float32(np.sqrt(12.0 / max(1, fan)))
        return self.constant(values.astype(self.dtype, copy=False))

    def constant(self, array: np.ndarray) -> str:
        """A given weight."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: object) -> str:
        """Append an operator; the name of its first output, the others are that name with _1, _2, ..."""
        name = f"{kind.lower()}{len(self.nodes)}"
        names = [name if k == 0 else f"{name}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return name

    def parts(self, x: str, count: int, axis: int = -1) -> list[str]:
        """`x` split into equal parts along an axis."""
        first = self.node("Split", x, axis=axis, num_outputs=count, outputs=count)
        return [first, *(f"{first}_{k}" for k in range(1, count))]

    def network(self, name: str, kind: str, *outputs: str, element: int = 0) -> Network:
        """The finished model with these outputs."""
        results = [helper.make_tensor_value_info(o, element or self.element, None) for o in outputs]
        graph = helper.make_graph(self.nodes, name.replace(" ", "_"), self.inputs, results, self.weights)
        domains = dict.fromkeys(n.domain for n in self.nodes)
        opsets = [helper.make_opsetid(d, 1 if d else _OPSET) for d in dict.fromkeys(["", *domains])]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
        return Network(name, kind, model)


def gemm(rows: int, inner: int, cols: int, repeats: int, dtype: type = np.float32, residual: bool = False) -> Network:
    """`repeats` pairs of products with weights and a bias: rows x inner x cols and back, added to what came in if
    `residual`: engines have other kernels for that."""
    chain, x = Chain((1, rows, inner), dtype=dtype), "x0"
    for _ in range(repeats):
        before = x
        for a, b in ((inner, cols), (cols, inner)):
            x = chain.node("Add", chain.node("MatMul", x, chain.weight(a, b, fan=a)), chain.weight(b))
        x = chain.node("Add", before, x) if residual else x
    name = f"gemm {np.dtype(dtype).name} {rows}x{inner}x{cols}{' residual' if residual else ''} x{repeats}"
    return chain.network(name, "gemm", x)


def four_bits(rows: int, inner: int, cols: int, repeats: int, block: int = 32) -> Network:
    """`repeats` pairs of products with 4-bit weights in blocks."""
    chain, x = Chain((1, rows, inner)), "x0"
    for _ in range(repeats):
        for a, b in ((inner, cols), (cols, inner)):
            packed = chain.rng.integers(0, 255, (b, a // block, block // 2), np.uint8)
            scales = np.full(b * (a // block), 0.2 / np.sqrt(a), np.float32)
            x = chain.node(
                "MatMulNBits", x, chain.constant(packed), chain.constant(scales), domain="com.microsoft",
                K=a, N=b, bits=4, block_size=block,
            )  # fmt: skip
    return chain.network(f"4-bit gemm {rows}x{inner}x{cols} x{repeats}", "gemm", x)


def products(batch: int, rows: int, width: int, repeats: int) -> Network:
    """Products of two activations, as in attention without a fused operator: x y and back, `repeats` times."""
    chain, x = Chain((1, batch, rows, width), (1, batch, width, rows)), "x0"
    scale = chain.constant(np.array(1.0 / np.sqrt(rows * width), np.float32))
    for _ in range(repeats):
        x = chain.node("MatMul", chain.node("Mul", chain.node("MatMul", x, "x1"), scale), x)
    return chain.network(f"products {batch}x{rows}x{width} x{repeats}", "gemm", x)


@dataclass(frozen=True)
class Layer:
    """One convolution of a chain: channels out, window per axis, stride, groups (0: depthwise), padding or none."""

    channels: int
    window: Shape
    stride: int = 1
    groups: int = 1
    padded: bool = True


def convolutions(name: str, shape: Shape, layers: Sequence[Layer], repeats: int = 1) -> Network:
    """The layers one after another with ReLUs, `repeats` times; shape is channels, then the spatial axes."""
    chain, x, channels = Chain((1, *shape)), "x0", shape[0]
    for layer in [*layers] * repeats:
        groups = layer.groups or channels
        fan = channels // groups * int(np.prod(layer.window))
        weight = chain.weight(layer.channels, channels // groups, *layer.window, fan=fan)
        pads = [k // 2 if layer.padded else 0 for k in layer.window] * 2
        x = chain.node(
            "Conv", x, weight, chain.weight(layer.channels), group=groups, kernel_shape=list(layer.window),
            strides=[layer.stride] * len(layer.window), pads=pads,
        )  # fmt: skip
        x, channels = chain.node("Relu", x), layer.channels
    return chain.network(f"conv {name} on {'x'.join(map(str, shape))} x{repeats}", "conv", x)


def attention(heads: int, queries: int, keys: int, width: int, repeats: int) -> Network:
    """Fused attention over keys and values that are inputs, as in decoding with a cache."""
    chain, x = Chain((1, heads, queries, width), (1, heads, keys, width), (1, heads, keys, width)), "x0"
    for _ in range(repeats):
        x = chain.node("Attention", x, "x1", "x2", is_causal=int(queries == keys))
    return chain.network(f"attention {heads}x{queries}x{keys}x{width} x{repeats}", "attention", x)


def recurrent(kind: str, steps: int, width: int, repeats: int) -> Network:
    """LSTM or GRU layers with as many states as inputs."""
    chain, x, gates = Chain((steps, 1, width)), "x0", 4 if kind == "LSTM" else 3
    for _ in range(repeats):
        w, r = (chain.weight(1, gates * width, width, fan=width) for _ in range(2))
        y = chain.node(kind, x, w, r, hidden_size=width)
        x = chain.node("Squeeze", y, chain.constant(np.array([1], np.int64)))
    return chain.network(f"{kind} {steps}x{width} x{repeats}", "recurrent", x)


#: Element-wise operators of one input, as (operator, attributes).
UNARY = ("Sigmoid", "Tanh", "Exp", "Erf", "Gelu", "Sqrt", "HardSwish", "Pow")
#: Element-wise operators of two inputs of one shape.
BINARY = ("Add", "Mul", "Div", "Max")


def elementwise(kind: str, size: int, repeats: int) -> Network:
    """A chain of one element-wise operator over `size` numbers."""
    binary = kind in BINARY
    chain, x = Chain(*[(1, size)] * (1 + binary)), "x0"
    for _ in range(repeats):
        if kind == "Pow":  # squares alone would run into infinity or denormal numbers, which are slow
            x = chain.node("Sqrt", chain.node("Pow", x, chain.constant(np.array(2.0, np.float32))))
        else:
            x = chain.node(kind, x, *(["x1"] if binary else []))
    return chain.network(f"{kind} {size} x{repeats}", "elementwise", x)


def rowwise(kind: str, rows: int, width: int, repeats: int) -> Network:
    """A chain of Softmax, LayerNormalization or RMSNormalization over rows."""
    chain, x = Chain((1, rows, width)), "x0"
    for _ in range(repeats):
        scale = [] if kind == "Softmax" else [chain.weight(width)]
        bias = [chain.weight(width)] if kind == "LayerNormalization" else []
        x = chain.node(kind, x, *scale, *bias, axis=-1)
    return chain.network(f"{kind} {rows}x{width} x{repeats}", "softmax" if kind == "Softmax" else "norm", x)


def movement(kind: str, size: int, repeats: int, width: int = 256) -> Network:
    """A chain of copies over rows of `width`: transposes, slices with concatenations, pads, gathers of rows."""
    rows = max(4, size // width)
    chain, x = Chain((1, 4, rows // 4, width)), "x0"

    def ints(*values: int) -> str:
        return chain.constant(np.array(values, np.int64))

    for _ in range(repeats):
        if kind == "Transpose":  # two in a row would cancel
            x = chain.node("Abs", chain.node("Transpose", x, perm=[0, 2, 1, 3]))
        elif kind == "Transpose of the last axes":
            x = chain.node("Abs", chain.node("Transpose", x, perm=[0, 1, 3, 2]))
        elif kind == "Squeeze":
            x = chain.node("Unsqueeze", chain.node("Squeeze", x, ints(0)), ints(0))
        elif kind == "Concat":
            half = chain.node("Slice", x, ints(0), ints(width // 2), ints(3))
            x = chain.node("Concat", half, half, axis=3)
        elif kind == "Split":
            half = chain.node("Split", x, axis=3, num_outputs=2, outputs=2)
            x = chain.node("Concat", f"{half}_1", half, axis=3)
        elif kind == "Pad":
            x = chain.node("Pad", x, ints(0, 0, 0, 0, 0, 0, 0, 8))
            x = chain.node("Slice", x, ints(8), ints(width + 8), ints(3))
        elif kind == "Gather":
            x = chain.node("Gather", x, ints(*chain.rng.permutation(rows // 4)), axis=2)
    return chain.network(f"{kind} {size} by {width} x{repeats}", "movement", x)


def appended(heads: int, past: int, width: int, repeats: int) -> Network:
    """Caches that grow by one row: concatenations of inputs that are outputs."""
    shapes = [(1, heads, past, width), (1, heads, 1, width)] * repeats
    chain = Chain(*shapes)
    longer = [chain.node("Concat", f"x{2 * k}", f"x{2 * k + 1}", axis=2) for k in range(repeats)]
    return chain.network(f"appended {heads}x{past}x{width} x{repeats}", "movement", *longer)


def reduction(kind: str, rows: int, width: int, axis: int, repeats: int) -> Network:
    """A chain of reductions over one axis, each taken off its input."""
    chain, x = Chain((1, rows, width)), "x0"
    axes = chain.constant(np.array([axis], np.int64))
    for _ in range(repeats):
        x = chain.node("Sub", x, chain.node(kind, x, axes, keepdims=1))
    return chain.network(f"{kind} {rows}x{width} axis {axis} x{repeats}", "reduce", x)


def pooling(kind: str, channels: int, side: int, repeats: int) -> Network:
    """A chain of 3 x 3 pools of stride 1."""
    chain, x = Chain((1, channels, side, side)), "x0"
    for _ in range(repeats):
        x = chain.node(kind, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return chain.network(f"{kind} {channels}x{side} x{repeats}", "reduce", x)


def chain_to_cut() -> Network:
    """A chain of small operators that no engine merges, to be cut into stages."""
    return rowwise("Softmax", 4, 64, 16)
