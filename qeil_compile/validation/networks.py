"""Layers of the published image networks that MLPerf submitters ran, from their names and architecture tables.

MobileNet v1 [Howard 2017], v2 [Sandler 2018], v3 [Howard 2019, with its minimalistic form] and EfficientNet-Lite
[TensorFlow TPU models] are built from the tables in `models_mlperf.toml` for any width and resolution; ResNet-50
v1.5 likewise. Other networks have their published totals there. Everything is per sample; one multiply-add is one MAC.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import ceil
from typing import Any

Layer = tuple[str, float, float, float, float]  # kind, MACs, elements in, elements out, weights


@dataclass(frozen=True, slots=True)
class Network:
    """A network per sample: its layers, or one layer with the totals where only these are published."""

    name: str
    family: str
    layers: tuple[Layer, ...]

    def total(self, column: int, *kinds: str) -> float:
        """Sum of a column of the layers (1 MACs, 2 elements in, 3 elements out, 4 weights), of some kinds or all."""
        return sum(float(layer[column]) for layer in self.layers if not kinds or layer[0] in kinds)

    def count(self, *kinds: str) -> int:
        """Number of layers of these kinds, or of all."""
        return sum(1 for layer in self.layers if not kinds or layer[0] in kinds)


class _Builder:
    """Appends layers and follows the shape: `size` (square), `channels`. Padding is SAME throughout."""

    def __init__(self, size: int, channels: int = 3) -> None:
        self.size, self.channels = size, channels
        self.layers: list[Layer] = []

    def conv(self, out: int, kernel: int = 1, stride: int = 1, *, depthwise: bool = False) -> _Builder:
        before = self.size**2 * self.channels
        self.size = ceil(self.size / stride)
        fan_in = kernel**2 * (1 if depthwise else self.channels)
        kind = "depthwise" if depthwise else "conv" if kernel > 1 else "pointwise"
        after = self.size**2 * out
        self.layers.append((kind, float(after * fan_in), float(before), float(after), float(out * fan_in)))
        self.channels = out
        return self

    def dense(self, features: int, out: int) -> _Builder:
        self.layers.append(("dense", float(features * out), float(features), float(out), float(features * out)))
        return self

    def elementwise(self, inputs: int = 1) -> _Builder:
        elements = float(self.size**2 * self.channels)
        self.layers.append(("elementwise", 0.0, inputs * elements, elements, 0.0))
        return self

    def pool(self, out: int) -> _Builder:
        """Global average, or a stride-2 pool if `out` is 0."""
        before = float(self.size**2 * self.channels)
        self.size = out or ceil(self.size / 2)
        self.layers.append(("elementwise", 0.0, before, float(self.size**2 * self.channels), 0.0))
        return self

    def inverted(self, hidden: int, out: int, kernel: int, stride: int, gate: int = 0, swish: bool = False) -> None:
        """Inverted residual: expand, depthwise, squeeze-and-excite of `gate` channels if any, project, add."""
        entry = self.channels
        if hidden != entry:
            self.conv(hidden)
            self._swish(swish)
        self.conv(hidden, kernel, stride, depthwise=True)
        self._swish(swish)
        if gate:
            size = self.size
            self.pool(1).dense(hidden, gate).dense(gate, hidden)
            self.size = size
            self.elementwise(2)
        self.conv(out)
        if stride == 1 and entry == out:
            self.elementwise(2)

    def _swish(self, swish: bool) -> None:
        if swish:
            self.elementwise()


def divisible(value: float, by: int = 8) -> int:
    """Nearest multiple of `by`, at least `by` and never below 0.9 of the value [MobileNet v2]."""
    out = max(by, int(value + by / 2) // by * by)
    return out + by if out < 0.9 * value else out


def _mobilenet_v1(table: Mapping[str, Any], width: float, size: int) -> list[Layer]:
    net = _Builder(size).conv(max(8, int(table["stem"] * width)), 3, 2)
    for out, stride in table["blocks"]:
        net.conv(net.channels, 3, stride, depthwise=True).conv(max(8, int(out * width)))
    features = net.channels
    return net.pool(1).dense(features, table["classes"]).layers


def _mobilenet_v2(table: Mapping[str, Any], width: float, size: int) -> list[Layer]:
    net = _Builder(size).conv(divisible(table["stem"] * width), 3, 2)
    for expand, out, repeats, stride in table["blocks"]:
        for i in range(repeats):
            net.inverted(net.channels * expand, divisible(out * width), 3, stride if i == 0 else 1)
    head = divisible(table["head"] * max(1.0, width))
    return net.conv(head).pool(1).dense(head, table["classes"]).layers


def _mobilenet_v3(table: Mapping[str, Any], width: float, size: int, minimal: bool) -> list[Layer]:
    net = _Builder(size).conv(table["stem"], 3, 2)
    net._swish(not minimal)
    for kernel, hidden, out, gate, swish, stride in table["blocks"]:
        wide = divisible(hidden * width)
        if minimal:
            kernel, gate, swish = 3, 0, 0
        net.inverted(wide, divisible(out * width), kernel, stride, divisible(wide / 4) if gate else 0, bool(swish))
    last = divisible(table["last"] * width)
    net.conv(last)
    net._swish(not minimal)
    head = table["head"]
    return net.pool(1).dense(last, head).dense(head, table["classes"]).layers


def _efficientnet_lite(table: Mapping[str, Any], number: int) -> list[Layer]:
    width, depth, size = table["scales"][number]
    net = _Builder(size).conv(table["stem"], 3, 2)
    blocks = table["blocks"]
    for index, (expand, out, repeats, stride, kernel) in enumerate(blocks):
        fixed = index in (0, len(blocks) - 1)  # Lite keeps the depth of the first and last stage
        for i in range(repeats if fixed else ceil(repeats * depth)):
            net.inverted(net.channels * expand, divisible(out * width), kernel, stride if i == 0 else 1)
    return net.conv(table["head"]).pool(1).dense(table["head"], table["classes"]).layers


def _resnet50(table: Mapping[str, Any]) -> list[Layer]:
    net = _Builder(table["size"]).conv(table["stem"], 7, 2).pool(0)
    for middle, repeats, first in table["blocks"]:
        for i in range(repeats):
            stride, entry, before = (first if i == 0 else 1), net.channels, net.size
            net.conv(middle).conv(middle, 3, stride).conv(4 * middle).elementwise(2)
            if i == 0:
                after, net.size, net.channels = net.size, before, entry
                net.conv(4 * middle, 1, stride)
                assert net.size == after
    return net.pool(1).dense(net.channels, table["classes"]).layers


@cache
def tables() -> dict[str, Any]:
    """`models_mlperf.toml`."""
    text = files("qeil_compile.validation").joinpath("models_mlperf.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


_MOBILE = re.compile(r"mobilenet-v(?P<version>[123])(?P<rest>.*)")
_NUMBERS = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)(?![\d.])")
_PRECISION = re.compile(r"-(non-quantized|quantized|quant|uint8|int8|float32|float|fp32)$")


def precision_of(benchmark: str) -> str:
    """'int8' or 'fp32' where the name says so; else '' (the configuration has one precision per network)."""
    match = _PRECISION.search(benchmark.lower().replace("_", "-"))
    if not match:
        return ""
    return "int8" if match[1] in ("quantized", "quant", "uint8", "int8") else "fp32"


def model_name(benchmark: str) -> str:
    """The network's name: no precision, `-` for `_`; accuracy variants (`-99.9`) are one network."""
    name = _PRECISION.sub("", benchmark.lower().replace("_", "-"))
    return re.sub(r"-99(\.9)?$", "", name)


@cache
def network(name: str) -> Network | None:
    """The network called `name` (as `model_name` gives it), or None if no table describes it."""
    table = tables()
    if match := _MOBILE.match(name):
        numbers = [float(n) for n in _NUMBERS.findall(match["rest"])]
        size = next((int(n) for n in numbers if n >= 32), 224)
        width = next((n for n in numbers if n < 32), 1.0)
        version = match["version"]
        if version == "3":
            variant = "small" if "small" in name else "large"
            layers = _mobilenet_v3(table[f"mobilenet-v3-{variant}"], width, size, "minimalistic" in name)
        else:
            build = _mobilenet_v1 if version == "1" else _mobilenet_v2
            layers = build(table[f"mobilenet-v{version}"], width, size)
        return Network(name, f"mobilenet-v{version}", tuple(layers))
    if match := re.match(r"efficientnet-lite(\d)", name):
        if int(match[1]) >= len(table["efficientnet-lite"]["scales"]):
            return None
        return Network(name, "efficientnet", tuple(_efficientnet_lite(table["efficientnet-lite"], int(match[1]))))
    if name == "resnet50":
        return Network(name, "resnet", tuple(_resnet50(table["resnet50"])))
    row = table["totals"].get(name)
    if row is None:
        return None
    return Network(name, row["family"], (("total", row["macs"], 0.0, 0.0, row["weights"]),))
