"""The front as a figure: latency and energy of all plans that were considered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qeil_compile.runtime import Explanation

from .points import KINDS, Kind, Point, axis, close_up, points_of
from .style import new_figure, printable, tip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Marker and its area [points^2].
_MARKERS: dict[Kind, tuple[str, float]] = {
    "dominated": ("X", 30.0), "front": ("o", 60.0), "nearest": ("D", 60.0), "chosen": ("*", 220.0),
}  # fmt: skip


def words(p: Point, label: str) -> str:
    """One plan in words."""
    return (
        f"{p.strategy} ({KINDS[p.kind]}): {p.stages} {'stage' if p.stages == 1 else 'stages'}, latency "
        f"{p.latency * 1e3:.4g} ms, energy {p.energy * 1e3:.4g} mJ, under-utilisation {p.under_utilisation:.3f} "
        f"({label})"
    )


def front(found: Explanation) -> Figure:
    """All plans; beside them the front from nearby, where the others leave it little room."""
    points = points_of(found)
    near = close_up(points)
    panels = [points] if len(near) == len(points) else [points, near]
    title = f"{found.model} on {found.target}, objective {found.objective} ({found.label})"
    figure = new_figure(9.5 if len(panels) == 1 else 11.5, 5.0, title)
    if points:
        for k, shown in enumerate(panels):
            panel = _Panel(figure.add_subplot(1, len(panels), k + 1), found, shown)
            panel.draw(bounds=k == 0, named=k == len(panels) - 1)
        figure.axes[0].legend(fontsize=8)
        plans = next(c for c in figure.axes[0].collections if c.get_array() is not None)
        figure.colorbar(plans, ax=figure.axes, label="under-utilisation [1]")
    return figure


def _plain(axis: Any) -> None:
    """Numbers in place of powers of ten, at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


class _Panel:
    """Some of the plans on axes of their own."""

    def __init__(self, axes: Axes, found: Explanation, points: list[Point]) -> None:
        self.axes, self.found, self.points = axes, found, points
        self.across, self.up = axis([p.latency for p in points], "s"), axis([p.energy for p in points], "J")

    def draw(self, bounds: bool, named: bool) -> None:
        """Axes and plans, with lower bounds, and with the names of the chosen and the nearest plan."""
        if self.across.logarithmic:
            self.axes.set_xscale("log")
            _plain(self.axes.xaxis)
        if self.up.logarithmic:
            self.axes.set_yscale("log")
            _plain(self.axes.yaxis)
        self.axes.set_xlabel(f"latency [{self.across.unit}]")
        self.axes.set_ylabel(f"energy [{self.up.unit}]")
        self.axes.grid(alpha=0.25, which="both")
        self._range()
        self._plans()
        if bounds:
            self._bounds()
        else:
            self.axes.set_title("the front from nearby", fontsize=9)
            self.axes.set_xlim(self.across.low, self.across.high)
            self.axes.set_ylim(self.up.low, self.up.high)
        if named:
            self._names()

    def _plans(self) -> None:
        shades = [p.under_utilisation for p in points_of(self.found)]
        seen: set[Kind] = set()
        for p in self.points:
            marker, size = _MARKERS[p.kind]
            chosen = p.kind == "chosen"
            self.axes.scatter(
                [p.latency * self.across.factor], [p.energy * self.up.factor], c=[p.under_utilisation], s=size,
                marker=marker, cmap="viridis", vmin=min(shades), vmax=max(shades), zorder=3,
                edgecolors="red" if chosen else "black", linewidths=1.2 if chosen else 0.5,
                label=None if p.kind in seen else KINDS[p.kind], gid=tip(words(p, self.found.label)),
            )  # fmt: skip
            seen.add(p.kind)

    def _names(self) -> None:
        """Beside the chosen and the nearest plan, on the side where there is more room."""
        to_axes = self.axes.transData + self.axes.transAxes.inverted()
        for p in self.points:
            x, y = p.latency * self.across.factor, p.energy * self.up.factor
            if p.kind in ("chosen", "nearest"):
                across, up = to_axes.transform((x, y))
                right, high = across > 0.5, up > 0.8
                self.axes.annotate(
                    printable(p.strategy), (x, y), xytext=(-9 if right else 9, -15 if high else 9),
                    textcoords="offset points", ha="right" if right else "left", fontsize=8, parse_math=False, zorder=4,
                )  # fmt: skip

    def _bounds(self) -> None:
        """Lines that no plan can be beyond."""
        lines = (("latency", self.across, self.axes.axvline, "--"), ("energy", self.up, self.axes.axhline, ":"))
        for name, scale, line, style in lines:
            value = self.found.lower_bounds.get(name)
            if value is not None and (value > 0 or not scale.logarithmic):
                label = f"no plan needs less {'time' if name == 'latency' else name}"
                line(value * scale.factor, color="0.35", linestyle=style, linewidth=1.2, label=label)

    def _range(self) -> None:
        """Energy of the chosen plan over the ranges of the energy coefficients."""
        joules = [e for s in self.found.sensitivity for e in (s.joules_low, s.joules_high)]
        chosen = [p for p in self.points if p.kind == "chosen"]
        if chosen and joules:
            low, high = min(*joules, chosen[0].energy), max(*joules, chosen[0].energy)
            self.axes.vlines(
                chosen[0].latency * self.across.factor, low * self.up.factor, high * self.up.factor, color="red",
                linewidth=1, alpha=0.6, label="chosen, over the ranges of energy coefficients",
            )  # fmt: skip
