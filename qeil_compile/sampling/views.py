"""How samples are seen: two whole numbers that a schedule looks up, the answer they speak for, and a first guess."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from .baselines import beta_majority
from .samples import Tally, best


@runtime_checkable
class View(Protocol):
    """What a schedule knows of a tally."""

    def state(self, tally: Tally) -> tuple[int, int]:
        """The state, whatever the number of draws."""
        ...

    def choose(self, tally: Tally) -> str | None:
        """The answer."""
        ...

    def prior(self, n: int, first: int, second: int) -> float:
        """P(the answer is the one that all samples would give) in a state that history does not know."""
        ...


class Votes:
    """Counts of the leader and of the next."""

    def state(self, tally: Tally) -> tuple[int, int]:
        return tally.lead

    def choose(self, tally: Tally) -> str | None:
        return tally.leader

    def prior(self, n: int, first: int, second: int) -> float:
        return beta_majority(first, second) if first else 0.0


class WeightedVotes(Votes):
    """Weighted votes of the leader and of the next, in units of the mean weight, rounded."""

    def state(self, tally: Tally) -> tuple[int, int]:
        total = sum(tally.weighted.values())
        if not total:
            return 0, 0
        top = sorted(tally.weighted.values(), reverse=True)[:2]
        unit = tally.parsed / total
        return round(top[0] * unit), round(top[1] * unit) if len(top) > 1 else 0

    def choose(self, tally: Tally) -> str | None:
        return best(tally.weighted)


class Likeliest:
    """Answers whose probability is known exactly (`Sample.logprob`): the best of them, and the mass not seen yet.

    In place of counting votes for an answer its probability is read off: same mean, no variance. Answers without a
    finite log-probability stand behind all others.
    """

    def state(self, tally: Tally) -> tuple[int, int]:
        known = self._known(tally)
        if not known:
            return 0, 10
        unseen = max(1 - sum(known.values()), 0.0)
        best = max(known.values())
        # Thirds of an octave of p(best); tenths of the unseen mass; settled states are one.
        if best >= unseen:
            return 99, 0
        return max(60 + round(3 * math.log2(max(best, 1e-6))), 1), math.ceil(10 * unseen)

    def choose(self, tally: Tally) -> str | None:
        known = self._known(tally)
        return max(known, key=lambda a: known[a]) if known else tally.leader

    def prior(self, n: int, first: int, second: int) -> float:
        # A better answer has at least this probability in each draw, and has not come in n of them.
        return 1.0 if first == 99 else 1 - (1 - min(2 ** ((first - 60) / 3), 1.0)) ** n if first else 0.0

    def _known(self, tally: Tally) -> dict[str, float]:
        found: dict[str, float] = {}
        for sample in tally.samples:
            p = sample.logprob
            if sample.answer is not None and sample.answer not in found and p is not None and math.isfinite(p):
                found[sample.answer] = math.exp(min(p, 0.0))
        return found
