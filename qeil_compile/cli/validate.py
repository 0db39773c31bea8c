"""`qeil validate`: the cost model against measurements made elsewhere, and against this machine's clock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import api

from .arguments import numbers
from .console import print_json, progress, say, table

#: Where a checkout keeps the published measurements and the models of the host row.
_DATA, _MODELS = Path("benchmarks/data"), Path("tests/data/models")


def command(
    data: Annotated[Path, typer.Option(help="Measurements to report on, laid out as benchmarks/data.")] = _DATA,
    fit_data: Annotated[
        Path | None, typer.Option(help="Measurements to fit on; default: --data, with what is reported left out.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of ONNX models for the row of this host.")] = _MODELS,
    only: Annotated[list[str] | None, typer.Option(metavar="PART", help="Only this part; may be repeated.")] = None,
    threads: Annotated[str, typer.Option(help="Numbers of CPU threads of the host row.")] = "1,2",
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Calibrate each engine of the host row for so long; 0: as stored.")
    ] = 40.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for validation.json and the plots.")] = Path(
        "validation"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Print model and baselines beside what was measured, row by row; nothing is fitted on what is reported."""
    settings = api.ValidationSettings(
        data, fit_data or data, models, tuple(only or ()), tuple(numbers("--threads", threads)), seconds
    )
    with progress() as step:
        parts = api.validate(settings, lambda part, share: step(part, round(100 * share), 100))
    claims = [c for found in parts.values() for c in found]
    written = api.write_validation(claims, output)
    if as_json:
        print_json([c.to_json() for c in claims])
        return
    table(
        "model against measurements (modelled or calibrated; what is reported was left out of the fit)",
        ("claim", "data", "points [1]", "metric", "model [.]", "goal [.]", "met", "roofline [.]",
         "constant power [.]", "roofline x TDP [.]"),
        [
            [c.name, c.dataset, len(c.points), f"{c.metric} [{c.unit}]", f"{c.value:.3g}",
             f"{'>=' if c.higher_is_better else '<='} {c.goal:g}", "yes" if c.met else "no",
             *(f"{c.baselines[b]:.3g}" if b in c.baselines else "-" for b in ("roofline", "constant_power", "tdp"))]
            for c in claims
        ],
    )  # fmt: skip
    for part, found in parts.items():
        if not found:
            say(f"{part}: skipped, {data} has none of its files (see docs/validation.md)")
    for c in claims:
        if c.note:
            say(f"{c.name}: {c.note}")
    say(f"wrote {written[0]} and {len(written) - 1} plots beside it")
