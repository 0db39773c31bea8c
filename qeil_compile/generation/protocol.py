"""What generation asks of the thing that runs the network and of the tokenizer: any class that fits will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class DecoderSession(Protocol):
    """One batch of live rows with their key/value cache. Not thread-safe."""

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        ...

    @property
    def context(self) -> int:
        """Most tokens of a row, prompt and generated together."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache of each live row, int64 [rows]."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forget everything, run prompts of any lengths from 1; float32 logits [prompts, vocab] of each last token."""
        ...

    def select(self, rows: np.ndarray) -> None:
        """The live rows become `rows[i]` (int64 [n]): repeats expand, absences drop, the order is free."""
        ...

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """One more token for each live row, int64 [rows]; float32 logits [rows, vocab].

        The next call may overwrite what it returns.
        """
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token numbers and back."""

    @property
    def bos(self) -> int | None:
        """The token that opens a text, if the model has one."""
        ...

    @property
    def eos(self) -> frozenset[int]:
        """The tokens that end a text; empty if the model has none."""
        ...

    def encode(self, text: str, special: bool = True, allow_control: bool = False) -> list[int]:
        """Token numbers of `text`; `special` adds what the model expects around a text (its `bos`).

        Control tokens that the text spells are read as plain text unless `allow_control`.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without control tokens; bytes that are not UTF-8 become U+FFFD."""
        ...

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, allow_control: bool = False
    ) -> list[int]:
        """Token numbers of a conversation in the model's own form.

        `messages` are mappings with `role` and `content`. Control tokens spelled inside them are read as plain text
        unless `allow_control`. Raises `InputError` where the model has no chat template or the template refuses.
        """
        ...
