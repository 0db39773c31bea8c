"""Windows, Fourier transforms, mel weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.dtypes import torch_dtype
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule

#: Cosine coefficients of each window.
_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25.0 / 46.0, 21.0 / 46.0, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@rule(*_WINDOWS)
def _window(node: Node) -> Kernel:
    first, second, third = _WINDOWS[node.op_type]
    dtype, size = torch_dtype(node.attr("output_datatype", 1)), node.number(0)
    periodic = bool(node.attr("periodic", 1))

    def run(length: Tensor) -> Tensor:
        n = int(size(length))
        angle = 2 * math.pi * torch.arange(n, dtype=torch.float64, device=node.device)
        angle = angle / (n if periodic else max(n - 1, 1))
        return (first - second * torch.cos(angle) + third * torch.cos(2 * angle)).to(dtype)

    return run


def _complex(x: Tensor) -> Tensor:
    """A tensor whose last axis holds (real) or (real, imaginary), as a complex (or real) tensor."""
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)


def _transform(x: Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)
    signal = _complex(wide)
    if inverse and onesided:
        n = 2 * (signal.shape[axis] - 1) if length is None else length
        return torch.fft.irfft(signal, n, axis).unsqueeze(-1).to(x.dtype)
    if inverse:
        out = torch.fft.ifft(signal, length, axis)
    elif onesided and not signal.is_complex():
        out = torch.fft.rfft(signal, length, axis)
    else:
        out = torch.fft.fft(signal, length, axis)
        if onesided:
            out = out.narrow(axis, 0, out.shape[axis] // 2 + 1)
    return torch.view_as_real(out.resolve_conj()).to(x.dtype)


@rule("DFT")
def _dft(node: Node) -> Kernel:
    inverse, onesided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    length = node.number(1)
    axis = node.number(2, -2)

    def run(x: Tensor, size: Tensor | None = None, along: Tensor | None = None) -> Tensor:
        dim = node.attr("axis", 1) if node.version < 20 else int(axis(along))
        return _transform(x, length(size), dim % x.dim(), inverse, onesided)

    return run


@rule("STFT")
def _stft(node: Node) -> Kernel:
    onesided = bool(node.attr("onesided", 1))
    hop, length = node.number(1), node.number(3)

    def run(x: Tensor, step: Tensor, window: Tensor | None = None, frame: Tensor | None = None) -> Tensor:
        size = length(frame)
        if size is None:
            size = x.shape[1] if window is None else window.shape[0]
        frames = x.unfold(1, int(size), int(hop(step))).movedim(-1, 2)
        if window is not None:
            frames = frames * window.reshape(1, 1, -1, 1)
        return _transform(frames, int(size), 2, False, onesided)

    return run


@rule("MelWeightMatrix")
def _mel_weights(node: Node) -> Kernel:
    dtype = torch_dtype(node.attr("output_datatype", 1))
    readers = [node.number(i) for i in range(5)]

    def run(*given: Tensor) -> Tensor:
        bins, length, rate, low, high = (read(v) for read, v in zip(readers, given, strict=True))
        low_mel, high_mel = (2595 * math.log10(1 + f / 700) for f in (low, high))
        edges = torch.arange(bins + 2, dtype=torch.float64) * ((high_mel - low_mel) / (bins + 2)) + low_mel
        edges = 700 * (torch.pow(10.0, edges / 2595) - 1)
        place = ((length + 1) * edges // rate).to(torch.int64).tolist()
        out = torch.zeros(length // 2 + 1, bins, dtype=torch.float64)
        for i in range(bins):
            left, centre, right = place[i : i + 3]
            if centre == left:
                out[centre, i] = 1
            for j in range(left, centre + 1 if centre > left else centre):
                out[j, i] = (j - left) / (centre - left)
            for j in range(centre, right):
                out[j, i] = (right - j) / (right - centre)
        return out.to(node.device, dtype)

    return run
