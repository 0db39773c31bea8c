"""The cost table of an artifact: the form that explanations and reports rely on, checked before anyone looks numbers
up in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qeil_compile.ir import OpGraph, strings
from qeil_compile.plan import Plan

#: Tables float [groups, placements].
_TABLES = ("flops", "nbytes", "seconds", "joules", "dasi", "beta", "dasi_eff", "beta_eff", "phi")


def check_costs(costs: Mapping[str, Any], plan: Plan) -> None:
    """Raise `TypeError`, `ValueError` or `LookupError` for a table that does not fit its plan.

    An empty one fits: a plan made by hand has no prices. Types and ceilings came later: a table may lack them.
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
        if not strings(names) or not all(name in staged for name in names):
            raise ValueError(f"group {names!r:.60} has operators that the plan does not have")
    types = _list(costs.get("types", [["?"] * len(names) for names in groups]))
    if [len(strings(t)) for t in types] != [len(names) for names in groups]:
        raise ValueError("costs have types of other operators than those of the groups")
    for limit in _list(costs.get("ceiling", [None] * n)):
        if limit is not None and type(limit) not in (int, float):
            raise TypeError(f"ceiling {limit!r:.60} is no temperature")
    if len(costs.get("ceiling", placements)) != n:
        raise ValueError(f"costs of {n} placements have another number of ceilings")
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


def rounded(value: Any) -> Any:
    """The value with all of its floats in nine significant digits: a table of a large model has a hundred thousand."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value
