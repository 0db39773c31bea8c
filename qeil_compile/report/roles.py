"""Which layer an operator belongs to and what it does there, read from its scope or name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_NUMBER = re.compile(r"\d+", re.ASCII)
#: `layer_3`, `block12`: a layer whose number is part of its name.
_NAMED = re.compile(r"(?:layers?|blocks?|h)_?(\d+)", re.ASCII)
#: What carries most of the work of a group names it.
_HEAVY = re.compile(r"matmul|gemm|conv|linear|attention|\bmm\b|addmm|bmm|lstm|gru|einsum", re.IGNORECASE)
#: No model has more layers than numbers of so many digits can tell.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Role:
    """`layer` counts from 0, None outside of any layer; `role` is the path below it, or the operator's type."""

    layer: int | None
    role: str


def short_type(kind: str) -> str:
    """The type without its name space and overload: `linear` of `aten.linear.default`, `Conv` of `onnx.Conv`."""
    parts = kind.split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[-1]


def roles(
    groups: Sequence[Sequence[str]], types: Sequence[Sequence[str]], scopes: Mapping[str, str]
) -> list[Role]:
    """Layer and role of each group of operators, named by the operator that does most of its work.

    A number in a path is a layer only where several groups share it: the entries of a `Sequential` are no layers.
    Where a model has several stacks of layers, they are counted on, in order.
    """
    leaders = [_leader(names, kinds) for names, kinds in zip(groups, types, strict=True)]
    paths = [_path(names[k], scopes.get(names[k], "")) for names, k in zip(groups, leaders, strict=True)]
    kinds = [short_type(t[k]) if t else "" for t, k in zip(types, leaders, strict=True)]
    places = [_place(path) for path in paths]
    size = Counter(at for at, _ in places if at is not None)
    stacks = {at[0] for at, n in size.items() if n > 1}
    layers = list(dict.fromkeys(at for at, _ in places if at is not None and at[0] in stacks))
    numbers = {at: at[1] for at in layers} if len(stacks) == 1 else {at: k for k, at in enumerate(layers)}
    found = []
    for (at, below), path, kind in zip(places, paths, kinds, strict=True):
        inside = at is not None and at in numbers
        rest = _without_type(below if inside else path, kind)
        found.append(Role(numbers[at] if inside and at is not None else None, ".".join(rest) or kind or "operator"))
    return found


def _leader(names: Sequence[str], kinds: Sequence[str]) -> int:
    return next((k for k, t in enumerate(kinds[: len(names)]) if _HEAVY.search(t)), 0)


def _path(name: str, scope: str) -> list[str]:
    """ONNX names are paths themselves, with more detail than the scope; FX has paths in scopes only."""
    return [p for p in re.split(r"[/.]", name if "/" in name or not scope else scope) if p]


def _place(path: Sequence[str]) -> tuple[tuple[str, int] | None, list[str]]:
    """The stack and the number of the layer that a path leads into, and what is below it."""
    for pattern in (_NUMBER, _NAMED):
        for k, part in enumerate(path):
            match = pattern.fullmatch(part)
            digits = match[match.lastindex or 0] if match else ""
            # The last part of a path is the operator itself.
            if match and len(digits) <= _DIGITS and (k or pattern is _NAMED):
                stack = ".".join(path[:k]) if pattern is _NUMBER else ".".join([*path[:k], part.rstrip("0123456789")])
                return (stack, int(digits)), list(path[k + 1 :])
    return None, []


def _without_type(path: Sequence[str], kind: str) -> list[str]:
    """`attention.MatMul_1` is the operator of `attention`: the type says nothing about its role."""
    last = path[-1] if path else ""
    own = re.fullmatch(rf"{re.escape(kind)}(?:_\d+)?", last) if kind else None
    return list(path[:-1]) if own and len(path) > 1 else list(path)
