"""`qeil replay LOG`: what rules would have answered on recorded samples, and at what price."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qeil_compile import sampling
from qeil_compile.errors import InputError
from qeil_compile.sampling import plots

from . import arguments
from .console import print_json, progress, say, table

#: Rules that any log can be asked.
_USUAL = ("self-consistency", "adaptive", "esc", "lead", "cert", "eac")


def command(
    log: Annotated[Path, typer.Argument(help="Lines of JSON, plain or gzip: pid, gold, ans[k], ok[k], features.")],
    rule: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:NUMBER]", help="Rule; may be repeated; --rules lists them.")
    ] = None,
    rho: Annotated[float, typer.Option(min=0, help="What a further sample of a round adds, in passes.")] = 0.1,
    looks: Annotated[
        str, typer.Option(metavar="N,...", help="Sizes at which rules look; empty: after every sample.")
    ] = "",
    joules_per_pass: Annotated[float, typer.Option(min=0, help="Price of a pass in joules.")] = 1.0,
    seconds_per_pass: Annotated[float, typer.Option(min=0, help="Price of a pass in seconds.")] = 1.0,
    joules: Annotated[float, typer.Option(min=0, help="Hard cap of a question in joules; 0: none.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0, help="Hard cap of a question in seconds; 0: none.")] = 0.0,
    orders: Annotated[int, typer.Option(min=0, help="Random orders of the samples; 0: the log's own.")] = 4,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the questions for rules that learn.")] = 2,
    feature: Annotated[list[str] | None, typer.Option(help="Feature that ARDE may use; may be repeated.")] = None,
    labels: Annotated[bool, typer.Option(help="Whether rules may learn from marks of other questions.")] = True,
    like_vote: Annotated[
        bool, typer.Option("--like-vote", help="eac-arde and cascade need only be as right as the plain vote of all.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of orders and folds.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write plots there.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Replay recorded samples; rules that learn are asked only questions that they did not learn from."""
    if rules:
        table("rules", ("rule", "what it is"), list(sampling.RULES.items()))
        return
    questions = sampling.read_log(log)
    settings = sampling.Settings(
        sampling.Price(rho, joules_per_pass, seconds_per_pass), arguments.numbers("--looks", looks) or None,
        sampling.Caps(joules or math.inf, seconds or math.inf), feature, labels, orders, folds, seed, like_vote,
    )  # fmt: skip
    wanted = rule or list(_USUAL)
    replays = []
    with progress() as step:
        for i, name in enumerate(wanted):
            step("replay", i, len(wanted))
            replays.append(sampling.run_rule(questions, name, settings))
    coverage = _coverage(questions)
    if plot is not None:
        _plots(questions, replays, coverage, plot)
    if as_json:
        data = {"log": str(log), "questions": len(questions), "rho": rho, "label": "modelled", "orders": orders,
                "coverage": coverage, "rules": [r.summary() for r in replays]}  # fmt: skip
        print_json(_finite(data))
        return
    rows = [_row(r.summary(), settings) for r in replays]
    title = f"{log.name}: {len(questions)} questions, rho {rho:g} (passes, joules and seconds are modelled)"
    table(title, ("rule", "accuracy [%]", "95 %", "not the full vote [%]", "samples [1]", "passes [1]", "joules [J]",
                  "IPJ [1/J]", "IPW [1/W]", "ended by"), rows)  # fmt: skip
    if coverage:
        say(f"pass@1 {coverage['pass@1']:.1%}, pass@{coverage['k']} {coverage['pass@k']:.1%}" + (
            f"; coverage law {coverage['law']}" if "law" in coverage else ""))  # fmt: skip
    if plot is not None:
        say(f"wrote plots to {plot}")


def _row(found: dict[str, Any], settings: sampling.Settings) -> list[str]:
    low, high = found["accuracy 95 %"]
    ipj, accuracy = found["IPJ (modelled)"], found["accuracy"]
    watts = settings.price.joules / settings.price.seconds if settings.price.seconds else 0.0
    known = math.isfinite(accuracy)
    return [
        found["rule"], f"{accuracy:.1%}"[:-1] if known else "-", f"{low:.1%} to {high:.1%}" if known else "-",
        f"{found['disagreement']:.1%}"[:-1], f"{found['samples']:.2f}", f"{found['passes']:.3f}",
        f"{found['joules (modelled)']:.4g}", "-" if ipj is None else f"{ipj:.4g}",
        f"{sampling.ipw(accuracy, watts):.4g}" if known and watts else "-",
        ", ".join(f"{n} {c}" for n, c in sorted(found["reasons"].items(), key=lambda p: -p[1])),
    ]  # fmt: skip


def _coverage(questions: list[sampling.Recorded]) -> dict[str, Any]:
    """pass@1 and pass@k, and the law where it can be fitted; empty where nothing is marked."""
    if any(q.correct is None for q in questions):
        return {}
    k = min(map(len, questions))
    marks = np.array([q.correct[:k] for q in questions if q.correct is not None])
    found: dict[str, Any] = {"k": k}
    for name, size in (("pass@1", 1), ("pass@k", k)):
        found[name] = float(np.mean([sampling.pass_at_k(k, round(m.sum()), size) for m in marks]))
    try:
        law = sampling.fit_coverage([marks], rounds=100)
    except InputError:
        return found
    found["law"] = (
        f"C(S) = 1 - exp(-{law.alpha.value:.4g} S^{law.b_s.value:.3g}), 95 %: alpha {law.alpha.low:.3g} to "
        f"{law.alpha.high:.3g}, exponent {law.b_s.low:.3g} to {law.b_s.high:.3g}, deviation up to {law.error:.1%}"
    )
    return found


def _plots(
    questions: list[sampling.Recorded], replays: list[sampling.Replay], coverage: dict[str, Any], folder: Path
) -> None:  # fmt: skip
    if coverage:
        plots.plot_accuracy(replays, folder / "accuracy_passes.png")
        plots.plot_accuracy(replays, folder / "accuracy_joules.png", "joules")
        plots.plot_coverage(questions, folder / "coverage.png")
    plots.plot_evidence(plots.closest(questions), folder / "evidence.png")


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
