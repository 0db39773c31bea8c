"""`qeil calibrate`: measure this machine's engines and keep what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qeil_compile import api

from .arguments import check_file, numbers, write_text
from .console import print_json, progress, say, table


def command(
    placement: Annotated[
        list[str] | None, typer.Argument(metavar="ENGINE:DEVICE", help="Placements; all of this machine by default.")
    ] = None,
    threads: Annotated[str, typer.Option(help="Numbers of CPU threads, such as 1,2; default: one per core.")] = "",
    seconds: Annotated[float, typer.Option(min=1.0, help="Time for all measurements together.")] = 66.0,
    as_json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing --json file.")] = False,
) -> None:
    """Time small networks on every engine and device here, fit the cost model to them, and store the result.

    Plans for this machine are then priced from it (and labelled calibrated). Repeat it after an engine's update.
    """
    report = Path(as_json) if as_json not in (None, "-") else None
    if report is not None:
        check_file(report, ".json", overwrite)
    wanted = numbers("--threads", threads)
    with progress() as step:
        outcomes = api.calibrate(
            placement, wanted, seconds, lambda spec, share: step(f"measure {spec}", round(100 * share), 100)
        )
    data = [_row(o) for o in outcomes]
    if report is not None:
        write_text(report, json.dumps(data, indent=1))
    if as_json == "-":
        print_json(data)
        return
    _show(outcomes)


def _row(o: api.Outcome) -> dict[str, Any]:
    found = o.calibration.to_json() if o.calibration is not None else None
    return {"placement": o.spec, "threads": o.threads, "stored": o.path, "reason": o.reason, "calibration": found}


def _show(outcomes: list[api.Outcome]) -> None:
    rows, families, gaps = [], [], []
    for o in outcomes:
        c = o.calibration
        if c is None:
            gaps.append([o.spec, str(o.threads), "everything", o.reason])
            continue
        gemm = c.families.get("gemm")
        rows.append([
            o.spec, c.threads, f"{gemm[2] / 1e9:.0f}" if gemm else "-", f"{c.memory.memory / 1e9:.1f}",
            f"{c.memory.cache / 1e9:.0f}", f"{c.entry * 1e6:.1f}",
            "-" if c.boundary is None else f"{c.boundary * 1e6:.1f}", f"{100 * c.noise:.1f}",
        ])  # fmt: skip
        families += [[o.spec, c.threads, f, f"{100 * s:.1f}"] for f, s in sorted(c.spread.items())]
        gaps += [[o.spec, str(c.threads), name, reason] for name, reason in c.missing.items()]
    table(
        "this machine (measured)",
        ("placement", "threads [1]", "GEMM [GFLOP/s]", "memory [GB/s]", "cache [GB/s]", "call [us]", "boundary [us]",
         "noise between rounds [%]"),
        rows,
    )  # fmt: skip
    columns = ("placement", "threads [1]", "family", "[%]")
    table("what the fit leaves (median error on its own networks)", columns, families)
    table("not fitted", ("placement", "threads", "what", "why"), gaps)
    for o in outcomes:
        if o.path:
            say(f"stored {o.path}")
