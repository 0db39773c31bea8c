"""Normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import torch_dtype
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule


@rule("BatchNormalization")
def _batch_norm(node: Node) -> Kernel:
    epsilon, momentum = node.attr("epsilon", 1e-5), node.attr("momentum", 0.9)

    def infer(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if x.dtype == scale.dtype == mean.dtype:
            return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
        shape = [-1] + [1] * (x.dim() - 2)
        factor = (scale / torch.sqrt(var + epsilon)).reshape(shape)
        return ((x - mean.reshape(shape)) * factor + bias.reshape(shape)).to(x.dtype)

    def train(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
        dims = [d for d in range(x.dim()) if d != 1]
        now, spread = x.mean(dims), x.var(dims, unbiased=False)
        y = infer(x, scale, bias, now, spread)
        return y, mean * momentum + now * (1 - momentum), var * momentum + spread * (1 - momentum)

    return train if node.attr("training_mode", 0) else infer


@rule("InstanceNormalization")
def _instance_norm(node: Node) -> Kernel:
    epsilon = node.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        shape = [-1] + [1] * (x.dim() - 2)
        dims = list(range(2, x.dim()))
        mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
        return (x - mean) * torch.rsqrt(var + epsilon) * scale.reshape(shape) + bias.reshape(shape)

    return run


@rule("LayerNormalization")
def _layer_norm(node: Node) -> Kernel:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    stash = torch_dtype(node.attr("stash_type", 1))
    only = not (node.wants(1) or node.wants(2))

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        dims = list(range(axis % x.dim(), x.dim()))
        tail = x.shape[dims[0] :]
        if only and scale.shape == tail and (bias is None or bias.shape == tail) and x.dtype == scale.dtype:
            return F.layer_norm(x, tail, scale, bias, epsilon)
        wide = x.to(stash)
        mean = wide.mean(dims, keepdim=True)
        inverse = torch.rsqrt(wide.var(dims, unbiased=False, keepdim=True) + epsilon)
        y = ((wide - mean) * inverse).to(x.dtype) * scale
        if bias is not None:
            y = y + bias
        return y if only else (y, mean, inverse)

    return run


@rule("RMSNormalization")
def _rms_norm(node: Node) -> Kernel:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)
    stash = torch_dtype(node.attr("stash_type", 1))

    def run(x: Tensor, scale: Tensor) -> Tensor:
        dims = list(range(axis % x.dim(), x.dim()))
        wide = x.to(stash)
        wide = wide * torch.rsqrt(wide.square().mean(dims, keepdim=True) + epsilon)
        return wide.to(scale.dtype) * scale

    return run


@rule("GroupNormalization")
def _group_norm(node: Node) -> Kernel:
    groups, epsilon = node.attr("num_groups"), node.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if node.version < 21:
            # Before opset 21 scale and bias were per group.
            repeat = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(repeat), bias.repeat_interleave(repeat)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


@rule("LRN")
def _lrn(node: Node) -> Kernel:
    size = node.attr("size")
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2

    def run(x: Tensor) -> Tensor:
        squares = F.pad(x.square().movedim(1, -1), [before, after])
        sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
        return x / (bias + alpha / size * sums) ** beta

    return run


@rule("LpNormalization")
def _lp_norm(node: Node) -> Kernel:
    axis, p = node.attr("axis", -1), node.attr("p", 2)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
        # A zero vector stays zero.
        return torch.where(norm == 0, torch.zeros_like(x), x / norm)

    return run


@rule("MeanVarianceNormalization")
def _mean_variance(node: Node) -> Kernel:
    axes = node.attr("axes", [0, 2, 3])

    def run(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return run
