"""Convolutions: plain, transposed, deformable; and ONNX's padding rules, shared with pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, fail, rule

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def window_pads(
    mode: str,
    pads: Sequence[int] | None,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding (before, after) of each spatial axis, from `pads` or from auto_pad `mode`."""
    rank = len(size)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            less, more = total // 2, total - total // 2
            before.append(less if mode == "SAME_UPPER" else more)
            after.append(more if mode == "SAME_UPPER" else less)
        return before, after
    if mode == "VALID" or pads is None:
        return [0] * rank, [0] * rank
    return list(pads[:rank]), list(pads[rank:])


def flat_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Paddings in the order of torch's F.pad: last axis first."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def convolve(node: Node, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """ONNX Conv of one node's attributes."""
    rank = w.dim() - 2
    strides = node.attr("strides", [1] * rank)
    dilations = node.attr("dilations", [1] * rank)
    kernel = node.attr("kernel_shape", list(w.shape[2:]))
    mode = node.attr("auto_pad", "NOTSET")
    before, after = window_pads(mode, node.attr("pads"), x.shape[2:], kernel, strides, dilations)
    if before != after:
        x, before = F.pad(x, flat_pads(before, after)), [0] * rank
    return CONV[rank](x, w, b, strides, before, dilations, node.attr("group", 1))


def check_rank(node: Node) -> None:
    """Refuse a kernel with more spatial axes than torch has, where the attributes tell."""
    kernel = node.attr("kernel_shape")
    if kernel is not None and len(kernel) not in CONV:
        raise fail(node, f"found {len(kernel)} spatial axes, torch takes 1 to 3")


@rule("Conv")
def _conv(node: Node) -> Kernel:
    check_rank(node)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if w.dim() - 2 not in CONV:
            raise fail(node, f"found {w.dim() - 2} spatial axes, torch convolves 1 to 3")
        return convolve(node, x, w, b)

    return run


@rule("ConvTranspose")
def _conv_transpose(node: Node) -> Kernel:
    check_rank(node)

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rank = w.dim() - 2
        if rank not in CONV:
            raise fail(node, f"found {rank} spatial axes, torch convolves 1 to 3")
        strides = node.attr("strides", [1] * rank)
        dilations = node.attr("dilations", [1] * rank)
        extra = node.attr("output_padding", [0] * rank)
        mode = node.attr("auto_pad", "NOTSET")
        asked = node.attr("output_shape")
        full = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(x.shape[2:], strides, w.shape[2:], dilations, strict=True)
        ]
        if mode in ("SAME_UPPER", "SAME_LOWER") and asked is None:
            asked = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        if asked is not None:
            asked = asked[-rank:]
            total = [max(0, f + e - o) for f, e, o in zip(full, extra, asked, strict=True)]
            small, large = [t // 2 for t in total], [t - t // 2 for t in total]
            before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
        else:
            before, after = window_pads(mode, node.attr("pads"), x.shape[2:], full, strides, dilations)
            asked = [f + e - p - q for f, e, p, q in zip(full, extra, before, after, strict=True)]
        group = node.attr("group", 1)
        out = _CONV_TRANSPOSE[rank](x, w, None, strides, 0, 0, group, dilations)
        # Crop and grow in one step: output_padding only adds rows behind, which hold the bias alone.
        ends = [o - f + p for o, f, p in zip(asked, full, before, strict=True)]
        out = F.pad(out, flat_pads([-p for p in before], ends))
        return out if b is None else out + b.reshape(-1, *[1] * rank)

    return run


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sample x[n, c, h, w] at positions [n, ...], zero outside; gives [n, c, ...]."""
    n, c, h, w = x.shape
    shape = rows.shape[1:]
    rows, columns = rows.reshape(n, 1, -1), columns.reshape(n, 1, -1)
    top, left = rows.floor(), columns.floor()
    flat = x.reshape(n, c, h * w)
    out = x.new_zeros(n, c, rows.shape[-1])
    for dy in (0, 1):
        for dx in (0, 1):
            y, z = top + dy, left + dx
            weight = (1 - (rows - y).abs()) * (1 - (columns - z).abs())
            inside = (y >= 0) & (y < h) & (z >= 0) & (z < w)
            index = (y.clamp(0, h - 1) * w + z.clamp(0, w - 1)).to(torch.int64).expand(n, c, -1)
            out = out + flat.gather(2, index) * (weight * inside)
    return out.reshape(n, c, *shape)


@rule("DeformConv")
def _deform_conv(node: Node) -> Kernel:
    groups, sets = node.attr("group", 1), node.attr("offset_group", 1)

    def run(
        x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if w.dim() != 4:
            raise fail(node, f"found {w.dim() - 2} spatial axes, the rule takes 2")
        (sh, sw), (dh, dw) = node.attr("strides", [1, 1]), node.attr("dilations", [1, 1])
        before, _ = window_pads("NOTSET", node.attr("pads"), x.shape[2:], (1, 1), (1, 1), (1, 1))
        n, c = x.shape[:2]
        kh, kw = w.shape[2:]
        oh, ow = offset.shape[2:]
        move = offset.reshape(n, sets, kh, kw, 2, oh, ow)
        ramp = torch.arange(max(kh, kw, oh, ow), device=x.device, dtype=x.dtype)
        base_y = ramp[:kh].reshape(-1, 1, 1, 1) * dh + ramp[:oh].reshape(-1, 1) * sh - before[0]
        base_x = ramp[:kw].reshape(-1, 1, 1) * dw + ramp[:ow] * sw - before[1]
        parts = []
        for i, part in enumerate(x.split(c // sets, 1)):
            taps = _bilinear(part, move[:, i, :, :, 0] + base_y, move[:, i, :, :, 1] + base_x)
            if mask is not None:
                taps = taps * mask.reshape(n, sets, 1, kh, kw, oh, ow)[:, i]
            parts.append(taps)
        taps = torch.cat(parts, 1).reshape(n, groups, -1, oh * ow)
        out = torch.matmul(w.reshape(groups, w.shape[0] // groups, -1), taps).reshape(n, -1, oh, ow)
        return out if b is None else out + b.reshape(-1, 1, 1)

    return run
