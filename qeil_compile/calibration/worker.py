"""Times the networks of a calibration on one engine and device, in a process of its own.

    python -m qeil_compile.calibration.worker ENGINE DEVICE THREADS SECONDS

An engine's threads that wait by spinning would disturb the next one, and torch has one pool for a process: so each
engine and number of threads gets its own. The networks take turns (built anew for each where idle threads would
spin), round after round, so that a slow minute of the machine hits all of them alike; each turn is a few uncounted
calls and a few counted ones, of which the fastest stands for the round: what a neighbour on the machine took away
is no cost of the kernel. JSON lines on standard output: progress, then one result.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from qeil_compile.backends import Executable, backend
from qeil_compile.backends.onnx_tools import whole_program
from qeil_compile.errors import QeilError, first_line
from qeil_compile.forms.program import StageProgram
from qeil_compile.frontends import Traced, trace
from qeil_compile.telemetry.counters import counter_for, joules

from .networks import chain_to_cut
from .suite import suite

#: A turn ends after this many seconds, but not before its second call.
_TURN_SECONDS = 3e-3
#: A core that slept takes some milliseconds until it is back at its speed.
_WARM_SECONDS = 6e-3
_MOST_CALLS = 12
#: Rounds: at least so many, whatever the time; never more than so many.
_LEAST, _MOST = 2, 15


class Pinning:
    """Keeps the calling thread and an engine's workers on cores of their own while they are timed.

    A scheduler may put a worker that just woke up on the caller's core for some milliseconds, and the engine then runs
    as with one thread. Workers inherit the cores of the thread that starts them. OpenVINO pins its own.
    """

    def __init__(self, engine: str, threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores = cores if 1 < threads <= len(cores) and engine != "openvino" else []
        self._workers = self._cores[1:threads]

    def __enter__(self) -> None:
        """Threads that are started now get the workers' cores."""
        if self._cores:
            os.sched_setaffinity(0, self._workers)

    def __exit__(self, *error: object) -> None:
        """The calling thread takes the first core."""
        if self._cores:
            os.sched_setaffinity(0, self._cores[:1])


#: Engines whose threads spin after a run (ONNX Runtime: for some 40 ms): of these one model at a time is alive.
_SPINNING = frozenset(("onnxruntime",))


class Run:
    """A model to be timed: `build` compiles it; the result is kept, unless the engine's idle threads would spin."""

    def __init__(self, build: Callable[[], Callable[[], object]], pin: Pinning, alone: bool) -> None:
        self._build, self._pin = build, pin
        self.rounds: list[float] = []
        self._kept: Callable[[], object] | None = None
        started = self.call()  # what the engine refuses shows here
        self._kept = None if alone else started

    def turn(self) -> None:
        """Time one turn."""
        self.rounds.append(turn(self.call()))

    def call(self) -> Callable[[], object]:
        """The running model."""
        if self._kept is not None:
            return self._kept
        with self._pin:
            return self._build()


def alone(engine: str, threads: int) -> bool:
    """Whether models of this engine have to be timed one at a time."""
    return engine in _SPINNING and threads != 1


def main(arguments: list[str]) -> None:
    """Compile, time, report."""
    engine, device, threads, seconds = arguments[0], arguments[1], int(arguments[2]), float(arguments[3])
    started = time.perf_counter()
    pin = Pinning(engine, threads)
    builds = suite()
    single = alone(engine, threads)
    runs: dict[str, Run] = {}
    launched: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for k, build in enumerate(builds):
        network = build()
        try:
            model = Model.of(trace(network.model))
            runs[network.name] = Run(partial(model.start, engine, device, threads), pin, single)
            if k % _LAUNCHED == 0 and (call := model.launch(engine, device, threads)) is not None:
                launched[network.name] = Run(lambda c=call: c, pin, False)  # type: ignore[misc]
        except QeilError as error:
            refused[network.name] = first_line(error)
        _say({"done": 0.3 * (k + 1) / len(builds)})
    counter = counter_for(engine, device)
    reserved = _ENERGY_SECONDS * len(_energetic(runs)) if counter else 0.0
    stages = _stages(engine, device, threads, pin, single)
    runs |= stages | {f"{_LAUNCH} {n}": run for n, run in launched.items()}
    for r in range(_MOST):
        used = (time.perf_counter() - started) / max(seconds - reserved, 1e-3)
        if r >= _LEAST and used > 1.0 - 1.0 / (r + 1.5):  # another round would not fit
            break
        for run in runs.values():
            run.turn()
        _say({"done": min(0.3 + 0.7 * max(used, r / _MOST), 1.0)})
    energy = {name: joules(counter, runs[name].call(), _ENERGY_SECONDS) for name in _energetic(runs)} if counter else {}
    _say({
        "seconds": {n: run.rounds for n, run in runs.items() if n not in stages and not n.startswith(_LAUNCH)},
        "launched": {name: run.rounds for name, run in launched.items()},
        "stages": {name: run.rounds for name, run in stages.items()},
        "refused": refused,
        "energy": energy,
        "counter": counter.name if counter else "",
    })  # fmt: skip


#: Of engines that record a pass as one launch every sixth network is timed kernel by kernel as well.
_LAUNCHED, _LAUNCH = 6, "launched"


#: Seconds of continuous running per energy reading: counters tick every few milliseconds.
_ENERGY_SECONDS = 1.0


def _energetic(runs: dict[str, Run]) -> list[str]:
    """Networks whose energy is read: from all arithmetic to all traffic."""
    return [n for n in runs if n.startswith(("gemm", "Add", "conv 1x1"))][::4]


@dataclass(frozen=True)
class Model:
    """A stage program with its weights and inputs, ready for any engine."""

    program: StageProgram
    weights: Mapping[str, np.ndarray]
    inputs: Sequence[np.ndarray]

    @staticmethod
    def of(traced: Traced, program: StageProgram | None = None) -> Model:
        """The whole model, or one program cut from it, with the sample inputs of the whole."""
        program = program or whole_program(traced.source)
        weights = {n: traced.source.weight(k) for n, k in program.weights.items()}
        return Model(program, weights, [np.asarray(traced.samples[n], order="C") for n in traced.graph.inputs])

    def compile(self, engine: str, device: str, threads: int) -> Executable:
        """Raises `BackendError`."""
        return backend(engine).compile(self.program, self.weights, device, threads=threads)

    def start(self, engine: str, device: str, threads: int) -> Callable[[], object]:
        """A call with the inputs; it has run once. Raises `BackendError`."""
        run = self.compile(engine, device, threads)
        run(self.inputs)
        return lambda: run(self.inputs)

    def launch(self, engine: str, device: str, threads: int) -> Callable[[], object] | None:
        """A call that launches kernel by kernel, where a call of `start` is recorded; None where it is not."""
        run = getattr(self.compile(engine, device, threads), "launched", None)
        return None if run is None else lambda: run(self.inputs)


def _stages(engine: str, device: str, threads: int, pin: Pinning, single: bool) -> dict[str, Run]:
    """One chain as a single stage, and cut at every operator: the difference is what boundaries cost."""
    traced = trace(chain_to_cut().model)
    graph, whole = traced.graph, Model.of(traced)
    count = len(graph.ops)

    def chain() -> Callable[[], object]:
        programs = [traced.source.cut("onnx", [i], op.inputs[:1], op.outputs[:1]) for i, op in enumerate(graph.ops)]
        cut = [Model.of(traced, p).compile(engine, device, threads) for p in programs]

        def chained() -> object:
            values = whole.inputs
            for run in cut:
                values = list(run(values))
            return values

        return chained

    return {
        "whole": Run(partial(whole.start, engine, device, threads), pin, single),
        f"cut {count}": Run(chain, pin, single),
    }


def turn(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls in a row [s], after some that do not count: at least one, and so many that
    sleeping threads are awake."""
    until = time.perf_counter() + _WARM_SECONDS
    call()
    while time.perf_counter() < until:
        call()
    best, started = np.inf, time.perf_counter()
    for k in range(_MOST_CALLS):
        before = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - before)
        if k and now - started > _TURN_SECONDS:
            break
    return float(best)


def _say(data: object) -> None:
    print(json.dumps(data), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
