"""Small networks for tests, each with a corner of its own, and ResNet-50. All are seeded and in eval mode.

Every builder returns a module; `EXAMPLES` gives matching inputs by the builder's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qeil_compile.models.resnet import ResNet50


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build under `seed` without touching the caller's random state; eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


class MLP(nn.Module):
    """x [b, 16] -> [b, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Branching(nn.Module):
    """x [b, 8] -> [b, 8]; which of two layers runs depends on the values (torch.cond)."""

    def __init__(self) -> None:
        super().__init__()
        self.positive = nn.Linear(8, 8)
        self.negative = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(
            x.sum() > 0, lambda x: self.positive(x).relu(), lambda x: self.negative(x).tanh(), (x,)
        )


class Recurrent(nn.Module):
    """x [b, l, 8] -> [b, 4]: a two-layer LSTM, its last state read out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


class TwoBranches(nn.Module):
    """image [b, 3, 16, 16], features [b, 8] -> (scores [b, 5], sums [b]): two paths that join."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.dense = nn.Linear(8, 8)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.relu(self.conv(image)).mean((2, 3))
        scores = self.head(torch.cat((seen, torch.tanh(self.dense(features))), dim=1))
        return scores, scores.sum(1)


class BagClassifier(nn.Module):
    """tokens int64 [b, l] -> [b, 3]: the mean of embeddings, padding (0) left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 16, padding_idx=0)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens != 0).unsqueeze(-1).to(self.embedding.weight.dtype)
        mean = (self.embedding(tokens) * kept).sum(1) / kept.sum(1).clamp(min=1)
        return self.head(mean)


class Counting(nn.Module):
    """x [b, 4] -> [b, 4], with a call counter in a buffer that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layer(x) + self.calls


def resnet50(seed: int = 0) -> nn.Module:
    """ResNet-50, 25,557,032 parameters, random weights whose activations stay finite."""
    return seeded(ResNet50, seed)


def mlp(seed: int = 0) -> nn.Module:
    """Two linear layers around a GELU."""
    return seeded(MLP, seed)


def conditional(seed: int = 0) -> nn.Module:
    """Control flow on values."""
    return seeded(Branching, seed)


def lstm(seed: int = 0) -> nn.Module:
    """A recurrent network."""
    return seeded(Recurrent, seed)


def two_branches(seed: int = 0) -> nn.Module:
    """Two inputs, two outputs, two paths that may run at once."""
    return seeded(TwoBranches, seed)


def bag_classifier(seed: int = 0) -> nn.Module:
    """Integer input, masked mean."""
    return seeded(BagClassifier, seed)


def mutating(seed: int = 0) -> nn.Module:
    """A module that writes to its own buffer."""
    return seeded(Counting, seed)


def bf16_mlp(seed: int = 0) -> nn.Module:
    """The MLP in bfloat16, inputs and outputs too."""
    return mlp(seed).to(torch.bfloat16)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _tokens(*shape: int) -> Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(1))


#: Builder name -> a function that makes inputs for the module.
EXAMPLES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "resnet50": lambda: (_normal(1, 3, 64, 64),),
    "mlp": lambda: (_normal(3, 16),),
    "conditional": lambda: (_normal(3, 8),),
    "lstm": lambda: (_normal(2, 5, 8),),
    "two_branches": lambda: (_normal(2, 3, 16, 16), _normal(2, 8)),
    "bag_classifier": lambda: (_tokens(2, 7),),
    "mutating": lambda: (_normal(2, 4),),
    "bf16_mlp": lambda: (_normal(3, 16).to(torch.bfloat16),),
}
