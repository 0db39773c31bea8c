"""Which engine, and which form of the weights, each phase runs best on: by the clock, where the devices are here.

First every candidate (the joint plan, and each placement alone, in each form of the weights) runs a prompt and some
steps of each number of rows, one after the other. Then the best of them, and the best mixture of them by phase, take
turns, so that a noisy machine hits all alike. More than one engine, or form of the weights, has to be clearly faster.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
import onnx

from qeil_compile.artifact.decoder import PhaseUnits
from qeil_compile.errors import BackendError
from qeil_compile.forms.products import asks_integer_rows
from qeil_compile.frontends.decoder import PROMPT, Generation, step_phase
from qeil_compile.language.compiled import CompiledDecoder, PhaseTiming
from qeil_compile.models.decoder import DecoderFacts
from qeil_compile.passes.lower import LoweredUnit
from qeil_compile.runtime.session import Session

#: Bytes per second at which a cache is taken out of one engine and put into another, at least.
_MOVE_RATE = 2e9
#: Steps that are timed at most, one candidate after the other, and in each turn of the finals.
_STEPS, _TURN_STEPS = 64, 8
#: Rounds of the finals: at least, and at most where time is left. Threads that spin need a rest before each turn [s].
_ROUNDS, _REST = (3, 15), 0.06
#: What engines hold in memory, at most, in multiples of the weights; share of the free memory that finals may take.
_COPIES, _SHARE_OF_MEMORY = 2.5, 0.8
#: A first run that takes so many times the best one known is the only one: what an engine prepares in it is less.
_HOPELESS = 20.0
#: Another engine for a phase has to save this share of the whole: less is noise.
_WORTH = 0.02
Say = Callable[[str], None]


def in_rows(unit: LoweredUnit) -> bool:
    """Whether a unit's packed weights run as rows of 8-bit integers because its program asks for it."""
    return unit.program.form == "onnx" and asks_integer_rows(onnx.load_model_from_string(unit.program.payload))


@dataclass(frozen=True, eq=False)
class Option:
    """One candidate: its name, and all phases on it."""

    name: str
    bits: int
    phases: Mapping[str, PhaseUnits]

    @property
    def pure(self) -> bool:
        """One placement and one form of the weights for everything."""
        return len({(u.placements, p.bits, in_rows(u)) for p in self.phases.values() for u in p.units}) == 1

    def weight_bytes(self, compiled: CompiledDecoder) -> int:
        """Bytes of the weights that it needs."""
        return replace(compiled, phases=self.phases).weight_bytes()


def measure(
    compiled: CompiledDecoder, options: Sequence[Option], say: Say, seconds: float = 2.0
) -> tuple[list[PhaseTiming], dict[str, str]]:
    """Time each option; one is in memory at a time. Also why an engine refused a candidate, by its name."""
    found: list[PhaseTiming] = []
    refused: dict[str, str] = {}
    best: dict[str, float] = {}
    for option in options:
        say(f"{option.name}, {option.bits} bit")
        try:
            # Without a name the session ends here, and not when the next one has started.
            timings = list(
                _timings(
                    replace(compiled, phases=option.phases).start(), option, compiled.workload, compiled.facts, seconds,
                    best,
                )
            )  # fmt: skip
            found += timings
            best |= {t.phase: min(t.seconds, best.get(t.phase, t.seconds)) for t in timings}
        except BackendError as error:
            refused[f"{option.name}, {option.bits} bit"] = str(error)
        finally:
            gc.collect()
    return found, refused


def _timings(
    session: Session, option: Option, workload: Generation, facts: DecoderFacts, seconds: float,
    best: Mapping[str, float],
) -> Iterator[PhaseTiming]:
    rng = np.random.default_rng(0)
    most = max(2, min(workload.tokens, _STEPS))
    length = max(1, min(workload.prompt, facts.context - most - 1))
    prompts = [rng.integers(0, facts.vocab, length).tolist() for _ in range(workload.prompts)]
    found, runs = _least(lambda: session.prefill(prompts), seconds, known=best.get(PROMPT))
    yield PhaseTiming(option.name, option.bits, PROMPT, found, runs)
    for rows in workload.shares:
        session.prefill(prompts)
        session.select(np.arange(rows) % workload.prompts)
        tokens = np.asarray(rng.integers(0, facts.vocab, rows))
        name = step_phase(rows)
        found, runs = _least(lambda tokens=tokens: session.step(tokens), seconds, most, best.get(name))  # type: ignore[misc]
        yield PhaseTiming(option.name, option.bits, name, found, runs)


def _least(
    call: Callable[[], object], seconds: float, most: int = 20, known: float | None = None
) -> tuple[float, int]:
    """Least time of a call, over some runs after one that is not counted; of one run where that is hopeless beside the
    best time that is known."""
    started = time.perf_counter()
    call()
    if known is not None and (first := time.perf_counter() - started) > _HOPELESS * known:
        return first, 1
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < most and (len(times) < 3 or time.perf_counter() - started < seconds):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return min(times), len(times)


def best_by_phase(
    compiled: CompiledDecoder, options: Sequence[Option], timings: Sequence[PhaseTiming], cache_bytes: float
) -> Option:
    """The option whose phases, each taken from one of `options`, make the whole job shortest by these timings.

    `cache_bytes` is what moves where a phase's option is not that of the phase before. Raises `BackendError` where no
    option ran all phases.
    """
    by = {(o.name, o.bits): o for o in options}
    seconds = {(t.candidate, t.bits, t.phase): t.seconds for t in timings}
    names, runs = list(compiled.phases), phase_runs(compiled.workload)
    able = [k for k in by if all((*k, n) in seconds for n in names)]
    if not able:
        raise BackendError(f"model {compiled.name}: no engine ran all phases; see the notes of the compilation")

    def total(combination: Sequence[tuple[str, int]]) -> float:
        spent = sum(runs[n] * seconds[(*k, n)] for n, k in zip(names, combination, strict=True))
        return spent + sum(a != b for a, b in pairwise(combination)) * cache_bytes / _MOVE_RATE

    best = min(product(able, repeat=len(names)), key=total)
    if len(set(best)) == 1:
        return by[best[0]]
    return Option("by phase", 0, {n: by[k].phases[n] for n, k in zip(names, best, strict=True)})


def finalists(
    compiled: CompiledDecoder, options: Sequence[Option], timings: Sequence[PhaseTiming], mixture: Option
) -> list[Option]:
    """The mixture, and the two best options as they are; fewer where they do not fit into memory side by side."""
    whole = {(o.name, o.bits): [t for t in timings if (t.candidate, t.bits) == (o.name, o.bits)] for o in options}
    able = [o for o in options if len(whole[o.name, o.bits]) == len(compiled.phases)]
    able.sort(key=lambda o: job_seconds(compiled, whole[o.name, o.bits]))
    pure = [o for o in able if o.pure][:1]
    found: list[Option] = []
    room = _SHARE_OF_MEMORY * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # The first one was timed as it is, whatever the memory.
    for option in (*(pure or able[:1]), mixture, *able[:2]):
        need = _COPIES * option.weight_bytes(compiled)
        if all(option is not o for o in found) and (not found or need <= room):
            found.append(option)
            room -= need
    return found


def in_turns(compiled: CompiledDecoder, options: Sequence[Option], seconds: float = 10.0) -> list[PhaseTiming]:
    """Time options against one another, all of them in memory: medians over rounds in which each has its turn."""
    sessions = [replace(compiled, phases=o.phases).start() for o in options]
    prompts, tokens = _job(compiled)
    samples: dict[tuple[int, str], list[float]] = {}
    started = time.perf_counter()
    rounds = 0
    while rounds < _ROUNDS[0] or (rounds < _ROUNDS[1] and time.perf_counter() - started < seconds):
        for turn in range(len(options)):
            k = (turn + rounds) % len(options)
            time.sleep(_REST)
            for phase, spent in _turn(sessions[k], compiled.workload, prompts, tokens):
                samples.setdefault((k, phase), []).append(spent)
        rounds += 1
    return [
        PhaseTiming(options[k].name, options[k].bits, phase, float(np.median(found)), len(found))
        for (k, phase), found in samples.items()
    ]


def _turn(
    session: Session, workload: Generation, prompts: Sequence[Sequence[int]], tokens: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Seconds of a prompt, and of steps with each number of rows: the middle of a few."""
    before = time.perf_counter()
    session.prefill(prompts)
    yield PROMPT, time.perf_counter() - before
    saved = session.save()
    for rows in workload.shares:
        session.restore(saved)
        session.select(np.arange(rows) % workload.prompts)
        times = []
        for step in tokens[:, :rows]:
            before = time.perf_counter()
            session.step(step)
            times.append(time.perf_counter() - before)
        # The first one brings cache and weights in.
        yield step_phase(rows), float(np.median(times[1:] or times))


def _job(compiled: CompiledDecoder) -> tuple[list[list[int]], np.ndarray]:
    """Prompts of the workload, and tokens of some steps int64 [steps, most rows], cut to the context."""
    rng = np.random.default_rng(0)
    workload, facts = compiled.workload, compiled.facts
    steps = min(workload.tokens, _TURN_STEPS)
    prompts = [rng.integers(0, facts.vocab, workload.prompt).tolist() for _ in range(workload.prompts)]
    return prompts, rng.integers(0, facts.vocab, (steps, max(workload.shares)))


def decide(
    compiled: CompiledDecoder, options: Sequence[Option], timings: Sequence[PhaseTiming]
) -> tuple[Option, float]:
    """The fastest option and the seconds of the whole job; one that is not pure has to win by more than noise."""
    seconds = {
        o: job_seconds(compiled, [t for t in timings if (t.candidate, t.bits) == (o.name, o.bits)]) for o in options
    }
    best = min(options, key=lambda o: seconds[o] * (1.0 if o.pure else 1.0 + _WORTH))
    return best, seconds[best]


def phase_runs(workload: Generation) -> dict[str, float]:
    """How often each phase runs in one job."""
    return {PROMPT: 1.0} | {step_phase(k): share * workload.tokens for k, share in workload.shares.items()}


def job_seconds(compiled: CompiledDecoder, timings: Sequence[PhaseTiming]) -> float:
    """Seconds of one prompt and all steps, of timings of one candidate."""
    runs = phase_runs(compiled.workload)
    return sum(runs[t.phase] * t.seconds for t in timings)
