"""Largest load of a device on published pipeline-placement workloads, against the exact contiguous optimum.

python benchmarks/dnn_partitioning.py [--quick] [--seeds N] [--data FOLDER] [--json FILE]

Workloads and references: benchmarks/data/dnn_partitioning. Loads are in the time unit of the files. A reference is the
optimum over contiguous splits; splits that are not contiguous may be better, so each result says which kind it is.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Report, options, publish

from qeil_compile.errors import QeilError
from qeil_compile.passes.partition.pipeline import Problem, bound, problem, search

DATA = ROOT / "benchmarks" / "data" / "dnn_partitioning"
#: Exact optimum over contiguous splits, from the dynamic programme that was published with the workloads.
CONTIGUOUS = {
    "bert24_inference": 17.78990625,
    "bert24_training": 41.7458125,
    "resnet50_inference": 33.774666015625,
    "bert_l-3_inference": 27.9185676799125,
    "bert_l-3_training": 65.30314912208605,
    "bert_l-6_inference": 29.57950580645155,
}


@dataclass(frozen=True)
class Workload:
    """A workload file: nodes in the order of the file, accelerators before CPUs."""

    problem: Problem
    nodes: int
    accelerators: int
    cpus: int


def read(path: Path) -> Workload:
    """Read a workload. Errors: QeilError where outputs of one node differ in cost or an edge names no node."""
    data = json.loads(path.read_text(encoding="utf-8"))
    nodes, edges = data["nodes"], data["edges"]
    row = {node["id"]: i for i, node in enumerate(nodes)}
    accelerators, cpus = int(data["maxFPGAs"]), int(data["maxCPUs"])
    seconds = np.array([
        [float(x["fpgaLatency"]) if x["supportedOnFpga"] else np.inf] * accelerators + [float(x["cpuLatency"])] * cpus
        for x in nodes
    ])  # fmt: skip
    cost: dict[int, float] = {}
    for edge in edges:
        for end in (edge["sourceId"], edge["destId"]):
            if end not in row:
                raise QeilError(f"{path.name}: an edge names node {end}, which the file lacks; add it or drop the edge")
        known = cost.setdefault(edge["sourceId"], float(edge["cost"]))
        if abs(known - edge["cost"]) > 1e-6:
            raise QeilError(
                f"{path.name}: the output of node {edge['sourceId']} costs {known} on one edge and {edge['cost']} on "
                "another; the model has one cost per output"
            )
    # A node without a class is a class of its own.
    classes: list[tuple[str, int]] = [
        ("class", x["colorClass"]) if x.get("colorClass") is not None else ("node", x["id"]) for x in nodes
    ]
    numbers = {c: i for i, c in enumerate(dict.fromkeys(classes))}
    built = problem(
        seconds,
        np.array([float(x.get("size", 0.0)) for x in nodes]),
        np.array([float(data["maxSizePerFPGA"])] * accelerators + [np.inf] * cpus),
        np.array([1.0] * accelerators + [0.0] * cpus),
        np.array([(row[e["sourceId"]], row[e["destId"]]) for e in edges], np.int64),
        np.array([cost.get(x["id"], 0.0) for x in nodes]),
        np.array([numbers[c] for c in classes]),
        np.array([not x["isBackwardNode"] for x in nodes]),
    )
    return Workload(built, len(nodes), accelerators, cpus)


def solve(workload: Workload, seeds: int, **settings: int) -> dict[str, Any]:
    """What `seeds` searches reach: loads, kinds and seconds of each, and the bound."""
    p = workload.problem
    runs, seconds = [], []
    for seed in range(seeds):
        before = time.perf_counter()
        runs.append(search(p, seed, **settings))
        seconds.append(time.perf_counter() - before)
    return {
        "bound": bound(p),
        "loads": [r.best.load for r in runs],
        "is_contiguous": [r.best.contiguous for r in runs],
        "ordered_loads": [r.ordered.load if r.ordered else None for r in runs],
        "seconds": seconds,
        "split": min((r.best for r in runs), key=lambda x: x.load).place.tolist(),
    }


def row_of(name: str, workload: Workload, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    loads = np.array(found["loads"])
    ordered = [x for x in found["ordered_loads"] if x is not None]
    kinds = set(found["is_contiguous"])
    row = {
        "workload": name,
        "nodes": workload.nodes,
        "units": len(workload.problem.free.size),
        "devices": f"{workload.accelerators}+{workload.cpus}",
        "bound": f"{found['bound']:.4f}",
        "contiguous": f"{min(ordered):.4f}" if ordered else "none",
        "least": f"{loads.min():.4f}",
        "median": f"{np.median(loads):.4f}",
        "most": f"{loads.max():.4f}",
        "kind": "either" if len(kinds) > 1 else "contiguous" if kinds == {True} else "not contiguous",
        "over bound": f"{100 * (np.median(loads) / found['bound'] - 1):.2f} %",
        "seconds": f"{np.median(found['seconds']):.2f}",
    }
    if name in CONTIGUOUS:
        row["exact contiguous"] = f"{CONTIGUOUS[name]:.4f}"
        row["below exact contiguous"] = f"{100 * (1 - np.median(loads) / CONTIGUOUS[name]):.2f} %"
    return row


COLUMNS = (
    "workload", "nodes", "units", "devices", "bound", "exact contiguous", "contiguous", "least", "median", "most",
    "kind", "below exact contiguous", "over bound", "seconds",
)  # fmt: skip


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--seeds", type=int, default=None, help="searches per workload (default 20; 2 if quick)")
        parser.add_argument("--data", type=Path, default=DATA, help="folder of workload files")

    args = options(__doc__ or "", more)
    seeds = args.seeds or (2 if args.quick else 20)
    settings = {"orders": 20, "chains": 2, "moves": 5000} if args.quick else {}
    files = sorted(args.data.glob("*.json"))
    if not files:
        raise QeilError(f"{args.data} holds no *.json file; give a folder of workloads with --data")
    report = Report("dnn_partitioning", "Largest load of a device", COLUMNS)
    results: dict[str, Any] = {}
    search(read(files[0]).problem, 0, orders=2, chains=2, moves=10)  # compiles
    for path in files:
        workload = read(path)
        found = solve(workload, seeds, **settings)
        results[path.stem] = found
        report.rows.append(row_of(path.stem, workload, found))
    report.notes = [
        f"{seeds} seeds per workload; least, median and most over seeds; devices: accelerators + CPUs; one thread, "
        "compiled before",
        "exact contiguous: optimum of the published dynamic programme; contiguous: the best ordered split found here",
        "bound: no split of any kind has a smaller largest load (work without transfers)",
    ]
    publish([report], args, "dnn_partitioning", instances=results)


if __name__ == "__main__":
    main()
