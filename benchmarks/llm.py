"""Compiled decoders against what people would use in their place: one machine, same weights, same threads, in turns.

python benchmarks/llm.py [--quick] [--families NAME ...] [--forms fp32 int8 int4] [--peers NAME ...] [--rows 1 4 8 16]
                         [--only PART ...] [--threads N] [--rounds N] [--folder DIR] [--export-python PATH]
                         [--torch-compile] [--group N] [--device cuda] [--json FILE]

Every engine runs in a process of its own that waits while another is measured; rounds go from one to the next. Figures
are medians with the 10 % and 90 % quantiles in the result file. An engine that is not installed, has no such form or
differs from `transformers` in its logits is listed with the reason and not counted. See docs/benchmarks.md.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Report, options, publish
from llm_turns import AGREE, NAMES, OURS, Turns, say
from llm_worker import PeerError, Worker

from qeil_compile.models.decoder import FAMILIES

PARTS = ("decode", "prefill", "job", "own", "planning")
TARGET = "intel-285hx-rtx-pro-5000"
#: Engines that know nothing of samples: a prompt that runs once is their user's work.
BY_HAND = ("onnxruntime", "onnxruntime int8", "onnxruntime GQA", "openvino")
#: Peers that run where `--device` says.
ON_CUDA = ("transformers", "torch.compile")
EACH, ONCE = "job, prompt per sample", "job, prompt once"


# ---- against peers


def against_peers(turns: Turns, reports: dict[str, Report]) -> None:
    """Parts decode, prefill and job of every family in every form."""
    for family in turns.args.families:
        for form in turns.args.forms:
            if not turns.has("decode", "prefill", "job", "own"):
                continue
            able = turns.prepare(family, form) if turns.has("decode", "prefill", "job") else []
            try:
                turns.compile(family, form)
            except PeerError as error:
                turns.absent[family, form, OURS] = str(error)
                continue
            for names in turns.groups(family, form, able):
                with turns.workers(family, form, names) as workers:
                    _measure(turns, workers, family, form)
                turns.keep()
            _rows(turns, reports, family, form)


def _measure(turns: Turns, workers: dict[str, Worker], family: str, form: str) -> None:
    first = min(turns.rows)
    for rows, job in turns.jobs.items() if turns.has("decode", "prefill") else ():
        if rows != first and not turns.has("decode"):
            continue
        if rows != first:
            turns.set_up(family, form, workers, job)
        text = turns.text(job)
        if turns.has("decode"):
            say(f"{family} {form}: decode, {rows} rows")
            turns.measure(("decode", family, form, rows), workers, "decode", prompt=text, rows=rows, steps=turns.steps)
        if rows == first and turns.has("prefill"):
            say(f"{family} {form}: prompt")
            turns.measure(("prefill", family, form, rows), workers, "prefill", prompt=text)
    if turns.has("job"):
        turns.set_up(family, form, workers, turns.job)
        for shared in (False, True):
            say(f"{family} {form}: job, prompt {'once' if shared else 'per sample'}")
            # A prompt per sample takes minutes where the model is large, and is far from close.
            most = turns.rounds if shared else min(turns.rounds, 2)
            turns.measure((ONCE if shared else EACH, family, form, turns.job.rows), workers, "job",
                          {"samples": 1, "tokens": 2}, most, prompt=turns.text(turns.job), samples=turns.job.rows,
                          tokens=turns.job.tokens, temperature=0.8, shared=shared)  # fmt: skip


def _rows(turns: Turns, reports: dict[str, Report], family: str, form: str) -> None:
    """What was found as rows of the tables."""
    start = {"family": family, "form": form}
    for rows, job in turns.jobs.items():
        key = ("decode", family, form, rows)
        if key in turns.seconds:
            speeds = {n: rows / float(np.median(v)) for n, v in turns.seconds[key].items()}
            reports["decode"].rows.append(start | {"rows": rows} | speeds | _fastest(turns, key, job))
        key = ("prefill", family, form, rows)
        if key in turns.seconds:
            times = {n: 1e3 * float(np.median(v)) for n, v in turns.seconds[key].items()}
            reports["prefill"].rows.append(start | times | _fastest(turns, key, job))
    for part in (EACH, ONCE):
        key = (part, family, form, turns.job.rows)
        for name, values in turns.seconds.get(key, {}).items():
            low, middle, high = (float(q) for q in np.quantile(values, [0.1, 0.5, 0.9]))
            reports["job"].rows.append(start | {
                "peer": name, "prompt": _prompt(name, part == ONCE), "seconds": middle,
                "10 to 90 %": f"{low:.3g} to {high:.3g}", "its time / ours": turns.ratios[key].get(name, 1.0),
                "engine": _engine(turns, key, turns.job) if name == OURS else "",
            })  # fmt: skip


def _prompt(name: str, once: bool) -> str:
    """How often the prompt runs, and whose doing that is."""
    if name == OURS or (once and name not in BY_HAND):
        return "once"
    return "once, by code of its user" if once else "per sample"


def _fastest(turns: Turns, key: tuple[Any, ...], job: Any) -> dict[str, Any]:
    """The best of the peers, and by how much ours is faster than that in the same turns."""
    ratios = turns.ratios.get(key, {})
    if not ratios:
        return {}
    best = min(ratios, key=ratios.__getitem__)
    return {"fastest peer": best, "ours / fastest": ratios[best], "engine": _engine(turns, key, job)}


def _engine(turns: Turns, key: tuple[Any, ...], job: Any) -> str:
    _, family, form, _ = key
    used = turns.engines.get((family, form, job.rows, job.prompt, OURS), "")
    for place, short in (("openvino:CPU", "OV"), ("onnxruntime:CPU", "ORT"), ("torch:cpu", "torch")):
        used = used.replace(place, short)
    return used


# ---- ours alone


def own(turns: Turns) -> list[Report]:
    """What the runner adds to its engine's step, the share of memory's speed, and the memory of a run."""
    steps = Report("own", "Ours: a step, in and around its engine", (
        "family", "form", "rows", "engine [ms]", "step [ms]", "step over engine [%]", "generate over engine [%]",
        "MB per step", "memory [GB/s]", "share of it [%]", "engine"))  # fmt: skip
    memory = Report("memory", "Ours: memory of a job in a fresh process", (
        "family", "form", "weights [MB]", "cache [MB]", "planned [MB]", "before [MB]", "peak [MB]",
        "(peak - before) / (weights + cache)", "(peak - before) / planned", "peak of compiling [MB]"))  # fmt: skip
    for family in turns.args.families:
        for form in turns.args.forms:
            try:
                _own(turns, family, form, steps, memory)
            except PeerError as error:
                turns.absent[family, form, f"{OURS}, own"] = str(error)
    steps.notes = ["measured; a step reads weights and cache once"]
    memory.notes = ["peak, before: measured (VmHWM; weights mapped from the artifact count)",
                    "planned: modelled, weights and arena of the larger phase"]  # fmt: skip
    return [steps, memory]


def _own(turns: Turns, family: str, form: str, steps: Report, memory: Report) -> None:
    start = {"family": family, "form": form}
    compiled = next((r for r in turns.records if r["part"] == "compile" and start.items() <= r.items()
                     and (r["rows"], r["prompt"]) == (turns.job.rows, turns.job.prompt)), None)  # fmt: skip
    if compiled is None:
        return
    worker = turns.worker(OURS, family, form)
    try:
        worker.call("load")
        say(f"{family} {form}: memory of a job")
        found = worker.call("memory", prompt=turns.text(turns.job), samples=turns.job.rows, tokens=turns.job.tokens)
        turns.records.append({"part": "memory", **start, **found})
        memory.rows.append(start | _memory_row(compiled, found))
        for rows in sorted({min(turns.rows), max(turns.rows)}):
            say(f"{family} {form}: ours alone, {rows} rows")
            job = turns.jobs[rows]
            turns.set_up(family, form, {OURS: worker}, job)
            time.sleep(turns.rest)
            found = worker.call("overhead", prompt=turns.text(job), rows=rows, steps=turns.steps)
            turns.records.append({"part": "own", **start, "rows": rows, **found})
            steps.rows.append(start | {"rows": rows} | _own_row(found)
                              | {"engine": _engine(turns, ("own", family, form, rows), job)})  # fmt: skip
    finally:
        worker.close()


def _own_row(found: dict[str, float]) -> dict[str, Any]:
    return {
        "engine [ms]": found["engine"] * 1e3, "step [ms]": found["step"] * 1e3,
        "step over engine [%]": found["session over engine"] * 100,
        "generate over engine [%]": found["generate over engine"] * 100, "MB per step": found["nbytes"] / 1e6,
        "memory [GB/s]": found["bandwidth"] / 1e9, "share of it [%]": found["share"] * 100,
    }  # fmt: skip


def _memory_row(compiled: dict[str, float], found: dict[str, float]) -> dict[str, Any]:
    taken = found["peak"] - found["before"]
    return {
        "weights [MB]": compiled["weights"] / 1e6, "cache [MB]": found["cache"] / 1e6,
        "planned [MB]": compiled["planned"] / 1e6, "before [MB]": found["before"] / 1e6,
        "peak [MB]": found["peak"] / 1e6, "peak of compiling [MB]": compiled["peak"] / 1e6,
        "(peak - before) / (weights + cache)": taken / (compiled["weights"] + found["cache"]),
        "(peak - before) / planned": taken / compiled["planned"],
    }  # fmt: skip


def planning(turns: Turns) -> Report:
    """Plan every family for a machine with four devices, each in a fresh process."""
    from llm_ours import families

    report = Report("planning", f"Planning for {TARGET}, no weights loaded", (
        "family", "operators", "seconds", "peak [MB]", "of it before [MB]", "strategy", "placements"))  # fmt: skip
    for name, (family, bits) in families().items():
        if turns.args.quick and family not in turns.args.families:
            continue
        say(f"plan {name}")
        worker = Worker(OURS, turns.folder, "fp32", turns.args.threads, turns.folder)
        try:
            found = worker.call("plan", family=family, bits=bits, target=TARGET)
        except PeerError as error:
            report.notes.append(f"{name}: {error}")
            continue
        finally:
            worker.close()
        turns.records.append({"part": "planning", "family": name, **found})
        report.rows.append({
            "family": name, "operators": found["operators"], "seconds": found["seconds"],
            "peak [MB]": found["peak"] / 1e6, "of it before [MB]": found["before"] / 1e6, "strategy": found["strategy"],
            "placements": ", ".join(found["placements"]),
        })  # fmt: skip
    report.notes.append("seconds, memory: measured; prompt 512, 128 tokens, 8 samples; plans: modelled")
    return report


# ---- the run


def _reports(turns: Turns) -> dict[str, Report]:
    """Empty tables, a column for each peer that can be in them."""
    end = (*(n for n in NAMES if n in turns.args.peers), OURS, "fastest peer", "ours / fastest", "engine")
    machine = f"{turns.args.threads} threads" if turns.args.device == "cpu" else "one GPU"
    first = turns.jobs[min(turns.rows)]
    return {
        "decode": Report("decode", f"Decode after {first.prompt} tokens, in tokens/s, {machine}",
                         ("family", "form", "rows", *end)),
        "prefill": Report("prefill", f"Prompt of {first.prompt} tokens, in ms, {machine}", ("family", "form", *end)),
        "job": Report("job", f"{turns.job.rows} samples of {turns.job.tokens} tokens of one prompt of "
                      f"{turns.job.prompt}, {machine}", ("family", "form", "peer", "prompt", "seconds", "10 to 90 %",
                                                         "its time / ours", "engine")),
    }  # fmt: skip


def _notes(turns: Turns, part: str) -> list[str]:
    """How it was measured, and who is not in the table."""
    found = [f"measured; {turns.rounds} rounds in turns, medians; quantiles are in the result file"]
    if part == "decode":
        found.append("steps without sampling; of the -genai engines with their greedy choice")
    if part == "job":
        found.append("from token numbers to token numbers, temperature 0.8; prompt: how often it runs (per sample: 2 "
                     "rounds)")  # fmt: skip
    return found + [f"{f} {w} {peer}: {reason}" for (f, w, peer), reason in turns.absent.items()]


def _options(parser: Any) -> None:
    parser.add_argument("--families", nargs="*", default=["gpt2-125m", "qwen2-0.5b"], choices=list(FAMILIES))
    parser.add_argument("--forms", nargs="*", default=["fp32", "int8", "int4"], choices=list(AGREE))
    parser.add_argument("--peers", nargs="*", default=None, choices=NAMES)
    parser.add_argument("--rows", nargs="*", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=None, choices=PARTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="steps of a turn")
    parser.add_argument("--folder", type=Path, default=None, help="checkpoints and engines' forms, kept (default: not)")
    parser.add_argument("--export-python", type=Path, default=None, help="a Python with optimum-intel and nncf")
    parser.add_argument("--torch-compile", action="store_true", help="torch.compile too (slow)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                        help="cuda: ours and those peers that are told one run on an NVIDIA GPU")
    parser.add_argument("--group", type=int, default=0, help="peers in memory at once (default: as many as fit)")


def main() -> None:
    """Run the benchmark."""
    args = options(__doc__ or "", _options)
    with_cuda = [n for n in NAMES if args.device == "cpu" or n in ON_CUDA]
    args.peers = args.peers or [n for n in with_cuda if n != "torch.compile" or args.torch_compile]
    with tempfile.TemporaryDirectory(prefix="qeil-llm-") as temporary:
        folder = (args.folder or Path(temporary)).resolve() / ("tiny" if args.quick else "true")
        folder.mkdir(parents=True, exist_ok=True)
        turns = Turns(args, folder)
        tables = _reports(turns)
        against_peers(turns, tables)
        reports = [r for n, r in tables.items() if turns.has(n)]
        for report in reports:
            report.notes = _notes(turns, report.name)
        if turns.has("own"):
            reports += own(turns)
        if turns.has("planning"):
            reports.append(planning(turns))
    absent = [{"family": f, "form": w, "peer": p, "reason": r} for (f, w, p), r in turns.absent.items()]
    used = [{"for": " ".join(map(str, k)), "says": v} for k, v in turns.engines.items() if v]
    publish(reports, args, "llm", measurements=turns.measurements(), absent=absent, peer_versions=turns.versions,
            engines=used)  # fmt: skip


if __name__ == "__main__":
    main()
