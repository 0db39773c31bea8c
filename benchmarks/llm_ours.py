"""Our side of the comparison: what `compile_decoder` gives a user for the workload that is measured."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llm_peer import Peer, device

from qeil_compile.api import Settings, find_target
from qeil_compile.backends import found_devices, names
from qeil_compile.language import (
    FAMILIES,
    DecoderSettings,
    Generation,
    compile_decoder,
    load_decoder,
    open_language_model,
    plan_decoder,
    trace_decoder,
)
from qeil_compile.language.bench import step_bandwidth, step_bytes


class Ours(Peer):
    """A compiled decoder, its engine chosen by the clock for each number of rows."""

    forms = ("fp32", "int8", "int4")

    def load(self) -> str:
        self.runner: Any = None
        return f"qeil_compile, {', '.join(names())}"

    def _artifact(self, rows: int, prompt: int, tokens: int) -> Path:
        return self.place / f"{self.source.name}-ours-{self.form}-{rows}-{prompt}-{tokens}.qeil"

    def compile(self, rows: int, prompt: int, tokens: int) -> dict[str, Any]:
        """Compile and save for what `setup` asks for later; what the plan counts with [B], and the seconds it took."""
        started = time.perf_counter()
        # The form is given by name: a long text to measure its perplexity on would choose nothing.
        how = DecoderSettings(self.form, text=tuple(range(1, 33)))
        workload = Generation(prompt, tokens, samples=rows)
        settings = Settings(threads=self.threads, target="host" if device() == "cpu" else _boards())
        compiled = compile_decoder(self.source, workload, settings, how)
        seconds = time.perf_counter() - started
        compiled.save(self._artifact(rows, prompt, tokens), overwrite=True)
        held = {n: sum(d.weight_bytes + d.arena_bytes for d in p.plan.devices) for n, p in compiled.phases.items()}
        return {"planned": max(held.values()), "weights": compiled.weight_bytes(), "seconds": seconds, "peak": _peak()}

    def setup(self, rows: int, prompt: int, tokens: int) -> str:
        self.runner = self.session = None
        self.runner = load_decoder(self._artifact(rows, prompt, tokens))
        self.compiled = self.runner.compiled
        self.compiled.threads = self.threads
        self.session = self.runner.start()
        used = {n: "+".join(s.placement for s in p.plan.stages) for n, p in self.compiled.phases.items()}
        return "; ".join(f"{n}: {places}" for n, places in used.items())

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        return self.session.prefill(prompts)

    def spread(self, rows: int) -> None:
        self.session.select(np.zeros(rows, np.int64))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self.session.step(tokens)

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        self.begin([prompt])  # wakes the engine, as everybody's turn begins
        before = time.perf_counter()
        found = self.runner.generate([prompt], n=samples, max_tokens=tokens, temperature=temperature, ignore_eos=True)
        seconds = time.perf_counter() - before
        if [len(c.tokens) for c in found[0]] != [tokens] * samples:
            raise RuntimeError("samples ended before their time")
        return seconds

    # ---- only ours

    def overhead(self, prompt: list[int], rows: int, steps: int) -> dict[str, float]:
        """Shares of the engine's own step that session and generation add to it, and its share of memory's speed."""
        clock = _EngineClock()
        phases = self.session.session._steps
        for name, units in phases.items():
            for unit in units if name >= rows or name == max(phases) else ():
                clock.attach(unit._stage)  # behind its guard, which belongs to the overhead
        within, step = [], []
        self.begin([prompt])
        self.spread(rows)
        tokens = self.rng.integers(0, self.session.vocab, rows)
        for _ in range(steps + 2):
            clock.seconds = 0.0
            before = time.perf_counter()
            self.session.step(tokens)
            step.append(time.perf_counter() - before)
            within.append(clock.seconds)
        engine = float(np.median(within[2:]))
        generated, inside = self._generated(prompt, rows, steps, clock)
        bandwidth = step_bandwidth(self.compiled)
        nbytes = step_bytes(self.compiled, rows, len(prompt) + steps // 2)
        return {
            "engine": engine, "step": float(np.median(step[2:])), "generate": generated,
            "session over engine": float(np.median(np.array(step[2:]) / np.array(within[2:]))) - 1,
            "generate over engine": generated / inside - 1, "bandwidth": bandwidth, "nbytes": nbytes,
            "share": nbytes / float(np.median(step[2:])) / (bandwidth or float("nan")),
        }  # fmt: skip

    def _generated(self, prompt: list[int], rows: int, steps: int, clock: _EngineClock) -> tuple[float, float]:
        """Median time from token to token of a whole job, and of the engine in it."""
        stamps: list[tuple[float, float]] = []

        def seen(event: Any) -> None:
            if event.sample == 0:
                stamps.append((time.perf_counter(), clock.total))

        self.runner.generate([prompt], n=rows, max_tokens=steps + 2, temperature=0.8, ignore_eos=True, on_token=seen)
        found = np.diff(np.array(stamps), axis=0)[1:]
        return float(np.median(found[:, 0])), float(np.median(found[:, 1]))

    def memory(self, prompt: list[int], samples: int, tokens: int) -> dict[str, float]:
        """Peak [B] of this process over loading an artifact and a job, and what it held before."""
        before = _peak()
        self.setup(samples, len(prompt), tokens)
        self.job(prompt, samples, tokens, 0.8, True)
        cache = 4 * self.compiled.facts.cache_per_token * (len(prompt) + tokens) * samples
        return {"before": before, "peak": _peak(), "cache": cache}

    def plan(self, family: str, bits: int | None, target: str) -> dict[str, Any]:
        """Seconds, peak memory and operators of planning a family without weights."""
        before, started = _peak(), time.perf_counter()
        traced = trace_decoder(open_language_model(family), Generation(512, 128, 8), "bfloat16", bits)
        planned = plan_decoder(traced, find_target(target), Settings())
        return {
            "seconds": time.perf_counter() - started, "before": before, "peak": _peak(),
            "operators": sum(len(g.ops) for g in traced.phases.values()), "strategy": planned.strategy,
            "placements": sorted({s.placement for p in planned.plans.values() for s in p.stages}),
        }  # fmt: skip


def families() -> dict[str, tuple[str, int | None]]:
    """The seven of the published results: name -> family and bits of the matrices."""
    return {n: (n, None) for n in FAMILIES} | {"llama-3.1-8b, 4 bit": ("llama-3.1-8b", 4)}


class _EngineClock:
    """Seconds that a stage spends in its engine's own call."""

    def __init__(self) -> None:
        self.seconds = self.total = 0.0

    def attach(self, stage: Any) -> None:
        """From now on. The engine's object is private to its stage, and what the claim is about."""
        for holder, method in (("_request", "infer"), ("_session", "run_with_iobinding")):
            if hasattr(stage, holder):
                engine = getattr(stage, holder)
                setattr(stage, holder, _Timed(engine, method, self))
                return
        stage._run = self.timed(stage._run)
        if hasattr(stage, "_recorded"):  # a recording is replayed without `_run`
            stage._recorded.run = self.timed(stage._recorded.run)

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time added up."""

        def run(*arguments: Any, **named: Any) -> Any:
            before = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                took = time.perf_counter() - before
                self.seconds += took
                self.total += took

        return run


class _Timed:
    """An engine's object whose one method is timed."""

    def __init__(self, engine: Any, method: str, clock: _EngineClock) -> None:
        self._engine = engine
        setattr(self, method, clock.timed(getattr(engine, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _boards() -> str:
    """All placements on the first NVIDIA GPU."""
    return ",".join(d.spec for d in found_devices() if d.available and d.spec.lower().endswith(("cuda", "cuda:0")))


def _peak() -> int:
    """Most memory that this process ever held in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(found.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
