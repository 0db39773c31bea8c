"""Which operators an engine runs as one kernel: `kernels` applies the rules of `passes.fusion_rules` to a graph.

Steps, each a function here: the written-out functions (`Pattern`), quantised kernels, transposes that a product
takes in, followers (`Stage`), element-wise subgraphs, slices of one tensor; then what costs nothing is marked and
the kernels that the engine adds (reorders between layouts, copies) are listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qeil_compile.ir import OpGraph
from qeil_compile.passes.added import added, grouped
from qeil_compile.passes.count import OpCount
from qeil_compile.passes.count.base import dims, tensor
from qeil_compile.passes.facts import Facts
from qeil_compile.passes.fusion_rules import DEFAULT, RULES, FusionRules, Pattern, Stage
from qeil_compile.passes.groups import CALLER, Groups
from qeil_compile.passes.layouts import accepts, in_blocks, reorders

#: Patterns that take the place of one element-wise operator.
_FUNCTIONS = frozenset(("gelu", "silu"))


@dataclass(frozen=True, slots=True)
class Kernel:
    """Operators (indices into `OpGraph.ops`, ascending) that an engine runs as one kernel.

    `anchor` is the one with most FLOPs, then most bytes. A `free` kernel costs nothing at run time. `extra` are
    kernels that the engine adds around it, as (type, bytes that it reads and then writes, elements that are neighbours
    on both sides; 0: all).
    """

    ops: tuple[int, ...]
    anchor: int
    free: bool = False
    extra: tuple[tuple[str, int, int], ...] = ()


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


class Match(Groups):
    """Groups of operators of one engine, grown by rules. `label` is the family or pattern name of each group."""

    def __init__(self, facts: Facts, rules: FusionRules) -> None:
        super().__init__(facts.readers, facts.escapes)
        self.facts, self.rules = facts, rules
        self.label = dict(enumerate(facts.families))
        #: Groups that the engine computes in place: concatenations of what lies side by side, see `layouts`.
        self.freed: set[int] = set()
        #: Groups before which the engine splits what they select from: (type, bytes).
        self.split: dict[int, tuple[str, int]] = {}

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
            free = self.is_free(root)
            more = () if free else (*((*a, 0) for a in added(self, root)), *extra.get(root, ()))
            found.append(Kernel(tuple(sorted(members)), anchor, free, more))
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
        chain = [i]
        while len(facts.readers[chain[-1]]) == 1 and not facts.escapes[chain[-1]]:
            following = facts.readers[chain[-1]][0]
            if families[following] not in ("quantize", "relu", "clip"):
                break
            chain.append(following)
            if families[following] == "quantize":
                break
        if families[chain[-1]] != "quantize":
            if families[i] not in ("matmul", "gemm", "linear"):
                return
            chain = [i]
        for m in chain[1:]:
            self.join(i, m)
        for _, p in facts.sources[i]:
            if p >= 0 and families[p] == "dequantize" and self.followers(self.owner[p]) == {self.owner[i]}:
                self.join(i, p)

    def _transposes(self, i: int) -> None:
        """Transposes around a product that its kernel takes in, each read by nothing else."""
        facts, op = self.facts, self.facts.graph.ops[i]
        written_out = self.label[self.owner[i]] == "attention"
        fused = facts.families[i] == "attention"
        if written_out != self.rules.takes_transposes or (fused and grouped(facts, i)):
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
                self.split[self.owner[different[0]]] = ("Split", facts.graph.tensors[name].nbytes)
            elif families == {"slice"} and (whole or self.rules.subgraphs):
                for r in different[1:]:
                    if self.safe(self.owner[different[0]], self.owner[r]):
                        self.join(different[0], r)

    # What costs nothing

    def is_free(self, root: int) -> bool:
        """Whether the group costs nothing at run time."""
        return all(self._is_free(m) for m in self.members[root]) or root in self.freed

    def _is_free(self, i: int) -> bool:
        facts, rules = self.facts, self.rules
        if self.folded(i) or facts.families[i] in rules.removed or facts.families[i] == "constant":
            return True
        if self.is_view(i):
            return not rules.views_run
        if rules.in_place and facts.families[i] in ("select", "split") and facts.outermost(i):
            return True
        count = facts.counts[i]
        return count.kind == "control" and count.nbytes == 0 and not facts.graph.ops[i].body

    def is_view(self, i: int) -> bool:
        """Whether the engine only renames memory for operator i."""
        name = self.facts.families[i]
        return (name == "identity" and self.facts.views[i]) or name in self.rules.views or name in self.rules.removed
