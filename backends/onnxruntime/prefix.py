"""Attention over a prompt that all rows share, and over what each row has for itself.

Samples of one prompt read the same keys and values. `shared_prefix` gives every GroupQueryAttention a second form that
a pass takes where the input `SHARED` is true: the rows' queries are multiplied with the prompt's keys as one matrix, so
that the prompt's cache is there once and read once, and the operator itself sees the rows' own tokens only. With the
logarithms of both sums of exponentials, l of the prompt and m of the own tokens, the two results are joined exactly:

    o = o_own + sigmoid(l - m) * (o_prompt - o_own)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_MS, _FLOAT = "com.microsoft", onnx.TensorProto.FLOAT
#: Input of a program: whether a pass has a shared prompt, whose keys and values are inputs [heads, tokens, head].
SHARED, _PREFIX = "prefix.shared", "prefix."


def prefix_of(state: str) -> str:
    """Name of the input that holds a state's part of the shared prompt."""
    return _PREFIX + state


def shared_prefix(payload: bytes, states: Mapping[str, str]) -> bytes:
    """The program with both forms of attention; as it is where it has no attention over states in 32-bit floats."""
    model = onnx.load_model_from_string(payload)
    shapes = {i.name: i.type.tensor_type for i in model.graph.input}
    found = [n for n in model.graph.node if n.op_type == "GroupQueryAttention" and _fits(n, states, shapes)]
    if not found:
        return payload
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info(SHARED, onnx.TensorProto.BOOL, []))
    if any(len(n.input) > 8 and n.input[7] for n in found) and "positions" not in shapes:
        graph.input.append(helper.make_tensor_value_info("positions", onnx.TensorProto.INT64, ["batch", "new"]))
    for node in found:
        for state in node.input[3:5]:
            heads, _, width = (d.dim_value for d in shapes[state].shape.dim[1:])
            graph.input.append(helper.make_tensor_value_info(prefix_of(state), _FLOAT, [heads, "prefix", width]))
    nodes = [_both(n, shapes, graph) if n in found else n for n in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


def _fits(node: onnx.NodeProto, states: Mapping[str, str], shapes: Mapping[str, Any]) -> bool:
    known = {"num_heads", "kv_num_heads", "scale", "do_rotary", "rotary_interleaved"}
    return (
        set(node.input[3:5]) <= states.keys() and len(node.output) == 3 and len(node.input) in (7, 9)
        and {a.name for a in node.attribute} <= known and shapes[node.input[3]].elem_type == _FLOAT
    )  # fmt: skip


def _both(node: onnx.NodeProto, shapes: Mapping[str, Any], graph: onnx.GraphProto) -> onnx.NodeProto:
    """The operator as it is, or over a shared prompt, in the two branches of a condition."""
    names = [f"{o}.alone" for o in node.output]
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    del alone.output[:]
    alone.output.extend(names)
    body = _Shared(node, shapes[node.input[3]].shape.dim[3].dim_value, graph)
    branches = [_branch([alone], names, "alone"), _branch(*body.run(), "shared")]
    return helper.make_node("If", [SHARED], node.output, node.name, then_branch=branches[1], else_branch=branches[0])


def _branch(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], name: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(o, _FLOAT, None) for o in outputs])


class _Shared:
    """Nodes of the branch with a shared prompt; `group` query heads read one key head."""

    def __init__(self, node: onnx.NodeProto, width: int, graph: onnx.GraphProto) -> None:
        about = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.node, self.width, self.graph = node, width, graph
        self.heads, self.kv_heads = about["num_heads"], about["kv_num_heads"]
        self.group = self.heads // self.kv_heads
        self.scale = about.get("scale") or width**-0.5
        self.interleaved = about.get("rotary_interleaved", 0)
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> tuple[list[onnx.NodeProto], list[str]]:
        heads, kv_heads, group, width = self.heads, self.kv_heads, self.group, self.width
        key, value = self.node.input[3:5]
        query, parts = self._query()
        own, present, scores = self._own(parts)
        own_sum = self._sum(scores, self._op("Softmax", [scores], "own_shares", axis=-1), "own")
        split = self._shape(query, (-1, kv_heads, group, width), "split")
        by_head = self._op("Transpose", [split], "by_head", perm=[1, 0, 2, 3])
        rows = self._shape(by_head, (kv_heads, -1, width), "rows")
        scores = self._op("FusedMatMul", [rows, prefix_of(key)], "scores", _MS, alpha=float(self.scale), transB=1)
        shares = self._op("Softmax", [scores], "shares", axis=-1)
        prompt_sum = self._back(self._sum(scores, shares, "prompt"), 1)
        mixed = self._back(self._op("MatMul", [shares, prefix_of(value)], "mixed"), width)
        own_sum = self._shape(own_sum, (-1, kv_heads, group, 1), "own_by_head")
        share = self._op("Sigmoid", [self._op("Sub", [prompt_sum, own_sum], "odds")], "share")
        own = self._shape(own, (-1, kv_heads, group, width), "own_split")
        step = self._op("Mul", [self._op("Sub", [mixed, own], "apart"), share], "step")
        joined = self._shape(self._op("Add", [own, step], "joined"), (-1, 1, heads * width), "result")
        return self.nodes, [joined, *present]

    def _query(self) -> tuple[str, list[str]]:
        """The queries, turned by their positions, and the operator's inputs of the new tokens."""
        parts = list(self.node.input[:3])
        tables = list(self.node.input[7:9])
        q, kv = self.heads * self.width, self.kv_heads * self.width
        if not parts[1]:
            cut = self._ints((q, kv, kv))
            found = [self._name(n) for n in ("query", "key", "value")]
            self.nodes.append(helper.make_node("Split", [parts[0], cut], found, axis=2))
            if not tables:
                return found[0], parts
            parts = found
        if tables:
            parts[:2] = (
                self._op("RotaryEmbedding", [x, "positions", *tables], f"{n}_turned", _MS, interleaved=self.interleaved)
                for x, n in zip(parts[:2], ("query", "key"), strict=True)
            )
        return parts[0], parts

    def _own(self, parts: Sequence[str]) -> tuple[str, list[str], str]:
        """The operator over the rows' own tokens; also the new states, and the scores [batch, heads, 1, own]."""
        outputs = [self._name(n) for n in ("own", "present_key", "present_value", "own_scores")]
        inputs = [*parts, *self.node.input[3:7]]
        self.nodes.append(helper.make_node(
            "GroupQueryAttention", inputs, outputs, domain=_MS, num_heads=self.heads, kv_num_heads=self.kv_heads,
            scale=float(self.scale), qk_output=1,
        ))  # fmt: skip
        return outputs[0], outputs[1:3], outputs[3]

    def _sum(self, scores: str, shares: str, label: str) -> str:
        """Logarithm of the sum of exponentials of scores: the largest less the logarithm of its share of the sum."""
        last = self._ints((-1,))
        most = self._op("ReduceMax", [scores, last], f"{label}_most", keepdims=1)
        share = self._op("ReduceMax", [shares, last], f"{label}_largest", keepdims=1)
        return self._op("Sub", [most, self._op("Log", [share], f"{label}_log")], f"{label}_sum")

    def _back(self, x: str, width: int) -> str:
        """[key heads, batch * group, width] as [batch, key heads, group, width]."""
        split = self._shape(x, (self.kv_heads, -1, self.group, width), "by_row")
        return self._op("Transpose", [split], "by_batch", perm=[1, 0, 2, 3])

    def _shape(self, x: str, shape: Sequence[int], label: str) -> str:
        return self._op("Reshape", [x, self._ints(shape)], label)

    def _op(self, kind: str, inputs: Sequence[str], label: str, domain: str = "", **attributes: Any) -> str:
        name = f"{self._name(label)}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], domain=domain, **attributes))
        return name

    def _name(self, label: str) -> str:
        return f"{self.node.output[0]}.shared.{label}"

    def _ints(self, values: Sequence[int]) -> str:
        """A constant of the whole model: its branches see it."""
        name = f"{_PREFIX}ints.{'.'.join(map(str, values))}"
        if all(t.name != name for t in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name
