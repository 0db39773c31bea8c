"""`qeil chat ARTIFACT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import language
from qeil_compile.errors import InputError

from . import decoder
from .console import say


def command(
    artifact: Annotated[Path, typer.Argument(help="Language model written by qeil compile.")],
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Only the likeliest tokens of this mass.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the answers.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each engine; 0: its own choice.")] = 0,
) -> None:
    """Talk with a model that has a chat template; a line is a message, an empty line or end of input stops."""
    if not language.is_decoder_artifact(artifact):
        raise InputError(f"{artifact}: holds no language model; compile a checkpoint folder")
    runner = decoder.started(artifact, threads)
    messages = [{"role": "system", "content": system}] if system else []
    say("an empty line ends the conversation")
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        except EOFError:
            return
        if not line.strip():
            return
        messages.append({"role": "user", "content": line})
        answer = ""
        sampling = language.Sampling(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens)
        for event in runner.stream(messages, sampling):
            sys.stdout.write(event.text)
            sys.stdout.flush()
            answer += event.text
        sys.stdout.write("\n")
        messages.append({"role": "assistant", "content": answer})
