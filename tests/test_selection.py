"""Certificates, rules and inquiries: what they promise, by enumeration and simulation, and bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from qeil_compile import sampling as qs
from qeil_compile.errors import InputError
from qeil_compile.sampling import baselines
from qeil_compile.sampling.certificate import log_evidence, share
from qeil_compile.sampling.samples import best


def tally_of(answers: Sequence[str | None], **fields: object) -> qs.Tally:
    tally = qs.Tally()
    for answer in answers:
        tally.add(qs.Sample(answer, **fields))  # type: ignore[arg-type]
    return tally


ANSWERS = st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=40)


@given(ANSWERS)
def test_tally_counts_as_a_count_from_scratch(answers: list[str | None]) -> None:
    tally = tally_of(answers)
    named = [a for a in answers if a is not None]
    order = list(dict.fromkeys(named))
    ranked = sorted(order, key=lambda a: (-named.count(a), order.index(a)))
    assert tally.leader == (ranked[0] if ranked else None)
    assert tally.lead == tuple((*(named.count(a) for a in ranked[:2]), 0, 0)[:2])
    assert len(tally) == len(answers) and tally.parsed == len(named)
    for answer in order:
        first = answers.index(answer)
        for other in order:
            after = answers[first + 1 :].count(other)
            assert tally.counts[other] - tally.since[answer].get(other, 0) == after


@pytest.mark.parametrize(("s", "f"), [(0, 0), (5, 0), (7, 3), (40, 20), (3, 9)])
def test_evidence_is_the_integral_that_it_stands_for(s: int, f: int) -> None:
    exact = integrate.quad(lambda p: 2 * (2 * p) ** s * (2 * (1 - p)) ** f, 0.5, 1)[0]
    assert math.exp(float(log_evidence(s, f))) == pytest.approx(exact, rel=1e-9)


def test_evidence_is_a_fair_game_under_equal_answers() -> None:
    # E[E_wb after one more draw] = E_wb where both answers are equally likely.
    for s, f in itertools.product(range(12), range(12)):
        now = math.exp(float(log_evidence(s, f)))
        then = (math.exp(float(log_evidence(s + 1, f))) + math.exp(float(log_evidence(s, f + 1)))) / 2
        assert then == pytest.approx(now, rel=1e-9)


def test_shares_of_delta_add_up_to_one() -> None:
    assert [share(i) for i in range(3)] == [0.9, 0.05, 0.025]
    assert sum(map(share, range(60))) == pytest.approx(1.0)


def test_unanimous_votes_are_certified_after_eight_and_with_a_spike_after_seven() -> None:
    for spike, needed in ((0.0, 8), (0.5, 7)):
        cert = qs.Cert(0.05, spike)
        assert cert.check(tally_of(["a"] * (needed - 1))) is None
        stop = cert.check(tally_of(["a"] * needed))
        assert stop is not None and (stop.reason, stop.answer, stop.level) == (qs.Reason.CERT, "a", 0.05)


def test_a_later_candidate_needs_more() -> None:
    cert = qs.Cert(0.05)
    later = ["b", *["a"] * 30]
    first = next(n for n in range(len(later)) if cert.check(tally_of(later[:n])))
    # Its share of delta is .05, and its own first draw is no evidence.
    assert first > 8 + 1


def test_draws_before_a_candidate_came_are_not_evidence_against_it() -> None:
    cert = qs.Cert()
    tally = tally_of(["b"] * 20 + ["a"] * 5)
    assert cert.evidence(tally, "a") == pytest.approx(float(log_evidence(4, 0)))


@settings(max_examples=40)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=60), st.integers(0, 5))
def test_many_streams_at_once_are_certified_as_one_by_one(draws: list[int], seed: int) -> None:
    looks = np.random.default_rng(seed).random(len(draws)) < 0.5
    cert = qs.Cert(0.3)
    for where in (None, looks):
        when, which = qs.certify_paths(np.array([draws]), 0.3, where)
        expected = (0, -1)
        tally = qs.Tally()
        for n, draw in enumerate(draws, 1):
            tally.add(qs.Sample(None if draw < 0 else str(draw)))
            stop = cert.check(tally) if where is None or where[n - 1] else None
            if stop is not None:
                expected = (n, int(stop.answer or -1))
                break
        assert (int(when[0]), int(which[0])) == expected


@pytest.mark.parametrize("modes", [(0.505, 0.495), (0.4, 0.39, 0.21)])
def test_wrong_certificates_stay_below_delta(modes: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    paths = np.searchsorted(np.cumsum(modes), rng.random((2000, 300))).clip(max=len(modes) - 1)
    wrong = int((qs.certify_paths(paths, 0.05)[1] > 0).sum())
    assert stats.beta.ppf(0.95, wrong + 1, 2000 - wrong) <= 0.05


def test_weighted_form_with_equal_weights_is_the_counted_form() -> None:
    rng = np.random.default_rng(1)
    counted, weighted = qs.Cert(0.05), qs.WeightedCert(0.05)
    for _ in range(20):
        tally = tally_of([str(a) for a in rng.choice(3, 30, p=(0.7, 0.2, 0.1))])
        for answer in tally.counts:
            assert weighted.evidence(tally, answer) == pytest.approx(counted.evidence(tally, answer), abs=1e-6)


def test_weighted_form_with_fractional_votes_keeps_its_level() -> None:
    # Votes p(answer | chain) whose means are equal: no answer deserves a certificate.
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(300):
        tally, cert = qs.Tally(), qs.WeightedCert(0.05)
        for _ in range(60):
            p = rng.beta(0.5, 0.5)
            votes = {"a": p, "b": 1 - p}
            tally.add(qs.Sample(max(votes, key=lambda k: votes[k]), votes=votes, weight=rng.random()))
            if cert.check(tally) is not None:
                wrong += 1
                break
    assert wrong <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_useless_weights_count_nothing() -> None:
    tally = qs.Tally()
    for weight in (math.nan, -1.0, math.inf, 0.0):
        tally.add(qs.Sample("a", weight=weight))
    assert tally.weighted == {"a": 0.0} and best(tally.weighted) is None
    assert qs.WeightedCert().check(tally) is None


def test_restart_makes_every_answer_a_new_candidate() -> None:
    tally = tally_of(["a"] * 7 + ["b"])
    tally.restart()
    cert = qs.Cert()
    weighted = qs.WeightedCert()
    assert cert.evidence(tally, "a") == weighted.evidence(tally, "a") == 0.0 and tally.places == {"a": 2, "b": 3}
    tally.add(qs.Sample("c"))
    assert tally.places["c"] == 4 and tally.leader == "a"


def test_exact_stops_where_no_unseen_answer_can_be_above() -> None:
    logs = {"a": 0.5, "b": 0.2, "c": 0.1}
    tally = qs.Tally()
    tally.add(qs.Sample("b", logprob=math.log(logs["b"])))
    assert qs.Exact().check(tally) is None  # .8 unseen
    tally.add(qs.Sample("a", logprob=math.log(logs["a"])))
    stop = qs.Exact().check(tally)
    assert stop is not None and (stop.reason, stop.answer, stop.level) == (qs.Reason.EXACT, "a", None)


@pytest.mark.parametrize("logprob", [None, math.nan, math.inf, 0.5])
def test_exact_without_a_probability_says_nothing(logprob: float | None) -> None:
    tally = qs.Tally()
    tally.add(qs.Sample("a", logprob=math.log(0.9)))
    tally.add(qs.Sample("b", logprob=logprob))
    assert qs.Exact().check(tally) is None


def test_verified_spends_delta_by_the_check() -> None:
    def checked(marks: Sequence[bool | None], **fields: float) -> qs.Stop | None:
        tally = qs.Tally()
        for i, mark in enumerate(marks):
            tally.add(qs.Sample(str(i), accepted=mark))
        return qs.Verified(**fields).check(tally)  # type: ignore[arg-type]

    assert checked([False, None, False]) is None
    stop = checked([False, None, True])
    assert stop is not None and (stop.answer, stop.level) == ("2", 0.0)
    stop = checked([False, True], delta=0.05, false_accepts=0.02)
    assert stop is not None and stop.level == pytest.approx(0.04)
    assert checked([False, False, True], delta=0.05, false_accepts=0.02) is None
    # A verifier that accepts two different answers to one question lies about one of them.
    assert checked([True, True], unique=True) is None


@given(st.lists(st.sampled_from("abc"), min_size=9, max_size=9), st.integers(1, 9))
def test_curtail_never_changes_the_vote(answers: list[str], seen: int) -> None:
    stop = qs.Curtail(9).check(tally_of(answers[:seen]))
    if stop is not None:
        assert stop.answer == tally_of(answers).leader


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=6), st.integers(1, 9))
def test_futile_is_right_by_trying_everything(answers: list[str], more: int) -> None:
    cert = qs.Cert(0.4)
    futile = qs.Futile(cert, len(answers) + more).check(tally_of(answers)) is not None
    # What helps a candidate most is that it alone is drawn.
    reachable = any(
        cert.check(tally_of(answers + [a] * n)) is not None for a in ("a", "b", "new") for n in range(more + 1)
    )
    assert futile == (not reachable)


def test_published_rules_stop_where_their_papers_say() -> None:
    ac = baselines.AdaptiveConsistency(0.95)
    assert not ac.done(tally_of("aaa")) and ac.done(tally_of("aaaa"))
    assert baselines.beta_majority(4, 2) == pytest.approx(stats.beta.sf(0.5, 5, 3))
    rng = np.random.default_rng(0)
    for counts in ((4, 2, 0), (5, 1, 1, 0), (2,)):
        drawn = rng.dirichlet(np.array(counts) + 1.0, 40_000)
        assert baselines.dirichlet_majority(counts) == pytest.approx((drawn.argmax(axis=1) == 0).mean(), abs=0.01)
    esc = baselines.EarlyStopping(3)
    assert esc.done(tally_of("abcccc")) and not esc.done(tally_of("abbbcc"))
    assert not esc.done(tally_of([None] * 3))
    assert baselines.Lead(3).done(tally_of("aabaa")) and not baselines.Lead(3).done(tally_of("aaba"))
    assert baselines.SelfConsistency(3).check(tally_of("aba")) is not None
    sprt = baselines.Sprt(0.75)
    assert sprt.done(tally_of("a" * 8)) and not sprt.done(tally_of("a" * 7))
    ppr = baselines.Ppr1v1(0.05, answers=2)
    assert ppr.done(tally_of("a" * 8)) and not ppr.done(tally_of("a" * 7))
    assert stats.beta.pdf(0.5, 9, 1) <= 0.05 < stats.beta.pdf(0.5, 8, 1)  # prior 1 over posterior at 1/2
    best_of = baselines.BestOfN(3)
    tally = qs.Tally()
    for answer, score in (("a", 0.1), ("b", 0.9), ("c", math.nan)):
        tally.add(qs.Sample(answer, score=score))
    assert best_of.check(tally) == qs.Stop(qs.Reason.RULE, "b", None, "best of 3")
    tally = tally_of("ab")
    tally.add(qs.Sample("c", accepted=True))
    assert baselines.PassAtK(9).choose(tally) == "c" and baselines.PassAtK(9).done(tally)


def test_confident_samples_outweigh_many() -> None:
    tally = qs.Tally()
    for answer, c in (("a", 0.3), ("a", 0.3), ("a", 0.3), ("b", 0.97), ("b", 0.97), ("c", math.nan)):
        tally.add(qs.Sample(answer, features={"c": c}))
    cges = baselines.Cges(lambda s: s.feature("c"), 0.9)
    assert cges.choose(tally) == "b" and cges.done(tally)
    assert sum(cges.posterior(tally).values()) < 1  # an unseen answer keeps some
    assert baselines.DeepConf(lambda s: s.feature("c"), keep=0.5, warmup=4).choose(tally) == "b"


RULES: list[qs.Rule] = [
    *qs.csvet(0.05, 8, exact=True, verifier_false_accepts=0.0, futile=True), qs.WeightedCert(),
    baselines.SelfConsistency(8), baselines.AdaptiveConsistency(), baselines.DirichletConsistency(),
    baselines.EarlyStopping(), baselines.Sprt(), baselines.Ppr1v1(), baselines.Lead(), baselines.BestOfN(8),
    baselines.PassAtK(8), baselines.Cges(lambda s: s.feature("c")), baselines.DeepConf(lambda s: s.feature("c")),
    qs.Consensus([1.0, 2.0], 8),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize("answers", [[], [None] * 8, [str(i) for i in range(8)], ["a"], [None, "a", None]])
def test_every_rule_bears_degenerate_streams(rule: qs.Rule, answers: list[str | None]) -> None:
    tally = tally_of(answers, features={"c": math.nan}, logprob=math.nan, score=math.nan)
    stop = rule.check(tally)
    named = {a for a in answers if a is not None}
    assert rule.choose(tally) in named | {None}
    if stop is not None:
        assert stop.answer in named | {None}
        if not named or len(named) == 8:
            assert stop.reason not in (qs.Reason.CERT, qs.Reason.EXACT, qs.Reason.VERIFIED)


def test_one_delta_is_shared() -> None:
    rules = qs.csvet(0.05, 10, verifier_false_accepts=0.001)
    verified, cert = rules[0], rules[1]
    assert isinstance(verified, qs.Verified) and isinstance(cert, qs.Cert)
    assert verified.delta == pytest.approx(0.01) and verified.delta + cert.delta == pytest.approx(0.05)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_levels_outside_the_unit_interval_are_refused(delta: float) -> None:
    for make in (qs.Cert, qs.WeightedCert, qs.Verified, qs.csvet):
        with pytest.raises(InputError, match="delta: found"):
            make(delta)  # type: ignore[operator]


def test_an_inquiry_by_hand_stops_and_says_why() -> None:
    inquiry = qs.Selector(rules=qs.csvet(0.05, 40)).open()
    drawn = 0
    while inquiry.stop is None and drawn < 40:
        inquiry.add(qs.Sample("7"))
        drawn += 1
    verdict = inquiry.verdict()
    assert (drawn, verdict.answer, verdict.reason, verdict.sample) == (8, "7", qs.Reason.CERT, 0)
    assert "may still be wrong" in verdict.claim and verdict.unseen == 0.0
    assert inquiry.add(qs.Sample("8")) is not None and inquiry.verdict().samples == 8


def test_an_inquiry_without_any_answer() -> None:
    inquiry = qs.Selector(rules=qs.csvet(0.05, 3)).open()
    for _ in range(3):
        inquiry.add(qs.Sample(None))
    verdict = inquiry.verdict()
    assert verdict.answer is None and verdict.reason is qs.Reason.BUDGET and verdict.claim == "no answer"


def test_one_sample_is_the_answer_of_k_1() -> None:
    inquiry = qs.Selector(rules=qs.csvet(0.05, 1)).open()
    assert inquiry.add(qs.Sample("a")) == qs.Stop(qs.Reason.CURTAIL, "a", None, "lead 1, 0 samples left")
