"""A helper for tests of pages: what a parser sees in them, and what no page may have."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

#: Elements of HTML that have no end.
_VOID = {"meta", "br", "img", "link", "input", "hr"}
#: What runs, or loads, or sends.
_FORBIDDEN = {"script", "link", "img", "iframe", "object", "embed", "form", "base", "audio", "video", "foreignobject"}


class Page(HTMLParser):
    """Tags with their attributes, identifiers, texts by tag, and what is wrong with the nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        self.wrong += [f"<{t}> is never closed" for t in self.open]

    @property
    def ids(self) -> list[str]:
        return [str(a["id"]) for _, a in self.tags if "id" in a]

    @property
    def words(self) -> str:
        """All text outside of figures and styles."""
        return "\n".join(t for tag, t in self.texts if tag != "style")

    def count(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.tags)

    def text_of(self, tag: str) -> list[str]:
        return [text for t, text in self.texts if t == tag]

    def check(self) -> None:
        """Well-formed, identifiers that occur once, nothing that is loaded or run, every link within the page."""
        assert not self.wrong
        twice = [n for n, k in Counter(self.ids).items() if k > 1]
        assert not twice
        assert not _FORBIDDEN & {tag for tag, _ in self.tags}
        known = set(self.ids)
        for tag, attributes in self.tags:
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                if name.startswith("xmlns") or (tag, name) == ("svg", "version"):
                    continue
                if tag == "image" and name == "xlink:href":
                    # The shades of a colour bar.
                    assert value and value.startswith("data:image/png;base64,")
                elif name in ("href", "xlink:href"):
                    assert value and value[0] == "#" and value[1:] in known, (tag, value)
                drawn = value if value and name in ("style", "clip-path", "fill", "mask", "filter") else ""
                for target in re.findall(r"url\(([^)]*)\)", drawn):
                    assert target[0] == "#" and target[1:] in known, (tag, target)
        styles = " ".join(self.text_of("style"))
        assert "@import" not in styles and "url(" not in styles
        assert "\x00" not in self.source

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len({n for n, _ in attrs}) != len(attrs):
            self.wrong.append(f"<{tag}> has an attribute twice")
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> closes {self.open[-1:] or 'nothing'}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))
