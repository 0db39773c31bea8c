"""Kernel times from a calibration of this machine: one engine and device at one number of threads.

    t = launch + units x per_unit + ( (W / (P e))^p + M^p )^(1/p) + Q_i / B_in + Q_o / B_out
    e = prod_i d_i / (d_i + h_i)                     share of the rate P that extents d allow
    M = scale x ( Q_w / B(Q_model) + Q_a / B(Q_a) )  what is held from run to run, and activations, from cache or memory
    B(Q)^-1 = (1 - m) / B_cache + m / B_memory,  m = 1 / (1 + (C / Q)^8)

A roofline whose corner is rounded (p: neither roof is reached where they meet), whose compute roof falls off for
small extents (tiles, vector lanes and the fill of a pipeline leave a share h / (d + h) idle), and whose memory roof
knows two levels. Q_w are weights and the inputs and outputs of the graph. They count against those of all kernels of
the table: what a run does not find in the cache does not fit it beside all others, and beside what other users of a
shared cache bring into it while the run computes (`pressure`, bytes per FLOP). Q_i and Q_o are inputs and outputs
that the caller hands over and gets: to and from a board with a memory of its own they are copied, on a host they stay.
What the smooth form misses at measured shapes is kept as a residual: a Gaussian process over log extents, which fades
to nothing away from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from .work import KernelTable

_Number = TypeVar("_Number", int, float)
#: Extents beyond which an operator runs at its rate; a family has as many fall-off lengths h.
FEATURES = 5
#: p. Products of 24 rows were seen to hide about half of the traffic of weights that no cache holds.
POWER = 1.5
#: Parameters of a family that are fitted, all positive: seconds, FLOP/s, 1, lengths.
PARAMETERS = ("launch", "per_unit", "rate", "scale", *(f"h{i}" for i in range(FEATURES)))
#: Parameters of the memory: B/s, B/s, B, B/FLOP, B/s, B/s.
MEMORY = ("cache", "memory", "capacity", "pressure", "entering", "leaving")
#: Those of a board with a memory of its own.
BORDER = MEMORY[-2:]
#: Length scale of the residuals over ln(extent), and the share of a residual that repeats at its own shape.
_LENGTH, _TRUST = 0.9, 0.8


#: Names of one operation in the two dialects, in lower case without underscores; the second is measured.
_SAME = {
    "scaleddotproductattention": "attention",
    "layernorm": "layernormalization",
    "nativelayernorm": "layernormalization",
    "rmsnorm": "rmsnormalization",
    "simplifiedlayernormalization": "rmsnormalization",
    "skiplayernormalization": "layernormalization",
    "skipsimplifiedlayernormalization": "rmsnormalization",
    "fastgelu": "gelu",
    "biasgelu": "gelu",
    "quickgelu": "sigmoid",
    "silu": "sigmoid",
    "swish": "sigmoid",
    "cat": "concat",
    "permute": "transpose",
    "embedding": "gather",
    "mean": "reducemean",
    "sum": "reducesum",
    "amax": "reducemax",
    "maxpool2dwithindices": "maxpool",
    "maxpool2d": "maxpool",
    "avgpool2d": "averagepool",
    "globalaveragepool": "reducemean",
    "splitwithsizes": "split",
    "constantpadnd": "pad",
    "unsqueeze": "squeeze",
    "reshape": "squeeze",
    "flatten": "squeeze",
    "view": "squeeze",
}


#: Products of plain operands; others (4-bit weights, integers) have kernels of their own.
_PLAIN_PRODUCTS = frozenset(("matmul", "gemm", "linear", "mm", "addmm", "bmm", "baddbmm", "fusedmatmul", "einsum"))


#: Products of so few rows only stream their weights, and engines have kernels of their own for them.
_FEW_ROWS = 2


#: Operators whose results have a size that only the values tell, and loops: the host waits for them.
_LOOKING = frozenset(
    ("nonzero", "compress", "unique", "unique2", "maskedselect", "nonmaxsuppression", "loop", "whileloop")
)


#: Bytes up to which integers may be a shape or an index, which torch keeps on the host.
_SHAPE_BYTES = 512
_INTEGERS = frozenset(("int64", "int32", "bool"))


def recorded(kernels: KernelTable) -> np.ndarray | None:
    """Which kernels are launched where a pass is recorded as one launch, bool[kernels]; None if it cannot be.

    Views are no kernels, and what the host works out about shapes is worked out once.
    """
    if not _LOOKING.isdisjoint(map(canonical, kernels.types)):
        return None
    small = (kernels.bytes_in <= _SHAPE_BYTES) & (kernels.bytes_out <= _SHAPE_BYTES)
    shapes = np.array([d in _INTEGERS for d in kernels.dtypes], dtype=bool) & small
    return (kernels.nbytes > 0) & ~shapes


def canonical(type_: str) -> str:
    """One name for an operation in both dialects: `layer_norm` and `LayerNormalization` agree."""
    plain = type_.replace("_", "").lower()
    return _SAME.get(plain, plain)


def family_of(kind: str, type_: str, dims: Sequence[int], dtype: str, weights: float, added: bool = False) -> str:
    """Kernels of one family share parameters: `conv depthwise`, `gemm`, `elementwise tanh`, ...

    `added`: the kernel reads more than its operand, to add it to the product.
    """
    wide = "" if dtype in ("float32", "float64", "int64", "int32", "bool") else f" {dtype}"
    if kind in ("gemm", "gemv"):
        product = "gemv" if len(dims) == 4 and dims[1] <= _FEW_ROWS else "gemm"
        form = f"{product} of activations" if not weights else f"{product} with sum" if added else product
        plain = canonical(type_)
        return f"{form}{wide}" if plain in _PLAIN_PRODUCTS else f"{form} {plain}{wide}"
    if kind == "conv" and len(dims) == 9:
        _, groups, _, inner, _, window, _, _, axes = dims
        form = "depthwise" if inner == 1 and groups > 1 else "pointwise" if window == 1 else "dense"
        return f"conv {form}{' 1-D' if axes == 1 else ''}{wide}"
    if kind == "reduce" and len(dims) == 3:
        return f"{kind} {canonical(type_)}{' across' if dims[2] > 1 else ''}"
    if kind in ("attention", "recurrent"):
        return f"{kind} {canonical(type_)}{wide}"
    return f"{kind} {canonical(type_)}"


def _filled(channels: float, lanes: int) -> float:
    """Channels that a vector kernel computes: blocked layouts fill up the last vector.

    Few channels take half of one with 8 lanes; wider ones are masked.
    """
    block = lanes if channels > lanes / 2 or lanes > 8 else lanes / 2
    return -(-channels // block) * block


def extents(kind: str, dims: Sequence[int], flops: float, lanes: int) -> tuple[float, float, tuple[float, ...]]:
    """FLOPs with filled-up vectors of `lanes` numbers, units of work that each cost a little, and the extents that
    decide how much of the rate is reached."""
    if kind in ("gemm", "gemv") and len(dims) == 4:
        batch, rows, cols, inner = dims
        return flops, batch, (rows, cols, inner, flops)
    if kind == "conv" and len(dims) == 9:
        batch, groups, out, inner, positions, window, stride, width, axes = dims
        if inner == 1 and groups > 1:
            work = flops * _filled(out, lanes) / out
            return work, out, (batch * positions, groups, width, work, 1.0 / stride)
        # Few input channels (images) are not filled up; one-dimensional kernels are products of matrices.
        wide = _filled(out / groups, lanes) if axes > 1 else out / groups
        deep = _filled(inner, lanes) if axes > 1 and inner > lanes / 4 else inner
        work = flops * wide * groups / out * deep / inner
        return work, 0, (batch * positions, wide, deep * window, work, width)
    if kind == "attention" and len(dims) == 5:
        heads, queries, keys, width, _ = dims
        return flops, heads, (queries, keys, width, flops)
    if kind == "recurrent" and len(dims) == 3:
        steps, _, states = dims
        return flops, steps, (states, flops)
    if kind in ("norm", "softmax") and len(dims) == 2:
        return flops, dims[0], (dims[1], flops)
    if kind == "movement" and len(dims) == 2:
        return flops, dims[0], (dims[1],)
    return flops, 0, (flops,)


@dataclass(frozen=True)
class Rows:
    """Kernels as the model sees them: float64 columns, features [kernels, FEATURES] padded with infinity.

    `held` are bytes of weights and of inputs and outputs of the graph: what was last touched a run ago; `between` are
    those of activations between kernels, `entering` and `leaving` of what the caller hands over and gets. `total` is
    the sum of `held` over the table and `run` its FLOPs, the same in every row.
    """

    families: tuple[str, ...]
    flops: np.ndarray
    held: np.ndarray
    between: np.ndarray
    entering: np.ndarray
    leaving: np.ndarray
    total: np.ndarray
    run: np.ndarray
    units: np.ndarray
    features: np.ndarray

    @staticmethod
    def of(kernels: KernelTable, lanes: int) -> Rows:
        """From a table whose kernels run on one device, one after another; `lanes` fp32 numbers fill a vector."""
        n = len(kernels)
        features, units, flops = np.full((n, FEATURES), np.inf), np.zeros(n), np.zeros(n)
        families = []
        for i, (kind, type_, dims, dtype) in enumerate(
            zip(kernels.kinds, kernels.types, kernels.dims, kernels.dtypes, strict=True)
        ):
            operand = 4 * dims[0] * dims[1] * dims[3] if kind in ("gemm", "gemv") and len(dims) == 4 else np.inf
            added = bool(kernels.bytes_in[i] > 1.01 * operand)
            families.append(family_of(kind, type_, dims, dtype, kernels.bytes_weights[i], added))
            # One exponential among sums and products is what takes its time.
            alike = kernels.flops if kernels.flops_alike is None or kind != "elementwise" else kernels.flops_alike
            flops[i], units[i], found = extents(kind, dims, float(alike[i]), lanes)
            features[i, : len(found)] = np.maximum(found, 1e-6)
        ends, entering, leaving = (
            np.zeros(n) if c is None else c for c in (kernels.bytes_ends, kernels.bytes_entering, kernels.bytes_leaving)
        )
        held = kernels.bytes_weights + ends
        between = kernels.bytes_in + kernels.bytes_out - ends
        total, run = np.full(n, held.sum()), np.full(n, flops.sum())
        return Rows(tuple(families), flops, held, between, entering, leaving, total, run, units, features)


@dataclass(frozen=True)
class Memory:
    """Two levels: bandwidths [B/s] of the cache and of the memory, and the capacity [B] where one becomes the other;
    `pressure` [B/FLOP] is what others bring into the cache while this device computes. Inputs and outputs of a run are
    copied from and to the caller at `entering` and `leaving` [B/s]; infinite where they are not copied."""

    cache: float
    memory: float
    capacity: float
    pressure: float = 0.0
    entering: float = np.inf
    leaving: float = np.inf

    def moved(self, rows: Rows) -> np.ndarray:
        """Time to move what each kernel reads and writes, float64[kernels]."""
        held = self.seconds(rows.held, rows.total + self.pressure * rows.run)
        return held + self.seconds(rows.between, rows.between)

    def seconds(self, nbytes: np.ndarray, working_set: np.ndarray) -> np.ndarray:
        """Time to move `nbytes` that belong to a working set [B], float64."""
        with np.errstate(divide="ignore"):
            missed = 1.0 / (1.0 + (self.capacity / np.maximum(working_set, 1.0)) ** 8)
        return nbytes * ((1.0 - missed) / self.cache + missed / self.memory)


@dataclass(frozen=True)
class _Terms:
    """The parts of the formula at the top, float64[kernels], and h / (d + h) as `idle` [kernels, FEATURES]."""

    compute: np.ndarray
    moved: np.ndarray
    work: np.ndarray
    idle: np.ndarray


def _terms(rows: Rows, parameters: np.ndarray, memory: Memory) -> _Terms:
    idle = parameters[:, 4:] / (rows.features + parameters[:, 4:])
    compute = rows.flops / (parameters[:, 2] * (1.0 - idle).prod(axis=1))
    moved = parameters[:, 3] * memory.moved(rows)
    return _Terms(compute, moved, (compute**POWER + moved**POWER) ** (1.0 / POWER), idle)


def kernel_seconds(rows: Rows, parameters: np.ndarray, memory: Memory) -> np.ndarray:
    """The formula above, float64[kernels]; `parameters` is [kernels, PARAMETERS]."""
    copies = rows.entering / memory.entering + rows.leaving / memory.leaving
    return parameters[:, 0] + rows.units * parameters[:, 1] + _terms(rows, parameters, memory).work + copies


def kernel_slopes(rows: Rows, parameters: np.ndarray, memory: Memory) -> np.ndarray:
    """d seconds / d ln of the memory parameters, then of `PARAMETERS`: float64[kernels, MEMORY + PARAMETERS]."""
    t = _terms(rows, parameters, memory)
    # Where there is neither work nor traffic both shares are 0.
    scale = np.maximum(t.work, 1e-30) ** (1.0 - POWER)
    by_compute, by_moved = t.compute**POWER * scale, t.moved**POWER * scale
    slopes = [by_moved * d for d in _memory_slopes(rows, parameters[:, 3], memory, t.moved)]
    slopes += [-rows.entering / memory.entering, -rows.leaving / memory.leaving]
    slopes += [parameters[:, 0], rows.units * parameters[:, 1], -by_compute, by_moved]
    return np.stack([*slopes, *(by_compute[:, None] * t.idle).T], axis=1)


def _memory_slopes(rows: Rows, scale: np.ndarray, memory: Memory, moved: np.ndarray) -> list[np.ndarray]:
    """d ln moved / d ln of each memory parameter before the border's, by a small step: they are not worth a formula."""
    step, found = 1e-5, []
    for name in MEMORY[: -len(BORDER)]:
        other = replace(memory, **{name: getattr(memory, name) * (1.0 + step)})
        changed = scale * other.moved(rows)
        found.append((changed / np.maximum(moved, 1e-30) - (moved > 0)) / step)
    return found


@dataclass(frozen=True)
class Residuals:
    """ln(measured / model) at measured extents: `points` [n, FEATURES] in ln, `weights` [n]."""

    points: np.ndarray
    weights: np.ndarray

    @staticmethod
    def fit(features: np.ndarray, values: np.ndarray) -> Residuals:
        """Gaussian-process weights for residuals at these features."""
        points = _logs(features)
        kernel = _kernel(points, points)
        noise = np.eye(len(points)) * (1.0 / _TRUST - 1.0)
        return Residuals(points, np.linalg.solve(kernel + noise, values))

    def at(self, features: np.ndarray) -> np.ndarray:
        """Expected residuals, float64[kernels]."""
        return _kernel(_logs(features), self.points) @ self.weights


def _logs(features: np.ndarray) -> np.ndarray:
    return np.log(np.where(np.isinf(features), 1.0, features))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    return np.exp(-squares / (2.0 * _LENGTH**2))


def family_seconds(
    rows: Rows,
    families: Mapping[str, tuple[float, ...]],
    residuals: Mapping[str, Residuals],
    memory: Memory,
) -> np.ndarray:
    """Time of each kernel [s], float64[kernels]. A family that was not measured takes its kind's median."""
    if not rows.families:
        return np.zeros(0)
    table = {name: np.array(_parameters(families, name)) for name in dict.fromkeys(rows.families)}
    found = kernel_seconds(rows, np.array([table[f] for f in rows.families]), memory)
    for name, kept in residuals.items():
        mine = np.array([f == name for f in rows.families])
        if mine.any():
            found[mine] *= np.exp(kept.at(rows.features[mine]))
    return found


def _parameters(families: Mapping[str, tuple[float, ...]], name: str) -> tuple[float, ...]:
    if name in families:
        return families[name]
    kind = name.split(" ", maxsplit=1)[0]
    alike = [p for f, p in families.items() if f.split(" ", maxsplit=1)[0] == kind]
    return tuple(np.exp(np.median(np.log(alike or list(families.values())), axis=0)))


@dataclass(frozen=True)
class Calibration:
    """What was measured of one engine and device at one number of threads.

    `lanes` fp32 numbers fill a vector of the device. `entry` [s] is what a call of a stage with one input and
    one output costs, `per_tensor` [s] each further one, and `boundary` [s] one more call in a chain of stages (None:
    not measured). `families` maps a family to its parameters in the order of
    `PARAMETERS`, `spread` to the relative error that the fit leaves on its own measurements, `noise` is the median
    relative spread of the measurements between rounds. `energy` holds coefficients (power_const [W], energy_per_flop
    [J/FLOP], energy_per_byte [J/B]) where a counter could be read. `missing` says what could not be fitted and why.
    `launched` [s] is what a kernel takes at least in a run that cannot be recorded as one launch, on an engine that
    records (None: it does not).
    """

    engine: str
    device: str
    threads: int
    version: str
    lanes: int
    entry: float
    memory: Memory
    families: Mapping[str, tuple[float, ...]]
    residuals: Mapping[str, Residuals] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    boundary: float | None = None
    noise: float = 0.0
    energy: Mapping[str, float] = field(default_factory=dict)
    per_tensor: float = 0.0
    launched: float | None = None

    def call(self, tensors: int) -> float:
        """What a call of a stage with so many inputs and outputs costs beside its kernels [s]."""
        return self.entry + self.per_tensor * max(0, tensors - 2)

    def seconds(self, kernels: KernelTable) -> np.ndarray:
        """Time of each kernel [s], float64[kernels]. A family that was not measured takes its kind's median."""
        if not len(kernels):
            return np.zeros(0)
        if self.launched is None:
            return self._each(kernels)
        run = recorded(kernels)
        if run is None:
            return np.maximum(self._each(kernels), self.launched)
        found = np.zeros(len(kernels))
        if run.any():
            found[run] = self._each(kernels.only(run))
        return found

    def _each(self, kernels: KernelTable) -> np.ndarray:
        return family_seconds(Rows.of(kernels, self.lanes), self.families, self.residuals, self.memory)

    def to_json(self) -> dict[str, Any]:
        """Stable JSON form, read back by `from_json`."""
        return {
            "engine": self.engine,
            "device": self.device,
            "threads": self.threads,
            "version": self.version,
            "lanes": self.lanes,
            "entry": self.entry,
            "memory": {n: getattr(self.memory, n) for n in MEMORY if np.isfinite(getattr(self.memory, n))},
            "families": {f: dict(zip(PARAMETERS, p, strict=True)) for f, p in self.families.items()},
            "residuals": {
                f: {"points": r.points.tolist(), "weights": r.weights.tolist()} for f, r in self.residuals.items()
            },
            "spread": dict(self.spread),
            "missing": dict(self.missing),
            "boundary": self.boundary,
            "noise": self.noise,
            "energy": dict(self.energy),
            "per_tensor": self.per_tensor,
            "launched": self.launched,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Calibration:
        """Rebuild. Raises `KeyError`, `TypeError` or `ValueError` on anything else."""
        if not data["families"]:
            raise ValueError("no family was measured")
        return Calibration(
            str(data["engine"]),
            str(data["device"]),
            int(data["threads"]),
            str(data["version"]),
            _positive("lanes", int(data["lanes"])),
            float(data["entry"]),
            _memory(data["memory"]),
            {f: tuple(_positive(n, float(p[n])) for n in PARAMETERS) for f, p in data["families"].items()},
            {f: _residuals(f, r) for f, r in data["residuals"].items()},
            {f: float(v) for f, v in data["spread"].items()},
            {f: str(v) for f, v in data["missing"].items()},
            None if data["boundary"] is None else float(data["boundary"]),
            float(data["noise"]),
            {f: float(v) for f, v in data["energy"].items()},
            float(data["per_tensor"]),
            None if data["launched"] is None else _positive("launched", float(data["launched"])),
        )


def _positive(name: str, value: _Number, zero: bool = False) -> _Number:
    if not 0 <= value < np.inf or (value == 0 and not zero):
        raise ValueError(f"{name} is {value!r:.40}, expected a number above 0")
    return value


def _memory(data: Mapping[str, Any]) -> Memory:
    """Where nothing is copied at the border, its bandwidths are not there."""
    names = [n for n in MEMORY if n not in BORDER or n in data]
    return Memory(**{n: _positive(n, float(data[n]), zero=n == "pressure") for n in names})


def _residuals(family: str, data: Mapping[str, Any]) -> Residuals:
    points, weights = np.array(data["points"], dtype=float), np.array(data["weights"], dtype=float)
    if points.shape != (len(weights), FEATURES) or weights.ndim != 1 or not np.isfinite(points).all():
        raise ValueError(f"residuals of {family}: points {points.shape} for weights {weights.shape}")
    return Residuals(points, weights)
