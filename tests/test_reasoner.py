"""The reasoner: its problems, its training script, and the checkpoint that is shipped."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile.errors import InputError, ModelError
from qeil_compile.models.reasoner import generate, prompt, read_answer, reasoner_folder
from qeil_compile.models.reasoner.problems import LIMIT, Problem, split_of
from qeil_compile.models.reasoner.scenes import FRACTIONS, MULTIPLES

STEP = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")
MEGABYTES = 12
#: Of 32 held-out problems, solved greedily: the shipped model solves 6; one may turn on another machine's rounding.
GREEDY_AT_LEAST = 5

GOLDEN_QUESTION = (
    "Sam has 40 marbles. Frank has half as many as Sam. Then he wins five times as many marbles as he already has. "
    "He lends 52 to Sam. He puts them equally into 2 jars. How many marbles are in each jar?"
)
GOLDEN_SOLUTION = """Frank starts with <<40/2=20>>20 marbles.
That adds <<20*5=100>>100 marbles.
Now Frank has <<20+100=120>>120 marbles.
Now Frank has <<120-52=68>>68 marbles.
Each jar holds <<68/2=34>>34 marbles.
#### 34"""


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return [generate("train", 1, i) for i in range(3000)] + [generate("test", 1, i) for i in range(1000)]


def test_a_problem_is_the_same_for_the_same_arguments() -> None:
    assert [generate("train", 7, i) for i in range(50)] == [generate("train", 7, i) for i in range(50)]
    assert generate("train", 7, 0) != generate("train", 7, 1)
    assert generate("train", 7, 0) != generate("train", 8, 0)


def test_problems_do_not_change_with_the_python_version() -> None:
    # Python promises only random(): the draws built on it could change, and the reported figures with them.
    problem = generate("test", 20, 9)
    assert problem.question == GOLDEN_QUESTION
    assert problem.solution == GOLDEN_SOLUTION


def test_splits_share_no_form(problems: list[Problem]) -> None:
    train, test = ({p.form for p in problems if split_of(p.form) == s} for s in ("train", "test"))
    assert {p.form for p in problems[:3000]} == train
    assert {p.form for p in problems[3000:]} == test
    assert not {p.question for p in problems[:3000]} & {p.question for p in problems[3000:]}


def test_every_part_of_a_test_form_is_seen_in_training(problems: list[Problem]) -> None:
    train = {part for p in problems[:3000] for part in p.form.split("/")}
    assert {part for p in problems[3000:] for part in p.form.split("/")} <= train


def test_solutions_are_right(problems: list[Problem]) -> None:
    words = {*MULTIPLES, *FRACTIONS}
    for problem in problems:
        *lines, last = problem.solution.split("\n")
        known = {int(n) for n in re.findall(r"\d+", problem.question)} | words
        for line in lines:
            (step,) = STEP.findall(line)
            a, operation, b, result, shown = int(step[0]), step[1], *map(int, step[2:])
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operation] == result == shown
            assert {a, b} <= known, "an operand stands in the question or is an earlier result"
            assert 1 <= result <= LIMIT
            known.add(result)
        assert last == f"#### {problem.answer}"
        assert result == problem.answer == read_answer(problem.solution)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match="'dev'"):
        generate("dev", 0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("#### 36", 36), ("a\n#### 1,234\n#### 5", 1234), ("####-7", -7), ("36", None), ("#### no", None),
     ("#### ,", None)],
)  # fmt: skip
def test_read_answer(text: str, answer: int | None) -> None:
    assert read_answer(text) == answer


def test_pass_at_k_equals_enumeration() -> None:
    from qeil_compile.models.reasoner.evaluate import pass_at_k

    for n, correct in ((5, 0), (5, 2), (6, 5), (4, 4)):
        for k in range(1, n + 1):
            draws = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    with pytest.raises(InputError, match="k = 6"):
        pass_at_k(5, 1, 6)


def test_majority_splits_a_tie() -> None:
    from qeil_compile.models.reasoner.evaluate import Record, majority

    assert majority(Record("a", 3, (3, 3, 4, None), (1, 1, 1, 1), ("",) * 4)) == 1
    assert majority(Record("a", 3, (3, 4), (1, 1), ("",) * 2)) == 0.5
    assert majority(Record("a", 3, (4, 4, 3), (1, 1, 1), ("",) * 3)) == 0
    assert majority(Record("a", 3, (None,), (1,), ("",))) == 0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    pytest.importorskip("transformers", reason="the extra llm is not installed")
    with reasoner_folder() as path:
        yield path


@pytest.fixture(scope="module")
def shipped(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as a stranger loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_shipped_folder_is_small_and_complete(folder: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                     "generation_config.json", "PROVENANCE.md"}  # fmt: skip
    assert sum(p.stat().st_size for p in folder.iterdir()) <= MEGABYTES * 1e6


def test_shipped_weights_are_a_plain_llama(folder: Path, shipped: tuple[Any, Any]) -> None:
    from safetensors import safe_open

    model, tokenizer = shipped
    with safe_open(folder / "model.safetensors", "np") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert type(model).__name__ == "LlamaForCausalLM"
    assert stored == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert "lm_head.weight" not in stored, "the head is the embedding"
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert len(tokenizer) == model.config.vocab_size == stored["model.embed_tokens.weight"][0]


def test_every_digit_is_a_token(shipped: tuple[Any, Any]) -> None:
    _, tokenizer = shipped
    assert [t for t in tokenizer.tokenize("<<48/2=24>>24") if t.isdigit()] == [*"4822424"]
    assert not [t for t in tokenizer.get_vocab() if len(t) > 1 and re.search(r"\d", t)]


@pytest.mark.parametrize("text", ["Anna has 4 eggs.", "naïve 한국 \t\n €5", "", "<<9*9=81>>81\n#### 81"])
def test_text_survives_the_tokenizer(shipped: tuple[Any, Any], text: str) -> None:
    _, tokenizer = shipped
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_prompt_ends_where_a_token_ends(shipped: tuple[Any, Any], problems: list[Problem]) -> None:
    _, tokenizer = shipped
    for problem in problems[:50]:
        head = tokenizer(problem.prompt)["input_ids"]
        whole = tokenizer(problem.prompt + problem.solution)["input_ids"]
        assert whole[: len(head)] == head
        assert head[0] == tokenizer.bos_token_id


def test_chat_template_writes_the_training_prompt(shipped: tuple[Any, Any]) -> None:
    _, tokenizer = shipped
    chat = [{"role": "user", "content": "How many?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == tokenizer.bos_token + prompt("How many?")


def test_shipped_model_solves_problems_of_unseen_forms(folder: Path) -> None:
    from qeil_compile.models.reasoner import checkpoint
    from qeil_compile.models.reasoner.evaluate import held_out, sample

    model, tokenizer = checkpoint.load(folder)
    records = list(sample(model, tokenizer, held_out(32), samples=1, temperature=0, seed=0))
    assert len(records) == 32
    assert sum(r.correct for r in records) >= GREEDY_AT_LEAST


def test_samples_differ_and_repeat_with_the_seed(folder: Path) -> None:
    from qeil_compile.models.reasoner import checkpoint
    from qeil_compile.models.reasoner.evaluate import held_out, report, sample

    model, tokenizer = checkpoint.load(folder)
    first, again, other = (
        list(sample(model, tokenizer, held_out(1), samples=5, temperature=1.0, seed=s)) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert "pass@5" in report(first)


def test_training_writes_a_loadable_folder_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="the extra llm is not installed")
    from qeil_compile.models.reasoner import checkpoint, train

    monkeypatch.setattr(train, "TOKENIZER_PROBLEMS", 300)
    texts = [("How many eggs are 2 eggs?", "It is <<2*1=2>>2.\n#### 2")]
    settings = train.Settings(steps=3, batch_tokens=512)
    trainer = train.Trainer(settings, tmp_path, texts, "cpu")
    before = trainer.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer.run()
    assert trainer.step == 3
    assert (tmp_path / "model.safetensors").is_file()
    model, tokenizer = checkpoint.load(tmp_path)
    after = model.model.layers[0].mlp.up_proj.weight
    assert not before.equal(after)
    assert after.equal(trainer.model.model.layers[0].mlp.up_proj.weight)
    assert tokenizer.chat_template == checkpoint.CHAT_TEMPLATE

    resumed = train.Trainer(settings, tmp_path, texts, "cpu")
    assert (resumed.step, resumed.tokens, resumed.progress) == (3, trainer.tokens, 1.0)
    moments = resumed.optimizer.state_dict()["state"]
    assert float(moments[0]["step"]) == 3
    assert train.Trainer(train.Settings(steps=4, batch_tokens=512), tmp_path, texts, "cpu").progress == 0.75
    with pytest.raises(ModelError, match="'batch_tokens': 512"):
        train.Trainer(train.Settings(steps=4, batch_tokens=256), tmp_path, texts, "cpu")


def test_batches_weigh_the_answer_and_leave_padding_out(shipped: tuple[Any, Any]) -> None:
    from qeil_compile.models.reasoner.data import GIVEN_WEIGHT, batches

    tokenizer = shipped[1].backend_tokenizer
    question = tokenizer.token_to_id("Question")
    drills = 0
    for _, batch in itertools.islice(batches(tokenizer, [], 0, 0, 1024), 20):
        assert batch.tokens.size <= 1024
        assert batch.weights.shape == (batch.tokens.shape[0], batch.tokens.shape[1] - 1)
        assert ((batch.weights == 0) == (batch.tokens[:, 1:] == 0)).all()
        assert (batch.tokens == 0).mean() < 0.1
        for tokens, weights in zip(batch.tokens, batch.weights, strict=True):
            heavy = tokenizer.decode([int(t) for t, w in zip(tokens[1:], weights, strict=True) if w == 1])
            light = {w for w in weights.tolist() if w not in (0, 1)}
            assert light == {float(np.float32(GIVEN_WEIGHT))}
            if tokens[1] == question:
                assert re.fullmatch(r"(\w[^\n]* <<[^\n]*\.\n)+#### \d+", heavy), "an answer has its whole weight"
            else:
                drills += 1
                assert re.fullmatch(r"(\d+>>)+", heavy), "a drill has weight on its results"
    assert drills


def test_a_drill_has_the_calculations_of_training_problems() -> None:
    from qeil_compile.models.reasoner.data import DRILL_PROBLEMS, document

    texts = ["".join(text for text, _ in document([], 5, i)) for i in range(40)]
    assert texts == ["".join(text for text, _ in document([], 5, i)) for i in range(40)]
    number, drill = next((i, t) for i, t in enumerate(texts) if "Question" not in t)
    sources = [generate("train", 5, -number * DRILL_PROBLEMS - i) for i in range(1, DRILL_PROBLEMS + 1)]
    expected = [c for p in sources for c in re.findall(r"<<.*?>>", p.solution)]
    assert sorted(re.findall(r"<<.*?>>", drill)) == sorted(expected)


def test_gsm8k_files_are_read_or_named(tmp_path: Path) -> None:
    from qeil_compile.models.reasoner.checkpoint import read_gsm8k

    good = tmp_path / "train.jsonl"
    good.write_text('{"question": "Q ", "answer": "1\\n#### 1"}\n')
    assert read_gsm8k(good) == [("Q", "1\n#### 1")]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    for path in (bad, tmp_path / "absent.jsonl"):
        with pytest.raises(ModelError, match=path.name):
            read_gsm8k(path)


def test_a_budget_is_needed() -> None:
    from qeil_compile.models.reasoner.train import Settings

    with pytest.raises(InputError, match="0 steps"):
        Settings(minutes=0)
