"""The choice of a token: against transformers' processors draw by draw, and independent of everything but its row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qeil_compile.generation.sampler as sampler_module
from qeil_compile.errors import GenerationError, InputError
from qeil_compile.generation import Sampler, Sampling
from qeil_compile.generation.kernel import _exp, philox

torch = pytest.importorskip("torch")


def logits_of(rng: np.random.Generator, vocab: int, spread: float = 3.0, form: type = np.float32) -> np.ndarray:
    return (rng.standard_normal(vocab) * spread).astype(form).astype(np.float32)


def kept_by_transformers(row: np.ndarray, sampling: Sampling, history: list[int]) -> np.ndarray:
    """Processed scores [vocab], by `transformers`' processors in the order of its `generate`."""
    process = pytest.importorskip("transformers.generation.logits_process")
    chain = process.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chain.append(process.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if not sampling.greedy:
        if sampling.temperature != 1:
            chain.append(process.TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            chain.append(process.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            chain.append(process.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            chain.append(process.MinPLogitsWarper(sampling.min_p))
    return chain(torch.tensor([history or [0]]), torch.tensor(row)[None])[0].double().numpy()


def expected(row: np.ndarray, sampling: Sampling, history: list[int], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens at the uniform numbers of samples 0, 1, ..., and how far each number is from a bound."""
    scores = kept_by_transformers(row, sampling, history)
    if sampling.greedy:
        return np.full(draws, scores.argmax()), np.ones(draws)
    mass = np.exp(scores - scores.max())
    bounds = np.cumsum(mass) / mass.sum()
    uniform = np.array([philox(np.uint64(sampling.seed), 0, sample, 5) for sample in range(draws)])
    tokens = np.searchsorted(bounds, uniform, side="right")
    return tokens, np.abs(bounds[None] - uniform[:, None]).min(1)


def draw(row: np.ndarray, sampling: Sampling, history: list[int], draws: int) -> np.ndarray:
    """One token for each of `draws` samples of prompt 5 that all read the same logits."""
    sampler = Sampler(sampling, [5] * draws, range(draws))
    for sample in range(draws):
        sampler.remember(sample, history)
    return sampler.draw(row[None], np.arange(draws), np.zeros(draws, np.int64)).tokens


def check(row: np.ndarray, sampling: Sampling, history: list[int], draws: int = 300) -> None:
    tokens, distance = expected(row, sampling, history, draws)
    certain = distance > 1e-5
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(draw(row, sampling, history, draws)[certain], tokens[certain])


CASES = [
    {}, {"temperature": 0.0}, {"temperature": 0.7}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 7}, {"top_k": 10**6},
    {"top_p": 0.0}, {"top_p": 0.5}, {"top_p": 0.95}, {"top_p": 0.999}, {"min_p": 0.05}, {"min_p": 1.0},
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7}, {"repetition_penalty": 1.2, "temperature": 0.0},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.3}, {"temperature": 1.5, "top_p": 0.99, "min_p": 0.1},
    {"temperature": 1.5, "top_p": 0.3, "min_p": 0.001}, {"temperature": 0.01}, {"temperature": 1e-6, "top_p": 0.9},
    {"top_k": 5, "min_p": 1e-6}, {"top_k": 5, "min_p": 0.2}, {"min_p": 1e-30},
]  # fmt: skip


@pytest.mark.parametrize("vocab", [1, 63, 64, 1000])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_as_transformers(case: dict[str, float], vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    history = rng.integers(0, vocab, 12).tolist()
    check(logits_of(rng, vocab), Sampling(seed=9, **case), history)


def kept_exactly(row: np.ndarray, sampling: Sampling, history: list[int]) -> np.ndarray:
    """The definitions in float64; transformers adds up 50,000 shares in float32, and errs by whole tokens."""
    z = row.astype(np.float64)
    z[history] = np.where(z < 0, z * sampling.repetition_penalty, z / sampling.repetition_penalty)[history]
    if sampling.greedy:
        return z
    z /= sampling.temperature
    if 0 < sampling.top_k < len(z):
        z[z < np.sort(z)[-sampling.top_k]] = -np.inf
    if sampling.top_p < 1:
        order = np.argsort(-z, kind="stable")
        mass = np.exp(z[order] - z.max())
        z[order[1:][np.cumsum(mass)[:-1] >= sampling.top_p * mass.sum()]] = -np.inf
    z[z < z.max() + np.log(max(sampling.min_p, 1e-300))] = -np.inf
    return z


@pytest.mark.parametrize("seed", range(20))
def test_a_share_of_almost_all_leaves_top_k_as_it_is(seed: int) -> None:
    row = logits_of(np.random.default_rng(seed), 8)
    found = draw(row, Sampling(seed=seed, top_k=2, top_p=1 - 2**-53), [], 200)
    assert set(found.tolist()) <= set(np.argsort(row)[-2:].tolist())


@pytest.mark.parametrize("spread", [0.3, 2.5])
@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_draws_from_large_vocabularies(case: dict[str, float], spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the filters leave more tokens than are ever sorted."""
    rng = np.random.default_rng(0)
    row, sampling = logits_of(rng, 50257, spread), Sampling(**case)
    history = rng.integers(0, len(row), 40).tolist()
    monkeypatch.setitem(globals(), "kept_by_transformers", kept_exactly)
    tokens, distance = expected(row, sampling, history, 400)
    certain = distance > 2e-6
    assert certain.mean() > 0.5
    np.testing.assert_array_equal(draw(row, sampling, history, 400)[certain], tokens[certain])


@pytest.mark.parametrize("case", CASES[4:], ids=str)
def test_ties(case: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-precision logits are equal in great number. As many stay as in transformers; which, its sort leaves open."""
    rng = np.random.default_rng(3)
    row, theirs = logits_of(rng, 640, 1.0).round(1), kept_by_transformers

    def first_of_ties(row: np.ndarray, sampling: Sampling, history: list[int]) -> np.ndarray:
        scores = theirs(row, sampling, history)
        least = scores[scores > -np.inf].min()
        free = Sampling(repetition_penalty=sampling.repetition_penalty, temperature=sampling.temperature)
        ties = np.flatnonzero(theirs(row, free, history) == least)
        kept = np.count_nonzero(scores == least)
        scores[ties[:kept]], scores[ties[kept:]] = least, -np.inf
        return scores

    monkeypatch.setitem(globals(), "kept_by_transformers", first_of_ties)
    check(row, Sampling(**case), rng.integers(0, 640, 30).tolist())


@given(
    seed=st.integers(0, 2**32), vocab=st.integers(1, 300), temperature=st.floats(0.05, 5), top_k=st.integers(0, 50),
    top_p=st.just(1.0) | st.floats(0.01, 1), min_p=st.just(0.0) | st.floats(0, 1),
    penalty=st.just(1.0) | st.floats(0.5, 2),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_settings(
    seed: int, vocab: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    rng = np.random.default_rng(seed)
    row, history = logits_of(rng, vocab), rng.integers(0, vocab, 9).tolist()
    sampling = Sampling(
        seed=seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    tokens, distance = expected(row, sampling, history, 60)
    found = draw(row, sampling, history, 60)
    # A token whose mass ends at a filter's bound may be in or out by a rounding; then all tokens differ, or none.
    certain = distance > 1e-5
    if np.array_equal(found[certain], tokens[certain]):
        return
    for edge in ({"top_p": min(1.0, top_p + 1e-5)}, {"top_p": max(0.0, top_p - 1e-5)}, {"min_p": min_p * 1.00001}):
        other = Sampling(**{**{f: getattr(sampling, f) for f in sampling.__dataclass_fields__}, **edge})
        tokens, distance = expected(row, other, history, 60)
        if np.array_equal(found[distance > 1e-5], tokens[distance > 1e-5]):
            return
    raise AssertionError((found, tokens))


def test_log_probabilities_are_those_of_the_model() -> None:
    """Of the raw logits, whatever the filters; the alternatives too."""
    rng = np.random.default_rng(1)
    for vocab in (5, 64, 5000):
        logits = np.stack([logits_of(rng, vocab) + shift for shift in (0, -60, 900)]).astype(np.float32)
        truth = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
        sampling = Sampling(temperature=0.5, top_k=3, repetition_penalty=1.5, alternatives=5)
        sampler = Sampler(sampling, [0, 1, 2], [0] * 3)
        sampler.remember(1, [2, 3])
        chosen = sampler.draw(logits, np.arange(3))
        np.testing.assert_allclose(chosen.logprobs, truth[range(3), chosen.tokens], atol=2e-5)
        best = truth.topk(min(5, vocab))
        np.testing.assert_array_equal(chosen.alternatives, best.indices)
        np.testing.assert_allclose(chosen.alternative_logprobs, best.values, atol=2e-5)


def test_equal_alternatives_come_by_number() -> None:
    chosen = Sampler(Sampling(alternatives=4), [0], [0]).draw(np.float32([[1, 3, 3, 0, 3, 2]]), np.arange(1))
    assert chosen.alternatives.tolist() == [[1, 2, 4, 5]]


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(2)
    logits = np.stack([logits_of(rng, 777) for _ in range(6)])
    sampling = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=4)
    prompts, samples = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]

    def run(groups: list[list[int]]) -> list[list[int]]:
        """Tokens of each row over three positions; the rows of a group are drawn together."""
        sampler, tokens = Sampler(sampling, prompts, samples), [[] for _ in prompts]
        for row in range(6):
            sampler.remember(row, [row, 5])
        for _ in range(3):
            for group in groups:
                rows = np.array(group)
                for row, token in zip(group, sampler.draw(logits, rows, rows).tokens, strict=True):
                    tokens[row].append(int(token))
        return tokens

    together = run([[0, 1, 2, 3, 4, 5]])
    assert run([[5], [3, 1], [0, 4, 2]]) == together
    assert run([[4, 5, 0, 1, 2, 3]]) == together
    assert together[0] != together[1]


def test_penalty_concerns_what_was_drawn() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), [0], [0])
    row = np.float32([[3, 2, 1, -1]])
    assert [int(sampler.draw(row, np.arange(1)).tokens[0]) for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vocab", [128, 130])
@pytest.mark.parametrize("token", [0, -1])
def test_logits_that_are_not_finite_are_named(value: float, vocab: int, token: int) -> None:
    sampler = Sampler(Sampling(), [7, 7], [2, 3])
    logits = np.zeros((2, vocab), np.float32)
    sampler.draw(logits, np.arange(2))
    logits[1, token] = value
    with pytest.raises(GenerationError, match=rf"prompt 7, sample 3, .* position 1: .* for token {token % vocab},"):
        sampler.draw(logits, np.arange(2))


def test_philox_is_the_published_one() -> None:
    """A plain implementation that gives the known answers of Random123, and the compiled one beside it."""
    assert _philox4x32((0,) * 4, (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert _philox4x32((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == (
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    )  # fmt: skip
    for seed, counter in ((0, (0, 0, 0)), (2**64 - 1, (1, 2, 3)), (0x299F31D0A4093822, (0x243F6A88, 2**32 - 1, 7))):
        a, b, _, _ = _philox4x32((*counter, 0), (seed & 0xFFFFFFFF, seed >> 32))
        assert philox(np.uint64(seed), *counter) == (a << 32 | b) // 2**11 / 2**53


def _philox4x32(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = q >> 32 ^ b ^ k, q & 0xFFFFFFFF, p >> 32 ^ d ^ m, p & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def test_exponential() -> None:
    x = np.concatenate([np.linspace(-87, 0, 20001), -np.logspace(-8, 0, 2001)]).astype(np.float32)
    found = np.array([_exp(v) for v in x])
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=3e-7)
    assert _exp(np.float32(0)) == 1
    assert _exp(np.float32(-87.1)) == _exp(np.float32(-np.inf)) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", 1e-9), ("temperature", float("nan")), ("temperature", "1"), ("top_k", -1),
     ("top_k", 1.5), ("top_p", 1.1), ("top_p", -0.1), ("min_p", 2), ("repetition_penalty", 0), ("seed", -1),
     ("seed", 2**64), ("max_tokens", 0), ("max_tokens", True), ("stop", ("a", "")), ("stop", (1,)), ("stop", 3),
     ("stop_tokens", {-1}), ("stop_tokens", "a"), ("stop_tokens", 4), ("n", 0), ("alternatives", -1),
     ("ignore_eos", 1)],
)  # fmt: skip
def test_wrong_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"sampling: {field} is .*, expected "):
        Sampling(**{field: value})


def test_settings_take_their_own_form() -> None:
    sampling = Sampling(stop="end", stop_tokens=[3, 3])
    assert (sampling.stop, sampling.stop_tokens) == (("end",), {3})
    assert hash(sampling) == hash(Sampling(stop=["end", "end"], stop_tokens={3}))


def test_rows_on_several_threads_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.stack([logits_of(np.random.default_rng(k), 4000) for k in range(13)])
    how = Sampling(n=13, temperature=0.9, top_p=0.9, alternatives=2, seed=7)
    found = []
    for share, threads in ((1 << 40, 8), (1, 3), (1, 8)):
        monkeypatch.setattr(sampler_module, "_SHARE", share)
        monkeypatch.setattr(sampler_module, "_MOST_THREADS", threads)
        monkeypatch.setattr(sampler_module, "usable_cores", lambda: 8)
        sampler = Sampler(how, [0] * 13, range(13))
        found.append([sampler.draw(logits, np.arange(13)[::-1], np.arange(13), True) for _ in range(3)])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    logits[[4, 11], 5] = np.nan
    with pytest.raises(GenerationError, match=r"sample 8.*nan for token 5"):
        Sampler(how, [0] * 13, range(13)).draw(logits, np.arange(13)[::-1], np.arange(13), True)
