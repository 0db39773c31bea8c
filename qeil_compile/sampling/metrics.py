"""Metrics, each exactly as defined in docs/selection.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qeil_compile.errors import InputError

#: Entries of a table of resamples.
_AT_ONCE = 1_000_000


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k samples is right) from `correct` of n (Chen et al. 2021).

    Raises `InputError` unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise InputError(f"pass@{k}: found {correct} right of {n} samples, expected 1 <= k <= n and 0 <= right <= n")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod((n - correct - i) / (n - i) for i in range(k))


def ipw(accuracy: float, watts: float) -> float:
    """Intelligence per watt: accuracy over the mean power of the run."""
    return accuracy / _positive("power", watts)


def ipj(accuracy: float, joules: float) -> float:
    """Intelligence per joule: accuracy over joules per question."""
    return accuracy / _positive("energy per question", joules)


def ece(coverage_one: float, coverage_many: float, joules_one: float, joules_many: float) -> float:
    """Energy-coverage efficiency: coverage gained over one sample, per further joule of a question."""
    return (coverage_many - coverage_one) / _positive("further energy per question", joules_many - joules_one)


def ppp(correct: float, currency: float, watts: float) -> float:
    """Price-power-performance: correct answers per (unit of currency x watt)."""
    return correct / (_positive("price", currency) * _positive("power", watts))


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}: found {value}, expected a positive number")
    return value


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], float] | None = None, *, rounds: int = 2000, seed: int = 0
) -> Interval:  # fmt: skip
    """A statistic of questions (default: mean over axis 0) with its 95 % percentile interval over resampled questions.

    values: float [questions] or [questions, columns]; rows stay together, so that differences of columns are paired.
    """
    values = np.asarray(values, float)
    if not len(values):
        raise InputError("bootstrap: found no question, expected at least one")
    rng = np.random.default_rng(seed)
    of = statistic or (lambda v: float(v.mean()))
    if statistic is None and values.ndim == 1:
        # The mean of all resamples at once, as many as fit into some megabytes.
        step = max(1, _AT_ONCE // len(values))
        sizes = [min(step, rounds - k) for k in range(0, rounds, step)]
        found = np.concatenate([values[rng.integers(0, len(values), (k, len(values)))].mean(axis=1) for k in sizes])
    else:
        found = np.array([of(values[rng.integers(0, len(values), len(values))]) for _ in range(rounds)])
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Interval(float(of(values)), float(low), float(high))


def paired_difference(a: np.ndarray, b: np.ndarray, **options: int) -> Interval:
    """mean(a) - mean(b) over the same questions."""
    return bootstrap(np.stack([a, b], axis=1), lambda v: float(v[:, 0].mean() - v[:, 1].mean()), **options)


def paired_ratio(a: np.ndarray, b: np.ndarray, **options: int) -> Interval:
    """mean(a) / mean(b) over the same questions."""
    return bootstrap(np.stack([a, b], axis=1), lambda v: float(v[:, 0].mean() / v[:, 1].mean()), **options)


@dataclass(frozen=True)
class CoverageLaw:
    """C(S) = 1 - exp(-alpha N^b_n S^b_s): coverage of S samples by models of N parameters.

    With one model N is not part of the fit: b_n is NaN with NaN limits, and alpha holds its factor.
    """

    alpha: Interval
    b_n: Interval
    b_s: Interval
    error: float

    def __call__(self, samples: np.ndarray | float, parameters: float = 1.0) -> np.ndarray:
        """C(S) at the estimates."""
        size = 1.0 if math.isnan(self.b_n.value) else parameters**self.b_n.value
        return 1 - np.exp(-self.alpha.value * size * np.asarray(samples, float) ** self.b_s.value)


def fit_coverage(
    correct: Sequence[np.ndarray], parameters: Sequence[float] | None = None, *, rounds: int = 400, seed: int = 0
) -> CoverageLaw:  # fmt: skip
    """Fit of the coverage law to marks of samples, with 95 % intervals over resampled questions.

    correct: for each model, 0/1 [questions, samples]; `parameters`: of each model, for N (at least two different ones).
    Least squares of the unbiased pass@k at sizes 1, 2, 4, ... to k. `error`: greatest deviation of the fit from it.
    Raises `InputError` where no sample is right, or all are.
    """
    marks = [np.asarray(c, float) for c in correct]
    names = [1.0] * len(marks) if parameters is None else [float(p) for p in parameters]
    several = len(set(names)) > 1
    hits = [c.sum(axis=1).astype(int) for c in marks]
    if not marks or all((h == 0).all() or (h == c.shape[1]).all() for h, c in zip(hits, marks, strict=True)):
        raise InputError("coverage: found no sample that is right, or none that is wrong; the law has no shape there")
    tables = [_coverage_table(c.shape[1]) for c in marks]

    def fit(resample: bool, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        rows, target = [], []
        for h, (sizes, table), n in zip(hits, tables, names, strict=True):
            chosen = h[rng.integers(0, len(h), len(h))] if resample else h
            for s, c in zip(sizes, table[:, chosen].mean(axis=1), strict=True):
                rows.append((math.log(n), math.log(s)))
                target.append(c)
        return _least_squares(np.array(rows), np.array(target), several)

    rng = np.random.default_rng(seed)
    (a, b_n, b_s), error = fit(False, rng)
    many = np.array([fit(True, rng)[0] for _ in range(rounds)])
    low, high = np.nanquantile(many, [0.025, 0.975], axis=0) if several else (
        np.array([np.nanquantile(many[:, i], q) if i != 1 else math.nan for i in range(3)]) for q in (0.025, 0.975)
    )  # fmt: skip
    alpha = Interval(math.exp(a), math.exp(low[0]), math.exp(high[0]))
    return CoverageLaw(alpha, Interval(b_n, low[1], high[1]), Interval(b_s, low[2], high[2]), error)


def _coverage_table(k: int) -> tuple[list[int], np.ndarray]:
    """Sizes, and pass@size by number of right samples among k, [sizes, k + 1]."""
    sizes = [2**i for i in range(k.bit_length()) if 2**i < k] + [k]
    return sizes, np.array([[pass_at_k(k, c, s) for c in range(k + 1)] for s in sizes])


def _least_squares(rows: np.ndarray, target: np.ndarray, several: bool) -> tuple[np.ndarray, float]:
    """(log alpha, b_n, b_s) and the greatest deviation."""
    from scipy.optimize import least_squares

    columns = rows if several else rows[:, 1:]
    design = np.column_stack([np.ones(len(rows)), columns])

    def law(x: np.ndarray) -> np.ndarray:
        return 1 - np.exp(-np.exp(np.clip(design @ x, -50, 50)))

    inner = np.log(-np.log1p(-np.clip(target, 1e-6, 1 - 1e-6)))
    start = np.linalg.lstsq(design, inner, rcond=None)[0]
    found = least_squares(lambda x: law(x) - target, start).x
    error = float(np.abs(law(found) - target).max())
    return (found if several else np.array([found[0], math.nan, found[1]])), error


def within_auc(values: np.ndarray, correct: np.ndarray, questions: np.ndarray) -> float:
    """Mean over questions of P(a right sample is above a wrong one), ties half; NaN where no question has both."""
    found = []
    for q in np.unique(questions):
        x, y = values[questions == q], correct[questions == q] > 0.5
        x, y = x[np.isfinite(x)], y[np.isfinite(x)]
        if y.any() and not y.all():
            above = np.sign(x[y][:, None] - x[~y][None, :])
            found.append(float((above.mean() + 1) / 2))
    return float(np.mean(found)) if found else math.nan
