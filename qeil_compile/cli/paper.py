"""`qeil bench paper`: the published tables, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qeil_compile import paper
from qeil_compile.errors import OutputError

from .console import print_json, progress, say, table


def command(
    target: Annotated[
        list[str] | None, typer.Option(help=f"Target; repeatable. Default: {', '.join(paper.TARGETS)}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Mean lengths, short ablation: minutes.")] = False,
    family: Annotated[list[str] | None, typer.Option(help="Only this family; repeatable. Default: all seven.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html, report.md, report.json.")
    ] = Path("paper"),
    overwrite: Annotated[bool, typer.Option(help="Replace an existing report.")] = False,
    answers: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Recorded answers to replay; sets the number of samples.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A model that answers here, with --task.")
    ] = None,
    task: Annotated[Path | None, typer.Option(metavar="FILE", help="Questions for --checkpoint.")] = None,
    questions: Annotated[int | None, typer.Option(min=2, help="Questions that models answer here.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Samples of each of those questions.")] = 20,
    price: Annotated[float | None, typer.Option(min=0, help="Price of this machine in any currency, for PPP.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Also run the plans of this machine.")] = False,
    quality: Annotated[bool, typer.Option(help="Let the shipped models answer.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on standard output too.")] = False,
) -> None:
    """Seven families x three workloads x five machines: energy, latency and where every saving comes from."""
    if (output / "report.html").exists() and not overwrite:
        raise OutputError(f"{output}: holds a report already; give another folder, or --overwrite")
    targets = list(target or paper.TARGETS)
    if measure and "host" not in targets:
        targets.append("host")
    settings = paper.Settings(quick, seed, families=tuple(family or ()))
    wanted = paper.Wanted(targets, settings, answers, checkpoint, task, questions, samples, price, measure, quality)
    with progress() as step:
        results = paper.bench(wanted, step)
        step("report", 0, 1)
        written = paper.write(results, output)
        step("report", 1, 1)
    if as_json:
        print_json(results.to_json())
        return
    show(results)
    say(f"wrote {written[0]}, and {len(written) - 1} files beside it")


def show(results: paper.Results) -> None:
    """Shares of the standard, and where they come from."""
    for t in results.paper.targets:
        rows: list[list[Any]] = [
            [s.plan, f"{100 * (s.energy.value - 1):+.1f}", f"{100 * (s.latency.value - 1):+.1f}", f"{s.ipw.value:.2f}",
             s.instances]
            for s in results.paper.shares if s.target == t.name and not s.task
        ]  # fmt: skip
        columns = ("plan", "energy [%]", "latency [%]", "IPW [1]", "instances [1]")
        label = paper.label(results.paper, t.name)
        table(f"{t.name}: over the standard, mean over workloads and families ({label})", columns, rows)
        for line in paper.summary(results.paper, t.name):
            say(line)
    table(
        "quality (answers measured)",
        ("model", "questions", "rule", "accuracy [1]", "samples [1]", "energy [J]", "seconds [s]", "IPJ [1/J]",
         "energy is"),
        [[a.model, f"{a.questions} {a.source}", a.rule,
          f"{a.accuracy.value:.3f}", f"{a.samples:.2f}", f"{a.joules:.3g}",
          f"{a.seconds:.3g}", f"{a.ipj:.3g}", a.label] for a in results.answers],
    )  # fmt: skip
    table(
        "this machine (measured)", ("model", "workload", "plan", "time [s]", "over the first [1]", "cost model [s]"),
        [[m.model, m.task, m.plan, f"{m.seconds[0]:.4g}", f"{m.ratio:.3f}", f"{m.modelled:.4g}"]
         for m in results.measured],
    )  # fmt: skip
