"""One call for the whole bench, and its results as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qeil_compile import api
from qeil_compile.errors import InputError
from qeil_compile.output import replacing

from . import measure, quality, report, run
from .cascade import Log
from .environment import environment
from .report import Results
from .run import Progress, Settings
from .tasks import answers_log, tasks

#: Questions that the shipped reasoner is asked, and samples of each.
QUESTIONS, SAMPLES = 60, 20
QUICK_QUESTIONS = 16


@dataclass(frozen=True)
class Wanted:
    """What the bench is asked for beside its settings.

    `answers`: a log to replay in place of the shipped one. `checkpoint` with `task`: a model and questions of one's
    own, of which the first `questions` are asked `samples` each (the shipped reasoner is asked as many). `price` of the
    machine, in any currency, for PPP. `measure`: also run the plans of this machine.
    """

    targets: Sequence[str] = run.TARGETS
    settings: Settings = field(default_factory=Settings)
    answers: Path | None = None
    checkpoint: Path | None = None
    task: Path | None = None
    questions: int | None = None
    samples: int = SAMPLES
    price: float | None = None
    measure: bool = False
    quality: bool = True


def bench(wanted: Wanted, progress: Progress = lambda step, done, total: None) -> Results:
    """Everything that was asked for. Raises `TargetError`, `InputError`, `ModelError`."""
    if (wanted.checkpoint is None) != (wanted.task is None):
        raise InputError("checkpoint and task belong together: give both, or neither")
    # What is wrong with them is told before the minutes of the plans.
    own = None if wanted.task is None else quality.own_task(wanted.task)
    targets = [api.find_target(t) for t in dict.fromkeys(wanted.targets)]
    log = Log(answers_log(wanted.answers))
    work = tasks(log.samples)
    settings = wanted.settings
    paper = run.run(targets, run.quick(work) if settings.quick else work, log, settings, progress)
    count = wanted.questions or (QUICK_QUESTIONS if settings.quick else QUESTIONS)
    answers = list(quality.demo_answers(count, wanted.samples, wanted.price, progress)) if wanted.quality else []
    texts = [quality.demo_text()] if wanted.quality else []
    if wanted.checkpoint is not None and own is not None:
        answers += quality.checkpoint_answers(wanted.checkpoint, own, count, wanted.samples, wanted.price, progress)
    measured, left = measure.measure(paper.instances, progress) if wanted.measure else ([], [])
    return Results(paper, work, environment(), answers, texts, measured, left)


def write(results: Results, folder: Path) -> list[Path]:
    """`report.html`, `report.json`, and `report.md` with its figures beside it. Raises `OutputError`."""
    made = report.document(results)
    text, pictures = made.markdown("figures")
    whole: dict[str, bytes] = {
        "report.html": made.html().encode(),
        "report.md": text.encode(),
        "report.json": (json.dumps(results.to_json(), indent=1, allow_nan=False) + "\n").encode(),
        **{f"figures/{name}": data for name, data in pictures.items()},
    }
    written = []
    for name, data in whole.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        written.append(path)
    return written
