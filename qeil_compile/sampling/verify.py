"""Verifiers: what accepts, rejects or scores a sample. They may raise, hang or lie, and sampling goes on.

A verifier is any `f(question, sample)` that returns True or False, a score, or a `Check`. `Guard` puts a limit of time
and patience around it. Whether its word may end the sampling, and at what price in delta, is `csvet.Verified`'s matter.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from qeil_compile.errors import InputError

from . import extract, sandbox
from .arithmetic import check_arithmetic
from .samples import Sample


@dataclass(frozen=True)
class Check:
    """A verifier's word. `accepted` is None where it has none; `fault` says what went wrong with it."""

    accepted: bool | None
    score: float | None = None
    seconds: float = 0.0
    fault: str = ""


Verifier = Callable[[Any, Sample], "Check | bool | float | None"]


class Guard:
    """A verifier with a limit of time. What raises, hangs or returns nonsense is a fault, never an acceptance.

    `threshold`: scores from it on are acceptances. After `patience` faults the verifier is not asked any more. A
    callable that hangs cannot be killed: its thread is left behind, so that the first hang ends its use
    (`CommandVerifier` and `UnitTests` run as processes, which are).
    """

    def __init__(
        self, verifier: Verifier, seconds: float = 10.0, threshold: float | None = None, patience: int = 3
    ) -> None:  # fmt: skip
        self.verifier, self.seconds, self.threshold, self.patience = verifier, seconds, threshold, patience
        self.faults: list[str] = []
        self.hung = False

    @property
    def usable(self) -> bool:
        """Whether it is still asked."""
        return not self.hung and len(self.faults) < self.patience

    def __call__(self, question: Any, sample: Sample) -> Check:
        """The check of one sample; never raises."""
        if not self.usable:
            return Check(None, fault="not asked any more after faults")
        started = time.perf_counter()
        result: list[Any] = []
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                result.append(self.verifier(question, sample))
            except BaseException as error:  # whatever a stranger's code raises
                errors.append(error)

        thread = threading.Thread(target=ask, daemon=True, name="verifier")
        thread.start()
        thread.join(self.seconds)
        took = time.perf_counter() - started
        if thread.is_alive():
            self.hung = True
            return self._fault(f"no answer within {self.seconds:g} s", took)
        if errors:
            return self._fault(f"{type(errors[0]).__name__}: {errors[0]}", took)
        return self._read(result[0], took)

    def _read(self, value: Any, took: float) -> Check:
        if isinstance(value, Check):
            return self._fault(value.fault, took) if value.fault else value
        if isinstance(value, (bool, np.bool_)):
            return Check(bool(value), float(value), took)
        if isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value):
            accepted = None if self.threshold is None else bool(value >= self.threshold)
            return Check(accepted, float(value), took)
        if value is None:
            return Check(None, None, took)
        return self._fault(f"returned {value!r:.60}, expected True, False, a finite score or a Check", took)

    def _fault(self, text: str, took: float) -> Check:
        self.faults.append(text)
        return Check(None, None, took, text)


class CommandVerifier:
    """A command that reads `{"question", "answer", "text"}` as JSON on standard input.

    Exit status 0 accepts, 1 rejects, anything else is a fault; `{"score": x}` as the last line of output is its score.
    It runs in the sandbox: see `sandbox.run` for the limits.
    """

    def __init__(self, command: Sequence[str], seconds: float = 10.0, memory: int = 1 << 31) -> None:
        if not command:
            raise InputError("verifier: found no command, expected a program and its arguments")
        self.command, self.seconds, self.memory = list(command), seconds, memory

    def __call__(self, question: Any, sample: Sample) -> Check:
        given = json.dumps({"question": question, "answer": sample.answer, "text": sample.text}, default=str)
        done = sandbox.run(self.command, given, seconds=self.seconds, memory=self.memory)
        if done.timed_out:
            return Check(None, None, done.seconds, f"killed after {self.seconds:g} s")
        if done.status not in (0, 1):
            shown = (done.errors.strip().splitlines() or [""])[-1]
            return Check(None, None, done.seconds, f"exit status {done.status} {shown:.120}".strip())
        score: float | None = None
        try:
            data = json.loads(done.output.strip().splitlines()[-1])
            value = data.get("score") if isinstance(data, dict) else None
            score = float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
        except (ValueError, IndexError):
            pass
        return Check(done.status == 0, score, done.seconds)


class ArithmeticVerifier:
    """Accepts a chain whose equations all hold and whose answer is their last result; no word without equations."""

    def __call__(self, question: Any, sample: Sample) -> Check:
        found = check_arithmetic(sample.text)
        if found.score is None:
            return Check(None)
        ends = found.result is not None and sample.answer == extract.canonical(found.result)
        return Check(found.score == 1 and ends, found.score)


#: Reads program, tests and a secret word; prints the word only when the tests have run to their end.
_HARNESS = """
import json, os, sys
job = json.loads(sys.stdin.read()); out = os.dup(1); os.dup2(2, 1)
space = {"__name__": "__main__"}
exec(compile(job["program"], "program.py", "exec"), space)
exec(compile(job["tests"], "tests.py", "exec"), space)
os.write(out, job["word"].encode())
"""


class UnitTests:
    """Runs a sample's code and then tests (`assert`s) in the sandbox; accepted where all of it ends without an error.

    `tests`: their code, or how to get it from the question. `prefix`: code in front of the sample's. A program that
    leaves early, even with status 0, is rejected: only the end of the tests prints the word that is waited for.
    """

    def __init__(
        self, tests: str | Callable[[Any], str], prefix: str | Callable[[Any], str] = "", seconds: float = 3.0,
        memory: int = 1 << 30,
    ) -> None:  # fmt: skip
        self.tests, self.prefix, self.seconds, self.memory = tests, prefix, seconds, memory

    def __call__(self, question: Any, sample: Sample) -> Check:
        program = extract.code(sample.text)
        if program is None:
            return Check(False, 0.0)
        tests = self.tests if isinstance(self.tests, str) else self.tests(question)
        prefix = self.prefix if isinstance(self.prefix, str) else self.prefix(question)
        word = secrets.token_hex(16)
        job = json.dumps({"program": f"{prefix}\n{program}\n", "tests": tests, "word": word})
        command = [sys.executable, "-I", "-S", "-c", _HARNESS]
        done = sandbox.run(command, job, seconds=self.seconds, memory=self.memory)
        if done.status in (None, 125):
            return Check(None, None, done.seconds, f"the sandbox failed: {done.errors.strip()[:120]}")
        accepted = done.status == 0 and done.output == word
        return Check(accepted, float(accepted), done.seconds)


def false_accept_bound(accepted: int, wrong: int, error: float = 0.05) -> float:
    """Upper bound on P(accept | wrong), with confidence 1 - error, after `accepted` of `wrong` wrong samples.

    Clopper-Pearson; 1 where no wrong sample has been checked. Raises `InputError` for counts that do not fit.
    """
    if not 0 <= accepted <= wrong:
        raise InputError(f"false accepts: found {accepted} of {wrong}, expected a number from 0 to that")
    return 1.0 if accepted == wrong else float(special.betaincinv(accepted + 1, wrong - accepted, 1 - error))
