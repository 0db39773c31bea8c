"""Mutated artifacts, models and files: is anything read that should not be, and does anything break?

Each mutant is read in a process of its own kind (`strangers_worker.py`), and run and verified where it is accepted. A
failure is a crash, no answer within 5 s, an exception that is no `QeilError`, a change of anything around the mutant,
or an artifact whose outputs are others than the original's although `verify` says nothing.

    python benchmarks/strangers.py --count 10000
    python benchmarks/strangers.py --only 'ONNX' --seconds 600
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import ROOT, Report, options, publish
from mutations import Mutator, fresh_copy
from strangers_corpus import Original, corpus
from strangers_worker import DIFFERENT, REFUSED, RIGHT, UNVERIFIED, WRONG

#: Seconds for one mutant in a warm process. Where neighbours have the machine they are those that the process got; one
#: that waits for something has them all the same when `PATIENCE` times as many have passed.
LIMIT, PATIENCE = 5.0, 12
#: Bytes of address space beyond those of the warm process.
MEMORY = 4 << 30
#: Mutants that one process reads: OpenVINO keeps a thread and memory of each decoder until the process ends, and they
#: would be taken from what a mutant may have.
RENEWED = 1000
CRASH, HANG, OTHER, WROTE = "CRASH", "HANG", "OTHER EXCEPTION", "WROTE OUTSIDE"
FAILURES = (CRASH, HANG, OTHER, WROTE, WRONG)
OUTCOMES = (REFUSED, UNVERIFIED, RIGHT, DIFFERENT, *FAILURES)
#: Folders of engines in the home folder.
NOTES = ("intel", "Microsoft")
#: Where failures are kept, apart from the rest, to look at them.
KEPT = 40


class Worker:
    """One process, started anew after it died."""

    def __init__(self, place: Path, originals: list[Original]) -> None:
        self.place, self._known = place, json.dumps([[o.kind, str(o.path)] for o in originals if o.form != "zip"])
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def ask(self, kind: str, path: Path, original: Path, turn: int) -> tuple[str, str]:
        """The outcome of one mutant."""
        process = self.start()
        assert process.stdin is not None
        line = {"kind": kind, "path": str(path), "original": str(original), "turn": turn}
        try:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            answer = self._answer(process.pid)
        except BrokenPipeError:
            answer = ""
        except queue.Empty:
            self.close()
            return HANG, f"no answer in {LIMIT:g} s"
        if answer:
            found = json.loads(answer)
            return found[0], found[1]
        status = process.wait()
        self._process = None
        return CRASH, signal.Signals(-status).name if status < 0 else f"exit {status}"

    def _answer(self, pid: int) -> str:
        """The next line. Raises `queue.Empty` where there is none in time."""
        clock, used = time.monotonic(), _computed(pid)
        while True:
            try:
                return self._answers.get(timeout=LIMIT / 10)
            except queue.Empty:
                waited = time.monotonic() - clock
                if waited > PATIENCE * LIMIT or (waited > LIMIT and _computed(pid) - used > LIMIT):
                    raise

    def start(self) -> subprocess.Popen[str]:
        """The process, warm."""
        if self._process is None:
            self._answers = queue.Queue()
            home = self.place / "home"
            environment = {**os.environ, "HOME": str(home), "TMPDIR": str(self.place / "tmp"),
                           "QEIL_PROFILES": str(home / "no"),
                           "QEIL_CALIBRATIONS": str(home / "none"), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
            log = (self.place / "worker.log").open("ab")
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "benchmarks" / "strangers_worker.py"), self._known, str(MEMORY)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self.place / "cwd",
                env=environment,
            )  # fmt: skip
            log.close()
            threading.Thread(target=_listen, args=(self._process, self._answers), daemon=True).start()
            ready = self._answers.get(timeout=300)
            if not ready:
                raise SystemExit(f"the worker does not start; see {self.place / 'worker.log'}")
        return self._process

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _computed(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _listen(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    for line in process.stdout or ():
        answers.put(line)
    answers.put("")


def surroundings(place: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything that no reader may touch; engines keep notes of their own in the home folder."""
    found = {}
    for name in ("outside", "cwd", "home", "originals"):
        for path in [place / name, *(place / name).rglob("*")]:
            if any(part in NOTES for part in path.parts):
                continue
            info = path.lstat()
            found[str(path)] = info.st_size, info.st_mtime_ns
    return found


def inside(path: Path) -> dict[str, tuple[int, int]]:
    """The same for the mutant itself."""
    return {str(p): ((i := p.lstat()).st_size, i.st_mtime_ns) for p in [path, *path.rglob("*")]}


def mutant(mutator: Mutator, original: Original, place: Path) -> tuple[Path, str]:
    """A mutant of an original, and what was done to it."""
    if original.form == "zip":
        folder = fresh_copy(original.path, place / "source")
        what = mutator.zip(folder, place / "m.zip")
        shutil.rmtree(folder)
        return place / "m.zip", what
    target = fresh_copy(original.path, place / original.path.name)
    if original.form == "artifact":
        return target, mutator.artifact(target)
    if original.form == "folder":
        return target, mutator.folder(target)
    target.write_bytes(mutator.file(target.name, target.read_bytes()))
    return target, target.name


class Hunt:
    """Mutants in turn over the originals; the seed and the number give a mutant again."""

    def __init__(self, place: Path, args: Any) -> None:
        for name in ("outside", "cwd", "home", "originals", "tmp", "kept"):
            (place / name).mkdir(parents=True)
        (place / "outside" / "secret").write_text("secret")
        self.place, self.args = place, args
        made = corpus(place / "originals")
        self.originals = [o for o in made if not args.only or any(w in o.name for w in args.only)]
        if not self.originals:
            raise SystemExit(f"--only {' '.join(args.only)}: no original has such a name")
        self.worker = Worker(place, self.originals)
        self.counts: dict[str, Counter[str]] = {o.name: Counter() for o in self.originals}
        self.failures: list[dict[str, Any]] = []
        self.slowest = 0.0

    def run(self) -> int:
        """Mutants until there are enough of them, or until the time is over; returns how many."""
        for original in self.originals:
            found = self.worker.ask(original.kind, original.path, original.path, 0)
            if found[0] not in (RIGHT, DIFFERENT):
                raise SystemExit(f"{original.name} is not accepted as it is: {' '.join(found)}")
        started, done = time.monotonic(), 0
        while done < self.args.count and time.monotonic() - started < self.args.seconds:
            number = self.args.start + done
            self._one(self.originals[number % len(self.originals)], number)
            done += 1
            if done % RENEWED == 0:
                self.worker.close()
            if done % 500 == 0:
                print(f"{done} mutants, {len(self.failures)} failures, {time.monotonic() - started:.0f} s", flush=True)
        self.worker.close()
        return done

    def _one(self, original: Original, number: int) -> None:
        scratch = self.place / "mutant"
        scratch.mkdir()
        seed = random.Random(f"{self.args.seed}/{number}").getrandbits(64)
        path, what = mutant(Mutator(seed, str(self.place / "outside")), original, scratch)
        # Engines keep notes of their own in the home folder when they start.
        self.worker.start()
        before, as_made = surroundings(self.place), inside(scratch)
        clock = time.monotonic()
        found, line = self.worker.ask(original.kind, path, original.path, number)
        self.slowest = max(self.slowest, time.monotonic() - clock)
        after = surroundings(self.place)
        if after != before or inside(scratch) != as_made:
            changed = [p for p in {**before, **after} if before.get(p) != after.get(p)]
            found, line = WROTE, ", ".join(changed) or "the mutant itself"
        self.counts[original.name][found] += 1
        if found in FAILURES:
            self.failures.append({"number": number, "original": original.name, "change": what, "outcome": found,
                                  "line": line})
            print(f"{found}: mutant {number} of {original.name} ({what}): {line}", flush=True)
            if len(self.failures) <= KEPT:
                shutil.copytree(scratch, self.place / "kept" / str(number), symlinks=True, copy_function=_copied)
        shutil.rmtree(scratch)


def _copied(source: str, target: str) -> None:
    if Path(source).is_file() and Path(source).stat().st_size < 1 << 26:
        shutil.copy(source, target)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=None, help="mutants (default 10000; 60 with --quick)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first mutant, to see one again")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="only originals whose name has this text")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the originals, and mutants that fail")


def main() -> None:
    """Run the benchmark."""
    args = options(__doc__ or "", _options)
    args.count = args.count or (60 if args.quick else 10_000)
    with tempfile.TemporaryDirectory(prefix="qeil-strangers-") as temporary:
        hunt = Hunt((args.keep or Path(temporary) / "work").resolve(), args)
        done = hunt.run()
    report = Report("outcomes", f"{done} mutants (seed {args.seed})", ("original", "mutants", *OUTCOMES))
    for name, counts in hunt.counts.items():
        report.rows.append({"original": name, "mutants": counts.total(), **{o: counts[o] for o in OUTCOMES}})
    total: Counter[str] = sum(hunt.counts.values(), Counter())
    report.rows.append({"original": "all", "mutants": total.total(), **{o: total[o] for o in OUTCOMES}})
    report.notes = [f"slowest answer {hunt.slowest:.2f} s (measured); limit {LIMIT:g} s, {MEMORY >> 30} GiB of memory"]
    publish([report], args, "strangers", seed=args.seed, failures=hunt.failures)
    if hunt.failures:
        raise SystemExit(f"{len(hunt.failures)} of {done} mutants failed")


if __name__ == "__main__":
    main()
