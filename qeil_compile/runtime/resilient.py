"""Generation and runs that go on when an engine or a device fails.

    session = ResilientSession(compiled_decoder)
    session.prefill([[1, 5, 7]])       # as runtime.session.Session: on a fault another plan takes over

Of every live row its tokens are kept. When the engines that hold its cache are gone, the cache is rebuilt from them by
one prompt run; when a plan is left while its engines still work, the cache is moved or rebuilt, whichever is cheaper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from qeil_compile.errors import GenerationError

from .decisions import DecisionLog
from .executor import Executor
from .faults import Fault, FaultKind, StageFault
from .guard import CallRecorder
from .measure import Timing, repeated
from .resilience import Progress, Resilience, Standby, Variants
from .session import SavedRows, Session
from .supervisor import Oversight

if TYPE_CHECKING:
    from qeil_compile.models.decoder import DecoderFacts  # which imports onnx

T = TypeVar("T")
#: Bytes per second at which a cache leaves one engine and enters another, at least.
_MOVE_RATE = 1e9


class DecoderVariants(Variants[Session], Protocol):
    """A compiled decoder with failover plans."""

    facts: DecoderFacts


class TaintedError(GenerationError):
    """A stage gives wrong results, and tokens since the last check may be wrong: the job has to be run again."""


@dataclass(frozen=True)
class _Saved:
    tokens: list[list[int]]
    rows: SavedRows
    session: Session


class ResilientSession:
    """A `Session` that survives faults; has its methods. Not safe to call from several threads.

    `oversight` (a `Supervisor`) says between tokens which devices should rest and which plan should be in force.
    """

    def __init__(
        self, model: DecoderVariants, settings: Resilience | None = None, log: DecisionLog | None = None,
        recorder: CallRecorder | None = None, oversight: Oversight | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:  # fmt: skip
        """Starts the engines. Raises `FailoverError` where no plan can be started, and why."""
        self.standby: Standby[Session] = Standby(model, settings, log, recorder, oversight, progress=progress)
        self._facts = model.facts
        self._tokens: list[list[int]] = []
        self._losses: list[Fault] = []
        #: Seconds per token of the last prompts, for the price of a rebuilt cache.
        self._per_token = 0.0

    @property
    def log(self) -> DecisionLog:
        """What was decided so far."""
        return self.standby.log

    @property
    def session(self) -> Session:
        """What runs now."""
        return self.standby.running

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        return self.session.vocab

    @property
    def context(self) -> int:
        """Most tokens of a row."""
        return self.session.context

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache of each live row, int64 [rows]."""
        return np.array([len(t) for t in self._tokens], np.int64)

    @property
    def leaves_cores(self) -> bool:
        """As `Session.leaves_cores`."""
        return self.session.leaves_cores

    def close(self) -> None:
        """End the engines' threads and processes; nothing runs after it."""
        self.standby.close()

    def lose(self, names: Sequence[str], detail: str) -> None:
        """A device has gone: its placements are not used from the next call on."""
        self._losses.append(Fault(FaultKind.LOST, tuple(names), detail))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """As `Session.prefill`. Raises `FailoverError` when no plan is left."""
        self._tokens = []
        started = time.perf_counter()
        logits = self._run(lambda session: session.prefill(prompts))
        self._tokens = [list(p) for p in prompts]
        self._per_token = (time.perf_counter() - started) / max(1, sum(map(len, prompts)))
        return logits

    def score(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """As `Session.score`."""
        self._tokens = []
        found = self._run(lambda session: session.score(texts))
        self._tokens = [list(t) for t in texts]
        return found

    def select(self, rows: np.ndarray) -> None:
        """As `Session.select`."""
        self._run(lambda session: session.select(rows))
        self._tokens = [list(self._tokens[r]) for r in np.asarray(rows).tolist()]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """As `Session.step`. Raises `FailoverError` when no plan is left, `TaintedError` where golden inputs fail."""
        logits = self._run(lambda session: session.step(tokens))
        for row, token in zip(self._tokens, np.asarray(tokens).tolist(), strict=True):
            row.append(token)
        return logits

    def save(self) -> _Saved:
        """As `Session.save`."""
        rows = self._run(lambda session: session.save())
        return _Saved([list(t) for t in self._tokens], rows, self.session)

    def restore(self, saved: _Saved) -> None:
        """As `Session.restore`; rows that were saved by engines that are gone are rebuilt."""

        def restored(session: Session) -> None:
            if session is saved.session:
                session.restore(saved.rows)
            else:
                _rebuild(session, saved.tokens)

        self._run(restored)
        self._tokens = [list(t) for t in saved.tokens]

    def trusted(self) -> None:
        """Run the golden inputs now, if the model has any and checks are wanted.

        Raises `TaintedError` where they come out wrong; another plan has taken over then.
        """
        if not self.standby.checks:
            return
        try:
            self.standby.check()
        except StageFault as error:
            self._tainted(error.fault)

    # ---- inside

    def _run(self, call: Callable[[Session], T]) -> T:
        while True:
            try:
                self._between()
                return call(self.session)
            except StageFault as error:
                self._recover(error.fault)

    def _between(self) -> None:
        """What is done at a token's boundary: losses that were told, plans that should be in force, golden inputs."""
        while self._losses:
            fault = self._losses.pop(0)
            if self.standby.variant.used.intersection(fault.placements):
                raise StageFault(fault)
            self.standby.note(fault)
        wanted = self.standby.wanted()
        if wanted is not self.standby.variant:
            self._switch(wanted)
        if self.standby.check_is_due:
            self._check_between()

    def _check_between(self) -> None:
        session = self.session
        saved = session.save() if self._tokens else None
        try:
            self.standby.check()
        except StageFault as error:
            self._tainted(error.fault)
        if saved is not None:
            session.restore(saved)

    def _tainted(self, fault: Fault) -> None:
        self._tokens = []
        self._recover(fault)
        raise TaintedError(
            f"{fault.as_text()}; tokens since the last check may be wrong, and another plan has taken over: run the "
            f"job again"
        )

    def _recover(self, fault: Fault) -> None:
        """Another plan takes over, with the cache rebuilt."""
        started = time.perf_counter()
        while True:
            self.standby.fail(fault)
            try:
                _rebuild(self.session, self._tokens)
                break
            except StageFault as error:
                fault = error.fault
        self.log.record(
            "recovered", "+".join(self.standby.variant.placements), tokens=sum(map(len, self._tokens)),
            seconds=time.perf_counter() - started,
        )  # fmt: skip

    def _switch(self, variant: Any) -> None:
        before = self.standby.switch(variant, "the plan in force should rest, or a better one is back")
        if before is None:
            return
        try:
            self._take_over(before.running)
        finally:
            before.guard.close()

    def _take_over(self, before: Session) -> None:
        """The rows of a session that is left are live in the one that runs now."""
        if not self._tokens:
            return
        tokens = sum(map(len, self._tokens))
        started = time.perf_counter()
        moved = 4.0 * self._facts.cache_per_token * tokens / _MOVE_RATE < self._per_token * tokens
        if moved:
            self.session.adopt(before.save())
        else:
            _rebuild(self.session, self._tokens)
        self.log.record(
            "cache moved" if moved else "cache rebuilt", "+".join(self.standby.variant.placements), tokens=tokens,
            seconds=time.perf_counter() - started,
        )  # fmt: skip


def _rebuild(session: Session, tokens: Sequence[Sequence[int]]) -> None:
    """The rows of these tokens are live; equal ones run once."""
    if not tokens:
        return
    keys = [tuple(t) for t in tokens]
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    session.prefill([list(key) for key in distinct])
    places = np.array([distinct[key] for key in keys], np.int64)
    if len(distinct) < len(keys):
        session.select(places)


class ResilientModel:
    """A compiled model without states whose runs survive faults. Not safe to call from several threads."""

    def __init__(
        self, model: Variants[Executor], settings: Resilience | None = None, log: DecisionLog | None = None,
        recorder: CallRecorder | None = None, oversight: Oversight | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:  # fmt: skip
        """Starts the engines. Raises `FailoverError` where no plan can be started, and why."""
        self.standby: Standby[Executor] = Standby(model, settings, log, recorder, oversight, progress=progress)

    @property
    def log(self) -> DecisionLog:
        """What was decided so far."""
        return self.standby.log

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """As `Compiled.run`. Raises `FailoverError` when no plan is left."""
        while True:
            try:
                wanted = self.standby.wanted()
                if wanted is not self.standby.variant:
                    before = self.standby.switch(wanted, "the plan in force should rest, or a better one is back")
                    if before is not None:
                        before.guard.close()
                if self.standby.check_is_due:
                    self.standby.check()
                return self.standby.variant.run(inputs)
            except StageFault as error:
                self.standby.fail(error.fault)

    def close(self) -> None:
        """End the engines' threads and processes; nothing runs after it."""
        self.standby.close()

    def timed(self, inputs: Mapping[str, Any], runs: int = 1) -> tuple[dict[str, np.ndarray], Timing]:
        """Outputs of one run, and the timing of `runs` further ones; raises as `run`."""
        outputs = self.run(inputs)
        return outputs, repeated(lambda: self.run(inputs), runs)
