"""The Llama decoder, and the reader of llama2.c's version-0 checkpoints.

    tokens [batch, length] -> embedding -> layers x (attention, feed forward) -> norm
                           -> logits [batch, length, vocab]

Attention is grouped-query with rotary positions over *interleaved* pairs (2i, 2i+1), as in Meta's own
weights and llama2.c; Hugging Face's copies of the same weights are permuted and do not fit as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qeil_compile.errors import InputError, ModelError
from qeil_compile.models._layers import embedding, initialise, linear

_HEADER = struct.Struct("<7i")
_MAGIC = 0x616B3432  # "ak42": opens llama2.c's versions 1 and 2; version 0 has no mark


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a Llama decoder. `tied`: the output head is the embedding matrix."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool = True
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = ("width", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
        for name, value in zip(sizes, astuple(self), strict=False):
            if value < 1:
                raise ModelError(f"Llama sizes: {name} is {value}, expected a number from 1")
        if self.width % self.heads or self.head_width % 2:
            raise ModelError(
                f"Llama sizes: width is {self.width}, expected {self.heads} heads of an even width each"
            )
        if self.heads % self.kv_heads:
            raise ModelError(
                f"Llama sizes: heads is {self.heads}, expected a multiple of kv_heads {self.kv_heads}"
            )

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        """Channels of all key heads together (and of all value heads)."""
        return self.head_width * self.kv_heads


#: Llama-3-8B: 8,030,261,248 parameters. Build it under `torch.device("meta")` to plan without weights.
LLAMA_3_8B = LlamaConfig(4096, 14336, 32, 32, 8, 128256, 8192, tied=False, rope_base=500000.0)


class LlamaDecoder(nn.Module):
    """A Llama decoder without a cache: every call reads the whole sequence.

    `seed` fills the weights reproducibly; `None` leaves them unset for a loader to fill. The RoPE tables
    are buffers of the state dict, so `to_empty` followed by `load_state_dict` restores them.
    """

    def __init__(self, config: LlamaConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = _RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else linear(config.width, config.vocab)
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        if seed is not None:
            initialise(self, seed, ("attention.output", "feed_forward.down"), config.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [batch, length] -> logits [batch, length, vocab]; length is at most the context."""
        length = tokens.shape[1]
        if length > self.config.context:
            raise InputError(f"tokens: length {length}, expected at most the context {self.config.context}")
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight if self.head is None else self.head.weight)


class _Layer(nn.Module):
    """Attention and feed forward, each behind a norm and added to the residual stream [b, l, width]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = _RMSNorm(config.width, config.norm_eps)
        self.attention = _Attention(config)
        self.feed_forward_norm = _RMSNorm(config.width, config.norm_eps)
        self.feed_forward = _FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


class _RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 as Llama does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class _Attention(nn.Module):
    """Causal grouped-query attention [b, l, width] -> [b, l, width]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.query = linear(config.width, config.width)
        self.key = linear(config.width, config.kv_width)
        self.value = linear(config.width, config.kv_width)
        self.output = linear(config.width, config.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query = _rotate(self._split(self.query(x), self.heads), cos, sin)
        key = _rotate(self._split(self.key(x), self.kv_heads), cos, sin)
        value = self._split(self.value(x), self.kv_heads)
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """[b, l, heads * head_width] -> [b, heads, l, head_width]."""
        return x.unflatten(-1, (heads, self.head_width)).transpose(1, 2)


class _FeedForward(nn.Module):
    """SwiGLU [b, l, width] -> [b, l, width]."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = linear(config.width, config.hidden)
        self.up = linear(config.width, config.hidden)
        self.down = linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rope_tables(config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each float32 [context, head_width / 2]."""
    pairs = torch.arange(0, config.head_width, 2, dtype=torch.float64)
    rates = config.rope_base ** (-pairs / config.head_width)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float64), rates)
    return angles.cos().float(), angles.sin().float()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (2i, 2i+1) of x [b, heads, l, head_width] by its angle [l, head_width / 2]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def load_llama2c(path: str | PathLike[str]) -> LlamaDecoder:
    """Read a llama2.c version-0 checkpoint: seven int32, float32 weights, RoPE tables, all little-endian.

    The header is believed only if the file has exactly the size that it declares, which is checked
    before anything is allocated, and if the RoPE tables stand where it puts them. Raises `ModelError`.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: found no such file, expected a llama2.c checkpoint")
    try:
        with path.open("rb") as file, torch.device("cpu"):
            config = _read_header(file, path)
            model = LlamaDecoder(config, seed=None)
            _read_weights(file, path, model)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    return model.eval()


def _read_header(file: BinaryIO, path: Path) -> LlamaConfig:
    """The sizes in the header, checked against one another and against the file's size."""
    size = path.stat().st_size
    raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size:
        raise ModelError(f"{path}: found {size} bytes, expected at least the {_HEADER.size} of a header")
    width, hidden, layers, heads, kv_heads, vocab, context = _HEADER.unpack(raw)
    if width == _MAGIC:
        raise ModelError(f"{path}: found a llama2.c checkpoint of version {hidden}, expected version 0")
    try:
        # A negative vocabulary is the format's sign of a separate output head.
        config = LlamaConfig(width, hidden, layers, heads, kv_heads, abs(vocab), context, tied=vocab > 0)
    except ModelError as error:
        raise ModelError(f"{path}: not a llama2.c version-0 checkpoint of {size} bytes: {error}") from error
    expected = _HEADER.size + 4 * _count_floats(config)
    if size != expected:
        raise ModelError(
            f"{path}: found {size} bytes, expected {expected} bytes for the sizes in its header "
            f"({', '.join(map(str, _HEADER.unpack(raw)))}); fetch the file again"
        )
    return config


def _count_floats(config: LlamaConfig) -> int:
    """Number of float32 values behind the header."""
    per_layer = 2 * config.width * (1 + config.width + config.kv_width) + 3 * config.width * config.hidden
    matrices = (1 if config.tied else 2) * config.vocab * config.width
    return matrices + config.layers * per_layer + config.width + config.context * config.head_width


@torch.no_grad()
def _read_weights(file: BinaryIO, path: Path, model: LlamaDecoder) -> None:
    """Fill `model` from the position behind the header to the end of the file."""
    for weight in _in_file_order(model):
        _fill(weight, file, path)
    for table in (model.cos, model.sin):
        # The exporter computed its angles in float32: off from ours by up to context * 2^-24 rad.
        if not torch.allclose(_read_floats(file, path, table.shape), table, rtol=0.0, atol=1e-2):
            raise ModelError(
                f"{path}: found other values where its header puts the RoPE tables of base "
                f"{model.config.rope_base:g}; expected a header that matches the weights"
            )
    if model.head is not None:
        _fill(model.head.weight, file, path)


def _fill(weight: Tensor, file: BinaryIO, path: Path) -> None:
    """Overwrite `weight` with the next values of the file."""
    values = _read_floats(file, path, weight.shape)
    if not values.isfinite().all():
        raise ModelError(f"{path}: found a weight that is infinite or not a number, expected finite ones")
    weight.copy_(values)


def _in_file_order(model: LlamaDecoder) -> Iterator[Tensor]:
    """The parameters before the RoPE tables, in the order of the file: kind by kind, each over all layers."""
    kinds = (
        "attention_norm",
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.output",
        "feed_forward_norm",
        "feed_forward.gate",
        "feed_forward.down",
        "feed_forward.up",
    )
    yield model.embedding.weight
    for kind in kinds:
        for layer in model.layers:
            yield layer.get_submodule(kind).weight
    yield model.norm.weight


def _read_floats(file: BinaryIO, path: Path, shape: torch.Size) -> Tensor:
    """The next float32 values of the file, as a tensor of `shape`."""
    values = np.fromfile(file, dtype="<f4", count=shape.numel())
    if values.size != shape.numel():
        raise ModelError(f"{path}: found {4 * values.size} bytes of a tensor, expected {4 * shape.numel()}")
    return torch.from_numpy(values.astype(np.float32, copy=False)).view(shape)
