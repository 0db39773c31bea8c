"""The GPT-2 decoder with random weights: the 125M shape for planning and measuring without a download.

tokens [batch, length] -> embedding + positions -> layers x (attention, MLP) -> norm
                       -> logits [batch, length, vocab]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qeil_compile.errors import InputError, ModelError
from qeil_compile.models._layers import embedding, initialise, linear


@dataclass(frozen=True, slots=True)
class GPT2Config:
    """Sizes of a GPT-2 decoder; the defaults are the published 125M model (124,439,808 parameters)."""

    layers: int = 12
    heads: int = 12
    width: int = 768
    vocab: int = 50257
    context: int = 1024

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "vocab", "context"):
            if getattr(self, name) < 1:
                raise ModelError(f"GPT-2 sizes: {name} is {getattr(self, name)}, expected a number from 1")
        if self.width % self.heads:
            raise ModelError(f"GPT-2 sizes: width {self.width}, expected a multiple of heads {self.heads}")


class GPT2(nn.Module):
    """A GPT-2 decoder without a cache; the output head is the embedding matrix.

    `seed` decides every weight: two models of one configuration and seed are equal. On the meta device no
    weight exists.
    """

    def __init__(self, config: GPT2Config | None = None, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or GPT2Config()
        self.embedding = embedding(config.vocab, config.width)
        self.position = embedding(config.context, config.width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        initialise(self, seed, ("attention.output", "mlp.down"), config.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [batch, length] -> logits [batch, length, vocab]; length is at most the context."""
        length = tokens.shape[1]
        if length > self.config.context:
            raise InputError(f"tokens: length {length}, expected at most the context {self.config.context}")
        x = self.embedding(tokens) + self.position.weight[:length]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embedding.weight)


class GPT2Step(nn.Module):
    """One decoding step of a `GPT2` with its cache as inputs and outputs.

    token int64 [batch, 1], position int64 [1], then keys and values of each layer [batch, heads, past, width / heads]
    -> logits [batch, 1, vocab], then keys and values with one row more.
    """

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, position: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """Logits of the next token, and the longer cache."""
        model, present = self.model, []
        x = model.embedding(token) + F.embedding(position, model.position.weight)
        for i, layer in enumerate(model.layers):
            mixed, keys, values = layer.attention.step(layer.attention_norm(x), cache[2 * i], cache[2 * i + 1])
            x = x + mixed
            x = x + layer.mlp(layer.mlp_norm(x))
            present += [keys, values]
        return F.linear(model.norm(x), model.embedding.weight), *present


class _Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream [b, l, width]."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = _Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class _Attention(nn.Module):
    """Causal attention [b, l, width] -> [b, l, width]; one matrix makes queries, keys and values."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = linear(config.width, 3 * config.width, bias=True)
        self.output = linear(config.width, config.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One more token [b, 1, width] against the cache: its output, and the longer keys and values."""
        query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        mixed = F.scaled_dot_product_attention(query, keys, values)
        return self.output(mixed.transpose(1, 2).flatten(2)), keys, values

    def _split(self, x: Tensor) -> Tensor:
        """[b, l, width] -> [b, heads, l, width / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _MLP(nn.Module):
    """Two layers with GELU in its tanh form, as GPT-2 was trained: [b, l, width] -> [b, l, width]."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.up = linear(config.width, 4 * config.width, bias=True)
        self.down = linear(4 * config.width, config.width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))
