"""An NVIDIA GPU against the cost model: what NVML counts and the clock says of models that no fit has seen.

python benchmarks/gpu.py [--quick] [--seconds S] [--energy-seconds S] [--heat S] [--cool S] [--only PART ...]
                         [--json FILE]

Parts: `recorded` (a pass with and without CUDA graphs, in turns), `latency` (calibrated prices against the clock),
`energy` (NVML's total energy against the fitted and the shipped coefficients), `heat` (power and temperature under a
load and after it, against the first-order RC). Without CUDA there is nothing to measure, and it says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from common import ONNX_MODELS, Report, options, publish
from recordings import Recording, fit, fit_two_stage, predicted, rms

from qeil_compile.backends import found_devices
from qeil_compile.calibration import stored
from qeil_compile.calibration.worker import Model, turn
from qeil_compile.devices import DeviceProfile, host_target
from qeil_compile.devices.calibrated import Calibration
from qeil_compile.devices.cpuinfo import cpu_facts
from qeil_compile.devices.work import KernelTable
from qeil_compile.errors import QeilError, first_line
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.count import count
from qeil_compile.passes.energy import device_energy, dynamic_joules
from qeil_compile.passes.fuse import fuse
from qeil_compile.passes.kernels import kernel_table
from qeil_compile.telemetry import Sampler, find_sensors
from qeil_compile.telemetry.counters import counter_for, joules
from qeil_compile.validation import host_latency
from qeil_compile.validation.host_models import host_models

PARTS = ("recorded", "latency", "energy", "heat")


def boards() -> list[str]:
    """Placements of this machine on NVIDIA GPUs."""
    return [d.spec for d in found_devices() if d.available and d.spec.partition(":")[2].lower().startswith("cuda")]


def recorded(args: Any) -> Report:
    """A pass as Python launches it, and as one CUDA graph, in turns."""
    report = Report("recorded", "torch on CUDA: one pass [ms], arrays in and out", (
        "model", "launched", "10 to 90 %", "recorded", "10 to 90 % ", "launched / recorded"))  # fmt: skip
    for name, build in host_models(ONNX_MODELS).items():
        try:
            model = Model.of(build())
            run = model.compile("torch", "cuda:0", 0)
        except QeilError as error:
            report.notes.append(f"{name}: {first_line(error)}")
            continue
        ways = {"launched": partial(run.launched, model.inputs), "recorded": partial(run, model.inputs)}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for k in range(3 if args.quick else 15):
            for way in list(ways)[:: 1 if k % 2 else -1]:
                times[way].append(1e3 * turn(ways[way]))
        row: dict[str, Any] = {"model": name}
        for way, column in (("launched", "10 to 90 %"), ("recorded", "10 to 90 % ")):
            low, middle, high = np.quantile(times[way], [0.1, 0.5, 0.9])
            row |= {way: float(middle), column: f"{low:.3g} to {high:.3g}"}
        ratio = float(np.median(np.divide(times["launched"], times["recorded"])))
        report.rows.append(row | {"launched / recorded": ratio})
    report.notes.append("measured; a turn's fastest call, medians over turns")
    return report


def latency(args: Any, specs: Sequence[str]) -> Report:
    """Whole models, their prices calibrated without them."""
    report = Report("latency", "Whole models after calibration: model and clock [ms]", (
        "model", "measured", "modelled", "error [%]", "roofline"))  # fmt: skip
    times: dict[str, list[tuple[float, float, str]]] = {}
    for spec in (*specs, "torch:cpu"):  # torch runs all of the models on both, so that there is something to choose
        threads = cpu_facts().cores if spec == "torch:cpu" else 0
        try:
            claims = host_latency.evaluate(ONNX_MODELS, [threads], args.seconds, 2 if args.quick else 5, specs=[spec])
        except QeilError as error:
            report.notes.append(f"{spec}: {first_line(error)}")
            continue
        for p in claims[0].points:
            model = p.name.partition(",")[0]
            times.setdefault(model, []).append((p.model, p.measured, spec))
            report.rows.append({
                "model": f"{model}, {spec}", "measured": p.measured * 1e3, "modelled": p.model * 1e3,
                "error [%]": 100 * (p.model / p.measured - 1), "roofline": 1e3 * p.baselines["roofline"],
            })  # fmt: skip
        report.notes += [f"{spec}: {c.metric} {c.value:.1f} %" for c in claims]
        report.notes += [c.note for c in claims[:1] if c.note]
    lost = [min(found)[1] / min(t for _, t, _ in found) for found in times.values() if len(found) > 1]
    if lost:
        report.notes.append(f"the placement of the least price is the fastest by the clock in {lost.count(1.0)} of "
                            f"{len(lost)} models, and elsewhere {max(lost):.2f} times as slow at most")  # fmt: skip
    return report


def energy(args: Any, specs: Sequence[str]) -> Report:
    """Joules of a pass by NVML, by the coefficients that `qeil calibrate` fitted on other networks, and as shipped."""
    report = Report("energy", "Energy of a pass [mJ]: NVML, calibrated, as shipped", (
        "model", "power [W]", "measured", "calibrated", "error [%]", "shipped", "error [%] "))  # fmt: skip
    for spec in specs:
        engine, _, device = spec.partition(":")
        counter = counter_for(engine, device)
        calibration = stored([spec], 0).found.get(spec)
        if counter is None or calibration is None:
            report.notes.append(f"{spec}: {'no energy counter' if counter is None else 'not calibrated'}")
            continue
        shipped = host_target([spec], found_devices()).devices[0]
        report.notes.append(f"{spec}: fitted {calibration.energy}; {calibration.missing.get('energy', '')}")
        report.notes.append(f"{spec}: idle {_idle(counter.read, args):.1f} W by NVML")
        for name, build in host_models(ONNX_MODELS).items():
            try:
                traced = build()
                run = Model.of(traced).start(engine, device, 0)
            except QeilError as error:
                report.notes.append(f"{name} on {spec}: {first_line(error)}")
                continue
            joules(counter, run, 0.2 * args.energy_seconds)
            found = joules(counter, run, args.energy_seconds)
            graph = traced.graph.priced()
            counts = count(graph)
            kernels = kernel_table(fuse(graph, counts), counts, engine)
            row = {"model": f"{name}, {spec}", "power [W]": found["joules"] / found["seconds"],
                   "measured": 1e3 * found["joules"] / found["calls"]}  # fmt: skip
            seconds = found["seconds"] / found["calls"]
            for column, error, value in (
                ("calibrated", "error [%]", _by_fit(calibration, kernels, seconds)),
                ("shipped", "error [%] ", _by_profile(shipped, kernels, seconds)),
            ):
                if value is not None:
                    row |= {column: 1e3 * value, error: 100 * (1e3 * value / row["measured"] - 1)}
            report.rows.append(row)
    report.notes.append("measured: NVML total energy of the board over calls one after another; calibrated, shipped: "
                        "modelled, with the measured time")  # fmt: skip
    return report


def _idle(read: Callable[[], float], args: Any) -> float:
    time.sleep(0.5 * args.energy_seconds)
    before, started = read(), time.perf_counter()
    time.sleep(args.energy_seconds)
    return (read() - before) / (time.perf_counter() - started)


def _by_fit(calibration: Calibration, kernels: KernelTable, seconds: float) -> float | None:
    found = calibration.energy
    if not found:
        return None
    work = found["energy_per_flop"] * kernels.flops.sum() + found["energy_per_byte"] * kernels.nbytes.sum()
    return float(found["power_const"] * seconds + work)


def _by_profile(device: DeviceProfile, kernels: KernelTable, seconds: float) -> float:
    return device_energy(device, seconds, float(dynamic_joules(device, kernels).sum()), seconds, Conditions()).joules


def heat(args: Any) -> tuple[Report, dict[str, list[float]]]:
    """Power and temperature by NVML under a load, without it, and under half of it; the RC fitted to the first two."""
    sensors, _ = find_sensors()
    marks = [0.0]
    with Sampler(sensors, hertz=5.0, keep_seconds=3600.0) as sampler:
        for share, seconds in ((1.0, args.heat), (0.0, args.cool), (0.5, args.cool)):
            _load(share, seconds)
            marks.append(marks[-1] + seconds)
    times, temperature = sampler.history("gpu0", "temperature")
    power = np.interp(times, *sampler.history("gpu0", "power"))
    whole = Recording(times - times[0], temperature, power)
    seen = whole.times <= marks[2]
    first = Recording(*(a[seen] for a in (whole.times, whole.temperature, whole.power)))
    report = Report("heat", "Temperature by the thermal model [C], its power recorded", (
        "model", "R [K/W]", "tau [s]", "ambient [C]", "rms where fitted [K]", "rms on what follows [K]"))  # fmt: skip
    simple, double = fit(first), fit_two_stage(first)
    for name, r, tau, ambient, found in (
        ("first order", f"{simple[0]:.3g}", f"{simple[1]:.3g}", simple[2], predicted(*simple, whole)),
        ("die on a cooler", f"{double.die:.3g} + {double.cooler:.3g}", f"{double.die_tau:.3g}, {double.cooler_tau:.3g}",
         double.ambient, double.predicted(whole)),
    ):
        errors = found - whole.temperature
        report.rows.append({"model": name, "R [K/W]": r, "tau [s]": tau, "ambient [C]": float(ambient),
                            "rms where fitted [K]": rms(errors[seen]),
                            "rms on what follows [K]": rms(errors[~seen])})  # fmt: skip
    report.notes = [
        f"measured: NVML, {whole.power.max():.0f} W and {whole.temperature.max():.0f} C at most, "
        f"{whole.temperature.min():.0f} C at least; modelled: the rest",
        f"load: products of 32-bit matrices for {args.heat:.0f} s, nothing for {args.cool:.0f} s (both fitted), every "
        f"other tenth of a second for {args.cool:.0f} s",
    ]
    series = {"time": whole.times, "power": whole.power, "temperature": whole.temperature}
    return report, {n: [round(float(v), 2) for v in a[::5]] for n, a in series.items()}


def _load(share: float, seconds: float) -> None:
    """Keep the board busy for a share of the time."""
    import torch

    a = torch.randn(4096, 4096, device="cuda:0")
    until = time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        while time.perf_counter() < min(now + 0.1 * share, until):
            a.matmul(a)
            torch.cuda.synchronize()
        time.sleep(0.1 * (1 - share) if share else min(0.1, max(0.0, until - now)))


def main() -> None:
    """Run the benchmark."""
    args = options(__doc__ or "", _options)
    specs = boards()
    reports: list[Report] = []
    more: dict[str, Any] = {}
    if specs:
        wanted = args.only or PARTS
        if "recorded" in wanted and "torch:cuda:0" in specs:
            reports.append(recorded(args))
        if "latency" in wanted:
            reports.append(latency(args, specs))
        if "energy" in wanted:
            reports.append(energy(args, specs))
        if "heat" in wanted:
            report, more["series"] = heat(args)
            reports.append(report)
    else:
        reports.append(Report("none", "No NVIDIA GPU that an engine here can use", ("placement", "reason"), [
            {"placement": d.spec, "reason": d.reason} for d in found_devices()
            if "cuda" in d.spec.lower()]))  # fmt: skip
    publish(reports, args, "gpu", **more)


def _options(parser: Any) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="of a calibration")
    parser.add_argument("--energy-seconds", type=float, default=2.0, help="of a reading of energy")
    parser.add_argument("--heat", type=float, default=45.0, help="seconds under load")
    parser.add_argument("--cool", type=float, default=25.0, help="seconds without it, and then with half of it")
    parser.add_argument("--only", nargs="*", default=None, choices=PARTS)


if __name__ == "__main__":
    main()
