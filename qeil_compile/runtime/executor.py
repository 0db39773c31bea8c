"""Run the units of a plan in order, or at the same time where they are independent and on other devices.

Tensors pass between engines as numpy arrays over the engines' own buffers: no copy on the CPU. What leaves
the executor never shares memory that a later call would overwrite.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qeil_compile.backends import Executable, backend
from qeil_compile.backends.isolation import IsolatedExecutable
from qeil_compile.errors import ArtifactError, BackendError, QeilError, TargetError
from qeil_compile.passes.lower import LoweredUnit

from .faults import StageFault
from .guard import Guard
from .resolve import Resolved

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Step:
    run: Executable
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]
    #: Physical devices that the unit occupies while it runs.
    devices: frozenset[str]
    shares: bool
    where: str


class Executor:
    """Callable over arrays in the order of the model's inputs; returns arrays in the order of its outputs.

    Safe to call from several threads: an engine that hands out its own buffers is asked by one at a time.
    """

    def __init__(
        self, steps: Sequence[_Step], inputs: int, slots: int, results: Sequence[int], copies: Sequence[bool]
    ) -> None:
        self._steps, self._inputs, self._slots = list(steps), inputs, slots
        # Buffers of an engine are valid until its next call: until then its results must have been copied.
        self._lock = threading.Lock() if any(s.shares for s in steps) else None
        self._results, self._copies = list(results), list(copies)
        self._pool: ThreadPoolExecutor | None = None
        self._waits = _dependencies(self._steps)
        only = len(self._steps) == 1 and not any(copies)
        self._single = only and _is_identity(self._steps[0], inputs, self._results)
        if _worth_threads(self._steps, self._waits):
            devices = {d for s in self._steps for d in s.devices}
            self._pool = ThreadPoolExecutor(len(devices), thread_name_prefix="qeil")

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once. Raises `BackendError` naming the unit that failed."""
        if self._single:
            return self._steps[0].run(inputs)  # type: ignore[return-value]
        if self._lock is None:
            return self._run(inputs)
        with self._lock:
            return self._run(inputs)

    @property
    def run_tensors(self) -> Callable[[Sequence[Any]], list[Any]] | None:
        """torch tensors in and out, where the whole plan is one torch unit; a run then needs no arrays at all."""
        return getattr(self._steps[0].run, "run_tensors", None) if self._single else None

    def _run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        values: list[Any] = [*inputs, *[None] * (self._slots - len(inputs))]
        if self._pool is not None:
            self._run_threads(values, self._pool)
        else:
            for k in range(len(self._steps)):
                self._run_step(k, values)
        return [
            np.array(values[r]) if copy else values[r] for r, copy in zip(self._results, self._copies, strict=True)
        ]

    def _run_step(self, k: int, values: list[Any], free: bool = True) -> None:
        step = self._steps[k]
        try:
            produced = step.run([values[r] for r in step.reads])
        except StageFault:
            raise
        except BackendError as error:
            raise BackendError(f"unit {k} on {step.where}: {error}") from error
        for slot, value in zip(step.writes, produced, strict=True):
            values[slot] = value
        if free:
            for slot in step.frees:
                values[slot] = None

    def _run_threads(self, values: list[Any], pool: ThreadPoolExecutor) -> None:
        # Units are submitted in their legal order and only wait for earlier ones, so workers cannot lock up.
        futures: list[Future[None]] = []
        for k in range(len(self._steps)):
            futures.append(pool.submit(self._run_after, k, [futures[i] for i in self._waits[k]], values))
        for future in futures:
            future.result()

    def _run_after(self, k: int, before: Sequence[Future[None]], values: list[Any]) -> None:
        for future in before:
            future.result()
        self._run_step(k, values, free=False)


def _is_identity(step: _Step, inputs: int, results: Sequence[int]) -> bool:
    return step.reads == tuple(range(inputs)) and tuple(results) == step.writes


def _dependencies(steps: Sequence[_Step]) -> list[list[int]]:
    """Units that each unit waits for: writers of its inputs and the unit before it on each of its devices."""
    writer = {slot: k for k, s in enumerate(steps) for slot in s.writes}
    last: dict[str, int] = {}
    waits: list[list[int]] = []
    for k, step in enumerate(steps):
        before = {writer[r] for r in step.reads if r in writer}
        for device in step.devices:
            if device in last:
                before.add(last[device])
            last[device] = k
        waits.append(sorted(before))
    return waits


def _worth_threads(steps: Sequence[_Step], waits: Sequence[Sequence[int]]) -> bool:
    """True when some unit may start before the one ahead of it in the order has ended."""
    return any(k - 1 not in waits[k] for k in range(1, len(steps)))


def build_executor(
    units: Sequence[LoweredUnit],
    weights: Callable[[str], np.ndarray],
    resolved: Mapping[str, Resolved],
    inputs: Sequence[str],
    outputs: Sequence[str],
    progress: Progress = lambda done, total: None,
    threads: int = 0,
    guard: Guard | None = None,
    isolate: bool = False,
) -> Executor:
    """Compile every unit on its engine and wire them up; `threads` as in `Backend.compile`.

    Calls are under watch of `guard`; engines are in processes of their own with `isolate`. Raises `BackendError`,
    never falls back.
    """
    slot = {name: i for i, name in enumerate(inputs)}
    last = {name: k for k, u in enumerate(units) for name in u.program.inputs}
    shares: dict[str, bool] = {}
    steps: list[_Step] = []
    exclusive = len({u.engine for u in units}) == 1
    for k, unit in enumerate(units):
        run = compile_unit(unit, weights, resolved, exclusive, threads, isolate)
        if guard is not None:
            run = guard.executable(run, unit.placements, f"unit {k}")
        for name in unit.program.outputs:
            slot.setdefault(name, len(slot))
            shares[name] = bool(getattr(run, "shares_outputs", False))
        names = {*unit.program.inputs, *unit.program.outputs}
        frees = [slot[n] for n in names if last.get(n, -1) == k and n not in outputs and n not in inputs]
        steps.append(
            _Step(
                run, tuple(slot[n] for n in unit.program.inputs), tuple(slot[n] for n in unit.program.outputs),
                tuple(frees), _occupied(unit, resolved), bool(getattr(run, "shares_outputs", False)),
                "+".join(dict.fromkeys(unit.placements)),
            )
        )  # fmt: skip
        progress(k + 1, len(units))
    return Executor(steps, len(inputs), len(slot), [slot[o] for o in outputs], [shares.get(o, False) for o in outputs])


def _occupied(unit: LoweredUnit, resolved: Mapping[str, Resolved]) -> frozenset[str]:
    """Stand-ins of absent devices all run on the one CPU that is here."""
    pairs = zip(unit.placements, unit.devices, strict=True)
    return frozenset("cpu" if resolved[p].emulated else device for p, device in pairs)


def compile_unit(
    unit: LoweredUnit,
    weights: Callable[[str], np.ndarray],
    resolved: Mapping[str, Resolved],
    exclusive: bool = True,
    threads: int = 0,
    isolate: bool = False,
) -> Executable:
    """The unit's executable. Raises `BackendError` naming the stage."""
    places = [resolved[p] for p in unit.placements]
    program = unit.program
    if program.affinity:
        names = {p.partition(":")[2]: r.device for p, r in zip(unit.placements, places, strict=True)}
        program = replace(program, affinity={t: names[d] for t, d in program.affinity.items()})
    arrays = {name: weights(key) for name, key in program.weights.items()}
    device = places[0].device
    try:
        if isolate:
            return IsolatedExecutable(places[0].engine, program, arrays, device, exclusive, threads)
        return backend(places[0].engine).compile(program, arrays, device, exclusive, threads)
    except (ArtifactError, TargetError):
        raise
    except QeilError as error:
        raise BackendError(f"stage {unit.stages[0]} cannot be compiled: {error}") from error
