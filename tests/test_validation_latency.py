"""Rows 1 and 2 of the validation: readers, recovery of known coefficients, what the splits leave out."""

from __future__ import annotations

import csv
import gzip
import shutil
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile.devices.gpu import gpu_seconds
from qeil_compile.devices.gpu_spec import GpuSpec
from qeil_compile.errors import InputError
from qeil_compile.validation import end_to_end, gpu_fit, gpu_latency
from qeil_compile.validation.gpu_data import Samples, read_samples, spec_of, table_of
from qeil_compile.validation.gpu_layers import Kernel, elementwise, gemm, softmax
from qeil_compile.validation.traces import read_trace

DATA = Path(__file__).parents[1] / "benchmarks" / "data"
BOARDS = ("Tesla V100-PCIE-32GB", "Tesla P100-PCIE-16GB", "Tesla T4")


def splits(**stride: int) -> dict[str, Any]:
    name = next(n for n in ("splits.toml", "splits.toml") if files("qeil_compile.validation").joinpath(n).is_file())
    table: dict[str, Any] = tomllib.loads(files("qeil_compile.validation").joinpath(name).read_text("utf-8"))
    if stride:
        table["gpu_latency"]["stride"] = dict.fromkeys(table["gpu_latency"]["report"], stride["every"])
    return table


def made_up(op: str, launch: str, kernels: list[Kernel], truth: dict[str, float]) -> list[Samples]:
    table, found = table_of(kernels), []
    for board in BOARDS:
        spec = spec_of(board, DATA)
        assert spec is not None
        t = truth[launch] + gpu_seconds(spec, table, truth)
        noise = np.random.default_rng(len(found)).normal(0, 0.01, len(t))
        found.append(Samples("made up", board, op, launch, table, t * np.exp(noise)))
    return found


def test_known_coefficients_are_recovered() -> None:
    rng = np.random.default_rng(0)
    truth = gpu_fit.priors() | {"elementwise_memory": 0.77, "launch_elementwise": 1.6e-5, "softmax_element": 37.0}
    sizes = [int(n) for n in 2 ** rng.uniform(16, 28, 120)]
    rows = [(int(r), int(w)) for r, w in zip(2 ** rng.uniform(6, 16, 120), 2 ** rng.uniform(5, 13, 120), strict=True)]
    samples = made_up("add", "launch_elementwise", [elementwise(n, 2, 1.0, 4) for n in sizes], truth)
    samples += made_up("softmax", "launch_softmax", [softmax(r, w, 4) for r, w in rows], truth)
    fitted = gpu_fit.fit(samples, DATA)
    for name, near in (("elementwise_memory", 0.03), ("launch_elementwise", 0.05), ("softmax_element", 0.2)):
        assert fitted.coefficients[name] == pytest.approx(truth[name], rel=near), name
    assert fitted.spread["stream"] < 0.03 and fitted.spread["softmax"] < 0.03


def test_tile_coefficients_are_recovered() -> None:
    rng = np.random.default_rng(1)
    truth = gpu_fit.priors() | {"lane_edge": 11.0, "launch_linear": 8e-5}
    shapes = 2 ** rng.uniform(5, 12, (100, 3))
    kernels = [gemm(1, *(int(v) // 4 * 4 for v in s), 4) for s in shapes]
    fitted = gpu_fit.fit(made_up("linear", "launch_linear", kernels, truth), DATA)
    assert fitted.coefficients["lane_edge"] == pytest.approx(11.0, rel=0.15)
    assert fitted.coefficients["launch_linear"] == pytest.approx(8e-5, rel=0.05)
    assert fitted.spread["lane"] < 0.03


def test_one_odd_board_bends_no_coefficient() -> None:
    truth = gpu_fit.priors() | {"elementwise_memory": 0.8}
    samples = made_up("add", "launch_elementwise", [elementwise(2**k, 2, 1.0, 4) for k in range(20, 29)] * 8, truth)
    samples[0] = replace(samples[0], seconds=samples[0].seconds * 1.5)
    assert gpu_fit.fit(samples, DATA).coefficients["elementwise_memory"] == pytest.approx(0.8, rel=0.05)


def test_linear_columns_are_rows_inner_columns() -> None:
    samples = read_samples(DATA, ["neusight/test"], {"neusight/test": 1000})
    by_op = {(s.device, s.op): s for s in samples}
    first = by_op["Tesla V100-PCIE-32GB", "linear"].table
    assert first.dims[0] == (1, 1024, 2560, 2560)
    assert first.flops[0] == 2.0 * 1024 * 2560**2
    assert {"linear", "bmm", "ln", "softmax", "add"} <= {s.op for s in samples}


def test_bad_rows_name_the_file_and_the_row(tmp_path: Path) -> None:
    folder = tmp_path / "neusight" / "test"
    folder.mkdir(parents=True)
    path = folder / "linear.csv.gz"
    for row, found in (("linear,1.0,Tesla T4,1,8,8,many", "many"), ("linear,0,Tesla T4,1,8,8,8", "a time of 0")):
        with gzip.open(path, "wt") as f:
            f.write(f"OPName,Latency,Device,B,M,N,K\n{row}\n")
        with pytest.raises(InputError, match=f"linear.csv.gz: row 1: found .*{found}"):
            read_samples(tmp_path, ["neusight/test"])
    path.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="expected a gzipped CSV"):
        read_samples(tmp_path, ["neusight/test"])


def test_missing_sets_give_no_claim(tmp_path: Path) -> None:
    assert gpu_latency.evaluate(tmp_path, splits(), tmp_path) == []
    assert end_to_end.evaluate(tmp_path, splits(), tmp_path) == []


def test_nothing_of_a_reported_chip_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def watched(samples: list[Samples], folder: Path) -> gpu_fit.Fitted:
        seen.append({s.device for s in samples})
        return gpu_fit.Fitted(gpu_fit.priors(), {})

    monkeypatch.setattr(gpu_latency, "fit", watched)
    table = splits(every=400)
    claims = gpu_latency.evaluate(DATA, table, DATA)
    family = gpu_latency.family_of(table["gpu_latency"])
    left_out = sorted({p.left_out for p in claims[1].points})
    assert len(seen) == len(left_out) >= 6
    for name, devices in zip(left_out, seen, strict=True):
        assert devices and name not in {family(d) for d in devices}
        boards = {p.name.rsplit(" ", 2)[0] for p in claims[1].points if p.left_out == name}
        assert {family(board) for board in boards} == {name}
    assert {p.name for p in claims[0].points} < {p.name for p in claims[1].points}
    assert claims[0].baselines["roofline"] > 0


def test_a_board_unknown_to_the_fit_is_reported_from_its_data_sheet(tmp_path: Path) -> None:
    shutil.copytree(DATA / "neusight" / "device_configs", tmp_path / "neusight" / "device_configs")
    folder = tmp_path / "neusight" / "test"
    folder.mkdir()
    with gzip.open(folder / "linear.csv.gz", "wt", newline="") as f:
        out = csv.writer(f)
        out.writerow(["OPName", "Latency", "Device", "B", "M", "N", "K"])
        out.writerow(["linear", "0.5", "NVIDIA L4", 1, 1024, 1024, 1024])
        out.writerow(["linear", "0.5", "Some board", 1, 1024, 1024, 1024])
    claims = gpu_latency.evaluate(tmp_path, splits(every=1), DATA.parent / "none")
    assert [p.name for p in claims[0].points] == ["NVIDIA L4 linear 1x1024x1024x1024"]
    assert "Some board" in claims[0].note


def test_a_trace_holds_the_products_of_its_model() -> None:
    trace = read_trace(DATA / "neusight" / "label" / "Tesla_V100-PCIE-32GB__bert_large-inf-512-8.csv.gz")
    layer = [t.kernel for t in trace if t.layered and t.kernel[0] == "gemm"]
    tokens, hidden = 8 * 512, 1024
    projections = 2.0 * tokens * hidden * (4 * hidden + 8 * hidden)
    scores = 2 * 2.0 * 8 * 16 * 512 * 512 * 64
    assert sum(k[4] for k in layer) == pytest.approx(projections + scores)
    assert sum(t.kernel[0] == "softmax" for t in trace) == 1
    assert sum(t.kernel[0] == "norm" and t.layered for t in trace) == 2
    assert not any(t.layered for t in trace if t.kernel[0] == "gather")


def test_end_to_end_sums_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Tesla_V100-PCIE-32GB__bert_large-inf-512-8.csv.gz"
    for folder in ("device_configs", "label"):
        (tmp_path / "neusight" / folder).mkdir(parents=True)
    shutil.copy(DATA / "neusight" / "label" / name, tmp_path / "neusight" / "label")
    shutil.copytree(DATA / "neusight" / "device_configs", tmp_path / "neusight" / "device_configs", dirs_exist_ok=True)
    labels = tmp_path / "neusight" / "label_e2e.txt"
    known = gpu_fit.Fitted(gpu_fit.priors(), {})
    monkeypatch.setattr(end_to_end, "held_out", lambda *_: known)

    def modelled(layers: int) -> float:
        label = f'{{"num_layer": {layers}; "fw_latency": 250.0}}'
        labels.write_text(f"Tesla_V100-PCIE-32GB,bert_large-inf-512-8,{label}\nTesla_T4,other-inf-1-1,{label}\n")
        (claim,) = end_to_end.evaluate(tmp_path, splits(every=1000), tmp_path)
        assert len(claim.points) == 1 and claim.points[0].measured == 0.25 and "1 labels" in claim.note
        return claim.points[0].model

    one, two, three = modelled(1), modelled(2), modelled(3)
    assert three - two == pytest.approx(two - one) and 0 < two - one < one * 2
    labels.write_text("Tesla_T4,model,{broken\n")
    with pytest.raises(InputError, match="line 1"):
        end_to_end.evaluate(tmp_path, splits(), tmp_path)


def test_the_shipped_file_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(samples: list[Samples], folder: Path) -> gpu_fit.Fitted:
        return gpu_fit.Fitted(gpu_fit.priors() | {"lane_edge": 7.5}, {"lane": 0.12})

    monkeypatch.setattr(gpu_fit, "fit", known)
    path = tmp_path / "gpu_kernels.toml"
    gpu_fit.write_coefficients([], DATA, path)
    entries = tomllib.loads(path.read_text())["coefficients"]
    assert entries["lane_edge"]["value"] == 7.5 and entries["lane_edge"]["residual"] == 0.12
    assert entries["norm_row"]["source"] != entries["lane_edge"]["source"]
    assert set(entries) == set(gpu_fit.priors()) - {n for n in gpu_fit.priors() if n.startswith("launch_")}


def test_roofline_is_the_larger_roof() -> None:
    spec = GpuSpec("chip", {"fp32": 1e12}, 1e11, 10, 1e6)
    t = gpu_latency.roofline(spec, table_of([gemm(1, 100, 100, 100, 4), elementwise(1000, 1, 1.0, 4)]))
    assert t == pytest.approx([2e6 / 1e12 if 2e6 / 1e12 > 1.2e5 / 1e11 else 1.2e5 / 1e11, 8000 / 1e11])
