"""NVIDIA boards as NVML, the driver's own library, describes them. A lack is a reason, not an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class NvidiaFacts:
    """One board; a fact that the driver does not tell is None. Clocks in Hz, memory in B, power in W."""

    index: int
    name: str
    memory_bytes: float | None
    power_limit: float | None
    clock: float | None
    memory_clock: float | None
    bus_bits: int | None
    cores: int | None
    capability: tuple[int, int] | None


def start_nvml(nvml: Any = None) -> tuple[Any, str]:
    """The module `pynvml` (or `nvml` in its place), initialised; None and why where there is no driver.

    Whoever starts it shuts it down: NVML counts.
    """
    module = nvml
    if module is None:
        try:
            import pynvml
        except ImportError:
            return None, "NVML: Python package nvidia-ml-py is not installed"
        module = pynvml
    try:
        module.nvmlInit()
    except module.NVMLError as exc:
        if isinstance(exc, getattr(module, "NVMLError_LibraryNotFound", ())):
            return None, "NVML library not found (no NVIDIA driver on this machine)"
        return None, f"NVML: {exc}"
    return module, ""


def nvidia_devices() -> tuple[list[NvidiaFacts], str]:
    """The boards in NVML's order, and why there are none."""
    nvml, reason = start_nvml()
    if nvml is None:
        return [], reason
    try:
        count = nvml.nvmlDeviceGetCount()
        return [_facts(nvml, i) for i in range(count)], "" if count else "NVML: the driver reports no device"
    except nvml.NVMLError as exc:
        return [], f"NVML: {exc}"
    finally:
        nvml.nvmlShutdown()


def total_energy(index: int) -> float:
    """Energy [J] that a board has drawn since the driver was loaded. Raises `OSError` where it is not told."""
    nvml, reason = start_nvml()
    if nvml is None:
        raise OSError(reason)
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByIndex(index))) * 1e-3
    except nvml.NVMLError as exc:
        raise OSError(f"NVML: {exc}") from exc
    finally:
        nvml.nvmlShutdown()


def _facts(nvml: Any, index: int) -> NvidiaFacts:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(call: Callable[[], Any]) -> Any:
        # Boards and drivers differ in what they tell (Tegra: neither memory nor power limit).
        try:
            return call()
        except (nvml.NVMLError, AttributeError):
            return None

    name = nvml.nvmlDeviceGetName(handle)
    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    limit = ask(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
    clock = ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))
    memory_clock = ask(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM))
    capability = ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    return NvidiaFacts(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name),
        memory_bytes=None if memory is None else float(memory.total),
        power_limit=None if not limit else limit / 1e3,
        clock=None if not clock else clock * 1e6,
        memory_clock=None if not memory_clock else memory_clock * 1e6,
        bus_bits=ask(lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle)) or None,
        cores=ask(lambda: nvml.nvmlDeviceGetNumGpuCores(handle)) or None,
        capability=None if not capability else (int(capability[0]), int(capability[1])),
    )
