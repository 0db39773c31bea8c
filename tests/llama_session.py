"""A decoder session that really runs: llama2.c weights through torch, with a key/value cache, and counts its work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.models.llama2c import LlamaDecoder, _rotate


class LlamaSession:
    """Fulfils `DecoderSession`. `prefilled` and `stepped` count the tokens that were run; `selects` are the calls."""

    def __init__(self, model: LlamaDecoder, context: int | None = None) -> None:
        self.model = model
        self.vocab = model.config.vocab
        self.context = context or model.config.context
        self.prefilled = self.stepped = 0
        self.selects: list[list[int]] = []
        self._lengths = torch.zeros(0, dtype=torch.int64)
        self._cache: list[tuple[Tensor, Tensor]] = []

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths.numpy()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        self._lengths = torch.tensor([len(prompt) for prompt in prompts])
        config = self.model.config
        shape = (len(prompts), config.kv_heads, self.context, config.head_width)
        self._cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in self.model.layers]
        tokens = torch.zeros(len(prompts), int(self._lengths.max()), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        self.prefilled += int(self._lengths.sum())
        # Padding stands to the right: the causal mask hides it from the prompt, and steps overwrite it.
        logits = self._run(tokens, torch.zeros_like(self._lengths))
        return logits[torch.arange(len(prompts)), self._lengths - 1].numpy()

    def select(self, rows: np.ndarray) -> None:
        self.selects.append(rows.tolist())
        index = torch.from_numpy(rows)
        self._lengths = self._lengths[index]
        self._cache = [(keys[index], values[index]) for keys, values in self._cache]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        assert tokens.shape == self.lengths.shape and self._lengths.max() < self.context
        self.stepped += len(tokens)
        logits = self._run(torch.from_numpy(tokens)[:, None], self._lengths)[:, 0]
        self._lengths = self._lengths + 1
        return logits.numpy()

    @torch.no_grad()
    def _run(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Logits [rows, length, vocab] of tokens at positions start[row], start[row] + 1, ..."""
        model = self.model
        places = start[:, None] + torch.arange(tokens.shape[1])  # [rows, length]
        cos, sin = model.cos[places][:, None], model.sin[places][:, None]
        mask = torch.arange(self.context) <= places[:, None, :, None]  # [rows, 1, length, context]
        rows = torch.arange(len(tokens))[:, None]
        x = model.embedding(tokens)
        for layer, (keys, values) in zip(model.layers, self._cache, strict=True):
            attention, normed = layer.attention, layer.attention_norm(x)
            query = _rotate(attention._split(attention.query(normed), attention.heads), cos, sin)
            key = _rotate(attention._split(attention.key(normed), attention.kv_heads), cos, sin)
            keys[rows, :, places] = key.transpose(1, 2)
            values[rows, :, places] = attention._split(attention.value(normed), attention.kv_heads).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
            x = x + attention.output(mixed.transpose(1, 2).flatten(2))
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
        return F.linear(model.norm(x), model.embedding.weight)
