"""What an engine itself costs: seconds per kernel, per call of a stage, and per boundary between stages.

These come on top of a device's own `launch_seconds`. The constants were taken on one CPU; they differ
between machines by small factors, and calibration replaces them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files

from qeil_compile.errors import TargetError

from .profile import Coefficient
from .reader import Table, did_you_mean

#: The package that holds the shipped profiles.
PROFILES = "qeil_compile.devices.profiles"
#: Where other packages register their engines. Only their names are read here.
GROUP = "qeil_compile.backends"
#: The table of engines.toml for those engines.
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class EngineConstants:
    """One engine's overheads [s].

    `boundary_inside` is paid between neighbouring stages of this engine, which are lowered together;
    `boundary_outside` between two separate calls, which is how it meets another engine.
    """

    name: str
    kernel_seconds: Coefficient
    stage_seconds: Coefficient
    boundary_inside: Coefficient
    boundary_outside: Coefficient


def engine_constants() -> Mapping[str, EngineConstants]:
    """The shipped constants, by engine."""
    return {n: c for n, c in _shipped().items() if n != _OTHER}


@cache
def known_engines() -> tuple[str, ...]:
    """Names of the shipped engines and of those that other packages registered, imported or not."""
    return tuple(dict.fromkeys((*engine_constants(), *(p.name for p in entry_points(group=GROUP)))))


def constants_of(engine: str) -> EngineConstants:
    """An engine's constants; those of another package's engine are assumed. Raises `TargetError` for an unknown one."""
    shipped, known = engine_constants(), known_engines()
    if engine in shipped:
        return shipped[engine]
    if engine not in known:
        raise TargetError(
            f"engine {engine!r}: unknown, expected one of {', '.join(known)}{did_you_mean(engine, known)}"
        )
    return replace(_shipped()[_OTHER], name=engine)


@cache
def _shipped() -> Mapping[str, EngineConstants]:
    return _parse_engines(files(PROFILES).joinpath("engines.toml").read_text("utf-8"), "engines.toml")


@cache
def _parse_engines(text: str, file: str) -> Mapping[str, EngineConstants]:
    top = Table(file, "", tomllib.loads(text))
    found: dict[str, EngineConstants] = {}
    for name in top.data:
        t = top.table(name)
        found[name] = EngineConstants(
            name,
            t.coefficient("kernel_seconds", "s"),
            t.coefficient("stage_seconds", "s"),
            t.coefficient("boundary_inside", "s"),
            t.coefficient("boundary_outside", "s"),
        )
        t.close()
    return found


def boundary_seconds(engine_a: str, engine_b: str) -> Coefficient:
    """Seconds [s] that one boundary from a stage of `engine_a` to one of `engine_b` costs, copies apart.

    Between two engines: the sum of each one's boundary between separate calls. Half of each would be the calls
    alone; measured pairs (benchmarks/boundary.py) lie near the whole sum, because each engine finds the cores and
    caches as the other left them.
    """
    a, b = constants_of(engine_a), constants_of(engine_b)
    if engine_a == engine_b:
        return a.boundary_inside
    x, y = a.boundary_outside, b.boundary_outside
    bounded = None not in (x.low, x.high, y.low, y.high)
    return Coefficient(
        x.value + y.value,
        "s",
        f"sum of each engine's own boundary: {a.name} ({x.source}) and {b.name} ({y.source})",
        max(x.low or 0.0, y.low or 0.0) if bounded else None,
        (x.high or 0.0) + (y.high or 0.0) if bounded else None,
        assumed=True,
    )
