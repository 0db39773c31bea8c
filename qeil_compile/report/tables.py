"""The account of a plan as tables, for the terminal and for pages: columns and rows of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qeil_compile.runtime import Explanation

from .units import mj, ms, us

Rows = list[Sequence[object]]
BOUNDARY = ("boundary", "placements", "tensors", "size [B]", "hand-over [us]", "transfer [us]", "energy [uJ]")
ALTERNATIVE = ("strategy", "stages [1]", "latency [ms]", "energy [mJ]", "under-utilisation [1]", "on front", "chosen")
FAILOVER = ("lost", "plan", "placements", "stages [1]", "latency [ms]", "energy [mJ]", "why not, what is given up")
RANGE = ("device", "coefficient", "unit", "value [unit]", "low [unit]", "high [unit]", "energy at low [mJ]",
         "energy at high [mJ]", "another plan is better")  # fmt: skip
TIMING = ("plan", "median [ms]", "10 % [ms]", "90 % [ms]", "runs [1]")


def boundaries(found: Explanation, only: int | None = None) -> Rows:
    """One row per step between stages; with `only` those into that stage."""
    return [
        (f"{b.source} -> {b.target}" if b.source >= 0 else f"start -> {b.target}", " -> ".join(b.placements),
         ", ".join(t.tensor for t in b.tensors), b.nbytes, us(b.handover_seconds), us(b.seconds - b.handover_seconds),
         f"{b.joules * 1e6:.2f}")
        for b in found.boundaries if only in (None, b.target)
    ]  # fmt: skip


def alternatives(found: Explanation) -> Rows:
    """One row per plan that was considered."""
    return [
        (a.strategy, a.stages, ms(a.objectives.latency), mj(a.objectives.energy),
         f"{a.objectives.under_utilisation:.3f}", "yes" if a.on_front else "", "yes" if a.chosen else "")
        for a in found.alternatives
    ]  # fmt: skip


def failovers(found: Explanation) -> Rows:
    """What takes over when something that the plan uses is lost."""
    return [
        (" = ".join(f.lost), f.strategy or "none", ", ".join(f.placements), f.stages or "",
         "" if f.latency is None else ms(f.latency), "" if f.energy is None else mj(f.energy),
         "; ".join((*([f.reason] if f.reason else []), *f.notes)))
        for f in found.failovers
    ]  # fmt: skip


def ranges(found: Explanation) -> Rows:
    """What each energy coefficient does to the plan's energy over its range."""
    return [
        (s.device, s.field, s.unit, f"{s.value:.3g}", f"{s.low:.3g}", f"{s.high:.3g}", mj(s.joules_low),
         mj(s.joules_high), s.as_text() or "nowhere in the range")
        for s in found.sensitivity
    ]  # fmt: skip


def timings(found: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Name, median, 10 % and 90 % quantile, runs of each plan that was timed."""
    return [(n, ms(t["median"]), ms(t["low"]), ms(t["high"]), t["runs"]) for n, t in found.items()]
