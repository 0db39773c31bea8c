"""Price every group on every placement: DASI, beta, time, energy and support.

    I = W / Q,   DASI = min(1, I B / P),   beta = min(1, P / (I B))
    E(g,d) = t [ P_const + (DASI_eff P e_f + beta_eff B e_m) / Phi(T) ],   DASI_eff = W / (P t),  beta_eff = Q / (B t)

with W [FLOP] and Q [byte] of the kernels that the placement's engine runs for the group, P the device's rate for
each kernel's dtype, B its bandwidth, and t from `devices.timing`. DASI is the share of the compute roof that the
roofline allows, beta that of the memory roof; one of the two is always 1. A group of several kernels has the sums of
its kernels: its W / P is the time that all its arithmetic takes at the roofs of the dtypes.

A die does not heat or cool within a kernel. Groups are therefore priced at one temperature per placement: that of
the device under its mean load, if it runs everything that the placement accepts, over and over. `schedule` prices a
plan at the temperature that the plan itself brings about; for a plan on one placement the two agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qeil_compile.devices import Placement, Target
from qeil_compile.devices.roofline import attained, roofs
from qeil_compile.devices.timing import Calibration, time_model
from qeil_compile.devices.work import KernelTable
from qeil_compile.errors import UnsupportedOperatorError
from qeil_compile.ir import GroupGraph
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.costs import CostTable
from qeil_compile.passes.count import OpCount
from qeil_compile.passes.energy import DeviceEnergy, device_energy, dynamic_joules
from qeil_compile.passes.kernels import kernel_table
from qeil_compile.plan import Label

__all__ = ["CostTable", "annotate", "kernel_tables"]

#: Columns of the table that are sums over a group's kernels.
_SUMS = ("flops", "nbytes", "seconds", "streaming", "dynamic", "compute_roof", "memory_roof")


def kernel_tables(
    groups: GroupGraph, counts: Sequence[OpCount], targets: Iterable[Target]
) -> dict[str, KernelTable]:
    """Kernels by engine, for all engines of some targets: `annotate` takes them for each of those targets."""
    engines = dict.fromkeys(p.engine for t in targets for p in t.placements)
    return {e: kernel_table(groups, counts, e) for e in engines}


def annotate(
    groups: GroupGraph,
    counts: Sequence[OpCount],
    target: Target,
    refusals: Mapping[str, Mapping[int, str]] | None = None,
    unknown: Sequence[tuple[str, int, float]] = (),
    *,
    conditions: Conditions | None = None,
    calibration: Calibration | None = None,
    kernels: Mapping[str, KernelTable] | None = None,
) -> CostTable:
    """Build the cost table. `refusals` maps a placement's spec to {operator index: reason}.

    `kernels` are those of `kernel_tables`, for callers who price one model for several targets. Raises
    `UnsupportedOperatorError` when some operator runs nowhere, naming it and each reason.
    """
    placements, conditions = target.placements, conditions or Conditions()
    kernels = kernels or kernel_tables(groups, counts, [target])
    supported = np.ones((len(groups.groups), len(placements)), dtype=bool)
    sums = {name: np.zeros(supported.shape) for name in _SUMS}
    reasons: dict[tuple[int, int], str] = {}
    labels: list[Label] = []
    for p, place in enumerate(placements):
        label, columns = _price(place, kernels[place.engine], calibration)
        labels.append(label)
        for name, values in columns.items():
            sums[name][:, p] = np.bincount(kernels[place.engine].group, values, len(groups.groups))
        for g, reason in _refused(groups, (refusals or {}).get(place.spec, {})).items():
            supported[g, p] = False
            reasons[(g, p)] = reason
    compute, memory = sums.pop("compute_roof"), sums.pop("memory_roof")
    table = CostTable(
        groups=groups, target=target, placements=placements, kernels=kernels, **sums,
        dasi=_share(compute, memory, 0.0), beta=_share(memory, compute, 1.0),
        dasi_eff=_quotient(compute, sums["seconds"]), beta_eff=_quotient(memory, sums["seconds"]),
        supported=supported, states=_states(placements, sums, supported, conditions), labels=tuple(labels),
        conditions=conditions, calibration=calibration, reasons=reasons, unknown=unknown,
    )  # fmt: skip
    _check_supported(table)
    return table


def _price(
    place: Placement, kernels: KernelTable, calibration: Calibration | None
) -> tuple[Label, dict[str, np.ndarray]]:
    """How far the times can be believed, and the columns of `_SUMS`, float64[kernels] each."""
    seconds, label = time_model(place, calibration)(kernels)
    compute, memory = attained(place.profile, kernels)
    compute_roof, memory_roof = roofs(place.profile, kernels)
    return label, {
        "flops": kernels.flops,
        "nbytes": kernels.nbytes,
        "seconds": seconds,
        "streaming": np.where(memory >= compute, np.minimum(memory, seconds), 0.0),
        "dynamic": dynamic_joules(place.profile, kernels),
        "compute_roof": compute_roof,
        "memory_roof": memory_roof,
    }


def _share(mine: np.ndarray, other: np.ndarray, nothing: float) -> np.ndarray:
    """min(1, mine / other) of two roofs' times; `nothing` where a group has neither arithmetic nor bytes."""
    found = np.divide(mine, other, out=np.ones_like(mine), where=other > 0)
    return np.where((mine == 0) & (other == 0), nothing, np.minimum(1.0, found))


def _quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _states(
    placements: Sequence[Placement], sums: Mapping[str, np.ndarray], supported: np.ndarray, conditions: Conditions
) -> tuple[DeviceEnergy, ...]:
    """Each placement's state if it ran all groups that it takes, one after the other, without a pause."""
    seconds = np.where(supported, sums["seconds"], 0.0).sum(axis=0)
    dynamic = np.where(supported, sums["dynamic"], 0.0).sum(axis=0)
    return tuple(
        device_energy(p.profile, float(t), float(e), float(t), conditions)
        for p, t, e in zip(placements, seconds, dynamic, strict=True)
    )


def _refused(groups: GroupGraph, refused: Mapping[int, str]) -> dict[int, str]:
    owner = groups.group_of
    return {owner[i]: f"{groups.graph.ops[i].type}: {reason}" for i, reason in sorted(refused.items(), reverse=True)}


def _check_supported(table: CostTable) -> None:
    nowhere = np.flatnonzero(~table.supported.any(axis=1))
    if not len(nowhere):
        return
    g = int(nowhere[0])
    graph = table.groups.graph
    op = graph.ops[table.groups.groups[g].ops[0]]
    why = "; ".join(f"{p.spec}: {table.reasons[(g, i)]}" for i, p in enumerate(table.placements))
    raise UnsupportedOperatorError(
        f"operator {op.name} ({op.type}) runs on no allowed device of target {table.target.name}: {why}; "
        "allow another device with --target"
    )
