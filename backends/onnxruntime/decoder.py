"""Decoder stages on ONNX Runtime: states in buffers that are input and output at once.

GroupQueryAttention writes new keys and values into the buffer that it reads, so nothing is copied while the buffer has
room. Rows that are picked from one row share its tokens: these are kept once (`prefix`), and the buffers hold what rows
have of their own. States of convolutions are small; two buffers change places. Models that append by themselves (as
exporters write them) hand out new tensors, which are read next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from qeil_compile.backends.onnx_tools import appends_by_itself
from qeil_compile.backends.onnxruntime.prefix import SHARED, prefix_of
from qeil_compile.errors import BackendError

#: Tokens that rows would have to read more than once before they are kept apart, which takes some operators more.
_WORTH_SHARING = 256
#: Places of a cache that are added at once when it is full.
_GROWTH = 128
_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype("f4"), "tensor(float16)": np.dtype("f2")}
#: Operators that no optimiser writes a weight anew for.
_READERS = {("Gather", ""), ("FusedMatMul", "com.microsoft"), ("MatMulNBits", "com.microsoft")}
#: A block of memory serves again where it is at most so many times what is wanted.
_LOOSE = 4


class OrtDecoderStage:
    """One session with its buffers. Keys and values grow along their third axis."""

    compact = True

    def __init__(self, session: Any, states: Mapping[str, str]) -> None:
        self._session = session
        shapes = {i.name: i.shape for i in session.get_inputs()}
        self.states: Sequence[str] = [n for n in shapes if n in states]
        self._shares = SHARED in shapes
        kept = {SHARED, *states, *(prefix_of(n) for n in states)}
        self._given = [n for n in shapes if n not in kept]
        self._present = {n: states[n] for n in self.states}
        written = set(self._present.values())
        self._outputs = [o.name for o in session.get_outputs() if o.name not in written]
        self._shapes = {n: [d if isinstance(d, int) else -1 for d in shapes[n]] for n in self.states}
        types = {i.name: i.type for i in session.get_inputs()}
        self._dtypes = {n: _DTYPES[types[n]] for n in self.states}
        self._growing = [n for n in self.states if not self._is_fixed(n)]
        # Keys and values lie in blocks; those of the last job serve the next one, for fresh pages are slow.
        self._blocks: dict[str, np.ndarray] = {}
        self._free: dict[str, list[np.ndarray]] = {n: [] for n in self._growing}
        self._buffers: dict[str, np.ndarray] = {}
        self._values: dict[str, Any] = {}
        # Tokens in the buffers, places in them, and columns of the rows as the session counts them.
        self._total = self._capacity = self._width = 0
        self._binding: Any = None
        # A row that others were picked from, and their number, until their next pass tells its length.
        self._picked: tuple[int, int] | None = None
        self._prefix: dict[str, np.ndarray] = {}
        self._shared = 0
        self.reset(1)

    def reset(self, rows: int) -> None:
        self._total = self._width = 0
        self._unshare()
        self._release()
        self._renew({n: np.zeros(self._shape(n, rows, 0), self._dtypes[n]) for n in self.states}, 0)

    def select(self, rows: np.ndarray) -> None:
        buffers = {n: b[rows] for n, b in self._buffers.items() if self._is_fixed(n)}
        if self._picked is not None:
            self._picked = (self._picked[0], len(rows))
            self._renew(self._buffers | buffers, self._capacity)
            return
        spared = (len(rows) - 1) * self._total
        if self._shares and not self._shared and spared >= _WORTH_SHARING and (rows == rows[0]).all():
            self._picked = (int(rows[0]), len(rows))
            self._renew(self._buffers | buffers, self._capacity)
            return
        if (np.diff(rows, prepend=-1) > 0).all():
            # Rows only leave: those behind them move up, within the buffers.
            if len(rows) == self._rows:
                return
            for name in self._growing:
                buffers[name] = self._filled(self._buffers[name], name, rows)[: len(rows)]
            self._renew(buffers, self._capacity)
            return
        # With room for the next token, or the next pass would copy everything once more.
        capacity = _rounded(self._total + 1)
        blocks = {}
        for name in self._growing:
            blocks[name], goal = self._block(name, self._shape(name, len(rows), capacity))
            buffers[name] = self._filled(goal, name, rows)
        self._release()
        self._blocks = blocks
        self._renew(buffers, capacity)

    def _block(self, name: str, shape: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """A block that is free, or new, and its part of that shape."""
        size = int(np.prod(shape))
        free = self._free[name]
        fitting = [k for k, b in enumerate(free) if size <= b.size <= _LOOSE * size]
        block = free.pop(min(fitting, key=lambda k: free[k].size)) if fitting else np.empty(size, self._dtypes[name])
        return block, block[:size].reshape(shape)

    def _share(self, length: int) -> None:
        """The picked row's tokens are the prefix of all rows, which begin with nothing of their own."""
        assert self._picked is not None
        row, rows = self._picked
        self._picked, self._shared, self._total = None, length, 0
        buffers = {n: b for n, b in self._buffers.items() if self._is_fixed(n)}
        blocks, capacity = {}, _rounded(1)
        for name in self._growing:
            self._prefix[name] = np.ascontiguousarray(self._buffers[name][row, :, :length])
            blocks[name], buffers[name] = self._block(name, self._shape(name, rows, capacity))
        self._release()
        self._blocks = blocks
        self._renew(buffers, capacity)

    def _unshare(self) -> None:
        self._picked, self._shared = None, 0
        # The operators want some; what it holds is not read.
        self._prefix = {n: np.zeros((s[1], 1, s[3]), self._dtypes[n]) for n in self._growing for s in [self._shapes[n]]}

    def _release(self) -> None:
        """What is in use is free: a prompt's block and its samples' are kept, none older."""
        for name, block in self._blocks.items():
            self._free[name] = [*self._free[name], block][-2:]
        self._blocks = {}

    def _filled(self, goal: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        """`goal` with the keys or values that `rows` hold; within one buffer rows can only move to the front."""
        source = self._buffers[name]
        for place, row in enumerate(rows):
            if goal is not source or place != row:
                goal[place, :, : self._total] = source[row, :, : self._total]
        return goal

    def export(self) -> dict[str, np.ndarray]:
        return {n: np.array(b if self._is_fixed(n) else self._whole(n)) for n, b in self._buffers.items()}

    def _whole(self, name: str) -> np.ndarray:
        """Keys or values of all rows, what they share included, as wide as the session counts."""
        buffer = self._buffers[name][:, :, : self._total]
        if self._picked is not None:
            row, rows = self._picked
            return np.repeat(buffer[row : row + 1], rows, axis=0)
        if not self._shared:
            return buffer
        whole = np.zeros(self._shape(name, len(buffer), self._width), buffer.dtype)
        whole[:, :, : self._shared] = self._prefix[name]
        whole[:, :, self._shared : self._shared + self._total] = buffer
        return whole

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        self._unshare()
        self._release()
        self._total = next((states[n].shape[2] for n in self.states if not self._is_fixed(n)), 0)
        self._width = self._total
        self._renew({n: np.ascontiguousarray(states[n]) for n in self.states}, self._total)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._width = total = feeds["mask"].shape[1]
        if self._picked is not None:
            new = feeds["mask"].shape[1] - self._total
            self._share(int(feeds["lengths"][0]) + 1 - new)
        if self._shared:
            total = int(feeds["total"]) - self._shared
            feeds = {**feeds, "lengths": feeds["lengths"] - np.int32(self._shared), "total": np.array(total, np.int32)}
        try:
            if total > self._capacity and self.states:
                self._grow(total)
            binding = self._binding
            for name in self._given:
                binding.bind_cpu_input(name, feeds[name])
            for name in self._outputs:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            # Outputs come in the order in which they were bound first: states, then the others.
            found = binding.get_outputs()[len(self.states) :]
        except Exception as error:  # ONNX Runtime raises a family of types without a common base
            raise BackendError(f"onnxruntime: {' '.join(str(error).split())[:300]}") from error
        self._total = total
        for name in self.states:
            if self._is_fixed(name):
                self._swap(name)
        return dict(zip(self._outputs, (v.numpy() for v in found), strict=True))

    # ---- buffers

    @property
    def _rows(self) -> int:
        return next(iter(self._buffers.values())).shape[0] if self._buffers else 0

    def _is_fixed(self, name: str) -> bool:
        return len(self._shapes[name]) == 3

    def _shape(self, name: str, rows: int, length: int) -> list[int]:
        shape = self._shapes[name]
        return [rows, *shape[1:]] if self._is_fixed(name) else [rows, shape[1], length, shape[3]]

    def _grow(self, total: int) -> None:
        capacity = _rounded(total)
        grown = {n: b for n, b in self._buffers.items() if self._is_fixed(n)}
        for name in self._growing:
            old = self._buffers[name]
            # The block that was too small is not kept: a long text would hold many.
            self._blocks[name], grown[name] = self._block(name, self._shape(name, len(old), capacity))
            grown[name][:, :, : self._total] = old[:, :, : self._total]
        self._renew(grown, capacity)

    def _renew(self, buffers: dict[str, np.ndarray], capacity: int) -> None:
        self._buffers, self._capacity = buffers, capacity
        self._binding = self._session.io_binding()
        self._values = {}
        for name in self.states:
            value = self._values[name] = ort.OrtValue.ortvalue_from_numpy(buffers[name])
            self._binding.bind_ortvalue_input(name, value)
            if self._is_fixed(name):
                value = ort.OrtValue.ortvalue_from_numpy(np.empty_like(buffers[name]))
                self._values[self._present[name]] = value
            self._binding.bind_ortvalue_output(self._present[name], value)
        if self._shares:
            self._flag = np.array(bool(self._shared))  # its memory is the value's memory, as of all arrays here
            for name, array in {SHARED: self._flag, **{prefix_of(n): a for n, a in self._prefix.items()}}.items():
                value = self._values[name] = ort.OrtValue.ortvalue_from_numpy(array)
                self._binding.bind_ortvalue_input(name, value)

    def _swap(self, name: str) -> None:
        """What was written is read next, and what was read is written over."""
        present = self._present[name]
        self._values[name], self._values[present] = self._values[present], self._values[name]
        self._binding.bind_ortvalue_input(name, self._values[name])
        self._binding.bind_ortvalue_output(present, self._values[present])
        self._buffers[name] = self._values[name].numpy()


class OrtAppendingStage:
    """One session that hands out grown states, which it reads in the next pass."""

    compact = False

    def __init__(self, session: Any, states: Mapping[str, str]) -> None:
        self._session = session
        inputs = {i.name: i for i in session.get_inputs()}
        self.states: Sequence[str] = [n for n in inputs if n in states]
        self._given = [n for n in inputs if n not in states]
        self._empty: dict[str, tuple[list[int], np.dtype[Any]]] = {
            n: ([d if isinstance(d, int) else 0 for d in inputs[n].shape[1:]], _DTYPES[inputs[n].type])
            for n in self.states
        }
        self._past = {states[n]: n for n in self.states}
        self._outputs = [o.name for o in session.get_outputs()]
        self._values: dict[str, Any] = {}
        self.reset(1)

    def reset(self, rows: int) -> None:
        self.load({n: np.zeros([rows, *shape], dtype) for n, (shape, dtype) in self._empty.items()})

    def select(self, rows: np.ndarray) -> None:
        self.load({n: v.numpy()[rows] for n, v in self._values.items()})

    def export(self) -> dict[str, np.ndarray]:
        return {n: np.array(v.numpy()) for n, v in self._values.items()}

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        found = {n: np.ascontiguousarray(states[n]) for n in self.states}
        self._values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in found.items()}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            feed = {n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feeds[n])) for n in self._given}
            values = self._session.run_with_ort_values(self._outputs, feed | self._values)
        except Exception as error:  # ONNX Runtime raises a family of types without a common base
            raise BackendError(f"onnxruntime: {' '.join(str(error).split())[:300]}") from error
        found = dict(zip(self._outputs, values, strict=True))
        self._values = {past: found.pop(present) for present, past in self._past.items()}
        return {n: v.numpy() for n, v in found.items()}


def decoder_stage(session: Any, payload: bytes, states: Mapping[str, str]) -> OrtDecoderStage | OrtAppendingStage:
    """The kind of stage that a model's operators call for."""
    appends = appends_by_itself(onnx.load_model_from_string(payload).graph, states)
    return (OrtAppendingStage if appends else OrtDecoderStage)(session, states)


def readable_in_place(payload: bytes, weights: Iterable[str]) -> frozenset[str]:
    """Of a model's weights those that a session may read where they are.

    Optimisers write some weights anew under their old names (transposed, where a transpose is pushed through an
    operator): a session that was told to read the old array there would compute with that.
    """
    others: set[str] = set()

    def look(graph: onnx.GraphProto) -> None:
        others.update(o.name for o in graph.output)
        for node in graph.node:
            if (node.op_type, node.domain) not in _READERS:
                others.update(node.input)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    look(inner)

    look(onnx.load_model_from_string(payload).graph)
    return frozenset(weights) - others


def _rounded(total: int) -> int:
    """Places of a cache of so many tokens."""
    return _GROWTH * -(-total // _GROWTH)
