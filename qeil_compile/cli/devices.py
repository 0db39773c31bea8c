"""`qeil devices`: what is on this machine, and the known target profiles."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from qeil_compile import api

from .console import print_json, say, table

app = typer.Typer(help="What is on this machine, and the known target profiles.", add_completion=False)


@app.callback(invoke_without_command=True)
def here(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """List the devices of this machine, the engines that drive them, and why one is missing."""
    if context.invoked_subcommand is not None:
        return
    rows = api.device_report()
    if as_json:
        print_json([asdict(r) for r in rows])
        return
    table(
        "this machine",
        ("device", "kind", "details", "engines"),
        [[r.device, r.kind, r.details, ", ".join(r.engines)] for r in rows],
    )
    missing = [m.split(": ", 1) for r in rows if r.kind != "other" for m in r.missing]
    table("not usable here (--json tells the rest)", ("placement", "reason"), missing)
    say(f"targets that can be compiled for without their devices: {', '.join(api.known_targets())}")


@app.command("list")
def known(as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False) -> None:
    """List the known target profiles."""
    targets = [api.find_target(name) for name in api.known_targets()]
    if as_json:
        print_json([{"name": t.name, "title": t.title, "placements": [p.spec for p in t.placements]} for t in targets])
        return
    rows = [[t.name, t.title, ", ".join(p.spec for p in t.placements)] for t in targets]
    table("target profiles", ("target", "title", "placements"), rows)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A profile's name, a .toml file, or host.")],
    sources: Annotated[bool, typer.Option("--sources", help="Where each number comes from.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Show every coefficient of a target."""
    target = api.find_target(name)
    if as_json:
        print_json(target.to_json())
    else:
        print(target.as_text(sources))
