"""Stages under watch: each call has a deadline, each result is looked at, each one may be written into a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from qeil_compile.backends.base import DecoderStage, Executable
from qeil_compile.watch import Watch

from .faults import Deadline, Fault, FaultKind, StageFault, fault_of, is_finite

T = TypeVar("T")
Where = tuple[str, ...]


class CallRecorder(Protocol):
    """What is told of each call of a stage; `runtime.trace.Trace` is one."""

    def span(self, name: str, category: str, start: float, seconds: float, **facts: Any) -> None:
        """A call that began at `start` (`time.perf_counter`)."""
        ...


class Guard:
    """Watches the stages of one running model. Calls on different placements may overlap.

    `shares` maps placements to the share of the time in which they may work: after a call a stage waits until it has
    worked no more than that (see `runtime.monitor`).
    """

    def __init__(
        self, deadline: Deadline | None = None, recorder: CallRecorder | None = None,
        shares: Callable[[Where], float] = lambda where: 1.0,
    ) -> None:  # fmt: skip
        self.deadline, self._recorder, self._shares = deadline or Deadline(), recorder, shares
        self._watches: dict[Where, Watch] = {}
        self._seen: dict[tuple[Where, str], dict[int, _Seen]] = {}
        self._kills: list[Callable[[], object]] = []

    def decoder(self, stage: DecoderStage, where: Where, name: str) -> DecoderStage:
        """The stage under watch."""
        self._adopt(stage)
        return _GuardedDecoder(stage, where, name, self)

    def executable(self, run: Executable, where: Where, name: str) -> Executable:
        """The executable under watch."""
        self._adopt(run)
        return _GuardedExecutable(run, where, name, self)

    def close(self) -> None:
        """End the threads, and the processes of isolated stages; what hangs in this process is left behind."""
        for watch in self._watches.values():
            watch.close()
        for kill in self._kills:
            kill()
        self._kills.clear()

    def _adopt(self, stage: object) -> None:
        kill = getattr(stage, "kill", None)
        if kill is not None:
            self._kills.append(kill)

    def call(
        self, where: Where, name: str, size: int, function: Callable[[], T],
        outputs: Callable[[T], Mapping[str, np.ndarray]] = lambda result: {},
        kill: Callable[[], object] | None = None,
    ) -> T:  # fmt: skip
        """Run one call whose work grows with `size`, and look at its outputs. Raises `StageFault`.

        `kill` ends what hangs, where that is possible.
        """
        known = self._seen.setdefault((where, name), {})
        watch = self._watches.setdefault(where, Watch())
        limit = self.deadline.seconds(_expected(known, size))
        started = time.perf_counter()
        try:
            result = watch.call(function, limit)
        except Exception as error:
            fault = fault_of(error, where, time.perf_counter() - started, limit)
            if fault.kind is FaultKind.HUNG and kill is not None:
                kill()
            raise StageFault(fault) from error
        seconds = time.perf_counter() - started
        bad = next((n for n, a in outputs(result).items() if not is_finite(a)), None)
        if bad is not None:
            detail = f"tensor {bad} holds NaN or infinity"
            raise StageFault(Fault(FaultKind.NOT_FINITE, where, detail, time.perf_counter() - started))
        known[size] = known.get(size, _Seen()).and_then(seconds)
        if self._recorder is not None:
            self._recorder.span(name, "stage", started, seconds, placement="+".join(where), size=size)
        share = self._shares(where)
        if share < 1:
            time.sleep(seconds * (1 / max(share, 0.05) - 1))
        return result


@dataclass(frozen=True, slots=True)
class _Seen:
    """Calls of one size, and the longest [s]; the first one counts until there is another: engines warm up in it."""

    calls: int = 0
    longest: float = 0.0

    def and_then(self, seconds: float) -> _Seen:
        return _Seen(self.calls + 1, max(seconds, self.longest) if self.calls > 1 else seconds)


def _expected(known: Mapping[int, _Seen], size: int) -> float | None:
    """Seconds of a call of `size` at most, by those that were seen: less work takes no longer, more in proportion."""
    return min((seen.longest * max(1.0, size / s) for s, seen in known.items()), default=None)


class _GuardedDecoder:
    def __init__(self, stage: DecoderStage, where: Where, name: str, guard: Guard) -> None:
        self._stage, self._where, self._name, self._guard = stage, where, name, guard
        self.states, self.compact = stage.states, stage.compact
        #: The processor's cores are free between the calls; engines on it spin there.
        self.leaves_cores = not any(p.partition(":")[2].lower().startswith("cpu") for p in where)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        positions = feeds["positions"]
        what = "step" if positions.shape[1] == 1 else "prompt"
        return self._call(what, positions.size, lambda: self._stage.run(feeds), lambda found: found)

    def reset(self, rows: int) -> None:
        self._call("reset", rows, lambda: self._stage.reset(rows))

    def select(self, rows: np.ndarray) -> None:
        self._call("rows", len(rows), lambda: self._stage.select(rows))

    def export(self) -> dict[str, np.ndarray]:
        return self._call("cache out", 1, self._stage.export)

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        size = sum(a.nbytes for a in states.values()) or 1
        self._call("cache in", size, lambda: self._stage.load(states))

    def _call(
        self, what: str, size: int, function: Callable[[], T],
        outputs: Callable[[T], Mapping[str, np.ndarray]] = lambda result: {},
    ) -> T:  # fmt: skip
        name = f"{self._name}: {what}"
        return self._guard.call(self._where, name, size, function, outputs, getattr(self._stage, "kill", None))


class _GuardedExecutable:
    def __init__(self, run: Executable, where: Where, name: str, guard: Guard) -> None:
        self._run, self._where, self._name, self._guard = run, where, name, guard
        self.shares_outputs = bool(getattr(run, "shares_outputs", False))

    def __call__(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return self._guard.call(
            self._where, self._name, 1, lambda: self._run(inputs),
            lambda found: {str(k): a for k, a in enumerate(found)}, getattr(self._run, "kill", None),
        )  # fmt: skip
