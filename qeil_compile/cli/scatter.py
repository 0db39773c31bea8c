"""A scatter plot in plain text: latency to the right, energy upwards."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10

from qeil_compile.report.points import KINDS, Axis, Kind, Point, axis, close_up

_MARKS: dict[Kind, str] = {"dominated": ".", "front": "o", "nearest": "x", "chosen": "@"}
#: At the border: further up, and further to the right.
_BEYOND = ("^", ">")
#: Columns of the numbers at the left.
_MARGIN = 9


def scatter(points: Sequence[Point], width: int = 80, height: int = 16) -> list[str]:
    """Lines of at most `width` characters (45 or more): title, `height` rows, the axis below, and what the marks mean.

    Points that share a cell show as the most important of them; the legend counts all. Where others would leave the
    front little room, they stand at the border. Empty without points.
    """
    if not points:
        return []
    near = close_up(points)
    across, up = axis([p.latency for p in near], "s"), axis([p.energy for p in near], "J")
    columns = max(width - _MARGIN - 2, 20)
    cells = [[" "] * columns for _ in range(height)]
    for p in sorted(points, key=near.__contains__):
        x, y = p.latency * across.factor, p.energy * up.factor
        mark = _MARKS[p.kind] if p in near else _BEYOND[x > across.high]
        cells[height - 1 - _cell(up, y, height)][_cell(across, x, columns)] = mark
    labels = {height - 1 - _cell(up, v, height): _number(v) for v in _ticks(up, height // 3)}
    lines = [f"energy [{up.unit}{_scale(up)}] against latency [{across.unit}{_scale(across)}]"]
    for r, cell in enumerate(cells):
        lines.append(f"{labels.get(r, ''):>{_MARGIN}}{'+' if r in labels else '|'}{''.join(cell)}".rstrip())
    ticks = {_cell(across, v, columns): _number(v) for v in _ticks(across, columns // 12)}
    lines.append(" " * _MARGIN + "+" + "".join("+" if c in ticks else "-" for c in range(columns)))
    lines.append(" " * (_MARGIN + 1) + _below(ticks, columns))
    return lines + _legend(near, len(points) - len(near), width)


def _scale(of: Axis) -> str:
    return ", log" if of.logarithmic else ""


def _cell(of: Axis, value: float, cells: int) -> int:
    """Number of the cell of a value in the axis' unit."""
    if of.logarithmic and value > 0:
        share = log10(value / of.low) / log10(of.high / of.low)
    else:
        share = (value - of.low) / (of.high - of.low)
    return min(max(int(share * cells), 0), cells - 1)


def _ticks(of: Axis, most: int) -> list[float]:
    """Round numbers within the axis, at most so many."""
    if of.logarithmic:
        decades = range(floor(log10(of.low)), ceil(log10(of.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [s * 10.0**d for d in decades for s in steps if of.low <= s * 10.0**d <= of.high]
            if len(found) <= most:
                return found
        return found[:: ceil(len(found) / most)]
    rough = (of.high - of.low) / most
    power = 10.0 ** floor(log10(rough))
    step = next((s * power for s in (1, 2, 5) if s * power >= rough), 10 * power)
    # Multiples of the step rather than sums of it: no rounding error grows along the axis.
    return [k * step for k in range(ceil(of.low / step), floor(of.high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:.5g}"


def _below(ticks: dict[int, str], columns: int) -> str:
    """The numbers under their ticks, as far as they have room."""
    line = [" "] * columns
    free = 0
    for column, text in sorted(ticks.items()):
        start = min(max(column - len(text) // 2, 0), columns - len(text))
        if start >= free:
            line[start : start + len(text)] = text
            free = start + len(text) + 1
    return "".join(line).rstrip()


def _legend(points: Sequence[Point], beyond: int, width: int) -> list[str]:
    """What each mark means and how many points there are of it, broken into lines of `width`."""
    counts = [(_MARKS[kind], KINDS[kind], sum(p.kind == kind for p in points)) for kind in reversed(KINDS)]
    lines = [""]
    for mark, text, count in (*counts, (" ".join(_BEYOND), "dominated, further out", beyond)):
        entry = f"{mark} {text} ({count})"
        if not count:
            continue
        if lines[-1] and len(lines[-1]) + len(entry) + 3 > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + entry
    return lines
