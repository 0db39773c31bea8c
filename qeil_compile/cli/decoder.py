"""What `qeil compile` does with a language model, and how its report reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from qeil_compile import api, language
from qeil_compile.errors import FailoverError, InputError
from qeil_compile.plan import device_text
from qeil_compile.report.units import mj, ms

from . import arguments
from .console import Step, print_json, printable, progress, remark, say, table
from .watched import Watched

AllowControl = Annotated[
    bool, typer.Option("--allow-control", help="Control tokens that the prompt spells are tokens, not text.")
]


@dataclass(frozen=True)
class Wanted:
    """The options of `qeil compile` that are for language models."""

    prompt_tokens: int
    new_tokens: int
    samples: int
    prompts: int
    buckets: str
    weights: str
    perplexity_budget: float
    text: Path | None
    random_weights: int | None

    def workload(self) -> language.Generation:
        """Raises `InputError`."""
        buckets = {}
        for part in filter(None, self.buckets.split(",")):
            rows, _, share = part.partition(":")
            try:
                buckets[int(rows)] = float(share or 1.0)
            except ValueError as error:
                raise InputError(f"--buckets {part}: expected ROWS or ROWS:SHARE, such as 1:0.2,16:0.8") from error
        return language.Generation(self.prompt_tokens, self.new_tokens, self.samples, self.prompts, buckets)


def compile_model(model: str, wanted: Wanted, settings: api.Settings, step: Step) -> language.CompiledDecoder:
    """Compile a checkpoint folder, a llama2.c file or a named family."""
    decoder = language.open_language_model(model)
    how = language.DecoderSettings(wanted.weights, wanted.perplexity_budget, wanted.text or (), wanted.random_weights)
    return language.compile_decoder(decoder, wanted.workload(), settings, how, step)


def plan_model(model: str, wanted: Wanted, settings: api.Settings) -> dict[str, language.PlannedDecoder]:
    """Plan only: no weights are read. Form of the weights -> plan."""
    decoder, target = language.open_language_model(model), api.find_target(settings.target)
    forms = [f for f in language.FORMS if wanted.weights in (f, "auto")]
    found = {}
    for form in forms:
        bits = language.FORMS[form]
        dtype = "float32" if bits == 32 else "float16"
        traced = language.trace_decoder(decoder, wanted.workload(), dtype, bits if bits < 16 else None)
        found[form] = language.plan_decoder(traced, target, settings)
    return found


def show_plans(model: str, plans: dict[str, language.PlannedDecoder]) -> None:
    """One row per form and phase."""
    rows = []
    for form, planned in plans.items():
        for phase, plan in planned.plans.items():
            o = plan.objectives
            where = ", ".join(f"{s.placement} ({len(s.ops)})" for s in plan.stages[:6])
            more = f" and {len(plan.stages) - 6} more" if len(plan.stages) > 6 else ""
            rows.append([form, phase, planned.strategy, f"{where}{more}", ms(o.latency), mj(o.energy), plan.label])
    columns = ("weights", "phase", "strategy", "stages (operators)", "latency [ms]", "energy [mJ]", "figures are")
    table(f"{model}: prompt and steps planned as one", columns, rows)


def report(compiled: language.CompiledDecoder) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "model": compiled.name,
        "target": compiled.target,
        "phases": {n: {"bits": p.bits, "plan": p.plan.to_json()} for n, p in compiled.phases.items()},
        "emulated": compiled.emulated,
        "quality": [asdict(q) | {"label": "measured"} for q in compiled.quality],
        "timings": [asdict(t) | {"label": "measured"} for t in compiled.timings],
        "notes": list(compiled.notes),
        "seconds": compiled.seconds,
    }


def show(compiled: language.CompiledDecoder) -> None:
    """Phases, what was measured, forms of the weights, notes."""
    rows = []
    for name, phase in compiled.phases.items():
        for s in phase.plan.stages:
            mark = " (emulated)" if s.placement in compiled.emulated else ""
            rows.append(
                [name, s.index, s.placement + mark, s.device, len(s.ops), phase.bits, ms(s.seconds), mj(s.joules)]
            )
    label = compiled.phases[language.PROMPT].plan.label
    columns = ("phase", "stage", "placement", "device", "operators [1]", "weights [bit]", "time [ms]", "energy [mJ]")
    table(f"{compiled.name} on {compiled.target} ({label})", columns, rows)
    taken = [[t.phase, t.candidate, t.bits, ms(t.seconds), t.runs] for t in sorted(
        compiled.timings, key=lambda t: (t.phase, t.seconds))]  # fmt: skip
    table("one run of a phase (measured)", ("phase", "candidate", "weights [bit]", "least [ms]", "runs [1]"), taken)
    whole = compiled.quality[0].perplexity if compiled.quality else 1.0
    quality = [[q.bits, f"{q.perplexity:.4f}", f"{q.perplexity / whole - 1:+.3%}", q.tokens, q.text] for q in (
        compiled.quality)]  # fmt: skip
    table("perplexity (measured)", ("weights [bit]", "perplexity [1]", "change [%]", "tokens [1]", "text"), quality)
    lost = [[", ".join(f.names), "" if f.spare is None else ", ".join(dict.fromkeys(
        s.placement for p in compiled.spares[f.spare].values() for s in p.plan.stages)), f.reason] for f in (
        compiled.phases[language.PROMPT].plan.failovers)]  # fmt: skip
    table("if it is lost", ("what", "the rest runs on", "or why nothing does"), lost)
    for placement, reason in compiled.emulated.items():
        say(f"emulated: {placement} is not on this machine, another device stands in ({reason})")
    for note in compiled.notes:
        say(f"note: {note}")
    table("compile steps (measured)", ("step", "time [s]"), [[n, f"{s:.2f}"] for n, s in compiled.seconds.items()])


def started(artifact: Path, threads: int) -> language.Runner:
    """The artifact with its engines running."""
    return _start(language.Runner(_loaded(artifact, threads)))


@contextmanager
def supervised(artifact: Path, threads: int, watch: Watched) -> Iterator[language.Runner]:
    """The artifact with its engines running, watched as wanted."""
    compiled = _loaded(artifact, threads)
    with watch.supervisor(compiled.step_plans) as oversight:
        yield _start(language.Runner(compiled, watch.resilience, watch.log, watch.trace, oversight))


def _loaded(artifact: Path, threads: int) -> language.CompiledDecoder:
    compiled = language.CompiledDecoder.load(artifact)
    compiled.threads = threads
    return compiled


def _start(runner: language.Runner) -> language.Runner:
    with progress() as step:
        runner.start(lambda done, total: step("start engines", done, total))
    return runner


def generate(
    artifact: Path, prompts: Sequence[str], sampling: language.Sampling, threads: int, as_json: bool, watch: Watched,
    allow_control: bool,
) -> None:  # fmt: skip
    """Samples of each prompt. One sample of one prompt is written as it comes."""
    if not prompts:
        raise InputError(f"{artifact}: holds a language model; give a text with --prompt")
    alone = len(prompts) == 1 and sampling.n == 1 and not as_json

    def seen(event: language.Event) -> None:
        if alone:
            _write(event.text)
        if watch.trace is not None:
            watch.trace.instant(event.text, "tokens", sample=event.sample, token=event.token)

    with supervised(artifact, threads, watch) as runner:
        if alone:
            _write(prompts[0])
        before = time.perf_counter()
        try:
            found = runner.generate([runner.encode(p, allow_control) for p in prompts], sampling, on_token=seen)
        except FailoverError as error:
            for c in error.finished:
                remark(f"finished before: sample {c.sample} of prompt {c.prompt}: {c.text.strip()}")
            raise
    seconds = time.perf_counter() - before
    tokens = sum(len(c.tokens) for samples in found for c in samples)
    label = "emulated" if runner.compiled.emulated else "measured"
    if as_json:
        data = [[asdict(c) for c in samples] for samples in found]
        print_json({"samples": data, "tokens": tokens, "seconds": seconds, "label": label})
        return
    if alone:
        _write("\n")
    for prompt, samples in zip(prompts, [] if alone else found, strict=False):
        rows = [[c.sample, c.finish_reason, len(c.tokens), f"{sum(c.logprobs) / len(c.tokens):.3f}", c.text.strip()]
                for c in samples]  # fmt: skip
        table(prompt, ("sample", "ended by", "tokens [1]", "log-probability [1]", "text"), rows)
    say(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s ({label})")


def verify(artifact: Path) -> None:
    """Hashes, then the logits of the golden prompt. Raises `VerificationError`."""
    compiled = language.CompiledDecoder.load(artifact)
    say(f"{artifact}: every file has the size and SHA-256 of the manifest")
    off = compiled.verify()
    stood_in = f"; stand-ins ran {', '.join(compiled.emulated)} (emulated)" if compiled.emulated else ""
    say(f"verified: logits agree with the unpartitioned model to {off:.1e} of their spread{stood_in}")


def explain(artifact: Path, as_json: bool, html: Path | None) -> None:
    """The report of the compilation, and the devices under each phase; with figures as the page `html`."""
    compiled = language.load_decoder(artifact).compiled
    if html is not None:
        from qeil_compile.report.decoder import decoder_document

        arguments.write_text(html, decoder_document(compiled).html())
    if as_json:
        print_json(report(compiled))
        return
    show(compiled)
    rows = [[n, d.device, device_text(d)] for n, p in compiled.phases.items() for d in p.plan.devices]
    label = compiled.phases[language.PROMPT].plan.label
    table(f"devices under each phase, run over and over ({label})", ("phase", "device", "state"), rows)
    if html is not None:
        say(f"wrote {html}")


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
