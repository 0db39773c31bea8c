"""NVIDIA boards as sensors, by NVML, the driver's own library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

from qeil_compile.devices.nvml import start_nvml

from .snapshot import Channel, Missing, SensorLost, channel

#: Errors after which a board that worked does not answer any more (by the end of their names in pynvml).
_GONE = ("GpuIsLost", "ResetRequired", "NotFound", "GpuNotFound", "Unknown", "Uninitialized")


class NvmlSensor:
    """One board: every channel that it tells; `missing` names those that it does not."""

    def __init__(self, nvml: Any, index: int) -> None:
        """Raises the module's `NVMLError` where the board cannot be opened."""
        self.name = f"NVML GPU {index}"
        self.missing: list[Missing] = []
        self._gone = tuple(e for n in _GONE if (e := getattr(nvml, f"NVMLError_{n}", None)) is not None)
        self._error = nvml.NVMLError
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        device = f"gpu{index}"
        calls: list[tuple[str, str, Callable[[], float]]] = [
            ("power", "NVML power usage", lambda: nvml.nvmlDeviceGetPowerUsage(handle) * 1e-3),
            ("energy", "NVML total energy", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3),
            ("temperature", "NVML GPU temperature, whole degrees",
             lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            ("clock", "NVML SM clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6),
            ("memory", "NVML memory in use", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            ("load", "NVML utilisation: share of the time in which a kernel ran",
             lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu * 1e-2),
            ("limit", "NVML enforced power limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * 1e-3),
        ]  # fmt: skip
        constants: list[tuple[str, str, Callable[[], float]]] = [
            ("capacity", "NVML memory, read once", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
            ("slowdown", "NVML slowdown threshold, read once",
             lambda: nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
        ]  # fmt: skip
        self._calls = [(channel(device, q, s), c) for q, s, c in calls if self._works(q, c) is not None]
        self._constants = [
            (channel(device, q, s), v) for q, s, c in constants if (v := self._works(q, c)) is not None
        ]
        self.channels: Sequence[Channel] = tuple(c for c, _ in (*self._calls, *self._constants))

    def _works(self, quantity: str, call: Callable[[], float]) -> float | None:
        # Boards and drivers differ in what they tell (Tegra: neither memory nor power limit).
        try:
            return float(call())
        except (self._error, AttributeError) as error:
            self.missing.append(Missing(f"{self.name} {quantity}", str(error)))
            return None

    def read(self) -> Sequence[float]:
        """Raises `SensorLost` where the board does not answer any more."""
        return [*(self._value(call) for _, call in self._calls), *(v for _, v in self._constants)]

    def _value(self, call: Callable[[], float]) -> float:
        try:
            return float(call())
        except self._gone as error:
            raise SensorLost(f"NVML: {error}") from error
        except self._error:
            return nan


def nvml_sensors(nvml: Any = None) -> tuple[list[NvmlSensor], list[Missing]]:
    """A sensor per board, and what is missing. `nvml` stands in for the module `pynvml`.

    NVML stays initialised: starting it for every reading would take milliseconds.
    """
    module, reason = start_nvml(nvml)
    if module is None:
        return [], [Missing("NVML", reason.removeprefix("NVML: "))]
    found: list[NvmlSensor] = []
    missing: list[Missing] = []
    try:
        count = module.nvmlDeviceGetCount()
    except module.NVMLError as error:
        return [], [Missing("NVML", str(error))]
    for index in range(count):
        try:
            found.append(NvmlSensor(module, index))
        except module.NVMLError as error:
            missing.append(Missing(f"NVML GPU {index}", str(error)))
    missing += [m for sensor in found for m in sensor.missing]
    return found, missing or ([] if found else [Missing("NVML", "the driver reports no device")])
