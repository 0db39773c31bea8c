"""Time of matrix products on a GPU: tiles, waves of tiles over the multiprocessors, cache reuse, power.

A product of rows x cols x inner (x batch) is cut into tiles, and the inner extent into `split` parts; each piece is
one thread block. A multiprocessor (unit) that holds q blocks of area A works at the share

    u = q A / (q A + A0)                      (too few results in flight cannot hide latencies)

of what it attains with many, and that is the share

    e = e_max a / (1 + b (1/tile_rows + 1/tile_cols))   (operands pass shared memory once per tile; a: alignment)

of its peak. The busiest unit has q = ceil(blocks / units), which quantises time in waves. So

    t_c = w q 2 A (inner / split + k0) / (e u P / units)      w: address translation of long rows
    t_m = max(bytes / (n_m B), tile operands / B_cache) (1 + f0 / f)
          bytes: operands, results, tiles read again that the cache cannot hold, partial sums of a split
          f: tile edges in flight per unit (too few cannot fill the memory's pipes)
    t_p = t_c u P e_flop / (power limit - board)    (a board that cannot feed its peak lowers its clock)
    t   = max((t_c^4 + t_m^4)^(1/4), t_p)

and the library is taken to choose the tile and split with the smallest t.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .gpu_spec import GpuSpec

#: Tile shapes of the vendors' libraries (rows, cols): both ways round are tried where they differ.
LANE_TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (64, 32), (32, 64), (32, 32))
MATRIX_TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 128), (128, 32), (16, 128))
SPLITS = (1, 2, 3, 4, 6, 8, 16, 32)
#: Rows of operands are read as vectors of 16 bytes where their length allows it.
_VECTOR = 16
#: Matrix units that take fp32 operands (4 bytes) attain less: twice the operand bytes for the same product.
_WIDE = 4
#: A small board or a chip's share of a package spends no more than this of its limit beside the work.
_BOARD_SHARE = 0.25
#: Compute and memory overlap imperfectly near the ridge: t^p = t_c^p + t_m^p.
_OVERLAP = 4
#: Rows longer than this [byte] start to cost address translations: each row of a tile lies in a page of its own.
_PAGE_SHARE = 2.0**16
#: Blocks of one wave drift apart by up to this many steps of the inner extent, which the cache has to hold.
_DRIFT = 1024


def gemm_seconds(
    spec: GpuSpec,
    c: Mapping[str, float],
    dims: np.ndarray,
    item: np.ndarray,
    peak: np.ndarray,
    matrix: bool,
    nbytes: np.ndarray,
) -> np.ndarray:
    """Seconds (without launch) of products.

    `dims` is float64[n, 4] (batch, rows, cols, inner), `item` [byte] the width of an operand's element, `peak`
    [FLOP/s], `matrix` whether matrix units do the work, `nbytes` [byte] all that crosses the kernel's border.
    """
    unit = "matrix" if matrix else "lane"
    tiles = np.array(MATRIX_TILES if matrix else LANE_TILES, dtype=float)
    splits = np.array(SPLITS, dtype=float)
    tm, tn = np.repeat(tiles, len(splits), axis=0).T
    split = np.tile(splits, len(tiles))
    batch, rows, cols, inner = (dims[:, i, None] for i in range(4))
    item, peak, nbytes = item[:, None], peak[:, None], nbytes[:, None]

    across, down = np.ceil(cols / tn), np.ceil(rows / tm)
    blocks = batch * across * down * split
    q = np.ceil(blocks / spec.units)
    area = tm * tn
    steps = np.ceil(inner / split)
    aligned = ((inner * item) % _VECTOR == 0) & ((cols * item) % _VECTOR == 0)
    e = c[f"{unit}_share"] / (1 + c[f"{unit}_edge"] * (1 / tm + 1 / tn))
    e = e * np.where(aligned, 1.0, c[f"{unit}_unaligned"])
    if matrix:
        e = e * np.where(item == _WIDE, c["matrix_wide"], 1.0)
    u = q * area / (q * area + c[f"{unit}_results"])
    walks = 1 + c["page_walk"] * np.log2(1 + inner * item / _PAGE_SHARE)
    busy = walks * q * 2 * area * (steps + c[f"{unit}_prologue"]) / (e * peak / spec.units)

    reread = batch * item * (rows * inner * (across - 1) + cols * inner * (down - 1))
    # Blocks that run together share operands through the cache; what their wave spans beyond it comes from memory.
    span = np.sqrt(area * np.minimum(q, 4) * spec.units)
    held = spec.cache_bytes / (spec.cache_bytes + item * np.minimum(inner, _DRIFT) * span)
    partial = np.where(split > 1, 2 * 4 * split * batch * rows * cols, 0.0)
    l2 = (reread + nbytes) / (c["cache_bytes_per_flop"] * spec.lanes)
    moved = nbytes + (1 - held) * c[f"{unit}_lost"] * reread + partial
    memory = np.maximum(moved / (c[f"{unit}_memory"] * spec.bandwidth), l2)
    panel = blocks / spec.units * (tm + tn)
    memory = memory * (1 + c[f"{unit}_flight"] / panel)
    compute = busy / u
    t = (compute**_OVERLAP + memory**_OVERLAP) ** (1 / _OVERLAP)
    hungry = busy * power_share(spec, c, unit, peak)
    t = np.maximum(t, hungry * (1 if spec.sustained else hungry / (hungry + c["power_delay"])))
    t = t + np.where(split > 1, c["split_seconds"], 0.0)
    t = np.where((batch > 1) & ((area < c["batched_area"]) | (split > 1)), np.inf, t)
    return np.asarray(t.min(axis=1))


def power_share(spec: GpuSpec, c: Mapping[str, float], unit: str, peak: np.ndarray) -> np.ndarray:
    """Power [W] at the peak rate over what the limit leaves for work; 0 where limit or process is not known.

    Energy per FLOP grows with the process's feature size to `node_power` (capacitance follows the dimensions). Units
    of 128 lanes issue one instruction where those of 64 issue two, and that is where most of the energy goes.
    """
    if spec.tdp is None or spec.node is None:
        return np.zeros_like(peak)
    per_flop = c[f"{unit}_joule"] * (spec.node / 10) ** c["node_power"]
    if unit == "lane":
        per_flop *= spec.issue / spec.lanes
    board = min(c["board_watts"], _BOARD_SHARE * spec.tdp)
    return np.asarray(peak * per_flop / (spec.tdp - board))
