"""The chosen plan against the best single engine of this machine, in one interleaved run per model.

python benchmarks/mixing.py [--quick] [--models NAME ...] [--threads N] [--seconds S] [--json FILE]

ONNX Runtime, OpenVINO and torch are three placements of one CPU, priced by the calibration that `qeil calibrate` stored
(quick: whatever is stored, or estimates). "planned" is what the prices choose; "accepted" is what `qeil compile` hands
out, which has been timed against every single engine first. Ratios below 1 are faster than the best single engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import ONNX_MODELS, Report, options, publish

from qeil_compile.api import Settings, compile_traced, find_target
from qeil_compile.calibration import stored
from qeil_compile.errors import BackendError, UnsupportedOperatorError
from qeil_compile.frontends import Traced
from qeil_compile.runtime import Compiled
from qeil_compile.runtime.measure import Timing
from qeil_compile.validation.host_models import host_models

ENGINES = ("onnxruntime:CPU", "openvino:CPU", "torch:cpu")


def compare(traced: Traced, threads: int, seconds: float) -> dict[str, Any]:
    """Medians [s] of the planned, the accepted and the best single plan of one model."""
    settings = Settings(target=",".join(ENGINES), threads=threads, measure=False, verify=False)
    planned = compile_traced(traced, settings)
    accepted = compile_traced(traced, Settings(target=",".join(ENGINES), threads=threads, verify=False))
    singles: dict[str, Compiled] = {}
    for spec in ENGINES:
        try:
            singles[spec] = compile_traced(traced, Settings(target=spec, threads=threads, measure=False, verify=False))
        except (BackendError, UnsupportedOperatorError):  # the engine takes no part of the model alone
            continue
    timings = planned.measure({"accepted": accepted, **singles}, seconds)
    mine, taken = timings[planned.plan.strategy], timings["accepted"]
    best = min(singles, key=lambda s: timings[s].median)
    return {
        "planned": _mixture(planned), "accepted": _mixture(accepted), "best single": best,
        "best single [ms]": timings[best].median * 1e3, "planned [ms]": mine.median * 1e3,
        "accepted [ms]": taken.median * 1e3, "planned / best": mine.median / timings[best].median,
        "accepted / best": taken.median / timings[best].median, "spread": _spread(timings[best]),
        "label": planned.plan.label,
    }  # fmt: skip


def _mixture(compiled: Compiled) -> str:
    """Engines of a plan and their stages: `onnxruntime x2 + torch`."""
    names = [s.placement.partition(":")[0] for s in compiled.plan.stages]
    return " + ".join(f"{n} x{names.count(n)}" if names.count(n) > 1 else n for n in dict.fromkeys(names))


def _spread(timing: Timing) -> str:
    return f"{timing.low * 1e3:.3g} to {timing.high * 1e3:.3g} ms"


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--models", nargs="*", default=None)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--seconds", type=float, default=20.0, help="per model")

    args = options(__doc__ or "", more)
    seconds = 0.5 if args.quick else args.seconds
    columns = ("model", "planned", "accepted", "best single", "best single [ms]", "planned [ms]", "accepted [ms]",
               "planned / best", "accepted / best", "spread", "label")  # fmt: skip
    report = Report("mixing", "Plans over three engines of one CPU against the best of them", columns)
    known = stored([p.spec for p in find_target(",".join(ENGINES)).placements], args.threads).found
    for name, build in host_models(ONNX_MODELS).items():
        if args.models is None or name in args.models:
            report.rows.append({"model": name, **compare(build(), args.threads, seconds)})
    ratios = np.array([r["accepted / best"] for r in report.rows])
    report.notes = [
        f"calibrated placements: {', '.join(sorted(known)) or 'none'}; {args.threads} threads",
        f"accepted over best single: median {np.median(ratios):.3f}, worst {ratios.max():.3f}",
    ]
    publish([report], args, "mixing")


if __name__ == "__main__":
    main()
