"""Energy per inference (MLPerf power, wall): unseen model of a seen device, unseen device, rank over devices.

What a point's fit did not see is named in it: the network in every configuration, or everything of the device.
The equation and its coefficients are those of `inference_model`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from qeil_compile.validation.inference_model import device_group, unseen_devices, unseen_models
from qeil_compile.validation.mlperf_runs import Run, read_runs
from qeil_compile.validation.report import BASELINES, Claim, Point, claim, mape


def _family(model: str, families: Sequence[str]) -> str:
    return next((f for f in families if model.startswith(f)), model)


def _breakdown(points: Iterable[tuple[str, Point]]) -> str:
    groups: dict[str, list[Point]] = defaultdict(list)
    for name, point in points:
        groups[name].append(point)
    return "; ".join(f"{name} {_mape(those):.1f} % ({len(those)})" for name, those in sorted(groups.items()))


def _mape(points: Sequence[Point]) -> float:
    return mape(np.array([p.measured for p in points]), np.array([p.model for p in points]))


def _rank_claim(name: str, points: Sequence[tuple[Run, Point]], least: int) -> list[Claim]:
    """Mean Spearman rho over (benchmark, scenario) of modelled and measured energies of at least `least` devices."""
    groups: dict[tuple[str, str], list[tuple[Run, Point]]] = defaultdict(list)
    for run, point in points:
        groups[run.benchmark, run.scenario].append((run, point))
    rows = []
    for (benchmark, scenario), members in sorted(groups.items()):
        if len({run.device.name for run, _ in members}) < least:
            continue
        those = [p for _, p in members]
        measured = [p.measured for p in those]
        shared = [b for b in BASELINES if all(b in p.baselines for p in those)]
        rho = {b: _spearman(measured, [p.baselines[b] for p in those]) for b in shared}
        model = _spearman(measured, [p.model for p in those])
        rows.append(Point(f"{benchmark} {scenario}", f"{len(those)} runs", 1.0, model, rho))
    if not rows:
        return []
    worst = min(rows, key=lambda p: p.model)
    note = f"{len(rows)} models; median {np.median([p.model for p in rows]):.3f}; worst {worst.name} {worst.model:.3f}."
    row = claim(
        name,
        "mlperf_power",
        0.95,
        rows,
        metric=lambda _, model: float(np.mean(model)),
        metric_name="mean Spearman rho",
        unit="",
        note=note,
        higher_is_better=True,
    )
    return [row]


def _spearman(measured: Sequence[float], model: Sequence[float]) -> float:
    """Rank correlation; 0 where the model cannot tell the devices apart."""
    return float(spearmanr(measured, model).statistic) if len(set(model)) > 1 else 0.0


def _model_claims(runs: Sequence[Run], fit_runs: Sequence[Run], split: Mapping[str, Any]) -> list[Claim]:
    least, data, goal = split["min_models"], "mlperf_power", 8.0
    points = unseen_models(runs, fit_runs, lambda r: r.model, least)
    claims = []
    if points:
        note = f"{len(runs) - len(points)} runs have fewer than {least} other models in their configuration. "
        note += _breakdown((f"{runs[i].system} {runs[i].precision}", p) for i, (p, _) in points.items())
        first, timed = (list(part) for part in zip(*points.values(), strict=True))
        claims.append(claim("energy per inference, unseen model of a seen device", data, goal, first, note=note))
        claims.append(claim("unseen model, its measured time given", data, goal, timed, note="For information."))
        family = unseen_models(runs, fit_runs, lambda r: _family(r.model, split["families"]), least)
        by = _breakdown((p.left_out, p) for p, _ in family.values())
        if family:
            those = [p for p, _ in family.values()]
            claims.append(claim("unseen family of models of a seen device", data, goal, those, note=by))
    few = [r for i, r in enumerate(runs) if i not in points and r.device.kind == "accelerator"]
    alone = unseen_models(few, fit_runs, lambda r: r.model, 2, lambda net: np.array([net.total(1)]))
    if alone:
        by = "One coefficient, energy per MAC. " + _breakdown((p.left_out, p) for p, _ in alone.values())
        those = [p for p, _ in alone.values()]
        claims.append(claim("unseen model of an accelerator with few and unlike models", data, goal, those, note=by))
    name = "rank over seen devices of an unseen model"
    return claims + _rank_claim(name, [(runs[i], p) for i, (p, _) in points.items()], split["min_rank_devices"])


def _device_claims(runs: Sequence[Run], fit_runs: Sequence[Run], unknown: int, split: Mapping[str, Any]) -> list[Claim]:
    points, data, goal = unseen_devices(runs, fit_runs), "mlperf_power", 20.0
    if not points:
        return []
    note = f"{unknown} runs are of a device that no table describes. "
    note += _breakdown((runs[i].device.name.split(" (")[0], p) for i, p in points.items())
    claims = [claim("energy per inference, unseen device", data, goal, list(points.values()), note=note)]
    for name, accelerator in (("boards", False), ("accelerators in servers and kits", True)):
        part = {i: p for i, p in points.items() if (runs[i].device.kind == "accelerator") == accelerator}
        if part:
            by = _breakdown((" ".join(device_group(runs[i])), p) for i, p in part.items())
            claims.append(claim(f"unseen device, {name}", data, goal, list(part.values()), note=by))
    name = "rank over devices, each left out"
    return claims + _rank_claim(name, [(runs[i], p) for i, p in points.items()], split["min_rank_devices"])


def evaluate(data: Path, splits: Mapping[str, Any], fit_data: Path) -> list[Claim]:
    """Claims on the runs below `data`, fitted on those below `fit_data`; [] if a file is missing.

    Raises:
        QeilError: a file is malformed.
    """
    try:
        fit_runs, _ = read_runs(fit_data, splits, fit_data)
        runs, unknown = read_runs(data, splits, fit_data)
    except FileNotFoundError:
        return []
    return _model_claims(runs, fit_runs, splits) + _device_claims(runs, fit_runs, unknown, splits)
