"""Where samples come from: a recorded log, a live decoder, or anything that draws rounds; and the loop over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from .allocation import Draw, Price
from .samples import Cost, Reason, Sample, Stop
from .selector import Inquiry, Selector, Verdict
from .verify import Check, Guard, Verifier


@runtime_checkable
class Round(Protocol):
    """Samples drawn together, in flight. Places count from 0 within the round, in the order of drawing."""

    @property
    def live(self) -> Sequence[int]:
        """Places that go on."""
        ...

    @property
    def cost(self) -> Cost:
        """What the round has cost so far."""
        ...

    def step(self) -> Sequence[tuple[int, Sample]]:
        """Go on a little; the samples that have ended by that, with their places."""
        ...

    def partial(self, place: int) -> Sample:
        """What there is of a live sample: features so far, no answer."""
        ...

    def cancel(self, places: Iterable[int]) -> None:
        """End live samples before their time; they are not reported."""
        ...


@runtime_checkable
class Source(Protocol):
    """Draws rounds for a question, at one of its rungs."""

    def price(self, rung: int) -> Price:
        """What a round at a rung is expected to cost."""
        ...

    def draw(self, question: Any, draw: Draw, drawn: int) -> Round:
        """Begin a round; `drawn` samples of this question and rung have been drawn before."""
        ...


@dataclass
class Verification:
    """A verifier in the loop, asked after what is cheaper: parsing, features, and agreement.

    `only_leaders`: ask about the leading answer's first sample after each round; else about every sample with an answer
    as it comes. `by_answer`: one word per answer is enough (a calculator), else one per sample (unit tests).
    """

    verifier: Verifier | Guard
    only_leaders: bool = False
    by_answer: bool = True
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if not isinstance(self.verifier, Guard):
            self.verifier = Guard(self.verifier, self.seconds)

    def begin(self) -> Callable[[Any, Sample], Check | None]:
        """Checks of one question; None where nothing is to be asked."""
        known: dict[str, Check] = {}
        guard = self.verifier
        assert isinstance(guard, Guard)

        def check(question: Any, sample: Sample) -> Check | None:
            if sample.answer is None or sample.accepted is not None:
                return None
            if self.by_answer and sample.answer in known:
                return replace(known[sample.answer], seconds=0.0, fault="")
            if not guard.usable:
                return None
            found = guard(question, sample)
            known[sample.answer] = found
            return found

        return check


def ask(
    source: Source, selector: Selector, question: Any, *, verification: Verification | None = None,
    watch: Callable[[Inquiry], object] | None = None,
) -> Verdict:  # fmt: skip
    """Draw rounds from `source` until `selector` has a verdict on the question.

    Samples are counted in the order in which they were drawn, not in that in which they end: short ones must not have
    more say. Those in flight are cancelled where the verdict is in, or where a hard cap is reached. `watch` is called
    after every sample and round. Errors of the source pass through.
    """
    inquiry = selector.open()
    check = verification.begin() if verification is not None else None
    while (draw := inquiry.next()) is not None:
        price = source.price(draw.rung)
        drawn = len(inquiry.tallies.get(draw.rung, ()))
        flight = source.draw(question, draw, drawn)
        _run(flight, inquiry, draw, price.cost(draw.size), question, verification, check, watch)
        if check is not None and verification is not None and verification.only_leaders and inquiry.stop is None:
            _check_leader(inquiry, question, check)
        if watch is not None:
            watch(inquiry)
    return inquiry.verdict()


def _run(
    flight: Round, inquiry: Inquiry, draw: Draw, expected: Cost, question: Any, verification: Verification | None,
    check: Callable[[Any, Sample], Check | None] | None, watch: Callable[[Inquiry], object] | None,
) -> None:  # fmt: skip
    """One round, from its first step to the end of its last sample."""
    caps, prune = inquiry.selector.caps, inquiry.selector.prune
    waiting: dict[int, Sample] = {}
    fed = 0
    every = check if verification is not None and not verification.only_leaders else None
    while flight.live and inquiry.stop is None:
        waiting.update(flight.step())
        if prune is not None:
            for place in [p for p in flight.live if prune(flight.partial(p))]:
                flight.cancel([place])
                inquiry.cancelled += 1
                waiting[place] = Sample(None, rung=draw.rung)  # drawn, and without an answer
        while fed in waiting and inquiry.stop is None:
            sample = replace(waiting.pop(fed), rung=draw.rung)
            inquiry.add(sample if every is None else _checked(inquiry, question, sample, every))
            fed += 1
            if watch is not None:
                watch(inquiry)
        spent = inquiry.spent + flight.cost
        if flight.live and inquiry.stop is None and (spent.joules > caps.joules or spent.seconds > caps.seconds):
            _cut(inquiry, waiting)
    if flight.live:
        inquiry.cancelled += len(flight.live)
        flight.cancel(list(flight.live))
    if not fed and not waiting and inquiry.stop is None:
        inquiry.stop = Stop(Reason.BUDGET, inquiry.answer(), None, "the source has no more samples")
        return
    inquiry.end_round(flight.cost, expected)


def _cut(inquiry: Inquiry, waiting: dict[int, Sample]) -> None:
    """The cap is reached inside a round: what has ended still votes, but proves nothing: the short ones end first."""
    for place in sorted(waiting):
        inquiry.tally.add(waiting[place])
    answer = inquiry.answer()
    inquiry.stop = Stop(Reason.BUDGET, answer, None, "a cap was reached inside a round")


def _checked(
    inquiry: Inquiry, question: Any, sample: Sample, check: Callable[[Any, Sample], Check | None]
) -> Sample:  # fmt: skip
    found = check(question, sample)
    if found is None:
        return sample
    inquiry.checked += found.seconds > 0
    inquiry.faults += bool(found.fault)
    inquiry.spent = inquiry.spent + Cost(0.0, 0.0, found.seconds, inquiry.spent.label)
    score = sample.score if found.score is None else found.score
    return replace(sample, accepted=found.accepted, score=score)


def _check_leader(inquiry: Inquiry, question: Any, check: Callable[[Any, Sample], Check | None]) -> None:
    """Ask about the leading answer's first sample, and the rules about what came of it."""
    tally = inquiry.tally
    place = tally.first(tally.leader)
    if place is not None:
        tally.samples[place] = _checked(inquiry, question, tally.samples[place], check)
        inquiry.ask_rules()
