"""Cut each unit of a plan out of the source model, in a form that its engine accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qeil_compile.errors import BackendError
from qeil_compile.forms.program import Form, Source, StageProgram
from qeil_compile.ir import GroupGraph, OpGroup
from qeil_compile.plan import Plan, Stage


@dataclass(frozen=True)
class LoweredUnit:
    """One program for one call of an engine. `placements` and `devices` (the target's names for the physical
    devices) have one entry per stage of the unit."""

    stages: tuple[int, ...]
    placements: tuple[str, ...]
    devices: tuple[str, ...]
    program: StageProgram

    @property
    def engine(self) -> str:
        """The engine that runs it."""
        return self.placements[0].partition(":")[0]


def lower(
    plan: Plan,
    source: Source,
    accepted: Mapping[str, Sequence[Form]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[LoweredUnit]:
    """Programs for all units in order. `accepted` maps each engine to the forms it takes, best first.

    A weight that the model returns as it is leaves through the first unit. Raises `BackendError` when a source
    has no form that the engine takes.
    """
    graph = source.graph
    constants = [o for o in graph.outputs if graph.tensors[o].role == "weight"]
    groups = GroupGraph(graph, tuple(OpGroup(i, (i,)) for i in range(len(graph.ops))))
    lowered: list[LoweredUnit] = []
    for k, members in enumerate(plan.units):
        stages = [plan.stages[i] for i in members]
        lowered.append(_lower_unit(stages, source, groups, accepted, [] if k else constants))
        progress(k + 1, len(plan.units))
    return lowered


def _lower_unit(
    stages: Sequence[Stage],
    source: Source,
    groups: GroupGraph,
    accepted: Mapping[str, Sequence[Form]],
    constants: Sequence[str],
) -> LoweredUnit:
    graph = source.graph
    engine = stages[0].placement.partition(":")[0]
    form = next((f for f in accepted[engine] if f in source.forms()), None)
    if form is None:
        raise BackendError(
            f"model {graph.name} has the forms {', '.join(source.forms())}; "
            f"{engine} takes {', '.join(accepted[engine])}"
        )
    ops = sorted(graph.index[o] for s in stages for o in s.ops)
    program = source.cut(form, ops, groups.inputs_of(ops), [*groups.outputs_of(ops), *constants])
    if len({s.placement for s in stages}) > 1:
        affinity = {
            t: s.placement.partition(":")[2]
            for s in stages
            for o in s.ops
            for t in graph.ops[graph.index[o]].outputs
            if t
        }
        program = replace(program, affinity=affinity)
    indices, placements, devices = zip(*((s.index, s.placement, s.device) for s in stages), strict=True)
    return LoweredUnit(indices, placements, devices, program)
