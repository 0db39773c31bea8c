"""A stage of an FX graph as JSON: operator names and literals, no code and no pickle.

Only operators of torch's own registry are written and read (`torch.ops.<namespace>.<name>.<overload>`
of the namespaces in `NAMESPACES`, and `operator.getitem`), so reading a stage from a stranger cannot
name a Python function. Of those, operators that write to their inputs or touch files are refused, and arguments must
have names of the operator's schema: torch pastes them into the source of the module that it generates. Nested graphs
(the branches of `cond`) are nested JSON graphs.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from qeil_compile.errors import ArtifactError, ModelError
from qeil_compile.untrusted import parse_json

NAMESPACES = frozenset({"aten", "prims", "quantized_decomposed", "higher_order", "torchvision"})
#: Higher-order operators that only call graphs and registered operators.
HIGHER_ORDER = frozenset({"cond", "while_loop", "wrap_with_set_grad_enabled"})
#: Plain functions on sizes that the exporter leaves in graphs.
_BUILTINS: Mapping[str, Callable[..., Any]] = {
    f"operator.{f.__name__}": f
    for f in (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
              operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.neg)
}  # fmt: skip
#: Registered operators that look at files, or that trust sizes and layouts which nobody has checked. Exported models of
#: dense tensors have none of them.
_REFUSED = re.compile(
    r"aten\.(from_file|set|_reshape_alias.*|_(sparse|nested|mkldnn|cudnn|miopen|test|jagged|make_per)_.*)"
)
_TORCH_VALUES = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}


def encode(
    nodes: Sequence[fx.Node], inputs: Sequence[str], outputs: Sequence[fx.Node], owner: torch.nn.Module
) -> dict[str, Any]:
    """JSON form of a graph that computes `outputs` from the placeholders `inputs` by `nodes`.

    `owner` holds the sub-modules that `get_attr` nodes name. Raises `ModelError` naming the node that
    cannot be written.
    """
    return {
        "inputs": list(inputs),
        "nodes": [_encode_node(n, owner) for n in nodes],
        "outputs": [n.name for n in outputs],
    }


def _encode_node(node: fx.Node, owner: torch.nn.Module) -> dict[str, Any]:
    if node.op == "get_attr":
        module = owner.get_submodule(str(node.target))
        if not isinstance(module, fx.GraphModule):
            raise ModelError(f"operator {node.name}: attribute {node.target} is no graph; cannot be lowered")
        return {"name": node.name, "graph": _encode_module(module)}
    if node.op != "call_function":
        raise ModelError(f"operator {node.name}: node kind {node.op} cannot be lowered")
    return {
        "name": node.name,
        "target": target_name(node.target),
        "args": [_encode_value(a, node) for a in node.args],
        "kwargs": {k: _encode_value(v, node) for k, v in node.kwargs.items()},
    }


def _encode_module(module: fx.GraphModule) -> dict[str, Any]:
    nodes = list(module.graph.nodes)
    body = [n for n in nodes if n.op in ("call_function", "get_attr")]
    result = next(n for n in nodes if n.op == "output").args[0]
    return {
        "inputs": [n.name for n in nodes if n.op == "placeholder"],
        "nodes": [_encode_node(n, module) for n in body],
        "result": _encode_value(result, nodes[-1]),
    }


def target_name(target: Any) -> str:
    """Stable name of a call target: `aten.linear.default`, `higher_order.cond`, `operator.getitem`."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._opname}.{target._overloadname}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    name = f"operator.{getattr(target, '__name__', target)}"
    return name if name in _BUILTINS else f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def _encode_value(value: Any, node: fx.Node) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_encode_value(v, node) for v in value]
        return items if isinstance(value, list) else {"tuple": items}
    for kind, tag in _TORCH_VALUES.items():
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": True}
    raise ModelError(f"operator {node.name}: argument of type {type(value).__name__} cannot be lowered")


def dumps(graph: Mapping[str, Any]) -> bytes:
    """Serialized JSON form."""
    return json.dumps(graph, separators=(",", ":")).encode()


def decode(payload: bytes, device: torch.device, weights: Sequence[str] = ()) -> fx.GraphModule:
    """Graph module of a stage; tensors that it creates are created on `device`.

    Placeholders named in `weights` become buffers of the module, to be set by the caller under
    `w0, w1, ...` in that order. Raises `ArtifactError` on anything but registered operators.
    """
    try:
        return _decode_graph(parse_json(payload), device, list(weights))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SyntaxError) as error:
        raise ArtifactError(f"FX stage: malformed ({type(error).__name__}: {error}); compile it again") from error


def _decode_graph(data: Mapping[str, Any], device: torch.device, weights: list[str]) -> fx.GraphModule:
    graph, root = fx.Graph(), torch.nn.Module()
    env: dict[str, fx.Node] = {name: graph.placeholder(f"i{k}") for k, name in enumerate(data["inputs"])}
    for k, name in enumerate(weights):
        root.register_buffer(f"w{k}", torch.empty(0))
        env[name] = graph.get_attr(f"w{k}")
    for k, node in enumerate(data["nodes"]):
        if "graph" in node:
            root.add_module(f"g{k}", _decode_graph(node["graph"], device, []))
            env[node["name"]] = graph.get_attr(f"g{k}")
            continue
        target = _resolve(node["target"])
        if target is torch.ops.aten.view.default:
            # A tensor from another stage may have other strides than where the model was traced.
            target = torch.ops.aten.reshape.default
        args = tuple(_decode_value(a, env, device) for a in node["args"])
        kwargs = {_argument(target, key): _decode_value(v, env, device) for key, v in node["kwargs"].items()}
        env[node["name"]] = graph.call_function(target, args, kwargs)
    if "result" in data:
        graph.output(_decode_value(data["result"], env, device))
    else:
        graph.output(tuple(env[name] for name in data["outputs"]))
    return fx.GraphModule(root, graph)


def _resolve(name: str) -> Callable[..., Any]:
    if name in _BUILTINS:
        return _BUILTINS[name]
    parts = name.split(".")
    if parts[0] == "higher_order" and len(parts) == 2 and parts[1] in HIGHER_ORDER:
        return getattr(torch.ops.higher_order, parts[1])
    if len(parts) == 3 and parts[0] in NAMESPACES - {"higher_order"}:
        found = getattr(getattr(getattr(torch.ops, parts[0]), parts[1], None), parts[2], None)
        if isinstance(found, torch._ops.OpOverload) and not _REFUSED.fullmatch(".".join(parts[:2])):
            if found._schema.is_mutable:
                raise ArtifactError(f"FX stage: {name} writes to its inputs, which stages share; refused")
            return found
    raise ArtifactError(f"FX stage: {name} is no registered operator of this torch ({torch.__version__}); refused")


def _argument(target: Callable[..., Any], name: str) -> str:
    """The name, if the operator has an argument of that name: whatever stands there becomes Python source."""
    known = {a.name for a in target._schema.arguments} if isinstance(target, torch._ops.OpOverload) else set()
    if name not in known:
        raise ArtifactError(f"FX stage: argument {name!r:.60} is none of {target}; refused")
    return name


def _decode_value(value: Any, env: Mapping[str, fx.Node], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_decode_value(v, env, device) for v in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "node":
        return env[inner]
    if tag == "tuple":
        return tuple(_decode_value(v, env, device) for v in inner)
    if tag == "float":
        return float(inner)
    if tag == "device":
        return device
    if tag in _TORCH_VALUES.values():
        found = getattr(torch, inner, None)
        if type(found) in _TORCH_VALUES:
            return found
    raise ArtifactError(f"FX stage: unknown value {tag}={inner!r}; refused")
