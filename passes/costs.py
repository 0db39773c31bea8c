"""The prices of all groups on all placements, and of the steps between placements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from qeil_compile.devices import Placement, Target, boundary_seconds, constants_of
from qeil_compile.devices.roofline import launch_seconds
from qeil_compile.devices.timing import Calibration, time_model
from qeil_compile.devices.work import KernelTable
from qeil_compile.ir import GroupGraph
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.energy import DeviceEnergy, dynamic_joules
from qeil_compile.passes.memory import Storage, storages
from qeil_compile.passes.thermal import ceiling
from qeil_compile.plan import Label


@dataclass(frozen=True)
class CostTable:
    """Prices of groups (rows) on placements (columns), float64[groups, placements] where not said otherwise.

    `flops` and `nbytes` are W and Q. `seconds` is t, `streaming` the part of it in which the memory roof binds [s],
    `dynamic` is W e_f + Q e_m [J]. `dasi` and `beta` are the roofline's shares, `dasi_eff` and `beta_eff` the attained
    ones. `supported` is bool; `reasons` says, for an unsupported pair, why. `states` holds each placement's steady
    state under the mean of all groups that it takes; `labels` how far its times can be believed. `kernels` are
    those of each engine.
    """

    groups: GroupGraph
    target: Target
    placements: tuple[Placement, ...]
    kernels: Mapping[str, KernelTable]
    flops: np.ndarray
    nbytes: np.ndarray
    seconds: np.ndarray
    streaming: np.ndarray
    dynamic: np.ndarray
    dasi: np.ndarray
    beta: np.ndarray
    dasi_eff: np.ndarray
    beta_eff: np.ndarray
    supported: np.ndarray
    states: tuple[DeviceEnergy, ...]
    labels: tuple[Label, ...]
    conditions: Conditions = field(default_factory=Conditions)
    calibration: Calibration | None = None
    reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)
    #: Operators without a count rule: (type, how many, share of all bytes).
    unknown: Sequence[tuple[str, int, float]] = ()

    @cached_property
    def label(self) -> Label:
        """That of the least certain placement."""
        return "calibrated" if set(self.labels) == {"calibrated"} else "modelled"

    @cached_property
    def working_power(self) -> np.ndarray:
        """Power [W] that a device draws while it works, whatever it does: P_const + P_leak, float64[placements]."""
        pairs = zip(self.placements, self.states, strict=True)
        return np.array([p.profile.power_const.value + s.leakage for p, s in pairs])

    @cached_property
    def joules(self) -> np.ndarray:
        """Energy of each group [J], without what other devices draw meanwhile."""
        return self.seconds * self.working_power + self.dynamic

    @cached_property
    def phi(self) -> np.ndarray:
        """Thermal yield of each group: its dynamic energy over that and what leaks meanwhile."""
        total = self.dynamic + self.seconds * np.array([s.leakage for s in self.states])
        return np.divide(self.dynamic, total, out=np.ones_like(total), where=total > 0)

    @cached_property
    def share(self) -> np.ndarray:
        """Attained share of the roof that binds; 1 where bytes come from a cache, faster than the memory's roof."""
        return np.minimum(np.maximum(self.dasi_eff, self.beta_eff), 1.0)

    @cached_property
    def idle_power(self) -> float:
        """Power [W] of all devices of the target together while they wait."""
        return sum(d.power_idle.value for d in self.target.devices)

    @cached_property
    def storages(self) -> tuple[Storage, ...]:
        """The activations that need room between kernels."""
        return storages(self.groups)

    @cached_property
    def _boundaries(self) -> np.ndarray:
        names = [p.engine for p in self.placements]
        table = np.array([[boundary_seconds(a, b).value for b in names] for a in names])
        if self.calibration is None:
            return table
        own = [self.calibration.boundary(p.spec) for p in self.placements]
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                # Neighbouring stages of one engine are lowered together where it can: that is not what was measured.
                together = a == b and constants_of(a).boundary_inside != constants_of(a).boundary_outside
                x, y = own[i], own[j]
                if x is not None and y is not None and not together:
                    table[i, j] = x if a == b else x + y
        return table

    def boundary(self, p: int, q: int) -> float:
        """Seconds that entering a stage on placement q after one on placement p costs, beside transfers."""
        return float(self._boundaries[p, q])

    def entry(self, q: int) -> float:
        """Seconds of the first stage's call."""
        place = self.placements[q]
        graph = self.groups.graph
        tensors = len(graph.inputs) + len(graph.outputs)
        own = None if self.calibration is None else self.calibration.entry(place.spec, tensors)
        return constants_of(place.engine).stage_seconds.value if own is None else own

    def transfer(self, p: int, q: int, nbytes: float) -> tuple[float, float]:
        """Seconds and joules for moving a tensor between the devices of two placements; 0 in one memory."""
        a, b = self.placements[p].profile, self.placements[q].profile
        if a is b or nbytes == 0:
            return 0.0, 0.0
        link = self.target.link(a.name, b.name)
        return link.seconds(nbytes), link.joules(nbytes)

    def spilled(self, p: int, sigma: float, bandwidth: float) -> np.ndarray:
        """Seconds of each group on placement p when sigma Q more crosses a link [B/s], float64[groups].

        Every kernel moves (1 + sigma) Q through its memory, and the link is a third roof beside the two others.
        """
        place, kernels = self.placements[p], self.kernels[self.placements[p].engine]
        more = 1 + sigma
        moved = replace(
            kernels,
            bytes_in=kernels.bytes_in * more,
            bytes_weights=kernels.bytes_weights * more,
            bytes_out=kernels.bytes_out * more,
        )
        seconds, _ = time_model(place, self.calibration)(moved)
        crossing = launch_seconds(place) + sigma * kernels.nbytes / bandwidth
        return np.bincount(kernels.group, np.maximum(seconds, crossing), len(self.groups.groups))

    def dynamic_on(self, target: Target) -> np.ndarray:
        """W e_f + Q e_m [J] with the energies of another target of the same devices, float64[groups, placements]."""
        found = self.dynamic.copy()
        for p, place in enumerate(self.placements):
            profile = target.device_of(place.profile.name)
            if profile is not place.profile:
                kernels = self.kernels[place.engine]
                found[:, p] = np.bincount(kernels.group, dynamic_joules(profile, kernels), len(found))
        return found

    def as_text(self) -> str:
        """One line per group: operators, and per placement DASI, beta and milliseconds."""
        head = "group  operators  " + "  ".join(p.spec for p in self.placements)
        rows = []
        for g in self.groups.groups:
            names = "+".join(self.groups.graph.ops[i].short_type for i in g.ops)
            cells = [self._cell(g.index, p) for p in range(len(self.placements))]
            rows.append(f"{g.index}  {names}  " + "  ".join(cells))
        return "\n".join([f"{head}  (DASI/beta ms, {self.label})", *rows])

    def _cell(self, g: int, p: int) -> str:
        if not self.supported[g, p]:
            return "-"
        return f"{self.dasi[g, p]:.3f}/{self.beta[g, p]:.3f} {self.seconds[g, p] * 1e3:.4f}"

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form; times and energies of unsupported pairs are -1. `ceiling` is the temperature [C] that each
        placement's device must stay below, None where the profile has no thermal data."""

        def supported(values: np.ndarray) -> list[list[float]]:
            return np.where(self.supported, values, -1.0).tolist()

        return {
            "label": self.label,
            "labels": list(self.labels),
            "target": self.target.name,
            "placements": [p.spec for p in self.placements],
            "devices": [p.profile.name for p in self.placements],
            "working_power": self.working_power.tolist(),
            "temperature": [s.temperature for s in self.states],
            "sustained": [s.sustained for s in self.states],
            "ceiling": [
                ceiling(p.profile, self.conditions) if p.profile.thermal is not None else None for p in self.placements
            ],
            "boundary": self._boundaries.tolist(),
            "groups": [[self.groups.graph.ops[i].name for i in g.ops] for g in self.groups.groups],
            "types": [[self.groups.graph.ops[i].type for i in g.ops] for g in self.groups.groups],
            "flops": self.flops.tolist(),
            "nbytes": self.nbytes.tolist(),
            "seconds": supported(self.seconds),
            "joules": supported(self.joules),
            "dasi": self.dasi.tolist(),
            "beta": self.beta.tolist(),
            "dasi_eff": self.dasi_eff.tolist(),
            "beta_eff": self.beta_eff.tolist(),
            "phi": self.phi.tolist(),
            "unsupported": [
                {"group": g, "placement": self.placements[p].spec, "reason": r} for (g, p), r in self.reasons.items()
            ],
            "unknown": [list(u) for u in self.unknown],
        }
