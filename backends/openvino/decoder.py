"""Decoder stages on OpenVINO: states are variables of the engine, attention is its own operator.

The CPU plugin keeps keys and values in place only where it sees `ReadValue`, a gather by beam, a concatenation and its
scaled product; GroupQueryAttention and packed matrices are therefore translated here and not by its ONNX reader, which
would also want their weights inside the model file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import openvino as ov
import openvino.opset6 as states
import openvino.opset13 as ops
from onnx import helper
from openvino.frontend.onnx import ConversionExtension

from qeil_compile.backends.openvino import FAILURES
from qeil_compile.errors import BackendError

_DOMAIN = "qeil"
#: Weights of the model that is being read, for the extensions, which see only their nodes.
_reading = threading.local()
_MS = "com.microsoft"
_FAR = np.float32(-3.0e38)


def extensions() -> list[Any]:
    """Translations of the operators that `prepared` writes."""
    return [
        ConversionExtension("Attention", _DOMAIN, _attention),
        ConversionExtension("Packed", _DOMAIN, _packed),
    ]


def prepared(payload: bytes, weights: Mapping[str, np.ndarray]) -> bytes:
    """The stage's model with weights as inputs, and with operators of `extensions` for those that OpenVINO's own reader
    would translate slowly or not at all."""
    model = onnx.load_model_from_string(payload)
    graph = model.graph
    packed = {n for node in graph.node if node.op_type == "MatMulNBits" for n in node.input[1:]}
    kept = [t for t in graph.initializer if t.name not in weights]
    for t in graph.initializer:
        if t.name in weights and t.name not in packed:
            graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        if node.op_type == "GroupQueryAttention" and node.domain == _MS:
            inputs = list(node.input)
            node.op_type, node.domain = "Attention", _DOMAIN
            del node.input[:]
            tables = inputs[7:9] if len(inputs) > 8 else []
            node.input.extend([i for i in inputs[:3] if i] + inputs[3:5] + ["positions", "mask", *tables])
            node.attribute.append(helper.make_attribute("parts", sum(bool(i) for i in inputs[:3])))
        elif node.op_type == "MatMulNBits" and node.domain == _MS:
            node.op_type, node.domain = "Packed", _DOMAIN
            node.attribute.append(helper.make_attribute("codes", node.input[1]))
            node.attribute.append(helper.make_attribute("scales", node.input[2]))
            del node.input[1:]
    known = {i.name for i in graph.input}
    read = {i for node in graph.node for i in node.input}
    for name, shape in (("positions", ["batch", "new"]), ("mask", ["batch", "total"])):
        if name in read and name not in known:
            graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape))
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return model.SerializeToString()


@contextmanager
def reading(weights: Mapping[str, np.ndarray]) -> Iterator[None]:
    """While a model is read: the weights that packed matrices are made of."""
    _reading.weights = weights
    try:
        yield
    finally:
        _reading.weights = {}


def _i64(values: Any) -> Any:
    return ops.constant(np.asarray(values, np.int64))


def _attention(node: Any) -> list[Any]:
    """Keys and values with the new ones at their end, and what the queries read of them."""
    heads, kv_heads = node.get_attribute("num_heads"), node.get_attribute("kv_num_heads")
    parts, scale = node.get_attribute("parts"), node.get_attribute("scale")
    given = [node.get_input(k) for k in range(node.get_input_size())]
    past_key, past_value, positions, mask = given[parts : parts + 4]
    width = past_key.get_partial_shape()[3].get_length()
    if parts == 1:
        rows = ops.reshape(given[0], _i64([0, 0, heads + 2 * kv_heads, width]), True)
        split = ops.variadic_split(ops.transpose(rows, _i64([0, 2, 1, 3])), _i64(1), _i64([heads, kv_heads, kv_heads]))
        query, key, value = split.output(0), split.output(1), split.output(2)
    else:
        query, key, value = (
            ops.transpose(ops.reshape(x, _i64([0, 0, n, width]), True), _i64([0, 2, 1, 3])).output(0)
            for x, n in zip(given[:3], (heads, kv_heads, kv_heads), strict=True)
        )
    if len(given) > parts + 4:
        turn = _turns(given[parts + 4], given[parts + 5], positions, bool(node.get_attribute("rotary_interleaved")))
        query, key = (_rotate(x, *turn, width, bool(node.get_attribute("rotary_interleaved"))) for x in (query, key))
    keys, values = ops.concat([past_key, key], 2), ops.concat([past_value, value], 2)
    wide = [x if heads == kv_heads else _repeat(x, heads, kv_heads, width) for x in (keys, values)]
    mixed = ops.scaled_dot_product_attention(query, *wide, _bias(positions, mask), ops.constant(np.float32(scale)))
    joined = ops.reshape(ops.transpose(mixed, _i64([0, 2, 1, 3])), _i64([0, 0, heads * width]), True)
    return [joined.output(0), keys.output(0), values.output(0)]


def _turns(cos: Any, sin: Any, positions: Any, interleaved: bool) -> tuple[Any, Any]:
    """Angles of the new tokens, [rows, 1, new, width], or [rows, 1, new, width / 2, 1] for interleaved pairs."""
    found = []
    for table in (cos, sin):
        rows = ops.unsqueeze(ops.gather(table, positions, _i64(0)), _i64(1))
        found.append(ops.unsqueeze(rows, _i64(-1)) if interleaved else ops.concat([rows, rows], -1))
    return found[0], found[1]


def _rotate(x: Any, cos: Any, sin: Any, width: int, interleaved: bool) -> Any:
    """The form that the CPU plugin knows as one operator, for halves; pairs side by side are written out."""
    minus = ops.constant(np.float32(-1.0))
    if not interleaved:
        # The plugin looks for axis 3 here and for axis -1 below, and takes no other way to say the same.
        halves = ops.variadic_split(x, _i64(3), _i64([width // 2, width // 2]))
        turned = ops.concat([ops.multiply(halves.output(1), minus), halves.output(0)], -1)
        return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin)).output(0)
    pairs = ops.reshape(x, _i64([0, 0, 0, width // 2, 2]), True)
    both = ops.split(pairs, _i64(-1), 2)
    turned = ops.concat([ops.multiply(both.output(1), minus), both.output(0)], -1)
    both_turned = ops.add(ops.multiply(pairs, cos), ops.multiply(turned, sin))
    return ops.reshape(both_turned, _i64([0, 0, 0, width]), True).output(0)


def _repeat(x: Any, heads: int, kv_heads: int, width: int) -> Any:
    """Each key head once for each of its query heads. Multiplied by ones: that form leaves the graph again, where the
    plugin puts its own operator of attention; with a broadcast it finds none."""
    ones = ops.constant(np.ones((1, 1, heads // kv_heads, 1, 1), np.float32))
    return ops.reshape(ops.multiply(ops.unsqueeze(x, _i64(2)), ones), _i64([0, heads, -1, width]), True)


def _bias(positions: Any, mask: Any) -> Any:
    """0 where a new token may look, [rows, 1, new, total]: not ahead, and not at padding."""
    total = ops.gather(ops.shape_of(mask, "i64"), _i64(1), _i64(0))
    new = ops.gather(ops.shape_of(positions, "i64"), _i64(1), _i64(0))
    one = _i64(1)
    column = ops.unsqueeze(ops.range(_i64(0), total, one, "i64"), _i64(0))
    row = ops.unsqueeze(ops.range(ops.subtract(total, new), total, one, "i64"), _i64(1))
    ahead = ops.unsqueeze(ops.less_equal(column, row), _i64([0, 1]))
    real = ops.unsqueeze(ops.convert(mask, "boolean"), _i64([1, 2]))
    return ops.select(ops.logical_and(ahead, real), ops.constant(np.float32(0.0)), ops.constant(_FAR))


def _packed(node: Any) -> list[Any]:
    """x [..., k] times codes less their middle times scales, in the pattern that the CPU plugin keeps packed."""
    bits = node.get_attribute("bits")
    codes, scales = (_reading.weights[node.get_attribute(n)] for n in ("codes", "scales"))
    if bits == 8 and (scales == scales[:, :1]).all():
        # One scale per row is the form that it knows best.
        codes, scales = codes.reshape(len(codes), 1, -1), scales[:, :1]
    n, blocks, width = codes.shape
    size = width * 8 // bits
    kind = ov.Type.u4 if bits == 4 else ov.Type.u8
    stored = ops.constant(ov.Tensor(codes, ov.Shape([n, blocks, size]), kind), shared_memory=True)
    middle = np.full((1, 1, 1), 1 << (bits - 1), np.uint8)
    zero = ov.Tensor(np.array([8], np.uint8), ov.Shape([1, 1, 1]), ov.Type.u4) if bits == 4 else ov.Tensor(middle)
    level = ops.subtract(ops.convert(stored, "f32"), ops.convert(ops.constant(zero), "f32"))
    scale = ops.constant(np.ascontiguousarray(scales.astype(np.float32)).reshape(n, blocks, 1))
    matrix = ops.reshape(ops.multiply(level, scale), _i64([n, blocks * size]), False)
    return [ops.matmul(node.get_input(0), matrix, False, True).output(0)]


def with_variables(model: Any, pairs: Mapping[str, str]) -> Any:
    """The model with variables in place of state inputs and outputs, and with the input `beam` int32 [rows]: which row
    of the last pass each row goes on from."""
    if not pairs:
        return model
    inputs = {n: p for p in model.get_parameters() for n in p.output(0).get_names()}
    results = {n: r for r in model.get_results() for n in r.input_value(0).get_names()}
    beam = ops.parameter([-1], np.int32, name="beam")
    beam.output(0).set_names({"beam"})
    # A new variable has as many rows as the pass, which each input with rows tells.
    lead = next(p for p in model.get_parameters() if p.output(0).get_names() & {"positions", "mask", "fresh", "tokens"})
    rows = ops.gather(ops.shape_of(lead, "i64"), _i64([0]), _i64(0))
    sinks = []
    for past, present in pairs.items():
        parameter, result = inputs[past], results[present]
        shape = parameter.get_output_partial_shape(0)
        sizes = [_i64([d.get_length() if d.is_static else 0]) for d in list(shape)[1:]]
        start = ops.broadcast(ops.constant(np.float32(0.0)), ops.concat([rows, *sizes], 0))
        value = states.read_value(start, past, ov.Type.f32, shape)
        picked = ops.gather(value, beam, _i64(0))
        for target in parameter.output(0).get_target_inputs():
            target.replace_source_output(picked.output(0))
        sinks.append(states.assign(result.input_value(0).get_node(), past))
        model.remove_parameter(parameter)
        model.remove_result(result)
    return ov.Model(model.get_results(), sinks, [*model.get_parameters(), beam], model.get_friendly_name())


class OvDecoderStage:
    """One request with its variables."""

    compact = False

    def __init__(
        self, compiled: Any, pairs: Mapping[str, str], weights: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> None:
        self._weights = weights  # their memory is the model's memory
        self._request = compiled.create_infer_request()
        self.states: Sequence[str] = list(pairs)
        self._inputs = [(k, next(iter(port.get_names()))) for k, port in enumerate(compiled.inputs)]
        names = [port.get_names() for port in compiled.outputs]
        self._outputs = [(k, next(n for n in outputs if n in found)) for k, found in enumerate(names)]
        self._beam: np.ndarray | None = None

    def reset(self, rows: int) -> None:
        self._request.reset_state()
        self._beam = np.arange(rows, dtype=np.int32)

    def select(self, rows: np.ndarray) -> None:
        picked = np.asarray(rows, np.int32)
        self._beam = picked if self._beam is None else self._beam[picked]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = self._request
        beam = self._beam if self._beam is not None else np.arange(len(feeds["mask"]), dtype=np.int32)
        try:
            for k, name in self._inputs:
                array = beam if name == "beam" else np.ascontiguousarray(feeds[name])
                request.set_input_tensor(k, ov.Tensor(array, shared_memory=True))
            request.infer(share_outputs=True)
            self._beam = None
            return {name: request.get_output_tensor(k).data for k, name in self._outputs}
        except FAILURES as error:
            raise BackendError(f"openvino: {' '.join(str(error).split())[:300]}") from error

    def export(self) -> dict[str, np.ndarray]:
        found = {s.name: np.array(s.state.data) for s in self._request.query_state()}
        return {n: a if self._beam is None else a[self._beam] for n, a in found.items()}

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        for variable in self._request.query_state():
            variable.state = ov.Tensor(np.ascontiguousarray(states[variable.name], dtype=np.float32))
        self._beam = None
