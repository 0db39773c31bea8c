"""Kernels that the fusion rules predict against kernels that the engines run, by the engines' own profiles.

python benchmarks/fusion.py [--quick] [--models NAME ...] [--engines NAME ...] [--json FILE]

ONNX Runtime saves the graph it runs and profiles its nodes; OpenVINO's PERF_COUNT tells which nodes of its runtime
model ran, and each names the layers it was made of. "seen" models are those whose profiles the rules were
written from, "unseen" ones were run only afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Report, options, publish

from qeil_compile.errors import QeilError
from tests.engine_kernels import agreement
from tests.fusion_models import SEEN, UNSEEN

ENGINES = ("onnxruntime", "openvino")
COLUMNS = ("model", "rules", "engine", "operators", "executed", "predicted", "pairs", "precision", "recall")


def row(name: str, kind: str, engine: str, traced: Any) -> dict[str, Any]:
    """One line: numbers of kernels, and pairs of operators in one kernel."""
    line: dict[str, Any] = {"model": name, "rules": kind, "engine": engine, "operators": len(traced.graph.ops)}
    try:
        found = agreement(traced, engine)
    except QeilError as error:
        return {**line, "executed": 0, "refused": str(error)[:200]}
    return {
        **line, "executed": found.executed, "predicted": found.predicted, "pairs": found.together,
        "pairs predicted": found.predicted_together, "pairs in both": found.both,
        "precision": found.precision, "recall": found.recall,
    }  # fmt: skip


def total(rows: list[dict[str, Any]], kind: str, engine: str) -> dict[str, Any]:
    """All models of one kind together."""
    of = [r for r in rows if r["rules"] == kind and r["engine"] == engine and r["executed"]]
    both = sum(r["pairs in both"] for r in of)
    errors = [abs(r["predicted"] / r["executed"] - 1) for r in of]
    return {
        "rules": kind, "engine": engine, "models": len(of), "executed": sum(r["executed"] for r in of),
        "predicted": sum(r["predicted"] for r in of), "median error": float(np.median(errors)) if errors else 0.0,
        "worst error": max(errors, default=0.0),
        "precision": both / max(1, sum(r["pairs predicted"] for r in of)),
        "recall": both / max(1, sum(r["pairs"] for r in of)),
    }  # fmt: skip


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--models", nargs="+", choices=[*SEEN, *UNSEEN], default=None)
        parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)

    args = options(__doc__ or "", more)
    names = args.models or (["MLP", "two branches"] if args.quick else [*SEEN, *UNSEEN])
    report = Report("models", "Kernels run and predicted", COLUMNS)
    for name in names:
        kind = "seen" if name in SEEN else "unseen"
        traced = {**SEEN, **UNSEEN}[name]()
        report.rows += [row(name, kind, engine, traced) for engine in args.engines]
    report.notes = [f"{r['model']} on {r['engine']}: {r['refused']}" for r in report.rows if "refused" in r]
    kinds = [(kind, engine) for kind in ("seen", "unseen") for engine in args.engines]
    rows = [total(report.rows, *k) for k in kinds]
    sums = Report("totals", "By set of models", tuple(rows[0]), rows)
    publish([report, sums], args, "fusion")


if __name__ == "__main__":
    main()
