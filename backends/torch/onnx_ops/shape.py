"""Operators about shapes and types: constants, casts, reshapes, and tensors made from a shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import ELEM_TYPES, cast, from_proto, torch_dtype
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, fail, plain, rule

#: Tensors up to this many elements may be shape arithmetic; they are made on the host.
HOST_ELEMENTS = 64


def _identity(x: Any) -> Any:
    return x


plain({"Identity": _identity})


@rule("Constant")
def _constant(node: Node) -> Kernel:
    attrs = node.attrs
    if "value" in attrs:
        value = from_proto(attrs["value"])
    elif "value_float" in attrs or "value_floats" in attrs:
        value = torch.tensor(attrs.get("value_float", attrs.get("value_floats")), dtype=torch.float32)
    elif "value_int" in attrs or "value_ints" in attrs:
        value = torch.tensor(attrs.get("value_int", attrs.get("value_ints")), dtype=torch.int64)
    else:
        raise fail(node, f"no tensor in its attributes {sorted(attrs)}")
    return lambda: value


@rule("Shape")
def _shape(node: Node) -> Kernel:
    start, end = node.attr("start", 0), node.attr("end")
    # The result stays on the host: shape arithmetic then never waits for an accelerator.
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@rule("Size")
def _size(_node: Node) -> Kernel:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@rule("Reshape")
def _reshape(node: Node) -> Kernel:
    shape = node.axes(1, "shape")
    allow_zero = node.attr("allowzero", 0)

    def run(x: Tensor, target: Tensor | None = None) -> Tensor:
        dims = shape(target)
        if not allow_zero and 0 in dims:
            dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
        if -1 in dims and not x.numel():
            # torch cannot infer a dimension of an empty tensor.
            known = math.prod(d for d in dims if d != -1)
            dims = [0 if d == -1 and known else d for d in dims]
        return x.reshape(dims)

    return run


@rule("Flatten")
def _flatten(node: Node) -> Kernel:
    axis = node.attr("axis", 1)

    def run(x: Tensor) -> Tensor:
        start = axis % x.dim() if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:start]), math.prod(x.shape[start:]))

    return run


@rule("Squeeze")
def _squeeze(node: Node) -> Kernel:
    axes = node.axes(1)

    def run(x: Tensor, given: Tensor | None = None) -> Tensor:
        dims = axes(given)
        return x.squeeze() if dims is None else x.squeeze(dims)

    return run


@rule("Unsqueeze")
def _unsqueeze(node: Node) -> Kernel:
    axes = node.axes(1)

    def run(x: Tensor, given: Tensor | None = None) -> Tensor:
        dims = axes(given)
        rank = x.dim() + len(dims)
        for d in sorted(d % rank for d in dims):
            x = x.unsqueeze(d)
        return x

    return run


@rule("Cast")
def _cast(node: Node) -> Kernel:
    to, saturate = node.attr("to"), bool(node.attr("saturate", 1))
    mode = node.attr("round_mode", "up")
    torch_dtype(to)
    return lambda x: cast(x, to, saturate, mode)


@rule("CastLike")
def _cast_like(node: Node) -> Kernel:
    to, saturate = node.elem(1), bool(node.attr("saturate", 1))
    mode = node.attr("round_mode", "up")
    node.host.add(1)

    def run(x: Tensor, like: Tensor) -> Tensor:
        # Without inferred types the tensor's own dtype tells all but the narrow types.
        return cast(x, to or ELEM_TYPES[like.dtype], saturate, mode)

    return run


@rule("BitCast")
def _bit_cast(node: Node) -> Kernel:
    to = torch_dtype(node.attr("to"))

    def run(x: Tensor) -> Tensor:
        if x.dtype == torch.bool:
            x = x.to(torch.uint8)
        return x.ne(0) if to == torch.bool else x.contiguous().view(to)

    return run


@rule("ConstantOfShape")
def _constant_of_shape(node: Node) -> Kernel:
    shape = node.numbers(0)
    proto = node.attr("value")
    value = from_proto(proto).reshape(()) if isinstance(proto, onnx.TensorProto) else torch.zeros(())

    def run(given: Tensor) -> Tensor:
        dims = shape(given)
        small = math.prod(dims) <= HOST_ELEMENTS and not value.is_floating_point()
        return value.to("cpu" if small else node.device).expand(dims)

    return run


@rule("Range")
def _range(node: Node) -> Kernel:
    bounds = [node.number(i) for i in range(3)]

    def run(*given: Tensor) -> Tensor:
        start, limit, step = (read(v) for read, v in zip(bounds, given, strict=True))
        dtype = given[0].dtype
        if dtype in (torch.int16, torch.int32, torch.int64):
            count = max(0, -((start - limit) // step))
            small = count <= HOST_ELEMENTS
            return torch.arange(start, limit, step, dtype=dtype, device="cpu" if small else node.device)
        count = max(0, math.ceil((limit - start) / step))
        # start + i * step, as specified: adding steps up would drift.
        steps = torch.arange(count, dtype=torch.float64, device=node.device)
        return (start + steps * step).to(dtype)

    return run


@rule("EyeLike")
def _eye_like(node: Node) -> Kernel:
    to, k = node.attr("dtype"), node.attr("k", 0)

    def run(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        columns = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        return (columns - rows == k).to(torch_dtype(to) if to else x.dtype)

    return run


@rule("Expand")
def _expand(node: Node) -> Kernel:
    shape = node.numbers(1)

    def run(x: Tensor, target: Tensor) -> Tensor:
        # Broadcasting goes both ways: the result may keep a dimension where the target says 1.
        # (torch's own function for this imports sympy, for most of a second.)
        return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape(target))))

    return run


def _random(node: Node, shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    seed = node.attr("seed")
    generator = None
    if seed is not None:
        generator = torch.Generator(device).manual_seed(int(seed))
    if node.op_type.startswith("RandomUniform"):
        low, high = node.attr("low", 0.0), node.attr("high", 1.0)
        return torch.empty(shape, dtype=dtype, device=device).uniform_(low, high, generator=generator)
    mean, scale = node.attr("mean", 0.0), node.attr("scale", 1.0)
    return torch.empty(shape, dtype=dtype, device=device).normal_(mean, scale, generator=generator)


@rule("RandomNormal", "RandomUniform")
def _random_of_shape(node: Node) -> Kernel:
    dtype = torch_dtype(node.attr("dtype", onnx.TensorProto.FLOAT))
    return lambda: _random(node, node.attr("shape"), dtype, node.device)


@rule("RandomNormalLike", "RandomUniformLike")
def _random_like(node: Node) -> Kernel:
    to = node.attr("dtype")
    return lambda x: _random(node, list(x.shape), torch_dtype(to) if to else x.dtype, x.device)


@rule("Bernoulli")
def _bernoulli(node: Node) -> Kernel:
    to = node.attr("dtype")
    return lambda x: torch.bernoulli(x).to(torch_dtype(to) if to else x.dtype)


@rule("Multinomial")
def _multinomial(node: Node) -> Kernel:
    dtype, count = torch_dtype(node.attr("dtype", onnx.TensorProto.INT32)), node.attr("sample_size", 1)
    # The input holds unnormalized log-probabilities.
    return lambda x: torch.multinomial(torch.softmax(x, -1), count, replacement=True).to(dtype)
