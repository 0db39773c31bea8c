"""Reading what a stranger may have made: regular files of bounded size, and JSON that has one meaning only."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal

Numbers = Literal["finite", "infinite", "any"]
#: Most bytes of a JSON text. Parsed it may take thirty times as much memory.
JSON_LIMIT = 64 << 20
#: Most dimensions of a tensor (numpy's own limit), and a number of elements that none has.
RANK_LIMIT, ELEMENTS_LIMIT = 64, 1 << 48
_DEPTH = 100
#: Digits of the largest 64-bit number, and its sign.
_DIGITS = 20
_NO_MARKS = bytes(sorted(set(range(256)) - set(b'[]{}"')))
_ESCAPE, _TEXT = re.compile(rb"\\.", re.DOTALL), re.compile(rb'"[^"]*"')


def read_file(path: Path, limit: int) -> bytes:
    """All bytes of a regular file, links followed. Raises `OSError` where it is none, has more than `limit` bytes, or
    more than there is memory.

    A named pipe or a device is refused at once in place of waiting for its end.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise OSError("no regular file")
        if info.st_size > limit:
            raise OSError(f"{info.st_size} bytes, expected at most {limit}")
        try:
            # Not `limit`: room for so many bytes would be made first.
            return file.read(info.st_size)
        except MemoryError as error:
            raise OSError(f"{info.st_size} bytes, more than there is memory") from error


def parse_json(data: bytes | memoryview | str, numbers: Numbers = "finite", limit: int = JSON_LIMIT) -> Any:
    """The value of a JSON text. Raises `ValueError`, and nothing else, for anything but plain JSON.

    Refused are more than `limit` bytes, deep nesting, keys that occur twice, halves of characters, and numbers that are
    no plain JSON: infinity (also by overflow), NaN, and whole numbers of more than 64 bits. `numbers` "infinite" lets
    infinity through; "any", for files that others wrote, all of them.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else bytes(data)
    if len(raw) > limit:
        raise ValueError(f"{len(raw)} bytes of JSON, expected at most {limit}")
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_int=None if numbers == "any" else _whole,
            parse_float=_finite if numbers == "finite" else None,
            parse_constant=None if numbers == "any" else partial(_constant, numbers == "infinite"),
        )  # fmt: skip
    except RecursionError as error:
        raise ValueError(f"nested deeper than {_DEPTH}") from error
    if _is_deep(raw):
        raise ValueError(f"nested deeper than {_DEPTH}")
    if b"\\ud" in raw or b"\\uD" in raw:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def elements(dims: Sequence[int]) -> int:
    """Number of elements of a shape. Raises `ValueError` for one that no tensor has, before anything is multiplied."""
    if len(dims) > RANK_LIMIT:
        raise ValueError(f"{len(dims)} dimensions, expected at most {RANK_LIMIT}")
    found, empty = 1, False
    for d in dims:
        if type(d) is not int or not 0 <= d <= ELEMENTS_LIMIT:
            raise ValueError(f"dimension {d!r:.40}, expected a number from 0 to {ELEMENTS_LIMIT}")
        empty |= d == 0
        found *= d or 1
        if found > ELEMENTS_LIMIT:
            raise ValueError(f"shape {list(dims)!r:.80} has more than {ELEMENTS_LIMIT} elements")
    return 0 if empty else found


def _is_deep(raw: bytes) -> bool:
    """Whether a well-formed text nests too deep: what follows it walks values by recursion."""
    marks = _TEXT.sub(b"", _ESCAPE.sub(b"", raw).translate(None, _NO_MARKS))
    for _ in range(_DEPTH):
        if not marks:
            return False
        marks = marks.replace(b"[]", b"").replace(b"{}", b"")
    return bool(marks)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r:.60} occurs twice")
    return found


def _whole(text: str) -> int:
    if len(text) > _DIGITS or not -(1 << 63) <= (value := int(text)) < 1 << 64:
        raise ValueError(f"number {text[:20]} of {len(text)} digits, expected at most 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"number {text[:40]} overflows")
    return value


def _constant(infinite: bool, text: str) -> float:
    if infinite and text != "NaN":
        return float(text)
    raise ValueError(f"{text} is no number of JSON")
