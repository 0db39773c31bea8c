"""Target profiles: the shipped ones by name, a user's own by path, both strictly checked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, get_args

from qeil_compile.errors import TargetError

from .engines import PROFILES, engine_constants
from .profile import FLOAT_DTYPES, PROFILE_DTYPES, Coefficient, DeviceProfile, Efficiency, Kind, Link, Target, Thermal
from .reader import Table, did_you_mean
from .work import OperatorKind

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENGINES_FILE = "engines.toml"


def known_targets() -> list[str]:
    """Names of the shipped target profiles, sorted."""
    names = (entry.name for entry in files(PROFILES).iterdir())
    return sorted(n.removesuffix(".toml") for n in names if n.endswith(".toml") and n != _ENGINES_FILE)


def load_target(name_or_path: str) -> Target:
    """A shipped profile by name, or a profile file by path. Raises `TargetError`."""
    known = known_targets()
    if name_or_path in known:
        return _parse_text(
            files(PROFILES).joinpath(f"{name_or_path}.toml").read_bytes(), f"{name_or_path}.toml"
        )
    path = Path(name_or_path)
    try:
        return _parse_text(path.read_bytes(), name_or_path)
    except FileNotFoundError:
        raise TargetError(
            f"target {name_or_path!r}: found neither a known profile nor a file of that name, expected a "
            f".toml file or one of {', '.join(known)}{did_you_mean(path.name.removesuffix('.toml'), known)}"
        ) from None
    except (OSError, ValueError) as exc:
        raise TargetError(f"target {name_or_path!r}: cannot be read ({exc}), expected a TOML file") from exc


def _parse_text(raw: bytes, file: str) -> Target:
    try:
        data = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise TargetError(
            f"{file}: found a file that is not TOML ({exc}), expected a target profile"
        ) from exc
    return parse_target(data, file)


def parse_target(data: Mapping[str, Any], file: str) -> Target:
    """Check and build a target from a parsed profile or from `Target.to_json`; `file` is for messages."""
    top = Table(file, "", data)
    name = top.text("name")
    if not _NAME.fullmatch(name):
        raise top.error("name", name, "letters, digits, '.', '_' and '-'")
    title, host = top.text("title"), top.flag("host")
    device_tables, link_tables = top.tables("device", required=True), top.tables("link", required=False)
    top.close(("host", "link"))
    devices = tuple(_device(t) for t in device_tables)
    _check_devices(devices, device_tables)
    links = tuple(_link(t, [d.name for d in devices]) for t in link_tables)
    return Target(name, title, devices, links, host)


def _device(t: Table) -> DeviceProfile:
    name = t.text("name")
    if not _NAME.fullmatch(name):
        raise t.error("name", name, "letters, digits, '.', '_' and '-'")
    device = DeviceProfile(
        name=name,
        kind=cast(Kind, t.choice("kind", ("cpu", "gpu", "npu"))),
        title=t.text("title"),
        engines=_engines(t),
        pool=t.text("pool"),
        peak_flops=_by_dtype(t, "peak_flops", "FLOP/s"),
        energy_per_flop=_by_dtype(t, "energy_per_flop", "J/FLOP"),
        memory_bandwidth=t.coefficient("memory_bandwidth", "B/s", positive=True),
        memory_bytes=t.coefficient("memory_bytes", "B", positive=True),
        launch_seconds=t.coefficient("launch_seconds", "s"),
        power_const=t.coefficient("power_const", "W"),
        power_idle=t.coefficient("power_idle", "W"),
        tdp=t.coefficient("tdp", "W", positive=True),
        energy_per_byte=t.coefficient("energy_per_byte", "J/B"),
        t_max=t.coefficient("t_max", "C", positive=True),
        efficiency_compute=t.coefficient("efficiency_compute", "1", share=True),
        efficiency_memory=t.coefficient("efficiency_memory", "1", share=True),
        efficiencies=_efficiencies(t),
        thermal=_thermal(t.table("thermal")) if "thermal" in t.data else None,
        units=t.coefficient("units", "1", positive=True) if "units" in t.data else None,
        cache_bytes=t.coefficient("cache_bytes", "B", positive=True) if "cache_bytes" in t.data else None,
        may_spill=t.flag("may_spill"),
        process=t.text("process") if "process" in t.data else "",
    )
    t.close(("efficiencies", "thermal", "units", "cache_bytes", "process"))
    if set(device.energy_per_flop) != set(device.peak_flops):
        raise t.error("energy_per_flop", ", ".join(device.energy_per_flop), f"{', '.join(device.peak_flops)}")
    if not set(FLOAT_DTYPES) & set(device.peak_flops):
        raise t.error(
            "peak_flops", ", ".join(device.peak_flops), f"at least one of {', '.join(FLOAT_DTYPES)}"
        )
    return device


def _efficiencies(t: Table) -> dict[str, Efficiency]:
    if "efficiencies" not in t.data:
        return {}
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


def _thermal(t: Table) -> Thermal:
    found = Thermal(
        leakage=t.coefficient("leakage", "W"),
        reference=t.coefficient("reference", "C"),
        slope=t.coefficient("slope", "K"),
        resistance=t.coefficient("resistance", "K/W", positive=True),
        time_constant=t.coefficient("time_constant", "s", positive=True),
        ambient=t.coefficient("ambient", "C"),
    )
    t.close()
    return found


def _engines(t: Table) -> tuple[str, ...]:
    specs, known = t.texts("engines"), engine_constants()
    for spec in specs:
        engine, _, device = spec.partition(":")
        if not device:
            raise t.error("engines", spec, "engine:DEVICE, such as openvino:NPU")
        if engine not in known:
            raise t.error("engines", spec, f"an engine of {', '.join(known)}{did_you_mean(engine, known)}")
    return specs


def _by_dtype(t: Table, key: str, unit: str) -> dict[str, Coefficient]:
    inner = t.table(key)
    found = {d: inner.coefficient(d, unit, positive=True) for d in PROFILE_DTYPES if d in inner.data}
    inner.close(PROFILE_DTYPES)
    if not found:
        raise t.error(key, "an empty table", f"at least one of {', '.join(PROFILE_DTYPES)}")
    return found


def _check_devices(devices: Iterable[DeviceProfile], tables: Iterable[Table]) -> None:
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


def _link(t: Table, devices: list[str]) -> Link:
    link = Link(
        a=t.choice("a", devices),
        b=t.choice("b", devices),
        bandwidth=t.coefficient("bandwidth", "B/s", positive=True),
        latency=t.coefficient("latency", "s"),
        energy_per_byte=t.coefficient("energy_per_byte", "J/B"),
    )
    t.close()
    if link.a == link.b:
        raise t.error("b", link.b, "another device than a")
    return link
