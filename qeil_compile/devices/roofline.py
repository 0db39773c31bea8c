"""The plain roofline: a kernel takes its launch, and then as long as the slower of arithmetic and memory.

    t = t_launch + max( W / (n_c P) , Q / (n_m B) )

[Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 52(4), 2009], with efficiencies n_c, n_m per kind of operator, because real kernels reach only part of a roof.
"""

from __future__ import annotations

import numpy as np

from .engines import constants_of
from .profile import DeviceProfile, Placement
from .work import KernelTable


def launch_seconds(place: Placement) -> float:
    """Seconds per kernel beside its work: the device's launch and the engine's own overhead."""
    return place.profile.launch_seconds.value + constants_of(place.engine).kernel_seconds.value


def kernel_seconds(place: Placement, kernels: KernelTable) -> np.ndarray:
    """Seconds of each kernel, float64[kernels]."""
    compute, memory = attained(place.profile, kernels)
    return launch_seconds(place) + np.maximum(compute, memory)


def attained(profile: DeviceProfile, kernels: KernelTable) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of arithmetic W / (n_c P) and of memory Q / (n_m B), float64[kernels] each."""
    compute, memory = roofs(profile, kernels)

    def share(kind: str, roof: str) -> float:
        own = profile.efficiencies.get(kind)
        whole = profile.efficiency_compute if roof == "compute" else profile.efficiency_memory
        return float((whole if own is None else getattr(own, roof)).value)

    return (
        compute / kernels.per_kind(lambda kind: share(kind, "compute")),
        memory / kernels.per_kind(lambda kind: share(kind, "memory")),
    )


def roofs(profile: DeviceProfile, kernels: KernelTable) -> tuple[np.ndarray, np.ndarray]:
    """Seconds W / P and Q / B at the full roofs, float64[kernels] each; P is that of each kernel's dtype."""
    peak = kernels.per_dtype(lambda dtype: profile.flops(dtype).value)
    return kernels.flops / peak, kernels.nbytes / profile.memory_bandwidth.value
