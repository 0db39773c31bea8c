"""How long a GPU takes for each kernel, from its shape and the device's data sheet.

The outer form is `t = launch + max(W / (n_c P), Q / (n_m B))`; what this package models are the two shares, per
kind of operator and shape: tiles and waves for products (`gpu_gemm`), Winograd's and implicit products for
convolutions (`gpu_conv`), rows for norms and softmax, and for fused attention blocks of queries. The coefficients
are dimensionless wherever that is possible, so that they hold for a device that nobody measured;
`validation.gpu_fit` fits them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .gpu_conv import conv_seconds
from .gpu_gemm import gemm_seconds, power_share
from .gpu_spec import GpuSpec, coefficients
from .profile import FALLBACK, OTHER_DTYPES, SHORT_DTYPE, DeviceProfile
from .work import KernelTable

#: Bytes of one element, by short dtype name.
_ITEM = {"fp64": 8.0, "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp4": 0.5, "int8": 1.0, "int4": 0.5}
#: Rows of scores that one block of a fused attention kernel works on.
_QUERY_TILE = 64
#: Fewer queries than this per head are a decoding step.
_FEW_QUERIES = 16
#: A row of a softmax no wider than this stays in registers; a wider one is read three times.
_ROW_IN_REGISTERS = 1024


def gpu_seconds(
    device: DeviceProfile | GpuSpec, kernels: KernelTable, fitted: Mapping[str, float] | None = None
) -> np.ndarray:
    """Seconds of every kernel, float64[kernels], each run alone after the last one; `fitted` replaces the shipped
    coefficients.
    """
    spec = device if isinstance(device, GpuSpec) else GpuSpec.of(device)
    c = coefficients() if fitted is None else fitted
    shorts = [SHORT_DTYPE.get(d, d) for d in kernels.dtypes]
    runs = {s: _runs_as(spec, s) for s in set(shorts)}
    peak = np.array([spec.peak[runs[s]] for s in shorts], dtype=float)
    item = np.array([_ITEM.get(s, 4.0) for s in shorts], dtype=float)
    matrix = np.array([runs[s] in spec.matrix for s in shorts], dtype=bool)
    classes: dict[tuple[str, int, bool], list[int]] = {}
    for i, (kind, extent) in enumerate(zip(kernels.kinds, kernels.dims, strict=True)):
        classes.setdefault((kind, len(extent), bool(matrix[i])), []).append(i)
    seconds = np.empty(len(kernels))
    for (kind, size, on_matrix), rows in classes.items():
        at = np.array(rows)
        dims = np.array([kernels.dims[i] for i in rows], dtype=float).reshape(len(rows), size)
        work = _Rows(spec, c, dims, item[at], peak[at], on_matrix, kernels.flops[at], kernels.nbytes[at])
        seconds[at] = _SECONDS.get((kind, size), _stream(kind))(work)
    return spec.launch + seconds


class _Rows:
    """Kernels of one kind, extent and unit: columns float64[n], `dims` float64[n, extents]."""

    def __init__(
        self,
        spec: GpuSpec,
        c: Mapping[str, float],
        dims: np.ndarray,
        item: np.ndarray,
        peak: np.ndarray,
        matrix: bool,
        flops: np.ndarray,
        nbytes: np.ndarray,
    ) -> None:
        self.spec, self.c, self.dims, self.item, self.peak = spec, c, np.maximum(dims, 1.0), item, peak
        self.matrix, self.flops, self.nbytes = matrix, flops, nbytes

    def memory(self, share: float, nbytes: np.ndarray | None = None) -> np.ndarray:
        """Seconds at a share of the memory roof; what stays in the cache from kernel to kernel moves faster."""
        moved = self.nbytes if nbytes is None else nbytes
        cached = np.maximum(0.0, 1 - self.nbytes / (2 * self.spec.cache_bytes))
        faster = 1 - cached * (1 - 1 / self.c["cache_over_memory"])
        return np.asarray(moved * faster / (share * self.spec.bandwidth))


def _gemm(k: _Rows) -> np.ndarray:
    return gemm_seconds(k.spec, k.c, k.dims, k.item, k.peak, k.matrix, k.nbytes)


def _gemv(k: _Rows) -> np.ndarray:
    """One row or column: libraries have kernels without tiles for it on the lanes; matrix units stay with tiles."""
    if k.matrix:
        return _gemm(k)
    compute = k.flops / (k.c["lane_share"] * k.peak)
    return np.asarray(np.maximum(compute, k.memory(k.c["elementwise_memory"])))


def _conv(k: _Rows) -> np.ndarray:
    return conv_seconds(k.spec, k.c, k.dims, k.item, k.peak, k.matrix, k.nbytes)


def _attention(k: _Rows) -> np.ndarray:
    """Fused attention: blocks of queries fill the units in waves, each walking over its keys.

    With few queries (decoding) the keys are split over blocks instead, so that only memory counts.
    """
    heads, queries = k.dims[:, 0], k.dims[:, 1]
    tiles = np.ceil(queries / _QUERY_TILE)
    blocks = heads * tiles
    idle = np.ceil(blocks / k.spec.units) * k.spec.units / blocks * tiles * _QUERY_TILE / queries
    unit = "matrix" if k.matrix else "lane"
    work = k.flops / (k.c[f"{unit}_attention"] * k.peak)
    walk = work * np.maximum(idle, power_share(k.spec, k.c, unit, k.peak))
    compute = np.where(queries < _FEW_QUERIES, work, walk)
    return np.asarray(k.c["attention_seconds"] + np.maximum(compute, k.memory(k.c["attention_memory"])))


def _norm(k: _Rows) -> np.ndarray:
    rows, width = k.dims[:, 0], k.dims[:, 1]
    instructions = rows * (k.c["norm_row"] + k.c["norm_element"] * width) / k.spec.issue
    return np.asarray(instructions + k.memory(k.c["norm_memory"]))


def _softmax(k: _Rows) -> np.ndarray:
    rows, width = k.dims[:, 0], k.dims[:, 1]
    instructions = rows * (k.c["softmax_row"] + k.c["softmax_element"] * width) / k.spec.issue
    again = np.where(width > _ROW_IN_REGISTERS, k.c["softmax_again"] * k.nbytes, 0.0)
    return np.asarray(instructions + k.memory(k.c["softmax_memory"], k.nbytes + again))


def _stream(kind: str) -> Callable[[_Rows], np.ndarray]:
    """Everything that only streams. 16-bit values are converted to fp32 and back around each function."""
    name = kind if kind in ("gather", "movement") else "elementwise"

    def seconds(k: _Rows) -> np.ndarray:
        per_flop = np.where(k.item < 4, k.c["half_flop"], k.c["full_flop"])
        elements = k.nbytes / (2 * k.item)
        lanes = k.flops * per_flop + (elements * k.c["gather_element"] if kind == "gather" else 0.0)
        return np.asarray(k.memory(k.c[f"{name}_memory"]) + lanes / k.spec.lanes)

    return seconds


_SECONDS: Mapping[tuple[str, int], Callable[[_Rows], np.ndarray]] = {
    ("gemm", 4): _gemm,
    ("gemv", 4): _gemv,
    ("conv", 9): _conv,
    ("attention", 5): _attention,
    ("norm", 2): _norm,
    ("softmax", 2): _softmax,
}


def _runs_as(spec: GpuSpec, short: str) -> str:
    """As `DeviceProfile.runs_as`."""
    names = (short, *FALLBACK.get(short, OTHER_DTYPES))
    return next((n for n in names if n in spec.peak), next(iter(spec.peak)))
