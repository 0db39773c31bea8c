"""One document, two forms: a page of HTML that loads nothing, and Markdown with its figures as files beside it.

    document = Document("A model on a machine")
    document.heading("Devices")
    document.table(("device", "busy [ms]"), [("gpu", "1.25")])
    document.figure(roofline(phases), "Every operator under the roofs.", "roofline")

All text is taken as text: names come from strangers' files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from . import markdown, page
from .blocks import Block, Bullets, Drawing, Heading, Paragraph, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class Document:
    """Blocks in order, under a title. Figures are drawn when the document is written."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.blocks: list[Block] = []

    def heading(self, text: str, level: int = 2) -> None:
        """A section (2) or a part of one (3). Raises `ValueError` for another level."""
        if level not in (2, 3):
            raise ValueError(f"heading {text!r:.60}: found level {level}, expected 2 or 3")
        number = sum(isinstance(b, Heading) for b in self.blocks) + 1
        words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
        self.blocks.append(Heading(text, level, f"section-{number}-{words}".rstrip("-")))

    def paragraph(self, text: str) -> None:
        """Running text."""
        self.blocks.append(Paragraph(text))

    def bullets(self, lines: Sequence[str]) -> None:
        """A list; nothing where there are no lines."""
        if lines:
            self.blocks.append(Bullets(tuple(lines)))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], kinds: Sequence[str] | None = None,
        caption: str = "",
    ) -> None:  # fmt: skip
        """A table. Columns whose name ends with "]" are numbers and stand to the right; `kinds` are CSS classes of the
        rows ("chosen", "dominated", ...), as many as rows. Nothing where there are no rows.

        Raises `ValueError` for rows of another width, other numbers of kinds, and kinds that are no words.
        """
        name = f"table {caption or columns[0]!r:.60}"
        wrong = next((r for r in rows if len(r) != len(columns)), None)
        if wrong is not None:
            raise ValueError(f"{name}: a row has {len(wrong)} cells, expected {len(columns)}")
        if kinds is not None and (len(kinds) != len(rows) or not all(not k or _NAME.fullmatch(k) for k in kinds)):
            raise ValueError(f"{name}: kinds are {kinds!r:.60}, expected one word of a-z, 0-9 and - per row")
        if rows:
            cells = tuple(tuple(map(str, r)) for r in rows)
            self.blocks.append(Table(tuple(columns), cells, tuple(kinds or ()), caption))

    def figure(self, figure: Figure, caption: str, name: str, tips: Mapping[str, str] | None = None) -> None:
        """A figure, numbered as it comes. `tips` are tooltips by gid, beside those that the figure brings itself.

        Raises `ValueError` for a name that is taken or that is not a-z, 0-9 and "-".
        """
        drawn = [b for b in self.blocks if isinstance(b, Drawing)]
        if not _NAME.fullmatch(name) or any(d.name == name for d in drawn):
            raise ValueError(f"figure {name!r:.60}: expected a name of a-z, 0-9 and - that no other figure has")
        self.blocks.append(Drawing(figure, caption, name, dict(tips or {}), len(drawn) + 1))

    def html(self) -> str:
        """One file that loads nothing and runs nothing, with a table of contents, also for print."""
        return page.render(self.title, self.blocks)

    def markdown(self, folder: str) -> tuple[str, dict[str, bytes]]:
        """The text, and by file name the SVG files that it refers to as `folder`/name. An empty `folder` is that of
        the text."""
        return markdown.render(self.title, self.blocks, folder)
