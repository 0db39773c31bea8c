"""Readers of the public sets of GPU kernel times: NeuSight, vidur, LLMServingSim.

Each reader gives `Samples`: kernels of one operator on one board with the measured seconds. A row that lacks a
field or holds no number raises `InputError` with the file and the row; a set that is not there is left out.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.devices.gpu_spec import GpuSpec
from qeil_compile.devices.work import KernelTable
from qeil_compile.errors import InputError

from .gpu_layers import LAYERS, Kernel, llama_layers, vidur_layers

#: Inputs of NeuSight's element-wise operators: two tensors or one.
_BINARY = ("add", "mul", "div", "pow")
#: FLOP per element as `passes.count` has them.
_FLOPS = {"tanh": 10.0, "gelu": 14.0, "pow": 10.0, "powu": 10.0}


@dataclass(frozen=True)
class Samples:
    """Kernels of operator `op` on `device` from `source`, with measured `seconds` float64[kernels].

    `launch` names the harness's own time per kernel, which is fitted beside the model.
    """

    source: str
    device: str
    op: str
    launch: str
    table: KernelTable
    seconds: np.ndarray

    def take(self, index: np.ndarray) -> Samples:
        """The chosen rows."""
        t = self.table
        table = KernelTable(
            kinds=tuple(t.kinds[i] for i in index),
            dims=tuple(t.dims[i] for i in index),
            dtypes=tuple(t.dtypes[i] for i in index),
            types=tuple(t.types[i] for i in index),
            flops=t.flops[index],
            bytes_in=t.bytes_in[index],
            bytes_weights=t.bytes_weights[index],
            bytes_out=t.bytes_out[index],
            group=t.group[index],
        )
        return Samples(self.source, self.device, self.op, self.launch, table, self.seconds[index])


@cache
def _boards() -> Mapping[str, Mapping[str, float]]:
    data: dict[str, dict[str, float]] = tomllib.loads(
        files(__package__).joinpath("gpu_boards.toml").read_text("utf-8")
    )
    return data


def spec_of(device: str, folder: Path) -> GpuSpec | None:
    """Data-sheet facts of a board by its name in a set; None where neither NeuSight nor this package knows it."""
    facts = _boards().get(device, {})
    tdp, node = facts.get("tdp"), facts.get("node")
    path = folder / "neusight" / "device_configs" / f"{device.replace(' ', '_')}.json"
    if path.is_file():
        c = json.loads(path.read_text())
        vector = c.get("SingleFLOPsVEC")
        peak = {"fp32": c["SingleFLOPsMM" if vector else "SingleFLOPs"] * 1e9}
        matrix = frozenset({"fp32"}) if vector else frozenset[str]()
        cache_bytes = c["L2Cache"] * 2**20
        return GpuSpec(
            device, peak, c["Mem_Bw"] * 1e9, c["Num_Sm"], cache_bytes, tdp=tdp, node=node, sustained=False,
            lane_flops=vector * 1e9 if vector else None, matrix=matrix,
        )  # fmt: skip
    if "fp16" not in facts:
        return None
    peak = {"fp32": facts["fp32"], "fp16": facts["fp16"], "bf16": facts["fp16"]}
    cache_bytes = facts["cache_MiB"] * 2**20
    return GpuSpec(
        device, peak, facts["bandwidth"], facts["units"], cache_bytes, tdp=tdp, node=node, sustained=False
    )


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a gzipped CSV file."""
    try:
        with gzip.open(path) as raw:
            yield from csv.DictReader(io.TextIOWrapper(raw, "utf-8", newline=""))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as exc:
        raise InputError(f"{path}: found {exc}, expected a gzipped CSV file") from exc


def table_of(kernels: list[Kernel]) -> KernelTable:
    """Columns of kernels."""
    columns = list(zip(*kernels, strict=True))
    flops, into, weights, out = (np.array(columns[i], dtype=float) for i in (4, 5, 6, 7))
    return KernelTable(
        columns[0], columns[1], columns[2], columns[3], flops, into, weights, out, np.arange(len(kernels))
    )


def read_samples(folder: Path, sources: list[str], stride: Mapping[str, int] | None = None) -> list[Samples]:
    """All samples of the named sets (`neusight/test`, `vidur`, ...), every `stride`-th row of each file."""
    stride = stride or {}
    found: dict[tuple[str, str, str, str], list[tuple[Kernel, float]]] = {}
    for source in sources:
        step = stride.get(source, 1)
        for path in sorted((folder / source).glob("*.csv.gz")):
            for number, row in enumerate(rows_of(path)):
                if number % step:
                    continue
                for device, op, launch, kernel, seconds in _checked(_reader(source), path, number, row):
                    found.setdefault((source, device, op, launch), []).append((kernel, seconds))
    return [
        Samples(*key, table_of([k for k, _ in pairs]), np.array([s for _, s in pairs]))
        for key, pairs in found.items()
    ]


#: device, operator, name of the harness's launch time, kernel, seconds.
Measured = tuple[str, str, str, Kernel, float]
Reader = Callable[[Path, dict[str, str]], Iterator[Measured]]


def _checked(reader: Reader, path: Path, number: int, row: dict[str, str]) -> Iterator[Measured]:
    try:
        for measured in reader(path, row):
            if not measured[4] > 0:
                raise ValueError(f"a time of {measured[4]} s")
            yield measured
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(
            f"{path}: row {number + 1}: found {exc!r}, expected the fields of this set with positive times"
        ) from exc


def _reader(source: str) -> Reader:
    name = source.partition("/")[0]
    return {"neusight": _neusight, "vidur": _vidur, "llmservingsim": _servingsim}[name]


def _neusight(path: Path, row: dict[str, str]) -> Iterator[Measured]:
    op, seconds = row["OPName"], float(row["Latency"]) * 1e-3
    device = row["Device"]
    if op in ("linear", "bmm"):
        # The columns M, N, K are rows, inner extent and columns (grids of the recorded kernels show it).
        b, m, inner, n = (int(row[c]) for c in "BMNK")
        yield device, op, f"launch_{op}", LAYERS["gemm"](b, m, n, inner, 4), seconds
    elif op == "conv":
        fields = ("B", "Input_Channel", "Output_Channel", "Kernel_Szie", "Input_Size", "Stride", "Padding")
        b, ci, co, k, side, step, pad = (int(row[f]) for f in fields)
        yield device, op, "launch_conv", LAYERS["conv"](b, ci, co, k, side, step, pad), seconds
    else:
        b, h = int(row["B"]), int(row["H"])
        name = {"ln": "norm", "softmax": "softmax"}.get(op)
        if name:
            yield device, op, f"launch_{name}", LAYERS[name](b, h, 4), seconds
        else:
            inputs = 2 if op in _BINARY else 1
            kernel = LAYERS["elementwise"](b * h, inputs, _FLOPS.get(op, 1.0), 4)
            yield device, op, "launch_elementwise", kernel, seconds


def _vidur(path: Path, row: dict[str, str]) -> Iterator[Measured]:
    device = path.name.partition("__")[0]
    shape = {k: int(row[k]) for k in ("num_tokens", "n_head", "n_kv_head", "n_embd", "n_expanded_embd")}
    shards, gated = int(row["num_tensor_parallel_workers"]), row["use_gated_mlp"] == "True"
    for op, kernel in vidur_layers(**shape, shards=shards, gated=gated).items():
        median = row.get(f"time_stats.{op}.median")
        if median:
            yield device, op, "launch_traced", kernel, float(median) * 1e-3


#: Shapes by the model's name in the file: hidden, heads, cache heads, head width, feed-forward, vocabulary.
_MODELS: Mapping[str, tuple[int, int, int, int, int, int]] = {
    "meta-llama__Llama-3.1-8B": (4096, 32, 8, 128, 14336, 128256),
    "meta-llama__Llama-3.1-70B": (8192, 64, 8, 128, 28672, 128256),
    "meta-llama__Llama-3.2-3B": (3072, 24, 8, 128, 8192, 128256),
    "meta-llama__Llama-3.2-1B": (2048, 32, 8, 64, 8192, 128256),
    "Qwen__Qwen3-8B": (4096, 32, 8, 128, 12288, 151936),
    "Qwen__Qwen3-32B": (5120, 64, 8, 128, 25600, 151936),
}


def _servingsim(path: Path, row: dict[str, str]) -> Iterator[Measured]:
    device, _, rest = path.name.partition("__")
    shape = next((s for name, s in _MODELS.items() if rest.startswith(name)), None)
    shards = next((int(p[2:]) for p in rest.split("__") if p[:2] == "tp" and p[2:].isdigit()), 1)
    if shape is None or "time_us" not in row:
        return
    for op, kernel in llama_layers(shape, shards, row).items():
        yield device, op, "launch_traced", kernel, float(row["time_us"]) * 1e-6


def gemm_like(kind: str) -> bool:
    """Whether the kind is a matrix product."""
    return kind in ("gemm", "gemv")


def describe(samples: Samples, i: int) -> str:
    """`linear 1x1024x2560x2560`."""
    return f"{samples.op} {'x'.join(str(d) for d in samples.table.dims[i] or (int(samples.table.nbytes[i]),))}"


def as_json(value: Any) -> str:
    """Compact JSON, for notes."""
    return json.dumps(value, separators=(", ", ": "))
