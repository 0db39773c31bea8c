"""A document as Markdown (GitHub's), with figures as SVG files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .blocks import Block, Bullets, Drawing, Heading, Paragraph, Table
from .style import printable, svg_file

_SPECIAL = re.compile(r"([\\`*\[\]|~$])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
#: At the start of a line these make headings, lists and quotes.
_LEADING = re.compile(r"^(\d*)(?=[#+=.)-])")


def render(title: str, blocks: Sequence[Block], folder: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the files by name that it shows."""
    lead = f"{folder.rstrip('/')}/" if folder else ""
    parts = [f"# {_inline(title)}", *(_block(b, lead) for b in blocks)]
    drawings = [b for b in blocks if isinstance(b, Drawing)]
    files = {f"{d.name}.svg": svg_file(d.figure, d.tips, d.name) for d in drawings}
    return "\n\n".join(parts) + "\n", files


def _inline(value: str) -> str:
    """Text that Markdown shows as it is, in the middle of a line."""
    plain = printable(value).strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda m: "\\" + m[0], plain)


def _text(value: str) -> str:
    """The same at the start of a line."""
    return _LEADING.sub(lambda m: m[1] + "\\", _inline(value))


def _block(block: Block, lead: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_inline(block.text)}"
    if isinstance(block, Paragraph):
        return _text(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_text(line)}" for line in block.lines)
    if isinstance(block, Table):
        return _table(block)
    caption = _text(f"Figure {block.number}. {block.caption}")
    return f"![{_inline(block.caption)}]({lead}{block.name}.svg)\n\n{caption}"


def _table(table: Table) -> str:
    def row(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(_inline(c) for c in cells) + " |"

    def shown(cells: tuple[str, ...], kind: str) -> tuple[str, ...]:
        # There are no classes of rows in Markdown: the chosen one has a mark.
        return (f"{cells[0]} (chosen)", *cells[1:]) if kind == "chosen" and "chosen" not in table.columns else cells

    kinds = table.kinds or ("",) * len(table.rows)
    rule = "|" + "|".join("---:" if c.endswith("]") else "---" for c in table.columns) + "|"
    lines = [row(table.columns), rule, *(row(shown(r, k)) for r, k in zip(table.rows, kinds, strict=True))]
    return "\n".join([*([_text(table.caption), ""] if table.caption else []), *lines])
