"""Parts of reports that plans of every kind share: figures of phases, and tables of devices, stages and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qeil_compile.plan import DeviceState, Plan

from .document import Document
from .figures import energy_bars, placement_map, roofline, timeline
from .units import mj, ms
from .view import PhaseView

#: Rows of a table in a page; what follows is in `qeil explain --json`.
_MOST_ROWS = 400
#: What the labels mean, as in docs/honest-words.md.
MEANING: Mapping[str, str] = {
    "measured": "read from a clock or an energy counter of the machine, in that run",
    "calibrated": "computed by the cost model with coefficients that qeil calibrate fitted on the machine",
    "modelled": "computed by the cost model from a device profile: data sheets, published or assumed coefficients",
    "emulated": "values that came from another engine device, which stood in for one that was not there",
}
NO_TABLE = (
    "This artifact was written by a version that kept no cost tables of language models: compile the model anew to see "
    "the placement of every operator, the roofline and the parts of the energy."
)


def label_lines(labels: Sequence[str]) -> list[str]:
    """One line per label that the report uses."""
    return [f"{label}: {MEANING[label]}" for label in MEANING if label in labels]


def phase_figures(document: Document, phases: Sequence[PhaseView]) -> None:
    """Placement, roofline, energy and timeline of all phases, each with a heading and a caption."""
    label = ", ".join(dict.fromkeys(p.label for p in phases))
    priced = any(p.points for p in phases)
    if priced:
        document.heading("Where operators run")
        document.figure(
            placement_map(phases),
            f"Placement of every operator ({label}). Rows are layers, columns what operators do in them, in order; a "
            "cell of several operators is divided among them. Colour is the device, hatching tells its engines apart.",
            "placement",
        )
        document.heading("Roofline")
        document.figure(
            roofline(phases),
            f"Attained rate of every operator against its arithmetic intensity ({label}). Below the slope memory "
            "binds, below the flat part arithmetic; the distance to the roof is what launches, inefficiencies and "
            "small sizes cost.",
            "roofline",
        )
    else:
        document.paragraph(NO_TABLE)
    document.heading("Energy")
    parts = "" if priced else " Without a cost table the dynamic part cannot be told from constant power."
    document.figure(
        energy_bars(phases),
        f"Energy of one run by device ({label}): what arithmetic and memory take, what a device draws while it works "
        f"whatever it does, and what it draws while others work.{parts}",
        "energy",
    )
    document.heading("Timeline")
    document.figure(
        timeline(phases),
        f"One run over time ({label}): stages of each device by their numbers, and what moves over links between "
        "devices. Stages that follow one another without a visible gap are one bar.",
        "timeline",
    )


def devices(document: Document, phases: Sequence[PhaseView], ceilings: Sequence[Mapping[str, float]]) -> None:
    """Every device of the target under each phase; `ceilings` [C] by device, one mapping per phase."""
    rows, kinds = [], []
    several = len(phases) > 1
    for phase, ceiling in zip(phases, ceilings, strict=True):
        for d in phase.plan.devices:
            rows.append([*([phase.name] if several else []), *_device(phase, d, ceiling.get(d.device))])
            kinds.append("" if d.busy else "dominated")
    columns = ("device", "busy [ms]", "energy [mJ]", "DASI [1]", "compute attained [%]", "memory attained [%]",
               "Phi [1]", "temperature [C]", "below its ceiling by [K]", "CPQ [1]", "weights [MB]", "arena [MB]",
               "spilled [MB]")  # fmt: skip
    document.table(
        (*(("phase",) if several else ()), *columns), rows, kinds,
        f"Devices while the plan runs over and over ({phases[0].label}). DASI and the attained shares are means over "
        "the time of the device's operators; Phi is the share of its dynamic power and leakage that does work; CPQ the "
        "share of its usable memory that is taken.",
    )  # fmt: skip


def _device(phase: PhaseView, d: DeviceState, ceiling: float | None) -> list[str]:
    mine = [o for o in phase.points if o.device == d.device and o.seconds > 0]
    whole = sum(o.seconds for o in mine)

    def mean(name: str) -> float | None:
        return sum(getattr(o, name) * o.seconds for o in mine) / whole if whole else None

    def share(value: float | None, factor: float, digits: int) -> str:
        return "" if value is None else f"{value * factor:.{digits}f}"

    heat = ["no data", ""]
    if d.temperature is not None:
        margin = "" if ceiling is None else f"{ceiling - d.temperature:.1f}"
        heat = [f"{d.temperature:.1f}", margin if d.sustained else "CANNOT SUSTAIN THE LOAD"]
    megabytes = [f"{n / 1e6:.2f}" for n in (d.weight_bytes, d.arena_bytes, d.spill_bytes)]
    return [d.device, ms(d.busy), mj(d.joules), share(mean("dasi"), 1, 3), share(mean("dasi_eff"), 100, 1),
            share(mean("beta_eff"), 100, 1), f"{d.phi:.3f}", *heat, f"{d.cpq:.3f}", *megabytes]  # fmt: skip


def ceilings_of(costs: Mapping[str, Any]) -> dict[str, float]:
    """Device -> the temperature [C] that it must stay below, as far as the table says."""
    pairs = zip(costs.get("devices", ()), costs.get("ceiling", ()), strict=False)
    return {device: float(limit) for device, limit in pairs if limit is not None}


def cut(document: Document, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> None:
    """A table, and a sentence where it is too long for a page."""
    document.table(columns, rows[:_MOST_ROWS], None, caption)
    if len(rows) > _MOST_ROWS:
        document.paragraph(f"{len(rows) - _MOST_ROWS} more rows are in qeil explain --json.")


def stages(document: Document, plans: Mapping[str, Plan], emulated: Mapping[str, str]) -> None:
    """Stages of each phase, in order."""
    several = len(plans) > 1
    rows = [
        [*([name] if several else []), s.index, s.placement, s.device, len(s.ops), ms(s.start), ms(s.seconds),
         ms(s.boundary), mj(s.joules), *(f"{v / 1e6:.3f}" for v in (s.flops, s.nbytes, s.weight_bytes)),
         *(["emulated" if s.placement in emulated else ""] if emulated else [])]
        for name, plan in plans.items() for s in plan.stages
    ]  # fmt: skip
    columns = ("stage [1]", "placement", "device", "operators [1]", "start [ms]", "time [ms]", "entry [ms]",
               "energy [mJ]", "work [MFLOP]", "traffic [MB]", "weights [MB]")  # fmt: skip
    label = next(iter(plans.values())).label
    cut(document, (*(("phase",) if several else ()), *columns, *(("here",) if emulated else ())), rows,
        f"Stages in order ({label}). Entry is the call and hand-over of a stage, beside transfers.")  # fmt: skip
