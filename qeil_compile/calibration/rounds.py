"""Rounds of a measurement on a shared machine: which of them nobody disturbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

#: Rounds that are kept at least, and how much slower than the quietest ones a kept round may be.
_LEAST, _SLOWER = 3, 0.02


def quiet(rounds: Mapping[str, Sequence[float]]) -> list[int]:
    """The rounds to count, in order, from the seconds of each network in each round.

    A neighbour that takes a core for some seconds slows most networks of a round down, up to twofold, and never speeds
    one up. A round's slowness is the mean over the networks of ln(time / fastest time of the network); kept are the
    rounds near the quietest third. Networks are assumed to have equally many rounds.
    """
    table = np.log(np.array([list(r) for r in rounds.values()]))
    if not table.size:
        return []
    slowness = (table - table.min(axis=1, keepdims=True)).mean(axis=0)
    ranked = np.argsort(slowness, kind="stable")
    least = min(len(ranked), max(_LEAST, len(ranked) // 3))
    limit = slowness[ranked[:least]].mean() + _SLOWER
    return sorted(int(r) for k, r in enumerate(ranked) if k < least or slowness[r] <= limit)


def typical(rounds: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Seconds of each network in the quiet rounds."""
    kept = quiet(rounds)
    return {name: np.asarray(r)[kept] for name, r in rounds.items()}
