"""Resize and Upsample: separable, one gather with weights per resized axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import ELEM_TYPES, INTEGER_RANGE
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule

Taps = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized; equal values share one table of taps."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    antialias: bool
    exclude_outside: bool
    size: int
    out: int
    scale: float
    roi: tuple[float, float]


def _positions(a: _Axis) -> np.ndarray:
    """Source coordinate of every output element."""
    y = np.arange(a.out, dtype=np.float64)
    length = a.scale * a.size
    if a.coordinates == "align_corners":
        return np.zeros(a.out) if length == 1 else y * (a.size - 1) / (length - 1)
    if a.coordinates == "asymmetric":
        return y / a.scale
    if a.coordinates == "tf_crop_and_resize":
        first, last = a.roi[0] * (a.size - 1), a.roi[1] * (a.size - 1)
        return (
            np.full(a.out, (first + last) / 2) if length == 1 else first + y * (last - first) / (length - 1)
        )
    if a.coordinates == "pytorch_half_pixel" and length == 1:
        return np.full(a.out, -0.5)
    shift = a.size / 2 * (1 - a.out / length) if a.coordinates == "half_pixel_symmetric" else 0.0
    return shift + (y + 0.5) / a.scale - 0.5


_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _weight(a: _Axis, distance: np.ndarray) -> np.ndarray:
    """Interpolation kernel at a distance from its centre."""
    d = np.abs(distance)
    if a.mode == "linear":
        return np.clip(1 - d, 0, None)
    c = a.cubic_a
    near = (c + 2) * d**3 - (c + 3) * d**2 + 1
    far = c * d**3 - 5 * c * d**2 + 8 * c * d - 4 * c
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@lru_cache(maxsize=256)
def _taps(a: _Axis, device: torch.device) -> Taps:
    """Indices [out, taps], weights of the same shape (None: copy), and what lies outside (or None)."""
    x = _positions(a)
    outside = None
    if a.coordinates == "tf_crop_and_resize":
        outside = torch.from_numpy((x < 0) | (x > a.size - 1)).to(device)
    if a.mode == "nearest":
        index = np.clip(_NEAREST[a.nearest](x), 0, a.size - 1).astype(np.int64)[:, None]
        return torch.from_numpy(index).to(device), None, outside
    # Antialiasing widens the kernel when it shrinks the image.
    stretch = min(a.scale, 1.0) if a.antialias else 1.0
    reach = math.ceil((1 if a.mode == "linear" else 2) / stretch)
    index = np.floor(x).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
    weight = _weight(a, (index - x[:, None]) * stretch)
    if a.exclude_outside:
        weight = np.where((index < 0) | (index >= a.size), 0.0, weight)
    if a.exclude_outside or a.antialias:
        weight = weight / weight.sum(1, keepdims=True)
    index = np.clip(index, 0, a.size - 1)
    return torch.from_numpy(index).to(device), torch.from_numpy(weight).to(device), outside


def _resize_axis(x: Tensor, dim: int, taps: Taps, fill: float) -> Tensor:
    index, weight, outside = taps
    parts = x.index_select(dim, index.reshape(-1)).unflatten(dim, index.shape)
    column = [1] * (x.dim() - dim - 1)
    if weight is None:
        out = parts.squeeze(dim + 1)
    else:
        out = (parts * weight.to(x.dtype).reshape(*weight.shape, *column)).sum(dim + 1)
    return out if outside is None else torch.where(outside.reshape(-1, *column), fill, out)


def _targets(
    shape: list[int], dims: list[int], scales: list[float] | None, sizes: list[int] | None, policy: str
) -> tuple[list[float], list[int]]:
    """Scale and output size of every axis in `dims`."""
    if not sizes:
        factors = list(scales or [])
        # In float32, as engines and shape inference do: 0.7 * 10 is 7 there, but below 7 in float64.
        return factors, [
            int(np.float32(shape[d]) * np.float32(f)) for d, f in zip(dims, factors, strict=True)
        ]
    factors = [s / shape[d] for d, s in zip(dims, sizes, strict=True)]
    if policy == "stretch":
        return factors, list(sizes)
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(dims), [math.floor(factor * shape[d] + 0.5) for d in dims]


@rule("Resize", "Upsample")
def _resize(node: Node) -> Kernel:
    modern = node.op_type == "Resize" and node.version >= 11
    mode = {"bilinear": "linear"}.get(node.attr("mode", "nearest"), node.attr("mode", "nearest"))
    coordinates = node.attr("coordinate_transformation_mode", "half_pixel" if modern else "asymmetric")
    nearest = node.attr("nearest_mode", "round_prefer_floor")
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    fill = node.attr("extrapolation_value", 0.0)
    axes = node.attr("axes")
    region, sizes = node.numbers(1 if modern else 99), node.numbers(3)
    scales = node.axes(2 if modern else 1, "scales")

    def run(x: Tensor, *given: Tensor | None) -> Tensor:
        extra = [*given, None, None, None]
        roi, factor, size = extra[:3] if modern else (None, extra[0], None)
        dims = [d % x.dim() for d in axes] if axes is not None else list(range(x.dim()))
        factors, outs = _targets(list(x.shape), dims, scales(factor), sizes(size), policy)
        box = region(roi) if coordinates == "tf_crop_and_resize" else None
        dtype = x.dtype
        for i, d in enumerate(dims):
            part = (box[i], box[len(dims) + i]) if box else (0.0, 1.0)
            if factors[i] == 1.0 and outs[i] == x.shape[d] and part == (0.0, 1.0):
                continue
            round_to = nearest if modern else "floor" if factors[i] >= 1 else "ceil"
            axis = _Axis(
                mode,
                coordinates,
                round_to,
                node.attr("cubic_coeff_a", -0.75),
                bool(node.attr("antialias", 0)),
                bool(node.attr("exclude_outside", 0)),
                x.shape[d],
                outs[i],
                factors[i],
                part,
            )
            if mode != "nearest" and not x.is_floating_point():
                x = x.to(torch.float32)
            x = _resize_axis(x, d, _taps(axis, x.device), fill)
        if x.dtype == dtype:
            return x
        return torch.trunc(x).clamp(*INTEGER_RANGE[ELEM_TYPES[dtype]]).to(dtype)

    return run
