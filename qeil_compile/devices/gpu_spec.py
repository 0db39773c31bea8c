"""What the GPU kernel-time model knows of a device, and the coefficients that it was fitted with."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from .profile import DeviceProfile

#: The file beside this module that holds them.
COEFFICIENTS = "gpu_kernels.toml"
#: fp32 FLOP per cycle and multiprocessor: 64 lanes up to GA100, 128 in consumer and later parts; the middle serves
#: where a profile does not count its multiprocessors. 1.5 GHz stands for the clock.
_FLOPS_PER_UNIT = 192 * 1.5e9
#: Units of 128 lanes do more FLOP/s than this (64 lanes at 2.3 GHz).
_WIDE_UNIT = 300e9
#: Where no cache size is given: KiB-scale L2 per byte per second of DRAM, the median of the boards in the profiles.
_CACHE_PER_BANDWIDTH = 1.5e-5


@dataclass(frozen=True)
class GpuSpec:
    """Data-sheet facts of one GPU: `peak` [FLOP/s] by short dtype name, `bandwidth` [B/s], `units` (multiprocessors
    or compute units), `cache_bytes` (last level) [B], `launch` [s] per kernel.

    `lane_flops` [FLOP/s] is the fp32 rate of the plain lanes where `peak` gives that of matrix units.
    `tdp` [W] and `node` [nm] bound what it sustains (None: no bound). `matrix` names the dtypes that run on
    matrix units (tensor cores), which need larger tiles than plain lanes do. `sustained` is False where each kernel
    was timed in a run so short that the power limit hardly acted (micro-benchmarks).
    """

    name: str
    peak: Mapping[str, float]
    bandwidth: float
    units: float
    cache_bytes: float
    launch: float = 0.0
    tdp: float | None = None
    node: float | None = None
    sustained: bool = True
    lane_flops: float | None = None
    matrix: frozenset[str] = field(default=frozenset({"fp16", "bf16", "fp8", "fp4", "int8", "int4"}))

    @classmethod
    def of(cls, profile: DeviceProfile) -> GpuSpec:
        """The facts of a profile. Gaps are filled: units from the fp32 rate, the cache from the bandwidth."""
        peak = {d: c.value for d, c in profile.peak_flops.items()}
        lanes = peak.get("fp32", max(peak.values()) / 8)
        node = re.search(r"(\d+(?:\.\d+)?)", profile.process)
        bandwidth = profile.memory_bandwidth.value
        return cls(
            name=profile.name,
            peak=peak,
            bandwidth=bandwidth,
            units=profile.units.value if profile.units else max(1.0, round(lanes / _FLOPS_PER_UNIT)),
            cache_bytes=profile.cache_bytes.value if profile.cache_bytes else _CACHE_PER_BANDWIDTH * bandwidth,
            launch=profile.launch_seconds.value,
            tdp=profile.tdp.value,
            node=float(node[1]) if node else None,
        )

    @property
    def lanes(self) -> float:
        """Rate [FLOP/s] of the plain fp32 lanes: it stands for units x clock, which no profile lists."""
        return self.lane_flops or self.peak.get("fp32", max(self.peak.values()) / 8)

    @property
    def issue(self) -> float:
        """`lanes` counted as if each unit had 64 of them: what bounds reductions, whose shuffles and barriers pass
        four schedulers per unit whether those feed 64 lanes or 128.
        """
        return self.lanes / 2 if self.lanes / self.units > _WIDE_UNIT else self.lanes


@cache
def coefficients() -> Mapping[str, float]:
    """The shipped coefficients by name; meaning, unit, spread and source stand beside them in the file."""
    data = tomllib.loads(files(__package__).joinpath(COEFFICIENTS).read_text("utf-8"))
    return {name: float(entry["value"]) for name, entry in data["coefficients"].items()}
