"""Small whole networks: what a kernel costs among kernels of other kinds.

In a chain of one kind its data come from the cache as the kernel before left them; in a network buffers change, and
the cache holds what other kernels needed. The fit takes one factor per kind of kernel from these networks. Sizes
are drawn from the middle of what people run and are those of no published network.
"""

from __future__ import annotations

import numpy as np

from .fit import COMPOSITE
from .networks import Chain, Network


class _Builder(Chain):
    """Layers with weights of their own."""

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def conv(self, x: str, inner: int, outer: int, window: int, stride: int = 1, groups: int = 1) -> str:
        fan = inner // groups * window * window
        weight, bias = self.weight(outer, inner // groups, window, window, fan=fan), self.weight(outer)
        pads = [window // 2] * 4
        return self.node(
            "Conv", x, weight, bias, group=groups, kernel_shape=[window] * 2, strides=[stride] * 2, pads=pads
        )

    def linear(self, x: str, inner: int, outer: int) -> str:
        return self.node("Add", self.node("MatMul", x, self.weight(inner, outer, fan=inner)), self.weight(outer))

    def norm(self, x: str, width: int) -> str:
        return self.node("LayerNormalization", x, self.weight(width), self.weight(width), axis=-1)


def mobile(first: int, side: int, blocks: int) -> Network:
    """Depthwise and pointwise convolutions; the map halves with every third block."""
    b = _Builder((1, 3, side, side))
    x, channels = b.node("Relu", b.conv("x0", 3, first, 3, 2)), first
    for k in range(blocks):
        halve = k % 3 == 2
        x = b.node("Relu", b.conv(x, channels, channels, 3, 2 if halve else 1, channels))
        x = b.node("Relu", b.conv(x, channels, channels * (1 + halve), 1))
        channels *= 1 + halve
    return b.network(f"mobile {first} {side} {blocks}", COMPOSITE, b.node("GlobalAveragePool", x))


def residual(first: int, side: int) -> Network:
    """Bottlenecks with shortcuts in three stages, two each."""
    b = _Builder((1, 3, side, side))
    x = b.node("Relu", b.conv("x0", 3, first, 7, 2))
    x, channels = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), first
    for stage in range(3):
        width = first * 2**stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = b.node("Relu", b.conv(x, channels, width, 1))
            y = b.conv(b.node("Relu", b.conv(y, width, width, 3, stride)), width, 4 * width, 1)
            short = x if block else b.conv(x, channels, 4 * width, 1, stride)
            x, channels = b.node("Relu", b.node("Add", y, short)), 4 * width
    flat = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.network(f"residual {first} {side}", COMPOSITE, b.linear(flat, channels, 500))


def decoder(rows: int, past: int, width: int, heads: int, layers: int, vocab: int) -> Network:
    """Layers of a decoder over `rows` new tokens, with keys and values of `past` tokens as inputs and outputs."""
    size = width // heads
    cache = [(1, heads, past, size)] * (2 * layers if past else 0)
    b, outputs = _Builder((1, rows, width), *cache), []
    x = "x0"
    for k in range(layers):
        queries, keys, values = (
            b.node("Transpose", b.node("Reshape", p, b.ints(1, rows, heads, size)), perm=[0, 2, 1, 3])
            for p in b.parts(b.linear(b.norm(x, width), width, 3 * width), 3)
        )
        if past:
            keys, values = (b.node("Concat", f"x{1 + 2 * k + i}", new, axis=2) for i, new in enumerate((keys, values)))
            outputs += [keys, values]
        mixed = b.node("Attention", queries, keys, values, is_causal=int(not past))
        mixed = b.node("Reshape", b.node("Transpose", mixed, perm=[0, 2, 1, 3]), b.ints(1, rows, width))
        x = b.node("Add", x, b.linear(mixed, width, width))
        hidden = b.node("Gelu", b.linear(b.norm(x, width), width, 4 * width), approximate="tanh")
        x = b.node("Add", x, b.linear(hidden, 4 * width, width))
    logits = b.node("MatMul", b.norm(x, width), b.weight(width, vocab, fan=width))
    return b.network(f"decoder {rows} after {past} {width}x{layers} to {vocab}", COMPOSITE, logits, *outputs)


def speech(channels: int, steps: int) -> Network:
    """One-dimensional convolutions over a short signal, a recurrent cell, and the shape juggling around them."""
    b = _Builder((1, 1, 64 * steps), (1, 1, channels))
    x = b.node("Conv", "x0", b.weight(2 * channels, 1, 128, fan=128), kernel_shape=[128], strides=[64], pads=[32, 32])
    real, imaginary = b.parts(x, 2, axis=1)
    x = b.node("Sqrt", b.node("Add", b.node("Mul", real, real), b.node("Mul", imaginary, imaginary)))
    for stride in (1, 2, 2):
        weight = b.weight(channels, channels, 3, fan=3 * channels)
        x = b.node("Conv", x, weight, b.weight(channels), kernel_shape=[3], strides=[stride], pads=[1, 1])
        x = b.node("Relu", x)
    x = b.node("Transpose", x, perm=[2, 0, 1])
    w, r = (b.weight(1, 4 * channels, channels, fan=channels) for _ in range(2))
    y = b.node("Squeeze", b.node("LSTM", x, w, r, "", "", "x1", "x1", hidden_size=channels), b.ints(1))
    score = b.node("Sigmoid", b.linear(b.node("Relu", y), channels, 1))
    return b.network(f"speech {channels} {steps}", COMPOSITE, b.node("ReduceMean", score, b.ints(0, 1), keepdims=1))


def boxes(rows: int) -> Network:
    """What detectors do with their results: slices, concatenations and arithmetic on narrow rows."""
    b = _Builder((1, rows, 4), (1, rows, 4))
    centre = b.node("Slice", "x0", b.ints(0), b.ints(2), b.ints(2))
    size = b.node("Slice", "x0", b.ints(2), b.ints(4), b.ints(2))
    anchor = b.node("Slice", "x1", b.ints(2), b.ints(4), b.ints(2))
    centre = b.node("Add", b.node("Mul", centre, anchor), b.node("Slice", "x1", b.ints(0), b.ints(2), b.ints(2)))
    size = b.node("Mul", b.node("Exp", size), anchor)
    low, high = b.node("Sub", centre, size), b.node("Add", centre, size)
    scores = b.node("Softmax", b.node("Concat", low, high, axis=2), axis=2)
    return b.network(f"boxes {rows}", COMPOSITE, scores, b.node("Concat", low, high, axis=2))
