"""Calibration: the model of kernel times, its fit, energy counters, the store, and prices that come from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import qeil_compile.calibration.run as run_module
import qeil_compile.calibration.suite as suite_module
from qeil_compile import api
from qeil_compile.backends import EngineDevice, backend
from qeil_compile.calibration import worker
from qeil_compile.calibration.composites import decoder
from qeil_compile.calibration.fit import Sample, _Problem, fit
from qeil_compile.calibration.networks import Chain, Layer, convolutions, elementwise, gemm, rowwise
from qeil_compile.calibration.rounds import quiet, typical
from qeil_compile.calibration.suite import suite
from qeil_compile.devices import calibrations
from qeil_compile.devices.calibrated import (
    FEATURES,
    Calibration,
    Memory,
    Residuals,
    Rows,
    canonical,
    family_of,
    kernel_seconds,
)
from qeil_compile.devices.work import KernelTable
from qeil_compile.errors import BackendError, QeilError, TargetError
from qeil_compile.frontends import trace
from qeil_compile.passes.count import count
from qeil_compile.passes.fuse import fuse
from qeil_compile.passes.kernels import kernel_table

LANES = 16
MEMORY = Memory(6e10, 2e10, 2e7)


def products(*shapes: tuple[int, int, int]) -> KernelTable:
    """One product with weights per (rows, inner, cols)."""
    numbers = np.array([(2.0 * m * k * n, 4.0 * m * k, 4.0 * k * n, 4.0 * m * n) for m, k, n in shapes])
    return KernelTable(
        ("gemm",) * len(shapes), tuple((1, m, n, k) for m, k, n in shapes), ("float32",) * len(shapes),
        ("MatMul",) * len(shapes), *numbers.T, np.arange(len(shapes)),
    )  # fmt: skip


def truth(table: KernelTable) -> np.ndarray:
    """A machine of the model's own form: 80 GFLOP/s, falling off with few rows and columns."""
    rows = Rows.of(table, LANES)
    own = np.array([2e-6, 1e-12, 8e10, 1.0, 3.0, 20.0, 30.0, 1e-3, 1e-3])
    return kernel_seconds(rows, np.tile(own, (len(table), 1)), MEMORY)


def measured(*shapes: tuple[int, int, int], repeats: int) -> Sample:
    table = products(*(shapes * repeats))
    return Sample(f"{shapes} x{repeats}", Rows.of(table, LANES), 1e-5 + float(truth(table).sum()))


GRID = [
    measured((m, k, n), repeats=r)
    for m in (3, 6, 16, 64, 256)
    for k, n in ((64, 64), (128, 512), (512, 512), (1024, 2048), (2048, 256))
    for r in (1, 8)
]


def test_a_fit_finds_the_machine_again_on_shapes_that_it_never_saw() -> None:
    found = fit(GRID, 4e7)
    calibration = Calibration("e", "CPU", 1, "1", LANES, found.entry, found.memory, found.families, found.residuals)
    unseen = products((2, 256, 256), (32, 768, 768), (128, 300, 900), (8, 4096, 1024))
    assert np.abs(calibration.seconds(unseen) / truth(unseen) - 1).max() < 0.08
    assert found.entry == pytest.approx(1e-5, rel=0.3)
    assert found.spread["gemm"] < 0.02


def test_what_each_input_and_output_costs_is_found() -> None:
    many = [replace(s, tensors=2 + k % 9, seconds=s.seconds + 4e-6 * (k % 9)) for k, s in enumerate(GRID)]
    assert fit(many, 4e7).per_tensor == pytest.approx(4e-6, rel=0.2)


def test_a_spoiled_measurement_does_not_bend_the_fit() -> None:
    spoiled = [replace(s, seconds=s.seconds * 20) if k in (3, 17) else s for k, s in enumerate(GRID)]
    found = fit(spoiled, 4e7)
    smooth = Calibration("e", "CPU", 1, "1", LANES, found.entry, found.memory, found.families)
    unseen = products((32, 768, 768), (128, 300, 900))
    assert np.abs(smooth.seconds(unseen) / truth(unseen) - 1).max() < 0.12


@pytest.mark.parametrize("board", [False, True])
def test_the_jacobian_is_that_of_the_residuals(board: bool) -> None:
    samples = [replace(s, tensors=2 + k % 4) for k, s in enumerate(GRID[:8])]
    if board:
        samples = [replace(s, rows=replace(s.rows, entering=s.rows.held / 9, leaving=s.rows.held / 5)) for s in samples]
    problem = _Problem(samples, 4e7, board)
    at = problem.prior + np.random.default_rng(0).normal(0, 0.3, len(problem.prior))
    exact = problem.jacobian(at)
    for k in range(len(at)):
        step = np.zeros(len(at))
        step[k] = 1e-5
        slope = (problem.residuals(at + step) - problem.residuals(at - step)) / 2e-5
        assert np.abs(slope - exact[:, k]).max() < 1e-3 * max(1.0, np.abs(slope).max())


def test_residuals_hold_at_their_shapes_and_fade_away_from_them() -> None:
    known = np.full((3, FEATURES), np.inf)
    known[:, 0] = [10.0, 1000.0, 1e6]
    residuals = Residuals.fit(known, np.array([0.2, -0.1, 0.3]))
    assert residuals.at(known) == pytest.approx([0.16, -0.08, 0.24], abs=0.02)
    far = known.copy()
    far[:, 0] = 1e12
    assert np.abs(residuals.at(far)).max() < 1e-6


def test_weights_that_no_cache_holds_come_from_memory() -> None:
    small, large = products((1, 512, 512)), products(*[(1, 2048, 2048)] * 16)
    assert MEMORY.seconds(small.bytes_weights, np.full(1, small.bytes_weights.sum()))[0] == pytest.approx(
        small.bytes_weights[0] / MEMORY.cache
    )
    assert MEMORY.seconds(large.bytes_weights, np.full(16, large.bytes_weights.sum())) == pytest.approx(
        large.bytes_weights / MEMORY.memory, rel=1e-6
    )


@pytest.mark.parametrize(
    ("fx", "onnx_name"),
    [("scaled_dot_product_attention", "Attention"), ("layer_norm", "LayerNormalization"), ("gelu", "Gelu"),
     ("cat", "Concat"), ("permute", "Transpose"), ("_softmax", "Softmax"), ("mean", "ReduceMean")],
)  # fmt: skip
def test_both_dialects_have_one_family(fx: str, onnx_name: str) -> None:
    assert canonical(fx) == canonical(onnx_name)


def test_kernels_of_other_dtypes_and_packings_are_families_of_their_own() -> None:
    dims = (1, 4, 64, 64)
    names = {
        family_of("gemm", "MatMul", dims, "float32", 1.0),
        family_of("gemm", "MatMul", dims, "float16", 1.0),
        family_of("gemm", "MatMul", dims, "float32", 0.0),
        family_of("gemm", "MatMulNBits", dims, "float32", 1.0),
        family_of("conv", "Conv", (1, 1, 64, 64, 49, 9, 1, 7, 2), "float32", 1.0),
        family_of("conv", "Conv", (1, 64, 64, 1, 49, 9, 1, 7, 2), "float32", 1.0),
        family_of("conv", "Conv", (1, 1, 64, 64, 49, 1, 1, 7, 2), "float32", 1.0),
        family_of("conv", "Conv", (1, 1, 64, 64, 49, 3, 1, 49, 1), "float32", 1.0),
    }
    assert len(names) == 8
    assert family_of("gemv", "linear", dims, "float32", 1.0) == family_of("gemm", "MatMul", dims, "float32", 1.0)


def a_calibration(**changed: object) -> Calibration:
    families = {f: (1e-6, 1e-9, 5e10, 1.0, *[1.0] * FEATURES) for f in ("gemm", "elementwise add", "elementwise mul")}
    plain = Calibration("torch", "cpu", 2, "9", LANES, 1e-5, MEMORY, families, boundary=3e-5, noise=0.02)
    return replace(plain, **changed)  # type: ignore[arg-type]


def test_a_family_that_was_not_measured_takes_the_middle_of_its_kind() -> None:
    def priced(families: dict[str, float], type_: str) -> float:
        parameters = {f: (1e-9, 1e-12, rate, 1e-9, *[1e-9] * FEATURES) for f, rate in families.items()}
        one = np.ones(1)
        table = KernelTable(("elementwise",), ((),), ("float32",), (type_,), 1e9 * one, one, 0 * one, one, np.zeros(1))
        return float(a_calibration(families=parameters).seconds(table)[0])

    known = {"elementwise add": 1e10, "elementwise tanh": 4e10, "gemm": 1e8}
    assert priced(known, "Erf") == pytest.approx(1e9 / 2e10, rel=1e-3)
    assert priced(known, "Tanh") == pytest.approx(1e9 / 4e10, rel=1e-3)


def test_composites_scale_a_kind_and_leave_the_others() -> None:
    slower = [
        replace(s, name=f"whole {k}", seconds=1e-5 + 1.2 * (s.seconds - 1e-5), composite=True)
        for k, s in enumerate(GRID[4:12])
    ]
    alone, together = fit(GRID, 4e7), fit([*GRID, *slower], 4e7)
    assert 1.08 < together.company["gemm"] < 1.22
    assert together.families["gemm"][2] == pytest.approx(alone.families["gemm"][2] / together.company["gemm"])


def test_json_round_trip_keeps_every_price() -> None:
    found = fit(GRID, 4e7)
    calibration = Calibration(
        "e", "CPU", 1, "1", LANES, found.entry, found.memory, found.families, found.residuals, found.spread,
        {"energy": "none"}, 2e-5, 0.01, {"power_const": 3.0}, 2e-6,
    )  # fmt: skip
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    table = products((3, 100, 200), (64, 64, 64))
    assert again.seconds(table) == pytest.approx(calibration.seconds(table))
    assert (again.boundary, again.missing, again.energy) == (2e-5, {"energy": "none"}, {"power_const": 3.0})
    assert again.call(5) == pytest.approx(found.entry + 3 * 2e-6)
    board = replace(calibration, memory=replace(found.memory, entering=9e9, leaving=5e10), launched=3e-5)
    again = Calibration.from_json(json.loads(json.dumps(board.to_json())))
    assert (again.memory, again.launched) == (board.memory, 3e-5)


def test_a_calibration_belongs_to_an_engine_version_a_device_and_a_number_of_threads() -> None:
    path = calibrations.save(a_calibration())
    assert set(calibrations.load([("torch", "9", "cpu")], 2).found) == {"torch:cpu"}
    assert not calibrations.load([("torch", "10", "cpu")], 2).found
    assert not calibrations.load([("torch", "9", "cpu")], 1).found
    path.write_text('{"engine": "torch"}')
    with pytest.raises(QeilError, match=rf"{path.name}.*run `qeil calibrate` again"):
        calibrations.load([("torch", "9", "cpu")], 2)


def test_a_board_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    version = backend("torch").version()
    assert run_module._version("torch", "cpu") == version
    other = EngineDevice("torch:cuda:1", "gpu", "another", True)
    cases = ("A", True, f"{version} on A"), ("B", True, f"{version} on B"), ("C", False, version)
    for name, available, expected in cases:
        found = [other, EngineDevice("torch:cuda:0", "gpu", name, available)]
        monkeypatch.setattr(run_module, "found_devices", lambda engines, f=found: f)
        assert run_module._version("torch", "cuda:0") == expected


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QEIL_CALIBRATIONS", str(tmp_path / "file"))
    with pytest.raises(QeilError, match="set QEIL_CALIBRATIONS"):
        calibrations.save(a_calibration())
    monkeypatch.setattr(run_module, "_measure", lambda *given: pytest.fail("measured before the folder was looked at"))
    with pytest.raises(QeilError, match="cannot be stored"):
        api.calibrate(["onnxruntime:CPU"], [1], 1.0)


def exponential(*kinds: str) -> KernelTable:
    """What an engine that fuses makes of element-wise operators in a row."""
    chain = Chain((1, 65536))
    x = "x0"
    for kind in kinds:
        x = chain.node(kind, x)
    graph = trace(chain.network("chain", "elementwise", x).model).graph.priced()
    counts = count(graph)
    return kernel_table(fuse(graph, counts), counts, "openvino")


def test_one_exponential_among_cheap_operators_is_not_many() -> None:
    alone, among, many = exponential("Tanh"), exponential("Relu", "Tanh", "Neg", "Abs"), exponential(*["Tanh"] * 4)
    assert len(alone) == len(among) == len(many) == 1 and among.types == ("Tanh",)
    assert among.flops[0] > alone.flops[0]
    flops = [float(Rows.of(t, LANES).flops[0]) for t in (alone, among, many)]
    assert flops[0] == flops[1] and flops[2] == pytest.approx(4 * flops[0])


def test_what_a_board_is_handed_is_copied_and_its_cache_is_not() -> None:
    graph = trace(decoder(1, 64, 32, 2, 1, 50).model).graph.priced()
    counts = count(graph)
    kernels = kernel_table(fuse(graph, counts), counts, "torch")
    assert kernels.bytes_entering is not None and kernels.bytes_leaving is not None
    cache = 2 * 64 * 32 * 4
    assert kernels.bytes_entering.sum() == cache + 32 * 4
    assert kernels.bytes_leaving.sum() == pytest.approx(cache + 2 * 32 * 4 + 50 * 4)
    states = frozenset(graph.inputs[1:] + graph.outputs[1:])
    kept = kernel_table(fuse(replace(graph, states=states), counts), counts, "torch")
    assert kept.bytes_entering is not None and kept.bytes_leaving is not None and kept.bytes_ends is not None
    assert (kept.bytes_entering.sum(), kept.bytes_leaving.sum()) == (32 * 4, 50 * 4)
    assert kept.bytes_ends.sum() == kernels.bytes_ends.sum()  # type: ignore[union-attr]


def test_a_border_is_found_beside_the_memory() -> None:
    rng = np.random.default_rng(0)
    samples = []
    for s in GRID:
        given, got = np.zeros((2, len(s.rows.flops)))
        given[0], got[0] = rng.choice([1e3, 1e5, 3e6], 2)
        copies = given[0] / 8e9 + got[0] / 4e10
        rows = replace(s.rows, entering=given, leaving=got)
        samples.append(replace(s, rows=rows, seconds=s.seconds + 2e-5 + copies))
    found = fit(samples, 0.0, board=True)
    assert found.memory.entering == pytest.approx(8e9, rel=0.3) and found.memory.leaving == pytest.approx(4e10, rel=0.5)
    assert np.isinf(fit(GRID, 4e7).memory.entering)


def test_recorded_passes_pay_no_views_and_others_each_launch() -> None:
    table = exponential("Tanh", "Relu")
    families = {"elementwise tanh": (1e-6, 1e-12, 1e12, 1.0, *[1.0] * FEATURES)}
    plain = Calibration("torch", "cuda:0", 1, "9", 32, 3e-5, MEMORY, families)
    board = replace(plain, launched=5e-5)
    view = replace(table, **{n: np.zeros(1) for n in ("bytes_in", "bytes_weights", "bytes_out", "flops")})
    shape = replace(table, dtypes=("int64",), bytes_in=np.full(1, 8.0), bytes_out=np.full(1, 16.0))
    assert board.seconds(table) == pytest.approx(plain.seconds(table))
    assert board.seconds(view) == board.seconds(shape) == 0 < plain.seconds(view)
    assert board.seconds(replace(table, types=("NonZero",))) == pytest.approx(5e-5)


def test_energy_coefficients_are_found_again() -> None:
    shapes = ((1, 1024, 1024), (64, 256, 256), (256, 1024, 1024), (4, 64, 64), (1, 64, 4096))
    tables = {f"n{i}": products(s) for i, s in enumerate(shapes)}
    seconds = dict(zip(tables, (1.0, 1.1, 0.9, 1.0, 1.2), strict=True))
    readings = {
        n: {"seconds": seconds[n], "calls": 1e4,
            "joules": 12.0 * seconds[n] + 1e4 * (2e-11 * t.flops.sum() + 9e-11 * t.nbytes.sum())}
        for n, t in tables.items()
    }  # fmt: skip
    found = run_module._energy(readings, tables)
    assert found == pytest.approx({"power_const": 12.0, "energy_per_flop": 2e-11, "energy_per_byte": 9e-11}, rel=1e-6)
    assert run_module._energy({}, tables) == {}


# Measuring


def test_every_network_is_a_valid_model_of_another_name() -> None:
    names = set()
    for build in suite():
        network = build()
        names.add(network.name)
        if network.model.ByteSize() < 2e6 and "4-bit" not in network.name:
            onnx.checker.check_model(onnx.shape_inference.infer_shapes(network.model))
    assert len(names) == len(suite()) > 150


def small_suite() -> list[object]:
    return [
        lambda: gemm(4, 32, 64, 2),
        lambda: gemm(64, 64, 64, 2),
        lambda: rowwise("Softmax", 1, 8, 1),
        lambda: rowwise("Softmax", 1, 8, 8),
        lambda: elementwise("Add", 4096, 4),
        lambda: convolutions("3x3", (8, 16, 16), [Layer(8, (3, 3))], 2),
        lambda: elementwise("NoSuchOperator", 16, 1),
    ]


def test_measure_fit_store_and_price_on_a_real_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "suite", small_suite)
    monkeypatch.setattr(suite_module, "suite", lambda: small_suite()[:-1])

    def measure(engine: str, device: str, threads: int, seconds: float, progress: object) -> object:
        worker.main([engine, device, str(threads), "0.5"])
        lines = [json.loads(x) for x in capsys.readouterr().out.splitlines() if x.startswith("{")]
        shares = [x["done"] for x in lines if "done" in x]
        assert shares == sorted(shares)
        assert shares[-1] <= 1.0
        return lines[-1]

    monkeypatch.setattr(run_module, "_measure", measure)
    (outcome,) = api.calibrate(["onnxruntime:CPU"], [1], 1.0)
    found = outcome.calibration
    assert found is not None
    assert "NoSuchOperator 16 x1" in found.missing
    assert "energy" in found.missing or found.energy
    assert found.boundary is not None
    assert 0 <= found.boundary < 1e-2
    assert 0 < found.entry < 1e-3
    stored = run_module.stored(["onnxruntime:CPU", "openvino:CPU"], 1)
    assert set(stored.found) == {"onnxruntime:CPU"}
    table = products((16, 64, 64))
    assert 0 < float(found.seconds(table)[0]) < 1e-2


def test_a_worker_that_fails_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object) -> object:
        raise BackendError("onnxruntime:CPU: the measuring process failed (killed)")

    monkeypatch.setattr(run_module, "_measure", failing)
    (outcome,) = api.calibrate(["onnxruntime:CPU"], [1], 1.0)
    assert outcome.calibration is None
    assert "killed" in outcome.reason
    with pytest.raises(TargetError, match="onnxruntime:CUDA"):
        api.calibrate(["onnxruntime:CUDA"], [1], 1.0)


def test_prices_of_this_host_come_from_its_calibration() -> None:
    import torch

    traced = api.trace(torch.nn.Linear(16, 4).eval(), (torch.randn(2, 16),))
    before = api.price(traced, "torch:cpu")
    assert set(before.labels) == {"modelled"}
    version = run_module.backend("torch").version()
    facts = run_module.cpu_facts()
    energy = {"power_const": 7.0, "energy_per_flop": 1e-11, "energy_per_byte": 5e-11}
    calibrations.save(a_calibration(version=version, threads=facts.cores, energy=energy))
    after = api.price(traced, "torch:cpu")
    assert set(after.labels) == {"calibrated"}
    assert after.entry(0) == pytest.approx(1e-5)
    assert after.boundary(0, 0) == pytest.approx(3e-5)
    assert after.seconds.sum() != pytest.approx(before.seconds.sum())
    device = after.target.devices[0]
    assert device.power_const.value == 7.0
    assert device.memory_bandwidth.value == pytest.approx(MEMORY.memory)
    assert "qeil calibrate" in device.memory_bandwidth.source


def test_a_plan_says_that_its_energies_are_modelled_where_no_counter_was_read() -> None:
    import torch

    version, cores = run_module.backend("torch").version(), run_module.cpu_facts().cores
    read = {"power_const": 7.0, "energy_per_flop": 1e-11, "energy_per_byte": 5e-11}
    for energy, expected in (({}, True), (read, False)):
        calibrations.save(a_calibration(version=version, threads=cores, energy=energy))
        settings = api.Settings(target="torch:cpu", measure=False)
        compiled = api.aot_compile(torch.nn.Linear(16, 4).eval(), (torch.randn(2, 16),), settings=settings)
        assert compiled.plan.label == "calibrated"
        assert (api.ENERGY_MODELLED in compiled.plan.notes) is expected


def test_rounds_that_a_neighbour_disturbed_are_left_out() -> None:
    rng = np.random.default_rng(0)
    factor = np.array([1.0, 1.8, 1.01, 1.0, 1.7, 1.0, 1.0])
    rounds = {f"n{k}": 10.0 ** rng.uniform(-5, -2) * factor * rng.uniform(1.0, 1.01, 7) for k in range(20)}
    assert quiet(rounds) == [0, 2, 3, 5, 6]
    assert all(np.ptp(v) / v.min() < 0.03 for v in typical(rounds).values())
    assert quiet({}) == []
    # Where all rounds differ, the quietest three still stand.
    assert quiet({"n": [1.0, 2.0, 4.0, 8.0]}) == [0, 1, 2]


def test_a_change_of_kernels_costs_what_composites_show() -> None:
    # Kernels of a microsecond in chains, and half a microsecond more each among others.
    slower = [
        replace(s, name=f"whole {k}", seconds=s.seconds + 5e-7 * len(s.rows.families), composite=True)
        for k, s in enumerate(GRID) if len(s.rows.families) > 4
    ]  # fmt: skip
    found = fit([*GRID, *slower], 4e7)
    assert 1e-7 < found.company["change"] < 1e-6
    assert found.families["gemm"][0] > fit(GRID, 4e7).families["gemm"][0]


def test_what_is_held_from_run_to_run_comes_from_memory_if_the_run_is_long() -> None:
    shapes = [(1, 1024, 1024)] * 3
    rows = Rows.of(products(*shapes), LANES)
    calm, crowded = MEMORY, replace(MEMORY, pressure=10.0)
    assert calm.moved(rows).sum() == pytest.approx((rows.held + rows.between).sum() / MEMORY.cache, rel=0.1)
    assert crowded.moved(rows).sum() > 2 * calm.moved(rows).sum()


def test_inputs_and_outputs_of_the_graph_are_held_like_weights() -> None:
    graph = trace(decoder(1, 64, 32, 2, 1, 50).model).graph.priced()
    counts = count(graph)
    kernels = kernel_table(fuse(graph, counts), counts, "onnxruntime")
    cache = 2 * 64 * 32 * 4
    assert kernels.bytes_ends is not None
    # The cache is read once, written once with one token more; the token goes in, the logits go out.
    assert kernels.bytes_ends.sum() == pytest.approx(cache + 2 * 65 * 32 * 4 + 2 * 32 * 4 + 50 * 4, rel=0.05)
    rows = Rows.of(kernels, LANES)
    assert rows.total[0] == pytest.approx(kernels.bytes_weights.sum() + kernels.bytes_ends.sum())
    assert (rows.between >= 0).all()
