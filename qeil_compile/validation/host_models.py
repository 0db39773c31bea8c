"""Whole models for the latency row of this machine: none of their layers is a network of the calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qeil_compile.frontends import Traced, trace
from qeil_compile.ir import Workload

Build = Callable[[], Traced]
#: Past tokens of the decoding step, and tokens of the prompt.
_PAST, _PROMPT = 128, 128
#: Input bytes of magika (with few different values its normalisation would divide noise by noise), rate of silero.
_BYTES = {"bytes": np.random.default_rng(0).integers(0, 256, (1, 2048), np.int32)}
_RATE = {"sr": np.array(16000, np.int64)}
#: Bindings of the dynamic dimensions of models that are known by their file, and inputs whose values matter.
_KNOWN = {
    "silero_vad.onnx": (Workload({"input.0": 1, "input.1": 576, "state.1": 1}), _RATE),
    "silero_vad_16k_op15.onnx": (Workload({"batch": 1, "sequence": 576}), _RATE),
    "standard_v3_3.onnx": (Workload({"bytes.0": 1}), _BYTES),
}


def host_models(folder: Path) -> dict[str, Build]:
    """Every ONNX file below `folder`, ResNet-50, and GPT-2 125M in prefill and in decoding, by name."""
    found: dict[str, Build] = {}
    for path in sorted(folder.rglob("*.onnx")):
        workload, inputs = _KNOWN.get(path.name, (Workload(), {}))
        found[path.stem] = lambda p=path, w=workload, i=inputs: trace(p, workload=w, inputs=i)  # type: ignore[misc]
    return found | {"ResNet-50": _resnet, "GPT-2 prefill": _prefill, "GPT-2 decode": _decode}


def _resnet() -> Traced:
    import torch

    from qeil_compile.models.resnet import ResNet50

    torch.manual_seed(0)
    return trace(ResNet50().eval(), (torch.randn(1, 3, 224, 224),))


def _prefill() -> Traced:
    import torch

    from qeil_compile.models.gpt2 import GPT2

    tokens = torch.randint(0, 50257, (1, _PROMPT), generator=torch.Generator().manual_seed(0))
    return trace(GPT2(), (tokens,))


def _decode() -> Traced:
    import torch

    from qeil_compile.models.gpt2 import GPT2, GPT2Step

    model = GPT2()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.heads, _PAST, config.width // config.heads)
    cache = [torch.randn(shape, generator=generator) for _ in range(2 * config.layers)]
    return trace(GPT2Step(model).eval(), (torch.tensor([[7]]), torch.tensor([_PAST]), *cache))
