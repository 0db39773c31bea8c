"""Repeated sampling on recorded samples and in simulation: certificates, look schedules, risk, weights, tests, time.

python benchmarks/selection.py [--quick] [--data FOLDER] [--only PART ...] [--json FILE]

No model runs here but in the part `demo`; passes are modelled as rounds of 1 + (b - 1) rho. Whatever is learned or
tuned is so on one half of the questions and reported on the other, both ways, unless a row says otherwise. Logs missing
in --data are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, Report, options, publish
from scipy import stats
from selection_costs import AIME, CLOZE, eac, programs, respelled, risk
from selection_demo import demo

from qeil_compile import sampling as qs
from qeil_compile.sampling import named, plots
from qeil_compile.sampling.baselines import beta_majority

# --- CERT -------------------------------------------------------------------------------------------------------------

MODES = {
    ".505 .495": (0.505, 0.495), ".4 .39 .21": (0.4, 0.39, 0.21), ".26 .25 .25 .24": (0.26, 0.25, 0.25, 0.24),
    ".14, nine below": (0.14, 0.13, 0.12, 0.11, 0.1, 0.1, 0.1, 0.08, 0.07, 0.05), ".6 .4": (0.6, 0.4),
}  # fmt: skip


def cert(args: Any) -> Report:
    """Wrong certificates of close modes, beside how often published rules stop with another answer than the mode."""
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


# --- ARDE -------------------------------------------------------------------------------------------------------------


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
        "selection can exceed it. How firmly scales are held was chosen with these rows in view. AUC: within "
        "questions, of the mean confidence.",
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
         "time": timing, "demo": demo}  # fmt: skip


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
        plots.plot_evidence(plots.closest(log), folder / "selection_evidence.png")


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--data", type=Path, default=ROOT / "benchmarks" / "data" / "samples")
        parser.add_argument("--only", action="append", choices=tuple(PARTS), default=None)

    args = options(__doc__ or "", more)
    reports = [part(args) for name, part in PARTS.items() if args.only is None or name in args.only]
    publish([r for r in reports if r.rows], args, "selection", label="modelled passes, simulated draws, measured time")
    if not args.quick:
        _plot(args, RESULTS)


if __name__ == "__main__":
    main()
