"""One question at a time: allocation, votes and reasons to stop together, over any stream of samples.

    inquiry = selector.open()
    for sample in stream:
        if inquiry.add(sample):
            break
    inquiry.verdict()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .allocation import Allocator, Caps, Draw, Looks
from .csvet import Rule
from .reliability import Diversity, Reliability
from .samples import Cost, Reason, Sample, Stop, Tally, best

#: What an answer that ended so may be said to be.
CLAIMS = {
    Reason.CERT: "the model's most frequent answer, with error at most the level; it may still be wrong",
    Reason.EXACT: "the model's most probable answer, computed; it may still be wrong",
    Reason.VERIFIED: "accepted by the verifier, whose false accepts are within the level",
    Reason.RISK: "over questions like those of the calibration, differs from the full vote at most at the level",
    Reason.CURTAIL: "the answer that all samples would have given",
    Reason.BUDGET: "the best answer when the budget ended; nothing is claimed",
    Reason.FUTILE: "the best answer when no certificate was in reach; nothing is claimed",
    Reason.PRICE: "the best answer when more samples were not worth their price; nothing is claimed",
    Reason.RULE: "the answer of a published rule; nothing is claimed",
}


@dataclass(frozen=True)
class Verdict:
    """The answer to one question, why sampling ended there, and what it cost.

    `answer` is None where no sample had one, or ARDE abstains (`abstained`). `sample`: place of the answer's first
    sample at its rung. `checked`: verifier calls; `faults`: those that raised, hung or gave nonsense.
    """

    answer: str | None
    reason: Reason
    level: float | None
    note: str
    samples: int
    rounds: int
    rung: int
    sample: int | None
    cost: Cost
    counts: dict[str, int]
    unseen: float
    abstained: bool = False
    cancelled: int = 0
    checked: int = 0
    faults: int = 0

    @property
    def claim(self) -> str:
        """What may be said of the answer."""
        return "no answer" if self.answer is None else CLAIMS[self.reason]


@dataclass(frozen=True)
class Selector:
    """Settings of inquiries. `rules` are asked in order: after every sample those that may be, all after every round.

    `weigh`: ARDE's reliability, whose weighted vote gives the answer where no rule stops. `choose`: another way to
    answer then. `prune`: live samples to cancel, from what there is of them (`Sample`s without answer); a function of
    each sample alone, or CERT loses its meaning.
    """

    allocate: Allocator = field(default_factory=lambda: Looks((4, 8, 16, 32)))
    rules: Sequence[Rule] = ()
    weigh: Reliability | None = None
    choose: Callable[[Tally], str | None] | None = None
    caps: Caps = field(default_factory=Caps)
    diversity: Diversity | None = None
    prune: Callable[[Sample], bool] | None = None
    temperature: float | None = None

    def open(self) -> Inquiry:
        """Begin with a question."""
        return Inquiry(self)


class Inquiry:
    """One question on its way to a verdict."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.tallies: dict[int, Tally] = {}
        self.spent = Cost()
        self.rounds = self.cancelled = self.checked = self.faults = 0
        self.rung = 0
        self.stop: Stop | None = None
        self.temperature = selector.temperature
        self._spread = (1.0, 1.0)
        self._drawn_at: dict[int, float | None] = {}

    @property
    def tally(self) -> Tally:
        """Votes at the rung reached."""
        return self.tallies.setdefault(self.rung, Tally())

    def next(self) -> Draw | None:
        """The next round; None when the verdict is in."""
        if self.stop is not None:
            return None
        chosen = self.selector.allocate.next(self.tallies, self.spent, self.selector.caps, self._spread)
        if isinstance(chosen, Reason):
            self.stop = Stop(chosen, self.answer())
            return None
        self.rung = chosen.rung
        if chosen.temperature is None and self.temperature is not None:
            chosen = chosen._replace(temperature=self._warmer())
        if self._drawn_at.setdefault(self.rung, chosen.temperature) != chosen.temperature:
            # Draws come from another distribution: what was evidence is none about it.
            self.tally.restart()
            self._drawn_at[self.rung] = chosen.temperature
        return chosen

    def add(self, sample: Sample) -> Stop | None:
        """Count a sample; a `Stop` if nothing more is needed. Samples after a stop are not counted."""
        if self.stop is None:
            self.tally.add(sample if self.selector.weigh is None else self.selector.weigh.weigh(sample))
            self.stop = self._ask(anytime=True)
        return self.stop

    def end_round(self, cost: Cost, expected: Cost | None = None) -> Stop | None:
        """Account for a round, and ask the rules that wait for its end. `expected`: its price beforehand."""
        self.spent = self.spent + cost
        self.rounds += 1
        if expected is not None:
            # Rounds that cost more than their price make the next ones be priced higher.
            joules, seconds = self._spread
            self._spread = (
                max(joules, cost.joules / expected.joules if expected.joules else 0.0),
                max(seconds, cost.seconds / expected.seconds if expected.seconds else 0.0),
            )
        return self.ask_rules()

    def verdict(self) -> Verdict:
        """The answer as things stand."""
        stop = self.stop or self._ask(anytime=False) or Stop(Reason.BUDGET, self.answer())
        tally = self.tally
        abstained = stop.reason not in (Reason.CERT, Reason.EXACT, Reason.VERIFIED) and (
            self.selector.diversity is not None and self.selector.diversity.abstains(tally)
        )
        answer = None if abstained else stop.answer
        singles = sum(c == 1 for c in tally.counts.values())
        return Verdict(
            answer, stop.reason, stop.level, stop.note, sum(map(len, self.tallies.values())), self.rounds, self.rung,
            tally.first(answer), self.spent, dict(tally.counts), singles / tally.parsed if tally.parsed else 1.0,
            abstained, self.cancelled, self.checked, self.faults,
        )  # fmt: skip

    def ask_rules(self) -> Stop | None:
        """Ask all rules again, after something about the samples has become known."""
        if self.stop is None:
            self.stop = self._ask(anytime=False)
        return self.stop

    def _ask(self, anytime: bool) -> Stop | None:
        tally = self.tally
        for rule in self.selector.rules:
            if (rule.anytime or not anytime) and (stop := rule.check(tally)) is not None:
                return stop
        return None

    def answer(self) -> str | None:
        """The answer without a certificate: of the last rung that has one."""
        for rung in sorted(self.tallies, reverse=True):
            tally = self.tallies[rung]
            if tally.leader is not None:
                self.rung = rung
                return self._choose(tally)
        return None

    def _choose(self, tally: Tally) -> str | None:
        selector = self.selector
        if selector.choose is not None:
            return selector.choose(tally)
        if selector.weigh is not None:
            return best(tally.weighted)
        return selector.rules[0].choose(tally) if selector.rules else tally.leader

    def _warmer(self) -> float | None:
        """The temperature of the next round."""
        diversity = self.selector.diversity
        if diversity is None or self.temperature is None:
            return self.temperature
        self.temperature = diversity.temperature(self.tally, self.selector.weigh, self.temperature)
        return self.temperature
