"""Times the networks of a calibration on one engine and device, in a process of its own.

    python -m qeil_compile.calibration.worker ENGINE DEVICE THREADS ROUNDS

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

from qeil_compile.backends import backend
from qeil_compile.backends.onnx_tools import whole_program
from qeil_compile.errors import QeilError, first_line
from qeil_compile.frontends import trace

from .networks import Network, suite

#: A turn ends after this many seconds, but not before its second call.
_TURN_SECONDS = 4e-3
_MOST_CALLS = 20


@dataclass
class _Run:
    call: Callable[[], object]
    rounds: list[float] = field(default_factory=list)


def main(arguments: list[str]) -> None:
    """Compile, time, report."""
    engine, device, threads, rounds = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    networks = suite()
    runs: dict[str, _Run] = {}
    refused: dict[str, str] = {}
    total = len(networks) * (1 + rounds)
    for k, network in enumerate(networks):
        try:
            runs[network.name] = _Run(_prepared(network, engine, device, threads))
        except QeilError as error:
            refused[network.name] = first_line(error)
        _say({"done": k + 1, "total": total})
    for r in range(rounds):
        for run in runs.values():
            run.rounds.append(_turn(run.call))
        _say({"done": len(networks) * (2 + r), "total": total})
    _say({"seconds": {name: run.rounds for name, run in runs.items()}, "refused": refused})


def _prepared(network: Network, engine: str, device: str, threads: int) -> Callable[[], object]:
    traced = trace(network.model)
    program = whole_program(traced.source)
    weights = {n: traced.source.weight(k) for n, k in program.weights.items()}
    run = backend(engine).compile(program, weights, device, threads=threads)
    inputs = [np.ascontiguousarray(traced.samples[n]) for n in program.inputs]
    run(inputs)
    return lambda: run(inputs)


def _turn(call: Callable[[], object]) -> float:
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
