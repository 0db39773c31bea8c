"""Energy per token of served language models, one model left out: does the energy equation hold for an unseen model?

Measurements: steady serving runs of the ML.ENERGY leaderboard (`mlenergy/*.json.gz`; GPU energy by NVML). A family of
models with weights of one shape is left out with all its runs (splits.toml), the equation of token_model.py is fitted
on the others, and the left-out family is reported. Six rows, for dense models and for all of them:

- "median step time measured": the run's median inter-token time enters. It leaves out the steps that prompts delay, so
  the equation must also find the prompts' energy;
- "mean step time measured": batch over throughput enters. This is the energy equation alone, power against rates;
- "step time modelled": nothing measured enters but batch, GPUs, precision, answer length and the model's shape.

Baselines: `roofline` is the energy roofline of Choi et al. (IPDPS 2013), unfitted: W e_f + Q e_m + P_const t of a naive
roofline (decode only, prompts unknown), with data-sheet-like coefficients of a Hopper module; `constant_power` is the
mean share of TDP of the fit part, times the row's step time; `tdp` is the naive roofline time at TDP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import QeilError
from qeil_compile.validation.report import Claim, Point, claim
from qeil_compile.validation.token_model import PROMPT, Fit, cache_bytes, choose_form, fit, step_seconds, token_joules
from qeil_compile.validation.token_runs import Runs, gpu_specs, read_runs, shapes

#: Unfitted coefficients of the roofline baseline as shares: 120 W of 700 W, 0.62 pJ/FLOP at 989.4 TFLOP/s and
#: 60 pJ/B at 3.35 TB/s (as in the shipped Hopper profile: data-sheets and HBM literature).
ROOFLINE = {"const": 120 / 700, "flop": 0.62e-12 * 989.4e12 / 700, "byte": 60e-12 * 3.35e12 / 700}
DATASET = "mlenergy"
ROWS = (("median", "median step time measured"), ("mean", "mean step time measured"), ("", "step time modelled"))


@dataclass(frozen=True)
class Left:
    """What a fit that never saw them says of some runs: joules per token for measured and for modelled step times."""

    runs: Runs
    fit: Fit
    transferred: bool
    given: np.ndarray
    modelled: np.ndarray
    seconds: np.ndarray
    share: float


def evaluate(data: Path, splits: Mapping[str, Any], fit_data: Path) -> list[Claim]:
    """Claims on the runs below `data`, fitted on those below `fit_data`; [] where files are missing.

    Args:
        data: folder with `mlenergy/*.json.gz`; `devices/devices.csv` is read here or, if absent, below `fit_data`.
        splits: the table `tokens` of the split file.
        fit_data: folder of the same layout.

    Raises:
        QeilError: a file is malformed.
    """
    tables = [p for p in (data / "devices" / "devices.csv", fit_data / "devices" / "devices.csv") if p.is_file()]
    if not tables or not all(list((d / DATASET).glob("*.json.gz")) for d in (data, fit_data)):
        return []
    needed = {"family", "dense", "goal_dense", "goal_all", "families_for_own_fit"}
    if needed - set(splits):
        raise QeilError(
            f"split table of tokens: no key {min(needed - set(splits))}; it needs {', '.join(sorted(needed))}"
        )
    specs = gpu_specs(tables[0])
    runs, missing = read_runs(data / DATASET, specs, splits["family"])
    fit_runs, _ = read_runs(fit_data / DATASET, specs, splits["family"])
    found = []
    for name, kinds, goal in (("dense", splits["dense"], "goal_dense"), ("dense and MoE", None, "goal_all")):
        part, fit_part = _only(runs, kinds), _only(fit_runs, kinds)
        if len(part) and len(fit_part):
            found += _claims(name, splits[goal], part, fit_part, missing, splits["families_for_own_fit"])
    return found


def _only(runs: Runs, kinds: Sequence[str] | None) -> Runs:
    return runs if kinds is None else runs.take(np.isin(runs.architecture, kinds))


def _claims(name: str, goal: float, part: Runs, fit_part: Runs, missing: list[str], own: int) -> list[Claim]:
    """The three rows of one part."""
    left = {clock: list(leave_out(part, fit_part, clock, own)) for clock in ("median", "mean")}
    rows = []
    for clock, says in ROWS:
        lefts = left[clock or "mean"]
        points = [p for one in lefts for p in _points(one, clock)]
        note = _note(lefts, clock, missing)
        rows.append(claim(f"energy per token, model left out: {name}, {says}", DATASET, goal, points, note=note))
    return rows


def leave_out(part: Runs, fit_part: Runs, clock: str, own: int) -> Iterator[Left]:
    """Every family of `part` by a fit on the other families of `fit_part`, GPU by GPU.

    A GPU is fitted on its own runs if the fit part has `own` families on it; else on all runs, its prices being shares
    of its TDP and roofs.
    """
    _, lengths = shapes()
    done: dict[bytes, Fit] = {}
    for family in sorted(set(part.family)):
        for gpu in sorted(set(part.gpu[part.family == family])):
            mask = fit_part.family != family
            on_gpu = mask & (fit_part.gpu == gpu)
            enough = len(set(fit_part.family[on_gpu])) >= own
            mask = on_gpu if enough else mask
            if not mask.any():
                raise QeilError(f"energy per token: nothing to fit on is left without {family}; give more models")
            fit_runs = fit_part.take(mask)
            key = mask.tobytes()
            if key not in done:
                form = choose_form(fit_runs, clock, lengths)
                done[key] = fit(fit_runs, form, clock, lengths)
            runs = part.take((part.family == family) & (part.gpu == gpu))
            yield _left(runs, part, fit_runs, done[key], clock, lengths, not enough)


def _left(
    runs: Runs, part: Runs, fit_runs: Runs, fitted: Fit, clock: str, lengths: Mapping[str, float], transferred: bool
) -> Left:
    prompt = fitted.prompts(runs, lengths)
    seconds = step_seconds(fitted.values, runs, prompt)
    given = token_joules(fitted.values, runs, fitted.prompts(runs, lengths, timed=part), getattr(runs, clock))
    share = float(np.mean(fit_runs.watts / fit_runs.gpus / fit_runs.tdp))
    return Left(runs, fitted, transferred, given, token_joules(fitted.values, runs, prompt, seconds), seconds, share)


def _points(left: Left, clock: str) -> list[Point]:
    """Points of one family on one GPU; without a clock the modelled step time is used."""
    runs = left.runs
    model = left.given if clock else left.modelled
    seconds = getattr(runs, clock) if clock else left.seconds
    flop = 2 * runs.params / runs.peak
    byte = (runs.weights / runs.batch + cache_bytes(runs, np.zeros(len(runs))) + runs.state) / runs.bandwidth
    roof = np.maximum(flop, byte)  # GPU-seconds per token
    baselines = {
        "roofline": runs.tdp * (ROOFLINE["const"] * roof + ROOFLINE["flop"] * flop + ROOFLINE["byte"] * byte),
        "constant_power": left.share * runs.tdp * runs.gpus * seconds / runs.batch,
        "tdp": runs.tdp * roof,
    }
    return [
        Point(
            str(runs.name[i]),
            str(runs.family[i]),
            float(runs.energy[i]),
            float(model[i]),
            {k: float(v[i]) for k, v in baselines.items()},
        )
        for i in range(len(runs))
    ]


def _note(lefts: list[Left], clock: str, missing: list[str]) -> str:
    """Errors by GPU, architecture and family, which forms were chosen, how steady the prices are, what is not known."""
    keys = ("gpu", "architecture", "task", "family", "energy")
    runs = {k: np.concatenate([getattr(x.runs, k) for x in lefts]) for k in keys}
    model = np.concatenate([x.given if clock else x.modelled for x in lefts])
    error = np.abs(model / runs["energy"] - 1) * 100
    text = []
    for key in ("gpu", "architecture", "task"):
        text += [f"{k} {error[runs[key] == k].mean():.1f} %" for k in sorted(set(runs[key]))]
    worst = sorted(set(runs["family"]), key=lambda f: -error[runs["family"] == f].mean())[:3]
    text.append("worst: " + ", ".join(f"{f} {error[runs['family'] == f].mean():.1f} %" for f in worst))
    text.append("form by inner cross-validation: " + ", ".join(sorted({x.fit.form for x in lefts})))
    for name, unit in (
        ("c_const", "W"),
        ("c_flop", "J/FLOP"),
        ("c_weight", "J/B"),
        ("c_value", "J/B"),
        ("c_cache", "J/B"),
    ):
        text += _price_range(lefts, name, unit)
    unseen = sorted({str(t) for x in lefts for t in x.runs.task if PROMPT + str(t) not in x.fit.values})
    if unseen:
        how = "found from step times" if clock else "assumed"
        text.append(f"prompt length {how} where the fit part has no run of {', '.join(unseen)}")
    unknown = sum(int((~x.runs.known).sum()) for x in lefts)
    text += [f"{unknown} runs of models of unknown shape"] if unknown else []
    moved = sorted({str(x.runs.gpu[0]) for x in lefts if x.transferred})
    text += [f"no own fit of {', '.join(moved)}: prices carried over as shares of TDP and roofs"] if moved else []
    text += [f"runs left out, GPU or precision unknown: {', '.join(missing)}"] if missing else []
    return "; ".join(text)


def price(name: str, value: float, tdp: float, peak: float, bandwidth: float) -> float:
    """A fitted share in the unit of a profile: W for `c_const` and `c_wait`, J/FLOP for `c_flop`, else J/B."""
    roof = {"c_const": 1.0, "c_wait": 1.0, "c_flop": peak}.get(name, bandwidth)
    return value * tdp / roof


def _price_range(lefts: list[Left], name: str, unit: str) -> list[str]:
    """The price over the folds of each GPU, with bf16 rates: its lowest and highest value."""
    text = []
    for gpu in sorted({str(x.runs.gpu[0]) for x in lefts}):
        here = [x for x in lefts if x.runs.gpu[0] == gpu and name in x.fit.values]
        prices = [
            price(name, x.fit.values[name], x.runs.tdp[0], float(np.min(x.runs.peak)), x.runs.bandwidth[0])
            for x in here
        ]
        text += [f"{gpu} {name} {min(prices):.3g}-{max(prices):.3g} {unit}"] if prices else []
    return text
