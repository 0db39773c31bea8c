"""What is not known about a target's energy: coefficients with a range, and the target with one of them changed.

An energy that nobody published is a range. A plan is chosen with the values; `uncertain` lists what could be otherwise
and `vary` gives the target in which it is, so that a caller can plan again and say whether the choice holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from qeil_compile.errors import TargetError

from .profile import Coefficient, Target, flat
from .reader import did_you_mean

#: The fields of a device that energy depends on; in `thermal`, what the leakage at a load depends on.
_DEVICE = (
    "energy_per_flop.",
    "energy_per_byte",
    "power_const",
    "power_idle",
    "thermal.leakage",
    "thermal.slope",
    "thermal.resistance",
)
_LINK = ("energy_per_byte",)

_T = TypeVar("_T")


def uncertain(target: Target) -> tuple[tuple[str, str, Coefficient], ...]:
    """Every energy coefficient that has a range, as (device, field, coefficient), in the order of the profile.

    Fields inside a table are dotted: `energy_per_flop.fp16`, `thermal.slope`. A link is named by its ends, `cpu - gpu`.
    Ranges of no width are left out.
    """
    devices = [(d.name, f, c) for d in target.devices for f, c in flat(d) if f.startswith(_DEVICE) and _wide(c)]
    links = [(x.title, f, c) for x in target.links for f, c in flat(x) if f.startswith(_LINK) and _wide(c)]
    return (*devices, *links)


def vary(target: Target, device: str, field: str, value: float) -> Target:
    """The target with one coefficient of a device (or link, `cpu - gpu`) set to `value`, in the coefficient's unit.

    The range is widened where it does not hold the value. Raises `TargetError` for a device or field that is not there.
    """
    for d in target.devices:
        if d.name == device:
            devices = tuple(_put(x, field, value, device) if x is d else x for x in target.devices)
            return replace(target, devices=devices)
    for link in target.links:
        if link.title == device:
            return replace(target, links=tuple(_put(x, field, value, device) if x is link else x for x in target.links))
    known = [*(d.name for d in target.devices), *(x.title for x in target.links)]
    hint = did_you_mean(device, known)
    raise TargetError(f"target {target.name}: found no device {device!r}, expected one of {', '.join(known)}{hint}")


def vary_all(target: Target, share: float) -> Target:
    """The target with every uncertain coefficient moved at once: 0 is its value, -1 and 1 are the ends of its range."""
    moved = target
    for device, field, c in uncertain(target):
        end = float((c.high if share > 0 else c.low) or 0.0)
        moved = vary(moved, device, field, c.value + abs(share) * (end - c.value))
    return moved


def _wide(c: Coefficient) -> bool:
    return c.low is not None and c.high is not None and c.low < c.high


def _put(owner: _T, field: str, value: float, name: str) -> _T:
    """`owner` with the coefficient at the dotted `field` set."""
    known = dict(flat(owner))
    if field not in known:
        hint = did_you_mean(field, known)
        raise TargetError(f"device {name}: found no coefficient {field!r}, expected one of {', '.join(known)}{hint}")
    changed: _T = _with(owner, field.split("."), _moved(known[field], value))
    return changed


def _moved(c: Coefficient, value: float) -> Coefficient:
    low = None if c.low is None else min(c.low, value)
    high = None if c.high is None else max(c.high, value)
    return replace(c, value=value, low=low, high=high)


def _with(owner: Any, path: list[str], coefficient: Coefficient) -> Any:
    if not path:
        return coefficient
    head, rest = path[0], path[1:]
    if isinstance(owner, Mapping):
        return {**owner, head: _with(owner[head], rest, coefficient)}
    return replace(owner, **{head: _with(getattr(owner, head), rest, coefficient)})
