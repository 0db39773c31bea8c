"""Times the networks of a calibration on one engine and device, in a process of its own.

    python -m qeil_compile.calibration.worker ENGINE DEVICE THREADS SECONDS

An engine's threads that wait by spinning would disturb the next one, and torch has one pool for a process: so each
engine and number of threads gets its own. The networks take turns, round after round, so that a slow minute of the
machine hits all of them alike; each turn is one uncounted call and a few counted ones, of which the fastest stands
for the round: what a neighbour on the machine took away is no cost of the kernel. JSON lines on standard output:
progress, then one result.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qeil_compile.backends import Executable, backend
from qeil_compile.backends.onnx_tools import whole_program
from qeil_compile.errors import QeilError, first_line
from qeil_compile.frontends import Traced, trace

from .energy import counter_for, joules
from .networks import chain_to_cut
from .suite import suite

#: A turn ends after this many seconds, but not before its second call.
_TURN_SECONDS = 4e-3
_MOST_CALLS = 20
#: ONNX Runtime's threads spin for about 40 ms after a run.
_LONGEST_SPIN = 0.1
#: Rounds: at least so many, whatever the time; never more than so many.
_LEAST, _MOST = 3, 15


@dataclass
class _Run:
    call: Callable[[], object]
    rounds: list[float] = field(default_factory=list)


def main(arguments: list[str]) -> None:
    """Compile, time, report."""
    engine, device, threads, seconds = arguments[0], arguments[1], int(arguments[2]), float(arguments[3])
    started = time.perf_counter()
    builds = suite()
    runs: dict[str, _Run] = {}
    refused: dict[str, str] = {}
    for k, build in enumerate(builds):
        network = build()
        try:
            runs[network.name] = _Run(prepared(trace(network.model), engine, device, threads))
        except QeilError as error:
            refused[network.name] = first_line(error)
        _say({"done": 0.3 * (k + 1) / len(builds)})
    counter = counter_for(engine, device)
    reserved = _ENERGY_SECONDS * len(_energetic(runs)) if counter else 0.0
    stages = _stages(engine, device, threads)
    runs |= stages
    for r in range(_MOST):
        used = (time.perf_counter() - started) / max(seconds - reserved, 1e-3)
        if r >= _LEAST and used > 1.0 - 1.0 / (r + 1.5):  # another round would not fit
            break
        for run in runs.values():
            run.rounds.append(turn(run.call))
        _say({"done": min(0.3 + 0.7 * max(used, r / _MOST), 1.0)})
    energy = {name: joules(counter, runs[name].call, _ENERGY_SECONDS) for name in _energetic(runs)} if counter else {}
    _say({
        "seconds": {name: run.rounds for name, run in runs.items() if name not in stages},
        "stages": {name: run.rounds for name, run in stages.items()},
        "refused": refused,
        "energy": energy,
        "counter": counter.name if counter else "",
    })  # fmt: skip


#: Seconds of continuous running per energy reading: counters tick every few milliseconds.
_ENERGY_SECONDS = 1.0


def _energetic(runs: dict[str, _Run]) -> list[str]:
    """Networks whose energy is read: from all arithmetic to all traffic."""
    return [n for n in runs if n.startswith(("gemm", "Add", "conv 1x1"))][::4]


def prepared(traced: Traced, engine: str, device: str, threads: int) -> Callable[[], object]:
    """A call of the whole model with its sample inputs on an engine. Raises `BackendError`."""
    run = _compiled(traced, engine, device, threads, None)
    inputs = [np.ascontiguousarray(traced.samples[n]) for n in traced.graph.inputs]
    run(inputs)
    return lambda: run(inputs)


def _compiled(traced: Traced, engine: str, device: str, threads: int, ops: list[int] | None) -> Executable:
    source, graph = traced.source, traced.graph
    if ops is None:
        program = whole_program(source)
    else:
        inputs, outputs = graph.ops[ops[0]].inputs[:1], graph.ops[ops[-1]].outputs[:1]
        program = source.cut("onnx", ops, inputs, outputs)
    weights = {n: source.weight(k) for n, k in program.weights.items()}
    return backend(engine).compile(program, weights, device, threads=threads)


def _stages(engine: str, device: str, threads: int) -> dict[str, _Run]:
    """One chain as a single stage, and cut at every operator: the difference is what boundaries cost."""
    traced = trace(chain_to_cut().model)
    count = len(traced.graph.ops)
    whole = _compiled(traced, engine, device, threads, None)
    cut = [_compiled(traced, engine, device, threads, [i]) for i in range(count)]
    first = [np.ascontiguousarray(traced.samples[traced.graph.inputs[0]])]

    def chained() -> object:
        values = first
        for run in cut:
            values = list(run(values))
        return values

    return {"whole": _Run(lambda: whole(first)), f"cut {count}": _Run(chained)}


def turn(call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls in a row [s], after one that does not count."""
    _settle()
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


def _settle() -> None:
    """Wait until threads of an earlier call no longer spin: they would take the cores from the next one."""
    until = time.perf_counter() + _LONGEST_SPIN
    while time.perf_counter() < until:
        busy, clock = time.process_time(), time.perf_counter()
        time.sleep(5e-4)
        if time.process_time() - busy < 0.5 * (time.perf_counter() - clock):
            return


def _say(data: object) -> None:
    print(json.dumps(data), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
