"""Price the phases of a decoder and plan them as one problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qeil_compile import api
from qeil_compile.devices import Target
from qeil_compile.devices.calibrations import applied
from qeil_compile.errors import TargetError
from qeil_compile.forms.program import Form, StageProgram
from qeil_compile.frontends.decoder import PROMPT, TracedDecoder
from qeil_compile.language.probing import refusals
from qeil_compile.passes.annotate import annotate
from qeil_compile.passes.count import count, unknown_report
from qeil_compile.passes.fuse import FuseSettings, fuse
from qeil_compile.passes.lower import LoweredUnit, lower
from qeil_compile.passes.partition import (
    JointFront,
    JointPoint,
    PartitionSettings,
    Phase,
    Search,
    assignment_of,
    partition_phases,
    phase_failovers,
    pin_labels,
)
from qeil_compile.plan import Plan


@dataclass(frozen=True)
class PlannedDecoder:
    """A plan per phase, and the front that they were chosen from. `bits` are those of the matrices."""

    front: JointFront
    strategy: str
    plans: Mapping[str, Plan]
    bits: int
    gap: float | None


def price_phases(traced: TracedDecoder, target: Target, settings: api.Settings) -> list[Phase]:
    """The cost table of each phase. Raises `TargetError` where no engine of the target runs the decoder."""
    specs = [p.spec for p in target.placements]
    config = traced.whole.config
    # A model that came as it is shows when it is compiled whether an engine takes it.
    refused = refusals(config, traced.whole.bits, specs) if config is not None else {}
    if len(refused) == len(specs):
        raise TargetError(f"target {target.name}: no engine runs {traced.decoder.name}; {next(iter(refused.values()))}")
    known = api.calibrations_for(target, settings.threads)
    goal = target if known is None else applied(target, known)
    found = []
    for name, graph in traced.phases.items():
        counts = count(graph)
        refusals_of = {spec: dict.fromkeys(range(len(graph.ops)), reason) for spec, reason in refused.items()}
        groups = fuse(graph, counts, pin_labels(graph, settings.pins), FuseSettings(enabled=settings.fuse))
        costs = annotate(
            groups, counts, goal, refusals_of, unknown_report(graph, counts), conditions=settings.conditions,
            calibration=known,
        )  # fmt: skip
        found.append(Phase(name, costs, traced.runs[name], {} if name == PROMPT else traced.carried))
    return found


def plan_decoder(traced: TracedDecoder, target: Target, settings: api.Settings) -> PlannedDecoder:
    """Plan prompt and steps as one; no weights are read. Raises as `partition_phases` does."""
    phases = price_phases(traced, target, settings)
    search = Search(seed=settings.seed, seconds=settings.search_seconds)
    # A model that came as it is goes to one placement per phase: its shape arithmetic cannot be cut.
    together = settings.together if traced.whole.config is not None else ("*",)
    limits = PartitionSettings(settings.pins, together, settings.forbidden, settings.strategies, search)
    front = partition_phases(phases, limits)
    point = front.choose(settings.objective)
    return PlannedDecoder(front, point.strategy, front.plans(point, settings.objective), traced.whole.bits,
                          front.gap(point, settings.objective))  # fmt: skip


def spare_plans(
    planned: PlannedDecoder, plans: Mapping[str, Plan], settings: api.Settings, together: Sequence[str]
) -> dict[str, Plan]:
    """The phases' plans with a spare for all that they may lose together, or the reason why there is none.

    `plans` may have been taken from several candidates of the front.
    """
    front = planned.front
    chosen = tuple(assignment_of(p.costs, plans[p.name]) for p in front.phases)
    point = JointPoint("accepted", chosen, front.choose(settings.objective).objectives)
    limits = PartitionSettings(settings.pins, tuple(together), settings.forbidden, settings.strategies,
                               Search(seed=settings.seed, seconds=settings.search_seconds))  # fmt: skip
    found = phase_failovers(front, point, settings.objective, limits)
    pins = dict(settings.pins)
    return {n: replace(plans[n], pins=pins, failovers=p.failovers, spares=p.spares) for n, p in found.items()}


def single_plans(front: JointFront, objective: str) -> dict[str, Mapping[str, Plan]]:
    """Plans of all phases on one placement, by placement."""
    return {
        c.strategy.removeprefix("single "): front.plans(c, objective)
        for c in front.candidates
        if c.strategy.startswith("single ")
    }


def lower_phase(traced: TracedDecoder, plan: Plan) -> list[LoweredUnit]:
    """Programs of a phase's stages, one each: a state belongs to the one engine that has its layer."""
    if traced.whole.config is None:
        stage, proto = plan.stages[0], traced.whole.model.graph
        program = StageProgram(
            "onnx", traced.whole.model.SerializeToString(), tuple(i.name for i in proto.input),
            tuple(o.name for o in proto.output), {n: n for n in traced.whole.weights},
        )  # fmt: skip
        return [LoweredUnit((0,), (stage.placement,), (stage.device,), program)]
    alone = replace(plan, units=tuple((k,) for k in range(len(plan.stages))))
    accepted: dict[str, tuple[Form, ...]] = {s.placement.partition(":")[0]: ("onnx",) for s in plan.stages}
    return lower(alone, traced.source, accepted)
