"""Workers that measure in turns: who takes part, who agrees, what each round found."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from llm_convert import checkpoint
from llm_worker import PeerError, Worker

from qeil_compile.models.decoder import FAMILIES

NAMES = ("transformers", "torch.compile", "onnxruntime", "onnxruntime int8", "onnxruntime GQA", "onnxruntime-genai",
         "openvino", "openvino-genai", "llama.cpp")  # fmt: skip
OURS, REFERENCE = "ours", "transformers"
#: Largest difference of log-probabilities after a prompt, as a share of their spread. Packed weights round, and engines
#: pack them in ways of their own.
AGREE = {"fp32": 1e-3, "int8": 0.05, "int4": 0.35}
#: Bytes of a form over those in 32 bits, and how often an engine holds it: as it is, and as its kernels want it.
_SHRINKS, _HOLDS, _PROCESS = {"fp32": 1.0, "int8": 0.35, "int4": 0.25}, 2.3, 0.6e9
#: Seconds in which the threads of the engine before stop to spin.
_REST = 0.3


@dataclass(frozen=True)
class Job:
    """What is set up at once: so many rows after a prompt."""

    rows: int
    prompt: int
    tokens: int

    @property
    def arguments(self) -> dict[str, int]:
        """Those of a peer's `setup`."""
        return {"rows": self.rows, "prompt": self.prompt, "tokens": self.tokens}


@dataclass
class Turns:
    """Settings of a run, and what it found. `seconds` and `ratios` are by part, family, form and rows, then by peer;
    a ratio is a peer's median over that of ours in the same turns."""

    args: Any
    folder: Path
    seconds: dict[tuple[Any, ...], dict[str, list[float]]] = field(default_factory=lambda: defaultdict(dict))
    ratios: dict[tuple[Any, ...], dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    absent: dict[tuple[str, str, str], str] = field(default_factory=dict)
    engines: dict[tuple[Any, ...], str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        quick = self.args.quick
        self.steps = 4 if quick else self.args.steps
        self.rounds = 2 if quick else self.args.rounds
        self.rest = 0.0 if quick else _REST
        prompt, tokens = (16, 8) if quick else (128, max(64, self.steps + 8))
        self.rows = self.args.rows or ([1, 2] if quick else [1, 4, 8, 16])
        self.jobs = {rows: Job(rows, prompt, tokens) for rows in self.rows}
        self.job = Job(4, 24, 8) if quick else Job(16, 256, 64)
        vocab = 512 if quick else min(int(FAMILIES[f]["vocab_size"]) for f in self.args.families)
        self._text = np.random.default_rng(7).integers(1, vocab, 256).tolist()

    def text(self, job: Job) -> list[int]:
        """The prompt."""
        return self._text[: job.prompt]

    def has(self, *parts: str) -> bool:
        """Whether one of the parts is asked for."""
        return not self.args.only or any(p in self.args.only for p in parts)

    def wanted(self) -> list[Job]:
        """Everything that ours is compiled for."""
        if self.has("decode"):
            steps = list(self.jobs.values())
        elif self.has("own"):
            steps = [self.jobs[r] for r in sorted({min(self.rows), max(self.rows)})]
        else:
            steps = [self.jobs[min(self.rows)]]
        return steps + ([self.job] if self.has("job", "own") else [])

    def worker(self, peer: str, family: str, form: str) -> Worker:
        """The process of a peer."""
        source = self.folder / family
        checkpoint(FAMILIES[family], source, self.args.quick)
        more = {"QEIL_BENCH_DEVICE": self.args.device}
        if self.args.export_python:
            more["QEIL_EXPORT_PYTHON"] = str(self.args.export_python)
        return Worker(peer, source, form, self.args.threads, self.folder, environment=more)

    # ---- who takes part

    def prepare(self, family: str, form: str) -> list[str]:
        """Convert and compile, each in a process of its own that ends: the peers that can take part."""
        able = []
        for name in [n for n in NAMES if n in self.args.peers]:
            worker = self.worker(name, family, form)
            try:
                say(f"{family} {form}: prepare {name}")
                worker.call("prepare")
                able.append(name)
            except PeerError as error:
                self.absent[family, form, name] = _reason(error)
            finally:
                worker.close()
        return able

    def compile(self, family: str, form: str) -> None:
        """Compile ours for all jobs while nothing else is in memory. Raises `PeerError`."""
        worker = self.worker(OURS, family, form)
        try:
            for job in self.wanted():
                say(f"{family} {form}: compile for {job.rows} rows after {job.prompt} tokens")
                found = worker.call("compile", **job.arguments)
                self.records.append({"part": "compile", "family": family, "form": form, **job.arguments, **found})
        finally:
            worker.close()

    def groups(self, family: str, form: str, able: Sequence[str]) -> list[list[str]]:
        """Peers that are in memory together, ours beside each group."""
        size = self.args.group
        if not size:
            whole = (self.folder / family / "model.safetensors").stat().st_size
            each = _PROCESS + _HOLDS * whole * _SHRINKS[form]
            size = max(1, int(0.8 * _free_memory() / each) - 1)
        return [list(able[k : k + size]) for k in range(0, len(able), size)]

    @contextmanager
    def workers(self, family: str, form: str, names: Sequence[str]) -> Iterator[dict[str, Worker]]:
        """Peers of a group that run and agree, and ours."""
        started: dict[str, Worker] = {}
        try:
            for name in (*names, OURS):
                worker = self.worker(name, family, form)
                try:
                    self.versions[name] = worker.call("load")
                    started[name] = worker
                except PeerError as error:
                    self.absent[family, form, name] = _reason(error)
                    worker.close()
            self.set_up(family, form, started, self.jobs[min(self.rows)])
            self._compare(family, form, started)
            yield started
        finally:
            for worker in started.values():
                worker.close()

    def set_up(self, family: str, form: str, workers: dict[str, Worker], job: Job) -> None:
        """Let everybody know what comes; who fails is left out."""
        for name, worker in list(workers.items()):
            say(f"{family} {form}, {job.rows} rows: set up {name}")
            try:
                self.engines[family, form, job.rows, job.prompt, name] = worker.call("setup", **job.arguments)
            except PeerError as error:
                self.absent[family, form, name] = _reason(error)
                workers.pop(name).close()

    def _compare(self, family: str, form: str, workers: dict[str, Worker]) -> None:
        """Leave out who computes something else than `transformers` in 32 bits."""
        text = self.text(self.jobs[min(self.rows)])
        file = self.folder / f"{family}-reference-{len(text)}.npy"
        if not file.is_file():
            reference = self.worker(REFERENCE, family, "fp32")
            try:
                reference.call("load")
                reference.call("logits", prompt=text, file=str(file))
            finally:
                reference.close()
        expected = np.load(file)
        for name, worker in list(workers.items()):
            try:
                own = self.folder / f"{worker.peer}-{form}.npy"
                worker.call("logits", prompt=text, file=str(own))
                found = np.load(own)
                known = np.flatnonzero(np.isfinite(found))
                off = float(np.abs(found[known] - expected[known]).max() / (expected.max() - expected.min()))
                self.records.append({"part": "agreement", "family": family, "form": form, "peer": name,
                                     "difference": off, "compared": len(known)})  # fmt: skip
                if not off <= AGREE[form]:
                    raise PeerError(f"log-probabilities differ by {off:.2%} of their spread")
            except PeerError as error:
                self.absent[family, form, name] = _reason(error)
                workers.pop(name).close()

    # ---- turns

    def measure(
        self, key: tuple[Any, ...], workers: dict[str, Worker], method: str, warm: dict[str, Any] | None = None,
        rounds: int = 0, **arguments: Any,
    ) -> None:  # fmt: skip
        """`rounds` turns of everybody, the order moved on by one each time. `key` is part, family, form, rows.

        With `warm`, everybody does it once before, with these arguments in place of those: first calls load code.
        """
        part, family, form, *_ = key
        samples: dict[str, list[float]] = {n: [] for n in workers}
        for name in workers if warm is not None else ():
            try:
                workers[name].call(method, **{**arguments, **(warm or {})})
            except PeerError:
                continue  # its turn says why
        for k in range(rounds or self.rounds):
            order = list(samples)
            for name in order[k % len(order) :] + order[: k % len(order)] if order else ():
                time.sleep(self.rest)
                try:
                    found = workers[name].call(method, **arguments)
                    samples[name] += found if isinstance(found, list) else [found]
                except PeerError as error:
                    del samples[name]
                    # What a peer does not have at all needs no reason in every table.
                    if "Unavailable" not in str(error):
                        self.absent[family, form, f"{name}, {part}"] = _reason(error)
        for name, values in samples.items():
            self.seconds[key].setdefault(name, []).extend(values)
            if OURS in samples and name != OURS:
                self.ratios[key][name] = float(np.median(values) / np.median(samples[OURS]))

    def measurements(self) -> list[dict[str, Any]]:
        """Everything that was found, for the result file."""
        found = list(self.records)
        for (part, family, form, rows), by in self.seconds.items():
            for name, values in by.items():
                low, middle, high = (float(q) for q in np.quantile(values, [0.1, 0.5, 0.9]))
                found.append({
                    "part": part, "family": family, "form": form, "rows": rows, "peer": name, "seconds": middle,
                    "low": low, "high": high, "runs": len(values),
                    "over ours": self.ratios[part, family, form, rows].get(name),
                })  # fmt: skip
        return found

    def keep(self) -> None:
        """Write what there is so far beside the checkpoints: a long run may be cut off."""
        data = {"measurements": self.measurements(), "absent": [[*k, v] for k, v in self.absent.items()]}
        (self.folder / "so_far.json").write_text(json.dumps(data, indent=1), encoding="utf-8")


def say(text: str) -> None:
    """Progress, away from the tables."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _reason(error: PeerError) -> str:
    text = str(error)
    return text.partition("Unavailable: ")[2] or text


def _free_memory() -> float:
    """Bytes that can be had without swapping; where nobody tells, 8 GB."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return 8e9
    line = next(x for x in file.read_text().splitlines() if x.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024.0
