"""What keeps a model running when engines and devices do not: the loss of placements, and the plan that takes over.

`Resilience` are the settings. `Standby` holds what is lost, and starts the plan that does without it; what runs on top
of it (`resilient`) knows how to go on from where the fault was.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from qeil_compile.errors import BackendError, FailoverError, InputError, VerificationError

from .decisions import DecisionLog
from .faults import Deadline, Fault, FaultKind, StageFault
from .guard import CallRecorder, Guard
from .supervisor import Oversight, Unwatched

Running = TypeVar("Running")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Resilience:
    """Settings.

    `isolate`: engines run in processes of their own. `canary`: seconds between two checks of the golden inputs, of
    which the first is at the start; infinite: never. `retry`: seconds until a lost placement is tried again; each
    further loss of it doubles them. Raises `InputError` for times that are negative.
    """

    deadline: Deadline = field(default_factory=Deadline)
    isolate: bool = False
    canary: float = math.inf
    retry: float = 60.0

    def __post_init__(self) -> None:
        for name in ("canary", "retry"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: found {getattr(self, name)} s, expected a time from 0")


class Variants(Protocol[Running]):
    """A compiled model with failover plans: `Compiled` and `CompiledDecoder`."""

    @property
    def placements(self) -> Sequence[str]:
        """What its plan uses."""
        ...

    @property
    def used(self) -> frozenset[str]:
        """Names of the placements, devices and engines that its plan uses."""
        ...

    def without(self, *lost: str) -> Any:
        """The model by a plan that does without these. Raises `FailoverError`, `InputError`."""
        ...

    def numbered(self, k: int) -> Any:
        """The model by its own plan (0), or by its spare k - 1; the same objects as from `without`."""
        ...

    def start_guarded(self, guard: Guard, isolate: bool, progress: Progress) -> Running:
        """Compile its stages on their engines, each under watch. Raises `BackendError`."""
        ...

    def check(self, running: Running) -> None:
        """Run the golden inputs, if there are any. Raises `VerificationError`, `BackendError`."""
        ...


@dataclass(frozen=True)
class Live(Generic[Running]):
    """Engines that run, and the guard that watches them."""

    running: Running
    guard: Guard


@dataclass
class _Loss:
    fault: Fault
    time: float


class Standby(Generic[Running]):
    """One model of which some plan runs. `running` is that plan's engines."""

    def __init__(
        self, model: Variants[Running], settings: Resilience | None = None, log: DecisionLog | None = None,
        recorder: CallRecorder | None = None, oversight: Oversight | None = None,
        clock: Callable[[], float] = time.monotonic, progress: Progress = lambda done, total: None,
    ) -> None:  # fmt: skip
        """Starts the plan, or that of its failover plans that can be. Raises `FailoverError` where none can."""
        self.model, self.settings, self.log = model, settings or Resilience(), log or DecisionLog()
        self._recorder, self._oversight = recorder, oversight or Unwatched()
        self._clock, self._progress = clock, progress
        self._lost: dict[str, _Loss] = {}
        self._times: Counter[str] = Counter()
        self._asked: tuple[tuple[str, ...], int] = ((), 0)
        self._restarted: dict[frozenset[str], float] = {}
        self._checked = -math.inf
        self.variant: Any = model
        self._live: Live[Running] | None = None
        self._ended = "closed"
        try:
            self._start(model)
        except StageFault as error:
            self.fail(error.fault)

    @property
    def running(self) -> Running:
        """The engines of the plan in force. Raises `FailoverError` where none is any more, and why."""
        if self._live is None:
            raise FailoverError(self._ended)
        return self._live.running

    def close(self) -> None:
        """End what runs."""
        if self._live is not None:
            self._live.guard.close()
            self._live = None

    @property
    def lost(self) -> dict[str, Fault]:
        """Placements that are not used any more, and why."""
        return {n: loss.fault for n, loss in self._lost.items()}

    def fail(self, fault: Fault) -> None:
        """Go on without what has failed. Raises `FailoverError` where no plan is left."""
        started = time.perf_counter()
        self._record(fault)
        # What failed holds memory, which may be just what was short, and processes.
        self.close()
        kind = self._fail(fault)
        self.log.record(
            kind, "+".join(fault.placements), reason=str(fault.kind), now="+".join(self.variant.placements),
            seconds=time.perf_counter() - started,
        )  # fmt: skip

    def check(self) -> None:
        """Run the golden inputs on what runs now. Raises `StageFault` where they come out wrong."""
        self._checked = self._clock()
        started = time.perf_counter()
        try:
            self.variant.check(self.running)
        except VerificationError as error:
            where = tuple(self.variant.placements)
            raise StageFault(Fault(FaultKind.WRONG, where, str(error), time.perf_counter() - started)) from error

    @property
    def checks(self) -> bool:
        """Whether golden inputs are checked at all."""
        return self.settings.canary < math.inf

    @property
    def check_is_due(self) -> bool:
        """Whether `canary` seconds have passed since the golden inputs ran."""
        return self.checks and self._clock() - self._checked >= self.settings.canary

    def wanted(self) -> Any:
        """The variant that should run, given what is lost, what should rest, and which plan is the best now.

        A device that should rest, but that nothing can replace, stays in use.
        """
        names, index = tuple(self._oversight.avoided()), self._oversight.preferred()
        due = [n for n, loss in self._lost.items() if self._clock() - loss.time >= self._patience(n)]
        if not due and (names, index) == self._asked:
            return self.variant
        self._asked = names, index
        for name in due:
            self._lost[name].time = self._clock()
        still = [n for n in self._lost if n not in due]
        best = self.model.numbered(index)
        if not best.used.intersection([*still, *names]):
            return best
        for gone in ([*still, *names], still):
            try:
                return self.model.without(*gone)
            except FailoverError as error:
                self.log.record("no other plan", "+".join(names), reason=str(error))
        return self.variant

    def switch(self, variant: Any, reason: str) -> Live[Running] | None:
        """Start another plan; returns what ran before, for the caller to close. None where the other cannot start."""
        started = time.perf_counter()
        try:
            live = self._started(variant)
        except StageFault as error:
            self._record(error.fault)
            self._lose(set(variant.placements) - set(self.variant.placements), error.fault)
            return None
        before, self.variant, self._live = self._live, variant, live
        for name in variant.placements:
            self._lost.pop(name, None)
        self.log.record(
            "switch", "+".join(variant.placements), reason=reason, seconds=time.perf_counter() - started
        )  # fmt: skip
        return before

    def note(self, fault: Fault) -> None:
        """Remember the loss of something that is not in use."""
        self._record(fault)
        self._lose(fault.placements, fault)

    # ---- inside

    def _patience(self, name: str) -> float:
        if self._lost[name].fault.kind is FaultKind.LOST:
            return math.inf
        return self.settings.retry * 2.0 ** min(self._times[name] - 1, 60)

    def _record(self, fault: Fault) -> None:
        self.log.record(
            "fault", "+".join(fault.placements), reason=str(fault.kind), detail=fault.detail, seconds=fault.seconds,
            **({} if fault.limit is None else {"deadline": fault.limit}),
        )  # fmt: skip

    def _lose(self, names: Iterable[str], fault: Fault) -> None:
        for name in names:
            self._lost[name] = _Loss(fault, self._clock())
            self._times[name] += 1

    def _fail(self, fault: Fault) -> str:
        """Start another plan, that loses as little as can be, or the same one anew; which of the two."""
        before = frozenset(self._lost)
        waiting = [before.union(s) for s in _suspects(fault)]
        tried: set[frozenset[str]] = set()
        reasons: list[str] = []
        for gone in waiting:  # grows while it is gone through
            if gone in tried:
                continue
            tried.add(gone)
            try:
                self._start(self.model.without(*sorted(gone)))
            except FailoverError as error:
                reasons.append(str(error))
            except StageFault as error:
                self._record(error.fault)
                waiting += [gone.union(s) for s in _suspects(error.fault)]
            else:
                self._lose(gone - before, fault)
                return "failover"
        # What has failed is all there is: it is started anew, but not twice in a row.
        mark = frozenset(fault.placements)
        again = self._clock() - self._restarted.get(mark, -math.inf) >= self.settings.retry
        if fault.kind is not FaultKind.LOST and again:
            self._restarted[mark] = self._clock()
            try:
                self._start(self.model.without(*sorted(before - mark)))
                return "restart"
            except (FailoverError, StageFault) as error:
                reasons.append(str(error))
        faults = [fault.as_text(), *(loss.fault.as_text() for loss in self._lost.values())]
        self._ended = "; ".join(dict.fromkeys([*faults, *reasons]))
        raise FailoverError(self._ended)

    def _start(self, variant: Any) -> None:
        """Raises `StageFault`."""
        self._live, self.variant = self._started(variant), variant

    def _started(self, variant: Any) -> Live[Running]:
        """Raises `StageFault` where the engines do not start, or golden inputs come out wrong."""
        guard = Guard(self.settings.deadline, self._recorder, self._oversight.share)
        where = tuple(variant.placements)
        started = time.perf_counter()

        def fault(kind: FaultKind, error: Exception) -> StageFault:
            return StageFault(Fault(kind, where, str(error), time.perf_counter() - started))

        try:
            running: Running = variant.start_guarded(guard, self.settings.isolate, self._progress)
            if self.checks:
                variant.check(running)
                self._checked = self._clock()
        except StageFault:
            guard.close()
            raise
        except (BackendError, EOFError, MemoryError) as error:
            guard.close()
            raise fault(FaultKind.RAISED, error) from error
        except VerificationError as error:
            guard.close()
            raise fault(FaultKind.WRONG, error) from error
        return Live(running, guard)


def _suspects(fault: Fault) -> list[tuple[str, ...]]:
    """Of the placements that a fault may come from: what may have to be given up, the likeliest first."""
    alone = [(p,) for p in fault.placements]
    if len(alone) == 1:
        return list(alone)
    # Wrong results of a whole plan come from one of its placements; errors of a unit from all that it runs on.
    return [*alone, fault.placements] if fault.kind is FaultKind.WRONG else [fault.placements, *alone]
