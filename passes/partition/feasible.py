"""Whether a scheduled assignment may run: memory (CPQ) and thermal ceilings, with reasons."""

from __future__ import annotations

from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.memory import usable
from qeil_compile.passes.schedule import Schedule
from qeil_compile.passes.thermal import ceiling


def does_not_fit(costs: CostTable, plan: Schedule) -> str:
    """Why the resident bytes do not fit (CPQ above 1, and no spilling), or ""."""
    for pool, pressure in plan.cpq.items():
        if pressure > 1 and pool not in plan.spilled:
            need, room = plan.resident[pool], usable(costs.target, pool, costs.conditions)
            return f"memory {pool} needs {need / 1e9:.2f} GB of {room / 1e9:.2f} GB usable"
    return ""


def overheats(costs: CostTable, plan: Schedule) -> str:
    """Which device would pass its thermal ceiling, or ""."""
    for profile, state in zip(costs.target.devices, plan.devices, strict=True):
        if not state.sustained:
            limit = ceiling(profile, costs.conditions)
            return f"device {profile.name} settles at no temperature below its ceiling of {limit:.0f} C"
    return ""


def thermal_note(costs: CostTable) -> tuple[str, ...]:
    """A note that names the devices without thermal data."""
    blind = [d.name for d in costs.target.devices if d.thermal is None]
    return (f"no thermal data for {', '.join(blind)}: Phi is 1 there, and no ceiling is checked",) if blind else ()


def worst_case_notes(costs: CostTable, plan: Schedule) -> tuple[str, ...]:
    """Notes for memories in which the plan fits by its arena, but not if an engine allocates as it goes, at worst."""
    notes = []
    for pool in plan.resident:
        states = [s for d, s in zip(costs.target.devices, plan.devices, strict=True) if d.pool == pool]
        worst = sum(s.weight_bytes + s.online_bytes for s in states)
        capacity = usable(costs.target, pool, Conditions(reserve=0.0))
        if plan.cpq[pool] <= 1 and worst > capacity:
            notes.append(
                f"memory {pool}: an engine that allocates as it goes may need up to {worst / 1e9:.2f} GB of "
                f"{capacity / 1e9:.2f} GB (Robson's bound); the plan counts on shared offsets"
            )
    return tuple(notes)
