"""Plans at measured temperatures: prices against the cost model's own, and when another plan takes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

from qeil_compile.devices import Target
from qeil_compile.errors import InputError, QeilError
from qeil_compile.passes.legalise import legalise
from qeil_compile.passes.partition import Candidate, PartitionSettings, Search, partition
from qeil_compile.passes.schedule import schedule
from qeil_compile.passes.thermal import leakage
from qeil_compile.plan import Plan
from qeil_compile.runtime.decisions import DecisionLog
from qeil_compile.runtime.phi import PlanChooser, _makespan
from tests.cost_problems import costs_of, device, link, priced, random_graph, random_target, thermal, value, work

QUICK = PartitionSettings(search=Search(epochs=4))


def plans_of(costs: Any) -> list[Plan]:
    """Every plan that was considered."""
    front = partition(costs, QUICK)
    return [front.plan(c, "energy", ranges=False) for c in front.candidates]


def two() -> Target:
    """A device that leaks, and one without thermal data that takes a little more energy."""
    first = device("hot", "torch:cpu", thermal=thermal(leakage=1.0))
    second = device("plain", "onnxruntime:CPU", power_const=value(1.9, "W"))
    return Target("two", "two", (first, second), (link("hot", "plain"),))


def singles(target: Target | None = None, objective: str = "energy") -> tuple[list[Plan], Target]:
    """All on the hot device, all on the plain one."""
    target = target or two()
    plans = plans_of(costs_of(target, work(1e9, 10**6), work(1e9, 10**6)))
    found = [next(p for p in plans if {s.device for s in p.stages} == {d.name}) for d in target.devices]
    return [replace(p, objective=objective) for p in found], target


def valued(plans: list[Plan], latency: float, energy: float) -> list[Plan]:
    """The plans, the second with other values than its own."""
    return [plans[0], replace(plans[1], objectives=replace(plans[0].objectives, latency=latency, energy=energy))]


# Prices


def test_at_the_solved_temperatures_prices_are_the_plans_own() -> None:
    rng = np.random.default_rng(5)
    stages = 0
    for _ in range(12):
        target = random_target(rng)
        try:
            plans = plans_of(priced(*random_graph(rng), target))
        except QeilError:  # nothing fits, or nothing is sustained
            continue
        for plan in plans:
            stages = max(stages, len(plan.stages))
            # The same stages in the same order end when they were planned to.
            assert _makespan(plan, {}) == pytest.approx(plan.objectives.latency, rel=1e-9)
            chooser = PlanChooser([plan], target, DecisionLog())
            solved = {d.device: d.temperature for d in plan.devices if d.temperature is not None}
            for temperatures in ({}, solved):
                price = chooser.price(0, temperatures)
                assert (price.latency, price.energy) == pytest.approx(
                    (plan.objectives.latency, plan.objectives.energy), rel=1e-9
                )
    assert stages > 2


def test_a_hotter_device_leaks_while_it_works() -> None:
    plans, target = singles()
    chooser = PlanChooser(plans, target, DecisionLog())
    (hot,) = (d for d in plans[0].devices if d.device == "hot")
    assert hot.temperature is not None and target.devices[0].thermal is not None
    more = leakage(target.devices[0].thermal, 90.0) - leakage(target.devices[0].thermal, hot.temperature)
    price = chooser.price(0, {"hot": 90.0, "plain": 90.0})
    assert price.energy == pytest.approx(plans[0].objectives.energy + hot.busy * float(more))
    assert price.latency == plans[0].objectives.latency
    # The other plan lets the hot device wait: what leaks there is part of its idle power.
    assert chooser.price(1, {"hot": 90.0}).energy == pytest.approx(plans[1].objectives.energy)


def test_a_throttled_device_takes_longer_and_the_others_wait() -> None:
    plans, target = singles()
    chooser = PlanChooser(plans, target, DecisionLog())
    before, price = plans[1].objectives, chooser.price(1, {}, {"plain": 0.5})
    assert price.latency == pytest.approx(2 * before.latency)
    # Another latency of constant power 1.9 W, and of the idle power of the other device, 0.5 W.
    assert price.energy == pytest.approx(before.energy + before.latency * (1.9 + 0.5))
    idle = chooser.price(1, {}, {"hot": 0.5})
    assert (idle.latency, idle.energy) == (before.latency, pytest.approx(before.energy))
    # Both at once: what leaks at 90 C leaks for twice as long, at 1 W of constant power.
    (hot,) = (d for d in plans[0].devices if d.device == "hot")
    assert hot.temperature is not None and target.devices[0].thermal is not None
    measured, solved = (float(leakage(target.devices[0].thermal, t)) for t in (90.0, hot.temperature))
    own = plans[0].objectives
    expected = own.energy + hot.busy * (1.0 + 2 * measured - solved) + own.latency * 0.5
    assert chooser.price(0, {"hot": 90.0}, {"hot": 0.5}).energy == pytest.approx(expected)
    assert chooser.price(1, {}, {"plain": 0.0}).latency == inf
    assert chooser.price(1, {}, {"hot": 0.0}).latency == before.latency


def test_throttling_one_of_two_devices_stretches_its_stages_only() -> None:
    target = two()
    front = partition(costs_of(target, work(1e9, 10**6), work(1e9, 10**6)), QUICK)
    sequence = legalise(front.costs.groups, (0, 1))
    mixed = front.plan(Candidate("mixed", (0, 1), sequence, schedule(front.costs, sequence)), "energy", ranges=False)
    (moved,) = (t.seconds for t in mixed.transfers)
    own = [s.seconds + s.boundary for s in mixed.stages]
    chooser = PlanChooser([mixed], target, DecisionLog())
    assert moved > 0 and mixed.objectives.latency == pytest.approx(own[0] + moved + own[1])
    assert chooser.price(0, {}, {"plain": 0.25}).latency == pytest.approx(own[0] + moved + 4 * own[1])


# Choices


def test_it_stays_until_another_is_better_by_the_hysteresis() -> None:
    plans, target = singles()
    log = DecisionLog()
    chooser = PlanChooser(plans, target, log)
    other = plans[1].objectives.energy
    switched = []
    for step, celsius in enumerate(np.arange(40.0, 100.0, 0.5)):
        mine = chooser.price(0, {"hot": celsius}).energy
        if chooser.choose({"hot": celsius}, 10.0 * step) == 1:
            switched.append((celsius, mine))
            break
    ((celsius, mine),) = switched
    assert mine > 1.05 * other
    assert chooser.price(0, {"hot": celsius - 0.5}).energy <= 1.05 * other
    (entry,) = log.of("prefer")
    assert entry.facts["energy_before"] == pytest.approx(mine) and entry.facts["energy"] == pytest.approx(other)
    assert entry.facts["temperatures"] == {"hot": celsius} and "5%" in entry.facts["reason"]
    assert {"latency", "latency_before", "before", "at"} <= set(entry.facts)
    # Cooler again, it comes back only once the first plan is better by as much.
    equal = next(c for c in np.arange(100.0, 20.0, -0.5) if chooser.price(0, {"hot": c}).energy <= other)
    assert chooser.choose({"hot": equal}, 2000.0) == 1
    back = next(c for c in np.arange(100.0, 20.0, -0.5) if 1.05 * chooser.price(0, {"hot": c}).energy < other)
    assert chooser.choose({"hot": back}, 2010.0) == 0
    assert len(log.of("prefer")) == 2


def test_a_plan_stays_for_the_dwell() -> None:
    plans, target = singles()
    chooser = PlanChooser(plans, target, DecisionLog(), dwell=2.0)
    assert chooser.choose({"hot": 99.0}, 10.0) == 1
    assert chooser.choose({"hot": 20.0}, 11.9) == 1
    assert chooser.choose({"hot": 20.0}, 12.0) == 0


def test_noise_of_a_degree_does_not_make_it_swing() -> None:
    plans, target = singles()
    log = DecisionLog()
    chooser = PlanChooser(plans, target, log)
    level = next(c for c in np.arange(40.0, 100.0, 0.5)
                 if chooser.price(0, {"hot": c}).energy > 1.05 * plans[1].objectives.energy)  # fmt: skip
    rng = np.random.default_rng(0)
    for k in range(300):
        chooser.choose({"hot": level + float(rng.integers(-1, 2))}, 3.0 * k)
    assert len(log.of("prefer")) == 1


@pytest.mark.parametrize(("latency", "energy", "expected"), [
    (1.0, 0.94, 1), (0.94, 1.0, 1), (1.0, 0.97, 0), (1.001, 0.9, 0), (0.9, 1.001, 0), (1.0, 1.0, 0),
])  # fmt: skip
def test_a_plan_that_has_left_the_front_is_left(latency: float, energy: float, expected: int) -> None:
    # By the weights both cost nearly the same: what counts is that one is no worse and better in one.
    plans, target = singles(objective="utilisation")
    mine = plans[0].objectives
    chooser = PlanChooser(valued(plans, latency * mine.latency, energy * mine.energy), target, log := DecisionLog())
    assert chooser.choose({}, 0.0) == expected
    assert [d.facts["reason"] for d in log.entries] == ["has left the front"] * expected


def test_caps_are_kept_with_room() -> None:
    plans, target = singles()
    own = plans[0].objectives
    capped = [replace(p, objective=f"energy; latency<={own.latency * 1.02:.6g}s") for p in plans]
    slow = {"hot": 0.9}
    for factor, expected in ((0.95, 1), (1.0, 0)):  # 2 % below the cap is no room
        rivals = valued(capped, factor * own.latency, 3 * own.energy)
        chooser = PlanChooser(rivals, target, log := DecisionLog())
        assert chooser.choose({}, 0.0) == 0
        assert chooser.choose({}, 5.0, slow) == expected
        assert [d.facts["reason"] for d in log.entries] == ["passes a cap of the objective"] * expected
    # A plan beyond the cap is no alternative, however little energy it takes.
    chooser = PlanChooser(valued(capped, 2 * own.latency, 0.1 * own.energy), target, DecisionLog())
    assert chooser.choose({}, 0.0) == 0


def test_a_plan_whose_device_takes_no_load_is_left_at_once() -> None:
    plans, target = singles()
    chooser = PlanChooser(plans, target, log := DecisionLog())
    assert chooser.choose({"hot": 99.0}, 0.0) == 1
    assert chooser.choose({"hot": 99.0}, 0.1, {"plain": 0.0}) == 0
    assert log.entries[-1].facts["reason"] == "a device may take no load"
    # Nothing else is left: it stays where it is.
    none: Mapping[str, float] = {"plain": 0.0, "hot": 0.0}
    assert chooser.choose({"hot": 99.0}, 0.2, none) == 0
    # At half the speed the hot device is still the only one.
    assert chooser.choose({"hot": 99.0}, 60.0, {"plain": 0.0, "hot": 0.5}) == 0


def test_what_cannot_be_chosen_from_is_named() -> None:
    plans, target = singles()
    with pytest.raises(InputError, match="found none"):
        PlanChooser([], target, DecisionLog())
    with pytest.raises(InputError, match="for target other, expected all for two"):
        PlanChooser([plans[0], replace(plans[1], target="other")], target, DecisionLog())
    with pytest.raises(QeilError, match="speed"):
        PlanChooser([replace(plans[0], objective="speed")], target, DecisionLog())
