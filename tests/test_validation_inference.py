"""Energy per inference: networks of known size, recovery of known coefficients, splits that do not touch."""

from __future__ import annotations

import csv
import gzip
import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from qeil_compile.errors import QeilError
from qeil_compile.validation import inference_energy, inference_model
from qeil_compile.validation.inference_model import fit_relative, unseen_devices, unseen_models, workload
from qeil_compile.validation.mlperf_runs import Device, Run, find_device, read_runs
from qeil_compile.validation.networks import model_name, network, precision_of

DATA = Path(__file__).parents[1] / "benchmarks" / "data"
SPLIT = tomllib.loads(files("qeil_compile.validation").joinpath("splits.toml").read_text("utf-8"))[
    "inference_energy"
]
NAMES = [f"mobilenet-v{v}-{w}-{s}" for v in (1, 2) for w in ("0.5", "0.75", "1.0") for s in (128, 160, 192, 224)]
NAMES += [f"efficientnet-lite{n}" for n in range(5)]


def board(name: str, peak: float, nm: float = 12, idle: float = 2.0, ghz: float = 2.0) -> Device:
    return Device(name, "board", peak, peak, 1e10, ghz, nm, 8.0, idle)


def run(model: str, device: Device, theta: np.ndarray, epsilon: np.ndarray) -> Run:
    """A run that obeys the energy equation exactly, in units of the device's data sheet."""
    net = network(model)
    assert net is not None
    launch = (device.base * device.ghz * 1e9) ** 0.5
    per = workload(net) / np.array([launch] * 3 + [device.rate] * 3 + [device.base] * 5)
    seconds = float(per @ theta)
    dynamic = float(per @ epsilon) * device.base * device.nm**inference_model.NODE_EXPONENT
    energy = seconds * device.idle + dynamic
    system = f"{device.name}-tflite-ruy"
    return Run(
        system, system, f"{model}-quantized", model, "int8", "SingleStream", "tflite-ruy", device, energy, seconds,
        energy / seconds,
    )  # fmt: skip


@pytest.fixture
def coefficients() -> tuple[np.ndarray, np.ndarray]:
    theta = np.array([1e7, 1e6, 5e5, 8.0, 6.0, 20.0, 2.0, 3.0, 4.0, 1.0, 0.5])
    return theta, theta * 1.0e-11


@pytest.mark.parametrize(
    ("name", "macs", "weights"),
    [  # published millions: TF-slim, Keras and TPU model cards; ResNet-50 v1.5 of MLPerf
        ("mobilenet-v1-1.0-224", 569, 4.24),
        ("mobilenet-v1-0.25-128", 14, 0.47),
        ("mobilenet-v2-1.0-224", 300, 3.47),
        ("mobilenet-v2-1.4-224", 582, 6.06),
        ("mobilenet-v3-large-224-1.0", 219, 5.4),
        ("mobilenet-v3-large-minimalistic-224-1.0", 209, 3.9),
        ("efficientnet-lite0", 407, 4.7),
        ("efficientnet-lite4", 2640, 13.0),
        ("resnet50", 4089, 25.5),
    ],
)
def test_networks_have_the_published_size(name: str, macs: float, weights: float) -> None:
    net = network(name)
    assert net is not None
    assert net.total(1) / 1e6 == pytest.approx(macs, rel=0.06)
    assert net.total(4) / 1e6 == pytest.approx(weights, rel=0.04)


def test_names_say_network_and_precision() -> None:
    assert model_name("mobilenet-v3-large_224_0.75_float") == "mobilenet-v3-large-224-0.75"
    assert model_name("efficientnet-lite2-non-quantized") == model_name("efficientnet-lite2-quantized")
    assert model_name("bert-99.9") == model_name("bert-99") == "bert"
    assert [precision_of(n) for n in ("a_uint8", "a-non-quantized", "a-quantized", "a")] == ["int8", "fp32", "int8", ""]
    assert network("no-such-network") is None
    assert network("efficientnet-lite9") is None


def test_width_and_resolution_scale_macs() -> None:
    small, wide, large = (network(f"mobilenet-v1-{n}") for n in ("0.5-128", "1.0-128", "0.5-224"))
    assert small and wide and large
    assert wide.total(1, "pointwise") / small.total(1, "pointwise") == pytest.approx(4, rel=0.01)
    assert large.total(1) / small.total(1) == pytest.approx((224 / 128) ** 2, rel=0.05)


def test_fit_recovers_positive_coefficients() -> None:
    features = np.random.default_rng(0).uniform(1, 9, (40, 3)) * np.array([1.0, 1e9, 1e-3])
    truth = np.array([2.0, 0.0, 5e3])
    found = fit_relative(features, features @ truth)
    assert found == pytest.approx(truth, rel=1e-6, abs=1e-12)


def test_unseen_model_of_a_synthetic_device_is_exact(coefficients: tuple[np.ndarray, np.ndarray]) -> None:
    runs = [run(name, board("a", 1e11), *coefficients) for name in NAMES]
    points = unseen_models(runs, runs, lambda r: r.model, 8)
    assert len(points) == len(runs)
    for point, timed in points.values():
        assert point.model == pytest.approx(point.measured, rel=0.02)
        assert timed.model == pytest.approx(point.measured, rel=0.02)


def test_the_left_out_model_does_not_enter_the_fit(coefficients: tuple[np.ndarray, np.ndarray]) -> None:
    """A run spoilt a hundredfold must change every prediction but its own."""
    runs = [run(name, board("a", 1e11), *coefficients) for name in NAMES]
    spoilt = [*runs]
    spoilt[3] = Run(**{f: getattr(runs[3], f) for f in Run.__slots__} | {"energy": runs[3].energy / 100})
    before, after = (unseen_models(runs, r, lambda r: r.model, 8) for r in (runs, spoilt))
    assert after[3][0].model == before[3][0].model
    assert any(after[i][0].model != pytest.approx(before[i][0].model, rel=0.01) for i in before if i != 3)


def test_unseen_device_of_the_same_physics_is_exact(coefficients: tuple[np.ndarray, np.ndarray]) -> None:
    devices = [board("a", 5e10, 28, 3.0, 1.8), board("b", 1e11), board("c", 2e11, 8, 1.5, 2.4), board("d", 4e11, 8)]
    runs = [run(name, device, *coefficients) for name in NAMES for device in devices]
    points = unseen_devices(runs, runs)
    assert len(points) == len(runs)
    assert all(p.model == pytest.approx(p.measured, rel=0.05) for p in points.values())


def test_the_left_out_device_does_not_enter_the_fit(coefficients: tuple[np.ndarray, np.ndarray]) -> None:
    devices = [board("a", 5e10), board("b", 1e11), board("c", 2e11)]
    runs = [run(name, device, *coefficients) for name in NAMES for device in devices]
    others = [r for r in runs if r.device.name != "b"]
    with_all, without = unseen_devices(runs, runs), unseen_devices(runs, others)
    assert all(with_all[i].model == without[i].model for i, r in enumerate(runs) if r.device.name == "b")
    # Left out are both of two devices: nothing is left to fit "a" on but "c".
    assert not any(runs[i].device.name in "ac" for i in without)


def test_device_of_a_misdescribed_board_and_of_an_accelerator() -> None:
    catalogue = {
        "Odroid-N2+ (S922X 4xA73 2.2 + 2xA53 1.9)": {
            "idle_W": "2.35", "tdp_W": "7.8", "mem_bw_GBs": "10.6", "peak_flops_by_dtype": '{"fp32": 1e11}'
        }
    }  # fmt: skip
    wrong = {
        "system": "odroid-armnn-v21.11-neon",
        "accelerator_model_name": "-",
        "accelerators_per_node": "0",
        "host_processor_model_name": "NVIDIA Carmel (ARMv8.2)",
    }
    device = find_device(wrong, catalogue, "int8", None)
    assert device is not None
    assert (device.name.split()[0], device.rate, device.idle) == ("Odroid-N2+", 2e11, 2.35)
    server = wrong | {"system": "x", "accelerator_model_name": "NVIDIA A100-SXM4-40GB", "accelerators_per_node": "8"}
    found = find_device(server, catalogue, "", 1300.0)
    assert found is not None
    assert (found.name, found.units, found.tdp) == ("NVIDIA A100-SXM-40GB", 8, 1300 + 8 * 400)
    assert find_device(server, catalogue, "", None) is None
    assert find_device(wrong | {"system": "abacus", "host_processor_model_name": "beads"}, catalogue, "", 1.0) is None


def _copy(folder: Path, change: dict[str, str] | None = None, drop: str = "", rows: int = 400) -> Path:
    """A folder like `DATA` with the first rows of the runs, one column changed in the first row or dropped."""
    with gzip.open(DATA / SPLIT["runs"], "rt", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        table = [row for row, _ in zip(reader, range(rows), strict=False)]
        columns = [c for c in reader.fieldnames or () if c != drop]
    table[0] |= change or {}
    for name in (SPLIT["runs"], SPLIT["systems"], SPLIT["devices"]):
        (folder / name).parent.mkdir(exist_ok=True)
    for name in (SPLIT["systems"], SPLIT["devices"]):
        (folder / name).write_bytes((DATA / name).read_bytes())
    with gzip.open(folder / SPLIT["runs"], "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    return folder


def test_missing_files_give_no_claim(tmp_path: Path) -> None:
    assert inference_energy.evaluate(tmp_path, SPLIT, DATA) == []
    assert inference_energy.evaluate(DATA, SPLIT, tmp_path) == []


def test_format_errors_name_file_and_column(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(QeilError, match=r"mlperf_power\.csv\.gz: no column avg_power_W"):
        read_runs(_copy(tmp_path / "a", drop="avg_power_W"), SPLIT, DATA)
    (tmp_path / "b").mkdir()
    with pytest.raises(QeilError, match=r"column avg_power_W of .*expected a number, found 'lots'"):
        read_runs(_copy(tmp_path / "b", {"avg_power_W": "lots"}), SPLIT, DATA)
    (tmp_path / "b" / SPLIT["runs"]).write_bytes(b"not gzip")
    with pytest.raises(QeilError, match="not a readable table"):
        read_runs(tmp_path / "b", SPLIT, DATA)


def test_rules_drop_duplicates_and_invalid_runs(tmp_path: Path) -> None:
    for i, change in enumerate(({}, {"duplicate_of": "x"}, {"result": "INVALID"}, {"n_power_samples": "3"})):
        (tmp_path / str(i)).mkdir()
        runs, _ = read_runs(_copy(tmp_path / str(i), change, rows=3), SPLIT, DATA)
        assert len(runs) == (3 if not change else 2)


def test_real_slice_is_disjoint_and_beats_the_baselines(tmp_path: Path) -> None:
    """On real runs: every point's name holds what was left out; model below each baseline; all rows are there."""
    runs, unknown = read_runs(DATA, SPLIT, DATA)
    assert unknown == 0
    boards = [r for r in runs if r.device.kind == "board" and r.system.startswith(("rpi4", "odroid", "vim4"))]
    seen = unseen_models(boards, boards, lambda r: r.model, SPLIT["min_models"])
    assert len(seen) > 500
    assert all(boards[i].model == p.left_out for i, (p, _) in seen.items())
    errors = {
        name: np.mean([abs(value(p) / p.measured - 1) for p, _ in seen.values()])
        for name, value in {
            "model": lambda p: p.model,
            "roofline": lambda p: p.baselines["roofline"],
            "constant_power": lambda p: p.baselines["constant_power"],
            "tdp": lambda p: p.baselines["tdp"],
        }.items()
    }
    assert errors["model"] < 0.08
    assert errors["model"] < min(errors[b] for b in ("roofline", "constant_power", "tdp")) / 4
    left = unseen_devices(boards, boards)
    assert all(boards[i].device.name == p.left_out for i, p in left.items())


def test_claims_on_runs_that_the_fit_never_saw(tmp_path: Path) -> None:
    """Reported data may differ from fitted data: the first rows only, fitted on all."""
    claims = inference_energy.evaluate(_copy(tmp_path, rows=600), SPLIT, DATA)
    names = {c.name for c in claims}
    assert {"energy per inference, unseen model of a seen device", "energy per inference, unseen device"} <= names
    assert any(name.startswith("rank over devices") for name in names)
    for row in claims:
        assert np.isfinite(row.value)
        assert row.points
