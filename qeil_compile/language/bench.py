"""Speed of a compiled decoder on this machine: first token, and steps by number of rows against the memory's speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from qeil_compile.devices.cpuinfo import cpu_facts
from qeil_compile.frontends.decoder import PROMPT
from qeil_compile.generation import Event
from qeil_compile.language.compiled import CompiledDecoder
from qeil_compile.language.runner import Runner

#: Bytes that are read to measure what memory delivers: far more than any cache.
_STREAM = 1 << 29


@dataclass(frozen=True)
class StepSpeed:
    """Steps with `rows` live rows. Times [s] are of one step: median, 10 % and 90 % quantile; `generate` is the time of
    a step within `Runner.generate`, sampling included. `share` is that of the memory's speed that reading weights and
    cache once per step takes; None where that cannot be measured."""

    rows: int
    median: float
    low: float
    high: float
    generate: float
    nbytes: float
    share: float | None

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together."""
        return self.rows / self.median


@dataclass(frozen=True)
class Speed:
    """All measured. `first_token` [s] is the time of a prompt of `prompt` tokens, `bandwidth` [B/s] what memory
    delivers to all cores that the engines use, or the board's own where every step runs on one (None: see
    `step_bandwidth`)."""

    prompt: int
    first_token: float
    bandwidth: float | None
    steps: tuple[StepSpeed, ...]
    label: str


def bench(
    runner: Runner, rows: Sequence[int] = (1, 4, 8, 16), prompt: int = 128, tokens: int = 32,
    progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> Speed:  # fmt: skip
    """Measure a decoder. Prompts are random tokens; lengths are cut to the context."""
    compiled, session = runner.compiled, runner.session
    prompt = max(1, min(prompt, session.context - tokens - 1))
    rng = np.random.default_rng(0)
    text = rng.integers(0, session.vocab, prompt).tolist()
    session.prefill([text])
    first = min(_timed(lambda: session.prefill([text]), 3))
    bandwidth = step_bandwidth(compiled)
    steps = []
    for k, n in enumerate(rows):
        progress("measure steps", k, len(rows))
        session.prefill([text])
        session.select(np.zeros(n, np.int64))
        tokens_of = rng.integers(0, session.vocab, n)
        session.step(tokens_of)
        times = _timed(lambda chosen=tokens_of: session.step(chosen), tokens)  # type: ignore[misc]
        within = _step_of_generate(runner, text, n, tokens)
        nbytes = step_bytes(compiled, n, prompt + tokens // 2)
        median, low, high = (float(q) for q in np.quantile(times, [0.5, 0.1, 0.9]))
        share = None if bandwidth is None else nbytes / median / bandwidth
        steps.append(StepSpeed(n, median, low, high, within, nbytes, share))
    progress("measure steps", len(rows), len(rows))
    return Speed(prompt, first, bandwidth, tuple(steps), "emulated" if compiled.emulated else "measured")


def _step_of_generate(runner: Runner, text: list[int], rows: int, tokens: int) -> float:
    """Median time between two tokens of the first sample."""
    stamps: list[float] = []

    def seen(event: Event) -> None:
        if event.sample == 0:
            stamps.append(time.perf_counter())

    runner.generate([text], n=rows, max_tokens=tokens, temperature=0.8, ignore_eos=True, on_token=seen)
    return float(np.median(np.diff(stamps)))


def step_bytes(compiled: CompiledDecoder, rows: int, past: int) -> float:
    """Bytes that a step reads once: the weights of its phase (of a table only the rows asked for), keys and values."""
    phase = next((p for n, p in compiled.phases.items() if n != PROMPT), compiled.phases[PROMPT])
    keys = {key for u in phase.units for key in u.program.weights.values()}
    weights = sum(compiled.weight(phase.bits, k).nbytes for k in keys.difference(compiled.facts.tables))
    return float(weights + 4 * compiled.facts.cache_per_token * past * rows)


def step_bandwidth(compiled: CompiledDecoder) -> float | None:
    """Bytes per second of the memory that steps read: of an NVIDIA board where all of them run on it, else the host's.

    None for a board where torch has no CUDA to measure it with.
    """
    where = {s.placement.partition(":")[2].lower() for n, p in compiled.phases.items() if n != PROMPT
             for s in p.plan.stages}  # fmt: skip
    if len(where) != 1 or not (device := where.pop()).startswith(("cuda", "tensorrt", "nvtensorrt")):
        return memory_bandwidth(compiled.threads or cpu_facts().cores)
    return board_bandwidth(int(device.rpartition(":")[2]) if ":" in device else 0)


def board_bandwidth(index: int) -> float | None:
    """Bytes per second that an NVIDIA board reads and writes in its memory: the best of some copies of a gigabyte; None
    without CUDA in torch."""
    import torch

    if not torch.cuda.is_available():
        return None
    source = torch.ones(2 * _STREAM // 4, device=f"cuda:{index}")
    goal = torch.empty_like(source)

    def copied() -> None:
        goal.copy_(source)
        torch.cuda.synchronize(index)

    return 2 * source.nbytes / min(_timed(copied, 6))


def memory_bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read together from memory: the best of some passes over half a gigabyte."""
    block = np.ones(_STREAM // 8 // threads, np.float64)
    blocks = [block, *(block.copy() for _ in range(threads - 1))]
    with ThreadPoolExecutor(threads) as pool:
        times = _timed(lambda: list(pool.map(np.sum, blocks)), 6)
    return sum(b.nbytes for b in blocks) / min(times)


def _timed(call: Callable[[], object], runs: int) -> list[float]:
    found = []
    for _ in range(runs):
        before = time.perf_counter()
        call()
        found.append(time.perf_counter() - before)
    return found
