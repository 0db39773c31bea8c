"""The executable plan: stages, transfers, objective values. Plain data with a stable JSON form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from .errors import ArtifactError

#: How much a printed figure may claim; see docs/honest-words.md.
Label = Literal["measured", "calibrated", "modelled", "emulated"]


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a plan costs per run: latency [s], energy [J], under-utilisation in [0, 1]. Smaller is better."""

    latency: float
    energy: float
    under_utilisation: float

    def dominates(self, other: Objectives) -> bool:
        """No worse in every objective and better in one."""
        mine = (self.latency, self.energy, self.under_utilisation)
        theirs = (other.latency, other.energy, other.under_utilisation)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, slots=True)
class Stage:
    """Operators that one engine runs as one sub-model. Times [s] and energy [J] are the cost model's.

    `start` counts from the beginning of a run. `boundary` is what entering this stage costs [s].
    """

    index: int
    placement: str
    device: str
    ops: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    start: float
    seconds: float
    joules: float
    boundary: float
    flops: float
    nbytes: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """A tensor that moves between stages on different devices; `source` is -1 for an input of the model."""

    tensor: str
    nbytes: int
    source: int
    target: int
    seconds: float
    joules: float


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device of the target while the plan runs over and over.

    `busy` [s] and `joules` [J] are per run, waiting included in the energy. `temperature` [C] is None where the
    profile has no thermal data; Phi is 1 then. A device that is not `sustained` would pass its thermal ceiling.
    `cpq` is the capacity pressure of its memory, shared with the other devices of the pool. `arena_bytes` is the
    block that activations share, `peak_bytes` what of them lives at once, `online_bytes` what an engine that
    allocates as it goes may need instead, at worst. `spill_bytes` cross the link from the host in every run.
    """

    device: str
    busy: float
    joules: float
    temperature: float | None
    phi: float
    sustained: bool
    cpq: float
    weight_bytes: int
    arena_bytes: int
    peak_bytes: int
    online_bytes: int
    spill_bytes: int

    @property
    def fragmentation(self) -> float:
        """Share by which the arena is larger than what lives at once."""
        return self.arena_bytes / self.peak_bytes - 1 if self.peak_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What the range of one energy coefficient does to a plan.

    `device` and `field` name it; the last rows, of device "all" in units of 1, move every coefficient at once: -1 is
    the lower end of each range, 1 the upper. `joules_low` and `joules_high` are the plan's energy [J] at `low` and
    `high`. Below `flips_below` (above `flips_above`) the plan `rival_below` (`rival_above`) is the better choice;
    None and "" where the choice holds down (up) to the end of the range.
    """

    device: str
    field: str
    unit: str
    value: float
    low: float
    high: float
    joules_low: float
    joules_high: float
    flips_below: float | None
    rival_below: str
    flips_above: float | None
    rival_above: str

    def as_text(self) -> str:
        """`energy_per_byte of npu above 9.1e-11 J/B: single openvino:CPU is better`; "" where the choice holds."""
        unit = "" if self.unit == "1" else f" {self.unit}"
        name = f"{self.field} of {self.device}" if self.device != ALL else ALL_TEXT
        sides = (("below", self.flips_below, self.rival_below), ("above", self.flips_above, self.rival_above))
        found = [(side, at, rival or "no plan") for side, at, rival in sides if at is not None]
        return "; ".join(f"{name} {side} {at:.3g}{unit}: {rival} is better" for side, at, rival in found)


#: `Sensitivity.device` of the row that moves all coefficients at once.
ALL = "all"
ALL_TEXT = "all energy coefficients at once (-1 is the lower end of each range, 1 the upper)"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that was considered: its strategy, size and objective values."""

    strategy: str
    stages: int
    objectives: Objectives
    chosen: bool
    on_front: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failover:
    """What takes over when something that the plan uses is lost.

    `names` all mean the same loss: a placement, a device or an engine; `lost` are the placements that then may not be
    used. `spare` is the number of the plan that does without them, or None; then `reason` says why there is none.
    `notes` say which limits of the user that plan gives up: pins to what is lost, caps that nothing left can keep.
    """

    names: tuple[str, ...]
    lost: tuple[str, ...]
    spare: int | None
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One assignment of all operators, made executable. `units` groups stages that are lowered as one."""

    model: str
    target: str
    strategy: str
    objective: str
    label: Label
    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]
    units: tuple[tuple[int, ...], ...]
    objectives: Objectives
    #: Name of each objective -> a value that no plan of this cost table can be below.
    lower_bounds: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()
    #: Pattern over operators -> placement, as the user asked for.
    pins: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[DeviceState, ...] = ()
    #: How the choice depends on energy coefficients that are only known as ranges.
    sensitivity: tuple[Sensitivity, ...] = ()
    #: By which share the objective's value may be above that of the best plan (None: no bound is known).
    gap: float | None = None
    #: One entry per loss; several may share a spare. Spares have neither failovers nor spares.
    failovers: tuple[Failover, ...] = ()
    spares: tuple[Plan, ...] = ()

    @property
    def energy_range(self) -> tuple[float, float]:
        """Least and most energy [J] of this plan over the ranges of the energy coefficients."""
        found = [self.objectives.energy, *(e for s in self.sensitivity for e in (s.joules_low, s.joules_high))]
        return min(found), max(found)

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form, read back by `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan. Raises `ArtifactError` naming the field that is missing or has the wrong form."""
        try:
            plan = Plan(
                **_typed(Plan, data),
                stages=tuple(Stage(**_typed(Stage, s)) for s in data["stages"]),
                transfers=tuple(Transfer(**_typed(Transfer, t)) for t in data["transfers"]),
                objectives=Objectives(**_typed(Objectives, data["objectives"])),
                alternatives=tuple(
                    Alternative(
                        **_typed(Alternative, a), objectives=Objectives(**_typed(Objectives, a["objectives"]))
                    )
                    for a in data["alternatives"]
                ),
                devices=tuple(DeviceState(**_typed(DeviceState, d)) for d in data["devices"]),
                sensitivity=tuple(Sensitivity(**_typed(Sensitivity, s)) for s in data["sensitivity"]),
                failovers=tuple(Failover(**_typed(Failover, f)) for f in data["failovers"]),
                spares=tuple(_spare_from_json(s) for s in data["spares"]),
            )
            objectives = [plan.objectives, *(a.objectives for a in plan.alternatives)]
            if any(value < 0 for o in objectives for value in asdict(o).values()):
                raise ValueError("objectives are below 0")
            _check_failovers(plan)
            return plan
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ArtifactError(f"plan: missing or malformed field ({error}); compile the model again") from error

    def without_spare(self, k: int, reason: str) -> Plan:
        """The plan with one spare taken out; what it was for has `reason` instead."""

        def moved(f: Failover) -> Failover:
            if f.spare == k:
                return replace(f, spare=None, reason=reason, notes=())
            return replace(f, spare=f.spare - 1) if f.spare is not None and f.spare > k else f

        spares = self.spares[:k] + self.spares[k + 1 :]
        return replace(self, failovers=tuple(moved(f) for f in self.failovers), spares=spares)

    def sensitivity_text(self) -> list[str]:
        """The energy with its range, and each coefficient at which another plan becomes the better choice."""
        if not self.sensitivity:
            return []
        low, high = self.energy_range
        flips = [text for s in self.sensitivity if (text := s.as_text())]
        coefficients = sum(s.device != ALL for s in self.sensitivity)
        head = (
            f"energy {self.objectives.energy * 1e3:.3g} mJ ({low * 1e3:.3g} to {high * 1e3:.3g} over the ranges of "
            f"{coefficients} coefficients); the choice holds"
        )
        return [f"{head} except for" if flips else f"{head} over all of them", *(f"  {text}" for text in flips)]

    def as_text(self) -> str:
        """Stages, the state of each device, and what the ranges of energy coefficients change."""
        o = self.objectives
        lines = [
            f"plan {self.strategy} for {self.model} on {self.target}: {len(self.stages)} stages, "
            f"latency {o.latency * 1e3:.3f} ms, energy {o.energy * 1e3:.3f} mJ ({self.label})"
        ]
        lines += [
            f"  stage {s.index}: {s.placement}, {len(s.ops)} operators, {s.seconds * 1e3:.3f} ms" for s in self.stages
        ]
        lines += [f"  device {d.device}: {device_text(d)}" for d in self.devices]
        lines += [f"  {line}" for line in self.sensitivity_text()]
        lines += [f"  without {'/'.join(f.names)}: {self._failover_text(f)}" for f in self.failovers]
        return "\n".join(lines)

    def _failover_text(self, f: Failover) -> str:
        if f.spare is None:
            return f"no plan ({f.reason})"
        spare = self.spares[f.spare]
        return (
            f"{spare.strategy}, {len(spare.stages)} stages, latency {spare.objectives.latency * 1e3:.3f} ms, energy "
            f"{spare.objectives.energy * 1e3:.3f} mJ{''.join(f'; {note}' for note in f.notes)}"
        )


def _spare_from_json(data: Mapping[str, Any]) -> Plan:
    # Checked before it is read: a spare of a spare of a spare would nest without end.
    if data["failovers"] or data["spares"]:
        raise ValueError("a spare plan has spares of its own")
    return Plan.from_json(data)


def _check_failovers(plan: Plan) -> None:
    """Raise `ValueError` where losses and spares do not belong together."""
    names = [n for f in plan.failovers for n in f.names]
    if len(set(names)) != len(names):
        raise ValueError("failovers: a name occurs twice")
    for f in plan.failovers:
        if not f.names or not f.lost:
            raise ValueError("failovers: an entry says not what is lost")
        if (f.spare is None) != bool(f.reason) or (f.spare is not None and not 0 <= f.spare < len(plan.spares)):
            raise ValueError(f"failover {f.names[0]} has spare {f.spare} of {len(plan.spares)} and reason {f.reason!r}")
        if f.spare is not None and any(s.placement in f.lost for s in plan.spares[f.spare].stages):
            raise ValueError(f"failover {f.names[0]} uses what is lost")
    if {f.spare for f in plan.failovers} - {None} != set(range(len(plan.spares))):
        raise ValueError("a spare plan is for no loss")
    if any((s.model, s.target) != (plan.model, plan.target) for s in plan.spares):
        raise ValueError("a spare plan is for another model or target")


def device_text(d: DeviceState) -> str:
    """Busy time, energy, temperature, Phi, CPQ and memory of one device."""
    heat = "no thermal data, Phi 1" if d.temperature is None else f"{d.temperature:.1f} C, Phi {d.phi:.3f}"
    limits = "" if d.sustained else ", CANNOT SUSTAIN THE LOAD"
    spill = f", spills {d.spill_bytes / 1e6:.1f} MB per run" if d.spill_bytes else ""
    return (
        f"busy {d.busy * 1e3:.3f} ms, {d.joules * 1e3:.3f} mJ, {heat}{limits}, CPQ {d.cpq:.3f} "
        f"(weights {d.weight_bytes / 1e6:.1f} MB, arena {d.arena_bytes / 1e6:.2f} MB, "
        f"fragmentation {d.fragmentation:.1%}){spill}"
    )


def _number(value: Any) -> bool:
    """A number, infinite perhaps, but not NaN: comparisons with that decide nothing."""
    return type(value) in (int, float) and value == value


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_number, value.values()))


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(type(v) is kind for v in value)


#: Annotation of a field -> whether a value from JSON fits it. Fields of other types hold plain data of their own.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str),
    "int": lambda v: type(v) is int,
    "float": _number,
    "int | None": lambda v: v is None or type(v) is int,
    "float | None": lambda v: v is None or _number(v),
    "bool": lambda v: isinstance(v, bool),
    "Label": lambda v: isinstance(v, str) and v in get_args(Label),
    "tuple[str, ...]": _list_of(str),
    "tuple[tuple[int, ...], ...]": lambda v: isinstance(v, (list, tuple)) and all(map(_list_of(int), v)),
    "Mapping[str, float]": _numbers,
    "Mapping[str, str]": lambda v: isinstance(v, Mapping) and all(isinstance(x, str) for x in v.values()),
}


def _typed(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Checked arguments for the fields of `kind`, lists as tuples."""
    known = {f.name: str(f.type) for f in fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise TypeError(f"unknown field {unknown[0]}")
    found: dict[str, Any] = {}
    for name in data:
        fits = _FITS.get(known[name])
        if fits is not None and not fits(data[name]):
            raise TypeError(f"field {name} is {data[name]!r:.60}, expected {known[name]}")
        if fits is not None:
            found[name] = _tuple(data[name])
    return found


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, (list, tuple)) else value
