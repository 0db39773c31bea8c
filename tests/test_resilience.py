"""Faults are known, another plan takes over, and what comes out is what would have come out."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile.api import Settings, aot_compile, find_target
from qeil_compile.cli import main
from qeil_compile.errors import BackendError, FailoverError, InputError
from qeil_compile.generation import generate
from qeil_compile.language import CompiledDecoder, Generation, Runner, Sampling, compile_decoder
from qeil_compile.runtime import (
    Compiled,
    Deadline,
    DecisionLog,
    FaultKind,
    Resilience,
    ResilientModel,
    ResilientSession,
    StageFault,
    TaintedError,
    Trace,
)
from qeil_compile.runtime.faults import fault_of
from qeil_compile.runtime.guard import Guard
from qeil_compile.runtime.monitor import Limits
from qeil_compile.runtime.supervisor import Supervisor, Unwatched
from qeil_compile.telemetry import Channel

ENGINES = "onnxruntime:CPU,openvino:CPU,torch:cpu"
PINS = {"layers.1": "openvino:CPU", "layers.0": "onnxruntime:CPU"}
JOB: dict[str, Any] = {"n": 3, "max_tokens": 12, "seed": 5, "ignore_eos": True}
PROMPT = [5, 9, 17, 3]


@pytest.fixture(scope="module")
def decoder() -> CompiledDecoder:
    """The reasoner on ONNX Runtime and OpenVINO; torch may take over from either."""
    folder = Path(str(files("qeil_compile.models.data") / "reasoner"))
    settings = Settings(target=ENGINES, measure=False, threads=1, pins=PINS)
    return compile_decoder(folder, Generation(prompt=16, tokens=16, samples=4), settings)


@pytest.fixture(scope="module")
def expected(decoder: CompiledDecoder) -> list[list[int]]:
    return tokens_of(Runner(decoder))


def tokens_of(runner: Runner, **more: Any) -> list[list[int]]:
    return [c.tokens for c in runner.generate([PROMPT], **JOB, **more)[0]]


class Resting(Unwatched):
    """What rests is what the list holds."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def avoided(self) -> list[str]:
        return list(self.names)


class Faulty:
    """Around a stage: from its step number `at` on `strike` is called with it and returns what becomes of the result.

    `struck` outlives the stage: what is started anew on the same placement fails at once.
    """

    def __init__(
        self, stage: Any, strike: Callable[[Any, dict[str, np.ndarray]], Any], at: int, struck: threading.Event
    ) -> None:
        self.stage, self.strike, self.at, self.calls, self.struck = stage, strike, at, 0, struck
        self.states, self.compact = stage.states, stage.compact

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.stage.run(feeds)
        self.calls += feeds["positions"].shape[1] == 1
        if self.calls == self.at:
            self.struck.set()
        return self.strike(self.stage, found) if self.struck.is_set() else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)


def sabotage(
    monkeypatch: pytest.MonkeyPatch, strike: Callable[[Any, dict[str, np.ndarray]], Any],
    where: str = "onnxruntime:CPU", at: int = 9,
) -> None:  # fmt: skip
    """Stages on `where` fail from their ninth step on (the first one warms them up)."""
    original, struck = Guard.decoder, threading.Event()

    def decoder(self: Guard, stage: Any, placements: tuple[str, ...], name: str) -> Any:
        if where in placements:
            stage = Faulty(stage, strike, at, struck)
        return original(self, stage, placements, name)

    monkeypatch.setattr(Guard, "decoder", decoder)


def _raises(stage: Any, found: dict[str, np.ndarray]) -> Any:
    raise RuntimeError("engine gave up")


def _memory(stage: Any, found: dict[str, np.ndarray]) -> Any:
    raise BackendError("onnxruntime: std::bad_alloc")


def _nan(stage: Any, found: dict[str, np.ndarray]) -> Any:
    return {n: np.where(np.arange(a.size).reshape(a.shape) == 3, np.nan, a) for n, a in found.items()}


def _hangs(stage: Any, found: dict[str, np.ndarray]) -> Any:
    threading.Event().wait()


@pytest.mark.parametrize(
    ("strike", "kind"),
    [(_raises, FaultKind.RAISED), (_memory, FaultKind.MEMORY), (_nan, FaultKind.NOT_FINITE), (_hangs, FaultKind.HUNG)],
)
@pytest.mark.parametrize("where", ["onnxruntime:CPU", "openvino:CPU"])
def test_generation_goes_on_with_the_same_tokens(
    decoder: CompiledDecoder, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch,
    strike: Any, kind: FaultKind, where: str,
) -> None:  # fmt: skip
    sabotage(monkeypatch, strike, where)
    runner = Runner(decoder, Resilience(Deadline(least=0.3, factor=1.0)))
    assert tokens_of(runner) == expected
    assert [d.facts["reason"] for d in runner.log.of("fault")] == [kind]
    assert list(runner.session.standby.lost) == [where]
    assert where not in runner.session.standby.variant.placements
    # A later job needs no further failover.
    assert tokens_of(runner) == expected
    assert len(runner.log.of("failover")) == 1


def test_a_second_fault_in_the_plan_that_took_over(
    decoder: CompiledDecoder, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fired: list[int] = []

    def later(stage: Any, found: dict[str, np.ndarray]) -> Any:
        if runner.log.of("recovered") and not fired:
            fired.append(1)
            raise RuntimeError("busy")
        return found

    sabotage(monkeypatch, _raises)
    sabotage(monkeypatch, later, "openvino:CPU", at=1)
    runner = Runner(decoder)
    assert tokens_of(runner) == expected
    assert len(runner.log.of("failover")) == 2
    assert runner.session.standby.variant.placements == ["torch:cpu"]


def test_the_only_plan_that_is_left_is_started_anew_once(
    decoder: CompiledDecoder, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fired: list[int] = []

    def once(stage: Any, found: dict[str, np.ndarray]) -> Any:
        if not fired:
            fired.append(1)
            raise RuntimeError("busy")
        return found

    sabotage(monkeypatch, once)
    phases = {
        n: replace(p, plan=replace(p.plan, failovers=(), spares=())) for n, p in decoder.phases.items()
    }
    runner = Runner(replace(decoder, phases=phases, spares=()))
    assert tokens_of(runner) == expected
    assert [d.kind for d in runner.log.entries] == ["fault", "restart", "recovered"]


class Heating:
    """A sensor of a board whose temperature the test sets."""

    name = "board"
    channels = (Channel("gpu0", "temperature", "C", "test"),)

    def __init__(self) -> None:
        self.celsius = 40.0

    def read(self) -> list[float]:
        return [self.celsius]


def test_a_hot_device_hands_its_stages_over_and_takes_them_back() -> None:
    """The board is emulated; its temperature is the test's, and time that of the snapshots."""
    folder = Path(str(files("qeil_compile.models.data") / "reasoner"))
    settings = Settings(target="lunar-lake-258v", measure=False, threads=1, pins={"layers": "openvino:GPU"})
    model = compile_decoder(folder, Generation(prompt=16, tokens=16, samples=4), settings)
    log, sensor, now = DecisionLog(), Heating(), [0.0]
    supervisor = Supervisor(
        model.step_plans, find_target("lunar-lake-258v"), log, sensors=[sensor],
        limits={"igpu": Limits(ceiling=85.0, sensor="gpu0")}, clock=lambda: now[0],
    )  # fmt: skip
    runner = Runner(model, log=log, oversight=supervisor)
    used: list[bool] = []

    def seen(event: Any) -> None:
        if event.sample == 0:
            step = len(used)
            sensor.celsius = 90.0 if 3 <= step < 8 else 40.0
            for _ in range(40):
                now[0] += 0.25
                supervisor.sampler.sample()
            used.append("openvino:GPU" in runner.session.standby.variant.placements)

    found = tokens_of(runner, on_token=seen)
    assert [c.tokens for c in Runner(model).generate([PROMPT], **JOB)[0]] == found
    assert used[0] and not used[6] and used[-1]
    kinds = [d.kind for d in log.entries]
    assert kinds.index("out") < kinds.index("switch") < kinds.index("return")


def test_limits_of_unknown_devices_are_refused(decoder: CompiledDecoder) -> None:
    with pytest.raises(InputError, match="limits: found gpu9, expected devices of host: cpu"):
        Supervisor(decoder.step_plans, find_target("host"), DecisionLog(), limits={"gpu9": Limits()}, sensors=[])


def test_a_supervised_device_works_its_share(decoder: CompiledDecoder) -> None:
    class Half(Unwatched):
        def share(self, where: tuple[str, ...]) -> float:
            return 0.5 if "openvino:CPU" in where else 1.0

    trace = Trace()
    session = ResilientSession(decoder, recorder=trace, oversight=Half())
    session.prefill([PROMPT])
    for _ in range(20):
        session.step(np.array([3]))
    spans = [e for e in trace.to_json()["traceEvents"] if e["ph"] == "X" and e["name"].endswith("step")]
    mine = [e for e in spans if e["args"]["placement"] == "openvino:CPU"]
    # After each of its calls it waits as long as it worked.
    after = [min(e["ts"] for e in spans if e["ts"] > m["ts"]) - m["ts"] - m["dur"] for m in mine[:-1]]
    assert all(a >= 0.9 * m["dur"] for a, m in zip(after, mine, strict=False))


def test_samples_that_ended_are_kept_when_no_plan_is_left(
    decoder: CompiledDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in ENGINES.split(","):
        sabotage(monkeypatch, _raises, where, at=11)
    runner = Runner(decoder)
    with pytest.raises(FailoverError) as error:
        runner.generate([PROMPT], Sampling(n=6, max_tokens=6, seed=5, ignore_eos=True), max_rows=1)
    assert error.value.finished
    with pytest.raises(FailoverError, match="engine gave up"):
        runner.generate([PROMPT], max_tokens=2)
    assert all(len(c.tokens) == 6 and c.finish_reason == "length" for c in error.value.finished)


def test_wrong_results_are_found_and_the_job_runs_again(
    decoder: CompiledDecoder, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(stage: Any, found: dict[str, np.ndarray]) -> Any:
        return {n: a * np.where(np.arange(a.shape[-1]) % 2, np.float32(0.5), np.float32(1)) for n, a in found.items()}

    with monkeypatch.context() as patch:
        sabotage(patch, wrong, "openvino:CPU")
        assert tokens_of(Runner(decoder)) != expected  # unseen without golden inputs
    sabotage(monkeypatch, wrong, "openvino:CPU")
    heard: list[int] = []
    runner = Runner(decoder, Resilience(canary=1e6))
    assert tokens_of(runner, on_token=lambda e: heard.append(e.row)) == expected
    assert runner.log.of("fault")[0].facts["reason"] == FaultKind.WRONG
    assert list(runner.session.standby.lost) == ["openvino:CPU"]
    assert runner.log.of("again") and len(heard) == 2 * 3 * 12


def test_golden_inputs_are_checked_on_a_schedule(
    decoder: CompiledDecoder, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[float] = []
    original = CompiledDecoder.check

    def check(self: CompiledDecoder, running: Any) -> None:
        checks.append(time.monotonic())
        original(self, running)

    monkeypatch.setattr(CompiledDecoder, "check", check)
    runner = Runner(decoder, Resilience(canary=0.0))
    assert tokens_of(runner) == expected  # a check between any two tokens leaves the rows as they were
    assert len(checks) > 12


def test_an_engine_in_its_own_process_may_die(decoder: CompiledDecoder, expected: list[list[int]]) -> None:
    runner = Runner(decoder, Resilience(isolate=True))
    stage = runner.session.session._steps[4][0]._stage  # type: ignore[attr-defined]
    events = 0

    def seen(event: object) -> None:
        nonlocal events
        events += 1
        if events == 10:
            os.kill(stage.pid, signal.SIGKILL)

    assert tokens_of(runner, on_token=seen) == expected
    fault = runner.log.of("fault")[0]
    assert fault.facts["reason"] == FaultKind.DIED and "signal 9" in fault.facts["detail"]


def test_an_engine_in_its_own_process_may_hang(decoder: CompiledDecoder, expected: list[list[int]]) -> None:
    runner = Runner(decoder, Resilience(Deadline(least=0.5, factor=1.0), isolate=True))
    stage = runner.session.session._steps[4][0]._stage  # type: ignore[attr-defined]
    os.kill(stage.pid, signal.SIGSTOP)
    assert tokens_of(runner) == expected
    assert stage._child.process.wait(10) == -signal.SIGKILL


def test_processes_end_when_their_plan_is_left_and_when_it_is_closed(decoder: CompiledDecoder) -> None:
    runner = Runner(decoder, Resilience(isolate=True))

    def children() -> list[Any]:
        session = runner.session.session
        units = {id(u): u for us in (session._prompt, *session._steps.values()) for u in us}
        return [u._stage._child.process for u in units.values()]  # type: ignore[attr-defined]

    first = children()
    runner.session.lose(["onnxruntime"], "gone")
    tokens_of(runner)
    second = children()
    assert all(p.wait(10) is not None for p in first) and all(p.poll() is None for p in second)
    runner.close()
    assert all(p.wait(10) is not None for p in second)


def test_isolated_stages_refuse_as_their_engines_do(decoder: CompiledDecoder) -> None:
    from qeil_compile.backends.isolation import IsolatedStage

    unit = decoder.phases["prefill"].units[0]
    with pytest.raises(BackendError, match="onnxruntime"):
        IsolatedStage("onnxruntime", unit.program, {}, {}, "CPU", True, 1)


def test_a_device_that_is_gone_is_left_between_tokens(decoder: CompiledDecoder, expected: list[list[int]]) -> None:
    runner = Runner(decoder)
    seen = 0

    def lose(event: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 8:
            runner.session.lose(["openvino"], "driver: device is lost")

    assert tokens_of(runner, on_token=lose) == expected
    assert [d.facts["reason"] for d in runner.log.of("fault")] == [FaultKind.LOST]
    assert "openvino:CPU" not in runner.session.standby.variant.placements


def test_a_device_that_rests_gives_its_cache_away_and_comes_back(
    decoder: CompiledDecoder, expected: list[list[int]]
) -> None:
    resting: list[str] = []
    runner = Runner(decoder, oversight=Resting(resting))
    seen = 0
    used: list[tuple[str, ...]] = []

    def event(_: object) -> None:
        nonlocal seen
        seen += 1
        resting[:] = ["onnxruntime:CPU"] if 8 <= seen < 20 else []
        used.append(tuple(runner.session.standby.variant.placements))

    assert tokens_of(runner, on_token=event) == expected
    assert [d.kind for d in runner.log.entries if d.kind == "switch"] == ["switch"] * 2
    assert len(runner.log.of("cache moved")) + len(runner.log.of("cache rebuilt")) == 2
    assert any("onnxruntime:CPU" not in u for u in used) and "onnxruntime:CPU" in used[-1]


@pytest.mark.parametrize("per_token", [0.0, 1e9])
def test_a_cache_is_moved_or_rebuilt_whichever_is_cheaper(
    decoder: CompiledDecoder, expected: list[list[int]], per_token: float
) -> None:
    resting: list[str] = []
    session = ResilientSession(decoder, oversight=Resting(resting))
    whole = ResilientSession(decoder)
    for s in (session, whole):
        s.prefill([PROMPT, PROMPT[:2]])
        s.select(np.array([0, 1, 1]))
    session._per_token = per_token
    resting.append("openvino:CPU")
    found, wanted = (np.array(s.step(np.array([4, 5, 6]))) for s in (session, whole))
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert len(session.log.of("cache moved" if per_token else "cache rebuilt")) == 1


def test_saved_rows_come_back_on_another_plan(decoder: CompiledDecoder) -> None:
    session, whole = ResilientSession(decoder), ResilientSession(decoder)
    for s in (session, whole):
        s.prefill([PROMPT, PROMPT[:3]])
    saved, kept = session.save(), whole.save()
    session.step(np.array([1, 2]))
    session.lose(["openvino:CPU"], "gone")
    for s, rows in ((session, saved), (whole, kept)):
        s.restore(rows)
    found, wanted = (np.array(s.step(np.array([4, 5]))) for s in (session, whole))
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_a_lost_placement_is_tried_again_later(
    decoder: CompiledDecoder, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [True]

    def strike(stage: Any, found: dict[str, np.ndarray]) -> Any:
        if broken[0]:
            raise RuntimeError("busy")
        return found

    sabotage(monkeypatch, strike)
    runner = Runner(decoder, Resilience(retry=0.0))
    broken_until = 0

    def seen(event: object) -> None:
        nonlocal broken_until
        broken_until += 1
        broken[0] = broken_until < 12

    assert tokens_of(runner, on_token=seen) == expected
    assert "onnxruntime:CPU" in runner.session.standby.variant.placements
    assert not runner.session.standby.lost


def test_tokens_that_cannot_be_trusted_are_not_handed_on(
    decoder: CompiledDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(stage: Any, found: dict[str, np.ndarray]) -> Any:
        return {n: np.roll(a, 1, -1) for n, a in found.items()}

    sabotage(monkeypatch, wrong, at=12)
    session = ResilientSession(decoder, Resilience(canary=1e6))
    generate(session, None, [PROMPT], Sampling(n=2, max_tokens=10, ignore_eos=True))
    with pytest.raises(TaintedError, match="run the job again"):
        session.trusted()
    session.trusted()  # the plan that took over is sound


def test_guarded_stages_are_in_the_trace(decoder: CompiledDecoder, tmp_path: Path) -> None:
    trace = Trace()
    log = DecisionLog(listener=trace.decision)
    runner = Runner(decoder, log=log, recorder=trace)
    tokens_of(runner)
    log.record("note", "x", why="test")
    trace.counter("gpu0 temperature [C]", time.perf_counter(), 61.0)
    trace.write(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    lines = {e["args"]["name"]: e["tid"] for e in events if e["ph"] == "M"}
    assert {"onnxruntime:CPU", "openvino:CPU", "decisions", "sensors"} <= set(lines)
    spans = [e for e in events if e["ph"] == "X"]
    steps = [e for e in spans if e["name"].endswith("step")]
    assert {e["tid"] for e in steps} == {lines["onnxruntime:CPU"], lines["openvino:CPU"]}
    assert all(e["dur"] > 0 for e in spans) and [e["ts"] for e in spans] == sorted(e["ts"] for e in spans)


# ---- models without states


@pytest.fixture(scope="module")
def model() -> Compiled:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)
    ).eval()
    pins = {"0": "onnxruntime:CPU", "2": "openvino:CPU"}
    return aot_compile(net, (torch.randn(4, 32),), settings=Settings(target=ENGINES, measure=False, pins=pins))


@pytest.mark.parametrize("isolate", [False, True])
def test_runs_go_on_without_an_engine(model: Compiled, monkeypatch: pytest.MonkeyPatch, isolate: bool) -> None:
    assert {"onnxruntime:CPU", "openvino:CPU"} <= set(model.placements)
    resilient = ResilientModel(model, Resilience(isolate=isolate))
    inputs, wanted = model.golden.inputs, model.golden.outputs
    original = Guard.call
    broken = [False]

    def call(self: Guard, where: tuple[str, ...], *rest: Any) -> Any:
        if broken[0] and "openvino:CPU" in where:
            raise StageFault(fault_of(RuntimeError("gone"), where, 0.0))
        return original(self, where, *rest)

    monkeypatch.setattr(Guard, "call", call)
    for broken[0] in (False, True, True):
        found = resilient.run(inputs)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4)
    assert len(resilient.log.of("failover")) == 1
    assert "openvino:CPU" not in resilient.standby.variant.placements


def test_a_model_without_failover_plans_says_so(model: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = replace(model, plan=replace(model.plan, failovers=(), spares=()), spares=())
    resilient = ResilientModel(alone)

    def call(self: Guard, where: tuple[str, ...], *rest: Any) -> Any:
        raise StageFault(fault_of(RuntimeError("gone"), where, 0.0))

    monkeypatch.setattr(Guard, "call", call)
    with pytest.raises(FailoverError, match="compiled without failover plans"):
        resilient.run(model.golden.inputs)


# ---- the command line


def test_run_writes_a_trace_and_a_log(
    decoder: CompiledDecoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder.save(tmp_path / "m.qeil")
    sabotage(monkeypatch, _raises)
    trace, log = tmp_path / "t.json", tmp_path / "l.jsonl"
    arguments = ["run", str(tmp_path / "m.qeil"), "--prompt", "Tom has", "-k", "2", "--max-tokens", "12"]
    assert main([*arguments, "--trace", str(trace), "--log", str(log), "--canary", "1000", "--json"]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["samples"][0]) == 2  # nothing but JSON, whatever happened
    assert "note: failover" in printed.err
    kinds = [json.loads(line)["kind"] for line in log.read_text().splitlines()]
    assert kinds[:2] == ["fault", "failover"]
    names = {e["cat"] for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] != "M"}
    assert {"stage", "tokens", "decisions", "sensor"} <= names
    assert main([*arguments, "--trace", str(tmp_path / "missing" / "t.json")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_run_under_the_monitor(
    decoder: CompiledDecoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder.save(tmp_path / "m.qeil")
    arguments = ["run", str(tmp_path / "m.qeil"), "--prompt", "Tom has", "--max-tokens", "8", "--monitor"]
    assert main([*arguments, "--trace", str(tmp_path / "t.json")]) == 0
    counters = {e["name"] for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e["ph"] == "C"}
    assert "cpu load [1]" in counters


def test_the_monitor_wants_the_devices_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    settings = Settings(target="lunar-lake-258v", measure=False, failover=False)
    aot_compile(torch.nn.Linear(4, 4).eval(), (torch.ones(1, 4),), settings=settings).save(tmp_path / "m.qeil")
    assert main(["run", str(tmp_path / "m.qeil"), "--monitor"]) == 1
    assert "is not on this machine" in capsys.readouterr().err


def test_run_of_arrays_is_traced(model: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save(tmp_path / "m.qeil")
    arguments = ["run", str(tmp_path / "m.qeil"), "--repeat", "2", "--trace", str(tmp_path / "t.json")]
    assert main([*arguments, "--isolate"]) == 0
    spans = [e for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert len(spans) == 3 * len(model.units)
