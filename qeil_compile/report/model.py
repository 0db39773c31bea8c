"""The report of a compiled model: what was chosen, why, where operators run, and what they cost."""

from __future__ import annotations

from qeil_compile.runtime import Compiled, Explanation

from . import sections, tables
from .document import Document
from .front import front
from .units import mj, ms
from .view import view


def model_document(compiled: Compiled) -> Document:
    """The report of a model that was compiled or loaded; engines are not started."""
    found, plan = compiled.explain(), compiled.plan
    document = Document(f"{found.model} on {found.target}, objective {found.objective}")
    o = plan.objectives
    document.paragraph(
        f"The plan ({found.strategy}) has {len(found.stages)} stage{'s' * (len(found.stages) != 1)} and takes "
        f"{ms(o.latency)} ms and {mj(o.energy)} mJ per run, with an under-utilisation of {o.under_utilisation:.3f} "
        f"({found.label})."
    )
    document.bullets(sections.label_lines([found.label, *(["measured"] if found.timings else []),
                                           *(["emulated"] if found.emulated else [])]))  # fmt: skip
    _choice(document, found)
    phase = view("one run", plan, compiled.costs, {op.name: op.scope for op in compiled.graph.ops})
    sections.phase_figures(document, [phase])
    document.heading("Devices")
    sections.devices(document, [phase], [sections.ceilings_of(compiled.costs)])
    document.heading("Stages and boundaries")
    sections.stages(document, {"one run": plan}, found.emulated)
    caption = f"Boundaries: what enters each stage, and what that costs ({found.label})."
    sections.cut(document, tables.BOUNDARY, tables.boundaries(found), caption)
    _rest(document, found)
    _notes(document, found)
    return document


def _choice(document: Document, found: Explanation) -> None:
    document.heading("The choice")
    document.bullets(found.decision.as_text())
    if found.alternatives:
        document.figure(
            front(found),
            f"Latency and energy of the plans that were considered ({found.label}); better is down and left. The star "
            "is the chosen plan, colour its under-utilisation, lines are what no plan can be below.",
            "front",
        )
    kinds = ["chosen" if a.chosen else "front" if a.on_front else "dominated" for a in found.alternatives]
    rows = [(*row, a.note) for row, a in zip(tables.alternatives(found), found.alternatives, strict=True)]
    columns = (*tables.ALTERNATIVE, "differs from the chosen plan by")
    document.table(columns, rows, kinds, f"Alternatives considered ({found.label}).")


def _rest(document: Document, found: Explanation) -> None:
    if found.sensitivity:
        document.heading("Ranges of energy coefficients")
        document.bullets(found.ranges)
        caption = f"What each coefficient does to the plan's energy over its range ({found.label})."
        document.table(tables.RANGE, tables.ranges(found), None, caption)
    if found.failovers:
        document.heading("When something is lost")
        caption = f"Failover plans in the artifact ({found.label})."
        document.table(tables.FAILOVER, tables.failovers(found), None, caption)
    if found.timings:
        document.heading("Measured")
        caption = "One run on the machine that compiled the artifact (measured)."
        document.table(tables.TIMING, tables.timings(found.timings), None, caption)


def _notes(document: Document, found: Explanation) -> None:
    unknown = [f"{u.count} x {u.type}, {u.share_of_bytes:.1%} of all bytes ({found.label})" for u in found.unknown]
    lines = [
        *(f"pin: {pattern} -> {placement}" for pattern, placement in found.pins.items()),
        *(f"emulated here: {placement}: {why}" for placement, why in found.emulated.items()),
        *(f"unknown cost: {text}" for text in unknown),
        *found.notes,
    ]
    if lines:
        document.heading("Notes")
        document.bullets(lines)
