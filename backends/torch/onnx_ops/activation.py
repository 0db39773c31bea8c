"""Activation functions, softmax and its relatives, dropout."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, plain, rule


def _mish(x: Tensor) -> Tensor:
    return F.mish(x)


def _p_relu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


plain(
    {
        "HardSwish": F.hardswish,
        "Mish": _mish,
        "PRelu": _p_relu,
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Softsign": F.softsign,
    }
)


@rule("Softplus")
def _softplus(_node: Node) -> Kernel:
    # logaddexp has no threshold above which it switches to the identity, unlike F.softplus.
    return lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))


@rule("LeakyRelu")
def _leaky_relu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


@rule("Elu")
def _elu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@rule("Celu")
def _celu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@rule("Selu")
def _selu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.67326319217681884765625)
    gamma = node.attr("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


@rule("ThresholdedRelu")
def _thresholded_relu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.0)
    return lambda x: F.threshold(x, alpha, 0.0)


@rule("HardSigmoid")
def _hard_sigmoid(node: Node) -> Kernel:
    alpha, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


@rule("Gelu")
def _gelu(node: Node) -> Kernel:
    approximate = node.attr("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@rule("Swish")
def _swish(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.0)
    return F.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x)


@rule("Shrink")
def _shrink(node: Node) -> Kernel:
    bias, limit = node.attr("bias", 0.0), node.attr("lambd", 0.5)

    def run(x: Tensor) -> Tensor:
        shrunk = torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))
        return shrunk.to(x.dtype)

    return run


def _hardmax(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter_(dim, x.argmax(dim, keepdim=True), 1)


_SOFTMAX: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Softmax": lambda x, dim: torch.softmax(x, dim),
    "LogSoftmax": lambda x, dim: torch.log_softmax(x, dim),
    "Hardmax": _hardmax,
}


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(node: Node) -> Kernel:
    apply = _SOFTMAX[node.op_type]
    if node.version >= 13:
        axis = node.attr("axis", -1)
        return lambda x: apply(x, axis)
    first = node.attr("axis", 1)

    def flattened(x: Tensor) -> Tensor:
        # Before opset 13 all axes from `axis` on are one distribution.
        start = first % x.dim() if first < 0 else first
        return apply(x.reshape(math.prod(x.shape[:start]), -1), 1).reshape(x.shape)

    return flattened


@rule("Dropout")
def _dropout(node: Node) -> Kernel:
    training = node.number(2, False)
    ratio = node.number(1, 0.5)

    def run(x: Tensor, share: Tensor | None = None, mode: Tensor | None = None) -> tuple[Tensor, Tensor]:
        drop = ratio(share) if node.version >= 12 and training(mode) else 0.0
        # Before opset 10 the mask had the data's type.
        mask_type = torch.bool if node.version >= 10 else x.dtype
        if not drop:
            return x, torch.ones_like(x, dtype=mask_type)
        keep = torch.rand(x.shape, device=x.device) >= drop
        return x * keep / (1.0 - drop), keep.to(mask_type)

    return run if node.wants(1) else lambda *xs: run(*xs)[0]
