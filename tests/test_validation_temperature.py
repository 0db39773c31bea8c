"""Leakage against temperature: recovery of a known slope, held-out points, the board whose slope was measured."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from qeil_compile.errors import QeilError
from qeil_compile.validation.temperature import (
    ZERO_C,
    evaluate,
    fit_curve,
    fit_nodes,
    leakage,
    leakage_table,
    read_curves,
    reference_leakage,
    slope,
    small_nodes,
)

DATA = Path(__file__).parents[1] / "benchmarks" / "data"
SPLIT = tomllib.loads(files("qeil_compile.validation").joinpath("splits.toml").read_text("utf-8"))[
    "temperature"
]
HEADER = "source,tech,T_C,I_off_or_scale,unit\n"


def curve(a: float, slip_at: int | None = None) -> np.ndarray:
    """Current of a device with slope `a` over 27-127 C; one value ten times too large at `slip_at`."""
    temperature = np.arange(27, 128, 10) + ZERO_C
    current = np.array([leakage(1e-9, 300.0, a, t) for t in temperature])
    if slip_at is not None:
        current[slip_at] *= 10
    return np.column_stack([temperature, current])


def test_leakage_has_its_reference_value_and_its_slope_is_the_derivative() -> None:
    assert leakage(5.0, 330.0, 3000.0, 330.0) == 5.0
    numeric = (leakage(5.0, 330.0, 3000.0, 340.001) - leakage(5.0, 330.0, 3000.0, 339.999)) / 0.002
    assert slope(5.0, 330.0, 3000.0, 340.0) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("a", [300.0, 1200.0, 4000.0])
@pytest.mark.parametrize("slip", [None, 4])
def test_fit_recovers_the_slope_through_a_slip_of_the_pen(a: float, slip: int | None) -> None:
    found = fit_curve("made", "10nm hp", curve(a, slip), 2)
    assert found.a == pytest.approx(a, rel=0.02)
    assert found.usable
    assert found.node_nm == 10
    assert found.error < 1


def test_held_out_points_do_not_enter_the_fit() -> None:
    rows = curve(2000.0)
    spoilt = rows.copy()
    spoilt[1::2, 1] *= 3
    before, after = fit_curve("made", "10nm hp", rows, 2), fit_curve("made", "10nm hp", spoilt, 2)
    assert after.a == before.a
    assert [p.model for p in after.points] == [p.model for p in before.points]
    assert after.error == pytest.approx(200 / 3, rel=0.01)


def test_a_curve_with_a_floor_is_refused_by_its_fitted_points_alone() -> None:
    rows = curve(9000.0)
    rows[:, 1] += rows[5, 1]
    refused = fit_curve("made", "10nm hp", rows, 2)
    assert not refused.usable
    assert fit_nodes([refused]) == {}
    with pytest.raises(QeilError, match="no leakage curve of a node up to 32 nm"):
        small_nodes([refused])


def test_memory_cells_tell_nothing_of_logic() -> None:
    curves = [fit_curve("made", tech, curve(a), 2) for tech, a in (("10nm hp", 1000.0), ("10nm lp-dram", 5000.0))]
    assert fit_nodes(curves)[10][0] == pytest.approx(1000, rel=0.01)
    assert set(leakage_table(curves)) == {"10nm", "default"}


def test_reference_leakage_scales_with_the_die() -> None:
    rows = [
        {"coefficient": "P_static_first_lane_tensor", "platform": "V100", "value": "50"},
        {"coefficient": "P_static_first_lane_int_fp", "platform": "V100", "value": "20"},
    ]
    central, low, high = reference_leakage(rows)
    assert central == pytest.approx(50 * 628.4 / 815)
    assert low < central < high
    with pytest.raises(QeilError, match="no coefficient 'P_static_first_lane_int_fp'"):
        reference_leakage(rows[:1])


def test_real_curves_and_the_measured_board() -> None:
    held_out, own, nodes = evaluate(DATA, SPLIT, DATA)
    assert held_out.met
    assert own.met
    assert 0.35 <= own.points[0].model <= 1.77
    assert len(nodes.points) >= 5
    curves = read_curves(DATA / SPLIT["leakage"])
    for (source, tech), rows in curves.items():
        points = fit_curve(source, tech, rows, SPLIT["fit_every"]).points
        assert len(points) == len(rows) // 2
        assert {p.measured for p in points} == set(rows[1::2, 1])


def test_missing_files_give_fewer_claims(tmp_path: Path) -> None:
    assert evaluate(tmp_path, SPLIT, DATA) == []
    (tmp_path / "leakage").mkdir()
    (tmp_path / SPLIT["leakage"]).write_bytes((DATA / SPLIT["leakage"]).read_bytes())
    assert [c.name for c in evaluate(tmp_path, SPLIT, tmp_path)] == ["leakage at held-out temperatures"]


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    path.write_text(HEADER + "x,10nm hp,27,hot,A\n")
    with pytest.raises(QeilError, match=r"curves\.csv, line 2: expected .* found could not convert .*hot"):
        read_curves(path)
    path.write_text("source,tech,temperature\nx,10nm hp,27\n")
    with pytest.raises(QeilError, match="line 2"):
        read_curves(path)
