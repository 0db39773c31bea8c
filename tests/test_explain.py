"""The account of a choice: its facts recomputed, put to the test by choosing again, and shown in every way there is."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from qeil_compile import api
from qeil_compile.cli import main
from qeil_compile.cli.scatter import scatter
from qeil_compile.passes.decision import Decision, decide
from qeil_compile.passes.decision_text import gap_text
from qeil_compile.passes.partition import Front
from qeil_compile.plan import Alternative, Objectives, Plan
from qeil_compile.report.front import front as front_figure
from qeil_compile.report.points import Point, points_of
from qeil_compile.report.style import file_bytes, svg, svg_file
from tests import zoo
from tests.artifacts import files_of

TARGET = "lunar-lake-258v"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def front() -> Front:
    """Plans of a network with two branches on a laptop chip with CPU, GPU and NPU."""
    traced = api.trace(zoo.two_branches(), zoo.EXAMPLES["two_branches"]())
    return api.partition(api.price(traced, TARGET))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network compiled for the balanced objective."""
    path = tmp_path_factory.mktemp("explain") / "two.qeil"
    settings = api.Settings(target=TARGET, objective="balanced", measure=False)
    api.aot_compile(zoo.two_branches(), zoo.EXAMPLES["two_branches"](), settings=settings).save(path)
    return path


def planned(front: Front, objective: str) -> Plan:
    return front.plan(front.choose(objective), objective)


def made(objective: str, *values: tuple[float, float, float], gap: float | None = None, chosen: int = 0) -> Plan:
    """A plan with alternatives of these objectives, in ms, mJ and 1; the first is the reference."""
    found = [Objectives(latency * 1e-3, energy * 1e-3, under) for latency, energy, under in values]
    alternatives = tuple(
        Alternative(f"plan {k}", k + 1, o, k == chosen, not any(x.dominates(o) for x in found))
        for k, o in enumerate(found)
    )
    return Plan("net", "here", f"plan {chosen}", objective, "modelled", (), (), (), found[chosen],
                {"latency": 0.5e-3, "energy": 1e-3, "under_utilisation": 0.1}, alternatives, gap=gap)  # fmt: skip


# The facts


@pytest.mark.parametrize("objective", ["latency", "energy", "balanced", "latency:0.9,energy:0.1"])
def test_the_choice_flips_where_it_says(front: Front, objective: str) -> None:
    decision = decide(planned(front, objective))
    holds = decision.holds
    assert holds is not None and decision.weight is not None
    assert holds.low <= decision.weight <= holds.high
    assert holds.below or holds.above, "the network must have a front, or this test shows nothing"
    for end, outside, rival in ((holds.low, -1e-4, holds.below), (holds.high, 1e-4, holds.above)):
        if not rival:
            continue
        weight = end + outside
        if not 0 < weight < 1:
            continue
        assert front.choose(f"latency:{1 - weight},energy:{weight}").strategy == rival
        weight = end - outside
        if holds.low < weight < holds.high:
            again = front.choose(f"latency:{1 - weight},energy:{weight}").objectives
            assert again == decision.chosen.objectives


@pytest.mark.parametrize("objective", ["latency", "energy", "balanced", "utilisation"])
def test_the_nearest_plan_is_the_next_best_of_the_front(front: Front, objective: str) -> None:
    plan = planned(front, objective)
    decision = decide(plan)
    mine = front.value(objective, plan.objectives)
    others = [
        front.value(objective, c.objectives) for c in front.points if c.objectives != plan.objectives
    ]
    assert decision.nearest is not None
    assert decision.value == pytest.approx(mine, rel=1e-12)
    assert decision.nearest.value == pytest.approx(min(others), rel=1e-12)
    assert decision.nearest.worse == pytest.approx(min(others) / mine - 1, abs=1e-12)
    assert decision.gap == plan.gap and decision.lower_bounds == front.lower_bounds


def test_the_weight_between_two_plans() -> None:
    decision = decide(made("latency", (1.0, 10.0, 0.5), (1.1, 6.0, 0.6), (3.0, 12.0, 0.9)))
    rival = decision.nearest
    assert rival is not None and rival.strategy == "plan 1" and rival.flips == "above"
    # 0.1 (1 - w) = 0.4 w
    assert rival.weight == pytest.approx(0.2)
    assert (rival.worse, rival.latency, rival.energy) == pytest.approx((0.1, 0.1, -0.4))
    text = "\n".join(decision.as_text())
    assert "plan 1, 10 % worse in the objective: 10 % slower, 40 % less energy" in text
    assert "where energy weighs more than 0.2 of latency and energy (here 0)" in text


def test_weights_of_under_utilisation_stay() -> None:
    decision = decide(made("latency:0.4,energy:0.1,utilisation:0.5", (1.0, 10.0, 0.5), (1.1, 6.0, 0.6)))
    assert decision.weight == pytest.approx(0.2) and decision.nearest is not None
    # 0.1 (1 - w) - 0.4 w + 0.1 = 0
    assert decision.nearest.weight == pytest.approx(0.4)


def test_no_weight_helps_a_plan_that_is_worse_in_both() -> None:
    decision = decide(made("balanced", (1.0, 10.0, 0.5), (1.1, 11.0, 0.4)))
    assert decision.nearest is not None and decision.nearest.weight is None
    assert decision.holds is not None and (decision.holds.low, decision.holds.high) == (0.0, 1.0)
    assert "no weight of energy" in "\n".join(decision.as_text())


def test_a_plan_that_the_clock_put_behind_is_told() -> None:
    decision = decide(made("latency", (1.0, 10.0, 0.5), (0.8, 12.0, 0.4)))
    assert decision.holds is None and decision.nearest is not None
    assert decision.nearest.worse == pytest.approx(-0.2)
    assert "20 % better in the objective: 20 % faster, 20 % more energy" in "\n".join(decision.as_text())


def test_a_cap_that_is_in_the_way(front: Front) -> None:
    fastest, frugal = front.choose("latency"), front.choose("energy")
    assert fastest.objectives.latency < frugal.objectives.latency
    objective = f"energy; latency<={fastest.objectives.latency * 1e3 * 1.0000001!r}ms"
    decision = decide(planned(front, objective))
    assert decision.relaxation is not None
    ((name, needed),) = decision.relaxation.caps
    assert name == "latency" and needed > fastest.objectives.latency
    (line,) = [x for x in decision.as_text() if x.startswith("with latency<=")]
    cap = line.split()[1]
    assert front.choose(f"energy; {cap}").strategy == decision.relaxation.rival.strategy
    assert decide(planned(front, "energy")).relaxation is None


def test_a_plan_without_rivals() -> None:
    alone = made("latency", (1.0, 10.0, 0.5))
    for plan in (alone, replace(alone, alternatives=())):
        decision = decide(plan)
        assert decision.nearest is None and decision.value == 1.0 and decision.chosen.objectives == plan.objectives
    odd = made("energy; latency<=2ms", (1.0, 10.0, 0.5), (float("inf"), 5.0, 0.5), (1.0, float("nan"), 0.1))
    assert decide(odd).nearest is None and decide(odd).relaxation is None
    twins = decide(made("latency", (1.0, 10.0, 0.5), (1.0, 10.0 + 1e-9, 0.5)))
    assert twins.nearest is None


@pytest.mark.parametrize(
    ("gap", "text"),
    [(None, "no bound is known"), (0.0, "within 0.0 %"), (0.18, "at most 18 % above"), (0.0046, "at most 0.46 %"),
     (2.5, "at most 250 %"), (float("inf"), "no bound is known")],
)  # fmt: skip
def test_gaps_in_words(gap: float | None, text: str) -> None:
    decision = decide(made("latency", (1.0, 10.0, 0.5), gap=gap))
    assert text in gap_text(decision.gap) and text in decision.as_text()[1]


# The terminal


def cells(lines: list[str], mark: str) -> list[tuple[int, int]]:
    """Row from the top and column of each mark within the plot."""
    return [(r, c) for r, line in enumerate(lines[1:17]) for c, x in enumerate(line[10:]) if x == mark]


def point(kind: Any, latency: float, energy: float, name: str = "p") -> Point:
    return Point(name, latency, energy, 0.5, 1, kind)


def test_scatter_places_points_by_value() -> None:
    points = [point("dominated", 4e-3, 5e-3), point("front", 1e-3, 5e-3), point("front", 2.5e-3, 3e-3),
              point("nearest", 3e-3, 2e-3), point("chosen", 4e-3, 1e-3)]  # fmt: skip
    lines = scatter(points)
    assert all(len(line) <= 80 for line in lines)
    assert lines[0] == "energy [mJ] against latency [ms]"
    (chosen,), (nearest,), (dominated,) = (cells(lines, m) for m in "@x.")
    assert len(cells(lines, "o")) == 2
    assert chosen[0] > nearest[0] > dominated[0] and nearest[1] < chosen[1] == dominated[1]
    text = "\n".join(lines)
    for word in ("@ chosen (1)", "x nearest other plan of the front (1)", "o front (2)", ". dominated (1)"):
        assert word in text
    # A mark at 1 mJ stands on the row of the tick that says so.
    assert lines[1 + chosen[0]].split("+")[0].strip() == "1"


def test_scatter_is_logarithmic_where_the_range_needs_it() -> None:
    points = [point("front", 10.0**k, 1e-3 * 10.0**-k) for k in range(-3, 2)]
    lines = scatter(points)
    assert lines[0] == "energy [J, log] against latency [s, log]"
    columns = sorted(c for _, c in cells(lines, "o"))
    steps = [b - a for a, b in pairwise(columns)]
    assert len(steps) == 4 and max(steps) - min(steps) <= 1
    assert {"0.001", "0.1", "10"} <= set(lines[18].split())
    assert "[J]" in scatter([point("front", 1.0, 2.0), point("chosen", 2.0, 0.0)])[0]


def test_scatter_draws_the_front_large() -> None:
    points = [point("dominated", 1.0, 2.0), point("dominated", 0.0101, 5.0), point("front", 0.01, 1.02),
              point("nearest", 0.0102, 1.01), point("chosen", 0.0103, 1.0)]  # fmt: skip
    lines = scatter(points)
    ((_, left),), ((_, right),) = cells(lines, "o"), cells(lines, "@")
    assert right - left > 25
    assert len(cells(lines, "^")) == len(cells(lines, ">")) == 1
    assert "dominated, further out (2)" in lines[-1] and cells(lines, "^")[0][0] == 0


def test_scatter_of_one_point_and_of_none() -> None:
    assert scatter([]) == []
    for latency, energy in ((1e-3, 2e-3), (0.0, 0.0), (1e-3, 0.0)):
        lines = scatter([point("chosen", latency, energy)], width=48)
        assert len(cells(lines, "@")) == 1 and all(len(line) <= 48 for line in lines)


def test_the_important_point_wins_a_shared_cell() -> None:
    points = [point("dominated", 1.0, 1.0), point("chosen", 1.0, 1.0), point("front", 3.0, 0.5)]
    explained = sorted(points, key=lambda p: p.kind == "chosen")
    assert len(cells(scatter(explained), "@")) == 1 and cells(scatter(explained), ".") == []


# The command


def test_explain_prints_the_front_and_the_choice(artifact: Path, capsys: Capture) -> None:
    assert main(["explain", str(artifact)]) == 0
    seen = capsys.readouterr().out
    found = api.load(artifact).explain()
    for line in scatter(points_of(found)):
        assert line.rstrip() in seen
    assert found.decision.nearest is not None
    for word in ("front (modelled)", "choice (modelled)", "no plan can be below latency", "@ chosen (1)",
                 gap_text(found.decision.gap), f"front: {found.decision.nearest.strategy}"):  # fmt: skip
        assert word in seen
    assert all(line in found.as_text() for line in found.decision.as_text())
    assert main(["explain", str(artifact), "--stage", "0"]) == 0
    assert "choice (modelled)" not in capsys.readouterr().out


def test_explain_json_has_the_same_facts(artifact: Path, capsys: Capture) -> None:
    assert main(["explain", str(artifact), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["decision"]
    plan = api.load(artifact).plan
    expected = decide(plan)
    assert data["gap"] == plan.gap is not None and data["label"] == "modelled"
    assert expected.nearest is not None and expected.nearest.weight is not None
    assert data["nearest"]["strategy"] == expected.nearest.strategy
    assert data["nearest"]["weight"] == expected.nearest.weight and data["weight"] == 0.5
    assert data["lower_bounds"].keys() == {"latency", "energy", "under_utilisation"}


def test_plots_are_files_of_their_kind(artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    before = files_of(artifact)
    for suffix in ("png", "svg"):
        assert main(["explain", str(artifact), "--plot", f"{tmp_path}/front.{suffix}"]) == 0
        assert f"wrote {tmp_path}/front.{suffix}" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "front.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for word in ("latency [", "energy [", "under-utilisation [1]", "no plan needs less time", "chosen"):
        assert word in text
    assert {p.name for p in tmp_path.iterdir()} == {"front.png", "front.svg"}
    assert files_of(artifact) == before
    found = api.load(artifact).explain()
    assert svg_file(front_figure(found)) == (tmp_path / "front.svg").read_bytes()


def test_plans_of_the_front_have_tooltips(artifact: Path) -> None:
    found = api.load(artifact).explain()
    root = ElementTree.fromstring(svg(front_figure(found)))
    titles = [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}title")]
    for a in found.alternatives:
        assert any(t.startswith(f"{a.strategy} (") and t.endswith("(modelled)") for t in titles)


def test_names_of_strangers_are_text(artifact: Path) -> None:
    found = api.load(artifact).explain()
    evil = "<script>alert(1)</script> $\\frac{\x00 & \"'"
    alternatives = tuple(replace(a, strategy=f"{evil} {k}") for k, a in enumerate(found.alternatives))
    decision: Decision = replace(found.decision, chosen=next(a for a in alternatives if a.chosen))
    changed = replace(found, model=evil, alternatives=alternatives, notes=(evil,), decision=decision)
    text = svg(front_figure(changed))
    root = ElementTree.fromstring(text)
    assert "<script" not in text
    assert any("<script>alert(1)</script>" in (e.text or "") for e in root.iter("{http://www.w3.org/2000/svg}title"))
    assert file_bytes(front_figure(changed), "png").startswith(b"\x89PNG")


def test_values_without_a_place_are_left_out(artifact: Path) -> None:
    found = api.load(artifact).explain()
    odd = Alternative("odd", 1, Objectives(float("nan"), float("inf"), 0.5), False, False)
    changed = replace(found, alternatives=(*found.alternatives, odd))
    assert points_of(changed) == points_of(found)
    nothing = replace(found, alternatives=(odd,))
    assert scatter(points_of(nothing)) == []
    assert file_bytes(front_figure(nothing), "png").startswith(b"\x89PNG")


BAD: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("front.pdf", lambda p: None, (".png or .svg",)),
    ("front", lambda p: None, (".png or .svg",)),
    ("front.html", lambda p: None, ("--html",)),
    ("there.png", lambda p: p.write_bytes(b"kept"), ("exists already", "--overwrite")),
    ("absent/front.svg", lambda p: None, ("does not exist",)),
]


@pytest.mark.parametrize(("name", "make", "words"), BAD, ids=[b[0] for b in BAD])
def test_bad_names_of_plots(
    artifact: Path, tmp_path: Path, capfd: Capture, name: str, make: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    make(tmp_path / name)
    before = files_of(tmp_path)
    assert main(["explain", str(artifact), "--plot", f"{tmp_path}/{name}"]) == 1
    seen = capfd.readouterr()
    assert seen.out == "" and len(seen.err.splitlines()) == 1 and all(w in seen.err for w in (name, *words))
    assert files_of(tmp_path) == before


def test_a_plot_is_replaced_only_when_asked(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "f.svg").write_text("old")
    assert main(["explain", str(artifact), "--plot", f"{tmp_path}/f.svg", "--overwrite", "--quiet"]) == 0
    assert "<svg" in (tmp_path / "f.svg").read_text()
