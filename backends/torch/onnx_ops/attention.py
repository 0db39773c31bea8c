"""Attention and rotary embedding of the ONNX domain (opsets 23 and later)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import torch_dtype
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule


def split_heads(x: Tensor, heads: int | None) -> Tensor:
    """[batch, sequence, heads * size] as [batch, heads, sequence, size]; 4-D input passes."""
    if x.dim() == 4 or heads is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[batch, heads, sequence, size] as [batch, sequence, heads * size]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _bias(
    node: Node, q: Tensor, k: Tensor, mask: Tensor | None, past: int, lengths: Tensor | None
) -> Tensor | None:
    """The additive mask [.., queries, keys] of all masking inputs and attributes, or None."""
    queries, keys = q.shape[2], k.shape[2]
    bias = None
    if mask is not None:
        lacking = keys - mask.shape[-1]
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -math.inf).to(q.dtype)
        bias = F.pad(mask, [0, lacking], value=-math.inf) if lacking > 0 else mask
    causal = node.attr("is_causal", 0)
    left, right = node.attr("left_window_size", -1), node.attr("right_window_size", -1)
    column = torch.arange(keys, device=q.device)
    allowed = None
    if causal or left >= 0 or right >= 0:
        if lengths is not None and not past:
            offset: Tensor | int = (lengths.reshape(-1) - queries).reshape(-1, 1, 1, 1)
        else:
            offset = past
        # Bottom-right alignment: query i stands at position offset + i among the keys.
        ahead = column - (torch.arange(queries, device=q.device).unsqueeze(1) + offset)
        allowed = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
        if left >= 0:
            allowed = allowed & (-ahead <= left)
        if right >= 0:
            allowed = allowed & (ahead <= right)
    if lengths is not None:
        valid = column < lengths.reshape(-1, 1, 1, 1)
        allowed = valid if allowed is None else allowed & valid
    if allowed is None:
        return bias
    blocked = torch.where(allowed, 0.0, -math.inf).to(q.dtype)
    return blocked if bias is None else bias + blocked


@rule("Attention")
def _attention(node: Node) -> Kernel:
    q_heads, kv_heads = node.attr("q_num_heads"), node.attr("kv_num_heads")
    softcap, mode = node.attr("softcap", 0.0), node.attr("qk_matmul_output_mode", 0)
    precision = node.attr("softmax_precision")

    # What torch's own causal mask says: no other limit, and as many queries as keys.
    windows = node.attr("left_window_size", -1), node.attr("right_window_size", -1)
    square = bool(node.attr("is_causal", 0)) and max(windows) < 0

    def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, causal: bool) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal, scale=scale, enable_gqa=grouped)
        # A query that may see no key gives zeros; engines differ, some give NaN.
        return y if bias is None else y.masked_fill(torch.isneginf(bias).all(-1, keepdim=True), 0.0)

    def explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        repeat = q.shape[1] // k.shape[1]
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        root = math.sqrt(scale)
        scores = torch.matmul(q * root, (k * root).transpose(-1, -2))
        shown = scores
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if mode == 1:
            shown = scores
        if bias is not None:
            scores = scores + bias
        if mode == 2:
            shown = scores
        weights = torch.softmax(scores if precision is None else scores.to(torch_dtype(precision)), -1)
        if bias is not None:
            weights = weights.masked_fill(torch.isneginf(bias).all(-1, keepdim=True), 0.0)
        weights = weights.to(q.dtype)
        return torch.matmul(weights, v), weights if mode == 3 else shown

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        mask, past_key, past_value, lengths = [*rest, None, None, None, None][:4]
        flat = q.dim() == 3
        q, k, v = split_heads(q, q_heads), split_heads(k, kv_heads), split_heads(v, kv_heads)
        past = 0
        if past_key is not None:
            past = past_key.shape[2]
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        scale = node.attr("scale") or 1.0 / math.sqrt(q.shape[-1])
        whole = node.wants(3) or softcap or precision not in (None, 1)
        causal = square and not whole and mask is None and lengths is None and q.shape[2] == k.shape[2]
        bias = None if causal else _bias(node, q, k, mask, past, lengths)
        # On a GPU the fused kernel gives a head to one block, which walks along its keys alone.
        if whole or (q.is_cuda and q.shape[2] == 1 and q.shape[1] == k.shape[1]):
            y, shown = explicit(q, k, v, bias, scale)
        else:
            y, shown = fused(q, k, v, bias, scale, causal), None
        y = join_heads(y) if flat else y
        return (y, k, v, shown)[: len(node.output_names)] if len(node.output_names) > 1 else y

    return run


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, size: int) -> Tensor:
    """Rotate the first `size` features (0: all) of x[batch, sequence, heads, features]."""
    size = size or x.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    if interleaved:
        turned = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], -1)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


@rule("RotaryEmbedding")
def _rotary(node: Node) -> Kernel:
    interleaved, size = bool(node.attr("interleaved", 0)), node.attr("rotary_embedding_dim", 0)
    heads = node.attr("num_heads", 0)

    def run(x: Tensor, cos: Tensor, sin: Tensor, position: Tensor | None = None) -> Tensor:
        if position is not None:
            cos, sin = F.embedding(position, cos), F.embedding(position, sin)
        if x.dim() == 4:
            return rotate(x.transpose(1, 2), cos, sin, interleaved, size).transpose(1, 2)
        parts = x.reshape(x.shape[0], x.shape[1], heads, -1)
        return rotate(parts, cos, sin, interleaved, size).reshape(x.shape)

    return run
