"""Small networks that a calibration times: chains of one kind of operator over a range of shapes.

Each network repeats its operator with weights of its own, so that the call of the engine is spread over many
kernels and weights come from where a real network's come from. They are ONNX models like any other: the fit sees
them through the same count and the same fusion as the models that will be priced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 20
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """One network: `kind` is the operator kind that it is for, `dtype` that of its arithmetic."""

    name: str
    kind: str
    dtype: str
    model: onnx.ModelProto


class _Chain:
    """Builds a model node by node; weights are random, of a fixed seed, and scaled so that values stay near 1."""

    def __init__(self, *inputs: Shape) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, s) for i, s in enumerate(inputs)]

    def weight(self, *shape: int, fan: int = 1) -> str:
        array = self.rng.standard_normal(shape, dtype=np.float32) / np.sqrt(max(1, fan), dtype=np.float32)
        return self.constant(array)

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        names = [name if k == 0 else f"{name}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return name

    def model(self, *outputs: str) -> onnx.ModelProto:
        results = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "network", self.inputs, results, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


def gemm(rows: int, inner: int, cols: int, repeats: int, bias: bool = True) -> Network:
    """`repeats` pairs of products rows x inner x cols and back."""
    chain, x = _Chain((1, rows, inner)), "x0"
    for _ in range(repeats):
        for a, b in ((inner, cols), (cols, inner)):
            x = chain.node("MatMul", x, chain.weight(a, b, fan=a))
            x = chain.node("Add", x, chain.weight(b)) if bias else x
    return Network(f"gemm {rows}x{inner}x{cols} x{repeats}", "gemm", "float32", chain.model(x))


def products(batch: int, rows: int, width: int, repeats: int) -> Network:
    """Products of two activations, as in attention: x x^T and back, `repeats` times."""
    chain, x = _Chain((1, batch, rows, width), (1, batch, width, rows)), "x0"
    scale = chain.constant(np.float32(1.0 / np.sqrt(rows * width)))
    for _ in range(repeats):
        scores = chain.node("Mul", chain.node("MatMul", x, "x1"), scale)
        x = chain.node("MatMul", scores, x)
    return Network(f"products {batch}x{rows}x{width} x{repeats}", "gemm", "float32", chain.model(x))


@dataclass(frozen=True)
class Layer:
    """One convolution of a chain: channels out, window, stride, groups (0: depthwise)."""

    channels: int
    window: tuple[int, int]
    stride: int = 1
    groups: int = 1


def convolutions(name: str, shape: Shape, layers: Sequence[Layer], repeats: int = 1) -> Network:
    """The layers one after another with ReLUs, `repeats` times; shape is [channels, height, width]."""
    chain, x, channels = _Chain((1, *shape)), "x0", shape[0]
    for layer in layers * repeats:
        groups = layer.groups or channels
        fan = channels // groups * layer.window[0] * layer.window[1]
        weight = chain.weight(layer.channels, channels // groups, *layer.window, fan=fan)
        h, w = (k // 2 for k in layer.window)
        x = chain.node(
            "Conv", x, weight, chain.weight(layer.channels), group=groups, kernel_shape=list(layer.window),
            strides=[layer.stride] * 2, pads=[h, w, h, w],
        )  # fmt: skip
        x, channels = chain.node("Relu", x), layer.channels
    return Network(f"conv {name} {'x'.join(map(str, shape))} x{repeats}", "conv", "float32", chain.model(x))
