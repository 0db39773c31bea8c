"""Matrix products, Einsum, determinants."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import widened
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, plain, rule


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """torch.matmul for every element type."""
    if a.is_floating_point() or a.is_complex():
        return torch.matmul(a, b)
    if a.device.type == "cpu":
        return widened(torch.matmul)(a, b)
    # Accelerators have no integer matmul; float64 is exact up to 2**53.
    return torch.matmul(a.double(), b.double()).to(a.dtype)


plain({"MatMul": matmul, "Det": torch.linalg.det})


@rule("Gemm")
def _gemm(node: Node) -> Kernel:
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    trans_a, trans_b = node.attr("transA", 0), node.attr("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        if trans_a:
            a = a.T
        if a.is_floating_point() and alpha == 1.0 and beta == 1.0 and (c is None or c.dim() == 1):
            return F.linear(a, b if trans_b else b.T, c)
        out = matmul(a, b.T if trans_b else b)
        if alpha != 1.0:
            out = (out * alpha).to(a.dtype)
        if c is None:
            return out
        return out + (c if beta == 1.0 else (c * beta).to(a.dtype))

    return run


@rule("Einsum")
def _einsum(node: Node) -> Kernel:
    equation = node.attr("equation").replace(" ", "")
    return lambda *xs: torch.einsum(equation, *xs)
