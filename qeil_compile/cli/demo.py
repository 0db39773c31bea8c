"""`qeil demo`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from qeil_compile import api

from .compile import show
from .console import progress, say


def command(
    steps: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 100,
) -> None:
    """Compile a small trained model for this machine and for several devices, verify both, and write a story."""
    from qeil_compile import demo

    with tempfile.TemporaryDirectory(prefix="qeil-demo-") as folder:
        plans: list[tuple[api.Compiled, Path]] = []
        with progress() as step:
            path = demo.build(Path(folder), step, lambda compiled, at: plans.append((compiled, at)))
        for compiled, at in plans:
            show(compiled)
            say(f"{at.stem}: saved, loaded again, outputs agree with the unpartitioned model")
        say(f"a story, token by token, from the plan of {len(plans[-1][0].plan.stages)} stages:")
        story = demo.write_story(path, steps, _stream)
    sys.stdout.write("\n")
    verdict = "equal to" if story.equal else "DIFFERENT from"
    say(
        f"{len(story.tokens) - 1} tokens, {story.tokens_per_second:.1f} tokens/s ({story.label}), {verdict} "
        "those of the unpartitioned model in torch"
    )
    with progress() as step:
        solved = demo.answer(step)
    found = solved.verdict
    say(f"a word problem that the reasoner has never seen, on {', '.join(solved.placements)}:")
    say(solved.question)
    say(
        f"answer {found.answer} (right: {solved.gold}) after {found.samples} samples in {found.rounds} rounds, "
        f"{found.cost.joules:.2f} J ({found.cost.label}); {found.reason.value}: {found.claim}"
    )
    say(
        f"next: qeil compile demo -o demo.qeil --target {demo.PLATFORM} --objective energy; qeil explain demo.qeil; "
        "qeil devices"
    )


def _stream(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
