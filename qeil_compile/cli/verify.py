"""`qeil verify ARTIFACT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import api, language
from qeil_compile.errors import QeilError, TargetError

from . import decoder
from .console import progress, say, table


def command(
    artifact: Annotated[Path, typer.Argument(help="Artifact written by qeil compile.")],
    units: Annotated[bool, typer.Option("--units", help="Also check every unit alone against the reference.")] = False,
    failover: Annotated[bool, typer.Option(help="Also check the outputs of failover plans.")] = True,
) -> None:
    """Check every file's hash, then the outputs against those of the unpartitioned model; exit 1 if they differ."""
    if language.is_decoder_artifact(artifact):
        decoder.verify(artifact)
        return
    compiled = api.load(artifact)
    say(f"{artifact}: every file has the size and SHA-256 of the manifest")
    with progress() as step:
        compiled.start(lambda done, total: step("start engines", done, total))
        if units:
            _units(compiled)
        found = compiled.verify()
    for difference in found:
        say(f"output {difference.as_text()}")
    stood_in = f"; stand-ins ran {', '.join(compiled.emulated)} (emulated)" if compiled.emulated else ""
    say(f"verified: {len(found)} outputs agree with the unpartitioned model{stood_in}")
    if failover:
        _failovers(compiled)


def _failovers(compiled: api.Compiled) -> None:
    """Each spare plan by itself; one whose engine is not installed is told, for the plan itself does without it."""
    for k, plan in enumerate(compiled.plan.spares):
        name = f"without {' or '.join(n for f in compiled.plan.failovers if f.spare == k for n in f.names)}"
        spare = compiled.spare(k)
        try:
            emulated = spare.emulated
        except TargetError as error:
            say(f"{name}: not verified here, {plan.strategy} cannot run ({error})")
            continue
        try:
            found = spare.verify()
        except QeilError as error:
            raise type(error)(f"failover plan {plan.strategy} ({name}): {error}") from error
        stood_in = f" (emulated: {', '.join(emulated)})" if emulated else ""
        say(f"{name}: {len(found)} outputs of {plan.strategy} agree{stood_in}")


def _units(compiled: api.Compiled) -> None:
    rows = [
        ["+".join(map(str, unit.stages)), "+".join(dict.fromkeys(unit.placements)), d.name, d.dtype,
         f"{d.max_abs:.2e}", f"{d.max_rel:.2e}", "ok" if d.ok else "DIFFERS"]
        for unit, differences in compiled.verify_units()
        for d in differences
    ]  # fmt: skip
    columns = ("stages", "placements", "tensor", "dtype", "max abs [1]", "max rel [1]", "verdict")
    table("each unit alone, on the reference's inputs (measured)", columns, rows)
