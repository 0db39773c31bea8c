"""Compare outputs with a reference: largest absolute error, and relative to the largest reference value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Largest error relative to the largest absolute reference value. Engines sum in different orders, so an
#: error grows with depth; a wrong weight or a wrong operator is orders of magnitude above these.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 6e-2}


@dataclass(frozen=True, slots=True)
class Difference:
    """Errors of one tensor; `ok` by the tolerance of its dtype. Integers and booleans must be equal."""

    name: str
    dtype: str
    max_abs: float
    max_rel: float
    ok: bool

    def as_text(self) -> str:
        """`scores float32: max abs 1.2e-06, max rel 3.4e-07, ok`."""
        verdict = "ok" if self.ok else "DIFFERS"
        return f"{self.name} {self.dtype}: max abs {self.max_abs:.2e}, max rel {self.max_rel:.2e}, {verdict}"


def compare(name: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    """Compare one tensor with its reference; NaN equals NaN, and infinities must agree."""
    dtype = expected.dtype.name
    if found.shape != expected.shape or found.dtype != expected.dtype:
        kinds = f"{found.dtype}{list(found.shape)} for {dtype}{list(expected.shape)}"
        return Difference(name, kinds, np.inf, np.inf, False)
    if expected.dtype.kind in "biuOSU":
        wrong = found != expected
        error = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0)) if (
            expected.dtype.kind in "biu") else float(np.any(wrong))  # fmt: skip
        return Difference(name, dtype, error, error, not bool(np.any(wrong)))
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = found.astype(wide), expected.astype(wide)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, np.abs(a - b))
    max_abs = float(np.nan_to_num(errors, nan=np.inf).max(initial=0.0))
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    max_rel = max_abs / scale if scale else max_abs
    return Difference(name, dtype, max_abs, max_rel, max_rel <= TOLERANCE.get(dtype, 1e-3))
