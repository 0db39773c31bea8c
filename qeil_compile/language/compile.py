"""Compile a decoder: prompt and steps planned together, the form of the weights and the engines of each phase chosen.

    compiled = compile_decoder("checkpoint/", Generation(prompt=256, tokens=64, samples=16))
    compiled = compile_decoder("checkpoint/", how=DecoderSettings("auto", perplexity_budget=0.02))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile import api
from qeil_compile.artifact.decoder import GoldenPrompt, PhaseUnits
from qeil_compile.backends import backend
from qeil_compile.backends.base import IntegerRows
from qeil_compile.devices import Target
from qeil_compile.errors import CapacityError, InputError, ModelError
from qeil_compile.forms.products import INTEGER_ROWS, with_integer_rows
from qeil_compile.frontends.decoder import PROMPT, Generation, TracedDecoder, trace_decoder
from qeil_compile.language.choosing import (
    Option,
    best_by_phase,
    decide,
    finalists,
    in_rows,
    in_turns,
    job_seconds,
    measure,
)
from qeil_compile.language.compiled import CompiledDecoder, Quality
from qeil_compile.language.files import load_files
from qeil_compile.language.opening import open_language_model
from qeil_compile.language.planning import PlannedDecoder, lower_phase, plan_decoder, single_plans, spare_plans
from qeil_compile.language.quality import own_text, perplexity, windows
from qeil_compile.models.decoder import Decoder, ExportedDecoder
from qeil_compile.passes.choice import parse_choice
from qeil_compile.passes.lower import LoweredUnit
from qeil_compile.runtime.session import Session

#: Name of a form of the weights -> bits of its matrices. 16 bits are stored and computed with in 32.
FORMS: Mapping[str, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
#: Tokens of a given text that perplexity is measured on.
_TEXT_TOKENS = 4096
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DecoderSettings:
    """How to compile a decoder, beside `api.Settings`.

    `weights` is auto or one of `FORMS`; auto takes what is fastest among the forms whose perplexity is at most
    `perplexity_budget` (a share) above that of the weights as they are. `text` are tokens, or a text file, to measure
    perplexity on; without it the model writes some itself. `seed` fills in random weights where there are none, to time
    a shape.
    """

    weights: str = "fp32"
    perplexity_budget: float = 0.02
    text: Sequence[int] | Path = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.weights != "auto" and self.weights not in FORMS:
            raise InputError(f"weights {self.weights}: expected auto, {', '.join(FORMS)}")
        if not self.perplexity_budget >= 0:
            raise InputError(f"perplexity budget {self.perplexity_budget}: expected a share from 0, such as 0.02")

    @property
    def bits(self) -> list[int]:
        """Forms to look at; the weights as they are come first."""
        return [32, 8, 4] if self.weights == "auto" else [FORMS[self.weights]]


def _silent(step: str, done: int, total: int) -> None:
    """No progress shown."""


def compile_decoder(
    source: Decoder | ExportedDecoder | str | Path | Mapping[str, Any] | Any,
    workload: Generation | None = None,
    settings: api.Settings | None = None,
    how: DecoderSettings | None = None,
    progress: Progress = _silent,
) -> CompiledDecoder:
    """Compile a checkpoint folder, a llama2.c file, a `transformers` model or configuration, or a `config.json`.

    Where the target is this machine, each phase runs on what is fastest by the clock, at the objectives that look at
    time; elsewhere plans are those of the cost model. Raises a `QeilError` for everything that a user can mend.
    """
    workload, settings, how = workload or Generation(), settings or api.Settings(), how or DecoderSettings()
    decoder = source if isinstance(source, (Decoder, ExportedDecoder)) else open_language_model(source)
    if isinstance(decoder, ExportedDecoder):
        if how.weights != "fp32":
            raise InputError(f"model {decoder.name} came as ONNX: its weights stay as they are, found {how.weights}")
    elif decoder.tensors is None and how.seed is None:
        raise ModelError(
            f"model {decoder.name} has no weights: it can be planned (plan_decoder), or timed with a seed for them"
        )
    return _Compiler(decoder, workload, settings, how, progress).run()


@dataclass
class _Compiler:
    decoder: Decoder | ExportedDecoder
    workload: Generation
    settings: api.Settings
    how: DecoderSettings
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self) -> CompiledDecoder:
        target = api.find_target(self.settings.target)
        forms = self.how.bits
        traced, planned = {}, {}
        for k, bits in enumerate(forms):
            self.progress("plan", k, len(forms))
            traced[bits], priced = self._trace(bits, target)
            planned[bits] = self._timed("plan", lambda priced=priced: plan_decoder(priced, target, self.settings))  # type: ignore[misc]
        self.progress("plan", len(forms), len(forms))
        options = self._options(traced, planned, target.host and self.settings.measure)
        compiled = self._compiled(traced, options[0])
        here = target.host and not compiled.emulated
        if isinstance(self.decoder, Decoder) and self.decoder.tensors is not None and forms != [32]:
            compiled.quality = self._timed("perplexity", lambda: self._quality(compiled, traced, planned))
            options = self._allowed(options, compiled.quality)
        if here and self.settings.measure and parse_choice(self.settings.objective).weights[0]:
            compiled = self._fastest(compiled, options)
        elif len(forms) > 1:
            compiled = self._cheapest(compiled, options, planned)
        compiled = replace(compiled, phases=self._with_costs(compiled.phases, planned))
        if self.settings.failover:
            compiled = self._timed("failover plans", lambda: self._with_spares(compiled, traced, planned))
        compiled.golden = self._timed("golden", lambda: self._golden(compiled, traced, planned))
        if self.settings.verify:
            self._timed("verify", compiled.verify)
        compiled.notes, compiled.seconds = tuple(self.notes), self.seconds
        return compiled

    @staticmethod
    def _with_costs(
        phases: Mapping[str, PhaseUnits], planned: Mapping[int, PlannedDecoder]
    ) -> dict[str, PhaseUnits]:
        """Each phase with the table that its form of the weights was priced by."""
        tables = {(bits, p.name): p.costs for bits, plan in planned.items() for p in plan.front.phases}
        return {n: replace(p, costs=tables[p.bits, n].to_json()) for n, p in phases.items()}

    def _with_spares(
        self, compiled: CompiledDecoder, traced: Mapping[int, TracedDecoder], planned: Mapping[int, PlannedDecoder]
    ) -> CompiledDecoder:
        """Plans for the loss of what the accepted plans use, in the form of the prompt's weights."""
        bits = compiled.phases[PROMPT].bits
        whole = traced[bits].whole.config is None
        plans = spare_plans(planned[bits], {n: p.plan for n, p in compiled.phases.items()}, self.settings,
                            ("*",) if whole else self.settings.together)  # fmt: skip
        count = len(plans[PROMPT].spares)
        spares = [
            {n: PhaseUnits(p.spares[k], lower_phase(traced[bits], p.spares[k]), bits) for n, p in plans.items()}
            for k in range(count)
        ]
        phases = {n: replace(compiled.phases[n], plan=p) for n, p in plans.items()}
        return replace(compiled, phases=phases, spares=spares)

    def _golden(
        self, compiled: CompiledDecoder, traced: Mapping[int, TracedDecoder], planned: Mapping[int, PlannedDecoder]
    ) -> GoldenPrompt:
        """What one placement alone answers to a prompt, in each form of the weights that is used."""
        length = min(32, compiled.facts.context, self.workload.prompt)
        tokens = np.random.default_rng(0).integers(0, compiled.facts.vocab, length)
        used, logits = set(compiled.placements), {}
        for bits in sorted({p.bits for p in compiled.phases.values()}):
            singles = single_plans(planned[bits].front, "latency") or {"": planned[bits].plans}
            # Not the engine that is checked, where there is another one.
            plan = next((p for n, p in singles.items() if n not in used), next(iter(singles.values())))[PROMPT]
            units = PhaseUnits(plan, lower_phase(traced[bits], plan), bits)
            alone = replace(compiled, phases=dict.fromkeys(compiled.phases, units))
            logits[bits] = np.array(alone.start().prefill([tokens.tolist()])[0])
        return GoldenPrompt(tokens, logits)

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        before = time.perf_counter()
        result = call()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - before
        return result

    def _trace(self, bits: int, target: Target) -> tuple[TracedDecoder, TracedDecoder]:
        """What is lowered (32-bit activations: the CPU's stand-ins know no others), and what is priced."""
        packed = bits if bits < 16 else None
        lowered = trace_decoder(self.decoder, self.workload, "float32", packed, self.how.seed)
        self.seconds["trace"] = self.seconds.get("trace", 0.0) + lowered.seconds
        if target.host:
            return lowered, lowered
        # Accelerators compute in 16 bits, unless asked for 32.
        dtype = "float32" if bits == 32 and self.how.weights == "fp32" else "float16"
        return lowered, trace_decoder(self.decoder, self.workload, dtype, packed)

    def _options(
        self, traced: Mapping[int, TracedDecoder], planned: Mapping[int, PlannedDecoder], here: bool
    ) -> list[Option]:
        """The planned one of each form first, then single placements; where the clock can tell (`here`), also those
        that run 4-bit weights as rows of 8-bit integers."""
        found = []
        for bits, plan in planned.items():
            rows = {plan.strategy: plan.plans}
            if self.settings.measure:
                singles = single_plans(plan.front, self.settings.objective)
                whole = {s.placement for p in plan.plans.values() for s in p.stages}
                # Not twice, where the plan is on one placement.
                rows |= {f"single {n}": p for n, p in singles.items() if whole != {n}}
            for name, plans in rows.items():
                phases = {n: PhaseUnits(p, lower_phase(traced[bits], p), bits) for n, p in plans.items()}
                found.append(Option(name, bits, phases))
        return found + [_in_integer_rows(o) for o in found if here and o.bits == 4 and _can_run_in_rows(o)]

    def _compiled(self, traced: Mapping[int, TracedDecoder], option: Option) -> CompiledDecoder:
        def weight(bits: int, name: str) -> np.ndarray:
            array = traced[bits].source.weight(name)
            return array.astype(np.float16) if bits == 16 and array.dtype == np.float32 and array.ndim > 1 else array

        files = {name: path.read_bytes() for name, path in self.decoder.files.items()}
        whole = next(iter(traced.values())).whole
        return CompiledDecoder(
            self.decoder.name, whole.facts, self.workload, option.phases, whole.states, weight, files,
            threads=self.settings.threads,
        )  # fmt: skip

    # ---- forms of the weights

    def _quality(
        self, compiled: CompiledDecoder, traced: dict[int, TracedDecoder], planned: Mapping[int, PlannedDecoder]
    ) -> list[Quality]:
        """Perplexity of the weights as they are, and of each form."""
        plan = next(iter(planned.values()))
        if 32 not in traced:
            traced[32] = trace_decoder(self.decoder, self.workload, "float32", None)
        found: list[Quality] = []
        texts: list[list[int]] = []
        name = ""
        forms = [32, *(b for b in traced if b != 32)]
        single = next(iter(single_plans(planned.get(32, plan).front, "latency").values()), plan.plans)
        for k, bits in enumerate(forms):
            self.progress("perplexity", k, len(forms))
            phases = {n: PhaseUnits(p, lower_phase(traced[bits], p), bits) for n, p in single.items()}
            session = replace(compiled, phases=phases).start()
            if not texts:
                texts, name = self._texts(compiled, session)
            value, tokens = perplexity(session, texts)
            found.append(Quality(bits, value, tokens, name))
        self.progress("perplexity", len(forms), len(forms))
        return found

    def _texts(self, compiled: CompiledDecoder, session: Session) -> tuple[list[list[int]], str]:
        """Texts to measure perplexity on, as tokens, and what they are."""
        given, tokenizer = self.how.text, load_files(compiled.files)
        if isinstance(given, Path):
            if tokenizer is None:
                raise InputError(f"text {given}: model {compiled.name} has no tokenizer to read it with; give tokens")
            try:
                text = given.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"text {given}: cannot be read as UTF-8 text ({error})") from error
            return windows(tokenizer.encode(text[: 8 * _TEXT_TOKENS]), session.context, _TEXT_TOKENS), given.name
        if given:
            return windows(given, session.context, _TEXT_TOKENS), "given tokens"
        begin = tokenizer.bos if tokenizer is not None and tokenizer.bos is not None else 0
        return own_text(session, begin), "text that the model wrote"

    def _allowed(self, options: list[Option], quality: Sequence[Quality]) -> list[Option]:
        """Options whose form keeps to the budget; a form that was asked for by name is taken whatever it costs."""
        if self.how.weights != "auto":
            return options
        whole = quality[0].perplexity
        over = {q.bits: q.perplexity / whole - 1 for q in quality}
        for bits, share in over.items():
            if share > self.how.perplexity_budget:
                self.notes.append(f"weights of {bits} bits: perplexity {share:+.2%}, more than the budget of "
                                  f"{self.how.perplexity_budget:.2%}; not used")  # fmt: skip
        return [o for o in options if over[o.bits] <= self.how.perplexity_budget]

    def _cheapest(
        self, compiled: CompiledDecoder, options: Sequence[Option], planned: Mapping[int, PlannedDecoder]
    ) -> CompiledDecoder:
        """By the cost model: the form whose plan has the best value of the objective."""
        wanted = parse_choice(self.settings.objective)
        unit = planned[32].front.reference
        values = {}
        for bits, plan in planned.items():
            point = next(c for c in plan.front.candidates if c.strategy == plan.strategy)
            values[bits] = wanted.value(point.objectives, unit)
        able = [o for o in options if o.name == planned[o.bits].strategy]
        best = min(able, key=lambda o: values[o.bits], default=None)
        if best is None:
            raise CapacityError("no form of the weights keeps the budget of perplexity")
        return replace(compiled, phases=best.phases)

    def _fastest(self, compiled: CompiledDecoder, options: Sequence[Option]) -> CompiledDecoder:
        """By the clock."""
        done = [0]

        def say(name: str) -> None:
            self.progress(f"measure {name}", done[0], len(options))
            done[0] += 1

        timings, refused = self._timed("measure", lambda: measure(compiled, options, say))
        self.notes += [f"{name} was left out: {reason}" for name, reason in refused.items()]
        mixture = best_by_phase(compiled, options, timings, self._cache_bytes(compiled))
        last = finalists(compiled, options, timings, mixture)
        chosen = last[0]
        seconds = job_seconds(compiled, [t for t in timings if (t.candidate, t.bits) == (chosen.name, chosen.bits)])
        if len(last) > 1:
            self.progress("measure in turns", 0, 1)
            more = self._timed("measure in turns", lambda: in_turns(compiled, last))
            self.progress("measure in turns", 1, 1)
            chosen, seconds = decide(compiled, last, more)
            timings = [replace(t, candidate=f"{t.candidate}, in turns") for t in more] + timings
        self.progress("measure", len(options), len(options))
        if chosen is not options[0]:
            self.notes.append(
                f"{options[0].name}, {options[0].bits} bit, was planned; {_described(chosen)} was faster when measured "
                "and took its place"
            )
        self.notes.append(f"the whole job takes {seconds:.3f} s (measured: one prompt and "
                          f"{self.workload.tokens} steps)")  # fmt: skip
        found = replace(compiled, phases=chosen.phases)
        found.timings = timings
        return found

    def _cache_bytes(self, compiled: CompiledDecoder) -> float:
        return 4.0 * compiled.facts.cache_per_token * self.workload.prompt * self.workload.prompts


def _described(option: Option) -> str:
    """Its name, or what each phase runs on."""
    if option.bits:
        return f"{option.name}, {option.bits} bit,"
    parts = [
        f"{name} on {'+'.join(dict.fromkeys(s.placement for s in phase.plan.stages))} in {phase.bits} bit"
        f"{f' as {INTEGER_ROWS}' if any(in_rows(u) for u in phase.units) else ''}"
        for name, phase in option.phases.items()
    ]
    return f"{', '.join(parts)},"


def _can_run_in_rows(option: Option) -> bool:
    units = [u for p in option.phases.values() for u in p.units]
    return any(_runs_in_rows(u) for u in units)


def _runs_in_rows(unit: LoweredUnit) -> bool:
    engine = backend(unit.engine)
    return isinstance(engine, IntegerRows) and engine.integer_rows(unit.placements[0].partition(":")[2])


def _in_integer_rows(option: Option) -> Option:
    """The same plans, with weights as rows of integers where engines can."""
    def asked(unit: LoweredUnit) -> LoweredUnit:
        return replace(unit, program=with_integer_rows(unit.program)) if _runs_in_rows(unit) else unit

    phases = {n: replace(p, units=[asked(u) for u in p.units]) for n, p in option.phases.items()}
    return Option(f"{option.name}, {INTEGER_ROWS}", option.bits, phases)
