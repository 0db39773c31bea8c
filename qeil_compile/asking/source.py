"""Compiled decoders as a source of samples: what a round costs is measured once; joules are a meter's or the plan's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qeil_compile.errors import InputError
from qeil_compile.frontends.decoder import PROMPT
from qeil_compile.generation import Sampling
from qeil_compile.language import CompiledDecoder, Runner
from qeil_compile.sampling.allocation import Caps, Draw, Looks, Price
from qeil_compile.sampling.arithmetic import chain_features
from qeil_compile.sampling.certificate import Cert
from qeil_compile.sampling.csvet import Curtail, Rule, Verified
from qeil_compile.sampling.extract import Extractor, number
from qeil_compile.sampling.live import LiveSource, Meter, Rung
from qeil_compile.sampling.samples import Cost, Reason, Tally
from qeil_compile.sampling.selector import Selector
from qeil_compile.telemetry.counters import counter_for

#: Rows between which the price of one more sample is measured, steps and prompt that are run for it.
_ROWS, _STEPS, _PROMPT = 8, 6, 64


def measured_price(runner: Runner, tokens: int) -> Price:
    """What a pass of `tokens` steps costs here: seconds measured, joules by the plan's mean power in that time."""
    session = runner.session
    rng = np.random.default_rng(0)
    steps = max(2, min(_STEPS, (session.context - 2) // 2))
    prompt = rng.integers(0, session.vocab, max(1, min(_PROMPT, session.context - steps - 2))).tolist()
    before = time.perf_counter()
    session.prefill([prompt])
    first = time.perf_counter() - before
    found = {}
    for rows in (1, _ROWS):
        session.prefill([prompt])
        session.select(np.zeros(rows, np.int64))
        token = np.zeros(rows, np.int64)
        session.step(token)
        times = []
        for _ in range(steps - 1):
            before = time.perf_counter()
            session.step(token)
            times.append(time.perf_counter() - before)
        found[rows] = min(times)
    alone = found[1] * tokens
    rho = max(0.0, found[_ROWS] / found[1] - 1) / (_ROWS - 1)
    return Price(rho, alone * watts(runner.compiled), alone, first / alone, label="modelled")


def watts(compiled: CompiledDecoder) -> float:
    """Mean power of the steps by the cost model [W]."""
    plan = next((p.plan for n, p in compiled.phases.items() if n != PROMPT), compiled.phases[PROMPT].plan)
    return plan.objectives.energy / plan.objectives.latency if plan.objectives.latency > 0 else 0.0


def meter_of(compiled: CompiledDecoder) -> Meter | None:
    """Joules by the counter of the device that everything runs on; None where it has none, or there are several."""
    where = {(r.engine, r.device) for r in compiled.resolved().values()}
    counters = {c.name: c for engine, device in where if (c := counter_for(engine, device)) is not None}
    if len(counters) != 1 or len({device for _, device in where}) != 1:
        return None
    return next(iter(counters.values())).read


def open_source(
    runners: Sequence[Runner], sampling: Sampling | None = None,
    prompt: Callable[[Any], Any] = lambda question: question, extract: Extractor = number,
    allow_control: bool = False,
) -> LiveSource:  # fmt: skip
    """A source over decoders from small to large; prices are measured first.

    `prompt` makes of a question what a runner takes (text, tokens, or messages); `allow_control` is that of
    `Runner.encode`. Samples whose answers are numbers carry `chain_features`. Raises as runners do.
    """
    sampling = sampling or Sampling(temperature=0.8, max_tokens=128)
    rungs = []
    for runner in runners:
        tokens = sampling.max_tokens or 128
        price, meter = measured_price(runner, tokens), meter_of(runner.compiled)
        asked = _prompted(runner, prompt, allow_control)
        rungs.append(Rung(runner.session, runner.tokenizer, sampling, price, tokens, asked, meter))
    return LiveSource(rungs, extract, chain_features if extract is number else None)


def _prompted(runner: Runner, prompt: Callable[[Any], Any], allow_control: bool) -> Callable[[Any], Any]:
    return lambda question: runner.encode(prompt(question), allow_control)


class Ladder:
    """Rungs one after the other: the next one begins where a rung has drawn all its samples without a verdict."""

    def __init__(self, looks: Sequence[Looks]) -> None:
        self.looks = list(looks)

    def next(self, tallies: Mapping[int, Tally], spent: Cost, caps: Caps, spread: tuple[float, float]) -> Draw | Reason:
        """The next round, or why there is none."""
        for looks in self.looks:
            if len(tallies.get(looks.rung, ())) < looks.sizes[-1]:
                return looks.next(tallies, spent, caps, spread)
        return Reason.BUDGET


def default_selector(
    source: LiveSource, k: int = 20, delta: float = 0.05, joules: float = math.inf, seconds: float = math.inf,
    false_accepts: float | None = None,
) -> Selector:  # fmt: skip
    """CERT and CURTAIL at looks that grow up to `k` samples per rung, under hard caps of joules and seconds.

    With a verifier, `false_accepts` bounds how often it accepts what is wrong: its word then ends the sampling
    (VERIFIED), and what it may be wrong by is taken out of delta.

    Raises `InputError` for k below 1, and for a delta that is no probability.
    """
    if k < 1:
        raise InputError(f"k: found {k}, expected at least one sample")
    sizes = (*(s for s in (4, 8, 16, 32, 64) if s < k), k)
    ladder = Ladder([Looks(sizes, source.price(rung), rung) for rung in range(len(source.rungs))])
    verified: list[Rule] = [] if false_accepts is None else [Verified(delta, false_accepts)]
    return Selector(ladder, [*verified, Cert(delta), Curtail(k)], caps=Caps(joules, seconds))
