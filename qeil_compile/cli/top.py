"""`qeil top`: what the devices of this machine draw, how hot and how busy they are, live."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from qeil_compile.telemetry import Channel, Missing, Recorded, Recorder, Sampler, Snapshot, find_sensors

from .arguments import check_file
from .console import options, out, print_json, say, table

#: Quantity -> heading, and what one of its unit is in SI.
_COLUMNS = {
    "load": ("load [%]", 1e-2),
    "power": ("power [W]", 1.0),
    "limit": ("limit [W]", 1.0),
    "energy": ("energy [J]", 1.0),
    "temperature": ("temperature [C]", 1.0),
    "slowdown": ("slows down at [C]", 1.0),
    "clock": ("clock [GHz]", 1e9),
    "memory": ("memory [GB]", 1e9),
    "capacity": ("of [GB]", 1e9),
}
#: Seconds between two pictures, and between two rows where standard output is no terminal.
_PICTURE, _ROW = 0.25, 1.0


def command(
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write every snapshot to a file that --replay reads.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Show a recording in place of this machine's sensors.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Stop after so long; 0: at Ctrl-C, or when the recording is over.")
    ] = 0.0,
    hertz: Annotated[float, typer.Option(min=0.1, max=1000.0, help="Snapshots per second.")] = 20.0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing --record file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A summary as JSON on standard output, at the end.")] = False,
) -> None:
    """Show load, power, temperature, clock and memory of each device; what is missing and why; what looking costs."""
    if record is not None:
        check_file(record, ".jsonl", overwrite)
    recorded = Recorded(replay) if replay is not None else None
    sensors, missing = find_sensors() if recorded is None else ([recorded], [])
    sampler, totals = Sampler(sensors, hertz), _Totals()
    sampler.listen("summary", totals)
    label = "measured" if recorded is None else "recorded"
    with contextlib.ExitStack() as stack:
        if record is not None:
            sampler.listen(f"recording {record}", stack.enter_context(Recorder(record, sampler.channels)))
        if not as_json:
            _describe(sampler, missing, label)
        stack.enter_context(sampler)
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            _watch(sampler, recorded, seconds or math.inf, silent=as_json)
    if as_json:
        print_json(_summary(sampler, totals, missing, label))
    else:
        say(_cost(sampler))
        if record is not None:
            say(f"wrote {record}")


@dataclass
class _Totals:
    """Last, mean, least and most of each channel; a listener."""

    seen: dict[Channel, list[float]] = field(default_factory=dict)

    def __call__(self, snapshot: Snapshot) -> None:
        for c, v in snapshot.values.items():
            if not math.isnan(v):
                _, total, count, least, most = self.seen.get(c, (v, 0.0, 0.0, v, v))
                self.seen[c] = [v, total + v, count + 1, min(least, v), max(most, v)]

    def of(self, channel: Channel) -> dict[str, float]:
        """Empty where it never had a value."""
        if channel not in self.seen:
            return {}
        last, total, count, least, most = self.seen[channel]
        return {"last": last, "mean": total / count, "least": least, "most": most}


def _describe(sampler: Sampler, missing: list[Missing], label: str) -> None:
    table(
        f"what is read ({label})",
        ("device", "quantity", "unit", "source"),
        [[c.device, c.quantity, c.unit, c.source] for c in sampler.channels],
    )
    table("missing", ("sensor", "reason"), [[m.name, m.reason] for m in missing])


def _watch(sampler: Sampler, recorded: Recorded | None, seconds: float, silent: bool) -> None:
    """Show snapshots until the time or the recording is over."""
    console = Console(highlight=False)
    live = console.is_terminal and not silent and not options.quiet
    began = time.perf_counter()
    with Live(console=console, auto_refresh=False) if live else contextlib.nullcontext() as picture:
        for passed in _ticks(_PICTURE if live else _ROW, began + seconds):
            snapshot = sampler.latest()
            if snapshot is not None and picture is not None:
                picture.update(Group(_drawn(snapshot), escape(_cost(sampler))), refresh=True)
            elif snapshot is not None and not silent:
                _print_rows(snapshot, passed)
            if recorded is not None and recorded.over:
                return


def _ticks(step: float, until: float) -> Iterator[float]:
    """Seconds since now: the first at once a snapshot can be there, the last at `until`."""
    began = time.perf_counter()
    time.sleep(min(0.1, max(until - began, 0.0)))
    while True:
        now = time.perf_counter()
        yield now - began
        if now >= until:
            return
        time.sleep(min(step, max(until - now, 0.0)))


def _cells(snapshot: Snapshot) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row per device; "-" where a device has no such channel or it gives nothing now."""
    quantities = [q for q in _COLUMNS if any(c.quantity == q for c in snapshot.values)]
    rows = []
    for device in dict.fromkeys(c.device for c in snapshot.values):
        found = [(snapshot.of(device, q), _COLUMNS[q][1]) for q in quantities]
        rows.append([device, *("-" if v is None else f"{v / scale:.4g}" for v, scale in found)])
    return ["device", *(_COLUMNS[q][0] for q in quantities)], rows


def _drawn(snapshot: Snapshot) -> Table:
    headings, rows = _cells(snapshot)
    drawn = Table(header_style="bold")
    for k, name in enumerate(headings):
        drawn.add_column(escape(name), justify="right" if k else "left")
    for row in rows:
        drawn.add_row(*map(escape, row))
    return drawn


def _print_rows(snapshot: Snapshot, passed: float) -> None:
    headings, rows = _cells(snapshot)
    for row in rows:
        values = ", ".join(f"{h} {v}" for h, v in zip(headings[1:], row[1:], strict=True) if v != "-")
        if not options.quiet:
            out().print(escape(f"{passed:8.2f} s  {row[0]}: {values or 'nothing now'}"))


def _cost(sampler: Sampler) -> str:
    """What looking costs, what was lost, and how often the rate was halved for it."""
    share = "" if math.isnan(sampler.cost) else f", {sampler.cost:.2%} of a core (measured)"
    slowed = "".join(f"; halved to {s.hertz:g} Hz since it took {s.share:.1%}" for s in sampler.slowed)
    lost = "".join(f"; lost {x.name}: {x.reason}" for x in sampler.lost.values())
    return f"sampling at {sampler.hertz:g} Hz{share}{slowed}{lost}"


def _summary(sampler: Sampler, totals: _Totals, missing: list[Missing], label: str) -> dict[str, Any]:
    return {
        "label": label,
        "channels": [asdict(c) | totals.of(c) for c in sampler.channels],
        "missing": [asdict(m) for m in missing],
        "lost": [asdict(x) for x in sampler.lost.values()],
        "sampler": {
            "hertz": sampler.hertz,
            "cost": None if math.isnan(sampler.cost) else sampler.cost,
            "slowed": [asdict(s) for s in sampler.slowed],
        },
    }
