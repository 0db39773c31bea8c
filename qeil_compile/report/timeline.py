"""The timeline of a run: which device works when, and what moves between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qeil_compile.plan import Plan

from .style import colours, empty, hatches, new_figure, printable, short, tip
from .units import sane, scale, si
from .view import LINKS, PhaseView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Bars nearer than this share of the axis are drawn as one: the gap could not be seen.
_GAP = 1 / 600
#: Narrower bars have no number inside [share of the axis].
_NUMBERED = 0.03


@dataclass(frozen=True)
class _Bar:
    """Work of one row from `start` to `end` [s]: stages or transfers `first` to `last`, `busy` seconds of it."""

    row: str
    start: float
    end: float
    first: int
    last: int
    count: int
    busy: float
    what: str


def timeline(phases: Sequence[PhaseView]) -> Figure:
    """Stages of each device over the time of one run, entering them included, and transfers as a row of links.

    Neighbours with a gap that could not be seen are one bar; its tooltip counts them.
    """
    drawn = [p for p in phases if p.plan.stages and _end(p.plan) > 0]
    if not drawn:
        return empty(new_figure(8, 2), "the plan has no stages that take time")
    rows = [[*p.devices, *([LINKS] if any(t.seconds > 0 for t in p.plan.transfers) else [])] for p in drawn]
    heights = [0.8 + 0.34 * len(r) for r in rows]
    figure = new_figure(9.5, sum(heights) + 0.1)
    grid = figure.add_gridspec(len(drawn), 1, height_ratios=heights)
    hues, marks = colours(phases), hatches(phases)
    for k, phase in enumerate(drawn):
        _gantt(figure.add_subplot(grid[k]), phase, rows[k], hues, marks)
    return figure


def _end(plan: Plan) -> float:
    ends = [s.start + s.boundary + s.seconds for s in plan.stages]
    return max((e for e in ends if sane(e)), default=0.0)


def _gantt(
    axes: Axes, phase: PhaseView, rows: Sequence[str], hues: Mapping[str, str], marks: Mapping[str, str]
) -> None:
    from matplotlib.patches import Rectangle

    whole = _end(phase.plan)
    factor, unit = scale(whole, "s")
    bars = _merged([*_stages(phase.plan), *_transfers(phase.plan)], whole * _GAP)
    for bar in bars:
        row, width = rows.index(bar.row), bar.end - bar.start
        axes.add_patch(Rectangle(
            (bar.start * factor, row - 0.36), width * factor, 0.72, facecolor=hues[bar.row], edgecolor="white",
            linewidth=0.4, hatch=marks.get(bar.what, ""), gid=tip(_words(bar, phase)),
        ))  # fmt: skip
        if bar.row != LINKS and width > _NUMBERED * whole:
            numbers = str(bar.first) if bar.count == 1 else f"{bar.first}\N{EN DASH}{bar.last}"
            middle = (bar.start + width / 2) * factor
            plain = {"facecolor": hues[bar.row], "edgecolor": "none", "pad": 2.0} if marks.get(bar.what) else None
            axes.text(
                middle, row, numbers, ha="center", va="center", color="white", fontsize=7, clip_on=True, bbox=plain
            )
    axes.set(xlim=(0, whole * factor), ylim=(len(rows) - 0.5, -0.5), xlabel=f"time [{unit}]")
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)
    axes.set_yticks(range(len(rows)), [short(r) for r in rows], parse_math=False)
    count = len(phase.plan.stages)
    title = f"{short(phase.name, 40)}: {count} stage{'s' * (count > 1)}, {si(whole, 's')} ({phase.label})"
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _stages(plan: Plan) -> list[_Bar]:
    found = []
    for s in plan.stages:
        end = s.start + s.boundary + s.seconds
        if sane(s.start, end) and end > s.start:
            found.append(_Bar(s.device, s.start, end, s.index, s.index, 1, end - s.start, s.placement))
    return found


def _transfers(plan: Plan) -> list[_Bar]:
    """A link carries one transfer at a time, in order, each when its stage has ended: as the schedule does."""
    free: dict[tuple[str, ...], float] = {}
    found = []
    known = range(len(plan.stages))
    for k, t in enumerate(plan.transfers):
        # In one memory nothing moves; what no schedule writes comes from a stranger.
        if t.target not in known or t.source not in range(-1, len(known)) or not sane(t.seconds) or not t.seconds:
            continue
        source = plan.stages[t.source] if t.source >= 0 else None
        link = tuple(sorted((source.device if source else "", plan.stages[t.target].device)))
        ready = source.start + source.boundary + source.seconds if source else 0.0
        start = max(ready, free.get(link, 0.0))
        free[link] = start + t.seconds
        if sane(start):
            found.append(_Bar(LINKS, start, start + t.seconds, k, k, 1, t.seconds, f"{si(t.nbytes, 'B')} {t.tensor}"))
    return found


def _merged(bars: Iterable[_Bar], gap: float) -> list[_Bar]:
    """Bars of a row that follow one another as one."""
    last: dict[str, int] = {}
    found: list[_Bar] = []
    for bar in sorted(bars, key=lambda b: (b.row, b.start)):
        k = last.get(bar.row)
        old = found[k] if k is not None else bar
        narrow = min(bar.end - bar.start, old.end - old.start) <= gap
        if k is not None and bar.start - old.end <= gap and (narrow or old.what == bar.what or bar.row == LINKS):
            what = old.what if old.what == bar.what else ""
            found[k] = _Bar(
                bar.row, old.start, max(old.end, bar.end), min(old.first, bar.first), max(old.last, bar.last),
                old.count + bar.count, old.busy + bar.busy, what,
            )  # fmt: skip
        else:
            last[bar.row] = len(found)
            found.append(bar)
    return found


def _words(bar: _Bar, phase: PhaseView) -> str:
    kind = "transfer" if bar.row == LINKS else "stage"
    which = f"{kind} {bar.first}" if bar.count == 1 else f"{bar.count} {kind}s, {bar.first} to {bar.last}"
    what = f" ({printable(bar.what)})" if bar.what else ""
    return (
        f"{phase.name}, {bar.row}: {which}{what}, {si(bar.start, 's')} to {si(bar.end, 's')}, busy {si(bar.busy, 's')} "
        f"({phase.label})"
    )
