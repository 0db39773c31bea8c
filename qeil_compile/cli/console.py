"""What all commands share: where to print, progress bars, and how figures are written."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

#: Called with the name of a step, how much of it is done, and how much there is.
Step = Callable[[str, int, int], None]
#: Control characters but tabs and line breaks.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Options:
    """The global options of this call."""

    debug: bool = False
    quiet: bool = False


options = Options()


def out() -> Console:
    """Results go to standard output."""
    # A pipe has no width: 80 columns would cut the tables of `qeil explain | less`.
    return Console(soft_wrap=True, highlight=False) if sys.stdout.isatty() else Console(width=200, highlight=False)


def say(text: str) -> None:
    """One line of text for the person; silent with --quiet."""
    if not options.quiet:
        out().print(escape(printable(text)))


def remark(text: str) -> None:
    """One line on standard error, beside results that may be JSON or a text that streams; silent with --quiet."""
    if not options.quiet:
        Console(stderr=True, soft_wrap=True, highlight=False).print(escape(printable(text)))


def printable(text: str) -> str:
    """The text without control characters: names out of a stranger's file could move the cursor or set the title."""
    return _CONTROL.sub("\ufffd", text)


def print_json(data: Any) -> None:
    """Pure JSON on standard output."""
    print(json.dumps(data, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; columns whose name ends in a unit are aligned to the right."""
    if options.quiet or not rows:
        return
    drawn = Table(title=escape(printable(title)), title_justify="left", header_style="bold")
    for name in columns:
        drawn.add_column(escape(printable(name)), justify="right" if name.endswith("]") else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(printable(str(cell))) for cell in row))
    out().print(drawn)


@contextlib.contextmanager
def progress() -> Iterator[Step]:
    """A callback that draws one bar per step on standard error; silent without a terminal or with --quiet."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=options.quiet or not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def step(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield step
