"""Time of convolutions on a GPU: the fastest of three algorithms, each a matrix product with its own traffic.

- Implicit product: rows = batch x positions, cols = channels out, inner = channels in x window.
- Winograd F(2x2, 3x3) [Lavin, Gray 2016], fused: 16 multiplications in place of 36 per 2x2 outputs.
- Winograd F(4x4, 3x3), in three passes: 36 in place of 144 per 4x4 outputs, as 36 products of (batch x tiles) x
  channels out x channels in, whose transformed input and output cross memory twice.

Winograd's need a window of 9 (taken as 3x3) at stride 1 in one group. Positions are taken as a square.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .gpu_gemm import gemm_seconds
from .gpu_spec import GpuSpec


def conv_seconds(
    spec: GpuSpec,
    c: Mapping[str, float],
    dims: np.ndarray,
    item: np.ndarray,
    peak: np.ndarray,
    matrix: bool,
    nbytes: np.ndarray,
) -> np.ndarray:
    """Seconds (without launch); `dims` float64[n, 7] as in `devices.work.DIMS`, the rest as for `gemm_seconds`."""
    batch, groups, out, inner, positions, window, stride, *_ = dims.T
    product = np.stack([groups, batch * positions, np.ceil(out / groups), inner * window], axis=1)
    best = gemm_seconds(spec, c, product, item, peak * c["conv_share"], matrix, nbytes) + c["conv_seconds"]
    fits = (window == 9) & (stride == 1) & (groups == 1)
    if not fits.any():
        return best
    d, i, p, q = dims[fits], item[fits], peak[fits], nbytes[fits]
    fast = [_fused(spec, c, d, i, p, matrix, q), _three_passes(spec, c, d, i, p, matrix, q)]
    best[fits] = np.minimum(best[fits], np.minimum(*fast))
    return best


def _tiles(dims: np.ndarray, side: int) -> np.ndarray:
    """Tiles of `side` x `side` outputs, over the whole batch."""
    return np.asarray(dims[:, 0] * np.ceil(np.sqrt(dims[:, 4]) / side) ** 2)


def _fused(
    spec: GpuSpec,
    c: Mapping[str, float],
    dims: np.ndarray,
    item: np.ndarray,
    peak: np.ndarray,
    matrix: bool,
    nbytes: np.ndarray,
) -> np.ndarray:
    product = np.stack([np.ones(len(dims)), 4 * _tiles(dims, 2), dims[:, 2], 4 * dims[:, 3]], axis=1)
    return gemm_seconds(spec, c, product, item, peak * c["winograd_fused"], matrix, nbytes) + c["winograd_seconds"]


def _three_passes(
    spec: GpuSpec,
    c: Mapping[str, float],
    dims: np.ndarray,
    item: np.ndarray,
    peak: np.ndarray,
    matrix: bool,
    nbytes: np.ndarray,
) -> np.ndarray:
    tiles, out, inner = _tiles(dims, 4), dims[:, 2], dims[:, 3]
    product = np.stack([np.full(len(dims), 36.0), tiles, out, inner], axis=1)
    inside = 36 * item * (tiles * (inner + out) + inner * out)
    passes = (nbytes + inside) / (c["winograd_memory"] * spec.bandwidth)
    t = gemm_seconds(spec, c, product, item, peak * c["winograd_passes"], matrix, inside)
    return np.asarray(t + passes + c["passes_seconds"])
