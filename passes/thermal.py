"""Leakage, and the temperature at which a device settles.

    P_leak(T) = P_leak(T0) (T / T0)^2 exp(a (1/T0 - 1/T))             BSIM sub-threshold form, T in kelvin
    T = T_amb + Z(D) (P + s P_leak(T)),   Z(D) = R_th (1 - exp(-D / tau))
    Phi(T) = P_dyn / (P_dyn + P_leak(T))

[Liao, He, Lepak, "Temperature and supply voltage aware performance and power modeling at microarchitecture
level", IEEE TCAD 24(7), 2005]. P is the mean power without leakage, s the share of the time in which the device
works: what leaks while it waits is part of its idle power. Z(D) is the transient thermal impedance of a first-order
RC network after D seconds: R_th when D is long, 0 when it is short.

Leakage grows with temperature, so a device that is hot enough heats itself without end. The right side is convex in
T; the lowest temperature at which both sides meet is where the device settles, and if that is not below the ceiling
the device cannot sustain the load. For a burst the same equation, with the leakage of its last moment, bounds the
temperature from above: power only grows as the device warms.
"""

from __future__ import annotations

import numpy as np

from qeil_compile.devices.profile import DeviceProfile, Thermal
from qeil_compile.passes.conditions import KELVIN, Conditions

#: Newton steps; they converge quadratically, and halve the error per step where both sides only touch.
_STEPS = 60


def leakage(thermal: Thermal, celsius: np.ndarray | float) -> np.ndarray:
    """Leakage power [W] at temperatures [C], float64 of the same shape."""
    value, _ = _leakage_and_slope(thermal, np.asarray(celsius, dtype=float) + KELVIN)
    return value


def _leakage_and_slope(thermal: Thermal, kelvin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leakage [W] and its derivative [W/K]."""
    a, base = thermal.slope.value, thermal.reference.value + KELVIN
    value = thermal.leakage.value * (kelvin / base) ** 2 * np.exp(a * (1 / base - 1 / kelvin))
    return value, value * (2 / kelvin + a / kelvin**2)


def impedance(thermal: Thermal, duration: float) -> float:
    """Transient thermal impedance [K/W] after `duration` seconds of constant power."""
    return float(-thermal.resistance.value * np.expm1(-duration / thermal.time_constant.value))


def ceiling(profile: DeviceProfile, conditions: Conditions) -> float:
    """The temperature [C] that the device must stay below."""
    return conditions.ceiling * profile.t_max.value


def settle(
    thermal: Thermal, power: np.ndarray, share: np.ndarray, limit: float, conditions: Conditions
) -> tuple[np.ndarray, np.ndarray]:
    """Temperature [C] and whether it is below `limit` [C], for mean powers [W] and working shares in [0, 1].

    Arrays of one shape. Where a load cannot be sustained the temperature is `limit`. Newton's method from
    the ambient temperature: for a convex function it approaches the lowest solution from below, never past it.
    """
    ambient = thermal.ambient.value if conditions.ambient is None else conditions.ambient
    z, top = impedance(thermal, conditions.duration), limit + KELVIN
    t = np.full(np.broadcast(power, share).shape, ambient + KELVIN)
    sustained = t < top
    for _ in range(_STEPS):
        leak, slope = _leakage_and_slope(thermal, np.minimum(t, top))
        gap = ambient + KELVIN + z * (power + share * leak) - t
        fall = 1 - z * share * slope
        # A curve that rises faster than the temperature does not come down again: it is convex.
        sustained &= ((fall > 0) | (gap <= 0)) & (t < top)
        step = np.where(sustained & (gap > 0), gap / np.where(fall > 0, fall, 1.0), 0.0)
        t = t + step
        if not (step > 1e-13 * t).any():
            break
    sustained &= t < top
    return np.where(sustained, t, top) - KELVIN, sustained
