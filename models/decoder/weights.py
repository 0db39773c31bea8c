"""The weights of a decoder from what a checkpoint holds: fused, scaled, packed.

`Assembler.array(name)` makes one weight when it is asked for it, so that a model larger than memory can be written to
an artifact weight by weight. Matrices keep the layout of the checkpoint ([outputs, inputs]) where nothing changes them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qeil_compile.errors import ModelError
from qeil_compile.models.decoder.graph import DecoderGraph, WeightSpec


class Tensors(Protocol):
    """Where a checkpoint's tensors come from, by their names in it."""

    def names(self) -> frozenset[str]:
        """All names."""
        ...

    def array(self, name: str) -> np.ndarray:
        """One tensor in its stored type."""
        ...


@dataclass(frozen=True)
class _Part:
    """Rows of one tensor of the checkpoint: `transpose` for matrices stored [inputs, outputs], `rows` to take."""

    name: str
    transpose: bool = False
    rows: tuple[int, int] | None = None


#: Names of the parts of a layer in each family's checkpoints; each weight is its parts one under the other.
_LLAMA = {
    "mixer_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "attention.output": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
_LFM2 = _LLAMA | {
    "mixer_norm.weight": "operator_norm.weight",
    "feed_forward_norm.weight": "ffn_norm.weight",
    "attention.query_norm.weight": "self_attn.q_layernorm.weight",
    "attention.key_norm.weight": "self_attn.k_layernorm.weight",
    "attention.output": "self_attn.out_proj",
    "convolution.enter": "conv.in_proj",
    "convolution.taps": "conv.conv.weight",
    "convolution.leave": "conv.out_proj",
    "feed_forward.gate": "feed_forward.w1",
    "feed_forward.up": "feed_forward.w3",
    "feed_forward.down": "feed_forward.w2",
}
_GPT2 = {
    "mixer_norm.weight": "ln_1.weight",
    "mixer_norm.bias": "ln_1.bias",
    "feed_forward_norm.weight": "ln_2.weight",
    "feed_forward_norm.bias": "ln_2.bias",
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
_TOPS = {
    "gpt2": {"embedding.weight": "wte.weight", "positions.weight": "wpe.weight",
             "norm.weight": "ln_f.weight", "norm.bias": "ln_f.bias"},
    "lfm2": {"embedding.weight": "embed_tokens.weight", "norm.weight": "embedding_norm.weight"},
}  # fmt: skip
_TOP = {"embedding.weight": "embed_tokens.weight", "norm.weight": "norm.weight"}


class Assembler:
    """Weights of one decoder out of a checkpoint's tensors. Raises `ModelError` naming what is missing or misshapen."""

    def __init__(self, graph: DecoderGraph, tensors: Tensors, source: str) -> None:
        assert graph.config is not None
        self.graph, self.config, self.tensors, self.source = graph, graph.config, tensors, source
        self._names = tensors.names()
        self._prefix = next((p for p in ("model.", "transformer.", "") if f"{p}{self._top('embedding.weight')}" in (
            self._names)), "model.")  # fmt: skip
        self._packed: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def array(self, name: str) -> np.ndarray:
        """The array of one weight of the graph, C-contiguous, of its shape and type."""
        spec = self.graph.weights[name]
        base, _, part = name.rpartition(".")
        if part in ("codes", "scales"):
            return self._pack(base, spec, part)
        if name.startswith("rope."):
            assert self.config.rope is not None
            tables = self.config.rope.tables(self.config.context, self.config.head_width)
            return _as(tables[name == "rope.sin"], spec)
        return _as(self._plain(name, spec), spec)

    def _plain(self, name: str, spec: WeightSpec | None) -> np.ndarray:
        """The weight before it is packed."""
        parts = [self._part(p) for p in self._parts(name)]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if spec is not None and array.shape != spec.shape:
            if array.size != int(np.prod(spec.shape)) or sorted(array.shape) != sorted(spec.shape):
                raise ModelError(
                    f"{self.source}: tensor {self._parts(name)[0].name} has shape {list(array.shape)}, expected "
                    f"{list(spec.shape)} for the sizes in its configuration"
                )
            array = array.reshape(spec.shape)
        return self._scaled(name, array)

    def _scaled(self, name: str, array: np.ndarray) -> np.ndarray:
        """Granite's multipliers, where a weight can take them over: what a block adds, and the logits."""
        c = self.config
        end = name.partition(".")[0] == "layers" and name.rpartition(".")[0]
        if c.residual_multiplier != 1.0 and end and end.endswith((".output", ".down", ".leave")):
            return array.astype(np.float32) * np.float32(c.residual_multiplier)
        if c.logits_divisor != 1.0 and name == "norm.weight":
            return array.astype(np.float32) / np.float32(c.logits_divisor)
        return array

    def _pack(self, base: str, spec: WeightSpec, part: str) -> np.ndarray:
        if base not in self._packed:
            matrix = np.asarray(self._plain(base, None), dtype=np.float32)
            blocks = self.graph.weights[f"{base}.scales"].shape[1]
            # Kept: every engine that is tried asks for all of them, and packing takes longer than starting it.
            self._packed[base] = pack(matrix, self.graph.bits, blocks)
        codes, scales = self._packed[base]
        return codes if part == "codes" else _as(scales, spec)

    # ---- names

    def _top(self, name: str) -> str:
        return _TOPS.get(self.config.family, _TOP)[name]

    def _parts(self, name: str) -> list[_Part]:
        family = self.config.family
        if name == "head.weight":
            if f"{self._prefix}lm_head.weight" in self._names or "lm_head.weight" in self._names:
                found = "lm_head.weight" if "lm_head.weight" in self._names else f"{self._prefix}lm_head.weight"
                return [_Part(found)]
            return [_Part(f"{self._prefix}{self._top('embedding.weight')}")]
        if not name.startswith("layers."):
            return [_Part(f"{self._prefix}{self._top(name)}")]
        _, k, rest = name.split(".", 2)
        where = f"{self._prefix}{'h' if family == 'gpt2' else 'layers'}.{k}."
        table = {"gpt2": _GPT2, "lfm2": _LFM2}.get(family, _LLAMA)
        if rest in table:
            return [_Part(f"{where}{table[rest]}")]
        key, _, kind = rest.rpartition(".")
        if rest == "convolution.taps":
            key, kind = rest, ""
        if family == "granitemoehybrid" and key.startswith("feed_forward."):
            return [self._shared_mlp(where, key)]
        turned = family == "gpt2" and kind == "weight"
        return [_Part(f"{where}{part}.{kind}", turned) for part in table[key].split()]

    def _shared_mlp(self, where: str, key: str) -> _Part:
        """Granite 4 keeps gate and up in one matrix."""
        hidden, part = self.config.hidden, key.rpartition(".")[2]
        if part == "down":
            return _Part(f"{where}shared_mlp.output_linear.weight")
        rows = (0, hidden) if part == "gate" else (hidden, 2 * hidden)
        return _Part(f"{where}shared_mlp.input_linear.weight", rows=rows)

    def _part(self, part: _Part) -> np.ndarray:
        if part.name not in self._names:
            raise ModelError(
                f"{self.source}: found no tensor {part.name}, which a {self.config.family} checkpoint has; "
                f"it holds {len(self._names)} others, such as {', '.join(sorted(self._names)[:3])}"
            )
        array = self.tensors.array(part.name)
        if part.rows is not None:
            array = array[part.rows[0] : part.rows[1]]
        return array.T if part.transpose else array


def pack(matrix: np.ndarray, bits: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [n, blocks, k / blocks * bits / 8] and scales float32 [n, blocks] of a matrix float32 [n, k].

    Symmetric, with the zero in the middle of the codes (8 or 128), as MatMulNBits has it without zero points. A scale
    is the best in least squares for its codes: of 4 bits each block has its own, and its value of largest magnitude
    takes the code at the long end, low nibbles first; of 8 bits all blocks of a row have the row's, with codes from 1
    to 255, so that a product of integers may take a row as signed numbers and scale what it adds up to.
    """
    n, k = matrix.shape
    if bits == 8:
        rows = np.ascontiguousarray(matrix)
        levels, scales = _levels(rows, np.abs(rows).max(axis=1, keepdims=True) / np.float32(127), 127)
        codes = (levels + 128).astype(np.uint8).reshape(n, blocks, k // blocks)
        return codes, np.repeat(scales, blocks, axis=1)
    cut = np.ascontiguousarray(matrix).reshape(n, blocks, k // blocks)
    far = np.take_along_axis(cut, np.abs(cut).argmax(axis=2)[..., None], axis=2)
    levels, scales = _levels(cut, far / np.float32(-8), 7)
    codes = (levels + 8).astype(np.uint8)
    return np.bitwise_or(codes[..., 0::2], codes[..., 1::2] * np.uint8(16)), scales[..., 0]


def _levels(values: np.ndarray, scales: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers up to `most` (as far as the scales' signs go, one below -most) for values over scales, which hold
    along the last axis, and the scales that are best in least squares for them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(scales != 0, values / scales, 0.0)
    levels = np.clip(np.rint(levels), -most - 1, most)
    squares = (levels * levels).sum(axis=-1, keepdims=True)
    best = (levels * values).sum(axis=-1, keepdims=True) / np.where(squares > 0, squares, 1.0)
    return levels, np.where(squares > 0, best, 0.0).astype(np.float32)


def unpack(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The matrix float32 [n, k] that codes and scales stand for."""
    if bits == 4:
        nibbles: np.ndarray = np.stack([codes & 15, codes >> 4], axis=-1)
        codes = nibbles.reshape(*codes.shape[:-1], -1)
    levels = codes.astype(np.float32) - np.float32(1 << (bits - 1))
    return (levels * scales[..., None]).reshape(len(codes), -1)


def _as(array: np.ndarray, spec: WeightSpec) -> np.ndarray:
    if spec.dtype == "bfloat16":
        import ml_dtypes

        return np.ascontiguousarray(array, dtype=ml_dtypes.bfloat16)
    return np.ascontiguousarray(array, dtype=np.dtype(spec.dtype))


def random_array(graph: DecoderGraph, name: str, seed: int = 0) -> np.ndarray:
    """One weight of a model without a checkpoint."""
    spec = graph.weights[name]
    base, _, part = name.rpartition(".")
    rng = np.random.default_rng([seed, zlib.crc32(base.encode())])
    if name.startswith("rope."):
        assert graph.config is not None and graph.config.rope is not None
        return _as(graph.config.rope.tables(graph.config.context, graph.config.head_width)[name == "rope.sin"], spec)
    if part == "codes":
        return rng.integers(0, 256, spec.shape, dtype=np.uint8)
    if part == "scales":
        # With codes drawn evenly, values are spread as those of a matrix that is not packed.
        return _as(np.full(spec.shape, 0.02 / (4.6 if graph.bits == 4 else 73.9)), spec)
    if base.endswith("norm"):
        return _as(np.ones(spec.shape) if part == "weight" else np.zeros(spec.shape), spec)
    if part == "bias":
        return _as(np.zeros(spec.shape), spec)
    return _as(rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(0.02), spec)

