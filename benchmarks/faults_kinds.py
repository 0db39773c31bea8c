"""The kinds of faults that `faults.py` injects into stages of a running decoder."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qeil_compile.backends.base import DecoderStage
from qeil_compile.errors import BackendError
from qeil_compile.language import PROMPT as PROMPT_PHASE
from qeil_compile.language import CompiledDecoder
from qeil_compile.runtime.guard import Guard

#: Least time of a stage [s] in these runs; hangs are known that much later.
LEAST = 0.4
#: Set when a run is over.
RELEASE = threading.Event()


@dataclass
class Injection:
    """One fault: at which call of a step, into which of the plan's placements, once it is `armed`.

    `done` is when it was injected; `spent` that a fault which strikes only once has struck.
    """

    kind: str
    step: int
    victim: int
    armed: bool = False
    calls: int = 0
    done: float = 0.0
    where: tuple[str, ...] = ()
    spent: bool = False


class Sabotaged:
    """A stage around which a fault is injected, and which stays faulty where the fault is one of hardware."""

    def __init__(self, stage: DecoderStage, where: tuple[str, ...], injection: Injection, chosen: bool) -> None:
        self._stage, self._where, self._injection, self._chosen = stage, where, injection, chosen
        self.states, self.compact = stage.states, stage.compact
        if hasattr(stage, "kill"):
            self.kill = stage.kill

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        i = self._injection
        new = feeds["positions"].shape[1]
        at_prompt = i.kind == "raises in the prompt"
        if i.armed and self._chosen and (new > 1 if at_prompt else new == 1 and feeds["positions"][0, 0] > 2):
            i.calls += 1
            if i.calls == (1 if at_prompt else i.step):
                i.done, i.where = time.perf_counter(), self._where
        struck = bool(i.done) and self._where == i.where
        if struck:
            with contextlib.suppress(KeyError):
                BEFORE[i.kind](self._stage, i)
        found = self._stage.run(feeds)
        return AFTER[i.kind](found) if struck and i.kind in AFTER else found

    def reset(self, rows: int) -> None:
        self._stage.reset(rows)

    def select(self, rows: np.ndarray) -> None:
        self._stage.select(rows)

    def export(self) -> dict[str, np.ndarray]:
        return self._stage.export()

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        self._stage.load(states)


def _raise(error: BaseException) -> Callable[[Any, Injection], None]:
    def strike(stage: Any, injection: Injection) -> None:
        raise error

    return strike


def _once(stage: Any, injection: Injection) -> None:
    """Only the first call fails: a hiccup, after which the same engine would work."""
    if not injection.spent:
        injection.spent = True
        raise BackendError("device busy")


def _hang(stage: Any, injection: Injection) -> None:
    RELEASE.wait()


def _slow(stage: Any, injection: Injection) -> None:
    time.sleep(10 * LEAST)


def _signal(number: int) -> Callable[[Any, Injection], None]:
    def strike(stage: Any, injection: Injection) -> None:
        if not injection.spent:
            injection.spent = True
            os.kill(stage.pid, number)
            if number != signal.SIGSTOP:
                stage._child.process.wait(5)

    return strike


def _poisoned(stage: Any, injection: Injection) -> None:
    """The cache is overwritten with NaN, once."""
    if not injection.spent:
        injection.spent = True
        stage.load({n: np.full_like(a, np.nan) for n, a in stage.export().items()})


def _with(value: float) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    def changed(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = {n: np.array(a) for n, a in found.items()}
        next(iter(out.values())).reshape(-1)[7] = value
        return out

    return changed


def _scaled(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every second channel is half of what it should be (all of them by one factor would be lost in the next norm)."""
    return {n: a * np.where(np.arange(a.shape[-1]) % 2, np.float32(0.5), np.float32(1)) for n, a in found.items()}


def _shuffled(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers of neighbouring channels change places, as from a wrong address."""
    return {n: np.roll(a, 1, axis=-1) for n, a in found.items()}


#: What happens before the engine's call, and to its result, by kind.
BEFORE: dict[str, Callable[[Any, Injection], None]] = {
    "raises": _raise(BackendError("internal error 7")),
    "raises what no backend should": _raise(RuntimeError("segment descriptor")),
    "raises once": _once,
    "raises in the prompt": _raise(BackendError("internal error 8")),
    "hangs": _hang,
    "is far too slow": _slow,
    "out of memory": _raise(MemoryError("std::bad_alloc")),
    "device lost": _raise(RuntimeError("CUDA error: GPU is lost")),
    "process killed": _signal(signal.SIGKILL),
    "process crashes": _signal(signal.SIGSEGV),
    "process stopped": _signal(signal.SIGSTOP),
    "NaN in the cache": _poisoned,
}
AFTER: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "NaN in a result": _with(np.nan),
    "infinity in a result": _with(np.inf),
    "results scaled": _scaled,
    "results shuffled": _shuffled,
}
#: Faults that only golden inputs show, of processes, and those that two stages have one after the other.
SILENT = ("results scaled", "results shuffled")
OF_PROCESS = ("process killed", "process crashes", "process stopped")
TOLD = "loss told by telemetry"
TWICE = "second fault in the plan that took over"
KINDS = (*BEFORE, *AFTER, TOLD, TWICE)


@contextlib.contextmanager
def sabotage(injection: Injection, plan: CompiledDecoder) -> Iterator[None]:
    """Stages that start meanwhile belong to the saboteur; the victim is one placement of the plan."""
    decoder, placements = Guard.decoder, plan.placements
    if injection.kind == "NaN in the cache":
        placements = [p for p in placements if p in _with_cache(plan)]
    victim = placements[injection.victim % len(placements)]

    def wrapped(self: Guard, stage: DecoderStage, where: tuple[str, ...], name: str) -> DecoderStage:
        return decoder(self, Sabotaged(stage, where, injection, victim in where), where, name)

    Guard.decoder = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        Guard.decoder = decoder  # type: ignore[method-assign]


def _with_cache(plan: CompiledDecoder) -> set[str]:
    """Placements whose stages of steps hold keys and values."""
    units = [u for n, p in plan.phases.items() if n != PROMPT_PHASE for u in p.units]
    return {p for u in units if plan.states.keys() & set(u.program.inputs) for p in u.placements}
