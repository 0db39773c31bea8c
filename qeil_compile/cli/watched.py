"""The options of commands that run engines: how they are watched, and where it is written what happened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from qeil_compile.runtime import Deadline, Decision, DecisionLog, Resilience, Trace

from .arguments import check_file
from .console import say

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
StageSeconds = Annotated[
    float | None, typer.Option("--deadline", min=0.001, metavar="SECONDS", help="Least time that a stage always has.")
]


@dataclass
class Watched:
    """What a run is watched with; `trace` is None where none is wanted."""

    resilience: Resilience
    log: DecisionLog
    trace: Trace | None


@contextmanager
def watched(
    trace: Path | None, log: Path | None, isolate: bool, canary: float | None, deadline: float | None
) -> Iterator[Watched]:
    """Settings for a run; at its end its trace is written, whatever became of it. Raises `OutputError` before it."""
    if trace is not None:
        check_file(trace, ".json", overwrite=True)
    events = Trace() if trace is not None else None

    def heard(decision: Decision) -> None:
        say(f"note: {decision.as_text()}")
        if events is not None:
            events.decision(decision)

    decisions = DecisionLog(log, heard)
    limits = Deadline() if deadline is None else Deadline(least=deadline, first=max(deadline, Deadline().first))
    try:
        yield Watched(Resilience(limits, isolate, math.inf if canary is None else canary), decisions, events)
    finally:
        decisions.close()
        if trace is not None and events is not None:
            events.write(trace)
            say(f"{trace}: what happened when; open it at ui.perfetto.dev or chrome://tracing")
