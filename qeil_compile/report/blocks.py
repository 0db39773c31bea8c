"""What a document is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    """`level` 2 begins a section, 3 a part of it. `anchor` is its identifier."""

    text: str
    level: int
    anchor: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of lines."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text. Columns whose name ends in a unit ("]") are numbers; `kinds` has a word per row, or none."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kinds: tuple[str, ...]
    caption: str


@dataclass(frozen=True)
class Drawing:
    """A numbered figure with its caption; `name` is its identifier and that of its file."""

    figure: Figure
    caption: str
    name: str
    tips: Mapping[str, str]
    number: int


Block = Heading | Paragraph | Bullets | Table | Drawing
