"""The cost table of an artifact: the form that explanations rely on, checked before anyone looks numbers up in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qeil_compile.ir import OpGraph, strings
from qeil_compile.plan import Plan

#: Tables float [groups, placements].
_TABLES = ("seconds", "joules", "dasi", "beta", "phi")


def check_costs(costs: Mapping[str, Any], graph: OpGraph, plan: Plan) -> None:
    """Raise `TypeError`, `ValueError` or `LookupError` for a table that does not fit its graph and plan.

    An empty one fits: a plan made by hand has no prices.
    """
    if not costs:
        return
    placements, groups = strings(costs["placements"]), costs["groups"]
    n = len(placements)
    if len(strings(costs["devices"])) != n or len(strings(costs["labels"])) != n:
        raise ValueError(f"costs of {n} placements have another number of devices or labels")
    _numbers("working_power", costs["working_power"], n)
    _table("boundary", costs["boundary"], n, n)
    if not isinstance(groups, list):
        raise TypeError("costs have no list of groups")
    staged = {o for s in plan.stages for o in s.ops}
    for names in groups:
        if not strings(names) or not all(name in graph.index and name in staged for name in names):
            raise ValueError(f"group {names!r:.60} has operators that graph or plan do not have")
    for name in _TABLES:
        _table(name, costs[name], len(groups), n)
    for entry in _list(costs["unsupported"]):
        if not isinstance(entry["group"], int) or not all(isinstance(entry[k], str) for k in ("placement", "reason")):
            raise TypeError(f"unsupported group {entry!r:.60} is malformed")
    for unknown in _list(costs.get("unknown", [])):
        kind, count, share = unknown
        if not isinstance(kind, str) or type(count) is not int or type(share) not in (int, float):
            raise TypeError(f"unknown operators {unknown!r:.60} are malformed")
    missing = {s.placement for s in plan.stages} - set(placements)
    if missing:
        raise ValueError(f"costs have no placement {min(missing)}, which the plan uses")


def check_places(graph: OpGraph, plan: Plan) -> None:
    """Raise `ValueError` where stages name operators or tensors that the graph does not have."""
    for stage in plan.stages:
        unknown = [o for o in stage.ops if o not in graph.index]
        unknown += [t for t in (*stage.inputs, *stage.outputs) if t not in graph.tensors]
        if unknown:
            raise ValueError(f"stage {stage.index} has {unknown[0]!r:.60}, which the graph does not have")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.60} is no list")
    return value


def _numbers(name: str, values: Any, count: int) -> None:
    if len(_list(values)) != count or not all(type(v) in (int, float) for v in values):
        raise ValueError(f"costs: {name} has {values!r:.60}, expected {count} numbers")


def _table(name: str, rows: Any, height: int, width: int) -> None:
    if len(_list(rows)) != height:
        raise ValueError(f"costs: {name} has {len(rows)} rows, expected {height}")
    for row in rows:
        _numbers(name, row, width)

