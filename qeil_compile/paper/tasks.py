"""The three workloads: how long prompts and answers are, how many samples are drawn, what there is to choose from.

Lengths are those of the public evaluation sets (`data/lengths.json`, made by `paper.lengths`): questions sorted
by length and cut into parts of equal size. Answers that a cascade looks at come from a recorded log of a real model,
never from the family that is priced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

from qeil_compile.sampling import Recorded, read_log

#: 150 questions of GSM8K, five samples of gpt-4.1-mini each (data/PROVENANCE.md).
SHIPPED_LOG = "gsm8k150_gpt-4.1-mini_k5.jsonl.gz"
#: Samples of a question where no log says otherwise: as many as the shipped log has.
SAMPLES = 5
#: Options of a question of ARC-Challenge.
OPTIONS = 4


@dataclass(frozen=True)
class Part:
    """Questions of like length: their share of all, tokens of the prompt, tokens of the answer."""

    share: float
    prompt: int
    answer: int


@dataclass(frozen=True)
class Task:
    """One workload: `samples` per question in the fixed batch, what to do without it.

    `kind`: "vote" - answers are voted on, and a cascade may stop early; "options" - the listed options can be scored,
    nothing needs to be sampled; "text" - free text has no answer to vote on, all samples are drawn.
    """

    name: str
    kind: str
    samples: int
    parts: tuple[Part, ...]
    mean: Part

    @property
    def options(self) -> int:
        """Options that are scored in place of sampling; 0 where there are none."""
        return OPTIONS if self.kind == "options" else 0

    def coarse(self) -> Task:
        """The same with one part of mean lengths."""
        return replace(self, parts=(self.mean,))


_KINDS = {"WikiText-103": "text", "GSM8K": "vote", "ARC-Challenge": "options"}


def tasks(samples: int = SAMPLES) -> tuple[Task, ...]:
    """All three, with `samples` per question."""
    data = json.loads(files(__package__).joinpath("data/lengths.json").read_text("utf-8"))
    found = []
    for name, kind in _KINDS.items():
        rows = data[name]["parts"]
        parts = tuple(Part(1 / len(rows), r["prompt"], r["answer"]) for r in rows)
        mean = data[name]["mean"]
        found.append(Task(name, kind, samples, parts, Part(1.0, mean["prompt"], mean["answer"])))
    return tuple(found)


def answers_log(path: Path | None = None) -> Sequence[Recorded]:
    """Recorded answers: a file of one's own, or the shipped ones. Raises `InputError`."""
    if path is not None:
        return read_log(path)
    with as_file(files(__package__).joinpath(f"data/{SHIPPED_LOG}")) as shipped:
        return read_log(shipped)
