"""`qeil explain ARTIFACT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import api, language
from qeil_compile.errors import InputError, OutputError

from . import arguments, decoder
from .console import TIMING_COLUMNS, mj, ms, out, print_json, say, table, timing_rows, us
from .front_figure import draw
from .front_page import page
from .points import points_of
from .scatter import scatter

#: Width of the plot in the terminal, where there is room for it [columns].
_WIDTH = 80


def command(
    artifact: Annotated[Path, typer.Argument(help="Artifact written by qeil compile.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    operators: Annotated[bool, typer.Option("--operators", help="Every operator on every placement.")] = False,
    stage: Annotated[int | None, typer.Option(min=0, help="Only this stage, with its operators.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|.svg|.html", help="Write the front as a picture or a page.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file of --plot.")] = False,
) -> None:
    """Say which operator goes where, why not elsewhere, what each boundary costs, and what would change the choice."""
    if language.is_decoder_artifact(artifact):
        if plot is not None or stage is not None or operators:
            raise InputError(f"{artifact}: holds a language model, for which there is no --plot, --stage, --operators")
        decoder.explain(artifact, as_json)
        return
    if plot is not None:
        _check_plot(plot, overwrite)
    found = api.load(artifact).explain()
    if stage is not None and stage >= len(found.stages):
        raise InputError(f"--stage {stage}: the plan has stages 0 to {len(found.stages) - 1}")
    if plot is not None:
        _write_plot(found, plot)
    if as_json:
        print_json(found.to_json())
        return
    say(f"{found.model} on {found.target}, objective {found.objective}, strategy {found.strategy}")
    _stages(found, stage)
    if stage is None:
        _devices(found)
    _boundaries(found, stage)
    if operators or stage is not None:
        _operators(found, stage)
    if stage is None:
        _whole(found)
        if not operators:
            say("--operators shows each operator on each placement, and why it is not elsewhere")
    if plot is not None:
        say(f"wrote {plot}")


def _check_plot(path: Path, overwrite: bool) -> None:
    if path.suffix not in (".png", ".svg", ".html"):
        raise OutputError(f"{path}: expected a name that ends in .png, .svg or .html")
    arguments.check_file(path, path.suffix, overwrite)


def _write_plot(found: api.Explanation, path: Path) -> None:
    if path.suffix == ".html":
        arguments.write_text(path, page(found))
    else:
        arguments.write_bytes(path, draw(found, "png" if path.suffix == ".png" else "svg"))


def _stages(found: api.Explanation, only: int | None) -> None:
    rows = [
        [s.index, s.placement, s.operators, ms(s.start), ms(s.seconds), mj(s.joules), s.weight_bytes,
         f"emulated: {s.emulated}" if s.emulated else ""]
        for s in found.stages if only in (None, s.index)
    ]  # fmt: skip
    columns = ("stage", "placement", "operators [1]", "start [ms]", "time [ms]", "energy [mJ]", "weights [B]", "here")
    table(f"stages ({found.label})", columns, rows)


def _devices(found: api.Explanation) -> None:
    rows = [
        [d.device, ms(d.busy), mj(d.joules), "no data" if d.temperature is None else f"{d.temperature:.1f}",
         f"{d.phi:.3f}", f"{d.cpq:.3f}", d.weight_bytes, d.arena_bytes, d.peak_bytes, d.online_bytes, d.spill_bytes]
        for d in found.devices
    ]  # fmt: skip
    columns = ("device", "busy [ms]", "energy [mJ]", "temperature [C]", "Phi [1]", "CPQ [1]", "weights [B]",
               "arena [B]", "most live [B]", "online at most [B]", "spilled [B]")  # fmt: skip
    table(f"devices ({found.label})", columns, rows)


def _boundaries(found: api.Explanation, only: int | None) -> None:
    rows = [
        [f"{b.source} -> {b.target}" if b.source >= 0 else f"start -> {b.target}", " -> ".join(b.placements),
         ", ".join(t.tensor for t in b.tensors), b.nbytes, us(b.handover_seconds),
         us(b.seconds - b.handover_seconds), f"{b.joules * 1e6:.2f}"]
        for b in found.boundaries if only in (None, b.target)
    ]  # fmt: skip
    columns = ("boundary", "placements", "tensors", "size [B]", "hand-over [us]", "transfer [us]", "energy [uJ]")
    table(f"boundaries ({found.label})", columns, rows)


def _operators(found: api.Explanation, only: int | None) -> None:
    rows = []
    for g in found.groups:
        if only not in (None, g.stage):
            continue
        for k, o in enumerate(g.options):
            first = ["+".join(g.ops), "+".join(g.types), g.scope, g.stage] if k == 0 else ["", "", "", ""]
            time = "-" if o.seconds is None else ms(o.seconds)
            energy = "-" if o.joules is None else mj(o.joules)
            roofs = ["-" if v is None else f"{v:.3f}" for v in (o.dasi, o.beta)]
            rows.append([*first, f"{'* ' if o.chosen else '  '}{o.placement}", time, energy, *roofs, o.why])
    columns = ("operators", "types", "scope", "stage", "placement", "time [ms]", "energy [mJ]", "DASI [1]", "beta [1]",
               "why")  # fmt: skip
    table(f"operators ({found.label})", columns, rows)


def _choice(found: api.Explanation) -> None:
    """The front as a plot, the chosen plan on it, and what would change the choice."""
    say(f"front ({found.label})")
    for line in scatter(points_of(found), min(_WIDTH, out().width)):
        say(line)
    say(f"choice ({found.label})")
    for line in (*found.decision.as_text(), *found.ranges):
        say(f"  {line}")


def failovers(found: api.Explanation) -> None:
    """What takes over when something that the plan uses is lost."""
    rows = [
        [" = ".join(f.lost), f.strategy or "none", ", ".join(f.placements), f.stages or "",
         "" if f.latency is None else ms(f.latency), "" if f.energy is None else mj(f.energy),
         "; ".join((*([f.reason] if f.reason else []), *f.notes))]
        for f in found.failovers
    ]  # fmt: skip
    columns = ("lost", "plan", "placements", "stages [1]", "latency [ms]", "energy [mJ]", "why not, what is given up")
    table(f"failover plans ({found.label})", columns, rows)


def _whole(found: api.Explanation) -> None:
    rows = [
        [a.strategy, a.stages, ms(a.objectives.latency), mj(a.objectives.energy),
         f"{a.objectives.under_utilisation:.3f}", "yes" if a.on_front else "", "yes" if a.chosen else ""]
        for a in found.alternatives
    ]  # fmt: skip
    columns = ("strategy", "stages [1]", "latency [ms]", "energy [mJ]", "under-utilisation [1]", "on front", "chosen")
    table(f"alternatives considered ({found.label})", columns, rows)
    _choice(found)
    failovers(found)
    table("one run (measured)", TIMING_COLUMNS, timing_rows(found.timings))
    for u in found.unknown:
        say(f"unknown cost: {u.count} x {u.type}, {u.share_of_bytes:.1%} of all bytes ({found.label})")
    for pattern, placement in found.pins.items():
        say(f"pin: {pattern} -> {placement}")
    for note in found.notes:
        say(f"note: {note}")
