"""Fit the parameters of `devices.calibrated` to the times of whole networks.

Every parameter is positive and fitted as its logarithm, with a weak prior around what a processor of this rate
would do: what the networks do not decide stays there. Residuals are relative (logarithms of time), and heavy tails
count little (soft L1), because a shared machine spoils some measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import least_squares

from qeil_compile.devices.calibrated import (
    BORDER,
    FEATURES,
    MEMORY,
    PARAMETERS,
    Memory,
    Residuals,
    Rows,
    family_seconds,
    kernel_seconds,
    kernel_slopes,
)

#: Kind of the networks that hold kernels of several kinds.
COMPOSITE = "composite"
#: Families whose rate depends on shapes, and those that keep residuals: rows narrower than a vector are others.
_SHAPED = ("gemm", "gemv", "conv")
_KEPT = (*_SHAPED, "softmax", "norm")
#: How far the logarithm of a parameter may stray from its prior (standard deviation), in the order of `PARAMETERS`.
_STRAY = np.array([1.5, 2.0, 0.7, 0.35, *[1.5] * FEATURES])
#: What a step of a recurrent operator is believed to cost beside its arithmetic [s]: some engines launch kernels there.
_STEP = 1e-6
#: The family whose memory roof defines the bandwidths: its scale is 1.
_REFERENCE = "gemv"
#: What a measurement is believed to be wrong by, as a share: noise, and what no smooth form can say.
_ERROR = 0.05
#: How far the factor of a kind among other kinds may stray from 1 (standard deviation of its logarithm).
_COMPANY = 0.06
#: What a change of kernels is believed to cost [s], and how far that may stray (standard deviation of its logarithm).
_CHANGE, _CHANGE_STRAY = 1e-7, 0.5
_HEAD_STRAY = (1.0, 1.0, 1.0, 1.0, 0.7, 1.5, 1.0, 1.0)


@dataclass(frozen=True)
class _Likely:
    """Where parameters stay that no network decides: entry [s], per tensor [s], those of `MEMORY` (a host's last ones
    come from its cache); launch [s]."""

    head: tuple[float, ...]
    launch: float

#: A processor, its memory beside it (its cache is known); a board behind a bus, with kernels recorded as one launch.
_HOST = _Likely((8e-6, 1e-6, 5e10, 2e10), 5e-7)
_BOARD = _Likely((3e-5, 5e-6, 4e12, 1.5e12, 2e7, 1e-3, 8e9, 2e10), 2e-6)


@dataclass(frozen=True)
class Sample:
    """One network: its kernels, the median over the rounds of its time for one call [s], and how many inputs and
    outputs it has."""

    name: str
    rows: Rows
    seconds: float
    composite: bool = False
    tensors: int = 2


@dataclass(frozen=True)
class Fitted:
    """Entry [s], seconds per further input or output, memory levels, parameters and residuals by family, and the
    relative errors that are left."""

    entry: float
    per_tensor: float
    memory: Memory
    families: Mapping[str, tuple[float, ...]]
    residuals: Mapping[str, Residuals]
    spread: Mapping[str, float]
    company: Mapping[str, float] = field(default_factory=dict)


class _Problem:
    """Parameters as one vector of logarithms: entry, per tensor, memory, then a block per family."""

    def __init__(self, samples: Sequence[Sample], cache_bytes: float, board: bool) -> None:
        self.samples, self.likely = samples, _BOARD if board else _HOST
        #: Parameters before those of the families.
        self.head = 2 + len(MEMORY) - (0 if board else len(BORDER))
        self.names = sorted({f for s in samples for f in s.rows.families})
        place = {f: i for i, f in enumerate(self.names)}
        self.rows, self.sample, self.count = _merged([s.rows for s in samples])
        self.family = np.array([place[f] for f in self.rows.families])
        self.measured = np.array([s.seconds for s in samples])
        self.tensors = np.array([s.tensors - 2.0 for s in samples])
        flops = np.bincount(self.sample, self.rows.flops * self.count, minlength=len(samples))
        self.prior, self.stray = self._priors(float(np.max(flops / self.measured)), cache_bytes)

    def _priors(self, rate: float, cache_bytes: float) -> tuple[np.ndarray, np.ndarray]:
        cache = (max(cache_bytes, 1e6) / 2, 0.01)
        values = [*(self.likely.head + cache)[: self.head]]
        stray: list[float] = [*_HEAD_STRAY[: self.head]]
        for name in self.names:
            shaped = name.startswith(_SHAPED)
            unit = _STEP if name.startswith("recurrent") else 1e-9
            values += [self.likely.launch, unit, rate if shaped else rate / 4, 1.0, *[1.0] * FEATURES]
            own = _STRAY.copy()
            own[3] = 1e-3 if name == _REFERENCE else own[3]
            own[2:4] = own[2:4] if shaped else (2.0, 1.0)
            stray += own.tolist()
        return np.log(values), np.array(stray)

    def unpack(self, logs: np.ndarray) -> tuple[float, float, Memory, np.ndarray]:
        values = np.exp(logs)
        memory = Memory(*(float(v) for v in values[2 : self.head]))
        return float(values[0]), float(values[1]), memory, values[self.head :].reshape(len(self.names), len(PARAMETERS))

    def by_sample(self, seconds: np.ndarray) -> np.ndarray:
        """Sum over the kernels of each network."""
        return np.bincount(self.sample, seconds * self.count, minlength=len(self.samples))

    def totals(self, logs: np.ndarray) -> np.ndarray:
        entry, per_tensor, memory, table = self.unpack(logs)
        return entry + per_tensor * self.tensors + self.by_sample(kernel_seconds(self.rows, table[self.family], memory))

    def residuals(self, logs: np.ndarray) -> np.ndarray:
        """Relative errors of the networks, then distances from the priors, both in standard deviations."""
        return np.concatenate([
            np.log(self.totals(logs) / self.measured) / _ERROR, (logs - self.prior) / self.stray,
        ])  # fmt: skip

    def jacobian(self, logs: np.ndarray) -> np.ndarray:
        """Derivatives of `residuals`."""
        entry, per_tensor, memory, table = self.unpack(logs)
        slopes = kernel_slopes(self.rows, table[self.family], memory)
        columns = np.zeros((len(self.samples), len(logs)))
        columns[:, 0], columns[:, 1] = entry, per_tensor * self.tensors
        for k in range(self.head - 2):
            columns[:, 2 + k] = self.by_sample(slopes[:, k])
        where = self.head + self.family[:, None] * len(PARAMETERS) + np.arange(len(PARAMETERS))
        np.add.at(columns, (self.sample[:, None], where), slopes[:, len(MEMORY) :] * self.count[:, None])
        return np.concatenate([columns / self.totals(logs)[:, None] / _ERROR, np.diag(1.0 / self.stray)])


def _merged(tables: Sequence[Rows]) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Equal kernels of one network as one row, with the network of each row and how many it stands for."""
    seen: dict[tuple[object, ...], int] = {}
    keep: list[tuple[int, int]] = []
    count: list[float] = []
    for s, rows in enumerate(tables):
        for i, family in enumerate(rows.families):
            ends = rows.entering[i], rows.leaving[i]
            numbers = (rows.flops[i], rows.held[i], rows.between[i], *ends, rows.units[i], *rows.features[i])
            key = (s, family, *numbers)
            if key in seen:
                count[seen[key]] += 1
            else:
                seen[key] = len(keep)
                keep.append((s, i))
                count.append(1.0)
    picked = [np.array([i for t, i in keep if t == s], dtype=int) for s in range(len(tables))]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(t, name)[p] for t, p in zip(tables, picked, strict=True)])

    families = tuple(tables[s].families[i] for s, i in keep)
    merged = Rows(
        families, column("flops"), column("held"), column("between"), column("entering"), column("leaving"),
        column("total"), column("run"), column("units"), column("features"),
    )  # fmt: skip
    return merged, np.array([s for s, _ in keep]), np.array(count)


def fit(samples: Sequence[Sample], cache_bytes: float, board: bool = False) -> Fitted:
    """Parameters for these networks; `cache_bytes` is the last-level cache of a processor (0: not known). To and from a
    `board` inputs and outputs are copied.

    Chains of one kind give the parameters; then composites, where there are any, give one factor per kind and what a
    change of kernels costs.
    """
    chains = [s for s in samples if not s.composite]
    found = _fit_chains(chains, cache_bytes, board)
    composites = [s for s in samples if s.composite]
    return _in_company(found, composites) if composites else found


def _in_company(found: Fitted, composites: Sequence[Sample]) -> Fitted:
    """Scale all times of a kind by one factor and add one time to each kernel, so that whole networks come out right.

    Factors stay near 1 (`_COMPANY`) and the time near `_CHANGE` where the networks do not insist. Scaling seconds by f
    is scaling launch, per_unit and the memory roof by f, and the rate by 1 / f.
    """
    kinds = sorted({_kind(f) for s in composites for f in s.rows.families})
    shares = np.zeros((len(composites), len(kinds)))
    for i, s in enumerate(composites):
        seconds = priced(found, s.rows)
        for k, t in zip(s.rows.families, seconds, strict=True):
            shares[i, kinds.index(_kind(k))] += t
    measured = np.array([s.seconds for s in composites])
    calls = np.array([found.entry + found.per_tensor * (s.tensors - 2) for s in composites])
    kernels = np.array([float(len(s.rows.families)) for s in composites])

    def residuals(logs: np.ndarray) -> np.ndarray:
        errors = np.log((calls + shares @ np.exp(logs[1:]) + kernels * np.exp(logs[0])) / measured) / _ERROR
        # Soft L1 for the networks, of which some mislead; squares for the factors, which must not run away.
        soft = np.sign(errors) * np.sqrt(2.0 * (np.sqrt(1.0 + errors**2) - 1.0))
        return np.concatenate([soft, [(logs[0] - np.log(_CHANGE)) / _CHANGE_STRAY], logs[1:] / _COMPANY])

    start = np.zeros(1 + len(kinds))
    start[0] = np.log(_CHANGE)
    solved = np.exp(least_squares(residuals, start).x)
    change, factors = float(solved[0]), solved[1:]
    scale = dict(zip(kinds, factors, strict=True))
    families = {f: _scaled(p, float(scale.get(_kind(f), 1.0)), change) for f, p in found.families.items()}
    return replace(found, families=families, company={"change": change} | {k: float(v) for k, v in scale.items()})


def _kind(family: str) -> str:
    """Families whose factor is common."""
    return "conv 1-D" if family.startswith("conv") and "1-D" in family else family.split(" ", maxsplit=1)[0]


def _scaled(parameters: tuple[float, ...], factor: float, change: float) -> tuple[float, ...]:
    launch, per_unit, rate, scale, *lengths = parameters
    return launch * factor + change, per_unit * factor, rate / factor, scale * factor, *lengths


def priced(found: Fitted, rows: Rows) -> np.ndarray:
    """Seconds of each kernel, residuals included, float64[kernels]."""
    return family_seconds(rows, found.families, found.residuals, found.memory)


def _fit_chains(samples: Sequence[Sample], cache_bytes: float, board: bool) -> Fitted:
    problem = _Problem(samples, cache_bytes, board)
    found = least_squares(
        problem.residuals, problem.prior, problem.jacobian, loss="soft_l1", tr_solver="lsmr", max_nfev=100
    )
    entry, per_tensor, memory, table = problem.unpack(found.x)
    error = np.log(problem.measured / problem.totals(found.x))
    main = _main_family(problem, found.x)
    families = {f: tuple(float(v) for v in table[i]) for i, f in enumerate(problem.names)}
    residuals = {
        f: _residuals(problem, error, main, i)
        for i, f in enumerate(problem.names)
        if f.startswith(_KEPT) and (main == i).sum() > 2
    }
    spread = {f: float(np.median(np.abs(error[main == i]))) for i, f in enumerate(problem.names) if (main == i).any()}
    return Fitted(entry, per_tensor, memory, families, residuals, spread)


def _main_family(problem: _Problem, logs: np.ndarray) -> np.ndarray:
    """The family that takes most of each network's time, -1 where none takes two thirds."""
    _, _, memory, table = problem.unpack(logs)
    seconds = kernel_seconds(problem.rows, table[problem.family], memory) * problem.count
    shares = np.zeros((len(problem.samples), len(problem.names)))
    np.add.at(shares, (problem.sample, problem.family), seconds)
    return np.where(shares.max(axis=1) > 2 / 3 * shares.sum(axis=1), shares.argmax(axis=1), -1)


def _residuals(problem: _Problem, error: np.ndarray, main: np.ndarray, family: int) -> Residuals:
    """One point for each different kernel of the family's own networks."""
    mine = (problem.family == family) & (main[problem.sample] == family)
    features, values = problem.rows.features[mine], error[problem.sample[mine]]
    unique, inverse = np.unique(features, axis=0, return_inverse=True)
    inverse = inverse.ravel()
    means = np.bincount(inverse, values) / np.bincount(inverse)
    return Residuals.fit(unique, means)
