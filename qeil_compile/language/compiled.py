"""A compiled decoder: a plan and its units per phase, weights, and what a tokenizer needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from qeil_compile.artifact import Sizes
from qeil_compile.artifact.decoder import DecoderContents, GoldenPrompt, PhaseUnits, read_decoder, write_decoder
from qeil_compile.backends import backend, found_devices
from qeil_compile.backends.base import DecoderStage
from qeil_compile.backends.isolation import IsolatedStage
from qeil_compile.errors import ArtifactError, BackendError, QeilError, VerificationError
from qeil_compile.frontends.decoder import PROMPT, Generation, step_phase
from qeil_compile.language.pages import passing_pages
from qeil_compile.models.decoder import DecoderFacts
from qeil_compile.passes.lower import LoweredUnit
from qeil_compile.plan import Plan
from qeil_compile.runtime.failover import names_used, spare_for
from qeil_compile.runtime.guard import Guard
from qeil_compile.runtime.resolve import Resolved, resolve
from qeil_compile.runtime.session import Session

#: Differences of logits, as a share of their spread, that rounding explains. With packed weights engines round
#: activations to 8 bits as well.
_ROUNDING, _ROUNDING_PACKED = 1e-3, 0.1
#: Array of a weight, by the bits of the model's matrices and its name.
WeightOf = Callable[[int, str], np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quality:
    """Perplexity of a form of the weights on a text, measured. `text` says which."""

    bits: int
    perplexity: float
    tokens: int
    text: str


@dataclass(frozen=True)
class PhaseTiming:
    """Seconds of one run of a phase on one candidate (plan or single placement), measured: the least of `runs`."""

    candidate: str
    bits: int
    phase: str
    seconds: float
    runs: int


@dataclass
class CompiledDecoder:
    """Plans with their units. Engines are started by `start`, one for all phases that share a unit."""

    name: str
    facts: DecoderFacts
    workload: Generation
    phases: Mapping[str, PhaseUnits]
    states: Mapping[str, str]
    weight: WeightOf
    files: Mapping[str, bytes] = field(default_factory=dict)
    quality: Sequence[Quality] = ()
    timings: Sequence[PhaseTiming] = ()
    notes: Sequence[str] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    golden: GoldenPrompt | None = None
    threads: int = 0
    #: Phases of each spare plan.
    spares: Sequence[Mapping[str, PhaseUnits]] = ()
    _without: dict[int, CompiledDecoder] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def target(self) -> str:
        """Name of the machine that it was planned for."""
        return self.phases[PROMPT].plan.target

    @property
    def placements(self) -> list[str]:
        """Placements of all phases, each once."""
        return list(dict.fromkeys(s.placement for p in self.phases.values() for s in p.plan.stages))

    def resolved(self) -> dict[str, Resolved]:
        """Where each placement runs on this machine."""
        return resolve(self.placements, found_devices(p.partition(":")[0] for p in self.placements))

    @property
    def emulated(self) -> dict[str, str]:
        """Placements whose device is not here, with the reason."""
        return {spec: r.reason for spec, r in self.resolved().items() if r.emulated}

    def weight_bytes(self) -> int:
        """Bytes of the weights that the phases need, each once."""
        names = {(p.bits, key) for p in self.phases.values() for u in p.units for key in u.program.weights.values()}
        return sum(self.weight(bits, key).nbytes for bits, key in sorted(names))

    def save(self, path: str | Path, overwrite: bool = False) -> Sizes:
        """Write the artifact, whole or not at all. Raises `OutputError` when it exists or cannot be written."""
        engines = {r.engine: backend(r.engine).version() for r in self.resolved().values()}
        contents = DecoderContents(
            self.name, self.facts, self.workload, self.phases, self.states, self.weight, self.files, self.golden,
            engines, [asdict(q) for q in self.quality], [asdict(t) for t in self.timings], self.notes, self.seconds,
            self.spares,
        )  # fmt: skip
        return write_decoder(contents, path, overwrite)

    @staticmethod
    def load(path: str | Path) -> CompiledDecoder:
        """Read a verified artifact. Raises `ArtifactError`."""
        c = read_decoder(path)
        try:
            quality, timings = [Quality(**q) for q in c.quality], [PhaseTiming(**t) for t in c.timings]
        except TypeError as error:
            raise ArtifactError(f"{path}: malformed quality or timings ({error}); compile the model again") from error
        return CompiledDecoder(
            c.name, c.facts, c.workload, c.phases, c.states, c.weight, c.files, quality, timings, c.notes,
            dict(c.seconds), c.golden, spares=c.spares,
        )  # fmt: skip

    @property
    def failovers(self) -> dict[str, int]:
        """Name of what may be lost (placement, device, engine) -> number of the spare plan, where there is one."""
        return {n: f.spare for f in self.phases[PROMPT].plan.failovers if f.spare is not None for n in f.names}

    def without(self, *lost: str) -> CompiledDecoder:
        """The decoder without placements ("openvino:CPU"), devices ("gpu") or engines ("openvino"); itself where it
        uses nothing of what is lost. Nothing is started; it is the same object each time.

        Raises `FailoverError` where no plan does without it, and why; `InputError` for a name that is unknown.
        """

        def whole(plans: Sequence[Plan]) -> Plan:
            return replace(plans[0], stages=tuple(s for p in plans for s in p.stages))

        plans = [p.plan for p in self.phases.values()]
        spares = tuple(whole([p.plan for p in spare.values()]) for spare in self.spares)
        k = spare_for(replace(whole(plans), spares=spares), {}, lost)
        return self.numbered(0 if k is None else k + 1)

    def numbered(self, k: int) -> CompiledDecoder:
        """By its own plans (0), or by those of its spare k - 1; the same object each time."""
        if not k:
            return self
        return self._without.setdefault(k, replace(self, phases=self.spares[k - 1], spares=(), timings=()))

    @property
    def step_plans(self) -> list[Plan]:
        """Of its own plans and of each spare's, the plan of the steps that most of the time goes into."""
        shares = self.workload.shares

        def seconds(rows: int) -> float:
            return shares[rows] * self.phases[step_phase(rows)].plan.objectives.latency

        name = step_phase(max(shares, key=seconds))
        return [self.phases[name].plan, *(spare[name].plan for spare in self.spares)]

    def verify(self, session: Session | None = None) -> float:
        """Largest difference of logits from the unpartitioned decoder's, as a share of their spread: of the golden
        prompt as a whole, and of its last token as a step of each planned number of rows.

        Raises `VerificationError` where it is above what rounding explains, or where there is nothing to compare with.
        """
        if self.golden is None:
            raise VerificationError(f"model {self.name}: no golden prompt to compare with; compile it again")
        session, tokens = session or self.start(), self.golden.tokens.tolist()
        found = {PROMPT: np.array(session.prefill([tokens]))}
        for rows in self.workload.shares if len(tokens) > 1 else ():
            session.prefill([tokens[:-1]])
            session.select(np.zeros(rows, np.int64))
            found[step_phase(rows)] = np.array(session.step(np.full(rows, tokens[-1])))
        return max(self._difference(name, logits) for name, logits in found.items())

    def _difference(self, phase: str, logits: np.ndarray) -> float:
        """Of each row from the golden logits. Raises `VerificationError`."""
        assert self.golden is not None
        bits = self.phases[phase].bits
        if bits not in self.golden.logits:
            raise VerificationError(f"model {self.name}, {phase}: no golden logits of {bits} bits; compile it again")
        golden = self.golden.logits[bits]
        spread = float(golden.max() - golden.min()) or 1.0
        off = float(np.abs(logits - golden).max()) / spread
        # Prompt and cache in packed weights carry their rounding into steps in others.
        limit = _ROUNDING if min(p.bits for p in self.phases.values()) > 8 else _ROUNDING_PACKED
        if not off <= limit:
            raise VerificationError(
                f"model {self.name}, {phase}: logits differ from the unpartitioned model's by {off:.2%} of their "
                f"spread, expected at most {limit:.2%}"
            )
        return off

    def start(
        self, progress: Progress = lambda done, total: None, guard: Guard | None = None, isolate: bool = False
    ) -> Session:
        """Compile the units on their engines, under watch of `guard`, in processes of their own with `isolate`.

        Raises `BackendError` naming the stage.
        """
        with passing_pages(self._weights()):
            return self._started(progress, guard, isolate)

    def _weights(self) -> Iterator[np.ndarray]:
        """Those of all units, each once, as they are stored."""
        units = [(phase.bits, unit) for phase in self.phases.values() for unit in phase.units]
        for bits, key in dict.fromkeys((bits, key) for bits, u in units for key in u.program.weights.values()):
            yield self.weight(bits, key)

    def _started(self, progress: Progress, guard: Guard | None, isolate: bool) -> Session:
        where = self.resolved()
        one_engine = len({p.partition(":")[0] for p in self.placements}) == 1
        stepping = {_key(u, p.bits) for n, p in self.phases.items() if n != PROMPT for u in p.units}
        known: dict[tuple[object, ...], DecoderStage] = {}
        total = sum(len(p.units) for p in self.phases.values())
        done = 0
        started: dict[str, list[DecoderStage]] = {}
        for name, phase in self.phases.items():
            for unit in phase.units:
                key = _key(unit, phase.bits)
                if key not in known:
                    # The threads of a prompt's own unit would spin while the first steps run in others.
                    stage = self._start(unit, phase.bits, where, one_engine and key in stepping, isolate)
                    if guard is not None:
                        stage = guard.decoder(stage, unit.placements, f"unit {len(known)}")
                    known[key] = stage
                started.setdefault(name, []).append(known[key])
                done += 1
                progress(done, total)
        # Lists of equal units are one list: a session compares them by identity.
        same: dict[tuple[int, ...], list[DecoderStage]] = {}
        lists = {n: same.setdefault(tuple(id(u) for u in units), units) for n, units in started.items()}
        steps = {rows: lists[step_phase(rows)] for rows in self.workload.shares}
        session = Session(lists[PROMPT], steps, self.facts.vocab, self.facts.context)
        self._warm(session)
        return session

    def _warm(self, session: Session) -> None:
        """Run each phase once: engines repack weights when they first meet them."""
        for rows in self.workload.shares:
            session.prefill([[0]])
            session.select(np.zeros(rows, np.int64))
            session.step(np.zeros(rows, np.int64))
        session.tokens_run = session.bytes_moved = 0

    def start_guarded(self, guard: Guard, isolate: bool, progress: Progress) -> Session:
        """Compile the units on their engines, each under watch (see `runtime.resilient`)."""
        return self.start(progress, guard, isolate)

    def check(self, running: Session) -> None:
        """Run the golden prompt, if there is one. Raises `VerificationError`."""
        if self.golden is not None:
            self.verify(running)

    @property
    def used(self) -> frozenset[str]:
        """Names of the placements, devices and engines that the plans use."""
        return names_used(s for p in self.phases.values() for s in p.plan.stages)

    def _start(
        self, unit: LoweredUnit, bits: int, where: Mapping[str, Resolved], exclusive: bool, isolate: bool
    ) -> DecoderStage:
        program, place = unit.program, where[unit.placements[0]]
        states = {n: self.states[n] for n in program.inputs if n in self.states}
        arrays = {n: _computed(self.weight(bits, key)) for n, key in program.weights.items()}
        engine = backend(place.engine)
        compile_decoder = getattr(engine, "compile_decoder", None)
        if compile_decoder is None:
            raise BackendError(f"stage {unit.stages[0]}: {place.engine} runs no decoders; plan for another engine")
        settings = (program, states, arrays, place.device, exclusive, self.threads)
        try:
            stage: DecoderStage = IsolatedStage(place.engine, *settings) if isolate else compile_decoder(*settings)
        except QeilError as error:
            raise BackendError(f"stage {unit.stages[0]} cannot be compiled: {error}") from error
        return stage


def _key(unit: LoweredUnit, bits: int) -> tuple[object, ...]:
    """Units of one key are one stage, which several phases may use."""
    return unit.placements, bits, hashlib.sha256(unit.program.payload).digest()


def _computed(array: np.ndarray) -> np.ndarray:
    """What an engine computes with: 16-bit matrices are only stored so."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
