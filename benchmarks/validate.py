"""Every row of the cost model's table: model and baselines against published measurements and this machine's clock.

python benchmarks/validate.py [--quick] [--json FILE]

The same as `qeil validate`, with the result beside those of the other benchmarks. Quick leaves out this host's clock.
"""

from __future__ import annotations

from common import ONNX_MODELS, ROOT, Report, options, publish

from qeil_compile.validation import Settings, validate
from qeil_compile.validation.run import PARTS

MOST_POINTS = 100
BASELINES = ("roofline", "constant_power", "tdp")


def main() -> None:
    """Run the benchmark."""
    args = options(__doc__ or "")
    data = ROOT / "benchmarks" / "data"
    only = ("temperature", "inference-energy") if args.quick else tuple(PARTS)
    claims = [c for found in validate(Settings(data, data, ONNX_MODELS, only)).values() for c in found]
    columns = ("claim", "data", "points", "metric", "model", "goal", "met", *BASELINES)
    report = Report("validation", "Model against measurements", columns)
    for c in claims:
        report.rows.append({
            "claim": c.name, "data": c.dataset, "points": len(c.points), "metric": f"{c.metric} [{c.unit}]",
            "model": c.value, "goal": c.goal, "met": "yes" if c.met else "no", **c.baselines,
        })  # fmt: skip
        if c.note:
            report.notes.append(f"{c.name}: {c.note}")
    # Tens of thousands of points are `qeil validate`'s to write.
    few = [c.to_json() | ({"points": []} if len(c.points) > MOST_POINTS else {}) for c in claims]
    publish([report], args, "validate", claims=few)


if __name__ == "__main__":
    main()
