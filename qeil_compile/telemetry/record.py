"""Recordings of snapshots: JSON lines, written as they come and replayed as a sensor.

    {"format": "qeil telemetry", "version": 1, "channels": [{"device": "gpu0", "quantity": "power", ...}, ...]}
    [12.05, 211.4, 63.0, null]

The first line names the channels; each further one is a snapshot: its time [s], then a value per channel, null where
there was none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from qeil_compile.errors import InputError, OutputError

from .snapshot import UNITS, Channel, SensorLost, Snapshot

_FORMAT, _VERSION = "qeil telemetry", 1


class Recorder:
    """Writes snapshots of fixed channels; a listener for `Sampler.listen`."""

    def __init__(self, path: Path, channels: Sequence[Channel]) -> None:
        """Replaces what is at `path`. Raises `OutputError`."""
        self._channels = tuple(channels)
        try:
            self._file: TextIO = path.open("w", encoding="utf-8")
            head = {"format": _FORMAT, "version": _VERSION, "channels": [asdict(c) for c in channels]}
            self._file.write(json.dumps(head) + "\n")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another file") from error

    def __call__(self, snapshot: Snapshot) -> None:
        """Add one snapshot. Raises `OSError`, upon which a sampler drops its listener and says so."""
        values = (snapshot.values.get(c, nan) for c in self._channels)
        # Microseconds and ten digits: no sensor knows more.
        row = [round(snapshot.time, 6), *(float(f"{v:.10g}") if isfinite(v) else None for v in values)]
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class Recorded:
    """A recording as a sensor.

    With `realtime` it gives what was in force as long after the first reading as it was after the first snapshot.
    Without, each reading gives the next snapshot, and `clock` is the recorded time: hand it to a `Sampler`, and a test
    of an hour takes a moment. `times` [s] is float64[snapshots], `values` float64[snapshots, channels].
    """

    def __init__(self, path: Path, realtime: bool = True, clock: Callable[[], float] = time.perf_counter) -> None:
        """Raises `InputError` naming file and line."""
        self.name = f"recording {path.name}"
        self.channels, self.times, self.values = _read(path)
        self._realtime, self._now = realtime, clock
        self._started, self._row = nan, -1

    def read(self) -> Sequence[float]:
        """The values of one snapshot. Raises `SensorLost` when the recording is over."""
        row = self._due() if self._realtime else self._row + 1
        if row >= len(self.times):
            raise SensorLost(f"the recording is over after {self.times[-1] - self.times[0]:.4g} s")
        self._row = row
        return list(self.values[row])

    def clock(self) -> float:
        """Recorded time [s] of the snapshot that was read last."""
        return float(self.times[max(self._row, 0)])

    @property
    def over(self) -> bool:
        """Whether there is no further snapshot."""
        return (self._due() if self._realtime else self._row + 1) >= len(self.times)

    def snapshots(self) -> Iterator[Snapshot]:
        """All snapshots, at their recorded times."""
        for t, row in zip(self.times, self.values, strict=True):
            yield Snapshot(float(t), dict(zip(self.channels, map(float, row), strict=True)))

    def _due(self) -> int:
        """The row in force; the number of rows once the last one has been so for as long as rows take on average."""
        now = self._now()
        if self._started != self._started:
            self._started = now
        passed = now - self._started
        length = float(self.times[-1] - self.times[0])
        if passed > length + length / max(len(self.times) - 1, 1):
            return len(self.times)
        return max(int(np.searchsorted(self.times - self.times[0], passed, side="right")) - 1, 0)


def _read(path: Path) -> tuple[tuple[Channel, ...], np.ndarray, np.ndarray]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a recording of `qeil top --record`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a recording of `qeil top --record`") from error
    channels = _channels(path, lines[0] if lines else "")
    rows = []
    before = -inf
    for number, line in enumerate(lines[1:], start=2):
        row = _json(line)
        if not _is_row(row, len(channels)):
            raise _malformed(path, number, line, f"a list of a time and {len(channels)} numbers or nulls")
        if row[0] < before:
            raise _malformed(path, number, line, f"a time from {before:g} s, that of the line above")
        before = row[0]
        rows.append([nan if v is None else float(v) for v in row])
    if not rows:
        raise InputError(f"{path}, line 2: found no snapshot, expected at least one; record it again")
    data = np.array(rows)
    return channels, data[:, 0], data[:, 1:]


def _channels(path: Path, line: str) -> tuple[Channel, ...]:
    head = _json(line)
    if not isinstance(head, dict) or (head.get("format"), head.get("version")) != (_FORMAT, _VERSION):
        raise _malformed(path, 1, line, f'{{"format": "{_FORMAT}", "version": {_VERSION}, "channels": [...]}}')
    listed = head.get("channels")
    if not isinstance(listed, list):
        raise _malformed(path, 1, line, "a list of channels")
    names = sorted(f.name for f in fields(Channel))
    for c in listed:
        good = isinstance(c, dict) and sorted(c) == names and all(isinstance(v, str) for v in c.values())
        if not good or UNITS.get(c["quantity"]) != c["unit"]:
            wanted = f"channels with {', '.join(names)}, quantities and units as {UNITS}"
            raise _malformed(path, 1, json.dumps(c), wanted)
    return tuple(Channel(**c) for c in listed)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_row(row: Any, channels: int) -> bool:
    if not isinstance(row, list) or len(row) != channels + 1 or row[0] is None:
        return False
    return all(v is None or (type(v) in (int, float) and isfinite(v)) for v in row)


def _malformed(path: Path, number: int, found: str, expected: str) -> InputError:
    return InputError(f"{path}, line {number}: found {found[:80]!r}, expected {expected}; record it again")
