"""RISK: a guarantee over questions for a rule without one, by fixed-sequence Learn-then-Test.

A family of rules is ordered beforehand, from the most careful to the boldest, without a look at the calibration
questions: by `forecast`. Each rule's loss on a calibration question is its disagreement with the full vote: no labels
are needed. The rules are tested in order, each at level delta, until one cannot be shown to have a risk of at most
alpha; the last one that could is taken. Then P(its risk on questions like these > alpha) <= delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special

from qeil_compile.errors import InputError

from .certificate import check_level


def forecast(samples: int) -> Callable[[int, int, int], float]:
    """P(the leader wins the vote of all `samples`), of the draws so far, its votes and those of the next.

    What is left is drawn from the posterior of two urns (Polya): votes for one of the two against votes for others,
    with a prior of Beta(1, 1/2), and among the former leader against next, uniform. Ties are half won; no third answer
    is followed. It orders rules and claims nothing: `control` does.
    """

    @cache
    def score(n: int, first: int, second: int) -> float:
        left = max(samples - n, 0)
        if not first:
            return 0.0
        won = 0.0
        others = max(n - first - second, 0)
        for both, p in enumerate(_urn(left, first + second + 1, others + 0.5)):
            share = _urn(both, first + 1, second + 1)
            lead = first - second + 2 * np.arange(both + 1) - both
            won += p * float(share @ ((lead > 0) + (lead == 0) / 2))
        return round(won, 9)

    return score


def _urn(draws: int, a: float, b: float) -> np.ndarray:
    """Beta-binomial probabilities of 0 to `draws` of the first kind, float64 [draws + 1]."""
    k = np.arange(draws + 1)
    ways = special.gammaln(draws + 1) - special.gammaln(k + 1) - special.gammaln(draws - k + 1)
    return np.asarray(np.exp(ways + special.betaln(k + a, draws - k + b) - special.betaln(a, b)))


def binomial_p(losses: np.ndarray, alpha: float) -> float:
    """p-value of "risk > alpha" for losses of 0 and 1: P(Binomial(n, alpha) <= their sum), exact."""
    return float(special.bdtr(round(float(losses.sum())), len(losses), alpha))


def betting_p(losses: np.ndarray, alpha: float) -> float:
    """p-value of "risk > alpha" for losses in [0, 1] in an order that does not depend on them: one over the capital.

    Each loss L is bet against at the stake that the losses before it suggest (Waudby-Smith and Ramdas 2024): the
    capital prod(1 - lambda (L - alpha)) is a supermartingale where the risk exceeds alpha.
    """
    # A quarter of alpha, known from as many questions as show one loss at alpha, is what is expected at first.
    before = (0.25 + np.concatenate([[0.0], np.cumsum(losses)[:-1]])) / (1 / alpha + np.arange(len(losses)))
    stakes = np.clip((alpha - before) / (alpha * (1 - alpha)), 0.0, 0.99 / (1 - alpha))
    logs = np.cumsum(np.log1p(-stakes * (losses - alpha)))
    return float(np.exp(-max(logs.max(), 0.0)))


@dataclass(frozen=True)
class Controlled:
    """The rule that was taken: its place in the family (None: not even the first was shown), and p-values so far."""

    place: int | None
    alpha: float
    delta: float
    p_values: tuple[float, ...]


def control(losses: Sequence[np.ndarray] | np.ndarray, alpha: float = 0.01, delta: float = 0.1) -> Controlled:
    """Test a family in its order. losses: [rules, questions], in [0, 1].

    Losses of 0 and 1 are tested exactly, others by betting, question after question as they stand. Raises `InputError`
    for losses outside [0, 1] or without questions.
    """
    check_level("alpha", alpha)
    check_level("delta", delta)
    table = np.asarray(losses, float)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all() or table.min() < 0 or table.max() > 1:
        raise InputError(f"losses: found the shape {table.shape}, expected [rules, questions] of numbers from 0 to 1")
    whole = bool(np.isin(table, (0.0, 1.0)).all())
    found: list[float] = []
    for row in table:
        found.append(binomial_p(row, alpha) if whole else betting_p(row, alpha))
        if found[-1] > delta:
            return Controlled(len(found) - 2 if len(found) > 1 else None, alpha, delta, tuple(found))
    return Controlled(len(found) - 1, alpha, delta, tuple(found))
