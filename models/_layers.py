"""Layers whose weights are left unset, and one seeded initialisation for all of them.

torch's own layers fill their weights from the global random state when they are built: twice the work
for a checkpoint loader, and a side effect on the caller's random numbers.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import skip_init


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A linear layer [..., inputs] -> [..., outputs] on the default device, weights unset."""
    return skip_init(nn.Linear, inputs, outputs, bias=bias, device=torch.get_default_device())


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding [...] -> [..., width] on the default device, weights unset."""
    return skip_init(nn.Embedding, rows, width, device=torch.get_default_device())


@torch.no_grad()
def initialise(model: nn.Module, seed: int, residual: tuple[str, ...], layers: int) -> None:
    """Fill `model` as GPT-2 does: matrices normal(0, 0.02), biases 0, norms untouched.

    Layers whose name ends with one of `residual` write into the residual stream: their spread shrinks by
    sqrt(2 * `layers`), so that the stream's variance does not grow with depth. On the meta device this
    does nothing: there is nothing to fill.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.is_meta:
            continue
        # One generator per layer: its numbers do not depend on what was filled before it.
        generator = torch.Generator(module.weight.device).manual_seed(_mix(seed, name))
        std = 0.02 / (2 * layers) ** 0.5 if name.endswith(residual) else 0.02
        module.weight.normal_(0.0, std, generator=generator)
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.zero_()


def _mix(seed: int, name: str) -> int:
    """A seed of 63 bits from `seed` and a layer's name; stable across processes, unlike `hash`."""
    mixed = seed & 0xFFFFFFFFFFFFFFFF
    for byte in name.encode():
        mixed = ((mixed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return mixed >> 1
