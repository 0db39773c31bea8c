"""The partitioner against its baselines: gaps, hypervolume, ablation, growth.

python benchmarks/partition.py [--quick] [--seeds N] [--rival-seeds N] [--jobs N] [--only PART]
                               [--families NAME ...] [--json FILE]

Prompt and step of the seven families of `families.py` are planned jointly for one target with four devices (one
prompt, 128 steps); instances for HiGHS are truncated families and random graphs. All values are those of the cost
model ("modelled"). PGSAM and NSGA-II/III (pymoo) value plans by the same compiled evaluator, start from the same
plans (the dynamic programme's front among them), keep 100 plans at most, and use one core; seconds are those of that
core (CPU time). pymoo comes with the extra `bench`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from common import RESULTS, Report, options, publish
from families import FAMILIES, Family, carried, phases, stored

from qeil_compile.api import find_target
from qeil_compile.devices import Target
from qeil_compile.ir import GroupGraph, Op, OpGraph, OpGroup, TensorSpec
from qeil_compile.passes.annotate import annotate
from qeil_compile.passes.choice import SCALES
from qeil_compile.passes.count import count
from qeil_compile.passes.fuse import fuse
from qeil_compile.passes.partition.baselines import at_random, by_priority
from qeil_compile.passes.partition.bounds import ambient_leakage, gap, lower_bounds
from qeil_compile.passes.partition.chain import chain, front_of_chains
from qeil_compile.passes.partition.exact import optimum
from qeil_compile.passes.partition.pgsam import Found, Search, reference, search, value_of, values_of
from qeil_compile.passes.partition.tables import Phase, Tables, tables

TARGET = "intel-285hx-rtx-pro-5000"
STEPS = 128.0
#: Scalarisations with a lower bound.
NAMES = [n for n, w in SCALES.items() if not w[2]]
PARTS = ("plans", "exact", "front", "ablation", "growth")


@dataclass(frozen=True)
class Instance:
    """A problem with its starts and the units of scalarisations."""

    name: str
    t: Tables
    starts: Sequence[np.ndarray]
    scale: np.ndarray

    @staticmethod
    def of(name: str, t: Tables) -> Instance:
        starts = [np.where(t.allowed[:, p] > 0, p, by_priority(t)) for p in range(t.placements)]
        scale = reference(t, starts)
        leakage = ambient_leakage(t)
        starts += [chain(t, leakage, SCALES[n][0] / scale[0], SCALES[n][1] / scale[1]) for n in NAMES]
        return Instance(name, t, starts, scale)

    def scalar(self, name: str, value: np.ndarray) -> float:
        return float(np.dot(SCALES[name], value[:3] / self.scale))


def joint(family: Family, target: Target, **sizes: int) -> Tables:
    """Prompt and step of a family as one problem."""
    traced = phases(family, **sizes)
    costs = {}
    for name, t in traced.items():
        graph = stored(t.graph.priced(), family.bits)
        counts = count(graph)
        costs[name] = annotate(fuse(graph, counts), counts, target)
    caches = carried(traced["prefill"].graph, traced["decode"].graph)
    return tables([Phase("prefill", costs["prefill"]), Phase("decode", costs["decode"], STEPS, caches)])


def isothermal(t: Tables) -> Tables:
    """Leakage that stays at its value at ambient temperature: what a linear programme can say."""
    heat = t.thermal.copy()
    heat[:, 3] = 0.0
    return t._replace(thermal=heat)


# ---- plans of the seven families


def plans(instances: Sequence[Instance], seeds: int, settings: Search) -> Report:
    """Value of each scalarisation, relative to the best single placement, and the proven gap."""
    columns = ("family", "groups", "goal", "provider order", "random", "chain", "PGSAM median", "PGSAM worst",
               "gap at most", "seconds median")  # fmt: skip
    report = Report("plans", "Joint plans of prompt and 128 steps (best single placement = 1)", columns)
    for i in instances:
        found: list[Found] = []
        seconds = []
        for seed in range(seeds):
            before = time.process_time()
            found.append(search(i.t, i.starts, replace(settings, seed=seed), i.scale))
            seconds.append(time.process_time() - before)
        seeds_of_bound = [*i.starts, *(p for _, p in found[0].best.values())]
        bounds = lower_bounds(i.t, i.scale, seeds_of_bound)
        leakage = ambient_leakage(i.t)
        for name in NAMES:
            values = [i.scalar(name, f.best[name][0]) for f in found]
            w = SCALES[name]
            open_gap = gap(float(np.median(values)), bounds.scalar[name])
            report.rows.append({
                "family": i.name, "groups": i.t.groups, "goal": name,
                "provider order": i.scalar(name, value_of(i.t, by_priority(i.t))),
                "random": i.scalar(name, value_of(i.t, at_random(i.t))),
                "chain": i.scalar(name, value_of(i.t, chain(i.t, leakage, w[0] / i.scale[0], w[1] / i.scale[1]))),
                "PGSAM median": float(np.median(values)), "PGSAM worst": max(values),
                "gap at most": "unknown" if open_gap is None else f"{open_gap:.2%}",
                "seconds median": float(np.median(seconds)),
            })  # fmt: skip
    report.notes.append(f"{seeds} seeds, {settings.chains} chains of {settings.epochs} epochs on one core; modelled")
    return report


# ---- instances that HiGHS closes


def exact(instances: Sequence[Instance], seeds: int, settings: Search, seconds: float) -> Report:
    """Distance from the optimum that HiGHS proves."""
    columns = ("instance", "groups", "placements", "goal", "HiGHS", "proven", "PGSAM median gap", "PGSAM worst gap",
               "HiGHS seconds")  # fmt: skip
    report = Report("exact", "Gap to the proven optimum, or to the best bound where none is proven", columns)
    closed: list[float] = []
    for i in instances:
        leakage = ambient_leakage(i.t)
        found = [search(i.t, i.starts, replace(settings, seed=s), i.scale) for s in range(seeds)]
        good = [*i.starts, *(p for _, p in found[0].best.values())]
        bounds = lower_bounds(i.t, i.scale, good, 3_000_000)
        for name in NAMES:
            w = SCALES[name]
            before = time.perf_counter()
            best = optimum(i.t, w[0] / i.scale[0], w[1] / i.scale[1], leakage, seconds)
            took = time.perf_counter() - before
            # The programme leaves stages and busy links out: its optimum is a bound, and its plan is worth what the
            # evaluator says. The branch and bound between cuts knows both, and gives a second bound.
            reached = np.inf if best.place is None else i.scalar(name, value_of(i.t, best.place))
            values = [i.scalar(name, f.best[name][0]) for f in found]
            bound = max(best.bound, bounds.scalar[name])
            proven = min([reached, *values]) <= bound * (1 + 1e-6)
            truth = min([reached, *values]) if proven else bound
            gaps = [max(0.0, v / truth - 1) for v in values]
            if proven:
                closed += gaps
            report.rows.append({
                "instance": i.name, "groups": i.t.groups, "placements": i.t.placements, "goal": name,
                "HiGHS": reached, "proven": "yes" if proven else "no",
                "PGSAM median gap": f"{np.median(gaps):.4%}", "PGSAM worst gap": f"{max(gaps):.4%}",
                "HiGHS seconds": took,
            })  # fmt: skip
    if closed:
        report.notes.append(
            f"closed instances, {seeds} seeds: median gap {np.median(closed):.4%}, worst {max(closed):.4%}; HiGHS had "
            f"{seconds:.0f} s each; leakage constant at ambient temperature"
        )
    return report


def small_instances(quick: bool) -> list[Instance]:
    """Truncated families on two and three devices, and random layered graphs."""
    found = []
    whole = find_target(TARGET)
    for devices in (("cpu", "gpu"), ("cpu", "npu"), ("cpu", "npu", "gpu")):
        part = subset(whole, devices)
        for family in (FAMILIES[0], FAMILIES[5])[: 1 if quick else 2]:
            short = replace(family, name=f"{family.name}, 1 layer", layers=1, convolutions=frozenset())
            t = isothermal(joint(short, part, prompt=64, past=64))
            found.append(Instance.of(f"{short.name} on {'+'.join(devices)}", t))
    for n in (12, 24) if quick else (12, 24, 48, 96, 192):
        found.append(Instance.of(f"random, {n} groups", isothermal(random_problem(n, subset(whole, ("cpu", "gpu"))))))
    return found


def subset(target: Target, names: Sequence[str]) -> Target:
    """A target with some of its devices, and the first engine of each."""
    devices = tuple(replace(d, engines=d.engines[:1]) for d in target.devices if d.name in names)
    return replace(target, devices=devices, links=tuple(k for k in target.links if {k.a, k.b} <= set(names)))


def random_problem(n: int, target: Target, seed: int = 0) -> Tables:
    """A chain of blocks with one to three branches each, groups of mixed intensity."""
    from qeil_compile.passes.count import OpCount

    rng = np.random.default_rng(seed)
    tensors = {"x": TensorSpec("x", (4096,), "float32", "input")}
    ops: list[Op] = []
    last = "x"
    while len(ops) < n:
        ends = []
        for _ in range(int(rng.integers(1, 4))):
            name = last
            for _ in range(int(rng.integers(1, 4))):
                name = _grow(rng, ops, tensors, (name,))
            ends.append(name)
        last = _grow(rng, ops, tensors, tuple(ends))
    graph = OpGraph("random", "onnx", tuple(ops), tensors, ("x",), (last,), {"": 20})
    groups = GroupGraph(graph, tuple(OpGroup(k, (k,)) for k in range(len(ops))))
    counts = tuple(
        OpCount(float(10 ** rng.uniform(5, 9.5)), int(10 ** rng.uniform(3, 6)), int(10 ** rng.uniform(2, 7)),
                int(10 ** rng.uniform(3, 6)), "gemm", True, "float32")
        for _ in ops
    )  # fmt: skip
    return tables([Phase("random", annotate(groups, counts, target))])


def _grow(rng: np.random.Generator, ops: list[Op], tensors: dict[str, TensorSpec], reads: tuple[str, ...]) -> str:
    name = f"t{len(ops)}"
    tensors[name] = TensorSpec(name, (int(10 ** rng.uniform(2, 5)),), "float32", "activation")
    ops.append(Op(f"op{len(ops)}", "onnx.Relu", reads, (name,)))
    return name


# ---- fronts against NSGA-II and NSGA-III


#: Values of the fronts of one seed by method, relative, and the family that they are of: for the plot.
Drawn = dict[str, dict[str, np.ndarray]]


def fronts(
    instances: Sequence[Instance], seeds: int, rival_seeds: int, jobs: int, settings: Search
) -> tuple[Report, Drawn]:
    """Hypervolume at equal evaluations and at equal seconds, of each seed against each seed of a rival."""
    rivals = ("NSGA-II", "NSGA-III")
    columns = ("family", "evaluations", "PGSAM seconds", *rivals, *(f"{r}, equal seconds" for r in rivals), "least")
    report = Report("front", "Hypervolume of PGSAM over that of each rival, less 1: median (5 %, 95 %)", columns)
    every: dict[str, list[float]] = {c: [] for c in columns[3:7]}
    drawn: Drawn = {}
    for i in instances:
        search(i.t, i.starts, replace(settings, epochs=1), i.scale)  # loads the compiled loop
        ours, seconds = [], []
        for seed in range(seeds):
            before = time.process_time()
            ours.append(search(i.t, i.starts, replace(settings, seed=seed), i.scale))
            seconds.append(time.process_time() - before)
        evaluations, took = max(f.evaluations for f in ours), float(np.median(seconds))
        tasks = [(i, r, seed, evaluations, np.inf) for r in rivals for seed in range(rival_seeds)]
        with ProcessPoolExecutor(jobs) as pool:
            equal = list(pool.map(evolve, *zip(*tasks, strict=True)))
        theirs = {r: equal[k * rival_seeds : (k + 1) * rival_seeds] for k, r in enumerate(rivals)}
        for r in rivals:  # one at a time, as ours were
            theirs[f"{r}, equal seconds"] = [evolve(i, r, seed, 10**9, took) for seed in range(rival_seeds)]
        rows = {
            c: [a / b - 1 if b else np.inf for f in ours for v in found for a, b in [hypervolumes(i, f.values, v)]]
            for c, found in theirs.items()
        }
        for c, v in rows.items():
            every[c] += v
        report.rows.append({
            "family": i.name, "evaluations": evaluations, "PGSAM seconds": took,
            **{c: spread_of(v) for c, v in rows.items()},
            "least": f"{min(min(v) for v in rows.values()):+.2%}",
        })  # fmt: skip
        drawn[i.name] = {"PGSAM": ours[0].values, **{r: theirs[r][0] for r in rivals}}
        drawn[i.name] = {name: v / i.scale for name, v in drawn[i.name].items()}
        print(f"{i.name}: {report.rows[-1]}", file=sys.stderr)
    report.rows.append({"family": "all", **{c: spread_of(v) for c, v in every.items()},
                        "least": f"{min(min(v) for v in every.values()):+.2%}"})  # fmt: skip
    report.notes.append(
        f"{seeds} seeds, each against {rival_seeds} of each rival; all from the same plans; at most 100 plans each, "
        "populations of 100; hypervolume over relative values, from 1.1 times the worst of both fronts; CPU seconds"
    )
    return report, drawn


def spread_of(values: Sequence[float]) -> str:
    """Median and the range from 5 to 95 %."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:+.2%} ({low:+.2%}, {high:+.2%})"


def evolve(i: Instance, name: str, seed: int, evaluations: int, seconds: float) -> np.ndarray:
    """Non-dominated values of NSGA-II or NSGA-III with integer variables, from the same starts: so many evaluations,
    or seconds of the processor."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.algorithms.moo.nsga3 import NSGA3
    from pymoo.core.problem import Problem
    from pymoo.core.termination import Termination
    from pymoo.operators.crossover.pntx import TwoPointCrossover
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.optimize import minimize
    from pymoo.termination import get_termination
    from pymoo.util.ref_dirs import get_reference_directions

    class Plans(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(n_var=i.t.groups, n_obj=3, n_ieq_constr=1, xl=0, xu=i.t.placements - 1, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *args: Any, **more: Any) -> None:
            place = np.asarray(x, dtype=np.int64)
            place = np.where(i.t.allowed[np.arange(i.t.groups), place] > 0, place, by_priority(i.t))
            values = values_of(i.t, place)
            out["F"], out["G"] = values[:, :3] / i.scale, values[:, 3:4]

    class Seconds(Termination):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.began = time.process_time()

        def _update(self, algorithm: Any) -> float:
            return (time.process_time() - self.began) / seconds

    rng = np.random.default_rng(seed)
    known = [*i.starts, *front_of_chains(i.t, ambient_leakage(i.t), i.scale)]
    known = list({p.tobytes(): p for p in known}.values())[:100]
    first = np.array([*known, *(at_random(i.t, int(rng.integers(2**31))) for _ in range(100 - len(known)))])
    operators: dict[str, Any] = {
        "sampling": first, "crossover": TwoPointCrossover(prob=0.9),
        "mutation": PM(prob=1.0, prob_var=1.5 / i.t.groups, eta=3.0, vtype=float, repair=RoundingRepair()),
    }  # fmt: skip
    if name == "NSGA-II":
        algorithm = NSGA2(pop_size=100, **operators)
    else:
        algorithm = NSGA3(get_reference_directions("das-dennis", 3, n_partitions=12), pop_size=100, **operators)
    ends = get_termination("n_eval", evaluations) if seconds == np.inf else Seconds()
    result = minimize(Plans(), algorithm, ends, seed=seed, verbose=False)
    return np.atleast_2d(result.F) * i.scale


def hypervolumes(i: Instance, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Of two sets of values [plans, 3], from one reference point: 1.1 times the worst of the joint front."""
    from pymoo.indicators.hv import HV
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    both = np.concatenate([a, b]) / i.scale
    front = both[NonDominatedSorting().do(both, only_non_dominated_front=True)]
    low, high = front.min(axis=0), front.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    volume = HV(ref_point=np.full(3, 1.1))
    return tuple(float(volume((x / i.scale - low) / span)) for x in (a, b))  # type: ignore[return-value]


# ---- what the parts buy


def ablation(instances: Sequence[Instance], seeds: int, settings: Search) -> Report:
    """Hypervolume without a part over that with all, less 1, at equal evaluations."""
    forms: Mapping[str, Mapping[str, bool]] = {
        "without guidance": {"guidance": False},
        "without momentum": {"momentum": False},
        "without repetition": {"repetition": False},
        "without all": {"guidance": False, "momentum": False, "repetition": False},
    }
    columns = ("family", *(f"{f}: {what}" for f in forms for what in ("volume", "balanced")))
    title = "What the parts buy: change of hypervolume and of the balanced value, median (5 %, 95 %)"
    report = Report("ablation", title, columns)
    total: dict[str, list[float]] = {c: [] for c in columns[1:]}
    for i in instances:
        rows: dict[str, list[float]] = {c: [] for c in columns[1:]}
        for seed in range(seeds):
            full = search(i.t, i.starts, replace(settings, seed=seed), i.scale)
            for form, off in forms.items():
                other = search(i.t, i.starts, replace(settings, seed=seed, **off), i.scale)
                a, b = hypervolumes(i, full.values, other.values)
                rows[f"{form}: volume"].append(b / a - 1)
                ours, theirs = (i.scalar("balanced", f.best["balanced"][0]) for f in (full, other))
                rows[f"{form}: balanced"].append(theirs / ours - 1)
        report.rows.append({"family": i.name, **{c: spread_of(v) for c, v in rows.items()}})
        for c, v in rows.items():
            total[c] += v
    report.rows.append({"family": "all", **{c: spread_of(v) for c, v in total.items()}})
    report.notes.append(f"{seeds} seeds; a smaller volume and a larger balanced value are a loss")
    return report


# ---- growth


def growth(sizes: Sequence[int]) -> Report:
    """Seconds and memory of a whole search on random graphs."""
    target = subset(find_target(TARGET), ("cpu", "npu", "gpu"))
    columns = ("groups", "tables [s]", "search [s]", "evaluations", "us per evaluation", "better than best single",
               "peak memory [MB]")  # fmt: skip
    report = Report("growth", "Growth with the number of groups", columns)
    for n in sizes:
        before = time.process_time()
        i = Instance.of(f"{n}", random_problem(n, target))
        made = time.process_time() - before
        before = time.process_time()
        found = search(i.t, i.starts, Search(jobs=1), i.scale)
        took = time.process_time() - before
        single = min(i.scalar("balanced", value_of(i.t, s)) for s in i.starts[: i.t.placements])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        report.rows.append({
            "groups": i.t.groups, "tables [s]": made, "search [s]": took, "evaluations": found.evaluations,
            "us per evaluation": took / found.evaluations * 1e6,
            "better than best single": f"{1 - i.scalar('balanced', found.best['balanced'][0]) / single:.1%}",
            "peak memory [MB]": peak / 1e6,
        })  # fmt: skip
    return report


# ---- pictures


def percent(text: str) -> float:
    """The first figure of a cell, in percent; "unknown" is none."""
    return np.nan if text == "unknown" else float(text.split("%")[0])


def figures(reports: Sequence[Report], drawn: Drawn) -> None:
    """A picture per table that has numbers to compare."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(RESULTS / f"partition_{name}.png", dpi=110)
        plt.close(figure)

    for report in reports:
        if report.name == "growth":
            figure, axes = plt.subplots(figsize=(7, 4))
            axes.loglog([r["groups"] for r in report.rows], [r["search [s]"] for r in report.rows], "o-")
            axes.set(xlabel="groups", ylabel="search [s]", title=report.title)
            save(figure, "growth")
        elif report.name == "plans":
            bars = {"balanced": {r["family"]: r["PGSAM median"] for r in report.rows if r["goal"] == "balanced"}}
            save(_bars(plt, bars, "PGSAM median, balanced", report.title), "plans")
            gaps = {n: {r["family"]: percent(r["gap at most"]) for r in report.rows if r["goal"] == n} for n in NAMES}
            save(_bars(plt, gaps, "gap at most [%]", "Distance from the proven bound (modelled)"), "gap")
        elif report.name == "ablation":
            forms = [c for c in report.columns if c.endswith(": volume")]
            losses = {c.split(":")[0]: {r["family"]: percent(r[c]) for r in report.rows} for c in forms}
            save(_bars(plt, losses, "change of hypervolume [%]", "Median change without a part (modelled)"), "ablation")
    if drawn:
        figure, all_axes = plt.subplots(2, 4, figsize=(15, 7), squeeze=False)
        for axes, (family, points) in zip(all_axes.flat, drawn.items(), strict=False):
            for (name, values), mark in zip(points.items(), "o+x", strict=True):
                axes.plot(values[:, 0], values[:, 2], mark, label=name, markersize=4, fillstyle="none")
            axes.set(xlabel="latency, relative", ylabel="under-utilisation", title=family, xscale="log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend(fontsize=7)
        for axes in list(all_axes.flat)[len(drawn) :]:
            axes.axis("off")
        save(figure, "front")


def _bars(plt: Any, groups: Mapping[str, Mapping[str, float]], label: str, title: str) -> Any:
    """Bars by family, one colour per group."""
    figure, axes = plt.subplots(figsize=(9, 4))
    width = 0.8 / len(groups)
    for k, (name, values) in enumerate(groups.items()):
        axes.bar(np.arange(len(values)) + k * width, list(values.values()), width, label=name)
    families = list(next(iter(groups.values())))
    axes.set_xticks(np.arange(len(families)) + 0.4 - width / 2, families, rotation=25)
    axes.set(ylabel=label, title=title)
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--seeds", type=int, default=None, help="seeds per instance (default 20; quick: 2)")
        parser.add_argument("--rival-seeds", type=int, default=None, help="seeds of each rival (default 4; quick: 1)")
        parser.add_argument("--jobs", type=int, default=1, help="processes for rivals at equal evaluations")
        parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be repeated")
        parser.add_argument("--families", nargs="*", default=None, help="names of families (default: all)")
        parser.add_argument("--solver-seconds", type=float, default=60.0, help="time for HiGHS per instance and goal")

    args = options(__doc__ or "", more)
    seeds = args.seeds or (2 if args.quick else 20)
    parts = args.only or PARTS
    settings = Search(jobs=1)
    reports: list[Report] = []
    drawn: Drawn = {}
    if {"plans", "front", "ablation"} & set(parts):
        target = find_target(TARGET)
        families = [f for f in FAMILIES if args.families is None or f.name in args.families]
        families = families[:1] if args.quick else families
        instances = [Instance.of(f.name, joint(f, target)) for f in families]
        if "plans" in parts:
            reports.append(plans(instances, seeds, settings))
        short = replace(settings, moves=100 if args.quick else 640)
        if "front" in parts:
            report, drawn = fronts(instances, seeds, args.rival_seeds or (1 if args.quick else 4), args.jobs, short)
            reports.append(report)
        if "ablation" in parts:
            reports.append(ablation(instances, seeds, short))
    if "exact" in parts:
        small = small_instances(args.quick)
        reports.append(exact(small, seeds, settings, 5.0 if args.quick else args.solver_seconds))
    if "growth" in parts:
        reports.append(growth((1000,) if args.quick else (1000, 3000, 10_000, 30_000, 100_000)))
    if not args.quick:
        figures(reports, drawn)
    publish(reports, args, "partition")


if __name__ == "__main__":
    main()
