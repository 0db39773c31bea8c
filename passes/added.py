"""Kernels that an engine adds around an operator: views of rows, copies for grouped heads, layers of one operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qeil_compile.passes.count.base import dims, tensor
from qeil_compile.passes.facts import Facts

if TYPE_CHECKING:
    from qeil_compile.passes.match import Match

Added = tuple[str, int]


def added(match: Match, root: int) -> list[Added]:
    """(type, bytes that it reads and then writes) of each kernel that the engine adds to a group that is not free."""
    first = match.split.get(root)
    return [*([first] if first else []), *(a for m in match.members[root] for a in _to_operator(match, root, m))]


def _to_operator(match: Match, root: int, i: int) -> list[Added]:
    facts, graph, rules = match.facts, match.facts.graph, match.rules
    op, name = graph.ops[i], facts.families[i]
    found = [(kind, _size(facts, i, size)) for kind, size in rules.more.get(name, ())]
    if op.type.startswith(("aten.lstm.", "aten.gru.", "aten.rnn_")):
        found += _layers(match, i)
    if op.type.startswith("aten.unbind") and rules.reshapes_rows:
        found += [("Squeeze", 0)] * len(op.outputs)
    if name == "attention" and rules.subgraphs:
        found += _repeated(facts, i)
    if rules.reshapes_rows and _has_rows(match, root, i):
        found += [("Reshape", 0), ("Reshape", 0)]
    if rules.converts_int64:
        given = (graph.tensors[t] for t, p in facts.live[i] if p < 0 and graph.consumers[t][0] == i)
        found += [("Convert", t.nbytes) for t in given if t.dtype == "int64"]
    return found


def _size(facts: Facts, i: int, what: str) -> int:
    """Bytes of the "key" or the result ("out") of operator i."""
    spec = tensor(facts.graph, facts.graph.ops[i].inputs, 1) if what == "key" else None
    return spec.nbytes if spec else facts.out_bytes(i)


def _has_rows(match: Match, root: int, i: int) -> bool:
    """A product with a bias over more than two axes is flattened to two and back."""
    facts = match.facts
    if len(facts.shape(i)) <= 2:
        return False
    if facts.families[i] == "linear":
        return len(facts.graph.ops[i].inputs) > 2
    return facts.families[i] == "matmul" and any(facts.families[m] == "add" for m in match.members[root])


def _layers(match: Match, i: int) -> list[Added]:
    """A recurrent operator over several layers is a kernel per layer, with transposes and views around each."""
    facts, rules = match.facts, match.rules
    op = facts.graph.ops[i]
    layers = op.attributes.get("num_layers")
    if not rules.folds or not isinstance(layers, int):
        return []
    out = facts.graph.tensors[op.outputs[0]].nbytes
    found = [(op.short_type, out)] * (layers - 1) + [("Transpose", out)] * layers
    found += [("Transpose", out)] if op.attributes.get("batch_first") is True else []
    return found + [("Reshape", 0)] * (layers if rules.views_run else 0)


def grouped(facts: Facts, i: int) -> bool:
    """Attention with fewer key than query heads."""
    op, graph = facts.graph.ops[i], facts.graph
    query, key = (dims(tensor(graph, op.inputs, k)) for k in (0, 1))
    return len(query) == len(key) == 4 and query[1] != key[1]


def _repeated(facts: Facts, i: int) -> list[Added]:
    """OpenVINO repeats the keys and values of grouped heads, and transposes keys that no transpose wrote."""
    op, graph = facts.graph.ops[i], facts.graph
    query, key = tensor(graph, op.inputs, 0), tensor(graph, op.inputs, 1)
    times = dims(query)[1] // max(1, dims(key)[1]) if grouped(facts, i) else 1
    size = (key.nbytes if key else 0) * times
    found: list[Added] = [("Tile", size), ("Tile", size)] if times > 1 else []
    writer = graph.producer.get(op.inputs[1], -1)
    moved = writer >= 0 and facts.families[writer] == "transpose" and times == 1
    return found if moved or 1 in dims(key)[-2:] else [*found, ("Transpose", size)]
