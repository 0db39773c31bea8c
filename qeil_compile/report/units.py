"""Figures as text, in the units that tables and axes use."""

from __future__ import annotations

from math import isfinite

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"),
             (1e-9, "n"))  # fmt: skip
#: More than any time, energy, rate or amount of work of a machine. An artifact may come from anyone.
_ABSURD = 1e24


def ms(seconds: float) -> str:
    """Milliseconds."""
    return f"{seconds * 1e3:.4f}"


def mj(joules: float) -> str:
    """Millijoules."""
    return f"{joules * 1e3:.4f}"


def us(seconds: float) -> str:
    """Microseconds."""
    return f"{seconds * 1e6:.2f}"


def si(value: float, unit: str) -> str:
    """Three digits with a prefix: `1.23 TFLOP/s`."""
    if not value or not isfinite(value):
        return f"{value:g} {unit}"
    factor, prefix = next(((f, p) for f, p in _PREFIXES if abs(value) >= f * 0.9995), _PREFIXES[-1])
    return f"{value / factor:.3g} {prefix}{unit}"


def scale(most: float, unit: str) -> tuple[float, str]:
    """Factor and unit of an axis that reaches from 0 to `most` in units of SI."""
    factor, prefix = next(((f, p) for f, p in _PREFIXES if most >= f), _PREFIXES[-1])
    return 1 / factor, prefix + unit


def sane(*values: float) -> bool:
    """Whether all values have a place on an axis: numbers from 0 to what no machine reaches."""
    return all(0 <= v < _ABSURD for v in values)
