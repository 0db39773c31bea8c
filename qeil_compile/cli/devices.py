"""`qeil devices`: what is on this machine, and the profiles that can be compiled for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from qeil_compile import api
from qeil_compile.devices import (
    Known,
    Target,
    check_profile,
    known_devices,
    known_profiles,
    load_target,
    power_modes,
    user_folder,
)

from .console import print_json, say, table

app = typer.Typer(help="What is on this machine, and the known target profiles.", add_completion=False)

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.callback(invoke_without_command=True)
def here(context: typer.Context, as_json: AsJson = False) -> None:
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
    say(f"and {len(known_devices())} single devices: qeil devices list --devices")


@app.command("list")
def known(
    devices: Annotated[bool, typer.Option("--devices", help="The devices of the catalogue as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the target profiles: the shipped ones, your own, and with --devices every device of the catalogue."""
    profiles = [p for p in known_profiles() if devices or p.origin != "device"]
    if as_json:
        print_json([_plain(p) for p in profiles])
        return
    good = [p for p in profiles if not p.problem]
    targets = [[p.name, p.title, ", ".join(p.placements), ", ".join(p.modes), _from(p)] for p in good if not _single(p)]
    table("target profiles", ("target", "title", "placements", "power modes", "from"), targets)
    if devices:
        table(
            "devices of the catalogue",
            ("device", "title", "kind", "fastest [TFLOP/s]", "memory [GB/s]", "power [W]", "power modes"),
            [_device_row(p) for p in good if _single(p)],
        )
    else:
        say(f"{len(known_devices())} devices of the catalogue are targets of their own: qeil devices list --devices")
    table("profiles with a problem", ("file", "problem"), [[p.origin, p.problem] for p in profiles if p.problem])
    say(f"your own profiles are looked for in {user_folder()}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A profile's name, with @MODE for a power mode; a .toml file; or host.")],
    sources: Annotated[bool, typer.Option("--sources", help="Where each number comes from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every coefficient of a target, and its power modes."""
    target = api.find_target(name)
    modes = () if target.host or "@" in target.name else power_modes(name)
    if as_json:
        print_json({**target.to_json(), "modes": list(modes)})
        return
    print(target.as_text(sources))
    if modes:
        print("\npower modes:")
        for mode in modes:
            print(f"  {target.name}@{mode}: {_mode_text(target, load_target(f'{name}@{mode}'))}")


@app.command("check")
def check(file: Annotated[Path, typer.Argument(help="A profile file of your own.")], as_json: AsJson = False) -> None:
    """Check a profile file: every problem with the field that it is in; exit 1 if there is one."""
    problems = check_profile(file)
    if as_json:
        print_json(problems)
    elif problems:
        print("\n".join(problems))
    else:
        target = load_target(str(file))
        say(f"{file}: no problem: {target.name} with {', '.join(d.title for d in target.devices)}")
    if problems:
        raise typer.Exit(1)


def _plain(p: Known) -> dict[str, Any]:
    data = asdict(p)
    return {k: v for k, v in data.items() if k != "problem" or v}


def _single(p: Known) -> bool:
    return p.origin == "device"


def _from(p: Known) -> str:
    return "shipped" if p.origin == "target" else p.origin


def _device_row(p: Known) -> list[object]:
    (d,) = load_target(p.name).devices
    dtype, fastest = max(d.peak_flops.items(), key=lambda item: item[1].value)
    rate = f"{fastest.value / 1e12:.4g} {dtype}"
    memory, power = f"{d.memory_bandwidth.value / 1e9:.4g}", f"{d.tdp.value:g}{' (assumed)' if d.tdp.assumed else ''}"
    return [p.name, p.title, d.kind, rate, memory, power, ", ".join(p.modes)]


def _mode_text(full: Target, target: Target) -> str:
    """What a power mode changes, per device."""
    texts = []
    for before, d in zip(full.devices, target.devices, strict=True):
        if d != before:
            dtype = max(d.peak_flops, key=lambda k: d.peak_flops[k].value)
            share = d.peak_flops[dtype].value / before.peak_flops[dtype].value
            rate = f"{d.peak_flops[dtype].value:.3g} FLOP/s {dtype} ({share:.0%})"
            texts.append(f"{d.name} {d.tdp.value:g} W, {rate}, {d.memory_bandwidth.value / 1e9:.4g} GB/s")
    return "; ".join(texts) or "as without a mode"
