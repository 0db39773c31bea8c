"""A decoder as one ONNX model that serves prompt and steps: tokens and a state per layer in, logits and states out.

    tokens [batch, new]         -> logits [batch, rows, vocab] of the positions `take`
    past.L.key, past.L.value    -> present.L.key, present.L.value   [batch, key heads, past | total, head]
    past.L.conv                 -> present.L.conv                   [batch, width, taps - 1]

Attention is ONNX Runtime's GroupQueryAttention: rows may have different lengths (padding stands at the end of the new
tokens), `lengths` int32 [batch] is the number of tokens of a row, the new ones included, less 1, and `total` int32 the
longest of them plus 1. `fresh` int64 [batch] is how many of a row's new tokens are not padding. Matrices are stored
[outputs, inputs], as checkpoints have them. Dimensions are symbols; `bind` replaces them by numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qeil_compile.forms.onnx_source import declare_external, dtype_code
from qeil_compile.models.decoder.config import DecoderConfig, DecoderFacts

MS = "com.microsoft"
#: Values of a row of a matrix that share a scale: in 4-bit weights, and at least in 8-bit weights, whose blocks are as
#: long as MatMulNBits has them, with the scale of their row in all of them.
BLOCK, _LONGEST_BLOCK = 32, 256
Shape = tuple[int | str, ...]
#: A matrix narrower than this stays as it is: nothing is won by packing it.
_LEAST = 64


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A weight of the model: its name, the shape and type in which it is stored."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class DecoderGraph:
    """The ONNX model, all weights external; `weights` tells what to put there. `states` maps inputs to outputs.
    `config` is None for a model that came as it is."""

    facts: DecoderFacts
    model: onnx.ModelProto
    weights: Mapping[str, WeightSpec]
    states: Mapping[str, str]
    #: Bits of the matrices: 32, 16, 8 or 4.
    bits: int
    config: DecoderConfig | None = None

    @property
    def parameters(self) -> int:
        """Number of weights as trained: tables of angles and scales left out, packed codes counted as numbers."""
        per_byte = {4: 2}.get(self.bits, 1)
        return sum(
            int(np.prod(w.shape)) * (per_byte if n.endswith(".codes") else 1)
            for n, w in self.weights.items()
            if not n.startswith("rope.") and not n.endswith(".scales")
        )


def decoder_graph(config: DecoderConfig, dtype: str = "float32", bits: int | None = None) -> DecoderGraph:
    """Build the model. `dtype` is that of activations; `bits` pack matrices (MatMulNBits): 8 with a scale per row, 4 in
    blocks of `BLOCK` with a scale each. Otherwise they have the type of the activations."""
    return _Builder(config, dtype, bits).build()


def bind(model: onnx.ModelProto, dims: Mapping[str, int]) -> onnx.ModelProto:
    """A copy with numbers in place of symbols."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for value in [*bound.graph.input, *bound.graph.output, *bound.graph.value_info]:
        for d in value.type.tensor_type.shape.dim:
            if d.HasField("dim_param"):
                d.dim_value = dims[d.dim_param]
    return bound


class _Builder:
    def __init__(self, config: DecoderConfig, dtype: str, bits: int | None) -> None:
        self.c, self.dtype, self.packed = config, dtype, bits if bits in (4, 8) else None
        self.bits = bits or (32 if dtype == "float32" else 16)
        self.graph = onnx.GraphProto(name=config.family)
        self.weights: dict[str, WeightSpec] = {}
        self.states: dict[str, str] = {}
        self.scope = ""

    def build(self) -> DecoderGraph:
        c = self.c
        self._input("tokens", "int64", ("batch", "new"))
        if c.rope is None:
            self._input("positions", "int64", ("batch", "new"))
        self._input("lengths", "int32", ("batch",))
        self._input("total", "int32", ())
        if c.convolutions:
            self._input("fresh", "int64", ("batch",))
        self._input("take", "int64", ("batch", "rows", 1))
        x = self._embed()
        for k in range(c.layers):
            x = self._layer(k, x)
        self.scope = "head"
        x = self._node("GatherND", [x, "take"], "take", ("batch", "rows", c.width), batch_dims=1)
        x = self._norm(x, "norm", ("batch", "rows", c.width))
        table = "embedding.weight" if c.tied and not self.packed else "head.weight"
        self._matrix(x, table, c.width, c.vocab, "logits", ("batch", "rows"), name="logits")
        # The first output is what a step is for; states follow in the order of the layers.
        self._output("logits", ("batch", "rows", c.vocab), first=True)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
        model = helper.make_model(self.graph, opset_imports=opsets, ir_version=10, producer_name="qeil_compile")
        return DecoderGraph(self._facts(), model, self.weights, self.states, self.bits, c)

    def _facts(self) -> DecoderFacts:
        c = self.c
        own_head = self.packed or not c.tied
        tables = ["positions.weight", "rope.cos", "rope.sin", *(["embedding.weight"] if own_head else [])]
        per_token = 2 * (c.layers - len(c.convolutions)) * c.kv_heads * c.head_width
        found = tuple(t for t in tables if t in self.weights)
        return DecoderFacts(c.family, c.vocab, c.context, per_token, found)

    # ---- parts

    def _embed(self) -> str:
        c, shape = self.c, ("batch", "new", self.c.width)
        self.scope = "embedding"
        x = self._node("Gather", [self._weight("embedding.weight", (c.vocab, c.width)), "tokens"], "rows", shape)
        if c.rope is None:
            table = self._weight("positions.weight", (c.context, c.width))
            x = self._node("Add", [x, self._node("Gather", [table, "positions"], "positions", shape)], "sum", shape)
        if c.embedding_multiplier != 1.0:
            x = self._node("Mul", [x, self._scalar("embedding.multiplier", c.embedding_multiplier)], "scaled", shape)
        return x

    def _layer(self, k: int, x: str) -> str:
        c, shape = self.c, ("batch", "new", self.c.width)
        prefix = f"layers.{k}"
        self.scope = f"{prefix}/mixer"
        y = self._norm(x, f"{prefix}.mixer_norm", shape)
        y = self._convolution(k, y) if k in c.convolutions else self._attention(k, y)
        x = self._node("Add", [x, y], "sum", shape)
        self.scope = f"{prefix}/feed_forward"
        y = self._norm(x, f"{prefix}.feed_forward_norm", shape)
        return self._node("Add", [x, self._feed_forward(prefix, y)], "sum", shape)

    def _attention(self, k: int, x: str) -> str:
        c, prefix = self.c, f"layers.{k}.attention"
        q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
        read = ("batch", "new")
        if c.head_norms:
            parts = [
                self._head_norm(self._linear(x, f"{prefix}.query", c.width, q, c.qkv_bias, read), k, "query", c.heads),
                self._head_norm(self._linear(x, f"{prefix}.key", c.width, kv, c.qkv_bias, read), k, "key", c.kv_heads),
                self._linear(x, f"{prefix}.value", c.width, kv, c.qkv_bias, read),
            ]
        else:
            parts = [self._linear(x, f"{prefix}.qkv", c.width, q + 2 * kv, c.qkv_bias, read), "", ""]
        past = [self._state(k, "key"), self._state(k, "value")]
        inputs = [*parts, *past, "lengths", "total"]
        extra: dict[str, Any] = {}
        if c.rope is not None:
            inputs += [self._table("rope.cos"), self._table("rope.sin")]
            extra = {"do_rotary": 1, "rotary_interleaved": int(c.rope.interleaved)}
        name = f"{self.scope.replace('/', '.')}.attention"
        self.graph.node.append(helper.make_node(
            "GroupQueryAttention", inputs, [name, *(self.states[p] for p in past)], f"{self.scope}/attention",
            domain=MS, num_heads=c.heads, kv_num_heads=c.kv_heads, scale=float(c.scale), **extra,
        ))  # fmt: skip
        self._known(name, ("batch", "new", q))
        return self._linear(name, f"{prefix}.output", q, c.width, c.out_bias, read)

    def _head_norm(self, x: str, k: int, which: str, heads: int) -> str:
        """Each head's RMS norm, before the rotation."""
        c = self.c
        split: Shape = ("batch", "new", heads, c.head_width)
        parts = self._ints(f"split.{heads}", [0, 0, heads, c.head_width])
        y = self._node("Reshape", [x, parts], f"{which}_heads", split)
        y = self._norm(y, f"layers.{k}.attention.{which}_norm", split)
        whole = self._ints(f"join.{heads}", [0, 0, heads * c.head_width])
        return self._node("Reshape", [y, whole], f"{which}_joined", ("batch", "new", heads * c.head_width))

    def _convolution(self, k: int, x: str) -> str:
        """y = C * conv(B * x): a depthwise convolution over the tokens, the last inputs of it carried as a state."""
        c, prefix = self.c, f"layers.{k}.convolution"
        wide, keep = (("batch", c.width, "new"), c.taps - 1)
        y = self._linear(x, f"{prefix}.enter", c.width, 3 * c.width, False, ("batch", "new"))
        y = self._node("Transpose", [y], "turned", ("batch", 3 * c.width, "new"), perm=[0, 2, 1])
        names = [f"{self.scope.replace('/', '.')}.{n}" for n in ("before", "after", "inner")]
        self.graph.node.append(helper.make_node("Split", [y], names, f"{self.scope}/split", axis=1, num_outputs=3))
        for n in names:
            self._known(n, wide)
        mixed = self._node("Mul", [names[0], names[2]], "gated", wide)
        past = self._state(k, "conv")
        whole = self._node("Concat", [past, mixed], "joined", ("batch", c.width, "joined"), axis=2)
        taps = self._weight(f"{prefix}.taps", (c.width, 1, c.taps))
        out = self._node("Conv", [whole, taps], "conv", wide, group=c.width, kernel_shape=[c.taps])
        # The state ends with a row's last real token, padding left out.
        spots = self._node("Add", [self._last_inputs(), self._ints("keep", np.arange(keep).reshape(1, 1, keep))],
                           "spots", ("batch", 1, keep))  # fmt: skip
        whole_width = self._ints("channels", [1, c.width, 1])
        spots = self._node("Expand", [spots, whole_width], "where", ("batch", c.width, keep))
        self.graph.node.append(
            helper.make_node("GatherElements", [whole, spots], [self.states[past]], f"{self.scope}/state", axis=2)
        )
        out = self._node("Mul", [names[1], out], "regated", wide)
        out = self._node("Transpose", [out], "returned", ("batch", "new", c.width), perm=[0, 2, 1])
        return self._linear(out, f"{prefix}.leave", c.width, c.width, False, ("batch", "new"))

    def _last_inputs(self) -> str:
        """`fresh` as int64 [batch, 1, 1]: where, after the carried inputs, each row's last ones begin."""
        return self._node("Reshape", ["fresh", self._ints("column", [-1, 1, 1])], "fresh", ("batch", 1, 1))

    def _feed_forward(self, prefix: str, x: str) -> str:
        c, name, read = self.c, f"{prefix}.feed_forward", ("batch", "new")
        shape: Shape = (*read, c.hidden)
        up = self._linear(x, f"{name}.up", c.width, c.hidden, c.mlp_bias, read)
        if c.gated:
            gate = self._linear(x, f"{name}.gate", c.width, c.hidden, c.mlp_bias, read)
            silu = self._node("Mul", [gate, self._node("Sigmoid", [gate], "sigmoid", shape)], "silu", shape)
            inner = self._node("Mul", [silu, up], "gated", shape)
        else:
            inner = self._node("Gelu", [up], "gelu", shape, approximate="tanh")
        return self._linear(inner, f"{name}.down", c.hidden, c.width, c.mlp_bias, read)

    def _norm(self, x: str, name: str, shape: Shape) -> str:
        scale = self._weight(f"{name}.weight", (int(shape[-1]),))
        label, how = name.rpartition(".")[2], _over_last(float(self.c.norm_eps))
        if self.c.norm == "rms":
            return self._node("SimplifiedLayerNormalization", [x, scale], label, shape, **how)
        shift = self._weight(f"{name}.bias", (int(shape[-1]),))
        return self._node("LayerNormalization", [x, scale, shift], label, shape, **how)

    def _linear(self, x: str, name: str, inputs: int, outputs: int, bias: bool, lead: Shape) -> str:
        label = name.rpartition(".")[2]
        y = self._matrix(x, f"{name}.weight", inputs, outputs, label, lead)
        if not bias:
            return y
        return self._node("Add", [y, self._weight(f"{name}.bias", (outputs,))], f"{label}_biased", (*lead, outputs))

    def _matrix(
        self, x: str, weight: str, inputs: int, outputs: int, label: str, lead: Shape, name: str | None = None
    ) -> str:
        shape: Shape = (*lead, outputs)
        if self.packed is None or inputs % BLOCK or min(inputs, outputs) < _LEAST:
            table = self._weight(weight, (outputs, inputs))
            return self._node("FusedMatMul", [x, table], label, shape, MS, name, transB=1)
        block = BLOCK if self.packed == 4 else min(_LONGEST_BLOCK, inputs & -inputs)
        blocks = inputs // block
        codes = self._weight(f"{weight}.codes", (outputs, blocks, block * self.packed // 8), "uint8")
        scales = self._weight(f"{weight}.scales", (outputs, blocks))
        # Level 4 multiplies integers: activations are quantised as they come, as llama.cpp does.
        return self._node("MatMulNBits", [x, codes, scales], label, shape, MS, name, K=inputs, N=outputs,
                          bits=self.packed, block_size=block, accuracy_level=4)  # fmt: skip

    # ---- tensors

    def _node(
        self, kind: str, inputs: Sequence[str], label: str, shape: Shape, domain: str = "", name: str | None = None,
        **attributes: Any,
    ) -> str:
        output = name or f"{self.scope.replace('/', '.')}.{label}"
        node = helper.make_node(kind, inputs, [output], f"{self.scope}/{label}", domain=domain, **attributes)
        self.graph.node.append(node)
        if name is None:
            self._known(output, shape, "int64" if label in ("spots", "where", "fresh") else self.dtype)
        return output

    def _known(self, name: str, shape: Shape, dtype: str | None = None) -> None:
        self.graph.value_info.append(helper.make_tensor_value_info(name, dtype_code(dtype or self.dtype), shape))

    def _input(self, name: str, dtype: str, shape: Shape) -> None:
        self.graph.input.append(helper.make_tensor_value_info(name, dtype_code(dtype), shape))

    def _output(self, name: str, shape: Shape, first: bool = False) -> None:
        value = helper.make_tensor_value_info(name, dtype_code(self.dtype), shape)
        if first:
            self.graph.output.insert(0, value)
        else:
            self.graph.output.append(value)

    def _state(self, k: int, part: str) -> str:
        c, past, present = self.c, f"past.{k}.{part}", f"present.{k}.{part}"
        lead: Shape = ("batch", c.width) if part == "conv" else ("batch", c.kv_heads)
        for name, put, length in ((past, self._input, "past"), (present, None, "total")):
            shape = (*lead, c.taps - 1) if part == "conv" else (*lead, length, c.head_width)
            if put is not None:
                put(name, self.dtype, shape)
            else:
                self._output(name, shape)
        self.states[past] = present
        return past

    def _weight(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> str:
        spec = WeightSpec(name, shape, dtype or self.dtype)
        if name not in self.weights:
            self.weights[name] = spec
            tensor = onnx.TensorProto(name=name, dims=shape, data_type=dtype_code(spec.dtype))
            declare_external(tensor, name)
            self.graph.initializer.append(tensor)
        return name

    def _table(self, name: str) -> str:
        """A table of the rotary angles."""
        return self._weight(name, (self.c.context, self.c.head_width // 2))

    def _scalar(self, name: str, value: float) -> str:
        array = np.array(value, np.float32).astype(_numpy(self.dtype))
        self._constant(numpy_helper.from_array(array, name))
        return name

    def _ints(self, name: str, values: Any) -> str:
        self._constant(numpy_helper.from_array(np.asarray(values, np.int64), f"constant.{name}"))
        return f"constant.{name}"

    def _constant(self, tensor: onnx.TensorProto) -> None:
        if all(t.name != tensor.name for t in self.graph.initializer):
            self.graph.initializer.append(tensor)


def _over_last(eps: float) -> dict[str, Any]:
    """Attributes of a norm over the last axis."""
    return {"axis": -1, "epsilon": eps}


def _numpy(dtype: str) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)
