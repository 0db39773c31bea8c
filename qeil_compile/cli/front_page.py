"""The front as one HTML file: the figure with tooltips, the choice in words, and tables. It loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from qeil_compile import api

from .console import mj, ms
from .front_figure import inline_svg, printable

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left; }
th { vertical-align: bottom; }
.number { text-align: right; }
.chosen td { font-weight: bold; }
.dominated td { color: #777; }
"""


def page(found: api.Explanation) -> str:
    """The whole document. Text of the artifact is escaped: it may come from anyone."""
    title = f"{found.model} on {found.target}, objective {found.objective}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        inline_svg(found),
        f"<h2>The choice ({_text(found.label)})</h2>",
        _list(found.decision.as_text()),
        f"<h2>Alternatives considered ({_text(found.label)})</h2>",
        _alternatives(found),
    ]
    if found.sensitivity:
        parts += [
            f"<h2>Ranges of energy coefficients ({_text(found.label)})</h2>", _list(found.ranges), _ranges(found)
        ]  # fmt: skip
    parts += ["<h2>Notes</h2>", _list(found.notes)] if found.notes else []
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line.strip())}</li>" for line in lines) + "</ul>"


def _alternatives(found: api.Explanation) -> str:
    columns = ("strategy", "stages [1]", "latency [ms]", "energy [mJ]", "under-utilisation [1]", "on front", "chosen")
    rows = []
    for a in found.alternatives:
        o = a.objectives
        cells = (a.strategy, a.stages, ms(o.latency), mj(o.energy), f"{o.under_utilisation:.3f}",
                 "yes" if a.on_front else "", "yes" if a.chosen else "")  # fmt: skip
        kind = "chosen" if a.chosen else "front" if a.on_front else "dominated"
        rows.append(_row(cells, columns, kind, a.note or "the chosen plan"))
    return _table(columns, rows)


def _ranges(found: api.Explanation) -> str:
    columns = ("device", "coefficient", "unit", "value [unit]", "low [unit]", "high [unit]", "energy at low [mJ]",
               "energy at high [mJ]", "another plan is better")  # fmt: skip
    rows = [
        _row(
            (s.device, s.field, s.unit, f"{s.value:.3g}", f"{s.low:.3g}", f"{s.high:.3g}", mj(s.joules_low),
             mj(s.joules_high), s.as_text() or "nowhere in the range"),
            columns, "range", s.as_text() or "the choice holds over the whole range",
        )
        for s in found.sensitivity
    ]  # fmt: skip
    return _table(columns, rows)


def _row(cells: Sequence[object], columns: Sequence[str], kind: str, tip: str) -> str:
    drawn = "".join(f"<td{_aligned(c)}>{_text(v)}</td>" for c, v in zip(columns, cells, strict=True))
    return f'<tr class="{kind}" title="{_text(tip)}">{drawn}</tr>'


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th{_aligned(c)}>{_text(c)}</th>" for c in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _aligned(column: str) -> str:
    return ' class="number"' if column.endswith("]") else ""
