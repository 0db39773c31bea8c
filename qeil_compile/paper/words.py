"""What the figures say, in sentences made from them: goals, and where a saving comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qeil_compile.sampling import Interval

from . import rows
from .plans import CASCADE, OBJECTIVES, PGSAM, STANDARD
from .prices import STEPS
from .run import GOALS, Paper, Share


def percent(ratio: float) -> str:
    """-12.3 % for 0.877."""
    return f"{100 * (ratio - 1):+.1f} %"


GOAL_COLUMNS = ("plan", "energy [%]", "latency [%]", "IPW over the standard's [1]", "reaches", "instances [1]")


def goal_rows(paper: Paper, target: str) -> list[list[object]]:
    """What is published, then ours, per plan: all tasks and the seven families."""
    rows: list[list[object]] = [
        ["published", percent(GOALS["energy"]), percent(GOALS["latency"]), f"{GOALS['ipw']:.2f}", "", ""]
    ]
    for s in _compared(paper, target):
        met = {"energy": s.energy.value <= GOALS["energy"], "latency": s.latency.value <= GOALS["latency"],
               "IPW": s.ipw.value >= GOALS["ipw"]}  # fmt: skip
        rows.append([
            s.plan, _change(s.energy), _change(s.latency), f"{s.ipw.value:.2f} ({s.ipw.low:.2f} to {s.ipw.high:.2f})",
            ", ".join(n for n, yes in met.items() if yes) or "none", s.instances,
        ])  # fmt: skip
    return rows


def goal_kinds(paper: Paper, target: str) -> list[str]:
    """CSS classes of these rows."""
    return ["chosen", *("" for _ in _compared(paper, target))]


def _compared(paper: Paper, target: str) -> list[Share]:
    of = {s.plan: s for s in paper.shares if s.target == target and not s.task}
    return [of[p] for p in (*PGSAM.values(), *CASCADE.values()) if p in of]


def _change(v: Interval) -> str:
    return f"{percent(v.value)} ({percent(v.low)} to {percent(v.high)})"


def reasons(paper: Paper, target: str) -> list[str]:
    """Which part of the saving comes from where, in words."""
    found = []
    for o in OBJECTIVES:
        steps = {name: s for name, s in paper.split if s.target == target and s.plan == PGSAM[o]}
        parts = [f"{name} {percent(s.energy.value)} energy, {percent(s.latency.value)} latency" for name, s in (
            steps.items())]  # fmt: skip
        if parts:
            found.append(f"{PGSAM[o]}: {'; '.join(parts)}")
    return found + _placement_reason(paper, target) + _batching_reason(paper, target)


def _placement_reason(paper: Paper, target: str) -> list[str]:
    """How far any placement could go: the bound on energy over what the standard takes."""
    ratios = [
        i.planned.front.lower_bounds["energy"] / float(i.mean.value(STEPS, i.planned.plans[STANDARD])[1])
        for i in paper.instances
        if i.target.name == target and not i.extra and STANDARD in i.planned.plans
    ]  # fmt: skip
    if not ratios:
        return []
    least, mean = min(ratios), sum(ratios) / len(ratios)
    return [
        f"no placement whatever can save more than {100 * (1 - mean):.1f} % of the standard's energy on average, "
        f"{100 * (1 - least):.1f} % in the best instance: the cost model's proven lower bound for the same numbers and "
        "the same samples"
    ]


def _batching_reason(paper: Paper, target: str) -> list[str]:
    """What a batch saves before anything is placed or left out: the same samples one after another, same device."""
    mine = [i for i in paper.instances if i.target.name == target and not i.extra and STANDARD in i.planned.plans]
    if not mine:
        return []
    batch: list[tuple[float, float]] = []
    cascade: list[tuple[float, float]] = []
    for i in mine:
        k = float(i.task.samples)
        alone = rows.rounds(i.jobs, i.task, i.planned.plans[STANDARD], k, k)
        for of, plan in ((batch, STANDARD), (cascade, CASCADE["energy"])):
            spent = i.spent(plan)
            of.append((spent.energy / alone.energy, spent.latency / alone.latency))
    (a, b), (c, d) = (np.mean(of, axis=0) for of in (batch, cascade))
    return [
        f"against the same samples drawn one after another on the same device, the standard's batch alone takes "
        f"{percent(a)} energy and {percent(b)} latency, {CASCADE['energy']} {percent(c)} and {percent(d)}"
    ]


def summary(paper: Paper, target: str) -> list[str]:
    """The headline and its reasons."""
    return [headline(paper, target), *reasons(paper, target)]


def label(paper: Paper, target: str) -> str:
    """How far the figures of a target can be believed: what its prices say."""
    found = dict.fromkeys(r.label for r in paper.rows if r.target == target and r.spent is not None)
    return " and ".join(found) or "modelled"


def headline(paper: Paper, target: str) -> str:
    """One sentence."""
    of: Sequence[Share] = [s for s in paper.shares if s.target == target and not s.task and s.plan in CASCADE.values()]
    if not of:
        return f"{target}: no instance could be compared with the standard."
    best = min(of, key=lambda s: s.energy.value)
    return (
        f"{target}: {best.plan} takes {percent(best.energy.value)} energy and {percent(best.latency.value)} latency of "
        f"the standard, IPW x {best.ipw.value:.2f} at equal quality, mean of {best.instances} instances (published: "
        f"{percent(GOALS['energy'])}, {percent(GOALS['latency'])}, x {GOALS['ipw']:.2f})."
    )
