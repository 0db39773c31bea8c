"""Serving measurements of language models (ML.ENERGY leaderboard files) and the work behind each of their runs.

One run is a steady state: `batch` sequences decoded together on `gpus` GPUs, with prompts of new requests mixed in.
Everything that does not depend on a fitted number is worked out here, once, as one array per quantity.

What a decode step must do follows from the model's shape (served_models.toml, from the published config.json):

- weights are read once per step for the whole batch. Of E routed experts of which a token visits k, a step of b
  tokens is expected to touch q = 1 - (1 - k/E)^b of them (uniform routing);
- experts spread over n GPUs: one holds m = q E/n of a step's experts on average, with variance m (1 - q), and all wait
  for the fullest, about m + sqrt(2 m (1 - q) ln n) (the usual bound of a maximum of n). `busy` is the mean over it;
- each token reads the cache of its own context, `cache_global` + `cache_local` bytes per cached token, and a recurrent
  state; attention over the context costs `attention` FLOP per cached token.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import QeilError

#: Bytes per weight as stored; mxfp4 keeps one 8-bit scale per 32 values and only experts are stored so.
STORED_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "mxfp4": 0.53}
NUMBERS = (
    "energy_per_token_joules",
    "avg_power_watts",
    "median_itl_ms",
    "avg_batch_size",
    "output_throughput_tokens_per_sec",
    "avg_output_len",
    "num_gpus",
    "activated_params_billions",
    "total_params_billions",
)
TEXTS = ("model_id", "gpu_model", "weight_precision", "architecture")


@dataclass(frozen=True)
class Runs:
    """N runs as arrays of length N; times are of one decode step.

    `energy` J per output token; `median`, `mean` s: the median inter-token time, and batch over throughput, which
    counts the prompts' time too; `output` tokens per answer; `peak` FLOP/s of the weights' precision; `bandwidth`
    B/s; `tdp` W; `weights` bytes read per step on all GPUs together; `values` weights touched per step, `scaled` those
    among them with a scale per block; `params` weights that one token meets; `width` hidden size x layers.
    """

    name: np.ndarray
    family: np.ndarray
    architecture: np.ndarray
    task: np.ndarray
    gpu: np.ndarray
    known: np.ndarray
    energy: np.ndarray
    watts: np.ndarray
    median: np.ndarray
    mean: np.ndarray
    batch: np.ndarray
    gpus: np.ndarray
    output: np.ndarray
    peak: np.ndarray
    bandwidth: np.ndarray
    tdp: np.ndarray
    weights: np.ndarray
    values: np.ndarray
    scaled: np.ndarray
    fp8: np.ndarray
    params: np.ndarray
    layers: np.ndarray
    width: np.ndarray
    routed: np.ndarray
    busy: np.ndarray
    cache_global: np.ndarray
    cache_local: np.ndarray
    window: np.ndarray
    attention: np.ndarray
    state: np.ndarray

    def __len__(self) -> int:
        return len(self.energy)

    def take(self, mask: np.ndarray) -> Runs:
        """The runs where `mask` is true."""
        return Runs(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})


def shapes() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Models' shapes, longest name first, and the assumed prompt length of each task."""
    table = tomllib.loads((files("qeil_compile.validation") / "served_models.toml").read_text())
    return sorted(table["model"], key=lambda m: -len(m["name"])), table["prompt_tokens"]


def guess_shape(active: float) -> dict[str, Any]:
    """A shape from the activated parameters alone, for a model that the table does not know.

    Layers grow as params^0.35 (33 at 8e9; within a fifth for 8e9 to 405e9), the hidden size follows from
    params = 12 layers hidden^2, and attention is grouped with 8 heads of 128. Experts are left to the caller.
    """
    layers = round(33 * (active / 8e9) ** 0.35)
    hidden = (active / 12 / layers) ** 0.5
    return {"layers": layers, "hidden": hidden, "query_width": hidden, "cache_width": 2048}


def gpu_specs(table: Path) -> list[dict[str, str]]:
    """Rows of kind gpu of the table of devices."""
    with table.open(newline="") as f:
        return [row for row in csv.DictReader(f) if row.get("kind") == "gpu"]


def spec_of(gpu: str, specs: Sequence[Mapping[str, str]]) -> Mapping[str, str] | None:
    """The row whose name has `gpu` as a word; of several (PCIe, SXM) the one with the highest TDP."""
    found = [s for s in specs if re.search(rf"\b{re.escape(gpu)}\b", s["name"]) and s["tdp_W"]]
    return max(found, key=lambda s: float(s["tdp_W"]), default=None)


def read_configurations(folder: Path) -> list[dict[str, Any]]:
    """Every run with an energy per token in the `*.json.gz` files of `folder`, with its task.

    Raises:
        QeilError: a file is no gzip JSON, or a run lacks a field or has one of the wrong kind.
    """
    found = []
    for path in sorted(folder.glob("*.json.gz")):
        try:
            data = json.loads(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, ValueError) as error:
            raise QeilError(f"{path}: not a gzip-compressed JSON file ({error}); fetch it again") from None
        rows = data.get("configurations") if isinstance(data, dict) else None
        if rows is None:
            continue
        if not isinstance(rows, list):
            raise QeilError(f"{path}: `configurations` is {type(rows).__name__}, expected a list of runs")
        for i, row in enumerate(rows):
            if isinstance(row, dict) and ("energy_per_image_joules" in row or "energy_per_video_joules" in row):
                continue
            _check(row, f"{path}: run {i}")
            found.append(row | {"task": str(data.get("task", path.name.split(".")[0]))})
    return found


def _check(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise QeilError(f"{where} is {type(row).__name__}, expected an object")
    for key in NUMBERS:
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise QeilError(f"{where}: `{key}` is {value!r}, expected a number above 0")
    for key in TEXTS:
        if not isinstance(row.get(key), str):
            raise QeilError(f"{where}: `{key}` is {row.get(key)!r}, expected a text")


def read_runs(folder: Path, specs: Sequence[Mapping[str, str]], family: Sequence[str]) -> tuple[Runs, list[str]]:
    """Runs of all files in `folder`, and what was left out: GPUs without a row in `specs`, unknown precisions.

    Runs that agree in the fields `family` (`publisher` is the first part of `model_id`) are of one family.

    Raises:
        QeilError: a file is malformed, or every run is left out.
    """
    table, _ = shapes()
    rows, missing = [], []
    for row in read_configurations(folder):
        spec = spec_of(row["gpu_model"], specs)
        if spec is None or row["weight_precision"] not in STORED_BYTES:
            missing.append(row["gpu_model"] if spec is None else row["weight_precision"])
        else:
            rows.append(_work(row, spec, table) | {"family": family_of(row, family)})
    if missing and not rows:
        raise QeilError(
            f"{folder}: every run has a GPU outside the table of devices or an unknown precision "
            f"({', '.join(sorted(set(missing)))}); add a row there, or one of {', '.join(STORED_BYTES)}"
        )
    return Runs(**{f.name: np.array([r[f.name] for r in rows]) for f in fields(Runs)}), sorted(set(missing))


def family_of(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The name of a run's family: the values of `keys`.

    Raises:
        QeilError: a key is no field of the run.
    """
    values = dict(row) | {"publisher": row["model_id"].split("/")[0]}
    unknown = [k for k in keys if k not in values]
    if unknown:
        raise QeilError(f"split table of tokens: family has {unknown[0]!r}; a run has: {', '.join(sorted(values))}")
    return "/".join(f"{values[k]:g}" if isinstance(values[k], int | float) else str(values[k]) for k in keys)


def _work(row: Mapping[str, Any], spec: Mapping[str, str], table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All quantities of `Runs` for one run."""
    active, total = row["activated_params_billions"] * 1e9, row["total_params_billions"] * 1e9
    batch, gpus, precision = row["avg_batch_size"], row["num_gpus"], row["weight_precision"]
    model = row["model_id"].split("/")[-1]
    shape = next((m for m in table if model.startswith(m["name"])), None)
    known, shape = shape is not None, shape or guess_shape(active)
    expert = _experts(active, total, batch, gpus, shape)
    fp8 = precision == "fp8"
    dense_bytes = STORED_BYTES[precision] if fp8 else 2.0
    values = expert["dense"] + expert["touched"]
    attention_layers = shape.get("attention_layers", shape["layers"])
    local = shape.get("local_layers", 0)
    return {
        "name": f"{row['task']} {row['gpu_model']} {row['model_id']} x{gpus} batch {batch:.0f}",
        "architecture": row["architecture"],
        "task": row["task"],
        "gpu": row["gpu_model"],
        "known": known,
        "energy": row["energy_per_token_joules"],
        "watts": row["avg_power_watts"],
        "median": row["median_itl_ms"] / 1e3,
        "mean": batch / row["output_throughput_tokens_per_sec"],
        "batch": batch,
        "gpus": gpus,
        "output": row["avg_output_len"],
        "peak": _peak(json.loads(spec["peak_flops_by_dtype"]), fp8),
        "bandwidth": float(spec["mem_bw_GBs"]) * 1e9,
        "tdp": float(spec["tdp_W"]),
        "weights": expert["dense"] * dense_bytes + expert["touched"] * STORED_BYTES[precision],
        "values": values,
        "scaled": values if fp8 and shape.get("block_scaled", False) else 0.0,
        "fp8": fp8,
        "params": active,
        "layers": shape["layers"],
        "routed": expert["routed"],
        "busy": expert["busy"],
        "width": shape["layers"] * shape["hidden"],
        "cache_global": 2.0 * shape["cache_width"] * (attention_layers - local),
        "cache_local": 2.0 * shape["cache_width"] * local,
        "window": float(shape.get("window", 0)),
        "attention": 4.0 * shape["query_width"] / shape["cache_width"] / 2.0,
        "state": 8.0 * shape.get("state_values", 0),
    }


def _peak(rates: Mapping[str, float], fp8: bool) -> float:
    return rates["fp8"] if fp8 and "fp8" in rates else rates.get("bf16", rates.get("fp16", rates.get("fp32", 0.0)))


def _experts(active: float, total: float, batch: float, gpus: int, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Weights outside experts, expert weights touched by a step, whether experts are routed, and `busy`."""
    count, visits = shape.get("experts", 0), shape.get("top_k", 0)
    if not count:  # dense, or routed in a way that the table does not know: then all weights count as experts
        touched = total * (1 - (1 - active / total) ** batch) if total > 1.05 * active else 0.0
        return {"dense": 0.0 if touched else total, "touched": touched, "routed": touched > 0, "busy": 1.0}
    one = (total - active) / (count - visits)
    share = 1 - (1 - visits / count) ** batch
    mean = share * count / gpus
    most = mean + float(np.sqrt(2 * mean * (1 - share) * np.log(gpus)))
    return {"dense": active - visits * one, "touched": one * count * share, "routed": True, "busy": mean / most}
