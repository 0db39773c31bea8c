"""`qeil explain ARTIFACT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import api, language
from qeil_compile.errors import InputError, OutputError
from qeil_compile.report import tables
from qeil_compile.report.points import points_of
from qeil_compile.report.units import mj, ms

from . import arguments, decoder
from .console import out, print_json, say, table
from .scatter import scatter

#: Width of the plot in the terminal, where there is room for it [columns].
_WIDTH = 80


def command(
    artifact: Annotated[Path, typer.Argument(help="Artifact written by qeil compile.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    operators: Annotated[bool, typer.Option("--operators", help="Every operator on every placement.")] = False,
    stage: Annotated[int | None, typer.Option(min=0, help="Only this stage, with its operators.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a report with figures, a page that loads nothing.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png|.svg", help="Write the front as a picture.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace existing files of --html and --plot.")] = False,
) -> None:
    """Say which operator goes where, why not elsewhere, what each boundary costs, and what would change the choice."""
    if html is not None:
        arguments.check_file(html, ".html", overwrite)
    if language.is_decoder_artifact(artifact):
        if plot is not None or stage is not None or operators:
            raise InputError(
                f"{artifact}: holds a language model, for which there is no --plot, --stage, --operators; "
                "--html FILE has its figures"
            )
        decoder.explain(artifact, as_json, html)
        return
    if plot is not None:
        _check_plot(plot, overwrite)
    compiled = api.load(artifact)
    found = compiled.explain()
    if stage is not None and stage >= len(found.stages):
        raise InputError(f"--stage {stage}: the plan has stages 0 to {len(found.stages) - 1}")
    if plot is not None:
        _write_plot(found, plot)
    if html is not None:
        from qeil_compile.report.model import model_document

        arguments.write_text(html, model_document(compiled).html())
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
    for path in (plot, html):
        if path is not None:
            say(f"wrote {path}")


def _check_plot(path: Path, overwrite: bool) -> None:
    if path.suffix == ".html":
        raise OutputError(f"{path}: --plot draws the front as .png or .svg; a page is written with --html {path}")
    if path.suffix not in (".png", ".svg"):
        raise OutputError(f"{path}: expected a name that ends in .png or .svg")
    arguments.check_file(path, path.suffix, overwrite)


def _write_plot(found: api.Explanation, path: Path) -> None:
    from qeil_compile.report.front import front
    from qeil_compile.report.style import file_bytes, svg_file

    figure = front(found)
    arguments.write_bytes(path, file_bytes(figure, "png") if path.suffix == ".png" else svg_file(figure))


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
    table(f"boundaries ({found.label})", tables.BOUNDARY, tables.boundaries(found, only))


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


def _whole(found: api.Explanation) -> None:
    table(f"alternatives considered ({found.label})", tables.ALTERNATIVE, tables.alternatives(found))
    _choice(found)
    table(f"failover plans ({found.label})", tables.FAILOVER, tables.failovers(found))
    table("one run (measured)", tables.TIMING, tables.timings(found.timings))
    for u in found.unknown:
        say(f"unknown cost: {u.count} x {u.type}, {u.share_of_bytes:.1%} of all bytes ({found.label})")
    for pattern, placement in found.pins.items():
        say(f"pin: {pattern} -> {placement}")
    for note in found.notes:
        say(f"note: {note}")
