"""What a device is asked to do: the kernels of one engine, as columns.

`passes.annotate` makes these tables; the time models of this package price them. Sizes follow the conventions
of `passes.count`: a multiply-add counts 2 FLOP, bytes are those that cross the kernel's border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

#: What kind of work an operator is; each kind has its own efficiency.
OperatorKind = Literal[
    "gemm",
    "gemv",
    "conv",
    "attention",
    "recurrent",
    "norm",
    "softmax",
    "reduce",
    "elementwise",
    "gather",
    "movement",
    "control",
    "quantize",
    "sort",
    "other",
]

#: Extent of a kernel's main operator, by kind; () where there is none. Sizes are in elements.
DIMS: dict[str, str] = {
    "gemm": "batch, rows, cols, inner",
    "gemv": "batch, rows, cols, inner",
    "conv": "batch, groups, channels out, channels in per group, positions out, window, stride, width out, axes",
    "attention": "heads (batch x query heads), queries, keys, width, value width",
    "norm": "rows, width",
    "softmax": "rows, width",
    "reduce": "elements before, along and after the reduced axes",
    "movement": "runs (elements that stay neighbours count as one), elements of a run",
    "recurrent": "steps (time x batch), matrix entries, states",
}


@dataclass(frozen=True)
class KernelTable:
    """Kernels (rows) of one engine.

    `kinds`, `dims` (see `DIMS`) and `dtypes` (the operator graph's names) describe the operator with most FLOPs
    of each kernel. `flops` [FLOP], `bytes_in`, `bytes_weights` and `bytes_out` [byte] are float64[kernels];
    `group` is int64[kernels], the group of the partition to which each kernel belongs. `types` names the main
    operator (`Conv`, `linear`) for reports and for calibrations that tell operators apart. `bytes_ends` are those of
    the bytes in and out that belong to inputs and outputs of the graph: like weights, nothing touched them since the
    last run (None: not told apart). Of these, `bytes_entering` and `bytes_leaving` come from and go to the caller;
    states stay. `flops_alike` are the FLOPs of the operators of the main one's type (None: all).
    """

    kinds: tuple[str, ...]
    dims: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    types: tuple[str, ...]
    flops: np.ndarray
    bytes_in: np.ndarray
    bytes_weights: np.ndarray
    bytes_out: np.ndarray
    group: np.ndarray
    bytes_ends: np.ndarray | None = None
    bytes_entering: np.ndarray | None = None
    bytes_leaving: np.ndarray | None = None
    flops_alike: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.kinds)

    def only(self, kept: np.ndarray) -> KernelTable:
        """The kernels that bool[kernels] marks."""
        chosen: dict[str, Any] = {}
        for column in fields(self):
            values = getattr(self, column.name)
            if isinstance(values, tuple):
                values = tuple(v for v, keep in zip(values, kept, strict=True) if keep)
            chosen[column.name] = values[kept] if isinstance(values, np.ndarray) else values
        return KernelTable(**chosen)

    @property
    def nbytes(self) -> np.ndarray:
        """All bytes moved, float64[kernels]."""
        return self.bytes_in + self.bytes_weights + self.bytes_out

    @cached_property
    def _coded(self) -> dict[str, tuple[list[str], np.ndarray]]:
        """Column of names -> its different names, and which of them each kernel has."""
        return {c: _codes(getattr(self, c)) for c in ("kinds", "dtypes")}

    def per_kind(self, value: Callable[[str], float]) -> np.ndarray:
        """`value` of each kernel's kind, float64[kernels]; asked once per kind."""
        return self._spread("kinds", value)

    def per_dtype(self, value: Callable[[str], float]) -> np.ndarray:
        """`value` of each kernel's dtype, float64[kernels]; asked once per dtype."""
        return self._spread("dtypes", value)

    def _spread(self, column: str, value: Callable[[str], float]) -> np.ndarray:
        names, codes = self._coded[column]
        return np.array([value(n) for n in names], dtype=float)[codes]


def _codes(column: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    number = {name: k for k, name in enumerate(dict.fromkeys(column))}
    return list(number), np.array([number[name] for name in column], dtype=np.int64)
