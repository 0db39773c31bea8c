"""Every benchmark runs with its smallest settings and gives rows. How fast anything is, is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "equivalence": ["--assignments", "2", "--models", "silero_vad_16k_op15", "bf16 MLP"],
    "overhead": ["--engines", "onnxruntime"],
    "boundary": [],
    "onnx_coverage": ["--match", "test_gather_elements"],
    "compile_time": [],
    "fusion": ["--engines", "openvino"],
    "annotate": [],
    "validate": [],
    # The parts that need no pymoo, which comes with an extra of its own.
    "partition": ["--only", "plans", "--only", "exact", "--only", "growth"],
    "dnn_partitioning": ["--seeds", "1"],
    "mixing": ["--models", "silero_vad_16k_op15"],
    "sampling": [],
    "thermal": [],
    "faults": [],
    "gpu": [],
    "llm": ["--families", "gpt2-125m", "--forms", "fp32", "--rows", "2", "--only", "decode", "job", "--peers",
            "transformers", "--threads", "1"],
    "strangers": ["--only", "plan", "log", "FX", "--count", "20"],
    "paper": ["--targets", "lunar-lake-258v", "--families", "gpt2-125m", "--no-quality"],
    "selection": ["--only", "arde", "--only", "verified", "--only", "eac", "--only", "demo"],
}
#: Parts of benchmarks, not scripts.
PARTS = {"common", "families", "faults_kinds", "llm_convert", "llm_ours", "llm_peer", "llm_peers", "llm_peers_native",
         "llm_turns", "llm_worker", "mutations", "recordings", "selection_costs", "selection_demo",
         "strangers_corpus", "strangers_worker"}


@pytest.mark.parametrize("name", SMALL)
def test_benchmark_gives_rows(name: str, tmp_path: Path) -> None:
    if name == "llm":
        pytest.importorskip("transformers")
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--json", str(result), *SMALL[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    data = json.loads(result.read_text(encoding="utf-8"))
    assert data["benchmark"] == name and data["quick"]
    assert data["environment"]["cpu"] and data["environment"]["versions"]["onnxruntime"]
    tables = list(data["tables"].values())
    assert tables[0]["rows"]
    if name == "llm":
        agreed = {m["peer"]: m["difference"] for m in data["measurements"] if m["part"] == "agreement"}
        assert set(agreed) == {"transformers", "ours"} and max(agreed.values()) < 1e-3
        assert {r["peer"] for r in data["tables"]["job"]["rows"]} == {"transformers", "ours"}
        assert not data["absent"]
    if name == "thermal":
        above = {(r["device"], r["monitor"]): r["above the ceiling [s]"] for r in tables[0]["rows"]}
        assert all((seconds == 0) == (monitor == "yes") for (_, monitor), seconds in above.items())
        assert all(r["of these with work allowed"] == 0 for r in data["tables"]["replays"]["rows"])
    if name == "faults":
        assert all(r["tokens equal"] == r["recovered"] == r["runs"] for r in tables[0]["rows"]), tables[0]["rows"]
    if name == "equivalence":
        assert all(r["differ"] == r["failed"] == 0 for r in tables[0]["rows"]), tables[0]["notes"]


def test_every_benchmark_is_tested() -> None:
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} - PARTS
    assert scripts == set(SMALL)
