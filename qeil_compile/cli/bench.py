"""`qeil bench`: measurements of what was compiled."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import language
from qeil_compile.errors import InputError
from qeil_compile.report.units import ms

from . import arguments, decoder, paper
from .console import print_json, progress, say, table

app = typer.Typer(help="Measure what was compiled.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure what was compiled."""


app.command("paper")(paper.command)


@app.command("llm")
def llm(
    artifact: Annotated[Path, typer.Argument(help="Language model written by qeil compile.")],
    rows: Annotated[str, typer.Option(metavar="N,...", help="Numbers of live samples.")] = "1,4,8,16",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=4, help="Steps that are timed.")] = 32,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each engine; 0: its own choice.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Time to the first token, tokens per second by number of samples, and the share of what memory can deliver."""
    if not language.is_decoder_artifact(artifact):
        raise InputError(f"{artifact}: holds no language model; compile a checkpoint folder")
    runner = decoder.started(artifact, threads)
    with progress() as step:
        speed = language.bench(runner, arguments.numbers("--rows", rows), prompt_tokens, new_tokens, step)
    if as_json:
        print_json(asdict(speed))
        return
    found = [
        [s.rows, ms(s.median), f"{ms(s.low)} to {ms(s.high)}", f"{s.tokens_per_second:.1f}", f"{s.nbytes / 1e6:.1f}",
         "-" if s.share is None else f"{s.share:.1%}", f"{s.generate / s.median - 1:+.1%}"]
        for s in speed.steps
    ]  # fmt: skip
    columns = ("samples [1]", "step [ms]", "10 to 90 % [ms]", "tokens/s [1/s]", "read per step [MB]",
               "of memory's speed [%]", "generate over step [%]")  # fmt: skip
    table(f"{runner.compiled.name} ({speed.label})", columns, found)
    memory = "not measured (torch has no CUDA here)" if speed.bandwidth is None else f"{speed.bandwidth / 1e9:.1f} GB/s"
    say(f"first token {ms(speed.first_token)} ms for {speed.prompt} tokens; memory {memory} ({speed.label})")
