"""Rules on recorded samples: what each would have answered, and what it would have cost."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qeil_compile.errors import InputError

from .allocation import Price
from .log import Recorded
from .metrics import Interval, bootstrap, ipj
from .recorded import RecordedSource, replayed
from .selector import Selector
from .source import Verification, ask


@dataclass(frozen=True)
class Replay:
    """Outcomes of one rule, by question: means over the orders that were replayed, each float [questions].

    `right` is NaN where the log marks nothing. `agrees`: with the full vote of the log. `reasons`: how often each.
    """

    name: str
    pids: tuple[str, ...]
    right: np.ndarray
    agrees: np.ndarray
    answered: np.ndarray
    samples: np.ndarray
    rounds: np.ndarray
    passes: np.ndarray
    joules: np.ndarray
    seconds: np.ndarray
    reasons: Counter[str]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Mean over the questions."""
        return float(self.right.mean())

    @property
    def disagreement(self) -> float:
        """Share of questions whose answer is not that of the full vote."""
        return float(1 - self.agrees.mean())

    def summary(self) -> dict[str, Any]:
        """Figures by name; joules are modelled."""
        joules = float(self.joules.mean())
        marked = bool(np.isfinite(self.right).all())
        accuracy = bootstrap(self.right, rounds=500) if marked else Interval(*[float("nan")] * 3)
        return {
            "rule": self.name, "questions": len(self.pids), "accuracy": accuracy.value, "accuracy 95 %": accuracy[1:],
            "disagreement": self.disagreement, "answered": float(self.answered.mean()),
            "samples": float(self.samples.mean()), "rounds": float(self.rounds.mean()),
            "passes": float(self.passes.mean()), "joules (modelled)": joules,
            "IPJ (modelled)": ipj(accuracy.value, joules) if joules > 0 and marked else None,
            "reasons": dict(self.reasons), **self.settings,
        }  # fmt: skip


def replay(
    log: Sequence[Recorded], selector: Selector, price: Price | None = None, *, name: str = "", orders: int = 4,
    seed: int = 0, verification: Verification | None = None,
) -> Replay:  # fmt: skip
    """Ask every question of a log.

    `orders`: random orders of its samples, averaged by question; 0 is the log's own order, in which equal answers may
    stand together. Disagreement is with the vote of all samples in the same order.
    """
    price = price or Price()
    source = RecordedSource(dict.fromkeys(range(8), price))
    columns: list[list[float]] = []
    reasons: Counter[str] = Counter()
    for recorded in log:
        # The orders of a question depend on its name alone: every rule is asked the same ones.
        rng = np.random.default_rng([seed, zlib.crc32(recorded.pid.encode())])
        rows = []
        for _ in range(max(orders, 1)):
            question = replayed(recorded, rng if orders else None)
            verdict = ask(source, selector, question, verification=verification)
            right = question.right(verdict.answer)
            reasons[verdict.reason.value] += 1
            rows.append((
                float("nan") if right is None else right, float(verdict.answer == question.vote),
                float(verdict.answer is not None), verdict.samples, verdict.rounds, verdict.cost.passes,
                verdict.cost.joules, verdict.cost.seconds,
            ))  # fmt: skip
        columns.append(np.mean(rows, axis=0).tolist())
    right, agrees, answered, samples, rounds, passes, joules, seconds = np.array(columns).T
    return Replay(
        name, tuple(r.pid for r in log), right, agrees, answered, samples, rounds, passes, joules, seconds, reasons
    )  # fmt: skip


def cross_replay(
    log: Sequence[Recorded], build: Callable[[Sequence[Recorded]], Selector], price: Price | None = None, *,
    name: str = "", folds: int = 2, orders: int = 4, seed: int = 0,
) -> Replay:  # fmt: skip
    """Replay a rule that learns: each part of the questions is asked by a rule built from the other parts alone.

    Raises `InputError` where there are fewer questions than folds.
    """
    if len(log) < folds:
        raise InputError(f"log: found {len(log)} questions, expected {folds} or more, to learn from some of them")
    fold = np.random.default_rng(seed).permutation(len(log)) % folds
    parts: list[tuple[np.ndarray, Replay]] = []
    for f in range(folds):
        mine = np.flatnonzero(fold == f)
        selector = build([log[int(i)] for i in np.flatnonzero(fold != f)])
        parts.append((mine, replay([log[int(i)] for i in mine], selector, price, orders=orders, seed=seed)))
    order = np.argsort(np.concatenate([mine for mine, _ in parts]))
    join = {n: np.concatenate([getattr(r, n) for _, r in parts])[order] for n in
            ("right", "agrees", "answered", "samples", "rounds", "passes", "joules", "seconds")}  # fmt: skip
    reasons = sum((r.reasons for _, r in parts), Counter())
    return Replay(name, tuple(r.pid for r in log), **join, reasons=reasons, settings={"folds": folds})
