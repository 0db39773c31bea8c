"""Figures of the bench: savings with intervals, the front with the baselines on it, ablation, sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from qeil_compile.frontends.decoder import PROMPT
from qeil_compile.passes.partition.front import Front
from qeil_compile.passes.partition.stages import evaluate
from qeil_compile.report import PhaseView, view
from qeil_compile.report.style import legend_below, new_figure, short, tip
from qeil_compile.report.units import si

from .ablation import SAMPLING, Worth
from .plans import CASCADE, MEANING, PGSAM
from .prices import STEPS
from .run import GOALS, Instance, Share
from .sensitivity import ALL, Headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENERGY, _LATENCY = "#0072b2", "#d55e00"
#: Marks of an axis of ratios.
_TICKS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
#: An axis that spans more than this is logarithmic.
_DECADE = 10.0
#: Coefficients of the sensitivity figure.
_SHOWN = 12


def savings(shares: Sequence[Share]) -> Figure:
    """Energy and latency of every plan over the standard, one panel per target; lines at what is published."""
    from matplotlib.ticker import FixedLocator, NullLocator

    targets = list(dict.fromkeys(s.target for s in shares))
    plans = [p for p in MEANING if any(s.plan == p for s in shares)]
    columns = min(len(targets), 3)
    lines = -(-len(targets) // columns)
    figure = new_figure(2.2 + 3.1 * columns, 0.9 + lines * (0.9 + 0.3 * len(plans)))
    first = None
    for k, target in enumerate(targets):
        axes = figure.add_subplot(lines, columns, k + 1, sharex=first)
        first = first or axes
        of = {s.plan: s for s in shares if s.target == target}
        for row, plan in enumerate(plans):
            if plan in of:
                _pair(axes, row, of[plan])
        axes.axvline(1.0, color="0.6", linewidth=0.8)
        axes.axvline(GOALS["energy"], color=_ENERGY, linestyle=":", linewidth=1.2)
        axes.axvline(GOALS["latency"], color=_LATENCY, linestyle=":", linewidth=1.2)
        axes.set_yticks(range(len(plans)), plans if k % columns == 0 else [""] * len(plans), fontsize=8)
        axes.set_ylim(len(plans) - 0.5, -0.5)
        axes.set_title(short(target, 34), fontsize=9, parse_math=False)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_TICKS))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("over the standard [1]", fontsize=8)
        axes.grid(axis="x", alpha=0.25)
    from matplotlib.lines import Line2D

    legend_below(figure, [
        Line2D([], [], color=_ENERGY, marker="o", label="energy, mean with 95 % interval over instances"),
        Line2D([], [], color=_LATENCY, marker="s", label="latency"),
        Line2D([], [], color=_ENERGY, linestyle=":", label="published energy"),
        Line2D([], [], color=_LATENCY, linestyle=":", label="published latency"),
    ], 2)  # fmt: skip
    return figure


def _pair(axes: Axes, row: int, s: Share) -> None:
    for shift, value, colour, marker, name in ((-0.14, s.energy, _ENERGY, "o", "energy"),
                                               (0.14, s.latency, _LATENCY, "s", "latency")):  # fmt: skip
        words = f"{s.target}, {s.plan}: {name} {value.value:.3f} ({value.low:.3f} to {value.high:.3f}) of the standard"
        axes.plot([value.low, value.high], [row + shift] * 2, color=colour, linewidth=1.4)
        axes.plot([value.value], [row + shift], marker=marker, color=colour, markersize=5, gid=tip(words))


def front(instance: Instance) -> Figure:
    """Every plan that the search kept, and the plans of the table on it; energy and latency of a fixed batch."""
    figure = new_figure(7.5, 5.2)
    axes = figure.add_subplot()
    kept = instance.planned.front.candidates
    on = {id(c) for c in instance.planned.front.points}
    for c in kept:
        o = c.objectives
        axes.scatter([o.latency], [o.energy], s=22, color="0.35" if id(c) in on else "0.8", zorder=2,
                     gid=tip(f"{c.strategy}: {si(o.latency, 's')}, {si(o.energy, 'J')}"))  # fmt: skip
    colours = ("#d55e00", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#332288", "#56b4e9")
    plans = [p for p in instance.planned.plans if p not in CASCADE.values()]
    for k, plan in enumerate(plans):
        value = instance.mean.value(STEPS, instance.planned.plans[plan])
        # Plans that are equal stand on one spot: smaller ones on top of larger ones.
        axes.scatter([value[0]], [value[1]], s=190 - 24 * k, marker="osDv^P*"[k % 7], color=colours[k % 7],
                     edgecolors="black", linewidths=0.6, zorder=3 + k, label=plan,
                     gid=tip(f"{plan}: {si(value[0], 's')}, {si(value[1], 'J')}"))  # fmt: skip
    bounds = instance.planned.front.lower_bounds
    axes.axvline(bounds["latency"], color="0.4", linestyle="--", linewidth=1, label="no plan needs less time")
    axes.axhline(bounds["energy"], color="0.4", linestyle=":", linewidth=1, label="no plan needs less energy")
    for one, limits in ((axes.set_xscale, axes.get_xlim()), (axes.set_yscale, axes.get_ylim())):
        if limits[0] > 0 and limits[1] / limits[0] > _DECADE:
            one("log")
    axes.set(xlabel="latency of a question [s]", ylabel="energy of a question [J]")
    axes.grid(alpha=0.25, which="both")
    legend_below(figure, axes.get_legend_handles_labels()[0], 3)
    return figure


def ablation(worths: Sequence[Worth]) -> Figure:
    """What taking a part out costs: value of the objective over the full plan's, with 95 % intervals."""
    goals = list(dict.fromkeys(w.objective for w in worths))
    parts = list(dict.fromkeys(w.part for w in worths))
    figure = new_figure(8.5, 1.4 + 0.5 * len(parts))
    axes = figure.add_subplot()
    colours = ("#0072b2", "#009e73", "#d55e00", "#cc79a7")
    named: set[str] = set()
    for k, goal in enumerate(goals):
        for row, part in enumerate(parts):
            w = next((w for w in worths if (w.part, w.objective) == (part, goal)), None)
            if w is None or np.isnan(w.value.value):
                continue
            y = row + (0.0 if goal == SAMPLING else (k - 1) * 0.26)
            words = f"{part}, {goal}: {w.value.value:.3f} ({w.value.low:.3f} to {w.value.high:.3f})"
            (bar,) = axes.barh(y, w.value.value - 1, left=1, height=0.22, color=colours[k % 4],
                               label=None if goal in named else f"objective {goal}")  # fmt: skip
            named.add(goal)
            bar.set_gid(tip(words))
            axes.plot([w.value.low, w.value.high], [y, y], color="black", linewidth=1)
    axes.set_yticks(range(len(parts)), parts, fontsize=8)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.axvline(1.0, color="0.4", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("objective's value over that of the full plan [1]")
    legend_below(figure, axes.get_legend_handles_labels()[0], 3)
    return figure


def sensitivity(found: Sequence[Headline], method: str) -> Figure:
    """The saving of one method at both ends of the coefficients that move it most."""
    mine = [h for h in found if h.method == method]
    shown = sorted(mine, key=lambda h: -abs(h.high - h.low))[:_SHOWN]
    figure = new_figure(8.5, 1.4 + 0.3 * len(shown))
    axes = figure.add_subplot()
    for row, h in enumerate(shown):
        low, high = (100 * v for v in (h.low, h.high))
        (bar,) = axes.barh(row, high - low, left=low, height=0.6, color="#d55e00" if h.flips else "#0072b2")
        bar.set_gid(tip(f"{h.device} {h.field}: {low:.2f} % at {h.at[1]:.3g}, {high:.2f} % at {h.at[2]:.3g} {h.unit}"))
    names = [h.device if h.device == ALL else f"{h.device}: {h.field}" for h in shown]
    axes.set_yticks(range(len(shown)), [short(n, 44) for n in names], fontsize=8, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    if mine:
        axes.axvline(100 * mine[0].value, color="black", linewidth=1)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel(f"energy saved by {method} [%]")
    return figure


def views(instance: Instance, plan: str) -> list[PhaseView]:
    """Prompt and one step of a plan, for the figures of plans."""
    found = []
    for name in (PROMPT, STEPS):
        costs = instance.mean.costs[name]
        candidate = evaluate(costs, instance.mean.place(name, instance.planned.plans[plan]), plan)
        made = Front(costs, (candidate,), {}).plan(candidate, "energy", ranges=False)
        title = "prompt" if name == PROMPT else "one step of all samples"
        found.append(view(title, replace(made, target=instance.target.name), costs.to_json()))
    return found


def telling(instance: Instance) -> str:
    """Of PGSAM's plans the one on most placements, of equal ones that for energy: there is most to see."""
    names = list(PGSAM.values())[::-1]
    return max(names, key=lambda n: len(set(instance.planned.plans[n].tolist())))
