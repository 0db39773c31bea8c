"""EAC, Energy-Aware Cascade: which samples to draw next, at what price.

Decoding is bound by memory: b samples decoded together share every read of the weights and the prompt's cache, so that
a round of b costs 1 + (b - 1) rho passes. EAC prices rounds, not samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from qeil_compile.errors import InputError

from .samples import Cost, Reason, Tally
from .schedule import Schedule


@dataclass(frozen=True)
class Price:
    """What a round costs. `rho`: what each further sample adds, as a share of a pass, from the plan's cost table.

    `prompt`: passes that the prompt costs in each round. `spread`: 95 % quantile of a round's cost over its mean.
    Raises `InputError` for what is no price.
    """

    rho: float = 0.1
    joules: float = 1.0
    seconds: float = 1.0
    prompt: float = 0.0
    spread: float = 1.0
    label: str = "modelled"

    def __post_init__(self) -> None:
        for name in ("rho", "joules", "seconds", "prompt", "spread"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise InputError(f"price: {name} is {value!r}, expected a finite number from 0")

    def passes(self, count: int) -> float:
        """Passes of a round of `count` samples, 0 for none."""
        return self.prompt + 1 + (count - 1) * self.rho if count > 0 else 0.0

    def cost(self, count: int) -> Cost:
        """Expected cost of a round."""
        p = self.passes(count)
        return Cost(p, p * self.joules, p * self.seconds, self.label)


@dataclass(frozen=True)
class Caps:
    """Hard limits of one question: no round is started whose 95 % cost exceeds what is left."""

    joules: float = math.inf
    seconds: float = math.inf
    samples: int | None = None

    def fits(
        self, price: Price, spent: Cost, drawn: int, most: int, spread: tuple[float, float] = (1.0, 1.0)
    ) -> int:  # fmt: skip
        """The largest round, up to `most` samples, that fits into what is left; 0 if none does.

        `spread`: how many times their price rounds have cost so far at worst, in joules and in seconds.
        """
        if self.samples is not None:
            most = min(most, self.samples - drawn)
        left_of = (self.joules - spent.joules, self.seconds - spent.seconds)
        for left, unit, seen in zip(left_of, (price.joules, price.seconds), spread, strict=True):
            worst = unit * price.spread * seen
            if math.isinf(left) or worst == 0:
                continue
            first = price.passes(1) * worst
            if left < first:
                return 0
            if price.rho > 0:
                most = min(most, 1 + int((left - first) / (price.rho * worst) + 1e-9))
        return max(most, 0)


class Draw(NamedTuple):
    """The next round: `size` samples at a rung, at a temperature (None: the source's own)."""

    rung: int
    size: int
    temperature: float | None = None


class Allocator(Protocol):
    """Chooses the next round."""

    def next(self, tallies: Mapping[int, Tally], spent: Cost, caps: Caps, spread: tuple[float, float]) -> Draw | Reason:
        """The next round, or why there is none."""
        ...


@dataclass(frozen=True)
class Looks:
    """Rounds up to given numbers of samples at one rung, whatever comes: (40,) is one batch, 1 to 40 one at a time."""

    sizes: Sequence[int]
    price: Price = field(default_factory=Price)
    rung: int = 0

    def next(self, tallies: Mapping[int, Tally], spent: Cost, caps: Caps, spread: tuple[float, float]) -> Draw | Reason:
        drawn = len(tallies[self.rung]) if self.rung in tallies else 0
        size = next((s for s in self.sizes if s > drawn), None)
        fits = 0 if size is None else caps.fits(self.price, spent, drawn, size - drawn, spread)
        return Draw(self.rung, fits) if fits else Reason.BUDGET


@dataclass(frozen=True)
class Arm:
    """One way to draw: a rung (a model, a plan) at a temperature.

    `schedule`: look schedule learned from its history. `right`: P(correct) where its full vote is known, to compare
    arms whose history has no labels (with labels in the history: 1).
    """

    name: str
    rung: int
    price: Price
    schedule: Schedule
    temperature: float | None = None
    right: float = 1.0


class Offer(NamedTuple):
    """What an arm is expected to bring over the rest of its way."""

    ratio: float
    gain: float
    joules: float
    draw: Draw


class Eac:
    """The arm and batch of the best expected gain in P(correct) per joule, until that falls below the user's price.

    Arms of one rung share its samples. A rung is left for the next one where its own schedules end without a
    certificate and the next offers more per joule than the price.
    """

    def __init__(self, arms: Sequence[Arm], least: float = 0.0) -> None:
        """`least`: gain of P(correct) per joule that is still worth paying for. Raises `InputError` without arms."""
        if not arms:
            raise InputError("EAC: found no arm, expected at least one way to draw samples")
        self.arms = tuple(sorted(arms, key=lambda a: a.rung))
        self.least = least

    def offers(self, tallies: Mapping[int, Tally]) -> list[Offer]:
        """Offers of the arms that may be drawn from now: those of the rung reached, and of the next one."""
        rungs = sorted({a.rung for a in self.arms})
        reached = max((r for r in rungs if tallies.get(r)), default=rungs[0])
        following = next((r for r in rungs if r > reached), None)
        now = self.p(tallies, reached)
        found = []
        for arm in self.arms:
            if arm.rung not in (reached, following):
                continue
            step = arm.schedule.advise(tallies.get(arm.rung, Tally()))
            if not step.draw:
                continue
            gain = arm.right * (step.p + step.gain) - now
            joules = step.passes * arm.price.joules
            ratio = gain / joules if joules > 0 else math.inf
            found.append(Offer(ratio, gain, joules, Draw(arm.rung, step.draw, arm.temperature)))
        return found

    def p(self, tallies: Mapping[int, Tally], rung: int) -> float:
        """P(the answer of this rung is correct) as its schedules know it."""
        if not tallies.get(rung):
            return 0.0
        return max(a.right * a.schedule.advise(tallies[rung]).p for a in self.arms if a.rung == rung)

    def next(self, tallies: Mapping[int, Tally], spent: Cost, caps: Caps, spread: tuple[float, float]) -> Draw | Reason:
        """The best offer that the price and the caps allow."""
        worth = [o for o in self.offers(tallies) if o.gain > 0 and o.ratio >= self.least]
        if not worth:
            ended = all(len(tallies.get(a.rung, ())) >= a.schedule.sizes[-1] for a in self.arms)
            return Reason.BUDGET if ended else Reason.PRICE
        drawn = sum(map(len, tallies.values()))
        for offer in sorted(worth, key=lambda o: -o.ratio):
            price = next(a.price for a in self.arms if a.rung == offer.draw.rung)
            fits = caps.fits(price, spent, drawn, offer.draw.size, spread)
            if fits:
                return offer.draw._replace(size=fits)
        return Reason.BUDGET
