"""Packed weights in products of integers: 8-bit activations with one scale per token, 8-bit weights with one per row.

ONNX Runtime's kernel for MatMulNBits scales every block of 32 numbers; a product of whole rows of integers is scaled
once, at its end, and takes half the time where many tokens go through it:

    s = max(|x|) / 127 per token;  y = s * (scale * sum((round(x / s)) * (code - 128)))

Each token has its own scale, so that what a sample's logits are does not depend on what runs beside it. On CPUs whose
integer products saturate (x86 without VNNI) MatMulNBits stays: `exact` asks the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from qeil_compile.forms.onnx_source import declare_external
from qeil_compile.forms.products import asks_integer_rows
from qeil_compile.forms.program import StageProgram

_MS = "com.microsoft"
_INT8, _FLOAT = onnx.TensorProto.INT8, onnx.TensorProto.FLOAT
#: Rows of a matrix that are made into rows of integers at a time.
_CHUNK = 1024
#: What a row of zeros is divided by.
_LEAST_SCALE = np.float32(1e-30)


@dataclass(frozen=True)
class Rewritten:
    """A program with its weights. Those named `packed` are arrays of its own, which the engine repacks when the session
    is made: afterwards they may go."""

    program: StageProgram
    weights: Mapping[str, np.ndarray]
    packed: frozenset[str]


@cache
def exact() -> bool:
    """Whether the CPU's product of 8-bit numbers is right where two neighbours add up to more than 16 bits, and keeps a
    copy of constant weights: what `rewritten` relies on."""
    inner, outer = 128, 64
    weights = np.full((inner, outer), 127, np.int8)
    tensor = onnx.TensorProto(name="w", dims=weights.shape, data_type=_INT8)
    declare_external(tensor, "w")
    one = numpy_helper.from_array(np.float32(1), "one")
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "one"], ["y"], domain=_MS)
    given = helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["rows", inner])
    found = helper.make_tensor_value_info("y", _FLOAT, ["rows", outer])
    graph = helper.make_graph([node], "probe", [given], [found], [tensor, one])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_MS, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.add_external_initializers(["w"], [ort.OrtValue.ortvalue_from_numpy(weights)])
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    weights[:] = 0  # a session without a copy of its own gives zeros now
    # One row and several take kernels of their own.
    return all(
        (session.run(None, {"x": np.full((rows, inner), 255, np.uint8)})[0] == 255 * 127 * inner).all()
        for rows in (1, 2, 5, 16)
    )


def rewritten(program: StageProgram, weights: Mapping[str, np.ndarray]) -> Rewritten:
    """The program with products of integers in place of MatMulNBits, where weights have one scale per row, or where the
    program asks for it (`forms.products`): then 4-bit weights become rows of 8 bits here."""
    model = onnx.load_model_from_string(program.payload)
    wanted = asks_integer_rows(model)
    nodes = [n for n in model.graph.node if n.op_type == "MatMulNBits" and _fits(n, weights, wanted)]
    if not nodes:
        return Rewritten(program, weights, frozenset())
    return _Rewriter(model, dict(weights), nodes).run(program)


def _fits(node: onnx.NodeProto, weights: Mapping[str, np.ndarray], wanted: bool) -> bool:
    if len(node.input) > 3 or not {*node.input[1:]} <= weights.keys():
        return False
    scales, bits = weights[node.input[2]], _attributes(node)["bits"]
    # Codes from 0 on would be signed numbers down to -128, which 8-bit products take as well.
    return bool(bits == 8 and (scales == scales[:, :1]).all()) or (bits in (4, 8) and wanted)


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, weights: dict[str, np.ndarray], nodes: Sequence[onnx.NodeProto]) -> None:
        self.model, self.weights, self.names = model, weights, {n.output[0] for n in nodes}
        self.nodes: list[onnx.NodeProto] = []
        #: Of each input: its integers, and the scale of each token.
        self.integers: dict[str, tuple[str, str]] = {}
        self.packed: set[str] = set()
        self.gone: set[str] = set()

    def run(self, program: StageProgram) -> Rewritten:
        graph = self.model.graph
        for node in graph.node:
            if node.op_type == "MatMulNBits" and node.output[0] in self.names:
                self._product(node)
            else:
                self.nodes.append(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        kept = [t for t in graph.initializer if t.name not in self.gone]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for name in self.gone:
            del self.weights[name]
        self._constant("axes", np.array([-1], np.int64))
        self._constant("share", np.float32(1 / 127))
        self._constant("one", np.float32(1))
        self._constant("middle", np.uint8(128))
        self._constant("middles", np.array([128], np.uint8))
        keys = {n: k for n, k in program.weights.items() if n not in self.gone}
        found = replace(program, payload=self.model.SerializeToString(), weights=keys)
        return Rewritten(found, self.weights, frozenset(self.packed))

    def _product(self, node: onnx.NodeProto) -> None:
        x, codes, scales = node.input[:3]
        about = _attributes(node)
        base = f"{codes}.integers"
        if base not in self.packed:  # two products may read one matrix
            self._matrix(base, codes, scales, about)
        integers, token_scales = self._quantised(x, about["K"])
        inputs = [integers, base, _name("one"), f"{base}.scales", _name("middle")]
        self._node("MatMulIntegerToFloat", inputs, f"{node.output[0]}.unscaled", _MS)
        self.nodes.append(helper.make_node("Mul", [f"{node.output[0]}.unscaled", token_scales], node.output, node.name))

    def _matrix(self, base: str, codes: str, scales: str, about: Mapping[str, Any]) -> None:
        matrix, row_scales = _integer_rows(self.weights[codes], self.weights[scales], about["bits"], about["K"])
        self.gone |= {codes, scales}
        for name, array in ((base, matrix), (f"{base}.scales", row_scales)):
            tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=_INT8 if name == base else _FLOAT)
            declare_external(tensor, name)
            self.model.graph.initializer.append(tensor)
            self.weights[name] = array
        self.packed.add(base)

    def _quantised(self, x: str, inner: int) -> tuple[str, str]:
        """`x` [..., k] as unsigned numbers around 128, and scales [..., 1]; once for all products that read it."""
        if x not in self.integers:
            flat = f"rows.{inner}"
            self._constant(flat, np.array([-1, inner], np.int64))
            sizes = self._node("Abs", [x], f"{x}.sizes")
            most = self._node("ReduceMax", [sizes, _name("axes")], f"{x}.most", keepdims=1)
            # A token of zeros has the scale 0: whatever its integers are then, its products are 0.
            scales = self._node("Mul", [most, _name("share")], f"{x}.scales")
            # One scale per row of a matrix: that kernel is the fast one.
            each = self._node("Reshape", [scales, _name("axes")], f"{x}.each")
            zeros = self._node("Expand", [_name("middles"), self._node("Shape", [each], f"{x}.count")], f"{x}.zeros")
            matrix = self._node("Reshape", [x, _name(flat)], f"{x}.matrix")
            rounded = self._node("QuantizeLinear", [matrix, each, zeros], f"{x}.rounded", axis=0)
            shape = self._node("Shape", [x], f"{x}.shape")
            self.integers[x] = (self._node("Reshape", [rounded, shape], f"{x}.integers"), scales)
        return self.integers[x]

    def _node(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, domain=domain, **attributes))
        return output

    def _constant(self, name: str, value: Any) -> None:
        if all(t.name != _name(name) for t in self.model.graph.initializer):
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), _name(name)))


def _name(constant: str) -> str:
    return f"integer.{constant}"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _integer_rows(codes: np.ndarray, scales: np.ndarray, bits: int, inner: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 [k, n] and float32 [n], of packed codes [n, blocks, bytes] and their scales [n, blocks].

    Rows whose blocks have one scale stay what they are; others are rounded once more, to the 8 bits of the whole row.
    """
    count = len(codes)
    matrix = np.empty((inner, count), np.int8)
    row_scales = np.empty(count, np.float32)
    for k in range(0, count, _CHUNK):
        part, by_block = codes[k : k + _CHUNK], scales[k : k + _CHUNK].astype(np.float32)
        if bits == 8 and (by_block == by_block[:, :1]).all():
            levels = (part.reshape(len(part), -1) ^ np.uint8(128)).view(np.int8)
            found = by_block[:, 0]
        else:
            nibbles = np.stack([part & 15, part >> 4], axis=-1).reshape(*part.shape[:-1], -1) if bits == 4 else part
            values = (nibbles.astype(np.float32) - np.float32(1 << (bits - 1))) * by_block[..., None]
            values = values.reshape(len(part), -1)
            found = np.abs(values).max(axis=1) / np.float32(127)
            levels = np.rint(values / np.maximum(found, _LEAST_SCALE)[:, None]).astype(np.int8)
        matrix[:, k : k + _CHUNK] = levels[:, :inner].T
        row_scales[k : k + _CHUNK] = found
    return matrix, row_scales
