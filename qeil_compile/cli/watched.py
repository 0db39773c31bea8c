"""The options of commands that run engines: how they are watched, and where it is written what happened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qeil_compile.api import find_target
from qeil_compile.backends import found_devices
from qeil_compile.errors import TargetError
from qeil_compile.plan import Plan
from qeil_compile.runtime import Deadline, Decision, DecisionLog, Resilience, Supervisor, Trace, resolve
from qeil_compile.runtime.supervisor import write_counters
from qeil_compile.telemetry import Sampler, find_sensors

from .arguments import check_file
from .console import remark

TraceFile = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE.json", help="Write what happened when, for Perfetto.")
]
LogFile = Annotated[
    Path | None, typer.Option("--log", metavar="FILE.jsonl", help="Append faults and what was done about them.")
]
Isolate = Annotated[bool, typer.Option("--isolate", help="Engines run in processes of their own.")]
Canary = Annotated[
    float | None, typer.Option(min=0, metavar="SECONDS", help="Check golden inputs at the start and every so often.")
]
Monitor = Annotated[
    bool, typer.Option("--monitor", help="Read sensors; rest devices before they are too hot or full.")
]
StageSeconds = Annotated[
    float | None, typer.Option("--deadline", min=0.001, metavar="SECONDS", help="Least time that a stage always has.")
]


@dataclass
class Watched:
    """What a run is watched with; `trace` is None where none is wanted."""

    resilience: Resilience
    log: DecisionLog
    trace: Trace | None
    monitor: bool

    @contextmanager
    def supervisor(self, plans: Sequence[Plan]) -> Iterator[Supervisor | None]:
        """The oversight that is wanted for a model with these plans (its own first); None where none is.

        Raises `TargetError` for a model that was planned for another machine: its limits are not those of this one.
        """
        if not self.monitor:
            with self._sensors_in_trace():
                yield None
            return
        target = find_target(plans[0].target)
        specs = [p.spec for p in target.placements]
        absent = [s for s, r in resolve(specs, found_devices(s.partition(":")[0] for s in specs)).items() if r.emulated]
        if absent:
            raise TargetError(
                f"--monitor: the model was planned for {target.name}, of which {absent[0]} is not on this machine: its "
                f"limits are not this one's; compile for host"
            )
        with Supervisor(plans, target, self.log, counters=self.trace) as supervisor:
            yield supervisor

    @contextmanager
    def _sensors_in_trace(self) -> Iterator[None]:
        trace = self.trace
        if trace is None:
            yield
            return
        with Sampler(find_sensors()[0]) as sampler:
            sampler.listen("trace", lambda snapshot: write_counters(trace, snapshot))
            yield


@contextmanager
def watched(
    trace: Path | None, log: Path | None, isolate: bool, canary: float | None, deadline: float | None,
    monitor: bool,
) -> Iterator[Watched]:  # fmt: skip
    """Settings for a run; at its end its trace is written, whatever became of it. Raises `OutputError` before it."""
    if trace is not None:
        check_file(trace, ".json", overwrite=True)
    events = Trace() if trace is not None else None

    def heard(decision: Decision) -> None:
        remark(f"note: {decision.as_text()}")
        if events is not None:
            events.decision(decision)

    decisions = DecisionLog(log, heard)
    limits = Deadline() if deadline is None else Deadline(least=deadline, first=max(deadline, Deadline().first))
    try:
        seconds = math.inf if canary is None else canary
        yield Watched(Resilience(limits, isolate, seconds), decisions, events, monitor)
    finally:
        decisions.close()
        if trace is not None and events is not None:
            events.write(trace)
            remark(f"{trace}: what happened when; open it at ui.perfetto.dev or chrome://tracing")
