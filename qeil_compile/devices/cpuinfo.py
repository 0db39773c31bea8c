"""What the operating system says about the processor and memory. Never raises: gaps get cautious values."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: Used where the system does not tell the clock [Hz].
DEFAULT_HERTZ = 2.5e9
#: Used where the system does not tell the memory [B].
DEFAULT_MEMORY = 8 * 2**30
#: Instruction-set flags that change a peak rate, in the kernel's spelling.
VECTOR_FLAGS = (
    "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """Model name, usable cores, vector flags, clock [Hz] (`clock_known`: not a default), memory [B]."""

    model: str
    cores: int
    flags: frozenset[str]
    hertz: float
    clock_known: bool
    memory_bytes: float

    @property
    def vector_text(self) -> str:
        """The vector extensions in one phrase."""
        return ", ".join(f for f in VECTOR_FLAGS if f in self.flags) or "no vector extension known"


def cpu_facts() -> CpuFacts:
    """Facts of this machine."""
    text = _read("/proc/cpuinfo")
    if text:
        model, cores, flags, hertz = parse_cpuinfo(text)
    else:
        model, cores, flags, hertz = _facts_without_proc()
    khz = _read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    hertz = float(khz) * 1e3 if khz.isdigit() else hertz
    usable = usable_cores()
    return CpuFacts(
        model=model or platform.machine() or "unknown processor",
        cores=max(1, min(cores or usable, usable)),
        flags=flags,
        hertz=hertz or DEFAULT_HERTZ,
        clock_known=bool(hertz),
        memory_bytes=_memory_bytes(),
    )


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def vector_lanes(flags: frozenset[str]) -> int:
    """fp32 numbers in a vector of the widest extension."""
    return 16 if "avx512f" in flags else 8 if flags & {"avx", "avx2"} else 4


def cache_bytes() -> float:
    """Last-level cache [B] that the first processor sees; 0 where the system does not tell."""
    sizes = [_read(str(f)).strip() for f in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return float(max((int(s[:-1]) * units[s[-1]] for s in sizes if s[:-1].isdigit() and s[-1] in units), default=0))


def parse_cpuinfo(text: str) -> tuple[str, int, frozenset[str], float]:
    """Model, physical cores, vector flags and highest clock [Hz] from the text of /proc/cpuinfo.

    Arm kernels list neither a model nor core ids there: the model is then empty, and each processor a core.
    """
    pairs = [
        (key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())
    ]
    models = [v for k, v in pairs if k in ("model name", "Model") and v]
    words = {w for k, v in pairs if k in ("flags", "Features") for w in v.split()}
    clocks = [float(v) for k, v in pairs if k == "cpu MHz" and re.fullmatch(r"\d+(\.\d+)?", v)]
    processors, package, cores = 0, "0", set()
    for key, value in pairs:
        if key == "processor":
            processors += 1
        elif key == "physical id":
            package = value
        elif key == "core id":
            cores.add((package, value))
    found = frozenset(words & set(VECTOR_FLAGS))
    return models[0] if models else "", len(cores) or processors, found, max(clocks, default=0.0) * 1e6


def _facts_without_proc() -> tuple[str, int, frozenset[str], float]:
    """macOS by `sysctl`; elsewhere only what Python knows. Flags: those that every such processor has."""
    arm = platform.machine().lower() in ("arm64", "aarch64")
    flags = frozenset({"asimd", "asimdhp", "asimddp"} if arm else {"avx", "avx2", "fma"})
    if sys.platform == "darwin":
        cores, clock = _sysctl("hw.physicalcpu"), _sysctl("hw.cpufrequency_max")
        return (
            _sysctl("machdep.cpu.brand_string"),
            int(cores) if cores.isdigit() else 0,
            flags,
            float(clock) if clock.isdigit() else 0.0,
        )
    return platform.processor(), 0, flags, 0.0


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _memory_bytes() -> float:
    """Memory of the machine, or the container's limit where that is lower."""
    total = _total_memory()
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    bounded = min(total, int(limit)) if limit.isdigit() and total > 0 else total
    return float(bounded if bounded > 0 else DEFAULT_MEMORY)


def _total_memory() -> int:
    if sys.platform != "win32":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return 0
    # MEMORYSTATUSEX: its own length, the load, then seven 64-bit counters, the first of which is the total.
    status = (ctypes.c_uint64 * 8)()
    status[0] = ctypes.sizeof(status)
    return int(status[1]) if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""
