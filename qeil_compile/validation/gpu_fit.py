"""Fits the coefficients of the GPU kernel model to samples, and writes the file that is shipped.

Every coefficient has a prior (a start with reasons and a spread, in `gpu_kernels.toml`); kinds of operators are fitted
one after the other by robust least squares on log(model / measured), each board and operator with the same weight.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from qeil_compile.devices.gpu import gpu_seconds
from qeil_compile.devices.gpu_spec import COEFFICIENTS, GpuSpec

from .gpu_data import Samples, spec_of

#: Rows per board and operator that enter a fit, spread evenly; and the error that counts as an outlier.
_ROWS, _SCALE = 150, 0.1
#: A row of a thinned sample stands for its neighbours, up to so many of them.
_STANDS_FOR = 4.0
#: Weight of the priors: as much as nine rows at their spread, enough to hold what the rows do not tell.
_PRIOR = 3.0
#: Each board and operator has an offset of its own, so that one odd board bends no coefficient; this weight keeps
#: offsets small, and predictions use none.
_OWN = 100.0
#: The harness's own time per kernel [s]: start; a factor of e^0.3 either way is nothing special.
_LAUNCH = {
    "launch_linear": 5e-5, "launch_bmm": 3e-5, "launch_conv": 5e-5, "launch_norm": 2.5e-5,
    "launch_softmax": 1.5e-5, "launch_elementwise": 1e-5, "launch_traced": 2e-6,
    "launch_operator": 1e-5,
}  # fmt: skip
#: Operator of the samples of products that run in fp32 on matrix units.
WIDE = "wide"
#: Order of fitting, and the operators whose samples each group of coefficients is fitted to.
_GROUPS: Mapping[str, frozenset[str]] = {
    "lane": frozenset({"linear", "bmm"}),
    "matrix": frozenset(
        {"attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj"}
        | {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"}
    ),
    "wide": frozenset({WIDE}),
    "conv": frozenset({"conv"}),
    "stream": frozenset(
        {"add", "mul", "div", "pow", "addu", "mulu", "divu", "powu", "relu", "tanh", "gelu"}
        | {"attn_rope", "mlp_act", "rotary_emb", "act_fn"}
    ),
    "norm": frozenset({"ln", "input_layernorm", "post_attention_layernorm", "layernorm", "final_layernorm"}),
    "softmax": frozenset({"softmax"}),
    "gather": frozenset({"emb", "embedding"}),
    "attention": frozenset({"prefill", "decode"}),
}


@dataclass(frozen=True)
class Fitted:
    """Coefficients (the model's and the harnesses' launch times), and the spread of log(model / measured) by kind."""

    coefficients: Mapping[str, float]
    spread: Mapping[str, float]

    def seconds(self, samples: Samples, spec: GpuSpec) -> np.ndarray:
        """The model's time of every sample, with the launch time of its harness."""
        return self.coefficients[samples.launch] + gpu_seconds(spec, samples.table, self.coefficients)


@cache
def _file() -> Mapping[str, Mapping[str, Any]]:
    data = tomllib.loads(files("qeil_compile.devices").joinpath(COEFFICIENTS).read_text("utf-8"))
    entries: Mapping[str, Mapping[str, Any]] = data["coefficients"]
    return entries


def priors() -> dict[str, float]:
    """Where each fit starts."""
    return {n: float(e["prior"]) for n, e in _file().items()} | _LAUNCH


def fit(samples: Iterable[Samples], folder: Path) -> Fitted:
    """Fits all groups that have samples; the others keep their priors. `folder` holds the boards' data sheets."""
    known = [(s, spec) for s in samples if (spec := spec_of(s.device, folder))]
    values, spread = priors(), {}
    for group, ops in _GROUPS.items():
        chosen = [(*_thin(s), spec) for s, spec in known if s.op in ops]
        if not chosen:
            continue
        names = [n for n, e in _file().items() if e["group"] == group]
        names += sorted({s.launch for s, _, _ in chosen if s.launch in _LAUNCH and s.launch != "launch_traced"})
        values, spread[group] = _fit_group(chosen, names, values)
    return Fitted(values, spread)


def _thin(samples: Samples) -> tuple[Samples, float]:
    """At most `_ROWS` rows, and the weight of each."""
    count = len(samples.seconds)
    kept = samples.take(np.unique(np.linspace(0, count - 1, min(_ROWS, count)).astype(int)))
    return kept, min(count / len(kept.seconds), _STANDS_FOR) ** 0.5


def _fit_group(
    chosen: Sequence[tuple[Samples, float, GpuSpec]], names: Sequence[str], values: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    start = np.array([values[n] for n in names])
    entries = [_file().get(n, {"spread": 0.3, "low": 1e-7, "high": 1e-3}) for n in names]
    spread = np.array([e["spread"] for e in entries])
    low, high = (np.log(np.array([e[k] for e in entries]) / start) for k in ("low", "high"))
    logs = [np.log(s.seconds) for s, _, _ in chosen]
    weights = np.concatenate([np.full(len(s.seconds), w) for s, w, _ in chosen])

    count, rows = len(names), [len(y) for y in logs]

    def at(x: np.ndarray) -> dict[str, float]:
        return dict(values) | dict(zip(names, (start * np.exp(x[:count])).tolist(), strict=True))

    def errors(x: np.ndarray) -> np.ndarray:
        model = Fitted(at(x), {})
        pairs = zip(chosen, logs, strict=True)
        return np.concatenate([np.log(model.seconds(s, spec)) - y for (s, _, spec), y in pairs])

    def residuals(x: np.ndarray) -> np.ndarray:
        own = x[count:]
        misfit = weights * (errors(x) + np.repeat(own, rows)) / _SCALE
        return np.concatenate([misfit, _PRIOR * x[:count] / spread, _OWN * own])

    bounds = np.concatenate([low, np.full(len(rows), -1.0)]), np.concatenate([high, np.full(len(rows), 1.0)])
    x0 = np.clip(np.zeros(count + len(rows)), bounds[0] + 1e-3, bounds[1] - 1e-3)
    x = least_squares(residuals, x0, loss="soft_l1", bounds=bounds, max_nfev=20, diff_step=1e-2).x
    # 1.4826 x the median of the absolute deviation: the standard deviation, were the errors normal.
    return at(x), float(1.4826 * np.median(np.abs(errors(x))))


def write_coefficients(samples: Iterable[Samples], folder: Path, path: Path) -> Fitted:
    """Fits all samples and rewrites the shipped file at `path` with the values, their source and their spread."""
    fitted = fit(samples, folder)
    boards = "NeuSight, vidur and LLMServingSim kernel times"
    lines = [_HEAD]
    for name, entry in _file().items():
        changed = {k: v for k, v in entry.items() if k != "residual"} | {"source": "assumed"}
        changed["value"] = float(f"{fitted.coefficients[name]:.4g}")
        if entry["group"] in fitted.spread:
            changed["source"] = f"fitted on {boards} by qeil_compile.validation.gpu_fit"
            changed["residual"] = float(f"{fitted.spread[entry['group']]:.3f}")
        lines.append(f"\n[coefficients.{name}]\n" + "\n".join(f"{k} = {_toml(v)}" for k, v in changed.items()) + "\n")
    path.write_text("".join(lines), "utf-8")
    return fitted


_HEAD = """\
# Coefficients of the GPU kernel-time model (devices/gpu*.py says where each enters). `value` is what prices use;
# `prior` with `spread` (standard deviation of its logarithm), `low` and `high` are what a fit starts from and is bound
# by; `residual` is the spread of log(model / measured) of the kind after the fit. group "fixed": not fitted.
"""


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
