"""Tokens for rows of logits: the settings of `Sampling` over the compiled kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from qeil_compile.devices.cpuinfo import usable_cores
from qeil_compile.errors import GenerationError

from .kernel import remember, sample_rows
from .sampling import Sampling

#: Logits that one thread should have at least: handing rows to another takes as long as some 20,000 of them.
_SHARE = 1 << 17
_MOST_THREADS = 8


class Chosen(NamedTuple):
    """For each row: its token and the log-probability of that under the raw logits; the likeliest tokens and theirs."""

    tokens: np.ndarray
    logprobs: np.ndarray
    alternatives: np.ndarray
    alternative_logprobs: np.ndarray


def _in_parts(sample: Callable[[int, int], int], rows: int, vocab: int) -> int:
    """`sample` over all rows, on several threads where there is enough to do (it lets go of the interpreter); the first
    place that it reports, or -1."""
    threads = min(usable_cores(), _MOST_THREADS, rows, rows * vocab // _SHARE)
    if threads < 2:
        return sample(0, rows)
    bounds = [rows * k // threads for k in range(threads + 1)]
    others = [_pool().submit(sample, a, b) for a, b in pairwise(bounds[1:])]
    found = [sample(0, bounds[1]), *(other.result() for other in others)]
    return next((bad for bad in found if bad >= 0), -1)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS - 1, "qeil-sampling")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind


class Sampler:
    """Chooses tokens for the rows of one batch.

    A token depends on its row's logits and history, the seed, and the row's own coordinates (number of the prompt,
    number of the sample, position), never on which other rows are there or in what order.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[int], samples: Sequence[int]) -> None:
        """`prompts` and `samples`: coordinates of each row."""
        self.sampling = sampling
        self._prompts = np.asarray(prompts, np.int64)
        self._samples = np.asarray(samples, np.int64)
        self._positions = np.zeros(len(self._prompts), np.int64)
        self._seen = np.zeros((len(self._prompts), 0), np.int64)
        self._seen_count = np.zeros(len(self._prompts), np.int64)

    def remember(self, row: int, tokens: Sequence[int]) -> None:
        """Tokens that the repetition penalty concerns from now on: those of the prompt, before the first draw."""
        if self.sampling.repetition_penalty == 1:
            return
        room = self._seen.shape[1]
        if self._seen_count[row] + len(tokens) > room:
            wider = np.zeros((len(self._seen), 2 * room + len(tokens)), np.int64)
            wider[:, :room] = self._seen
            self._seen = wider
        remember(self._seen, self._seen_count, row, np.asarray(tokens, np.int64))

    def draw(
        self, logits: np.ndarray, rows: np.ndarray, source: np.ndarray | None = None, several: bool = False
    ) -> Chosen:
        """The next token of each of `rows` (int64 [n]), and remember it; on `several` cores where that pays.

        logits float32 [any, vocab]; row `rows[i]` reads `logits[source[i]]`, or `logits[i]`. Raises `GenerationError`
        naming prompt, sample and position where a logit is infinite or not a number; nothing is remembered then.
        """
        source = np.arange(len(rows)) if source is None else source
        settings, m = self.sampling, min(self.sampling.alternatives, logits.shape[1])
        chosen = Chosen(
            np.empty(len(rows), np.int64), np.empty(len(rows)), np.empty((len(rows), m), np.int64),
            np.empty((len(rows), m)),
        )  # fmt: skip
        logits = np.ascontiguousarray(logits, np.float32)

        def sample(first: int, end: int) -> int:
            """Draw for some of the rows; the place of a bad one or -1."""
            bad = sample_rows(
                logits, source[first:end], rows[first:end], self._prompts, self._samples, self._positions,
                self._seen, self._seen_count, np.uint64(settings.seed), np.float32(settings.repetition_penalty),
                np.float32(settings.temperature), settings.top_k, float(settings.top_p), float(settings.min_p),
                *(c[first:end] for c in chosen),
            )  # fmt: skip
            return bad + first if bad >= 0 else -1

        bad = _in_parts(sample, len(rows), logits.shape[1]) if several else sample(0, len(rows))
        if bad >= 0:
            row, values = rows[bad], logits[source[bad]]
            token = int(np.flatnonzero(~np.isfinite(values))[0])
            raise GenerationError(
                f"prompt {self._prompts[row]}, sample {self._samples[row]}, generated position {self._positions[row]}: "
                f"found the logit {values[token]} for token {token}, expected finite ones; check the model's weights, "
                "or choose a wider type of number"
            )
        self._positions[rows] += 1
        if settings.repetition_penalty != 1:
            for row, token in zip(rows, chosen.tokens, strict=True):
                self.remember(row, [token])
        return chosen
