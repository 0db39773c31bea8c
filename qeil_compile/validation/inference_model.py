"""Energy of one sample of a network: coefficients fitted on other models, or on other devices.

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
  Three exponents that physics only bounds are set to the middle of their bounds, not fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from qeil_compile.validation.mlperf_runs import Run
from qeil_compile.validation.networks import Network, network
from qeil_compile.validation.report import Point

BYTES = {"int8": 1.0, "fp32": 4.0, "": 1.0}
# Energy per operation over the process node, as a power: 0 (no scaling) to 0.5, what arithmetic alone shows from 45
# to 7 nm [Horowitz 2014; Jouppi et al. 2021].
NODE_EXPONENT = 0.25
# Launches scale between the clock (serial, 0) and the peak (parallel, 1).
LAUNCH_WEIGHT = 0.5
# Sustained rate of an accelerator, peak^w TDP^(1-w): between bound by its peak (1) and by its power (0).
PEAK_WEIGHT = 0.5


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
    """Unfitted energies [J] of one sample, `{}` if the network is in no table, from the naive roofline time:

    `roofline`: idle power over that time, and FLOPs at (TDP - idle) / peak each; `constant_power`: the mean power of
    the runs `others` over that time; `tdp`: idle power and every TDP of the system over that time.
    """
    net = network(run.model)
    if net is None:
        return {}
    device = run.device
    active = device.units if run.scenario == "Offline" else 1
    compute = 2 * net.total(1) / device.rate
    memory = (net.total(4) + net.total(2) + net.total(3)) * BYTES[run.precision] / device.bandwidth
    seconds = max(compute, memory) / active
    dynamic = compute * (device.tdp - device.idle) / device.units
    mean = float(np.mean([other.watts for other in others]))
    return {"roofline": seconds * device.idle + dynamic, "constant_power": seconds * mean, "tdp": seconds * device.tdp}


def _configuration(run: Run, exact: bool) -> tuple[str, str, str]:
    return (run.exact if exact else run.system, run.precision, run.scenario)


def _peers(runs: Sequence[Run]) -> Callable[[Run], list[Run]]:
    """For a run, the runs of its configuration: same round and version if there are any, else same board and engine."""
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        groups[_configuration(run, True)].append(run)
        groups[_configuration(run, False)].append(run)
    return lambda run: groups.get(_configuration(run, True)) or groups.get(_configuration(run, False), [])


def unseen_models(
    runs: Sequence[Run],
    fit_runs: Sequence[Run],
    key: Callable[[Run], str],
    least: int,
    features: Callable[[Network], np.ndarray] = workload,
) -> dict[int, tuple[Point, Point]]:
    """By index in `runs`: the point of energy, fitted without any run whose `key` is that of the run, and the same
    with the run's measured time given. Runs with fewer than `least` other models, or in no table, have none."""
    peers, points = _peers([r for r in fit_runs if network(r.model)]), {}
    for i, run in enumerate(runs):
        others = [r for r in peers(run) if key(r) != key(run)]
        net = network(run.model)
        if net is None or len({r.model for r in others}) < least:
            continue
        known = np.array([features(n) for r in others if (n := network(r.model))])
        energy = float(features(net) @ fit_relative(known, np.array([r.energy for r in others])))
        seconds = float(features(net) @ fit_relative(known, np.array([r.seconds for r in others])))
        timed = Point(run.label, key(run), run.energy, energy / seconds * run.seconds)
        points[i] = Point(run.label, key(run), run.energy, energy, baselines(run, others)), timed
    return points


def device_group(run: Run) -> tuple[str, ...]:
    """Runs that share coefficients: engine and precision; on accelerators benchmark and scenario."""
    if run.device.kind == "accelerator":
        return (run.scenario, run.benchmark)
    return (run.device.kind, run.engine, run.precision)


def _design(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Features of time and of dynamic energy of a run, in units of its device's data sheet."""
    device = run.device
    if device.kind == "accelerator":
        units = device.units if run.scenario == "Offline" else 1
        watts = (device.tdp - device.idle) / device.units
        rate = device.rate**PEAK_WEIGHT * watts ** (1 - PEAK_WEIGHT)
        launch = 0.0 if run.scenario == "Offline" else 1.0
        return np.array([launch, 1 / (units * rate)]), np.array([watts / device.rate])
    net = network(run.model)
    assert net is not None
    launch = device.base**LAUNCH_WEIGHT * (device.ghz * 1e9) ** (1 - LAUNCH_WEIGHT)
    per = workload(net) / np.array([launch] * 3 + [device.rate] * 3 + [device.base] * 5)
    return per, per * device.base * device.nm**NODE_EXPONENT


def _transfer(fit: Sequence[Run], report: Sequence[Run]) -> np.ndarray:
    """Energies [J] of `report` with the coefficients of `fit`, all of one group."""
    time, dynamic = (np.array(part) for part in zip(*map(_design, fit), strict=True))
    seconds = np.array([run.seconds for run in fit])
    # A meter that shows less than idle has nothing to say of dynamic power; relative errors need a positive figure.
    power = np.array([max(run.watts - run.device.idle, 0.05 * run.device.idle) for run in fit])
    theta, epsilon = fit_relative(time, seconds), fit_relative(dynamic, power * seconds)
    new_time, new_dynamic = (np.array(part) for part in zip(*map(_design, report), strict=True))
    idle = np.array([run.device.idle for run in report])
    return np.asarray(idle * (new_time @ theta) + new_dynamic @ epsilon)


def unseen_devices(runs: Sequence[Run], fit_runs: Sequence[Run]) -> dict[int, Point]:
    """Point of each run (by its index in `runs`), with coefficients of the other devices that ran its group.

    A run whose group fewer than two other devices ran, or whose network is in no table, has no point.
    """
    known: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in filter(_described, fit_runs):
        known[device_group(run)].append(run)
    wanted: dict[tuple[tuple[str, ...], str], list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        if _described(run):
            wanted[device_group(run), run.device.name].append(i)
    points: dict[int, Point] = {}
    for (group, device), rows in wanted.items():
        fit = [run for run in known[group] if run.device.name != device]
        if len({run.device.name for run in fit}) < 2:
            continue
        energies = _transfer(fit, [runs[i] for i in rows])
        for i, energy in zip(rows, energies, strict=True):
            points[i] = Point(runs[i].label, device, runs[i].energy, float(energy), baselines(runs[i], fit))
    return points


def _described(run: Run) -> bool:
    """Whether there is a workload for the run: accelerators are fitted per benchmark and need none."""
    return run.device.kind == "accelerator" or network(run.model) is not None
