"""The demonstration: the bundled model compiled for this machine and for several devices, and a story.

The multi-device plan is forced by pins, because for a model of 1 MB one device alone is best; its stages run
on stand-ins where a device is not here. The story is written greedily from that plan, and its tokens are
compared with the unpartitioned model's. Then the trained reasoner is compiled as a language model and asked a word
problem that it has never seen, in rounds of samples until the verdict is in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .api import Compiled, Progress, Settings, aot_compile, compile_traced, load, trace
from .asking import default_selector, open_source
from .errors import InputError
from .ir import Workload
from .language import Generation, Runner, Sampling, compile_decoder
from .models import demo_model, demo_tokenizer
from .models.reasoner import generate, prompt, reasoner_folder
from .sampling import Verdict
from .sampling.source import ask

#: Tokens that one run of the compiled model reads; what is behind the last token is padding.
WINDOW = 128
#: Longest sequence of the demo model.
LIMIT = 512
#: The platform that the published results name.
PLATFORM = "intel-285hx-rtx-pro-5000"
PINS: Mapping[str, str] = {
    "layers.0": "openvino:CPU",
    "layers.1": "openvino:NPU",
    "layers.2": "openvino:GPU",
    "layers.3": "onnxruntime:CPU",
    "layers.4": "openvino:NPU",
}


@dataclass(frozen=True)
class Story:
    """What was written, how fast, and whether the unpartitioned model writes the same."""

    text: str
    tokens: tuple[int, ...]
    tokens_per_second: float
    equal: bool
    emulated: Mapping[str, str]

    @property
    def label(self) -> str:
        """Emulated when a stand-in ran some stage, otherwise measured."""
        return "emulated" if self.emulated else "measured"


def compile_demo(
    workload: Workload, inputs: Mapping[str, Any], settings: Settings, seed: int, progress: Progress
) -> Compiled:
    """Compile the bundled model; `tokens.1` is its only free dimension. Raises `InputError`."""
    return aot_compile(demo_model(), (_tokens(workload, inputs, seed),), settings=settings, progress=progress)


@dataclass(frozen=True)
class Answered:
    """A word problem, what was answered, and what the right answer is."""

    question: str
    gold: str
    verdict: Verdict
    placements: Sequence[str]


def answer(progress: Progress, number: int = 0, samples: int = 20) -> Answered:
    """Compile the reasoner for this machine, and ask it problem `number` of those held out from its training."""
    with reasoner_folder() as folder:
        settings = Settings(target="onnxruntime:CPU,openvino:CPU")
        runner = Runner(compile_decoder(folder, Generation(96, 224, 8), settings, progress=progress))
    problem = generate("test", seed=2026, index=number)
    source = open_source([runner], Sampling(temperature=0.8, max_tokens=224), prompt)
    verdict = ask(source, default_selector(source, samples), problem.question)
    return Answered(problem.question, str(problem.answer), verdict, runner.compiled.placements)


def _tokens(workload: Workload, inputs: Mapping[str, Any], seed: int) -> Any:
    import torch

    unknown = next((n for n in workload.dims if n != "tokens.1"), None)
    if unknown:
        raise InputError(f"--dim {unknown}: model demo has no such dimension; it has tokens.1")
    other = next((n for n in inputs if n != "tokens"), None)
    if other:
        raise InputError(f"input {other}: the model has no such input; its inputs are tokens")
    length = workload.dims.get("tokens.1", 64)
    if length > LIMIT:
        raise InputError(f"--dim tokens.1: found {length}, the demo model reads at most {LIMIT} tokens")
    given = inputs.get("tokens")
    if given is None:
        given = np.random.default_rng(seed).integers(0, len(demo_tokenizer()), (1, length))
    array = np.asarray(given)
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[0] != 1:
        raise InputError(f"input tokens: found {array.dtype}{list(array.shape)}, expected int64 [1, length]")
    if "tokens.1" in workload.dims and array.shape[1] != length:
        raise InputError(f"input tokens: found length {array.shape[1]}, --dim tokens.1 says {length}")
    return torch.from_numpy(array.astype(np.int64))


def build(folder: Path, progress: Progress, show: Callable[[Compiled, Path], None]) -> Path:
    """Compile, save, reload and verify both plans; `show` gets each. Returns the multi-device artifact."""
    import torch

    traced = trace(demo_model(), (torch.ones(1, WINDOW, dtype=torch.int64),))
    both = {
        "this-machine": Settings(target="openvino:CPU,onnxruntime:CPU", measure=True),
        "several-devices": Settings(target=PLATFORM, pins=PINS),
    }
    path = folder
    for name, settings in both.items():
        path = folder / f"{name}.qeil"
        compile_traced(traced, settings, progress).save(path)
        compiled = load(path)
        compiled.verify()
        show(compiled, path)
    return path


def write_story(path: Path, steps: int, say: Callable[[str], None]) -> Story:
    """Write greedily from an artifact, `say` each new piece of text, then compare with eager torch."""
    if not 1 <= steps <= LIMIT:
        raise InputError(f"--steps: found {steps}, expected 1 to {LIMIT}")
    compiled, tokenizer = load(path), demo_tokenizer()
    compiled.start()
    output = compiled.graph.outputs[0]
    shown = ""

    def stream(tokens: list[int]) -> None:
        nonlocal shown
        text = tokenizer.decode(tokens)
        say(text[len(shown) :])
        shown = text

    started = time.perf_counter()
    tokens = _greedy(lambda window: compiled.run({"tokens": window})[output], steps, stream)
    seconds = time.perf_counter() - started
    reference = _greedy(_eager(), steps, lambda tokens: None)
    return Story(shown, tuple(tokens), (len(tokens) - 1) / seconds, tokens == reference, compiled.emulated)


def _greedy(
    logits: Callable[[np.ndarray], np.ndarray], steps: int, seen: Callable[[list[int]], None]
) -> list[int]:
    """The most likely token, `steps` times, from the last `WINDOW` tokens; stops at an end mark."""
    tokens = [demo_tokenizer().bos]
    for _ in range(steps):
        recent = tokens[-WINDOW:]
        window = np.zeros((1, WINDOW), dtype=np.int64)
        window[0, : len(recent)] = recent
        # Attention looks back only: the padding behind the last token does not change its logits.
        token = int(logits(window)[0, len(recent) - 1].argmax())
        if token == demo_tokenizer().bos:
            break
        tokens.append(token)
        seen(tokens)
    return tokens


def _eager() -> Callable[[np.ndarray], np.ndarray]:
    import torch

    model = demo_model()

    def logits(window: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(window)))

    return logits
