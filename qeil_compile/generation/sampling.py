"""How the next token is chosen, and when a sample ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qeil_compile.errors import InputError

#: Below this, logits divided by the temperature may leave float32.
LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of generation. The filters are applied in the order of the fields, as `transformers` does.

    `repetition_penalty`: logits of tokens that stand in the prompt or were generated are divided by it where positive
    and multiplied where negative; 1 is none. `temperature`: 0 takes the likeliest token, and the filters below it do
    nothing then. `top_k`: only the k likeliest tokens and those equal to the last of them; 0 is no limit. `top_p`: only
    the likeliest tokens that together reach this mass. `min_p`: only tokens at least this share of the likeliest one.

    `seed`: the same seed gives the same samples. `max_tokens`: most tokens of a sample; `None` is as many as the
    context holds. `stop`: strings that end a sample and are cut from its text. `stop_tokens`: tokens that end it
    besides the tokenizer's own; `ignore_eos` leaves those out. `n`: samples of each prompt. `alternatives`: how many
    of the likeliest tokens to report at each position, with log-probabilities.

    Raises `InputError` naming the field.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False
    n: int = 1
    alternatives: int = 0

    def __post_init__(self) -> None:
        for name in ("repetition_penalty", "temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise _wrong(name, value, "a finite number")
        for name, least in (("top_k", 0), ("seed", 0), ("n", 1), ("alternatives", 0), ("max_tokens", 1)):
            value = getattr(self, name)
            if name == "max_tokens" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise _wrong(name, value, f"a whole number from {least}")
        if self.repetition_penalty <= 0:
            raise _wrong("repetition_penalty", self.repetition_penalty, "a number above 0 (1 is none)")
        if self.temperature != 0 and self.temperature < LEAST_TEMPERATURE:
            raise _wrong("temperature", self.temperature, f"0 (greedy) or a number from {LEAST_TEMPERATURE:g}")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise _wrong(name, getattr(self, name), "a number from 0 to 1")
        if self.seed >= 2**64:
            raise _wrong("seed", self.seed, "a number below 2^64")
        if not isinstance(self.ignore_eos, bool):
            raise _wrong("ignore_eos", self.ignore_eos, "True or False")
        # Frozen: the two collections are put into their own form once, here.
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_tokens", _tokens(self.stop_tokens))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0


def _wrong(name: str, value: object, expected: str) -> InputError:
    return InputError(f"sampling: {name} is {value!r}, expected {expected}")


def _strings(value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if strings is None or not all(isinstance(s, str) and s for s in strings):
        raise _wrong("stop", value, "strings of at least one character")
    return tuple(dict.fromkeys(strings))


def _tokens(value: object) -> frozenset[int]:
    tokens = frozenset(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if tokens is None or not all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in tokens):
        raise _wrong("stop_tokens", value, "token numbers from 0")
    return tokens
