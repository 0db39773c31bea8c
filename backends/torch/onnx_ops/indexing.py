"""Operators that read by index: gathers, one-hot, compress, non-zero, unique."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import moved
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, plain, rule


def wrap_index(index: Tensor, size: int) -> Tensor:
    """Indices as int64 with negative ones counted from the end."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@rule("Gather")
def _gather(node: Node) -> Kernel:
    axis = node.attr("axis", 0)
    known = node.constant(1)
    if known is not None and known.dim() == 0:
        node.host.add(1)
        position = int(known)
        return lambda x, _index: x.select(axis, position)

    def run(x: Tensor, index: Tensor) -> Tensor:
        start = axis % x.dim()
        flat = wrap_index(index, x.shape[start]).reshape(-1)
        return x.index_select(start, flat).reshape(*x.shape[:start], *index.shape, *x.shape[start + 1 :])

    return moved(run)


@rule("GatherElements")
def _gather_elements(node: Node) -> Kernel:
    axis = node.attr("axis", 0)
    return moved(lambda x, index: torch.gather(x, axis, wrap_index(index, x.shape[axis])))


def linear_index(index: Tensor, shape: Any) -> Tensor:
    """Rows of a GatherND/ScatterND index tensor as flat positions in the leading axes `shape`."""
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for i, size in enumerate(shape):
        flat = flat * size + wrap_index(index[..., i], size)
    return flat


@rule("GatherND")
def _gather_nd(node: Node) -> Kernel:
    batch = node.attr("batch_dims", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        depth = index.shape[-1]
        rest = x.shape[batch + depth :]
        lead = x.shape[:batch]
        rows = math.prod(x.shape[batch : batch + depth])
        flat = linear_index(index, x.shape[batch : batch + depth])
        groups = math.prod(lead)
        position = flat.reshape(groups, -1) + rows * torch.arange(groups, device=x.device).unsqueeze(1)
        picked = x.reshape(groups * rows, *rest).index_select(0, position.reshape(-1))
        return picked.reshape(*index.shape[:-1], *rest)

    return moved(run)


@rule("OneHot")
def _one_hot(node: Node) -> Kernel:
    axis = node.attr("axis", -1)
    count = node.number(1)

    def run(index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        size = int(count(depth))
        rank = index.dim() + 1
        place = wrap_index(index, size).unsqueeze(axis)
        classes = torch.arange(size, device=index.device).reshape(
            [size if d == axis % rank else 1 for d in range(rank)]
        )
        return torch.where(place == classes, values[1], values[0])

    return run


@rule("Compress")
def _compress(node: Node) -> Kernel:
    axis = node.attr("axis")

    def run(x: Tensor, condition: Tensor) -> Tensor:
        index = condition.nonzero().reshape(-1)
        return x.reshape(-1)[index] if axis is None else x.index_select(axis, index)

    return moved(run)


def _non_zero(x: Tensor) -> Tensor:
    x = x != 0
    return x.nonzero().reshape(-1, max(x.dim(), 1)).T if x.dim() else x.reshape(1).nonzero().T[:0]


def _array_feature_extractor(x: Tensor, index: Tensor) -> Tensor:
    out = x.index_select(-1, index.reshape(-1).to(torch.int64))
    return out.reshape(1, -1) if x.dim() == 1 else out


plain({"NonZero": _non_zero})
plain({"ArrayFeatureExtractor": _array_feature_extractor}, "ai.onnx.ml")


@rule("Unique")
def _unique(node: Node) -> Kernel:
    axis, ordered = node.attr("axis"), bool(node.attr("sorted", 1))

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if axis is None:
            x = x.reshape(-1)
        dim = 0 if axis is None else axis % x.dim()
        values, inverse, counts = torch.unique(
            x, sorted=True, return_inverse=True, return_counts=True, dim=dim
        )
        inverse = inverse.reshape(-1)
        first = torch.full((counts.numel(),), x.shape[dim], dtype=torch.int64, device=x.device)
        places = torch.arange(x.shape[dim], device=x.device)
        first = first.scatter_reduce(0, inverse, places, "amin")
        if not ordered:
            # In order of first occurrence.
            order = torch.argsort(first)
            rank = torch.empty_like(order)
            rank[order] = torch.arange(order.numel(), device=x.device)
            values, first, counts, inverse = (
                values.index_select(dim, order),
                first[order],
                counts[order],
                rank[inverse],
            )
        return values, first, inverse, counts

    if not any(node.wants(i) for i in (1, 2, 3)):
        return lambda x: run(x)[0]
    return run
