"""Reports: what a plan is, as figures and as one document that is written as a page or as Markdown.

    phase = view("prompt", plan, costs)                 operators, roofs and energies of one plan
    figure = roofline([phase])                          a matplotlib figure, its tooltips in it
    document = Document("A model on a machine")         headings, text, tables, figures
    document.figure(figure, "Roofline.", "roofline")
    document.html()                                     one file that loads nothing
"""

from __future__ import annotations

from .document import Document
from .view import Energy, OpPoint, PhaseView, Roof, view

__all__ = ["Document", "Energy", "OpPoint", "PhaseView", "Roof", "view"]
