"""ARDE, look schedules, EAC, RISK and the metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from qeil_compile import sampling as qs
from qeil_compile.errors import InputError
from qeil_compile.sampling.reliability import direction, mean_one
from qeil_compile.sampling.risk import betting_p, binomial_p


def history(sign: int, questions: int = 60, k: int = 20) -> tuple[list[qs.Sample], list[bool], list[int]]:
    rng = np.random.default_rng(0)
    samples, correct, of = [], [], []
    for q in range(questions):
        hard = rng.random()
        for _ in range(k):
            right = bool(rng.random() > hard)
            x = sign * (1.0 * right + rng.normal()) + 3 * q  # comparable within a question only
            samples.append(qs.Sample("a", features={"x": x - 3 * q, "shifted": x, "flat": 1.0}))
            correct.append(right)
            of.append(q)
    return samples, correct, of


@pytest.mark.parametrize("sign", [1, -1])
def test_calibration_is_monotone_in_the_learned_direction(sign: int) -> None:
    samples, correct, of = history(sign)
    found = qs.fit_reliability(samples, correct, of, ["x", "flat", "absent"])
    assert [s.feature for s in found.steps] == ["x"] and found.steps[0].sign == sign
    r = [found(qs.Sample("a", features={"x": sign * x})) for x in np.linspace(-4, 5, 30)]
    assert r == sorted(r) and r[-1] - r[0] > 0.3
    assert found.base == pytest.approx(np.mean(correct), abs=0.01)
    assert found(qs.Sample("a", features={"x": math.nan})) == pytest.approx(found.base, abs=0.02)
    assert found(qs.Sample(None, features={"x": 9.0})) == 0.0 == found.weight(qs.Sample(None))


def test_scales_learn_which_feature_tells_samples_of_a_question_apart() -> None:
    rng = np.random.default_rng(0)
    samples, correct, of = [], [], []
    for q in range(120):
        hard = rng.random()
        for _ in range(20):
            right = bool(rng.random() > hard)
            # `check` is right nine times in ten; `echo` repeats it, badly, and knows nothing more.
            check = float(right if rng.random() < 0.9 else not right)
            echo = check if rng.random() < 0.7 else 1 - check
            samples.append(qs.Sample("a", features={"check": check, "echo": echo}))
            correct.append(right)
            of.append(q)
    found = qs.fit_reliability(samples, correct, of, ["check", "echo"])
    scale = {s.feature: s.scale for s in found.steps}
    assert scale["check"] > 0.85 and scale["echo"] < 0.35
    # Agreement is no mark: no feature is made to copy it.
    plain = qs.fit_reliability(samples, correct, of, ["check", "echo"], marked=False)
    assert {s.scale for s in plain.steps} == {1 / math.sqrt(2)}
    assert [s.scale for s in qs.fit_reliability(samples, correct, of, ["check"]).steps] == [1.0]


def test_direction_is_taken_within_questions() -> None:
    # Easy questions have low values, but within each question the right samples have the high ones.
    values = np.array([0.0, 1.0, 1.1, 10.0, 9.0, 8.0])
    labels = np.array([0, 1, 1, 1, 0, 0.0])
    assert direction(values, labels, np.array([0, 0, 0, 1, 1, 1])) == 1
    assert np.corrcoef(np.array([0.0, 1.0, 1.1, 10.0, 9.0, 8.0]), labels)[0, 1] < 0.1


def test_weights_have_mean_one_and_change_the_vote() -> None:
    samples, correct, of = history(1)
    found = qs.fit_reliability(samples, correct, of, ["x"])
    tally = qs.Tally()
    for answer, x in (("bad", -2.0), ("bad", -2.0), ("bad", -2.0), ("good", 3.0), (None, 3.0)):
        tally.add(found.weigh(qs.Sample(answer, features={"x": x})))
    assert mean_one(tally)[:4].mean() == pytest.approx(1.0) and mean_one(tally)[4] == 0
    assert tally.leader == "bad" and max(tally.weighted, key=lambda a: tally.weighted[a]) == "good"
    assert qs.within_auc(np.array([s.feature("x") for s in samples]), np.array(correct), np.array(of)) > 0.7


def test_open_and_collapsed_answer_sets() -> None:
    def tally_of(answers: str) -> qs.Tally:
        tally = qs.Tally()
        for a in answers:
            tally.add(qs.Sample(a))
        return tally

    assert qs.unseen_mass(tally_of("aab")) == pytest.approx(1 / 3) and qs.unseen_mass(qs.Tally()) == 1.0
    assert qs.effective_answers({"a": 2, "b": 2}) == pytest.approx(2.0) and qs.effective_answers({}) == 0.0
    shares = qs.posterior(tally_of("aab"))
    assert sum(shares.values()) == pytest.approx(2 / 3) and shares["a"] == pytest.approx(4 / 9)
    doubtful = qs.Reliability((), base=0.2)
    diversity = qs.Diversity(abstain=0.3)
    assert diversity.temperature(tally_of("aaaa"), doubtful, 0.8) == pytest.approx(1.0)
    assert diversity.temperature(tally_of("aaaa"), qs.Reliability((), base=0.9), 0.8) == 0.8
    assert diversity.temperature(tally_of("abcd"), doubtful, 0.8) == pytest.approx(0.6)
    assert diversity.abstains(tally_of("abcdd")) and not diversity.abstains(tally_of("aab"))


def test_abstention_gives_no_answer() -> None:
    selector = qs.Selector(qs.Looks((4,)), diversity=qs.Diversity(abstain=0.5))
    inquiry = selector.open()
    for a in "abcd":
        inquiry.add(qs.Sample(a))
    verdict = inquiry.verdict()
    assert verdict.abstained and verdict.answer is None


@pytest.mark.parametrize("values", [[], [math.nan, math.inf], [-1.0, math.nan, -3.0]])
def test_log_probabilities_that_are_not_finite_are_left_out(values: list[float]) -> None:
    found = qs.summarise(values)
    finite = [v for v in values if math.isfinite(v)]
    if finite:
        assert found["logprob_mean"] == pytest.approx(np.mean(finite)) and found["logprob_min"] == min(finite)
    else:
        assert math.isnan(found["logprob_mean"]) and math.isnan(found["logprob_group"])


def made(k: int = 12, questions: int = 80) -> list[list[qs.Sample]]:
    return qs.typical(k, questions)


def test_schedule_is_optimal_for_the_states_that_it_knows() -> None:
    # Unanimous questions and split ones: one look tells which, and no more is needed for the first.
    easy = [[qs.Sample("a")] * 8 for _ in range(30)]
    hard = [[qs.Sample("a")] * 5 + [qs.Sample("b")] * 3 for _ in range(30)]
    known = qs.learn(easy + hard, sizes=(2, 4, 6))
    plan = known.plan(qs.Price(rho=1.0).passes, error=100)
    assert plan.at(2, 1, 1).draw > 0 and plan.at(4, 4, 0).draw == 0
    cheap = known.plan(qs.Price(rho=1.0).passes, error=0.1)
    assert cheap.at(0, 0, 0).draw == 0  # nothing is worth a pass
    assert plan.at(8, 8, 0).draw == 0 and plan.at(0, 0, 0).gain > 0.5


def test_dearer_samples_make_smaller_rounds_and_dearer_errors_more_samples() -> None:
    known = qs.learn(made())
    first = [known.plan(qs.Price(rho).passes, 20).at(0, 0, 0).draw for rho in (0.01, 1.0)]
    assert first[0] > first[1]
    spent = []
    for error in (5, 50, 500):
        right, passes = known.follow(known.plan(qs.Price(0.3).passes, error), qs.Price(0.3).passes)
        spent.append((passes.mean(), right.mean()))
    assert spent == sorted(spent)


def test_tuned_schedule_loses_no_more_than_tolerated() -> None:
    known = qs.learn(made(questions=200))
    price = qs.Price(1.0)
    error, plan = known.tune(price.passes, 0.02)
    right, passes = known.follow(plan, price.passes)
    assert 1 - right.mean() <= 0.03 and passes.mean() < 0.8 * price.passes(12) and error > 0


def checked(questions: int = 160, k: int = 16) -> list[qs.Recorded]:
    """Each sample is right in 40 %, wrong ones agree in part, and a feature tells nine in ten of them apart."""
    rng = np.random.default_rng(1)
    made_ = []
    for q in range(questions):
        right = rng.random(k) < 0.4
        answers = tuple("1" if r else str(rng.integers(2, 5)) for r in right)
        check = [float(r if rng.random() < 0.9 else not r) for r in right]
        made_.append(qs.Recorded(str(q), "1", answers, tuple(right.astype(float)), {"check": check}))
    return made_


def test_a_weighted_schedule_may_stop_where_it_is_as_right_as_the_plain_vote() -> None:
    log = checked()
    plain = qs.run_rule(log, "self-consistency", qs.Settings(orders=2))
    whole = qs.run_rule(log, "eac-arde", qs.Settings(features=["check"], orders=2))
    like = qs.run_rule(log, "eac-arde", qs.Settings(features=["check"], orders=2, like_vote=True))
    assert like.passes.mean() < 0.8 * whole.passes.mean() and like.samples.mean() < whole.samples.mean()
    assert like.right.mean() > plain.right.mean() - 0.03 and whole.right.mean() > plain.right.mean() + 0.05
    with pytest.raises(InputError, match="marks of the same questions"):
        qs.learn(made()).tune(qs.Price().passes, vote=qs.learn(made()))


def test_nothing_to_save_is_one_batch() -> None:
    # Votes that are open to the end, and samples that cost next to nothing in a batch.
    rng = np.random.default_rng(0)
    open_votes = [[qs.Sample(str(a)) for a in rng.integers(0, 2, 11)] for _ in range(60)]
    price = qs.Price(0.001)
    error, plan = qs.learn(open_votes).tune(price.passes, 0.0)
    assert error == math.inf and plan.at(0, 0, 0).draw == 11 and plan.at(11, 6, 5).draw == 0
    assert plan.at(0, 0, 0).passes == pytest.approx(price.passes(11))


def test_states_that_history_has_not_seen_take_the_nearest_advice() -> None:
    plan = qs.learn([[qs.Sample("a")] * 6] * 3, sizes=(2, 4)).plan(qs.Price().passes, 10)
    assert plan.at(2, 1, 1).p == plan.at(2, 2, 0).p
    assert plan.at(3, 3, 0).draw in (0, plan.at(2, 2, 0).draw - 1, 1)
    assert plan.at(99, 50, 49).draw == 0


def test_history_of_nothing_is_refused() -> None:
    for questions in ([], [[]], [[qs.Sample("a")], [qs.Sample("a")] * 2]):
        with pytest.raises(InputError, match="history: found"):
            qs.learn(questions)
    unparsed = qs.learn([[qs.Sample(None)] * 4] * 2)
    assert unparsed.plan(qs.Price().passes, 10).at(0, 0, 0).gain == 0


def test_likeliest_answers_need_fewer_draws_than_votes() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    questions = [[qs.Sample(str(a), logprob=float(np.log(p[a]))) for a in rng.choice(5, 16, p=p)] for _ in range(60)]
    right = []
    for view in (qs.Votes(), qs.Likeliest()):
        found = 0
        for samples in questions:
            tally = qs.Tally()
            for sample in samples[:8]:
                tally.add(sample)
            found += view.choose(tally) == "0"
        right.append(found)
    assert right[1] > right[0]
    assert qs.Likeliest().state(qs.Tally()) == (0, 10)
    unusable = qs.Tally()
    unusable.add(qs.Sample("x", logprob=math.nan))
    assert qs.Likeliest().choose(unusable) == "x"


def arm(name: str, rung: int, questions: list[list[qs.Sample]], joules: float, right: float = 1.0) -> qs.Arm:
    price = qs.Price(0.1, joules)
    return qs.Arm(name, rung, price, qs.learn(questions).plan(price.passes, 30), right=right)


def test_eac_takes_the_arm_with_the_better_gain_per_joule_and_escalates() -> None:
    questions = made()
    small, large = arm("small", 0, questions, 1.0, right=0.5), arm("large", 1, questions, 10.0, right=0.9)
    eac = qs.Eac([large, small])
    draw = eac.next({}, qs.Cost(), qs.Caps(), (1.0, 1.0))
    assert isinstance(draw, qs.Draw) and draw.rung == 0
    tally = qs.Tally()
    for _ in range(12):
        tally.add(qs.Sample("a"))
    draw = eac.next({0: tally}, qs.Cost(), qs.Caps(), (1.0, 1.0))
    assert isinstance(draw, qs.Draw) and draw.rung == 1  # .5 of a settled vote against .9
    assert qs.Eac([large, small], least=0.2).next({0: tally}, qs.Cost(), qs.Caps(), (1.0, 1.0)) is qs.Reason.PRICE
    assert qs.Eac([small]).next({0: tally}, qs.Cost(), qs.Caps(), (1.0, 1.0)) is qs.Reason.BUDGET


def test_caps_are_hard() -> None:
    price = qs.Price(rho=0.5, joules=2.0, seconds=1.0, spread=1.5)
    caps = qs.Caps(joules=12.0)
    # 95 % of a pass costs 3 J: 12 J are 4 passes, 1 + (b - 1) / 2.
    assert caps.fits(price, qs.Cost(), 0, 100) == 7
    assert price.cost(7).joules * 1.5 <= 12 < price.cost(8).joules * 1.5
    assert caps.fits(price, qs.Cost(joules=9.5), 0, 100) == 0
    assert qs.Caps(samples=5).fits(price, qs.Cost(), 3, 100) == 2
    assert qs.Caps(seconds=1.4).fits(price, qs.Cost(), 0, 100) == 0
    assert caps.fits(price, qs.Cost(), 0, 100, spread=(2.0, 1.0)) == 3  # rounds have cost twice their price


@pytest.mark.parametrize("field", ["rho", "joules", "seconds", "prompt", "spread"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_prices_that_are_none_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"price: {field} is"):
        qs.Price(**{field: value})


def test_a_forecast_is_the_share_of_futures_that_the_leader_wins() -> None:
    score = qs.forecast(12)
    assert score(12, 7, 5) == 1.0 and score(12, 6, 6) == 0.5 and score(9, 6, 2) == 1.0 and score(3, 0, 0) == 0.0
    assert score(4, 2, 2) == pytest.approx(0.5) and score(6, 5, 1) > score(6, 4, 2) > score(6, 3, 3)
    # The two urns, drawn from.
    rng, n, first, second = np.random.default_rng(0), 5, 3, 1
    won = 0.0
    for _ in range(20_000):
        a, b, others = first, second, n - first - second
        for _ in range(12 - n):
            if rng.random() < (a + b + 1) / (a + b + others + 1.5):
                leader = rng.random() < (a + 1) / (a + b + 2)
                a, b = a + leader, b + (not leader)
            else:
                others += 1
        won += (a > b) + (a == b) / 2
    assert score(n, first, second) == pytest.approx(won / 20_000, abs=0.012)


def test_risk_is_controlled_over_calibrations() -> None:
    rng = np.random.default_rng(0)
    risks = np.array([0.0, 0.01, 0.03, 0.06, 0.1])  # of an ordered family; alpha .05
    taken = []
    for _ in range(400):
        losses = (rng.random((5, 300)) < risks[:, None]).astype(float)
        place = qs.control(losses, 0.05, 0.1).place
        taken.append(-1.0 if place is None else risks[place])
    assert np.mean(np.array(taken) > 0.05) <= 0.1
    assert np.mean(np.array(taken) >= 0.01) > 0.9  # and not by refusing everything


def test_p_values_are_valid_and_exact_for_zero_and_one() -> None:
    rng = np.random.default_rng(1)
    for p_value, draw in ((binomial_p, lambda: (rng.random(100) < 0.1).astype(float)),
                          (betting_p, lambda: 0.2 * rng.random(100)),
                          (betting_p, lambda: (rng.random(100) < 0.2) * rng.random(100))):  # fmt: skip
        found = np.array([p_value(draw(), 0.1) for _ in range(500)])
        assert np.mean(found <= 0.1) <= 0.1 + 3 * math.sqrt(0.09 / 500)
    assert binomial_p(np.zeros(230), 0.01) == pytest.approx(0.99**230)
    assert qs.control(np.ones((2, 50)), 0.01, 0.1).place is None
    # Small losses of some questions can be shown where whole ones could not.
    losses = np.zeros(400)
    losses[::33] = 0.05
    assert betting_p(losses, 0.01) < 0.1 < binomial_p(np.ceil(losses), 0.01)
    with pytest.raises(InputError, match="losses"):
        qs.control(np.array([[0.0, math.nan]]))


def test_pass_at_k_is_the_mean_over_subsets() -> None:
    from itertools import combinations

    marks = [1, 0, 0, 1, 0]
    for k in range(1, 6):
        subsets = list(combinations(marks, k))
        assert qs.pass_at_k(5, 2, k) == pytest.approx(np.mean([any(s) for s in subsets]))
    for n, c, k in ((5, 6, 1), (5, 1, 0), (5, 1, 6), (5, -1, 1)):
        with pytest.raises(InputError, match="pass@"):
            qs.pass_at_k(n, c, k)


def test_metrics_by_hand() -> None:
    assert qs.ipw(0.757, 63.8) == pytest.approx(0.757 / 63.8) and qs.ipj(0.5, 20.0) == 0.025
    assert qs.ece(0.4, 0.7, 1.0, 4.0) == pytest.approx(0.1) and qs.ppp(100, 2.0, 50.0) == 1.0
    wrong = (lambda: qs.ipw(1, 0), lambda: qs.ipj(1, math.nan), lambda: qs.ece(0, 1, 2, 2), lambda: qs.ppp(1, 0, 1))
    for call in wrong:
        with pytest.raises(InputError, match="expected a positive number"):
            call()


def lawful(alpha: float, exponent: float, questions: int, k: int, seed: int) -> np.ndarray:
    """Marks whose coverage is the law: -log(1 - p) is a positive stable variable, whose Laplace transform it is."""
    rng = np.random.default_rng(seed)
    u, e, b = np.pi * rng.random(questions), rng.exponential(size=questions), exponent
    stable = np.sin(b * u) / np.sin(u) ** (1 / b) * (np.sin((1 - b) * u) / e) ** ((1 - b) / b)
    p = 1 - np.exp(-(alpha ** (1 / b)) * stable)
    return (rng.random((questions, k)) < p[:, None]).astype(float)


def test_coverage_law_is_found_again() -> None:
    law = qs.fit_coverage([lawful(0.3, 0.6, 1500, 64, 0)], rounds=60)
    assert law.alpha.low <= 0.3 <= law.alpha.high and law.b_s.low <= 0.6 <= law.b_s.high
    assert law.error < 0.02 and math.isnan(law.b_n.value) and law.alpha.high - law.alpha.low < 0.1
    assert float(law(8)) == pytest.approx(1 - math.exp(-0.3 * 8**0.6), abs=0.03)


def test_coverage_law_knows_the_size_of_models() -> None:
    sizes = [1e8, 1e9]
    marks = [lawful(0.002 * n**0.25, 0.6, 1500, 32, i) for i, n in enumerate(sizes)]
    law = qs.fit_coverage(marks, sizes, rounds=40)
    assert law.b_n.low <= 0.25 <= law.b_n.high and law.b_n.high - law.b_n.low < 0.15


def test_coverage_law_without_a_shape_is_refused() -> None:
    for useless in (np.zeros((5, 4)), np.ones((5, 4))):
        with pytest.raises(InputError, match="coverage"):
            qs.fit_coverage([useless])


def test_paired_intervals_are_narrower_than_unpaired_ones() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(200)
    b = a + 0.05 + 0.01 * rng.normal(size=200)
    found = qs.paired_difference(b, a)
    assert found.low > 0.04 and found.high < 0.06
    assert qs.paired_ratio(b, a).value == pytest.approx(b.mean() / a.mean())
    covered = 0
    for seed in range(100):
        x = np.random.default_rng(seed).normal(size=60)
        interval = qs.bootstrap(x, rounds=300, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert covered >= stats.binom.ppf(0.001, 100, 0.93)
