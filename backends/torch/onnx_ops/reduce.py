"""Reductions, arg-reductions, cumulative sums and products, TopK."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import WIDE_UNSIGNED, moved
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(x, dims, keep, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, dims, keep)
    return torch.mean(x.double(), dims, keep).to(x.dtype)


def _prod(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in dims:
        x = torch.prod(x, dim, True, dtype=x.dtype)
    return x if keep else x.squeeze(dims)


def _bound(x: Tensor, lowest: bool) -> float | int | bool:
    if x.dtype == torch.bool:
        return not lowest
    if x.is_floating_point():
        return float("-inf") if lowest else float("inf")
    info = torch.iinfo(x.dtype)
    return info.min if lowest else info.max


def _extreme(pick: Callable[..., Tensor], lowest: bool) -> Reduce:
    def run(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if any(x.shape[d] == 0 for d in dims):
            # Over no elements the result is the neutral one: torch refuses, ONNX does not.
            shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
            out = torch.full(shape, _bound(x, lowest), dtype=x.dtype, device=x.device)
            return out if keep else out.squeeze(dims)
        return pick(x, dims, keep)

    return run


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x if x.is_floating_point() else x.double(), dims, keep).to(x.dtype)


def _root(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    total = _sum(x * x, dims, keep)
    return torch.sqrt(total if total.is_floating_point() else total.double()).to(x.dtype)


def _log(x: Tensor) -> Tensor:
    return torch.log(x if x.is_floating_point() else x.double()).to(x.dtype)


_REDUCE: dict[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceMax": _extreme(torch.amax, True),
    "ReduceMin": _extreme(torch.amin, False),
    "ReduceL1": lambda x, dims, keep: _sum(x.abs(), dims, keep),
    "ReduceL2": _root,
    "ReduceLogSum": lambda x, dims, keep: _log(_sum(x, dims, keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": lambda x, dims, keep: _sum(x * x, dims, keep),
}
#: What stays to do when an empty axes list means "reduce nothing".
_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": _log,
    "ReduceSumSquare": torch.square,
}


@rule(*_REDUCE)
def _reduce(node: Node) -> Kernel:
    apply = _REDUCE[node.op_type]
    rest = _ELEMENTWISE.get(node.op_type)
    axes = node.axes(1)
    keep = bool(node.attr("keepdims", 1))
    noop = bool(node.attr("noop_with_empty_axes", 0))

    def run(x: Tensor, given: Tensor | None = None) -> Tensor:
        dims = axes(given)
        if not dims:
            if noop:
                return rest(x) if rest else x
            dims = list(range(x.dim()))
        dtype = x.dtype
        if dtype in WIDE_UNSIGNED:
            x = x.to(torch.int64)
        if dims:
            out = apply(x, [d % x.dim() for d in dims], keep)
        else:
            out = apply(x.reshape(1), [0], False)
        return out.to(dtype)

    return run


@rule("ArgMax", "ArgMin")
def _arg(node: Node) -> Kernel:
    choose = torch.argmax if node.op_type == "ArgMax" else torch.argmin

    def pick(x: Tensor, dim: int, keepdim: bool) -> Tensor:
        return choose(x.to(torch.int64) if x.dtype in WIDE_UNSIGNED else x, dim, keepdim)

    axis, keep = node.attr("axis", 0), bool(node.attr("keepdims", 1))
    if not node.attr("select_last_index", 0):
        return lambda x: pick(x, axis, keep)
    # The last of equal extremes is the first one seen from the other end.
    return lambda x: x.shape[axis] - 1 - pick(moved(torch.flip)(x, [axis]), axis, keep)


@rule("CumSum", "CumProd")
def _cumulative(node: Node) -> Kernel:
    total = torch.cumsum if node.op_type == "CumSum" else torch.cumprod
    neutral = 0 if node.op_type == "CumSum" else 1
    axis = node.number(1)
    exclusive, reverse = node.attr("exclusive", 0), node.attr("reverse", 0)

    def run(x: Tensor, along: Tensor) -> Tensor:
        dim = int(axis(along)) % x.dim()
        if reverse:
            x = x.flip(dim)
        if exclusive:
            first = torch.full_like(x.narrow(dim, 0, 1), neutral)
            x = torch.cat([first, x.narrow(dim, 0, x.shape[dim] - 1)], dim)
        out = total(x, dim, dtype=x.dtype)
        return out.flip(dim) if reverse else out

    return moved(run)


@rule("TopK")
def _top_k(node: Node) -> Kernel:
    axis, largest = node.attr("axis", -1), bool(node.attr("largest", 1))
    count = node.number(1)

    def run(x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n = node.attr("k") if k is None else int(count(k))
        keys = x.to(torch.int64) if x.dtype in WIDE_UNSIGNED else x
        # A stable sort, not torch.topk: among equal values ONNX takes the lower index first.
        order = torch.sort(keys, dim=axis, descending=largest, stable=True).indices.narrow(axis, 0, n)
        return torch.gather(keys, axis, order).to(x.dtype), order

    return run
