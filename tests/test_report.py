"""Reports: views of plans against the tables and profiles that they come from, figures, and documents in both forms."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import inf, isclose, nan
from typing import Any

import numpy as np
import pytest

from qeil_compile import api
from qeil_compile.devices import load_target
from qeil_compile.language import Generation, open_language_model, plan_decoder, trace_decoder
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.energy import spill_joules
from qeil_compile.passes.partition import Front, assign_plan, evaluate
from qeil_compile.plan import Plan, Stage
from qeil_compile.report import Document, PhaseView, figures, placement, view
from qeil_compile.report.figures import energy_bars, placement_map, roofline, svg, timeline
from qeil_compile.report.roles import Role, roles
from qeil_compile.report.style import colours, hatches, svg_file
from qeil_compile.report.timeline import _merged, _stages, _transfers
from qeil_compile.report.units import si
from tests import zoo
from tests.cost_problems import priced, random_graph, random_target
from tests.pages import Page

LAPTOP, DISCRETE = "lunar-lake-258v", "intel-285hx-rtx-pro-5000"
FIGURES = (roofline, placement_map, energy_bars, timeline)
EVIL = "<script>alert(1)</script> $\\frac{\x00 & \"' url(#x) id=\"y\""
SVG = "{http://www.w3.org/2000/svg}"


@cache
def costs_of(name: str, target: str) -> CostTable:
    return api.price(api.trace(getattr(zoo, name)(), zoo.EXAMPLES[name]()), target)


@cache
def scattered(name: str, target: str) -> tuple[CostTable, Plan]:
    """Groups dealt out to all placements in turn."""
    costs = costs_of(name, target)
    n = len(costs.placements)
    picks = [[(g + k) % n for k in range(n)] for g in range(len(costs.groups.groups))]
    return costs, assign_plan(costs, [next(p for p in row if costs.supported[g, p]) for g, row in enumerate(picks)])


@cache
def decoder_phases(target: str = DISCRETE) -> tuple[PhaseView, ...]:
    """GPT-2 at its 125M shape: prompt, and steps of one and of 16 rows."""
    traced = trace_decoder(open_language_model("gpt2-125m"), Generation(64, 16, 16, buckets={1: 0.5, 16: 0.5}))
    planned = plan_decoder(traced, load_target(target), api.Settings(target=target, objective="energy"))
    return tuple(view(p.name, planned.plans[p.name], p.costs.to_json()) for p in planned.front.phases)


def phase(name: str = "two_branches", target: str = LAPTOP) -> PhaseView:
    costs, plan = scattered(name, target)
    return view("one run", plan, costs.to_json())


# Layers and roles


@pytest.mark.parametrize(
    ("groups", "types", "scopes", "expected"),
    [
        ([["linear"], ["add"], ["linear_1"]], [["aten.linear.default"], ["aten.add.Tensor"], ["aten.linear.default"]],
         {"linear": "layers.3.attention.query", "add": "layers.3", "linear_1": "head"},
         [Role(3, "attention.query"), Role(3, "add"), Role(None, "head")]),
        ([["/layers/3/attention/MatMul_1"], ["/layers/3/mlp/up/MatMul"], ["/Gather"]],
         [["onnx.MatMul"], ["onnx.MatMul"], ["onnx.Gather"]], {},
         [Role(3, "attention"), Role(3, "mlp.up"), Role(None, "Gather")]),
        ([["layers.0/mixer/qkv", "layers.0/mixer/bias"], ["layers.0/mixer/attention"], ["head/logits"]],
         [["com.microsoft.FusedMatMul", "onnx.Add"], ["com.microsoft.GroupQueryAttention"], ["onnx.MatMul"]],
         {"layers.0/mixer/qkv": "layers.0.mixer"},
         [Role(0, "mixer.qkv"), Role(0, "mixer.attention"), Role(None, "head.logits")]),
        # The operator that does the work names the group, wherever it stands.
        ([["a", "b"]], [["aten.relu.default", "aten.linear.default"]], {"a": "act", "b": "fc"}, [Role(None, "fc")]),
        # Entries of a Sequential are no layers.
        ([["a"], ["b"]], [["aten.linear.default"], ["aten.relu.default"]], {"a": "net.0", "b": "net.1"},
         [Role(None, "net.0"), Role(None, "net.1")]),
        # Two stacks are counted on.
        ([["a"], ["b"], ["c"], ["d"]], [["x.conv"]] * 4,
         {"a": "s1.0.conv1", "b": "s1.0.conv2", "c": "s2.0.conv1", "d": "s2.0.conv2"},
         [Role(0, "conv1"), Role(0, "conv2"), Role(1, "conv1"), Role(1, "conv2")]),
        ([["bert/layer_2/query/MatMul"], ["bert/layer_2/key/MatMul"]], [["onnx.MatMul"]] * 2, {},
         [Role(2, "query"), Role(2, "key")]),
        # Without types, as earlier tables were, and without any name that says more.
        ([["mystery"], ["9" * 400 + ".x"]], [(), ()], {}, [Role(None, "mystery"), Role(None, "9" * 400 + ".x")]),
    ],
)  # fmt: skip
def test_layers_and_roles(
    groups: list[list[str]], types: Sequence[Sequence[str]], scopes: dict[str, str], expected: list[Role]
) -> None:
    assert roles(groups, types, scopes) == expected


# Views


@pytest.mark.parametrize("target", [LAPTOP, DISCRETE, "rtx-4090-workstation"])
@pytest.mark.parametrize("name", ["two_branches", "bf16_mlp"])
def test_roofs_are_those_of_the_profile(name: str, target: str) -> None:
    costs = costs_of(name, target)
    plan = assign_plan(costs, [next(p for p in range(len(row)) if row[p]) for row in costs.supported])
    found = view("one run", plan, costs.to_json()).roofs
    # A placement that refuses everything has no times to tell its roofs by.
    able = costs.supported.any(axis=0)
    assert {r.placement for r in found} == {p.spec for p, takes in zip(costs.placements, able, strict=True) if takes}
    profiles = {p.spec: p.profile for p in costs.placements}
    for roof in found:
        profile, kernels = profiles[roof.placement], costs.kernels[roof.placement.partition(":")[0]]
        assert roof.device == profile.name
        assert roof.bandwidth == pytest.approx(profile.memory_bandwidth.value, rel=1e-6)
        peaks = {profile.flops(dtype).value for dtype in kernels.dtypes}
        # A group that mixes types lies between their peaks.
        assert min(peaks) * (1 - 1e-5) <= roof.peak <= max(peaks) * (1 + 1e-5)
        assert len(peaks) > 1 or roof.peak == pytest.approx(peaks.pop(), rel=1e-5)


@pytest.mark.parametrize("target", [LAPTOP, DISCRETE])
def test_points_are_the_table_on_the_chosen_placements(target: str) -> None:
    costs, plan = scattered("two_branches", target)
    found = view("one run", plan, costs.to_json())
    assert len(found.points) == len(costs.groups.groups) and {o.placement for o in found.points} == {
        s.placement for s in plan.stages}  # fmt: skip
    specs = [p.spec for p in costs.placements]
    for g, o in enumerate(found.points):
        p = specs.index(o.placement)
        ops = [costs.groups.graph.ops[i] for i in costs.groups.groups[g].ops]
        assert o.ops == tuple(op.name for op in ops) and o.types == tuple(op.short_type for op in ops)
        assert set(o.ops) <= set(plan.stages[o.stage].ops) and o.device == plan.stages[o.stage].device
        values = (o.seconds, o.joules, o.flops, o.nbytes, o.dasi, o.beta, o.dasi_eff, o.beta_eff, o.phi)
        tables = (costs.seconds, costs.joules, costs.flops, costs.nbytes, costs.dasi, costs.beta, costs.dasi_eff,
                  costs.beta_eff, costs.phi)  # fmt: skip
        assert values == tuple(t[g, p] for t in tables)


def test_parts_of_the_energy_are_those_of_the_model() -> None:
    """Random problems: several engines, spilling cards, hot devices, transfers."""
    spilled = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups, counts = random_graph(rng)
        costs = priced(groups, counts, random_target(rng))
        candidate = evaluate(costs, rng.integers(0, len(costs.placements), len(groups.groups)), "random")
        plan = Front(costs, (candidate,), {}).plan(candidate, "energy", ranges=False)
        found = {e.device: e for e in view("one run", plan, costs.to_json()).energy}
        specs = [p.spec for p in costs.placements]
        for d, profile in zip(plan.devices, costs.target.devices, strict=True):
            mine = {(costs.groups.group_of[costs.groups.graph.index[o]], specs.index(s.placement))
                    for s in plan.stages if s.device == d.device for o in s.ops}  # fmt: skip
            dynamic = sum(float(costs.dynamic[at]) for at in mine)
            dynamic += spill_joules(costs.target, profile, candidate.schedule.usage)
            waiting = (plan.objectives.latency - d.busy) * profile.power_idle.value
            e = found[d.device]
            assert e.dynamic == pytest.approx(dynamic, rel=1e-6, abs=1e-12)
            assert e.idle == pytest.approx(waiting, rel=1e-6, abs=1e-12)
            assert e.joules == pytest.approx(d.joules, rel=1e-9)
            spilled += d.spill_bytes > 0
    assert spilled > 3


@pytest.mark.parametrize("make", [phase, lambda: phase(target=DISCRETE), lambda: decoder_phases()[0],
                                  lambda: decoder_phases()[2]])  # fmt: skip
def test_parts_of_the_energy_add_up(make: Callable[[], PhaseView]) -> None:
    found = make()
    plan, by = found.plan, {e.device: e for e in found.energy}
    assert sum(e.joules for e in found.energy) == pytest.approx(plan.objectives.energy, rel=1e-9)
    for d in plan.devices:
        e = by[d.device]
        assert e.joules == pytest.approx(d.joules, rel=1e-9) and min(e.dynamic, e.constant, e.idle) >= 0
        assert (e.dynamic > 0) == (e.constant > 0) == (d.busy > 0)
        if d.phi < 1:
            # Phi = D / (D + leakage), and leakage is a part of what is constant.
            assert e.dynamic * (1 / d.phi - 1) <= e.constant * (1 + 1e-9)
    moved = by["links"].joules if plan.transfers else 0.0
    assert moved == pytest.approx(sum(t.joules for t in plan.transfers))


def test_a_table_of_an_earlier_version_and_none() -> None:
    costs, plan = scattered("two_branches", LAPTOP)
    whole = costs.to_json()
    old = {k: v for k, v in whole.items() if k not in ("types", "ceiling")}
    found = view("one run", plan, old)
    assert [o.seconds for o in found.points] == [o.seconds for o in view("one run", plan, whole).points]
    assert all(o.role and not o.types for o in found.points)
    none = view("one run", plan, {})
    assert none.points == () == none.roofs
    assert sum(e.joules for e in none.energy) == pytest.approx(plan.objectives.energy)
    bare = view("one run", replace(plan, devices=()), whole)
    assert sum(e.dynamic for e in bare.energy) == pytest.approx(sum(e.dynamic for e in phase().energy))


def test_layers_of_a_decoder() -> None:
    for found in decoder_phases():
        layers = {o.layer for o in found.points}
        assert layers == {None, *range(12)}
        by = [{o.role for o in found.points if o.layer == k} for k in range(12)]
        assert all(roles == by[0] for roles in by) and {"mixer.qkv", "mixer.attention", "feed_forward.up"} <= by[0]


# Figures


def shapes(text: str, gid: str) -> int:
    """Number of drawn elements of a class below all elements whose tooltip begins so."""
    root = ElementTree.fromstring(text)
    groups = [g for g in root.iter(f"{SVG}g") if (g.findtext(f"{SVG}title") or "").startswith(gid)]
    return sum(1 for g in groups for _ in g.iter(f"{SVG}use"))


@pytest.mark.parametrize("make", FIGURES, ids=lambda f: f.__name__)
def test_figures_are_repeatable_svg_with_text_and_tooltips(make: Callable[..., Any]) -> None:
    phases = decoder_phases()
    text = svg(make(phases))
    assert text == svg(make(phases))
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and "metadata" not in text and "Date" not in text
    words = " ".join("".join(e.itertext()) for e in root.iter(f"{SVG}text"))
    assert "modelled" in words or make is roofline
    titles = [e.text or "" for e in root.iter(f"{SVG}title")]
    assert len(titles) >= 5 and any("(modelled)" in t for t in titles)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(set(ids)) == len(ids)
    other = svg(make(phases[:1]))
    assert not set(ids) & set(re.findall(r'\bid="([^"]*)"', other)), "two figures on a page would clash"
    for name in re.findall(r'(?:xlink:href="#|url\(#)([^")]*)', text):
        assert name in ids


def test_every_operator_is_a_point() -> None:
    phases = decoder_phases()
    text = svg(roofline(phases))
    for p in phases:
        placed = [o for o in p.points if o.seconds > 0 and max(o.flops, o.nbytes) >= 1]
        assert len(placed) > 50
        assert shapes(text, f"{p.name}, ") == len(placed)


def test_a_device_has_one_colour_used_or_not() -> None:
    phases = decoder_phases()
    found = colours(phases)
    target = [d.name for d in load_target(DISCRETE).devices]
    assert list(found)[: len(target)] == target and len(set(found.values())) == len(found)
    assert colours(phases[:1]) == colours(phases[2:]) == found
    used = {s.device for p in phases for s in p.plan.stages}
    assert set(target) - used, "the plan uses every device, or this test shows nothing"
    text = svg(placement_map(phases))
    assert all(f"{d} (not used)" in text for d in set(target) - used)
    costs, plan = scattered("two_branches", "openvino:CPU,onnxruntime:CPU,torch:cpu")
    marks = hatches([view("one run", plan, costs.to_json())])
    assert len(set(marks.values())) == len(marks) == 3


def test_transfers_stand_where_the_schedule_puts_them() -> None:
    plan = scattered("two_branches", DISCRETE)[1]
    moved = [(t, b) for t, b in zip([t for t in plan.transfers if t.seconds > 0], _transfers(plan), strict=True)]
    assert moved
    for t, bar in moved:
        source, target = plan.stages[t.source], plan.stages[t.target]
        assert bar.start >= source.start + source.boundary + source.seconds - 1e-15
        assert bar.end <= target.start * (1 + 1e-9)


def test_thousands_of_stages_are_a_few_bars() -> None:
    stages = tuple(
        Stage(k, f"e:{'ab'[k % 2]}", "ab"[k % 2], (f"o{k}",), (), (), k * 1e-4, 1e-4, 1e-3, 0.0, 1.0, 1, 0)
        for k in range(6000)
    )
    plan = replace(scattered("two_branches", LAPTOP)[1], stages=stages, transfers=(), devices=())
    bars = _merged(_stages(plan), 0.6 / 600)
    assert len(bars) < 1300 and sum(b.count for b in bars) == 6000
    assert sum(b.busy for b in bars) == pytest.approx(0.6)
    text = svg(timeline([view("one run", plan, {})]))
    assert len(text) < 2_000_000 and "6000 stages" in text


def test_more_than_anyone_can_point_at_is_drawn_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = decoder_phases()
    before = svg(roofline(phases)), svg(placement_map(phases))
    monkeypatch.setattr(figures, "MOST_TIPS", 3)
    monkeypatch.setattr(placement, "MOST_TIPS", 3)
    after = svg(roofline(phases)), svg(placement_map(phases))
    assert before[0].count("<use") == after[0].count("<use")
    assert "<title>" not in after[1] and after[0].count("<title>") < 10 < before[0].count("<title>")
    assert len(after[1]) < len(before[1])


@pytest.mark.parametrize("make", FIGURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [inf, nan, 0.0, 1e300, 1e-300, -1.0])
def test_values_of_strangers_are_drawn_or_left_out(make: Callable[..., Any], value: float) -> None:
    costs, plan = scattered("two_branches", DISCRETE)
    table = costs.to_json()
    odd = {n: [[value] * len(r) for r in table[n]] for n in ("seconds", "flops", "nbytes", "joules", "dasi_eff", "phi")}
    stages = tuple(replace(s, seconds=value, start=value, joules=value) for s in plan.stages)
    moved = tuple(replace(t, seconds=value, source=-1, target=10**9) for t in plan.transfers)
    devices = tuple(replace(d, joules=value, busy=value, phi=value, spill_bytes=1) for d in plan.devices)
    strange = replace(plan, stages=stages, transfers=moved, devices=devices)
    for name in odd:
        found = view(EVIL, plan, {**table, name: odd[name]}), view("b", strange, {**table, **odd})
        root = ElementTree.fromstring(svg(make(found)))
        assert root.tag == f"{SVG}svg"
    assert make([view("none", replace(plan, stages=(), transfers=(), devices=()), {})]) is not None


@pytest.mark.parametrize("make", FIGURES, ids=lambda f: f.__name__)
def test_names_of_strangers_are_text_in_figures(make: Callable[..., Any]) -> None:
    costs, plan = scattered("two_branches", DISCRETE)
    table = costs.to_json()
    first = table["groups"][0][0]
    table = {**table, "groups": [[EVIL if o == first else o for o in g] for g in table["groups"]]}
    stages = tuple(
        replace(s, ops=tuple(EVIL if o == first else o for o in s.ops), device=f"{EVIL}{s.device}") for s in plan.stages
    )
    changed = replace(plan, stages=stages, devices=tuple(replace(d, device=f"{EVIL}{d.device}") for d in plan.devices))
    table = {**table, "devices": [f"{EVIL}{d}" for d in table["devices"]]}
    text = svg(make([view(EVIL, changed, table)]))
    ElementTree.fromstring(text)
    assert "<script" not in text and "\x00" not in text and "&lt;script&gt;" in text


# Documents


def document() -> Document:
    found = Document(f"Title {EVIL}")
    found.heading(f"First {EVIL}")
    found.paragraph(f"# {EVIL}")
    found.heading("Part", level=3)
    found.bullets(["1. one", f"- {EVIL}"])
    found.bullets([])
    found.heading("First")
    found.table(("name", "time [ms]"), [(EVIL, 1.5), ("a|b", -2)], ["chosen", ""], f"Times {EVIL}")
    found.table(("name", "time [ms]"), [])
    for name in ("one", "two"):
        found.figure(energy_bars([phase()]), f"Energies {EVIL}", name)
    return found


def test_a_document_as_a_page() -> None:
    text = document().html()
    page = Page(text)
    page.check()
    assert page.count("svg") == page.count("figure") == 2 and page.count("table") == 1
    assert [page.text_of(t) for t in ("h2", "h3")] == [[f"First {EVIL}".replace("\x00", "?"), "First"], ["Part"]]
    links = [a["href"] for t, a in page.tags if t == "a"]
    assert len(links) == 2 and all(link and link.removeprefix("#") in page.ids for link in links)
    cells = [a.get("class") for t, a in page.tags if t == "td"]
    assert cells == ["long", "number", None, "number"]
    again = document()
    assert text == again.html() == again.html()


def test_a_document_as_markdown() -> None:
    text, files = document().markdown("figures")
    assert set(files) == {"one.svg", "two.svg"}
    for name, data in files.items():
        assert ElementTree.fromstring(data).tag == f"{SVG}svg"
        assert f"](figures/{name})" in text
    assert files["one.svg"] == svg_file(energy_bars([phase()]), prefix="one")
    assert "<script" not in text and "\x00" not in text
    lines = text.splitlines()
    assert lines[0].startswith("# Title &lt;script&gt;") and "| --- | ---: |".replace(" ", "") in lines
    assert any(line.startswith("| a\\|b | -2 |") for line in lines) and any(line == "- 1\\. one" for line in lines)
    assert any(line.startswith("\\# &lt;script&gt;") for line in lines)
    assert any(line.startswith("| &lt;script&gt;") and "(chosen)" in line for line in lines)
    assert document().markdown("")[0].count("](one.svg)") == 1


def test_wrong_blocks_are_refused() -> None:
    made = Document("t")
    made.figure(energy_bars([phase()]), "c", "one")
    for call, words in (
        (lambda: made.heading("h", 1), "level 1"),
        (lambda: made.table(("a",), [(1, 2)]), "2 cells, expected 1"),
        (lambda: made.table(("a",), [(1,)], ["x y"]), "kinds"),
        (lambda: made.table(("a",), [(1,)], []), "kinds"),
        (lambda: made.figure(energy_bars([phase()]), "c", "one"), "'one'"),
        (lambda: made.figure(energy_bars([phase()]), "c", "a b"), "'a b'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert len(made.blocks) == 1


def test_units() -> None:
    assert [si(v, "s") for v in (1.234e-3, 0.0, 999.7, 5e-13)] == ["1.23 ms", "0 s", "1 ks", "0.0005 ns"]
    assert "inf" in si(inf, "J") and isclose(float(si(2.5e9, "B/s").split()[0]), 2.5)
