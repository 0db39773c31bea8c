"""What a peer of the benchmark of language models answers, and what engines that are driven by hand share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from llm_convert import once


def device() -> str:
    """Where torch runs models: "cpu", or "cuda" for a run with `--device cuda`."""
    return os.environ.get("QEIL_BENCH_DEVICE", "cpu")


class Unavailable(Exception):
    """The peer has no such form, or is not installed."""


class Peer:
    """One engine with one checkpoint in one form. Prompts are lists of tokens; times are seconds."""

    forms: Sequence[str] = ("fp32",)

    def __init__(self, source: Path, form: str, threads: int, place: Path) -> None:
        if form not in self.forms:
            raise Unavailable(f"no form {form}: it has {', '.join(self.forms)}")
        self.source, self.form, self.threads, self.place = source, form, threads, place
        self.rng = np.random.default_rng(0)

    def folder(self, kind: str, make: Callable[[Path, str, Path], None], form: str = "") -> Path:
        """The checkpoint in another engine's form, made if it is not there."""
        form = form or self.form
        return once(self.place / f"{self.source.name}-{kind}-{form}", lambda out: make(self.source, form, out))

    def prepare(self) -> None:
        """Make the engine's form of the checkpoint; done apart, for it takes more memory than running."""

    def load(self) -> str:
        """Start the engine; its version."""
        raise NotImplementedError

    def setup(self, rows: int, prompt: int, tokens: int) -> str:
        """What comes next; peers that choose nothing answer nothing."""
        self.room = prompt + tokens + 8
        return ""

    def logits(self, prompt: list[int], file: str) -> None:
        """Log-probabilities after a prompt, float32 [vocab], NaN where the engine does not tell."""
        values = self.begin([prompt])[0].astype(np.float64)
        values -= values.max()
        np.save(file, (values - np.log(np.exp(values).sum())).astype(np.float32))

    def prefill(self, prompt: list[int]) -> float:
        """Time of a prompt, logits of its last token included; the first run in a turn does not count."""
        self.begin([prompt])
        before = time.perf_counter()
        self.begin([prompt])
        return time.perf_counter() - before

    def decode(self, prompt: list[int], rows: int, steps: int) -> list[float]:
        """Times of steps with so many rows, after a prompt that all share; the first two do not count."""
        vocab = self.begin([prompt]).shape[1]
        self.spread(rows)
        tokens = self.rng.integers(0, vocab, rows)
        times = []
        for _ in range(steps + 2):
            before = time.perf_counter()
            self.step(tokens)
            times.append(time.perf_counter() - before)
        return times[2:]

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        """Time of `samples` samples of one prompt. `shared`: the prompt runs once, which its user has to arrange."""
        self.begin([prompt])  # not counted: a turn begins with an engine that is awake
        before = time.perf_counter()
        if shared:
            logits = np.repeat(self.begin([prompt]), samples, axis=0)
            self.spread(samples)
        else:
            logits = self.begin([prompt] * samples)
        for k in range(tokens):
            chosen = self._sampled(logits, temperature)
            if k + 1 < tokens:
                logits = self.step(chosen)
        return time.perf_counter() - before

    def _sampled(self, logits: np.ndarray, temperature: float) -> np.ndarray:
        scaled = (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
        sums = np.cumsum(np.exp(scaled, out=scaled), axis=1)
        points = self.rng.random(len(logits), np.float32) * sums[:, -1]
        return np.array([np.searchsorted(s, p) for s, p in zip(sums, points, strict=True)]).clip(max=sums.shape[1] - 1)

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        """Forget everything, run prompts of one length; logits float32 [prompts, vocab] of their last tokens."""
        raise NotImplementedError

    def spread(self, rows: int) -> None:
        """So many rows go on from the only one."""
        raise NotImplementedError

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """One token more per row; logits float32 [rows, vocab]."""
        raise NotImplementedError
