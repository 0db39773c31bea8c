"""torch on an NVIDIA GPU: the same numbers as on the CPU, passes that are recorded and those that cannot be, energy.

The tests marked `cuda` want one; the others drive the same paths on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from qeil_compile.backends import backend
from qeil_compile.backends.torch import decoder as torch_decoder
from qeil_compile.backends.torch import graphs
from qeil_compile.backends.torch.precision import full_precision
from qeil_compile.calibration.worker import Model
from qeil_compile.frontends import trace
from qeil_compile.frontends.decoder import step_phase
from qeil_compile.language.bench import step_bandwidth
from qeil_compile.models.decoder import open_decoder
from qeil_compile.runtime.guard import Guard
from qeil_compile.runtime.session import Session
from qeil_compile.sampling.live import KeptPrompt
from qeil_compile.telemetry.counters import counter_for
from qeil_compile.validation.host_models import host_models
from tests.decoders import SMALL, VOCAB, program, small
from tests.test_decoder import PROMPTS, Rows

MODELS = Path(__file__).parent / "data" / "models"
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use")


class Played:
    """Stands in for `Recordings` where there is no CUDA: every pass is one over the rows and places of a recording."""

    able = True
    passes = 0

    def __init__(self, device: torch.device, by_number: bool | None = None) -> None:
        pass

    def clear(self) -> None:
        pass

    def run(self, key: object, run: graphs.Program, inputs: Any, rows: int, live: int) -> list[torch.Tensor]:
        assert rows >= live == len(next(a for a in inputs if a.ndim)) and rows & (rows - 1) == 0
        Played.passes += 1
        return list(run([graphs.filled_up(a, rows) for a in inputs]))


def rows_on(name: str, device: str) -> tuple[Rows, Any]:
    """A session on torch beside its model, and its only stage."""
    model = small(name)
    decoder = open_decoder(model)
    graph = decoder.graph()
    weight = decoder.weights(graph)
    compile_decoder = backend("torch").compile_decoder  # type: ignore[attr-defined]
    unit = compile_decoder(program(graph), graph.states, {n: weight(n) for n in graph.weights}, device)
    return Rows(model, Session([unit], {16: [unit]}, VOCAB, 64), PROMPTS), unit


def come_and_go(rows: Rows) -> None:
    """Rows branch, end, change places, return; the cache outgrows its room more than once."""
    rows.step(0)
    rows.select([0, 0, 1, 2, 2])
    for k in range(6):
        rows.step(k)
    rows.select([1, 2, 4])
    saved, before = rows.session.save(), [list(r) for r in rows.rows]
    for k in range(14):
        rows.step(k)
    rows.session.restore(saved)
    rows.rows = before
    rows.step(50)
    rows.select([2, 1])
    rows.step(51)
    rows.select([0] * 9)
    for k in range(12):
        rows.step(k)
    for length in (1, 2, 5, 5, 5, 3, 9, 3):
        prompts = [PROMPTS[1][:1] * length, PROMPTS[0][:1] * max(length - 1, 1)]
        rows.rows = [list(p) for p in prompts]
        rows.check(rows.session.prefill(prompts))
        rows.step(52)
    rows.session.score(rows.rows)
    rows.step(53)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen3", "lfm2"])
@pytest.mark.parametrize("recorded", [False, True])
def test_buffers_with_room(name: str, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_decoder, "_GROWTH", 4)
    monkeypatch.setattr(torch_decoder, "_FEWEST", 8)
    if recorded:
        monkeypatch.setattr(torch_decoder, "Recordings", Played)
        monkeypatch.setattr(Played, "passes", 0)
    come_and_go(rows_on(name, "cpu")[0])
    assert not recorded or Played.passes >= 52


def test_prompts_are_not_recorded_where_steps_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class PromptsOnly(Played):
        def __init__(self, device: torch.device, by_number: bool | None = None) -> None:
            self.able = bool(by_number)

        def run(self, *given: Any) -> Any:
            return super().run(*given) if self.able else None

    monkeypatch.setattr(torch_decoder, "Recordings", PromptsOnly)
    monkeypatch.setattr(Played, "passes", 0)
    rows, _ = rows_on("gpt2", "cpu")
    for count in (3, 5):  # no powers of two
        rows.rows = [list(PROMPTS[0])] * count
        rows.check(rows.session.prefill(rows.rows))
    assert not Played.passes


@pytest.mark.parametrize("recorded", [False, True])
def test_a_part_without_states_takes_over(recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if recorded:
        monkeypatch.setattr(torch_decoder, "Recordings", Played)
    shapes, cpu = {"x": [None, None]}, torch.device("cpu")
    stage = torch_decoder.BufferedStage(lambda given: [given[0] + 1], shapes, ["y"], {}, cpu)
    stage.load({})
    for rows, width in ((3, 9), (3, 10), (2, 11)):
        x = np.full((rows, 1), width, np.float32)
        found = stage.run({"x": x, "mask": np.ones((rows, width), np.int64)})
        np.testing.assert_array_equal(found["y"], x + 1)


def test_tokens_are_drawn_on_the_cores_that_a_board_leaves() -> None:
    rows, unit = rows_on("gpt2", "cpu")
    guard = Guard()
    for place, free in (("torch:cpu", False), ("torch:cuda:0", True), ("openvino:CPU", False), ("openvino:GPU", True)):
        guarded = guard.decoder(unit, (place,), "all")
        session = Session([guarded], {16: [guarded]}, VOCAB, 64)
        assert session.leaves_cores == KeptPrompt(session).leaves_cores == free
    assert not rows.session.leaves_cores


def test_precision_is_as_it_was_before() -> None:
    conv, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, products.fp32_precision
    board = torch.device("cuda", 0)
    with full_precision(board):
        with full_precision(board):
            assert (conv.fp32_precision, products.fp32_precision) == ("ieee", "ieee")
        assert conv.fp32_precision == "ieee"
    assert (conv.fp32_precision, products.fp32_precision) == before
    with full_precision(torch.device("cpu")):
        assert (conv.fp32_precision, products.fp32_precision) == before


@pytest.mark.parametrize(("places", "board"), [
    (["torch:cpu", "onnxruntime:CUDA"], False), (["onnxruntime:CUDA"], True), (["openvino:CPU"], False),
])  # fmt: skip
def test_whose_memory_a_step_reads(places: list[str], board: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step_bandwidth.__globals__, "memory_bandwidth", lambda threads: 1.0)
    monkeypatch.setitem(step_bandwidth.__globals__, "board_bandwidth", lambda index: 2.0 + index)
    stages = [SimpleNamespace(placement=p) for p in places]
    phases = {step_phase(1): SimpleNamespace(plan=SimpleNamespace(stages=stages))}
    compiled: Any = SimpleNamespace(phases=phases, threads=1)
    assert step_bandwidth(compiled) == (2.0 if board else 1.0)


@cuda
@pytest.mark.parametrize("name", SMALL)
def test_a_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_decoder, "_FEWEST", 8)
    rows, unit = rows_on(name, "cuda:0")
    come_and_go(rows)
    for recordings in (unit._recorded, unit._prompts):
        assert recordings.able and any(recordings._known.values())


@cuda
@pytest.mark.parametrize("name", ["version-RFB-320", "standard_v3_3"])
def test_a_network(name: str) -> None:
    model = Model.of(host_models(MODELS)[name]())
    here, there = model.compile("torch", "cpu", 0), model.compile("torch", "cuda:0", 0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        inputs = [rng.permuted(a, axis=-1) for a in model.inputs]
        for expected, found in zip(here(inputs), there(inputs), strict=True):
            # 32-bit convolutions, not those of 10 bits that torch takes by itself.
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    assert there._recordings.able and any(there._recordings._known.values())  # type: ignore[attr-defined]


@cuda
def test_a_switch_is_recorded_for_each_of_its_values() -> None:
    value = helper.make_tensor_value_info
    x, y, which = (value(n, kind, shape) for n, kind, shape in (
        ("x", TensorProto.FLOAT, [6]), ("y", TensorProto.FLOAT, [6]), ("which", TensorProto.INT64, [])))  # fmt: skip
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, ["x", "x"], [name])], name, [],
                                            [value(name, TensorProto.FLOAT, [6])])
        for name, kind in (("then", "Add"), ("else", "Mul"))
    }  # fmt: skip
    one = helper.make_tensor("one", TensorProto.INT64, [], [1])
    nodes = [helper.make_node("Equal", ["which", "one"], ["equal"])]
    nodes.append(helper.make_node("If", ["equal"], ["y"], **branches))
    proto = helper.make_model(helper.make_graph(nodes, "g", [x, which], [y], [one]),
                              opset_imports=[helper.make_opsetid("", 21)])  # fmt: skip
    start = {"x": np.ones(6, np.float32), "which": np.array(1)}
    run = Model.of(trace(proto, inputs=start)).compile("torch", "cuda:0", 0)
    for k, n in enumerate((1, 1, 2, 1, 2, 2, 1, 2) * 3):
        given = np.arange(6, dtype=np.float32) + k
        np.testing.assert_array_equal(run([given, np.array(n)])[0], given + given if n == 1 else given * given)
    recordings = run._recordings  # type: ignore[attr-defined]
    assert recordings.able and sum(r is not None for r in recordings._known.values()) == 2
    for n in range(100):  # numbers that do not come back are not recorded, and still right
        np.testing.assert_array_equal(run([given, np.array(n)])[0], given + given if n == 1 else given * given)


@cuda
def test_what_looks_at_values_is_not_recorded() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [6])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1, None])
    proto = helper.make_model(helper.make_graph([helper.make_node("NonZero", ["x"], ["y"])], "g", [x], [y]),
                              opset_imports=[helper.make_opsetid("", 21)])  # fmt: skip
    run = Model.of(trace(proto, inputs={"x": np.ones(6, np.float32)})).compile("torch", "cuda:0", 0)
    for k in range(5):
        given = (np.arange(6) % (k + 1) == 0).astype(np.float32)
        np.testing.assert_array_equal(run([given])[0], [np.flatnonzero(given)])
    assert not run._recordings.able  # type: ignore[attr-defined]
    torch.randn(4, device="cuda:0")  # which an abandoned recording would forbid


@cuda
def test_energy_is_counted() -> None:
    counter = counter_for("torch", "cuda:0")
    assert counter is not None
    before = counter.read()
    a = torch.randn(4096, 4096, device="cuda:0")
    for _ in range(200):
        a = torch.tanh(a @ a)
    torch.cuda.synchronize()
    assert counter.read() > before
