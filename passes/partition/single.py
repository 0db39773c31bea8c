"""Everything on one placement; what it refuses goes to the placement where it runs fastest."""

from __future__ import annotations

import numpy as np

from qeil_compile.passes.annotate import CostTable


def single(costs: CostTable, allowed: np.ndarray, placement: int) -> np.ndarray:
    """Placement index per group, int64[groups]."""
    elsewhere = np.where(allowed, costs.seconds, np.inf).argmin(axis=1)
    return np.where(allowed[:, placement], placement, elsewhere)
