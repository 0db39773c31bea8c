"""The report of a compiled language model: prompt and steps on the same figures."""

from __future__ import annotations

from qeil_compile.errors import TargetError
from qeil_compile.frontends.decoder import PROMPT
from qeil_compile.language import CompiledDecoder

from . import sections
from .document import Document
from .units import mj, ms
from .view import view

_TAKEN = ("phase", "candidate", "weights [bit]", "least [ms]", "runs [1]")
_FORMS = ("weights [bit]", "perplexity [1]", "change [%]", "tokens [1]", "text")


def decoder_document(compiled: CompiledDecoder) -> Document:
    """The report of a language model that was compiled or loaded; engines are not started."""
    plans = {_phase(n): p.plan for n, p in compiled.phases.items()}
    label, emulated = compiled.phases[PROMPT].plan.label, _emulated(compiled)
    document = Document(f"{compiled.name} on {compiled.target}, objective {compiled.phases[PROMPT].plan.objective}")
    w = compiled.workload
    document.paragraph(
        f"A language model planned for {w.prompts} prompt{'s' * (w.prompts != 1)} of {w.prompt} tokens and {w.samples} "
        f"sample{'s' * (w.samples != 1)} of {w.tokens} tokens each. The prompt runs once, a step once per token; "
        "figures are those of one run of a phase."
    )
    measured = ["measured"] if compiled.timings or compiled.quality else []
    document.bullets(sections.label_lines([label, *measured, *(["emulated"] if emulated else [])]))
    document.heading("Phases")
    rows = [
        (_phase(n), p.plan.strategy, ", ".join(dict.fromkeys(s.placement for s in p.plan.stages)), len(p.plan.stages),
         p.bits, ms(p.plan.objectives.latency), mj(p.plan.objectives.energy),
         f"{p.plan.objectives.under_utilisation:.3f}")
        for n, p in compiled.phases.items()
    ]  # fmt: skip
    columns = ("phase", "strategy", "placements", "stages [1]", "weights [bit]", "latency [ms]", "energy [mJ]",
               "under-utilisation [1]")  # fmt: skip
    document.table(columns, rows, None, f"One run of each phase ({label}). All phases are planned as one problem.")
    document.bullets([f"{_phase(n)}: {line}" for n, p in compiled.phases.items() for line in p.plan.sensitivity_text()])
    phases = [view(_phase(n), p.plan, p.costs) for n, p in compiled.phases.items()]
    sections.phase_figures(document, phases)
    document.heading("Devices")
    sections.devices(document, phases, [sections.ceilings_of(p.costs) for p in compiled.phases.values()])
    document.heading("Stages")
    sections.stages(document, plans, emulated)
    _failovers(document, compiled)
    _measured(document, compiled)
    lines = [*(f"emulated here: {n}: {why}" for n, why in emulated.items()), *compiled.notes]
    if lines:
        document.heading("Notes")
        document.bullets(lines)
    return document


def _phase(name: str) -> str:
    """What a reader calls a phase: the prompt, and steps with so many live rows."""
    rows = name.rpartition(" ")[2]
    return "prompt" if name == PROMPT else f"step of {rows} row{'s' * (rows != '1')}"


def _emulated(compiled: CompiledDecoder) -> dict[str, str]:
    try:
        return compiled.emulated
    except TargetError as error:
        # An engine of the plan is not installed: it can be explained here, not run.
        return dict.fromkeys(compiled.placements, f"cannot run here: {error}")


def _failovers(document: Document, compiled: CompiledDecoder) -> None:
    lost = compiled.phases[PROMPT].plan.failovers
    if not lost:
        return
    document.heading("When something is lost")
    rows = []
    for f in lost:
        spare = {} if f.spare is None else compiled.spares[f.spare]
        where = dict.fromkeys(s.placement for p in spare.values() for s in p.plan.stages)
        latency = [ms(p.plan.objectives.latency) for p in spare.values()] or [""] * len(compiled.phases)
        rows.append((" = ".join(f.names), ", ".join(where), *latency, "; ".join(filter(None, (f.reason, *f.notes)))))
    columns = ("lost", "the rest runs on", *(f"{_phase(n)} [ms]" for n in compiled.phases), "why not, what is given up")
    label = compiled.phases[PROMPT].plan.label
    document.table(columns, rows, None, f"Failover plans in the artifact, with the latency of each phase ({label}).")


def _measured(document: Document, compiled: CompiledDecoder) -> None:
    if compiled.timings:
        document.heading("Measured")
        taken = sorted(compiled.timings, key=lambda t: (t.phase, t.seconds))
        rows = [(_phase(t.phase), t.candidate, t.bits, ms(t.seconds), t.runs) for t in taken]
        document.table(_TAKEN, rows, None, "One run of a phase on the machine that compiled the artifact (measured).")
    if compiled.quality:
        document.heading("Quality of the weights")
        whole = compiled.quality[0].perplexity
        forms = [
            (q.bits, f"{q.perplexity:.4f}", f"{q.perplexity / whole - 1:+.3%}" if whole else "", q.tokens, q.text)
            for q in compiled.quality
        ]  # fmt: skip
        document.table(_FORMS, forms, None, "Perplexity of each form of the weights (measured).")
