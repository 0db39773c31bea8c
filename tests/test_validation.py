"""`qeil validate` and `qeil calibrate` as a person calls them, the report, and the row of this host."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qeil_compile.calibration import run as calibration_run
from qeil_compile.calibration.run import Outcome
from qeil_compile.cli import main
from qeil_compile.devices import calibrations
from qeil_compile.devices.calibrated import FEATURES, Calibration, Memory
from qeil_compile.errors import QeilError
from qeil_compile.validation import host_latency
from qeil_compile.validation.report import Point, claim
from qeil_compile.validation.run import PARTS, splits

ROOT = Path(__file__).parent.parent
DATA = ROOT / "benchmarks" / "data"
Capture = pytest.CaptureFixture[str]


def test_a_claim_is_its_points() -> None:
    points = [Point("a", "d", 10.0, 11.0, {"roofline": 20.0}), Point("b", "d", 100.0, 80.0, {"roofline": 100.0})]
    found = claim("c", "set", 14.0, points)
    assert found.value == pytest.approx(15.0)
    assert not found.met
    assert found.baselines == {"roofline": pytest.approx(50.0)}
    assert claim("c", "set", 0.9, points, metric=lambda m, p: 0.95, higher_is_better=True).met


def test_every_public_part_has_its_split() -> None:
    assert {"gpu_latency", "end_to_end", "tokens", "inference_energy", "temperature"} <= set(splits())


def test_validate_prints_baselines_and_writes_every_point_and_a_plot(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["validate", "--data", str(DATA), "--models", str(tmp_path), "--only", "temperature"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    seen = capsys.readouterr().out
    assert "roofline" in seen
    assert "RTX 3090" in seen
    data = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert data["environment"]["engines"]
    assert all(c["points"] for c in data["claims"])
    for c in data["claims"]:
        assert {"name", "value", "goal", "met", "baselines", "note"} <= set(c)
    assert list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], f"expected one of {', '.join(PARTS)}"),
        (["--data", "/no/such/folder"], "--data /no/such/folder: no such folder"),
        (["--threads", "1,x"], "expected numbers from 1"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, tmp_path: Path, capsys: Capture) -> None:
    base = ["validate", "--data", str(DATA), "--models", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main([*base, *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_without_data_is_named(tmp_path: Path, capsys: Capture) -> None:
    base = ["validate", "--data", str(tmp_path), "--models", str(tmp_path), "-o", str(tmp_path / "out")]
    assert main([*base, "--only", "token-energy", "--only", "temperature"]) == 0
    seen = capsys.readouterr().out
    assert "token-energy: skipped" in seen
    assert "temperature: skipped" in seen


def a_calibration(spec: str, threads: int, rate: float = 5e9) -> Calibration:
    engine, _, device = spec.partition(":")
    families = {f: (1e-6, 1e-9, rate, 1.0, *[1.0] * FEATURES) for f in ("gemm", "gemv", "elementwise relu")}
    return Calibration(
        engine, device, threads, calibration_run.backend(engine).version(), 16, 1e-5, Memory(5e10, 2e10, 2e7),
        families, spread={"gemm": 0.02}, missing={"energy": "no counter"}, boundary=2e-5,
    )  # fmt: skip


def test_the_host_row_compares_a_stored_calibration_with_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, 64]) for n in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "small.onnx")
    full = host_latency.host_models
    only = lambda folder: {"small": full(folder)["small"]}  # noqa: E731
    monkeypatch.setattr(host_latency, "host_models", only)
    with pytest.raises(QeilError, match="run `qeil calibrate` first"):
        host_latency.evaluate(tmp_path, (1,), 0.0, 2)
    for spec in host_latency.ENGINES:
        calibrations.save(a_calibration(spec, 1))
    # The worker times every model of the folder and the built-in ones: a small stand-in answers for them here.
    timed = {"seconds": {"small": [2.5e-5, 5e-5, 2.5e-5]}, "refused": {"other": "no such operator"}}
    monkeypatch.setattr(host_latency, "_measure", lambda *given: timed)
    median, worst = host_latency.evaluate(tmp_path, (1,), 0.0, 2)
    assert len(median.points) == len(host_latency.ENGINES)
    assert median.points[0].measured == pytest.approx(2.5e-5)
    assert median.points[0].model > 1e-5
    assert worst.value >= median.value
    assert "does not run other" in median.note


def test_calibrate_shows_what_was_found_and_what_was_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    def calibrate(specs: object, threads: object, seconds: float, progress: object) -> list[Outcome]:
        found = a_calibration("onnxruntime:CPU", 2)
        return [Outcome("onnxruntime:CPU", 2, found, "stored.json"), Outcome("openvino:CPU", 2, reason="it failed")]

    monkeypatch.setattr("qeil_compile.api.run_calibration", calibrate)
    result = tmp_path / "c.json"
    assert main(["calibrate", "onnxruntime:CPU", "--threads", "2", "--json", str(result)]) == 0
    seen = capsys.readouterr().out
    assert "onnxruntime:CPU" in seen
    assert "no counter" in seen
    assert "it failed" in seen
    assert "stored.json" in seen
    rows = json.loads(result.read_text())
    assert rows[0]["calibration"]["families"]["gemm"]["rate"] == 5e9
    assert rows[1]["reason"] == "it failed"
    assert main(["calibrate", "no:thing"]) == 1
    assert "no:thing" in capsys.readouterr().err
