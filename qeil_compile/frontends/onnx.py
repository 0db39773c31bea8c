"""ONNX files to operator graphs: check, bind dimensions, fold shape arithmetic, infer shapes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qeil_compile.errors import InputError, ModelError, UnboundDimensionError
from qeil_compile.forms.onnx_check import check_model, check_types, read_model, tensors
from qeil_compile.forms.onnx_source import OnnxSource, build_graph, captured_names, detach_weights, dtype_name
from qeil_compile.forms.program import INLINE_BYTES
from qeil_compile.ir import DTYPE_BYTES, OpGraph, Workload

from .onnx_branches import see_branches
from .onnx_reference import Reference, Runs
from .onnx_shapes import fixed, forget_shapes, write_shapes
from .traced import RUN_SECONDS, Arrays, Traced, sample_inputs

#: Most bytes of one tensor. Models are run once, whole, while they are traced.
_LARGEST = 1 << 35


def trace_onnx(
    model: Path | onnx.ModelProto, workload: Workload, given: Arrays, seed: int = 0,
    allow_operators: Collection[str] = (), run_seconds: float = RUN_SECONDS,
) -> Traced:  # fmt: skip
    """Trace an ONNX file or model, no run of which may take more than `run_seconds`.

    Raises `ModelError`, `UnboundDimensionError`, `InputError`.
    """
    started = time.perf_counter()
    name = model.stem if isinstance(model, Path) else model.graph.name or "model"
    proto = read_model(model, allow_operators) if isinstance(model, Path) else _checked(model, name, allow_operators)
    arrays = detach_weights(proto)
    check_types(proto, f"model {name}")
    _name_nodes(proto)
    original = _copy(proto)
    _bind(proto, workload, given, name)
    _check_sizes(proto, name)
    folded, kept = _simplify(proto, arrays)
    graph = _build(folded, name)
    samples = sample_inputs(graph, given, seed)
    runs = partial(Reference, name=name, seconds=run_seconds)
    if _has_branches(folded) and not runs(folded, kept).loads():
        # Fixed shapes contradict the branch that is not taken: the engine refuses what it would never run.
        source = _open_source(original, arrays, graph, samples, runs)
    else:
        source = _bound_source(folded, kept, graph, samples, runs)
    source = replace(source, graph=see_branches(source.graph, source.model, source.arrays, samples, runs))
    source.graph.check()
    return Traced(source.graph, source, workload, samples, runs(original, arrays).run, time.perf_counter() - started)


def _bound_source(
    model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], graph: OpGraph, samples: Arrays, runs: Runs
) -> OnnxSource:
    """The folded model; one run shows the shapes and constants that inference and folding could not find."""
    still = fixed(model)
    constant = _small(model, graph, still.values)
    names = list(dict.fromkeys([*_unknown(graph), *constant]))
    if not names:
        return OnnxSource(graph, model, arrays)
    seen = runs(_with_outputs(model, names), arrays).values(samples, names)
    shapes = {n: tuple(v.shape) for n, v in seen.items()}
    write_shapes(model, {n: s for n, s in shapes.items() if n in still.shapes})
    _freeze(model, {n: seen[n] for n in constant if n in seen})
    model, arrays = _simplify(model, arrays)
    return OnnxSource(build_graph(model, graph.name, shapes), model, arrays)


def _has_branches(model: onnx.ModelProto) -> bool:
    return any(a.HasField("g") for n in model.graph.node for a in n.attribute)


def _open_source(
    model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], bound: OpGraph, samples: Arrays, runs: Runs
) -> OnnxSource:
    """The model with its dynamic dimensions left open; shapes are those of one run."""
    model = _infer(model)
    graph = build_graph(model, bound.name)
    names = [n for n, t in graph.tensors.items() if t.role == "activation" and t.is_tensor]
    seen = runs(_with_outputs(model, names), arrays).values(samples, names)
    graph = build_graph(model, bound.name, {n: tuple(v.shape) for n, v in seen.items()})
    inputs = {n: bound.tensors[n] for n in graph.inputs}
    return OnnxSource(replace(graph, tensors={**graph.tensors, **inputs}), model, arrays, promises=False)


def _simplify(
    model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    folded, kept = _fold(model, arrays)
    folded = _infer(folded)
    return folded, {**kept, **detach_weights(folded)}


def _small(model: onnx.ModelProto, graph: OpGraph, constant: frozenset[str]) -> list[str]:
    """Constant tensors that something not constant reads, small enough to be kept inside the model."""
    read = {i for n in model.graph.node if not constant.issuperset(n.output) for i in [*n.input, *captured_names(n)]}
    names = [o for n in model.graph.node for o in n.output if o in constant and o in read]
    specs = [graph.tensors[n] for n in names]
    return [t.name for t in specs if t.is_tensor and t.dtype != "string" and t.nbytes <= INLINE_BYTES]


def _freeze(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
    """Replace what nodes compute by these values."""
    for node in list(model.graph.node):
        if any(o in values for o in node.output) and all(o in values or not o for o in node.output):
            model.graph.node.remove(node)
            model.graph.initializer.extend(onnx.numpy_helper.from_array(values[o], o) for o in node.output if o)


def _unknown(graph: OpGraph) -> list[str]:
    return [n for n, t in graph.tensors.items() if t.role == "activation" and t.is_tensor and not t.is_static]


def _checked(model: onnx.ModelProto, name: str, allow_operators: Collection[str]) -> onnx.ModelProto:
    """A copy of a model in memory, checked as a file is."""
    check_model(model, f"model {name}", allow_operators)
    outside = next((t.name for t in tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL), None)
    if outside is not None:
        raise ModelError(f"model {name}: tensor {outside} is in a file; pass the model's path, or load its data first")
    return _copy(model)


def _check_sizes(model: onnx.ModelProto, name: str) -> None:
    """What inference knows of the sizes of tensors, before folding or a run makes them. Raises `ModelError`."""
    inferred = _infer(model)
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = info.type.tensor_type
        count = prod(d.dim_value if d.dim_value > 0 else 1 for d in tensor.shape.dim)
        nbytes = count * DTYPE_BYTES.get(dtype_name(tensor.elem_type), 0)
        if nbytes > _LARGEST:
            shape = [d.dim_value for d in tensor.shape.dim]
            raise ModelError(
                f"model {name}: tensor {info.name} of shape {shape!r:.80} takes {nbytes / 1e9:.3g} GB, expected at "
                f"most {_LARGEST / 1e9:.3g} GB; bind smaller dimensions with --dim"
            )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _name_nodes(model: onnx.ModelProto) -> None:
    """Every node gets a unique name: reports, pins and engine answers refer to nodes by name."""
    used: set[str] = set()
    for node in model.graph.node:
        name = node.name or f"{node.op_type}:{next((o for o in node.output if o), '')}"
        while name in used:
            name += "'"
        node.name = name
        used.add(name)


def _bind(model: onnx.ModelProto, workload: Workload, given: Arrays, name: str) -> None:
    """Write the workload's numbers over the dynamic dimensions of the inputs; else those of given inputs.

    Raises `UnboundDimensionError`.
    """
    weights = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    _check_dimensions(inputs, workload, name)
    bound: dict[str, int] = {}
    for info in inputs:
        if not info.type.HasField("tensor_type"):
            kind = info.type.WhichOneof("value")
            raise ModelError(f"model {name}: input {info.name} is a {kind}; only tensors can be passed to a plan")
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            symbol = dim.dim_param or None
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            value = workload.bind(info.name, axis, symbol)
            if value is None and info.name in given and axis < np.ndim(given[info.name]):
                value = np.shape(given[info.name])[axis]
            if value is None:
                shown = f" ({symbol})" if symbol else ""
                raise UnboundDimensionError(
                    f"model {name}: dimension {axis}{shown} of input {info.name} is dynamic and the workload does not "
                    f"bind it; add --dim {symbol or f'{info.name}.{axis}'}=N"
                )
            dim.dim_value = value
            if symbol:
                bound[symbol] = value
    for info in model.graph.output:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in bound:
                dim.dim_value = bound[dim.dim_param]
            elif not dim.HasField("dim_value") or dim.dim_value <= 0:
                dim.Clear()
    forget_shapes(model.graph)


def _check_dimensions(inputs: list[onnx.ValueInfoProto], workload: Workload, name: str) -> None:
    """A misspelt name is reported as such, not as the dimension that it leaves unbound. Raises `InputError`."""
    known: set[str] = set()
    for info in inputs:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            known |= {f"{info.name}.{axis}"} | ({dim.dim_param} if dim.dim_param else set())
    unknown = sorted(set(workload.dims) - known)
    if unknown:
        raise InputError(f"--dim {unknown[0]}: model {name} has no such dimension; it has {', '.join(sorted(known))}")


def _fold(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Fold shape arithmetic and lift constants to initializers; large weights are left as they are."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript import optimizer

    plain = _copy(model)
    try:
        folded = onnx_ir.from_proto(model)
        if folded.functions:
            common.InlinePass()(folded)
        optimizer.fold_constants(folded, onnx_shape_inference=True, should_fold=_fold_small)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(folded)
        common.RemoveUnusedNodesPass()(folded)
        result = onnx_ir.to_proto(folded)
        onnx.shape_inference.infer_shapes(result, strict_mode=False)
    except Exception:
        # Folding only improves the graph; a model that the optimizer cannot digest is used as it is.
        result = plain
    kept = {t.name for t in result.graph.initializer}
    _name_nodes(result)
    return result, {n: a for n, a in arrays.items() if n in kept}


def _fold_small(node: Any) -> bool | None:
    sizes = [i.const_value.size for i in node.inputs if i is not None and i.const_value is not None]
    return False if any(s * 4 > INLINE_BYTES for s in sizes) else None


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {model.graph.name}: shapes cannot be inferred ({_line(error)})") from error


def _build(model: onnx.ModelProto, name: str) -> OpGraph:
    graph = build_graph(model, name)
    for given in graph.inputs:
        if not graph.tensors[given].is_tensor:
            raise ModelError(f"model {name}: input {given} has no known type; expected a tensor of one of ONNX's types")
    for output in graph.outputs:
        if not graph.tensors[output].is_tensor:
            raise ModelError(f"model {name}: output {output} is no tensor; only tensors can leave a plan")
    return graph


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    model = _copy(model)
    have = {o.name for o in model.graph.output}
    known = {v.name: v for v in model.graph.value_info}
    model.graph.output.extend(
        known[n] if n in known else onnx.ValueInfoProto(name=n) for n in names if n not in have
    )
    return model
