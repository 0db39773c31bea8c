"""Profiles of devices that no shipped profile names, from what the system tells about them.

Peaks follow from cores, clock and vector width; energies from the assumption that the power limit is spent at
the peak rate. All of it is marked as assumed and carries wide ranges: calibration replaces it.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .cpuinfo import CpuFacts
from .modes import Mode, Voltage, apply
from .nvml import NvidiaFacts
from .profile import Coefficient, DeviceProfile
from .reader import Table
from .rules import Rules

_CALIBRATE = "run `qeil calibrate` to measure it"
#: Dense fp16 tensor rate over the fp32 vector rate, by compute capability, from NVIDIA's data-sheets:
#: V100 125/15.7, T4 65/8.1, A100 312/19.5, Orin 42.5/5.3, H100 989/66.9, B200 2250/75, L4 121/30.3.
#: GeForce parts of 8.6, 8.9 and 12.0 run at half of what the professional parts do.
_TENSOR_RATIO = {
    (7, 0): 8,
    (7, 5): 8,
    (8, 0): 16,
    (8, 6): 4,
    (8, 7): 8,
    (8, 9): 4,
    (9, 0): 15,
    (10, 0): 30,
    (12, 0): 4,
}
_GEFORCE_HALVED = {(8, 6), (8, 9), (12, 0)}


def assumed(
    value: float, unit: str, source: str, spread: float = 2.0, top: float | None = None
) -> Coefficient:
    """A guess with a range of a factor `spread` each way, at most `top`."""
    high = value * spread if top is None else min(top, value * spread)
    return Coefficient(value, unit, source, value / spread, max(value, high), assumed=True)


def cpu_rates(facts: CpuFacts) -> dict[str, float]:
    """FLOP per cycle and core by dtype: two vector multiply-add units of the widest extension."""
    has = facts.flags.__contains__
    fp32 = 64.0 if has("avx512f") else 32.0 if has("avx2") else 16.0 if has("avx") or has("asimd") else 8.0
    rates = {"fp32": fp32}
    if has("amx_bf16") or has("avx512_bf16"):
        rates["bf16"] = 1024.0 if has("amx_bf16") else 2 * fp32
    if has("avx512_fp16") or has("asimdhp"):
        rates["fp16"] = 2 * fp32
    if has("amx_int8"):
        rates["int8"] = 2048.0
    elif has("avx512_vnni") or has("avx_vnni") or has("asimddp"):
        rates["int8"] = 4 * fp32
    else:
        rates["int8"] = 2 * fp32
    return rates


def cpu_profile(name: str, facts: CpuFacts, engines: tuple[str, ...], pool: str) -> DeviceProfile:
    """This machine's processor."""
    clock = f"{facts.hertz / 1e9:.2f} GHz{'' if facts.clock_known else ' (clock not told: assumed)'}"
    rates = cpu_rates(facts)
    peak = {d: r * facts.hertz * facts.cores for d, r in rates.items()}
    per_flop = 3.6e-11
    const, idle = 2.0 * facts.cores, 0.5 * facts.cores
    return DeviceProfile(
        name=name,
        kind="cpu",
        title=f"{facts.model}, {facts.cores} cores, {facts.vector_text}",
        engines=engines,
        pool=pool,
        peak_flops={
            d: assumed(
                peak[d], "FLOP/s", f"estimated: {facts.cores} physical cores x {r:g} FLOP/cycle x {clock}"
            )
            for d, r in rates.items()
        },
        energy_per_flop={
            d: assumed(
                per_flop * rates["fp32"] / r,
                "J/FLOP",
                "36 pJ per fp32 FLOP, as CPUs at their power limit; other types by the ratio of rates",
            )
            for d, r in rates.items()
        },
        memory_bandwidth=assumed(
            min(1e11, 1.3e10 * facts.cores), "B/s", f"13 GB/s per core up to 100 GB/s; {_CALIBRATE}", 3.0
        ),
        memory_bytes=Coefficient(facts.memory_bytes, "B", "told by the operating system"),
        launch_seconds=assumed(5e-7, "s", f"fork and join of a small thread team; {_CALIBRATE}", 5.0),
        power_const=assumed(const, "W", "2 W of uncore and memory controller per core"),
        power_idle=assumed(idle, "W", "0.5 W per core"),
        tdp=assumed(const + per_flop * peak["fp32"], "W", "constant power plus fp32 at the peak rate"),
        energy_per_byte=assumed(1.2e-10, "J/B", "DDR5-class memory with controller"),
        t_max=Coefficient(95.0, "C", "common limit of current processors", 85.0, 105.0, assumed=True),
        efficiency_compute=assumed(0.75, "1", f"tuned fp32 products on AVX2; {_CALIBRATE}", 1.6, 1.0),
        efficiency_memory=assumed(0.75, "1", f"STREAM-like reads; {_CALIBRATE}", 1.6, 1.0),
    )


def known_board(
    name: str, facts: NvidiaFacts, engines: tuple[str, ...], device: DeviceProfile, voltage: Voltage
) -> DeviceProfile:
    """An NVIDIA board of the catalogue; memory and power limit are those that NVML tells."""
    found = replace(device, name=name, title=facts.name, engines=engines, pool=f"{name} memory")
    if facts.memory_bytes:
        found = replace(found, memory_bytes=Coefficient(facts.memory_bytes, "B", "told by NVML"))
    if not facts.power_limit:
        return found
    limit = Coefficient(facts.power_limit, "W", "power limit told by NVML")
    if limit.value >= found.tdp.value:
        return replace(found, tdp=limit)
    return apply(found, Mode("limit", limit.source, None, {"tdp": limit}), voltage)


def nvidia_profile(
    name: str, facts: NvidiaFacts, engines: tuple[str, ...], template: DeviceProfile, rules: Rules
) -> DeviceProfile:
    """An NVIDIA board that the catalogue lacks; what NVML does not tell is taken from `template`, the rest by rule."""
    pool = f"{name} memory"
    base = like(template, name, facts.name, engines, pool)
    given: dict[str, Any] = {"name": name, "kind": base.kind, "title": facts.name, "engines": engines, "pool": pool}
    given |= {k: getattr(base, k) for k in ("peak_flops", "memory_bandwidth", "memory_bytes", "tdp")}
    if facts.memory_bytes:
        given["memory_bytes"] = Coefficient(facts.memory_bytes, "B", "told by NVML")
    if facts.bus_bits and facts.memory_clock:
        rate = 2 * facts.memory_clock * facts.bus_bits / 8
        source = f"estimated: {facts.bus_bits} bit x {facts.memory_clock / 1e6:g} MHz x 2, told by NVML"
        given["memory_bandwidth"] = assumed(rate, "B/s", source, 1.2)
    if facts.power_limit:
        given["tdp"] = Coefficient(facts.power_limit, "W", "power limit told by NVML")
    given["peak_flops"] = _nvidia_peak(facts) or given["peak_flops"]
    return rules.fill(Table("this machine", name, {}), {**given, "may_spill": True}, "gpu-card", "gddr6")


def _nvidia_peak(facts: NvidiaFacts) -> dict[str, Coefficient]:
    if not facts.cores or not facts.clock:
        return {}
    fp32 = 2 * facts.cores * facts.clock
    source = f"estimated: {facts.cores} cores x 2 FLOP x {facts.clock / 1e6:g} MHz"
    rates = {"fp32": 1.0}
    cc = facts.capability or (0, 0)
    ratio = float(_TENSOR_RATIO.get(cc, 4 if cc >= (7, 0) else 0))
    if cc in _GEFORCE_HALVED and "GeForce" in facts.name:
        ratio /= 2
    if ratio:
        rates |= {"fp16": ratio} | ({"bf16": ratio} if cc >= (8, 0) else {})
        rates |= {"int8": 2 * ratio} if cc >= (7, 5) else {}
        rates |= {"fp8": 2 * ratio} if cc >= (8, 9) else {}
    return {
        d: assumed(r * fp32, "FLOP/s", f"{source} x {r:g} for {d} (compute capability {cc[0]}.{cc[1]})", 1.3)
        for d, r in rates.items()
    }


def like(
    template: DeviceProfile, name: str, title: str, engines: tuple[str, ...], pool: str
) -> DeviceProfile:
    """A device of which little is known, priced as `template`, with every number marked as assumed."""

    def guess(c: Coefficient) -> Coefficient:
        top = 1.0 if c.unit == "1" else None
        return assumed(c.value, c.unit, f"taken as of {template.title}; {_CALIBRATE}", 4.0, top)

    changed: dict[str, Any] = {}
    for f in fields(template):
        value = getattr(template, f.name)
        if isinstance(value, Coefficient):
            changed[f.name] = guess(value)
        elif f.name in ("peak_flops", "energy_per_flop"):
            changed[f.name] = {d: guess(c) for d, c in value.items()}
    changed |= {"process": "", "units": None, "cache_bytes": None}
    changed |= {"name": name, "title": title, "engines": engines, "pool": pool}
    return replace(template, **changed)
