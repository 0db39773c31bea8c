"""ONNX element types in torch: conversion of arrays and protos, and ONNX's Cast.

torch has no 4-bit and 2-bit tensors to compute with, so these travel widened: INT4 and INT2 as int8,
UINT4 and UINT2 as uint8, FLOAT4E2M1 as float32 (its values are exact there).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import torch

from qeil_compile.errors import BackendError

T = onnx.TensorProto

TORCH_DTYPES: dict[int, torch.dtype] = {
    T.FLOAT: torch.float32,
    T.UINT8: torch.uint8,
    T.INT8: torch.int8,
    T.UINT16: torch.uint16,
    T.INT16: torch.int16,
    T.INT32: torch.int32,
    T.INT64: torch.int64,
    T.BOOL: torch.bool,
    T.FLOAT16: torch.float16,
    T.DOUBLE: torch.float64,
    T.UINT32: torch.uint32,
    T.UINT64: torch.uint64,
    T.COMPLEX64: torch.complex64,
    T.COMPLEX128: torch.complex128,
    T.BFLOAT16: torch.bfloat16,
    T.FLOAT8E4M3FN: torch.float8_e4m3fn,
    T.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    T.FLOAT8E5M2: torch.float8_e5m2,
    T.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    T.UINT4: torch.uint8,
    T.INT4: torch.int8,
    T.FLOAT4E2M1: torch.float32,
    T.FLOAT8E8M0: torch.float8_e8m0fnu,
    # UINT2 and INT2, by number: older releases of onnx do not name them.
    25: torch.uint8,
    26: torch.int8,
}
ELEM_TYPES: dict[torch.dtype, int] = {}
for _elem, _dtype in TORCH_DTYPES.items():
    ELEM_TYPES.setdefault(_dtype, _elem)

#: Narrow integers that travel widened: element type -> (bits, signed).
NARROW: dict[int, tuple[int, bool]] = {T.UINT4: (4, False), T.INT4: (4, True), 25: (2, False), 26: (2, True)}
#: Inclusive range of the integer types that quantization may write.
INTEGER_RANGE: dict[int, tuple[int, int]] = {
    T.UINT8: (0, 255),
    T.INT8: (-128, 127),
    T.UINT16: (0, 65535),
    T.INT16: (-32768, 32767),
    T.INT32: (-(2**31), 2**31 - 1),
    **{e: (-(1 << b - 1), (1 << b - 1) - 1) if s else (0, (1 << b) - 1) for e, (b, s) in NARROW.items()},
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
#: torch has storage but almost no arithmetic for these: kernels compute in int64 and convert back.
WIDE_UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}

# torch cannot wrap ml_dtypes arrays: their bits travel through a plain integer of the same width.
_BITS: dict[np.dtype, tuple[type, torch.dtype]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, torch.float8_e8m0fnu),
}
_WIDENED: dict[np.dtype, type] = {
    np.dtype(ml_dtypes.int4): np.int8,
    np.dtype(ml_dtypes.int2): np.int8,
    np.dtype(ml_dtypes.uint4): np.uint8,
    np.dtype(ml_dtypes.uint2): np.uint8,
    np.dtype(ml_dtypes.float4_e2m1fn): np.float32,
}
_NUMPY_BITS = {t: (n, b) for n, (b, t) in _BITS.items()}


def torch_dtype(elem_type: int) -> torch.dtype:
    """The torch dtype that carries an ONNX element type. Raises `BackendError` for strings and the like."""
    found = TORCH_DTYPES.get(elem_type)
    if found is None:
        name = T.DataType.Name(elem_type)
        raise BackendError(f"torch backend has no tensors of ONNX type {name}; place the operator elsewhere")
    return found


def from_numpy(array: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
    """The array as a tensor; on the CPU it shares the array's memory where the layout permits."""
    array = np.asarray(array, order="C")
    if array.dtype in _WIDENED:
        array = array.astype(_WIDENED[array.dtype])
    bits = _BITS.get(array.dtype)
    if bits is None and array.dtype.kind not in "biufc":
        raise BackendError(
            f"torch backend has no tensors of numpy type {array.dtype}; place the operator elsewhere"
        )
    with warnings.catch_warnings():
        # Weights are often read-only memory maps; torch warns, and kernels here never write their inputs.
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array if bits is None else array.view(bits[0]))
    if bits is not None:
        tensor = tensor.view(bits[1])
    return tensor if device is None else tensor.to(device)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as an array (bfloat16 and 8-bit floats through ml_dtypes); shares memory on the CPU."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    bits = _NUMPY_BITS.get(tensor.dtype)
    if bits is None:
        return np.asarray(tensor.numpy())
    carrier = torch.int16 if tensor.dtype == torch.bfloat16 else torch.uint8
    return np.asarray(tensor.contiguous().view(carrier).numpy().view(bits[0]))


def from_proto(proto: onnx.TensorProto) -> torch.Tensor:
    """An inline TensorProto as a tensor on the CPU, in memory of its own."""
    torch_dtype(proto.data_type)
    return from_numpy(np.array(onnx.numpy_helper.to_array(proto)))


def widened(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let an elementwise kernel accept uint16/32/64: compute in int64, give integers back as they came."""

    def run(*xs: torch.Tensor) -> torch.Tensor:
        dtype = xs[0].dtype
        if dtype not in WIDE_UNSIGNED:
            return kernel(*xs)
        out = kernel(*(x.to(torch.int64) for x in xs))
        return out.to(dtype) if out.dtype == torch.int64 else out

    return run


def moved(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let a kernel that only moves elements accept uint16/32/64: it gets the same bits as signed integers."""

    def run(*xs: torch.Tensor) -> torch.Tensor:
        dtype = xs[0].dtype
        signed = _SIGNED.get(dtype)
        if signed is None:
            return kernel(*xs)
        same = (x.view(signed) if isinstance(x, torch.Tensor) and x.dtype == dtype else x for x in xs)
        return kernel(*same).view(dtype)

    return run


def round_float4(x: torch.Tensor) -> torch.Tensor:
    """Nearest FLOAT4E2M1 value (ties to even mantissa, saturating), as float32; NaN gives 0."""
    x = torch.nan_to_num(x.to(torch.float32), 0.0)
    size = x.abs().clamp(max=6.0)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, x)


def _to_float8_e8m0(x: torch.Tensor, saturate: bool, mode: str) -> torch.Tensor:
    """Power-of-two scales: exponent bits only, rounded `up`, `down` or to `nearest` (ties up)."""
    x = x.to(torch.float32)
    bits = x.abs().contiguous().view(torch.int32)
    exponent, fraction = bits >> 23, bits & 0x7FFFFF
    if mode == "up":
        exponent = exponent + (fraction > 0).int()
    elif mode == "nearest":
        exponent = exponent + (fraction >= 0x400000).int()
    exponent = exponent.clamp(0, 254 if saturate else 255)
    exponent = torch.where(torch.isnan(x) | (x < 0), 255, exponent)
    return exponent.to(torch.uint8).view(torch.float8_e8m0fnu)


def cast(x: torch.Tensor, to: int, saturate: bool = True, round_mode: str = "up") -> torch.Tensor:
    """ONNX Cast to element type `to`; narrow types keep their low bits, as the ONNX reference does."""
    dtype = torch_dtype(to)
    if to in NARROW:
        bits, signed = NARROW[to]
        low = (x if not x.is_floating_point() else x.to(torch.float32)).to(torch.int64) & ((1 << bits) - 1)
        if signed:
            low = torch.where(low >= 1 << bits - 1, low - (1 << bits), low)
        return low.to(dtype)
    if to == T.FLOAT4E2M1:
        return round_float4(x)
    if to == T.FLOAT8E8M0:
        return _to_float8_e8m0(x, saturate, round_mode)
    if dtype in FLOAT8:
        x = x.to(torch.float32)
        if saturate:
            limit = torch.finfo(dtype).max
            x = x.clamp(-limit, limit)
        elif dtype == torch.float8_e4m3fn:
            # torch saturates this type in some versions; ONNX asks for NaN from half a step above 448.
            x = torch.where(x.abs() > 464, torch.nan, x)
        return x.to(dtype)
    if x.dtype in (*FLOAT8, torch.float8_e8m0fnu):
        x = x.to(torch.float32)
    if x.is_floating_point() and (dtype == torch.uint8 or dtype in WIDE_UNSIGNED):
        # A negative float to an unsigned type is undefined in C; through int64 it wraps on every device.
        x = x.to(torch.int64)
    return x.to(dtype)
