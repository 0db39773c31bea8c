"""What happened when, in the trace event format that Perfetto and chrome://tracing open.

    trace = Trace()
    trace.span("unit 0", "stage", start, seconds, placement="openvino:CPU")
    trace.write(Path("out.json"))

Times are seconds of `time.perf_counter`; the file counts microseconds from the first of them. Stages have a line per
placement; decisions, tokens and each sensor have one of their own [Trace Event Format, Google, 2016].
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from qeil_compile.output import replacing

from .decisions import Decision


class Trace:
    """Events of one run. Safe to use from several threads."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._lines: dict[str, int] = {}
        self._lock = threading.Lock()
        self._origin = time.perf_counter()

    def span(self, name: str, category: str, start: float, seconds: float, **facts: Any) -> None:
        """Something that took `seconds` from `start`; on the line of its placement, or of its category."""
        self._add("X", name, category, start, str(facts.get("placement", category)), facts, dur=seconds * 1e6)

    def instant(self, name: str, category: str, moment: float | None = None, **facts: Any) -> None:
        """Something that happened at a moment, by default now."""
        self._add("i", name, category, time.perf_counter() if moment is None else moment, category, facts, s="t")

    def counter(self, name: str, moment: float, value: float) -> None:
        """The value of a sensor at a moment."""
        self._add("C", name, "sensor", moment, "sensors", {"value": value})

    def decision(self, decision: Decision) -> None:
        """A listener for `DecisionLog`."""
        self.instant(f"{decision.kind} {decision.subject}", "decisions", decision.time, **decision.facts)

    def to_json(self) -> dict[str, Any]:
        """The whole trace, its events in order of time."""
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": line, "args": {"name": name}}
            for name, line in self._lines.items()
        ]
        with self._lock:
            events = sorted(self._events, key=lambda e: e["ts"])
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}

    def write(self, path: Path) -> None:
        """Write the trace, whole or not at all. Raises `OutputError`."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), default=str), encoding="utf-8")

    def _add(
        self, phase: str, name: str, category: str, moment: float, line: str, facts: dict[str, Any], **more: Any
    ) -> None:
        with self._lock:
            number = self._lines.setdefault(line, len(self._lines) + 1)
            self._events.append({
                "name": name, "cat": category, "ph": phase, "ts": (moment - self._origin) * 1e6, "pid": 1,
                "tid": number, "args": facts, **more,
            })  # fmt: skip
