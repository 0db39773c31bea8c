"""Which networks a calibration times.

Shapes follow the beaten track of published networks: as a feature map shrinks its channels grow; products have
from one row (a token) to hundreds; a few have weights that no cache holds. No network is a layer list of a known model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from .composites import boxes, decoder, mobile, residual, speech
from .networks import (
    BINARY,
    UNARY,
    Layer,
    Network,
    appended,
    attention,
    convolutions,
    elementwise,
    four_bits,
    gemm,
    movement,
    pooling,
    products,
    recurrent,
    reduction,
    rowwise,
)

Build = Callable[[], Network]


def suite() -> list[Build]:
    """Builders of every network: the networks themselves would take a gigabyte together."""
    return [*_products(), *_convolutions(), *_others(), *_composites()]


def _products() -> list[Build]:
    found: list[Build] = [
        partial(gemm, rows, inner, cols, _repeats(4.0 * rows * inner * cols, 8.0 * inner * cols))
        for rows in (1, 4, 16, 64, 256)
        for inner, cols in ((64, 64), (128, 128), (256, 256), (128, 512), (256, 1024), (768, 768))
    ]
    # Weights of 8 MB to what no cache holds: where a cache ends, and what a product hides of the traffic.
    found += [partial(gemm, 1, 512, 1024, n) for n in (2, 4, 6, 8, 12)] + [
        partial(gemm, 1, 1024, 4096, 4),
        partial(gemm, 1, 768, 3072, 8),
        partial(gemm, 1, 640, 16384, 1),
    ]
    found += [
        partial(gemm, 8, 768, 3072, 4),
        partial(gemm, 12, 384, 1536, 6),
        partial(gemm, 24, 512, 1024, 4),
        partial(gemm, 24, 512, 1024, 12),
        partial(gemm, 32, 1024, 2048, 4),
        partial(gemm, 48, 640, 1280, 6),
        partial(gemm, 96, 768, 3072, 1),
        partial(gemm, 128, 896, 3584, 2),
        partial(gemm, 64, 512, 8192, 1),
    ]
    found += [partial(gemm, 16, 256, 256, 2, np.float16), partial(gemm, 1, 256, 1024, 2, np.float16)]
    found += [
        partial(four_bits, 1, 768, 3072, 4),
        partial(four_bits, 16, 768, 768, 2),
        partial(four_bits, 1, 256, 256, 8),
    ]
    # Added to what came in: the end of each half of a transformer's layer.
    residuals = (
        (1, 512, 2048, 4),
        (1, 768, 768, 8),
        (1, 896, 3584, 4),
        (1, 256, 1024, 8),
        (16, 512, 2048, 2),
        (128, 640, 640, 1),
    )
    found += [partial(gemm, *r, residual=True) for r in residuals]
    sizes = ((12, 1, 64), (12, 16, 64), (8, 64, 64), (12, 128, 64), (4, 256, 64), (8, 32, 32), (16, 64, 128))
    return [*found, *(partial(products, *s, repeats=4) for s in sizes)]


def _repeats(flops: float, nbytes: float) -> int:
    """So many that one call takes about a millisecond on a core of 100 GFLOP/s, from 1 to 16."""
    return int(np.clip(1e-3 / (flops / 1e11 + nbytes / 3e10), 1, 16))


def _convolutions() -> list[Build]:
    found: list[Build] = []
    for channels, side in (
        (16, 112), (32, 56), (64, 56), (64, 28), (128, 28), (128, 14), (256, 14), (256, 7), (512, 7), (24, 56),
        (96, 14), (12, 28), (8, 28),
    ):  # fmt: skip
        work = 2.0 * channels * channels * side * side
        shape = (channels, side, side)
        found.append(partial(convolutions, "1x1", shape, [Layer(channels, (1, 1))], _repeats(work, 0)))
        if work < 1e8:
            found.append(partial(convolutions, "3x3", shape, [Layer(channels, (3, 3))], min(8, _repeats(9 * work, 0))))
        if channels in (16, 32, 64, 128, 256, 512, 96):
            found.append(partial(convolutions, "depthwise 3x3", shape, [Layer(channels, (3, 3), groups=0)], 8))
    for narrow, wide, side in ((16, 64, 56), (64, 256, 28), (128, 512, 14), (512, 2048, 7), (64, 8, 30), (256, 6, 10)):
        pair = [Layer(wide, (1, 1)), Layer(narrow, (1, 1))]
        found.append(partial(convolutions, f"1x1 to {wide}", (narrow, side, side), pair, 2))
    # Next to no work behind images: engines that keep channels together put those of the image together first.
    found += [partial(convolutions, "1x1 to 8", (3, side, side), [Layer(8, (1, 1))]) for side in (96, 256)]
    for first in (16, 32, 64):
        found.append(partial(convolutions, f"3x3 to {first}", (3, 224, 224), [Layer(first, (3, 3), 2)]))
        pyramid = [Layer(first * 2**i, (3, 3), 2) for i in range(4)]
        found.append(partial(convolutions, f"3x3 pyramid {first}", (3, 160, 160), pyramid))
        found.append(partial(convolutions, f"7x7 to {first}", (3, 160, 160), [Layer(first, (7, 7), 2)]))
        deep = [Layer(first, (3, 3), 2, 0)] * 3
        found.append(partial(convolutions, f"depthwise pyramid {first}", (first, 112, 112), deep))
        # One layer: a stride of pointwise convolutions in a row may be moved up through them.
        for wide, side in ((first, 56), (4 * first, 28)):
            found.append(
                partial(convolutions, f"1x1 halving to {2 * wide}", (wide, side, side), [Layer(2 * wide, (1, 1), 2)])
            )
    found.append(partial(convolutions, "depthwise 5x5", (64, 28, 28), [Layer(64, (5, 5), groups=0)], 8))
    # Weights that no cache holds.
    found.append(partial(convolutions, "3x3", (512, 7, 7), [Layer(512, (3, 3))], 8))
    found.append(partial(convolutions, "1x1 to 2048", (512, 4, 4), [Layer(2048, (1, 1)), Layer(512, (1, 1))], 8))
    lines = (
        (64, 128, 3), (128, 32, 3), (128, 4, 3), (64, 2, 3), (128, 1, 3), (64, 8, 9), (256, 64, 5), (64, 256, 9),
        (192, 4, 3), (96, 2, 3), (80, 4, 5), (160, 1, 3),
    )  # fmt: skip
    for channels, length, window in lines:
        found.append(partial(convolutions, f"1-D {window}", (channels, length), [Layer(channels, (window,))], 4))
    found.append(partial(convolutions, "1-D 192 to 200", (1, 768), [Layer(200, (192,), 128)]))
    found.append(partial(convolutions, "1-D 320 to 320", (1, 960), [Layer(320, (320,), 160, padded=False)]))
    for narrow, wide, length, window in ((128, 256, 4, 3), (16, 128, 4, 1), (1, 128, 256, 128)):
        pair = [Layer(wide, (window,), padded=window < length), Layer(narrow, (1,))]
        found.append(
            partial(convolutions, f"1-D {window} to {wide}", (narrow, length), pair, 2 if window < length else 1)
        )
    for channels, length, window in ((64, 128, 3), (128, 256, 5), (256, 256, 3)):
        layer = Layer(channels, (window, 1), padded=False)
        found.append(partial(convolutions, f"{window}x1", (channels, length, 1), [layer], 3))
    return found


def _others() -> list[Build]:
    found: list[Build] = [partial(elementwise, k, size, 8) for k in (*UNARY, *BINARY) for size in (64, 131072)]
    found += [partial(elementwise, "Add", size, 4) for size in (4096, 131072, 4194304)]
    # Next to nothing to compute, once and often: what a call and a kernel cost.
    found += [partial(rowwise, "Softmax", 1, 8, n) for n in (1, 32)] + [
        partial(movement, "Squeeze", 256, n) for n in (1, 16)
    ]
    kinds = ("Softmax", "LayerNormalization", "RMSNormalization")
    found += [partial(rowwise, k, *shape, repeats=4) for k in kinds for shape in ((1, 512), (128, 768), (2048, 64))]
    found += [partial(rowwise, "Softmax", rows, width, 4) for rows, width in ((4096, 2), (1536, 128))]
    found += [
        partial(movement, k, n, 4) for k in ("Transpose", "Concat", "Split", "Pad", "Gather") for n in (1024, 131072)
    ]
    found += [partial(movement, "Transpose of the last axes", n, 4) for n in (16384, 131072)]
    found += [partial(appended, *s, 8) for s in ((8, 64, 64), (12, 200, 64), (4, 400, 128))]
    # Narrow rows: the copy is made of many short runs.
    found += [partial(movement, k, n, 4, 4) for k in ("Concat", "Split", "Pad") for n in (4096, 65536)]
    found += [
        partial(reduction, k, *shape, repeats=4)
        for k in ("ReduceSum", "ReduceMean")
        for shape in ((128, 256, 2), (256, 128, 1), (4, 16, 2), (1024, 512, 2))
    ]
    found += [
        partial(pooling, k, c, s, 4) for k in ("MaxPool", "AveragePool") for c, s in ((16, 56), (64, 28), (256, 7))
    ]
    sizes = (
        (12, 128, 128, 64),
        (12, 1, 128, 64),
        (8, 64, 64, 32),
        (8, 1, 1024, 64),
        (4, 256, 256, 64),
        (12, 16, 16, 64),
    )
    found += [partial(attention, *s, repeats=2) for s in sizes]
    found += [
        partial(recurrent, k, steps, width, 2)
        for k in ("LSTM", "GRU")
        for steps, width in ((1, 128), (16, 64), (32, 256))
    ]
    return found


def _composites() -> list[Build]:
    found: list[Build] = [partial(mobile, *s) for s in ((12, 224, 9), (24, 160, 7), (40, 128, 6))]
    found += [partial(residual, *s) for s in ((24, 160), (40, 128), (56, 96), (64, 192))]
    found += [
        partial(decoder, *s)
        for s in (
            (1, 96, 640, 10, 4, 20000), (1, 200, 448, 7, 6, 8000), (1, 160, 832, 13, 6, 24000),
            (48, 0, 512, 8, 3, 4000),
            (160, 0, 576, 9, 2, 12000), (24, 0, 320, 5, 4, 2000),
        )
    ]  # fmt: skip
    found += [partial(speech, *s) for s in ((96, 8), (160, 4), (48, 16))]
    return found + [partial(boxes, n) for n in (600, 3000)]
