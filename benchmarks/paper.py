"""`qeil bench paper --measure` with its results kept: one file per machine, with date, versions and commit.

python benchmarks/paper.py [--quick] [--json FILE]

Writes benchmarks/results/paper.json (modelled targets and this machine's measured rows). The page and the figures are
what `qeil bench paper` writes.
"""

from __future__ import annotations

import json
import sys

from common import RESULTS, options

from qeil_compile import paper


def main() -> None:
    args = options(__doc__)
    settings = paper.Settings(quick=args.quick)
    results = paper.bench(paper.Wanted(settings=settings, measure=True), _progress)
    path = args.json or RESULTS / f"paper{'.quick' if args.quick else ''}.json"
    path.write_text(json.dumps(results.to_json(), indent=1, default=lambda v: v.item()) + "\n", encoding="utf-8")
    for target in results.paper.targets:
        for line in paper.summary(results.paper, target.name):
            print(line)
    for m in results.measured:
        print(f"{m.model}, {m.task}, {m.plan}: {m.seconds[0]:.4g} s (measured), {m.modelled:.4g} s by the cost model")


def _progress(step: str, done: int, total: int) -> None:
    print(f"{step}: {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    main()
