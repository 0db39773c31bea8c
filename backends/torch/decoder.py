"""Decoder stages on torch: states are tensors on the device, handed to the operators and taken back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from qeil_compile.backends.torch import FAILURES
from qeil_compile.errors import BackendError, first_line
from qeil_compile.forms.fx_source import from_numpy, to_numpy

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


class TorchDecoderStage:
    """A program with its states."""


    def __init__(
        self, run: Run, inputs: Mapping[str, Sequence[int | None]], outputs: Sequence[str], pairs: Mapping[str, str],
        device: torch.device, compact: bool,
    ) -> None:  # fmt: skip
        self.compact = compact
        self._run, self._inputs, self._outputs, self._device = run, inputs, list(outputs), device
        self._past = {present: past for past, present in pairs.items()}
        self.states: Sequence[str] = [n for n in inputs if n in pairs]
        self._values: dict[str, torch.Tensor] = {}
        self.reset(1)

    def reset(self, rows: int) -> None:
        """Forget everything; the next pass has so many rows."""
        for name in self.states:
            shape = [rows, *(d or 0 for d in self._inputs[name][1:])]
            self._values[name] = torch.zeros(shape, device=self._device)

    def select(self, rows: np.ndarray) -> None:
        """Rows become rows[i]."""
        picked = torch.as_tensor(rows, device=self._device)
        self._values = {n: v.index_select(0, picked) for n, v in self._values.items()}

    def export(self) -> dict[str, np.ndarray]:
        """Copies of the states."""
        return {n: np.array(to_numpy(v)) for n, v in self._values.items()}

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        """Take over states that another stage exported."""
        self._values = {n: from_numpy(np.ascontiguousarray(states[n])).to(self._device) for n in self.states}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One pass. Raises `BackendError`."""
        try:
            with torch.inference_mode():
                given = [
                    self._values[n] if n in self._values else from_numpy(np.asarray(feeds[n])).to(self._device)
                    for n in self._inputs
                ]
                found = dict(zip(self._outputs, self._run(given), strict=True))
        except FAILURES as error:
            raise BackendError(f"torch:{self._device}: {first_line(error)}") from error
        self._values = {past: found.pop(present) for present, past in self._past.items()}
        return {n: to_numpy(v) for n, v in found.items()}
