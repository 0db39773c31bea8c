"""Elementwise arithmetic, comparison, logic and bit operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import widened
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, plain, rule

Binary = Callable[[Tensor, Tensor], Tensor]

plain(
    {
        "Abs": widened(torch.abs),
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "BitwiseNot": widened(torch.bitwise_not),
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "IsNaN": torch.isnan,
        "Log": torch.log,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Reciprocal": torch.reciprocal,
        "Round": torch.round,
        "Sign": widened(torch.sign),
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
    }
)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    # Integer division truncates toward zero, as in C; torch's "/" would return floats.
    return a / b if a.is_floating_point() or a.is_complex() else torch.div(a, b, rounding_mode="trunc")


_BINARY: dict[str, Binary] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


@rule(*_BINARY)
def _binary(node: Node) -> Kernel:
    kernel = widened(_BINARY[node.op_type])
    if node.version >= 7 or not node.attr("broadcast", 0):
        return kernel
    axis = node.attr("axis")

    def aligned(a: Tensor, b: Tensor) -> Tensor:
        # Before opset 7 the second operand could be aligned at `axis` instead of at the right.
        if axis is not None:
            start = axis % a.dim()
            b = b.reshape(*b.shape, *[1] * (a.dim() - start - b.dim()))
        return kernel(a, b)

    return aligned


@rule("Pow")
def _pow(_node: Node) -> Kernel:
    def run(x: Tensor, y: Tensor) -> Tensor:
        # The result has the base's type, whatever the exponent's.
        if x.is_floating_point() or not y.is_floating_point():
            return widened(torch.pow)(x, y).to(x.dtype)
        return torch.pow(x.double(), y.double()).to(x.dtype)

    return run


@rule("Mod")
def _mod(node: Node) -> Kernel:
    return widened(torch.fmod if node.attr("fmod", 0) else torch.remainder)


def _total(*xs: Tensor) -> Tensor:
    return reduce(torch.add, xs)


def _mean(*xs: Tensor) -> Tensor:
    return _total(*xs) / len(xs)


def _maximum(*xs: Tensor) -> Tensor:
    return reduce(torch.maximum, xs)


def _minimum(*xs: Tensor) -> Tensor:
    return reduce(torch.minimum, xs)


plain({"Sum": _total, "Mean": _mean, "Max": widened(_maximum), "Min": widened(_minimum)})


@rule("IsInf")
def _is_inf(node: Node) -> Kernel:
    negative, positive = node.attr("detect_negative", 1), node.attr("detect_positive", 1)
    if negative and positive:
        return torch.isinf
    if positive:
        return torch.isposinf
    return torch.isneginf if negative else lambda x: torch.zeros_like(x, dtype=torch.bool)


@rule("BitShift")
def _bit_shift(node: Node) -> Kernel:
    def right(x: Tensor, by: Tensor) -> Tensor:
        if x.dtype != torch.uint64:
            return widened(torch.bitwise_right_shift)(x, by)
        # int64 shifts copy the sign bit: clear what they bring in, so that the shift is logical.
        bits, by = x.to(torch.int64), by.to(torch.int64)
        mask = torch.where(by > 0, torch.bitwise_left_shift(torch.ones_like(by), (64 - by) % 64) - 1, -1)
        return (torch.bitwise_right_shift(bits, by) & mask).to(torch.uint64)

    return right if node.attr("direction") == "RIGHT" else widened(torch.bitwise_left_shift)


@rule("Clip")
def _clip(node: Node) -> Kernel:
    if node.version < 11:
        low, high = node.attr("min", -math.inf), node.attr("max", math.inf)
        return lambda x: torch.clamp(x, low, high)
    fixed = [node.constant(i) for i in (1, 2)]
    given = [node.has_input(i) for i in (1, 2)]
    if all(c is not None for c, g in zip(fixed, given, strict=True) if g) and node.elem(0) in (1, 10, 11, 16):
        bounds = [c.item() if c is not None else None for c in fixed]
        if bounds == [None, None]:
            return lambda x, *_: x
        return lambda x, *_: torch.clamp(x, *bounds)

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        # Two steps, not torch.clamp: uint16 and wider go through int64, and the upper bound wins.
        if low is not None:
            x = widened(torch.maximum)(x, low)
        return x if high is None else widened(torch.minimum)(x, high)

    return run


@rule("Where")
def _where(_node: Node) -> Kernel:
    return torch.where


@rule("Binarizer", domain="ai.onnx.ml")
def _binarizer(node: Node) -> Kernel:
    threshold = node.attr("threshold", 0.0)
    return lambda x: (x > threshold).to(x.dtype)
