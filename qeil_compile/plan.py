"""The executable plan: stages, transfers, objective values. Plain data with a stable JSON form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
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
class Alternative:
    """A plan that was considered: its strategy, size and objective values."""

    strategy: str
    stages: int
    objectives: Objectives
    chosen: bool
    on_front: bool
    note: str = ""


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

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form, read back by `from_json`."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan. Raises `ArtifactError` naming the field that is missing or has the wrong form."""
        try:
            return Plan(
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
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"plan: missing or malformed field ({error}); compile the model again") from error

    def as_text(self) -> str:
        """One line per stage."""
        o = self.objectives
        lines = [
            f"plan {self.strategy} for {self.model} on {self.target}: {len(self.stages)} stages, "
            f"latency {o.latency * 1e3:.3f} ms, energy {o.energy * 1e3:.3f} mJ ({self.label})"
        ]
        lines += [
            f"  stage {s.index}: {s.placement}, {len(s.ops)} operators, {s.seconds * 1e3:.3f} ms" for s in self.stages
        ]
        return "\n".join(lines)


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(v) in (int, float) for v in value.values())


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(type(v) is kind for v in value)


#: Annotation of a field -> whether a value from JSON fits it. Fields of other types hold plain data of their own.
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str),
    "int": lambda v: type(v) is int,
    "float": lambda v: type(v) in (int, float),
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
