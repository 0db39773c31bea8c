"""Quality, only where a real model really answers: accuracy, coverage and the metrics made of them and of energy.

Each question is first asked all its samples in one batch, for the cascade to learn from the other half of the questions
and their right answers to be as right as the vote of all samples; then the batch and the cascade ask in turns. Seconds
are measured in the turns. Joules are an energy counter's where there is one, else modelled: the passes that ran, at
what one costs, which is the plan's mean power over the time of steps that was measured beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qeil_compile import api
from qeil_compile.asking import open_source
from qeil_compile.asking.evaluate import Question, Task, load_task
from qeil_compile.errors import InputError
from qeil_compile.language import Generation, Runner, Sampling, compile_decoder
from qeil_compile.language.quality import own_text, perplexity
from qeil_compile.models import demo_checkpoint
from qeil_compile.models.reasoner import generate, prompt, reasoner_folder
from qeil_compile.sampling import (
    Interval,
    LiveSource,
    Looks,
    Recorded,
    Sample,
    Selector,
    Settings,
    bootstrap,
    ece,
    ipj,
    ipw,
    learned_selector,
    paired_difference,
    ppp,
)
from qeil_compile.sampling.baselines import SelfConsistency
from qeil_compile.sampling.selector import Inquiry, Verdict
from qeil_compile.sampling.source import ask

Progress = Callable[[str, int, int], None]
#: Tokens of a prompt and of an answer that plans and limits are made for.
_PROMPT, _ANSWER = 96, 224
#: Questions: one half to learn from, one to be asked.
_LEAST = 2
_ENGINES = "onnxruntime:CPU,openvino:CPU"


@dataclass(frozen=True)
class Answers:
    """One model under one rule, per question. `label` is that of the joules; seconds and answers are measured.

    `coverage`: share of questions of which some drawn sample is right, `coverage_one` that of one sample. `ece` is None
    where nothing more than one sample was spent, `ppp` where no price was given.
    """

    model: str
    source: str
    rule: str
    questions: int
    accuracy: Interval
    difference: Interval
    coverage: float
    coverage_one: float
    samples: float
    joules: float
    seconds: float
    label: str
    ipw: float
    ipj: float
    ece: float | None
    ppp: float | None

    @property
    def watts(self) -> float:
        """Mean power over the run."""
        return self.joules / self.seconds


@dataclass(frozen=True)
class Text:
    """A model that writes text: perplexity of what it wrote itself at temperature 1, in `tokens` tokens (measured)."""

    model: str
    perplexity: float
    tokens: int


def demo_questions(count: int, seed: int = 2027) -> list[Question]:
    """Word problems of forms that the reasoner never saw in its training."""
    made = [generate("test", seed=seed, index=i) for i in range(count)]
    return [Question(str(i), p.question, str(p.answer), {}) for i, p in enumerate(made)]


def demo_answers(count: int, samples: int, price: float | None, progress: Progress) -> list[Answers]:
    """The shipped reasoner."""
    with reasoner_folder() as folder:
        runner = _runner(folder, samples, progress)
    task = Task("word problems of unseen forms", "numbers", demo_questions(count))
    return answers(runner, task, prompt, samples, price, progress)


def own_task(file: Path) -> Task:
    """Questions of one's own. Raises `InputError` where they cannot be read, or have no numbers for answers."""
    task = load_task(file)
    if task.kind != "numbers":
        raise InputError(f"task {file}: is of kind {task.kind}, expected questions whose answers are numbers")
    if len(task.questions) < _LEAST:
        raise InputError(f"task {file}: found {len(task.questions)} questions, expected at least {_LEAST}: the cascade "
                         "learns from other ones than it is asked")  # fmt: skip
    return task


def checkpoint_answers(
    folder: Path, task: Task, count: int, samples: int, price: float | None, progress: Progress
) -> list[Answers]:  # fmt: skip
    """A checkpoint on the first `count` of one's own questions. Raises as `compile_decoder` does."""
    short = Task(task.name, task.kind, list(task.questions)[:count])
    return answers(_runner(folder, samples, progress), short, lambda question: question, samples, price, progress)


def demo_text() -> Text:
    """stories260K on this machine."""
    with demo_checkpoint() as path:
        runner = Runner(compile_decoder(path, Generation(8, 256, 4), _settings()))
    session = runner.session
    value, tokens = perplexity(session, own_text(session, 1))
    return Text(runner.compiled.name, value, tokens)


def _settings() -> api.Settings:
    return api.Settings(target=_ENGINES, failover=False)


def _runner(folder: Path, samples: int, progress: Progress) -> Runner:
    compiled = compile_decoder(folder, Generation(_PROMPT, _ANSWER, samples), _settings(), progress=progress)
    return Runner(compiled)


def answers(
    runner: Runner, task: Task, form: Callable[[str], object], samples: int, price: float | None, progress: Progress
) -> list[Answers]:  # fmt: skip
    """At least two questions with all samples in one batch, and by the cascade. `price` is that of the machine, in any
    currency."""
    source = open_source([runner], Sampling(temperature=0.8, max_tokens=_ANSWER), form, task.extract)
    fixed = Selector(Looks((samples,), source.price(0)), [SelfConsistency(samples)])
    log = [r for ((_, r),) in _asked(source, task, lambda k: [fixed], "all samples in one batch", progress)]
    known = any(np.isfinite(r.sample(i).feature("arithmetic")) for r in log for i in range(len(r)))
    # A chain whose equations hold says more than all log-probabilities, where there are equations.
    settings = Settings(source.price(0), features=["arithmetic"] if known else None, like_vote=True)
    halves = [learned_selector("cascade", log[1 - part :: 2], samples, settings) for part in (0, 1)]
    turns = list(_asked(source, task, lambda k: [fixed, halves[k % 2]], "batch and cascade in turns", progress))
    first, second = ([turn[i] for turn in turns] for i in (0, 1))
    marks = np.array([[v.answer == q.answer for (v, _), q in zip(of, task.questions, strict=True)]
                      for of in (first, second)], dtype=float)  # fmt: skip
    one = float(np.mean([np.mean(r.correct or (0.0,)) for r in log]))
    single = source.price(0).cost(1).joules
    name = runner.compiled.name
    return [
        _summary(name, task.name, rule, of, mark, marks[0], one, single, price)
        for rule, of, mark in (("all samples in one batch", first, marks[0]), ("EAC + ARDE + CSVET", second, marks[1]))
    ]


def _asked(
    source: LiveSource, task: Task, selectors: Callable[[int], Sequence[Selector]], name: str, progress: Progress
) -> Iterator[list[tuple[Verdict, Recorded]]]:  # fmt: skip
    for k, question in enumerate(task.questions):
        progress(name, k, len(task.questions))
        found = []
        for selector in selectors(k):
            source.forget()
            seen: list[Inquiry] = []
            verdict = ask(source, selector, question.text, watch=seen.append)
            found.append((verdict, _recorded(question, seen[-1].tally.samples if seen else [])))
        yield found
    progress(name, len(task.questions), len(task.questions))


def _recorded(question: Question, drawn: Sequence[Sample]) -> Recorded:
    """The samples of a question in the form of a log."""
    names = dict.fromkeys(n for s in drawn for n in s.features)
    columns = {n: [s.feature(n) for s in drawn] for n in names} | {"tok": [s.tokens for s in drawn]}
    answers_ = tuple(s.answer for s in drawn)
    return Recorded(question.pid, question.answer, answers_, tuple(float(a == question.answer) for a in answers_),
                    columns)  # fmt: skip


def _summary(
    model: str, source: str, rule: str, asked: Sequence[tuple[Verdict, Recorded]], marks: np.ndarray,
    fixed: np.ndarray, one: float, single: float, price: float | None,
) -> Answers:  # fmt: skip
    verdicts = [v for v, _ in asked]
    many = float(np.mean([max(r.correct or (0.0,)) for _, r in asked]))
    joules, seconds = (float(np.mean([getattr(v.cost, n) for v in verdicts])) for n in ("joules", "seconds"))
    accuracy = bootstrap(marks)
    label = verdicts[0].cost.label
    gained = ece(one, many, single, joules) if joules > single else None
    worth = ppp(float(marks.sum()), price, joules / seconds) if price else None
    return Answers(
        model, source, rule, len(verdicts), accuracy, paired_difference(marks, fixed), many, one,
        float(np.mean([v.samples + v.cancelled for v in verdicts])), joules, seconds, label,
        ipw(accuracy.value, joules / seconds), ipj(accuracy.value, joules), gained, worth,
    )  # fmt: skip
