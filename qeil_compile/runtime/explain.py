"""Which operator goes where, why not elsewhere, and what each boundary costs: read from a compiled model.

Everything comes from the plan, the cost table and the timings that an artifact holds, so that an artifact
explains itself on a machine that has neither the model nor its engines. Every figure has a label that says
how far it can be believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qeil_compile.errors import PinError, TargetError
from qeil_compile.ir import OpGraph
from qeil_compile.passes.decision import Decision, decide
from qeil_compile.passes.partition import pin_labels
from qeil_compile.plan import Alternative, DeviceState, Plan, Sensitivity, device_text

if TYPE_CHECKING:
    from .compiled import Compiled


@dataclass(frozen=True, slots=True)
class Option:
    """One placement of a group: what it costs there [s, J], and why the group is there or is not.

    `dasi` and `beta` are the shares of the compute and of the memory roof that the roofline allows, `phi` the
    thermal yield at the temperature of the placement's mean load. Costs are None where the engine refuses the group.
    """

    placement: str
    chosen: bool
    seconds: float | None
    joules: float | None
    dasi: float | None
    beta: float | None
    phi: float | None
    why: str
    label: str


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Operators that are placed as one, with the placement that they got."""

    index: int
    ops: tuple[str, ...]
    types: tuple[str, ...]
    scope: str
    stage: int
    placement: str
    pinned: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage. `emulated` says why another device stands in on this machine; empty if none does."""

    index: int
    placement: str
    operators: int
    start: float
    seconds: float
    joules: float
    weight_bytes: int
    emulated: str
    label: str


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor that enters a stage. `moved` is False where both stages share a device; then it costs nothing."""

    tensor: str
    nbytes: int
    source: int
    moved: bool
    seconds: float
    joules: float


@dataclass(frozen=True, slots=True)
class Boundary:
    """The step from the stage before in the order to `target`.

    `seconds` is the engines' hand-over plus all transfers, `joules` what both take. `source` is -1 for the
    first stage.
    """

    source: int
    target: int
    placements: tuple[str, str]
    tensors: tuple[Crossing, ...]
    nbytes: int
    handover_seconds: float
    seconds: float
    joules: float
    label: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Operators without a count rule: their share of all bytes is the doubt about the costs."""

    type: str
    count: int
    share_of_bytes: float


@dataclass(frozen=True, slots=True)
class FailoverRow:
    """What takes over when what `lost` names (placement, device, engine) is lost: a plan with its latency [s] and
    energy [J], or the `reason` why there is none. `notes` say which limits it gives up."""

    lost: tuple[str, ...]
    strategy: str
    placements: tuple[str, ...]
    stages: int
    latency: float | None
    energy: float | None
    reason: str
    notes: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Explanation:
    """The account of one plan."""

    model: str
    target: str
    objective: str
    strategy: str
    label: str
    groups: tuple[GroupRow, ...]
    stages: tuple[StageRow, ...]
    boundaries: tuple[Boundary, ...]
    alternatives: tuple[Alternative, ...]
    #: Name of each plan that was timed -> median, low, high [s] and runs, with the label "measured".
    timings: Mapping[str, Mapping[str, Any]]
    #: Placement -> why another device stands in for it on this machine.
    emulated: Mapping[str, str]
    lower_bounds: Mapping[str, float]
    pins: Mapping[str, str]
    notes: tuple[str, ...]
    unknown: tuple[Unknown, ...]
    devices: tuple[DeviceState, ...]
    sensitivity: tuple[Sensitivity, ...]
    #: The ranges of energy coefficients in words: the plan's energy, and where another plan would be chosen.
    ranges: tuple[str, ...]
    #: The chosen plan beside its rivals: gap, nearest other plan, and what would change the choice.
    decision: Decision
    failovers: tuple[FailoverRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form."""
        data = asdict(self)
        data["alternatives"] = [a | {"label": self.label} for a in data["alternatives"]]
        data["lower_bounds"] = {**self.lower_bounds, "label": self.label}
        data["devices"] = [d | {"label": self.label} for d in data["devices"]]
        data["decision"]["label"] = self.label
        return data

    def as_text(self) -> str:
        """Stages, boundaries, operators with their reasons, alternatives, the choice and notes."""
        parts = [
            [f"{self.model} on {self.target}, objective {self.objective}, strategy {self.strategy}"],
            [f"stages ({self.label})", *map(_stage_text, self.stages)],
            [f"devices ({self.label})", *(f"  {d.device}: {device_text(d)}" for d in self.devices)],
            [f"boundaries ({self.label})", *map(_boundary_text, self.boundaries)],
            [f"operators ({self.label})", *(line for g in self.groups for line in _group_text(g))],
            [f"alternatives ({self.label})", *map(_alternative_text, self.alternatives)],
            [f"choice ({self.label})", *(f"  {line}" for line in self.decision.as_text())],
            [f"ranges of energy coefficients ({self.label})", *(f"  {line}" for line in self.ranges)],
            [f"failover plans ({self.label})", *map(_failover_text, self.failovers)],
            ["timings (measured)", *(f"  {n}: {t['median'] * 1e3:.3f} ms" for n, t in self.timings.items())],
            ["emulated here", *(f"  {p}: {why}" for p, why in self.emulated.items())],
            ["operators of unknown cost", *(f"  {u.count} x {u.type}: {u.share_of_bytes:.1%}" for u in self.unknown)],
            ["notes", *(f"  {n}" for n in self.notes)],
        ]
        return "\n".join(line for k, part in enumerate(parts) if k == 0 or len(part) > 1 for line in part)


def explain(compiled: Compiled) -> Explanation:
    """Account for a compiled model's plan; also for one read from an artifact."""
    plan, costs = compiled.plan, compiled.costs
    emulated = _emulated(compiled)
    return Explanation(
        plan.model, plan.target, plan.objective, plan.strategy, plan.label,
        _Groups(compiled.graph, plan, costs).rows() if costs else (),
        tuple(
            StageRow(
                s.index, s.placement, len(s.ops), s.start, s.seconds, s.joules, s.weight_bytes,
                emulated.get(s.placement, ""), plan.label,
            )
            for s in plan.stages
        ),
        tuple(_boundary(compiled.graph, plan, costs, k) for k in range(len(plan.stages))),
        plan.alternatives,
        {name: {**asdict(t), "label": "measured"} for name, t in compiled.timings.items()},
        emulated, plan.lower_bounds, plan.pins, plan.notes,
        tuple(Unknown(*u) for u in costs.get("unknown", ())), plan.devices, plan.sensitivity,
        tuple(plan.sensitivity_text()), decide(plan), _failovers(plan),
    )  # fmt: skip


def _failovers(plan: Plan) -> tuple[FailoverRow, ...]:
    rows = []
    for f in plan.failovers:
        if f.spare is None:
            rows.append(FailoverRow(f.names, "", (), 0, None, None, f.reason, f.notes, plan.label))
            continue
        spare = plan.spares[f.spare]
        used, o = tuple(dict.fromkeys(s.placement for s in spare.stages)), spare.objectives
        rows.append(
            FailoverRow(f.names, spare.strategy, used, len(spare.stages), o.latency, o.energy, "", f.notes, spare.label)
        )
    return tuple(rows)


def _emulated(compiled: Compiled) -> dict[str, str]:
    try:
        return compiled.emulated
    except TargetError as error:
        # An engine of the plan is not installed: it can be explained here, not run.
        return {s.placement: f"cannot run here: {error}" for s in compiled.plan.stages}


class _Groups:
    """One row per group of the cost table."""

    def __init__(self, graph: OpGraph, plan: Plan, costs: Mapping[str, Any]) -> None:
        self.graph, self.plan, self.costs = graph, plan, costs
        self.places: list[str] = list(costs["placements"])
        self.stage_of = {o: s for s in plan.stages for o in s.ops}
        self.reasons = {(u["group"], u["placement"]): str(u["reason"]) for u in costs["unsupported"]}
        self.by = _pinned_by(graph, plan.pins)

    def rows(self) -> tuple[GroupRow, ...]:
        return tuple(self._row(g, names) for g, names in enumerate(self.costs["groups"]))

    def _row(self, g: int, names: Sequence[str]) -> GroupRow:
        ops = [self.graph.ops[self.graph.index[n]] for n in names]
        stage = self.stage_of[names[0]]
        pinned = next((self.by[n] for n in names if n in self.by), "")
        options = tuple(self._option(g, p, stage.placement, pinned) for p in range(len(self.places)))
        scope = next((o.scope for o in ops if o.scope), "")
        return GroupRow(
            g, tuple(names), tuple(o.type for o in ops), scope, stage.index, stage.placement, pinned, options
        )

    def _option(self, g: int, p: int, chosen: str, pinned: str) -> Option:
        spec = self.places[p]
        reason = self.reasons.get((g, spec))
        label = str(self.costs["labels"][p])
        if reason is not None:
            return Option(spec, False, None, None, None, None, None, f"the engine refuses it: {reason}", label)
        why = self._chosen(pinned) if spec == chosen else self._why_not(g, p, chosen, pinned)
        seconds, joules, dasi, beta, phi = (
            float(self.costs[n][g][p]) for n in ("seconds", "joules", "dasi", "beta", "phi")
        )
        return Option(spec, spec == chosen, seconds, joules, dasi, beta, phi, why, label)

    def _chosen(self, pinned: str) -> str:
        return f"pinned by {pinned}" if pinned else f"chosen by {self.plan.strategy}"

    def _why_not(self, g: int, p: int, chosen: str, pinned: str) -> str:
        if pinned:
            return f"pinned to {chosen} by {pinned}"
        c = self.places.index(chosen)
        energy = self.plan.objective == "energy"
        table, unit = (self.costs["joules"], "mJ") if energy else (self.costs["seconds"], "ms")
        here, there = float(table[g][c]), float(table[g][p])
        if there >= here:
            times = f"{there / here:.2f} x the {'energy' if energy else 'time'}" if here else "more"
            return f"costs {(there - here) * 1e3:.4f} {unit} more ({times})" if there > here else "costs the same"
        leave = self._excursion(c, p, energy)
        gain = f"alone {(here - there) * 1e3:.4f} {unit} cheaper"
        if here - there <= leave:
            return f"{gain}, but the boundary there and back costs {leave * 1e3:.4f} {unit}"
        return f"{gain} and {leave * 1e3:.4f} {unit} of boundary, but the plan as a whole is not: see the alternatives"

    def _excursion(self, c: int, p: int, energy: bool) -> float:
        """Hand-over to placement p and back, without transfers, in seconds or joules."""
        matrix, power = self.costs["boundary"], self.costs["working_power"]
        there, back = float(matrix[c][p]), float(matrix[p][c])
        return there * float(power[p]) + back * float(power[c]) if energy else there + back


def _pinned_by(graph: OpGraph, pins: Mapping[str, str]) -> dict[str, str]:
    """Operator name -> the pattern that pins it."""
    found: dict[str, str] = {}
    for pattern, placement in pins.items():
        try:
            labels = pin_labels(graph, {pattern: placement})
        except PinError:  # matches nothing in a graph that was changed after compiling
            continue
        found.update({op.name: pattern for op, label in zip(graph.ops, labels, strict=True) if label})
    return found


def _boundary(graph: OpGraph, plan: Plan, costs: Mapping[str, Any], k: int) -> Boundary:
    stage = plan.stages[k]
    writer = {t: s.index for s in plan.stages[:k] for t in s.outputs}
    moves = {(t.tensor, t.source): t for t in plan.transfers if t.target == k}
    tensors = []
    for name in stage.inputs:
        source = writer.get(name, -1)
        move = moves.get((name, source))
        size = graph.tensors[name].nbytes
        tensors.append(
            Crossing(name, size, source, move is not None, move.seconds if move else 0.0, move.joules if move else 0.0)
        )
    seconds = stage.boundary + sum(t.seconds for t in tensors)
    powers = dict(zip(costs.get("placements", ()), costs.get("working_power", ()), strict=True))
    joules = stage.boundary * float(powers.get(stage.placement, 0.0)) + sum(t.joules for t in tensors)
    before = plan.stages[k - 1].placement if k else "inputs"
    total = sum(t.nbytes for t in tensors)
    return Boundary(
        k - 1, k, (before, stage.placement), tuple(tensors), total, stage.boundary, seconds, joules, plan.label
    )


def _stage_text(s: StageRow) -> str:
    emulated = " (emulated here)" if s.emulated else ""
    return (
        f"  {s.index}: {s.placement}{emulated}, {s.operators} operators, {s.seconds * 1e3:.4f} ms, "
        f"{s.joules * 1e3:.4f} mJ"
    )


def _boundary_text(b: Boundary) -> str:
    moved = ", ".join(f"{t.tensor} {t.nbytes} B from stage {t.source}" for t in b.tensors)
    return (
        f"  {b.source} -> {b.target}: {b.placements[0]} -> {b.placements[1]}, {b.nbytes} B, {b.seconds * 1e6:.2f} us, "
        f"{b.joules * 1e6:.2f} uJ: {moved or 'nothing'}"
    )


def _failover_text(f: FailoverRow) -> str:
    head = f"  without {' = '.join(f.lost)}: "
    if f.latency is None or f.energy is None:
        return f"{head}no plan: {f.reason}"
    notes = "".join(f"; {note}" for note in f.notes)
    return (
        f"{head}{f.strategy} on {', '.join(f.placements)}, {f.stages} stages, {f.latency * 1e3:.4f} ms, "
        f"{f.energy * 1e3:.4f} mJ{notes}"
    )


def _group_text(g: GroupRow) -> list[str]:
    lines = [f"  {'+'.join(g.ops)} ({g.scope or 'top'}): stage {g.stage}, {g.placement}"]
    for o in g.options:
        cost = "refused"
        if o.seconds is not None and o.joules is not None:
            cost = f"{o.seconds * 1e3:.4f} ms {o.joules * 1e3:.4f} mJ DASI {o.dasi:.3f} beta {o.beta:.3f}"
        lines.append(f"    {'*' if o.chosen else ' '} {o.placement}: {cost}: {o.why}")
    return lines


def _alternative_text(a: Alternative) -> str:
    o = a.objectives
    marks = ", ".join(m for m, on in (("chosen", a.chosen), ("on the front", a.on_front)) if on)
    return (
        f"  {a.strategy}: {a.stages} stages, {o.latency * 1e3:.4f} ms, {o.energy * 1e3:.4f} mJ, "
        f"under-utilisation {o.under_utilisation:.3f}{f' ({marks})' if marks else ''}"
    )
