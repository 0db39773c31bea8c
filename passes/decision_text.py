"""The account of a choice in words."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qeil_compile.passes.decision import Decision, Range, Rival

#: Shares below this are printed as no difference.
_NOTHING = 1e-6
_UNITS = {"latency": ("ms", 1e3), "energy": ("mJ", 1e3)}


def decision_text(d: Decision) -> list[str]:
    """The chosen plan, its gap, the lower bounds, the nearest other plan, and what would change the choice."""
    o = d.chosen.objectives
    lines = [
        f"chosen: {d.chosen.strategy}, {d.chosen.stages} {'stage' if d.chosen.stages == 1 else 'stages'}, "
        f"latency {o.latency * 1e3:.4g} ms, energy {o.energy * 1e3:.4g} mJ, "
        f"under-utilisation {o.under_utilisation:.3f}",
        f"gap in the objective {d.objective}: {gap_text(d.gap)}",
    ]
    if d.lower_bounds:
        lines.append("no plan can be below " + ", ".join(_amount(n, v) for n, v in d.lower_bounds.items()))
    if d.nearest is None:
        where = " within the caps of the objective" if ";" in d.objective else ""
        lines.append(f"nearest other plan of the front: none{where}")
    else:
        lines.append(f"nearest other plan of the front: {d.nearest.strategy}, {rival_text(d.nearest)}")
        lines.append(f"  {_flip_text(d.nearest, d.weight)}")
    if d.holds is not None:
        lines.append(_holds_text(d.holds, "within the caps" if ";" in d.objective else "considered"))
    if d.relaxation is not None:
        caps = " and ".join(_cap(n, v) for n, v in d.relaxation.caps)
        lines.append(f"with {caps} the choice is {d.relaxation.rival.strategy}, {rival_text(d.relaxation.rival)}")
    return lines


def gap_text(gap: float | None) -> str:
    """A gap in words."""
    if gap is None:
        return "no bound is known for the best possible plan"
    if gap < 5e-4:
        return "within 0.0 % of the best possible plan"
    return f"at most {percent(gap)} above the best possible plan"


def rival_text(r: Rival) -> str:
    """`2.1 % worse in the objective: 2.1 % slower, 11 % less energy`."""
    parts = [_compared(r.latency, "slower", "faster"), _compared(r.energy, "more energy", "less energy")]
    if abs(r.under_utilisation) >= 5e-4:
        parts.append(f"under-utilisation {r.under_utilisation:+.3f}")
    differences = ", ".join(p for p in parts if p)
    rank = _compared(r.worse, "worse in the objective", "better in the objective")
    if r.worse is None:
        rank = f"in the objective {r.value:.3g} instead of 0"
    return f"{rank or 'equal in the objective'}: {differences or 'differences below 0.001'}"


def percent(share: float) -> str:
    """The size of a share: `11 %`, `2.1 %`."""
    found = abs(share) * 100
    return f"{found:.0f} %" if found >= 10 else f"{found:.2g} %"


def _compared(share: float | None, more: str, less: str) -> str:
    return f"{percent(share)} {more if share > 0 else less}" if share is not None and abs(share) >= _NOTHING else ""


def _amount(name: str, value: float) -> str:
    unit, factor = _UNITS.get(name, ("", 1.0))
    return f"{name.replace('_', '-')} {value * factor:.4g} {unit}".rstrip()


def _cap(name: str, value: float) -> str:
    """A cap in the objective's grammar, rounded up so that it admits the value."""
    unit, factor = _UNITS.get(name, ("", 1.0))
    scaled = value * factor
    digits = 4 - floor(log10(scaled))
    return f"{name}<={ceil(scaled * 10.0**digits) / 10.0**digits:.6g}{unit}"


def _flip_text(rival: Rival, weight: float | None) -> str:
    if weight is None:
        return "the objective looks at neither latency nor energy: there is no weight to change between them"
    if rival.weight is None:
        return "no weight of energy against latency changes which of the two is better"
    return (
        f"it is the better of the two where energy weighs {'more' if rival.flips == 'above' else 'less'} than "
        f"{rival.weight:.3g} of latency and energy (here {weight:.3g})"
    )


def _holds_text(found: Range, which: str) -> str:
    ends = ", ".join(f"{side}: {name}" for side, name in (("below", found.below), ("above", found.above)) if name)
    return (
        f"of all plans {which} the chosen one is the best while energy weighs {found.low:.3g} to {found.high:.3g} "
        f"of latency and energy{f' ({ends})' if ends else ''}"
    )
