"""`qeil verify ARTIFACT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import api

from .console import progress, say, table


def command(
    artifact: Annotated[Path, typer.Argument(help="Artifact written by qeil compile.")],
    units: Annotated[bool, typer.Option("--units", help="Also check every unit alone against the reference.")] = False,
) -> None:
    """Check every file's hash, then the outputs against those of the unpartitioned model; exit 1 if they differ."""
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


def _units(compiled: api.Compiled) -> None:
    rows = [
        ["+".join(map(str, unit.stages)), "+".join(dict.fromkeys(unit.placements)), d.name, d.dtype,
         f"{d.max_abs:.2e}", f"{d.max_rel:.2e}", "ok" if d.ok else "DIFFERS"]
        for unit, differences in compiled.verify_units()
        for d in differences
    ]  # fmt: skip
    columns = ("stages", "placements", "tensor", "dtype", "max abs [1]", "max rel [1]", "verdict")
    table("each unit alone, on the reference's inputs (measured)", columns, rows)
