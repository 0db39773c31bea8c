"""Faults of engines and devices: what went wrong with a stage, and how long it may take.

Results that are not finite are a fault like an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qeil_compile.errors import BackendError, QeilError


class FaultKind(StrEnum):
    """What went wrong with a stage."""

    RAISED = "raised"  # the engine reported an error
    NOT_FINITE = "not finite"  # NaN or infinity in what it computed
    HUNG = "hung"  # no answer until the deadline
    DIED = "died"  # its process ended
    MEMORY = "out of memory"
    LOST = "lost"  # its device has gone
    WRONG = "wrong"  # golden inputs give other outputs


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `seconds` is what passed from the start of the call until it was known, `limit` [s] its deadline."""

    kind: FaultKind
    placements: tuple[str, ...]
    detail: str
    seconds: float = 0.0
    limit: float | None = None

    def as_text(self) -> str:
        """`openvino:CPU hung: no answer after 2.0 s`."""
        return f"{'+'.join(self.placements)} {self.kind}: {self.detail}"


class StageFault(BackendError):
    """A stage that can no longer be trusted; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.as_text())
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a call may take: `factor` times what calls like it took so far, at least `least` [s].

    Before any call of its kind it has `first` seconds: engines compile kernels and pack weights in it.
    """

    factor: float = 20.0
    least: float = 10.0
    first: float = 300.0

    def seconds(self, expected: float | None) -> float:
        """For a call that should take so long; None where nothing is known."""
        return self.first if expected is None else max(self.least, self.factor * expected)


def fault_of(
    error: BaseException, placements: tuple[str, ...], seconds: float, limit: float | None = None
) -> Fault:
    """The fault behind what a call raised."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, TimeoutError) and not str(error):
        return Fault(FaultKind.HUNG, placements, f"no answer after {seconds:.2f} s", seconds, limit)
    if isinstance(error, MemoryError) or any(word in text.lower() for word in _MEMORY):
        return Fault(FaultKind.MEMORY, placements, text, seconds)
    if any(word in text.lower() for word in _LOST):
        return Fault(FaultKind.LOST, placements, text, seconds)
    if isinstance(error, (EOFError, ConnectionError)):
        return Fault(FaultKind.DIED, placements, text, seconds)
    detail = text if isinstance(error, QeilError) else f"{type(error).__name__}: {text}"
    return Fault(FaultKind.RAISED, placements, detail, seconds)


#: Words of engines and drivers for memory that is not there, and for devices that have gone.
_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "cannot allocate memory", "outofmemory")
_LOST = ("gpu is lost", "device lost", "device removed", "fallen off the bus", "no cuda-capable device")


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite; sums carry NaN and infinity, and are cheaper than a look at each."""
    if array.dtype.kind not in "fV" or not array.size:
        return True
    if array.dtype.kind == "V":
        array = array.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(array.sum())) or bool(np.isfinite(array).all())


