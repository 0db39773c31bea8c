"""Questions to a compiled model: rounds, certificates, verifiers, budgets, two rungs, tasks that go on."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from qeil_compile.api import Settings
from qeil_compile.asking import default_selector, evaluate, load_task, open_source, read_results, summary
from qeil_compile.cli import main
from qeil_compile.errors import InputError
from qeil_compile.language import Generation, Runner, Sampling, compile_decoder
from qeil_compile.sampling.extract import pattern
from qeil_compile.sampling.samples import Reason
from qeil_compile.sampling.source import Verification, ask

STORIES = "models/data/stories260K/stories260K.bin"
#: What the story model goes on with is nearly always the same name.
NAMED = "Once upon a time, there was a little girl named"
#: The first word of a sample.
WORD = pattern(r"^\W*(\w+)")
DRAWS = Sampling(temperature=0.9, max_tokens=6)


@pytest.fixture(scope="module")
def runner() -> Runner:
    settings = Settings(target="openvino:CPU", measure=False, threads=1, failover=False)
    return Runner(compile_decoder(STORIES, Generation(prompt=32, tokens=16, samples=8), settings))


def test_a_certain_answer_ends_the_sampling(runner: Runner) -> None:
    source = open_source([runner], DRAWS, extract=WORD)
    verdict = ask(source, default_selector(source, k=60, delta=0.05), NAMED)
    assert verdict.answer == "Lily" and verdict.reason is Reason.CERT
    assert verdict.samples < 40 and sum(verdict.counts.values()) <= verdict.samples
    assert verdict.cost.joules > 0 and verdict.cost.label in ("measured", "modelled")
    assert verdict.cost.seconds > 0 and verdict.cost.passes > 0


def test_a_price_is_measured(runner: Runner) -> None:
    price = open_source([runner], DRAWS).price(0)
    assert price.seconds > 0 and price.joules > 0 and 0 <= price.rho < 2


def test_no_round_begins_that_the_budget_does_not_hold(runner: Runner) -> None:
    source = open_source([runner], DRAWS, extract=WORD)
    joules = 1.5 * source.price(0).joules
    verdict = ask(source, default_selector(source, k=60, joules=joules), NAMED)
    assert verdict.reason is Reason.BUDGET and verdict.samples < 40
    nothing = ask(source, default_selector(source, k=60, joules=0.0), NAMED)
    assert nothing.answer is None and nothing.samples == 0


def test_a_verifier_ends_the_sampling(runner: Runner) -> None:
    source = open_source([runner], DRAWS, extract=WORD)
    chosen = default_selector(source, k=20, false_accepts=0.0)
    check = Verification(lambda question, sample: sample.answer == "Lily")
    verdict = ask(source, chosen, NAMED, verification=check)
    assert verdict.reason is Reason.VERIFIED and verdict.answer == "Lily" and verdict.samples <= 4

    def broken(question: object, sample: object) -> bool:
        raise RuntimeError("out of order")

    verdict = ask(source, chosen, NAMED, verification=Verification(broken))
    assert verdict.answer == "Lily" and verdict.faults > 0


def test_a_second_rung_takes_over(runner: Runner) -> None:
    """The first has no answers that can be read."""
    source = open_source([runner, runner], DRAWS, extract=WORD)
    source.rungs[0].sampling = Sampling(temperature=0.9, max_tokens=1, stop_tokens=frozenset(range(512)))
    source.extract = lambda text: WORD(text) if len(text.strip()) > 2 else None
    verdict = ask(source, default_selector(source, k=6, delta=0.4), NAMED)
    assert verdict.rung in (0, 1) and verdict.samples > 0
    certain = ask(source, default_selector(source, k=30), NAMED)
    assert certain.answer == "Lily"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [{"question": NAMED, "answer": "Lily"}, {"question": "Once upon a time", "answer": "#### 12"},
            {"question": "Lily and", "answer": "3"}]  # fmt: skip
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def test_an_interrupted_task_goes_on_and_loses_nothing(runner: Runner, task: Path, tmp_path: Path) -> None:
    source = open_source([runner], DRAWS, extract=WORD)
    selector, log, loaded = default_selector(source, k=8), tmp_path / "log.jsonl", load_task(task)
    seen: list[str] = []

    def interrupt(result: object, done: int, total: int) -> None:
        seen.append(result.pid)  # type: ignore[attr-defined]
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(loaded, runner, source, selector, log, seen=interrupt)
    assert [r.pid for r in read_results(log)] == ["0", "1"]
    log.write_text(log.read_text() + '{"pid": "2", "go')  # a line that was cut
    results = evaluate(loaded, runner, source, selector, log, seen=lambda r, d, t: seen.append(r.pid))
    assert seen == ["0", "1", "2"] and [r.pid for r in results] == ["0", "1", "2"]
    assert [json.loads(line)["pid"] for line in log.read_text().splitlines()] == ["0", "1", "2"]
    found = summary(results)
    assert found["questions"] == 3 and 0 < found["accuracy"] < 1 and found["IPJ"] > 0
    assert results[1].gold == "12"


def test_options_are_scored_and_nothing_is_sampled(runner: Runner, tmp_path: Path) -> None:
    text = ("Please choose the correct answer to the question: Who sat on the mat?\n\n"
            "Answer1: the cat Answer2: qzx vvk jjq Answer format: answer1/answer2")  # fmt: skip
    (tmp_path / "arc.json").write_text(json.dumps([{"instruction": text, "answer": "answer1"}]))
    loaded = load_task(tmp_path / "arc.json")
    assert loaded.kind == "choice" and list(loaded.questions[0].options) == ["answer1", "answer2"]
    source = open_source([runner], DRAWS)
    result = evaluate(loaded, runner, source, default_selector(source), tmp_path / "log.jsonl")[0]
    assert result.correct and result.samples == 0 and result.reason == "EXACT"
    assert result.seconds > 0 and result.joules > 0


def test_a_text_gives_its_perplexity(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(Path("tests/data/tinystories_excerpt.txt").read_text().split("<|")[0].strip())
    source = open_source([runner], DRAWS)
    result = evaluate(load_task(tmp_path / "t.txt"), runner, source, default_selector(source), tmp_path / "l.jsonl")[0]
    assert 2.5 < float(result.answer or math.nan) < 6


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no question"), ("{", "neither a JSON list"), ("[1]", "entry 0 is no object"), ('{"a": 1}', "entry 0 has a")],
)
def test_a_task_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        load_task(tmp_path / "t.jsonl")


def test_the_command_line(
    runner: Runner, task: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = str(tmp_path / "s.qeil")
    runner.compiled.save(artifact)
    common = ["--extract", r"^\W*(\w+)", "--max-tokens", "6", "--temperature", "0.9"]
    assert main(["ask", artifact, NAMED, "-k", "40", *common, "--json"]) == 0
    verdict = json.loads(capfd.readouterr().out)
    assert verdict["answer"] == "Lily" and verdict["reason"] == "CERT" and "may still be wrong" in verdict["claim"]
    check = f'{sys.executable} -c "import json,sys; sys.exit(json.load(sys.stdin)[\'answer\'] != \'Lily\')"'
    assert main(["ask", artifact, NAMED, *common, "--verifier", check]) == 0
    assert "answer: Lily" in capfd.readouterr().out
    # A script of this folder is found, although a verifier runs in an empty one; it is told where it fails.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check.py").write_text("import json, sys; sys.exit(json.load(sys.stdin)['answer'] != 'Lily')")
    assert main(["ask", artifact, NAMED, *common, "--verifier", f"{sys.executable} check.py"]) == 0
    seen = capfd.readouterr().out
    assert "VERIFIED" in seen and "of which 0 failed" in seen
    # The two characters that a shell hands on for a new line.
    counts = []
    for form in (r"{question}\n", "{question}\n", "{question}"):
        assert main(["ask", artifact, NAMED, *common, "-k", "8", "--form", form, "--json"]) == 0
        counts.append(json.loads(capfd.readouterr().out)["counts"])
    assert counts[0] == counts[1] != counts[2]
    assert main(["ask", artifact, NAMED, *common, "-k", "2", "--verifier", f"{sys.executable} absent.py"]) == 0
    assert "1 checks, of which 1 failed" in capfd.readouterr().out
    log = str(tmp_path / "log.jsonl")
    assert main(["evaluate", artifact, "--task", str(task), "-o", log, "-k", "4", *common, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["questions"] == 3
    assert main(["ask", artifact, NAMED, "--form", "Q: A:"]) == 1
    assert "has no {question}" in capfd.readouterr().err


def test_a_model_with_a_chat_template_is_asked_in_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    artifact = str(tmp_path / "r.qeil")
    settings = Settings(target="onnxruntime:CPU", measure=False, threads=1, failover=False)
    compile_decoder("models/data/reasoner", Generation(prompt=48, tokens=16, samples=8), settings).save(artifact)
    found = {}
    for form in (None, "chat", "{question}"):
        chosen = ["--form", form] if form else []
        question = "Sam has 47 stamps and buys 2. How many has he?"
        assert main(["ask", artifact, question, "-k", "8", "--max-tokens", "16", *chosen, "--json"]) == 0
        seen = capfd.readouterr()
        assert ("chat template" in seen.err) == (form is None)
        verdict = json.loads(seen.out)
        found[form] = verdict["counts"], verdict["samples"]
    assert found[None] == found["chat"] != found["{question}"]
