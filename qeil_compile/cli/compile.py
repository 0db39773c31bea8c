"""`qeil compile MODEL -o OUT`."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from qeil_compile import api, language
from qeil_compile.errors import InputError
from qeil_compile.frontends import RUN_SECONDS
from qeil_compile.ir import Workload
from qeil_compile.plan import Plan
from qeil_compile.report import tables
from qeil_compile.report.units import mj, ms

from . import arguments, decoder
from .console import print_json, progress, say, table


def command(
    model: Annotated[
        str, typer.Argument(help="An .onnx or .pt2 file, a checkpoint folder, a llama2.c .bin, a family, or demo.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Artifact to write: a folder, or NAME.zip.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="host, a profile's name (qeil devices list), a .toml file, or openvino:CPU,torch:cpu")
    ] = "host",
    objective: Annotated[
        str,
        typer.Option(help="latency, energy, balanced, utilisation, or weights; with caps: 'energy; latency<=50ms'"),
    ] = "latency",
    dim: Annotated[list[str] | None, typer.Option(metavar="NAME=N", help="Bind a dynamic dimension.")] = None,
    input: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Sample input.")] = None,  # noqa: A002
    inputs: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Sample inputs.")] = None,
    pin: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=ENGINE:DEVICE", help="Pin operators, scopes or types.")
    ] = None,
    together: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Operators that share a placement.")
    ] = None,
    forbid: Annotated[
        list[str] | None, typer.Option(metavar="ENGINE:DEVICE|DEVICE", help="Placement or device to leave out.")
    ] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="Consider only these strategies.")] = None,
    search_seconds: Annotated[
        float | None, typer.Option(min=0, help="Time budget of the search; plans are then not repeatable.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Time the plan against every single device.")] = True,
    verify: Annotated[bool, typer.Option(help="Refuse a plan that differs from the unpartitioned model.")] = True,
    failover: Annotated[bool, typer.Option(help="Also plan for the loss of what the plan uses.")] = True,
    fuse: Annotated[bool, typer.Option(help="Price operators that an engine fuses as one.")] = True,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each engine; 0: its own choice.")] = 0,
    duration: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds of runs without a pause (until it is steadily hot).")
    ] = None,
    ambient: Annotated[float | None, typer.Option(metavar="C", help="Ambient temperature of every device.")] = None,
    ceiling: Annotated[float, typer.Option(help="Share of a device's limit that it must stay below.")] = 0.85,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Language models: tokens of a prompt.")] = 256,
    new_tokens: Annotated[int, typer.Option(min=1, help="Language models: tokens of a sample.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Language models: samples of a prompt.")] = 1,
    prompts: Annotated[int, typer.Option(min=1, help="Language models: prompts at once.")] = 1,
    buckets: Annotated[
        str, typer.Option(metavar="ROWS:SHARE,...", help="Language models: live rows planned apart (all rows).")
    ] = "",
    weights: Annotated[
        str, typer.Option(metavar="auto|fp32|fp16|int8|int4", help="Language models: form of the weights.")
    ] = "fp32",
    perplexity_budget: Annotated[
        float, typer.Option(min=0, help="By which share `--weights auto` may raise perplexity.")
    ] = 0.02,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Text to measure perplexity on.")] = None,
    random_weights: Annotated[
        int | None, typer.Option(metavar="SEED", help="Random weights for a family without any, to time its shape.")
    ] = None,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Language models: plan, read no weights.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Read a .pt2 file, which can run code when it is read.")
    ] = False,
    allow_operators: Annotated[
        list[str] | None, typer.Option(metavar="DOMAIN", help="ONNX operators of this domain may occur; repeatable.")
    ] = None,
    run_seconds: Annotated[
        float, typer.Option(min=0.001, metavar="S", help="Seconds that one run of an ONNX model may take.")
    ] = RUN_SECONDS,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the search and of random sample inputs.")] = 0,
    as_json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON.")] = None,
) -> None:
    """Compile a model into an artifact, and say which operator goes where."""
    report = Path(as_json) if as_json not in (None, "-") else None
    if report is not None:
        arguments.check_file(report, ".json", overwrite)
    conditions = api.Conditions(duration=inf if duration is None else duration, ceiling=ceiling, ambient=ambient)
    settings = api.Settings(
        target, objective, arguments.pins(pin or []), tuple(together or ()), tuple(forbid or ()), tuple(strategy or ()),
        seed, search_seconds, measure, fuse, conditions, verify, threads, failover,
    )  # fmt: skip
    if language.is_decoder(model):
        wanted = decoder.Wanted(prompt_tokens, new_tokens, samples, prompts, buckets, weights, perplexity_budget, text,
                                random_weights)  # fmt: skip
        _compile_decoder(model, None if plan_only else output, wanted, settings, overwrite, report, as_json)
        return
    if output is None:
        raise InputError("no --output given: expected the artifact to write, such as -o model.qeil")
    api.check_output(output, overwrite)
    workload = Workload(arguments.dimensions(dim or []))
    given = arguments.arrays(input or [], inputs)
    with progress() as step:
        if model == "demo":
            from qeil_compile.demo import compile_demo

            compiled = compile_demo(workload, given, settings, seed, step)
        else:
            compiled = api.aot_compile(
                model, workload=workload, inputs=given, settings=settings, seed=seed, progress=step, trust=trust,
                allow_operators=tuple(allow_operators or ()), run_seconds=run_seconds,
            )  # fmt: skip
        step("save", 0, 1)
        sizes = compiled.save(output, overwrite)
        step("save", 1, 1)
    data = _report(compiled, output) | {"bytes": asdict(sizes)}
    if report is not None:
        arguments.write_text(report, json.dumps(data, indent=1))
    if as_json == "-":
        print_json(data)
    else:
        show(compiled)
        say(f"wrote {output}: {sizes.total / 1e6:.3f} MB, of which failover plans {sizes.failover / 1e6:.3f} MB")
        say(f"next: qeil verify {output}; qeil explain {output}; qeil run {output}")


def _compile_decoder(
    model: str, output: Path | None, wanted: decoder.Wanted, settings: api.Settings, overwrite: bool,
    report: Path | None, as_json: str | None,
) -> None:  # fmt: skip
    if output is None:
        with progress() as step:
            step("plan", 0, 1)
            plans = decoder.plan_model(model, wanted, settings)
            step("plan", 1, 1)
        data: dict[str, Any] = {f: {n: p.to_json() for n, p in q.plans.items()} for f, q in plans.items()}
    else:
        api.check_output(output, overwrite)
        with progress() as step:
            compiled = decoder.compile_model(model, wanted, settings, step)
            step("save", 0, 1)
            sizes = compiled.save(output, overwrite)
            step("save", 1, 1)
        data = decoder.report(compiled) | {"output": str(output), "bytes": asdict(sizes)}
    if report is not None:
        arguments.write_text(report, json.dumps(data, indent=1))
    if as_json == "-":
        print_json(data)
    elif output is None:
        decoder.show_plans(model, plans)
    else:
        decoder.show(compiled)
        say(f"wrote {output}: {sizes.total / 1e6:.3f} MB")
        say(f"next: qeil run {output} --prompt 'Once upon a time'; qeil chat {output}; qeil bench llm {output}")


def _report(compiled: api.Compiled, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "plan": compiled.plan.to_json(),
        "emulated": compiled.emulated,
        "timings": {n: asdict(t) | {"label": "measured"} for n, t in compiled.timings.items()},
        "seconds": compiled.seconds,
    }


def show(compiled: api.Compiled) -> None:
    """The plan, its objective values, measurements, stand-ins and compile times."""
    plan, emulated = compiled.plan, compiled.emulated
    rows = [
        [s.index, s.placement + (" (emulated)" if s.placement in emulated else ""), s.device, len(s.ops),
         ms(s.seconds), ms(s.boundary), mj(s.joules)]
        for s in plan.stages
    ]  # fmt: skip
    title = f"{plan.model} on {plan.target}: {plan.strategy} ({plan.label})"
    table(title, ("stage", "placement", "device", "operators [1]", "time [ms]", "entry [ms]", "energy [mJ]"), rows)
    say(objectives(plan))
    found = compiled.explain()
    table("one run (measured)", tables.TIMING, tables.timings(found.timings))
    table(f"failover plans ({found.label})", tables.FAILOVER, tables.failovers(found))
    for placement, reason in emulated.items():
        say(f"emulated: {placement} is not on this machine, another device stands in ({reason})")
    for note in plan.notes:
        say(f"note: {note}")
    table("compile steps (measured)", ("step", "time [s]"), [[n, f"{s:.2f}"] for n, s in compiled.seconds.items()])


def objectives(plan: Plan) -> str:
    """The objective values with their label."""
    o = plan.objectives
    energy = " (modelled)" if api.ENERGY_MODELLED in plan.notes else ""
    return (
        f"latency {ms(o.latency)} ms, energy {mj(o.energy)} mJ{energy}, under-utilisation {o.under_utilisation:.3f} "
        f"({plan.label}); objective {plan.objective}"
    )
