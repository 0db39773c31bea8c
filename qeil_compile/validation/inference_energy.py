"""Energy per inference (MLPerf power, wall): unseen model of a seen device, unseen device, rank over devices.

The energy equation `E = t P_const + W e_f + Q e_m` with a sum of roofs for time: engines on small devices hardly
overlap compute, packing of operands and launches, so `t = sum_k theta_k f_k`, and then `E` is linear too:

    E = sum_k (P_const theta_k + eps_k) f_k,   theta, eps >= 0

with `f` of a network: 1, operators with and without weights, MACs by kind (dense 3x3, 1x1, depthwise), elements in
and out of convolutions, elements of depthwise and of the other operators, weights. Each coefficient is a time or
an energy per unit of work. Fits are non-negative least squares of the relative error.

- Seen device: the sums `P_const theta + eps` of one configuration, fitted on its other models.
- Unseen device: theta and eps of one engine and precision, fitted on other devices in units of the data sheet: work
  per peak, launches per root of peak x clock, dynamic energy per operation by process node; idle power is the
  device's. Accelerators, which run one batch at a time: `t = t_0 + kappa / rate` per benchmark and scenario.
  The few forms that may vary are chosen by leaving out devices of the fitted part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from qeil_compile.validation.mlperf_runs import Run, read_runs
from qeil_compile.validation.networks import Network, network
from qeil_compile.validation.report import BASELINES, Claim, Point, claim, mape

BYTES = {"int8": 1.0, "fp32": 4.0, "": 1.0}
# Exponent of the energy per operation over the process node: 45 nm -> 7 nm of Horowitz 2014 and Jouppi et al. 2021
# gives 0.5 for arithmetic alone; 0 if the boards of the fitted part show no trend.
NODE_EXPONENTS = (0.0, 0.25, 0.5)
# Launches scale with clock (serial), with peak (parallel) or between: weight of the peak.
LAUNCH_WEIGHTS = (0.0, 0.5, 1.0)
# Sustained rate of an accelerator, peak^w TDP^(1-w): bound by its peak, or half by its power.
PEAK_WEIGHTS = (1.0, 0.5)


def fit_relative(features: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Non-negative coefficients [k] that minimise the squared relative error of `features` [n, k] @ coefficients."""
    relative = features / measured[:, None]
    scale = np.where(relative.max(axis=0) > 0, relative.max(axis=0), 1.0)
    return nnls(relative / scale, np.ones(len(measured)))[0] / scale


def workload(net: Network) -> np.ndarray:
    """Features `f` of a network per sample: 1, operators (2), MACs (3), elements (4), weights."""
    dense = ("conv", "pointwise", "total")
    return np.array(
        [
            1.0,
            net.count(*dense, "depthwise"),
            net.count("dense", "elementwise"),
            net.total(1, "conv", "total"),
            net.total(1, "pointwise"),
            net.total(1, "depthwise"),
            net.total(2, *dense),
            net.total(3, *dense),
            net.total(2, "depthwise") + net.total(3, "depthwise"),
            net.total(2, "elementwise") + net.total(3, "elementwise"),
            net.total(4),
        ]
    )


def baselines(run: Run, others: Iterable[Run]) -> dict[str, float]:
    """Unfitted energies [J]: naive roofline time at the power that an unfitted energy roofline gives, at the mean
    power of `others`, and at the TDP. `{}` if the network is not in the tables."""
    net = network(run.model)
    if net is None:
        return {}
    device, flops = run.device, 2 * net.total(1)
    units = device.units if run.scenario == "Offline" else 1
    moved = net.total(4) + net.total(2) + net.total(3)
    compute, memory = flops / device.rate, moved * BYTES[run.precision] / device.bandwidth
    seconds = max(compute, memory) / units
    share = max(compute / max(compute, memory), 0.5)  # a device that waits for memory draws no less than half
    watts = device.idle + (device.tdp - device.idle) * share * units / device.units
    powers = [other.watts for other in others]
    mean = float(np.mean(powers)) if powers else device.tdp
    return {"roofline": seconds * watts, "constant_power": seconds * mean, "tdp": seconds * device.tdp}


# ---- unseen model of a seen device --------------------------------------------------------------------------------


def _configuration(run: Run, exact: bool) -> tuple[str, str, str]:
    return (run.exact if exact else run.system, run.precision, run.scenario)


def _peers(runs: Sequence[Run]) -> Callable[[Run], list[Run]]:
    """For a run, the runs of its configuration: same round and version if there are any, else same board and engine."""
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_configuration(run, True)].append(run)
        groups[_configuration(run, False)].append(run)
    return lambda run: groups.get(_configuration(run, True)) or groups.get(_configuration(run, False), [])


def _family(run: Run, families: Sequence[str]) -> str:
    return next((f for f in families if run.model.startswith(f)), run.model)


def unseen_models(
    runs: Sequence[Run], fit_runs: Sequence[Run], key: Callable[[Run], str], least: int
) -> tuple[list[Point], list[Point], int]:
    """Points of energy without any run whose `key` is that of the point's run; those with the measured time given;
    and how many runs had fewer than `least` other models."""
    peers, points, timed, few = _peers([r for r in fit_runs if network(r.model)]), [], [], 0
    for run in runs:
        others = [r for r in peers(run) if key(r) != key(run)]
        net = network(run.model)
        if net is None or len({r.model for r in others}) < least:
            few += 1
            continue
        features = np.array([workload(n) for r in others if (n := network(r.model))])
        energy = workload(net) @ fit_relative(features, np.array([r.energy for r in others]))
        seconds = workload(net) @ fit_relative(features, np.array([r.seconds for r in others]))
        simple = baselines(run, others)
        points.append(Point(run.label, key(run), run.energy, float(energy), simple))
        timed.append(Point(run.label, key(run), run.energy, float(energy / seconds * run.seconds)))
    return points, timed, few


# ---- unseen device ------------------------------------------------------------------------------------------------


def _group(run: Run) -> tuple[str, ...]:
    """Runs that share coefficients: engine and precision; on accelerators benchmark and scenario."""
    if run.device.kind == "accelerator":
        return (run.scenario, run.benchmark)
    return (run.device.kind, run.engine, run.precision)


def _design(run: Run, option: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Features of time and of dynamic energy of a run, in units of its device's data sheet."""
    device = run.device
    if device.kind == "accelerator":
        units = device.units if run.scenario == "Offline" else 1
        watts = (device.tdp - device.idle) / device.units
        rate = device.rate ** option[0] * watts ** (1 - option[0])
        launch = 0.0 if run.scenario == "Offline" else 1.0
        return np.array([launch, 1 / (units * rate)]), np.array([watts / device.rate])
    net = network(run.model)
    assert net is not None
    launch = device.base ** option[1] * (device.ghz * 1e9) ** (1 - option[1])
    per = workload(net) / np.array([launch] * 3 + [device.rate] * 3 + [device.base] * 5)
    return per, per * device.base * device.nm ** option[0]


class _Designs:
    """Designs and targets of all runs of one kind, for one option."""

    def __init__(self, runs: Sequence[Run], option: tuple[float, float]) -> None:
        pairs = [_design(run, option) for run in runs]
        self.time, self.dynamic = (np.array([p[i] for p in pairs]) for i in (0, 1))

    def predict(self, runs: Sequence[Run], fit: np.ndarray, report: np.ndarray) -> np.ndarray:
        """Energies [J] of the rows `report` after a fit on the rows `fit`."""
        seconds = np.array([runs[i].seconds for i in fit])
        dynamic = np.array([max(runs[i].watts / runs[i].device.idle - 1, 0.05) * runs[i].device.idle for i in fit])
        idle = np.array([runs[i].device.idle for i in report])
        time = self.time[report] @ fit_relative(self.time[fit], seconds)
        return idle * time + self.dynamic[report] @ fit_relative(self.dynamic[fit], dynamic * seconds)


def _predict_device(
    runs: Sequence[Run], designs: _Designs, fit: Sequence[int], report: Sequence[int]
) -> dict[int, float]:
    """Energy of each row of `report` whose group at least two devices of `fit` have run."""
    groups: dict[tuple[str, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for part, rows in enumerate((fit, report)):
        for i in rows:
            groups[_group(runs[i])][part].append(i)
    found: dict[int, float] = {}
    for known, wanted in groups.values():
        if wanted and len({runs[i].device.name for i in known}) >= 2:
            energies = designs.predict(runs, np.array(known), np.array(wanted))
            found |= dict(zip(wanted, map(float, energies), strict=True))
    return found


def _choose(
    runs: Sequence[Run], designs: Mapping[tuple[float, float], _Designs], fit: Sequence[int]
) -> tuple[float, float]:
    """The option with the least error over devices of the fitted part, each left out once."""
    names = sorted({runs[i].device.name for i in fit})

    def error(option: tuple[float, float]) -> float:
        errors: list[float] = []
        for name in names:
            kept = [i for i in fit if runs[i].device.name != name]
            left = [i for i in fit if runs[i].device.name == name]
            found = _predict_device(runs, designs[option], kept, left)
            errors += [abs(e / runs[i].energy - 1) for i, e in found.items()]
        return float(np.mean(errors)) if errors else np.inf

    return min(designs, key=error)


def unseen_devices(runs: Sequence[Run], fit_runs: Sequence[Run]) -> dict[int, Point]:
    """Point of each run (by its index in `runs`) from fits without any run of its device."""
    points: dict[int, Point] = {}
    for accelerator in (False, True):
        options = [(w, 0.0) for w in PEAK_WEIGHTS] if accelerator else list(product(NODE_EXPONENTS, LAUNCH_WEIGHTS))

        def usable(run: Run, accelerator: bool = accelerator) -> bool:
            return (run.device.kind == "accelerator") == accelerator and (accelerator or network(run.model) is not None)

        both = [r for r in fit_runs if usable(r)]
        first = len(both)
        index = [i for i, r in enumerate(runs) if usable(r)]
        both += [runs[i] for i in index]
        if not index:
            continue
        designs = {option: _Designs(both, option) for option in options}
        for name in sorted({runs[i].device.name for i in index}):
            fit = [i for i in range(first) if both[i].device.name != name]
            report = [first + j for j, i in enumerate(index) if runs[i].device.name == name]
            option = _choose(both, designs, fit)
            for row, energy in _predict_device(both, designs[option], fit, report).items():
                run = both[row]
                same = (both[i] for i in fit if both[i].device.kind == run.device.kind)
                points[index[row - first]] = Point(run.label, name, run.energy, energy, baselines(run, same))
    return points


# ---- claims -------------------------------------------------------------------------------------------------------


def _breakdown(points: Iterable[tuple[str, Point]]) -> str:
    groups: dict[str, list[Point]] = defaultdict(list)
    for name, point in points:
        groups[name].append(point)
    return "; ".join(f"{name} {_mape(those):.1f} % ({len(those)})" for name, those in sorted(groups.items()))


def _mape(points: Sequence[Point]) -> float:
    return mape(np.array([p.measured for p in points]), np.array([p.model for p in points]))


def _rank_claim(runs: Sequence[Run], points: Mapping[int, Point], devices: int, goal: float) -> Claim | None:
    """Mean Spearman rho over (benchmark, scenario) of modelled against measured energies, devices left out."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in points:
        groups[runs[i].benchmark, runs[i].scenario].append(i)
    rows = []
    for (benchmark, scenario), members in sorted(groups.items()):
        if len({runs[i].device.name for i in members}) < devices:
            continue
        measured = [points[i].measured for i in members]
        rho = {
            name: float(spearmanr(measured, [points[i].baselines[name] for i in members]).statistic)
            for name in BASELINES
            if all(name in points[i].baselines for i in members)
        }
        model = float(spearmanr(measured, [points[i].model for i in members]).statistic)
        rows.append(Point(f"{benchmark} {scenario}, {len(members)} runs", "each run's device", 1.0, model, rho))
    if not rows:
        return None
    worst = min(rows, key=lambda p: p.model)
    return claim(
        "rank over devices, each left out",
        "mlperf_power",
        goal,
        rows,
        metric=lambda _, model: float(np.mean(model)),
        metric_name="mean Spearman rho",
        unit="",
        note=f"{len(rows)} models; median {np.median([p.model for p in rows]):.3f}; worst {worst.name}: "
        f"{worst.model:.3f}",
        higher_is_better=True,
    )


def _model_claims(runs: Sequence[Run], fit_runs: Sequence[Run], split: Mapping[str, Any]) -> list[Claim]:
    least, families = split["min_models"], split["families"]
    labels = {run.label: f"{run.system} {run.precision}".strip() for run in runs}
    points, timed, few = unseen_models(runs, fit_runs, lambda r: r.model, least)
    if not points:
        return []
    note = f"Left out for fewer than {least} other models of the configuration: {few} runs. "
    note += _breakdown((labels[p.name], p) for p in points)
    claims = [claim("energy per inference, unseen model of a seen device", "mlperf_power", 8.0, points, note=note)]
    claims.append(claim("unseen model, its measured time given", "mlperf_power", 8.0, timed, note="For information."))
    family, _, _ = unseen_models(runs, fit_runs, lambda r: _family(r, families), least)
    if family:
        by = _breakdown((p.left_out, p) for p in family)
        claims.append(claim("unseen family of models of a seen device", "mlperf_power", 8.0, family, note=by))
    return claims


def evaluate(data: Path, splits: Mapping[str, Any], fit_data: Path) -> list[Claim]:
    """Claims on the runs below `data`, fitted on those below `fit_data`; [] if a file is missing.

    Raises:
        QeilError: a file is malformed.
    """
    try:
        fit_runs, _ = read_runs(fit_data, splits, fit_data)
        runs, unknown = (fit_runs, 0) if data == fit_data else read_runs(data, splits, fit_data)
    except FileNotFoundError:
        return []
    claims = _model_claims(runs, fit_runs, splits)
    points = unseen_devices(runs, fit_runs)
    if not points:
        return claims
    short = {i: runs[i].device.name.split(" (")[0] for i in points}
    note = f"Runs whose device no table describes: {unknown}. " + _breakdown((short[i], p) for i, p in points.items())
    claims.append(claim("energy per inference, unseen device", "mlperf_power", 20.0, list(points.values()), note=note))
    for name, kinds in (("boards", ("board", "mobile_gpu")), ("accelerators in servers and kits", ("accelerator",))):
        part = {i: p for i, p in points.items() if runs[i].device.kind in kinds}
        if part:
            by = _breakdown((" ".join(_group(runs[i])), p) for i, p in part.items())
            claims.append(claim(f"unseen device, {name}", "mlperf_power", 20.0, list(part.values()), note=by))
    rank = _rank_claim(runs, points, splits["min_rank_devices"], 0.95)
    return claims + ([rank] if rank else [])
