"""`torch.compile(model, backend="qeil", options={...})`.

Each graph that dynamo captures is compiled for the shapes it is called with; graph breaks give several
graphs, new shapes give new plans, and so do weights that were changed. While gradients are recorded a graph
runs in eager torch, because plans have no backward pass; so does a graph that is no pure function of its
inputs (training mode).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .api import Compiled, Settings, _settings, aot_compile, tensor_version
from .errors import ModelError

__all__ = ["qeil"]


def qeil(module: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """The dynamo backend; `options` are the fields of `Settings`. Raises `InputError` for an unknown option."""
    settings = _settings(kwargs.get("options") or {})
    plans: dict[Any, Callable[..., Any]] = {}
    weights = frozenset(k for k, a in enumerate(example_inputs) if _is_weight(a))

    def run(*args: Any) -> Any:
        if torch.is_grad_enabled() and _wants_gradient(module, args):
            warnings.warn(
                "qeil: gradients are recorded, so this graph runs in eager torch; call it under torch.no_grad()",
                stacklevel=2,
            )
            return module(*args)
        key = tuple(_key(a, k in weights) for k, a in enumerate(args))
        if key not in plans:
            # Plans of weights that were written to since are of no use; those of another model's weights are, for
            # dynamo lets equal models share one graph.
            for old in [p for p in plans if any(p[k][0] == key[k][0] and p[k] != key[k] for k in weights)]:
                del plans[old]
            plans[key] = _compile_or_keep(module, args, weights, settings)
        return plans[key](*args)

    return run


def _is_weight(value: Any) -> bool:
    """Dynamo hands parameters and buffers over as inputs; it marks them, because their addresses stay."""
    return isinstance(value, torch.nn.Parameter) or getattr(value, "_dynamo_static_input_type", None) is not None


def _key(value: Any, is_weight: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return tensor_version(value) if is_weight else (tuple(value.shape), value.dtype)


class _Bound(torch.nn.Module):
    """A captured graph with its weights as buffers instead of arguments, so that engines see constants."""

    def __init__(self, graph: fx.GraphModule, args: tuple[Any, ...], weights: frozenset[int]) -> None:
        super().__init__()
        self.graph, self.count = graph, len(args)
        self.weights = weights
        for k in weights:
            self.register_buffer(f"weight{k}", args[k].detach())

    def forward(self, *given: Any) -> Any:
        rest = iter(given)
        bound = self.weights
        return self.graph(*(getattr(self, f"weight{k}") if k in bound else next(rest) for k in range(self.count)))


def _compile_or_keep(
    module: fx.GraphModule, args: tuple[Any, ...], weights: frozenset[int], settings: Settings
) -> Callable[..., Any]:
    def without(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(a for k, a in enumerate(values) if k not in weights)

    try:
        plan = _compile(_Bound(module, args, weights), without(args), settings)
    except ModelError as error:
        warnings.warn(f"qeil: {error}; this graph runs in eager torch", stacklevel=3)
        return module
    return lambda *values: plan(*without(values))


def _wants_gradient(module: fx.GraphModule, args: Sequence[Any]) -> bool:
    tensors = [*module.parameters(), *(a for a in args if isinstance(a, torch.Tensor))]
    return any(t.requires_grad for t in tensors)


def _compile(module: torch.nn.Module, args: tuple[Any, ...], settings: Settings) -> Compiled:
    # Dynamo's fake mode is still active while a backend compiles on a first call inside a graph.
    with torch._subclasses.fake_tensor.unset_fake_temporarily(), torch.no_grad():
        return aot_compile(module, args, {}, settings=settings)
