"""The rules for what no source gives: few, physical, and written down once (`profiles/rules.toml`).

Each result is `assumed`, carries a range, and its source begins with `derived:` or tells the class it is taken from.
With tdp the rated power, h the share of t_max that the cooler holds at it, and R = (h t_max - ambient) / tdp:

- power_idle = idle share x tdp; power_const = const share x tdp, never below power_idle;
- leakage at h t_max = leakage share x tdp; its slope by process (see `Thermal`);
- energy_per_flop = (tdp - power_const - leakage) / peak: full load at the peak rate and at h t_max draws tdp;
- energy_per_byte by type of memory, at most (tdp - power_const) / bandwidth.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from .engines import PROFILES
from .profile import Coefficient, DeviceProfile, Thermal
from .reader import Table

_SHARES = {"const_share": "1", "idle_share": "1", "efficiency_compute": "1", "efficiency_memory": "1"}
_CLASS = {**_SHARES, "launch_seconds": "s", "t_max": "C", "ambient": "C"}
#: What a table with `rules` has to give.
NEEDED = ("kind", "title", "engines", "peak_flops", "memory_bandwidth", "memory_bytes", "tdp")


@dataclass(frozen=True)
class Rules:
    """The numbers of rules.toml. `leakages` gives share of tdp and slope [K] by process."""

    classes: Mapping[str, Mapping[str, Coefficient]]
    memories: Mapping[str, Coefficient]
    leakages: Mapping[str, tuple[Coefficient, Coefficient]]
    links: Mapping[str, Mapping[str, Coefficient]]
    energy: Coefficient
    headroom: Coefficient
    time_constant: Coefficient
    voltage: tuple[tuple[float, float], ...]

    def fill(self, t: Table, given: Mapping[str, Any], kind: str, memory: str) -> DeviceProfile:
        """A device of class `kind` with `memory` from the fields of its table that are `given`."""
        for key in NEEDED:
            if key not in given:
                t.get(key, "a value, which the rules start from")
        f, own = dict(given), self.classes[kind]
        for key in ("launch_seconds", "t_max", "efficiency_compute", "efficiency_memory"):
            f.setdefault(key, own[key])
        tdp: Coefficient = f["tdp"]
        f.setdefault("pool", memory)
        f.setdefault("power_idle", _share(own["idle_share"], tdp, "W"))
        f.setdefault("power_const", _at_least(_share(own["const_share"], tdp, "W"), f["power_idle"]))
        room = tdp.value - f["power_const"].value
        if f.get("process") in self.leakages:
            package = t.coefficient("package_tdp", "W", positive=True) if "package_tdp" in t.data else tdp
            f.setdefault("thermal", self._thermal(f["process"], tdp, package, f["t_max"], own["ambient"]))
        f.setdefault("energy_per_byte", _at_most(self.memories[memory], room / f["memory_bandwidth"].value))
        leakage = f["thermal"].leakage.value if f.get("thermal") else 0.0
        if room <= leakage:
            raise t.error("tdp", tdp.value, f"more than power_const and leakage, {tdp.value - room + leakage:.3g} W")
        energies = {d: self._energy(room - leakage, peak) for d, peak in f["peak_flops"].items()}
        f["energy_per_flop"] = {**energies, **f.get("energy_per_flop", {})}
        return DeviceProfile(**f)

    def _energy(self, watts: float, peak: Coefficient) -> Coefficient:
        value, spread = watts / peak.value, self.energy
        source = f"derived: (tdp - power_const - leakage) / peak_flops = {watts:.4g} W / {peak.value:.4g} FLOP/s"
        low, high = value * (spread.low or 1), value * (spread.high or 1)
        return _assumed(value, "J/FLOP", f"{source}; {spread.source}", low, high)

    def _thermal(
        self, process: str, tdp: Coefficient, package: Coefficient, t_max: Coefficient, ambient: Coefficient
    ) -> Thermal:
        share, slope = self.leakages[process]
        h = self.headroom
        rise = [h_ * t_max.value - ambient.value for h_ in (h.value, h.low or h.value, h.high or h.value)]
        text = f"derived: ({h.value:g} t_max - ambient) / {package.value:g} W; {h.source}"
        hot = "derived: where the cooler holds the rated power, share of t_max as in resistance"
        return Thermal(
            leakage=_share(share, tdp, "W"),
            reference=_assumed(h.value * t_max.value, "C", hot, h.value * t_max.value, t_max.value),
            slope=slope,
            resistance=_assumed(rise[0] / package.value, "K/W", text, rise[1] / package.value, rise[2] / package.value),
            time_constant=self.time_constant,
            ambient=ambient,
        )


@cache
def shipped_rules() -> Rules:
    """The shipped rules."""
    return parse_rules(tomllib.loads(files(PROFILES).joinpath("rules.toml").read_text("utf-8")), "rules.toml")


def parse_rules(data: Mapping[str, Any], file: str) -> Rules:
    """Check and build rules. Raises `TargetError`."""
    top = Table(file, "", data)
    classes, memories, links = top.table("class"), top.table("memory"), top.table("link")
    one = top.table("all")
    rules = Rules(
        classes={name: _row(classes.table(name), _CLASS) for name in classes.data},
        memories={name: _guess(memories, name, "J/B") for name in memories.data},
        leakages=_leakages(top.table("leakage")),
        links={name: _row(links.table(name), {"latency": "s", "energy_per_byte": "J/B"}) for name in links.data},
        energy=_guess(one, "energy_spread", "1"),
        headroom=_guess(one, "headroom", "1"),
        time_constant=_guess(one, "time_constant", "s"),
        voltage=_points(top.table("voltage")),
    )
    top.close()
    one.close()
    return rules


def _leakages(t: Table) -> dict[str, tuple[Coefficient, Coefficient]]:
    found: dict[str, tuple[Coefficient, Coefficient]] = {}
    for name in t.data:
        inner = t.table(name)
        pair = _guess(inner, "share", "1"), _guess(inner, "slope", "K")
        found |= dict.fromkeys(inner.texts("processes"), pair)
        inner.close()
    return found


def _points(t: Table) -> tuple[tuple[float, float], ...]:
    """Pairs of a share of the clock and a share of the voltage, rising; for the shipped file only."""
    points = tuple((float(clock), float(volts)) for clock, volts in t.get("points", "a list of pairs"))
    t.text("source")
    t.close()
    return points


def _row(t: Table, units: Mapping[str, str]) -> dict[str, Coefficient]:
    row = {key: _guess(t, key, unit) for key, unit in units.items()}
    t.close()
    return row


def _guess(t: Table, key: str, unit: str) -> Coefficient:
    t.source = "rules.toml"
    return replace(t.coefficient(key, unit), assumed=True)


def _assumed(value: float, unit: str, source: str, low: float, high: float) -> Coefficient:
    return Coefficient(value, unit, source, min(low, value), max(high, value), assumed=True)


def _share(share: Coefficient, of: Coefficient, unit: str) -> Coefficient:
    low, high = (of.value * (s if s is not None else share.value) for s in (share.low, share.high))
    return _assumed(of.value * share.value, unit, f"derived: {share.value:g} x tdp; {share.source}", low, high)


def _at_least(c: Coefficient, floor: Coefficient) -> Coefficient:
    if c.value >= floor.value:
        return replace(c, low=max(c.low or 0.0, min(floor.low or floor.value, c.value)))
    source = f"derived: as power_idle, which goes on under load and is more than {c.value:.3g} W ({c.source})"
    low = floor.value if floor.low is None else floor.low
    return _assumed(floor.value, c.unit, source, low, max(c.high or 0.0, floor.high or 0.0))


def _at_most(c: Coefficient, top: float) -> Coefficient:
    if c.value <= top:
        return c
    source = f"derived: (tdp - power_const) / memory_bandwidth, less than {c.value:.3g} J/B ({c.source})"
    return _assumed(top, c.unit, source, c.low or top, top)
