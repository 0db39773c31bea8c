"""Kernels of a whole model from NeuSight's operator traces: shapes only, never the times recorded beside them.

A trace holds a model with one layer; operators of layer 0 count once per layer of the whole model. Views and
dropout run no kernel; operators that read a non-contiguous tensor to reshape it copy it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

from qeil_compile.errors import InputError

from .gpu_data import rows_of
from .gpu_layers import Kernel, elementwise, gemm, norm, softmax

#: Operators without a kernel of their own on the GPU.
_FREE = frozenset(
    {"size", "view", "permute", "transpose", "expand", "getattr", "getitem", "dim", "split", "unsqueeze", "squeeze"}
    | {"eq", "ne", "gt", "finfo", "type_as", "type", "tensor", "detach", "device", "identity"}
    | {"dropout", "drop", "attn_dropout", "resid_dropout", "attention_dropout", "embd_pdrop"}
)
#: FLOP per element, as `passes.count` has them; every other element-wise operator counts 1.
_FLOPS = {"gelu": 14.0, "tanh": 10.0, "pow": 10.0, "activation": 10.0, "relu": 1.0}
_COPIES = ("contiguous", "reshape", "clone")
_LAYER = re.compile(r"(?:^|[._])(?:layer|layers|h|block|blocks)[._]0(?:[._]|$)")
_BUILT_IN = re.compile(r"<(?:built-in )?(?:function|method) (\w+)")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Traced:
    """One kernel of a model: how often it runs (`layered`: once per layer), and its recorded time [s]."""

    kernel: Kernel
    layered: bool
    seconds: float


def read_trace(path: Path) -> list[Traced]:
    """All kernels of a trace. Raises `InputError`."""
    csv.field_size_limit(sys.maxsize)
    found = []
    for number, row in enumerate(rows_of(path)):
        try:
            kernel = _kernel(row)
            if kernel:
                names = f"{row['target']} {row['meta']}"
                layered = any(_LAYER.search(n) for n in re.findall(r"[\w.]+", names))
                found.append(Traced(kernel, layered, float(row["fw_latency"]) * 1e-3))
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            raise InputError(f"{path}: row {number + 1}: found {exc!r}, expected an operator with shapes") from exc
    return found


def _kernel(row: dict[str, str]) -> Kernel | None:
    kind = row["op"]
    if kind not in ("call_module", "call_function", "call_method"):
        return None
    built_in = _BUILT_IN.match(row["target"])
    name = built_in[1] if built_in else row["target"].rpartition(".")[2]
    shapes: list[Shape] = [tuple(s) for s in json.loads(row["input_shapes"])]
    out: Shape = tuple(int(d) for d in re.findall(r"\d+", row["output_shape"]))
    if not shapes or name in _FREE or prod(out) <= 1:
        return None
    if kind == "call_module":
        return _module(name, shapes[0], out)
    return _function(name, shapes, out, "False" in row["input_contiguous"], row["dtype"])


def _module(name: str, data: Shape, out: Shape) -> Kernel | None:
    if "embed" in name or name in ("wte", "wpe"):
        return elementwise(prod(out), 1, 0.0, 4, "gather")
    if "norm" in name.lower() or name.startswith("ln_"):
        return norm(prod(data[:-1]), data[-1], 4)
    if "act" in name:
        return elementwise(prod(out), 1, _FLOPS["activation"], 4)
    return gemm(1, prod(data[:-1]), out[-1], data[-1], 4)


def _function(name: str, shapes: list[Shape], out: Shape, strided: bool, dtype: str) -> Kernel | None:
    if name == "addmm":
        return gemm(1, shapes[1][0], out[-1], shapes[1][1], 4)
    if name in ("matmul", "bmm", "baddbmm"):
        a = shapes[1] if name == "baddbmm" else shapes[0]
        return gemm(prod(out[:-2]), out[-2], out[-1], a[-1], 4)
    if name == "linear":
        return gemm(1, prod(shapes[0][:-1]), out[-1], shapes[0][-1], 4)
    if name == "softmax":
        return softmax(prod(out[:-1]), out[-1], 4)
    if name == "layer_norm":
        return norm(prod(out[:-1]), out[-1], 4)
    if name == "embedding":
        return elementwise(prod(out), 1, 0.0, 4, "gather")
    if name in _COPIES or (name == "to" and dtype != "torch.bool"):
        return elementwise(prod(out), 1, 0.0, 4, "movement") if strided and name != "to" else None
    inputs = sum(prod(s) for s in shapes if prod(s) > 1) / prod(out)
    return elementwise(prod(out), inputs, _FLOPS.get(name, 1.0), 4)
