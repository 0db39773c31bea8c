"""Programs chosen by tests that may be wrong themselves: many that behave alike, passing tests that many pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .csvet import _Vote
from .samples import Reason, Stop, Tally, best


class Consensus(_Vote):
    """Choose among programs by their results on tests that a model wrote; stop at `samples` of them.

    A sample's answer is its results, a string of 0 and 1, one for each test; `times`: how often each test was written.
    Programs with equal results score (number of different texts)^agreement * sum over the tests passed of
    times * share^trust, where share is that of the programs that pass the test, among those that pass any. CodeT (Chen
    et al. 2022) counts all programs and has `agreement` 1/2 and `trust` 0. Samples without text count as different.
    """

    anytime = False

    def __init__(
        self, times: Sequence[float], samples: int, agreement: float = 0.5, trust: float = 0.5, copies: bool = False
    ) -> None:  # fmt: skip
        """`copies`: count equal texts as often as they come."""
        self.times = np.asarray(times, float)
        self.samples, self.agreement, self.trust, self.copies = samples, agreement, trust, copies
        self.name = f"consensus {samples}"

    def scores(self, tally: Tally) -> dict[str, float]:
        """Score by answer; 0 where nothing is passed, or where the answer is no string of results."""
        results = {a: np.array([bit == "1" for bit in a]) for a in tally.counts if len(a) == len(self.times)}
        passing = {a: r for a, r in results.items() if r.any()}
        found = dict.fromkeys(tally.counts, 0.0)
        if not passing:
            return found
        alive = sum(tally.counts[a] for a in passing)
        share = sum(tally.counts[a] * r for a, r in passing.items()) / alive
        weights = self.times * share**self.trust
        texts: dict[str, set[object]] = {a: set() for a in passing}
        for i, sample in enumerate(tally.samples):
            if sample.answer in texts:
                texts[sample.answer].add(i if self.copies or not sample.text else sample.text)
        for answer, passed in passing.items():
            found[answer] = float(len(texts[answer]) ** self.agreement * (passed @ weights))
        return found

    def check(self, tally: Tally) -> Stop | None:
        """Whether there are enough samples."""
        if len(tally.samples) < self.samples or tally.leader is None:
            return None
        return Stop(Reason.RULE, self.choose(tally), None, self.name)

    def choose(self, tally: Tally) -> str | None:
        """The answer of the highest score; the vote's where all are 0."""
        return best(self.scores(tally)) or tally.leader
