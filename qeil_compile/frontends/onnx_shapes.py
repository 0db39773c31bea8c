"""Which shapes of an ONNX model cannot depend on the data, once its inputs have fixed shapes.

Shape inference gives up where a shape is computed by more arithmetic than it follows. If no value that
depends on the inputs' data takes part in that arithmetic, one run shows the shape for all runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import helper

from qeil_compile.forms.onnx_source import captured_names

#: Operators whose output shape is told by the values of these inputs.
_BY_VALUE: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Slice": (1, 2, 3, 4), "ConstantOfShape": (0,), "Tile": (1,), "Pad": (1, 3),
    "Resize": (1, 2, 3), "Upsample": (1,), "TopK": (1,), "OneHot": (1,), "Range": (0, 1, 2), "Split": (1,),
    "Squeeze": (1,), "Unsqueeze": (1,), "CenterCropPad": (1,), "SplitToSequence": (1,), "AffineGrid": (1,),
    "DFT": (1, 2), "STFT": (1, 3), "BlackmanWindow": (0,), "HannWindow": (0,), "HammingWindow": (0,),
    "MelWeightMatrix": (0, 1), "MaxUnpool": (2,), "Col2Im": (1, 2), "If": (0,),
}  # fmt: skip
_REDUCE = "Reduce"
#: Operators whose output shape depends on the data itself, or on nested graphs in ways not followed here.
_BY_DATA = frozenset({"NonZero", "Unique", "NonMaxSuppression", "Compress", "StringSplit", "ImageDecoder", "Loop",
                      "Scan", "SequenceMap", "SequenceAt", "SequenceConstruct", "SequenceInsert", "SequenceErase",
                      "ConcatFromSequence", "OptionalGetElement", "TfIdfVectorizer"})  # fmt: skip
#: Operators that give other values in every run.
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
                     "Bernoulli"})  # fmt: skip
_SHAPE_ONLY = frozenset({"Shape", "Size"})


class _Flow:
    """Tensors whose values depend on the inputs' data, and tensors whose shape may."""

    def __init__(self, data: set[str], loose: set[str]) -> None:
        self.data, self.loose = data, loose

    def walk(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            self._step(node)

    def _step(self, node: onnx.NodeProto) -> None:
        reads = [i for i in [*node.input, *captured_names(node)] if i]
        outputs = [o for o in node.output if o]
        if node.op_type in _SHAPE_ONLY:
            if any(r in self.loose for r in reads):
                self.data.update(outputs)
            return
        by_value = _BY_VALUE.get(node.op_type, (1,) if node.op_type.startswith(_REDUCE) else ())
        decides = [node.input[i] for i in by_value if i < len(node.input)]
        known = node.domain in ("", "ai.onnx")
        if (
            not known
            or node.op_type in _BY_DATA
            or any(r in self.loose for r in reads)
            or any(d in self.data for d in decides)
        ):
            self.loose.update(outputs)
        if node.op_type in _RANDOM or any(r in self.data for r in reads):
            self.data.update(outputs)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                self._branch(attribute.g, outputs)

    def _branch(self, graph: onnx.GraphProto, outputs: list[str]) -> None:
        inner = _Flow(set(self.data), set(self.loose))
        inner.walk(graph)
        for outer, result in zip(outputs, graph.output, strict=False):
            if result.name in inner.loose:
                self.loose.add(outer)
            if result.name in inner.data:
                self.data.add(outer)


@dataclass(frozen=True)
class Fixed:
    """Tensors of the main graph whose shape, and whose values, are the same in every run."""

    shapes: frozenset[str]
    values: frozenset[str]


def fixed(model: onnx.ModelProto) -> Fixed:
    """Follow the inputs' data through the main graph; their shapes are fixed."""
    weights = {t.name for t in model.graph.initializer}
    flow = _Flow({i.name for i in model.graph.input} - weights, set())
    flow.walk(model.graph)
    shapes = {o for n in model.graph.node for o in n.output if o} - flow.loose
    return Fixed(frozenset(shapes), frozenset(shapes - flow.data))


def write_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set the shapes of these tensors in the model's value infos and outputs, where their type is known."""
    for info in [*model.graph.value_info, *model.graph.output]:
        if info.name in shapes and info.type.HasField("tensor_type"):
            kind = info.type.tensor_type.elem_type
            info.CopyFrom(helper.make_tensor_value_info(info.name, kind, list(shapes[info.name])))


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Drop inner shapes, in nested graphs too: they were inferred for dynamic inputs."""
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                forget_shapes(attribute.g)
