"""The placement map: which device runs what, by layer and role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from .style import MOST_TIPS, beside, colours, empty, hatches, legend_below, new_figure, printable, short, tip
from .units import si
from .view import OpPoint, PhaseView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches of a row, and the most of a map; thinner rows are drawn where there are more layers.
_ROW, _MOST_HEIGHT = 0.2, 5.5
#: Operators in a row of a strip.
_STRIP = 40
#: Characters of a role.
_ROLE = 36
#: Maps of at most so many columns stand beside one another.
_BESIDE = 14
#: Rows and columns with a label each.
_LABELS = 48


def placement_map(phases: Sequence[PhaseView]) -> Figure:
    """Where each operator runs. Rows are layers, with what comes before and after them, columns are roles in order.

    A cell of several operators is divided among them in order. Models without layers have a strip of operators, to be
    read like text. Colour is the device, hatching tells its engines apart.
    """
    drawn = [p for p in phases if p.points]
    if not drawn:
        return empty(new_figure(8, 2), "the plan has no cost table: compile the model again to see its operators")
    maps: list[_Map | _Strip] = [_Map(p) if any(o.layer is not None for o in p.points) else _Strip(p) for p in drawn]
    columns = beside(len(maps)) if all(0 < len(m.roles) <= _BESIDE for m in maps) else 1
    lines = [maps[k : k + columns] for k in range(0, len(maps), columns)]
    for upper, lower in zip(maps, maps[columns:], strict=False):
        # What stands right above the same columns needs no names of its own.
        upper.named = upper.roles != lower.roles
    heights = [max(m.height for m in line) for line in lines]
    width = max(m.width for m in maps)
    figure = new_figure(width, sum(heights) + 0.5)
    grid = figure.add_gridspec(len(lines), columns, height_ratios=[max(m.lines for m in line) for line in lines])
    hues, marks = colours(phases), hatches(phases)
    for k, one in enumerate(maps):
        one.width = width / columns
        one.draw(figure.add_subplot(grid[k // columns, k % columns]), hues, marks)
    legend_below(figure, _handles(phases, hues, marks), 4)
    return figure


def _handles(phases: Sequence[PhaseView], hues: Mapping[str, str], marks: Mapping[str, str]) -> list[Any]:
    """Placements that are used, then devices that are not."""
    from matplotlib.patches import Patch

    where = {s.placement: s.device for p in phases for s in p.plan.stages}
    found = [
        Patch(facecolor=hues[d], edgecolor="white", hatch=marks[spec], label=f"{printable(d)}: {printable(spec)}")
        for spec, d in where.items()
    ]
    unused = dict.fromkeys(d for p in phases for d in p.devices if d not in where.values())
    return found + [Patch(facecolor=hues[d], alpha=0.35, label=f"{printable(d)} (not used)") for d in unused]


@dataclass(frozen=True)
class _Box:
    """Operators of one placement in a row: left end, top and width in cells."""

    ops: tuple[OpPoint, ...]
    left: float
    top: float
    width: float


def _boxes(ops: Sequence[OpPoint], left: float, top: float, width: float) -> list[_Box]:
    """Operators side by side in a width; neighbours on one placement are one box."""
    found, part = [], width / len(ops)
    for _, run in groupby(ops, key=lambda o: o.placement):
        members = tuple(run)
        found.append(_Box(members, left, top, part * len(members)))
        left += part * len(members)
    return found


def _draw(
    axes: Axes, boxes: Sequence[_Box], phase: PhaseView, hues: Mapping[str, str], marks: Mapping[str, str]
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    few = len(boxes) <= MOST_TIPS
    patches: dict[tuple[str, str], list[Any]] = {}
    for box in boxes:
        o = box.ops[0]
        patch = Rectangle(
            (box.left, box.top), box.width, 1, facecolor=hues[o.device], edgecolor="white", linewidth=0.5,
            hatch=marks[o.placement], gid=tip(_words(phase, box.ops)) if few else None,
        )  # fmt: skip
        if few:
            axes.add_patch(patch)
        else:
            patches.setdefault((o.device, o.placement), []).append(patch)
    for (device, placement), members in patches.items():
        axes.add_collection(PatchCollection(members, facecolor=hues[device], hatch=marks[placement], linewidth=0))


def _words(phase: PhaseView, ops: Sequence[OpPoint]) -> str:
    o = ops[0]
    where = "" if o.layer is None else f"layer {o.layer}, "
    names = ", ".join(short("+".join(x.ops), 60) for x in ops[:3])
    more = f" and {len(ops) - 3} more" if len(ops) > 3 else ""
    costs = f"{si(sum(x.seconds for x in ops), 's')}, {si(sum(x.joules for x in ops), 'J')}"
    return f"{phase.name}, {where}{o.role}: {names}{more} on {o.placement} ({o.device}), {costs} ({phase.label})"


def _bare(axes: Axes, columns: float, rows: float, title: str) -> None:
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7)


class _Map:
    """One phase of a model with layers."""

    def __init__(self, phase: PhaseView) -> None:
        self.phase = phase
        inside = [k for k, o in enumerate(phase.points) if o.layer is not None]
        first, last = inside[0], inside[-1]
        self.rows: dict[str, list[OpPoint]] = {}
        self.cells: dict[tuple[str, str], list[OpPoint]] = {}
        for k, o in enumerate(phase.points):
            if o.layer is None:
                self.rows.setdefault("before" if k < first else "after" if k > last else "between", []).append(o)
            else:
                self.cells.setdefault((str(o.layer), o.role), []).append(o)
        layers = [str(n) for n in sorted({o.layer for o in phase.points if o.layer is not None})]
        self.order = [*(["before"] if "before" in self.rows else []), *layers,
                      *(n for n in ("between", "after") if n in self.rows)]  # fmt: skip
        self.roles = _in_order(phase.points)
        self.lines = len(self.order)
        self.named = True
        self.width = min(max(9.5, 2.0 + 0.34 * len(self.roles)), 22.0)

    @property
    def height(self) -> float:
        """Inches."""
        longest = max(len(short(r, _ROLE)) for r in self.roles) if self.named else 0
        return 0.5 + min(_ROW * len(self.order), _MOST_HEIGHT) + 0.052 * longest

    def draw(self, axes: Axes, hues: Mapping[str, str], marks: Mapping[str, str]) -> None:
        row = {n: k for k, n in enumerate(self.order)}
        column = {r: k for k, r in enumerate(self.roles)}
        boxes = [b for (layer, role), ops in self.cells.items() for b in _boxes(ops, column[role], row[layer], 1)]
        for name, ops in self.rows.items():
            boxes += _boxes(ops, 0, row[name], min(len(ops), len(self.roles)))
        _draw(axes, boxes, self.phase, hues, marks)
        for name, ops in self.rows.items():
            self._name(axes, ops, row[name], min(len(ops), len(self.roles)))
        _bare(axes, len(self.roles), len(self.order), f"{short(self.phase.name, 60)} ({self.phase.label})")
        step = -(-len(self.order) // _LABELS)
        shown = [n for k, n in enumerate(self.order) if not k % step or not n.isdigit()]
        axes.set_yticks([row[n] + 0.5 for n in shown], shown)
        axes.set_ylabel("layer", fontsize=8)
        if not self.named:
            axes.set_xticks([])
            return
        every = -(-len(self.roles) // (2 * _LABELS))
        axes.set_xticks(
            [k + 0.5 for k in range(0, len(self.roles), every)], [short(r, _ROLE) for r in self.roles[::every]],
            rotation=45, ha="right", rotation_mode="anchor", parse_math=False,
        )  # fmt: skip


    def _name(self, axes: Axes, ops: Sequence[OpPoint], row: int, width: float) -> None:
        """Roles of what stands outside of layers, beside their boxes, as far as there is room."""
        names = ", ".join(dict.fromkeys(short(o.role) for o in ops))
        room = int((len(self.roles) - width) * self.width / len(self.roles) / 0.075)
        if room > 8:
            text = short(names, room)
            axes.text(width + 0.15, row + 0.5, text, va="center", fontsize=7, color="0.3", parse_math=False)


def _in_order(points: Sequence[OpPoint]) -> list[str]:
    """Roles of layers as they follow one another: by their mean place within a layer."""
    places: dict[str, list[float]] = {}
    for _, run in groupby((o for o in points if o.layer is not None), key=lambda o: o.layer):
        members = list(run)
        for k, o in enumerate(members):
            places.setdefault(o.role, []).append(k / len(members))
    return sorted(places, key=lambda r: sum(places[r]) / len(places[r]))


class _Strip:
    """One phase of a model without layers: operators in order, line by line."""

    def __init__(self, phase: PhaseView) -> None:
        self.phase = phase
        self.columns = max(_STRIP, -(-len(phase.points) // 60))
        self.lines = -(-len(phase.points) // self.columns)
        self.height = 0.75 + 0.24 * self.lines
        self.width = 9.5
        self.roles: list[str] = []
        self.named = False

    def draw(self, axes: Axes, hues: Mapping[str, str], marks: Mapping[str, str]) -> None:
        points, columns = self.phase.points, self.columns
        lines = [points[k * columns : (k + 1) * columns] for k in range(self.lines)]
        _draw(axes, [b for k, ops in enumerate(lines) for b in _boxes(ops, 0, k, len(ops))], self.phase, hues, marks)
        wide = min(columns, len(points))
        title = f"{short(self.phase.name, 60)}: {len(points)} operators in order ({self.phase.label})"
        _bare(axes, wide, self.lines, title)
        axes.set_xticks([])
        axes.set_yticks([k + 0.5 for k in range(self.lines)], [str(k * self.columns) for k in range(self.lines)])
