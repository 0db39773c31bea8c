"""Which model tells how long a kernel takes: what was fitted on this machine, or else that of the device's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from qeil_compile.plan import Label

from .engines import constants_of
from .gpu import gpu_seconds
from .profile import Kind, Placement
from .roofline import kernel_seconds
from .work import KernelTable


class Calibration(Protocol):
    """Times fitted on a machine."""

    def seconds(self, spec: str, kernels: KernelTable) -> np.ndarray | None:
        """Seconds of each kernel on placement `spec`, launches included; None where nothing was fitted."""

    def entry(self, spec: str, tensors: int) -> float | None:
        """Seconds of the call of a stage with so many inputs and outputs; None where nothing was fitted."""

    def boundary(self, spec: str) -> float | None:
        """Seconds of one more call in a chain of stages of this engine; None where it was not measured."""


#: Seconds of each kernel, float64[kernels], and how far they can be believed.
TimeModel = Callable[[KernelTable], tuple[np.ndarray, Label]]


def _engine_launch(place: Placement) -> float:
    """The engine's own overhead per kernel; the device's launch is in its model."""
    return constants_of(place.engine).kernel_seconds.value


_BY_KIND: Mapping[Kind, Callable[[Placement, KernelTable], np.ndarray]] = {
    "cpu": kernel_seconds,
    "gpu": lambda place, kernels: gpu_seconds(place.profile, kernels) + _engine_launch(place),
    "npu": kernel_seconds,
}


def time_model(place: Placement, calibration: Calibration | None = None) -> TimeModel:
    """The best model of time for a placement."""

    def price(kernels: KernelTable) -> tuple[np.ndarray, Label]:
        fitted = None if calibration is None else calibration.seconds(place.spec, kernels)
        if fitted is not None:
            return fitted, "calibrated"
        return _BY_KIND[place.profile.kind](place, kernels), "modelled"

    return price
