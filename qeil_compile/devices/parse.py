"""From the tables of a profile file to devices, links and targets; every problem is kept, and names its field.

A device table is one of three: all fields; `use = NAME`, a device of the catalogue with the given fields changed; or
`rules = CLASS`, the given fields with the rest by the rules of `rules.toml`. The last two are compact: unit and source
may be left out (see `reader.Table`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

from .fields import (
    LINK,
    NAME,
    NAME_WITH_MODE,
    NUMBERS,
    REQUIRED,
    by_dtype,
    check_devices,
    check_rates,
    kind_of_value,
    read_efficiencies,
    read_engines,
    read_name,
    read_thermal,
)
from .modes import Mode, apply, read_modes
from .profile import Coefficient, DeviceProfile, Kind, Link, Target
from .reader import Problems, Table
from .rules import Rules

_TEXTS = ("name", "kind", "title", "engines", "pool")
_EVERY = (*_TEXTS, "peak_flops", "energy_per_flop", *NUMBERS, "efficiencies", "thermal", "may_spill", "process")
_COMPACT = ("use", "rules", "memory", "package_tdp", "source", "mode")

#: The devices that `use` may name.
Catalogue = Callable[[str], "Parsed | None"]


@dataclass(frozen=True)
class Parsed:
    """A device and the power modes that it has."""

    device: DeviceProfile
    modes: tuple[Mode, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What a file describes: a target without a mode, and the modes of each of its devices, in order.

    A file of one device may say what drivers call it (`known_as`).
    """

    target: Target
    modes: tuple[tuple[Mode, ...], ...] = ()
    known_as: tuple[str, ...] = ()

    @property
    def mode_names(self) -> tuple[str, ...]:
        """Names of the power modes that at least one device has, in the order of the file."""
        return tuple(dict.fromkeys(m.name for modes in self.modes for m in modes))

    def at(self, mode: str, voltage: Sequence[tuple[float, float]]) -> Target:
        """The target in a power mode: each device that has a mode of that name is in it."""
        devices = list(self.target.devices)
        for i, modes in enumerate(self.modes):
            for m in modes:
                if m.name == mode:
                    devices[i] = apply(devices[i], m, voltage)
        return replace(self.target, name=f"{self.target.name}@{mode}", devices=tuple(devices))


def parse_file(top: Table, problems: Problems, rules: Rules, catalogue: Catalogue) -> Machine | None:
    """The machine of a file, which holds a target, or one device at the top level; None after a problem."""
    reader = _Reader(problems, rules, catalogue)
    return reader.single(top) if "kind" in top.data and "device" not in top.data else reader.target(top)


class _Reader:
    """Reads one file; problems go on a list and leave None."""

    def __init__(self, problems: Problems, rules: Rules, catalogue: Catalogue) -> None:
        self.problems, self.rules, self.catalogue = problems, rules, catalogue
        self.attempt = problems.attempt

    def single(self, top: Table) -> Machine | None:
        """A device of the catalogue as a target of its own; the device is named by its kind."""
        if "use" in top.data:
            self.problems.append(top.error("use", top.data["use"], "no such key in a file of one device"))
            return None
        known_as = self.attempt(lambda: top.texts("known_as")) if "known_as" in top.data else ()
        parsed = self.device(top)
        if parsed is None or known_as is None or self.attempt(lambda: read_name(top, NAME)) is None:
            return None
        device = replace(parsed.device, name=parsed.device.kind)
        return Machine(Target(parsed.device.name, device.title, (device,), ()), (parsed.modes,), known_as)

    def target(self, top: Table) -> Machine | None:
        """Devices and links under a name."""
        name, title = self.attempt(lambda: read_name(top, NAME_WITH_MODE)), self.attempt(lambda: top.text("title"))
        host = self.attempt(lambda: top.flag("host"))
        device_tables = self.attempt(lambda: top.tables("device", required=True)) or []
        link_tables = self.attempt(lambda: top.tables("link", required=False)) or []
        self.attempt(lambda: top.close(("host", "link")))
        read = [(self.device(t), t) for t in device_tables]
        found = [(p, t) for p, t in read if p is not None]
        self.attempt(lambda: check_devices([p.device for p, _ in found], [t for _, t in found]))
        names = [p.device.name if p else str(t.data.get("name", "")) for p, t in read]
        links = [self.link(t, names) for t in link_tables]
        if self.problems or name is None or title is None:
            return None
        target = Target(
            name, title, tuple(p.device for p, _ in found), tuple(x for x in links if x is not None), bool(host)
        )
        return Machine(target, tuple(p.modes for p, _ in found))

    def device(self, t: Table) -> Parsed | None:
        """A device table in one of its three forms; None after a problem."""
        before = len(self.problems)
        short = self.attempt(lambda: self._short_form(t)) or {}
        given = self._given(t)
        compact = "use" in t.data or "rules" in t.data
        if not compact:
            for key in (*_TEXTS, "peak_flops", "energy_per_flop", *REQUIRED):
                if key not in t.data:
                    self.attempt(partial(t.get, key, kind_of_value(key)))
        modes = self.attempt(lambda: read_modes(t)) if compact else ()
        self.attempt(lambda: t.close((*_EVERY, *_COMPACT) if compact else _EVERY))
        if len(self.problems) > before or modes is None:
            return None
        return self.attempt(lambda: self._build(t, short, given, modes))

    def _short_form(self, t: Table) -> dict[str, Any]:
        """`use` with the device that it names, or `rules` with the class and the memory type."""
        if "use" in t.data:
            used = self.catalogue(t.text("use"))
            if used is None:
                raise t.error("use", t.data["use"], "a device of the catalogue (`qeil devices list --devices`)")
            t.source = t.text("source") if "source" in t.data else ""
            return {"use": used}
        if "rules" in t.data:
            t.source = t.text("source")
            return {"rules": t.choice("rules", self.rules.classes), "memory": t.choice("memory", self.rules.memories)}
        return {}

    def _given(self, t: Table) -> dict[str, Any]:
        """The fields that the table gives; problems are kept."""
        readers: dict[str, Callable[[], Any]] = {
            "name": partial(read_name, t, NAME),
            "kind": partial(t.choice, "kind", get_args(Kind)),
            "title": partial(t.text, "title"),
            "engines": partial(read_engines, t),
            "pool": partial(t.text, "pool"),
            "peak_flops": partial(by_dtype, t, "peak_flops", "FLOP/s"),
            "energy_per_flop": partial(by_dtype, t, "energy_per_flop", "J/FLOP"),
            **{k: partial(t.coefficient, k, s.unit, positive=s.positive, share=s.share) for k, s in NUMBERS.items()},
            "efficiencies": partial(read_efficiencies, t),
            "thermal": partial(read_thermal, t),
            "may_spill": partial(t.flag, "may_spill"),
            "process": partial(t.text, "process"),
        }
        return {k: self.attempt(read) for k, read in readers.items() if k in t.data}

    def _build(self, t: Table, short: Mapping[str, Any], given: dict[str, Any], modes: tuple[Mode, ...]) -> Parsed:
        if "use" in short:
            used: Parsed = short["use"]
            merged: dict[str, Any] = {
                k: {**getattr(used.device, k), **v} if isinstance(v, Mapping) else v for k, v in given.items()
            }
            device = replace(used.device, **merged)
            own = {m.name for m in modes}
            modes = (*(m for m in used.modes if m.name not in own), *modes)
        elif "rules" in short:
            given.setdefault("name", given.get("kind", ""))
            device = self.rules.fill(t, given, short["rules"], short["memory"])
        else:
            device = DeviceProfile(**given)
        check_rates(device, t)
        return Parsed(device, modes)

    def link(self, t: Table, devices: list[str]) -> Link | None:
        """A link; with `rules`, what it does not give comes from there."""
        before = len(self.problems)
        defaults = (self.attempt(lambda: self._link_rules(t)) if "rules" in t.data else None) or {}
        a, b = self.attempt(lambda: t.choice("a", devices)), self.attempt(lambda: t.choice("b", devices))
        numbers: dict[str, Any] = {k: v for k, v in defaults.items() if k not in t.data}
        for key, s in LINK.items():
            if key not in numbers:
                numbers[key] = self.attempt(partial(t.coefficient, key, s.unit, positive=s.positive))
        self.attempt(t.close)
        if len(self.problems) > before or a is None or b is None:
            return None
        if a == b:
            self.problems.append(t.error("b", b, "another device than a"))
            return None
        return Link(a, b, **numbers)

    def _link_rules(self, t: Table) -> Mapping[str, Coefficient]:
        kind = t.choice("rules", self.rules.links)
        t.source = t.text("source")
        return self.rules.links[kind]
