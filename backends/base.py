"""The contract of a backend: what it drives, what it accepts, and how it compiles a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
    attribute `shares_outputs` hands out its own buffers: they are valid until its next call. One that records its
    passes has a method `launched` that runs without.
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

        `exclusive` is False when stages of other engines, or another session, use the same cores next. `threads` is
        the number of CPU threads, 0 for the engine's own choice (on a device that is no CPU it has no meaning).
        `weights` maps the program's weight names to arrays, which the executable may keep by reference. Raises
        `BackendError` and never falls back to another device.
        """
        ...


class DecoderStage(Protocol):
    """A compiled stage of a decoder that keeps the states of its layers: keys, values, inputs of convolutions.

    Feeds are arrays by name: what other stages wrote, and of the model's inputs those that the stage reads. Beside
    those of `models.decoder.graph` these are `positions` int64 [rows, new], and `mask` int64 [rows, total], 0 where a
    place of the cache holds padding. Not safe to call from several threads.
    """

    #: Inputs of the program that are states, in its order.
    states: Sequence[str]
    #: Each row's tokens stand at the beginning of its cache; otherwise where `mask` is 1.
    compact: bool

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One pass; outputs that are no states, by name, valid until the next call. Raises `BackendError`."""
        ...

    def reset(self, rows: int) -> None:
        """Forget everything; the next pass has so many rows."""
        ...

    def select(self, rows: np.ndarray) -> None:
        """Rows become rows[i], int64 [n]: some may go, others be repeated."""
        ...

    def export(self) -> dict[str, np.ndarray]:
        """Copies of the states, [rows, heads, total, width] or [rows, width, taps - 1] each."""
        ...

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        """Take over states that another stage exported."""
        ...


class DecoderBackend(Protocol):
    """A backend that can keep the states of a decoder inside the engine."""

    def compile_decoder(
        self, program: StageProgram, states: Mapping[str, str], weights: Mapping[str, np.ndarray], device: str,
        exclusive: bool = True, threads: int = 0,
    ) -> DecoderStage:
        """Compile a stage whose inputs `states` become the outputs that they are mapped to; otherwise as `compile`."""
        ...


@runtime_checkable
class IntegerRows(Protocol):
    """A backend with two ways to run packed weights (`forms.products`)."""

    def integer_rows(self, device: str) -> bool:
        """Whether stages of decoders on this device can run packed weights as rows of 8-bit integers."""
        ...
