"""Generation over a session that really runs, stories260K with a key/value cache: text, stops, streams, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from qeil_compile.errors import GenerationError, InputError
from qeil_compile.generation import Batch, Completion, DecoderSession, Event, Llama2cText, Sampling, generate, stream
from qeil_compile.models import demo_model, demo_tokenizer
from qeil_compile.models.llama2c import LlamaDecoder
from tests.llama_session import LlamaSession

PROMPTS = ["Once upon a time", "Tom had a big red ball", "The"]
WARM = Sampling(temperature=1.0, top_p=0.95, seed=3, max_tokens=24, n=4)


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaDecoder]:
    """On one thread: the model is too small for two, that would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield demo_model()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Llama2cText:
    return Llama2cText(demo_tokenizer())


@pytest.fixture
def session(model: LlamaDecoder) -> LlamaSession:
    return LlamaSession(model)


def recompute(model: LlamaDecoder, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [length, vocab] without any cache."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]))[0]


def tokens_of(results: list[list[Completion]]) -> list[list[list[int]]]:
    return [[sample.tokens for sample in samples] for samples in results]


def test_session_fulfils_the_protocol(session: LlamaSession) -> None:
    assert isinstance(session, DecoderSession)


def test_greedy_text_is_that_of_full_recomputation(
    model: LlamaDecoder, session: LlamaSession, tokenizer: Llama2cText
) -> None:
    results = generate(session, tokenizer, PROMPTS, Sampling(temperature=0, max_tokens=50))
    for prompt, (sample,) in zip(PROMPTS, results, strict=True):
        tokens = tokenizer.encode(prompt) + sample.tokens
        logits = recompute(model, tokens)[-51:-1]
        assert logits.argmax(-1).tolist() == sample.tokens
        truth = torch.log_softmax(logits, -1).amax(-1)
        np.testing.assert_allclose(sample.logprobs, truth, atol=1e-4)
        assert len(sample.tokens) == 50 and sample.finish_reason == "length"
        assert prompt + sample.text == tokenizer.decode(tokens)


def test_penalised_greedy_text_is_that_of_transformers(
    model: LlamaDecoder, session: LlamaSession, tokenizer: Llama2cText
) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    penalty = process.RepetitionPenaltyLogitsProcessor(1.3)
    ((sample,),) = generate(
        session, tokenizer, PROMPTS[:1], Sampling(temperature=0, repetition_penalty=1.3, max_tokens=40)
    )
    start = len(tokenizer.encode(PROMPTS[0]))
    tokens = tokenizer.encode(PROMPTS[0]) + sample.tokens
    logits = recompute(model, tokens)
    for at in range(start, len(tokens)):
        assert tokens[at] == int(penalty(torch.tensor([tokens[:at]]), logits[at - 1 : at]).argmax())
    assert len(sample.tokens) == 40


def test_each_prompt_runs_once(session: LlamaSession, tokenizer: Llama2cText) -> None:
    batch = Batch(session, tokenizer, [*PROMPTS, PROMPTS[0]], WARM)
    batch.step()
    distinct = sum(len(tokenizer.encode(prompt)) for prompt in PROMPTS)
    assert session.prefilled == batch.prefilled_tokens == distinct
    batch.step()
    # One call makes the copies; equal prompts are copies of one another.
    assert session.selects == [[0] * 4 + [1] * 4 + [2] * 4 + [0] * 4]
    assert session.stepped == batch.decoded_rows == 16
    while batch.live:
        batch.step()
    first, last = batch.completions[0], batch.completions[3]
    assert [s.prompt for s in last] == [3] * 4
    assert tokens_of([first]) != tokens_of([last])


def test_rows_leave_at_their_end(session: LlamaSession, tokenizer: Llama2cText) -> None:
    """Each row is stepped once for each token but its last, and not once more."""
    sampling = replace(WARM, stop=(".", "she"), n=6, max_tokens=40)
    results = generate(session, tokenizer, PROMPTS, sampling)
    samples = [sample for samples in results for sample in samples]
    assert len({len(sample.tokens) for sample in samples}) > 3
    assert session.stepped == sum(len(sample.tokens) - 1 for sample in samples)
    assert len(session.selects) > 3


def test_samples_do_not_depend_on_the_batch(session: LlamaSession, tokenizer: Llama2cText) -> None:
    sampling = replace(WARM, n=8, stop=(".",), repetition_penalty=1.1)
    together = tokens_of(generate(session, tokenizer, PROMPTS, sampling))
    assert len({tuple(tokens) for tokens in together[0]}) > 1
    for max_rows in (1, 3, 8, 17):
        assert tokens_of(generate(session, tokenizer, PROMPTS, sampling, max_rows=max_rows)) == together
    # One sample of one prompt alone, by its numbers.
    for prompt, sample in ((0, 0), (2, 5), (1, 7)):
        alone = Batch(
            session, tokenizer, [PROMPTS[prompt]], replace(sampling, n=1), first_prompt=prompt, first_sample=sample
        )
        while alone.live:
            alone.step()
        assert alone.rows[0].tokens == together[prompt][sample]
        assert (alone.rows[0].prompt, alone.rows[0].sample) == (prompt, sample)


def test_samples_do_not_depend_on_who_leaves(session: LlamaSession, tokenizer: Llama2cText) -> None:
    sampling = replace(WARM, n=6)
    whole = generate(session, tokenizer, PROMPTS[:1], sampling)[0]
    batch = Batch(session, tokenizer, PROMPTS[:1], sampling)
    batch.cancel([1])  # before anything runs
    for _ in range(5):
        batch.step()
    batch.cancel([0, 4, 4])
    assert batch.live == (2, 3, 5)
    while batch.live:
        batch.step()
    assert [len(row.tokens) for row in batch.rows] == [5, 0, 24, 24, 5, 24]
    assert [row for row in range(6) if batch.rows[row].finish_reason == "cancelled"] == [0, 1, 4]
    for row, full in zip(batch.rows, whole, strict=True):
        assert row.tokens == full.tokens[: len(row.tokens)]
    assert batch.step() == [] and batch.cancel([0, 2]) == []
    with pytest.raises(InputError, match="row 6: not in this batch, expected a number from 0 to 5"):
        batch.cancel([6])


def test_seeds(session: LlamaSession, tokenizer: Llama2cText) -> None:
    runs = [tokens_of(generate(session, tokenizer, PROMPTS, replace(WARM, seed=seed))) for seed in (1, 1, 2, 2**63)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2] != runs[3]


def test_frequencies_are_those_of_the_model(model: LlamaDecoder, session: LlamaSession, tokenizer: Llama2cText) -> None:
    """4,000 first tokens: no frequency is five standard deviations off."""
    results = generate(session, tokenizer, ["Once"], Sampling(temperature=1.3, n=4000, max_tokens=1))
    logits = recompute(model, tokenizer.encode("Once"))[-1]
    shares = torch.softmax(logits.double() / 1.3, -1).numpy()
    counts = np.bincount([sample.tokens[0] for sample in results[0]], minlength=session.vocab)
    assert session.prefilled == len(tokenizer.encode("Once"))
    assert np.all(np.abs(counts - 4000 * shares) <= 5 * np.sqrt(4000 * shares * (1 - shares)) + 1)


@pytest.mark.parametrize("stop", [".", "girl named", "e was", "ittle", " she", ". S"])
def test_stop_strings(session: LlamaSession, tokenizer: Llama2cText, stop: str) -> None:
    """The text ends before the first stop string, which may begin and end inside tokens."""
    sampling = Sampling(temperature=0, max_tokens=60)
    ((free,),) = generate(session, tokenizer, PROMPTS[:1], sampling)
    assert stop in free.text
    events: list[Event] = []
    sampling = replace(sampling, stop=("never", stop))
    ((sample,),) = generate(session, tokenizer, PROMPTS[:1], sampling, on_token=events.append)
    assert sample.finish_reason == "stop_string"
    assert sample.text == free.text[: free.text.index(stop)]
    # All tokens that it took, and none behind them.
    assert sample.tokens == free.tokens[: len(sample.tokens)]
    spelled = tokenizer.decode(tokenizer.encode(PROMPTS[0]) + sample.tokens)
    assert stop in spelled and stop not in tokenizer.decode(tokenizer.encode(PROMPTS[0]) + sample.tokens[:-1])
    shown = ""
    for event in events:
        shown += event.text
        assert sample.text.startswith(shown)


def test_stop_tokens(session: LlamaSession, tokenizer: Llama2cText) -> None:
    sampling = Sampling(temperature=0, max_tokens=60)
    ((free,),) = generate(session, tokenizer, PROMPTS[:1], sampling)
    token = free.tokens[20]
    ((sample,),) = generate(session, tokenizer, PROMPTS[:1], replace(sampling, stop_tokens=frozenset({token})))
    assert sample.finish_reason == "stop"
    assert sample.tokens == free.tokens[: free.tokens.index(token) + 1]
    assert len(sample.logprobs) == len(sample.tokens)
    assert sample.text == tokenizer.decode(tokenizer.encode(PROMPTS[0]) + sample.tokens[:-1])[len(PROMPTS[0]) :]


def test_the_tokenizers_own_end(model: LlamaDecoder, session: LlamaSession, tokenizer: Llama2cText) -> None:
    """The model ends its stories with token 1; `ignore_eos` goes on."""
    sampling = Sampling(temperature=0, max_tokens=400)
    ((sample,),) = generate(session, tokenizer, PROMPTS[:1], sampling)
    assert sample.finish_reason == "stop" and sample.tokens[-1] in tokenizer.eos
    ((longer,),) = generate(session, tokenizer, PROMPTS[:1], replace(sampling, ignore_eos=True))
    assert len(longer.tokens) == 400 and longer.tokens[: len(sample.tokens)] == sample.tokens
    ((numbers,),) = generate(session, None, [tokenizer.encode(PROMPTS[0])], sampling)
    assert numbers.tokens == longer.tokens and numbers.text == ""


@pytest.mark.parametrize("max_tokens", [None, 100])
def test_context_ends_a_sample(model: LlamaDecoder, tokenizer: Llama2cText, max_tokens: int | None) -> None:
    session = LlamaSession(model, context=16)
    results = generate(session, tokenizer, PROMPTS, Sampling(max_tokens=max_tokens, n=2))
    for prompt, samples in zip(PROMPTS, results, strict=True):
        for sample in samples:
            assert len(tokenizer.encode(prompt)) + len(sample.tokens) == 16
            assert sample.finish_reason == "context"
    assert session.lengths.max() <= 16


def test_streamed_pieces_make_the_texts(session: LlamaSession, tokenizer: Llama2cText) -> None:
    sampling = replace(WARM, stop=("day", "."), alternatives=3, max_tokens=30)
    results = generate(session, tokenizer, PROMPTS, sampling)
    for max_rows in (None, 3):
        events = list(stream(session, tokenizer, PROMPTS, sampling, max_rows=max_rows))
        for prompt, samples in enumerate(results):
            for number, sample in enumerate(samples):
                own = [e for e in events if (e.prompt, e.sample) == (prompt, number)]
                assert "".join(e.text for e in own) == sample.text
                assert [e.token for e in own] == sample.tokens
                assert [e.logprob for e in own] == pytest.approx(sample.logprobs, abs=1e-4)
                assert [e.finish_reason for e in own] == [None] * (len(own) - 1) + [sample.finish_reason]
                assert [len(e.alternatives) for e in own] == [3] * len(own) == [len(a) for a in sample.alternatives]


def test_pieces_of_cancelled_rows_make_their_texts(session: LlamaSession, tokenizer: Llama2cText) -> None:
    batch = Batch(session, tokenizer, PROMPTS[:1], Sampling(temperature=0, stop=("there was not",), n=2))
    events = []
    while not batch.rows[0].tokens or "there" not in tokenizer.decode(batch.rows[0].tokens):
        events += batch.step()
    shown = "".join(event.text for event in events if event.row == 0)
    assert not shown.endswith("there")
    (last,) = batch.cancel([0])
    assert (last.token, last.logprob, last.finish_reason, last.row) == (None, None, "cancelled", 0)
    assert shown + last.text == batch.rows[0].text and batch.rows[0].text.endswith("there")
    assert batch.rows[1].finish_reason is None and batch.live == (1,)


def test_alternatives(model: LlamaDecoder, session: LlamaSession, tokenizer: Llama2cText) -> None:
    ((sample,),) = generate(session, tokenizer, PROMPTS[:1], Sampling(temperature=0, alternatives=4, max_tokens=5))
    tokens = tokenizer.encode(PROMPTS[0]) + sample.tokens
    truth = torch.log_softmax(recompute(model, tokens), -1)[-6:-1].topk(4)
    assert [[token for token, _ in pairs] for pairs in sample.alternatives] == truth.indices.tolist()
    np.testing.assert_allclose([[lp for _, lp in pairs] for pairs in sample.alternatives], truth.values, atol=1e-4)


def test_wrong_prompts_are_named_before_anything_runs(session: LlamaSession, tokenizer: Llama2cText) -> None:
    cases: list[tuple[object, object, str]] = [
        (None, ["text"], "prompt 0: found text and no tokenizer"),
        (None, [[5], []], "prompt 1: found no token, expected at least one"),
        (tokenizer, ["a", [1, 512]], "prompt 1: found token 512, expected numbers from 0 to 511"),
        (tokenizer, ["a", [3] * 512], "prompt 1: found 512 tokens, expected at most 511, .* context of 512"),
        (tokenizer, "Once", "prompts: found one text, expected a list"),
    ]
    for own, prompts, message in cases:
        with pytest.raises(InputError, match=message):
            generate(session, own, prompts, max_rows=1)
    with pytest.raises(InputError, match="stop strings need a tokenizer"):
        generate(session, None, [[5]], Sampling(stop="x"))
    with pytest.raises(InputError, match="max_rows: found 0"):
        generate(session, tokenizer, ["a"], max_rows=0)
    assert session.prefilled == 0
    assert generate(session, tokenizer, []) == []


class Broken(LlamaSession):
    """From the third step on, the logits of row 1 are spoilt."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        logits = super().step(tokens).copy()
        if self.stepped >= 9:
            logits[1, 100] = np.nan
        return logits


def test_logits_that_are_not_numbers(model: LlamaDecoder, tokenizer: Llama2cText) -> None:
    batch = Batch(Broken(model), tokenizer, ["Once"], replace(WARM, n=3), first_prompt=4)
    for _ in range(3):
        batch.step()
    with pytest.raises(GenerationError, match=r"prompt 4, sample 1, generated position 3: .* logit nan for token 100"):
        batch.step()
    # What was there before stays readable, and nothing goes on from a cache that is a step ahead.
    assert [len(row.tokens) for row in batch.rows] == [3] * 3
    assert {row.finish_reason for row in batch.rows} == {"cancelled"}
    assert batch.step() == []


def test_logits_of_another_shape(model: LlamaDecoder, tokenizer: Llama2cText) -> None:
    session = LlamaSession(model)
    session.vocab = 600
    with pytest.raises(GenerationError, match=r"found the shape \(1, 512\), expected \(1, 600\)"):
        generate(session, tokenizer, ["Once"])
