"""Decoder stages on torch: states are tensors on the device.

Where GroupQueryAttention owns the keys and values, it writes them in place into buffers with room; on CUDA a step is
then recorded and replayed (`graphs`), for a number of rows and of places that are powers of two, and a prompt that is
not long for a number of tokens near its own, padded. Models that append by themselves (as exporters write them) hand
out new tensors, which are read next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qeil_compile.backends.torch import FAILURES
from qeil_compile.backends.torch.graphs import Recordings
from qeil_compile.backends.torch.precision import full_precision
from qeil_compile.errors import BackendError, first_line
from qeil_compile.forms.fx_source import from_numpy, to_numpy

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Shapes = Mapping[str, Sequence[int | None]]
#: Places of a cache that are added at once on the CPU, and the fewest that a step is recorded for.
_GROWTH, _FEWEST = 128, 64
#: Tokens of prompts, padding counted in, up to which the launches take longer than the arithmetic.
_MOST_TOKENS = 4096


class _Stage:
    """What both kinds share: a program, its inputs, outputs and states."""

    def __init__(
        self, run: Run, inputs: Shapes, outputs: Sequence[str], pairs: Mapping[str, str], device: torch.device
    ) -> None:
        self._run, self._shapes, self._outputs, self._device = run, inputs, list(outputs), device
        self._past = {present: past for past, present in pairs.items()}
        self.states: Sequence[str] = [n for n in inputs if n in pairs]
        self._given = [n for n in inputs if n not in pairs]

    def _pass(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._outputs, self._run([given[n] for n in self._shapes]), strict=True))

    def _failed(self, error: Exception) -> BackendError:
        return BackendError(f"torch:{self._device}: {first_line(error)}")


class AppendingStage(_Stage):
    """States are read and handed out anew."""

    compact = False

    def __init__(
        self, run: Run, inputs: Shapes, outputs: Sequence[str], pairs: Mapping[str, str], device: torch.device
    ) -> None:
        super().__init__(run, inputs, outputs, pairs, device)
        self._values: dict[str, Tensor] = {}
        self.reset(1)

    def reset(self, rows: int) -> None:
        """Forget everything; the next pass has so many rows."""
        for name in self.states:
            shape = [rows, *(d or 0 for d in self._shapes[name][1:])]
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
            with torch.inference_mode(), full_precision(self._device):
                given = {n: from_numpy(np.asarray(feeds[n])).to(self._device) for n in self._given}
                found = self._pass(given | self._values)
        except FAILURES as error:
            raise self._failed(error) from error
        self._values = {past: found.pop(present) for present, past in self._past.items()}
        return {n: to_numpy(v) for n, v in found.items()}


class BufferedStage(_Stage):
    """States lie in buffers [rows, heads, places, width] or [rows, width, taps - 1] with room for more rows and places.

    The program writes keys and values where they belong; the states of convolutions are put back after each pass.
    """

    compact = True

    def __init__(
        self, run: Run, inputs: Shapes, outputs: Sequence[str], pairs: Mapping[str, str], device: torch.device
    ) -> None:
        super().__init__(run, inputs, outputs, pairs, device)
        self._growing = [n for n in self.states if len(inputs[n]) == 4]
        self._fixed = [n for n in self.states if n not in self._growing]
        self._buffers: dict[str, Tensor] = {}
        # Live rows, and columns as the session counts them; rows and places that there is room for.
        self._rows = self._width = self._most_rows = self._places = 0
        # The number of tokens so far ("total") is another one in each step, which does not look at it.
        self._recorded, self._prompts = Recordings(device, by_number=False), Recordings(device, by_number=True)
        self.reset(1)

    def reset(self, rows: int) -> None:
        """Forget everything; the next pass has so many rows."""
        with torch.inference_mode():
            self._rows = self._width = 0
            self._make_room(rows, 0)
            self._rows = rows
            for name in self._fixed:
                self._buffers[name][:rows] = 0

    def select(self, rows: np.ndarray) -> None:
        """Rows become rows[i]."""
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        first = int(moved[0]) if len(moved) else len(rows)
        with torch.inference_mode():
            picked = torch.as_tensor(rows[first:], device=self._device)
            found = {n: self._view(n).index_select(0, picked) for n in self.states} if first < len(rows) else {}
            self._make_room(len(rows), self._width)
            self._rows = len(rows)
            for name, values in found.items():
                self._view(name)[first:] = values

    def export(self) -> dict[str, np.ndarray]:
        """Copies of the states."""
        return {n: np.array(to_numpy(self._view(n))) for n in self.states}

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        """Take over states that another stage exported."""
        rows = len(next(iter(states.values()), ()))  # a part without states learns them in its next pass
        width = next((states[n].shape[2] for n in self._growing), self._width)
        with torch.inference_mode():
            self._rows = 0
            self._make_room(rows, width)
            self._rows, self._width = rows, width
            for name in self.states:
                self._view(name).copy_(from_numpy(np.ascontiguousarray(states[name])))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One pass. Raises `BackendError`."""
        rows, width = feeds["mask"].shape
        new, arrays = width - self._width, [np.asarray(feeds[n]) for n in self._given]
        try:
            with torch.inference_mode():
                padded = self._padded(arrays, new, rows) if new > 1 and not self._width else 0
                self._make_room(rows, self._width + max(new, padded))
                self._rows, self._width = rows, width
                found = self._replayed(arrays) if new == 1 else None
                if padded:
                    found = self._replayed_prompt(arrays, padded)
                if found is None:
                    with full_precision(self._device):
                        # What has no axes is a number that is read on the host.
                        given = [from_numpy(a) if not a.ndim else from_numpy(a).to(self._device) for a in arrays]
                        found = self._step(given, self._rows, width)
                return {n: to_numpy(v[: self._rows]) for n, v in zip(self._shown, found, strict=True)}
        except FAILURES as error:
            raise self._failed(error) from error

    # ---- inside

    @property
    def _shown(self) -> list[str]:
        return [n for n in self._outputs if n not in self._past]

    def _step(self, given: Sequence[Tensor], rows: int, places: int) -> list[Tensor]:
        """A pass over the first rows and places of the buffers; outputs that are no states."""
        views = {n: b[:rows] if n in self._fixed else b[:rows, :, :places] for n, b in self._buffers.items()}
        found = self._pass(dict(zip(self._given, given, strict=True)) | views)
        for present, past in self._past.items():
            if past in self._fixed:
                views[past].copy_(found[present])
        return [found[n] for n in self._shown]

    def _replayed(self, arrays: Sequence[np.ndarray]) -> list[Tensor] | None:
        rows, places = _power(self._rows), max(_power(self._width), _FEWEST)
        key = (rows, places, *((a.shape[1:], a.dtype.str) for a in arrays))
        return self._recorded.run(key, lambda given: self._step(given, rows, places), arrays, rows, self._rows)

    def _padded(self, arrays: Sequence[np.ndarray], new: int, rows: int) -> int:
        """Tokens that a prompt of `new` is recorded for; 0 where it is not.

        Padding is at most a quarter of a long prompt. Logits are wanted of one token a row, or there would be much to
        copy. Where steps are not recorded buffers have no room for a power of two of rows.
        """
        takes = [a for n, a in zip(self._given, arrays, strict=True) if n == "take"]
        step = max(_FEWEST, _power(new) // 8)
        padded = step * -(-new // step)
        short = _power(rows) * padded <= _MOST_TOKENS and all(a.shape[1] == 1 for a in takes)
        return padded if self._prompts.able and self._recorded.able and short else 0

    def _replayed_prompt(self, arrays: Sequence[np.ndarray], padded: int) -> list[Tensor] | None:
        """A first pass, its tokens padded as shorter rows are beside longer ones."""
        rows, new = _power(self._rows), self._width
        wider = [
            np.array(padded, a.dtype) if n == "total" else _lengthened(a, new, padded)
            for n, a in zip(self._given, arrays, strict=True)
        ]
        key = (rows, padded, *((a.shape[1:], a.dtype.str) for a in wider))
        found = self._prompts.run(key, lambda given: self._step(given, rows, padded), wider, rows, self._rows)
        return None if found is None else [v[:, :new] if v.dim() > 1 and v.shape[1] == padded else v for v in found]

    def _view(self, name: str) -> Tensor:
        """The live part of a buffer."""
        buffer = self._buffers[name][: self._rows]
        return buffer if name in self._fixed else buffer[:, :, : self._width]

    def _make_room(self, rows: int, width: int) -> None:
        """Buffers for so many rows and places, what is live kept."""
        if rows <= self._most_rows and (width <= self._places or not self._growing):
            return
        rows = max(rows, self._rows)
        if self._recorded.able:
            # A recording is for a power of two of each.
            rows, width = max(_power(rows), self._most_rows), max(_power(width), _FEWEST, self._places)
        else:
            width = max(_GROWTH * -(-width // _GROWTH), self._places)
        live = {n: self._view(n) for n in self._buffers}
        made: dict[str, Tensor] = {}
        for name in self.states:
            shape = [rows, *(d or 0 for d in self._shapes[name][1:])]
            if name in self._growing:
                shape[2] = width
            # Zeros: masked places are multiplied by 0, which NaN survives.
            made[name] = torch.zeros(shape, device=self._device)
            if name in live:
                kept = live[name]
                made[name][tuple(slice(0, d) for d in kept.shape)] = kept
        self._buffers, self._most_rows, self._places = made, rows, width
        self._recorded.clear()
        self._prompts.clear()


def _lengthened(array: np.ndarray, new: int, padded: int) -> np.ndarray:
    """`padded` tokens where there are `new`, zeros behind them; what has no axis of tokens as it is."""
    if array.ndim < 2 or array.shape[1] != new:
        return array
    return np.pad(array, [(0, 0), (0, padded - new), *[(0, 0)] * (array.ndim - 2)])


def _power(count: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(count - 1, 0).bit_length()
