"""CSVET, Confidence-Sequence Verified Early Termination: the reasons to stop, each with its own claim.

A rule has a `name`, says whether it may be asked after every sample (`anytime`) or only at the end of a round, answers
`check(tally)` with a `Stop` or None, and `choose(tally)` with the answer to give where the budget ends first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from qeil_compile.errors import InputError

from .certificate import Cert, check_level
from .samples import Reason, Stop, Tally


@runtime_checkable
class Rule(Protocol):
    """When to stop, and with which answer."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    @property
    def anytime(self) -> bool:
        """Whether it keeps its meaning when asked after every sample."""
        ...

    def check(self, tally: Tally) -> Stop | None:
        """Whether to stop now."""
        ...

    def choose(self, tally: Tally) -> str | None:
        """The answer as things stand."""
        ...


class _Vote:
    """The most frequent answer, where a rule says nothing else."""

    def choose(self, tally: Tally) -> str | None:
        return tally.leader


class Exact(_Vote):
    """Stop where computed probabilities leave no room: p(best) >= 1 - sum of those seen, hence above any unseen one.

    Samples carry `logprob`, the exact log P(answer | question). Not valid where a chain was sampled before the answer:
    such a number is p(answer | chain). Without a finite log-probability for every answer seen there is no certificate.
    """

    name = "EXACT"
    anytime = True

    def check(self, tally: Tally) -> Stop | None:
        known: dict[str, float] = {}
        for sample in tally.samples:
            if sample.answer is None or sample.answer in known:
                continue
            if sample.logprob is None or not math.isfinite(sample.logprob) or sample.logprob > 1e-6:
                return None
            known[sample.answer] = math.exp(sample.logprob)
        total = sum(known.values())
        if not known or total > 1 + 1e-6:  # not the probabilities of exclusive answers
            return None
        best = max(known, key=lambda a: known[a])
        if known[best] < 1 - total:
            return None
        return Stop(Reason.EXACT, best, None, f"p = {known[best]:.4g}, at most {max(1 - total, 0):.4g} unseen")


class Verified(_Vote):
    """Stop with an answer that a verifier accepts, as long as its false accepts fit into delta.

    `false_accepts`: a bound on P(accept | wrong), from the verifier's nature (0 for a proof checker) or from
    `false_accept_bound`. n checks spend n * false_accepts; what exceeds delta does not certify. With 0 this is pass@k.
    With `unique` two accepted answers contradict one another: the verifier is wrong at least once, so that none of
    them counts any more.
    """

    name = "VERIFIED"
    anytime = True

    def __init__(self, delta: float = 0.05, false_accepts: float = 0.0, unique: bool = False) -> None:
        """Raises `InputError` for numbers that are no probabilities."""
        check_level("delta", delta)
        if not 0 <= false_accepts <= 1:
            raise InputError(f"false_accepts: found {false_accepts}, expected a probability")
        self.delta, self.false_accepts, self.unique = delta, false_accepts, unique

    def check(self, tally: Tally) -> Stop | None:
        checks, found = 0, None
        for sample in tally.samples:
            if sample.accepted is None:
                continue
            checks += 1
            if not sample.accepted:
                continue
            if found is None:
                spent = checks * self.false_accepts
                if spent > self.delta:
                    return None
                found = Stop(Reason.VERIFIED, sample.answer, spent, f"accepted at check {checks}")
            elif self.unique and sample.answer != found.answer:
                return None
        return found


class Curtail(_Vote):
    """Stop where the lead exceeds what remains of `samples`: the vote of all of them is known already."""

    name = "CURTAIL"
    anytime = True

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def check(self, tally: Tally) -> Stop | None:
        first, second = tally.lead
        left = self.samples - len(tally.samples)
        if first - second <= left or tally.leader is None:
            return None
        return Stop(Reason.CURTAIL, tally.leader, None, f"lead {first - second}, {left} samples left")


class Futile(_Vote):
    """Give up where no order of the remaining samples could bring a certificate."""

    name = "FUTILE"
    anytime = True

    def __init__(self, cert: Cert, samples: int) -> None:
        self.cert, self.samples = cert, samples

    def check(self, tally: Tally) -> Stop | None:
        if not tally.samples or self.cert.within(tally, self.samples - len(tally.samples)):
            return None
        return Stop(Reason.FUTILE, tally.leader, None, "no certificate within the samples left")


class Threshold(_Vote):
    """Stop where a score of the counts (draws, leader, next) reaches a bar; RISK puts a guarantee on such rules."""

    anytime = False

    def __init__(
        self, score: Callable[[int, int, int], float], bar: float, reason: Reason = Reason.RULE, name: str = "",
        level: float | None = None, note: str = "",
    ) -> None:  # fmt: skip
        self.score, self.bar, self.reason, self.level, self.note = score, bar, reason, level, note
        self.name = name or f"score >= {bar:g}"

    def check(self, tally: Tally) -> Stop | None:
        first, second = tally.lead
        if tally.leader is None or self.score(len(tally.samples), first, second) < self.bar:
            return None
        return Stop(self.reason, tally.leader, self.level, self.note)


def csvet(
    delta: float = 0.05, samples: int | None = None, *, exact: bool = False,
    verifier_false_accepts: float | None = None, unique: bool = False, futile: bool = False, spike: float = 0.0,
) -> tuple[Rule, ...]:  # fmt: skip
    """The usual rules under one delta, in the order in which they are asked.

    What a verifier may spend over `samples` checks is taken from CERT's part, up to half of delta.
    `verifier_false_accepts`: None without a verifier. `samples`: most samples of a question, for CURTAIL and FUTILE.
    Raises `InputError` for a delta outside (0, 1).
    """
    check_level("delta", delta)
    rules: list[Rule] = [Exact()] if exact else []
    rest = delta
    if verifier_false_accepts is not None:
        spent = min(verifier_false_accepts * (samples or 1), delta / 2)
        rest = delta - spent
        # A verifier without false accepts spends nothing; its level is only a formality then.
        rules.append(Verified(spent or delta, verifier_false_accepts, unique))
    cert = Cert(rest, spike)
    rules.append(cert)
    if samples is not None:
        rules.append(Curtail(samples))
        if futile:
            rules.append(Futile(cert, samples))
    return tuple(rules)
