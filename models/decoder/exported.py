"""Decoders that come as ONNX files with cache inputs, as exporters write them.

Tokens, a mask, positions and one past tensor per state go in; logits and one present tensor per past come out, in the
same order. The model is taken as it is, under this project's names: an input is handed on by an Identity, and of the
logits only the rows that are asked for leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from qeil_compile.errors import ModelError
from qeil_compile.forms.onnx_check import parse_file, read_model
from qeil_compile.forms.onnx_source import detach_weights, dtype_name
from qeil_compile.models.decoder.config import DecoderFacts
from qeil_compile.models.decoder.graph import DecoderGraph, WeightSpec

#: Names that exporters give -> name here.
_GIVEN = {"input_ids": "tokens", "tokens": "tokens", "attention_mask": "mask", "mask": "mask",
          "position_ids": "positions", "positions": "positions"}  # fmt: skip
_SHAPES = {"tokens": ("batch", "new"), "mask": ("batch", "total"), "positions": ("batch", "new")}


@dataclass(frozen=True)
class ExportedDecoder:
    """A decoder out of an ONNX file. `filled` gives the model with its weights inside, to trace it."""

    name: str
    whole: DecoderGraph
    arrays: Mapping[str, np.ndarray]
    filled: Callable[[], onnx.ModelProto]
    files: Mapping[str, Path] = field(default_factory=dict)


def is_exported(path: Path) -> bool:
    """Whether an .onnx file has tokens and a cache among its inputs. False for what cannot be read."""
    if path.suffix != ".onnx" or not path.is_file():
        return False
    try:
        model = parse_file(path)
    except ModelError:
        return False
    names = _inputs(model)
    return any(_GIVEN.get(n) == "tokens" for n in names) and any("past" in n or "cache" in n for n in names)


def open_exported(path: Path, context: int, files: Mapping[str, Path]) -> ExportedDecoder:
    """Read an ONNX decoder; `context` is the most tokens of a row, which the file does not say.

    Raises `ModelError` naming the input or output that does not fit.
    """
    model = read_model(path)
    states = _renamed(model, str(path))
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    arrays = detach_weights(model)
    weights = {n: WeightSpec(n, a.shape, a.dtype.name) for n, a in arrays.items()}
    vocab, per_token = _sizes(model, states, str(path))
    facts = DecoderFacts("onnx", vocab, context, per_token, _tables(model, arrays))
    return ExportedDecoder(path.stem, DecoderGraph(facts, model, weights, states, 32), arrays, lambda: filled, files)


def _inputs(model: onnx.ModelProto) -> list[str]:
    weights = {t.name for t in model.graph.initializer}
    return [i.name for i in model.graph.input if i.name not in weights]


def _renamed(model: onnx.ModelProto, path: str) -> dict[str, str]:
    """Give inputs, logits and dimensions this project's names; returns the states."""
    graph = model.graph
    names = _inputs(model)
    pasts = [n for n in names if n not in _GIVEN]
    logits, presents = _outputs(model, path)
    if len(pasts) != len(presents):
        raise ModelError(
            f"{path}: found {len(pasts)} cache inputs and {len(presents)} cache outputs, expected one output for each"
        )
    known = {i.name: i for i in graph.input}
    for name in names:
        if name in pasts:
            _dims(known[name], {0: "batch", 2: "past"}, path)
            continue
        target = _GIVEN[name]
        if dtype_name(known[name].type.tensor_type.elem_type) != "int64":
            raise ModelError(f"{path}: input {name} is no int64 tensor")
        if name == target:
            _dims(known[name], dict(enumerate(_SHAPES[target])), path)
            continue
        graph.input.remove(known[name])
        graph.input.append(helper.make_tensor_value_info(target, onnx.TensorProto.INT64, _SHAPES[target]))
        graph.node.insert(0, helper.make_node("Identity", [target], [name], f"qeil/{target}"))
    for value in graph.output:
        if value.name in presents:
            _dims(value, {0: "batch", 2: "total"}, path)
    _take(model, logits)
    return dict(zip(pasts, presents, strict=True))


def _outputs(model: onnx.ModelProto, path: str) -> tuple[str, list[str]]:
    names = [o.name for o in model.graph.output]
    logits = "logits" if "logits" in names else names[0] if names else ""
    value = next((o for o in model.graph.output if o.name == logits), None)
    if value is None or len(value.type.tensor_type.shape.dim) != 3:
        raise ModelError(f"{path}: found no output of logits [batch, tokens, vocabulary] among {', '.join(names)}")
    return logits, [n for n in names if n != logits]


def _dims(value: onnx.ValueInfoProto, symbols: Mapping[int, str], path: str) -> None:
    dims = value.type.tensor_type.shape.dim
    for axis, symbol in symbols.items():
        if axis >= len(dims):
            raise ModelError(f"{path}: {value.name} has {len(dims)} dimensions, expected more than {axis}")
        if dims[axis].HasField("dim_value"):
            raise ModelError(
                f"{path}: dimension {axis} of {value.name} is {dims[axis].dim_value}, expected a dynamic one "
                f"({symbol}); export it with dynamic batch and lengths"
            )
        dims[axis].dim_param = symbol


def _take(model: onnx.ModelProto, logits: str) -> None:
    """Of the logits of all tokens only the rows `take` leave."""
    graph = model.graph
    whole = f"{logits}/all"
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name == logits:
                    names[k] = whole
    graph.input.append(helper.make_tensor_value_info("take", onnx.TensorProto.INT64, ("batch", "rows", 1)))
    graph.node.append(helper.make_node("GatherND", [whole, "take"], ["logits"], "qeil/take", batch_dims=1))
    output = next(o for o in graph.output if o.name == logits)
    output.name = "logits"
    output.type.tensor_type.shape.dim[0].dim_param = "batch"
    output.type.tensor_type.shape.dim[1].dim_param = "rows"


def _sizes(model: onnx.ModelProto, states: Mapping[str, str], path: str) -> tuple[int, int]:
    """Vocabulary, and numbers that a token adds to the cache."""
    output = next(o for o in model.graph.output if o.name == "logits")
    vocab = output.type.tensor_type.shape.dim[2].dim_value
    per_token = 0
    for value in model.graph.input:
        if value.name in states:
            dims = value.type.tensor_type.shape.dim
            fixed = [d.dim_value for k, d in enumerate(dims) if k not in (0, 2)]
            if len(dims) != 4 or not all(fixed):
                raise ModelError(
                    f"{path}: cache input {value.name} is no [batch, heads, past, width] of known heads and width"
                )
            per_token += int(np.prod(fixed))
    if not vocab:
        raise ModelError(f"{path}: the vocabulary (dimension 2 of the logits) is not fixed; export it with a number")
    return vocab, per_token


def _tables(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Weights of which a step reads single rows."""
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            if name in arrays:
                readers.setdefault(name, set()).add(node.op_type)
    return tuple(n for n, kinds in readers.items() if kinds == {"Gather"})
