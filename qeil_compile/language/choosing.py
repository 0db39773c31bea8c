"""Which engine, and which form of the weights, each phase runs best on: by the clock, where the devices are here.

Every candidate (the joint plan, and each placement alone, in each form of the weights) runs a prompt and some steps of
each number of rows. A phase takes the fastest one; where two phases take different ones, moving the cache is counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from qeil_compile.artifact.decoder import PhaseUnits
from qeil_compile.errors import BackendError
from qeil_compile.frontends.decoder import PROMPT, Generation, step_phase
from qeil_compile.language.compiled import CompiledDecoder, PhaseTiming
from qeil_compile.models.decoder import DecoderFacts
from qeil_compile.runtime.session import Session

#: Bytes per second at which a cache is taken out of one engine and put into another, at least.
_MOVE_RATE = 2e9
#: Steps that are timed at most.
_STEPS = 64
#: Another engine for a phase has to save this share of the whole: less is noise.
_WORTH = 0.02
Say = Callable[[str], None]


@dataclass(frozen=True)
class Option:
    """One candidate: its name, and all phases on it."""

    name: str
    bits: int
    phases: Mapping[str, PhaseUnits]


def measure(
    compiled: CompiledDecoder, options: Sequence[Option], say: Say, seconds: float = 2.0
) -> tuple[list[PhaseTiming], dict[str, str]]:
    """Time each option; one is in memory at a time. Also why an engine refused a candidate, by its name."""
    found: list[PhaseTiming] = []
    refused: dict[str, str] = {}
    for option in options:
        say(f"{option.name}, {option.bits} bit")
        try:
            # Without a name the session ends here, and not when the next one has started.
            found += list(
                _timings(
                    replace(compiled, phases=option.phases).start(), option, compiled.workload, compiled.facts, seconds
                )
            )
        except BackendError as error:
            refused[f"{option.name}, {option.bits} bit"] = str(error)
        finally:
            gc.collect()
    return found, refused


def _timings(
    session: Session, option: Option, workload: Generation, facts: DecoderFacts, seconds: float
) -> Iterator[PhaseTiming]:
    rng = np.random.default_rng(0)
    most = max(2, min(workload.tokens, _STEPS))
    length = max(1, min(workload.prompt, facts.context - most - 1))
    prompts = [rng.integers(0, facts.vocab, length).tolist() for _ in range(workload.prompts)]
    found, runs = _least(lambda: session.prefill(prompts), seconds)
    yield PhaseTiming(option.name, option.bits, PROMPT, found, runs)
    for rows in workload.shares:
        session.prefill(prompts)
        session.select(np.arange(rows) % workload.prompts)
        tokens = np.asarray(rng.integers(0, facts.vocab, rows))
        found, runs = _least(lambda tokens=tokens: session.step(tokens), seconds, most)  # type: ignore[misc]
        yield PhaseTiming(option.name, option.bits, step_phase(rows), found, runs)


def _least(call: Callable[[], object], seconds: float, most: int = 20) -> tuple[float, int]:
    """Least time of a call, over some runs after one that is not counted."""
    call()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < most and (len(times) < 3 or time.perf_counter() - started < seconds):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return min(times), len(times)


def choose(
    compiled: CompiledDecoder, options: Sequence[Option], timings: Sequence[PhaseTiming], cache_bytes: float
) -> tuple[dict[str, Option], float]:
    """The option of each phase that makes the whole job shortest, and the seconds of that job.

    `cache_bytes` is what moves where a phase's option is not that of the phase before. Raises `BackendError` where no
    option ran all phases.
    """
    by = {(o.name, o.bits): o for o in options}
    seconds = {(t.candidate, t.bits, t.phase): t.seconds for t in timings}
    names = list(compiled.phases)
    runs = {PROMPT: 1.0}
    runs |= {step_phase(k): share * compiled.workload.tokens for k, share in compiled.workload.shares.items()}
    able = [k for k in by if all((*k, n) in seconds for n in names)]
    if not able:
        raise BackendError(f"model {compiled.name}: no engine ran all phases; see the notes of the compilation")
    best: tuple[float, tuple[tuple[str, int], ...]] | None = None
    single = min(sum(runs[n] * seconds[(*k, n)] for n in names) for k in able)
    for combination in product(able, repeat=len(names)):
        total = sum(runs[n] * seconds[(*k, n)] for n, k in zip(names, combination, strict=True))
        changes = sum(a != b for a, b in pairwise(combination))
        total += changes * cache_bytes / _MOVE_RATE
        # Two forms of the weights, or two engines, take twice the memory: only for what can be seen.
        if changes and total > (1 - _WORTH) * single:
            continue
        if best is None or total < best[0]:
            best = total, combination
    assert best is not None
    return {n: by[k] for n, k in zip(names, best[1], strict=True)}, best[0]


def job_seconds(compiled: CompiledDecoder, timings: Sequence[PhaseTiming]) -> float:
    """Seconds of one prompt and all steps, of timings of one candidate."""
    runs = {PROMPT: 1.0}
    runs |= {step_phase(k): share * compiled.workload.tokens for k, share in compiled.workload.shares.items()}
    return sum(runs[t.phase] * t.seconds for t in timings)
