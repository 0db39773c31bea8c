"""A log as a source: rounds are read off it in order, at a price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .allocation import Draw, Price
from .log import Recorded
from .samples import Cost, Sample, Tally


@dataclass(frozen=True)
class Replayed:
    """One question of a log with its samples in some order."""

    recorded: Recorded
    samples: tuple[Sample, ...]

    def right(self, answer: str | None) -> float | None:
        """Whether an answer is right, as marked at its first sample in this order; None where nothing is marked."""
        if answer is None or self.recorded.correct is None:
            return self.recorded.right(answer)
        first = next((s.index for s in self.samples if s.answer == answer), None)
        return self.recorded.right(answer, first)

    @property
    def vote(self) -> str | None:
        """The answer of all samples, of equal ones the first in this order."""
        tally = Tally()
        for sample in self.samples:
            tally.add(sample)
        return tally.leader


def replayed(recorded: Recorded, rng: np.random.Generator | None = None) -> Replayed:
    """In the order of the log, or in a random one. `Sample.index` is the place in the log either way."""
    order = range(len(recorded)) if rng is None else rng.permutation(len(recorded)).tolist()
    return Replayed(recorded, tuple(recorded.sample(i) for i in order))


@dataclass
class RecordedSource:
    """Fulfils `Source` for `Replayed` questions; all rungs read the same log unless `rungs` has others by number.

    A round ends in one step, so that its cost is its price. Where the log ends before the round, the round is shorter.
    """

    prices: Mapping[int, Price] = field(default_factory=lambda: {0: Price()})
    rungs: Mapping[int, Mapping[str, Replayed]] = field(default_factory=dict)

    def price(self, rung: int) -> Price:
        return self.prices[rung]

    def draw(self, question: Replayed, draw: Draw, drawn: int) -> RecordedRound:
        log = self.rungs.get(draw.rung, {}).get(question.recorded.pid, question)
        return RecordedRound(log.samples[drawn : drawn + draw.size], self.prices[draw.rung])


class RecordedRound:
    """Fulfils `Round`."""

    def __init__(self, samples: Sequence[Sample], price: Price) -> None:
        self._samples = list(samples)
        self._done = not samples
        self._live = list(range(len(samples)))
        self._price = price

    @property
    def live(self) -> Sequence[int]:
        return self._live

    @property
    def cost(self) -> Cost:
        return self._price.cost(len(self._samples)) if self._done else Cost(label=self._price.label)

    def step(self) -> Sequence[tuple[int, Sample]]:
        ended = [(place, self._samples[place]) for place in self._live]
        self._live, self._done = [], True
        return ended

    def partial(self, place: int) -> Sample:
        sample = self._samples[place]
        return Sample(None, tokens=sample.tokens, features=sample.features)

    def cancel(self, places: Iterable[int]) -> None:
        gone = set(places)
        self._live = [place for place in self._live if place not in gone]
