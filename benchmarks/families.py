"""The seven families of language models at their true shapes, without weights: prompt and one step with a cache.

Shapes are those of the published configurations (config.json of gpt2, granite-4.0-350m, Qwen2-0.5B, Llama-3.2-1B,
LFM2-2.6B and Llama-3.1-8B). The last one again with weights of 4 bits in groups of 32, each with a scale of 2 bytes.
All tensors live on the meta device. These are torch modules and not the product's own decoders (`models/decoder`),
whose fused ONNX operators leave far fewer places to cut: the partitioner is measured on graphs as a tracer finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from common import trace
from torch import Tensor, nn

from qeil_compile.frontends import Traced
from qeil_compile.ir import OpGraph


@dataclass(frozen=True)
class Family:
    """Sizes of a decoder. `convolutions` are layers that mix tokens by a short convolution in place of attention."""

    name: str
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = True
    gated: bool = True
    bias: bool = False
    positions: int = 0
    convolutions: frozenset[int] = frozenset()
    bits: int = 16


_LFM2 = frozenset(range(30)) - {2, 6, 9, 13, 17, 21, 24, 27}
FAMILIES = (
    Family("GPT-2 125M", 768, 3072, 12, 12, 12, 50257, gated=False, bias=True, positions=1024),
    Family("Granite 350M", 1024, 2048, 28, 16, 4, 100352),
    Family("Qwen2 0.5B", 896, 4864, 24, 14, 2, 151936, bias=True),
    Family("Llama-3.2 1B", 2048, 8192, 16, 32, 8, 128256),
    Family("LFM2 2.6B", 2048, 10752, 30, 32, 8, 65536, convolutions=_LFM2),
    Family("Llama-3.1 8B", 4096, 14336, 32, 32, 8, 128256, tied=False),
    Family("Llama-3.1 8B, 4 bit", 4096, 14336, 32, 32, 8, 128256, tied=False, bits=4),
)
#: Taps of LFM2's short convolution.
_TAPS = 3


class Decoder(nn.Module):
    """tokens [batch, new] and a state per layer -> logits of the last token, and the new states.

    A state is the keys and values [batch, kv heads, past, head] of an attention layer, or the last inputs
    [batch, width, taps - 1] of a convolution. Without states the tokens are a prompt.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()
        f = self.family = family
        self.embedding = nn.Embedding(f.vocab, f.width)
        self.position = nn.Embedding(f.positions, f.width) if f.positions else None
        self.layers = nn.ModuleList(_Layer(f, k in f.convolutions) for k in range(f.layers))
        self.norm = _norm(f)
        self.head = None if f.tied else nn.Linear(f.width, f.vocab, bias=False)

    def forward(self, tokens: Tensor, place: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """`place` int64 [new] are the positions of the tokens."""
        x = self.embedding(tokens)
        if self.position is None:
            half = self.family.width // self.family.heads // 2
            angle = place[:, None] * torch.exp(torch.arange(half, device=place.device) * (-9.2 / half))
            turn = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
        else:
            x, turn = x + self.position(place), None
        kept: list[Tensor] = []
        at = 0
        for layer in self.layers:
            count = layer.states
            mine = states[at : at + count] if states else ()
            at += count
            x, fresh = layer(x, turn, mine)
            kept += fresh
        x = self.norm(x[:, -1])
        return F.linear(x, self.embedding.weight if self.head is None else self.head.weight), *kept


def _norm(f: Family) -> nn.Module:
    return nn.RMSNorm(f.width) if f.gated else nn.LayerNorm(f.width)


class _Layer(nn.Module):
    def __init__(self, f: Family, convolution: bool) -> None:
        super().__init__()
        self.mixer: nn.Module = _Convolution(f) if convolution else _Attention(f)
        self.states = 1 if convolution else 2
        self.first, self.second = _norm(f), _norm(f)
        self.up = nn.Linear(f.width, f.hidden, bias=not f.gated)
        self.gate = nn.Linear(f.width, f.hidden, bias=False) if f.gated else None
        self.down = nn.Linear(f.hidden, f.width, bias=not f.gated)

    def forward(self, x: Tensor, turn: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        y, fresh = self.mixer(self.first(x), turn, states)
        x = x + y
        y = self.second(x)
        y = F.gelu(self.up(y), approximate="tanh") if self.gate is None else F.silu(self.gate(y)) * self.up(y)
        return x + self.down(y), fresh


class _Attention(nn.Module):
    def __init__(self, f: Family) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = f.heads, f.kv_heads, f.width // f.heads
        self.query = nn.Linear(f.width, f.width, bias=f.bias)
        self.key = nn.Linear(f.width, f.kv_heads * self.size, bias=f.bias)
        self.value = nn.Linear(f.width, f.kv_heads * self.size, bias=f.bias)
        self.output = nn.Linear(f.width, f.width, bias=not f.gated)

    def forward(self, x: Tensor, turn: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        query, key, value = self.query(x), self.key(x), self.value(x)
        query, key, value = (
            t.unflatten(-1, (n, self.size)).transpose(1, 2)
            for t, n in ((query, self.heads), (key, self.kv_heads), (value, self.kv_heads))
        )
        if turn is not None:
            query, key = _rotate(query, turn), _rotate(key, turn)
        if states:
            key, value = torch.cat((states[0], key), 2), torch.cat((states[1], value), 2)
        grouped = self.heads != self.kv_heads
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=not states, enable_gqa=grouped)
        return self.output(mixed.transpose(1, 2).flatten(2)), [key, value]


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = turn
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class _Convolution(nn.Module):
    """LFM2's mixer: gates around a short depthwise convolution over the tokens."""

    def __init__(self, f: Family) -> None:
        super().__init__()
        self.enter = nn.Linear(f.width, 3 * f.width, bias=False)
        self.taps = nn.Conv1d(f.width, f.width, _TAPS, groups=f.width, bias=False)
        self.leave = nn.Linear(f.width, f.width, bias=False)

    def forward(self, x: Tensor, turn: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        before, after, x = self.enter(x).transpose(1, 2).chunk(3, 1)
        x = before * x
        x = torch.cat((states[0], x), 2) if states else F.pad(x, (_TAPS - 1, 0))
        mixed = after * self.taps(x)
        return self.leave(mixed.transpose(1, 2)), [x[:, :, -(_TAPS - 1) :]]


def phases(family: Family, prompt: int = 512, past: int = 512, samples: int = 1) -> dict[str, Traced]:
    """The prompt of one request, and one step of `samples` live samples after `past` tokens."""
    with torch.device("meta"):
        model = Decoder(family).to(torch.bfloat16).eval()
        first = trace(model, (torch.zeros(1, prompt, dtype=torch.int64), torch.zeros(prompt, dtype=torch.int64)))
        states = []
        for layer in model.layers:
            if layer.states == 1:
                states.append(torch.zeros(samples, family.width, _TAPS - 1, dtype=torch.bfloat16))
            else:
                states += [torch.zeros(samples, family.kv_heads, past, family.width // family.heads,
                                       dtype=torch.bfloat16)] * 2  # fmt: skip
        token = torch.zeros(samples, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        step = trace(model, (*token, *states))
    return {"prefill": first, "decode": step}


def carried(prefill: OpGraph, decode: OpGraph) -> Mapping[str, str]:
    """Input of the step -> output of the prompt that it holds: states, in order."""
    inputs = [t for t in decode.inputs if t not in decode.inputs[:2]]
    return dict(zip(inputs, prefill.result_names[1:], strict=True))


def stored(graph: OpGraph, bits: int) -> OpGraph:
    """The graph with its matrices stored in so many bits (4: with scales in groups of 32, 4.5 bits in all)."""
    if bits == 16:
        return graph
    tensors = {
        n: replace(t, dtype="int4") if t.role == "weight" and len(t.shape or ()) == 2 and "embedding" not in n else t
        for n, t in graph.tensors.items()
    }
    return replace(graph, tensors=tensors)
