"""The cost model: against an independent slow evaluator, and the properties of its parts."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeil_compile.devices import Target
from qeil_compile.devices.profile import Efficiency
from qeil_compile.devices.ranges import vary
from qeil_compile.errors import ArtifactError, CapacityError, InputError, ThermalError
from qeil_compile.ir import GroupGraph, Op, OpGraph, OpGroup, TensorSpec
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.arena import allocate, peak, robson
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.energy import device_energy
from qeil_compile.passes.legalise import legalise
from qeil_compile.passes.partition import Front, evaluate, partition
from qeil_compile.passes.schedule import schedule
from qeil_compile.passes.thermal import leakage, settle
from qeil_compile.passes.timeline import Job, Move, simulate
from qeil_compile.plan import ALL, Plan
from tests.cost_problems import (
    chain_graph,
    costs_of,
    device,
    pair,
    priced,
    random_graph,
    random_target,
    singles,
    thermal,
    value,
    work,
)
from tests.slow_evaluator import slow

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(deadline=None, max_examples=400, derandomize=True)
def test_agrees_with_the_slow_evaluator(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, counts = random_graph(rng)
    target = random_target(rng)
    conditions = Conditions(
        reserve=float(rng.uniform(0, 0.5)), duration=float(rng.choice([0.0, 10.0, 100.0, inf])),
        ambient=float(rng.uniform(0, 60)) if rng.random() < 0.3 else None,
    )  # fmt: skip
    costs = priced(groups, counts, target, conditions=conditions)
    assignment = rng.integers(0, len(costs.placements), len(groups.groups))
    sequence = legalise(groups, assignment.tolist())
    fast, plain = schedule(costs, sequence), slow(costs, sequence)
    assert fast.objectives.latency == pytest.approx(plain.latency, rel=1e-9)
    assert fast.objectives.energy == pytest.approx(plain.energy, rel=1e-9)
    assert fast.objectives.under_utilisation == pytest.approx(plain.under_utilisation, rel=1e-9)
    assert fast.cpq == pytest.approx(plain.cpq, rel=1e-9)
    assert {p: s.nbytes for p, s in fast.spilled.items()} == pytest.approx(plain.spilled, rel=1e-9)
    for state in fast.devices:
        expected = plain.temperature[state.device]
        assert state.temperature == (None if expected is None else pytest.approx(expected, rel=1e-9))
        assert state.phi == pytest.approx(plain.phi[state.device], rel=1e-9)
        assert state.sustained == plain.sustained[state.device]
        assert state.arena_bytes == plain.arena.get(state.device, 0)
        assert state.peak_bytes <= state.arena_bytes <= state.online_bytes
    whole = sum(s.joules for s in fast.devices) + sum(t.joules for t in fast.transfers)
    assert whole == pytest.approx(fast.objectives.energy, rel=1e-9)


def test_the_random_problems_reach_every_branch() -> None:
    seen: set[str] = set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        groups, counts = random_graph(rng)
        costs = priced(groups, counts, random_target(rng))
        found = evaluate(costs, rng.integers(0, len(costs.placements), len(groups.groups)), "").schedule
        seen |= {"spill"} if found.spilled else set()
        seen |= {"full"} if any(c > 1 for c in found.cpq.values()) else set()
        seen |= {"hot"} if not all(s.sustained for s in found.devices) else set()
        seen |= {"warm"} if any(s.sustained and s.phi < 0.99 for s in found.devices) else set()
        seen |= {"moved"} if any(t.seconds for t in found.transfers) else set()
        seen |= {"fragmented"} if any(s.fragmentation > 0 for s in found.devices) else set()
        alone = sum(float(costs.seconds[g, p]) for s in found.stages for g, p in _placed(costs, s.ops, s.placement))
        stretched = sum(s.seconds for s in found.stages) > alone * (1 + 1e-6)
        seen |= {"crowded"} if stretched and not found.spilled else set()
    assert seen == {"spill", "full", "hot", "warm", "moved", "fragmented", "crowded"}


def _placed(costs: CostTable, ops: tuple[str, ...], spec: str) -> set[tuple[int, int]]:
    p = [x.spec for x in costs.placements].index(spec)
    return {(costs.groups.group_of[costs.groups.graph.index[o]], p) for o in ops}


# ---- DASI, beta, energy


@given(seeds)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_one_roof_binds_and_attained_shares_stay_below(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, counts = random_graph(rng)
    costs = priced(groups, counts, random_target(rng))
    assert np.all(np.maximum(costs.dasi, costs.beta) == 1.0)
    assert np.all((costs.dasi > 0) & (costs.beta > 0) & (costs.dasi <= 1) & (costs.beta <= 1))
    assert np.all(costs.dasi_eff <= costs.dasi * (1 + 1e-12)) and np.all(costs.beta_eff <= costs.beta * (1 + 1e-12))
    # The roofline's shares are those that a launch and imperfect kernels have not spoiled yet.
    perfect = costs.dasi_eff / costs.share
    assert perfect == pytest.approx(costs.dasi, rel=1e-9)


def test_dasi_by_hand() -> None:
    costs = costs_of(pair(), work(2e6, 1000), work(1e3, 1000), work(0.0, 1000), work(1e3, 0), work(0.0, 0))
    assert costs.dasi[:, 0].tolist() == [1.0, 1e3 / 1000 * 1e9 / 1e10, 0.0, 1.0, 0.0]
    assert costs.beta[:, 0] == pytest.approx([1e10 / (2e3 * 1e9), 1.0, 1.0, 0.0, 1.0])
    t = costs.seconds[0, 0]
    assert costs.dasi_eff[0, 0] == pytest.approx(2e6 / (1e10 * t))
    assert costs.beta_eff[0, 0] == pytest.approx(1000 / (1e9 * t))


@given(seeds)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_identity_with_the_energy_roofline(seed: int) -> None:
    """t (DASI_eff P e_f + beta_eff B e_m) is W e_f + Q e_m [Choi et al. 2013], for one dtype and no leakage."""
    rng = np.random.default_rng(seed)
    groups, counts = random_graph(rng)
    counts = tuple(replace(c, dtype="float32") for c in counts)
    target = random_target(rng)
    target = replace(target, devices=tuple(replace(d, thermal=None) for d in target.devices))
    costs = priced(groups, counts, target)
    for p, place in enumerate(costs.placements):
        d = place.profile
        peak_, energy = d.flops("float32").value, d.energy("float32").value
        bandwidth, per_byte = d.memory_bandwidth.value, d.energy_per_byte.value
        t = costs.seconds[:, p]
        left = t * (costs.dasi_eff[:, p] * peak_ * energy + costs.beta_eff[:, p] * bandwidth * per_byte)
        assert left == pytest.approx(costs.flops[:, p] * energy + costs.nbytes[:, p] * per_byte, rel=1e-9)
        assert costs.joules[:, p] == pytest.approx(t * d.power_const.value + left, rel=1e-9)
        assert np.all(costs.phi[:, p] == 1.0)


def test_mixed_dtypes_in_one_group_are_priced_apart() -> None:
    graph = chain_graph([64, 64, 64])
    counts = work(1e8, 10, dtype="float16"), work(1e7, 10)
    groups = singles(graph)
    apart = priced(groups, counts, pair())
    together = priced(GroupGraph(graph, (OpGroup(0, (0, 1)),)), counts, pair())
    assert together.dynamic[0] == pytest.approx(apart.dynamic.sum(axis=0), rel=1e-12)
    assert together.seconds[0] == pytest.approx(apart.seconds.sum(axis=0), rel=1e-12)
    assert together.dynamic[0, 0] == pytest.approx(1e8 * 3e-11 + 1e7 * 1e-10 + 20e-9)


def test_kinds_have_their_own_efficiencies() -> None:
    slow_norm = {"norm": Efficiency(value(0.5), value(0.1))}
    target = Target("one", "one", (device("a", "torch:cpu", efficiencies=slow_norm),), ())
    costs = costs_of(target, work(0.0, 10**6, "norm"), work(0.0, 10**6, "softmax"))
    launch = costs.seconds[1, 0] - 1e6 / (0.6 * 1e9)
    assert costs.seconds[0, 0] == pytest.approx(launch + 1e6 / (0.1 * 1e9))
    assert 1e-6 < launch < 1e-4


class HalfFitted:
    """A calibration that knows one placement."""

    def seconds(self, spec: str, kernels: Any) -> np.ndarray | None:
        return np.full(len(kernels), 7.0) if spec == "torch:cpu" else None


def test_calibrated_times_replace_the_roofline_and_say_so() -> None:
    groups = singles(chain_graph([64, 64]))
    costs = priced(groups, (work(1e6, 1000),), pair(), calibration=HalfFitted())
    assert costs.seconds[0, 0] == 7.0 and costs.seconds[0, 1] < 1.0
    assert costs.labels == ("calibrated", "modelled") and costs.label == "modelled"


# ---- temperature


def test_a_plan_on_one_placement_costs_what_its_groups_cost() -> None:
    """Table and schedule price at the same temperature there, boundaries apart."""
    hot = Target("one", "one", (device("a", "torch:cpu", thermal=thermal()),), ())
    costs = costs_of(hot, work(1e9, 1000), work(1e5, 10**7))
    found = schedule(costs, [(0, (0, 1))])
    entry = found.stages[0].boundary
    assert found.objectives.energy == pytest.approx(costs.joules.sum() + entry * costs.working_power[0], rel=1e-4)
    assert found.devices[0].temperature == pytest.approx(costs.states[0].temperature, rel=1e-3)
    assert 0.3 < found.devices[0].phi < 0.99


@given(st.floats(0.1, 40.0), st.floats(0.0, 60.0), st.floats(0.1, 30.0))
@settings(deadline=None, max_examples=200)
def test_hotter_surroundings_cost_more(power: float, ambient: float, more: float) -> None:
    profile = device("a", "torch:cpu", thermal=thermal(resistance=0.5))
    cool, warm = (device_energy(profile, 1.0, power, 1.0, Conditions(ambient=a)) for a in (ambient, ambient + more))
    if cool.sustained and warm.sustained:
        assert warm.temperature > cool.temperature and warm.joules > cool.joules and warm.phi < cool.phi
    assert cool.sustained or not warm.sustained


@given(st.floats(0.0, 60.0), st.floats(0.0, 1.0), st.floats(0.01, 5.0), st.floats(0.0, 8000.0))
@settings(deadline=None, max_examples=300)
def test_settled_temperature_is_the_lowest_solution(power: float, share: float, r: float, slope: float) -> None:
    t = thermal(resistance=r, slope=slope)
    found, sustained = settle(t, np.array(power), np.array(share), 85.0, Conditions())
    grid = np.linspace(25.0, 85.0, 20001)
    gap = 25.0 + r * (power + share * leakage(t, grid)) - grid
    if sustained:
        there = 25.0 + r * (power + share * leakage(t, found))
        assert there == pytest.approx(float(found), abs=1e-8)
        assert np.all(gap[grid < found - 1e-6] > -1e-9)
    else:
        assert np.all(gap > -1e-2) and found == 85.0


def test_run_away_is_detected_and_refused() -> None:
    profile = device("a", "torch:cpu", thermal=thermal(resistance=6.0, leakage=2.0))
    steady = device_energy(profile, 1.0, 4.0, 1.0, Conditions())
    gone = device_energy(profile, 1.0, 6.3, 1.0, Conditions())
    assert steady.sustained and not gone.sustained
    # If leakage did not grow the hotter load would be fine: 25 + 6 (1 + 6.3 + 2) = 81 C.
    frozen = replace(profile, thermal=thermal(resistance=6.0, leakage=2.0, slope=0.0, reference=85.0))
    assert device_energy(frozen, 1.0, 6.3, 1.0, Conditions()).sustained
    oven = replace(profile, thermal=thermal(resistance=50.0))
    costs = costs_of(Target("oven", "oven", (oven,), ()), work(1e9, 1000))
    with pytest.raises(ThermalError, match=r"device a settles at no temperature below its ceiling of 85 C"):
        partition(costs)
    short = costs_of(Target("oven", "oven", (oven,), ()), work(1e9, 1000), conditions=Conditions(duration=1e-3))
    assert partition(short).candidates[0].schedule.devices[0].sustained


def test_a_placement_that_overheats_leaves_the_choice_to_others() -> None:
    target = pair(peak_flops={"fp32": value(1e12, "FLOP/s")}, energy_per_flop={"fp32": value(1e-10, "J/FLOP")})
    cool = partition(costs_of(target, work(1e9, 1000)))
    assert cool.choose("latency").strategy == "single onnxruntime:CPU"
    hot = replace(target, devices=(target.devices[0], replace(target.devices[1], thermal=thermal())))
    front = partition(costs_of(hot, work(1e9, 1000)))
    assert front.choose("latency").strategy == "single torch:cpu"
    assert any("settles at no temperature" in n and "single onnxruntime" in n for n in front.notes)
    assert any("no thermal data for a:" in n for n in front.notes)


def test_bursts_heat_as_a_first_order_circuit() -> None:
    t = thermal(leakage=0.0)
    power, share = np.array(10.0), np.array(1.0)

    def after(seconds: float) -> float:
        return float(settle(t, power, share, 85.0, Conditions(duration=seconds))[0])

    assert after(0.0) == 25.0 and after(inf) == pytest.approx(25.0 + 15.0)
    assert after(40.0) == pytest.approx(25.0 + 15.0 * (1 - np.exp(-1)))
    assert after(1e-3) == pytest.approx(25.0, abs=1e-3) and after(4000.0) == pytest.approx(after(inf))


@given(st.floats(0.01, 400.0), st.floats(0.1, 60.0))
@settings(deadline=None, max_examples=100)
def test_a_burst_is_never_hotter_than_told(seconds: float, power: float) -> None:
    """The differential equation, integrated in small steps, stays below the bound, and near it without leakage."""
    t = thermal()
    told, sustained = settle(t, np.array(power), np.array(1.0), 85.0, Conditions(duration=seconds))
    real, step = 25.0, seconds / 2000
    for _ in range(2000):
        real += step * (25.0 + 1.5 * (power + float(leakage(t, min(real, 200.0)))) - real) / 40.0
    assert not sustained or real <= float(told) + 1e-6


def test_leakage_by_hand() -> None:
    assert leakage(thermal(), 70.0) == pytest.approx(3.0)
    ratio = (363.15 / 343.15) ** 2 * np.exp(2500 * (1 / 343.15 - 1 / 363.15))
    assert leakage(thermal(), 90.0) == pytest.approx(3.0 * ratio)


@pytest.mark.parametrize(
    ("changed", "match"),
    [({"reserve": 1.0}, "reserve"), ({"duration": -1.0}, "duration"), ({"ceiling": 0.0}, "ceiling"),
     ({"ambient": -300.0}, "ambient"), ({"duration": float("nan")}, "duration")],
)  # fmt: skip
def test_conditions_out_of_range(changed: dict[str, float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Conditions(**changed)


# ---- memory


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 12), st.integers(0, 12)), max_size=25))
@settings(deadline=None, max_examples=300)
def test_arena_keeps_live_tensors_apart(rows: list[tuple[int, int, int]]) -> None:
    sizes, a, b = (np.array([r[k] for r in rows], dtype=np.int64) for k in range(3))
    first, last = np.minimum(a, b), np.maximum(a, b)
    arena = allocate(sizes, first, last)
    for i in range(len(rows)):
        for j in range(i):
            together = first[i] <= last[j] and first[j] <= last[i]
            apart = arena.offsets[i] + sizes[i] <= arena.offsets[j] or arena.offsets[j] + sizes[j] <= arena.offsets[i]
            assert apart or not together
    live = [int(sizes[(first <= k) & (k <= last)].sum()) for k in range(13)]
    assert arena.peak == peak(sizes, first, last) == max(live)
    assert arena.peak <= arena.nbytes <= int(sizes.sum())
    assert arena.nbytes == int((arena.offsets + sizes).max(initial=0))


def test_arena_shares_room_over_time_and_shows_fragmentation() -> None:
    at = np.array
    assert allocate(at([8, 8, 8]), at([0, 1, 2]), at([0, 1, 2])).nbytes == 8
    # Greedy by size: 5 and 4 lie where 3 and 6 were free; what lives at once is 9, the block is larger.
    odd = allocate(at([4, 3, 2, 5]), at([0, 1, 2, 2]), at([1, 2, 3, 3]))
    assert odd.peak == 10 and odd.fragmentation == odd.nbytes / 10 - 1


def test_robson_by_hand() -> None:
    # M = 64 units, n = 16 units: 64 (4/2 + 1) - 16 + 1 = 177 units of 8 bytes.
    assert robson(512, 128, 8) == 177 * 8
    assert robson(512, 8, 8) == 512  # equal blocks do not fragment
    assert robson(0, 8, 8) == 0


def test_a_note_where_only_shared_offsets_make_it_fit() -> None:
    """Tensors of 4000 and 64 bytes: two live at once need 4096, an allocator without foresight several times that."""
    groups = singles(chain_graph([1000, 16, 1000, 16, 1000]))
    counts = tuple(work(1e3, 10) for _ in range(4))

    def notes(room: float) -> str:
        target = Target("t", "t", (device("a", "torch:cpu", memory_bytes=value(room, "B")),), ())
        front = partition(priced(groups, counts, target))
        return " ".join(front.plan(front.candidates[0], "energy").notes)

    assert "allocates as it goes may need up to" in notes(10000.0)
    assert "allocates as it goes" not in notes(30000.0)


def test_weights_once_per_device_and_views_without_room() -> None:
    tensors = {
        "x": TensorSpec("x", (1000,), "float32", "input"),
        "w": TensorSpec("w", (500,), "float32", "weight"),
        **{f"t{i}": TensorSpec(f"t{i}", (1000,), "float32", "activation") for i in range(4)},
    }
    ops = (
        Op("a", "onnx.Mul", ("x", "w"), ("t0",)),
        Op("b", "onnx.Reshape", ("t0",), ("t1",)),
        Op("c", "onnx.Mul", ("t1", "w"), ("t2",)),
        Op("d", "onnx.Mul", ("t2", "w"), ("t3",)),
    )
    graph = OpGraph("g", "onnx", ops, tensors, ("x",), ("t3",), {"": 17})
    costs = priced(singles(graph), tuple(work(1e3, 100) for _ in ops), pair())
    one = schedule(costs, [(0, (0, 1, 2, 3))]).devices
    # x, t0 with its view t1, t2, t3: two live at once, 4000 bytes each, rounded up to 64.
    assert one[0].weight_bytes == 2000 and one[0].arena_bytes == one[0].peak_bytes == 2 * 4032
    assert one[1].weight_bytes == one[1].arena_bytes == 0
    two = schedule(costs, [(0, (0, 1)), (1, (2, 3))]).devices
    assert [d.weight_bytes for d in two] == [2000, 2000]
    assert two[1].arena_bytes == 3 * 4032 - 4032  # the copy of t1 with t2, then t2 with t3


def spill_target(may: bool, room: float) -> Target:
    return pair(may_spill=may, memory_bytes=value(room, "B"))


def test_spilling_costs_time_and_energy_and_is_shown() -> None:
    counts = work(1e6, 10**6), work(1e6, 10**6)
    wide = costs_of(spill_target(True, 1e9), *counts)
    # Three tensors of 256 bytes, two live at once: 512 bytes in the arena; 90 % of 400 are usable.
    tight = costs_of(spill_target(True, 400.0), *counts)
    sequence = [(1, (0, 1))]
    free, full = schedule(wide, sequence), schedule(tight, sequence)
    surplus = 512 - 0.9 * 400
    assert full.devices[1].spill_bytes == int(surplus) and free.devices[1].spill_bytes == 0
    assert full.cpq["b"] == pytest.approx(512 / 360) and full.resident["a"] == int(surplus)
    assert full.objectives.latency > free.objectives.latency and full.objectives.energy > free.objectives.energy
    sigma = surplus / 2e6
    assert full.spilled["b"].sigma == pytest.approx(sigma)
    longer = full.objectives.latency - free.objectives.latency
    assert longer == pytest.approx(sigma * 2e6 / (0.6 * 1e9), rel=1e-6)
    more = full.objectives.energy - free.objectives.energy
    assert more == pytest.approx(longer * (1.0 + 0.5) + surplus * (1e-9 + 2e-9), rel=1e-6)
    assert any(c.strategy == "single onnxruntime:CPU" for c in partition(tight).candidates)
    strict = partition(costs_of(spill_target(False, 400.0), *counts))
    assert all(1 not in c.assignment for c in strict.candidates)
    assert any("memory b needs" in n for n in strict.notes)


def test_the_link_limits_what_is_spilled() -> None:
    """When nearly everything crosses it, a group takes the time of the link."""
    costs = costs_of(spill_target(True, 1e9), work(1e3, 10**6))
    crossing = costs.spilled(1, 0.9, 2e8)
    assert crossing[0] == pytest.approx(costs.seconds[0, 1] - 1e6 / (0.6 * 1e9) + 0.9 * 1e6 / 2e8)


def test_one_memory_is_shared_by_all_devices_of_a_pool() -> None:
    graph = chain_graph([64, 64, 64])
    tensors = dict(graph.tensors) | {n: TensorSpec(n, (1000,), "float32", "weight") for n in ("w0", "w1")}
    ops = tuple(replace(op, inputs=(*op.inputs, f"w{i}")) for i, op in enumerate(graph.ops))
    graph = replace(graph, ops=ops, tensors=tensors)
    shared = {"pool": "ram", "memory_bytes": value(8500.0, "B")}
    devices = device("a", "torch:cpu", **shared), device("b", "onnxruntime:CPU", **shared)
    costs = priced(singles(graph), (work(1e3, 10), work(1e3, 10)), Target("t", "t", devices, ()))
    found = schedule(costs, [(0, (0,)), (1, (1,))])
    # Each device's half of the weights fits; both in one memory, with 3 x 256 bytes of activations, do not.
    assert found.resident == {"ram": 8000 + found.devices[0].arena_bytes + found.devices[1].arena_bytes}
    assert found.cpq["ram"] == found.devices[0].cpq == found.devices[1].cpq > 1
    assert found.transfers[0].seconds == 0
    with pytest.raises(CapacityError, match="memory ram needs"):
        partition(costs)


# ---- time on shared memories


def job(device_: str, seconds: float, demand: float, bound: float, *after: int, pool: str = "ram") -> Job:
    return Job(device_, pool, seconds, bound, demand, after, ())


def test_devices_of_one_memory_slow_each_other_down() -> None:
    limit = {"ram": 10.0, "own": 10.0}
    alone = simulate([job("a", 1.0, 10.0, 1.0)], [], limit)
    assert alone.end.tolist() == [1.0]
    both = simulate([job("a", 1.0, 10.0, 1.0), job("b", 1.0, 10.0, 1.0)], [], limit)
    assert both.end.tolist() == [2.0, 2.0]
    apart = simulate([job("a", 1.0, 10.0, 1.0), job("b", 1.0, 10.0, 1.0, pool="own")], [], limit)
    assert apart.end.tolist() == [1.0, 1.0]
    light = simulate([job("a", 1.0, 4.0, 1.0), job("b", 1.0, 6.0, 1.0)], [], limit)
    assert light.end.tolist() == [1.0, 1.0]
    # b is bound by arithmetic; a is stretched while b runs: 1 s of b is 1/2 s of a.
    mixed = simulate([job("a", 1.0, 10.0, 1.0), job("b", 1.0, 10.0, 0.0)], [], limit)
    assert mixed.end.tolist() == [1.5, 1.0]
    cached = simulate([job("a", 1.0, 50.0, 1.0)], [], limit)
    assert cached.end.tolist() == [1.0]


def test_stretch_ends_when_the_other_does_though_it_was_foreseen_later() -> None:
    """Job a runs alone, beside b, and alone again: its first forecast of its end must not be taken."""
    jobs = [job("a", 2.0, 10.0, 1.0), job("c", 0.5, 0.0, 0.0), job("b", 0.5, 10.0, 1.0, 1)]
    found = simulate(jobs, [], {"ram": 10.0})
    assert found.start.tolist() == [0.0, 0.0, 0.5]
    assert found.end.tolist() == [2.5, 0.5, 1.5]


def test_transfers_take_turns_on_a_link() -> None:
    jobs = [job("a", 1.0, 0.0, 0.0), Job("b", "own", 1.0, 0.0, 0.0, (), (0,)), Job("c", "own", 1.0, 0.0, 0.0, (), (1,))]
    moves = [Move(("a", "b"), 0, 2.0), Move(("a", "b"), 0, 2.0)]
    assert simulate(jobs, moves, {"ram": 1.0, "own": 1.0}).start.tolist() == [0.0, 3.0, 5.0]


# ---- ranges of coefficients


def ranged(low: float, high: float) -> Target:
    """Two devices; b spends less on memory unless its coefficient is near the upper end."""
    return pair(energy_per_byte=value(5e-10, "J/B", low, high))


def plan_for(target: Target, objective: str = "energy") -> tuple[Front, Plan]:
    front = partition(costs_of(target, work(1e3, 10**8)))
    return front, front.plan(front.choose(objective), objective)


def test_the_break_even_of_a_coefficient_is_found() -> None:
    front, plan = plan_for(ranged(1e-10, 4e-9))
    assert plan.strategy == "single onnxruntime:CPU"
    (row, every) = plan.sensitivity
    assert (row.device, row.field, row.unit) == ("b", "energy_per_byte", "J/B") and every.device == ALL
    assert row.flips_below is None and row.flips_above is not None and row.rival_above == "single torch:cpu"
    rival = next(c for c in front.candidates if c.strategy == row.rival_above).objectives.energy
    # By hand: the plan's energy grows by 1e8 bytes times the coefficient until it is the rival's.
    assert row.flips_above == pytest.approx(5e-10 + (rival - plan.objectives.energy) / 1e8, rel=1e-6)
    again, _ = plan_for(vary(front.costs.target, "b", "energy_per_byte", row.flips_above * 1.001))
    assert again.choose("energy").strategy == "single torch:cpu"
    again, _ = plan_for(vary(front.costs.target, "b", "energy_per_byte", row.flips_above * 0.999))
    assert again.choose("energy").strategy == "single onnxruntime:CPU"
    assert every.flips_above == pytest.approx((row.flips_above - 5e-10) / (4e-9 - 5e-10), rel=1e-6)


def test_the_energy_range_is_that_of_planning_with_the_ends() -> None:
    front, plan = plan_for(ranged(1e-10, 4e-9))
    ends = []
    for end in (1e-10, 4e-9):
        costs = costs_of(vary(front.costs.target, "b", "energy_per_byte", end), work(1e3, 10**8))
        ends.append(evaluate(costs, front.choose("energy").assignment, "").objectives.energy)
    assert plan.energy_range == pytest.approx(tuple(ends), rel=1e-9)
    text = " ".join(plan.sensitivity_text())
    assert "except for" in text and "energy_per_byte of b above" in text and "single torch:cpu is better" in text


def test_a_choice_that_holds_says_so() -> None:
    _, narrow = plan_for(ranged(4e-10, 6e-10))
    assert all(s.flips_above is s.flips_below is None for s in narrow.sensitivity)
    assert "holds over all of them" in narrow.sensitivity_text()[0]
    _, fast = plan_for(ranged(1e-10, 4e-9), "latency")
    assert all(s.flips_above is s.flips_below is None for s in fast.sensitivity)
    assert fast.energy_range[1] > fast.energy_range[0]
    _, sure = plan_for(pair())
    assert sure.sensitivity == () and sure.sensitivity_text() == [] and sure.energy_range[0] == sure.energy_range[1]


@given(seeds)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_repriced_energies_are_those_of_a_new_table(seed: int) -> None:
    """Repricing from what a plan asks for equals annotating and scheduling again, thermal coefficients included."""
    rng = np.random.default_rng(seed)
    groups, counts = random_graph(rng)
    target = random_target(rng)
    costs = priced(groups, counts, target)
    candidate = evaluate(costs, rng.integers(0, len(costs.placements), len(groups.groups)), "x")
    *rows, every = Front(costs, (candidate,), {}).plan(candidate, "energy").sensitivity
    assert len(rows) >= 4 * len(target.devices)

    def again(changed: Target) -> float:
        return evaluate(priced(groups, counts, changed), candidate.assignment, "x").objectives.energy

    low = high = target
    for row in rows:
        assert row.joules_low == pytest.approx(again(vary(target, row.device, row.field, row.low)), rel=1e-9)
        assert row.joules_high == pytest.approx(again(vary(target, row.device, row.field, row.high)), rel=1e-9)
        low, high = vary(low, row.device, row.field, row.low), vary(high, row.device, row.field, row.high)
    assert every.joules_low == pytest.approx(again(low), rel=1e-9)
    assert every.joules_high == pytest.approx(again(high), rel=1e-9)


# ---- JSON


def test_plan_round_trip_and_refusals() -> None:
    target = ranged(1e-10, 4e-9)
    target = replace(target, devices=(target.devices[0], replace(target.devices[1], thermal=thermal(resistance=0.1))))
    _, plan = plan_for(target)
    data = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(data) == plan
    assert {d.temperature is None for d in plan.devices} == {True, False}
    for table, field, bad in (
        ("devices", "temperature", "hot"), ("devices", "cpq", None), ("devices", "sustained", 1),
        ("devices", "arena_bytes", 1.5), ("sensitivity", "flips_above", "soon"), ("sensitivity", "unit", 3),
    ):  # fmt: skip
        broken = json.loads(json.dumps(data))
        broken[table][0][field] = bad
        with pytest.raises(ArtifactError, match=field):
            Plan.from_json(broken)
    for missing in ("devices", "sensitivity"):
        with pytest.raises(ArtifactError, match=missing):
            Plan.from_json({k: v for k, v in data.items() if k != missing})


def test_table_and_plan_as_text_and_json() -> None:
    _, plan = plan_for(ranged(1e-10, 4e-9))
    text = plan.as_text()
    assert "device b:" in text and "CPQ" in text and "no thermal data" in text and "over the ranges" in text
    costs = costs_of(pair(thermal=thermal(resistance=0.1)), work(1e6, 1000))
    data = json.loads(json.dumps(costs.to_json()))
    assert data["dasi"] == costs.dasi.tolist() and data["beta"] == costs.beta.tolist()
    assert data["temperature"][0] is None and data["temperature"][1] > 25.0 and data["sustained"] == [True, True]
    assert f"{costs.dasi[0, 0]:.3f}/{costs.beta[0, 0]:.3f}" in costs.as_text()
