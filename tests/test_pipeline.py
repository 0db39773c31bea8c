"""Placement for the smallest largest load: its values, moves, splits and bound against slow and exhaustive ones."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile.errors import CapacityError, QeilError
from qeil_compile.passes.partition.pipeline import Problem, bound, contiguous, evaluate, problem, search
from qeil_compile.passes.partition.pipeline_kernel import excess, load, move, new_state
from qeil_compile.passes.partition.pipeline_orders import split, topological

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "benchmarks" / "data" / "dnn_partitioning"
QUICK = {"orders": 40, "chains": 4, "moves": 3000}


def some_arguments(seed: int, n: int, accelerators: int = 2, backward: bool = False, room: float = np.inf) -> Any:
    """Arguments of `problem`: a random acyclic graph with two kinds of devices, classes and forbidden placements."""
    rng = np.random.default_rng(seed)
    seconds = np.repeat(rng.uniform(0.1, 2.0, (n, 1)), accelerators + 1, axis=1)
    seconds[:, -1] *= rng.uniform(2, 6)
    seconds[rng.random(n) < 0.1, :-1] = np.inf
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n) if rng.random() < 2.5 / n]
    half = n // 2 if backward else n
    labels = np.arange(n)
    for node in range(n):
        if rng.random() < 0.25:
            labels[node] = labels[rng.integers(0, n)]
        if backward and node >= half and rng.random() < 0.7:
            labels[node] = labels[n - 1 - node]
    return {
        "seconds": seconds, "size": rng.integers(1, 9, n).astype(float),
        "room": np.array([room] * accelerators + [np.inf]), "pays": np.array([1.0] * accelerators + [0.0]),
        "edges": np.array(pairs, np.int64).reshape(-1, 2), "cost": rng.uniform(0, 1.5, n) * (rng.random(n) < 0.8),
        "together": labels, "forward": np.arange(n) < half,
    }  # fmt: skip


def slow_loads(a: Any, place: list[int]) -> list[float]:
    """The definition, edge by edge: compute, plus once per output that leaves and once per output that enters."""
    devices = range(len(a["room"]))
    loads = dict.fromkeys(devices, 0.0)
    for node, d in enumerate(place):
        loads[d] += float(a["seconds"][node, d])
    for d in devices:
        if a["pays"][d] == 0:
            continue
        leaves, enters = set(), set()
        for u, v in a["edges"].tolist():
            if place[u] == d and place[v] != d:
                leaves.add(u)
            if place[u] != d and place[v] == d:
                enters.add(u)
        loads[d] += float(sum(a["cost"][u] for u in leaves) + sum(a["cost"][u] for u in enters))
    return [loads[d] for d in devices]


def slow_contiguous(a: Any, place: list[int]) -> bool:
    """No device has forward nodes u, w with a forward path u -> v -> w over a node v of another device."""
    n = len(place)
    reach = np.eye(n, dtype=bool)
    for u, v in a["edges"].tolist():
        reach[u, v] |= bool(a["forward"][u] and a["forward"][v])
    for k in range(n):
        reach |= np.outer(reach[:, k], reach[k])
    return not any(
        place[u] == place[w] != place[v] and reach[u, v] and reach[v, w]
        for u, v, w in itertools.product(range(n), repeat=3)
    )


def all_places(p: Problem) -> Any:
    """Every placement [nodes] that keeps classes together, runs where it may and fits."""
    t = p.free
    able = [np.flatnonzero(np.isfinite(row)).tolist() for row in t.seconds]
    for units in itertools.product(*able):
        held = np.bincount(units, weights=t.size, minlength=len(t.room))
        if (held <= t.room).all():
            yield np.array(units)[p.unit]


def some_place(rng: np.random.Generator, p: Problem) -> np.ndarray:
    """A random device that may run it for each unit."""
    return np.array([rng.choice(np.flatnonzero(np.isfinite(row))) for row in p.free.seconds])


@pytest.mark.parametrize("seed", range(12))
def test_loads_and_moves_equal_slow_loops(seed: int) -> None:
    a = some_arguments(seed, 8 + 3 * seed, accelerators=1 + seed % 4, backward=seed % 2 == 1)
    p, rng = problem(**a), np.random.default_rng(seed)
    s = new_state(p.free)
    load(p.free, s, some_place(rng, p))
    for _ in range(60):
        u = int(rng.integers(len(p.free.size)))
        others = np.flatnonzero(np.isfinite(p.free.seconds[u]) & (np.arange(len(s.load)) != s.place[u]))
        if not len(others):
            continue
        move(p.free, s, u, int(rng.choice(others)))
        place = s.place[p.unit]
        assert s.load == pytest.approx(slow_loads(a, place.tolist()), rel=1e-9, abs=1e-9)
        assert s.held == pytest.approx(np.bincount(place, weights=a["size"], minlength=len(s.held)))
        found = evaluate(p, place)
        assert found.loads == pytest.approx(s.load, rel=1e-9, abs=1e-9) and found.load == found.loads.max()
        assert found.contiguous == slow_contiguous(a, place.tolist())


@pytest.mark.parametrize("seed", range(10))
def test_search_finds_the_optimum_of_tiny_problems(seed: int) -> None:
    room = 24.0 if seed % 3 == 0 else np.inf
    a = some_arguments(100 + seed, 9, backward=seed % 2 == 1, room=room)
    p = problem(**a)
    least = min(max(slow_loads(a, place.tolist())) for place in all_places(p))
    found = search(p, seed, **QUICK)
    assert found.best.load == pytest.approx(least, rel=1e-9)
    assert max(slow_loads(a, found.best.place.tolist())) == pytest.approx(found.best.load, rel=1e-9)
    assert 0 < bound(p) <= least * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_ordered_split_is_the_best_contiguous_one(seed: int) -> None:
    """Of placements whose units can be put in a row of devices, as nested ideals can."""
    a = some_arguments(200 + seed, 8, backward=seed % 2 == 1)
    p = problem(**a)
    arcs = [(u, int(v)) for u in range(len(p.ordered.size))
            for v in p.ordered.after[p.ordered.after_ptr[u] : p.ordered.after_ptr[u + 1]]]  # fmt: skip
    least = np.inf
    for place in all_places(p):
        stages = dict(zip(p.stage.tolist(), place.tolist(), strict=True))
        if any(stages[s] != d for s, d in zip(p.stage.tolist(), place.tolist(), strict=True)):
            continue
        if any(all(rank[stages[u]] <= rank[stages[v]] for u, v in arcs) for rank in itertools.permutations(range(3))):
            least = min(least, max(slow_loads(a, place.tolist())))
    found = search(p, seed, **QUICK).ordered
    assert (found.load if found else np.inf) == pytest.approx(least, rel=1e-9)
    assert found is None or found.contiguous


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_is_the_best_of_its_order(seed: int) -> None:
    a = some_arguments(300 + seed, 7, room=20.0)
    t = problem(**a).ordered
    order, by_rank = topological(t, np.array([seed + 1], np.uint64), 0.9), np.array([1, 2, 0])
    rank, s = {u: i for i, u in enumerate(order.tolist())}, new_state(t)
    assert sorted(rank) == list(range(len(t.size)))
    assert all(rank[u] < rank[int(v)] for u in rank for v in t.after[t.after_ptr[u] : t.after_ptr[u + 1]])
    least = np.inf
    for i, j in itertools.combinations_with_replacement(range(len(order) + 1), 2):
        place = np.zeros(len(order), np.int64)
        place[order] = by_rank[np.searchsorted([i, j], np.arange(len(order)), side="right")]
        load(t, s, place)
        if excess(t, s) == 0:
            least = min(least, float(s.load.max()))
    cut = np.zeros(len(order), np.int64)
    value = split(t, order, by_rank, cut)
    assert value == pytest.approx(least, rel=1e-9)
    if value < np.inf:
        load(t, s, cut)
        assert s.load.max() == pytest.approx(value, rel=1e-9)


def test_the_same_seed_gives_the_same_split() -> None:
    p = problem(**some_arguments(7, 40, accelerators=3))
    one, two = search(p, 3, **QUICK), search(p, 3, **QUICK)
    assert (one.best.place == two.best.place).all() and one.best.load == two.best.load


def test_memory_binds() -> None:
    """Three nodes of one size, two accelerators with room for one: the third goes to the slow CPU."""
    a = {"seconds": np.array([[1.0, 1.0, 9.0]] * 3), "size": np.ones(3), "room": np.array([1.0, 1.0, np.inf]),
         "pays": np.array([1.0, 1.0, 0.0]), "edges": np.zeros((0, 2), np.int64), "cost": np.zeros(3)}  # fmt: skip
    assert search(problem(**a), **QUICK).best.load == 9.0
    with pytest.raises(CapacityError, match="fits into memory"):
        search(problem(**{**a, "room": np.array([1.0, 1.0, 0.0])}), **QUICK)


def test_errors_name_what_is_wrong() -> None:
    a = some_arguments(1, 6)
    with pytest.raises(QeilError, match="size has shape"):
        problem(**{**a, "size": np.ones(5)})
    with pytest.raises(QeilError, match="an edge names node 6"):
        problem(**{**a, "edges": np.array([[0, 6]])})
    with pytest.raises(QeilError, match="cycle"):
        problem(**{**a, "edges": np.array([[0, 1], [1, 0]])})
    with pytest.raises(QeilError, match="keep them together"):
        evaluate(problem(**{**a, "together": np.zeros(6, np.int64)}), np.array([0, 0, 0, 0, 0, 1]))
    with pytest.raises(QeilError, match="of devices 0 to 2 for each of 6 nodes"):
        evaluate(problem(**a), np.full(6, 3))
    with pytest.raises(QeilError, match="would hold"):
        evaluate(problem(**{**a, "room": np.zeros(3), "seconds": np.ones((6, 3))}), np.zeros(6))
    seconds = a["seconds"].copy()
    seconds[2] = np.inf
    with pytest.raises(QeilError, match="node 2"):
        search(problem(**{**a, "seconds": seconds, "together": np.arange(6)}), **QUICK)


@pytest.fixture
def workloads(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("dnn_partitioning")


@pytest.mark.parametrize("name", ["bert24_inference", "bert24_training", "bert_l-3_inference", "bert_l-3_training"])
def test_published_workloads_reach_the_exact_contiguous_optimum(workloads: Any, name: str) -> None:
    """The ordered split equals the published programme's optimum; the free one is below it and valued by loops here."""
    p = workloads.read(DATA / f"{name}.json").problem
    found = search(p, 1, orders=100, chains=2, moves=5000)
    assert found.ordered is not None and found.ordered.contiguous
    assert found.ordered.load == pytest.approx(workloads.CONTIGUOUS[name], rel=1e-9)
    assert found.best.load < workloads.CONTIGUOUS[name]
    assert bound(p) <= found.best.load
    assert json_load(DATA / f"{name}.json", found.best.place.tolist()) == pytest.approx(found.best.load, rel=1e-9)


def json_load(path: Path, place: list[int]) -> float:
    """The largest load straight from a file, with checks of memory and classes; `place` by position of the node."""
    data = json.loads(path.read_text(encoding="utf-8"))
    on = {node["id"]: d for node, d in zip(data["nodes"], place, strict=True)}
    accelerators = data["maxFPGAs"]
    assert max(place) < accelerators + data["maxCPUs"]
    classes: dict[int, int] = {}
    loads = dict.fromkeys(on.values(), 0.0)
    held = dict.fromkeys(on.values(), 0.0)
    for node in data["nodes"]:
        d = on[node["id"]]
        if "colorClass" in node:
            assert classes.setdefault(node["colorClass"], d) == d
        assert d >= accelerators or node["supportedOnFpga"]
        loads[d] += node["fpgaLatency"] if d < accelerators else node["cpuLatency"]
        held[d] += node["size"]
    for d in loads:
        if d < accelerators:
            assert held[d] <= data["maxSizePerFPGA"]
            crossing = {e["sourceId"]: e["cost"] for e in data["edges"]
                        if (on[e["sourceId"]] == d) != (on[e["destId"]] == d)}  # fmt: skip
            loads[d] += sum(crossing.values())
    return max(loads.values())


def test_contiguity_of_a_diamond() -> None:
    edges, forward = np.array([[0, 1], [0, 2], [1, 3], [2, 3]]), np.ones(4, bool)
    assert contiguous(np.array([0, 0, 1, 1]), edges, forward)
    assert not contiguous(np.array([0, 1, 0, 0]), edges, forward)
    assert contiguous(np.array([0, 1, 0, 0]), edges, np.array([True, True, True, False]))
