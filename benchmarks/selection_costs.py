"""Rows of selection.py about what answers cost: look schedules, risk, programs and their tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Report

from qeil_compile import sampling as qs
from qeil_compile.sampling import named
from qeil_compile.sampling.baselines import AdaptiveConsistency, SelfConsistency
from qeil_compile.sampling.extract import latex

CLOZE = "tinystories_cloze/stories260K_T1.0_k40_logprobs.jsonl.gz"
AIME = "deepconf_aime25/dsr1-0528-qwen3-8b_budget{}_answerconf.jsonl.gz"
CRUX = "cruxeval/codellama-7b_T0.2_{}_k10.jsonl.gz"
REASONER = "reasoner/problems_T0.8_k40.jsonl.gz"
CODE = "humaneval_codegen16b/he_codegen-16B-mono_T0.8_k100_exec.jsonl.gz"
RHOS = (0.02, 0.05, 0.1, 0.3)


def respelled(recorded: qs.Recorded) -> qs.Recorded:
    """The same with equal spellings of formulas made one answer, and marked anew."""
    answers = tuple(None if a is None else latex(a) for a in recorded.answers)
    gold = latex(str(recorded.gold))
    return replace(recorded, answers=answers, correct=tuple(float(a == gold) for a in answers))


# --- EAC --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Set:
    """A log as EAC sees it: how to look at its samples, and what each must carry for that.

    `features`: those that ARDE weighs votes by where the view is of weighted ones (None: all of the log); a schedule
    need only be as right as the plain vote then.
    """

    name: str
    file: str
    view: qs.View
    prepare: Callable[[qs.Recorded], qs.Recorded] = lambda r: r
    features: Sequence[str] | None = None


def _exact(recorded: qs.Recorded) -> qs.Recorded:
    return replace(recorded, columns={**recorded.columns, "logprob": recorded.columns["lp_sum"]})


def _chains(recorded: qs.Recorded) -> qs.Recorded:
    checked = [qs.chain_features(text)["arithmetic"] for text in recorded.columns["text"]]
    return replace(recorded, columns={**recorded.columns, "arithmetic": checked})


SETS = (
    Set("cloze, votes", CLOZE, qs.Votes()), Set("cloze, exact log-probabilities", CLOZE, qs.Likeliest(), _exact),
    Set("CRUXEval output", CRUX.format("output"), qs.Votes()), Set("CRUXEval input", CRUX.format("input"), qs.Votes()),
    Set("MATH, k = 8", "qwen25math_rm/math100_qwen2.5-math_k8_rm72b.jsonl.gz", qs.Votes()),
    Set("AIME25, k = 64", AIME.format(64), qs.Votes(), respelled),
    Set("AIME25, k = 128", AIME.format(128), qs.Votes(), respelled),
    Set("AIME25, k = 64, ARDE", AIME.format(64), qs.WeightedVotes(), respelled),
    Set("AIME25, k = 128, ARDE", AIME.format(128), qs.WeightedVotes(), respelled),
    Set("reasoner, votes", REASONER, qs.Votes()),
    Set("reasoner, ARDE of its arithmetic", REASONER, qs.WeightedVotes(), _chains, ("arithmetic",)),
    Set("GSM8K, k = 5", "gsm8k_gpt41mini/gsm8k150_gpt-4.1-mini_k5.jsonl.gz", qs.Votes()),
)  # fmt: skip
#: Grouped looks of Adaptive-Consistency; the cheapest of them in hindsight is what EAC is compared with.
GROUPED = ((4, 8, 16, 40, 64), (8, 16, 40), (8, 40), (12, 40), (16, 64), (4, 12), (4,), (5,))


def eac(args: Any) -> Report:
    """Passes at equal accuracy: self-consistency in one batch, Adaptive-Consistency one by one and grouped, EAC."""
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
        "EAC learns and tunes on one half of the questions (tolerance .003 of accuracy there) and is asked the other,"
        " both ways. AC grouped: the cheapest of several look schedules in hindsight.",
        f"met in {sum(r['met'] == 'yes' for r in rows)} of {len(rows)} rows; a round costs 1 pass at least: where"
        " SC costs less than 1.5 passes no schedule can.",
    ]
    return report


def _eac_rows(each: Set, log: Sequence[qs.Recorded], orders: int) -> list[dict[str, Any]]:
    k = max(map(len, log))
    fold = np.random.default_rng(0).permutation(len(log)) % 2
    parts = [[r for r, f in zip(log, fold, strict=True) if f == x] for x in (0, 1)]
    weighted = isinstance(each.view, qs.WeightedVotes)
    settings = qs.Settings(features=each.features)
    weigh = [named.reliability_of(p, settings) if weighted else None for p in parts]
    histories = [named.learned(p, settings, each.view, w) for p, w in zip(parts, weigh, strict=True)]
    votes = [named.learned(p, settings) if weighted else None for p in parts]

    def ask(build: Callable[[int], qs.Selector], price: qs.Price) -> dict[str, np.ndarray]:
        found = [qs.replay(parts[x], build(x), price, orders=orders) for x in (0, 1)]
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
            schedule = histories[1 - x].tune(price.passes, vote=votes[1 - x])[1]
            arms = qs.Eac([qs.Arm("eac", 0, price, schedule)])
            return qs.Selector(arms, weigh=weigh[1 - x], choose=each.view.choose)

        def passes(found: dict[str, np.ndarray], rho: float = rho) -> np.ndarray:
            return found["rounds"] * (1 - rho) + found["samples"] * rho

        mine = ask(build, price)
        best = min((passes(full), passes(single)), key=lambda p: float(p.mean()))
        fair = min((passes(g) for g in grouped), key=lambda p: float(p.mean()))
        gap = qs.paired_difference(mine["right"], full["right"])
        ratio, ratio_fair = qs.paired_ratio(best, mine["passes"]), qs.paired_ratio(fair, mine["passes"])
        # Better than the vote of all is no worse than equal.
        met = ratio.value >= 1.5 and ratio_fair.value >= 1.1 and gap.high >= 0
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
    """Violations over splits, with the risk known: calibration questions are drawn from a population."""
    splits, rows = 20 if args.quick else 200, []
    files = {"cloze": CLOZE, "CRUXEval output": CRUX.format("output"), "CRUXEval input": CRUX.format("input")}
    for name, file in files.items():
        if not (args.data / file).is_file():
            continue
        rows += _risk_rows(name, qs.read_log(args.data / file), splits)
        if args.quick:
            break
    return Report("risk", "RISK at delta .1: how often the risk exceeds alpha, over splits", (
        "log", "alpha", "calibration", "violations [%]", "violations held out [%]", "certified [%]", "samples",
        "AC .95", "disagreement", "disagreement AC", "met"), rows, [
        "violations: the population is the log, its risk known exactly, and calibration questions are drawn from it "
        "with replacement; held out: half of it calibrates, the other half measures, so that noise of the measurement "
        "counts too. Losses are means over 3 orders"])  # fmt: skip


def _risk_rows(name: str, log: Sequence[qs.Recorded], splits: int, delta: float = 0.1) -> list[dict[str, Any]]:
    k = len(log[0])
    alphas = (0.01, 0.05)
    seen: dict[float, list[tuple[float, ...]]] = {alpha: [] for alpha in alphas}
    sizes, score = tuple(range(1, k + 1)), qs.forecast(k)
    for fit in range(max(splits // 40, 1)):
        rng = np.random.default_rng(fit)

        def ask(rules: Sequence[qs.Rule], fit: int = fit) -> qs.Replay:
            return qs.replay(log, qs.Selector(qs.Looks(sizes), rules), orders=3, seed=fit)

        found = [ask([qs.Curtail(k), qs.Threshold(score, bar)]) for bar in named.BARS]
        settled, plain = ask([qs.Curtail(k)]), ask([AdaptiveConsistency()])
        # Where nothing can be shown only settled votes stop, which is certain: the first row.
        losses = np.array([1 - f.agrees for f in (settled, *found)])
        drawn = np.array([f.samples for f in (settled, *found)]).mean(axis=1)
        count = len(log)
        for alpha in alphas:
            for _ in range(min(40, splits)):
                place = qs.control(losses[1:, rng.integers(0, count, count)], alpha, delta).place
                at = 0 if place is None else place + 1
                half = rng.permutation(count)
                other = qs.control(losses[1:, half[: count // 2]], alpha, delta).place
                held = losses[0 if other is None else other + 1][half[count // 2 :]].mean()
                seen[alpha].append((losses[at].mean() > alpha, held > alpha, place is not None, drawn[at],
                                    losses[at].mean(), plain.samples.mean(), plain.disagreement))  # fmt: skip
    rows = []
    for alpha, values in seen.items():
        exact, held, certified, samples, disagree, adaptive, disagree_ac = np.mean(values, axis=0)
        met = exact <= delta and samples < adaptive
        rows.append({"log": name, "alpha": alpha, "calibration": count, "violations [%]": 100 * exact,
                     "violations held out [%]": 100 * held, "certified [%]": 100 * certified, "samples": samples,
                     "AC .95": adaptive, "disagreement": disagree, "disagreement AC": disagree_ac,
                     "splits": len(values), "met": "yes" if met else "no"})  # fmt: skip
    return rows


# --- programs and their tests -----------------------------------------------------------------------------------------


#: Exponents among which one half of the problems chooses for the other: agreement, trust.
EXPONENTS = [(a, t) for a in (0.3, 0.4, 0.5, 0.7) for t in (0.0, 0.5, 0.75, 1.0)]


def programs(args: Any) -> Report:
    """HumanEval: programs chosen by tests that the model wrote, all 100 samples against a quarter of them."""
    columns = ("selection", "accuracy", "accuracy 95 %", "against CodeT, all 100", "samples", "verifier's time [%]",
               "met")  # fmt: skip
    report = Report("programs", "HumanEval, CodeGen-16B: accuracy of the chosen program", columns)
    if not (args.data / CODE).is_file():
        return report
    _TIMES.update(_test_counts(args.data / CODE))
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
        f"exponents learned: of {len(EXPONENTS)} pairs the best of one half of the problems is asked the other, mean of"
        f" {halvings} halvings; {orders} orders. That equal texts count once was found on this log. Verifier's time:"
        " share of running all 100 programs, equal ones once.",
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


def _test_counts(path: Path) -> dict[str, list[float]]:
    """How often each test of a problem was written, by problem: a column that is not one of samples."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {d["pid"]: d["test_count"] for d in map(json.loads, lines)}
