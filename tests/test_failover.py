"""Failover plans: what takes over when a placement, a device or an engine is lost, from the search to the artifact."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from qeil_compile import api
from qeil_compile.api import PartitionSettings, Settings, compile_traced, load, partition, price, trace
from qeil_compile.artifact import write
from qeil_compile.backends import backend
from qeil_compile.cli import main
from qeil_compile.demo import PINS, PLATFORM
from qeil_compile.devices import Placement, Target
from qeil_compile.errors import ArtifactError, FailoverError, InputError
from qeil_compile.frontends import Traced
from qeil_compile.models import demo_model
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.partition import Phase, Search, partition_phases, phase_failovers, with_failovers
from qeil_compile.passes.partition.failover import losses
from qeil_compile.plan import Plan
from qeil_compile.runtime import Compiled
from qeil_compile.runtime.failover import spare_for
from tests import zoo
from tests.artifacts import ENGINES, TOKENS, files_of, replace_file, rewrite, run_all, settings, tied, tiny
from tests.cost_problems import chain_graph, device, link, priced, singles, value, work

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "data" / "models"
QUICK = Search(epochs=8)
Capture = pytest.CaptureFixture[str]


# ---- the search


def three(**memory: float) -> Target:
    """A fast device c with two engines, a middling b and a slow a, all with memories of their own."""
    speed = {"a": 1e10, "b": 3e10, "c": 1e11}
    engines = {"a": ("torch:cpu",), "b": ("openvino:NPU",), "c": ("openvino:GPU", "onnxruntime:CUDA")}
    devices = tuple(
        device(
            n, "", engines=engines[n], kind="cpu" if n == "a" else "npu", peak_flops={"fp32": value(f, "FLOP/s")},
            memory_bytes=value(memory.get(n, 1e9), "B"),
        )
        for n, f in speed.items()
    )  # fmt: skip
    return Target("three", "three", devices, tuple(link(*p, 1e9) for p in (("a", "b"), ("a", "c"), ("b", "c"))))


def chain(target: Target | None = None, length: int = 6) -> CostTable:
    graph = chain_graph([64] * (length + 1))
    return priced(singles(graph), (work(1e7, 1000),) * length, target or three())


def planned(costs: CostTable, objective: str = "latency", **limits: Any) -> Plan:
    limited = PartitionSettings(search=QUICK, **limits)
    front = partition(costs, limited)
    return with_failovers(front, replace(front.plan(front.choose(objective), objective), pins=limited.pins), limited)


def entry(plan: Plan, name: str) -> tuple[Plan | None, str, tuple[str, ...]]:
    """Spare, reason and notes for a loss."""
    found = next(f for f in plan.failovers if name in f.names)
    return None if found.spare is None else plan.spares[found.spare], found.reason, found.notes


def placements(plan: Plan) -> set[str]:
    return {s.placement for s in plan.stages}


def test_losses_of_the_same_placements_are_one() -> None:
    found = losses(three().placements, {"torch:cpu", "openvino:GPU"})
    every = {p.spec for p in three().placements}
    assert {loss.names: set(loss.lost) for loss in found} == {
        ("torch:cpu", "a", "torch"): {"torch:cpu"},
        ("openvino:GPU",): {"openvino:GPU"},
        ("c",): {"openvino:GPU", "onnxruntime:CUDA"},
        ("openvino",): {"openvino:NPU", "openvino:GPU"},
        **{(f"all but {spec}",): every - {spec} for spec in every},
    }


def test_what_runs_alone_on_the_only_placement_left_needs_no_other_plan() -> None:
    target = three()
    names = {n for loss in losses(target.placements, {"torch:cpu"}) for n in loss.names}
    assert "all but torch:cpu" not in names and "all but openvino:NPU" in names


def test_losses_one_after_the_other_have_a_plan() -> None:
    plan = planned(chain())
    specs = [p.spec for p in three().placements]
    for alone in specs:
        k = spare_for(plan, chain().to_json(), [s for s in specs if s != alone])
        assert placements(plan if k is None else plan.spares[k]) == {alone}


def test_a_device_may_have_the_name_of_an_engine() -> None:
    profile = device("torch", "onnxruntime:CPU")
    found = losses((Placement("onnxruntime", "CPU", profile), Placement("torch", "cpu", device("a", ""))), {
        "onnxruntime:CPU", "torch:cpu"
    })  # fmt: skip
    assert sum("torch" in loss.names for loss in found) == 1
    assert next(loss.lost for loss in found if "torch" in loss.names) == ("onnxruntime:CPU",)


def test_each_spare_avoids_what_is_lost_and_is_the_best_that_is_left() -> None:
    plan = planned(chain())
    assert {s.device for s in plan.stages} == {"c"}
    used = next(iter(placements(plan)))
    other = ({"openvino:GPU", "onnxruntime:CUDA"} - {used}).pop()
    assert placements(entry(plan, used)[0] or plan) == {other}
    assert placements(entry(plan, "c")[0] or plan) == {"openvino:NPU"}
    for failover in plan.failovers:
        full = partition(chain(), PartitionSettings(forbidden=failover.lost))
        spare = entry(plan, failover.names[0])[0]
        assert spare is not None and not placements(spare) & set(failover.lost)
        assert spare.objectives.latency <= full.choose("latency").objectives.latency * (1 + 1e-12)
        assert spare.gap is not None and spare.alternatives[0].chosen and not spare.failovers and not spare.spares


@pytest.mark.parametrize("objective", ["latency", "energy", "balanced", "utilisation"])
def test_spares_of_a_real_graph_are_as_good_as_a_search_of_their_own(objective: str) -> None:
    costs = price(trace(zoo.two_branches(), zoo.EXAMPLES["two_branches"]()), PLATFORM)
    front = partition(costs)
    plan = with_failovers(front, front.plan(front.choose(objective), objective))
    assert plan.spares
    for failover in plan.failovers:
        spare, reason, _ = entry(plan, failover.names[0])
        assert spare is not None and not reason and not placements(spare) & set(failover.lost)
        alone = partition(costs, PartitionSettings(forbidden=failover.lost))
        best = min(front.value(objective, c.objectives) for c in alone.candidates)
        assert front.value(objective, spare.objectives) <= best * 1.005
    again = with_failovers(front, front.plan(front.choose(objective), objective))
    assert again == plan and Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_equal_spares_are_stored_once() -> None:
    """Two devices with half of the operators each, and a slow road to the third: all goes there, whichever is lost."""
    target = three()
    slow = tuple(replace(k, bandwidth=value(2e4, "B/s")) if k.a == "a" else k for k in target.links)
    costs = chain(replace(target, links=slow))
    places = [p.spec for p in costs.placements]
    costs.supported[:3, places.index("openvino:GPU")] = costs.supported[3:, places.index("openvino:NPU")] = False
    costs.supported[:, places.index("onnxruntime:CUDA")] = False
    plan = planned(costs)
    assert placements(plan) == {"openvino:NPU", "openvino:GPU"}
    assert {f.names: f.spare for f in plan.failovers} == {
        ("openvino:NPU", "b"): 0, ("openvino:GPU",): 0, ("c",): 0, ("openvino",): 0, ("all but torch:cpu",): 0
    }  # fmt: skip
    (spare,) = plan.spares
    assert placements(spare) == {"torch:cpu"} and spare.gap == pytest.approx(0, abs=1e-9)
    for lost in ("b", "c"):
        alone = partition(costs, PartitionSettings(forbidden=(lost,)))
        assert spare.lower_bounds["latency"] <= alone.lower_bounds["latency"] * (1 + 1e-12)


def test_a_pin_to_what_is_lost_is_dropped_and_told() -> None:
    plan = planned(chain(), pins={"op0": "torch:cpu", "op[2-3]": "openvino:NPU"})
    assert placements(plan) >= {"torch:cpu", "openvino:NPU"}
    spare, _, notes = entry(plan, "b")
    assert spare is not None and notes == ("pin op[2-3]=openvino:NPU is dropped",)
    assert spare.pins == {"op0": "torch:cpu"}
    assert next(s.placement for s in spare.stages if "op0" in s.ops) == "torch:cpu"
    unaffected, _, notes = entry(plan, "c")
    assert notes == () and unaffected is not None and unaffected.pins == plan.pins


def test_ties_that_nothing_left_can_keep_are_dropped_and_told() -> None:
    costs = chain()
    places = [p.spec for p in costs.placements]
    costs.supported[0, places.index("openvino:NPU")] = costs.supported[1, places.index("torch:cpu")] = False
    plan = planned(costs, together=("op0", "op[01]", "op[45]"))
    spare, _, notes = entry(plan, "c")
    assert spare is not None and notes == (
        "together op[01] is dropped: no placement that is left takes all of it",
    )
    assert len({s.placement for s in spare.stages for o in s.ops if o in ("op4", "op5")}) == 1


def test_caps_that_nothing_left_can_keep_give_the_nearest_plan() -> None:
    costs = chain()
    best = planned(costs).objectives.latency
    plan = planned(costs, f"energy; latency<={best * 1.5}s")
    spare, reason, notes = entry(plan, "c")
    fastest = partition(costs, PartitionSettings(forbidden=("c",))).choose("latency")
    assert not reason and spare is not None and spare.objectives.latency == fastest.objectives.latency
    assert len(notes) == 1 and "caps" in notes[0] and f"{spare.objectives.latency:.4g} of at most" in notes[0]


def test_reasons_for_no_plan() -> None:
    costs = chain()
    for p, place in enumerate(costs.placements):
        if place.profile.name != "c":
            costs.supported[2, p] = False
    spare, reason, _ = entry(planned(costs), "c")
    assert spare is None and reason == "operator op2 (onnx.Relu) runs nowhere else"
    plan = planned(chain(), forbidden=("a", "b"))
    assert entry(plan, "c")[0] is None and entry(plan, "c")[1] == "target three has no other placement (a, b forbidden)"
    heavy = chain_graph([64] * 3)
    big = priced(singles(heavy), (work(1e7, 1000),) * 2, three(a=10.0, b=10.0))
    spare, reason, _ = entry(planned(big), "c")
    assert spare is None and "memory" in reason and "does not fit" in reason


def test_a_strategy_that_is_lost_gives_way_to_all() -> None:
    plan = planned(chain(), only=("single openvino:GPU",))
    assert placements(plan) == {"openvino:GPU"}
    spare, _, notes = entry(plan, "openvino:GPU")
    assert spare is not None and "all strategies are considered" in notes[0]
    plan = planned(chain(), only=("single",))
    assert all(s.strategy.startswith("single ") for s in plan.spares) and not any(f.notes for f in plan.failovers)


def test_phases_fail_over_together() -> None:
    graph = chain_graph([64] * 5)
    target = three()
    prompt = priced(singles(graph), (work(1e8, 1000),) * 4, target)
    step = priced(singles(graph), (work(1e4, 10**6),) * 4, target)
    phases = [Phase("prompt", prompt), Phase("steps", step, 10.0, {"t0": "t4"})]
    limits = PartitionSettings(pins={"op0": "torch:cpu"}, search=QUICK)
    front = partition_phases(phases, limits)
    point = front.choose("latency")
    plans = phase_failovers(front, point, "latency", limits)
    assert list(plans) == ["prompt", "steps"]
    assert plans["prompt"].failovers == plans["steps"].failovers
    assert len({len(p.spares) for p in plans.values()}) == 1 and plans["prompt"].spares
    assert {n for f in plans["prompt"].failovers for n in f.names} >= {"a", "torch:cpu"}
    for plan in plans.values():
        for failover in plan.failovers:
            assert failover.spare is not None and not placements(plan.spares[failover.spare]) & set(failover.lost)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    spare, _, notes = entry(plans["steps"], "a")
    assert spare is not None and notes == ("pin op0=torch:cpu is dropped",)
    # As good as a search that never knew the device.
    alone = partition_phases(phases, PartitionSettings(forbidden=("a",), search=QUICK)).choose("latency")
    k = next(f.spare for f in plans["prompt"].failovers if "a" in f.names)
    runs = {"prompt": 1, "steps": 10}
    assert k is not None
    total = sum(runs[n] * p.spares[k].objectives.latency for n, p in plans.items())
    assert total <= alone.objectives.latency * 1.01
    stuck = partition_phases(phases, PartitionSettings(forbidden=("b", "c"), search=QUICK))
    none = phase_failovers(stuck, stuck.choose("latency"), "latency", PartitionSettings(forbidden=("b", "c")))
    assert [f.reason for f in none["steps"].failovers] == ["target three has no other placement (b, c forbidden)"]


# ---- the plan's JSON


BAD: list[Callable[[dict[str, Any]], object]] = [
    lambda p: p.pop("failovers"),
    lambda p: p.pop("spares"),
    lambda p: p["spares"].pop(),
    lambda p: p["failovers"].clear(),
    lambda p: p["failovers"][0].update(spare=99),
    lambda p: p["failovers"][0].update(spare=-1),
    lambda p: p["failovers"][0].update(spare=True),
    lambda p: p["failovers"][0].update(spare="0"),
    lambda p: p["failovers"][0].update(spare=None),
    lambda p: p["failovers"][0].update(reason="none"),
    lambda p: p["failovers"][0].update(names=[]),
    lambda p: p["failovers"][0].update(names=[3]),
    lambda p: p["failovers"][0].update(lost=[]),
    lambda p: p["failovers"][0].update(lost=[s["placement"] for s in p["spares"][0]["stages"]]),
    lambda p: p["failovers"][0].pop("lost"),
    lambda p: p["failovers"][0].update(extra=1),
    lambda p: p["failovers"].append(p["failovers"][0]),
    lambda p: p["failovers"].append(3),
    lambda p: p["spares"].append(p["spares"][0]),
    lambda p: p["spares"][0].update(spares=[copy.deepcopy(p["spares"][0])]),
    lambda p: p["spares"][0].update(failovers=copy.deepcopy(p["failovers"])),
    lambda p: p["spares"][0].update(model="other"),
    lambda p: p["spares"][0].pop("stages"),
    lambda p: p.update(spares={}),
    lambda p: p.update(failovers=None),
]


@pytest.mark.parametrize("change", BAD)
def test_malformed_failovers_are_refused(change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(json.dumps(planned(chain()).to_json()))
    assert Plan.from_json(data).spares
    change(data)
    with pytest.raises(ArtifactError, match="plan: "):
        Plan.from_json(data)


def test_taking_out_a_spare() -> None:
    plan = planned(chain())
    assert len(plan.spares) == 3
    less = plan.without_spare(0, "broken")
    assert len(less.spares) == 2 and Plan.from_json(less.to_json()) == less
    for before, after in zip(plan.failovers, less.failovers, strict=True):
        if before.spare == 0:
            assert after.spare is None and after.reason == "broken"
        else:
            assert less.spares[after.spare or 0] == plan.spares[before.spare or 0]
    text = plan.as_text()
    assert all(f"without {'/'.join(f.names)}: {plan.spares[f.spare or 0].strategy}" in text for f in plan.failovers)
    assert "no plan (broken)" in less.as_text()


# ---- running, and the artifact


def stories() -> tuple[Traced, Settings]:
    """Stages on five placements of four devices, three of them emulated."""
    torch.manual_seed(0)
    return trace(demo_model(), (torch.ones(1, 16, dtype=torch.int64),)), Settings(target=PLATFORM, pins=PINS)


def magika() -> tuple[Traced, Settings]:
    """The first half on an NPU (emulated), the rest on the CPU."""
    sample = {"bytes": np.random.default_rng(0).integers(0, 257, (1, 2048)).astype(np.int32)}
    traced = trace(MODELS / "magika" / "standard_v3_3.onnx", inputs=sample)
    names = [op.name for op in traced.graph.ops]
    pins = {names[len(names) // 4]: "openvino:NPU", names[len(names) // 2]: "onnxruntime:CPU"}
    return traced, Settings(target="lunar-lake-258v", pins=pins)


MADE = {"stories260K": stories, "magika": magika}


@pytest.fixture(scope="module", params=sorted(MADE))
def compiled(request: pytest.FixtureRequest) -> Compiled:
    traced, wanted = MADE[request.param]()
    return compile_traced(traced, wanted)


@pytest.fixture(scope="module")
def written(compiled: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failover") / "m.qeil"
    compiled.save(path)
    return path


def test_without_gives_the_golden_outputs_from_an_artifact(compiled: Compiled, written: Path) -> None:
    again = load(written)
    assert again.plan == compiled.plan and len(placements(again.plan)) > 1
    assert again.failovers and set(again.failovers) == set(compiled.failovers)
    covered = {s.placement for s in again.plan.stages} | {s.device for s in again.plan.stages}
    assert covered <= {n for f in again.plan.failovers for n in f.names}
    expected = compiled.golden.outputs
    for failover in again.plan.failovers:
        spare = again.without(failover.names[0])
        assert not placements(spare.plan) & set(failover.lost)
        assert spare is again.without(*failover.lost), "the same object, whatever the loss is called"
        assert spare.plan == again.failovers[failover.names[-1]]
        assert all(d.ok for d in spare.verify())
        for name, found in run_all(spare).items():
            assert found.shape == expected[name].shape and np.isfinite(found).all()
        assert spare.failovers == {}
        assert spare.explain().strategy == spare.plan.strategy and spare.explain().as_text()
    pinned = [f for f in again.plan.failovers if set(f.lost) & set(again.plan.pins.values())]
    assert pinned and all(any("is dropped" in n for n in f.notes) for f in pinned)


def test_loading_starts_no_engine_until_asked(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("torch", "onnxruntime", "openvino"):
        monkeypatch.setattr(type(backend(name)), "compile", lambda *a, n=name, **k: asked.append(n))
    again = load(written)
    for failover in again.plan.failovers:
        again.without(*failover.names)
    assert again.explain().failovers and asked == []


def test_spares_share_the_weights(compiled: Compiled, tmp_path: Path) -> None:
    sizes = compiled.save(tmp_path / "with.qeil")
    bare = replace(compiled.plan, failovers=(), spares=())
    plain = write(replace(compiled.contents(), plan=bare, spares=()), tmp_path / "alone.qeil")
    total = sum(len(data) for data in files_of(tmp_path / "with.qeil").values())
    assert (sizes.total, plain.failover) == (total, 0)
    assert sizes.failover == sizes.total - plain.total
    weights = [{n for n in files_of(tmp_path / f"{k}.qeil") if n.startswith("weights/")} for k in ("with", "alone")]
    large = [n for n in weights[0] - weights[1] if (tmp_path / "with.qeil" / n).stat().st_size > 1000]
    assert large == []
    assert {p.name for p in (tmp_path / "with.qeil" / "golden").iterdir()} == {
        p.name for p in (tmp_path / "alone.qeil" / "golden").iterdir()
    }
    again = load(tmp_path / "alone.qeil")
    with pytest.raises(FailoverError, match="compiled without failover plans"):
        again.without(again.plan.stages[0].placement)


def test_an_artifact_with_damaged_failovers_is_refused(written: Path, tmp_path: Path) -> None:
    def damaged(name: str, change: Callable[[Path], None], match: str) -> None:
        folder = Path(shutil.copytree(written, tmp_path / name))
        change(folder)
        with pytest.raises(ArtifactError, match=match):
            load(folder)

    def cut(folder: Path) -> None:
        plan = json.loads((folder / "plan.json").read_text())
        dropped = len(plan["spares"]) - 1
        plan["spares"].pop()
        plan["failovers"] = [f for f in plan["failovers"] if f["spare"] != dropped]
        replace_file(folder, "plan.json", json.dumps(plan).encode())

    def swapped(folder: Path) -> None:
        plan = json.loads((folder / "plan.json").read_text())
        stage = plan["spares"][0]["stages"][0]
        stage["placement"] = "torch:cpu" if stage["placement"] != "torch:cpu" else "openvino:CPU"
        replace_file(folder, "plan.json", json.dumps(plan).encode())

    def edited(manifest: dict[str, Any]) -> None:
        manifest["spares"][0]["units"][0]["inputs"] = ["nothing"]

    def shorter(manifest: dict[str, Any]) -> None:
        manifest["spares"][0]["units"].pop()

    damaged("edited plan", lambda f: (f / "plan.json").write_text("{}"), "bytes")
    damaged("one spare less", cut, "different numbers of failover plans")
    damaged("another placement", swapped, "uses what is lost|disagree about placements")
    damaged("another input", lambda f: rewrite(f, edited), "different inputs")
    damaged("a unit less", lambda f: rewrite(f, shorter), "written by no unit|different stages")
    damaged("no spares", lambda f: rewrite(f, lambda m: m.pop("spares")), "malformed field")
    damaged("no list", lambda f: rewrite(f, lambda m: m.update(spares={})), "different numbers")


def test_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    for k in range(2):
        traced, wanted = magika()
        made = compile_traced(traced, replace(wanted, verify=False))
        made.seconds = {}
        made.save(tmp_path / f"{k}.qeil")
    assert files_of(tmp_path / "0.qeil") == files_of(tmp_path / "1.qeil")


def mlp(**more: Any) -> Compiled:
    return api.aot_compile(zoo.mlp(), zoo.EXAMPLES["mlp"](), settings=settings(*ENGINES, **more))


def test_what_is_not_used_is_not_missed() -> None:
    made = mlp()
    used = placements(made.plan)
    assert made.without() is made
    for placement in set(ENGINES) - used:
        assert made.without(placement) is made
    with pytest.raises(InputError, match=r"expected one of .*torch:cpu"):
        made.without("gpu")
    with pytest.raises(FailoverError, match=r"no plan without cpu .*no other placement"):
        made.without("cpu")
    with pytest.raises(FailoverError, match="no plan without"):
        made.without(*ENGINES)


def test_several_losses_take_a_spare_that_uses_none_of_them(compiled: Compiled) -> None:
    names = [f.names[0] for f in compiled.plan.failovers]
    answered = 0
    for a in names:
        for b in names:
            gone = {s for f in compiled.plan.failovers if f.names[0] in (a, b) for s in f.lost}
            fit = [s for s in compiled.plan.spares if not placements(s) & gone]
            if fit:
                answered += a != b
                assert not placements(compiled.without(a, b).plan) & gone
            else:
                with pytest.raises(FailoverError, match=r"without one of|without "):
                    compiled.without(a, b)
    assert answered


def test_failovers_can_be_left_out() -> None:
    made = mlp(failover=False)
    assert (made.plan.failovers, made.plan.spares, list(made.spares), made.failovers) == ((), (), [], {})
    assert "failover plans" not in made.seconds and "failover plans" in mlp().seconds


def test_failovers_belong_to_the_plan_that_the_clock_accepts() -> None:
    made = api.aot_compile(zoo.mlp(), zoo.EXAMPLES["mlp"](), settings=Settings(target=",".join(ENGINES)))
    assert len(made.timings) == 3
    used = placements(made.plan)
    assert used <= {n for f in made.plan.failovers for n in f.names}
    assert all(used & set(f.lost) for f in made.plan.failovers)
    for placement in used:
        assert all(d.ok for d in made.without(placement).verify())


def test_a_spare_that_computes_something_else_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = type(backend("torch")).compile

    def doubled(self: Any, *args: Any, **more: Any) -> Any:
        run = honest(self, *args, **more)
        return lambda inputs: [2 * np.asarray(v) for v in run(inputs)]

    def broken(self: Any, *args: Any, **more: Any) -> Any:
        raise api.BackendError("no room")

    wanted = settings("onnxruntime:CPU", "torch:cpu", strategies=("single onnxruntime:CPU",))
    traced = trace(zoo.mlp(), zoo.EXAMPLES["mlp"]())
    for fault, words in ((doubled, "output linear"), (broken, "no room")):
        monkeypatch.setattr(type(backend("torch")), "compile", fault)
        made = compile_traced(traced, wanted)
        assert made.plan.spares == () and list(made.spares) == [] and placements(made.plan) == {"onnxruntime:CPU"}
        with pytest.raises(FailoverError, match=f"single torch:cpu was found, but failed: .*{words}"):
            made.without("onnxruntime:CPU")
        assert len(compile_traced(traced, replace(wanted, verify=False)).spares) == 1


# ---- the command line


def test_the_command_line_tells_failover_plans(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.qeil"
    onnx.save(tiny(), tmp_path / "tiny.onnx")
    arguments = ["compile", f"{tmp_path}/tiny.onnx", "--dim", "batch=2", "--no-measure"]
    arguments += ["--target", "onnxruntime:CPU,openvino:CPU"]
    report = tmp_path / "r.json"
    assert main([*arguments, "-o", str(path), "--json", str(report)]) == 0
    seen = capsys.readouterr().out
    assert "failover plans (" in seen and "of which failover plans" in seen
    data = json.loads(report.read_text())
    assert data["bytes"]["failover"] > 0 and data["plan"]["spares"]
    used = data["plan"]["stages"][0]["placement"]
    assert main(["explain", str(path)]) == 0
    seen = capsys.readouterr().out
    assert "failover plans (" in seen and "no other placement" in seen
    assert main(["explain", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["failovers"]
    lost = {n: r for r in rows for n in r["lost"]}
    assert lost[used]["latency"] > 0 and lost[used]["label"] in ("modelled", "calibrated") and not lost[used]["reason"]
    assert lost["cpu"]["latency"] is None and lost["cpu"]["reason"]
    assert main(["verify", str(path)]) == 0
    assert f"without {used}" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", str(path), "--no-failover"]) == 0
    assert f"without {used}" not in capsys.readouterr().out
    assert main([*arguments, "-o", str(path), "--overwrite", "--no-failover"]) == 0
    assert "of which failover plans 0.000 MB" in " ".join(capsys.readouterr().out.split())
    assert load(path).plan.failovers == ()


def test_verify_names_the_failover_plan_that_differs(tmp_path: Path, capfd: Capture) -> None:
    api.aot_compile(tied(), (TOKENS,), settings=settings(*ENGINES)).save(tmp_path / "m.qeil")
    manifest = json.loads((tmp_path / "m.qeil" / "manifest.json").read_text())
    own = {r["file"] for u in manifest["units"] for r in u["weights"].values()}
    spare = manifest["spares"][0]["units"][0]["weights"]
    name, reference = next((n, r) for n, r in spare.items() if r["file"] in own and len(r["shape"]) == 2)
    # The spare alone reads another tensor of the same shape.
    data = np.zeros(reference["shape"], np.float32).tobytes()
    (tmp_path / "m.qeil" / "weights" / "other.bin").write_bytes(data)

    def change(found: dict[str, Any]) -> None:
        found["spares"][0]["units"][0]["weights"][name]["file"] = "weights/other.bin"
        found["files"]["weights/other.bin"] = {}

    rewrite(tmp_path / "m.qeil", change)
    replace_file(tmp_path / "m.qeil", "weights/other.bin", data)
    assert main(["verify", str(tmp_path / "m.qeil"), "--no-failover"]) == 0
    capfd.readouterr()
    assert main(["verify", str(tmp_path / "m.qeil")]) == 1
    assert "failover plan" in capfd.readouterr().err


def test_an_engine_that_is_not_installed_matters_only_to_its_plan(tmp_path: Path) -> None:
    wanted = settings("onnxruntime:CPU", "torch:cpu", strategies=("single onnxruntime:CPU",))
    api.aot_compile(zoo.mlp(), zoo.EXAMPLES["mlp"](), settings=wanted).save(tmp_path / "m.qeil")
    code = (
        "import sys; sys.modules['torch'] = None; from qeil_compile.cli import main; "
        f"sys.exit(main(['verify', {str(tmp_path / 'm.qeil')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not verified here" in done.stdout.replace("\n", " ") and "torch" in done.stdout
