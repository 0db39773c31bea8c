"""A task through a model: one JSON line per question, written as it is finished; an interrupted run goes on.

Tasks are files of questions with answers: GSM8K's JSON lines, SVAMP's, ARC's multiple choice, a text for perplexity, or
any JSON lines with `question` and `answer`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import InputError, OutputError
from qeil_compile.generation import Tokenizer
from qeil_compile.language import Runner
from qeil_compile.language.quality import perplexity, windows
from qeil_compile.sampling.choice import choose_option
from qeil_compile.sampling.extract import Extractor, canonical, number
from qeil_compile.sampling.live import LiveSource
from qeil_compile.sampling.metrics import ipj, ipw
from qeil_compile.sampling.samples import Stop
from qeil_compile.sampling.selector import Selector
from qeil_compile.sampling.source import Verification, ask
from qeil_compile.untrusted import parse_json, read_file

_OPTION = re.compile(r"Answer(\d+):\s*(.*?)(?=\s*Answer\d+:|\s*$)", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One question. `options` are those of multiple choice, by the name that the answer has."""

    pid: str
    text: str
    answer: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """Questions of one file. `kind` is numbers (sampling), choice (options are scored), or text (perplexity)."""

    name: str
    kind: str
    questions: Sequence[Question]
    extract: Extractor = number


@dataclass(frozen=True)
class Result:
    """What came of one question. `correct` is None for a text, whose `answer` is its perplexity."""

    pid: str
    gold: str
    answer: str | None
    correct: bool | None
    reason: str
    samples: int
    counts: Mapping[str, int]
    passes: float
    joules: float
    seconds: float
    label: str
    note: str = ""


#: Types of the fields of a result, as JSON has them.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "pid": (str,), "gold": (str,), "answer": (str, type(None)), "correct": (bool, type(None)), "reason": (str,),
    "samples": (int,), "counts": (dict,), "passes": (int, float), "joules": (int, float), "seconds": (int, float),
    "label": (str,), "note": (str,),
}  # fmt: skip
#: Bytes of a task or of results.
_LIMIT = 1 << 30


def load_task(path: Path, name: str = "") -> Task:
    """A task from its file; what it is follows from its content. Raises `InputError` naming the entry that is wrong."""
    try:
        text = read_file(path, _LIMIT).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"task {path}: cannot be read ({error})") from error
    name = name or path.stem
    if path.suffix == ".txt":
        return Task(name, "text", [Question("0", text, "", {})])
    rows = _rows(path, text)
    questions = [_question(path, k, row) for k, row in enumerate(rows)]
    return Task(name, "choice" if questions and questions[0].options else "numbers", questions)


def _rows(path: Path, text: str) -> list[Mapping[str, Any]]:
    try:
        whole = text.lstrip().startswith("[")
        rows = parse_json(text, "any") if whole else [parse_json(x, "any") for x in text.split("\n") if x.strip()]
    except ValueError as error:
        raise InputError(f"task {path}: is neither a JSON list nor JSON lines ({error})") from error
    wrong = next((k for k, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None or not rows:
        what = f"entry {wrong} is no object with a question" if rows else "there is no question in it"
        raise InputError(f"task {path}: {what}")
    return list(rows)


def _question(path: Path, k: int, row: Mapping[str, Any]) -> Question:
    if "instruction" in row and "answer" in row:  # ARC as instructions, options numbered from 1
        stem, _, rest = str(row["instruction"]).partition("\n\nAnswer1:")
        listed = f"Answer1:{rest.partition('Answer format')[0]}"
        options = {f"answer{n}": text.strip() for n, text in _OPTION.findall(listed)}
        question = stem.removeprefix("Please choose the correct answer to the question:").strip()
        return Question(str(k), question, str(row["answer"]), options)
    if "Body" in row and "Question" in row:  # SVAMP
        body = str(row["Body"]).strip()
        return Question(str(row.get("ID", k)), f"{body}{'' if body.endswith('.') else '.'} {row['Question']}",
                        canonical(str(row.get("Answer", ""))) or "", {})  # fmt: skip
    if "question" in row and "answer" in row:
        answer = str(row["answer"])
        gold = answer.rpartition("####")[2].strip() if "####" in answer else answer.strip()
        return Question(str(row.get("pid", row.get("id", k))), str(row["question"]), canonical(gold) or gold,
                        {str(n): str(o) for n, o in dict(row.get("options") or {}).items()})  # fmt: skip
    raise InputError(f"task {path}: entry {k} has {', '.join(list(row)[:6])}, expected question and answer")


def read_results(path: Path) -> list[Result]:
    """Finished questions of a log. A last line that an interruption cut is left out. Raises `InputError`."""
    if not path.exists():
        return []
    found = []
    try:
        lines = read_file(path, _LIMIT).decode("utf-8", "replace").removesuffix("\n").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    for k, line in enumerate(lines):
        try:
            found.append(Result(**_typed(parse_json(line, "any"))))
        except (ValueError, TypeError) as error:
            if k == len(lines) - 1:
                break
            raise InputError(f"{path}: line {k + 1} is no result ({error}); choose another file") from error
    return found


def _typed(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a `Result`, each of its type. Raises `TypeError`."""
    for name, kinds in _KINDS.items():
        if name in row and type(row[name]) not in kinds:
            raise TypeError(f"{name} is {row[name]!r:.40}")
    return row


def evaluate(
    task: Task, runner: Runner, source: LiveSource, selector: Selector, log: Path, *, limit: int | None = None,
    verification: Verification | None = None,
    seen: Callable[[Result, int, int], object] = lambda result, done, total: None,
) -> list[Result]:  # fmt: skip
    """Answer the questions that the log does not have yet; each is written before the next begins.

    Raises `OutputError` where the log cannot be written, `InputError` where it is one of another task.
    """
    done = read_results(log)
    questions = list(task.questions)[: limit or None]
    known = {q.pid for q in questions}
    stranger = next((r.pid for r in done if r.pid not in known and limit is None), None)
    if stranger is not None:
        raise InputError(f"{log}: has question {stranger}, which task {task.name} has not; choose another file")
    finished = {r.pid for r in done}
    with _Log(log, done) as out:
        for k, question in enumerate(questions):
            if question.pid in finished:
                continue
            result = _answer(task, question, runner, source, selector, verification)
            out.add(result)
            done.append(result)
            seen(result, k + 1, len(questions))
    return done


def _answer(
    task: Task, question: Question, runner: Runner, source: LiveSource, selector: Selector,
    verification: Verification | None,
) -> Result:  # fmt: skip
    if task.kind == "numbers":
        verdict = ask(source, selector, question.text, verification=verification)
        cost = verdict.cost
        right = verdict.answer == question.answer
        return Result(question.pid, question.answer, verdict.answer, right, verdict.reason.value, verdict.samples,
                      verdict.counts, cost.passes, cost.joules, cost.seconds, cost.label, verdict.note)  # fmt: skip
    clock = _Clock(source)
    if task.kind == "choice":
        stop = _choice(question, runner)
        right = stop.answer == question.answer
        return Result(question.pid, question.answer, stop.answer, right, stop.reason.value, 0, {}, 0.0, *clock.spent(),
                      stop.note)  # fmt: skip
    value, note = _perplexity(question, runner)
    return Result(question.pid, "", f"{value:.6g}", None, "TEXT", 0, {}, 0.0, *clock.spent(), note)


class _Clock:
    """Joules and seconds from now on, of the first rung: by its meter, else by the plan's mean power."""

    def __init__(self, source: LiveSource) -> None:
        self.rung = source.rungs[0]
        self.started = time.perf_counter()
        self.before = self.rung.meter() if self.rung.meter is not None else 0.0

    def spent(self) -> tuple[float, float, str]:
        """Joules, seconds, and how the joules were found."""
        seconds = time.perf_counter() - self.started
        if self.rung.meter is not None:
            return self.rung.meter() - self.before, seconds, "measured"
        price = self.rung.price
        return seconds * price.joules / price.seconds, seconds, price.label


def _tokenizer(runner: Runner) -> Tokenizer:
    if runner.tokenizer is None:
        raise InputError(f"model {runner.compiled.name} has no tokenizer, which a task needs")
    return runner.tokenizer


def _choice(question: Question, runner: Runner) -> Stop:
    """The options' probabilities after the question, all in one pass: nothing is sampled."""
    tokenizer, session = _tokenizer(runner), runner.session
    head = tokenizer.encode(f"Question: {question.text}\nAnswer:")
    tails = {name: tokenizer.encode(f" {text}", special=False) for name, text in question.options.items()}
    found = session.score([[*head, *tail][-session.context :] for tail in tails.values()])
    scores = {n: float(s[-len(t) :].sum()) for (n, t), s in zip(tails.items(), found, strict=True)}
    return choose_option(scores)[0]


def _perplexity(question: Question, runner: Runner) -> tuple[float, str]:
    """Of a text, in windows, and what it is over."""
    texts = windows(_tokenizer(runner).encode(question.text), runner.session.context)
    value, tokens = perplexity(runner.session, texts)
    return value, f"perplexity over {tokens} tokens in windows of {max(map(len, texts))}"


class _Log:
    """Whole lines, on the disk before the next question begins. A line that was cut is replaced."""

    def __init__(self, path: Path, done: Sequence[Result]) -> None:
        self.path, self.done = path, done

    def __enter__(self) -> _Log:
        try:
            kept = "".join(_line(r) for r in self.done)
            if self.path.exists() and self.path.read_text(encoding="utf-8") != kept:
                temporary = self.path.with_name(f".{self.path.name}.tmp")
                temporary.write_text(kept, encoding="utf-8")
                temporary.replace(self.path)
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
        return self

    def add(self, result: Result) -> None:
        try:
            self.file.write(_line(result))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def __exit__(self, *error: object) -> None:
        self.file.close()


def _line(result: Result) -> str:
    return json.dumps(asdict(result), ensure_ascii=False) + "\n"


def summary(results: Sequence[Result]) -> dict[str, float]:
    """Accuracy, and means per question of samples, passes, joules and seconds; IPJ where there are joules, mean power
    and IPW where they were measured like the seconds."""
    marked = [r for r in results if r.correct is not None]
    found: dict[str, float] = {"questions": float(len(results))}
    if marked:
        found["accuracy"] = sum(bool(r.correct) for r in marked) / len(marked)
    for name in ("samples", "passes", "joules", "seconds"):
        found[name] = float(np.mean([getattr(r, name) for r in results])) if results else 0.0
    if marked and found["joules"] > 0:
        found["IPJ"] = ipj(found["accuracy"], found["joules"])
        if found["seconds"] > 0 and all(r.label == "measured" for r in results):
            found["watts"] = found["joules"] / found["seconds"]
            found["IPW"] = ipw(found["accuracy"], found["watts"])
    return found

