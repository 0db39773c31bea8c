"""What a device can do and what it costs: profiles, links and targets.

Units are SI throughout: FLOP/s (a multiply-add counts 2), B/s, B, s, W, J/FLOP, J/B; temperatures in
degrees Celsius; efficiencies are shares in (0, 1] of a roof. Every number is a `Coefficient`: it carries its
unit, its source and, where one is known, the range in which it lies. `assumed` marks a number that nobody
published and nobody measured here: a guess with reasons, given in `source`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, Literal

from qeil_compile.errors import TargetError

Kind = Literal["cpu", "gpu", "npu"]

#: The operator graph's dtype names -> the short names that profiles use.
SHORT_DTYPE: Mapping[str, str] = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8",
    "float8_e4m3fnuz": "fp8",
    "float8_e5m2": "fp8",
    "float8_e5m2fnuz": "fp8",
    "float8_e8m0fnu": "fp8",
    "float4_e2m1fn": "fp4",
    "int8": "int8",
    "uint8": "int8",
    "int4": "int4",
    "uint4": "int4",
    "int2": "int4",
    "uint2": "int4",
}
#: Dtypes for which a profile may give a rate.
PROFILE_DTYPES = ("fp64", "fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4")
#: Every profile gives at least one of these, so that each dtype ends at a rate.
FLOAT_DTYPES = ("fp32", "fp16", "bf16")

#: Where a device has no unit of its own for a dtype, the first of these that it has does the work. Narrow
#: types are widened (an engine converts them on the way in). fp32 goes to fp16 on a device without fp32:
#: that is how an NPU runs it. fp64 goes to fp32, which is optimistic, but models hardly
#: use it.
FALLBACK: Mapping[str, tuple[str, ...]] = {
    "fp64": ("fp32", "fp16", "bf16"),
    "fp32": ("fp16", "bf16"),
    "bf16": ("fp32", "fp16"),
    "fp16": ("fp32", "bf16"),
    "fp8": ("fp16", "bf16", "fp32"),
    "fp4": ("fp8", "fp16", "bf16", "fp32"),
    "int8": ("fp16", "fp32", "bf16"),
    "int4": ("int8", "fp16", "fp32", "bf16"),
}
#: Everything else (index arithmetic, booleans, complex) is priced at the plain vector rate.
OTHER_DTYPES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A number with its unit and its source; `low` and `high` bound it where a range is known."""

    value: float
    unit: str
    source: str
    low: float | None = None
    high: float | None = None
    assumed: bool = False

    def as_text(self, sources: bool = False) -> str:
        """`3.76e+12 FLOP/s (1.79e+12 to 3.76e+12, assumed)`, with the source if asked."""
        span = "" if self.low is None or self.high is None else f"{self.low:.4g} to {self.high:.4g}"
        notes = ", ".join(n for n in (span, "assumed" if self.assumed else "") if n)
        unit = "" if self.unit == "1" else f" {self.unit}"
        return (
            f"{self.value:.4g}{unit}{f' ({notes})' if notes else ''}{f' [{self.source}]' if sources else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """The form that profiles use in TOML: bounds only where they are known."""
        data: dict[str, Any] = {"value": self.value, "unit": self.unit, "source": self.source}
        data |= {k: v for k, v in (("low", self.low), ("high", self.high)) if v is not None}
        return data | ({"assumed": True} if self.assumed else {})


@dataclass(frozen=True)
class Thermal:
    """How hot a device gets, and what it leaks then.

    `leakage` [W] is the sub-threshold leakage at the temperature `reference` [C]; `slope` [K] is a in
    `exp(a (1/T0 - 1/T))`; `resistance` [K/W] and `time_constant` [s] (R x C) describe the way from the die to the
    `ambient` [C].
    """

    leakage: Coefficient
    reference: Coefficient
    slope: Coefficient
    resistance: Coefficient
    time_constant: Coefficient
    ambient: Coefficient


@dataclass(frozen=True)
class Efficiency:
    """Attained share of the compute and of the memory roof by one kind of operator."""

    compute: Coefficient
    memory: Coefficient


@dataclass(frozen=True)
class DeviceProfile:
    """One physical device.

    `engines` are the placements that drive it, as `engine:DEVICE`. Devices with the same `pool` share one
    memory: its capacity (`memory_bytes` is the pool's) and no copy between them. `power_const` [W] is drawn
    while the device works, whatever it does; `power_idle` [W] while it waits; `tdp` [W] is the
    limit that it sustains. `efficiency_compute` and `efficiency_memory` are the shares of the roofs that kernels
    attain; `efficiencies` replaces them for single kinds of operators (`passes.count.Kind`). `thermal` is None
    where nothing is known: Phi is 1 then, and the report says so. `units` counts what a kernel is spread over
    (streaming multiprocessors, cores), `cache_bytes` the last-level cache. A device that `may_spill` streams
    what does not fit its memory over the link from the host. `process` names the semiconductor process.
    """

    name: str
    kind: Kind
    title: str
    engines: tuple[str, ...]
    pool: str
    peak_flops: Mapping[str, Coefficient]
    energy_per_flop: Mapping[str, Coefficient]
    memory_bandwidth: Coefficient
    memory_bytes: Coefficient
    launch_seconds: Coefficient
    power_const: Coefficient
    power_idle: Coefficient
    tdp: Coefficient
    energy_per_byte: Coefficient
    t_max: Coefficient
    efficiency_compute: Coefficient
    efficiency_memory: Coefficient
    efficiencies: Mapping[str, Efficiency] = field(default_factory=dict)
    thermal: Thermal | None = None
    units: Coefficient | None = None
    cache_bytes: Coefficient | None = None
    may_spill: bool = False
    process: str = ""

    def runs_as(self, dtype: str) -> str:
        """The dtype (short name) whose unit does the work for `dtype`; see `FALLBACK`."""
        short = SHORT_DTYPE.get(dtype, dtype)
        for name in (short, *FALLBACK.get(short, OTHER_DTYPES)):
            if name in self.peak_flops:
                return name
        raise TargetError(
            f"device {self.name}: no rate for {dtype}: found {', '.join(self.peak_flops)}, "
            f"expected one of {', '.join(FLOAT_DTYPES)}"
        )

    def flops(self, dtype: str) -> Coefficient:
        """Peak rate [FLOP/s] for an operator graph's dtype (`float32`) or a short name (`fp32`).

        A device without a unit for the dtype answers with the rate of the dtype it runs it as, and the
        source says so: a bf16 product on a plain CPU has the fp32 rate, fp32 on an NPU the fp16 rate.
        """
        return self._of(self.peak_flops, dtype)

    def energy(self, dtype: str) -> Coefficient:
        """Energy [J/FLOP] for a dtype, with the same fallback as `flops`."""
        return self._of(self.energy_per_flop, dtype)

    def _of(self, table: Mapping[str, Coefficient], dtype: str) -> Coefficient:
        short, used = SHORT_DTYPE.get(dtype, dtype), self.runs_as(dtype)
        found = table[used]
        return found if used == short else replace(found, source=f"{dtype} runs as {used}: {found.source}")

    def as_text(self, sources: bool = False) -> str:
        """One line per coefficient."""
        lines = [
            f"{self.name} ({self.kind}): {self.title}",
            f"  engines: {', '.join(self.engines)}",
            f"  pool: {self.pool}",
        ]
        return "\n".join([*lines, *(f"  {name}: {c.as_text(sources)}" for name, c in flat(self))])

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form, of the same shape as a `[[device]]` table in TOML."""
        values = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {k: v for k, v in values.items() if v not in (None, "", {}, False)}


@dataclass(frozen=True)
class Link:
    """A road between two devices, both ways: `bandwidth` [B/s], `latency` [s], `energy_per_byte` [J/B]."""

    a: str
    b: str
    bandwidth: Coefficient
    latency: Coefficient
    energy_per_byte: Coefficient

    def seconds(self, nbytes: float) -> float:
        """Time of one transfer; an engine boundary (`engines.boundary_seconds`) comes on top."""
        return self.latency.value + nbytes / self.bandwidth.value

    def joules(self, nbytes: float) -> float:
        """Energy of one transfer."""
        return nbytes * self.energy_per_byte.value

    @property
    def title(self) -> str:
        """The two ends, `cpu - gpu`."""
        return f"{self.a} - {self.b}"

    def as_text(self, sources: bool = False) -> str:
        """One line per coefficient."""
        return "\n".join([self.title, *(f"  {n}: {c.as_text(sources)}" for n, c in flat(self))])

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form, of the same shape as a `[[link]]` table in TOML."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Placement:
    """An engine on a device: where operators can be put. `device` is the engine's own name for it."""

    engine: str
    device: str
    profile: DeviceProfile

    @property
    def spec(self) -> str:
        """`engine:device`."""
        return f"{self.engine}:{self.device}"


@dataclass(frozen=True)
class Target:
    """The devices that a plan may use. `host` is True when they are this machine's own."""

    name: str
    title: str
    devices: tuple[DeviceProfile, ...]
    links: tuple[Link, ...]
    host: bool = False

    @cached_property
    def placements(self) -> tuple[Placement, ...]:
        """Every engine on every device, in the order of the profile."""
        split = ((d, *spec.partition(":")) for d in self.devices for spec in d.engines)
        return tuple(Placement(engine, device, d) for d, engine, _, device in split)

    def device_of(self, spec: str) -> DeviceProfile:
        """The device behind `engine:DEVICE`, or with that name."""
        for d in self.devices:
            if spec == d.name or spec in d.engines:
                return d
        known = ", ".join(p.spec for p in self.placements)
        raise TargetError(f"target {self.name}: found no device {spec!r}, expected one of {known}")

    def link(self, a: str, b: str) -> Link:
        """The road between two devices (names or placements).

        A link of the two devices wins. Without one, devices that are the same or share a pool pass data
        without a copy (the boundary between engines still costs); otherwise a link between their pools
        serves, since data of an NPU in the host's memory takes the host's road to a discrete GPU.
        """
        one, two = self.device_of(a), self.device_of(b)
        for link in self.links:
            if {link.a, link.b} == {one.name, two.name}:
                return link
        if one.pool == two.pool:
            return _no_copy(one.name, two.name, one.pool)
        for link in self.links:
            if {self.device_of(link.a).pool, self.device_of(link.b).pool} == {one.pool, two.pool}:
                return replace(link, a=one.name, b=two.name)
        raise TargetError(
            f"target {self.name}: found no link between {one.name} (memory {one.pool}) and {two.name} "
            f"(memory {two.pool}), expected a [[link]] in its profile"
        )

    def as_text(self, sources: bool = False) -> str:
        """The devices and links, one line per coefficient."""
        devices, links = (d.as_text(sources) for d in self.devices), (x.as_text(sources) for x in self.links)
        return "\n\n".join([f"{self.name}: {self.title}", *devices, *links])

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form, read back by `loader.parse_target`."""
        return {
            "name": self.name,
            "title": self.title,
            "host": self.host,
            "device": [d.to_json() for d in self.devices],
            "link": [x.to_json() for x in self.links],
        }


def _no_copy(a: str, b: str, pool: str) -> Link:
    source = f"both in memory {pool}: no copy"
    return Link(
        a,
        b,
        Coefficient(inf, "B/s", source),
        Coefficient(0.0, "s", source),
        Coefficient(0.0, "J/B", source),
    )


def flat(value: Any) -> list[tuple[str, Coefficient]]:
    """Dotted name and coefficient of everything inside a device, link or table of one, in its order."""
    if isinstance(value, Coefficient):
        return [("", value)]
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif is_dataclass(value):
        inner = [(f.name, getattr(value, f.name)) for f in fields(value)]
    else:
        return []
    return [(f"{k}.{name}" if name else k, c) for k, v in inner for name, c in flat(v)]


def _plain(value: Any) -> Any:
    if isinstance(value, Coefficient):
        return value.to_json()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Thermal | Efficiency):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return list(value) if isinstance(value, tuple) else value
