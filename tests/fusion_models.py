"""Models on which predicted kernels are compared with those that engines run; those of `UNSEEN` shaped no rule."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qeil_compile.frontends import Traced, trace
from qeil_compile.ir import Workload
from qeil_compile.models import demo_model
from qeil_compile.models.gpt2 import GPT2, GPT2Config
from tests import zoo

DATA = Path(__file__).resolve().parent / "data" / "models"


class InvertedResidual(nn.Module):
    """MobileNet blocks: 1x1, depthwise 3x3, 1x1, hard-swish, squeeze and excite. [b, 3, 32, 32] -> [b, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.up = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.across = nn.Sequential(
            nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU6()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 16, 1), nn.ReLU(), nn.Conv2d(16, 64, 1), nn.Hardsigmoid()
        )
        self.down = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.across(self.up(x))
        x = x + self.down(y * self.squeeze(y))
        return self.head(x.mean((2, 3)))


class WrittenOut(nn.Module):
    """A transformer encoder block with attention as products and softmax: [b, 12, 64] -> [b, 12, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.first, self.second = nn.LayerNorm(64), nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (4, 16)).transpose(1, 2)

        scores = heads(self.query(x)) @ heads(self.key(x)).transpose(-1, -2) / 4.0
        mixed = torch.softmax(scores, -1) @ heads(self.value(x))
        x = self.first(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.second(x + self.down(F.relu(self.up(x))))


def _small(name: str) -> Callable[[], Traced]:
    return lambda: trace(getattr(zoo, name)(), zoo.EXAMPLES[name]())


def _gpt2(length: int) -> Callable[[], Traced]:
    tokens = torch.randint(0, 50257, (1, length), generator=torch.Generator().manual_seed(0))
    return lambda: trace(GPT2(GPT2Config(layers=2)), (tokens,))


def _unsettled(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            zoo._unsettle(m)
    return module.eval()


def _quantised() -> Traced:
    """The MobileNet block with its convolutions in 8 bits between QuantizeLinear and DequantizeLinear."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.left = [{"x": rng.standard_normal((1, 3, 32, 32), np.float32)} for _ in range(2)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "quantised.onnx"
        module = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU()), 0)
        program = torch.onnx.export(module, (torch.zeros(1, 3, 32, 32),), dynamo=True, input_names=["x"], verbose=False)
        assert program is not None
        program.save(str(plain))
        quantize_static(str(plain), str(quantised), Reader(), quant_format=QuantFormat.QDQ)
        return trace(quantised)


def _image() -> Traced:
    module = _unsettled(zoo.seeded(InvertedResidual, 0))
    return trace(module, (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),))


def _encoder() -> Traced:
    return trace(zoo.seeded(WrittenOut, 0), (torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(1)),))


#: Models whose profiles the rules were written from.
SEEN: dict[str, Callable[[], Traced]] = {
    "ultraface": lambda: trace(DATA / "ultraface/version-RFB-320.onnx"),
    "silero_vad_16k_op15": lambda: trace(
        DATA / "silero_vad/silero_vad_16k_op15.onnx",
        workload=Workload({"batch": 1, "sequence": 576}),
        inputs={"sr": np.array(16000, np.int64)},
    ),
    "magika": lambda: trace(
        DATA / "magika/standard_v3_3.onnx",
        workload=Workload({"bytes.0": 1}),
        inputs={"bytes": np.random.default_rng(0).integers(0, 256, (1, 2048), np.int32)},
    ),
    "stories260K": lambda: trace(
        demo_model(), (torch.randint(0, 512, (1, 32), generator=torch.Generator().manual_seed(0)),)
    ),
    "GPT-2 prefill, 2 layers": _gpt2(16),
    "GPT-2 decode, 2 layers": _gpt2(1),
    "ResNet-50": _small("resnet50"),
    "silero_vad": lambda: trace(
        DATA / "silero_vad/silero_vad.onnx",
        workload=Workload({"input.0": 1, "input.1": 576, "state.1": 1}),
        inputs={"sr": np.array(16000, np.int64)},
    ),
    "two branches": _small("two_branches"),
    "LSTM": _small("lstm"),
    "bag classifier": _small("bag_classifier"),
    "MLP": _small("mlp"),
    "inverted residual": _image,
    "written-out encoder": _encoder,
    "quantised convolutions": _quantised,
}

class Skip(nn.Module):
    """A small U-Net: down, up by a transposed convolution, concatenated with what went down. [b, 16, 24, 24]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.last = nn.Conv2d(64, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.first(x))
        b = F.leaky_relu(self.second(F.max_pool2d(a, 2)))
        return torch.sigmoid(self.norm(self.last(torch.cat((a, self.up(b)), 1))))


class GatedDecoder(nn.Module):
    """A decoder layer as in Llama: RMS norm, rotary halves, grouped heads, cache, SwiGLU. x [b, 1, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(64, 64, False), nn.Linear(64, 32, False), nn.Linear(64, 32, False)
        self.out, self.gate, self.up = nn.Linear(64, 64, False), nn.Linear(64, 160, False), nn.Linear(64, 160, False)
        self.down = nn.Linear(160, 64, False)
        self.first, self.second = nn.RMSNorm(64), nn.RMSNorm(64)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        def turned(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        y = self.first(x)
        query, key, value = (f(y).unflatten(-1, (-1, 16)).transpose(1, 2) for f in (self.query, self.key, self.value))
        keys, values = torch.cat((keys, turned(key)), 2), torch.cat((values, value), 2)
        mixed = F.scaled_dot_product_attention(turned(query), keys, values, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(self.second(x))) * self.up(self.second(x))), keys, values


class Mixer(nn.Module):
    """An MLP-Mixer block with a strided patch embedding: images [b, 3, 32, 32] -> [b, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 8, 8)
        self.norm, self.last = nn.LayerNorm(48), nn.LayerNorm(48)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.gru = nn.GRU(48, 24, batch_first=True)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        states, _ = self.gru(self.last(x))
        return self.head(states.amax(1))


def _of(build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Traced]:
    generator = torch.Generator().manual_seed(1)
    return lambda: trace(zoo.seeded(build, 0), tuple(torch.randn(s, generator=generator) for s in shapes))


#: Models that were run only after the rules were written, and shaped none of them.
UNSEEN: dict[str, Callable[[], Traced]] = {
    "U-Net": _of(Skip, (1, 16, 24, 24)),
    "gated decoder with cache": _of(
        GatedDecoder, (1, 1, 64), (1, 16), (1, 16), (1, 2, 31, 16), (1, 2, 31, 16)
    ),
    "mixer with GRU": _of(Mixer, (1, 3, 32, 32)),
    "ResNet-50, batch 2": lambda: trace(zoo.resnet50(), (torch.randn(2, 3, 64, 64),)),
    "Llama decode": lambda: trace(demo_model(), (torch.randint(0, 512, (1, 1)),)),
}
