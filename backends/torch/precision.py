"""32-bit products and convolutions on NVIDIA boards in 32 bits.

By its defaults torch lets cuDNN round the factors of convolutions to 10 bits (TF32), and a caller may have allowed the
same for products: results then differ from every other engine's by 1e-3, which no golden output forgives.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SETTINGS = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
_lock = threading.Lock()
_depth = 0
_before: list[str] = []


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it CUDA computes with all bits; the settings are the process's, and come back as they were."""
    global _depth
    if device.type != "cuda":
        yield
        return
    with _lock:
        if not _depth:
            _before[:] = [s.fp32_precision for s in _SETTINGS]
            for setting in _SETTINGS:
                setting.fp32_precision = "ieee"
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                for setting, value in zip(_SETTINGS, _before, strict=True):
                    setting.fp32_precision = value
