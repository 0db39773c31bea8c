"""Published rules, in the interface of `csvet.Rule`: stop after so many samples with such an answer.

None of them has a guarantee for answers that are not known in advance (PPR-1v1 has one for a known number of them);
how often each is wrong about the mode is measured in benchmarks/selection.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import special

from qeil_compile.errors import InputError

from .csvet import _Vote
from .samples import Reason, Sample, Stop, Tally, best


class _Published(_Vote):
    """Base: the vote decides, and the rule is asked at the end of a round."""

    name = ""
    anytime = False

    def check(self, tally: Tally) -> Stop | None:
        if tally.leader is None or not self.done(tally):
            return None
        return Stop(Reason.RULE, self.choose(tally), None, self.name)

    def done(self, tally: Tally) -> bool:
        """Whether to stop."""
        raise NotImplementedError


class SelfConsistency(_Published):
    """The vote of k samples (Wang et al. 2022)."""

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"self-consistency {k}"

    def done(self, tally: Tally) -> bool:
        return len(tally.samples) >= self.k


@lru_cache(maxsize=1 << 16)
def beta_majority(first: int, second: int) -> float:
    """P(p > 1/2) of the leader against the next, uniform prior: 1 - I_1/2(first + 1, second + 1)."""
    return float(special.betainc(second + 1, first + 1, 0.5))


class AdaptiveConsistency(_Published):
    """Adaptive-Consistency with the Beta criterion (Aggarwal et al. 2023)."""

    def __init__(self, threshold: float = 0.95) -> None:
        self.threshold, self.name = threshold, f"Adaptive-Consistency {threshold:g}"

    def done(self, tally: Tally) -> bool:
        return beta_majority(*tally.lead) > self.threshold


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


@lru_cache(maxsize=1 << 14)
def dirichlet_majority(counts: tuple[int, ...]) -> float:
    """P(the first answer is the most frequent) under a uniform Dirichlet prior, by the gamma form of the Dirichlet."""
    first, (rest, times) = counts[0] + 1, np.unique(np.array(counts[1:], float) + 1, return_counts=True)
    if not len(rest):
        return 1.0
    high = special.gammaincinv(first, 1 - 1e-12)
    x = (_NODES + 1) / 2 * high
    logs = (first - 1) * np.log(x) - x - special.gammaln(first)
    with np.errstate(divide="ignore"):
        below = times @ np.log(special.gammainc(rest[:, None], x))
    return float(np.sum(_WEIGHTS * np.exp(logs + below)) * high / 2)


class DirichletConsistency(_Published):
    """Adaptive-Consistency with the Dirichlet criterion; one answer that nobody has given yet is among the rivals."""

    def __init__(self, threshold: float = 0.95) -> None:
        self.threshold, self.name = threshold, f"Adaptive-Consistency Dirichlet {threshold:g}"

    def done(self, tally: Tally) -> bool:
        counts = sorted(tally.counts.values(), reverse=True)
        # The Beta criterion of the strongest rival bounds it from above and is cheaper.
        if beta_majority(*tally.lead) <= self.threshold:
            return False
        return dirichlet_majority((*counts, 0)) > self.threshold


class EarlyStopping(_Published):
    """ESC (Li et al. 2024): stop when all samples of one window agree."""

    def __init__(self, window: int = 5) -> None:
        if window < 2:
            raise InputError(f"window: found {window}, expected at least 2 samples")
        self.window, self.name = window, f"ESC {window}"

    def done(self, tally: Tally) -> bool:
        full = len(tally.samples) // self.window * self.window
        answers = {s.answer for s in tally.samples[full - self.window : full]} if full else set()
        return len(answers) == 1 and None not in answers


class Sprt(_Published):
    """Wald's test of the leader's share against the next: p = p1 against p = 1/2, with errors alpha and beta."""

    def __init__(self, p1: float = 0.75, alpha: float = 0.05, beta: float = 0.05) -> None:
        if not 0.5 < p1 < 1:
            raise InputError(f"p1: found {p1}, expected a share between 1/2 and 1")
        self.gain, self.loss = math.log(p1 / 0.5), math.log((1 - p1) / 0.5)
        self.high, self.low = math.log((1 - beta) / alpha), math.log(beta / (1 - alpha))
        self.name = f"SPRT {p1:g}"

    def done(self, tally: Tally) -> bool:
        first, second = tally.lead
        return not self.low < first * self.gain + second * self.loss < self.high


class Ppr1v1(_Published):
    """PPR-1v1 (Jain et al. 2022): prior-posterior ratio of each pair at 1/2, delta shared over the known rivals.

    `answers`: how many there can be. Without it those seen and one more are taken, and the guarantee is lost.
    """

    def __init__(self, delta: float = 0.05, answers: int | None = None) -> None:
        self.delta, self.answers, self.name = delta, answers, f"PPR-1v1 {delta:g}"

    def done(self, tally: Tally) -> bool:
        first, second = tally.lead
        if first <= second:
            return False
        rivals = max((self.answers or len(tally.counts) + 1) - 1, 1)
        log_ratio = (first + second) * math.log(2.0) + float(special.betaln(first + 1, second + 1))
        return log_ratio >= math.log(rivals / self.delta)


class Lead(_Published):
    """Stop at a lead of m votes."""

    def __init__(self, m: int = 3) -> None:
        self.m, self.name = m, f"lead >= {m}"

    def done(self, tally: Tally) -> bool:
        first, second = tally.lead
        return first - second >= self.m


class Cges(_Published):
    """CGES (confidence-guided early stopping): posterior over answers from each sample's confidence to be right.

    A sample of confidence c multiplies its answer by c and every other one by (1 - c) / (number of others), with one
    unseen answer among them. Missing or unusable confidences say nothing.
    """

    def __init__(self, confidence: Callable[[Sample], float], threshold: float = 0.95) -> None:
        self.confidence, self.threshold, self.name = confidence, threshold, f"CGES {threshold:g}"

    def posterior(self, tally: Tally) -> dict[str, float]:
        """P(answer is right) by answer; what is missing to 1 is the unseen answer's."""
        others = max(len(tally.counts), 1)
        logs = dict.fromkeys(tally.counts, 0.0)
        for sample in tally.samples:
            c = self.confidence(sample)
            if sample.answer is None or not math.isfinite(c):
                continue
            c = min(max(c, 1e-6), 1 - 1e-6)
            logs[sample.answer] += math.log(c) - math.log((1 - c) / others)
        top = max([0.0, *logs.values()])
        total = sum(math.exp(v - top) for v in logs.values()) + math.exp(-top)
        return {a: math.exp(v - top) / total for a, v in logs.items()}

    def done(self, tally: Tally) -> bool:
        return max(self.posterior(tally).values(), default=0.0) >= self.threshold

    def choose(self, tally: Tally) -> str | None:
        return best(self.posterior(tally))


class DeepConf(_Published):
    """DeepConf-style vote (Fu et al. 2025): the most confident share of the samples, weighted by confidence.

    After `warmup` samples those below the quantile 1 - `keep` have no vote; stop when the leader holds `threshold` of
    the weight. Confidences that are missing or not positive have no vote.
    """

    def __init__(
        self, confidence: Callable[[Sample], float], keep: float = 0.9, warmup: int = 16, threshold: float = 0.95
    ) -> None:  # fmt: skip
        self.confidence, self.keep, self.warmup, self.threshold = confidence, keep, warmup, threshold
        self.name = f"DeepConf top {keep:.0%}"

    def _scores(self, tally: Tally) -> dict[str, float]:
        known = [c for c in map(self.confidence, tally.samples) if math.isfinite(c)]
        bar = float(np.quantile(known, 1 - self.keep)) if known else 0.0
        scores = dict.fromkeys(tally.counts, 0.0)
        for sample in tally.samples:
            c = self.confidence(sample)
            if sample.answer is not None and c >= bar and c > 0 and c != math.inf:  # NaN is not above 0
                scores[sample.answer] += c
        return scores

    def done(self, tally: Tally) -> bool:
        if len(tally.samples) < self.warmup:
            return False
        scores = self._scores(tally)
        total = sum(scores.values())
        return total > 0 and max(scores.values()) >= self.threshold * total

    def choose(self, tally: Tally) -> str | None:
        return best(self._scores(tally))


class BestOfN(_Published):
    """The sample of the highest score (a verifier's, or a feature) among n; the vote where nothing has a score."""

    def __init__(self, n: int, score: Callable[[Sample], float] | None = None) -> None:
        self.n, self.name = n, f"best of {n}"
        self.score = score or (lambda s: math.nan if s.score is None else s.score)

    def done(self, tally: Tally) -> bool:
        return len(tally.samples) >= self.n

    def choose(self, tally: Tally) -> str | None:
        scored = [(v, -i) for i, s in enumerate(tally.samples) if s.answer is not None
                  and math.isfinite(v := self.score(s))]  # fmt: skip
        return tally.samples[-max(scored)[1]].answer if scored else tally.leader


class PassAtK(_Published):
    """pass@k: right if any of k samples is, which only an oracle knows: `accepted` has to come from one."""

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"pass@{k}"

    def done(self, tally: Tally) -> bool:
        return len(tally.samples) >= self.k or bool(tally.samples and tally.samples[-1].accepted)

    def choose(self, tally: Tally) -> str | None:
        accepted = next((s for s in tally.samples if s.accepted), None)
        return accepted.answer if accepted else tally.leader
