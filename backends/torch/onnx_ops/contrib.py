"""Operators of the com.microsoft domain that exporters of language models write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.attention import join_heads, rotate, split_heads
from qeil_compile.backends.torch.onnx_ops.linear import matmul
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, fail, rule

MS = "com.microsoft"


@rule("FusedMatMul", domain=MS)
def _fused_matmul(node: Node) -> Kernel:
    alpha, trans_a, trans_b = node.attr("alpha", 1.0), node.attr("transA", 0), node.attr("transB", 0)
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        raise fail(node, "transposed batch axes have no rule")

    def run(a: Tensor, b: Tensor) -> Tensor:
        a = a.transpose(-1, -2) if trans_a and a.dim() > 1 else a
        b = b.transpose(-1, -2) if trans_b and b.dim() > 1 else b
        out = matmul(a, b)
        return out if alpha == 1.0 else out * alpha

    return run


@rule("Gelu", "BiasGelu", domain=MS)
def _gelu(_node: Node) -> Kernel:
    return lambda x, bias=None: F.gelu(x if bias is None else x + bias)


@rule("FastGelu", domain=MS)
def _fast_gelu(_node: Node) -> Kernel:
    return lambda x, bias=None: F.gelu(x if bias is None else x + bias, approximate="tanh")


@rule("QuickGelu", domain=MS)
def _quick_gelu(node: Node) -> Kernel:
    alpha = node.attr("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MS)
def _skip_norm(node: Node) -> Kernel:
    epsilon = node.attr("epsilon", 1e-12 if node.op_type == "SkipLayerNormalization" else 1e-5)
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    if node.wants(1) or node.wants(2):
        raise fail(node, "the outputs mean and inv_std_var have no rule")

    def run(x: Tensor, skip: Tensor, gamma: Tensor, *rest: Any) -> Any:
        beta, bias = [*([None] if simplified else []), *rest, None, None][:2]
        total = x + skip
        if bias is not None:
            total = total + bias
        if simplified:
            wide = total.float()
            y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype) * gamma
        else:
            y = F.layer_norm(total, gamma.shape, gamma, beta, epsilon)
        return (y, None, None, total) if node.wants(3) else y

    return run


@rule("SimplifiedLayerNormalization")
def _simplified_norm(node: Node) -> Kernel:
    axis, epsilon = node.attr("axis", -1), node.attr("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        dims = list(range(axis % x.dim(), x.dim()))
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(dims, keepdim=True) + epsilon)).to(scale.dtype) * scale

    return run


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., bytes] as values [..., bytes * 8 / bits], low bits first."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


@rule("MatMulNBits", domain=MS)
def _matmul_n_bits(node: Node) -> Kernel:
    k, n, block, bits = (node.attr(a) for a in ("K", "N", "block_size", "bits"))
    bits = 4 if bits is None else bits
    if bits not in (2, 4, 8):
        raise fail(node, f"found {bits} bits, the rule takes 2, 4 or 8")
    if node.has_input(4):
        raise fail(node, "g_idx has no rule")
    blocks = -(-k // block)

    def run(
        a: Tensor,
        b: Tensor,
        scales: Tensor,
        zero: Tensor | None = None,
        _groups: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        scale = scales.reshape(n, blocks, 1)
        values = _unpack(b, bits).reshape(n, blocks, -1)[..., :block]
        if zero is None:
            centre: Any = float(1 << bits - 1)
        elif zero.dtype == torch.uint8:
            centre = _unpack(zero.reshape(n, -1), bits)[:, :blocks].reshape(n, blocks, 1).to(scale.dtype)
        else:
            centre = zero.reshape(n, blocks, 1)
        weight = ((values.to(scale.dtype) - centre) * scale).reshape(n, -1)[:, :k]
        return F.linear(a, weight.to(a.dtype), bias)

    return run


@rule("RotaryEmbedding", domain=MS)
def _rotary(node: Node) -> Kernel:
    interleaved, heads = bool(node.attr("interleaved", 0)), node.attr("num_heads", 0)
    size = node.attr("rotary_embedding_dim", 0)

    def run(x: Tensor, position: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        by_head = x.dim() == 4
        parts = (
            x.transpose(1, 2)
            if by_head
            else x.reshape(x.shape[0], x.shape[1], heads or -1, size or 2 * cos.shape[1])
        )
        if position.numel() == 1:
            # One number is the offset of the whole sequence.
            position = position.reshape(1, 1) + torch.arange(parts.shape[1], device=x.device)
        out = rotate(parts, F.embedding(position, cos), F.embedding(position, sin), interleaved, size)
        return out.transpose(1, 2) if by_head else out.reshape(x.shape)

    return run


@rule("GroupQueryAttention", domain=MS)
def _group_query_attention(node: Node) -> Kernel:
    heads, kv_heads = node.attr("num_heads"), node.attr("kv_num_heads")
    rotary, interleaved = node.attr("do_rotary", 0), bool(node.attr("rotary_interleaved", 0))
    window, softcap = node.attr("local_window_size", -1), node.attr("softcap", 0.0)
    if softcap:
        raise fail(node, "softcap has no rule")
    if any(node.has_input(i) for i in range(9, 16)):
        raise fail(node, "inputs after sin_cache have no rule")
    node.host.add(6)

    def run(q: Tensor, k: Tensor | None, v: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        past_key, past_value, last, total, cos, sin = [*rest, *[None] * 6][:6]
        if k is None or v is None:
            # Packed: q, k and v lie side by side in the first input.
            size = q.shape[-1] // (heads + 2 * kv_heads)
            q, k, v = q.split([heads * size, kv_heads * size, kv_heads * size], -1)
        q, k, v = split_heads(q, heads), split_heads(k, kv_heads), split_heads(v, kv_heads)
        count, past = q.shape[2], 0 if past_key is None else past_key.shape[2]
        # `last` holds, per row, the index of its last valid key. In a first pass padding follows the row's own tokens.
        first = not past or (count > 1 and total is not None and int(total) == count)
        place = node.shared.of(("place", count, first), (last,), lambda: _places(last, count, first))
        if rotary:
            real, imaginary = node.shared.of("turn", (place, cos, sin), lambda: _turns(place, cos, sin))
            size = 2 * cos.shape[-1]
            q = rotate(q.transpose(1, 2), real, imaginary, interleaved, size).transpose(1, 2)
            k = rotate(k.transpose(1, 2), real, imaginary, interleaved, size).transpose(1, 2)
        scale = node.attr("scale", 0.0) or 1.0 / math.sqrt(q.shape[-1])
        if past_key is None:
            present = k, v
        elif node.in_place:
            _write(past_key, k, place)
            _write(past_value, v, place)
            present = past_key, past_value
        else:
            if past and bool((place[:, 0] > past).any()):
                raise fail(node, "more valid keys than the past buffer and the new ones together hold")
            present = _appended(past_key, k, place), _appended(past_value, v, place)
        if first and window <= 0:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=count > 1, scale=scale, enable_gqa=heads != kv_heads)
            return join_heads(y), *present
        room = present[0].shape[2]
        allowed = node.shared.of(("allowed", room, window), (place,), lambda: _allowed(place, room, window))
        if count == 1:
            # The queries of a group are as queries of one head: its keys are not repeated.
            grouped = q.reshape(q.shape[0], kv_heads, heads // kv_heads, -1)
            if q.is_cuda:
                shape = grouped.shape[:-1]
                bias = node.shared.of(("bias", shape, q.dtype), (allowed,), lambda: _bias(allowed, shape, q.dtype))
                y = _single(grouped, *present, bias, scale)
            else:
                y = F.scaled_dot_product_attention(grouped, *present, allowed, scale=scale)
            return y.reshape(y.shape[0], 1, -1), *present
        y = F.scaled_dot_product_attention(q, *present, allowed, scale=scale, enable_gqa=heads != kv_heads)
        return join_heads(y), *present

    return run


def _places(last: Tensor, count: int, first: bool) -> Tensor:
    """Where each row's `count` new keys belong, int64 [b, count]."""
    last = last.reshape(-1, 1).to(torch.int64)
    start = torch.zeros_like(last) if first else last + 1 - count
    return start + torch.arange(count, device=last.device)


def _turns(place: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations at these places; padding may stand beyond the last one."""
    place = place.clamp(max=cos.shape[0] - 1) if place.shape[1] > 1 else place
    return F.embedding(place, cos), F.embedding(place, sin)


def _allowed(place: Tensor, room: int, window: int) -> Tensor:
    """Which of the keys each query sees, bool [b, 1, queries, room]."""
    ahead = torch.arange(room, device=place.device) - place.unsqueeze(-1)
    allowed = (ahead <= 0).unsqueeze(1)
    return allowed & (-ahead < window).unsqueeze(1) if window > 0 else allowed


def _bias(allowed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What is added to the scores [b * heads, queries, room] of queries of `shape` [b, heads, queries]."""
    room = allowed.shape[-1]
    blocked = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -math.inf)
    return blocked.expand(*shape, room).reshape(-1, shape[-1], room)


def _single(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention of queries [b, heads, n, w] with one new token per row, for a GPU: two products over all keys at once.

    The fused kernel gives a head to one block, which walks along its keys alone, and takes three times as long or more.
    """
    room, width = k.shape[2:]
    scores = torch.baddbmm(bias, q.reshape(-1, *q.shape[2:]), k.reshape(-1, room, width).mT, alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), v.reshape(-1, room, v.shape[3])).reshape(*q.shape[:3], -1)


def _spread(place: Tensor, new: Tensor) -> Tensor:
    return place[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])


def _write(buffer: Tensor, new: Tensor, place: Tensor) -> None:
    """Keys [b, h, n, w] into `buffer` [b, h, room, w] at `place` [b, n]."""
    buffer.scatter_(2, _spread(place, new), new)


def _appended(past: Tensor, new: Tensor, place: Tensor) -> Tensor:
    """Keys [b, h, past, w] with new ones [b, h, n, w] at `place` [b, n]; at the end where all rows are full."""
    joined = torch.cat([past, new], 2)
    if past.shape[2] and bool((place[:, 0] < past.shape[2]).any()):
        _write(joined, new, place)
    return joined
