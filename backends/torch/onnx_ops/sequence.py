"""Sequences (Python lists) and optionals (a value or None)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, plain, rule


def _construct(*xs: Tensor) -> list[Tensor]:
    return list(xs)


def _length(items: list[Tensor]) -> Tensor:
    return torch.tensor(len(items), dtype=torch.int64)


def _get_element(value: Any) -> Any:
    return value


def _has_element(value: Any = None) -> Tensor:
    return torch.tensor(value is not None)


def _optional(value: Any = None) -> Any:
    return value


plain(
    {
        "SequenceConstruct": _construct,
        "SequenceEmpty": _construct,
        "SequenceLength": _length,
        "Optional": _optional,
        "OptionalGetElement": _get_element,
        "OptionalHasElement": _has_element,
    }
)


@rule("SequenceAt")
def _at(node: Node) -> Kernel:
    position = node.number(1)
    return lambda items, index: items[int(position(index))]


@rule("SequenceInsert")
def _insert(node: Node) -> Kernel:
    position = node.number(2)

    def run(items: list[Tensor], new: Tensor, index: Tensor | None = None) -> list[Tensor]:
        at = position(index)
        place = len(items) if at is None else int(at) % (len(items) + 1) if at >= 0 else len(items) + int(at)
        return [*items[:place], new, *items[place:]]

    return run


@rule("SequenceErase")
def _erase(node: Node) -> Kernel:
    position = node.number(1, -1)

    def run(items: list[Tensor], index: Tensor | None = None) -> list[Tensor]:
        place = int(position(index)) % len(items)
        return [*items[:place], *items[place + 1 :]]

    return run


@rule("ConcatFromSequence")
def _concat(node: Node) -> Kernel:
    axis, join = node.attr("axis"), torch.stack if node.attr("new_axis", 0) else torch.cat
    return lambda items: join(items, axis)


@rule("SplitToSequence")
def _split(node: Node) -> Kernel:
    axis, keep = node.attr("axis", 0), node.attr("keepdims", 1)
    sizes = node.numbers(1)

    def run(x: Tensor, split: Tensor | None = None) -> list[Tensor]:
        if split is None:
            return list(x.split(1, axis)) if keep else list(x.unbind(axis))
        given = sizes(split)
        return list(torch.split(x, given if split.dim() else given[0], axis))

    return run
