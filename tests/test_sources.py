"""Asking over sources: recorded logs and a live decoder; caps, cancelling, order; replay on the command line."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile import sampling as qs
from qeil_compile.cli import main
from qeil_compile.errors import InputError, OutputError
from qeil_compile.generation import Llama2cText, Sampling
from qeil_compile.models import demo_model, demo_tokenizer
from qeil_compile.sampling import extract, named, plots
from tests.llama_session import LlamaSession

SAMPLES = Path(__file__).parent.parent / "benchmarks" / "data" / "samples"


def question(answers: Sequence[str | None], ok: Sequence[float] | None = None, **columns: Any) -> qs.Replayed:
    marks = None if ok is None else tuple(ok)
    return qs.replayed(qs.Recorded("q", None, tuple(answers), marks, columns))


class SlowRound:
    """Samples that end at given steps; fulfils `Round`."""

    def __init__(self, samples: Sequence[tuple[int, qs.Sample]], joules_per_step: float = 1.0) -> None:
        self.samples, self.joules = dict(enumerate(samples)), joules_per_step
        self.live: list[int] = list(self.samples)
        self.steps, self.cancelled = 0, []  # type: ignore[var-annotated]

    @property
    def cost(self) -> qs.Cost:
        return qs.Cost(self.steps, self.steps * self.joules, 0.0)

    def step(self) -> list[tuple[int, qs.Sample]]:
        self.steps += 1
        ended = [p for p in self.live if self.samples[p][0] == self.steps]
        self.live = [p for p in self.live if p not in ended]
        return [(p, self.samples[p][1]) for p in ended]

    def partial(self, place: int) -> qs.Sample:
        return qs.Sample(None, features=self.samples[place][1].features)

    def cancel(self, places: Iterable[int]) -> None:
        self.cancelled += list(places)
        self.live = [p for p in self.live if p not in self.cancelled]


class SlowSource:
    """One round for every call, as prepared."""

    def __init__(self, *rounds: SlowRound) -> None:
        self.rounds = list(rounds)

    def price(self, rung: int) -> qs.Price:
        return qs.Price()

    def draw(self, question: Any, draw: qs.Draw, drawn: int) -> SlowRound:
        return self.rounds.pop(0) if self.rounds else SlowRound([])


def test_protocols_are_fulfilled() -> None:
    assert isinstance(qs.RecordedSource(), qs.Source) and isinstance(SlowSource(), qs.Source)
    assert isinstance(SlowRound([]), qs.Round)


def test_rounds_cost_their_passes_and_end_with_the_certificate() -> None:
    source = qs.RecordedSource({0: qs.Price(0.1, joules=2.0)})
    selector = qs.Selector(qs.Looks((4, 8, 16, 40), qs.Price(0.1)), qs.csvet(0.05, 40))
    verdict = qs.ask(source, selector, question(["7"] * 40))
    assert (verdict.answer, verdict.reason, verdict.rounds) == ("7", qs.Reason.CERT, 2)
    assert verdict.cost.passes == pytest.approx(2 * 1.3) and verdict.cost.joules == pytest.approx(2 * 2 * 1.3)
    assert verdict.cost.label == "modelled"


def test_joules_are_a_hard_cap() -> None:
    price = qs.Price(0.5, joules=1.0)
    for cap in (0.5, 1.0, 2.4, 7.0):
        selector = qs.Selector(qs.Looks((4, 8, 16, 40), price), caps=qs.Caps(joules=cap))
        verdict = qs.ask(qs.RecordedSource({0: price}), selector, question(list("abcd") * 10))
        assert verdict.cost.joules <= cap and verdict.reason is qs.Reason.BUDGET
        assert (verdict.answer is None) == (cap < 1)


def test_samples_count_in_the_order_of_drawing_and_the_rest_is_cancelled() -> None:
    # Sample 0 is slow: the certificate waits for it, since short samples must not have more say.
    fast = [(2, qs.Sample("a"))] * 9
    flight = SlowRound([(5, qs.Sample("a")), *fast, (50, qs.Sample("b"))])
    verdict = qs.ask(SlowSource(flight), qs.Selector(qs.Looks((11,)), [qs.Cert(0.05)]), "q")
    assert verdict.reason is qs.Reason.CERT and flight.steps == 5 and verdict.samples == 8
    assert flight.cancelled == [10] and verdict.cancelled == 1


def test_a_cap_inside_a_round_cancels_and_proves_nothing() -> None:
    flight = SlowRound([(99, qs.Sample("b")), *[(2, qs.Sample("a"))] * 20], joules_per_step=1.0)
    selector = qs.Selector(qs.Looks((21,)), [qs.Cert(0.05)], caps=qs.Caps(joules=10.0))
    verdict = qs.ask(SlowSource(flight), selector, "q")
    assert verdict.reason is qs.Reason.BUDGET and verdict.answer == "a" and flight.cancelled == [0]
    assert verdict.cost.joules <= 11 and verdict.note == "a cap was reached inside a round"


def test_pruned_samples_count_as_drawn_without_answer() -> None:
    low = {"confidence": 0.1}
    flight = SlowRound([(9, qs.Sample("b", features=low)), *[(2, qs.Sample("a"))] * 3])
    selector = qs.Selector(qs.Looks((4,)), [qs.Curtail(4)], prune=lambda s: s.feature("confidence") < 0.5)
    verdict = qs.ask(SlowSource(flight), selector, "q")
    assert (verdict.answer, verdict.samples, verdict.cancelled, flight.steps) == ("a", 3, 1, 2)


def test_a_source_that_has_no_more_samples_ends_the_question() -> None:
    verdict = qs.ask(qs.RecordedSource(), qs.Selector(qs.Looks((4, 8, 100))), question(["a", "b", "a"]))
    assert (verdict.answer, verdict.samples, verdict.reason) == ("a", 3, qs.Reason.BUDGET)


def test_rounds_dearer_than_their_price_make_the_next_ones_smaller() -> None:
    source = SlowSource(SlowRound([(13, qs.Sample("a"))] * 4), SlowRound([(1, qs.Sample("a"))]))
    asked: list[int] = []
    draw = source.draw
    source.draw = lambda q, d, n: (asked.append(d.size), draw(q, d, n))[1]  # type: ignore[method-assign]
    qs.ask(source, qs.Selector(qs.Looks((4, 40)), caps=qs.Caps(joules=30.0)), "q")
    # The first round cost 13 J in place of 1.3: of 17 J left a pass may take 10.
    assert asked[:2] == [4, 8]


@pytest.mark.parametrize("by_answer", [True, False])
def test_a_verifier_ends_the_sampling(by_answer: bool) -> None:
    asked: list[str | None] = []

    def verifier(_: object, sample: qs.Sample) -> bool:
        asked.append(sample.answer)
        return sample.answer == "right"

    answers = ["wrong", "wrong", None, "right", "right", "wrong"]
    selector = qs.Selector(qs.Looks((6,)), [qs.Verified()])
    verdict = qs.ask(qs.RecordedSource(), selector, question(answers),
                     verification=qs.Verification(verifier, by_answer=by_answer))  # fmt: skip
    assert (verdict.answer, verdict.reason, verdict.level) == ("right", qs.Reason.VERIFIED, 0.0)
    assert asked == (["wrong", "right"] if by_answer else ["wrong", "wrong", "right"])


def test_only_leaders_are_verified_where_that_is_asked_for() -> None:
    asked: list[str | None] = []

    def verifier(_: object, sample: qs.Sample) -> bool:
        asked.append(sample.answer)
        return sample.answer == "b"

    selector = qs.Selector(qs.Looks((3, 6)), [qs.Verified()])
    verification = qs.Verification(verifier, only_leaders=True)
    verdict = qs.ask(qs.RecordedSource(), selector, question(list("aabbbb")), verification=verification)
    assert asked == ["a", "b"] and (verdict.answer, verdict.reason) == ("b", qs.Reason.VERIFIED)


def test_broken_verifiers_leave_the_vote() -> None:
    def raises(_: object, sample: qs.Sample) -> bool:
        raise RuntimeError("no")

    selector = qs.Selector(qs.Looks((6,)), [qs.Verified(unique=True)])
    verdict = qs.ask(qs.RecordedSource(), selector, question(list("abbabb")), verification=qs.Verification(raises))
    assert (verdict.answer, verdict.reason, verdict.faults) == ("b", qs.Reason.BUDGET, 2)
    # One that accepts everything ends it at once, and honestly so: level 0 is what was declared of it.
    liar = qs.Verification(lambda q, s: True)
    verdict = qs.ask(qs.RecordedSource(), selector, question(list("abbabb")), verification=liar)
    assert (verdict.answer, verdict.reason, verdict.samples) == ("a", qs.Reason.VERIFIED, 1)


def test_two_rungs_as_a_cascade() -> None:
    small, large = question(["1", "2", "3", "4"] * 3), question(["9"] * 12)
    easy, hard = [[qs.Sample("a")] * 12] * 20, [[qs.Sample(str(i)) for i in range(12)]] * 20
    prices = {0: qs.Price(0.1, 1.0), 1: qs.Price(0.1, 5.0)}
    arms = [
        qs.Arm("small", 0, prices[0], qs.learn(easy + hard).plan(prices[0].passes, 30), right=0.6),
        qs.Arm("large", 1, prices[1], qs.learn(easy).plan(prices[1].passes, 30), right=0.9),
    ]
    source = qs.RecordedSource(prices, {1: {"q": large}})
    verdict = qs.ask(source, qs.Selector(qs.Eac(arms), [qs.Cert(0.05)]), small)
    assert verdict.rung == 1 and verdict.answer == "9" and verdict.rounds >= 2
    assert set(verdict.counts) == {"9"}


# --- live ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rung() -> qs.Rung:
    session = LlamaSession(demo_model(), context=48)
    text = Llama2cText(demo_tokenizer())
    sampling = Sampling(max_tokens=12, seed=3, stop=(".",))
    return qs.Rung(session, text, sampling, qs.Price(0.1, joules=3.0), pass_tokens=12)


def first_word(text: str) -> str | None:
    return extract.pattern(r"^\W*(\w+)")(text)


def test_live_rounds_go_on_where_the_last_one_ended(rung: qs.Rung) -> None:
    together = qs.LiveSource([rung], first_word)
    texts: list[list[str]] = []
    for sizes in ((6,), (2, 6)):
        seen: list[str] = []
        selector = qs.Selector(qs.Looks(sizes))

        def watch(inquiry: qs.Inquiry, seen: list[str] = seen) -> None:
            seen.extend(s.text for s in inquiry.tally.samples[len(seen) :])

        verdict = qs.ask(together, selector, "Once upon a time", watch=watch)
        assert verdict.samples == 6 and verdict.rounds == len(sizes)
        texts.append(seen)
    # A sample depends on the seed and its number, not on the rounds.
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_features_of_the_text_stand_beside_those_of_the_log_probabilities(rung: qs.Rung) -> None:
    seen: list[qs.Inquiry] = []
    source = qs.LiveSource([rung], first_word, lambda text: {"length": float(len(text))})
    qs.ask(source, qs.Selector(qs.Looks((3,))), "Once upon a time", watch=seen.append)
    samples = seen[-1].tally.samples
    assert len(samples) == 3 and all(s.feature("length") == len(s.text) > 0 for s in samples)
    assert all(math.isfinite(s.feature("logprob_mean")) for s in samples)


class Saving(LlamaSession):
    """With a cache that can be put aside; steps write into the cache, so it is copied both ways."""

    def save(self) -> Any:
        return self._lengths.clone(), [(k.clone(), v.clone()) for k, v in self._cache]

    def restore(self, saved: Any) -> None:
        self._lengths, self._cache = saved[0].clone(), [(k.clone(), v.clone()) for k, v in saved[1]]


def test_a_prompt_runs_once_for_all_rounds(rung: qs.Rung) -> None:
    model = rung.session.model  # type: ignore[attr-defined]
    found = []
    for session in (LlamaSession(model), Saving(model)):
        source = qs.LiveSource([replace(rung, session=session, price=qs.Price(0.1, prompt=5.0))], first_word)
        answers, passes = [], 0.0
        for question in ("Once upon", "Once upon a time"):
            verdict = qs.ask(source, qs.Selector(qs.Looks((2, 4, 6))), question)
            answers.append(verdict.answer)
            passes += verdict.cost.passes
        found.append((answers, session.prefilled, passes))
    (answers, tokens, spent), (same, fewer, less) = found
    assert same == answers and 3 * fewer == tokens
    # Of three rounds of each of two questions two thirds ran no prompt.
    assert spent - less == pytest.approx(4 * 5.0)


def test_live_samples_carry_features_and_prices(rung: qs.Rung) -> None:
    source = qs.LiveSource([rung], first_word)
    flight = source.draw("Once", qs.Draw(0, 3), 0)
    assert isinstance(source, qs.Source) and isinstance(flight, qs.Round)
    ended: dict[int, qs.Sample] = {}
    steps = 0
    expected = 0.0
    while flight.live:
        expected += (1 + (len(flight.live) - 1) * 0.1) / 12
        ended.update(flight.step())
        steps += 1
    assert sorted(ended) == [0, 1, 2] and steps <= 12
    assert all(s.features["logprob_mean"] < 0 and s.tokens > 0 for s in ended.values())
    assert flight.cost.passes == pytest.approx(expected) and flight.cost.label == "modelled"
    assert flight.cost.joules == pytest.approx(3 * expected) and flight.cost.seconds > 0


def test_live_verdict_cancels_the_rows_that_go_on(rung: qs.Rung) -> None:
    source = qs.LiveSource([rung], first_word)
    done: list[qs.Stop] = []

    class FirstToEnd:
        name, anytime = "first", True

        def check(self, tally: qs.Tally) -> qs.Stop | None:
            return qs.Stop(qs.Reason.RULE, tally.leader) if tally.leader else None

        def choose(self, tally: qs.Tally) -> str | None:
            return tally.leader

    before = rung.session.stepped  # type: ignore[attr-defined]
    verdict = qs.ask(source, qs.Selector(qs.Looks((8,)), [FirstToEnd()]), "Once upon")
    assert verdict.samples == 1 and verdict.answer and not done
    assert verdict.cancelled > 0 or rung.session.stepped - before < 8 * 12  # type: ignore[attr-defined]


def test_a_meter_makes_joules_measured(rung: qs.Rung) -> None:
    counter = iter(range(10_000))
    source = qs.LiveSource([replace(rung, meter=lambda: float(next(counter)))], first_word)
    verdict = qs.ask(source, qs.Selector(qs.Looks((2,))), "Once")
    assert verdict.cost.label == "measured" and verdict.cost.joules == int(verdict.cost.joules) > 0


@pytest.mark.parametrize("prompt", ["x" * 400, []])
def test_prompts_that_cannot_run_are_named(rung: qs.Rung, prompt: Any) -> None:
    with pytest.raises(InputError, match="prompt 0: found"):
        qs.ask(qs.LiveSource([rung], first_word), qs.Selector(qs.Looks((2,))), prompt)


def test_warmer_where_votes_collapse_in_doubt(rung: qs.Rung) -> None:
    source = qs.LiveSource([rung], lambda text: "same")
    temperatures: list[float | None] = []
    draw = source.draw
    source.draw = lambda q, d, n: (temperatures.append(d.temperature), draw(q, d, n))[1]  # type: ignore[method-assign]
    selector = qs.Selector(qs.Looks((4, 8)), weigh=qs.Reliability((), base=0.2), diversity=qs.Diversity(),
                           temperature=0.8)  # fmt: skip
    started: list[int] = []
    qs.ask(source, selector, "Once", watch=lambda inquiry: started.append(inquiry.tally.restarted))
    assert temperatures == [0.8, pytest.approx(1.0)]
    assert started == [0] * 5 + [4] * 5  # cooler samples are no evidence about warmer ones


# --- logs and the command line ----------------------------------------------------------------------------------------


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


def test_log_of_any_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", {"pid": 1, "gold": "a", "ans": ["a", "", None, "b"], "tok": [1, 2, 3, None],
                                          "pair": [[1, None], [2, 3], [4, 5], [6, 7]], "bits": ["01", "11", "", "x"],
                                          "note": "text"}, "")  # fmt: skip
    (found,) = qs.read_log(path)
    assert found.answers == ("a", None, None, "b") and found.correct == (1.0, 0.0, 0.0, 0.0)
    first, last = found.sample(0), found.sample(3)
    assert first.features["pair.0"] == 1 and math.isnan(first.feature("pair.1")) and first.features["bits"] == 0.5
    assert last.tokens == 0 and "bits" not in last.features
    zipped = tmp_path / "log.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert qs.read_log(zipped) == [found]


@pytest.mark.parametrize(("row", "message"), [
    ("{", "line 1: no JSON"), ('{"ans": []}', "line 1: found no list 'ans'"), ("[1]", "found no list 'ans'"),
    ('{"ans": ["a"], "ok": [1, 0]}', "'ok' has no 1 entries"), ("", "found no question"),
])  # fmt: skip
def test_logs_that_are_none_are_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        qs.read_log(write(tmp_path / "log.jsonl", row))


def test_log_that_is_missing_or_cut(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b'{"ans": ["a"]}' * 1000)[:-20])
    for path in (cut, tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            qs.read_log(path)


LOG = SAMPLES / "qwen25math_rm" / "math100_qwen2.5-math_k8_rm72b.jsonl.gz"


@pytest.mark.parametrize("rule", [r for r in qs.RULES if r != "deepconf"])
def test_every_rule_replays(rule: str) -> None:
    log = qs.read_log(LOG)[:40]
    found = qs.run_rule(log, rule, qs.Settings(orders=1))
    assert found.right.shape == (40,) and 0.7 < found.accuracy <= 1
    assert (found.samples >= 1).all() and (found.samples <= 8).all() and (found.passes <= found.samples + 1e-9).all()
    if rule == "self-consistency":
        assert found.disagreement == 0 and found.passes[0] == pytest.approx(1.7)


def test_rules_that_learn_never_see_what_they_are_asked() -> None:
    log = qs.read_log(LOG)[:30]
    seen: list[set[str]] = []

    def build(history: Sequence[qs.Recorded]) -> qs.Selector:
        seen.append({r.pid for r in history})
        return qs.Selector(qs.Looks((1,)))

    found = qs.cross_replay(log, build, folds=3, orders=1)
    assert found.pids == tuple(r.pid for r in log) and all(len(s) == 20 for s in seen)
    assert set.intersection(*seen) == set()
    with pytest.raises(InputError, match="log: found 1 questions"):
        qs.cross_replay(log[:1], build)


@pytest.mark.parametrize(("spec", "message"), [("leed", "did you mean lead"), ("lead:x", "is no number"),
                                               ("deepconf", "needs a feature")])  # fmt: skip
def test_rules_that_do_not_exist(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        qs.run_rule(qs.read_log(LOG)[:4], spec)


def test_confidence_of_a_feature_decides() -> None:
    log = qs.read_log(LOG)[:20]
    found = qs.run_rule(log, "deepconf:0.5", qs.Settings(features=["rm"], orders=1))
    assert found.accuracy >= 0.8


def test_equal_answers_that_stand_together_need_random_orders() -> None:
    sorted_log = [qs.Recorded("0", None, ("a",) * 3 + ("b",) * 9, None, {})] * 10
    own = qs.run_rule(sorted_log, "lead:3", qs.Settings(orders=0))
    mixed = qs.run_rule(sorted_log, "lead:3", qs.Settings(orders=20))
    assert own.disagreement == 1.0 and mixed.disagreement < 0.3


def test_eac_spends_less_than_one_batch_on_easy_questions() -> None:
    log = qs.read_log(LOG)
    settings = qs.Settings(price=qs.Price(0.3), orders=2)
    eac, full = (qs.run_rule(log, r, settings) for r in ("eac", "self-consistency"))
    assert eac.passes.mean() < 0.7 * full.passes.mean() and abs(eac.accuracy - full.accuracy) < 0.03


@pytest.mark.parametrize("rule", ["eac", "risk", "arde", "cert", "cges"])
def test_questions_of_different_numbers_of_samples_replay(rule: str) -> None:
    log = [qs.Recorded(str(i), "a", ("a", "b", "a", "c")[: 1 + i % 4] * 2, None, {}) for i in range(24)]
    found = qs.run_rule(log, rule, qs.Settings(orders=1))
    assert (found.samples <= [len(r) for r in log]).all() and np.isnan(found.right).all()


def test_risk_rule_says_its_level() -> None:
    easy = [qs.Recorded(str(i), "a", ("a",) * 10, (1.0,) * 10, {}) for i in range(700)]
    selector = named.risk_selector(easy, 10, qs.Settings(orders=1))
    verdict = qs.ask(qs.RecordedSource(), selector, qs.replayed(easy[0]))
    assert verdict.reason is qs.Reason.RISK and verdict.level == 0.01 and verdict.samples < 6


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["replay", str(LOG), "--rule", "cert", "--rule", "best-of-n", "--rho", "0.3", "--orders", "1"]
    assert main([*command, "--json", "--plot", str(tmp_path / "plots")]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["label"] == "modelled" and [r["rule"] for r in data["rules"]] == ["cert", "best-of-n"]
    assert data["coverage"]["pass@1"] == pytest.approx(0.91, abs=0.001) and data["rules"][0]["disagreement"] == 0
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {
        "accuracy_joules.png", "accuracy_passes.png", "coverage.png", "evidence.png"}  # fmt: skip
    assert main(command) == 0
    assert "not the full vote" in capsys.readouterr().out
    assert main(["replay", str(LOG), "--rules"]) == 0
    assert "Adaptive-Consistency" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "none.jsonl")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_log_without_marks_or_answers_replays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", *({"ans": ["", "", ""]}, {"ans": ["a", "b", "c"]}, {"ans": ["a"] * 3}))
    assert main(["replay", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert all(r["accuracy"] is None for r in data["rules"]) and data["coverage"] == {}
    assert main(["replay", str(path)]) == 0


def test_plots_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        plots.plot_evidence(qs.read_log(LOG)[0], tmp_path / "file" / "plot.png")


def test_recorded_orders_are_permutations() -> None:
    recorded = qs.read_log(LOG)[0]
    mixed = qs.replayed(recorded, np.random.default_rng(0))
    assert sorted(s.index for s in mixed.samples) == list(range(8))
    assert [s.score for s in mixed.samples] == [recorded.columns["rm"][s.index] for s in mixed.samples]
