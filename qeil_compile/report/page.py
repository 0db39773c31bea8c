"""A document as one HTML file: no network, no script, from a file or a server, on a screen or on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .blocks import Block, Bullets, Drawing, Heading, Paragraph, Table
from .style import printable, svg

#: Nothing is loaded and nothing runs, whatever the text says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
#: Characters of a word that may be broken on paper.
_LONG = 24
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; max-width: 64rem; margin: 2rem auto 4rem;
  padding: 0 1.25rem; color: #1c1c1c; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, ul { max-width: 50rem; margin: .5rem 0; }
ul { padding-left: 1.3rem; }
a { color: #0b57a4; }
nav { margin: 1rem 0 0; padding: .7rem 1rem; background: #f5f6f8; border-radius: .3rem; }
nav ul { columns: 15rem; max-width: none; margin: 0; padding: 0; list-style: none; font-size: .9rem; }
figure { margin: 1rem 0 1.4rem; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption, caption { font-size: .88rem; color: #444; text-align: left; max-width: 50rem; padding: .35rem 0; }
.scroll { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: top; }
th { vertical-align: bottom; border-bottom: 1px solid #888; background: #fff; }
.number { text-align: right; }
td { max-width: 26rem; overflow-wrap: break-word; }
td.number { white-space: nowrap; }
.chosen td { font-weight: 600; background: #eef4fb; }
.dominated td { color: #666; }
@media print {
  @page { margin: 14mm; }
  body { max-width: none; margin: 0; padding: 0; font-size: 9.5pt; color: #000; }
  a { color: #000; text-decoration: none; }
  nav { background: none; border: 1px solid #999; }
  h2, h3 { break-after: avoid; }
  figure { break-inside: avoid; }
  figure svg { max-height: 205mm; }
  figcaption, caption, .dominated td { color: #000; }
  .scroll { overflow: visible; }
  table { font-size: 7pt; width: 100%; }
  th, td { padding-right: .5em; max-width: none; }
  /* Paper does not scroll: long words break before a column is lost. */
  .long { overflow-wrap: anywhere; min-width: 8em; }
  thead { display: table-header-group; }
  tr { break-inside: avoid; }
  .chosen td { background: none; }
}
"""


def render(title: str, blocks: Sequence[Block]) -> str:
    """The whole file."""
    title = _text(title)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style>"
    )
    body = "\n".join([f"<h1>{title}</h1>", _contents(blocks), *map(_block, blocks)])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n<main>\n{body}\n</main>\n</body></html>\n'


def _text(value: str) -> str:
    return escape(printable(value))


def _contents(blocks: Sequence[Block]) -> str:
    """Links to the sections, where there are several."""
    sections = [b for b in blocks if isinstance(b, Heading) and b.level == 2]
    if len(sections) < 2:
        return ""
    items = "".join(f'<li><a href="#{b.anchor}">{_text(b.text)}</a></li>' for b in sections)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{block.anchor}">{_text(block.text)}</h{block.level}>'
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_text(line.strip())}</li>" for line in block.lines) + "</ul>"
    if isinstance(block, Table):
        return _table(block)
    return _figure(block)


def _table(table: Table) -> str:
    numbers = [c.endswith("]") for c in table.columns]

    def cells(tag: str, values: tuple[str, ...]) -> str:
        return "".join(_cell(tag, v, number) for number, v in zip(numbers, values, strict=True))

    kinds = [f' class="{k}"' if k else "" for k in table.kinds] or [""] * len(table.rows)
    rows = [f"<tr{kind}>{cells('td', row)}</tr>" for kind, row in zip(kinds, table.rows, strict=True)]
    caption = f"<caption>{_text(table.caption)}</caption>" if table.caption else ""
    head = f"<thead><tr>{cells('th', table.columns)}</tr></thead>"
    return f'<div class="scroll"><table>{caption}{head}<tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>"


def _cell(tag: str, value: str, number: bool) -> str:
    names = ["number"] * number + ["long"] * any(len(word) > _LONG for word in value.split())
    kind = f' class="{" ".join(names)}"' if names else ""
    return f"<{tag}{kind}>{_text(value)}</{tag}>"


def _figure(drawing: Drawing) -> str:
    caption = f"Figure {drawing.number}. {drawing.caption}"
    drawn = svg(drawing.figure, drawing.tips, drawing.name)
    drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{_text(caption)}"', 1)
    return f'<figure id="figure-{drawing.name}">\n{drawn}<figcaption>{_text(caption)}</figcaption></figure>'
