"""Repeated sampling on recorded samples and in simulation: certificates, look schedules, risk, weights, tests, time.

python benchmarks/selection.py [--quick] [--data FOLDER] [--only PART ...] [--json FILE]

No model runs here; passes are modelled as rounds of 1 + (b - 1) rho. Whatever is learned or tuned is so on one half of
the questions and reported on the other, both ways, unless a row says otherwise. Logs missing in --data are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, Report, options, publish
from scipy import stats

from qeil_compile import sampling as qs
from qeil_compile.sampling import named, plots
from qeil_compile.sampling.baselines import AdaptiveConsistency, SelfConsistency, beta_majority
from qeil_compile.sampling.extract import latex

CLOZE = "tinystories_cloze/stories260K_T1.0_k40_logprobs.jsonl.gz"
AIME = "deepconf_aime25/dsr1-0528-qwen3-8b_budget{}_answerconf.jsonl.gz"
CRUX = "cruxeval/codellama-7b_T0.2_{}_k10.jsonl.gz"
CODE = "humaneval_codegen16b/he_codegen-16B-mono_T0.8_k100_exec.jsonl.gz"
RHOS = (0.02, 0.05, 0.1, 0.3)


# --- CERT -------------------------------------------------------------------------------------------------------------

MODES = {
    ".505 .495": (0.505, 0.495), ".4 .39 .21": (0.4, 0.39, 0.21), ".26 .25 .25 .24": (0.26, 0.25, 0.25, 0.24),
    ".14, nine below": (0.14, 0.13, 0.12, 0.11, 0.1, 0.1, 0.1, 0.08, 0.07, 0.05), ".6 .4": (0.6, 0.4),
}  # fmt: skip


def cert(args: Any) -> Report:
    """Wrong certificates of close modes, beside how often the published rules stop with another answer than the mode."""
    runs, draws = (1000, 200) if args.quick else (10_000, 500)
    grouped = np.isin(np.arange(1, draws + 1), (4, 8, 16, 40, 64, 128, 256, draws))
    rows = []
    for name, modes in MODES.items():
        rng = np.random.default_rng(0)
        found: dict[str, list[np.ndarray]] = {}
        for _ in range(runs // 500):
            paths = np.searchsorted(np.cumsum(modes), rng.random((500, draws))).clip(max=len(modes) - 1)
            at_random = rng.random((500, draws)) < 0.1
            looks = {"every draw": None, "4/8/16/40/...": grouped, "random": at_random}
            for look, where in looks.items():
                found.setdefault(f"CERT(.05), {look}", []).append(qs.certify_paths(paths, 0.05, where)[1])
            found.setdefault("CERT(.05), spike .5", []).append(qs.certify_paths(paths, 0.05, spike=0.5)[1])
            for rule, answers in _published(paths, len(modes)).items():
                found.setdefault(rule, []).append(answers)
        for rule, parts in found.items():
            answer = np.concatenate(parts)
            wrong = int((answer > 0).sum())
            upper = float(stats.beta.ppf(0.95, wrong + 1, runs - wrong))
            rows.append({"modes": name, "rule": rule, "wrong [%]": 100 * wrong / runs, "upper 95 % [%]": 100 * upper,
                         "stopped [%]": 100 * float((answer >= 0).mean()), "runs": runs, "draws": draws})  # fmt: skip
    certs = [r for r in rows if r["rule"].startswith("CERT")]
    report = Report("cert", "wrong answers at a stop, looked at after every draw unless said otherwise (simulated)",
                    ("modes", "rule", "wrong [%]", "upper 95 % [%]", "stopped [%]", "runs"), rows)  # fmt: skip
    report.notes = [f"CERT at delta 5 %: worst upper 95 % bound {max(r['upper 95 % [%]'] for r in certs):.2f} %"]
    return report


def _published(paths: np.ndarray, answers: int) -> dict[str, np.ndarray]:
    """Answers at the first stop of published rules asked after every draw, -1 where none, int [runs]."""
    counts = np.stack([(paths == a).cumsum(axis=1) for a in range(answers)])
    ranked = np.sort(counts, axis=0)
    first, second, leader = ranked[-1], ranked[-2], counts.argmax(axis=0)
    table = np.array([[beta_majority(a, b) if b <= a else 0.0 for b in range(120)] for a in range(120)])
    sure = table[np.minimum(first, 119), np.minimum(second, 119)] > 0.95  # 119 draws each: settled or hopelessly close
    far = (first > 119) | (second > 119)
    z = (first - second) / np.sqrt(np.maximum(first + second, 1))
    sure = np.where(far, z > 1.645, sure)
    window = np.zeros_like(sure)
    for end in range(5, paths.shape[1] + 1, 5):
        window[:, end - 1] = (paths[:, end - 5 : end] == paths[:, end - 1 : end]).all(axis=1)
    result = {}
    for name, stop, choice in (("Adaptive-Consistency .95", sure, leader), ("lead >= 3", first - second >= 3, leader),
                               ("ESC 5", window, paths)):  # fmt: skip
        at = stop.argmax(axis=1)
        result[name] = np.where(stop.any(axis=1), choice[np.arange(len(paths)), at], -1)
    return result


# --- EAC --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Set:
    """A log as EAC sees it: how to look at its samples, and what each must carry for that."""

    name: str
    file: str
    view: qs.View
    prepare: Callable[[qs.Recorded], qs.Recorded] = lambda r: r


def _exact(recorded: qs.Recorded) -> qs.Recorded:
    return replace(recorded, columns={**recorded.columns, "logprob": recorded.columns["lp_sum"]})


SETS = (
    Set("cloze, votes", CLOZE, qs.Votes()), Set("cloze, exact log-probabilities", CLOZE, qs.Likeliest(), _exact),
    Set("CRUXEval output", CRUX.format("output"), qs.Votes()), Set("CRUXEval input", CRUX.format("input"), qs.Votes()),
    Set("MATH, k = 8", "qwen25math_rm/math100_qwen2.5-math_k8_rm72b.jsonl.gz", qs.Votes()),
    Set("AIME25, k = 64", AIME.format(64), qs.Votes(), lambda r: respelled(r)),
    Set("AIME25, k = 128", AIME.format(128), qs.Votes(), lambda r: respelled(r)),
    Set("GSM8K, k = 5", "gsm8k_gpt41mini/gsm8k150_gpt-4.1-mini_k5.jsonl.gz", qs.Votes()),
)  # fmt: skip
#: Grouped looks of Adaptive-Consistency; the cheapest of them in hindsight is what EAC is compared with.
GROUPED = ((4, 8, 16, 40, 64), (8, 16, 40), (8, 40), (12, 40), (16, 64), (4, 12), (4,), (5,))


def eac(args: Any) -> Report:
    """Passes at equal accuracy against self-consistency in one batch and Adaptive-Consistency, one by one and grouped."""
    rows: list[dict[str, Any]] = []
    for each in SETS if not args.quick else SETS[4:5]:
        path = args.data / each.file
        if not path.is_file():
            continue
        rows += _eac_rows(each, [each.prepare(r) for r in qs.read_log(path)], 2 if args.quick else 4)
    columns = ("log", "rho", "SC k", "AC", "AC grouped", "EAC", "accuracy SC", "accuracy EAC", "difference 95 %",
               "best / EAC", "AC grouped / EAC", "disagreement", "met")  # fmt: skip
    report = Report("eac", "passes per question (modelled); goals 1.5 and 1.1 at equal accuracy", columns, rows)
    report.notes = [
        "EAC learns and tunes on one half of the questions (tolerance .003 of accuracy there) and is asked the other half,"
        " both ways. AC grouped: the cheapest of several look schedules in hindsight.",
        f"met in {sum(r['met'] == 'yes' for r in rows)} of {len(rows)} rows; a round costs 1 pass at least, so that where"
        " SC costs less than 1.5 passes no schedule can.",
    ]
    return report


def _eac_rows(each: Set, log: Sequence[qs.Recorded], orders: int) -> list[dict[str, Any]]:
    k = max(map(len, log))
    fold = np.random.default_rng(0).permutation(len(log)) % 2
    parts = [[r for r, f in zip(log, fold, strict=True) if f == x] for x in (0, 1)]
    histories = [qs.learn(named.samples_of(p), [r.correct or () for r in p], each.view) for p in parts]

    def ask(build: Callable[[int], qs.Selector], price: qs.Price) -> dict[str, np.ndarray]:
        found = [qs.replay(parts[x], build(x), price, orders=orders, seed=x) for x in (0, 1)]
        return {n: np.concatenate([getattr(r, n) for r in found]) for n in
                ("right", "agrees", "samples", "rounds", "passes")}  # fmt: skip

    def published(rule: qs.Rule, sizes: Sequence[int]) -> dict[str, np.ndarray]:
        return ask(lambda x: qs.Selector(qs.Looks(tuple(sizes)), [rule]), qs.Price())

    full = published(SelfConsistency(k), (k,))
    single = published(AdaptiveConsistency(), range(1, k + 1))
    looks = [s for s in GROUPED if s[0] < k]
    grouped = [published(AdaptiveConsistency(), [*(n for n in s if n < k), k]) for s in looks]
    rows = []
    for rho in RHOS:
        price = qs.Price(rho)

        def build(x: int, price: qs.Price = price) -> qs.Selector:
            schedule = histories[1 - x].tune(price.passes)[1]
            return qs.Selector(qs.Eac([qs.Arm("eac", 0, price, schedule)]), choose=each.view.choose)

        def passes(found: dict[str, np.ndarray], rho: float = rho) -> np.ndarray:
            return found["rounds"] * (1 - rho) + found["samples"] * rho

        mine = ask(build, price)
        best = min((passes(full), passes(single)), key=lambda p: float(p.mean()))
        fair = min((passes(g) for g in grouped), key=lambda p: float(p.mean()))
        gap = qs.paired_difference(mine["right"], full["right"])
        ratio, ratio_fair = qs.paired_ratio(best, mine["passes"]), qs.paired_ratio(fair, mine["passes"])
        met = ratio.value >= 1.5 and ratio_fair.value >= 1.1 and gap.low <= 0 <= gap.high
        rows.append({
            "log": each.name, "rho": rho, "SC k": passes(full).mean(), "AC": passes(single).mean(),
            "AC grouped": fair.mean(), "EAC": mine["passes"].mean(), "accuracy SC": full["right"].mean(),
            "accuracy EAC": mine["right"].mean(), "difference 95 %": f"{gap.low:+.3f} to {gap.high:+.3f}",
            "best / EAC": ratio.value, "best / EAC 95 %": ratio[1:], "AC grouped / EAC": ratio_fair.value,
            "AC grouped / EAC 95 %": ratio_fair[1:], "disagreement": 1 - mine["agrees"].mean(),
            "accuracy AC": single["right"].mean(), "met": "yes" if met else "no",
        })  # fmt: skip
    return rows


# --- RISK -------------------------------------------------------------------------------------------------------------


def risk(args: Any) -> Report:
    """Violations over splits, with the risk known: calibration questions are drawn with replacement from a population."""
    splits, rows = 20 if args.quick else 200, []
    files = {"cloze": CLOZE, "CRUXEval output": CRUX.format("output"), "CRUXEval input": CRUX.format("input")}
    for name, file in files.items():
        if not (args.data / file).is_file():
            continue
        log = qs.read_log(args.data / file)
        for alpha in (0.01, 0.05):
            rows.append(_risk_row(name, log, alpha, splits))
        if args.quick:
            break
    return Report("risk", "RISK at delta .1: how often the risk exceeds alpha, over splits", (
        "log", "alpha", "calibration", "violations [%]", "violations held out [%]", "certified [%]", "samples", "AC .95",
        "disagreement", "disagreement AC", "met"), rows, [
        "violations: the population is the log without the third that orders the family, its risk known exactly, and "
        "calibration questions are drawn from it with replacement; held out: half of it calibrates, the other half "
        "measures, so that noise of the measurement counts too. Losses are means over 4 orders of a question's samples"])  # fmt: skip


BARS = (1.0, 0.999, 0.998, 0.9965, 0.995, 0.9925, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5)


def _risk_row(name: str, log: Sequence[qs.Recorded], alpha: float, splits: int, delta: float = 0.1) -> dict[str, Any]:
    k = len(log[0])
    exact, held, certified, samples, adaptive, disagree, disagree_ac = ([] for _ in range(7))
    for fit in range(max(splits // 40, 1)):
        rng = np.random.default_rng(fit)
        order = rng.permutation(len(log))
        ordering, rest = ([log[int(i)] for i in part] for part in np.split(order, [len(log) // 3]))
        sizes = tuple(range(1, k + 1))
        score = qs.learn(named.samples_of(ordering), sizes=sizes, orders=20, seed=fit).score()
        plan = qs.Looks(sizes)
        family = [qs.Selector(plan, [qs.Curtail(k), qs.Threshold(score, bar)]) for bar in BARS]
        found = [qs.replay(rest, s, orders=4, seed=fit) for s in family]
        # The order of the rules ends where nothing can be shown: then only settled votes stop.
        settled = qs.replay(rest, qs.Selector(plan, [qs.Curtail(k)]), orders=4, seed=fit)
        losses, drawn = np.array([1 - f.agrees for f in found]), np.array([f.samples for f in found])
        plain = qs.replay(rest, qs.Selector(plan, [AdaptiveConsistency()]), orders=4, seed=fit)
        count = len(rest)
        for _ in range(min(40, splits)):
            place = qs.control(losses[:, rng.integers(0, count, count)], alpha, delta).place
            exact.append(place is not None and losses[place].mean() > alpha)
            certified.append(place is not None)
            samples.append(settled.samples.mean() if place is None else drawn[place].mean())
            disagree.append(0.0 if place is None else losses[place].mean())
            adaptive.append(plain.samples.mean())
            disagree_ac.append(plain.disagreement)
            half = rng.permutation(count)
            place = qs.control(losses[:, half[: count // 2]], alpha, delta).place
            held.append(place is not None and losses[place][half[count // 2 :]].mean() > alpha)
    met = np.mean(exact) <= delta and np.mean(samples) < np.mean(adaptive)
    return {"log": name, "alpha": alpha, "calibration": count, "violations [%]": 100 * np.mean(exact),
            "violations held out [%]": 100 * np.mean(held), "certified [%]": 100 * np.mean(certified),
            "samples": np.mean(samples), "AC .95": np.mean(adaptive), "disagreement": np.mean(disagree),
            "disagreement AC": np.mean(disagree_ac), "splits": len(exact), "met": "yes" if met else "no"}  # fmt: skip


# --- ARDE -------------------------------------------------------------------------------------------------------------


def respelled(recorded: qs.Recorded) -> qs.Recorded:
    """The same with equal spellings of formulas made one answer, and marked anew."""
    answers = tuple(None if a is None else latex(a) for a in recorded.answers)
    gold = latex(str(recorded.gold))
    return replace(recorded, answers=answers, correct=tuple(float(a == gold) for a in answers))


def arde(args: Any) -> Report:
    """Accuracy on AIME25 traces under cross-validation, by the file's marks and by marks that know spellings."""
    rows: list[dict[str, Any]] = []
    for k in (64, 128):
        path = args.data / AIME.format(k)
        if not path.is_file():
            continue
        given = qs.read_log(path)
        for marks, log in (("the file's", given), ("spelling apart", [respelled(r) for r in given])):
            settings = qs.Settings(orders=0, folds=len(log))
            whole = [_completed(r) for r in log]
            rows.append({
                "k": k, "marks": marks, "vote": qs.run_rule(log, "self-consistency", settings).accuracy,
                "completed only": float(np.mean(whole)),
                "ARDE": qs.run_rule(log, "arde", settings).accuracy,
                "ARDE, no labels": qs.run_rule(log, "arde", replace(settings, labels=False)).accuracy,
                "ceiling": float(np.mean([any(r.correct or ()) for r in log])), "AUC": _auc(log),
            })  # fmt: skip
    columns = ("k", "marks", "vote", "completed only", "ARDE", "ARDE, no labels", "ceiling", "AUC")
    return Report("arde", "accuracy on AIME25, leave one question out", columns, rows, [
        "ceiling: some trace is right, pass@k. By the file's marks it is what keeping only completed traces gives: no "
        "selection can exceed it. The scale of the log-odds was chosen on k = 64. AUC: within questions, of the mean "
        "confidence.",
    ])  # fmt: skip


def _completed(recorded: qs.Recorded) -> float:
    tally = qs.Tally()
    for sample in qs.replayed(recorded).samples:
        if not sample.feature("truncated"):
            tally.add(sample)
    return recorded.right(tally.leader) or 0.0


def _auc(log: Sequence[qs.Recorded]) -> float:
    pairs = [(r.sample(i).feature("conf_mean_min.0"), (r.correct or ())[i], q) for q, r in enumerate(log)
             for i in range(len(r))]  # fmt: skip
    values, correct, questions = (np.array(c, float) for c in zip(*pairs, strict=True))
    return qs.within_auc(values, correct, questions)


# --- programs and their tests -----------------------------------------------------------------------------------------


#: Exponents among which one half of the problems chooses for the other: agreement, trust.
EXPONENTS = [(a, t) for a in (0.3, 0.4, 0.5, 0.7) for t in (0.0, 0.5, 0.75, 1.0)]


def programs(args: Any) -> Report:
    """HumanEval: programs chosen by tests that the model wrote, all 100 samples against a quarter of them."""
    report = Report("programs", "HumanEval, CodeGen-16B: accuracy of the chosen program", (
        "selection", "accuracy", "accuracy 95 %", "against CodeT, all 100", "samples", "verifier's time [%]", "met"))  # fmt: skip
    if not (args.data / CODE).is_file():
        return report
    log = [_program(r) for r in qs.read_log(args.data / CODE)]
    orders = 2 if args.quick else 24
    codet, default = (0.5, 0.0, True), (0.5, 0.5, False)
    table, all_time = _chosen(log, 100, [codet], orders)
    reference = table[0]
    quarter, time_share = _chosen(log, 25, [codet, default, *((*e, False) for e in EXPONENTS)], orders)
    learned = np.zeros(len(log))
    halvings = 2 if args.quick else 50
    for seed in range(halvings):
        half = np.random.default_rng(seed).permutation(len(log)) % 2 == 0
        for known in (half, ~half):
            best = quarter[2:, known].mean(axis=1).argmax()
            learned[~known] += quarter[2 + best, ~known] / halvings
    for name, right, samples, spent in (("CodeT", reference, 100, all_time), ("CodeT", quarter[0], 25, time_share),
                                        ("consensus, exponents 1/2", quarter[1], 25, time_share),
                                        ("consensus, exponents learned", learned, 25, time_share)):  # fmt: skip
        interval, gap = qs.bootstrap(right), qs.paired_difference(right, reference)
        met = "" if name == "CodeT" else "yes" if interval.value >= 0.371 else "no"
        report.rows.append({
            "selection": name, "accuracy": interval.value,
            "accuracy 95 %": f"{interval.low:.3f} to {interval.high:.3f}",
            "against CodeT, all 100": f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})", "samples": samples,
            "verifier's time [%]": 100 * spent, "met": met,
        })  # fmt: skip
    report.notes = [
        f"exponents learned: of {len(EXPONENTS)} pairs the best of one half of the problems is asked the other, mean of "
        f"{halvings} halvings; {orders} orders. That equal texts count once was found on this log. Verifier's time: share "
        "of running all 100 programs, equal ones once.",
    ]
    return report


def _program(recorded: qs.Recorded) -> qs.Recorded:
    """Programs without any test to tell them apart are told apart by their text."""
    bits, texts = recorded.columns["test_bits"], recorded.columns["src"]
    return replace(recorded, answers=tuple(str(b) or str(t) for b, t in zip(bits, texts, strict=True)))


_TIMES: dict[str, list[float]] = {}


def _chosen(
    log: Sequence[qs.Recorded], samples: int, rules: Sequence[tuple[float, float, bool]], orders: int
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Accuracy by rule and problem, and the mean share of the verifier's time."""
    right, share = np.zeros((len(rules), len(log))), np.zeros(len(log))
    for q, recorded in enumerate(log):
        rng = np.random.default_rng(q)
        texts, spent = recorded.columns["src"], np.nan_to_num(np.array(recorded.columns["verify_ms"], float))
        times, correct = _TIMES[recorded.pid], np.array(recorded.correct)
        made = [qs.Consensus(times, samples, *rule) for rule in rules]
        for _ in range(orders):
            tally = qs.Tally()
            for sample in qs.replayed(recorded, rng).samples[:samples]:
                tally.add(replace(sample, text=texts[sample.index]))
            # Equal programs need to be run only once; programs that behave alike are taken for one another: their mean.
            share[q] += sum({s.text: spent[s.index] for s in tally.samples}.values()) / (spent.sum() or 1) / orders
            means: dict[str | None, float] = {}
            for i, rule in enumerate(made):
                answer = rule.choose(tally)
                if answer not in means:
                    means[answer] = correct[[s.index for s in tally.samples if s.answer == answer]].mean()
                right[i, q] += means[answer] / orders
    return right, float(share.mean())


# --- verified, time ---------------------------------------------------------------------------------------------------


def verified(args: Any) -> Report:
    """Game of 24 with its exact check: coverage of k samples, and what drawing until one is accepted costs."""
    report = Report("verified", "drawing until the verifier accepts, rounds 4/8/16/32/64/100", (
        "log", "pass@k", "accuracy", "samples", "of k [%]", "passes, rho .1", "one batch"))  # fmt: skip
    for kind in ("cot", "standard"):
        path = args.data / f"tot_game24/gpt-4_{kind}_k100.jsonl.gz"
        if not path.is_file():
            continue
        log = qs.read_log(path)
        selector = qs.Selector(qs.Looks((4, 8, 16, 32, 64, 100)), [qs.Verified()])
        marked = qs.Verification(lambda question, s: bool(question.recorded.correct[s.index]), by_answer=False)
        found = qs.replay(log, selector, qs.Price(0.1), verification=marked, orders=2)
        k = len(log[0])
        report.rows.append({
            "log": kind, "pass@k": float(np.mean([any(r.correct or ()) for r in log])), "accuracy": found.accuracy,
            "samples": found.samples.mean(), "of k [%]": 100 * found.samples.mean() / k,
            "passes, rho .1": found.passes.mean(), "one batch": qs.Price(0.1).passes(k),
        })  # fmt: skip
    return report


def timing(args: Any) -> Report:
    """The selector's own time per sample, on the cloze log: best of several runs, measured."""
    report = Report("time", "the selector's own time per sample [us] (measured)", ("selector", "time [us]", "met"))
    path = args.data / CLOZE
    if not path.is_file():
        return report
    log = qs.read_log(path)[:100]
    schedule = qs.learn(named.samples_of(log)).plan(qs.Price(0.1).passes, 20)
    weigh = named.reliability_of(log, qs.Settings())
    streams = [list(qs.replayed(r).samples) for r in log]
    eac_ = qs.Eac([qs.Arm("eac", 0, qs.Price(0.1), schedule)])
    kinds = {
        "CSVET (CERT, CURTAIL)": qs.Selector(rules=qs.csvet(0.05, 41)),
        "EAC + CSVET": qs.Selector(eac_, qs.csvet(0.05, 41)),
        "EAC + ARDE + CSVET": qs.Selector(eac_, qs.csvet(0.05, 41), weigh=weigh),
        "weighted CERT + ARDE": qs.Selector(rules=[qs.WeightedCert()], weigh=weigh),
        "Adaptive-Consistency Dirichlet": qs.Selector(rules=[named.baselines.DirichletConsistency()]),
    }
    for name, selector in kinds.items():
        best = min(_stream_seconds(selector, streams) for _ in range(2 if args.quick else 7))
        report.rows.append({"selector": name, "time [us]": best * 1e6, "met": "yes" if best <= 50e-6 else "no"})
    return report


def _stream_seconds(selector: qs.Selector, streams: Sequence[Sequence[qs.Sample]]) -> float:
    """Seconds per sample, a decision about the next round every 4 samples included."""
    started, count = time.perf_counter(), 0
    for stream in streams:
        inquiry = selector.open()
        for i, sample in enumerate(stream):
            if i % 4 == 0:
                inquiry.next()
                inquiry.stop = None
            inquiry.add(sample)
            if i % 4 == 3:
                inquiry.end_round(qs.Cost(1.3, 1.3, 1.3))
            inquiry.stop = None
            count += 1
    return (time.perf_counter() - started) / count


# --- all of it --------------------------------------------------------------------------------------------------------

PARTS = {"cert": cert, "eac": eac, "risk": risk, "arde": arde, "programs": programs, "verified": verified,
         "time": timing}  # fmt: skip


def _plot(args: Any, folder: Path) -> None:
    path = args.data / "qwen25math_rm/math100_qwen2.5-math_k8_rm72b.jsonl.gz"
    cloze = args.data / CLOZE
    if path.is_file():
        log = qs.read_log(path)
        rules = ("self-consistency", "adaptive", "esc", "lead", "cert", "eac", "best-of-n")
        replays = [qs.run_rule(log, r, qs.Settings(orders=2)) for r in rules]
        plots.plot_accuracy(replays, folder / "selection_accuracy.png")
    if cloze.is_file():
        log = qs.read_log(cloze)
        law = qs.fit_coverage([np.array([r.correct for r in log])], rounds=100)
        plots.plot_coverage(log, folder / "selection_coverage.png", law=law)
        plots.plot_evidence(max(log, key=lambda r: len(set(r.answers)) < 6), folder / "selection_evidence.png")


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--data", type=Path, default=ROOT / "benchmarks" / "data" / "samples")
        parser.add_argument("--only", action="append", choices=tuple(PARTS), default=None)

    args = options(__doc__ or "", more)
    if (args.data / CODE).is_file():
        _TIMES.update(_test_counts(args.data / CODE))
    reports = [part(args) for name, part in PARTS.items() if args.only is None or name in args.only]
    publish([r for r in reports if r.rows], args, "selection", label="modelled passes, simulated draws, measured time")
    if not args.quick:
        _plot(args, RESULTS)


def _test_counts(path: Path) -> dict[str, list[float]]:
    """How often each test of a problem was written, by problem: a column that is not one of samples."""
    import gzip
    import json

    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {d["pid"]: d["test_count"] for d in map(json.loads, lines)}


if __name__ == "__main__":
    main()
