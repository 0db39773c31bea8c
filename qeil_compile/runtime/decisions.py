"""What the runtime decided, when and why: faults, plans that took over, loads that were shed.

    log = DecisionLog(Path("decisions.jsonl"))
    log.record("failover", "openvino:CPU", reason="raised: ...", plan="single onnxruntime:CPU")

Each entry is one line of JSON as it happens, so that a run that dies leaves all before its end.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeil_compile.errors import OutputError


@dataclass(frozen=True, slots=True)
class Decision:
    """`kind` says what was done, `subject` to which placement, device or plan, `facts` why.

    `time` counts seconds as `time.perf_counter` does, `clock` as `time.time`.
    """

    kind: str
    subject: str
    facts: Mapping[str, Any]
    time: float
    clock: float

    def as_text(self) -> str:
        """`failover openvino:CPU: reason=..., plan=...`."""
        facts = ", ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in self.facts.items())
        return f"{self.kind} {self.subject}{': ' + facts if facts else ''}"


class DecisionLog:
    """Decisions in order. Safe to use from several threads."""

    def __init__(self, path: Path | None = None, listener: Callable[[Decision], object] | None = None) -> None:
        """Entries are appended to `path` as JSON lines, and handed to `listener`. Raises `OutputError`."""
        self.entries: list[Decision] = []
        self._listener, self._lock = listener, threading.Lock()
        try:
            self._file = path.open("a", encoding="utf-8") if path is not None else None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from error

    def record(self, kind: str, subject: str, **facts: Any) -> Decision:
        """Add one decision."""
        decision = Decision(kind, subject, facts, time.perf_counter(), time.time())
        with self._lock:
            self.entries.append(decision)
            if self._file is not None:
                line = {"time": decision.clock, "kind": kind, "subject": subject, **facts}
                self._file.write(json.dumps(line, default=str) + "\n")
                self._file.flush()
        if self._listener is not None:
            self._listener(decision)
        return decision

    def of(self, kind: str) -> list[Decision]:
        """All decisions of one kind."""
        return [d for d in self.entries if d.kind == kind]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
