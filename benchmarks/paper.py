"""`qeil bench paper --measure` with its results kept: one file per machine, with date, versions and commit.

python benchmarks/paper.py [--quick] [--targets NAME ...] [--families NAME ...] [--no-quality] [--json FILE]

Targets that are not this machine are modelled; plans of this machine are measured besides. The page and the figures are
what `qeil bench paper` writes.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from common import Report, options, publish

from qeil_compile import paper


def main() -> None:
    args = options(__doc__, _options)
    settings = paper.Settings(quick=args.quick, families=tuple(args.families))
    wanted = paper.Wanted(args.targets, settings, measure="host" in args.targets, quality=args.quality)
    results = paper.bench(wanted, lambda step, done, total: print(f"{step}: {done} of {total}", file=sys.stderr))
    publish([_shares(results), _measured(results)], args, "paper", report=results.to_json())


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--targets", nargs="*", default=list(paper.TARGETS))
    parser.add_argument("--families", nargs="*", default=[])
    parser.add_argument("--quality", action=argparse.BooleanOptionalAction, default=True)


def _shares(results: paper.Results) -> Report:
    rows: list[dict[str, Any]] = [
        {"target": s.target, "plan": s.plan, "energy": s.energy.value, "latency": s.latency.value, "IPW": s.ipw.value,
         "instances": s.instances}
        for s in results.paper.shares if not s.task
    ]  # fmt: skip
    notes = [line for t in results.paper.targets for line in paper.summary(results.paper, t.name)]
    return Report("over the standard", "mean over families and workloads, over the standard (modelled)",
                  ("target", "plan", "energy", "latency", "IPW", "instances"), rows, notes)  # fmt: skip


def _measured(results: paper.Results) -> Report:
    rows: list[dict[str, Any]] = [
        {"model": m.model, "workload": m.task, "plan": m.plan, "time [s]": m.seconds[0], "over the first": m.ratio,
         "cost model [s]": m.modelled, "energy [J]": m.joules if m.joules is not None else "no counter"}
        for m in results.measured
    ]  # fmt: skip
    return Report("measured", "plans of this machine, in turns (measured)",
                  ("model", "workload", "plan", "time [s]", "over the first", "cost model [s]", "energy [J]"), rows,
                  list(results.not_measured))  # fmt: skip


if __name__ == "__main__":
    main()
