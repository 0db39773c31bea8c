"""A helper for tests of pages: what a parser and a browser see in them, and what no page may have."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

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


CHROMIUM = next((found for n in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(n))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)


def browse(page: Path, folder: Path, *more: str) -> str:
    """Open a page in a browser that reaches no host; what it prints."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000"]  # fmt: skip
    done = subprocess.run([CHROMIUM, *options, *more, page.as_uri()], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def look(report: Path, folder: Path, height: int) -> None:
    """The browser sees what the parser sees, draws something everywhere down the page in colour, and prints it."""
    from matplotlib.image import imread

    expected = Page(report.read_text(encoding="utf-8"))
    seen = Page(browse(report, folder, "--dump-dom"))
    for tag in ("svg", "figure", "table", "tr", "td", "h2", "li", "title", "use", "path"):
        assert seen.count(tag) == expected.count(tag) > 0, tag
    assert sorted(seen.ids) == sorted(expected.ids)
    browse(report, folder, f"--screenshot={folder / 'shot.png'}", f"--window-size=1200,{height}")
    pixels = imread(folder / "shot.png")[:, :, :3]
    assert pixels.shape[:2] == (height, 1200)
    dark = (pixels.min(axis=2) < 0.6).any(axis=1)
    assert all(part.any() for part in np.array_split(dark[:3000], 10))
    # More than shades of grey.
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 0.4).sum() > 1000
    browse(report, folder, f"--print-to-pdf={folder / 'print.pdf'}", "--no-pdf-header-footer")
    data = (folder / "print.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(data) > 20_000
