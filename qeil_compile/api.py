"""The ways in: `aot_compile`, `compile` (function and decorator), `load`, and every stage on its own.

    traced = trace(model, args)                  operator graph
    costs  = price(traced, target)               cost table
    front  = partition(costs)                    candidates and their Pareto front
    plan   = front.plan(front.choose("latency"), "latency")
    compiled = lower_plan(traced, plan)          running on engines
    compiled.save("model.qeil")
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from .artifact import Golden, read
from .backends import EngineDevice, backend, found_devices
from .calibration import Outcome, default_specs, stored
from .calibration import calibrate as run_calibration
from .devices import Placement, ReportRow, Target, host_target, known_targets, load_target, system_report
from .devices.calibrations import Calibrations, applied
from .devices.cpuinfo import cpu_facts
from .errors import BackendError, InputError, ModelError, OutputError, QeilError, VerificationError
from .frontends import RUN_SECONDS, Arrays, Traced, trace
from .ir import Workload
from .passes.annotate import CostTable, annotate
from .passes.choice import parse_choice
from .passes.conditions import Conditions
from .passes.count import count, unknown_report
from .passes.fuse import FuseSettings, fuse
from .passes.lower import LoweredUnit, lower
from .passes.partition import (
    Candidate,
    Front,
    JointFront,
    PartitionSettings,
    Phase,
    Search,
    partition,
    partition_phases,
    phase_failovers,
    pin_labels,
    with_failovers,
)
from .plan import Plan
from .runtime import Compiled, Explanation, explain, resolve
from .runtime.measure import Timing
from .validation import Claim, write
from .validation import Settings as ValidationSettings
from .validation import validate as run_validation

__all__ = [
    "ENERGY_MODELLED",
    "Claim",
    "Compiled",
    "Conditions",
    "Explanation",
    "JointFront",
    "Outcome",
    "PartitionSettings",
    "Phase",
    "Search",
    "Settings",
    "ValidationSettings",
    "aot_compile",
    "calibrate",
    "check_output",
    "compile",
    "compile_traced",
    "device_report",
    "explain",
    "find_target",
    "known_targets",
    "load",
    "lower_plan",
    "partition",
    "partition_phases",
    "phase_failovers",
    "price",
    "trace",
    "validate",
    "with_failovers",
    "write_validation",
]

#: Called with the name of a step, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def _silent(step: str, done: int, total: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Settings:
    """What to compile for.

    `target` is "host", a profile's name, a TOML file, a comma list of placements of this machine
    ("openvino:CPU,torch:cpu"), or a `Target`. `objective` is latency, energy, balanced, utilisation or weights, with
    caps if need be ("energy; latency<=50ms"). `pins` maps a pattern over operator names, scopes and types to a
    placement; all operators that match one pattern of `together` share a placement; `forbidden` placements or devices
    are not used. `strategies` limits the partitioner, `seed` and `search_seconds` are those of its annealer (with a
    time budget plans are not repeatable).
    `threads` is the number of CPU threads that engines use (0: their own choice).
    `measure` runs the chosen plan against every single placement before it is accepted, where all devices are
    on this machine. `verify` refuses a plan whose outputs differ from the unpartitioned model's. `failover` also makes
    plans for the loss of what the plan uses (see `Compiled.without`); with `verify` those that differ are dropped.
    """

    target: str | Target = "host"
    objective: str = "latency"
    pins: Mapping[str, str] = field(default_factory=dict)
    together: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    seed: int = 0
    search_seconds: float | None = None
    measure: bool = True
    fuse: bool = True
    conditions: Conditions = field(default_factory=Conditions)
    verify: bool = True
    threads: int = 0
    failover: bool = True


def find_target(target: str | Target, found: Sequence[EngineDevice] | None = None) -> Target:
    """The target behind a name, file or list of placements. Raises `TargetError`."""
    if isinstance(target, Target):
        return target
    found = found_devices() if found is None else found
    if target == "host":
        return host_target(None, found)
    engines = {d.spec.partition(":")[0] for d in found}
    specs = [s.strip() for s in target.split(",") if s.strip()]
    if specs and all(s.partition(":")[0] in engines and ":" in s for s in specs):
        return host_target(specs, found)
    return load_target(target)


def price(
    traced: Traced, target: str | Target = "host", settings: Settings | None = None, progress: Progress = _silent
) -> CostTable:
    """Count, fuse and price a traced model for a target; engines are asked what they support.

    Raises `TargetError`, `PinError`, `UnsupportedOperatorError`.
    """
    settings = settings or Settings()
    goal = find_target(target)
    graph = traced.graph.priced()
    counts = count(graph)
    labels = pin_labels(graph, settings.pins)
    groups = fuse(graph, counts, labels, FuseSettings(enabled=settings.fuse))
    refusals = _ask(traced, goal.placements, progress)
    known = calibrations_for(goal, settings.threads)
    if known is not None:
        goal = applied(goal, known)
    return annotate(
        groups, counts, goal, refusals, unknown_report(graph, counts), conditions=settings.conditions, calibration=known
    )


def calibrations_for(target: Target, threads: int) -> Calibrations | None:
    """What `qeil calibrate` left for this machine; None for another target, or where nothing was calibrated."""
    if not target.host:
        return None
    known = stored([p.spec for p in target.placements], threads)
    return known if known.found else None


def _ask(traced: Traced, placements: Sequence[Placement], progress: Progress) -> dict[str, dict[int, str]]:
    """Placement -> {operator index: the engine's reason to refuse it}."""
    if not traced.has_weights:
        return {}
    resolved = resolve([p.spec for p in placements], found_devices())
    answers: dict[tuple[str, str], dict[int, str]] = {}
    refusals: dict[str, dict[int, str]] = {}
    for k, spec in enumerate(resolved):
        place = resolved[spec]
        key = (place.engine, place.device)
        if key not in answers:
            support = backend(place.engine).supports(traced.source, place.device)
            answers[key] = {i: s.reason for i, s in enumerate(support) if not s.ok}
        refusals[spec] = answers[key]
        progress("ask engines", k + 1, len(resolved))
    return refusals


def _partition_settings(settings: Settings) -> PartitionSettings:
    search = Search(seed=settings.seed, seconds=settings.search_seconds)
    return PartitionSettings(settings.pins, settings.together, settings.forbidden, settings.strategies, search)


def lower_plan(
    traced: Traced, plan: Plan, costs: CostTable | None = None, progress: Progress = _silent, golden: bool = True
) -> Compiled:
    """Cut a plan's units, and those of its spare plans, out of the model, and record golden outputs of the
    unpartitioned model.

    Raises `ModelError` (model traced without weights), `BackendError`.
    """
    if not traced.has_weights:
        raise ModelError(
            f"model {traced.graph.name} was traced without weights (meta device): it can be planned but not lowered; "
            "load its weights first"
        )
    units = _lower(traced, plan, lambda done, total: progress("lower", done, total))
    compiled = Compiled(
        traced.graph, plan, units, traced.source.weight, Golden({}, {}), traced.workload,
        costs.to_json() if costs is not None else {}, traced.call, spares=[_lower(traced, s) for s in plan.spares],
    )  # fmt: skip
    compiled.golden = _golden(traced, compiled, progress) if golden else Golden(dict(traced.samples), {})
    return compiled


def _lower(
    traced: Traced, plan: Plan, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[LoweredUnit]:
    engines = dict.fromkeys(s.placement.partition(":")[0] for s in plan.stages)
    return lower(plan, traced.source, {name: backend(name).forms() for name in engines}, progress)


def _golden(traced: Traced, compiled: Compiled, progress: Progress) -> Golden:
    progress("reference run", 0, 2)
    outputs = dict(zip(traced.graph.outputs, traced.run_reference(traced.samples), strict=True))
    progress("reference run", 1, 2)
    inner = {o for u in compiled.units for o in u.program.outputs if o not in outputs}
    boundaries = reference_values(traced, sorted(inner)) if inner else {}
    progress("reference run", 2, 2)
    return Golden(dict(traced.samples), outputs, boundaries)


def reference_values(traced: Traced, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Inner tensors of the unpartitioned model for its sample inputs; empty if no engine runs it whole."""
    graph, form = traced.graph, traced.source.forms()[0]
    engine, device = ("torch", "cpu") if form == "fx" else ("onnxruntime", "CPU")
    try:
        program = traced.source.cut(form, range(len(graph.ops)), graph.inputs, names)
        weights = {n: traced.source.weight(k) for n, k in program.weights.items()}
        run = backend(engine).compile(program, weights, device)
        values = run([traced.samples[n] for n in graph.inputs])
    except BackendError:
        return {}
    return {n: np.array(v) for n, v in zip(names, values, strict=True)}


def aot_compile(
    model: Any,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    *,
    workload: Workload | None = None,
    inputs: Arrays | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    progress: Progress = _silent,
    trust: bool = False,
    allow_operators: Collection[str] = (),
    run_seconds: float = RUN_SECONDS,
) -> Compiled:
    """Compile a model ahead of time; see `trace` for what a model can be, `trust`, `allow_operators` and `run_seconds`,
    and `Settings` for the rest.

    The result is running on this machine (stages of absent devices on a stand-in, see
    `Compiled.emulated`), agrees with the unpartitioned model on the sample inputs, and can be saved. Raises a
    `QeilError` for everything that a user can mend.
    """
    settings = settings or Settings()
    target = find_target(settings.target)
    progress("trace", 0, 1)
    traced = trace(
        model, args, kwargs, workload=workload, inputs=inputs, seed=seed, trust=trust, allow_operators=allow_operators,
        run_seconds=run_seconds,
    )  # fmt: skip
    progress("trace", 1, 1)
    return compile_traced(traced, replace(settings, target=target), progress)


def compile_traced(traced: Traced, settings: Settings | None = None, progress: Progress = _silent) -> Compiled:
    """`aot_compile` for a model that is traced already; one trace serves several targets."""
    settings = settings or Settings()
    target = find_target(settings.target)
    clock = _Clock()
    clock.laps["trace"] = traced.seconds
    costs = price(traced, target, settings, progress)
    clock.lap("ask engines and price")
    limits = _partition_settings(settings)
    front = partition(costs, limits)
    candidate = front.choose(settings.objective)
    clock.lap("partition")
    compiled = lower_plan(traced, _plan(front, candidate, settings), costs, progress)
    compiled.threads = settings.threads
    clock.lap("lower and reference run")
    compiled.start(lambda done, total: progress("start engines", done, total))
    clock.lap("start engines")
    if settings.measure and target.host and not compiled.emulated:
        compiled = _accept(traced, front, candidate, compiled, settings, progress)
        clock.lap("measure against single devices")
    if settings.verify and compiled.golden.outputs:
        _check(compiled)
        clock.lap("verify")
    if settings.failover:
        _add_spares(traced, front, compiled, limits, progress)
        clock.lap("failover plans")
        if settings.verify and compiled.golden.outputs and compiled.spares:
            _check_spares(compiled, progress)
            clock.lap("verify failover plans")
    compiled.seconds = clock.laps
    return compiled


def _check(compiled: Compiled) -> None:
    try:
        compiled.verify()
    except VerificationError as error:
        raise VerificationError(
            f"{error}; leave that engine out with --target, or pass --no-verify if the model's outputs are not unique"
        ) from error


def _add_spares(
    traced: Traced, front: Front, compiled: Compiled, limits: PartitionSettings, progress: Progress
) -> None:
    """Plans for losses, of the plan that was accepted in the end, with their units."""
    progress("failover plans", 0, 1)
    plan = with_failovers(front, compiled.plan, limits)
    units: list[Sequence[LoweredUnit]] = []
    for spare in plan.spares:
        try:
            units.append(_lower(traced, spare))
        except QeilError as error:
            plan = plan.without_spare(len(units), f"{spare.strategy} cannot be lowered: {error}")
    compiled.plan = replace(plan, spares=tuple(_with_energy_note(s, front.costs) for s in plan.spares))
    compiled.spares = units
    progress("failover plans", 1, 1)


def _check_spares(compiled: Compiled, progress: Progress) -> None:
    """Take out each spare that does not start or differs: it would be no help."""
    total = len(compiled.spares)
    for k in reversed(range(total)):
        progress("verify failover plans", total - 1 - k, total)
        try:
            compiled.spare(k).verify()
        except (BackendError, VerificationError) as error:
            reason = f"{compiled.plan.spares[k].strategy} was found, but failed: {error}"
            compiled.plan = compiled.plan.without_spare(k, reason)
            compiled.spares = [units for i, units in enumerate(compiled.spares) if i != k]
    progress("verify failover plans", total, total)


def _plan(front: Front, candidate: Candidate, settings: Settings) -> Plan:
    plan = front.plan(candidate, settings.objective)
    return replace(_with_energy_note(plan, front.costs), pins=dict(settings.pins))


def _with_energy_note(plan: Plan, costs: CostTable) -> Plan:
    used = {s.placement for s in plan.stages}
    if plan.label == "calibrated" and not _energy_was_read(costs, used):
        return replace(plan, notes=(*plan.notes, ENERGY_MODELLED))
    return plan


#: Note of a plan whose times are calibrated and whose energies are not.
ENERGY_MODELLED = "energies are modelled: no energy counter of this machine could be read when it was calibrated"


def _energy_was_read(costs: CostTable, placements: set[str]) -> bool:
    known = costs.calibration
    return isinstance(known, Calibrations) and all(known.found[p].energy for p in placements if p in known.found)


def _accept(
    traced: Traced, front: Front, candidate: Candidate, compiled: Compiled, settings: Settings, progress: Progress
) -> Compiled:
    """Run the chosen plan against every single placement; the fastest is taken unless energy is the goal.

    Prices of an uncalibrated machine are estimates: the clock has the last word.
    """
    rivals: dict[str, Compiled] = {}
    singles = [c for c in front.candidates if c.strategy.startswith("single ") and c is not candidate]
    for k, single in enumerate(singles):
        rival = lower_plan(traced, _plan(front, single, settings), golden=False)
        rival.threads = settings.threads
        try:
            rival.start()
        except BackendError:
            continue
        rival.golden = Golden(dict(traced.samples), {})
        rivals[single.strategy] = rival
        progress("measure", k + 1, len(singles) + 1)
    timings = compiled.measure(rivals)
    progress("measure", len(singles) + 1, len(singles) + 1)
    best = min(timings, key=lambda n: timings[n].median)
    if parse_choice(settings.objective).weights[0] and best in rivals:
        winner = next(c for c in singles if c.strategy == best)
        plan = _plan(front, winner, settings)
        note = (
            f"{candidate.strategy} was planned; {best} was faster when measured "
            f"({_ms(timings[best])} against {_ms(timings[candidate.strategy])}) and took its place"
        )
        executor = rivals[best].executor
        compiled = lower_plan(traced, replace(plan, notes=(*plan.notes, note)))
        compiled.costs, compiled.threads = front.costs.to_json(), settings.threads
        compiled.__dict__["executor"] = executor
    compiled.timings = timings
    return compiled


def _ms(timing: Timing) -> str:
    return f"{timing.median * 1e3:.3f} ms"


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def calibrate(
    specs: Sequence[str] | None = None,
    threads: Sequence[int] = (),
    seconds: float = 66.0,
    progress: Callable[[str, float], None] = lambda spec, share: None,
) -> list[Outcome]:
    """Measure placements of this machine (all by default), fit the cost model to them and store the result.

    `threads` are numbers of CPU threads (default: one per core); `seconds` is the time for all measurements.
    Raises `TargetError` for a placement that is not here, `QeilError` where nothing can be stored.
    """
    specs = specs or default_specs()
    host_target(specs, found_devices())
    return run_calibration(specs, threads or [cpu_facts().cores], seconds, progress)


def validate(
    settings: ValidationSettings, progress: Callable[[str, float], None] = lambda part, share: None
) -> dict[str, list[Claim]]:
    """The cost model against published measurements and this machine's clock, by part; see `qeil validate`."""
    return run_validation(settings, progress)


def write_validation(claims: Sequence[Claim], folder: str | Path) -> list[Path]:
    """`validation.json` and the plots, with this machine's processor and engine versions."""
    facts = cpu_facts()
    versions = {d.spec.partition(":")[0] for d in found_devices() if d.available}
    engines = {name: backend(name).version() for name in sorted(versions)}
    environment = {"cpu": facts.model, "cores": facts.cores, "engines": engines}
    return write(claims, Path(folder), environment)


def load(path: str | Path) -> Compiled:
    """Read a verified artifact; torch is imported only if one of its stages needs it. Raises `ArtifactError`."""
    return Compiled.from_contents(read(path))


class CompiledCallable:
    """A model that compiles itself for the arguments it is called with, once per structure, shapes and dtypes.

    Weights that were changed since compile the model again. Everything else is the model's own: attributes are
    handed through. Gradients are not recorded.
    """

    def __init__(self, model: Callable[..., Any], settings: Settings) -> None:
        self._model, self._settings = model, settings
        self._known: dict[Any, Compiled] = {}
        self._weights: Any = None
        self._lock = threading.Lock()
        if not isinstance(model, type) and hasattr(model, "__name__"):
            functools.update_wrapper(self, model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model through its plan."""
        return self.compiled_for(*args, **kwargs)(*args, **kwargs)

    def compiled_for(self, *args: Any, **kwargs: Any) -> Compiled:
        """The compiled form for these arguments; compiles it if it is new."""
        # A module in training mode is another model than the same module in eval mode.
        key = (getattr(self._model, "training", None), _signature(args, kwargs))
        with self._lock:
            weights = _weight_versions(self._model)
            if weights != self._weights:
                self._weights = weights
                self._known.clear()
            if key not in self._known:
                self._known[key] = aot_compile(self._model, args, kwargs, settings=self._settings)
            return self._known[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_model", "_settings", "_known", "_weights", "_lock"):
            raise AttributeError(name)
        return getattr(self._model, name)


def _weight_versions(model: Any) -> tuple[Any, ...]:
    if not hasattr(model, "parameters") or not hasattr(model, "buffers"):
        return ()
    return tuple(tensor_version(t) for group in (model.parameters(), model.buffers()) for t in group)


def tensor_version(tensor: Any) -> tuple[Any, ...]:
    """Changes whenever a torch tensor's values may have: storage, and number of writes in place."""
    # Tensors made in inference mode count no writes.
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten((args, kwargs))
    return str(spec), tuple(
        (tuple(v.shape), str(v.dtype)) if hasattr(v, "shape") and hasattr(v, "dtype") else (type(v), v) for v in leaves
    )


@overload
def compile(model: None = None, **options: Any) -> Callable[[Callable[..., Any]], CompiledCallable]: ...
@overload
def compile(model: str | Path, **options: Any) -> Compiled: ...
@overload
def compile(model: Callable[..., Any], **options: Any) -> CompiledCallable: ...
def compile(model: Any = None, **options: Any) -> Any:
    """Compile a torch module or function for the arguments it will be called with; also a decorator.

        fast = qeil_compile.compile(model, target="host")
        @qeil_compile.compile(objective="energy")
        def f(x): ...

    `options` are the fields of `Settings`. A path to an `.onnx` or `.pt2` file is compiled at once (options
    `workload`, `inputs`, `seed`, `trust`, `allow_operators` and `run_seconds` are those of `aot_compile`).
    """
    if model is None:
        return lambda m: compile(m, **options)
    if isinstance(model, (str, Path)):
        extra = {k: options.pop(k) for k in _OF_PATHS if k in options}
        return aot_compile(model, settings=_settings(options), **extra)
    if isinstance(model, type) or not callable(model):
        raise ModelError(f"{model!r:.80} is no model; expected a torch module instance, a function or a path")
    return CompiledCallable(model, _settings(options))


#: Options of `compile` for a path that are no settings.
_OF_PATHS = ("workload", "inputs", "seed", "trust", "allow_operators", "run_seconds")


def _settings(options: Mapping[str, Any]) -> Settings:
    known = Settings.__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"option {unknown[0]}: unknown; expected one of {', '.join(known)}")
    return Settings(**options)


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, or that cannot be written, before any work is done. Raises `OutputError`."""
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise OutputError(f"{path}: exists already; choose another name or pass --overwrite")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir():
        raise OutputError(f"{path}: cannot be written ({folder} is no folder); choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: cannot be written ({folder} is not writable); choose another folder")


def device_report() -> list[ReportRow]:
    """What is on this machine, which engine drives it, and why something is missing."""
    return system_report(found_devices())
