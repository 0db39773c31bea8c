"""torch modules, functions and exported programs to operator graphs."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export._remove_effect_tokens_pass import _remove_effect_tokens
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree

from qeil_compile.errors import InputError, ModelError, UnboundDimensionError, first_line
from qeil_compile.forms.fx_source import FxSource, build_graph, from_numpy, to_numpy
from qeil_compile.forms.fx_translate import quiet
from qeil_compile.ir import OpGraph, Workload

from .traced import Arrays, CallSpec, Traced, sample_inputs

#: Composite operators that engines and count rules know by name; everything else is decomposed by default.
KEEP = frozenset(
    {"scaled_dot_product_attention", "linear", "matmul", "rms_norm", "layer_norm", "group_norm", "silu", "gelu",
     "softmax", "log_softmax", "hardswish", "hardsigmoid", "mish", "leaky_relu", "elu", "selu", "celu", "softplus",
     "lstm", "gru", "split", "split_with_sizes", "chunk", "unbind", "pixel_shuffle", "upsample_nearest2d",
     "upsample_bilinear2d", "instance_norm", "einsum"}
)  # fmt: skip


def trace_module(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], workload: Workload
) -> Traced:
    """Trace a module or function on example arguments (tensors; meta tensors trace without weights).

    Raises `ModelError` with torch's own first line when the model cannot be exported.
    """
    started = time.perf_counter()
    if isinstance(model, type):
        raise ModelError(f"{model.__name__} is a class; expected a module instance or a function: call it first")
    if not callable(model):
        raise ModelError(f"{type(model).__name__} is no model; expected a torch module, function, .pt2 or .onnx file")
    module = model if isinstance(model, torch.nn.Module) else _FunctionModule(model)
    name = getattr(model, "__name__", type(model).__name__)
    if workload.dims:
        raise InputError(
            f"--dim {next(iter(workload.dims))}: model {name} takes its shapes from the example arguments; "
            "change those instead"
        )
    return _from_program(_export(module, args, kwargs, name), name, workload, args, kwargs, started)


def trace_program(
    program: ExportedProgram | Path, workload: Workload, given: Arrays, name: str = "model", seed: int = 0
) -> Traced:
    """Trace an exported program or a `.pt2` file, dynamic dimensions bound by the workload.

    Raises `ModelError` (unreadable file), `UnboundDimensionError`, `InputError`.
    """
    started = time.perf_counter()
    if isinstance(program, Path):
        name = program.stem
        program = _load(program)
    values = _examples(program, workload, name)
    args, kwargs = pytree.tree_unflatten(values, program.call_spec.in_spec)
    if any(not isinstance(d, int) for v in _input_values(program).values() for d in v.shape):
        program = _export(program.module(), args, kwargs, name)
    return _from_program(program, name, workload, None, None, started, given, seed)


def _load(path: Path) -> ExportedProgram:
    try:
        with quiet("torch.export"):
            return torch.export.load(path)
    except Exception as error:  # torch raises zip, key, pickle and runtime errors for damaged files
        raise ModelError(f"{path}: cannot be read as an exported program ({first_line(error)[:200]})") from error


class _FunctionModule(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _export(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, args, kwargs, strict=False)
    except Exception as error:  # torch.export raises dozens of types, all meaning "cannot be traced"
        raise ModelError(f"model {name} cannot be exported: {first_line(error)[:300]}") from error


def _from_program(
    program: ExportedProgram,
    name: str,
    workload: Workload,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    started: float,
    given: Arrays | None = None,
    seed: int = 0,
) -> Traced:
    table = torch.export.default_decompositions()
    for op in [o for o in table if o._schema.name.partition("::")[2] in KEEP]:
        del table[op]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = _remove_effect_tokens(program.run_decompositions(table))
    graph, weights = build_graph(flat, name)
    graph.check()
    call = _call_spec(program, graph)
    tensors = [*flat.state_dict.values(), *(c for c in flat.constants.values() if isinstance(c, torch.Tensor))]
    has_weights = not any(t.is_meta for t in tensors)
    if args is not None:
        leaves = call.flatten(args, kwargs or {})
        samples = {
            n: to_numpy(v) for n, v in zip(call.leaves, leaves, strict=True) if n is not None and not v.is_meta
        }
    else:
        samples = sample_inputs(graph, given or {}, seed)
    return Traced(
        graph, FxSource(graph, flat, weights), workload, samples, _Reference(program, graph, call),
        time.perf_counter() - started, call, has_weights and len(samples) == len(graph.inputs),
    )  # fmt: skip


class _Reference:
    """The unpartitioned program in eager torch."""

    def __init__(self, program: ExportedProgram, graph: OpGraph, call: CallSpec) -> None:
        self._program, self._graph, self._call = program, graph, call
        self._module: torch.nn.Module | None = None

    def __call__(self, inputs: Arrays) -> list[np.ndarray]:
        if self._module is None:
            self._module = self._program.module()
        named = zip(self._call.leaves, self._call.constants, strict=True)
        leaves = [from_numpy(inputs[n]) if n is not None else constant for n, constant in named]
        args, kwargs = pytree.tree_unflatten(leaves, self._program.call_spec.in_spec)
        with torch.no_grad():
            values = pytree.tree_leaves(self._module(*args, **kwargs))
        found = {n: v for (n, _), v in zip(self._call.results, values, strict=True) if n is not None}
        return [to_numpy(found[o]) for o in self._graph.outputs]


def _call_spec(program: ExportedProgram, graph: OpGraph) -> CallSpec:
    signature = program.graph_signature
    users = [s for s in signature.input_specs if s.kind.name == "USER_INPUT"]
    leaves = [None if isinstance(s.arg, ConstantArgument) else s.arg.name for s in users]
    constants = [s.arg.value if isinstance(s.arg, ConstantArgument) else None for s in users]
    in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
    # The decomposed graph renames values: results are matched by position.
    names = iter(_result_names(program, graph))
    results = [
        (None, s.arg.value) if isinstance(s.arg, ConstantArgument) else (next(names), None)
        for s in signature.output_specs
    ]

    # Positional tensors only: the common form, which needs no look at structures.
    plain = None not in leaves and in_spec == pytree.tree_structure((tuple(0 for _ in leaves), {}))

    def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if plain and not kwargs and len(args) == len(leaves) and all(isinstance(a, torch.Tensor) for a in args):
            return list(args)
        leaves_given, spec = pytree.tree_flatten((args, dict(kwargs)))
        if spec != in_spec:
            ordered = _reorder(program, args, kwargs)
            leaves_given, spec = pytree.tree_flatten(ordered)
            if spec != in_spec:
                raise InputError(f"model {graph.name}: called with arguments {spec}, compiled for {in_spec}")
        for name, given, constant in zip(leaves, leaves_given, constants, strict=True):
            if name is None and (type(given) is not type(constant) or given != constant):
                raise InputError(
                    f"model {graph.name}: called with {given!r:.60}, compiled for {constant!r:.60}; compile it again"
                )
            if name is not None and not isinstance(given, torch.Tensor):
                raise InputError(f"input {name}: found {type(given).__name__}, expected a torch tensor")
        return leaves_given

    return CallSpec(flatten, leaves, constants, results, lambda values: pytree.tree_unflatten(values, out_spec))


def _result_names(program: ExportedProgram, graph: OpGraph) -> list[str]:
    count = sum(not isinstance(s.arg, ConstantArgument) for s in program.graph_signature.output_specs)
    names = list(graph.result_names)
    if len(names) != count:
        raise ModelError(f"model {graph.name}: {count} outputs before decomposition, {len(names)} after")
    return names


def _reorder(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Keyword arguments in the order in which the model was exported, so that the structures compare equal."""
    _, spec = pytree.tree_unflatten([0] * program.call_spec.in_spec.num_leaves, program.call_spec.in_spec)
    return args, {k: kwargs[k] for k in spec if k in kwargs} | kwargs


def _input_values(program: ExportedProgram) -> dict[str, torch.Tensor]:
    users = set(program.graph_signature.user_inputs)
    found = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in users}
    return {n: v for n, v in found.items() if isinstance(v, torch.Tensor)}


def _examples(program: ExportedProgram, workload: Workload, name: str) -> list[Any]:
    """One leaf per input with every symbolic dimension bound. Raises `UnboundDimensionError`, `InputError`."""
    values = _input_values(program)
    known = {f"{n}.{i}" for n, v in values.items() for i in range(v.dim())}
    known |= {str(d) for v in values.values() for d in v.shape if not isinstance(d, int)}
    unknown = sorted(set(workload.dims) - known)
    if unknown:
        raise InputError(f"--dim {unknown[0]}: model {name} has no such dimension; it has {', '.join(sorted(known))}")
    bound = {
        str(d): n
        for tensor, v in values.items()
        for axis, d in enumerate(v.shape)
        if not isinstance(d, int) and (n := workload.bind(tensor, axis, str(d))) is not None
    }
    leaves: list[Any] = []
    for spec in (s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"):
        if isinstance(spec.arg, ConstantArgument):
            leaves.append(spec.arg.value)
            continue
        value = values[spec.arg.name]
        shape = [d if isinstance(d, int) else bound.get(str(d)) for d in value.shape]
        if None in shape:
            axis = shape.index(None)
            raise UnboundDimensionError(
                f"model {name}: dimension {axis} ({value.shape[axis]}) of input {spec.arg.name} is dynamic and the "
                f"workload does not bind it; add --dim {spec.arg.name}.{axis}=N"
            )
        leaves.append(torch.zeros([d for d in shape if d is not None], dtype=value.dtype, device=value.device))
    return leaves
