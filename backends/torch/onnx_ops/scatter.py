"""Operators that write by index: scatters with reductions, cache updates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import moved
from qeil_compile.backends.torch.onnx_ops.indexing import linear_index, wrap_index
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@rule("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Kernel:
    axis = node.attr("axis", 0)
    reduction = node.attr("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        index = wrap_index(index, x.shape[axis])
        if reduction == "none":
            return x.scatter(axis, index, updates)
        return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction], include_self=True)

    return run if reduction in ("max", "min") else moved(run)


@rule("ScatterND")
def _scatter_nd(node: Node) -> Kernel:
    reduction = node.attr("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        depth = index.shape[-1]
        position = linear_index(index, x.shape[:depth]).reshape(-1)
        rows = math.prod(x.shape[:depth])
        rest = x.shape[depth:]
        flat = x.reshape(rows, math.prod(rest))
        new = updates.reshape(position.numel(), math.prod(rest))
        if reduction == "none":
            out = flat.index_copy(0, position, new)
        else:
            place = position.unsqueeze(1).expand(new.shape)
            out = flat.scatter_reduce(0, place, new, _REDUCTIONS[reduction], include_self=True)
        return out.reshape(x.shape)

    return run if reduction in ("max", "min") else moved(run)


@rule("TensorScatter")
def _tensor_scatter(node: Node) -> Kernel:
    axis, circular = node.attr("axis", -2), node.attr("mode", "linear") == "circular"

    def run(cache: Tensor, update: Tensor, start: Tensor | None = None) -> Tensor:
        dim = axis % cache.dim()
        steps = torch.arange(update.shape[dim], device=cache.device)
        first = (
            torch.zeros(cache.shape[0], dtype=torch.int64, device=cache.device) if start is None else start
        )
        place = first.to(torch.int64).unsqueeze(1) + steps
        if circular:
            place = place % cache.shape[dim]
        shape = [1] * cache.dim()
        shape[0], shape[dim] = place.shape
        return cache.scatter(dim, place.reshape(shape).expand(update.shape), update)

    return moved(run)
