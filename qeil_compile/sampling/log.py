"""Recorded samples: one JSON line per question, `{"pid", "gold", "ans": [k], "ok": [k], ...}`, plain or gzip."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qeil_compile.errors import InputError, first_line
from qeil_compile.untrusted import parse_json, read_file

from .samples import Sample

#: Bytes of a log, unpacked.
_LIMIT = 1 << 30
#: Columns that are not features.
_OWN = {"pid", "gold", "ans", "ok"}


@dataclass(frozen=True)
class Recorded:
    """One question of a log. `answers` are None where nothing was parsed ('' in the file); `correct` None if unknown.

    `columns`: the other columns of k entries, as they stand in the file.
    """

    pid: str
    gold: object
    answers: tuple[str | None, ...]
    correct: tuple[float, ...] | None
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.answers)

    def sample(self, i: int) -> Sample:
        """Sample i. Numbers become features by the column's name, lists of numbers NAME.0, NAME.1, ..., strings of 0
        and 1 their share of ones. `tok` is the number of tokens, `rm` the score, `logprob` the exact log P(answer)."""
        features: dict[str, float] = {}
        for name, column in self.columns.items():
            value = column[i]
            if isinstance(value, (list, tuple)):
                features.update({f"{name}.{j}": _number(v) for j, v in enumerate(value)})
            elif isinstance(value, str) and value and not value.strip("01"):
                features[name] = value.count("1") / len(value)
            elif not isinstance(value, str):
                features[name] = _number(value)
        tokens, score = features.get("tok", 0.0), features.get("rm", math.nan)
        logprob = features.get("logprob", math.nan)
        return Sample(
            self.answers[i], tokens=int(tokens) if math.isfinite(tokens) else 0, features=features,
            logprob=None if math.isnan(logprob) else logprob, score=score if math.isfinite(score) else None, index=i,
        )  # fmt: skip

    def right(self, answer: str | None, first: int | None = None) -> float | None:
        """Whether an answer is right: as marked at sample `first`, or at its first; None where nothing is marked."""
        if self.correct is None:
            return None
        if answer is None:
            return 0.0
        place = first if first is not None else self.answers.index(answer) if answer in self.answers else None
        return 0.0 if place is None else self.correct[place]


def read_log(path: str | Path) -> list[Recorded]:
    """All questions of a log. Raises `InputError` naming the file and the line."""
    path = Path(path)
    return [_parse(line, f"{path}, line {number}", number) for number, line in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        data = read_file(path, _LIMIT)
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                # A small file may hold endless zeros.
                data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise OSError(f"more than {_LIMIT} bytes when unpacked")
        found = [(k, line) for k, line in enumerate(data.decode("utf-8").split("\n"), 1) if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as lines of JSON, plain or gzip ({first_line(error)})") from error
    if not found:
        raise InputError(f"{path}: found no question, expected one JSON line for each")
    yield from found


def _parse(line: str, where: str, number: int) -> Recorded:
    try:
        data = parse_json(line, "any")
    except ValueError as error:
        raise InputError(f"{where}: no JSON ({first_line(error)})") from error
    given = data.get("ans") if isinstance(data, dict) else None
    if not isinstance(given, list) or not given:
        raise InputError(f"{where}: found no list 'ans' of at least one answer, which every question of a log has")
    k = len(given)
    answers = tuple(None if a is None or str(a) == "" else str(a) for a in given)
    marked = data.get("ok")
    if marked is not None and (not isinstance(marked, list) or len(marked) != k):
        raise InputError(f"{where}: 'ok' has no {k} entries as 'ans' has; give one for each answer, or leave it out")
    gold = data.get("gold")
    correct: tuple[float, ...] | None = None
    if marked is not None:
        correct = tuple(float(bool(v)) for v in marked)
    elif gold is not None:
        correct = tuple(float(a is not None and a == str(gold)) for a in answers)
    columns = {n: v for n, v in data.items() if n not in _OWN and isinstance(v, list) and len(v) == k}
    return Recorded(str(data.get("pid", number - 1)), gold, answers, correct, columns)


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # a whole number beyond all floats
        return math.nan
