"""Recordings of devices that heat up, and thermal models fitted to them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import ROOT, Report
from scipy.optimize import least_squares

DATA = ROOT / "benchmarks" / "data"
#: Recorded processors, and what is taken as T_max [C] of each: no data sheet is in the recordings (assumed).
MACHINES = {
    "threadripper-1950x": 68.0,
    "xeon-e3-1240v2-first": 105.0,
    "xeon-e3-1240v2-second": 105.0,
    "xeon-e5-2620v3": 90.0,
}
#: The recorded GPU, by its name in the catalogue.
GPU = "rtx-4060-laptop"


@dataclass(frozen=True)
class Recording:
    """Times [s] from the first reading on, temperatures [C] and powers [W] at them, float64[n]."""

    times: np.ndarray
    temperature: np.ndarray
    power: np.ndarray


@dataclass(frozen=True)
class TwoStage:
    """A die on a cooler: R_th [K/W] and time constant [s] of each, ambient [C], their rises [K] at the beginning."""

    die: float
    die_tau: float
    cooler: float
    cooler_tau: float
    ambient: float
    die_rise: float
    cooler_rise: float

    def predicted(self, recording: Recording) -> np.ndarray:
        """Temperatures [C] at the times of a recording, float64[n]; power changes half-way between them."""
        die = _followed(self.die, self.die_tau, self.die_rise, recording)
        return self.ambient + die + _followed(self.cooler, self.cooler_tau, self.cooler_rise, recording)


def processor(name: str, kind: str) -> Recording:
    """A recording of codecarbon: temperature in the middle of each phase, mean power of it; `kind` of cores."""
    return _read(DATA / "codecarbon" / f"{name}-{kind}-cores.csv", "timestamp", "temperature", "rapl_power")


def gpu(which: str) -> Recording:
    """The "first" or the "second" recording of `GPU`: a reading of NVML each second, five minutes of load."""
    return _read(DATA / "llm_gpu_stress" / f"{GPU}-{which}.csv", "time", "temperature_C", "power_draw_W")


def _read(path: Path, *columns: str) -> Recording:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    times, temperature, power = (np.array([_number(r[c]) for r in rows]) for c in columns)
    return Recording(times - times[0], temperature, power)


def _number(text: str) -> float:
    """A number, or the seconds of a time of day."""
    return sum(float(part) * 60**k for k, part in enumerate(reversed(text.split(":"))))


def _followed(resistance: float, tau: float, start: float, recording: Recording) -> np.ndarray:
    """Rise [K] over what a first-order RC stage stands on."""
    found, rise = [start], start
    for k in range(1, len(recording.times)):
        half = np.exp(-(recording.times[k] - recording.times[k - 1]) / 2 / tau)
        for power in recording.power[k - 1 : k + 1]:
            rise = resistance * power + (rise - resistance * power) * half
        found.append(rise)
    return np.array(found)


def predicted(resistance: float, tau: float, ambient: float, start: float, recording: Recording) -> np.ndarray:
    """Temperatures [C] of the first-order RC model of `passes.thermal` at the times of a recording, float64[n]."""
    return ambient + _followed(resistance, tau, start - ambient, recording)


def fit(recording: Recording) -> np.ndarray:
    """R_th [K/W], tau [s], ambient [C] and first temperature [C]. Recorded power holds its leakage already."""

    def errors(p: np.ndarray) -> np.ndarray:
        return predicted(*p, recording) - recording.temperature

    first = float(recording.temperature[0])
    bounds = [1e-3, 0.5, 0.0, 0.0], [10.0, 2000.0, 120.0, 120.0]
    return min((least_squares(errors, [0.3, tau, 30.0, first], bounds=bounds) for tau in (5.0, 30.0, 100.0)),
               key=lambda r: r.cost).x  # fmt: skip


def fit_two_stage(recording: Recording) -> TwoStage:
    """The same with two stages: readings each second show the die's own rise, some seconds long."""

    def errors(p: np.ndarray) -> np.ndarray:
        return TwoStage(*p).predicted(recording) - recording.temperature

    bounds = [0.0, 0.1, 0.0, 10.0, 0.0, -50.0, -50.0], [5.0, 20.0, 5.0, 2000.0, 80.0, 80.0, 80.0]
    first = float(recording.temperature[0])
    found = least_squares(errors, [0.2, 2.0, 0.7, 100.0, first - 5.0, 0.0, 5.0], bounds=bounds).x
    return TwoStage(*(float(v) for v in found))


def rms(errors: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(errors**2)))


def processor_fits(machines: Sequence[str]) -> tuple[Report, dict[str, np.ndarray]]:
    """The table of fits of the first-order model, and the parameters by machine."""
    columns = ("machine", "R_th [K/W]", "tau [s]", "ambient [C]", "fitted: rms [K]", "worst [K]",
               "not fitted: rms [K]", "worst, not fitted [K]", "recorded: spread [K]")  # fmt: skip
    report = Report("fits", "RC model of recorded processors (fitted on all cores, predicted for some cores)", columns)
    found = {}
    for name in machines:
        seen, other = (processor(name, kind) for kind in ("all", "some"))
        r, tau, ambient, start = found[name] = fit(seen)
        mine = predicted(r, tau, ambient, start, seen) - seen.temperature
        its = predicted(r, tau, ambient, float(other.temperature[0]), other) - other.temperature
        report.rows.append({
            "machine": name, "R_th [K/W]": r, "tau [s]": tau, "ambient [C]": ambient, "fitted: rms [K]": rms(mine),
            "worst [K]": float(abs(mine).max()), "not fitted: rms [K]": rms(its[1:]),
            "worst, not fitted [K]": float(abs(its).max()),
            "recorded: spread [K]": float(np.ptp(other.temperature)),
        })  # fmt: skip
    report.notes = [
        "A tau of 0.5 s is the bound of the fit: those dies settle within the 31 s between two readings.",
        "Fans answered to temperature in the recordings; the model has one constant resistance.",
    ]
    return report, found


def gpu_fits() -> tuple[Report, TwoStage]:
    """The table of the GPU's fit and of what it predicts of the other recording, and the fit."""
    columns = ("recording", "used for", "readings", "mean power under load [W]", "first [C]", "greatest [C]", "rms [K]",
               "worst [K]")  # fmt: skip
    report = Report("gpu fit", f"Die and cooler fitted to a recorded {GPU} that heats up (NVML, one reading a second)",
                    columns)  # fmt: skip
    first, second = gpu("first"), gpu("second")
    found = fit_two_stage(first)
    # Another day, another start: of the second recording only the cooler's rise at its beginning is taken.
    start = float(np.median(second.temperature[:2])) - found.ambient - found.die * float(second.power[0])
    other = TwoStage(**{**vars(found), "die_rise": found.die * float(second.power[0]), "cooler_rise": start})
    for name, recording, model in (("first", first, found), ("second", second, other)):
        errors = model.predicted(recording) - recording.temperature
        loaded = recording.power > recording.power.max() / 2
        report.rows.append({
            "recording": name, "used for": "the fit" if model is found else "nothing but its start",
            "readings": len(recording.times), "mean power under load [W]": float(recording.power[loaded].mean()),
            "first [C]": float(recording.temperature[0]), "greatest [C]": float(recording.temperature.max()),
            "rms [K]": rms(errors), "worst [K]": float(abs(errors).max()),
        })  # fmt: skip
    report.notes = [
        f"die {found.die:.2f} K/W, {found.die_tau:.1f} s; cooler {found.cooler:.2f} K/W, {found.cooler_tau:.0f} s; "
        f"ambient {found.ambient:.0f} C, which is the inside of a laptop (calibrated in this run)",
        "Readings are whole degrees, and single ones lie 2 to 3 K off their neighbours.",
    ]
    return report, found
