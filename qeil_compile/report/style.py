"""What all figures share: colours, sizes, units, and the way from a figure to SVG."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from typing import TYPE_CHECKING, Any

from .view import LINKS, PhaseView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours without yellow and black, then darker ones of Paul Tol: told apart by colour-blind readers,
#: on white, and in grey.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#332288", "#882255", "#999933",
            "#117733")  # fmt: skip
_LINK_COLOUR = "#7a7a7a"
#: Of several placements (engines) on one device.
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
#: One marker per phase.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: More elements than this are drawn as one, without tooltips: a page of a hundred megabytes helps nobody.
MOST_TIPS = 4000
#: A gid that begins so is a tooltip of its own.
_TIP = "tip:"
_GROUP = re.compile(r'<g id="([^"]*)">')
_TAG = re.compile(r"<[^!?][^>]*>")
_REFERENCE = re.compile(r'\bid="|\bxlink:href="#|url\(#')


def colours(phases: Iterable[PhaseView]) -> dict[str, str]:
    """Device -> colour, the same in every figure of these phases: devices of the target in its order, used or not."""
    devices = dict.fromkeys(d for p in phases for d in p.devices)
    return {d: _PALETTE[k % len(_PALETTE)] for k, d in enumerate(devices)} | {LINKS: _LINK_COLOUR}


def hatches(phases: Iterable[PhaseView]) -> dict[str, str]:
    """Placement -> hatch: the first that the plans use of each device is plain, further engines are told apart."""
    seen: dict[str, int] = {}
    found: dict[str, str] = {}
    for s in (s for p in phases for s in p.plan.stages):
        if s.placement not in found:
            found[s.placement] = HATCHES[seen.get(s.device, 0) % len(HATCHES)]
            seen[s.device] = seen.get(s.device, 0) + 1
    return found


def printable(text: str) -> str:
    """Without control characters, which neither a font nor XML has."""
    return "".join(c if c.isprintable() else "?" for c in text)


def short(text: str, most: int = 28) -> str:
    """Printable text of at most `most` characters for a label; its middle is left out."""
    text = printable(text)
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def tip(text: str) -> str:
    """A gid that `svg` turns into a tooltip."""
    # As digits: names of strangers must not end an attribute.
    return _TIP + printable(text).encode().hex()


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of so many inches, laid out when it is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(printable(title), fontsize=10, parse_math=False)
    return figure


def beside(panels: int) -> int:
    """How many of so many equal panels stand in a row, with few gaps at the end."""
    return 3 if panels in (3, 5, 6) else min(panels, 2)


def empty(figure: Figure, text: str) -> Figure:
    """The figure with a sentence in place of a drawing."""
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.35")
    return figure


def legend_below(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    """A legend under all axes; names of strangers are no formulas."""
    if not handles:
        return
    legend = figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def svg(figure: Figure, tips: Mapping[str, str] | None = None, prefix: str = "") -> str:
    """The figure as an `<svg>` element to stand in a page: text stays text, and elements with tips have tooltips.

    `tips` are by gid; those that the figure brings itself need no entry. The same figure gives the same bytes, without
    date or metadata. Identifiers begin with `prefix` (by default a hash of the drawing), so that the elements of
    different figures in one page do not meet.
    """
    text = file_bytes(figure, "svg").decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    own = f"{prefix or 'f' + hashlib.sha256(text.encode()).hexdigest()[:10]}-"
    counted = count(1)

    def titled(match: re.Match[str]) -> str:
        gid = match[1]
        if tips and gid in tips:
            return f"{match[0]}<title>{escape(printable(tips[gid]))}</title>"
        if not gid.startswith(_TIP):
            return match[0]
        words = bytes.fromhex(gid.removeprefix(_TIP)).decode("utf-8")
        return f'<g id="tip_{next(counted)}"><title>{escape(words)}</title>'

    # Only inside of tags: a text may well read `url(#`.
    return _TAG.sub(lambda tag: _REFERENCE.sub(lambda m: m[0] + own, tag[0]), _GROUP.sub(titled, text))


def svg_file(figure: Figure, tips: Mapping[str, str] | None = None, prefix: str = "") -> bytes:
    """`svg` as a file of its own."""
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + svg(figure, tips, prefix).encode()


def file_bytes(figure: Figure, form: str) -> bytes:
    """The figure as matplotlib writes it ("png", "svg"). The same figure gives the same bytes, each time."""
    import matplotlib

    # Laid out once: a second time would start from what the first one found, and end a hair's breadth elsewhere.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # Text stays text, and neither identifiers nor dates differ between two runs.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "qeil"}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=130, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
