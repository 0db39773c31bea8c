"""ONNX models from strangers: everything that a model declares is checked before anything is allocated by it.

`read_model` is the one way in for files, with their external data kept inside their folder; `check_stage` is for the
models that travel in artifacts, which may refer to no file at all.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message

from qeil_compile.errors import ModelError
from qeil_compile.ir import DTYPE_BYTES
from qeil_compile.untrusted import elements, read_file

from .onnx_source import dtype_name

#: protobuf reads no larger message.
MODEL_LIMIT = (1 << 31) - 1
#: Nested graphs, one inside the other.
_DEPTH = 32
#: A sparse weight is made dense: elements that may come of one.
_DENSE = 1 << 28
#: Attributes of windows -> the least value. Engines keep them in 32 bits, and divide by what is left.
_INT32 = 1 << 31
_WINDOWS = {"strides": 1, "dilations": 1, "kernel_shape": 1, "group": 1, "pads": -_INT32, "output_padding": 0}
#: Operators that the engines here know by name. Nothing else in a model runs anywhere, so that whoever has an engine
#: with more has to say so.
KNOWN_DOMAINS = frozenset({
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.openvinotoolkit",
})  # fmt: skip
#: No version of an operator set is near this.
OPSET_LIMIT = 1000
#: Operator sets that a model or a function imports; a few, in truth.
_OPSETS = 100
#: Fields of a tensor that hold its data where `raw_data` does not -> how many entries an element takes.
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def read_model(path: Path, allow_operators: Collection[str] = ()) -> onnx.ModelProto:
    """An ONNX file with its external data, checked. Raises `ModelError` naming the file and what is wrong in it.

    `allow_operators` are further domains of operators that may occur.
    """
    model = parse_file(path)
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{path}: holds no ONNX graph; expected a model exported to ONNX")
    folder = path.absolute().parent
    for tensor in tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _load_external(tensor, folder, path)
    check_model(model, str(path), allow_operators)
    try:
        # The path form has no 2 GiB limit.
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError, DecodeError) as error:
        raise ModelError(f"{path}: is no valid ONNX model ({_line(error)}); export it again") from error
    return model


def parse_file(path: Path) -> onnx.ModelProto:
    """The message in a file, without external data; only its texts are checked. Raises `ModelError`."""
    try:
        return _parse(read_file(path, MODEL_LIMIT))
    except (OSError, DecodeError, MemoryError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as an ONNX model ({_line(error)})") from error


def check_model(model: onnx.ModelProto, name: str, allow_operators: Collection[str] = ()) -> None:
    """Raise `ModelError` for what no honest exporter writes: sizes that nothing has, data of another length than
    declared, operators of unknown domains, functions that call themselves, graphs nested without end."""
    try:
        own = _functions(model)
        _check_versions(model.opset_import)
        for function in model.functions:
            _check_versions(function.opset_import)
            _check_nodes(function.node, 1)
        _check_graph(model.graph, 1)
        _check_domains(model, KNOWN_DOMAINS | own | set(allow_operators))
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error


def check_types(model: onnx.ModelProto, name: str) -> None:
    """Raise `ModelError` where a declared type contradicts what operators give, in nested graphs too.

    OpenVINO believes such declarations: numbers that are called texts are read as pointers.
    """
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        # Other complaints of the strict mode are about operators that it does not know, and shapes.
        if "elem type differs" in str(error) or "unsupported type: tensor(string)" in str(error):
            raise ModelError(f"{name}: a declared type is another than computed ({_line(error)})") from error


def check_stage(
    payload: bytes, weights: Mapping[str, np.ndarray], inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """A model that travels in an artifact, with the arrays of its weights. Raises `ModelError` or `ValueError`.

    Its weights have the declared types and shapes and come from nowhere else, its nodes read what is there by then, and
    it has the inputs and outputs that its unit says.
    """
    try:
        model = _parse(payload)
    except (DecodeError, ValueError) as error:
        raise ValueError(f"the stage is no ONNX model ({_line(error)})") from error
    outside = [t.name for t in tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    own = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in own:
        _check_weight(tensor, weights)
    if len(outside) > len(own):
        # An engine would look for a file of that name, wherever the process happens to stand.
        raise ValueError(f"one of {', '.join(outside)!r:.80} is in a file; stages name no files")
    check_model(model, "stage", {n.domain for n in nodes(model)})
    initial = {t.name for t in model.graph.initializer}
    given = [i for i in model.graph.input if i.name not in initial]
    _check_order(model.graph, set())
    for kind, found, wanted in (("inputs", given, inputs), ("outputs", model.graph.output, outputs)):
        names = [v.name for v in found]
        if names != list(wanted):
            odd = sorted(set(names) ^ set(wanted)) or names
            raise ValueError(f"the stage and its unit have different {kind}: {', '.join(odd)!r:.80}")
    check_types(model, "stage")
    _check_operators(model)


def _check_operators(model: onnx.ModelProto) -> None:
    """Operators have the inputs, outputs and attributes that their definition says: engines take that for granted.

    The `onnx` package checks files for it, but not a stage, whose weights are elsewhere, and which may hold operators
    that only an engine has under the standard's domain.
    """
    # The standard's domain has two names.
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    for node in nodes(model):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in versions:
            what = f"operator {node.name or node.op_type!r:.60} of domain {node.domain!r:.40}"
            raise ValueError(f"{what}: the stage imports no operator set of it")
        version = versions[domain]
        if domain or not onnx.defs.has(node.op_type, version, domain):
            continue
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        what = f"operator {node.name or node.op_type!r:.60} of type {node.op_type}"
        for kind, found, least, most in (("inputs", node.input, schema.min_input, schema.max_input),
                                         ("outputs", node.output, schema.min_output, schema.max_output)):  # fmt: skip
            if not least <= len(found) <= most:
                raise ValueError(f"{what} has {len(found)} {kind}, its definition {least} to {most}")
        bare = [str(i.name) for i, name in zip(schema.inputs, node.input, strict=False)
                if not name and i.option == onnx.defs.OpSchema.FormalParameterOption.Single]  # fmt: skip
        if bare:
            raise ValueError(f"{what} has no input {bare[0]}")
        kinds = {a.name: a.type for a in node.attribute}
        for name, kind in kinds.items():
            if name not in schema.attributes or int(schema.attributes[name].type) != kind:
                raise ValueError(f"{what} has an attribute {name!r:.40} that its definition has not")
        missing = next((n for n, a in schema.attributes.items() if a.required and n not in kinds), None)
        if missing is not None:
            raise ValueError(f"{what} has no attribute {missing}")


def _parse(data: bytes) -> onnx.ModelProto:
    """A message whose texts are texts: protobuf takes any bytes for them, and fails when they are looked at."""
    model = onnx.ModelProto.FromString(data)
    todo: list[Message] = [model]
    while todo:
        message = todo.pop()
        if isinstance(message, onnx.TensorProto):
            # Without a copy of its data.
            _check_texts([message.name, message.doc_string])
            todo += message.external_data
            continue
        for field, value in message.ListFields():
            values = [value] if isinstance(value, (str, bytes, Message)) else value
            if field.type == field.TYPE_STRING:
                _check_texts(values)
            elif field.type == field.TYPE_MESSAGE:
                todo += values
    return model


def _check_texts(values: Iterable[Any]) -> None:
    """Raise `ValueError` for bytes that are no UTF-8."""
    wrong = next((v for v in values if not isinstance(v, str)), None)
    if wrong is not None:
        raise ValueError(f"found {wrong!r:.60} in place of a text")


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: weights and attributes, in nested graphs and functions too, and parts of sparse ones."""
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        for a in node.attribute:
            yield from ([a.t] if a.HasField("t") else ())
            yield from a.tensors
            for sparse in ([a.sparse_tensor] if a.HasField("sparse_tensor") else a.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, in nested graphs and functions too."""
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    todo = [model.graph, *(g for f in model.functions for n in f.node for g in _nested(n))]
    todo += [g for t in model.training_info for g in (t.initialization, t.algorithm)]
    while todo:
        graph = todo.pop()
        yield graph
        todo += [g for n in graph.node for g in _nested(n)]


def _nested(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for a in node.attribute:
        if a.HasField("g"):
            yield a.g
        yield from a.graphs


def _check_graph(graph: onnx.GraphProto, depth: int) -> None:
    if depth > _DEPTH:
        raise ValueError(f"graphs are nested deeper than {_DEPTH}")
    for tensor in graph.initializer:
        check_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _check_sparse(sparse)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _check_type(info.type, info.name)
    _check_nodes(graph.node, depth)


def _check_nodes(listed: Sequence[onnx.NodeProto], depth: int) -> None:
    for node in listed:
        for a in node.attribute:
            least = _WINDOWS.get(a.name)
            wrong = [v for v in (*a.ints, *([a.i] if a.HasField("i") else ())) if least is not None and not (
                least <= v < _INT32)]  # fmt: skip
            if wrong:
                name = node.name or node.op_type
                raise ValueError(f"operator {name!r:.60}: {a.name} is {wrong[0]}, expected {least} to {_INT32 - 1}")
            for tensor in (*([a.t] if a.HasField("t") else ()), *a.tensors):
                check_tensor(tensor)
            for sparse in (*([a.sparse_tensor] if a.HasField("sparse_tensor") else ()), *a.sparse_tensors):
                _check_sparse(sparse)
        for graph in _nested(node):
            _check_graph(graph, depth + 1)


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Raise `ValueError` where a tensor's data have another length than its type and shape need."""
    kind, name = dtype_name(tensor.data_type), f"tensor {tensor.name!r:.60}"
    if kind not in DTYPE_BYTES or kind == "opaque":
        raise ValueError(f"{name} has type {tensor.data_type}, which is none of ONNX's")
    try:
        count = elements(list(tensor.dims))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    stored = [f for f in _TYPED if len(getattr(tensor, f))]
    if tensor.HasField("raw_data"):
        need, found, unit = -int(-count * DTYPE_BYTES[kind] // 1), len(tensor.raw_data), "bytes"
        if kind == "string" or stored:
            raise ValueError(f"{name} of {kind} has data twice, or in a form that its type does not have")
    elif len(stored) > 1:
        raise ValueError(f"{name} has data in {' and '.join(stored)}, expected one of them")
    else:
        per = 2 if kind.startswith("complex") else DTYPE_BYTES[kind] if DTYPE_BYTES[kind] < 1 else 1
        need, found, unit = -int(-count * per // 1), len(getattr(tensor, stored[0])) if stored else 0, "entries"
    if found != need:
        raise ValueError(f"{name} has {found} {unit} of data, {kind}{list(tensor.dims)!r:.60} needs {need}")


def _check_sparse(sparse: onnx.SparseTensorProto) -> None:
    check_tensor(sparse.values)
    check_tensor(sparse.indices)
    if elements(list(sparse.dims)) > _DENSE:
        raise ValueError(f"sparse tensor {sparse.values.name!r:.60} has shape {list(sparse.dims)!r:.60}, too large to "
                         "be made dense")  # fmt: skip


def _check_type(kind: onnx.TypeProto, name: str) -> None:
    """The shape of a declared value, inside sequences and optionals too."""
    for _ in range(_DEPTH):
        which = kind.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            shape = getattr(kind, which).shape
            try:
                elements([d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else 1 for d in shape.dim])
            except ValueError as error:
                raise ValueError(f"value {name!r:.60}: {error}") from error
            return
        if which not in ("sequence_type", "optional_type", "map_type"):
            return
        inner = getattr(kind, which)
        kind = inner.value_type if which == "map_type" else inner.elem_type
    raise ValueError(f"value {name!r:.60}: types are nested deeper than {_DEPTH}")


def _functions(model: onnx.ModelProto) -> set[str]:
    """Domains of the model's own functions. Raises `ValueError` where one calls itself, however indirectly."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    calls = {key: [(n.domain, n.op_type) for n in _inside(f.node) if (n.domain, n.op_type) in bodies]
             for key, f in bodies.items()}  # fmt: skip
    sizes: dict[tuple[str, str], int] = {}
    while len(sizes) < len(calls):
        ready = [k for k, called in calls.items() if k not in sizes and all(c in sizes for c in called)]
        if not ready:
            raise ValueError(f"function {min(set(calls) - set(sizes))[1]!r:.60} calls itself")
        for k in ready:
            # Inlined, functions that call one another twice double with each level.
            sizes[k] = len(bodies[k].node) + sum(sizes[c] for c in calls[k])
            if sizes[k] > _DENSE >> 8:
                raise ValueError(f"function {k[1]!r:.60} has {sizes[k]} operators when it is inlined")
    return {domain for domain, _ in bodies}


def _inside(listed: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    todo = list(listed)
    while todo:
        node = todo.pop()
        yield node
        todo += [n for g in _nested(node) for n in g.node]


def _check_versions(imported: Iterable[onnx.OperatorSetIdProto]) -> None:
    """Operator sets that there may be: OpenVINO counts up to the version that a model says."""
    listed = [each.version for each in imported]
    odd = next((v for v in listed if not 0 < v <= OPSET_LIMIT), None)
    if odd is not None:
        raise ValueError(f"operator set of version {odd}; expected 1 to {OPSET_LIMIT}")
    if len(listed) > _OPSETS:
        raise ValueError(f"{len(listed)} operator sets; expected at most {_OPSETS}")


def _check_domains(model: onnx.ModelProto, known: Collection[str]) -> None:
    for node in nodes(model):
        if node.domain not in known:
            raise ValueError(
                f"operator {node.name or node.op_type!r:.60} is {node.op_type!r:.40} of domain {node.domain!r:.60}, "
                f"which no engine here has; if one of yours has it, allow it with --allow-operators {node.domain:.60}"
            )


def _check_weight(tensor: onnx.TensorProto, weights: Mapping[str, np.ndarray]) -> None:
    array = weights.get(tensor.name)
    entries = {e.key: e.value for e in tensor.external_data}
    # As the exporter writes it, or with a location alone.
    whole = {"location": tensor.name, "offset": "0", "length": str(array.nbytes)} if array is not None else {}
    if array is None or entries not in (whole, {"location": tensor.name}) or len(tensor.external_data) != len(entries):
        raise ValueError(f"weight {tensor.name!r:.60} is none of the unit's; stages name no files")
    kind = dtype_name(tensor.data_type)
    # Halves are only stored so: decoders compute in float32.
    fits = array.dtype.name == kind or (array.dtype.name, kind) == ("float16", "float32")
    if not fits or array.shape != tuple(tensor.dims):
        raise ValueError(f"weight {tensor.name!r:.60} is {array.dtype.name}{list(array.shape)!r:.60}, the stage says "
                         f"{kind}{list(tensor.dims)!r:.60}")  # fmt: skip


def _check_order(graph: onnx.GraphProto, outer: set[str]) -> None:
    """Nodes read what was written before them, and nothing is written twice."""
    known = outer | {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    known |= {i.name for i in graph.input}
    own: set[str] = set()
    for node in graph.node:
        missing = [i for i in node.input if i and i not in known]
        if missing:
            name = node.name or node.op_type
            raise ValueError(f"operator {name!r:.60} reads {missing[0]!r:.60}, which nothing writes before it")
        for nested in _nested(node):
            _check_order(nested, known)
        for output in filter(None, node.output):
            if output in known or output in own:
                raise ValueError(f"tensor {output!r:.60} is written twice")
            own.add(output)
        known |= own
    lost = [o.name for o in graph.output if o.name not in known]
    if lost:
        raise ValueError(f"output {lost[0]!r:.60} is written by no operator")


def _load_external(tensor: onnx.TensorProto, folder: Path, path: Path) -> None:
    """Bring a tensor's data into the model, if their file is inside the folder and long enough."""
    what = f"{path}: tensor {tensor.name!r:.60}"
    given = {e.key: e.value for e in tensor.external_data}
    location = given.get("location", "")
    parts = Path(location).parts
    if not location or "\0" in location or "\\" in location or Path(location).is_absolute() or ".." in parts:
        raise ModelError(f"{what}: its data are in {location!r:.80}, expected a file inside the model's folder")
    full = folder / location
    try:
        if not full.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise ModelError(f"{what}: {location!r:.80} is a link that leaves the model's folder; copy the file there")
        offset, size = int(given.get("offset", 0)), _wanted(tensor)
        length = int(given.get("length", size))
        tensor.raw_data = _part(full, offset, length, size)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        raise ModelError(f"{what}: its data in {location!r:.80} cannot be read ({_line(error)})") from error
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _wanted(tensor: onnx.TensorProto) -> int:
    kind = dtype_name(tensor.data_type)
    if kind not in DTYPE_BYTES or kind in ("opaque", "string"):
        raise ValueError(f"type {tensor.data_type} has no data in files")
    return -int(-elements(list(tensor.dims)) * DTYPE_BYTES[kind] // 1)


def _part(path: Path, offset: int, length: int, size: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        whole = os.fstat(handle).st_size if path.is_file() else 0
        if length != size or offset < 0 or offset + length > whole:
            raise ValueError(f"bytes {offset} to {offset + length} of {whole}, the tensor needs {size}")
        file.seek(offset)
        return file.read(length)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


