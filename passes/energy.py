"""The one energy equation, for kernels and for a device over a whole plan.

    E(g,d) = t [ P_const + (DASI_eff P e_f + beta_eff B e_m) / Phi(T) ],   DASI_eff = W / (P t),  beta_eff = Q / (B t)

The bracket's dynamic part times t is W e_f + Q e_m at Phi = 1: the energy roofline [Choi, Bedard, Fowler, Vuduc,
"A roofline model of energy", IPDPS 2013]. With P_dyn the device's mean dynamic power while it works and
Phi = P_dyn / (P_dyn + P_leak), P_dyn / Phi is P_dyn + P_leak, so that a device that works for `busy` of the L seconds
of a plan draws

    E(d) = busy (P_const + P_leak(T)) + sum (W e_f + Q e_m) + (L - busy) P_idle

at the temperature T that its mean power over the plan, run after run, brings about (see `thermal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qeil_compile.devices.profile import DeviceProfile, Target
from qeil_compile.devices.work import KernelTable
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.thermal import ceiling, leakage, settle


@dataclass(frozen=True, slots=True)
class DeviceEnergy:
    """Energy [J] of one device over a plan, waiting included; temperature [C], leakage [W] while it works, Phi.

    `temperature` is None and Phi 1 where the profile has no thermal data. A device that is not `sustained` would
    pass its ceiling; it is priced at the ceiling then.
    """

    joules: float
    temperature: float | None
    leakage: float
    phi: float
    sustained: bool


@dataclass(frozen=True)
class Usage:
    """What a plan asks of devices and links, whatever energy costs.

    `busy` [s] and `spilled` (bytes that cross the link from the host besides, and that link's other end) are by device;
    `moved` are bytes by the two devices of a transfer.
    """

    latency: float
    busy: Mapping[str, float]
    spilled: Mapping[str, tuple[float, str]]
    moved: Mapping[tuple[str, str], float]


def plan_energy(
    target: Target, usage: Usage, dynamic: Mapping[str, float], conditions: Conditions
) -> tuple[float, dict[str, DeviceEnergy]]:
    """Energy [J] of a plan, and of each device in it.

    `dynamic` is the sum of W e_f + Q e_m by device, without what is spilled. All devices of the target are powered.
    """
    states = {
        d.name: device_energy(
            d,
            usage.busy.get(d.name, 0.0),
            dynamic.get(d.name, 0.0) + spill_joules(target, d, usage),
            usage.latency,
            conditions,
        )
        for d in target.devices
    }
    moved = sum(target.link(a, b).joules(n) for (a, b), n in usage.moved.items())
    return sum(s.joules for s in states.values()) + moved, states


def spill_joules(target: Target, profile: DeviceProfile, usage: Usage) -> float:
    """Energy [J] of a device's spilled bytes: over the link, and through its memory."""
    if profile.name not in usage.spilled:
        return 0.0
    nbytes, host = usage.spilled[profile.name]
    return nbytes * profile.energy_per_byte.value + target.link(host, profile.name).joules(nbytes)


def dynamic_joules(profile: DeviceProfile, kernels: KernelTable) -> np.ndarray:
    """W e_f + Q e_m of each kernel, float64[kernels]; e_f is that of each kernel's dtype."""
    per_flop = kernels.per_dtype(lambda dtype: profile.energy(dtype).value)
    return kernels.flops * per_flop + kernels.nbytes * profile.energy_per_byte.value


def device_energy(
    profile: DeviceProfile, busy: float, dynamic: float, latency: float, conditions: Conditions
) -> DeviceEnergy:
    """A device that works for `busy` of `latency` seconds and spends `dynamic` joules on arithmetic and memory."""
    waiting = max(latency - busy, 0.0)
    fixed = busy * profile.power_const.value + dynamic + waiting * profile.power_idle.value
    if profile.thermal is None or latency <= 0:
        return DeviceEnergy(fixed, None, 0.0, 1.0, True)
    power, share = np.array(fixed / latency), np.array(min(busy / latency, 1.0))
    temperature, sustained = settle(profile.thermal, power, share, ceiling(profile, conditions), conditions)
    leak = float(leakage(profile.thermal, temperature))
    return DeviceEnergy(
        fixed + busy * leak, float(temperature), leak, phi(dynamic, busy * leak), bool(sustained)
    )


def phi(dynamic: float, leaked: float) -> float:
    """Thermal yield: the share of `dynamic + leaked` that does work; 1 where nothing is drawn."""
    return dynamic / (dynamic + leaked) if dynamic + leaked > 0 else 1.0
