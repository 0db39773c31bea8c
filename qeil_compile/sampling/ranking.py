"""Choice among the samples of one question by features of all of them together: a conditional logit, learned.

Where ARDE looks at each sample alone, this looks at the group: how many behave alike, which tests most of them pass.
The score is linear, and fitted so that P(the chosen sample is right) is highest within questions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qeil_compile.errors import InputError

from .samples import Reason, Sample, Stop, Tally

#: From the samples of a question to their features, [samples, features].
Features = Callable[[Sequence[Sample]], np.ndarray]


@dataclass(frozen=True)
class Ranker:
    """Linear scores of standardised features."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Scores [samples]; differences within a question are log-odds of being chosen."""
        return (features - self.mean) / self.scale @ self.weights


def fit_ranker(features: Sequence[np.ndarray], correct: Sequence[np.ndarray], penalty: float = 3.0) -> Ranker:
    """Fit to questions: features [samples, n] and marks [samples] of each. Those all right or all wrong say nothing.

    `penalty`: of the squares of the weights. Raises `InputError` where no question has both.
    """
    from scipy.optimize import minimize

    every = np.concatenate(list(features))
    mean, scale = every.mean(axis=0), every.std(axis=0) + 1e-9
    scaled = [((x - mean) / scale, np.asarray(y) > 0.5) for x, y in zip(features, correct, strict=True)]
    useful = [(x, y) for x, y in scaled if y.any() and not y.all()]
    if not useful:
        raise InputError("ranking: found no question with samples both right and wrong, expected some to learn from")

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = penalty * float(w @ w) / 2, penalty * w
        for x, y in useful:
            shares = _softmax(x @ w)
            right = float(shares[y].sum())
            total -= math.log(max(right, 1e-300))
            slope = slope - x.T @ (shares * y / max(right, 1e-300) - shares)
        return total, slope

    found = minimize(loss, np.zeros(len(mean)), jac=True, method="L-BFGS-B").x
    return Ranker(mean, scale, found)


def _softmax(scores: np.ndarray) -> np.ndarray:
    found = np.exp(scores - scores.max())
    return found / found.sum()


class Ranked:
    """Answer with the best ranked sample; stop where its answer holds `bar` of the softmax of the scores."""

    anytime = False

    def __init__(self, ranker: Ranker, features: Features, bar: float = 0.6) -> None:
        self.ranker, self.features, self.bar, self.name = ranker, features, bar, f"ranked {bar:g}"

    def check(self, tally: Tally) -> Stop | None:
        """Whether the choice is decided."""
        if tally.leader is None:
            return None
        answer, held = self._choose(tally)
        return Stop(Reason.RULE, answer, None, f"{held:.0%} of the ranking") if held >= self.bar else None

    def choose(self, tally: Tally) -> str | None:
        """The answer of the best ranked sample."""
        return self._choose(tally)[0] if tally.leader is not None else None

    def _choose(self, tally: Tally) -> tuple[str | None, float]:
        samples = [s for s in tally.samples if s.answer is not None]
        scores = self.ranker(self.features(samples))
        answer = samples[int(scores.argmax())].answer
        shares = _softmax(scores)
        return answer, float(sum(p for p, s in zip(shares, samples, strict=True) if s.answer == answer))


def consensus(times: Sequence[float]) -> Features:
    """Features of programs judged by tests that may be wrong themselves, in the manner of CodeT (Chen et al. 2022).

    A sample's answer is its results on the tests, a string of 0 and 1; `times`: how often each test was written.
    Columns: log share of samples that behave alike; log share of the tests passed, by `times`, and by `times` and the
    share of samples that pass them; log frequency of the same text; log length against the median, and its size.
    """
    weight = np.asarray(times, float)

    def features(samples: Sequence[Sample]) -> np.ndarray:
        count = len(samples)
        alike, same = Counter(s.answer for s in samples), Counter(s.text for s in samples)
        length = np.log([len(s.text) + s.features.get("chars", 0.0) + 1 for s in samples])
        length -= np.median(length)
        text = np.log([same[s.text] / count for s in samples])
        group = np.log([alike[s.answer] / count for s in samples])
        passed = np.zeros((count, len(weight)))
        for i, s in enumerate(samples):
            if len(s.answer or "") == len(weight):
                passed[i] = [bit == "1" for bit in s.answer or ""]
        alive = passed.any(axis=1)
        if not alive.any():  # no test, or nobody passes any
            nothing = np.zeros(count)
            return np.column_stack([nothing, nothing, nothing, text, length, np.abs(length)])
        common = weight * passed[alive].mean(axis=0)
        return np.column_stack([
            group, np.log(passed @ weight / weight.sum() + 0.02), np.log(passed @ common / common.sum() + 0.02), text,
            length, np.abs(length),
        ])  # fmt: skip

    return features
