"""Figures of plans: roofline, placement map, energies and timeline. Each takes phases and gives a matplotlib figure.

Devices have one colour in all of them, engines of one device are told apart by hatching, and what is drawn has
tooltips once it is SVG (`svg`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .placement import placement_map
from .style import MARKERS, MOST_TIPS, beside, colours, empty, legend_below, new_figure, printable, short, svg, tip
from .timeline import timeline
from .units import sane, scale, si
from .view import LINKS, Energy, OpPoint, PhaseView, Roof

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["energy_bars", "placement_map", "roofline", "svg", "timeline"]

#: Names of operators in one tooltip.
_NAMED = 4
#: No operator takes less [s].
_INSTANT = 1e-15
#: Room around the points and roofs of a roofline: a factor on each side.
_ROOM = 2.0


def roofline(phases: Sequence[PhaseView]) -> Figure:
    """Attained FLOP/s of every operator against its intensity [FLOP/B], both logarithmic, under the devices' roofs.

    Colour is the device, the marker the phase. An operator without arithmetic has no intensity: it stands, hollow, at
    the left edge, as high as its share of the bandwidth would carry it there.
    """
    figure = new_figure(9.5, 5.8)
    placed = _placed(phases)
    roofs = _distinct_roofs(phases)
    if not placed or not roofs:
        return empty(figure, "no operator has both a time and work that could be drawn")
    axes = figure.add_subplot()
    left, right, low, high = _window(placed, roofs)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high),
             xlabel="arithmetic intensity [FLOP/B]", ylabel="attained [FLOP/s]")  # fmt: skip
    _engineering(axes)
    axes.grid(alpha=0.25, which="major")
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(9)
    hues = colours(phases)
    used = {s.device for p in phases for s in p.plan.stages}
    lines = [_roof_line(axes, r, hues[r.device], r.device in used, (left, right)) for r in roofs]
    _scatter(axes, phases, placed, hues, left, right)
    legend_below(figure, [*lines, *_phase_handles(phases, placed)], 2)
    return figure


def _placed(phases: Sequence[PhaseView]) -> list[tuple[int, OpPoint]]:
    """Operators that have a place, with the number of their phase."""
    return [
        (k, o) for k, p in enumerate(phases) for o in p.points
        if sane(o.seconds, o.flops, o.nbytes) and o.seconds > _INSTANT and max(o.flops, o.nbytes) >= 1
    ]  # fmt: skip


def _distinct_roofs(phases: Sequence[PhaseView]) -> list[Roof]:
    """Each roof of each device once: engines of one device share it."""
    found: dict[tuple[str, str, str], Roof] = {}
    for r in (r for p in phases for r in p.roofs if sane(r.peak, r.bandwidth) and min(r.peak, r.bandwidth) >= 1):
        found.setdefault((r.device, f"{r.peak:.3g}", f"{r.bandwidth:.3g}"), r)
    return list(found.values())


def _window(placed: Sequence[tuple[int, OpPoint]], roofs: Sequence[Roof]) -> tuple[float, float, float, float]:
    """Ends of both axes: all points, the ridges of all roofs, and some room."""
    across = [o.flops / o.nbytes for _, o in placed if o.flops > 0 and o.nbytes > 0]
    across += [r.peak / r.bandwidth for r in roofs]
    left, right = min(across) / _ROOM**2, max(across) * _ROOM**2
    up = [o.flops / o.seconds for _, o in placed if o.flops > 0]
    up += [left * o.nbytes / o.seconds for _, o in placed if not o.flops] + [r.peak for r in roofs]
    return left, right, min(up) / _ROOM, max(up) * _ROOM


def _engineering(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    for one in (axes.xaxis, axes.yaxis):
        one.set_major_locator(LogLocator(numticks=12))
        one.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    axes.xaxis.set_major_formatter("{x:g}")


def _roof_line(axes: Axes, roof: Roof, colour: str, used: bool, ends: tuple[float, float]) -> Any:
    """Up along the memory's bandwidth, and flat at the peak."""
    ridge = roof.peak / roof.bandwidth
    across = sorted({ends[0], min(max(ridge, ends[0]), ends[1]), ends[1]})
    rates = f"{si(roof.peak, 'FLOP/s')}, {si(roof.bandwidth, 'B/s')}"
    text = f"{printable(roof.device)}: {rates}, ridge at {ridge:.3g} FLOP/B"
    (line,) = axes.plot(
        across, [min(roof.peak, roof.bandwidth * x) for x in across], color=colour, linewidth=1.8 if used else 1.0,
        linestyle="-" if used else (0, (4, 3)), alpha=1.0 if used else 0.7, zorder=2.0 if used else 1.5,
        label=f"{text}{'' if used else ' (not used)'}", gid=tip(text),
    )  # fmt: skip
    return line


def _scatter(
    axes: Axes, phases: Sequence[PhaseView], placed: Sequence[tuple[int, OpPoint]], hues: dict[str, str], left: float,
    right: float,
) -> None:  # fmt: skip
    """Operators at one place (the same one of each layer) are drawn together and share a tooltip."""
    spots: dict[tuple[Any, ...], list[OpPoint]] = defaultdict(list)
    for k, o in placed:
        x = o.flops / o.nbytes if o.flops > 0 and o.nbytes > 0 else right / 1.1 if o.flops > 0 else left * 1.1
        y = (o.flops if o.flops > 0 else x * o.nbytes) / o.seconds
        spots[k, o.device, o.flops > 0, float(f"{x:.4g}"), float(f"{y:.4g}")].append(o)
    if len(spots) > MOST_TIPS:
        merged: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
        for (k, device, solid, x, y), ops in spots.items():
            merged[k, device, solid] += [(x, y)] * len(ops)
        for (k, device, solid), places in merged.items():
            _dots(axes, places, k, hues[device], solid, None)
        return
    for (k, device, solid, x, y), ops in spots.items():
        _dots(axes, [(x, y)] * len(ops), k, hues[device], solid, tip(_words(phases[k], ops)))


def _dots(
    axes: Axes, places: Sequence[tuple[float, float]], phase: int, colour: str, solid: bool, gid: str | None
) -> None:
    xs, ys = zip(*places, strict=True)
    axes.scatter(
        xs, ys, s=34, marker=MARKERS[phase % len(MARKERS)], facecolors=colour if solid else "white",
        edgecolors="white" if solid else colour, linewidths=0.6 if solid else 1.2, alpha=0.9, zorder=3, gid=gid,
    )  # fmt: skip


def _words(phase: PhaseView, ops: Sequence[OpPoint]) -> str:
    """The operators of one place."""
    o = ops[0]
    names = ", ".join(dict.fromkeys(short("+".join(x.ops), 60) for x in ops[:_NAMED]))
    more = f" and {len(ops) - _NAMED} more" if len(ops) > _NAMED else ""
    intensity = f"{o.flops / o.nbytes:.3g} FLOP/B" if o.nbytes else "no bytes"
    work = f"{si(o.flops, 'FLOP')}, {si(o.nbytes, 'B')}, {intensity}, {si(o.seconds, 's')}"
    return (
        f"{phase.name}, {o.placement}: {names}{more} ({o.role}): {work}, {si(o.flops / o.seconds, 'FLOP/s')}, "
        f"{o.dasi_eff:.1%} of the compute roof, "
        f"{o.beta_eff:.1%} of the memory roof ({phase.label})"
    )


def _phase_handles(phases: Sequence[PhaseView], placed: Sequence[tuple[int, OpPoint]]) -> list[Any]:
    from matplotlib.lines import Line2D

    def handle(marker: str, label: str, **more: Any) -> Any:
        return Line2D([], [], linestyle="none", color="0.3", markersize=6, marker=marker, label=label, **more)

    count = Counter(k for k, _ in placed)
    found = []
    for k, p in enumerate(phases):
        # Groups that do nothing at all, views of tensors for instance, have no place.
        idle = f" ({len(p.points) - count[k]} more do no work)" if count[k] < len(p.points) else ""
        found.append(handle(MARKERS[k % len(MARKERS)], f"{short(p.name, 40)}: {count[k]} operators{idle}"))
    if any(not o.flops for _, o in placed):
        found.append(handle("o", "hollow: no arithmetic, at the left edge", markerfacecolor="white"))
    return found


def energy_bars(phases: Sequence[PhaseView]) -> Figure:
    """Energy of one run of each phase by device: dynamic, constant and idle, stacked; and that of all transfers."""
    rows = max((len(_shown(p)) for p in phases), default=0)
    if not rows:
        return empty(new_figure(8, 2), "the plan has no energies")
    columns = beside(len(phases))
    lines = -(-len(phases) // columns)
    figure = new_figure(9.5, 0.75 + lines * (1.05 + 0.36 * rows))
    hues = colours(phases)
    for k, phase in enumerate(phases):
        _bars(figure.add_subplot(lines, columns, k + 1), phase, hues)
    from matplotlib.patches import Patch

    parts = [Patch(label=text, **_fill("0.35", strength)) for text, strength in _PARTS.values()]
    legend_below(figure, parts, 3)
    return figure


#: Part of an energy -> what the legend says, and how strong its colour is.
_PARTS = {
    "dynamic": ("dynamic: arithmetic, memory, transfers", 1.0),
    "constant": ("constant power and leakage while busy", 0.5),
    "idle": ("idle while others work", 0.0),
}


def _shown(phase: PhaseView) -> list[Energy]:
    """Without links that cost nothing, as those within one memory."""
    return [e for e in phase.energy if e.device != LINKS or e.joules]


def _fill(colour: str, strength: float) -> dict[str, Any]:
    if not strength:
        return {"facecolor": "white", "edgecolor": colour, "hatch": "////", "linewidth": 0.8}
    return {"facecolor": colour, "alpha": strength, "linewidth": 0}


def _bars(axes: Axes, phase: PhaseView, hues: dict[str, str]) -> None:
    shown = _shown(phase)
    totals = [e.joules for e in shown if sane(e.joules)]
    factor, unit = scale(max(totals, default=1.0) or 1.0, "J")
    for row, e in enumerate(shown):
        if not sane(e.joules):
            continue
        at = 0.0
        for name, (_, strength) in _PARTS.items():
            part = getattr(e, name)
            words = f"{phase.name}, {e.device}: {name} {si(part, 'J')} of {si(e.joules, 'J')} ({phase.label})"
            if part > 0:
                (bar,) = axes.barh(row, part * factor, left=at, height=0.62, **_fill(hues[e.device], strength))
                bar.set_gid(tip(words))
            at += part * factor
        axes.annotate(si(e.joules, "J"), (at, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [short(e.device) for e in shown], parse_math=False)
    axes.tick_params(labelsize=8)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    axes.set_xlim(0, max(totals, default=1.0) * factor * 1.22 or 1.0)
    axes.set_xlabel(f"energy of one run [{unit}]", fontsize=8)
    whole = si(sum(totals), "J")
    axes.set_title(f"{short(phase.name, 40)}: {whole} ({phase.label})", fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
