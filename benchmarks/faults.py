"""Faults in the middle of a generation: is it known, how soon, what takes over, and are the tokens the same?

python benchmarks/faults.py [--quick] [--kinds NAME ...] [--plans NAME ...] [--seeds N] [--json FILE]

Each run generates three samples of a prompt with the reasoner and injects one fault at a step, and into a stage, that
the seed chooses. Undisturbed tokens of the same plan are the reference. Faults of a process are signals to a real
child; the others are injected around the engine's call. "known" is the time from the injection until the fault was
reported (for hangs: after the deadline of the stage), "lost" the time until the next token, less that of a step, and
"settling" what is lost beyond that until the eighth token: engines that have just started meet their shapes and caches
for the first time.

The bound on the time of a run with a fault is healthy time x (throughput of the plan / of what is left) + lost +
settling. Both throughputs are ranges, of six undisturbed jobs each: before the run on the plan, after it on what is
left. The bound takes their slow ends, which lie beyond the slowest of the six by their whole range, times an
allowance for the clock of the machine. That is measured where nothing is injected: one more undisturbed job of each six
is a control, and the allowance is the worst of all controls of the campaign over the slow end of the six beside it.
"time / middles" has the medians in place of the slow ends, no allowance and no settling: half of all undisturbed jobs
pass such a bound.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from common import Report, options, publish
from faults_kinds import KINDS, LEAST, OF_PROCESS, RELEASE, SILENT, TOLD, TWICE, Injection, sabotage

from qeil_compile.api import Settings
from qeil_compile.errors import QeilError
from qeil_compile.language import CompiledDecoder, Generation, Runner, compile_decoder
from qeil_compile.runtime import Deadline, DecisionLog, Resilience

ENGINES = "onnxruntime:CPU,openvino:CPU,torch:cpu"
#: Pins by name of a plan; the reasoner has four layers.
PLANS: dict[str, dict[str, str]] = {
    "one engine": {"*": "openvino:CPU"},
    "two engines": {"layers.1": "openvino:CPU", "layers.0": "onnxruntime:CPU"},
    "three engines": {"layers.0": "onnxruntime:CPU", "layers.1": "openvino:CPU", "layers.3": "torch:cpu"},
}
PROMPT, SAMPLES, TOKENS = "Tom has 3 apples and buys 4 more.", 3, 64
DEADLINE = Deadline(factor=5.0, least=LEAST, first=60.0)
#: Undisturbed jobs that make a range, on each side of a run.
BESIDE = 6
#: Tokens after a fault until what took over is at its pace.
SETTLED = 8


@dataclass(frozen=True)
class Beside:
    """Undisturbed jobs beside a run: seconds [BESIDE], those of one more, and those of the first SETTLED tokens."""

    seconds: np.ndarray
    control: float
    begin: float

    @property
    def middle(self) -> float:
        """Seconds of the median job."""
        return float(np.median(self.seconds))

    @property
    def slow(self) -> float:
        """Seconds at the slow end of the range."""
        return float(2 * self.seconds.max() - self.seconds.min())


@dataclass(frozen=True)
class Outcome:
    """One run of `seconds`. `known`, `lost` and `settling` [s] are as in the module's text; `beside` are the
    undisturbed jobs before it and after it."""

    equal: bool
    error: str = ""
    seconds: float = np.nan
    known: float = np.nan
    lost: float = np.nan
    settling: float = np.nan
    beside: tuple[Beside, ...] = ()

    def of_bound(self, allowance: float) -> float:
        """Share of the bound that the run took."""
        return self.seconds / (allowance * max(b.slow for b in self.beside) + self.lost + self.settling)

    @property
    def of_middles(self) -> float:
        """The same of the bound with medians."""
        return self.seconds / (max(b.middle for b in self.beside) + self.lost)


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
    entries = log.entries[starts:]
    faults = [d for d in entries if d.kind == "fault"]
    struck = told[0] if kind == TOLD else injection.done
    if not faults or not struck:
        return Outcome(False, "the fault was not seen")
    fault = faults[-1 if kind == TWICE else 0]
    known = fault.time - struck - fault.facts.get("deadline", 0.0)
    if kind in SILENT:
        # A job whose tokens cannot be trusted begins anew: all that went before is lost, and the other plan's start.
        lost = faults[0].time - before + sum(d.facts["seconds"] for d in entries if d.kind == "recovered")
        begun = next(d.time for d in entries if d.kind == "again")
        settling = _after(tokens, begun, SETTLED)[0] - left.begin
    else:
        step = left.middle / TOKENS
        first = faults[0].time if kind == TWICE else struck
        lost = sum(_after(tokens, t, 1)[0] - step for t in dict.fromkeys((first, struck)))
        until, count = _after(tokens, struck, SETTLED)
        settling = until - _after(tokens, struck, 1)[0] - (count - 1) * step
    settling = max(0.0, settling)
    return Outcome(found == reference, "", seconds, known, lost, settling, (healthy, left))


def _after(tokens: Sequence[float], moment: float, count: int) -> tuple[float, int]:
    """Seconds from a moment to the last of the `count` tokens that follow, and how many of them there were."""
    following = [t for t in tokens if t > moment][:count]
    return following[-1] - moment, len(following)


def undisturbed(runner: Runner) -> Beside:
    """The job on what runs now, after one that is not counted; the control is the one in the middle."""
    jobs = [_clocked(runner) for _ in range(BESIDE + 2)][1:]
    control, _ = jobs.pop(BESIDE // 2)
    return Beside(np.array([seconds for seconds, _ in jobs]), control, float(np.median([begin for _, begin in jobs])))


def _clocked(runner: Runner) -> tuple[float, float]:
    """Seconds of one job, and until its SETTLED-th token."""
    tokens: list[float] = []
    before = time.perf_counter()
    _job(runner, lambda event: tokens.append(time.perf_counter()) if event.sample == 0 else None)
    return time.perf_counter() - before, tokens[SETTLED - 1] - before


def _job(runner: Runner, seen: Callable[[Any], object] | None = None) -> list[list[int]]:
    """Tokens of each sample."""
    found = runner.generate(PROMPT, n=SAMPLES, max_tokens=TOKENS, seed=5, ignore_eos=True, on_token=seen)[0]
    return [c.tokens for c in found]


def allowance_of(outcomes: Sequence[Outcome]) -> float:
    """The worst control of a campaign over the slow end of its six; at least 1."""
    return max([1.0, *(b.control / b.slow for o in outcomes for b in o.beside)])


def _row(name: str, kind: str, outcomes: Sequence[Outcome], allowance: float) -> dict[str, Any]:
    good = [o for o in outcomes if not o.error]

    def of(field: str, scale: float = 1.0) -> np.ndarray:
        return np.array([getattr(o, field) for o in good] or [np.nan]) * scale

    known, lost, middles = of("known", 1e3), of("lost", 1e3), of("of_middles")
    bound, bare = (np.array([o.of_bound(a) for o in good] or [np.nan]) for a in (allowance, 1.0))
    controls = [b for o in good for b in o.beside]
    return {
        "plan": name, "fault": kind, "runs": len(outcomes), "recovered": len(good),
        "tokens equal": sum(o.equal for o in outcomes), "known median [ms]": float(np.median(known)),
        "known worst [ms]": float(np.max(known)), "lost median [ms]": float(np.median(lost)),
        "lost 95 % [ms]": float(np.quantile(lost, 0.95)), "settling median [ms]": float(np.median(of("settling", 1e3))),
        "time / bound, median": float(np.median(bound)), "time / bound, worst": float(np.max(bound)),
        "within": int((bound <= 1).sum()), "within without allowance": int((bare <= 1).sum()),
        "allowance": allowance, "time / middles, median": float(np.median(middles)),
        "time / middles, worst": float(np.max(middles)), "within middles": int((middles <= 1).sum()),
        "controls": len(controls), "controls within slow ends": sum(b.control <= b.slow for b in controls),
        "controls within middles": sum(b.control <= b.middle for b in controls),
        "errors": "; ".join(sorted({o.error for o in outcomes if o.error})),
    }  # fmt: skip


COLUMNS = ("plan", "fault", "runs", "recovered", "tokens equal", "known median [ms]", "known worst [ms]",
           "lost median [ms]", "lost 95 % [ms]", "settling median [ms]", "time / bound, median", "time / bound, worst",
           "within", "allowance", "within without allowance", "time / middles, median", "within middles", "controls",
           "controls within slow ends", "errors")  # fmt: skip


def _notes(rows: Sequence[dict[str, Any]], allowance: float) -> list[str]:
    runs, good, equal, within, bare, middles, controls, held, halves = (sum(r[c] for r in rows) for c in (
        "runs", "recovered", "tokens equal", "within", "within without allowance", "within middles", "controls",
        "controls within slow ends", "controls within middles"))  # fmt: skip
    return [
        f"{good} of {runs} runs recovered, {equal} with the tokens of the undisturbed run",
        f"stages have five times what they took, and at least {LEAST} s; a hang is known from the end of that time on",
        "bound: healthy time x (throughput of the plan / of what is left) + lost + settling, both throughputs at the "
        f"slow end (slowest + range) of {BESIDE} undisturbed jobs beside each run, times {allowance:.3f}, the worst of "
        f"{controls} undisturbed jobs over the slow end of the {BESIDE} beside it; held in {within} of {good} runs",
        f"without that allowance in {bare} of {good} runs, and in {held} of {controls} undisturbed jobs",
        f"with medians in place of the slow ends, and no settling: {middles} of {good} runs, {halves} of {controls} of "
        "the jobs held out",
    ]


def main() -> None:
    """Run the campaign."""

    def more(parser: Any) -> None:
        parser.add_argument("--kinds", nargs="*", default=None, choices=KINDS)
        parser.add_argument("--plans", nargs="*", default=None, choices=list(PLANS))
        parser.add_argument("--seeds", type=int, default=20)

    args = options(__doc__ or "", more)
    seeds = 1 if args.quick else args.seeds
    report = Report("faults", "Faults in the middle of a generation (measured)", COLUMNS)
    done: dict[tuple[str, str], list[Outcome]] = {}
    with as_file(files("qeil_compile.models.data") / "reasoner") as folder:
        for name in args.plans or (list(PLANS)[1:2] if args.quick else PLANS):
            settings = Settings(target=ENGINES, measure=False, threads=1, pins=PLANS[name])
            plan = compile_decoder(folder, Generation(prompt=32, tokens=TOKENS, samples=4), settings)
            reference = _job(Runner(plan))
            for kind in args.kinds or (("raises", "hangs", *SILENT[:1]) if args.quick else KINDS):
                done[name, kind] = [run_once(plan, reference, kind, seed) for seed in range(seeds)]
                equal = sum(o.equal for o in done[name, kind])
                print(f"{name}, {kind}: {equal} of {seeds}", file=sys.stderr, flush=True)
    allowance = allowance_of([o for outcomes in done.values() for o in outcomes])
    report.rows = [_row(name, kind, outcomes, allowance) for (name, kind), outcomes in done.items()]
    report.notes = _notes(report.rows, allowance)
    publish([report], args, "faults")


if __name__ == "__main__":
    main()
