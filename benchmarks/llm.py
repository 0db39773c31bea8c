"""Compiled decoders against what people would use in their place: one machine, same weights, same threads, in turns.

python benchmarks/llm.py [--quick] [--families NAME ...] [--forms fp32 int8 int4] [--peers NAME ...] [--rows 1 4 8 16]
                         [--only PART ...] [--threads N] [--rounds N] [--folder DIR] [--export-python PATH]
                         [--torch-compile] [--json FILE]

Every engine runs in a process of its own that waits while another is measured; rounds go from one to the next. Figures
are medians with the 10 % and 90 % quantiles in the result file. An engine that is not installed, has no such form or
differs from `transformers` in its logits is listed with the reason and not counted. See docs/benchmarks.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import Report, options, publish
from llm_convert import checkpoint
from llm_worker import PeerError, Worker

from qeil_compile.models.decoder import FAMILIES

PARTS = ("decode", "prefill", "job", "own", "planning")
NAMES = ("transformers", "torch.compile", "onnxruntime", "onnxruntime int8", "onnxruntime GQA", "onnxruntime-genai",
         "openvino", "openvino-genai", "llama.cpp")  # fmt: skip
OURS, REFERENCE = "ours", "transformers"
#: Largest difference of log-probabilities after a prompt, as a share of their spread. Packed weights round, and engines
#: pack them in ways of their own.
AGREE = {"fp32": 1e-3, "int8": 0.05, "int4": 0.25}
TARGET = "intel-285hx-rtx-pro-5000"
#: Engines that know nothing of samples: a prompt that runs once is their user's work.
BY_HAND = ("onnxruntime", "onnxruntime int8", "onnxruntime GQA", "openvino")
_SHARED = ", shared"
#: Seconds in which the threads of the engine before stop to spin.
_REST = 0.3


@dataclass
class Bench:
    """Settings of a run, and what it found."""

    args: Any
    folder: Path
    measurements: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[tuple[str, str, str], str] = field(default_factory=dict)
    engines: dict[tuple[str, ...], str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        quick = self.args.quick
        self.prompt, self.steps = (16, 4) if quick else (128, self.args.steps)
        self.job_prompt, self.samples, self.tokens = (16, 4, 8) if quick else (256, 16, 64)
        self.rows = self.args.rows or ([1, 2] if quick else [1, 4, 8, 16])
        #: What everybody is set up for at first.
        self.first = {"rows": min(self.rows), "prompt": self.prompt, "tokens": max(self.tokens, self.steps + 8)}
        self.rounds = 2 if quick else self.args.rounds
        self.vocab = 512 if quick else min(int(FAMILIES[f]["vocab_size"]) for f in self.args.families)
        rng = np.random.default_rng(7)
        self.text = rng.integers(1, self.vocab, max(self.prompt, self.job_prompt)).tolist()

    def has(self, part: str) -> bool:
        """Whether a part is asked for."""
        return not self.args.only or part in self.args.only

    def source(self, family: str) -> Path:
        """The family's checkpoint."""
        found = self.folder / family
        checkpoint(FAMILIES[family], found, self.args.quick)
        return found

    def worker(self, peer: str, family: str, form: str) -> Worker:
        """The process of a peer."""
        more = {"QEIL_EXPORT_PYTHON": str(self.args.export_python)} if self.args.export_python else {}
        return Worker(peer, self.source(family), form, self.args.threads, self.folder, environment=more)

    # ---- the peers of one family in one form

    @contextmanager
    def peers(self, family: str, form: str) -> Iterator[dict[str, Worker]]:
        """Peers that run and agree, ours among them."""
        names = [n for n in NAMES if n in self.args.peers] + [OURS]
        workers: dict[str, Worker] = {}
        try:
            for name in names:
                say(f"{family} {form}: start {name}")
                worker = self.worker(name, family, form)
                try:
                    self.versions[name] = worker.call("load")
                except PeerError as error:
                    self.absent[family, form, name] = str(error).removeprefix("load: Unavailable: ")
                    worker.close()
                    continue
                workers[name] = worker
            self.set_up((family, form), workers, **self.first)
            self._compare(family, form, workers)
            yield workers
        finally:
            for worker in workers.values():
                worker.close()

    def _compare(self, family: str, form: str, workers: dict[str, Worker]) -> None:
        """Leave out who computes something else than `transformers` in 32 bits."""
        text = self.text[: self.prompt]
        file = self.folder / f"{family}-reference-{len(text)}.npy"
        if not file.is_file():
            reference = workers.get(REFERENCE) or self.worker(REFERENCE, family, "fp32")
            if REFERENCE not in workers:
                reference.call("load")
            reference.call("logits", prompt=text, file=str(file))
            if REFERENCE not in workers:
                reference.close()
        expected = np.load(file)
        for name, worker in list(workers.items()):
            try:
                found_file = self.folder / f"{worker.peer}-{form}.npy"
                worker.call("logits", prompt=text, file=str(found_file))
                found = np.load(found_file)
                known = np.flatnonzero(np.isfinite(found))
                off = float(np.abs(found[known] - expected[known]).max() / (expected.max() - expected.min()))
                self.measurements.append({"part": "agreement", "family": family, "form": form, "peer": name,
                                          "difference": off, "compared": len(known)})  # fmt: skip
                if not off <= AGREE[form]:
                    raise PeerError(f"log-probabilities differ by {off:.2%} of their spread")
            except PeerError as error:
                self.absent[family, form, name] = str(error)
                workers.pop(name).close()

    def turns(self, part: str, family: str, form: str, live: int, workers: dict[str, Worker], method: str,
              **arguments: Any) -> dict[str, np.ndarray]:  # fmt: skip
        """Seconds by peer: `rounds` turns, the order moved on by one each time."""
        samples: dict[str, list[float]] = {n: [] for n in workers}
        failed: set[str] = set()
        for k in range(self.rounds):
            order = [n for n in workers if n not in failed]
            for name in order[k % len(order) :] + order[: k % len(order)]:
                time.sleep(0 if self.args.quick else _REST)
                try:
                    found = workers[name].call(method, **arguments)
                except PeerError as error:
                    failed.add(name)
                    # What a peer does not have at all needs no row.
                    if "Unavailable" not in str(error):
                        self.absent[family, form, f"{name}, {part}"] = str(error)
                    continue
                samples[name] += found if isinstance(found, list) else [found]
        result = {n: np.array(s) for n, s in samples.items() if n not in failed}
        for name, values in result.items():
            low, middle, high = (float(q) for q in np.quantile(values, [0.1, 0.5, 0.9]))
            self.measurements.append({"part": part, "family": family, "form": form, "rows": live, "peer": name,
                                      "seconds": middle, "low": low, "high": high, "runs": len(values)})  # fmt: skip
        return result

    def set_up(self, key: tuple[str, ...], workers: dict[str, Worker], rows: int, prompt: int, tokens: int) -> None:
        """Let everybody know what comes; who fails is left out."""
        for name, worker in list(workers.items()):
            say(f"{' '.join(key)}: set up {name}")
            try:
                self.engines[(*key, name)] = worker.call("setup", rows=rows, prompt=prompt, tokens=tokens)
            except PeerError as error:
                self.absent[key[0], key[1], name] = str(error)
                workers.pop(name).close()


def say(text: str) -> None:
    """Progress, away from the tables."""
    print(text, file=sys.stderr, flush=True)


# ---- parts


def against_peers(bench: Bench, reports: dict[str, Report]) -> None:
    """Parts decode, prefill and job."""
    for family in bench.args.families:
        for form in bench.args.forms:
            with bench.peers(family, form) as workers:
                for rows in bench.rows if bench.has("decode") or bench.has("prefill") else ():
                    if rows == min(bench.rows) or bench.has("decode"):
                        _steps(bench, reports, workers, family, form, rows)
                if bench.has("job"):
                    _job(bench, reports["job"], workers, family, form)


def _steps(
    bench: Bench, reports: dict[str, Report], workers: dict[str, Worker], family: str, form: str, rows: int
) -> None:
    key: tuple[str, ...] = (family, form)
    if rows != bench.first["rows"]:
        key = (*key, str(rows))
        bench.set_up(key, workers, **{**bench.first, "rows": rows})
    text = bench.text[: bench.prompt]
    start = {"family": family, "form": form}
    if bench.has("decode"):
        say(f"{family} {form}: decode, {rows} rows")
        found = bench.turns("decode", family, form, rows, workers, "decode", prompt=text, rows=rows, steps=bench.steps)
        speeds = {n: rows / float(np.median(v)) for n, v in found.items()}
        engine = bench.engines[(*key, OURS)] if OURS in found else ""
        reports["decode"].rows.append(start | {"rows": rows} | _compared(speeds, False) | {"engine": _short(engine)})
    if rows == min(bench.rows) and bench.has("prefill"):
        found = bench.turns("prefill", family, form, rows, workers, "prefill", prompt=text)
        times = {n: 1e3 * float(np.median(v)) for n, v in found.items()}
        engine = bench.engines[(*key, OURS)] if OURS in found else ""
        reports["prefill"].rows.append(start | _compared(times, True) | {"engine": _short(engine)})


def _job(bench: Bench, report: Report, workers: dict[str, Worker], family: str, form: str) -> None:
    key = (family, form, "job")
    bench.set_up(key, workers, bench.samples, bench.job_prompt, bench.tokens)
    text = bench.text[: bench.job_prompt]
    values: dict[str, np.ndarray] = {}
    for shared in (False, True):
        say(f"{family} {form}: job, prompt {'shared' if shared else 'as its users run it'}")
        # Ours takes part in both, and is taken over both.
        found = bench.turns(f"job, prompt {'shared' if shared else 'per sample'}", family, form, bench.samples, workers,
                            "job", prompt=text, samples=bench.samples, tokens=bench.tokens, temperature=0.8,
                            shared=shared)  # fmt: skip
        for name, taken in found.items():
            key_of = f"{name}{_SHARED}" if shared and name != OURS else name
            values[key_of] = np.concatenate([values.get(key_of, np.zeros(0)), taken])
    medians = {n: float(np.median(v)) for n, v in values.items()}
    for name, taken in values.items():
        low, middle, high = (float(q) for q in np.quantile(taken, [0.1, 0.5, 0.9]))
        engine = bench.engines.get((*key, OURS), "") if name == OURS else ""
        report.rows.append({
            "family": family, "form": form, "peer": name.removesuffix(_SHARED), "prompt": _prompt(name),
            "seconds": middle, "10 to 90 %": f"{low:.3g} to {high:.3g}", "its time / ours": middle / medians[OURS]
            if OURS in medians else "", "engine": _short(engine),
        })  # fmt: skip


def _prompt(name: str) -> str:
    """How often the prompt runs, and whose doing that is."""
    if not name.endswith(_SHARED):
        return "once" if name == OURS else "per sample"
    return "once, by code of its user" if name.removesuffix(_SHARED) in BY_HAND else "once"


def _compared(values: dict[str, float], less_is_better: bool) -> dict[str, Any]:
    """Values by peer, the best of the peers, and by how much ours is faster than that."""
    others = {n: v for n, v in values.items() if n != OURS}
    if not others or OURS not in values:
        return dict(values)
    best = min(others, key=others.__getitem__) if less_is_better else max(others, key=others.__getitem__)
    ratio = others[best] / values[OURS] if less_is_better else values[OURS] / others[best]
    return {**values, "fastest peer": best, "ours / fastest": ratio}


def _short(engine: str) -> str:
    return engine.replace("openvino:CPU", "OV").replace("onnxruntime:CPU", "ORT").replace("torch:cpu", "torch")


def own(bench: Bench) -> list[Report]:
    """What the runner adds to its engine's step, the share of memory's speed, and the memory of a run."""
    steps = Report("own", "Ours: a step, in and around its engine", (
        "family", "form", "rows", "engine [ms]", "step [ms]", "step over engine [%]", "generate over engine [%]",
        "MB per step", "memory [GB/s]", "share of it [%]", "engine"))  # fmt: skip
    memory = Report("memory", "Ours: memory of a job in a fresh process", (
        "family", "form", "weights [MB]", "cache [MB]", "planned [MB]", "before [MB]", "peak [MB]",
        "(peak - before) / (weights + cache)", "(peak - before) / planned"))  # fmt: skip
    for family in bench.args.families:
        for form in bench.args.forms:
            worker = bench.worker(OURS, family, form)
            try:
                worker.call("load")
                for rows in sorted({min(bench.rows), max(bench.rows)}):
                    say(f"{family} {form}: ours alone, {rows} rows")
                    engine = worker.call("setup", rows=rows, prompt=bench.prompt, tokens=bench.steps + 8)
                    time.sleep(0 if bench.args.quick else _REST)
                    found = worker.call("overhead", prompt=bench.text[: bench.prompt], rows=rows, steps=bench.steps)
                    bench.measurements.append({"part": "own", "family": family, "form": form, "rows": rows, **found})
                    steps.rows.append(_own_row(family, form, rows, found, engine))
                memory.rows.append(_memory_row(bench, worker, family, form))
            except PeerError as error:
                bench.absent[family, form, OURS] = str(error)
            finally:
                worker.close()
    steps.notes = ["measured; a step reads weights and cache once"]
    memory.notes = ["peak, before: measured (VmHWM); planned: modelled, weights and arena of the larger phase"]
    return [steps, memory]


def _own_row(family: str, form: str, rows: int, found: dict[str, float], engine: str) -> dict[str, Any]:
    return {
        "family": family, "form": form, "rows": rows, "engine [ms]": found["engine"] * 1e3,
        "step [ms]": found["step"] * 1e3, "step over engine [%]": found["session over engine"] * 100,
        "generate over engine [%]": found["generate over engine"] * 100, "MB per step": found["nbytes"] / 1e6,
        "memory [GB/s]": found["bandwidth"] / 1e9, "share of it [%]": found["share"] * 100, "engine": _short(engine),
    }  # fmt: skip


def _memory_row(bench: Bench, worker: Worker, family: str, form: str) -> dict[str, Any]:
    """Compile and save in one process, load and run in another."""
    file = bench.folder / "memory.qeil"
    worker.call("setup", rows=bench.samples, prompt=bench.job_prompt, tokens=bench.tokens)
    saved = worker.call("save", file=str(file))
    fresh = bench.worker(OURS, family, form)
    try:
        fresh.call("load")
        found = fresh.call("memory", file=str(file), prompt=bench.text[: bench.job_prompt], samples=bench.samples,
                           tokens=bench.tokens)  # fmt: skip
    finally:
        fresh.close()
    bench.measurements.append({"part": "memory", "family": family, "form": form, **saved, **found})
    taken = found["peak"] - found["before"]
    return {
        "family": family, "form": form, "weights [MB]": saved["weights"] / 1e6, "cache [MB]": found["cache"] / 1e6,
        "planned [MB]": saved["planned"] / 1e6, "before [MB]": found["before"] / 1e6, "peak [MB]": found["peak"] / 1e6,
        "(peak - before) / (weights + cache)": taken / (saved["weights"] + found["cache"]),
        "(peak - before) / planned": taken / saved["planned"],
    }  # fmt: skip


def planning(bench: Bench) -> Report:
    """Plan every family for a machine with four devices, each in a fresh process."""
    from llm_ours import families

    report = Report("planning", f"Planning for {TARGET}, no weights loaded", (
        "family", "operators", "seconds", "peak [MB]", "of it before [MB]", "strategy", "placements"))  # fmt: skip
    for name, (family, bits) in families().items():
        if bench.args.quick and family not in bench.args.families:
            continue
        say(f"plan {name}")
        worker = Worker(OURS, bench.folder, "fp32", bench.args.threads, bench.folder)
        try:
            found = worker.call("plan", family=family, bits=bits, target=TARGET)
        except PeerError as error:
            report.notes.append(f"{name}: {error}")
            continue
        finally:
            worker.close()
        bench.measurements.append({"part": "planning", "family": name, **found})
        report.rows.append({
            "family": name, "operators": found["operators"], "seconds": found["seconds"],
            "peak [MB]": found["peak"] / 1e6, "of it before [MB]": found["before"] / 1e6, "strategy": found["strategy"],
            "placements": ", ".join(found["placements"]),
        })  # fmt: skip
    report.notes.append("seconds, memory: measured; prompt 512, 128 tokens, 8 samples; plans: modelled")
    return report


# ---- the run


def _reports(bench: Bench) -> dict[str, Report]:
    """Empty tables, a column for each peer that can be in them."""
    peers = [n for n in NAMES if n in bench.args.peers]
    end = ("ours", "fastest peer", "ours / fastest")
    machine = f"{bench.args.threads} threads"
    return {
        "decode": Report("decode", f"Decode after {bench.prompt} tokens [tokens/s], {machine}",
                         ("family", "form", "rows", *peers, *end, "engine")),
        "prefill": Report("prefill", f"Prompt of {bench.prompt} tokens [ms], {machine}",
                          ("family", "form", *peers, *end, "engine")),
        "job": Report("job", f"{bench.samples} samples of {bench.tokens} tokens of one prompt of {bench.job_prompt}, "
                      f"{machine}", ("family", "form", "peer", "prompt", "seconds", "10 to 90 %", "its time / ours",
                                     "engine")),
    }  # fmt: skip


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
    parser.add_argument("--torch-compile", action="store_true", help="GPT-2 in 32 bits by torch.compile too (slow)")


def main() -> None:
    """Run the benchmark."""
    args = options(__doc__ or "", _options)
    args.peers = args.peers or [n for n in NAMES if n != "torch.compile" or args.torch_compile]
    with tempfile.TemporaryDirectory(prefix="qeil-llm-") as temporary:
        folder = (args.folder or Path(temporary)).resolve() / ("tiny" if args.quick else "true")
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(args, folder)
        tables = _reports(bench)
        if any(bench.has(p) for p in tables):
            against_peers(bench, tables)
        reports = [r for n, r in tables.items() if bench.has(n)]
        for report in reports:
            report.notes = _notes(bench, report.name)
        if bench.has("own"):
            reports += own(bench)
        if bench.has("planning"):
            reports.append(planning(bench))
    absent = [{"family": f, "form": w, "peer": p, "reason": r} for (f, w, p), r in bench.absent.items()]
    publish(reports, args, "llm", measurements=bench.measurements, absent=absent, peer_versions=bench.versions,
            engines={" ".join(k): v for k, v in bench.engines.items() if v})  # fmt: skip


def _notes(bench: Bench, part: str) -> list[str]:
    """How it was measured, and who is not in the table."""
    found = [f"measured; {bench.rounds} rounds in turns, medians; quantiles are in the result file"]
    if part == "decode":
        found.append("steps without sampling; of the -genai engines with their greedy choice")
    if part == "job":
        found.append("from token numbers to token numbers, temperature 0.8; prompt: how often it runs")
    for (family, form, peer), reason in bench.absent.items():
        found.append(f"{family} {form} {peer}: {reason}")
    return found


if __name__ == "__main__":
    main()
