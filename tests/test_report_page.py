"""`qeil explain --html`: the page of a model and of a language model, read by a parser and opened in a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile import api
from qeil_compile.cli import main
from qeil_compile.errors import ArtifactError
from qeil_compile.language import CompiledDecoder, Generation, compile_decoder, load_decoder
from qeil_compile.report.decoder import decoder_document
from qeil_compile.report.model import model_document
from tests import zoo
from tests.artifacts import files_of, replace_file, rewrite
from tests.pages import Page, look, needs_browser

TARGET = "lunar-lake-258v"
STORIES = Path("models/data/stories260K/stories260K.bin")
EVIL = "<script>alert(1)</script> $\\frac{\x00 & \"'"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with two branches, compiled for a laptop chip with CPU, GPU and NPU."""
    path = tmp_path_factory.mktemp("page") / "two.qeil"
    settings = api.Settings(target=TARGET, objective="balanced", measure=False)
    api.aot_compile(zoo.two_branches(), zoo.EXAMPLES["two_branches"](), settings=settings).save(path)
    return path


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with its layers on two engines, steps of one and of four rows planned apart."""
    path = tmp_path_factory.mktemp("page") / "stories.qeil"
    pins = {"layers.1": "torch:cpu", "layers.0": "openvino:CPU"}
    settings = api.Settings(target="openvino:CPU,torch:cpu", measure=False, threads=1, pins=pins)
    job = Generation(prompt=16, tokens=16, samples=4, buckets={1: 0.5, 4: 0.5})
    compile_decoder(STORIES, job, settings).save(path)
    return path


def written(artifact: Path, path: Path) -> Page:
    assert main(["explain", str(artifact), "--html", str(path), "--quiet"]) == 0
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_of_a_model(artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    before = files_of(artifact)
    assert main(["explain", str(artifact), "--html", f"{tmp_path}/report.html"]) == 0
    assert f"wrote {tmp_path}/report.html" in capsys.readouterr().out.replace("\n", "")
    assert files_of(artifact) == before and {p.name for p in tmp_path.iterdir()} == {"report.html"}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page, found = Page(text), api.load(artifact).explain()
    page.check()
    figures = [str(a["id"]) for t, a in page.tags if t == "figure"]
    assert figures == [f"figure-{n}" for n in ("front", "placement", "roofline", "energy", "timeline")]
    assert page.count("svg") == 5 and page.count("figcaption") == 5
    for line in (*found.decision.as_text(), *found.ranges, *found.notes):
        assert line.strip() in page.words
    captions = page.text_of("caption")
    assert [c.split()[0] for c in captions] == ["Alternatives", "Devices", "Stages", "Boundaries:", "What", "Failover"]
    assert all("(modelled)" in c for c in captions + page.text_of("figcaption"))
    rows = len(found.alternatives) + len(found.devices) + len(found.stages) + len(found.boundaries)
    assert page.count("tr") == len(captions) + rows + len(found.sensitivity) + len(found.failovers)
    assert sum(a.get("class") == "chosen" for t, a in page.tags if t == "tr") == 1
    assert text == model_document(api.load(artifact)).html()


def test_the_thermal_margin_is_the_distance_to_the_ceiling(artifact: Path, tmp_path: Path) -> None:
    compiled = api.load(artifact)
    ceiling = dict(zip(compiled.costs["devices"], compiled.costs["ceiling"], strict=True))
    warm = [d for d in compiled.plan.devices if d.temperature is not None]
    assert warm
    cells = written(artifact, tmp_path / "r.html").text_of("td")
    for d in warm:
        assert d.temperature is not None and f"{ceiling[d.device] - d.temperature:.1f}" in cells


def test_the_page_of_a_language_model(stories: Path, tmp_path: Path) -> None:
    page = written(stories, tmp_path / "r.html")
    page.check()
    figures = [str(a["id"]) for t, a in page.tags if t == "figure"]
    assert figures == [f"figure-{n}" for n in ("placement", "roofline", "energy", "timeline")]
    assert {"prompt", "step of 1 row", "step of 4 rows"} <= set(page.text_of("td"))
    # Every phase in every figure.
    text = page.source
    for figure in figures:
        drawn = text[text.index(f'<figure id="{figure}"') :]
        assert all(n in drawn[: drawn.index("</figure>")] for n in ("prompt", "step of 1 row", "step of 4 rows"))


def test_cost_tables_of_a_language_model_are_kept(stories: Path) -> None:
    compiled = load_decoder(stories).compiled
    for name, phase in compiled.phases.items():
        assert {o for g in phase.costs["groups"] for o in g} == {o for s in phase.plan.stages for o in s.ops}, name
        seconds = np.array(phase.costs["seconds"])
        assert (seconds > 0).any() and (seconds == np.vectorize(lambda v: float(f"{v:.9g}"))(seconds)).all()
    assert all(not p.costs for spare in compiled.spares for p in spare.values())


def test_an_artifact_without_cost_tables_says_what_is_missing(stories: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.qeil"
    shutil.copytree(stories, old)

    def change(manifest: dict[str, Any]) -> None:
        for phase in manifest["phases"].values():
            (old / phase["costs"]).unlink()
            del manifest["files"][phase.pop("costs")]

    rewrite(old, change)
    (old / "costs").rmdir()
    page = written(old, tmp_path / "r.html")
    page.check()
    assert [str(a["id"]) for t, a in page.tags if t == "figure"] == ["figure-energy", "figure-timeline"]
    assert "compile the model anew" in page.words


def _table(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(artifact: Path) -> None:
        costs = json.loads((artifact / "costs/0.json").read_text())
        change(costs)
        replace_file(artifact, "costs/0.json", json.dumps(costs).encode())

    return apply


def _damage(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))


BAD: dict[str, Callable[[Path], None]] = {
    **{f"no {name}": _table(lambda c, name=name: c.pop(name)) for name in ("flops", "nbytes", "dasi_eff", "beta_eff")},
    "text": _table(lambda c: c["flops"][0].__setitem__(0, "1")),
    "NaN": _table(lambda c: c["beta_eff"][0].__setitem__(0, float("nan"))),
    "row cut": _table(lambda c: c["dasi_eff"][0].pop()),
    "operators that are none": _table(lambda c: c["groups"][0].append("nothing")),
    "types of others": _table(lambda c: c["types"][0].append("onnx.Add")),
    "types that are none": _table(lambda c: c.update(types=7)),
    "numbers as types": _table(lambda c: c["types"].__setitem__(0, [1] * len(c["types"][0]))),
    "ceilings cut": _table(lambda c: c["ceiling"].pop()),
    "ceiling that is none": _table(lambda c: c["ceiling"].__setitem__(0, "hot")),
    "no table at all": lambda a: rewrite(a, lambda m: m["phases"]["prefill"].update(costs="costs/9.json")),
    "another place": lambda a: rewrite(a, lambda m: m["phases"]["prefill"].update(costs="../x.json")),
    "a number": lambda a: rewrite(a, lambda m: m["phases"]["prefill"].update(costs=3)),
    "damaged": lambda a: _damage(a / "costs/0.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_cost_tables_of_strangers_are_checked(stories: Path, tmp_path: Path, case: str) -> None:
    changed = tmp_path / "changed.qeil"
    shutil.copytree(stories, changed)
    BAD[case](changed)
    with pytest.raises(ArtifactError):
        CompiledDecoder.load(changed)


def test_names_of_strangers_are_text(artifact: Path, stories: Path) -> None:
    compiled = api.load(artifact)
    plan = replace(compiled.plan, model=EVIL, strategy=EVIL, notes=(EVIL,), pins={EVIL: EVIL})
    plan = replace(plan, alternatives=tuple(replace(a, strategy=EVIL, note=EVIL) for a in plan.alternatives))
    ordinary = model_document(replace(compiled, plan=plan)).html()
    decoder = load_decoder(stories).compiled
    phases = {n: replace(p, plan=replace(p.plan, strategy=EVIL, objective="energy")) for n, p in decoder.phases.items()}
    language = decoder_document(replace(decoder, name=EVIL, notes=(EVIL,), phases=phases)).html()
    for text in (ordinary, language):
        page = Page(text)
        page.check()
        assert "<script" not in text and any("<script>alert(1)</script>" in t for t in page.text_of("h1"))


def test_a_name_that_is_taken_or_no_page(artifact: Path, stories: Path, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "there.html").write_text("kept")
    for name, words in (("there.html", "--overwrite"), ("report.pdf", ".html"), ("no/r.html", "does not exist")):
        for path in (artifact, stories):
            assert main(["explain", str(path), "--html", f"{tmp_path}/{name}"]) == 1
            seen = capfd.readouterr()
            assert seen.out == "" and words in seen.err and len(seen.err.splitlines()) == 1
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"there.html": "kept"}
    assert main(["explain", str(artifact), "--html", f"{tmp_path}/there.html", "--overwrite", "--quiet"]) == 0
    assert Page((tmp_path / "there.html").read_text()).count("svg") == 5


# In a browser

@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("kind", ["model", "language model"])
def test_the_page_in_a_browser(artifact: Path, stories: Path, tmp_path: Path, kind: str) -> None:
    report = tmp_path / "report.html"
    written(artifact if kind == "model" else stories, report)
    look(report, tmp_path, 5000)
