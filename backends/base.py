"""The contract of a backend: what it drives, what it accepts, and how it compiles a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qeil_compile.forms.program import Form, Source, StageProgram


@dataclass(frozen=True, slots=True)
class Support:
    """Whether an engine accepts an operator; `reason` says why not, in the engine's words where it has any."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """One device as an engine sees it: `spec` is `engine:DEVICE` (`openvino:NPU`, `torch:cuda:0`).

    `kind` is cpu, gpu or npu. `available` is False with a `reason` when the engine knows the device
    but cannot use it on this machine.
    """

    spec: str
    kind: str
    description: str
    available: bool
    reason: str = ""


class Executable(Protocol):
    """A compiled stage. Arrays in, arrays out, in the order of the program's inputs and outputs.

    Arrays are numpy arrays (bfloat16 and 8-bit floats through `ml_dtypes`). An executable with a true
    attribute `shares_outputs` hands out its own buffers: they are valid until its next call.
    """

    def __call__(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Run once. Raises `BackendError`."""
        ...


class Backend(Protocol):
    """An engine. Found by the entry-point group `qeil_compile.backends`; loaded lazily."""

    name: str

    def version(self) -> str:
        """Version of the engine."""
        ...

    def devices(self) -> list[EngineDevice]:
        """Every device the engine knows, available or not, with the reason. Never raises."""
        ...

    def forms(self) -> tuple[Form, ...]:
        """Forms it accepts, best first."""
        ...

    def supports(self, source: Source, device: str) -> list[Support]:
        """One answer per operator of `source.graph`, asked of the engine itself. `device` is without `engine:`."""
        ...

    def compile(
        self,
        program: StageProgram,
        weights: Mapping[str, np.ndarray],
        device: str,
        exclusive: bool = True,
        threads: int = 0,
    ) -> Executable:
        """Compile a stage for `device` (for an affinity program: the devices named there).

        `exclusive` is False when the plan has stages of other engines on the same cores. `threads` is the number of
        CPU threads, 0 for the engine's own choice (on a device that is no CPU it has no meaning). `weights` maps the
        program's weight names to arrays, which the executable may keep by reference. Raises `BackendError`
        and never falls back to another device.
        """
        ...
