"""Outputs of scattered plans against the unpartitioned model: a property test over real models.

python benchmarks/equivalence.py [--quick] [--assignments N] [--models NAME ...] [--json FILE]

Each assignment draws 2 to 4 placements of openvino:CPU, openvino:NPU (emulated where there is none),
onnxruntime:CPU and torch:cpu, and a mean run length between 1 (every operator or group anew) and a third of
the model. The plan is lowered, run, and compared with the whole model: ONNX models on ONNX Runtime, torch
models in eager torch.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import Report, four_placements, models, options, publish, scattered

from qeil_compile.api import Settings, lower_plan, price
from qeil_compile.frontends import Traced
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.partition import assign_plan
from qeil_compile.runtime.compare import Difference, compare

COLUMNS = ("model", "output dtypes", "operators", "plans", "stages (min/median/max)", "max abs", "max rel", "differ",
           "failed", "s per plan")  # fmt: skip


@dataclass
class Trial:
    """One plan: its size, what it cost, and how far its outputs are from the reference's."""

    stages: int
    seconds: float
    differences: list[Difference]
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure and all(d.ok for d in self.differences)


def run_plan(traced: Traced, costs: CostTable, assignment: Sequence[int], expected: dict[str, Any]) -> Trial:
    """Lower and run one assignment; a failure is recorded, not raised."""
    started = time.perf_counter()
    stages = 0
    try:
        plan = assign_plan(costs, assignment)
        stages = len(plan.stages)
        found = lower_plan(traced, plan, golden=False).run(traced.samples)
        differences = [compare(n, found[n], e) for n, e in expected.items()]
    except Exception as error:  # whatever breaks is the result
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Trial(stages, time.perf_counter() - started, [],
                     f"{type(error).__name__}: {str(error)[:300]} ({where.name})")  # fmt: skip
    return Trial(stages, time.perf_counter() - started, differences)


def run_model(name: str, traced: Traced, count: int, seconds: float, seed: int) -> tuple[dict[str, Any], list[str]]:
    """All plans of one model: its row, and what failed with the assignment that shows it."""
    rng = np.random.default_rng(seed)
    target = four_placements()
    tables = [price(traced, target, Settings(fuse=fuse)) for fuse in (False, True)]
    expected = dict(zip(traced.graph.outputs, traced.run_reference(traced.samples), strict=True))
    trials: list[Trial] = []
    failures: list[str] = []
    started = time.perf_counter()
    while len(trials) < count and time.perf_counter() - started < seconds:
        costs = tables[len(trials) % 2]
        longest = max(len(costs.groups.groups) / 3, 2.0)
        run = float(np.exp(rng.uniform(0.0, np.log(longest))))
        assignment = scattered(rng, costs, int(rng.integers(2, 5)), run)
        trial = run_plan(traced, costs, assignment, expected)
        trials.append(trial)
        if not trial.ok:
            wrong = trial.failure or "; ".join(d.as_text() for d in trial.differences if not d.ok)
            failures.append(f"{name}, fuse={costs is tables[1]}, {trial.stages} stages: {wrong}")
    return _row(name, traced, expected, trials), failures


def _row(name: str, traced: Traced, expected: dict[str, Any], trials: list[Trial]) -> dict[str, Any]:
    stages = [t.stages for t in trials]
    differences = [d for t in trials for d in t.differences]
    return {
        "model": name,
        "output dtypes": ", ".join(sorted({e.dtype.name for e in expected.values()})),
        "operators": len(traced.graph.ops),
        "plans": len(trials),
        "stages (min/median/max)": f"{min(stages)}/{int(np.median(stages))}/{max(stages)}",
        "max abs": max((d.max_abs for d in differences), default=float("nan")),
        "max rel": max((d.max_rel for d in differences), default=float("nan")),
        "differ": sum(not t.ok and not t.failure for t in trials),
        "failed": sum(bool(t.failure) for t in trials),
        "s per plan": float(np.median([t.seconds for t in trials])),
        "stages": stages,
    }


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--assignments", type=int, default=None, help="plans a model (default 200; 5 if quick)")
        parser.add_argument("--seconds", type=float, default=float("inf"), help="stop a model after this long")
        parser.add_argument("--models", nargs="*", default=None, help="some of the models, by name")
        parser.add_argument("--seed", type=int, default=0)

    args = options(__doc__ or "", more)
    count = args.assignments or (5 if args.quick else 200)
    report = Report("equivalence", f"Scattered plans against the whole model, {count} plans a model", COLUMNS)
    failures: list[str] = []
    for name, load in models().items():
        if args.models and name not in args.models:
            continue
        row, broken = run_model(name, load(), count, args.seconds, args.seed)
        report.rows.append(row)
        failures += broken
        print(f"{name}: {row['plans']} plans, {row['differ']} differ, {row['failed']} failed", flush=True)
    report.notes = [f"{n}x {text}" for text, n in Counter(failures).most_common(20)]
    publish([report], args, "equivalence")


if __name__ == "__main__":
    main()
