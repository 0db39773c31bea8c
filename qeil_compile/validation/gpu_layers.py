"""Kernels of single operators and of the layers that the public sets time, with FLOPs as `passes.count` has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qeil_compile.devices.work import OperatorKind

#: kind, extents, dtype, type, FLOP, bytes in, bytes of weights, bytes out.
Kernel = tuple[OperatorKind, tuple[int, ...], str, str, float, float, float, float]

_SILU = 16.0
_DTYPE = {4: "float32", 2: "float16"}


def gemm(batch: int, rows: int, cols: int, inner: int, item: int) -> Kernel:
    """batch x (rows x inner) (inner x cols); the right operand counts as weights."""
    left, right, out = (float(batch * item * n) for n in (rows * inner, inner * cols, rows * cols))
    flops = 2.0 * batch * rows * cols * inner
    return "gemm", (batch, rows, cols, inner), _DTYPE[item], "matmul", flops, left, right, out


def conv(batch: int, channels: int, out: int, window: int, side: int, stride: int, padding: int) -> Kernel:
    """A square 2-D convolution in fp32."""
    to = (side + 2 * padding - window) // stride + 1
    dims = (batch, 1, out, channels, to * to, window * window, stride, to, 2)
    flops = 2.0 * batch * out * channels * (to * window) ** 2
    data = (4.0 * batch * channels * side * side, 4.0 * out * channels * window * window, 4.0 * batch * out * to * to)
    return "conv", dims, "float32", "convolution", flops, *data


def norm(rows: int, width: int, item: int, residual: bool = False) -> Kernel:
    """A layer or RMS norm; with `residual` the sum before it is fused and written too."""
    n = float(rows * width)
    extra = n * item if residual else 0.0
    return "norm", (rows, width), _DTYPE[item], "norm", 8 * n, n * item + extra, item * width, n * item + extra


def softmax(rows: int, width: int, item: int) -> Kernel:
    """A softmax over the last axis."""
    n = float(rows * width)
    return "softmax", (rows, width), _DTYPE[item], "softmax", 13 * n, n * item, 0.0, n * item


def elementwise(elements: int, inputs: float, flops: float, item: int, kind: OperatorKind = "elementwise") -> Kernel:
    """`flops` per element of the result; `inputs` tensors of its size are read."""
    n = float(elements)
    return kind, (), _DTYPE[item], kind, n * flops, inputs * n * item, 0.0, n * item


def attention(heads: int, queries: int, keys: int, width: int, cache_heads: int, item: int, live: float) -> Kernel:
    """Fused attention; `live` scores per head, `cache_heads` of keys and values are read."""
    flops = heads * live * (4.0 * width + 14.0)
    read = item * width * (heads * queries + 2.0 * cache_heads * keys)
    dims = (heads, queries, keys, width, width)
    return "attention", dims, _DTYPE[item], "attention", flops, read, 0.0, float(item * width * heads * queries)


LAYERS: Mapping[str, Callable[..., Kernel]] = {
    f.__name__: f for f in (gemm, conv, norm, softmax, elementwise, attention)
}


def vidur_layers(
    num_tokens: int, n_head: int, n_kv_head: int, n_embd: int, n_expanded_embd: int, shards: int, gated: bool
) -> dict[str, Kernel]:
    """The layers that vidur times, fp16, for one of `shards` tensor-parallel workers."""
    t, head = num_tokens, n_embd // n_head
    q, kv, fed = max(1, n_head // shards) * head, max(1, n_kv_head // shards) * head, n_expanded_embd // shards
    act = elementwise(t * fed, 2, _SILU, 2) if gated else elementwise(t * fed, 1, 14.0, 2)
    return {
        "attn_pre_proj": gemm(1, t, q + 2 * kv, n_embd, 2),
        "attn_post_proj": gemm(1, t, n_embd, q, 2),
        "mlp_up_proj": gemm(1, t, (2 if gated else 1) * fed, n_embd, 2),
        "mlp_down_proj": gemm(1, t, n_embd, fed, 2),
        "input_layernorm": norm(t, n_embd, 2),
        "post_attention_layernorm": norm(t, n_embd, 2),
        "attn_rope": elementwise(t * (q + kv), 1, 13.0, 2),
        "mlp_act": act,
        "add": elementwise(t * n_embd, 2, 1.0, 2),
        "emb": elementwise(t * n_embd, 1, 0.0, 2, "gather"),
    }


def llama_layers(
    shape: tuple[int, int, int, int, int, int], shards: int, row: Mapping[str, str]
) -> dict[str, Kernel]:
    """The layer of one row of LLMServingSim's dense, per_sequence or attention file (bf16: fp16's widths)."""
    hidden, heads, cache_heads, width, fed, vocabulary = shape
    heads, cache_heads, fed = heads // shards, max(1, cache_heads // shards), fed // shards
    if "kv_decode" in row:
        return _attention(heads, cache_heads, width, row)
    t = int(row["tokens"] if "tokens" in row else row["sequences"])
    q, kv = heads * width, cache_heads * width
    layers = {
        "qkv_proj": lambda: gemm(1, t, q + 2 * kv, hidden, 2),
        "o_proj": lambda: gemm(1, t, hidden, q, 2),
        "gate_up_proj": lambda: gemm(1, t, 2 * fed, hidden, 2),
        "down_proj": lambda: gemm(1, t, hidden, fed, 2),
        "lm_head": lambda: gemm(1, t, vocabulary // shards, hidden, 2),
        "layernorm": lambda: norm(t, hidden, 2, residual=True),
        "final_layernorm": lambda: norm(t, hidden, 2, residual=True),
        "act_fn": lambda: elementwise(t * fed, 2, _SILU, 2),
        "rotary_emb": lambda: elementwise(t * (q + kv), 1, 13.0, 2),
        "embedding": lambda: elementwise(t * hidden, 1, 0.0, 2, "gather"),
    }
    return {row["layer"]: layers[row["layer"]]()} if row["layer"] in layers else {}


def _attention(heads: int, cache_heads: int, width: int, row: Mapping[str, str]) -> dict[str, Kernel]:
    """Rows that only decode or only prefill; a mixture is two kernels in one, and left out."""
    chunk, past, sequences, keys = (int(row[c]) for c in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"))
    if chunk and not sequences:
        live = chunk * (past + (chunk + 1) / 2)
        return {"prefill": attention(heads, chunk, past + chunk, width, cache_heads, 2, live)}
    if sequences and not chunk:
        many = attention(sequences * heads, 1, keys, width, sequences * cache_heads, 2, float(keys))
        return {"decode": many}
    return {}

