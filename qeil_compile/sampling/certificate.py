"""CERT: the most frequent answer of the model, certified at any time, with answers that nobody listed in advance.

Candidate w is the j-th distinct answer to come, with the share omega_j = .9, .05, .025, ... of delta. From the draws
after its first only, for each rival b, seen or not, with s draws of w and f draws of b,

    E_wb = 2^(s+f+1) B(s+1, f+1) (1 - I_1/2(s+1, f+1))

is the capital of a bettor who mixes evenly over p(w | w or b) in (1/2, 1): a supermartingale where b is at least as
frequent as w. Ville's inequality and a union over candidates give P(any certificate for another answer than the mode,
ever) <= delta, whatever the sizes of batches and the moments of looking, for exchangeable draws with a unique mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from qeil_compile.errors import InputError

from .samples import Reason, Sample, Stop, Tally, best

_TABLE = 257
_LN2 = math.log(2.0)


def log_evidence(s: ArrayLike, f: ArrayLike, spike: float = 0.0) -> np.ndarray:
    """log E_wb of s draws for and f against, element by element.

    `spike` in [0, 1): share of the mixture that bets everything on p = 1, which helps where votes are unanimous.
    """
    s, f = np.asarray(s, float), np.asarray(f, float)
    even: np.ndarray
    with np.errstate(divide="ignore"):
        even = (s + f + 1) * _LN2 + special.betaln(s + 1, f + 1) + np.log(special.betainc(f + 1, s + 1, 0.5))
        if not spike:
            return even
        sure = np.where(f == 0, s * _LN2, -np.inf)
        return np.logaddexp(even + math.log1p(-spike), sure + math.log(spike))


@lru_cache(maxsize=8)
def evidence_table(spike: float = 0.0) -> np.ndarray:
    """log E_wb for s, f below 257, [s, f]."""
    s, f = np.ogrid[:_TABLE, :_TABLE]
    table = log_evidence(s, f, spike)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=8)
def _rows(spike: float) -> list[list[float]]:
    return evidence_table(spike).tolist()


def share(place: int) -> float:
    """omega of the candidate that came at this place, from 0: .9, then .05 halved again and again; the sum is 1."""
    return 0.9 if place == 0 else 0.1 * 0.5**place


def check_level(name: str, value: float) -> None:
    """Raises `InputError` unless 0 < value < 1."""
    if not 0 < value < 1:
        raise InputError(f"{name}: found {value}, expected a number between 0 and 1")


class Cert:
    """Stop with an answer as soon as it is certified to be the mode."""

    anytime = True

    def __init__(self, delta: float = 0.05, spike: float = 0.0) -> None:
        """Raises `InputError` for a `delta` outside (0, 1) or a `spike` outside [0, 1)."""
        check_level("delta", delta)
        if not 0 <= spike < 1:
            raise InputError(f"spike: found {spike}, expected a number from 0 to below 1")
        self.delta = delta
        self.spike = spike
        self.name = f"CERT({delta:g})"
        self._rows = _rows(spike)
        # Nobody is certified with fewer draws after the first than the most favoured candidate needs without rivals.
        bar = self.threshold(0)
        self._least = next(s for s in range(1, 1 << 16) if self.log_evidence(s, 0) >= bar)

    def threshold(self, place: int) -> float:
        """log of what the evidence has to reach for the candidate at this place."""
        return -math.log(self.delta * share(place))

    def log_evidence(self, s: int, f: int) -> float:
        """log E_wb."""
        if s < _TABLE and f < _TABLE:
            return self._rows[s][f]
        return float(log_evidence(s, f, self.spike))

    def evidence(self, tally: Tally, answer: str) -> float:
        """log of the least E_wb over the rivals of `answer`, unseen ones included."""
        since = tally.since[answer]
        s = f = 0
        for other, count in tally.counts.items():
            after = count - since.get(other, 0)
            if other == answer:
                s = after
            elif after > f:
                f = after
        # The evidence falls with f, so the strongest rival decides; an unseen one has f = 0.
        return self.log_evidence(s, f)

    def check(self, tally: Tally) -> Stop | None:
        """The certificate, if there is one now."""
        for answer, count in tally.counts.items():
            if count <= self._least:  # its first draw is not evidence
                continue
            if self.evidence(tally, answer) >= self.threshold(tally.places[answer]):
                note = f"the model's most frequent answer, error <= {self.delta:g}"
                return Stop(Reason.CERT, answer, self.delta, note)
        return None

    def within(self, tally: Tally, more: int) -> bool:
        """Whether some candidate, a new one included, could be certified by `more` further draws."""
        for answer in tally.counts:
            since = tally.since[answer]
            s = tally.counts[answer] - since[answer] + more
            f = max((c - since.get(b, 0) for b, c in tally.counts.items() if b != answer), default=0)
            if self.log_evidence(s, f) >= self.threshold(tally.places[answer]):
                return True
        return self.log_evidence(max(more - 1, 0), 0) >= self.threshold(tally.next_place)

    def choose(self, tally: Tally) -> str | None:
        """The answer where there is no certificate: the vote's."""
        return tally.leader


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
#: Stakes in (0, 1) and their shares of the mixture; with weights of 1 the capital is that of the counted form, exactly
#: up to 47 draws.
_STAKES, _LOG_SHARES = (_NODES + 1) / 2, np.log(_WEIGHTS / 2)


class _Bets:
    """Bets on one candidate from its first draw on: log capitals [rivals, stakes]; row 0 is for an unseen rival."""

    __slots__ = ("capitals", "read", "rows", "start")

    def __init__(self, start: int) -> None:
        """`start`: samples of the tally before the first bet."""
        self.start = self.read = start
        self.rows: dict[str, int] = {}
        self.capitals = np.zeros((1, len(_STAKES)))

    def settle(self, answer: str, votes: Mapping[str, float], weight: float) -> None:
        """One draw: `votes` sum to at most 1, `weight` is at most 1."""
        for rival in votes:
            if rival != answer and rival not in self.rows:
                self.rows[rival] = len(self.rows) + 1  # until now it was an unseen one
                self.capitals = np.concatenate([self.capitals, self.capitals[:1]])
        mine = votes.get(answer, 0.0)
        if mine:
            gains = np.full(len(self.capitals), weight * mine)
            for rival, p in votes.items():
                if rival != answer:
                    gains[self.rows[rival]] -= weight * p
            self.capitals += np.log1p(gains[:, None] * _STAKES)
            return
        for rival, p in votes.items():
            self.capitals[self.rows[rival]] += np.log1p(-weight * p * _STAKES)

    def evidence(self) -> float:
        """log of the least capital, mixed over the stakes."""
        logs = self.capitals + _LOG_SHARES
        top = logs.max(axis=1)
        return float((top + np.log(np.exp(logs - top[:, None]).sum(axis=1))).min())


class WeightedCert:
    """CERT for weighted and fractional votes: the capital prod(1 + lambda w_i (p_i(w) - p_i(b))), mixed over lambda.

    It certifies the answer of the greatest mean weighted vote E[w p(answer)], which is the mode where weights are
    independent of the answer. A weight (`Sample.weight`) may depend on its own sample and on what was known before it
    came, and is cut at `most`; a mixture over constant stakes lambda in (0, 1 / most) keeps the guarantee of
    predictable ones.
    """

    anytime = True

    def __init__(self, delta: float = 0.05, most: float = 1.0) -> None:
        """Raises `InputError` for a `delta` outside (0, 1) or a `most` that is not positive."""
        check_level("delta", delta)
        if not (math.isfinite(most) and most > 0):
            raise InputError(f"most: found {most}, expected a positive number")
        self.delta, self.most = delta, most
        self.name = f"weighted CERT({delta:g})"
        self._books: WeakKeyDictionary[Tally, dict[str, _Bets]] = WeakKeyDictionary()

    def check(self, tally: Tally) -> Stop | None:
        """The certificate, if there is one now."""
        # Only an answer that the last sample voted for can have gained.
        for answer in _votes(tally.samples[-1]) if tally.samples else ():
            if answer not in tally.places:
                continue
            bar = -math.log(self.delta * share(tally.places[answer]))
            # The log capital is at most the sum of weighted votes: most answers need not be looked at.
            if tally.weighted[answer] / self.most >= bar and self.evidence(tally, answer) >= bar:
                note = f"the answer of the greatest weighted vote, error <= {self.delta:g}"
                return Stop(Reason.CERT, answer, self.delta, note)
        return None

    def evidence(self, tally: Tally, answer: str) -> float:
        """log of the least capital of `answer` against its rivals."""
        book = self._books.get(tally)
        if book is None:
            book = self._books[tally] = {}
        bets = book.get(answer)
        if bets is None or bets.start < tally.restarted:
            first = tally.first(answer)
            assert first is not None
            bets = book[answer] = _Bets(max(first + 1, tally.restarted))
        for sample in tally.samples[bets.read :]:
            weight = min(sample.weight, self.most) / self.most
            if weight > 0:  # NaN is not
                bets.settle(answer, _votes(sample), weight)
        bets.read = len(tally.samples)
        return bets.evidence()

    def choose(self, tally: Tally) -> str | None:
        """The answer of the greatest weighted vote."""
        return best(tally.weighted)


def _votes(sample: Sample) -> Mapping[str, float]:
    if sample.votes is not None:
        return sample.votes
    return {} if sample.answer is None else {sample.answer: 1.0}


def certify_paths(
    draws: np.ndarray, delta: float = 0.05, looks: np.ndarray | None = None, spike: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """`Cert` on many streams at once: the moment of the first certificate (draws seen) and its answer.

    draws: int [streams, draws], answers from 0, negative where there is none. looks: bool [draws] or
    [streams, draws], where the evidence is looked at (default: everywhere). Both results are int [streams]; 0 and -1
    where no certificate is issued. Where two come at one look, the one that came first as a candidate counts.
    """
    runs, length = draws.shape
    s, f = np.ogrid[: length + 1, : length + 1]
    table = log_evidence(s, f, spike)
    answers = int(draws.max(initial=-1)) + 1
    if not answers:
        return np.zeros(runs, int), np.full(runs, -1)
    rows = np.arange(runs)
    came = [draws == a for a in range(answers)]
    counts = np.stack([np.cumsum(c, axis=1, dtype=np.int32) for c in came])  # [answers, runs, draws]
    first = np.stack([np.where(c.any(axis=1), c.argmax(axis=1), length) for c in came])
    place = first.argsort(axis=0, kind="stable").argsort(axis=0)
    when, which = np.full(runs, length + 1), np.full(runs, -1)
    order = np.full(runs, answers)
    for w in range(answers):
        at = np.minimum(first[w], length - 1)
        after = counts - counts[:, rows, at][:, :, None]
        rival = np.delete(after, w, axis=0).max(axis=0, initial=0)
        valid = np.arange(length) > first[w][:, None]
        bar = -np.log(delta * np.array([share(int(j)) for j in range(answers)]))[place[w]]
        reached = valid & (table[np.maximum(after[w], 0), np.maximum(rival, 0)] >= bar[:, None])
        if looks is not None:
            reached &= looks
        hit = reached.any(axis=1)
        moment = np.where(hit, reached.argmax(axis=1) + 1, length + 1)
        sooner = (moment < when) | ((moment == when) & hit & (place[w] < order))
        when, which = np.where(sooner, moment, when), np.where(sooner, w, which)
        order = np.where(sooner, place[w], order)
    return np.where(which >= 0, when, 0), which
