"""Which spare plan takes over when placements, devices or engines are lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from qeil_compile.errors import FailoverError, InputError
from qeil_compile.passes.choice import parse_choice
from qeil_compile.plan import Plan, Stage


def spare_for(plan: Plan, costs: Mapping[str, Any], lost: Sequence[str]) -> int | None:
    """Number of the spare plan that does without all of `lost`; None where the plan itself does.

    Several losses at once have no plan of their own: of the spares that use none of them the best by the objective is
    taken. Raises `InputError` for a name that is unknown, `FailoverError` where no plan is left.
    """
    known = _placements(plan, costs)
    unknown = next((n for n in lost if n not in known), None)
    if unknown is not None:
        raise InputError(
            f"without {unknown}: target {plan.target} has no such placement, device or engine; expected one of "
            f"{', '.join(known)}"
        )
    gone = {spec for name in lost for spec in known[name]}
    if not _uses(plan, gone):
        return None
    entry = next((f for f in plan.failovers if set(f.lost) == gone), None)
    if entry is not None and entry.spare is not None:
        return entry.spare
    wanted = parse_choice(plan.objective)
    fit = [k for k, spare in enumerate(plan.spares) if not _uses(spare, gone)]
    if fit:
        return min(fit, key=lambda k: wanted.value(plan.spares[k].objectives, plan.objectives))
    raise FailoverError(f"model {plan.model}: no plan without {', '.join(lost)} ({_why(plan, gone)})")


def names_used(stages: Iterable[Stage]) -> frozenset[str]:
    """Placements, devices and engines of stages."""
    return frozenset(n for s in stages for n in (s.placement, s.device, s.placement.partition(":")[0]))


def _uses(plan: Plan, placements: Collection[str]) -> bool:
    return any(s.placement in placements for s in plan.stages)


def _placements(plan: Plan, costs: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Name of each placement, device and engine of the target -> the placements that go with it."""
    found = {n: frozenset(f.lost) for f in plan.failovers for n in f.names}
    pairs = [
        *zip(costs.get("placements", ()), costs.get("devices", ()), strict=False),
        *((s.placement, s.device) for p in (plan, *plan.spares) for s in p.stages),
    ]
    columns: tuple[Callable[[tuple[str, str]], str], ...] = (
        lambda p: p[0], lambda p: p[1], lambda p: p[0].partition(":")[0],
    )  # fmt: skip
    for name_of in columns:
        for name in dict.fromkeys(map(name_of, pairs)):
            found.setdefault(name, frozenset(p[0] for p in pairs if name_of(p) == name))
    return found


def _why(plan: Plan, gone: Collection[str]) -> str:
    if not plan.failovers:
        return "the model was compiled without failover plans; compile it with them"
    reasons = [f"without {f.names[0]}: {f.reason}" for f in plan.failovers if f.reason and set(f.lost) <= set(gone)]
    if reasons:
        return "; ".join(reasons)
    return f"there are plans without one of {', '.join(n for f in plan.failovers if not f.reason for n in f.names)}"
