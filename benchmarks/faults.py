"""Faults in the middle of a generation: is it known, how soon, what takes over, and are the tokens the same?

python benchmarks/faults.py [--quick] [--kinds NAME ...] [--plans NAME ...] [--seeds N] [--json FILE]

Each run generates three samples of a prompt with the reasoner and injects one fault at a step, and into a stage, that
the seed chooses. Undisturbed tokens of the same plan are the reference. Faults of a process are signals to a real
child; the others are injected around the engine's call. "known" is the time from the injection until the fault was
reported (for hangs: after the deadline of the stage), "lost" the time until the next token, less that of a step.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from common import Report, options, publish

from qeil_compile.api import Settings
from qeil_compile.backends.base import DecoderStage
from qeil_compile.errors import BackendError, QeilError
from qeil_compile.language import PROMPT as PROMPT_PHASE
from qeil_compile.language import CompiledDecoder, Generation, Runner, compile_decoder
from qeil_compile.runtime import Deadline, DecisionLog, Resilience
from qeil_compile.runtime.guard import Guard

ENGINES = "onnxruntime:CPU,openvino:CPU,torch:cpu"
#: Pins by name of a plan; the reasoner has four layers.
PLANS: dict[str, dict[str, str]] = {
    "one engine": {"*": "openvino:CPU"},
    "two engines": {"layers.1": "openvino:CPU", "layers.0": "onnxruntime:CPU"},
    "three engines": {"layers.0": "onnxruntime:CPU", "layers.1": "openvino:CPU", "layers.3": "torch:cpu"},
}
PROMPT, SAMPLES, TOKENS = "Tom has 3 apples and buys 4 more.", 3, 64
#: Least time of a stage [s] in these runs; hangs are known that much later.
LEAST = 0.4
DEADLINE = Deadline(factor=5.0, least=LEAST, first=60.0)


#: Set when a run is over.
RELEASE = threading.Event()


@dataclass
class Injection:
    """One fault: at which call of a step, into which of the plan's placements, once it is `armed`.

    `done` is when it was injected; `spent` that a fault which strikes only once has struck.
    """

    kind: str
    step: int
    victim: int
    armed: bool = False
    calls: int = 0
    done: float = 0.0
    where: tuple[str, ...] = ()
    spent: bool = False


class Sabotaged:
    """A stage around which a fault is injected, and which stays faulty where the fault is one of hardware."""

    def __init__(self, stage: DecoderStage, where: tuple[str, ...], injection: Injection, chosen: bool) -> None:
        self._stage, self._where, self._injection, self._chosen = stage, where, injection, chosen
        self.states, self.compact = stage.states, stage.compact
        if hasattr(stage, "kill"):
            self.kill = stage.kill

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        i = self._injection
        new = feeds["positions"].shape[1]
        at_prompt = i.kind == "raises in the prompt"
        if i.armed and self._chosen and (new > 1 if at_prompt else new == 1 and feeds["positions"][0, 0] > 2):
            i.calls += 1
            if i.calls == (1 if at_prompt else i.step):
                i.done, i.where = time.perf_counter(), self._where
        struck = bool(i.done) and self._where == i.where
        if struck:
            with contextlib.suppress(KeyError):
                BEFORE[i.kind](self._stage, i)
        found = self._stage.run(feeds)
        return AFTER[i.kind](found) if struck and i.kind in AFTER else found

    def reset(self, rows: int) -> None:
        self._stage.reset(rows)

    def select(self, rows: np.ndarray) -> None:
        self._stage.select(rows)

    def export(self) -> dict[str, np.ndarray]:
        return self._stage.export()

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        self._stage.load(states)


def _raise(error: BaseException) -> Callable[[Any, Injection], None]:
    def strike(stage: Any, injection: Injection) -> None:
        raise error

    return strike


def _once(stage: Any, injection: Injection) -> None:
    """Only the first call fails: a hiccup, after which the same engine would work."""
    if not injection.spent:
        injection.spent = True
        raise BackendError("device busy")


def _hang(stage: Any, injection: Injection) -> None:
    RELEASE.wait()


def _slow(stage: Any, injection: Injection) -> None:
    time.sleep(10 * LEAST)


def _signal(number: int) -> Callable[[Any, Injection], None]:
    def strike(stage: Any, injection: Injection) -> None:
        if not injection.spent:
            injection.spent = True
            os.kill(stage.pid, number)
            if number != signal.SIGSTOP:
                stage._child.process.wait(5)

    return strike


def _poisoned(stage: Any, injection: Injection) -> None:
    """The cache is overwritten with NaN, once."""
    if not injection.spent:
        injection.spent = True
        stage.load({n: np.full_like(a, np.nan) for n, a in stage.export().items()})


def _with(value: float) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    def changed(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = {n: np.array(a) for n, a in found.items()}
        next(iter(out.values())).reshape(-1)[7] = value
        return out

    return changed


def _scaled(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every second channel is half of what it should be (all of them by one factor would be lost in the next norm)."""
    return {n: a * np.where(np.arange(a.shape[-1]) % 2, np.float32(0.5), np.float32(1)) for n, a in found.items()}


def _shuffled(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers of neighbouring channels change places, as from a wrong address."""
    return {n: np.roll(a, 1, axis=-1) for n, a in found.items()}


#: What happens before the engine's call, and to its result, by kind.
BEFORE: dict[str, Callable[[Any, Injection], None]] = {
    "raises": _raise(BackendError("internal error 7")),
    "raises what no backend should": _raise(RuntimeError("segment descriptor")),
    "raises once": _once,
    "raises in the prompt": _raise(BackendError("internal error 8")),
    "hangs": _hang,
    "is far too slow": _slow,
    "out of memory": _raise(MemoryError("std::bad_alloc")),
    "device lost": _raise(RuntimeError("CUDA error: GPU is lost")),
    "process killed": _signal(signal.SIGKILL),
    "process crashes": _signal(signal.SIGSEGV),
    "process stopped": _signal(signal.SIGSTOP),
    "NaN in the cache": _poisoned,
}
AFTER: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "NaN in a result": _with(np.nan),
    "infinity in a result": _with(np.inf),
    "results scaled": _scaled,
    "results shuffled": _shuffled,
}
#: Faults that only golden inputs show, of processes, and those that two stages have one after the other.
SILENT = ("results scaled", "results shuffled")
OF_PROCESS = ("process killed", "process crashes", "process stopped")
TOLD = "loss told by telemetry"
TWICE = "second fault in the plan that took over"
KINDS = (*BEFORE, *AFTER, TOLD, TWICE)


@contextlib.contextmanager
def sabotage(injection: Injection, plan: CompiledDecoder) -> Iterator[None]:
    """Stages that start meanwhile belong to the saboteur; the victim is one placement of the plan."""
    decoder, placements = Guard.decoder, plan.placements
    if injection.kind == "NaN in the cache":
        placements = [p for p in placements if p in _with_cache(plan)]
    victim = placements[injection.victim % len(placements)]

    def wrapped(self: Guard, stage: DecoderStage, where: tuple[str, ...], name: str) -> DecoderStage:
        return decoder(self, Sabotaged(stage, where, injection, victim in where), where, name)

    Guard.decoder = wrapped  # type: ignore[method-assign]
    try:
        yield
    finally:
        Guard.decoder = decoder  # type: ignore[method-assign]


def _with_cache(plan: CompiledDecoder) -> set[str]:
    """Placements whose stages of steps hold keys and values."""
    units = [u for n, p in plan.phases.items() if n != PROMPT_PHASE for u in p.units]
    return {p for u in units if plan.states.keys() & set(u.program.inputs) for p in u.placements}


@dataclass
class Outcome:
    """One run. `known` and `lost` [s] are as in the module's text; `of_bound` is its time as a share of the bound."""

    equal: bool
    error: str = ""
    known: float = np.nan
    lost: float = np.nan
    of_bound: float = np.nan


def run_once(plan: CompiledDecoder, reference: list[list[int]], kind: str, seed: int) -> Outcome:
    """Generate with one fault, and leave nothing running."""
    settings = Resilience(
        DEADLINE, isolate=kind in OF_PROCESS, canary=1e6 if kind in SILENT else float("inf"), retry=1e6
    )
    runner = Runner(plan, settings, DecisionLog())
    try:
        return _disturbed(runner, plan, reference, kind, seed)
    finally:
        runner.close()
        RELEASE.set()  # calls that hang come back, or they would hold their engines for ever
        RELEASE.clear()
        gc.collect()


def _disturbed(
    runner: Runner, plan: CompiledDecoder, reference: list[list[int]], kind: str, seed: int
) -> Outcome:
    rng = np.random.default_rng(seed)
    injection = Injection("raises" if kind == TWICE else kind, int(rng.integers(1, TOKENS - 2)), int(rng.integers(8)))
    log, told = runner.log, [0.0]
    tokens: list[float] = []

    def seen(event: Any) -> None:
        if event.sample == 0:
            tokens.append(time.perf_counter())
        if kind == TOLD and event.sample == 0 and not told[0] and len(tokens) == injection.step:
            told[0] = time.perf_counter()
            runner.session.lose([plan.placements[injection.victim % len(plan.placements)]], "GPU is lost")
        if kind == TWICE and injection.done and log.of("recovered") and not told[0]:
            # Now one of those that took over fails as well.
            told[0] = injection.done = time.perf_counter()
            injection.where = (runner.session.standby.variant.placements[0],)

    with sabotage(injection, plan):
        healthy = undisturbed(runner)
        injection.armed, starts, before = True, len(log.entries), time.perf_counter()
        try:
            found = _job(runner, seen)
        except QeilError as error:
            return Outcome(False, str(error))
        seconds = time.perf_counter() - before
        injection.armed = False
        left = undisturbed(runner)
    faults = [d for d in log.entries[starts:] if d.kind == "fault"]
    struck = told[0] if kind == TOLD else injection.done
    if not faults or not struck:
        return Outcome(False, "the fault was not seen")
    fault = faults[-1 if kind == TWICE else 0]
    known = fault.time - struck - fault.facts.get("deadline", 0.0)
    if kind in SILENT:
        # A job whose tokens cannot be trusted begins anew: all that went before is lost, and the other plan's start.
        lost = faults[0].time - before + sum(d.facts["seconds"] for d in log.entries[starts:] if d.kind == "recovered")
    else:
        first = faults[0].time if kind == TWICE else struck
        lost = sum(_until_next(tokens, t) - left / TOKENS for t in dict.fromkeys((first, struck)))
    # Healthy time x (throughput of the plan / of what is left), each measured beside this run, and what was lost.
    bound = healthy * max(1.0, left / healthy) + lost
    return Outcome(found == reference, "", known, lost, seconds / bound)


def _until_next(tokens: Sequence[float], moment: float) -> float:
    """Seconds from a moment to the next token."""
    return next(t for t in tokens if t > moment) - moment


def undisturbed(runner: Runner) -> float:
    """Seconds of the job on what runs now, the middle of three after one that is not counted."""
    times = []
    for _ in range(4):
        before = time.perf_counter()
        _job(runner)
        times.append(time.perf_counter() - before)
    return float(np.median(times[1:]))


def _job(runner: Runner, seen: Callable[[Any], object] | None = None) -> list[list[int]]:
    """Tokens of each sample."""
    found = runner.generate(PROMPT, n=SAMPLES, max_tokens=TOKENS, seed=5, ignore_eos=True, on_token=seen)[0]
    return [c.tokens for c in found]


def _row(name: str, kind: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    good = [o for o in outcomes if not o.error]
    known, lost = ([getattr(o, f) * 1e3 for o in good] or [np.nan] for f in ("known", "lost"))
    over = [o.of_bound for o in good] or [np.nan]
    return {
        "plan": name, "fault": kind, "runs": len(outcomes), "recovered": len(good),
        "tokens equal": sum(o.equal for o in outcomes), "known median [ms]": float(np.median(known)),
        "known worst [ms]": float(np.max(known)), "lost median [ms]": float(np.median(lost)),
        "lost 95 % [ms]": float(np.quantile(lost, 0.95)), "time / bound, median": float(np.median(over)),
        "time / bound, worst": float(np.max(over)), "within": sum(o.of_bound <= 1 for o in good),
        "errors": "; ".join(sorted({o.error for o in outcomes if o.error})),
    }  # fmt: skip


def main() -> None:
    """Run the campaign."""

    def more(parser: Any) -> None:
        parser.add_argument("--kinds", nargs="*", default=None, choices=KINDS)
        parser.add_argument("--plans", nargs="*", default=None, choices=list(PLANS))
        parser.add_argument("--seeds", type=int, default=20)

    args = options(__doc__ or "", more)
    seeds = 1 if args.quick else args.seeds
    columns = ("plan", "fault", "runs", "recovered", "tokens equal", "known median [ms]", "known worst [ms]",
               "lost median [ms]", "lost 95 % [ms]", "time / bound, median", "time / bound, worst", "within",
               "errors")  # fmt: skip
    report = Report("faults", "Faults in the middle of a generation (measured)", columns)
    with as_file(files("qeil_compile.models.data") / "reasoner") as folder:
        for name in args.plans or (list(PLANS)[1:2] if args.quick else PLANS):
            settings = Settings(target=ENGINES, measure=False, threads=1, pins=PLANS[name])
            plan = compile_decoder(folder, Generation(prompt=32, tokens=TOKENS, samples=4), settings)
            reference = _job(Runner(plan))
            for kind in args.kinds or (("raises", "hangs", *SILENT[:1]) if args.quick else KINDS):
                found = [run_once(plan, reference, kind, seed) for seed in range(seeds)]
                print(f"{name}, {kind}: {sum(o.equal for o in found)} of {seeds}", file=sys.stderr, flush=True)
                report.rows.append(_row(name, kind, found))
    runs, good = (sum(r[c] for r in report.rows) for c in ("runs", "recovered"))
    equal = sum(r["tokens equal"] for r in report.rows)
    report.notes = [
        f"{good} of {runs} runs recovered, {equal} with the tokens of the undisturbed run",
        f"stages have five times what they took, and at least {LEAST} s; a hang is known from the end of that time on",
        "bound: healthy time x (throughput of the plan / of what is left) + what was lost, measured beside each run; "
        f"held in {sum(r['within'] for r in report.rows)} of {good}",
    ]
    publish([report], args, "faults")


if __name__ == "__main__":
    main()
