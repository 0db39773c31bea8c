"""Quantization: linear (de)quantization per tensor, axis and block, and the integer products."""

from __future__ import annotations

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.conv import convolve
from qeil_compile.backends.torch.onnx_ops.dtypes import (
    ELEM_TYPES,
    FLOAT8,
    INTEGER_RANGE,
    T,
    cast,
    round_float4,
    torch_dtype,
)
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, plain, rule


def _spread(p: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scale or zero point in a shape that broadcasts over `x`."""
    if block:
        axis = axis % x.dim()
        return p.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if p.dim() == 0 or p.numel() == 1:
        return p.reshape(())
    shape = [1] * x.dim()
    shape[axis] = p.numel()
    return p.reshape(shape)


@rule("QuantizeLinear")
def _quantize(node: Node) -> Kernel:
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)
    saturate, precision = bool(node.attr("saturate", 1)), node.attr("precision", 0)
    to = node.attr("output_dtype", 0) or node.elem(2)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        target = to or (T.UINT8 if zero is None else ELEM_TYPES[zero.dtype])
        scale = _spread(scale, x, axis, block)
        if precision:
            x, scale = x.to(torch_dtype(precision)), scale.to(torch_dtype(precision))
        elif x.dtype in (torch.int32, torch.float16, torch.bfloat16) or scale.dtype != x.dtype:
            x, scale = x.to(torch.float32), scale.to(torch.float32)
        scaled = x / scale
        if target in INTEGER_RANGE:
            rounded = torch.round(scaled.to(torch.float32))
            if zero is not None:
                rounded = rounded + _spread(zero.to(torch.float32), x, axis, block)
            return rounded.clamp(*INTEGER_RANGE[target]).to(torch_dtype(target))
        if target == T.FLOAT4E2M1:
            return round_float4(scaled)
        return cast(scaled, target, saturate)

    return run


@rule("DequantizeLinear")
def _dequantize(node: Node) -> Kernel:
    axis, block = node.attr("axis", 1), node.attr("block_size", 0)
    to = node.attr("output_dtype", 0)

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        dtype = torch_dtype(to) if to else scale.dtype
        wide = x.to(torch.float32)
        if zero is not None and x.dtype not in FLOAT8:
            wide = wide - _spread(zero.to(torch.float32), x, axis, block)
        return (wide * _spread(scale.to(torch.float32), x, axis, block)).to(dtype)

    return run


def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255.0
    # A constant zero input has no range; any scale serves, and 1 avoids dividing by zero.
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round((-low / scale).clamp(0, 255))
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


plain({"DynamicQuantizeLinear": _dynamic_quantize})


def _centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """x - zero as float64, where 8-bit products and their sums are exact."""
    wide = x.double()
    if zero is None:
        return wide
    z = zero.double()
    if z.dim() == 1 and z.numel() > 1:
        shape = [1] * x.dim()
        shape[axis] = z.numel()
        z = z.reshape(shape)
    elif z.numel() == 1:
        z = z.reshape(())
    return wide - z


def _requantize(y: Tensor, zero: Tensor) -> Tensor:
    low, high = INTEGER_RANGE[ELEM_TYPES[zero.dtype]]
    return (torch.round(y) + zero.to(y.dtype)).clamp(low, high).to(zero.dtype)


@rule("MatMulInteger")
def _matmul_integer(_node: Node) -> Kernel:
    def run(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
        return torch.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1)).to(torch.int32)

    return run


@rule("QLinearMatMul")
def _qlinear_matmul(_node: Node) -> Kernel:
    def row(scale: Tensor, axis: int) -> Tensor:
        if scale.dim() != 1 or scale.numel() == 1:
            return scale.double().reshape(()) if scale.numel() == 1 else scale.double()
        return scale.double().reshape((-1, 1) if axis == -2 else (1, -1))

    def run(
        a: Tensor, sa: Tensor, za: Tensor, b: Tensor, sb: Tensor, zb: Tensor, sy: Tensor, zy: Tensor
    ) -> Tensor:
        y = torch.matmul(_centred(a, za, -2) * row(sa, -2), _centred(b, zb, -1) * row(sb, -1))
        return _requantize(y / sy.double(), zy)

    return run


@rule("ConvInteger")
def _conv_integer(node: Node) -> Kernel:
    def run(x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None) -> Tensor:
        # Centring first makes the padding mean "zero", as specified.
        return convolve(node, _centred(x, x_zero, 1), _centred(w, w_zero, 0), None).to(torch.int32)

    return run


@rule("QLinearConv")
def _qlinear_conv(node: Node) -> Kernel:
    def run(
        x: Tensor,
        sx: Tensor,
        zx: Tensor,
        w: Tensor,
        sw: Tensor,
        zw: Tensor,
        sy: Tensor,
        zy: Tensor,
        b: Tensor | None = None,
    ) -> Tensor:
        sums = convolve(node, _centred(x, zx, 1), _centred(w, zw, 0), None if b is None else b.double())
        scale = sx.double().reshape(()) * sw.double() / sy.double().reshape(())
        if scale.numel() > 1:
            scale = scale.reshape(-1, *[1] * (x.dim() - 2))
        return _requantize(sums * scale, zy.reshape(()))

    return run
