"""Faults, deadlines, the watch over calls, and the log of decisions."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from qeil_compile.errors import BackendError, InputError
from qeil_compile.runtime import Deadline, Decision, DecisionLog, FaultKind, Resilience
from qeil_compile.runtime.faults import Fault, fault_of, is_finite
from qeil_compile.watch import Watch


def test_a_watch_outlives_what_hangs_and_passes_errors_on() -> None:
    watch = Watch()
    assert watch.call(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError):
        watch.call(lambda: 1 // 0, 5.0)
    released = threading.Event()
    with pytest.raises(TimeoutError):
        watch.call(released.wait, 0.02)
    assert watch.call(lambda: 8, 5.0) == 8
    before = threading.active_count()
    released.set()
    deadline = time.monotonic() + 10
    while threading.active_count() >= before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() < before  # the thread that was left behind has ended
    watch.close()


def test_the_thread_of_a_watch_that_nobody_holds_ends() -> None:
    watch = Watch()
    watch.call(lambda: 1, 5.0)
    thread = watch._worker
    assert thread is not None and thread.is_alive()
    del watch
    thread.join(10)
    assert not thread.is_alive()


def test_deadlines_follow_what_calls_took() -> None:
    limit = Deadline(factor=10, least=0.5, first=99)
    assert [limit.seconds(x) for x in (None, 0.001, 1.0)] == [99, 0.5, 10]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_what_is_finite(value: float, dtype: str) -> None:
    array = np.linspace(-1, 1, 1000).astype(dtype)
    assert is_finite(array) and is_finite(np.full(9, np.finfo(dtype).max)) and is_finite(np.array([], dtype))
    array[500] = value
    assert not is_finite(array)
    assert is_finite(np.arange(5))


def test_faults_are_told_apart() -> None:
    def kind(error: BaseException) -> FaultKind:
        return fault_of(error, ("x:y",), 1.0).kind

    assert kind(TimeoutError()) is FaultKind.HUNG
    assert kind(MemoryError()) is FaultKind.MEMORY
    assert kind(BackendError("CUDA out of memory. Tried to allocate 2 GiB")) is FaultKind.MEMORY
    assert kind(RuntimeError("GPU is lost")) is FaultKind.LOST
    assert kind(EOFError("its process ended")) is FaultKind.DIED
    assert kind(ValueError("x")) is FaultKind.RAISED
    assert Fault(FaultKind.HUNG, ("a", "b"), "no answer").as_text() == "a+b hung: no answer"


def test_decisions_are_written_as_they_happen(tmp_path: Path) -> None:
    heard: list[Decision] = []
    log = DecisionLog(tmp_path / "log.jsonl", heard.append)
    log.record("failover", "gpu", reason="lost", seconds=0.25)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["kind"] == "failover" and line["seconds"] == 0.25 and heard[0].subject == "gpu"
    assert heard[0].as_text() == "failover gpu: reason=lost, seconds=0.25"
    log.close()


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="canary"):
        Resilience(canary=-1.0)
    with pytest.raises(InputError, match="retry"):
        Resilience(retry=float("nan"))
