"""A family on a workload, priced for every target: cost tables of the prompt, of steps, and of scored options.

Graphs are traced, counted and fused once per family and length, kernels made once for all engines; a target adds one
cost table per graph. No weight is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qeil_compile import api
from qeil_compile.devices import Target
from qeil_compile.devices.calibrations import applied
from qeil_compile.errors import TargetError
from qeil_compile.frontends.decoder import PROMPT, phase_graph
from qeil_compile.ir import GroupGraph, OpGraph
from qeil_compile.language.probing import refusals
from qeil_compile.models.decoder import FAMILIES, Decoder, DecoderGraph, open_decoder
from qeil_compile.passes.annotate import CostTable, annotate, kernel_tables
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.count import OpCount, count, unknown_report
from qeil_compile.passes.fuse import FuseSettings, fuse
from qeil_compile.passes.partition import Phase
from qeil_compile.passes.partition.pgsam import value_of
from qeil_compile.passes.partition.tables import Tables, tables, with_energies

from .tasks import Part, Task

#: Name in the report -> family and bits of its matrices; None: 16, or 32 where a target has nothing but a CPU.
MODELS: Mapping[str, tuple[str, int | None]] = {
    "GPT-2 125M": ("gpt2-125m", None),
    "Granite 350M": ("granite-350m", None),
    "Qwen2 0.5B": ("qwen2-0.5b", None),
    "Llama-3.2 1B": ("llama-3.2-1b", None),
    "LFM2 2.6B": ("lfm2-2.6b", None),
    "Llama-3.1 8B": ("llama-3.1-8b", None),
    "Llama-3.1 8B, 4 bit": ("llama-3.1-8b", 4),
}
assert {name for name, _ in MODELS.values()} == set(FAMILIES)

#: Names of the graphs beside the prompt: steps of all samples, of one sample, and all options at once.
STEPS, STEP, CHOICES = "steps of all samples", "steps of one sample", "scoring of all options"


@dataclass(frozen=True)
class Model:
    """A family as it is priced: its graph with open sizes, bits of its matrices, and who refuses to run it."""

    name: str
    decoder: Decoder
    whole: DecoderGraph
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Shape:
    """One graph with fixed sizes, counted and fused; kernels are made for engines as targets ask for them."""

    groups: GroupGraph
    counts: Sequence[OpCount]
    unknown: Sequence[tuple[str, int, float]]
    kernels: dict[str, object] = field(default_factory=dict)

    def priced(self, target: Target, refused: Mapping[str, str], conditions: Conditions) -> CostTable:
        """The cost table for a target, calibrated where it is this machine and was calibrated."""
        missing = {p.engine for p in target.placements} - set(self.kernels)
        if missing:
            self.kernels.update(kernel_tables(self.groups, self.counts, [target]))
        known = api.calibrations_for(target, 0)
        everything = range(len(self.groups.graph.ops))
        return annotate(
            self.groups, self.counts, target if known is None else applied(target, known),
            {spec: dict.fromkeys(everything, why) for spec, why in refused.items()}, self.unknown,
            conditions=conditions, calibration=known, kernels=self.kernels,  # type: ignore[arg-type]
        )  # fmt: skip


def wide(target: Target) -> bool:
    """Whether matrices are kept in 32 bits: a target without an accelerator may compute 16 bits many times slower."""
    return all(d.kind == "cpu" for d in target.devices)


def open_model(name: str, bits: int | None, dtype: str, targets: Sequence[Target], title: str = "") -> Model:
    """A family by name; engines are asked which of the targets' placements run it."""
    decoder = open_decoder(name)
    assert isinstance(decoder, Decoder)  # families are
    whole = decoder.graph(dtype, bits)
    specs = list(dict.fromkeys(p.spec for t in targets for p in t.placements))
    return Model(title or name, decoder, whole, refusals(decoder.config, whole.bits, specs))


def shaped(graph: OpGraph, fused: bool = True) -> Shape:
    """Counted and fused."""
    counts = count(graph)
    groups = fuse(graph, counts, [""] * len(graph.ops), FuseSettings(enabled=fused))
    return Shape(groups, counts, unknown_report(graph, counts))


class Shapes:
    """The graphs of one model by lengths, each made once. `fused` as in `FuseSettings.enabled`."""

    def __init__(self, model: Model, fused: bool = True) -> None:
        self.model, self.fused = model, fused
        self._known: dict[tuple[int, int, int, int], Shape] = {}

    def of(self, task: Task, part: Part) -> dict[str, Shape]:
        """Shapes of a part of a task, by `PROMPT`, `STEPS`, `STEP` and, where there are options, `CHOICES`."""
        # A step's cache is halfway between the prompt's end and the last token.
        past = part.prompt + part.answer // 2
        sizes = {PROMPT: (1, part.prompt, 0, 1), STEPS: (task.samples, 1, past, 1), STEP: (1, 1, past, 1)}
        if task.options:
            sizes[CHOICES] = (task.options, part.answer, part.prompt, part.answer)
        return {name: self._shape(name, *size) for name, size in sizes.items()}

    def _shape(self, name: str, rows: int, new: int, past: int, scored: int) -> Shape:
        key = (rows, new, past, scored)
        if key not in self._known:
            m = self.model
            graph = phase_graph(m.decoder, m.whole, f"{m.name}, {name}", rows, new, past, scored)
            self._known[key] = shaped(graph, self.fused)
        return self._known[key]


@dataclass(frozen=True)
class Job:
    """A part of a task on one target: cost tables by graph, and the joint problems whose values are needed.

    A plan is a placement per group of the prompt and of `STEPS`, int64 [groups of both]; the other graphs take it over
    operator by operator.
    """

    part: Part
    costs: Mapping[str, CostTable]
    problems: Mapping[str, Tables]
    states: Mapping[str, str]

    @property
    def split(self) -> int:
        """Groups of the prompt; the steps' begin there."""
        return len(self.costs[PROMPT].groups.groups)

    def place(self, name: str, plan: np.ndarray) -> np.ndarray:
        """The plan's part for one graph, int64 [groups]."""
        if name == PROMPT:
            return plan[: self.split]
        return projected(plan[self.split :], self.costs[STEPS].groups, self.costs[name].groups)

    def value(self, problem: str, plan: np.ndarray) -> np.ndarray:
        """Latency [s], energy [J], under-utilisation, violation of a plan under one of the problems."""
        prompt = self.place(PROMPT, plan)
        rest = [] if problem == PROMPT else [self.place(problem, plan)]
        return value_of(self.problems[problem], np.concatenate([prompt, *rest]))


def projected(place: np.ndarray, source: GroupGraph, target: GroupGraph) -> np.ndarray:
    """Each group of `target` where most of its operators are in `source`, int64 [groups of target].

    Both graphs have operators of the same names; one that `source` lacks has no say.
    """
    if source is target:
        return place
    where = {source.graph.ops[i].name: int(place[g.index]) for g in source.groups for i in g.ops}
    names = [[target.graph.ops[i].name for i in g.ops] for g in target.groups]
    votes = [Counter(where[n] for n in of if n in where) for of in names]
    return np.array([v.most_common(1)[0][0] if v else int(place[0]) for v in votes], dtype=np.int64)


def job(model: Model, shapes: Mapping[str, Shape], target: Target, part: Part, conditions: Conditions) -> Job:
    """Price a part of a task for a target. Raises `TargetError` where no engine of the target runs the model."""
    specs = [p.spec for p in target.placements]
    refused = {s: why for s, why in model.refused.items() if s in specs}
    if len(refused) == len(specs):
        raise TargetError(f"target {target.name}: no engine runs {model.name}; {next(iter(refused.values()))}")
    costs = {name: s.priced(target, refused, conditions) for name, s in shapes.items()}
    states = model.whole.states
    return Job(part, costs, {n: tables(phases(costs, part, n, states)) for n in costs}, states)


def phases(costs: Mapping[str, CostTable], part: Part, name: str, states: Mapping[str, str]) -> list[Phase]:
    """The prompt, and behind it one of the other graphs as often as it runs per question."""
    first = Phase(PROMPT, costs[PROMPT])
    if name == PROMPT:
        return [first]
    return [first, Phase(name, costs[name], 1.0 if name == CHOICES else float(part.answer), states)]


def with_target(j: Job, target: Target) -> Job:
    """The job with the energies of another target of the same devices."""
    problems = {n: with_energies(t, phases(j.costs, j.part, n, j.states), target) for n, t in j.problems.items()}
    return replace(j, problems=problems)
