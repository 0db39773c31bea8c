"""The chosen plan against the best single engine of this machine, in one interleaved run per model.

python benchmarks/mixing.py [--quick] [--models NAME ...] [--threads N] [--seconds S] [--instances N] [--json FILE]

ONNX Runtime, OpenVINO and torch are three placements of one CPU, priced by the calibration that `qeil calibrate` stored
(quick: whatever is stored, or estimates). "planned" is what the prices choose; "accepted" is what `qeil compile` hands
out, which has been timed against every single engine first. Ratios below 1 are faster than the best single engine; they
are medians of ratios within a round, over several compilations of everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from common import ONNX_MODELS, Report, options, publish

from qeil_compile.api import Settings, compile_traced, find_target
from qeil_compile.calibration import stored
from qeil_compile.errors import BackendError, UnsupportedOperatorError
from qeil_compile.frontends import Traced
from qeil_compile.runtime import Compiled
from qeil_compile.runtime.measure import by_round
from qeil_compile.validation.host_models import host_models

ENGINES = ("onnxruntime:CPU", "openvino:CPU", "torch:cpu")


def compare(traced: Traced, threads: int, seconds: float, instances: int) -> dict[str, Any]:
    """The planned and the accepted plan of one model against the best single one."""
    rounds: dict[str, list[np.ndarray]] = {}
    for _ in range(instances):
        # Two compilations of one plan differ by some percent for as long as they live, by where their memory lies.
        plans = _plans(traced, threads)
        for name, runs in by_round({n: _call(c) for n, c in plans.items()}, seconds / instances).items():
            rounds.setdefault(name, []).append(np.median(runs, axis=1))
    medians = {n: float(np.median(np.concatenate(r))) for n, r in rounds.items()}
    best = min((n for n in rounds if n in ENGINES), key=lambda n: medians[n])
    planned, accepted = _ratio(rounds["planned"], rounds[best]), _ratio(rounds["accepted"], rounds[best])
    return {
        "planned": _mixture(plans["planned"]), "accepted": _mixture(plans["accepted"]), "best single": best,
        "best single [ms]": medians[best] * 1e3, "planned [ms]": medians["planned"] * 1e3,
        "accepted [ms]": medians["accepted"] * 1e3, "planned / best": planned[0], "accepted / best": accepted[0],
        "95 %": f"{accepted[1]:.3f} to {accepted[2]:.3f}", "rounds": sum(map(len, rounds["accepted"])),
        "label": plans["planned"].plan.label,
    }  # fmt: skip


def _plans(traced: Traced, threads: int) -> dict[str, Compiled]:
    settings = Settings(target=",".join(ENGINES), threads=threads, verify=False)
    plans = {
        "planned": compile_traced(traced, replace(settings, measure=False)),
        "accepted": compile_traced(traced, settings),
    }
    for spec in ENGINES:
        with contextlib.suppress(BackendError, UnsupportedOperatorError):  # the engine cannot take the model alone
            plans[spec] = compile_traced(traced, replace(settings, target=spec, measure=False))
    return plans


def _call(compiled: Compiled) -> Callable[[], object]:
    arrays = [np.asarray(compiled.golden.inputs[n]) for n in compiled.graph.inputs]
    return lambda: compiled.executor(arrays)


def _ratio(mine: Sequence[np.ndarray], best: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Median over rounds of the ratio within a round, and its 95 % interval (bootstrap over rounds)."""
    # A hopeless plan is dropped after some rounds: the first ones of each instance are pairs.
    ratios = np.concatenate([m[: len(b)] / b[: len(m)] for m, b in zip(mine, best, strict=True)])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def _mixture(compiled: Compiled) -> str:
    """Engines of a plan and their stages: `onnxruntime x2 + torch`."""
    names = [s.placement.partition(":")[0] for s in compiled.plan.stages]
    return " + ".join(f"{n} x{names.count(n)}" if names.count(n) > 1 else n for n in dict.fromkeys(names))


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--models", nargs="*", default=None)
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--seconds", type=float, default=60.0, help="per model")
        parser.add_argument("--instances", type=int, default=5, help="compilations of each plan")

    args = options(__doc__ or "", more)
    seconds = 0.5 if args.quick else args.seconds
    columns = ("model", "planned", "accepted", "best single", "best single [ms]", "planned [ms]", "accepted [ms]",
               "planned / best", "accepted / best", "95 %", "rounds", "label")  # fmt: skip
    report = Report("mixing", "Plans over three engines of one CPU against the best of them", columns)
    known = stored([p.spec for p in find_target(",".join(ENGINES)).placements], args.threads).found
    instances = 1 if args.quick else args.instances
    for name, build in host_models(ONNX_MODELS).items():
        if args.models is None or name in args.models:
            report.rows.append({"model": name, **compare(build(), args.threads, seconds, instances)})
    ratios = np.array([r["accepted / best"] for r in report.rows])
    report.notes = [
        f"calibrated placements: {', '.join(sorted(known)) or 'none'}; {args.threads} threads",
        f"accepted over best single: median {np.median(ratios):.3f}, worst {ratios.max():.3f}",
    ]
    publish([report], args, "mixing")


if __name__ == "__main__":
    main()
