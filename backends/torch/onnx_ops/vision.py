"""Sampling and box operators: GridSample, RoiAlign, NonMaxSuppression."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, fail, rule


@rule("GridSample")
def _grid_sample(node: Node) -> Kernel:
    mode = node.attr("mode", "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding, align = node.attr("padding_mode", "zeros"), bool(node.attr("align_corners", 0))

    def run(x: Tensor, grid: Tensor) -> Tensor:
        if x.dim() not in (4, 5) or (x.dim() == 5 and mode == "bicubic"):
            raise fail(
                node, f"found {x.dim() - 2} spatial axes with mode {mode}, torch samples 2 or 3 (cubic: 2)"
            )
        return F.grid_sample(x, grid.to(x.dtype), mode, padding, align)

    return run


def _axis_taps(start: Tensor, size: Tensor, bins: int, samples: int, limit: int) -> tuple[Tensor, ...]:
    """Lower and upper index, weight of the upper one, and validity, each [bins * samples]."""
    place = torch.arange(bins * samples, device=start.device, dtype=start.dtype)
    x = start + (place + 0.5) * (size / (bins * samples))
    valid = (x >= -1.0) & (x <= limit)
    x = x.clamp(0, limit - 1)
    low = x.floor()
    high = (low + 1).clamp(max=limit - 1)
    return low.to(torch.int64), high.to(torch.int64), x - low, valid


@rule("RoiAlign")
def _roi_align(node: Node) -> Kernel:
    rows, columns = node.attr("output_height", 1), node.attr("output_width", 1)
    ratio, scale = node.attr("sampling_ratio", 0), node.attr("spatial_scale", 1.0)
    half = (
        node.attr("coordinate_transformation_mode", "half_pixel" if node.version >= 16 else "")
        == "half_pixel"
    )
    largest = node.attr("mode", "avg") == "max"

    def one(x: Tensor, roi: Tensor) -> Tensor:
        left, top, right, bottom = (roi * scale - (0.5 if half else 0.0)).unbind()
        height, width = bottom - top, right - left
        if not half:
            height, width = height.clamp(min=1.0), width.clamp(min=1.0)
        sy = ratio or max(1, math.ceil(float(height) / rows))
        sx = ratio or max(1, math.ceil(float(width) / columns))
        y0, y1, wy, vy = _axis_taps(top, height, rows, sy, x.shape[1])
        x0, x1, wx, vx = _axis_taps(left, width, columns, sx, x.shape[2])
        valid = (vy.unsqueeze(1) & vx).to(x.dtype)
        parts = [
            x[:, yi][:, :, xi] * (ya.unsqueeze(1) * xa) * valid
            for yi, ya in ((y0, 1 - wy), (y1, wy))
            for xi, xa in ((x0, 1 - wx), (x1, wx))
        ]
        if largest:
            taps = torch.stack(parts).amax(0)
            return taps.reshape(-1, rows, sy, columns, sx).amax((2, 4))
        return sum(parts[1:], parts[0]).reshape(-1, rows, sy, columns, sx).mean((2, 4))

    def run(x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
        found = [one(x[i], roi) for i, roi in zip(batch.tolist(), rois, strict=True)]
        return torch.stack(found) if found else x.new_zeros(0, x.shape[1], rows, columns)

    return run


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    if centred:
        x, y, w, h = boxes.unbind(-1)
        return torch.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    y1, x1, y2, x2 = boxes.unbind(-1)
    low = torch.stack([torch.minimum(y1, y2), torch.minimum(x1, x2)], -1)
    return torch.cat([low, torch.stack([torch.maximum(y1, y2), torch.maximum(x1, x2)], -1)], -1)


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of one box with others."""
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    shared = sides.clamp(min=0).prod(-1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1)
    return shared / (area - shared).clamp(min=1e-12)


@rule("NonMaxSuppression")
def _non_max_suppression(node: Node) -> Kernel:
    most, overlap, score = node.number(2, 0), node.number(3, 0.0), node.number(4)
    centred = bool(node.attr("center_point_box", 0))

    def run(
        boxes: Tensor,
        scores: Tensor,
        count: Tensor | None = None,
        iou: Tensor | None = None,
        threshold: Tensor | None = None,
    ) -> Tensor:
        limit, bound, least = int(most(count)), overlap(iou), score(threshold)
        # Each choice depends on the ones before it: the loop runs on the host.
        corners, host_scores = _corners(boxes, centred).cpu(), scores.cpu()
        found: list[list[int]] = []
        for b in range(boxes.shape[0]):
            for c in range(scores.shape[1]):
                values = host_scores[b, c]
                order = torch.sort(values, descending=True, stable=True).indices
                if least is not None:
                    order = order[values[order] > least]
                kept: list[int] = []
                while len(order) and len(kept) < limit:
                    kept.append(int(order[0]))
                    order = order[1:]
                    order = order[_overlaps(corners[b, kept[-1]], corners[b, order]) <= bound]
                found += [[b, c, i] for i in kept]
        return torch.tensor(found, dtype=torch.int64, device=node.device).reshape(-1, 3)

    return run
