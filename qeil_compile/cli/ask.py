"""`qeil ask ARTIFACT QUESTION` and `qeil evaluate ARTIFACT --task FILE`."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from qeil_compile import asking, language
from qeil_compile.errors import InputError
from qeil_compile.sampling import extract as extractors
from qeil_compile.sampling.live import LiveSource
from qeil_compile.sampling.selector import Inquiry, Selector
from qeil_compile.sampling.source import Verification, ask
from qeil_compile.sampling.verify import ArithmeticVerifier, CommandVerifier

from . import decoder
from .console import options, out, print_json, progress, remark, say, table

_EXTRACTORS = {"number": extractors.number, "boxed": extractors.boxed, "letter": extractors.choice()}

_Form = Annotated[
    str | None,
    typer.Option(
        metavar="chat|TEXT",
        help=r"Prompt around {question}, \n a new line; chat: the model's template, the default where it has one.",
    ),
]


def command(
    artifact: Annotated[Path, typer.Argument(help="Language model written by qeil compile.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    larger: Annotated[
        list[Path] | None, typer.Option(help="A larger model to go on with where this one gives no certificate.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Samples of a model at most.")] = 20,
    delta: Annotated[float, typer.Option(help="Error allowed to a certificate.")] = 0.05,
    joules: Annotated[float | None, typer.Option(min=0, help="Energy that may be spent.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Time that may be spent.")] = None,
    verifier: Annotated[
        str, typer.Option(metavar="COMMAND|arithmetic", help="What checks an answer; see the documentation.")
    ] = "",
    false_accepts: Annotated[
        float, typer.Option(min=0, max=1, help="How often the verifier accepts what is wrong, at most.")
    ] = 0.0,
    extract: Annotated[
        str, typer.Option(metavar="number|boxed|letter|REGEX", help="How an answer is read out of a sample.")
    ] = "number",
    form: _Form = None,
    allow_control: decoder.AllowControl = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sample at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="Of the samples.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each engine; 0: its own choice.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Sample answers in rounds until one is certain enough, checked, or the budget is spent."""
    settings = language.Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens)
    limits = _Limits(k, delta, joules, seconds, false_accepts if verifier else None)
    models = [artifact, *(larger or [])]
    _, source, selector = _opened(models, settings, form, extract, limits, threads, allow_control)
    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        if options.quiet or not console.is_terminal:
            live.stop()
        verdict = ask(
            source, selector, question, verification=_verification(verifier),
            watch=lambda inquiry: live.update(_state(inquiry), refresh=live.is_started),
        )  # fmt: skip
    if as_json:
        print_json(asdict(verdict) | {"reason": verdict.reason.value, "claim": verdict.claim})
        return
    rows = [[a, n] for a, n in sorted(verdict.counts.items(), key=lambda item: -item[1])]
    table("answers", ("answer", "samples [1]"), rows)
    out().print(escape(f"answer: {verdict.answer if verdict.answer is not None else 'none'}"))
    cost = verdict.cost
    say(f"{verdict.reason.value}: {verdict.claim}{f' ({verdict.note})' if verdict.note else ''}")
    drawn = f"{verdict.samples} samples in {verdict.rounds} rounds, {verdict.cancelled} cancelled"
    say(f"{drawn}; {cost.passes:.2f} passes, {cost.seconds:.2f} s (measured), {cost.joules:.2f} J ({cost.label})")
    if verifier:
        say(f"verifier: {verdict.checked} checks, of which {verdict.faults} failed (it raised, hung or gave nonsense)")


@dataclass(frozen=True)
class _Limits:
    """When to stop."""

    k: int
    delta: float
    joules: float | None
    seconds: float | None
    false_accepts: float | None


def _opened(
    artifacts: list[Path], settings: language.Sampling, form: str | None, extract: str, limits: _Limits, threads: int,
    allow_control: bool = False,
) -> tuple[language.Runner, LiveSource, Selector]:  # fmt: skip
    for path in artifacts:
        if not language.is_decoder_artifact(path):
            raise InputError(f"{path}: holds no language model; compile a checkpoint folder")
    if form not in (None, "chat") and "{question}" not in form:
        raise InputError(f"--form {form}: has no {{question}}, which the question takes the place of")
    runners = [decoder.started(path, threads) for path in artifacts]
    if form is None:
        talks = all(getattr(r.tokenizer, "has_template", False) for r in runners)
        form = "chat" if talks else "{question}"
        if talks:
            remark("asked in the model's chat template; --form '{question}' asks as it stands")

    def prompt(question: str) -> Any:
        if form == "chat":
            return [{"role": "user", "content": question}]
        # A shell hands on the two characters that stand for a line break.
        return form.replace("\\n", "\n").replace("{question}", question)

    reader = _EXTRACTORS.get(extract) or extractors.pattern(extract)
    source = asking.open_source(runners, settings, prompt, reader, allow_control)
    joules = inf if limits.joules is None else limits.joules
    seconds = inf if limits.seconds is None else limits.seconds
    selector = asking.default_selector(source, limits.k, limits.delta, joules, seconds, limits.false_accepts)
    return runners[0], source, selector


def _verification(name: str) -> Verification | None:
    if not name:
        return None
    if name == "arithmetic":
        return Verification(ArithmeticVerifier(), by_answer=False)
    # The command runs in an empty folder: files of this one are named by their whole path.
    words = [str(Path(w).absolute()) if Path(w).is_file() else w for w in shlex.split(name)]
    return Verification(CommandVerifier(words))


def _state(inquiry: Inquiry) -> Table:
    """The live table: answers so far, and what was spent."""
    drawn = Table(title=escape(
        f"{len(inquiry.tally)} samples at rung {inquiry.rung}, {inquiry.spent.passes:.2f} passes, "
        f"{inquiry.spent.joules:.2f} J ({inquiry.spent.label})"))  # fmt: skip
    drawn.add_column("answer")
    drawn.add_column("samples", justify="right")
    for answer, count in sorted(inquiry.tally.counts.items(), key=lambda item: -item[1])[:8]:
        drawn.add_row(escape(answer), str(count))
    return drawn


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="Language model written by qeil compile.")],
    task: Annotated[Path, typer.Option(help="GSM8K, SVAMP or ARC file, a .txt for perplexity, or JSON lines.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="One JSON line per question; an interrupted run goes on.")
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions.")] = None,
    larger: Annotated[list[Path] | None, typer.Option(help="A larger model to go on with.")] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Samples of a model at most.")] = 20,
    delta: Annotated[float, typer.Option(help="Error allowed to a certificate.")] = 0.05,
    joules: Annotated[float | None, typer.Option(min=0, help="Energy per question.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Time per question.")] = None,
    verifier: Annotated[str, typer.Option(metavar="COMMAND|arithmetic", help="What checks an answer.")] = "",
    false_accepts: Annotated[float, typer.Option(min=0, max=1, help="Of the verifier, at most.")] = 0.0,
    extract: Annotated[str, typer.Option(metavar="number|boxed|letter|REGEX", help="How answers are read.")] = "number",
    form: _Form = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sample at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="Of the samples.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each engine; 0: its own choice.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Answer the questions of a task; accuracy, samples, joules and IPW over what is finished."""
    questions = asking.load_task(task)
    settings = language.Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens)
    limits = _Limits(k, delta, joules, seconds, false_accepts if verifier else None)
    runner, source, selector = _opened([artifact, *(larger or [])], settings, form, extract, limits, threads)
    with progress() as step:
        results = asking.evaluate(
            questions, runner, source, selector, output, limit=limit, verification=_verification(verifier),
            seen=lambda result, done, total: step(questions.name, done, total),
        )  # fmt: skip
    found = asking.summary(results)
    label = next((r.label for r in results), "measured")
    if as_json:
        print_json(found | {"label": label})
        return
    table(f"{questions.name} ({output})", ("figure", "value [1]"), [[n, f"{v:.4g}"] for n, v in found.items()])
    say(f"joules are {label}, seconds measured; IPJ is accuracy over joules per question, IPW accuracy over mean power")
