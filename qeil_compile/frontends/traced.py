"""What tracing returns: the operator graph, the source to cut, and how to run the whole model once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qeil_compile.errors import InputError
from qeil_compile.forms.program import Source
from qeil_compile.ir import OpGraph, TensorSpec, Workload

Arrays = Mapping[str, np.ndarray]
#: Seconds that one run of an ONNX model may take unless something else is said, as the first call of a stage has.
RUN_SECONDS = 300.0
#: Bytes of an input that is made up.
_LARGEST = 1 << 30
#: Types of operators that read rows of a table: an integer input that feeds one must stay below its row count.
_LOOKUPS = {"embedding": (1, 0), "Gather": (1, 0), "index_select": (2, 0)}


@dataclass(frozen=True)
class CallSpec:
    """How Python arguments map to input tensors, and output tensors to the returned structure.

    `flatten(args, kwargs)` gives one object per leaf; `leaves` names the input tensor of each leaf, or
    None for a constant leaf, whose value is in `constants`. `results` holds, per output leaf, a tensor name
    or a literal.
    """

    flatten: Callable[[tuple[Any, ...], dict[str, Any]], list[Any]]
    leaves: Sequence[str | None]
    constants: Sequence[Any]
    results: Sequence[tuple[str | None, Any]]
    unflatten: Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Traced:
    """A traced model. `run_reference` runs the unpartitioned model; `samples` are inputs for it."""

    graph: OpGraph
    source: Source
    workload: Workload
    samples: Arrays
    run_reference: Callable[[Arrays], list[np.ndarray]]
    seconds: float
    call: CallSpec | None = None
    #: False when the weights are on the meta device: then the model can be planned, not lowered.
    has_weights: bool = True
    notes: Sequence[str] = field(default_factory=tuple)

    def as_text(self) -> str:
        """Readable listing of the graph."""
        return f"traced in {self.seconds:.2f} s (measured)\n{self.graph.as_text()}"

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form of the graph and the workload."""
        return {"graph": self.graph.to_json(), "workload": self.workload.to_json(), "seconds": self.seconds}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy dtype of a `TensorSpec.dtype`, by `ml_dtypes` where numpy has none."""
    try:
        return np.dtype(name if name != "string" else "object")
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def sample_inputs(graph: OpGraph, given: Arrays, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for one run: the given ones, checked, and seeded random ones for the rest.

    Floats are standard normal; integers that index a table are drawn from its rows, other integers and
    booleans from {0, 1}. Raises `InputError` for an unknown name, a wrong shape or dtype.
    """
    unknown = sorted(set(given) - set(graph.inputs))
    if unknown:
        raise InputError(f"input {unknown[0]}: the model has no such input; its inputs are {', '.join(graph.inputs)}")
    rng = np.random.default_rng(seed)
    samples: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        spec = graph.tensors[name]
        samples[name] = check_input(spec, given[name]) if name in given else _random(graph, _sized(spec), rng)
    return samples


def _sized(spec: TensorSpec) -> TensorSpec:
    """The input, if random numbers for it fit into any memory. Raises `InputError`."""
    if spec.nbytes > _LARGEST:
        raise InputError(
            f"input {spec.name}: a sample of shape {list(spec.shape or ())!r:.80} takes {spec.nbytes / 1e9:.3g} GB, "
            f"expected at most {_LARGEST / 1e9:.3g} GB; bind smaller dimensions with --dim, or give the input"
        )
    return spec


def check_input(spec: TensorSpec, value: Any) -> np.ndarray:
    """The value as an array of the input's shape and dtype. Raises `InputError`.

    Python numbers and lists are converted; arrays must have the dtype already, because a silent cast
    of a user's tensor hides a mistake.
    """
    expected = numpy_dtype(spec.dtype)
    if isinstance(value, np.ndarray) and value.dtype != expected:
        raise InputError(f"input {spec.name}: found dtype {value.dtype}, expected {spec.dtype}; cast it first")
    try:
        array = np.asarray(value, dtype=expected)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"input {spec.name}: {value!r:.60} is no {spec.dtype} tensor ({error})") from error
    shape = spec.shape if spec.shape is not None else array.shape
    if len(array.shape) != len(shape) or any(d is not None and d != a for d, a in zip(shape, array.shape, strict=True)):
        raise InputError(
            f"input {spec.name}: found shape {list(array.shape)}, expected {['?' if d is None else d for d in shape]}; "
            "compile again with --dim for another shape"
        )
    return array


def _random(graph: OpGraph, spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    dtype, shape = numpy_dtype(spec.dtype), tuple(d or 1 for d in spec.shape or ())
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(0, _rows(graph, spec.name), shape).astype(dtype)
    if dtype.kind == "O":
        return np.full(shape, "a", dtype=object)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def _rows(graph: OpGraph, name: str) -> int:
    """Rows of the smallest table that the integer tensor indexes, through casts and reshapes; otherwise 2.

    A comparison with a constant of several elements is a lookup as well: so are one-hot codes written out.
    """
    limits: list[int] = []
    todo, seen = [name], {name}
    while todo:
        tensor = todo.pop()
        for i in graph.consumers.get(tensor, ()):
            op = graph.ops[i]
            position, table = _LOOKUPS.get(op.short_type, (None, None))
            if position is not None and table is not None and op.inputs[position : position + 1] == (tensor,):
                shape = graph.tensors[op.inputs[table]].shape
                limits += [shape[0] or 1] if shape else []
            elif op.short_type in {"Equal", "eq"}:
                other = [graph.tensors[t] for t in op.inputs if t != tensor and graph.tensors[t].role == "weight"]
                limits += [t.elements for t in other if t.elements > 1]
            elif op.short_type in {"Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "view", "_to_copy", "clone"}:
                todo += [o for o in op.outputs if o and o not in seen]
                seen.update(op.outputs)
    return min(limits, default=2)
