"""What a user may ask of a partition: pins, groups that stay together, placements to leave out, and how to search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from qeil_compile.errors import PinError
from qeil_compile.ir import OpGraph
from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.partition.pgsam import Search


@dataclass(frozen=True)
class PartitionSettings:
    """Limits and effort of a partition.

    `pins` maps a pattern (operator name, scope or type, with * and ?) to a placement. `together` lists patterns; all
    that match one of them share a placement. `forbidden` are placements ("openvino:NPU") or devices ("npu") that
    nothing may use. `only` names strategies to consider (all by default). `search` is the annealer's effort.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    together: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    search: Search = field(default_factory=Search)


def pin_labels(graph: OpGraph, pins: Mapping[str, str]) -> list[str]:
    """The placement to which each operator is pinned, or "".

    Raises `PinError` when a pattern matches nothing, or two patterns want different placements.
    """
    labels, by = [""] * len(graph.ops), [""] * len(graph.ops)
    for pattern, placement in pins.items():
        for i in _matching(graph, pattern, f"pin {pattern}={placement}"):
            if labels[i] and labels[i] != placement:
                raise PinError(
                    f"pins contradict for operator {graph.ops[i].name}: {by[i]}={labels[i]} and {pattern}={placement}; "
                    "remove one"
                )
            labels[i], by[i] = placement, pattern
    return labels


def tied_groups(costs: CostTable, patterns: Sequence[str], allowed: np.ndarray) -> list[list[int]]:
    """Groups that must share a placement, per pattern; classes that share a group are one.

    Raises `PinError` when a pattern matches nothing, or no placement takes all of its groups.
    """
    owner = costs.groups.group_of
    classes: list[tuple[set[int], list[str]]] = []
    for pattern in patterns:
        members = {owner[i] for i in _matching(costs.groups.graph, pattern, f"together {pattern}")}
        names = [pattern]
        for other in [c for c in classes if c[0] & members]:
            classes.remove(other)
            members, names = members | other[0], other[1] + names
        classes.append((members, names))
    for members, names in classes:
        if not allowed[sorted(members)].all(axis=0).any():
            raise PinError(
                f"together {', '.join(names)}: no placement takes all {len(members)} groups under the pins and what "
                "engines support; leave some out"
            )
    return [sorted(members) for members, _ in classes if len(members) > 1]


def allowed_placements(costs: CostTable, settings: PartitionSettings) -> np.ndarray:
    """Where each group may go, bool[groups, placements]. Raises `PinError` naming what contradicts."""
    allowed = costs.supported.copy()
    specs = [p.spec for p in costs.placements]
    for name in settings.forbidden:
        hit = [i for i, p in enumerate(costs.placements) if name in (p.spec, p.profile.name)]
        if not hit:
            raise PinError(f"forbidden {name}: target {costs.target.name} has only {', '.join(specs)}")
        allowed[:, hit] = False
    stuck = np.flatnonzero(~allowed.any(axis=1))
    if len(stuck):
        op = costs.groups.graph.ops[costs.groups.groups[int(stuck[0])].ops[0]]
        raise PinError(
            f"forbidden {', '.join(settings.forbidden)}: operator {op.name} ({op.type}) runs nowhere else; allow one"
        )
    labels = pin_labels(costs.groups.graph, settings.pins)
    for g in costs.groups.groups:
        wanted = {labels[i]: i for i in g.ops if labels[i]}
        if len(wanted) > 1:
            (a, i), (b, j) = list(wanted.items())[:2]
            ops = costs.groups.graph.ops
            raise PinError(
                f"pins contradict: {ops[i].name} on {a} and {ops[j].name} on {b} must run together, because they "
                "exchange values that are no tensors"
            )
        for spec, i in wanted.items():
            _pin(costs, allowed, g.index, i, spec, specs)
    return allowed


def _pin(costs: CostTable, allowed: np.ndarray, group: int, op: int, spec: str, specs: Sequence[str]) -> None:
    if spec not in specs:
        raise PinError(f"pin to {spec}: target {costs.target.name} has only {', '.join(specs)}")
    p, name = specs.index(spec), costs.groups.graph.ops[op].name
    if not costs.supported[group, p]:
        raise PinError(f"pin of operator {name} to {spec}: the engine refuses it ({costs.reasons[(group, p)]})")
    if not allowed[group, p]:
        raise PinError(f"pin of operator {name} to {spec}: that placement is forbidden; remove one of the two")
    allowed[group] = False
    allowed[group, p] = True


def _matching(graph: OpGraph, pattern: str, what: str) -> list[int]:
    hits = [i for i, op in enumerate(graph.ops) if _matches(pattern, op.name, op.scope, op.type, op.short_type)]
    if not hits:
        raise PinError(f"{what}: matches no operator; qeil explain lists names and scopes")
    return hits


def _matches(pattern: str, *names: str) -> bool:
    return any(n and fnmatchcase(n, pattern) for n in names) or fnmatchcase(names[1], f"{pattern}.*")
