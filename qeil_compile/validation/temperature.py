"""Power against temperature: leakage curves per process node, and dP/dT of a board whose slope somebody measured.

Sub-threshold leakage in the BSIM form [Liao, He, Lepak, TCAD 24(7), 2005]:

    P_leak(T) = P_leak(T0) (T/T0)^2 exp(a (1/T0 - 1/T)),   T in K

so `ln(I/T^2)` is a line in `1/T` with slope `-a`. The line is fitted by the median of pairwise slopes (Theil-Sen):
published tables hold slips of the pen (a factor of 10 at three points of one curve), which a least-squares line
would follow. `a` is near `q V_th / (n k)`: large for high-threshold cells, small where a floor that does not depend
on temperature (gate leakage) carries most of the current.

The slope of a board is `dP/dT = P_leak(T) (2/T + a/T^2)`. Its leakage is not fitted on the slope that is reported:
it is the static power that AccelWattch fitted on V100 kernels, per die area.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import theilslopes

from qeil_compile.errors import QeilError
from qeil_compile.validation.report import Claim, Point, claim, mape

ZERO_C = 273.15
# Chip facts [NVIDIA: GV100 and GA102 whitepapers]: die area [mm2] and transistors.
V100_AREA, V100_TRANSISTORS = 815.0, 21.1e9
GA102_AREA, GA102_TRANSISTORS = 628.4, 28.3e9
# AccelWattch (SM7_QV100): each of the 31 further lanes of a warp adds this to an INT+FP mix [W].
ADDED_LANE_W = 0.645
REFERENCE_K = ZERO_C + 65.0  # chip temperature of AccelWattch's static power (recalled from the paper: an assumption)
ACCEPTED_ERROR = 10.0  # a curve obeys the form if its fitted points lie on the line within this median error [%]
MEMORY_CELLS = "dram"  # DRAM access transistors tell nothing of logic


@dataclass(frozen=True, slots=True)
class LeakageCurve:
    """`a` [K] of one published curve; `low`, `high` are the 95 % bounds of the slope. `points` were held out.

    `fit_error` is the median error of the fitted points [%]; it alone decides whether a curve obeys the form.
    """

    tech: str
    source: str
    node_nm: float
    a: float
    low: float
    high: float
    fit_error: float
    points: tuple[Point, ...]

    @property
    def error(self) -> float:
        """Median error of the held-out points [%]."""
        return _median_error(np.array([p.measured for p in self.points]), np.array([p.model for p in self.points]))

    @property
    def logic(self) -> bool:
        """Whether these are logic transistors."""
        return MEMORY_CELLS not in self.tech

    @property
    def usable(self) -> bool:
        """Whether these are logic transistors whose fitted points obey the form."""
        return self.logic and self.fit_error <= ACCEPTED_ERROR


def _median_error(measured: np.ndarray, model: np.ndarray) -> float:
    return float(np.median(np.abs(model / measured - 1)) * 100)


def leakage(power: float, reference: float, a: float, temperature: float) -> float:
    """Leakage [W] at `temperature` [K] when it is `power` [W] at `reference` [K]."""
    return power * (temperature / reference) ** 2 * float(np.exp(a * (1 / reference - 1 / temperature)))


def slope(power: float, reference: float, a: float, temperature: float) -> float:
    """Derivative of `leakage` by temperature [W/K]."""
    return leakage(power, reference, a, temperature) * (2 / temperature + a / temperature**2)


def read_curves(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """Rows (T [K], I) of each (source, technology), sorted by T; points without current are left out."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                value = float(row["I_off_or_scale"])
                if value > 0:
                    curves[row["source"], row["tech"]].append((float(row["T_C"]) + ZERO_C, value))
            except (KeyError, TypeError, ValueError) as error:
                raise QeilError(
                    f"{path}, line {number}: expected source, tech, T_C, I_off_or_scale; found {error}"
                ) from None
    return {key: np.array(sorted(rows)) for key, rows in curves.items() if len(rows) >= 3}


def fit_curve(source: str, tech: str, rows: np.ndarray, every: int) -> LeakageCurve:
    """Slope `a` of a curve from each `every`-th point; the points between are predicted."""
    fitted = np.zeros(len(rows), dtype=bool)
    fitted[::every] = True
    temperature, current = rows.T
    line = theilslopes(np.log(current / temperature**2)[fitted], -1 / temperature[fitted], method="joint")
    model = temperature**2 * np.exp(line.intercept - line.slope / temperature)
    points = tuple(
        Point(f"{tech} at {t - ZERO_C:.0f} C", f"{tech} at {t - ZERO_C:.0f} C", y, m)
        for t, y, m in zip(temperature[~fitted], current[~fitted], model[~fitted], strict=True)
    )
    node = float(tech.split("nm")[0])
    fit_error = _median_error(current[fitted], model[fitted])
    return LeakageCurve(tech, source, node, line.slope, line.low_slope, line.high_slope, fit_error, points)


def _span(curves: Sequence[LeakageCurve]) -> tuple[float, float, float]:
    """(a, low, high) [K]: median and extremes of the curves; of a single curve, the bounds of its slope."""
    slopes = [c.a for c in curves]
    if len(curves) == 1:
        return slopes[0], max(0.0, curves[0].low), curves[0].high
    return median(slopes), min(slopes), max(slopes)


def fit_nodes(curves: Sequence[LeakageCurve]) -> dict[float, tuple[float, float, float]]:
    """Node [nm] -> (a, low, high) [K] over its usable curves."""
    nodes: dict[float, list[LeakageCurve]] = defaultdict(list)
    for curve in curves:
        if curve.usable:
            nodes[curve.node_nm].append(curve)
    return {node: _span(those) for node, those in sorted(nodes.items())}


def small_nodes(curves: Sequence[LeakageCurve], below: float = 32.0) -> tuple[float, float, float]:
    """(a, low, high) [K] for nodes finer than any published curve: over the usable curves of nodes up to 32 nm.

    Raises:
        QeilError: there is none.
    """
    those = [c for c in curves if c.usable and c.node_nm <= below]
    if not those:
        raise QeilError(
            f"no leakage curve of a node up to {below:g} nm obeys the form, of {len(curves)} found; expected at least "
            "one to price finer nodes, as in benchmarks/data/leakage"
        )
    return _span(those)


def _coefficients(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _coefficient(rows: Sequence[Mapping[str, str]], name: str, platform: str) -> Mapping[str, str]:
    for row in rows:
        if row["coefficient"].startswith(name) and platform in row["platform"]:
            return row
    raise QeilError(f"no coefficient {name!r} of platform {platform!r}")


def reference_leakage(rows: Sequence[Mapping[str, str]]) -> tuple[float, float, float]:
    """(central, low, high) leakage of GA102 at 65 C [W], from the static power of V100.

    Central: tensor mix, all lanes, per die area. Low: INT+FP mix per die area. High: tensor mix per transistor.
    """
    tensor = float(_coefficient(rows, "P_static_first_lane_tensor", "V100")["value"])
    scalar = float(_coefficient(rows, "P_static_first_lane_int_fp", "V100")["value"]) + 31 * ADDED_LANE_W
    area = GA102_AREA / V100_AREA
    return tensor * area, scalar * area, tensor * GA102_TRANSISTORS / V100_TRANSISTORS


def _held_out_claim(curves: Sequence[LeakageCurve], goal: float = ACCEPTED_ERROR) -> Claim:
    """Every logic curve counts, also those that do not obey the form; the median forgives the tables their slips."""
    logic = [c for c in curves if c.logic]
    note = "; ".join(f"{c.tech}: a {c.a:.0f} K ({c.low:.0f}-{c.high:.0f}), {c.error:.1f} %" for c in logic)
    refused = ", ".join(c.tech for c in logic if not c.usable)
    if refused:
        note += f". Fitted points are not on the line (a floor, or slips in the table), a not used: {refused}"
    points = [p for c in logic for p in c.points]
    mean = mape(np.array([p.measured for p in points]), np.array([p.model for p in points]))
    note += f". Mean instead of median: {mean:.1f} %"
    return claim(
        "leakage at held-out temperatures",
        "leakage",
        goal,
        points,
        metric=_median_error,
        metric_name="median APE",
        note=note,
    )


def _slope_claims(
    curves: Sequence[LeakageCurve], rows: Sequence[Mapping[str, str]], split: Mapping[str, Any]
) -> list[Claim]:
    """The board with the `a` of its own node, and as if its leakage had the `a` of every other node."""
    measured = _coefficient(rows, "dP/dT", split["device"])
    low, high, value = float(measured["low"]), float(measured["high"]), float(measured["value"])
    middle = ZERO_C + sum(split["window_C"]) / 2
    power, least, most = reference_leakage(rows)
    a, a_low, a_high = small_nodes(curves)
    span = slope(least, REFERENCE_K, a_low, middle), slope(most, REFERENCE_K, a_high, middle)

    def row(name: str, nodes: Mapping[str, float], note: str) -> Claim:
        points = [Point(n, split["device"], value, slope(power, REFERENCE_K, s, middle)) for n, s in nodes.items()]
        note += " Model [W/K]: " + ", ".join(f"{p.name} {p.model:.2f}" for p in points)
        share = 100.0 * sum(low <= p.model <= high for p in points) / len(points)
        name, dataset = f"dP/dT of the {split['device']} inside the quartiles, {name}", "coefficients, leakage"
        return Claim(name, dataset, "share inside", "%", 100.0, share, {}, tuple(points), note, higher_is_better=True)

    own = (
        f"Measured {value} W/K ({low}-{high}). Leakage {power:.0f} W ({least:.0f}-{most:.0f}) at 65 C from the static "
        f"power of V100 per die area; no published curve of {split['node_nm']} nm, so a = {a:.0f} K "
        f"({a_low:.0f}-{a_high:.0f}) of logic up to 32 nm; over both ranges {span[0]:.2f}-{span[1]:.2f} W/K."
    )
    return [
        row("its own node", {f"{split['node_nm']} nm": a}, own),
        row("a of each published node", {f"{n:g} nm": v[0] for n, v in fit_nodes(curves).items()}, "As if."),
    ]


def leakage_table(curves: Sequence[LeakageCurve]) -> dict[str, dict[str, float | str]]:
    """Node -> slope `a` [K] with its range and source, for device profiles."""
    fitted = "fitted on the logic curves of this node in benchmarks/data/leakage"
    table: dict[str, dict[str, float | str]] = {
        f"{node:g}nm": {"a": round(a), "low": round(low), "high": round(high), "source": fitted}
        for node, (a, low, high) in fit_nodes(curves).items()
    }
    a, low, high = small_nodes(curves)
    source = "no published curve below 22 nm: median and span of the logic curves up to 32 nm"
    return table | {"default": {"a": round(a), "low": round(low), "high": round(high), "source": source}}


def evaluate(data: Path, splits: Mapping[str, Any], fit_data: Path) -> list[Claim]:
    """Claims on leakage at held-out temperatures and on dP/dT; a claim whose files are missing is left out.

    Raises:
        QeilError: a file is malformed, or lacks the rows that the reference leakage comes from.
    """
    path, coefficients = data / splits["leakage"], fit_data / splits["coefficients"]
    if not path.exists():
        return []
    every = int(splits["fit_every"])
    curves = [fit_curve(source, tech, rows, every) for (source, tech), rows in read_curves(path).items()]
    claims = [_held_out_claim(curves)]
    if coefficients.exists():
        claims += _slope_claims(curves, _coefficients(coefficients), splits)
    return claims
