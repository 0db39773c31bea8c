"""Samples of one question, counted as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why sampling ended. The first five say something about the answer, each its own thing; the others do not."""

    CERT = "CERT"  #: the answer is the model's most frequent one, with error at most delta
    EXACT = "EXACT"  #: the same, from computed probabilities: no error
    VERIFIED = "VERIFIED"  #: a verifier accepts it
    RISK = "RISK"  #: over questions, it disagrees with the full vote at a rate of at most alpha
    CURTAIL = "CURTAIL"  #: the remaining samples cannot change the vote
    BUDGET = "BUDGET"  #: joules, seconds or samples are used up
    FUTILE = "FUTILE"  #: what is left cannot bring a certificate
    PRICE = "PRICE"  #: more samples are expected to bring less than they cost
    RULE = "RULE"  #: a published rule without guarantee


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample. `answer` is None where the text has none that can be parsed.

    `features` are numbers by name (mean log-probability, length, ...); what is not finite counts as missing. `votes`:
    p(answer | chain), where it is known, in place of one whole vote. `logprob`: log P(answer | question), where it is
    exact. `score` and `accepted`: a verifier's, None before it is asked or where it gave none. `weight`: what its vote
    counts, from ARDE; what is not a positive number counts as 0.
    """

    answer: str | None
    text: str = ""
    tokens: int = 0
    features: Mapping[str, float] = field(default_factory=dict)
    votes: Mapping[str, float] | None = None
    logprob: float | None = None
    score: float | None = None
    accepted: bool | None = None
    weight: float = 1.0
    rung: int = 0
    index: int = 0

    def feature(self, name: str) -> float:
        """A feature; NaN where it is missing or not finite."""
        value = self.features.get(name, math.nan)
        return value if math.isfinite(value) else math.nan


@dataclass(frozen=True, slots=True)
class Stop:
    """An answer and why no more samples are needed. `level`: delta of CERT and VERIFIED, alpha of RISK, else None."""

    reason: Reason
    answer: str | None
    level: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was spent. One pass is one sequence decoded alone. `label` says how joules and seconds were found."""

    passes: float = 0.0
    joules: float = 0.0
    seconds: float = 0.0
    label: str = "modelled"

    def __add__(self, other: Cost) -> Cost:
        label = self.label if self.label == other.label or not other.passes else other.label if not self.passes else (
            f"{self.label} and {other.label}"
        )  # fmt: skip
        return Cost(
            self.passes + other.passes, self.joules + other.joules, self.seconds + other.seconds, label
        )  # fmt: skip


class Tally:
    """Votes of one question at one rung, in the order of drawing.

    `counts`: whole votes by answer. `since[w]`: the counts at the moment when `w` first came, that draw included, so
    that `counts[b] - since[w].get(b, 0)` counts the draws of b after it. Samples without an answer count as drawn only.
    `weighted`: sums of weights by answer; `Sample.votes` count in place of the answer there. `restarted`: samples that
    came before evidence last started again.
    """

    __slots__ = ("__weakref__", "_leader", "_places", "_runner", "counts", "places", "restarted", "samples", "since",
                 "weighted")  # fmt: skip

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.counts: dict[str, int] = {}
        self.places: dict[str, int] = {}
        self.since: dict[str, dict[str, int]] = {}
        self.weighted: dict[str, float] = {}
        self._leader: str | None = None
        self._runner: str | None = None
        self._places = 0
        self.restarted = 0

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, sample: Sample) -> None:
        """Count one more sample."""
        self.samples.append(sample)
        answer = sample.answer
        if answer is None:
            return
        self._weigh(sample, answer)
        counts = self.counts
        if answer not in counts:
            counts[answer] = 1
            self.places[answer] = self._places
            self.since[answer] = counts.copy()
            self._places += 1
        else:
            counts[answer] += 1
        if answer == self._leader:
            return
        if self._leader is None or self._before(answer, self._leader):
            self._leader, self._runner = answer, self._leader
        elif answer != self._runner and (self._runner is None or self._before(answer, self._runner)):
            self._runner = answer

    def restart(self) -> None:
        """Draws come from another distribution from now on (another temperature): votes stay, evidence starts again.

        Each answer becomes a new candidate with a later place, so that the shares of delta still add up to 1.
        """
        self.restarted = len(self.samples)
        for answer in self.places:
            self.places[answer] = self._places
            self.since[answer] = self.counts.copy()
            self._places += 1

    @property
    def next_place(self) -> int:
        """The place of the next answer that is new."""
        return self._places

    @property
    def parsed(self) -> int:
        """Samples that have an answer."""
        return sum(self.counts.values())

    @property
    def leader(self) -> str | None:
        """The most frequent answer, of equal ones the first that came; None without any."""
        return self._leader

    @property
    def lead(self) -> tuple[int, int]:
        """Votes of the leader and of the next."""
        counts = self.counts
        return (
            counts[self._leader] if self._leader is not None else 0,
            counts[self._runner] if self._runner is not None else 0,
        )

    def first(self, answer: str | None) -> int | None:
        """Place of the first sample with this answer."""
        return next((i for i, s in enumerate(self.samples) if s.answer == answer and answer is not None), None)

    def _weigh(self, sample: Sample, answer: str) -> None:
        weighted, w = self.weighted, sample.weight
        weighted.setdefault(answer, 0.0)
        if w > 0 and w != math.inf:  # NaN is not above 0
            for voted, p in (sample.votes or {answer: 1.0}).items():
                weighted[voted] = weighted.get(voted, 0.0) + w * p

    def _before(self, answer: str, other: str) -> bool:
        """Whether `answer` has more votes, or as many and came first."""
        mine, yours = self.counts[answer], self.counts[other]
        return mine > yours or (mine == yours and self.places[answer] < self.places[other])


def best(scores: Mapping[str, float]) -> str | None:
    """The answer of the highest score, of equal ones the first; None without any, or where all are 0."""
    top = max(scores, key=lambda a: scores[a], default=None)
    return top if top is not None and scores[top] > 0 else None
