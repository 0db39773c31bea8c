"""Layouts of image tensors: which kernels keep channels together, and the reorders between them and the others."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from qeil_compile.passes.count.base import at, dims

if TYPE_CHECKING:
    from qeil_compile.passes.match import Match

Extra = dict[int, list[tuple[str, int, int]]]
#: The permutation that turns the engine's order of axes into one that the reader wants anyway.
_CHANNELS_LAST = (0, 2, 3, 1)


def accepts(match: Match, i: int) -> bool:
    """Whether the convolution i runs in the engine's own layout."""
    layout, count = match.rules.layout, match.facts.counts[i]
    if layout is None or match.facts.families[i] != "conv" or len(match.facts.shape(i)) != 4:
        return False
    if not layout.block:
        return True
    groups, channels, inner = at(count.dims, 1), at(count.dims, 2), at(count.dims, 3)
    if count.dtype != "float32" or len(count.dims) < 4:
        return False
    if groups == 1:
        return inner < layout.block or inner % 4 == 0
    if inner == 1:
        return groups == channels and channels % layout.block == 0
    return inner % layout.block == 0 and channels // groups % layout.block == 0


def in_blocks(match: Match, i: int, depth: int = 8) -> bool:
    """Whether operator i (-1: an input of the graph) writes the engine's own layout, as far as `depth` steps tell."""
    layout = match.rules.layout
    if layout is None or i < 0 or not depth:
        return False
    members = match.members[match.owner[i]]
    if any(accepts(match, m) for m in members):
        return True
    carries = all(match.facts.families[m] in layout.carriers for m in members)
    inside = match.facts.live[i]
    return carries and bool(inside) and all(in_blocks(match, p, depth - 1) for _, p in inside)


def reorders(match: Match) -> Extra:
    """Group -> reorders that the engine adds before it (for the caller: after it), as (type, bytes, neighbours).

    Also frees concatenations and transposes that need no copy, where the rules say so.
    """
    return _Walk(match).run()


class _Walk:
    def __init__(self, match: Match) -> None:
        self.match, self.facts = match, match.facts
        self.graph = match.facts.graph
        self.own: set[str] = set()  # tensors that lie in the engine's layout
        self.both: set[str] = set()  # tensors that were reordered for some reader
        self.extra: Extra = {}

    def run(self) -> Extra:
        for root in sorted(self.match.members, key=lambda r: max(self.match.members[r])):
            if self.match.rules.layout is not None:
                self._visit(root)
            if self.match.rules.in_place and self.facts.families[root] == "concat" and self._side_by_side(root):
                self.match.freed.add(root)
        final = set(self.graph.outputs)
        for name in self.own & final - self.both:
            self._reorder(self.match.owner[self.graph.producer[name]], name)
        return self.extra

    def _visit(self, root: int) -> None:
        match, layout = self.match, self.match.rules.layout
        assert layout is not None
        members = match.members[root]
        conv = next((m for m in members if accepts(match, m)), None)
        reads = {t: m for m in members for t, p in self.facts.live[m] if p < 0 or match.owner[p] != root}
        if conv is not None:
            plain = layout.reads_plain and at(self.facts.counts[conv].dims, 3) < layout.block
            plain = plain and at(self.facts.counts[conv].dims, 1) == 1
            name = self.graph.ops[conv].inputs[0]
            if (name in self.own) == plain:
                self._reorder(root, name)
            self._write(members)
        elif self._carries(root, reads):
            self._write(members)
        elif self.facts.families[root] == "transpose" and self.facts.order(root) == _CHANNELS_LAST:
            if self.own.intersection(reads) and match.rules.free_transpose:
                match.freed.add(root)
        elif match.label[root] not in layout.indifferent:
            for name in reads:
                if name in self.own:
                    self._reorder(root, name)

    def _carries(self, root: int, reads: dict[str, int]) -> bool:
        """A pool, sum or concatenation of tensors in the engine's layout keeps it."""
        match, layout = self.match, self.match.rules.layout
        assert layout is not None
        families = {self.facts.families[m] for m in match.members[root]}
        inside = self.own.intersection(reads)
        if not inside or not families <= layout.carriers or any(not self._either(t) for t in reads if t not in inside):
            return False
        if layout.block and "concat" in families:
            return all(at(dims(self.graph.tensors[t]), 1) % layout.block == 0 for t in reads)
        return True

    def _write(self, members: list[int]) -> None:
        self.own.update(t for m in members for t in self.graph.ops[m].outputs if t)

    def _reorder(self, root: int, name: str) -> None:
        if name in self.both or name not in self.graph.tensors or self._either(name):
            return
        self.both.add(name)
        if self.match.is_free(root) and name in self.graph.producer:
            root = self.match.owner[self.graph.producer[name]]
        tensor, layout = self.graph.tensors[name], self.match.rules.layout
        # Channels lie together in the engine's layout: one after another is written where they lie apart, or read.
        channels = at(dims(tensor), 1)
        run = min(channels, layout.block) if layout is not None and layout.block else channels
        self.extra.setdefault(root, []).append(("Reorder", tensor.nbytes, run))

    def _either(self, name: str) -> bool:
        """Whether both orders of the axes are the same memory."""
        layout, shape = self.match.rules.layout, dims(self.graph.tensors.get(name))
        return layout is not None and not layout.block and (at(shape, 1) == 1 or prod(shape[2:]) == 1)

    def _side_by_side(self, root: int) -> bool:
        """Parts of a concatenation along the outermost axis can be written where they belong."""
        op = self.graph.ops[root]
        computed = all(p >= 0 for _, p in self.facts.live[root]) and len(self.facts.live[root]) == len(op.inputs)
        return self.facts.outermost(root) and computed and not self.own.intersection(op.inputs)
