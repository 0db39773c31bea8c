"""The safety monitor: closed loops over modelled devices, sensors that fail, and what holds for any readings."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeil_compile.devices import load_target
from qeil_compile.passes.conditions import Conditions
from qeil_compile.runtime.decisions import DecisionLog
from qeil_compile.runtime.monitor import Limits, MonitorSettings, SafetyMonitor, limits_of, sensor_of
from qeil_compile.telemetry import Snapshot
from qeil_compile.telemetry.snapshot import channel
from tests.cost_problems import device, pair, value

HEAT, POWER, MEMORY = (channel("gpu0", q, "test") for q in ("temperature", "power", "memory"))
TOP = 80.0
SETTINGS = MonitorSettings()


def monitor(**limits: float) -> tuple[SafetyMonitor, DecisionLog]:
    """A monitor of one device."""
    log = DecisionLog()
    return SafetyMonitor({"gpu": Limits(**limits, sensor="gpu0")}, log), log


def shares(
    watch: SafetyMonitor, readings: Iterable[tuple[float, float | None]], quantity: object = HEAT
) -> list[float]:
    """The share after each reading (None: NaN) at its time."""
    return [
        watch.update(Snapshot(t, {quantity: math.nan if v is None else v}))["gpu"]  # type: ignore[dict-item]
        for t, v in readings
    ]


def steady(v: float | None, start: float, seconds: float, step: float = 0.1) -> list[tuple[float, float | None]]:
    """One reading for a while."""
    return [(start + k * step, v) for k in range(round(seconds / step))]


def kinds(log: DecisionLog) -> list[str]:
    """What was decided, in order."""
    return [d.kind for d in log.entries]


# Temperature


def test_a_cool_device_takes_all() -> None:
    watch, log = monitor(ceiling=TOP)
    assert set(shares(watch, steady(60.0, 0.0, 30.0))) == {1.0}
    assert not log.entries


def test_a_rise_is_seen_before_the_ceiling() -> None:
    watch, log = monitor(ceiling=TOP)
    # 0.5 K/s in whole degrees: in 5 s it will be 2.5 K hotter.
    rise = [(t / 10, float(math.floor(60 + 0.05 * t))) for t in range(400)]
    found = shares(watch, rise)
    first = next(k for k, s in enumerate(found) if s < 1)
    assert 72.0 <= rise[first][1] < TOP - SETTINGS.band
    assert found[-1] == 0.0 and rise[found.index(0.0)][1] < TOP
    assert kinds(log)[0] == "shed" and kinds(log)[-1] == "out"
    entry = log.entries[0].facts
    assert entry["before"] == 1.0 and entry["limit"] == TOP and "will be" in entry["reason"] and "at" in entry


def test_at_the_ceiling_it_is_out_at_once() -> None:
    watch, log = monitor(ceiling=TOP)
    assert shares(watch, [(0.0, TOP - 1.0)]) == [0.25]
    assert shares(watch, [(0.1, TOP)]) == [0.0]
    assert log.entries[-1].kind == "out" and "ceiling" in log.entries[-1].facts["reason"]


def test_a_reading_that_is_off_and_steps_of_a_degree_shed_nothing() -> None:
    watch, log = monitor(ceiling=TOP)
    # Between 71 and 72 with the sensor's rounding, and every 5 s one reading that is 6 K off: below the ceiling still.
    readings = [(t / 10, 77.0 if t % 50 == 49 else 71.0 + (t // 7) % 2) for t in range(600)]
    found = shares(watch, readings)
    assert min(s for s, (_, v) in zip(found, readings, strict=True) if v < 77) > 0.7
    assert "out" not in kinds(log)


def test_it_returns_with_half_when_it_has_been_cool_for_a_while() -> None:
    watch, log = monitor(ceiling=TOP)
    assert shares(watch, [(0.0, TOP + 5)]) == [0.0]
    edge = TOP - SETTINGS.hysteresis
    assert set(shares(watch, steady(edge + 0.5, 0.1, 30.0))) == {0.0}
    cool = shares(watch, steady(edge, 30.1, 40.0))
    back = cool.index(0.5)
    assert set(cool[:back]) == {0.0} and back * 0.1 == pytest.approx(SETTINGS.rest, abs=0.15)
    # Then it climbs in steps, one per dwell.
    steps = sorted(set(cool[back:]))
    assert steps == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    times = [d.facts["at"] for d in log.entries if d.kind == "recover"]
    assert all(b - a >= SETTINGS.dwell for a, b in itertools.pairwise(times))
    assert kinds(log) == ["out", "return", *["recover"] * 5]


def test_a_warm_spell_starts_the_rest_again() -> None:
    watch, _ = monitor(ceiling=TOP)
    shares(watch, [(0.0, TOP)])
    found = shares(watch, [*steady(70.0, 0.1, 4.0), (4.1, 78.0), *steady(70.0, 4.2, 4.5)])
    assert set(found) == {0.0}
    assert shares(watch, steady(70.0, 8.7, 1.0))[-1] == 0.5


# A closed loop: two masses, of which the die jumps by degrees when its load begins.


def loop(
    watch: SafetyMonitor | None, resistance: Callable[[float], float], jump: float, seconds: float
) -> tuple[float, float, float]:
    """Seconds above the ceiling, greatest temperature [C], mean share of a device of 400 W at 25 C ambient."""
    step, capacity, sink, die, share = 0.1, 1500.0, 25.0, 0.0, 1.0
    above = peak = done = 0.0
    for k in range(round(seconds / step)):
        now, power = k * step, 20.0 + share * 380.0
        sink += step * (power - (sink - 25.0) / resistance(now)) / capacity
        die += step * (share * jump - die) / 0.5
        celsius = sink + die
        above, peak, done = above + step * (celsius > TOP), max(peak, celsius), done + share * step / seconds
        if watch is not None:
            share = watch.update(Snapshot(now, {HEAT: float(math.floor(celsius))}))["gpu"]
    return above, peak, done


@pytest.mark.parametrize("jump", [0.0, 10.0, 20.0])
@pytest.mark.parametrize("factor", [1.5, 3.0, 6.0])
def test_a_stopped_fan_does_not_heat_a_device_past_its_ceiling(jump: float, factor: float) -> None:
    def resistance(now: float) -> float:
        return (factor if 100.0 <= now < 800.0 else 1.0) * (45.0 - jump) / 400.0

    above, peak, _ = loop(None, resistance, jump, 1200.0)
    assert above > 100.0
    watch, log = monitor(ceiling=TOP)
    above, peak, done = loop(watch, resistance, jump, 1200.0)
    assert above == 0.0 and peak < TOP
    assert done > 0.4
    # The fan came back: all of the load does.
    assert watch.update(Snapshot(1200.0, {HEAT: 60.0}))["gpu"] == pytest.approx(1.0)
    assert log.entries


# Power and memory


def test_a_power_cap_is_about_the_mean() -> None:
    watch, log = monitor(power=200.0)
    spikes = [(t / 10, 260.0 if t % 4 == 0 else 170.0) for t in range(100)]  # 192.5 W on average
    assert set(shares(watch, spikes, POWER)) == {1.0}
    assert not log.entries
    watch, log = monitor(power=200.0)
    share, found = 1.0, []
    for t in range(300):  # 300 W at full load, of which 100 W do not depend on it
        share = watch.update(Snapshot(t / 10, {POWER: 100.0 + 200.0 * share}))["gpu"]
        found.append(share)
    assert found[SETTINGS_TICKS] == 1.0
    assert 100.0 + 200.0 * found[-1] <= 200.0 * 1.02
    assert 0.3 < found[-1] <= 0.51
    assert {d.kind for d in log.entries} == {"shed"} and log.entries[0].facts["reading"] == pytest.approx(300.0)


#: Readings within which the mean power is not judged yet.
SETTINGS_TICKS = round(MonitorSettings().dwell * 10) - 2


def test_memory_over_its_ceiling_sheds_step_by_step_and_returns() -> None:
    watch, log = monitor(memory=8e9)
    assert set(shares(watch, steady(8e9, 0.0, 10.0), MEMORY)) == {1.0}
    over = shares(watch, steady(10e9, 10.0, 7.0), MEMORY)
    assert over[0] == pytest.approx(0.8)
    assert sorted(set(over), reverse=True) == pytest.approx([0.8, 0.64, 0.512])
    near = shares(watch, steady(7.8e9, 17.0, 10.0), MEMORY)
    assert set(near) == {over[-1]}
    assert shares(watch, steady(5e9, 27.0, 40.0), MEMORY)[-1] == pytest.approx(1.0)
    assert {d.facts["reason"] for d in log.of("shed")} == {"memory is over its limit"}


def test_the_smallest_share_counts_and_gives_the_reason() -> None:
    log = DecisionLog()
    watch = SafetyMonitor({"gpu": Limits(TOP, 8e9, 200.0, "gpu0", "gpu0")}, log)
    assert watch.update(Snapshot(0.0, {HEAT: 78.0, POWER: 50.0, MEMORY: 8.8e9})) == {"gpu": 0.5}
    assert [d.facts["limit"] for d in log.entries] == [TOP]
    assert watch.update(Snapshot(5.0, {HEAT: 60.0, POWER: 50.0, MEMORY: 16e9})) == {"gpu": 0.25}
    assert [d.facts["limit"] for d in log.entries] == [TOP, 8e9]


# Sensors that fail


def test_a_device_that_cannot_be_watched_is_taken_out() -> None:
    watch, log = monitor(ceiling=TOP)
    shares(watch, steady(60.0, 0.0, 5.0))
    blind = shares(watch, steady(None, 5.0, 3.0))
    assert blind[0] == 1.0 and blind[-1] == 0.0
    assert 0.1 * blind.index(0.0) == pytest.approx(SETTINGS.blind, abs=0.15)
    assert "is not read" in log.of("out")[0].facts["reason"]
    assert "reading" not in log.of("out")[0].facts
    # It answers again: half the load, after the same rest as any other.
    found = shares(watch, steady(60.0, 8.0, 6.0))
    assert found[0] == 0.0 and found[-1] == 0.5


def test_one_missing_reading_changes_nothing() -> None:
    watch, log = monitor(ceiling=TOP)
    readings = [(t / 10, None if t % 5 == 4 else 60.0) for t in range(100)]
    assert set(shares(watch, readings)) == {1.0}
    assert not log.entries


def test_a_device_that_never_had_a_sensor_is_told_once() -> None:
    watch, log = monitor(ceiling=TOP, power=100.0)
    assert set(shares(watch, steady(None, 0.0, 5.0))) == {1.0}
    assert kinds(log) == ["unwatched"]


def test_lost_power_only_keeps_the_share_from_rising() -> None:
    watch, _ = monitor(power=200.0)
    found = shares(watch, steady(400.0, 0.0, 4.0), POWER)
    assert found[-1] == pytest.approx(0.5)
    assert set(shares(watch, steady(None, 4.0, 20.0), POWER)) == {found[-1]}
    assert shares(watch, steady(50.0, 24.0, 30.0), POWER)[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(("memory", "expected"), [(7.9e9, 0.5), (math.nan, 0.5), (9e9, 0.0), (4e9, 1.0)])
def test_a_full_memory_lets_a_device_return_but_not_rise(memory: float, expected: float) -> None:
    watch = SafetyMonitor({"gpu": Limits(TOP, 8e9, None, "gpu0", "gpu0")}, DecisionLog())
    assert watch.update(Snapshot(0.0, {HEAT: 90.0, MEMORY: 5e9})) == {"gpu": 0.0}
    for t in range(1, 60):
        found = watch.update(Snapshot(float(t), {HEAT: 50.0, MEMORY: memory}))
    assert found == {"gpu": expected}


def test_sensors_slower_than_the_window_still_have_a_slope() -> None:
    watch, _ = monitor(ceiling=TOP)
    found = shares(watch, [(31.0 * k, v) for k, v in enumerate((40.0, 55.0, 70.0, 75.0))])
    assert found[:3] == [1.0, 1.0, 1.0]
    assert found[3] == pytest.approx((TOP - 75.0 - 5.0 * 20.0 / 62.0) / SETTINGS.band)


def test_a_slow_power_meter_is_judged_all_the_same() -> None:
    watch, _ = monitor(power=200.0)
    assert shares(watch, [(0.0, 300.0), (30.0, 300.0)], POWER) == [1.0, pytest.approx(2 / 3)]
    assert shares(watch, [(60.0 + 30.0 * k, 100.0) for k in range(10)], POWER)[-1] == 1.0


# Limits


def test_limits_come_from_profiles_and_conditions() -> None:
    target = pair(pool="b")
    found = limits_of(target, Conditions(reserve=0.2, ceiling=0.5))
    assert found["a"] == Limits(50.0, 0.8e9, 10.0, "cpu", "memory")
    assert found["b"].memory_sensor == "b"
    assert limits_of(pair(pool="a"), Conditions())["b"].memory_sensor == "memory"
    assert limits_of(pair(t_max=value(90.0, "C")), Conditions())["b"].ceiling == pytest.approx(76.5)


def test_names_of_devices_in_snapshots() -> None:
    engines = {"torch:cuda:1": "gpu1", "onnxruntime:CUDA": "gpu0", "openvino:GPU": "x"}
    for spec, expected in engines.items():
        assert sensor_of(device("x", spec, kind="gpu")) == expected
    assert sensor_of(device("big", "torch:cpu")) == "cpu"
    assert sensor_of(load_target("intel-285hx-rtx-pro-5000").device_of("gpu")) == "gpu0"


def test_decisions_are_lines_of_json(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    watch = SafetyMonitor({"gpu0": Limits(ceiling=TOP)}, log)
    watch.update(Snapshot(3.0, {HEAT: 90.0}))
    log.close()
    (line,) = (tmp_path / "decisions.jsonl").read_text().splitlines()
    expected = {"kind": "out", "subject": "gpu0", "share": 0.0, "before": 1.0, "reading": 90.0, "limit": TOP, "at": 3.0}
    assert expected.items() <= json.loads(line).items()


# What holds for any readings

READING = st.tuples(
    st.floats(0.01, 3.0),
    st.one_of(st.none(), st.floats(20.0, 110.0), st.floats(70.0, 90.0)),
    st.one_of(st.none(), st.floats(0.0, 400.0)),
    st.one_of(st.none(), st.floats(0.0, 12e9)),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(READING, min_size=1, max_size=120))
def test_what_holds_for_any_readings(readings: list[tuple[float, float | None, float | None, float | None]]) -> None:
    watch, _ = SafetyMonitor({"gpu": Limits(TOP, 8e9, 200.0, "gpu0", "gpu0")}, DecisionLog()), None
    now, before, changed = 0.0, 1.0, -math.inf
    for wait, *values in readings:
        now += wait
        given_values = {c: math.nan if v is None else v for c, v in zip((HEAT, POWER, MEMORY), values, strict=True)}
        share = watch.update(Snapshot(now, given_values))["gpu"]
        assert 0.0 <= share <= 1.0
        heat = values[0]
        if heat is not None and heat >= TOP:
            assert share == 0.0
        if before == 0.0:
            assert share <= SETTINGS.restart
        if share > before:
            assert now - changed >= SETTINGS.dwell
            assert share - before <= (SETTINGS.step if before else SETTINGS.restart) + 1e-9
        if share != before:
            assert abs(share - before) > 0.05 - 1e-5 or share == 1.0
            changed = now
        before = share


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(40.0, 90.0)), min_size=5, max_size=80))
def test_the_same_readings_give_the_same_shares(readings: list[tuple[float, float]]) -> None:
    def run() -> list[float]:
        watch, _ = monitor(ceiling=TOP)
        now, found = 0.0, []
        for wait, celsius in readings:
            now += wait
            found += shares(watch, [(now, celsius)])
        return found

    assert run() == run()
