"""Which operators an engine runs as one kernel: `kernels` applies the rules of `passes.fusion_rules` to a graph.

Steps, each a function here: the written-out functions (`Pattern`), quantised kernels, transposes that a product
takes in, followers (`Stage`), element-wise subgraphs, slices of one tensor; then what costs nothing is marked and
the kernels that the engine adds (reorders between layouts, copies) are listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qeil_compile.ir import OpGraph
from qeil_compile.passes.count import OpCount
from qeil_compile.passes.count.base import dims, ints_of, tensor
from qeil_compile.passes.count.traffic import is_view
from qeil_compile.passes.fusion_rules import DEFAULT, RULES, FusionRules, Pattern, Stage, family, names
from qeil_compile.passes.groups import CALLER, Groups
from qeil_compile.passes.layouts import accepts, in_blocks, reorders

#: Families with another result in each run: never folded.
_RANDOM = names(
    """rand randn rand_like randn_like randint randint_like randperm bernoulli normal uniform exponential multinomial
    randomnormal randomnormallike randomuniform randomuniformlike native_dropout"""
)
#: Patterns that take the place of one element-wise operator.
_FUNCTIONS = frozenset(("gelu", "silu"))


@dataclass(frozen=True, slots=True)
class Kernel:
    """Operators (indices into `OpGraph.ops`, ascending) that an engine runs as one kernel.

    `anchor` is the one with most FLOPs, then most bytes. A `free` kernel costs nothing at run time. `extra` are
    kernels that the engine adds around it, as (type, bytes that it reads and then writes).
    """

    ops: tuple[int, ...]
    anchor: int
    free: bool = False
    extra: tuple[tuple[str, int], ...] = ()


def kernels(graph: OpGraph, counts: Sequence[OpCount], engine: str) -> tuple[Kernel, ...]:
    """The kernels of `engine` (torch, onnxruntime, openvino; else `DEFAULT`) for the whole graph.

    Every operator is in exactly one kernel. Kernels are ordered by their first operator.
    """
    return kernels_of(Facts(graph, counts), RULES.get(engine, DEFAULT))


def kernels_of(facts: Facts, rules: FusionRules) -> tuple[Kernel, ...]:
    """The kernels that the rules of one engine give, ordered by their first operator."""
    match = Match(facts, rules)
    match.run()
    return match.kernels()


class Facts:
    """What the rules ask about a graph, worked out once: families, readers, and what hangs on weights alone."""

    def __init__(self, graph: OpGraph, counts: Sequence[OpCount]) -> None:
        self.graph, self.counts = graph, counts
        producer, tensors = graph.producer, graph.tensors
        self.sources = [
            [(t, producer.get(t, -1)) for t in dict.fromkeys(op.inputs) if t and tensors[t].role != "weight"]
            for op in graph.ops
        ]
        #: What the dialect itself calls a view.
        self.views = [is_view(op, graph) for op in graph.ops]
        self.constant: list[bool] = []
        self.families: list[str] = []
        for i, op in enumerate(graph.ops):
            name = family(op)
            hangs = all(p >= 0 and self.constant[p] for _, p in self.sources[i])
            self.constant.append(hangs and name not in _RANDOM and not op.body)
            self.families.append(self._refined(i, name))
        #: The tensors that are computed in a run, with the operators that write them (-1: an input).
        self.live = [[(t, p) for t, p in s if p < 0 or not self.constant[p]] for s in self.sources]
        self.readers: list[list[int]] = [[] for _ in graph.ops]
        for i, live in enumerate(self.live):
            for p in dict.fromkeys(p for _, p in live if p >= 0):
                self.readers[p].append(i)
        self.twin = self._twins()
        final = set(graph.outputs)
        self.escapes = [any(t in final for t in op.outputs) for op in graph.ops]

    def _twins(self) -> dict[int, int]:
        """Operator -> an earlier one that computes the same."""
        first: dict[Any, int] = {}
        found: dict[int, int] = {}
        consumers, producer = self.graph.consumers, self.graph.producer
        doubled: set[int] = set()
        for i, op in enumerate(self.graph.ops):
            if not any(t and (len(consumers[t]) > 1 or producer.get(t) in doubled) for t in op.inputs):
                continue
            if op.body or self.families[i] in _RANDOM or op.type.endswith("_") or not op.outputs:
                continue
            inputs = tuple(self._value(t, found) for t in op.inputs)
            key = (op.type, inputs, len(op.outputs), repr(op.attributes))
            if first.setdefault(key, i) != i:
                found[i] = first[key]
                doubled |= {i, first[key]}
        return found

    def _value(self, name: str, twins: dict[int, int]) -> str:
        """The name under which a tensor was computed first."""
        i = self.graph.producer.get(name, -1)
        if i not in twins:
            return name
        return self.graph.ops[twins[i]].outputs[self.graph.ops[i].outputs.index(name)]

    def _refined(self, i: int, name: str) -> str:
        """Families that depend on shapes: what changes nothing is an identity, what moves no element a reshape."""
        op, graph = self.graph.ops[i], self.graph
        if name in ("slice", "expand", "cast", "transpose"):
            before, after = tensor(graph, op.inputs, 0), tensor(graph, op.outputs, 0)
            same = before is not None and after is not None and before.dtype == after.dtype
            if same and name != "transpose" and dims(before) == dims(after):
                # Whether the end of a slice is open cannot be seen here; over several axes it rarely is.
                several = name == "slice" and dims(tensor(graph, op.inputs, 2)) not in ((), (1,))
                return "slice" if several else "identity"
            if name == "transpose" and self._keeps_order(i):
                return "reshape"
        if name == "gather" and (index := tensor(graph, op.inputs, 1)) and index.role == "weight":
            return "select" if index.shape == () else name
        if name == "linear" and len(op.inputs) > 2 and len(self.shape(i)) == 2:
            return "gemm"
        return name

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of the first input of operator i."""
        return dims(tensor(self.graph, self.graph.ops[i].inputs, 0))

    def out_bytes(self, i: int) -> int:
        """Bytes of what operator i writes."""
        return sum(self.graph.tensors[t].nbytes for t in self.graph.ops[i].outputs if t)

    def order(self, i: int) -> tuple[int, ...]:
        """The permutation of a transpose; () where it is not known."""
        op, rank = self.graph.ops[i], len(self.shape(i))
        given = ints_of(op, "perm") or ints_of(op, "dims")
        if not given and op.type.startswith("onnx."):
            return tuple(reversed(range(rank)))
        if not given and (dim := ints_of(op, "dim0")) and rank:
            a, b = dim[0] % rank, (ints_of(op, "dim1") or (0,))[0] % rank
            given = tuple(b if k == a else a if k == b else k for k in range(rank))
        return tuple(g % rank for g in given) if len(given) == rank else ()

    def outermost(self, i: int) -> bool:
        """Whether operator i works along the first axis that is longer than 1: its parts lie side by side."""
        op, shape = self.graph.ops[i], self.shape(i)
        axis = (ints_of(op, "axis") or ints_of(op, "dim") or (0,))[0]
        return all(d == 1 for d in shape[: axis % max(1, len(shape))])

    def _keeps_order(self, i: int) -> bool:
        shape, order = self.shape(i), self.order(i)
        moved = [d for d in order if shape[d] != 1]
        return bool(order) and moved == sorted(moved)


class Match(Groups):
    """Groups of operators of one engine, grown by rules. `label` is the family or pattern name of each group."""

    def __init__(self, facts: Facts, rules: FusionRules) -> None:
        super().__init__(facts.readers, facts.escapes)
        self.facts, self.rules = facts, rules
        self.label = dict(enumerate(facts.families))
        #: Groups that the engine computes in place: concatenations of what lies side by side, see `layouts`.
        self.freed: set[int] = set()
        #: A kernel that the engine adds to a group.
        self.added: dict[int, tuple[str, int]] = {}

    def run(self) -> None:
        """Apply all rules."""
        families, rules = self.facts.families, self.rules
        starts: dict[str, list[Pattern]] = {}
        for pattern in rules.patterns:
            for name in pattern.steps[0].split("|"):
                starts.setdefault(name, []).append(pattern)
        for i, name in enumerate(families):
            if name in rules.removed and (live := self.facts.live[i]) and live[0][1] >= 0:
                self.join(live[0][1], i)
        if rules.folds:
            for i, first in self.facts.twin.items():
                self.join(first, i)
        for i, name in enumerate(families):
            for pattern in starts.get(name, ()):
                self._written_out(i, pattern)
        for i, name in enumerate(families):
            if name in rules.quantised:
                self._quantised(i)
            if name in ("matmul", "attention"):
                self._transposes(i)
        for i, name in enumerate(families):
            if name in rules.stages and self.owner[i] == i and not self.folded(i):
                self._take_up(i, rules.stages[name])
        if rules.subgraphs:
            self._subgraphs()
        if rules.slices:
            self._slices()

    def kernels(self) -> tuple[Kernel, ...]:
        """The groups as kernels."""
        extra, counts = reorders(self), self.facts.counts
        found = []
        for root, members in self.members.items():
            anchor = max(members, key=lambda i: (counts[i].flops, counts[i].nbytes, -i))
            more = (*self.more(root), *extra.get(root, ()))
            found.append(Kernel(tuple(sorted(members)), anchor, self.is_free(root), more))
        return tuple(sorted(found, key=lambda k: k.ops))

    def folded(self, i: int) -> bool:
        """Whether the engine computes operator i once, before the first run."""
        return self.rules.folds and self.facts.constant[i]

    def elementwise(self, root: int) -> bool:
        """Whether the group is one element-wise function."""
        if self.label[root] in _FUNCTIONS:
            return True
        if self.label[root] in self.rules.alone:
            return False
        if self.rules.subgraphs and self.label[root] == "cast":
            source = tensor(self.facts.graph, self.facts.graph.ops[root].inputs, 0)
            return source is not None and source.dtype != "int64"
        return all(self.facts.counts[m].kind == "elementwise" for m in self.members[root])

    # Written-out functions

    def _written_out(self, i: int, pattern: Pattern) -> None:
        if self.folded(i) or len(self.members.get(i, ())) != 1:
            return
        walk = self._walk([i], pattern.steps[1:], pattern.reads)
        if walk is None:
            return
        for m in walk[1:]:
            self.join(i, m)
        self.label[i] = pattern.name

    def _walk(self, walk: list[int], steps: Sequence[str], most: int) -> list[int] | None:
        if not steps:
            return walk if self._closed(walk, most) else None
        step = steps[0].removesuffix("?").split("|")
        for r in self.facts.readers[walk[-1]]:
            if self.facts.families[r] in step and r not in walk and len(self.members.get(r, ())) == 1:
                found = self._walk([*walk, r], steps[1:], most)
                if found:
                    return found
        return self._walk(walk, steps[1:], most) if steps[0].endswith("?") else None

    def _closed(self, walk: Sequence[int], most: int) -> bool:
        """Only the last one's result leaves the walk, which reads at most so many computed tensors."""
        inside = set(walk)
        for m in walk[:-1]:
            if self.facts.escapes[m] or not inside.issuperset(self.facts.readers[m]):
                return False
        return 1 <= len({t for m in walk for t, p in self.facts.live[m] if p not in inside}) <= most

    # Quantised kernels, and transposes that products take in

    def _quantised(self, i: int) -> None:
        """The operator on the integers that dequantise operators read and a quantise operator writes."""
        families, facts = self.facts.families, self.facts
        if not facts.live[i] or any(p < 0 or families[p] != "dequantize" for _, p in facts.live[i]):
            return
        tail, end = i, i
        while families[tail] != "quantize" and len(facts.readers[tail]) == 1 and not facts.escapes[tail]:
            tail = facts.readers[tail][0]
            if families[tail] not in ("quantize", "relu", "clip"):
                break
            end = tail if families[tail] == "quantize" else end
        if end == i and families[i] not in ("matmul", "gemm", "linear"):
            return
        while i != end:
            self.join(i, facts.readers[self.members[self.owner[i]][-1]][0])
            end = i if families[self.members[self.owner[i]][-1]] == "quantize" else end
        for _, p in facts.sources[i]:
            if p >= 0 and families[p] == "dequantize" and len(self.followers(self.owner[p])) == 1:
                self.join(i, p)

    def _transposes(self, i: int) -> None:
        """Transposes around a product that its kernel takes in, each read by nothing else."""
        facts, op = self.facts, self.facts.graph.ops[i]
        written_out = self.label[self.owner[i]] == "attention"
        fused = facts.families[i] == "attention"
        if written_out != self.rules.takes_transposes or (fused and _grouped(facts, i)):
            return
        for k, name in enumerate(op.inputs[:3] if fused else op.inputs[:2]):
            p = facts.graph.producer.get(name, -1)
            if p < 0 or facts.families[p] != "transpose" or facts.escapes[p] or facts.readers[p] != [i]:
                continue
            if k != 1 if fused else (written_out or self._swaps(p)):
                self.join(i, p)
        followers = self.followers(self.owner[i])
        if written_out and not fused and len(followers) == 1 and CALLER not in followers:
            (other,) = followers
            if self.label[other] == "transpose":
                self.join(i, other)

    def _swaps(self, p: int) -> bool:
        """Whether a transpose only swaps the last two axes, and not those of another transpose."""
        order, before = self.facts.order(p), self.facts.live[p][0][1] if self.facts.live[p] else -1
        swapped = (*range(len(order) - 2), len(order) - 1, len(order) - 2)
        return len(order) > 1 and order == swapped and (before < 0 or self.facts.families[before] != "transpose")

    # Followers

    def _take_up(self, i: int, stages: Iterable[Stage]) -> None:
        root = self.owner[i]
        for stage in stages:
            for _ in range(stage.most):
                followers = self.followers(root)
                if len(followers) != 1 or CALLER in followers:
                    return
                (other,) = followers
                if not self._fits(i, root, other, stage):
                    break
                self.join(root, other)

    def _fits(self, i: int, root: int, other: int, stage: Stage) -> bool:
        facts, label = self.facts, self.label[other]
        fits = label in stage.families or ("*" in stage.families and self.elementwise(other))
        if not fits or (len(self.members[other]) > 1 and label not in _FUNCTIONS):
            return False
        size = self._elements(root)
        if label == "layernorm":
            return len(facts.live[i]) == 2 and len(facts.shape(i)) == 3 and self._same_size(i)
        if facts.families[i] == "matmul" and stage.families == {"add"}:
            return self._bias(i, other)
        pair = (root, other)
        outside = {t for m in self.members[other] for t, p in facts.live[m] if p < 0 or self.owner[p] not in pair}
        if self._elements(other) != size or (facts.families[i] == "matmul" and not self._scales(other, stage)):
            return False
        if stage.operands == "tensor":
            return len(outside) == 1 and self._sums(i, root, other)
        return not outside and self._per_channel(other)

    def _elements(self, root: int) -> int:
        last = max(self.members[root])
        out = tensor(self.facts.graph, self.facts.graph.ops[last].outputs, 0)
        return out.elements if out else 0

    def _scales(self, other: int, stage: Stage) -> bool:
        """ONNX Runtime's products take up a scalar factor; others whatever the stage says."""
        graph, op = self.facts.graph, self.facts.graph.ops[other]
        held = [graph.tensors[t].elements for t in op.inputs if t and graph.tensors[t].role == "weight"]
        return "*" in stage.families or all(n == 1 for n in held)

    def _same_size(self, i: int) -> bool:
        tensors = self.facts.graph.tensors
        return len({tensors[t].elements for t, _ in self.facts.live[i]}) == 1

    def _bias(self, i: int, other: int) -> bool:
        """ONNX Runtime makes a Gemm of a product with a weight and the addition of a vector."""
        graph = self.facts.graph
        vector = [tensor(graph, graph.ops[other].inputs, k) for k in (0, 1)]
        flat = any(v is not None and v.role == "weight" and len(v.shape or ()) == 1 for v in vector)
        weight = tensor(graph, graph.ops[i].inputs, 1)
        shape = dims(vector[0]) if vector[0] and vector[0].role == "weight" else dims(vector[1])
        row = flat or (len(self.facts.shape(i)) == 2 and len(shape) == 2 and shape[0] == 1)
        return row and weight is not None and weight.role == "weight" and len(weight.shape or ()) == 2

    def _sums(self, i: int, root: int, other: int) -> bool:
        """Of two kernels that could take up their sum, the one that computes the first operand does."""
        facts = self.facts
        if not self._same_size(other) or (self.rules.layout and not accepts(self, i)):
            return False
        layout = self.rules.layout
        # Plain operands are not reordered for a sum: it stays a kernel of its own.
        if layout and layout.block and not all(in_blocks(self, p) for _, p in facts.live[other]):
            return False
        first = facts.graph.producer.get(facts.graph.ops[other].inputs[0], -1)
        if first < 0 or self.owner[first] == root:
            return True
        rival = self.owner[first]
        return not (self.label[rival] == "conv" and self.followers(rival) == {other} and accepts(self, rival))

    def _per_channel(self, other: int) -> bool:
        """What the follower reads beside the kernel's result is a scalar or a vector along one axis."""
        graph = self.facts.graph
        for m in self.members[other]:
            out = dims(tensor(graph, graph.ops[m].outputs, 0))
            for t in graph.ops[m].inputs:
                held = t and graph.tensors[t].role == "weight"
                if held and graph.tensors[t].elements not in (1, *out):
                    return False
        return True

    # Element-wise subgraphs and slices

    def _subgraphs(self) -> None:
        facts = self.facts
        for i in range(len(facts.graph.ops)):
            if self.owner[i] != i or self.folded(i) or not self.elementwise(i) or i in facts.twin:
                continue
            if not facts.counts[i].dtype.startswith(("float", "bfloat")):
                continue
            root = i
            for p in {self.owner[p] for m in self.members[i] for _, p in facts.live[m] if p >= 0} - {i}:
                if self.label.get(p) == "subgraph" and self.safe(p, root) and self._ports(p, root):
                    root = self.join(p, root)
            self.label[root] = "subgraph"

    def _ports(self, a: int, b: int) -> bool:
        members = {*self.members[a], *self.members[b]}
        reads = {t for m in members for t, p in self.facts.live[m] if p not in members}
        writes = sum(self.facts.escapes[m] or not members.issuperset(self.facts.readers[m]) for m in members)
        return len(reads) + writes <= self.rules.subgraph_ports

    def _slices(self) -> None:
        facts = self.facts
        readers: dict[str, list[int]] = {}
        for i, live in enumerate(facts.live):
            for t, _ in live:
                readers.setdefault(t, []).append(i)
        for name, found in readers.items():
            different = [r for r in found if r not in facts.twin]
            families = {facts.families[r] for r in different}
            if len(different) < 2 or len(families) > 1 or not families <= {"slice", "select"}:
                continue
            parts = sum(facts.graph.tensors[facts.graph.ops[r].outputs[0]].elements for r in different)
            whole = parts == facts.graph.tensors[name].elements and facts.graph.opsets.get("", 20) >= 10
            if families == {"select"} and whole and self.rules.views_run:
                # One split, and a view for each part.
                self.added[self.owner[different[0]]] = ("Split", facts.graph.tensors[name].nbytes)
            elif families == {"slice"} and (whole or self.rules.subgraphs):
                for r in different[1:]:
                    if self.safe(self.owner[different[0]], self.owner[r]):
                        self.join(different[0], r)

    # What costs nothing, and what the engine adds

    def is_free(self, root: int) -> bool:
        """Whether the group costs nothing at run time."""
        return all(self._is_free(m) for m in self.members[root]) or root in self.freed

    def _is_free(self, i: int) -> bool:
        facts, rules = self.facts, self.rules
        if self.folded(i) or facts.families[i] in rules.removed:
            return True
        if self.is_view(i):
            return not rules.views_run
        if rules.free_concat and facts.families[i] in ("select", "split") and facts.outermost(i):
            return True
        count = facts.counts[i]
        return count.kind == "control" and count.nbytes == 0 and not facts.graph.ops[i].body

    def is_view(self, i: int) -> bool:
        """Whether the engine only renames memory for operator i."""
        name = self.facts.families[i]
        return (name == "identity" and self.facts.views[i]) or name in self.rules.views or name in self.rules.removed

    def more(self, root: int) -> list[tuple[str, int]]:
        """Kernels that the engine adds around the group: (type, bytes)."""
        found: list[tuple[str, int]] = []
        facts, graph = self.facts, self.facts.graph
        if self.is_free(root):
            return found
        if root in self.added:
            found.append(self.added[root])
        for m in self.members[root]:
            op = graph.ops[m]
            for kind, size in self.rules.more.get(facts.families[m], ()):
                at = {"key": 1, "value": 2}.get(size)
                spec = tensor(graph, op.inputs, at) if at else None
                found.append((kind, 0 if size == "none" else spec.nbytes if spec else facts.out_bytes(m)))
            if op.type.startswith(("aten.lstm.", "aten.gru.", "aten.rnn_")):
                found += _layers(facts, m, self.rules)
            if facts.families[m] == "split" and op.type.startswith("aten.unbind") and self.rules.reshapes_rows:
                found += [("Squeeze", 0)] * len(op.outputs)
            if facts.families[m] == "attention" and self.rules.subgraphs:
                found += _repeated(facts, m)
            if self.rules.reshapes_rows and self._has_rows(root, m):
                found += [("Reshape", 0), ("Reshape", 0)]
            if self.rules.converts_int64:
                found += [("Convert", graph.tensors[t].nbytes) for t, p in facts.live[m]
                          if p < 0 and graph.tensors[t].dtype == "int64"
                          and graph.consumers[t][0] == m]  # fmt: skip
        return found

    def _has_rows(self, root: int, m: int) -> bool:
        """A product with a bias over more than two axes is flattened to two and back."""
        biased = {"linear": len(self.facts.graph.ops[m].inputs) > 2, "matmul": len(self.members[root]) > 1}
        added = self.facts.families[m] == "linear" or any(self.facts.families[k] == "add" for k in self.members[root])
        return biased.get(self.facts.families[m], False) and added and len(self.facts.shape(m)) > 2


def _layers(facts: Facts, i: int, rules: FusionRules) -> list[tuple[str, int]]:
    """A recurrent operator over several layers is a kernel per layer, with transposes and views around each."""
    op = facts.graph.ops[i]
    layers = op.attributes.get("num_layers")
    if not rules.folds or not isinstance(layers, int):
        return []
    out = facts.graph.tensors[op.outputs[0]].nbytes
    found = [(op.short_type, out)] * (layers - 1) + [("Transpose", out)] * layers
    found += [("Transpose", out)] if op.attributes.get("batch_first") is True else []
    return found + [("Reshape", 0)] * (layers if rules.views_run else 0)


def _grouped(facts: Facts, i: int) -> bool:
    """Attention with fewer key than query heads."""
    op, graph = facts.graph.ops[i], facts.graph
    query, key = (dims(tensor(graph, op.inputs, k)) for k in (0, 1))
    return len(query) == len(key) == 4 and query[1] != key[1]


def _repeated(facts: Facts, i: int) -> list[tuple[str, int]]:
    """OpenVINO repeats the keys and values of grouped heads, and transposes keys that no transpose wrote."""
    op, graph = facts.graph.ops[i], facts.graph
    query, key = tensor(graph, op.inputs, 0), tensor(graph, op.inputs, 1)
    found: list[tuple[str, int]] = []
    times = dims(query)[1] // max(1, dims(key)[1]) if _grouped(facts, i) else 1
    size = (key.nbytes if key else 0) * times
    if times > 1:
        found += [("Tile", size), ("Tile", size)]
    writer = graph.producer.get(op.inputs[1], -1)
    if 1 in dims(key)[-2:]:
        return found
    if times > 1 or writer < 0 or facts.families[writer] != "transpose":
        found.append(("Transpose", size))
    return found
