"""The row of selection.py for which a model answers: the reasoner's compiled plan on problems of unseen forms."""

from __future__ import annotations

import sys
from typing import Any

from common import Report

from qeil_compile.paper.quality import Answers, demo_answers

SAMPLES = 20


def demo(args: Any) -> Report:
    """All samples in one batch, then the cascade that learned from the other half of the questions; joules of each."""
    found = demo_answers(
        8 if args.quick else 300, SAMPLES, None, lambda name, done, total: None if done % 50 else _say(name, done)
    )
    batch = found[0]
    report = Report("demo", f"the reasoner, {SAMPLES} samples at most (answers measured, joules {batch.label})", (
        "rule", "questions", "accuracy [%]", "95 %", "over the batch, 95 % [%]", "pass@1 [%]", "some sample right [%]",
        "samples", "joules", "joules over the batch's", "seconds", "seconds over the batch's", "watts", "IPW",
        "IPJ"))  # fmt: skip
    report.rows = [_row(each, batch) for each in found]
    report.notes = [
        "batch and cascade ask in turns. Seconds: measured, prompts included. A question's joules, where no counter of "
        "energy can be read: the passes that ran, at the plan's mean power (modelled) over the time of one (measured "
        "beforehand)",
    ]
    return report


def _row(found: Answers, batch: Answers) -> dict[str, Any]:
    accuracy, gap = found.accuracy, found.difference
    return {
        "rule": found.rule, "questions": found.questions, "accuracy [%]": 100 * accuracy.value,
        "95 %": f"{100 * accuracy.low:.0f} to {100 * accuracy.high:.0f}",
        "over the batch, 95 % [%]": f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}",
        "pass@1 [%]": 100 * found.coverage_one, "some sample right [%]": 100 * found.coverage,
        "samples": found.samples, "joules": found.joules, "joules over the batch's": found.joules / batch.joules,
        "seconds": found.seconds, "seconds over the batch's": found.seconds / batch.seconds,
        "watts": found.watts, "IPW": found.ipw, "IPJ": found.ipj,
    }  # fmt: skip


def _say(name: str, done: int) -> None:
    print(f"{name}: {done}", file=sys.stderr, flush=True)
