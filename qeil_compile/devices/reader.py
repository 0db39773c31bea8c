"""Strict reading of TOML tables: messages name the file, the field, what was found and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any, TypeVar

from qeil_compile.errors import TargetError

from .profile import Coefficient


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


_T = TypeVar("_T")


class Problems(list[TargetError]):
    """What is wrong with a file, in the order of reading: a person mends all of it at once."""

    def attempt(self, read: Callable[[], _T]) -> _T | None:
        """What `read` returns; None after a problem, which is kept."""
        try:
            return read()
        except TargetError as exc:
            self.append(exc)
            return None


class Table:
    """A TOML table that knows its file and path, and which of its keys were read.

    `source` is set for a compact table, in which a coefficient may leave out its unit: it is the default source, with
    which a bare number is a coefficient, or empty.
    """

    def __init__(self, file: str, path: str, data: Any, source: str | None = None) -> None:
        self.file, self.path, self.source = file, path, source
        if not isinstance(data, Mapping):
            raise self.error("", data, "a table")
        self.data: Mapping[str, Any] = data
        self._read: list[str] = []

    def field(self, key: str) -> str:
        """Full name of a field of this table."""
        return ".".join(p for p in (self.path, key) if p) or "the whole file"

    def error(self, key: str, found: object, expected: str) -> TargetError:
        """An error about one field."""
        return TargetError(f"{self.file}: {self.field(key)}: found {_show(found)}, expected {expected}")

    def get(self, key: str, expected: str) -> Any:
        """The raw value of a key that must be there."""
        self._read.append(key)
        if key not in self.data:
            raise TargetError(f"{self.file}: {self.field(key)}: found nothing, expected {expected}")
        return self.data[key]

    def text(self, key: str) -> str:
        """A non-empty string."""
        value = self.get(key, "a text")
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, value, "a text that is not empty")
        return value

    def choice(self, key: str, known: Iterable[str]) -> str:
        """One of a few words."""
        options = list(known)
        value = self.get(key, f"one of {', '.join(options)}")
        if not isinstance(value, str) or value not in options:
            raise self.error(key, value, f"one of {', '.join(options)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, at least one, none twice."""
        expected = "a list of different texts, at least one"
        value = self.get(key, expected)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise self.error(key, value, expected)
        if len(set(value)) != len(value):
            raise self.error(key, value, expected)
        return tuple(value)

    def flag(self, key: str) -> bool:
        """A boolean that may be left out (false)."""
        self._read.append(key)
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def number(self, key: str) -> float:
        """A finite number from 0."""
        value = self.get(key, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, value, "a number")
        if abs(value) > 1e300 or not isfinite(value):
            raise self.error(key, value, "a finite number")
        if value < 0:
            raise self.error(key, value, "a number from 0")
        return float(value)

    def table(self, key: str) -> Table:
        """A nested table."""
        return Table(self.file, self.field(key), self.get(key, "a table"), self.source)

    def tables(self, key: str, required: bool) -> list[Table]:
        """A list of tables; an absent list is empty where it is not required."""
        if key not in self.data and not required:
            return []
        value = self.get(key, f"at least one [[{key}]]")
        if not isinstance(value, list) or (required and not value):
            raise self.error(key, value, f"at least one [[{key}]]")
        return [Table(self.file, f"{self.field(key)}[{i}]", v, self.source) for i, v in enumerate(value)]

    def coefficient(self, key: str, unit: str, *, positive: bool = False, share: bool = False) -> Coefficient:
        """`{ value, unit, source, low, high, assumed }` in the one unit that the field has.

        In a compact table the unit may be left out; with a default source that too, and a number alone is a value.
        """
        if self.source and isinstance(self.data.get(key), int | float):
            t = Table(self.file, self.field(key), {"value": self.number(key)}, self.source)
        else:
            t = self.table(key)
        value = t.number("value")
        source = t.text("source") if "source" in t.data or not self.source else self.source
        found = t.text("unit") if "unit" in t.data or self.source is None else unit
        if found != unit:
            raise t.error("unit", found, f"{unit!r}")
        if (positive or share) and value == 0:
            raise t.error("value", value, "a number above 0")
        if share and value > 1:
            raise t.error("value", value, "a share from 0 to 1")
        low = t.number("low") if "low" in t.data else None
        high = t.number("high") if "high" in t.data else None
        assumed = t.flag("assumed")
        t.close(("low", "high", "unit", "source"))
        if low is not None and low > value:
            raise t.error("low", low, f"at most the value, {value:g}")
        if high is not None and high < value:
            raise t.error("high", high, f"at least the value, {value:g}")
        return Coefficient(value, unit, source, low, high, assumed)

    def close(self, optional: Iterable[str] = ()) -> None:
        """Refuse keys that nobody read."""
        known = dict.fromkeys([*self._read, *optional])
        for key in self.data:
            if key not in known:
                raise TargetError(
                    f"{self.file}: {self.field(key)}: found an unknown key, expected one of "
                    f"{', '.join(known)}{did_you_mean(key, known)}"
                )


def _show(value: object) -> str:
    text = repr(value) if isinstance(value, str | float | bool) else f"{value!s:.60}"
    return text if len(text) <= 60 else text[:57] + "..."
