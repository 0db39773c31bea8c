"""Time plans against one another: interleaved, so that a noisy machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_PER_TURN = 2
#: Threads of an engine that wait for work by spinning (ONNX Runtime's do for some 40 ms) would slow the next one down.
_REST_SECONDS = 0.06
#: A core that slept takes some milliseconds until it is back at its speed.
_WARM_SECONDS = 6e-3
#: A call whose best run in this many rounds is so many times the leader's median is no rival; more rounds would only
#: cost time.
_TRIALS, _HOPELESS = 3, 2.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Median and spread (10 % and 90 % quantile) of one run [s], over `runs` runs."""

    median: float
    low: float
    high: float
    runs: int


def interleaved(
    calls: Mapping[str, Callable[[], object]], seconds: float = 1.0, least: int = 5, most: int = 200
) -> dict[str, Timing]:
    """Time each call in turn, round after round, for about `seconds` in all but at least `least` rounds.

    A turn begins with a rest, until no thread of the engine before spins any more, and with calls that are not counted,
    until cores are awake and caches hold this engine's weights. A call that is clearly slower after some rounds is
    not run again.
    """
    return {name: _timing(runs.ravel()) for name, runs in by_round(calls, seconds, least, most).items()}


def by_round(
    calls: Mapping[str, Callable[[], object]], seconds: float, least: int = 5, most: int = 200
) -> dict[str, np.ndarray]:
    """What `interleaved` measures, run by run: seconds, float64 [rounds that the call took part in, runs of a turn]."""
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    started = time.perf_counter()
    for k in range(most):
        if k >= least and time.perf_counter() - started > seconds:
            break
        for name, call in calls.items():
            if k >= _TRIALS and np.min(samples[name]) > _HOPELESS * min(float(np.median(s)) for s in samples.values()):
                continue
            _settle(call, len(calls) > 1)
            turn = []
            for _ in range(_PER_TURN):
                before = time.perf_counter()
                call()
                turn.append(time.perf_counter() - before)
            samples[name].append(turn)
    return {name: np.array(runs) for name, runs in samples.items()}


def _settle(call: Callable[[], object], rest: bool) -> None:
    if rest:
        time.sleep(_REST_SECONDS)
    until = time.perf_counter() + _WARM_SECONDS
    call()
    while time.perf_counter() < until:
        call()


def repeated(call: Callable[[], object], runs: int) -> Timing:
    """Time one call `runs` times in a row; warm it up first."""
    samples: list[float] = []
    for _ in range(runs):
        before = time.perf_counter()
        call()
        samples.append(time.perf_counter() - before)
    return _timing(np.array(samples))


def _timing(samples: np.ndarray) -> Timing:
    median, low, high = (float(q) for q in np.quantile(samples, [0.5, 0.1, 0.9]))
    return Timing(median, low, high, len(samples))
