"""Energy per token: known coefficients are found again, families never leak, damaged files say what is wrong."""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile.errors import QeilError
from qeil_compile.validation.report import Claim
from qeil_compile.validation.token_energy import evaluate, leave_out, price
from qeil_compile.validation.token_model import ENERGY, FORMS, TIME, choose_form, fit, step_seconds, token_joules
from qeil_compile.validation.token_runs import (
    Runs,
    family_of,
    gpu_specs,
    guess_shape,
    read_configurations,
    read_runs,
    shapes,
    spec_of,
)

DATA = Path(__file__).parents[1] / "benchmarks" / "data"
ALL_TERMS = list(FORMS)[-1]
TRUE = {"c_const": 0.3, "c_flop": 0.55, "c_weight": 0.2, "c_value": 0.35, "c_cache": 0.8, "c_act": 60.0}
TRUE_TIME = {"s_layer": 5e-5, "s_token": 1e-5, "eta_weight": 0.85, "eta_cache": 0.6, "eta_flop": 0.7}
KNOWN = {k: v[0] for k, v in (ENERGY | TIME).items()} | TRUE | TRUE_TIME
MODELS = (
    ("Q/Qwen3-8B", 8),
    ("Q/Qwen3-14B", 14),
    ("M/Llama-3.1-8B", 8.03),
    ("G/gemma-3-12b-it", 12),
    ("G/gemma-3-27b", 27),
)


def split() -> dict[str, Any]:
    folder = files("qeil_compile.validation")
    tables = [tomllib.loads(p.read_text()) for p in folder.iterdir() if p.name.startswith("splits")]
    return next(t["tokens"] for t in tables if "tokens" in t)


def row(model: str, params: float, batch: float, **changes: Any) -> dict[str, Any]:
    return {
        "model_id": model,
        "gpu_model": "H100",
        "weight_precision": "bfloat16",
        "architecture": "Dense Transformer",
        "energy_per_token_joules": 1.0,
        "avg_power_watts": 400.0,
        "median_itl_ms": 10.0,
        "avg_batch_size": batch,
        "output_throughput_tokens_per_sec": batch / 0.01,
        "avg_output_len": 500.0,
        "num_gpus": 1,
        "activated_params_billions": params,
        "total_params_billions": params,
    } | changes


def write(folder: Path, rows: Any, task: str = "chat") -> Path:
    (folder / "mlenergy").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"task": task, "configurations": rows}).encode()
    (folder / "mlenergy" / f"{task}.json.gz").write_bytes(gzip.compress(text))
    return folder


def specs() -> list[dict[str, str]]:
    return gpu_specs(DATA / "devices" / "devices.csv")


def read(folder: Path) -> Runs:
    return read_runs(folder / "mlenergy", specs(), split()["family"])[0]


def synthetic(folder: Path, gpu: str = "H100") -> Runs:
    """Runs whose times and energies follow the equations exactly, with the coefficients KNOWN and prompts of 300."""
    rows = [
        row(m, p, b, avg_output_len=out, gpu_model=gpu)
        for m, p in MODELS
        for b in (4, 16, 64, 200)
        for out in (300.0, 4000.0)
    ]
    runs = read(write(folder, rows))
    prompt = np.full(len(runs), 300.0)
    seconds = step_seconds(KNOWN, runs, prompt)
    joules = token_joules(KNOWN, runs, prompt, seconds)
    watts = joules * runs.batch / seconds
    return replace(runs, energy=joules, mean=seconds, median=seconds, watts=watts)


def rows_of(runs: Runs, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        r
        | {
            "energy_per_token_joules": float(runs.energy[i]),
            "avg_power_watts": float(runs.watts[i]),
            "median_itl_ms": float(runs.median[i] * 1e3),
            "output_throughput_tokens_per_sec": float(runs.batch[i] / runs.mean[i]),
        }
        for i, r in enumerate(rows)
    ]


# -- the equations


def test_known_coefficients_are_found_again(tmp_path: Path) -> None:
    runs = synthetic(tmp_path)
    found = fit(runs, ALL_TERMS, "mean", {"other": 500.0})
    prompt = found.prompts(runs, {"other": 500.0})
    assert token_joules(found.values, runs, prompt, runs.mean) == pytest.approx(runs.energy, rel=0.02)
    assert step_seconds(found.values, runs, prompt) == pytest.approx(runs.mean, rel=0.03)
    assert found.values["c_const"] == pytest.approx(TRUE["c_const"], rel=0.15)
    assert found.values["c_cache"] == pytest.approx(TRUE["c_cache"], rel=0.15)
    both = found.values["c_weight"] + found.values["c_value"]  # 16-bit weights tell their sum only
    assert both == pytest.approx(TRUE["c_weight"] + TRUE["c_value"], rel=0.15)
    assert prompt[0] == pytest.approx(300, rel=0.35)


def test_the_share_form_is_the_energy_equation(tmp_path: Path) -> None:
    """E = t P_const + W e_f + Q e_m in joules, for one dense run without prompt."""
    runs = read(write(tmp_path, [row("Q/Qwen3-8B", 8, 16)]))
    p = {"c_const": 0.3, "c_flop": 0.5, "c_weight": 0.4, "c_cache": 0.4, "c_value": 0.0, "c_act": 0.0, "x_scaled": 1.0}
    prompt = np.zeros(1)
    e_f = price("c_flop", 0.5, 700, 989.4e12, 3.35e12)
    e_m = price("c_weight", 0.4, 700, 989.4e12, 3.35e12)
    cache = 2 * 2048 * 36 * 250  # bf16 keys and values of 36 layers, half of the answer
    work = 2 * 8e9 + 4 * 4096 * 36 * 250
    expected = 0.01 / 16 * 0.3 * 700 + work * e_f + (16e9 / 16 + cache) * e_m
    assert token_joules(p, runs, prompt, runs.mean)[0] == pytest.approx(expected)


def test_power_never_passes_the_tdp(tmp_path: Path) -> None:
    runs = synthetic(tmp_path)
    hot = KNOWN | {"c_flop": 50.0}
    joules = token_joules(hot, runs, np.full(len(runs), 300.0), runs.mean)
    assert np.max(joules * runs.batch / runs.mean) == pytest.approx(700)


def test_experts_touched_and_waiting(tmp_path: Path) -> None:
    moe = {"architecture": "MoE", "total_params_billions": 30.0, "num_gpus": 2}
    rows = [row("Qwen/Qwen3-30B-A3B", 3.0, b, **moe) for b in (1, 8, 10_000)]
    runs = read(write(tmp_path, rows))
    one = 27e9 / 120
    assert runs.values[0] == pytest.approx(3e9)  # one token reads the activated weights
    assert runs.values[1] == pytest.approx(3e9 - 8 * one + 128 * one * (1 - (1 - 8 / 128) ** 8))
    assert runs.values[2] == pytest.approx(30e9)  # a large batch reads all
    assert runs.busy[1] < runs.busy[2] == pytest.approx(1)
    assert read(write(tmp_path, [row("Qwen/Qwen3-30B-A3B", 3.0, 8, **(moe | {"num_gpus": 1}))])).busy[0] == 1


def test_stored_bytes_by_precision(tmp_path: Path) -> None:
    rows = [row("meta-llama/Llama-3.1-405B-FP8", 405.0, 8, weight_precision=p) for p in ("bfloat16", "fp8")]
    rows.append(row("Qwen/Qwen3-235B-A22B-FP8", 22.0, 8, weight_precision="fp8", total_params_billions=235.0))
    runs = read(write(tmp_path, rows))
    assert runs.weights[0] == 2 * runs.weights[1] == 810e9
    assert runs.peak[1] == 2 * 989.5e12
    assert runs.scaled[1] == 0 and runs.scaled[2] == runs.values[2]  # one scale per block only in the second checkpoint


def test_a_window_bounds_the_cache(tmp_path: Path) -> None:
    runs = read(write(tmp_path, [row("google/gemma-3-27b-it", 27, 8), row("Q/Qwen3-32B", 32, 8)]))
    assert runs.window.tolist() == [1024.0, 0.0]
    assert runs.cache_local[0] == 52 * 2 * 4096 and runs.cache_local[1] == 0


def test_an_unknown_model_falls_back_on_its_parameters(tmp_path: Path) -> None:
    runs = read(write(tmp_path, [row("new/thing", 8, 8), row("new/experts", 8, 8, total_params_billions=80.0)]))
    assert not runs.known.any()
    assert runs.layers[0] == guess_shape(8e9)["layers"] == 33
    assert 8e9 < runs.values[1] < 80e9


def test_prompts_of_a_task_outside_the_fit_come_from_times(tmp_path: Path) -> None:
    runs = synthetic(tmp_path)
    found = fit(runs, ALL_TERMS, "mean", {"other": 300.0})
    unseen = replace(runs, task=np.full(len(runs), "other task"))
    wrong = replace(unseen, energy=unseen.energy * 7)
    assert found.prompts(unseen, {"other": 77.0})[0] == 77
    assert found.prompts(unseen, {"other": 77.0}, timed=unseen)[0] == pytest.approx(300, rel=0.35)
    assert (found.prompts(wrong, {"other": 1.0}, wrong) == found.prompts(unseen, {"other": 1.0}, unseen)).all()


@pytest.mark.parametrize("waits", [True, False])
def test_inner_cross_validation_finds_the_form(tmp_path: Path, waits: bool) -> None:
    """Mixtures of experts on eight GPUs whose energy is made with one form or the other."""
    models = (("Q/Qwen3-30B-A3B", 3, 30), ("M/Llama-4-Scout", 17, 109), ("M/Llama-4-Maverick", 17, 400))
    rows = [
        row(m, a, b, total_params_billions=t, num_gpus=n)
        for m, a, t in models
        for b in (4, 16, 64, 256)
        for n in (2, 8)
    ]
    runs = read(write(tmp_path, rows))
    prompt = np.full(len(runs), 300.0)
    seconds = step_seconds(KNOWN, runs, prompt)
    law = KNOWN if waits else {k: v for k, v in KNOWN.items() if k != "c_wait"}
    runs = replace(runs, energy=token_joules(law, runs, prompt, seconds), mean=seconds, median=seconds)
    assert choose_form(runs, "mean", {"other": 300.0}) == list(FORMS)[waits]


# -- the split


def test_a_left_out_family_has_no_influence() -> None:
    """Real runs: with energies and times of one family doubled, only the predictions of the others move."""
    runs = read(DATA)
    runs = runs.take(np.isin(runs.family, sorted(set(runs.family[runs.architecture == "Dense Transformer"]))[:4]))
    family = str(runs.family[0])
    twice = np.where(runs.family == family, 2.0, 1.0)
    spoilt = replace(runs, energy=runs.energy * twice, mean=runs.mean * twice)
    clean, dirty = (list(leave_out(runs, fit_runs, "mean", 2)) for fit_runs in (runs, spoilt))
    for one, two in zip(clean, dirty, strict=True):
        moved = np.max(np.abs(two.modelled / one.modelled - 1))
        assert moved == 0 if one.runs.family[0] == family else moved > 0.01


def test_variants_of_one_shape_are_one_family() -> None:
    runs = read(DATA)
    names = {m: set(runs.family[[m in n for n in runs.name]]) for m in ("30B-A3B", "235B-A22B", "3.1-70B", "3.3-70B")}
    assert all(len(v) == 1 for v in names.values())
    assert names["3.1-70B"] == names["3.3-70B"]
    assert len(set(runs.family)) == 16
    assert runs.known.all()


def test_split_names_a_wrong_field() -> None:
    with pytest.raises(QeilError, match="family has 'colour'"):
        family_of(row("a/b", 1, 1), ["colour"])


# -- claims


def claims_of(folder: Path, fit_folder: Path) -> dict[str, Claim]:
    return {c.name.removeprefix("energy per token, model left out: "): c for c in evaluate(folder, split(), fit_folder)}


def test_claims_on_runs_that_follow_the_equation(tmp_path: Path) -> None:
    runs = synthetic(tmp_path / "h")
    rows = json.loads(gzip.decompress((tmp_path / "h" / "mlenergy" / "chat.json.gz").read_bytes()))["configurations"]
    folder = write(tmp_path / "h", rows_of(runs, rows))
    (folder / "devices").mkdir()
    (folder / "devices" / "devices.csv").write_bytes((DATA / "devices" / "devices.csv").read_bytes())
    fast = runs.take(runs.batch < 100)
    b200 = write(tmp_path / "b", [r | {"gpu_model": "B200"} for r in rows_of(runs, rows) if r["avg_batch_size"] < 100])
    claims = claims_of(folder, folder)
    assert set(claims) == {
        f"{kind}, {how}"
        for kind in ("dense", "dense and MoE")
        for how in ("median step time measured", "mean step time measured", "step time modelled")
    }
    for c in claims.values():
        assert c.met and c.value < 5 and set(c.baselines) == {"roofline", "constant_power", "tdp"}
        assert c.baselines["constant_power"] > c.value
        assert len(c.points) == len(runs)
    moved = claims_of(b200, folder)["dense, mean step time measured"]
    assert "no own fit of B200" in moved.note and len(moved.points) == len(fast)


def test_missing_files_skip_the_row(tmp_path: Path) -> None:
    assert evaluate(tmp_path, split(), DATA) == []
    assert evaluate(DATA, split(), tmp_path) == []
    images = [{"energy_per_image_joules": 1.0}]
    assert evaluate(write(tmp_path, images), split(), DATA) == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"a": 1}, "`configurations` is dict"),
        (["x"], "run 0 is str"),
        ([row("a/b", 8, 8, avg_batch_size=None)], "`avg_batch_size` is None, expected a number above 0"),
        ([row("a/b", 8, 8, median_itl_ms=-1)], "`median_itl_ms` is -1"),
        ([row("a/b", 8, 8, model_id=3)], "`model_id` is 3"),
    ],
)
def test_damaged_runs_are_named(tmp_path: Path, rows: Any, says: str) -> None:
    with pytest.raises(QeilError, match=says):
        read_configurations(write(tmp_path, rows) / "mlenergy")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, []) / "mlenergy" / "chat.json.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(QeilError, match=r"chat\.json\.gz: not a gzip-compressed JSON file"):
        read_configurations(path.parent)


def test_unknown_gpus_and_precisions_are_left_out_by_name(tmp_path: Path) -> None:
    strange = [row("a/b", 8, 8, gpu_model="Z9"), row("a/b", 8, 8, weight_precision="int3")]
    with pytest.raises(QeilError, match="Z9, int3"):
        read(write(tmp_path, strange))
    runs, missing = read_runs(write(tmp_path, [*strange, row("a/b", 8, 8)]) / "mlenergy", specs(), split()["family"])
    assert len(runs) == 1 and missing == ["Z9", "int3"]


def test_a_split_without_a_key_is_refused() -> None:
    table: Mapping[str, Any] = {k: v for k, v in split().items() if k != "goal_all"}
    with pytest.raises(QeilError, match="no key goal_all"):
        evaluate(DATA, table, DATA)


def test_gpu_rows_by_word() -> None:
    rows = [{"name": n, "tdp_W": t} for n, t in (("X H100 PCIe", "350"), ("X H100 SXM5", "700"), ("X H1000", "900"))]
    found = spec_of("H100", rows)
    assert found is not None and found["tdp_W"] == "700"
    assert spec_of("B200", rows) is None


def test_shapes_name_each_model_once() -> None:
    table, prompts = shapes()
    assert len({m["name"] for m in table}) == len(table)
    assert all(v > 0 for v in prompts.values()) and "other" in prompts
