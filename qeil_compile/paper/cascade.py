"""What the selection cascade draws, replayed on recorded answers of a real model, at the price of the plan at hand.

The answers are never those of the family that is priced: the rows say what sampling would cost if its answers were
distributed as in the log. Rules that learn are asked only questions that they did not learn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from qeil_compile.sampling import Interval, Price, Recorded, Replay, Settings, paired_difference, run_rule

#: The cascade, and what each of its parts is worth: the same with one part taken out.
FULL = "EAC + ARDE + CSVET"
RULES = {
    FULL: "cascade:0.05",
    "one at a time for EAC": "cert:0.05",
    "votes for ARDE": "eac",
    "no CSVET": "eac-arde",
    "fixed k for CSVET": "self-consistency",
}
#: Prices between which rules are not told apart: steps of a grid per decade.
_PER_DECADE = 4


@dataclass(frozen=True)
class Drawn:
    """One rule on the log, per question: rounds, samples that were paid for, accuracy, its difference to all samples in
    one batch (paired bootstrap, 95 %), and how often its answer is not that of the full vote."""

    rule: str
    rounds: float
    samples: float
    accuracy: float
    difference: Interval
    disagreement: float


class Log:
    """A recorded log, asked by every rule at every price once."""

    def __init__(self, questions: Sequence[Recorded], orders: int = 4) -> None:
        self.questions, self.orders = questions, orders
        self.samples = max(map(len, questions))
        self._asked = lru_cache(maxsize=None)(self._ask)
        self._drawn = lru_cache(maxsize=None)(self._compare)

    def drawn(self, rule: str, rho: float) -> Drawn:
        """A rule of `RULES` where each further sample adds the share `rho` of a pass."""
        return self._drawn(rule, self.price(rho))

    def _compare(self, rule: str, price: float) -> Drawn:
        mine, full = self._asked(RULES[rule], price), self._asked(RULES["fixed k for CSVET"], price)
        rounds = float(mine.rounds.mean())
        # A round is paid for as a whole, also where the verdict is in before all its samples have been counted.
        paid = (float(mine.passes.mean()) - rounds * (1 - price)) / price
        return Drawn(
            rule, rounds, paid, mine.accuracy,
            paired_difference(mine.right, full.right), mine.disagreement,
        )  # fmt: skip

    def _ask(self, rule: str, rho: float) -> Replay:
        return run_rule(self.questions, rule, Settings(price=Price(rho), orders=self.orders))

    @staticmethod
    def price(rho: float) -> float:
        """The nearest price of a grid with a few steps per decade, from .001 to 1."""
        steps = round(math.log10(min(max(rho, 1e-3), 1.0)) * _PER_DECADE)
        return float(10 ** (steps / _PER_DECADE))
