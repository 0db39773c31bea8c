"""`qeil run ARTIFACT`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qeil_compile import api, language
from qeil_compile.errors import InputError
from qeil_compile.report.units import ms
from qeil_compile.runtime import ResilientModel

from . import arguments, decoder
from .console import print_json, progress, say, table
from .watched import Canary, Isolate, LogFile, Monitor, StageSeconds, TraceFile, Watched, watched


def command(
    artifact: Annotated[Path, typer.Argument(help="Artifact written by qeil compile.")],
    input: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Number or JSON list.")] = None,  # noqa: A002
    inputs: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="One array per input.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Write the outputs here.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing --output.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 10,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each engine; 0: its own choice.")] = 0,
    prompt: Annotated[list[str] | None, typer.Option(help="Language models: a prompt; may be repeated.")] = None,
    allow_control: decoder.AllowControl = False,
    samples: Annotated[int, typer.Option("-k", "--samples", min=1, help="Samples of each prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sample at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Only the likeliest tokens of this mass.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="Only tokens of this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Divides logits of tokens seen before.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends a sample; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    trace: TraceFile = None,
    log: LogFile = None,
    isolate: Isolate = False,
    canary: Canary = None,
    deadline: StageSeconds = None,
    monitor: Monitor = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Run an artifact; without inputs, on the sample inputs that it holds. A stage that fails is replaced."""
    with watched(trace, log, isolate, canary, deadline, monitor) as watch:
        if language.is_decoder_artifact(artifact):
            sampling = language.Sampling(
                repetition_penalty, temperature, top_k, top_p, min_p, seed, max_tokens, tuple(stop or ()), n=samples
            )
            decoder.generate(artifact, prompt or [], sampling, threads, as_json, watch, allow_control)
            return
        _run_arrays(artifact, input or [], inputs, output, overwrite, repeat, threads, prompt, as_json, watch)


def _run_arrays(
    artifact: Path, values_given: list[str], inputs: Path | None, output: Path | None, overwrite: bool, repeat: int,
    threads: int, prompt: list[str] | None, as_json: bool, watch: Watched,
) -> None:  # fmt: skip
    if prompt:
        raise InputError(f"{artifact}: holds no language model, which --prompt is for; give --input or --inputs")
    if output is not None:
        arguments.check_file(output, ".npz", overwrite)
    given = arguments.arrays(values_given, inputs)
    compiled = api.load(artifact)
    compiled.threads = threads
    plans = (compiled.plan, *compiled.plan.spares)
    with watch.supervisor(plans) as oversight, progress() as step:
        model = ResilientModel(
            compiled, watch.resilience, watch.log, watch.trace, oversight,
            lambda done, total: step("start engines", done, total),
        )  # fmt: skip
        values, timing = model.timed(given or compiled.golden.inputs, repeat)
    if output is not None:
        arguments.write_npz(output, values)
    label = "emulated" if compiled.emulated else "measured"
    rows = {n: _summary(a) for n, a in values.items()}
    if as_json:
        latency = asdict(timing) | {"label": label}
        print_json({"outputs": rows, "latency": latency, "emulated": compiled.emulated, "sample_inputs": not given})
        return
    if not given:
        say("no inputs given: the artifact's sample inputs are used")
    columns = ("output", "dtype", "shape", "min", "mean", "max")
    table("outputs", columns, [[n, *(r[k] for k in columns[1:])] for n, r in rows.items()])
    say(
        f"latency {ms(timing.median)} ms median, {ms(timing.low)} to {ms(timing.high)} ms (10 % to 90 %), "
        f"{timing.runs} runs ({label})"
    )
    for placement, reason in compiled.emulated.items():
        say(f"emulated: {placement} is not on this machine, another device stands in ({reason})")


def _summary(array: np.ndarray) -> dict[str, Any]:
    data: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    numbers = array.astype(np.float64) if array.dtype.kind in "biufV" and array.size else None
    for name in ("min", "mean", "max"):
        value = None if numbers is None else float(getattr(np, name)(numbers))
        # JSON has no NaN and no infinity.
        data[name] = None if value is None else value if np.isfinite(value) else str(value)
    return data
