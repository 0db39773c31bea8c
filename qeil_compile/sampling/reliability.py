"""ARDE, Adaptive Reliability and Diversity Estimation: what each sample is worth, and how open the answers still are.

ARDE orders and weights; it has no guarantee of its own. Judge it by the AUC within questions (`metrics.within_auc`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression, minimize

from qeil_compile.errors import InputError

from .samples import Sample, Tally

#: Questions' worth of evidence that hold the scales of features to what they are without any.
HELD = 3.0


def summarise(logprobs: Sequence[float], group: int = 16) -> dict[str, float]:
    """Features of a sample from its tokens' log-probabilities: mean, min, and the lowest mean of a group of tokens.

    Values that are not finite are left out; all features are NaN where none is left.
    """
    values = np.asarray(logprobs, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return {"logprob_mean": math.nan, "logprob_min": math.nan, "logprob_group": math.nan, "tokens": 0.0}
    width = min(group, len(values))
    sums = np.convolve(values, np.ones(width), "valid") / width
    return {"logprob_mean": float(values.mean()), "logprob_min": float(values.min()),
            "logprob_group": float(sums.min()), "tokens": float(len(logprobs))}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """r = P(correct) as a monotone step function of one feature; its direction was learned. `missing`: r without it.

    `scale`: what its log-odds count for among those of other features.
    """

    feature: str
    knots: tuple[float, ...]
    values: tuple[float, ...]
    sign: int
    missing: float
    scale: float = 1.0

    def __call__(self, sample: Sample) -> float:
        x, knots = sample.feature(self.feature), self.knots
        if math.isnan(x):
            return self.missing
        i = bisect_right(knots, x)
        if i in (0, len(knots)):
            return self.values[max(i - 1, 0)]
        share = (x - knots[i - 1]) / (knots[i] - knots[i - 1])
        return self.values[i - 1] + share * (self.values[i] - self.values[i - 1])


@dataclass(frozen=True)
class Reliability:
    """Calibrated P(correct | features) of a sample, and the weights of votes that follow from it.

    The log-odds of the steps are added, each less the base's and times its scale, so that one feature is its own
    calibrator and several are an additive model. `cap`: where log-odds are cut on both sides.
    """

    steps: tuple[Step, ...]
    base: float
    cap: float = 4.0
    floor: float = 0.05

    def __call__(self, sample: Sample) -> float:
        """r = P(correct | features); 0 where the sample has no answer."""
        if sample.answer is None:
            return 0.0
        return 1 / (1 + math.exp(-self.log_odds(sample)))

    def log_odds(self, sample: Sample) -> float:
        """Log-odds of r, within +- cap."""
        base = _logit(self.base)
        total = base + sum(step.scale * (_logit(step(sample)) - base) for step in self.steps)
        return min(max(total, -self.cap), self.cap)

    def weight(self, sample: Sample) -> float:
        """Log-odds of r, at least `floor`, in units of their cap: between 0 and 1, from this sample alone."""
        return 0.0 if sample.answer is None else max(self.log_odds(sample), self.floor) / self.cap

    def weigh(self, sample: Sample) -> Sample:
        """The sample with its weight."""
        return replace(sample, weight=self.weight(sample))


def fit_reliability(
    samples: Sequence[Sample], correct: Sequence[bool], questions: Sequence[object], features: Sequence[str], *,
    cap: float = 4.0, blocks: int = 20, marked: bool = True,
) -> Reliability:  # fmt: skip
    """Fit on history. `correct`: labels, or agreement with the full vote. `questions`: which question each is of.

    Each feature gets an isotonic regression in the direction in which it orders correct samples above wrong ones
    *within* questions (without such pairs: over all), shrunk to the base rate by the size of its blocks. Features that
    say much the same must not count twice, and one that says all must not count for less: their scales are a logistic
    regression of labels that are `marked` on their log-odds, held to 1 / root of the number of features as by `HELD`
    questions. Where labels are agreement, which no feature should be made to copy, they are that root. Raises
    `InputError` where lengths differ or nothing is given.
    """
    if not len(samples) == len(correct) == len(questions) or not samples:
        raise InputError(
            f"history: found {len(samples)} samples, {len(correct)} labels and {len(questions)} questions, expected "
            "the same number of each, at least one"
        )
    labels = np.asarray(correct, float)
    parsed = np.array([s.answer is not None for s in samples])
    if not parsed.any():
        raise InputError("history: found no sample with an answer, expected some")
    base = float((labels[parsed].sum() + 1) / (parsed.sum() + 2))
    groups = np.unique(np.array([str(q) for q in questions]), return_inverse=True)[1]
    steps = []
    for name in features:
        values = np.array([s.feature(name) for s in samples])
        known = parsed & np.isfinite(values)
        missing = parsed & ~known
        absent = float((labels[missing].sum() + base) / (missing.sum() + 1))
        if not known.any() or np.ptp(values[known]) == 0:
            continue
        x, y = values[known], labels[known]
        sign = direction(x, y, groups[known])
        knots, rates = _isotonic(sign * x, y, base, blocks)
        order = np.argsort(sign * knots)
        steps.append(Step(name, tuple((sign * knots)[order]), tuple(rates[order]), sign, absent))
    if len(steps) > 1:
        answered = [s for s, p in zip(samples, parsed, strict=True) if p]
        scales = (_scales(steps, answered, labels[parsed], groups[parsed], base) if marked
                  else np.full(len(steps), 1 / math.sqrt(len(steps))))  # fmt: skip
        steps = [replace(step, scale=float(scale)) for step, scale in zip(steps, scales, strict=True)]
    return Reliability(tuple(steps), base, cap)


def _scales(
    steps: Sequence[Step], samples: Sequence[Sample], labels: np.ndarray, groups: np.ndarray, base: float
) -> np.ndarray:  # fmt: skip
    """How much each step counts for: penalised logistic regression, no scale below 0. [steps]."""
    odds = np.array([[_logit(step(s)) - _logit(base) for step in steps] for s in samples])
    usual = 1 / math.sqrt(len(steps))
    # Votes are among samples of one question: what tells questions apart must not count. Each has its own base, and its
    # samples together count once, since they are no independent evidence.
    count = np.bincount(groups)
    own = (np.bincount(groups, labels) + base) / (count + 1)
    level, weight = np.log(own / (1 - own))[groups], 1 / count[groups]

    def loss(scales: np.ndarray) -> tuple[float, np.ndarray]:
        z = level + odds @ scales
        slack = scales - usual
        value = float(weight @ (np.logaddexp(0, z) - labels * z)) + HELD / 2 * float(slack @ slack)
        return value, odds.T @ (weight * (1 / (1 + np.exp(-z)) - labels)) + HELD * slack

    start = np.full(len(steps), usual)
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(steps)).x)


def direction(values: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> int:
    """+1 where correct samples have the higher values within groups, else -1; over all where no group has both."""
    wins = 0.0
    for g in np.unique(groups):
        mine, y = values[groups == g], labels[groups == g] > 0.5
        if y.any() and not y.all():
            wins += float(np.sign(mine[y][:, None] - mine[~y][None, :]).mean()) * y.sum() * (~y).sum() / len(y)
    if wins == 0 and 0 < labels.mean() < 1:
        wins = float(values[labels > 0.5].mean() - values[labels <= 0.5].mean())
    return 1 if wins >= 0 else -1


def _isotonic(x: np.ndarray, y: np.ndarray, base: float, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates that rise with x: means of quantile blocks, shrunk to the base by two samples, then pooled."""
    order = np.argsort(x, kind="stable")
    parts = [p for p in np.array_split(order, min(blocks, len(order))) if len(p)]
    knots = np.array([x[p].mean() for p in parts])
    sizes = np.array([len(p) for p in parts], float)
    rates = np.array([(y[p].sum() + 2 * base) / (len(p) + 2) for p in parts])
    rates = isotonic_regression(rates, weights=sizes, increasing=True).x
    knots, first = np.unique(knots, return_index=True)
    return knots, rates[first]


def mean_one(tally: Tally) -> np.ndarray:
    """Weights of a tally's samples in units of their mean over those with an answer; 0 for the others. [samples]."""
    found = np.array([s.weight if s.answer is not None and s.weight > 0 else 0.0 for s in tally.samples])
    total = found.sum()
    return found * tally.parsed / total if total > 0 else found


def posterior(tally: Tally) -> dict[str, float]:
    """Share of each answer seen: weighted votes, less the mass of answers that have not come yet."""
    total = sum(tally.weighted.values())
    rest = 1 - unseen_mass(tally)
    return {a: rest * v / total for a, v in tally.weighted.items()} if total else dict.fromkeys(tally.weighted, 0.0)


def unseen_mass(tally: Tally) -> float:
    """Good-Turing: probability that the next answer is a new one, f1 / n; 1 without any."""
    n = tally.parsed
    return sum(c == 1 for c in tally.counts.values()) / n if n else 1.0


def effective_answers(counts: Mapping[str, float]) -> float:
    """exp of the entropy of the votes: how many equally frequent answers would be as diverse; 0 without votes."""
    total = sum(v for v in counts.values() if v > 0)
    if not total:
        return 0.0
    shares = [v / total for v in counts.values() if v > 0]
    return math.exp(-sum(p * math.log(p) for p in shares))


@dataclass(frozen=True)
class Diversity:
    """What to do about too much or too little of it.

    Votes that have collapsed onto one answer (effective answers <= `collapsed`) which is not believed (mean reliability
    below `believed`) raise the temperature by `step` up to `hottest`; a set still open (unseen mass > `open`) lowers it
    down to `coldest`. Where the best answer's posterior stays below `abstain` there is no answer.
    """

    collapsed: float = 1.3
    believed: float = 0.5
    open: float = 0.6
    step: float = 0.2
    coldest: float = 0.2
    hottest: float = 1.4
    abstain: float = 0.0
    least: int = 4

    def temperature(self, tally: Tally, reliability: Reliability | None, current: float) -> float:
        """The temperature of the next round."""
        if tally.parsed < self.least:
            return current
        if unseen_mass(tally) > self.open:
            return max(self.coldest, current - self.step) if current > self.coldest else current
        if reliability is None or effective_answers(tally.counts) > self.collapsed:
            return current
        parsed = [s for s in tally.samples if s.answer is not None]
        mean = sum(map(reliability, parsed)) / len(parsed)
        return min(self.hottest, current + self.step) if mean < self.believed and current < self.hottest else current

    def abstains(self, tally: Tally) -> bool:
        """Whether the evidence is too thin for an answer."""
        if tally.leader is None:
            return True
        if self.abstain <= 0:
            return False
        return max(posterior(tally).values()) < self.abstain


def _logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))
