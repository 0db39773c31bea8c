"""ONNX models made flat: local functions and the standard's own function bodies are inlined."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

import onnx
import onnx.inliner
import onnx.shape_inference

from qeil_compile.backends.torch.onnx_ops import find_rule

#: Domain of the standard's function bodies while they are inlined.
_EXPANDED = "qeil.expanded"


def plain_domain(domain: str) -> str:
    """The domain's name with the standard one always as the empty text."""
    return "" if domain == "ai.onnx" else domain


@lru_cache(maxsize=4096)
def function_operators(op_type: str, domain: str, version: int) -> tuple[tuple[str, str], ...] | None:
    """Operators in the body that the ONNX standard gives an operator; None if it has no body.

    Bodies that depend on the node (its types) are listed as empty: what they hold shows on expansion.
    """
    if not onnx.defs.has(op_type, max_inclusive_version=version, domain=domain):
        return None
    schema = onnx.defs.get_schema(op_type, max_inclusive_version=version, domain=domain)
    if schema.has_function:
        return tuple((n.op_type, plain_domain(n.domain)) for n in schema.function_body.node)
    return () if schema.has_context_dependent_function else None


def _walk(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _walk(attribute.g)


def opset_versions(model: onnx.ModelProto) -> dict[str, int]:
    """Opset version of every domain that the model imports."""
    return {plain_domain(o.domain): o.version for o in model.opset_import}


def value_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Type of every value that declarations or inference tell."""
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        # Types only refine a few rules; a stage that cannot be inferred still runs.
        model = onnx.shape_inference.infer_shapes(model)
    found: dict[str, onnx.TypeProto] = {}

    def collect(graph: onnx.GraphProto) -> None:
        for info in (*graph.value_info, *graph.input, *graph.output):
            found[info.name] = info.type
        for initializer in graph.initializer:
            found[initializer.name] = onnx.helper.make_tensor_type_proto(
                initializer.data_type, list(initializer.dims)
            )
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    collect(attribute.g)

    collect(model.graph)
    return found


def _function_body(
    node: onnx.NodeProto, version: int, types: Mapping[str, onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The standard's body of one node; the node gets the defaults of attributes that the body refers to."""
    if function_operators(node.op_type, plain_domain(node.domain), version) is None:
        return None
    schema = onnx.defs.get_schema(
        node.op_type, max_inclusive_version=version, domain=plain_domain(node.domain)
    )
    given = {a.name for a in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.append(attribute.default_value)
    if schema.has_function:
        usable = [v for v in schema.function_opset_versions if v <= version]
        body = schema.get_function_with_opset_version(max(usable)) if usable else b""
    else:
        usable = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        kinds = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        body = (
            schema.get_context_dependent_function_with_opset_version(
                max(usable), node.SerializeToString(), kinds
            )
            if usable
            else b""
        )
    return onnx.FunctionProto.FromString(body) if body else None


def expand_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline model-local functions, and standard functions that have no rule of their own.

    The standard's bodies are put into the model as local functions: the inliner's own expansion of
    them fails on nodes with an omitted input.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    versions = opset_versions(model)
    # Bodies may hold functions again; the standard nests them a few levels at most.
    for _ in range(8):
        missing = [n for n in _walk(model.graph) if find_rule(n.op_type, n.domain) is None]
        types = value_types(model) if missing else {}
        bodies = 0
        for node in missing:
            version = versions.get(plain_domain(node.domain), 1)
            body = _function_body(node, version, types)
            if body is None:
                continue
            bodies += 1
            body.name, body.domain = f"{node.op_type}_{bodies}", _EXPANDED
            # A body serves all versions up to the next one: it adopts the model's.
            for opset in body.opset_import:
                domain = plain_domain(opset.domain)
                if domain not in versions:
                    versions[domain] = opset.version
                    model.opset_import.append(opset)
                opset.version = versions[domain]
            node.op_type, node.domain = body.name, body.domain
            model.functions.append(body)
        if not bodies:
            return model
        if all(opset.domain != _EXPANDED for opset in model.opset_import):
            model.opset_import.append(onnx.helper.make_operatorsetid(_EXPANDED, 1))
        model = onnx.inliner.inline_local_functions(model)
    return model
