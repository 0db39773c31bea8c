"""Operators that move elements: transpose, join, split, slice, pad, tile, re-block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import WIDE_UNSIGNED, moved
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule


@rule("Transpose")
def _transpose(node: Node) -> Kernel:
    perm = node.attr("perm")
    return lambda x: x.permute(perm if perm is not None else list(range(x.dim()))[::-1])


@rule("Concat")
def _concat(node: Node) -> Kernel:
    axis = node.attr("axis", 1)
    return lambda *xs: torch.cat(xs, axis)


@rule("Split")
def _split(node: Node) -> Kernel:
    axis = node.attr("axis", 0)
    sizes = node.axes(1, "split")
    parts = node.attr("num_outputs", len(node.output_names))

    def run(x: Tensor, given: Tensor | None = None) -> tuple[Tensor, ...]:
        lengths = sizes(given)
        if lengths is None:
            # Equal parts; where the axis does not divide, the last one is shorter.
            size = -(-x.shape[axis] // parts)
            lengths = [min(size, x.shape[axis] - i * size) for i in range(parts)]
        return tuple(torch.split(x, lengths, axis))

    return run


def slice_axis(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """Elements start, start + step, ... before end of one axis, clamped as ONNX specifies."""
    size = x.shape[axis]
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        chosen = range(min(max(start, 0), size), min(max(end, 0), size), step)
    else:
        chosen = range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)
    if not chosen:
        return x.narrow(axis, 0, 0)
    low, high = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1])
    x = x.narrow(axis, low, high - low + 1)
    if abs(step) > 1:
        x = x[(slice(None),) * (axis % x.dim()) + (slice(None, None, abs(step)),)]
    return x.flip(axis) if step < 0 else x


@rule("Slice")
def _slice(node: Node) -> Kernel:
    starts, ends, axes = node.axes(1, "starts"), node.axes(2, "ends"), node.axes(3)
    steps = node.numbers(4)

    def run(
        x: Tensor,
        first: Tensor | None = None,
        last: Tensor | None = None,
        along: Tensor | None = None,
        by: Tensor | None = None,
    ) -> Tensor:
        begin, end = starts(first), ends(last)
        dims = axes(along) or range(len(begin))
        for d, s, e, step in zip(dims, begin, end, steps(by) or [1] * len(begin), strict=True):
            x = slice_axis(x, d, s, e, step)
        return x

    return moved(run)


@rule("Tile")
def _tile(node: Node) -> Kernel:
    repeats = node.numbers(1)
    return lambda x, times: x.repeat(repeats(times))


def _pad_index(before: int, after: int, size: int, mode: str, device: torch.device) -> Tensor:
    index = torch.arange(-before, size + after, device=device)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index.remainder(size)
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * size - 2)
    return torch.where(index >= size, 2 * size - 2 - index, index)


def pad(x: Tensor, before: list[int], after: list[int], mode: str, value: float | int | bool) -> Tensor:
    """Pad (or with negative counts crop) every axis."""
    if mode == "constant":
        flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        if x.dtype in WIDE_UNSIGNED:
            return F.pad(x.to(torch.int64), flat, value=value).to(x.dtype)
        return F.pad(x, flat, value=value)
    for axis, (b, a) in enumerate(zip(before, after, strict=True)):
        x = slice_axis(x, axis, max(0, -b), x.shape[axis] + min(0, a), 1)
        if b > 0 or a > 0:
            x = x.index_select(axis, _pad_index(max(0, b), max(0, a), x.shape[axis], mode, x.device))
    return x


@rule("Pad")
def _pad(node: Node) -> Kernel:
    mode = node.attr("mode", "constant")
    counts = node.axes(1, "pads" if "pads" in node.attrs else "paddings")
    value = node.number(2, node.attr("value", 0))
    axes = node.numbers(3)

    def run(
        x: Tensor, pads: Tensor | None = None, fill: Tensor | None = None, along: Tensor | None = None
    ) -> Tensor:
        given = counts(pads)
        dims = axes(along)
        if dims is None:
            dims = range(x.dim())
        before, after = [0] * x.dim(), [0] * x.dim()
        for i, d in enumerate(dims):
            before[d], after[d] = given[i], given[len(dims) + i]
        return pad(x, before, after, mode, value(fill))

    return run


@rule("DepthToSpace")
def _depth_to_space(node: Node) -> Kernel:
    b = node.attr("blocksize")
    columns_first = node.attr("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if columns_first:
            x = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
        else:
            x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // (b * b), h * b, w * b)

    return run


@rule("SpaceToDepth")
def _space_to_depth(node: Node) -> Kernel:
    b = node.attr("blocksize")
    columns_first = node.attr("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // b, b, w // b, b)
        x = x.permute(0, 1, 3, 5, 2, 4) if columns_first else x.permute(0, 3, 5, 1, 2, 4)
        return x.reshape(n, c * b * b, h // b, w // b)

    return run


@rule("Trilu")
def _trilu(node: Node) -> Kernel:
    apply = torch.triu if node.attr("upper", 1) else torch.tril
    diagonal = node.number(1, 0)
    return moved(lambda x, k=None: apply(x, int(diagonal(k))))


@rule("ReverseSequence")
def _reverse_sequence(node: Node) -> Kernel:
    batch, time = node.attr("batch_axis", 1), node.attr("time_axis", 0)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        moved = x.movedim((batch, time), (0, 1))
        step = torch.arange(moved.shape[1], device=x.device).unsqueeze(0)
        size = lengths.to(torch.int64).unsqueeze(1)
        index = torch.where(step < size, size - 1 - step, step)
        index = index.reshape(*index.shape, *[1] * (moved.dim() - 2)).expand(moved.shape)
        return torch.gather(moved, 1, index).movedim((0, 1), (batch, time))

    return moved(run)


@rule("Col2Im")
def _col_to_im(node: Node) -> Kernel:
    image, block = node.numbers(1), node.numbers(2)

    def run(x: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
        size, kernel = image(image_shape), block(block_shape)
        rank = len(size)
        dilations, strides = node.attr("dilations", [1] * rank), node.attr("strides", [1] * rank)
        pads = node.attr("pads", [0] * 2 * rank)
        full = [size[i] + pads[i] + pads[rank + i] for i in range(rank)]
        windows = [(full[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
        # Flat position in the padded image of every (element of the block, window).
        offset = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
        place = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
        for i in range(rank):
            step = math.prod(full[i + 1 :])
            k = torch.arange(kernel[i], device=x.device) * dilations[i] * step
            w = torch.arange(windows[i], device=x.device) * strides[i] * step
            offset = (offset.reshape(-1, 1) + k).reshape(-1, 1)
            place = (place.reshape(-1, 1) + w).reshape(1, -1)
        channels = x.shape[1] // math.prod(kernel)
        index = (offset + place).reshape(-1)
        flat = x.new_zeros(x.shape[0], channels, math.prod(full))
        flat.index_add_(2, index, x.reshape(x.shape[0], channels, -1))
        out = flat.reshape(x.shape[0], channels, *full)
        for i in range(rank):
            out = out.narrow(2 + i, pads[i], size[i])
        return out

    return run
