"""The fields of device and link tables: their units and bounds, and what is checked over several devices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, get_args

from .engines import known_engines
from .profile import FLOAT_DTYPES, PROFILE_DTYPES, Coefficient, DeviceProfile, Efficiency, Thermal
from .reader import Table, did_you_mean
from .work import OperatorKind

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Of a target that was read back: it carries the power mode that it stands for.
NAME_WITH_MODE = re.compile(rf"{NAME.pattern}(@{NAME.pattern})?")


class Field(NamedTuple):
    """Unit and bounds of a number."""

    unit: str
    positive: bool = False
    share: bool = False


REQUIRED: Mapping[str, Field] = {
    "memory_bandwidth": Field("B/s", positive=True),
    "memory_bytes": Field("B", positive=True),
    "launch_seconds": Field("s"),
    "power_const": Field("W"),
    "power_idle": Field("W"),
    "tdp": Field("W", positive=True),
    "energy_per_byte": Field("J/B"),
    "t_max": Field("C", positive=True),
    "efficiency_compute": Field("1", share=True),
    "efficiency_memory": Field("1", share=True),
}
OPTIONAL: Mapping[str, Field] = {
    "units": Field("1", positive=True),
    "cache_bytes": Field("B", positive=True),
}
NUMBERS: Mapping[str, Field] = {**REQUIRED, **OPTIONAL}
_THERMAL: Mapping[str, Field] = {
    "leakage": Field("W"),
    "reference": Field("C"),
    "slope": Field("K"),
    "resistance": Field("K/W", positive=True),
    "time_constant": Field("s", positive=True),
    "ambient": Field("C"),
}
LINK: Mapping[str, Field] = {
    "bandwidth": Field("B/s", positive=True),
    "latency": Field("s"),
    "energy_per_byte": Field("J/B"),
}


def read_name(t: Table, pattern: re.Pattern[str]) -> str:
    """The name of a target or device."""
    name = t.text("name")
    if not pattern.fullmatch(name):
        raise t.error("name", name, "letters, digits, '.', '_' and '-'")
    return name


def kind_of_value(key: str) -> str:
    """What a field of a device holds, in words."""
    return "a text" if key in ("kind", "title", "pool") else "a list of texts" if key == "engines" else "a table"


def read_efficiencies(t: Table) -> dict[str, Efficiency]:
    """`efficiencies`: attained shares of the roofs by kind of operator."""
    inner = t.table("efficiencies")
    found: dict[str, Efficiency] = {}
    for kind in get_args(OperatorKind):
        if kind in inner.data:
            shares = inner.table(kind)
            found[kind] = Efficiency(
                shares.coefficient("compute", "1", share=True), shares.coefficient("memory", "1", share=True)
            )
            shares.close()
    inner.close(get_args(OperatorKind))
    return found


def read_thermal(t: Table) -> Thermal:
    """`thermal`, all of it."""
    inner = t.table("thermal")
    found = Thermal(**{k: inner.coefficient(k, s.unit, positive=s.positive) for k, s in _THERMAL.items()})
    inner.close()
    return found


def read_engines(t: Table) -> tuple[str, ...]:
    """`engines`: placements of known engines."""
    specs, known = t.texts("engines"), known_engines()
    for spec in specs:
        engine, _, device = spec.partition(":")
        if not device:
            raise t.error("engines", spec, "engine:DEVICE, such as openvino:NPU")
        if engine not in known:
            raise t.error("engines", spec, f"an engine of {', '.join(known)}{did_you_mean(engine, known)}")
    return specs


def by_dtype(t: Table, key: str, unit: str) -> dict[str, Coefficient]:
    """A table of one number per dtype, at least one."""
    inner = t.table(key)
    found = {d: inner.coefficient(d, unit, positive=True) for d in PROFILE_DTYPES if d in inner.data}
    inner.close(PROFILE_DTYPES)
    if not found:
        raise t.error(key, "an empty table", f"at least one of {', '.join(PROFILE_DTYPES)}")
    return found


def check_rates(device: DeviceProfile, t: Table) -> None:
    """Every rate has an energy, and a float type is among them."""
    if set(device.energy_per_flop) != set(device.peak_flops):
        raise t.error("energy_per_flop", ", ".join(device.energy_per_flop), f"{', '.join(device.peak_flops)}")
    if not set(FLOAT_DTYPES) & set(device.peak_flops):
        raise t.error("peak_flops", ", ".join(device.peak_flops), f"at least one of {', '.join(FLOAT_DTYPES)}")


def check_devices(devices: Iterable[DeviceProfile], tables: Iterable[Table]) -> None:
    """Names and placements are unique, and a pool has one capacity."""
    names: dict[str, DeviceProfile] = {}
    owners: dict[str, str] = {}
    pools: dict[str, DeviceProfile] = {}
    for d, t in zip(devices, tables, strict=True):
        if d.name in names:
            raise t.error("name", d.name, "a name that no other device has")
        names[d.name] = d
        for spec in d.engines:
            if spec in owners:
                raise t.error("engines", spec, f"a placement that {owners[spec]} does not have already")
            owners[spec] = d.name
        first = pools.setdefault(d.pool, d)
        if first.memory_bytes.value != d.memory_bytes.value:
            raise t.error(
                "memory_bytes",
                d.memory_bytes.value,
                f"{first.memory_bytes.value:g}, as {first.name} has, which shares pool {d.pool}",
            )
