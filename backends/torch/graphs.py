"""CUDA graphs: what a program launched once is launched again as a whole, without Python between its kernels.

A pass over a few hundred small kernels takes the host milliseconds to launch and a GPU a fraction of that to run. A
pass whose shapes come up a second time is recorded, with the copies of its inputs and outputs from and to page-locked
memory; from then on it is one launch. A program that looks at values on the host while it runs cannot be recorded and
goes on as before; if numbers without axes are all that it looks at (a rate, a switch), it is recorded for each of them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qeil_compile.backends.torch import FAILURES
from qeil_compile.backends.torch.precision import full_precision
from qeil_compile.errors import BackendError
from qeil_compile.forms.fx_source import from_numpy, to_numpy

Program = Callable[[Sequence[Tensor]], Sequence[Tensor]]
#: Inputs on the host as the program takes them.
Moved = Callable[[Sequence[Tensor]], Sequence[Tensor]]
#: Recordings that are kept, each with the memory of its intermediate results; further shapes run as they always did.
_MOST = 32


class Recording:
    """One recorded pass with its page-locked inputs and outputs."""

    def __init__(
        self, program: Program, inputs: Sequence[Tensor], moved: Moved, shown: Sequence[Tensor], pool: Any
    ) -> None:
        """`shown` are the outputs of a pass with these inputs, which the program takes as `moved` gives them.

        Raises what torch raises where it cannot be recorded.
        """
        self._device = shown[0].device
        self._inputs = [t.clone().pin_memory() for t in inputs]
        self._outputs = [torch.zeros(t.shape, dtype=t.dtype).pin_memory() for t in shown]
        self._places = [to_numpy(t) for t in self._inputs]
        self._graph = torch.cuda.CUDAGraph()
        current, aside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            # Other threads may go on to use the board.
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                found = program(moved(self._inputs))
                for kept, tensor in zip(self._outputs, found, strict=True):
                    kept.copy_(tensor, non_blocking=True)
            finally:
                self._graph.capture_end()
        current.wait_stream(aside)

    def replay(self, inputs: Sequence[np.ndarray], live: int | None) -> list[Tensor]:
        """Outputs, valid until the next call. With `live` the inputs have so many rows; those beyond are 0."""
        for place, array in zip(self._places, inputs, strict=True):
            if live is None or not array.ndim:
                place[...] = array
            else:
                place[:live], place[live:] = array, 0
        self._graph.replay()
        torch.cuda.current_stream(self._device).synchronize()
        return self._outputs


class Recordings:
    """The recordings of one program on one device; without CUDA there are none."""

    def __init__(self, device: torch.device, by_number: bool | None = None) -> None:
        """`by_number`: whether a pass is recorded for each value of its inputs without axes, which the program may then
        look at; None: where it cannot be recorded otherwise."""
        self._device = device
        self._may_split, self._by_number = by_number is None, bool(by_number)
        #: Whether passes are recorded; no more after one that could not be.
        self.able = device.type == "cuda"
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all: something that they read has moved."""
        self._known: dict[Hashable, Recording | None] = {}
        self._pool: Any = None

    def run(
        self, key: Hashable, program: Program, inputs: Sequence[np.ndarray], rows: int | None = None,
        live: int | None = None,
    ) -> list[Tensor] | None:  # fmt: skip
        """Outputs on the host, valid until the next call, of a pass that is recorded or becomes so; None where the
        caller has to run it.

        `key` holds all that decides which kernels are launched, the inputs' shapes included. With `rows` the pass is
        recorded for that many rows, the first axis of each input, of which the inputs have `live`.
        """
        if not self.able:
            return None
        with self._lock:
            if self._by_number:
                key = (key, *(a.item() for a in inputs if not a.ndim))
            recording = self._known.get(key)
            if recording is not None:
                return recording.replay(inputs, live)
            if key in self._known:
                return self._record(key, program, [filled_up(a, rows) for a in inputs])
            if len(self._known) < _MOST:
                self._known[key] = None  # what comes up once is not worth it
            return None

    def _record(self, key: Hashable, program: Program, given: Sequence[Tensor]) -> list[Tensor]:
        moved = self._moved(given)
        with full_precision(self._device):
            # This pass counts. The one that is recorded does not run, so that states change once.
            with _waits() as waits:
                shown = list(program(moved))
            results = [t.to("cpu") for t in shown]
            able = bool(shown) and not waits and all(t.device == self._device for t in shown)
            if able:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                try:
                    self._known[key] = Recording(program, given, self._moved, shown, self._pool)
                except (BackendError, *FAILURES):
                    able = False
        if not able:
            self._pool = None
            self.able = self._may_split and not self._by_number and any(not t.dim() for t in given)
            self._by_number = self.able
            self._known = {}
        return results

    def _moved(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Inputs on the device; those without axes stay here, as part of the key, if the program looks at them."""
        return [
            t if self._by_number and not t.dim() else t.to(self._device, non_blocking=t.is_pinned()) for t in given
        ]  # fmt: skip


@contextmanager
def _waits() -> Iterator[list[str]]:
    """What waits for the board within it, as far as torch tells.

    A recording that ends in a wait leaves torch's generator of random numbers and its allocator as if it went on, for
    the whole process: so it is not begun. Torch is asked to warn, not to raise, for other threads hear it as well.
    """
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
            found += [text for w in heard if "called a synchronizing" in (text := str(w.message))]


def filled_up(array: np.ndarray, rows: int | None) -> Tensor:
    """A copy of an input, with as many rows as are recorded."""
    if rows is None or not array.ndim:
        return from_numpy(np.array(array))
    whole = np.zeros((rows, *array.shape[1:]), array.dtype)
    whole[: len(array)] = array
    return from_numpy(whole)
