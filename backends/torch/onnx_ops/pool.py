"""Pooling: max, average, Lp, their global forms, and MaxUnpool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.conv import CONV, check_rank, flat_pads, window_pads
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, plain, rule

_MAX_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class _Window:
    """Where the windows of one call lie; `extra` is what ceil_mode reads past the padding."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    extra: list[int]

    @property
    def simple(self) -> bool:
        """True where torch's own padding can express it."""
        half = all(2 * p <= k for p, k in zip(self.before, self.kernel, strict=True))
        return half and self.before == self.after and not any(self.extra)


def _window(node: Node, size: Sequence[int]) -> _Window:
    kernel = node.attr("kernel_shape")
    rank = len(kernel)
    strides = node.attr("strides", [1] * rank)
    dilations = node.attr("dilations", [1] * rank)
    before, after = window_pads(
        node.attr("auto_pad", "NOTSET"), node.attr("pads"), size, kernel, strides, dilations
    )
    extra = [0] * rank
    if node.attr("ceil_mode", 0):
        for i in range(rank):
            span = (kernel[i] - 1) * dilations[i] + 1
            room = size[i] + before[i] + after[i] - span
            count = -(-room // strides[i]) + 1
            if (count - 1) * strides[i] >= size[i] + before[i]:
                # A window that would start in the padding behind is dropped.
                count -= 1
            extra[i] = max(0, (count - 1) * strides[i] - room)
    return _Window(kernel, strides, dilations, before, after, extra)


def _grown(x: Tensor, w: _Window, value: float) -> Tensor:
    behind = [a + e for a, e in zip(w.after, w.extra, strict=True)]
    return F.pad(x, flat_pads(w.before, behind), value=value) if any(w.before) or any(behind) else x


@rule("MaxPool")
def _max_pool(node: Node) -> Kernel:
    check_rank(node)
    column_major = node.attr("storage_order", 0)

    def values(x: Tensor) -> Tensor:
        w = _window(node, x.shape[2:])
        pool = _MAX_POOL[len(w.kernel)]
        if w.simple and x.is_floating_point():
            return pool(x, w.kernel, w.strides, w.before, w.dilations)
        # Integers are pooled as floats (8-bit values are exact there).
        data = x if x.is_floating_point() else x.to(torch.float64)
        return pool(_grown(data, w, -math.inf), w.kernel, w.strides, 0, w.dilations).to(x.dtype)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        w = _window(node, x.shape[2:])
        rank = len(w.kernel)
        data = x if x.is_floating_point() else x.to(torch.float64)
        grown = _grown(data, w, -math.inf)
        out, index = _MAX_POOL[rank](grown, w.kernel, w.strides, 0, w.dilations, return_indices=True)
        # torch counts within the padded plane, ONNX within the whole unpadded tensor.
        place = []
        for n, before in zip(reversed(grown.shape[2:]), reversed(w.before), strict=True):
            place.append(index % n - before)
            index = index // n
        if not column_major:
            place.reverse()
            sizes = list(x.shape[2:])
        else:
            sizes = list(x.shape[2:])[::-1]
        flat = torch.zeros_like(place[0])
        for n, p in zip(sizes, place, strict=True):
            flat = flat * n + p
        planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * rank)
        return out.to(x.dtype), flat + planes * math.prod(x.shape[2:])

    return both if node.wants(1) else values


def _window_sums(x: Tensor, w: _Window) -> Tensor:
    """Sum over every window of an already padded tensor [n, c, ...]."""
    rank = len(w.kernel)
    ones = x.new_ones(1, 1, *w.kernel)
    planes = x.reshape(-1, 1, *x.shape[2:])
    sums = CONV[rank](planes, ones, None, w.strides, 0, w.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


@rule("AveragePool")
def _average_pool(node: Node) -> Kernel:
    check_rank(node)
    include = bool(node.attr("count_include_pad", 0))

    def run(x: Tensor) -> Tensor:
        w = _window(node, x.shape[2:])
        if w.simple and set(w.dilations) == {1}:
            return _AVG_POOL[len(w.kernel)](x, w.kernel, w.strides, w.before, False, include)
        counted = x.new_ones(1, 1, *x.shape[2:])
        if include:
            # Padding counts, what ceil_mode reads beyond it does not.
            counted = F.pad(counted, flat_pads(w.before, w.after), value=1.0)
            counted = F.pad(counted, flat_pads([0] * len(w.extra), w.extra))
        else:
            counted = _grown(counted, w, 0.0)
        return _window_sums(_grown(x, w, 0.0), w) / _window_sums(counted, w)

    return run


@rule("LpPool")
def _lp_pool(node: Node) -> Kernel:
    check_rank(node)
    p = node.attr("p", 2)

    def run(x: Tensor) -> Tensor:
        w = _window(node, x.shape[2:])
        return _window_sums(_grown(x.abs() ** p, w, 0.0), w) ** (1.0 / p)

    return run


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


plain(
    {
        "GlobalAveragePool": lambda x: x.mean(_spatial(x), keepdim=True),
        "GlobalMaxPool": lambda x: x.amax(_spatial(x), keepdim=True),
    }
)


@rule("GlobalLpPool")
def _global_lp_pool(node: Node) -> Kernel:
    p = node.attr("p", 2)
    return lambda x: (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1.0 / p)


@rule("MaxUnpool")
def _max_unpool(node: Node) -> Kernel:
    asked = node.numbers(2)
    kernel = node.attr("kernel_shape")
    rank = len(kernel)
    strides, pads = node.attr("strides", [1] * rank), node.attr("pads", [0] * 2 * rank)

    def run(x: Tensor, index: Tensor, shape: Tensor | None = None) -> Tensor:
        size = [
            (n - 1) * s - pads[i] - pads[rank + i] + k
            for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
        ]
        inferred = [*x.shape[:2], *size]
        out = x.new_zeros(math.prod(inferred)).scatter(0, index.reshape(-1), x.reshape(-1)).reshape(inferred)
        target = asked(shape)
        if target is None:
            return out
        # The indices refer to the inferred size; a larger asked size is filled up with zeros.
        return F.pad(
            out, flat_pads([0] * len(target), [t - n for t, n in zip(target, inferred, strict=True)])
        )

    return run
