"""One plot per claim: what was measured against what the model says, and the errors of model and baselines."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np

from .report import Claim

matplotlib.use("Agg")


def plot(claim: Claim, folder: Path) -> Path:
    """`NAME.png` in the folder: measured against modelled on log axes, and the distribution of errors."""
    from matplotlib import pyplot

    measured = np.array([p.measured for p in claim.points])
    model = np.array([p.model for p in claim.points])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.5), constrained_layout=True)
    figure.suptitle(f"{claim.name} ({claim.dataset}): {claim.value:.3g} {claim.unit}, goal {claim.goal:g}", fontsize=10)
    groups = sorted({p.left_out for p in claim.points})
    few = len(groups) <= 12
    for group in groups if few else [""]:
        mine = np.array([not group or p.left_out == group for p in claim.points])
        left.plot(measured[mine], model[mine], ".", markersize=4, alpha=0.6, label=group or None)
    positive = (measured > 0).all() and (model > 0).all()
    if positive:
        left.set_xscale("log")
        left.set_yscale("log")
    span = [min(measured.min(), model.min()), max(measured.max(), model.max())]
    left.plot(span, span, color="0.4", linewidth=0.8)
    left.set_xlabel("measured")
    left.set_ylabel("model")
    if few and groups != [""]:
        left.legend(fontsize=6, title="left out of the fit", title_fontsize=6)
    shares = np.arange(1, len(measured) + 1) / len(measured)
    series = {"model": model} | {
        b: np.array([p.baselines[b] for p in claim.points]) for b in claim.baselines
    }
    for name, values in series.items():
        errors = np.sort(np.abs(values - measured) / np.maximum(np.abs(measured), 1e-300)) * 100
        right.plot(np.maximum(errors, 1e-2), shares, label=name.replace("_", " "))
    right.set_xscale("log")
    right.set_xlabel("absolute error [%]")
    right.set_ylabel("share of the points")
    right.legend(fontsize=7)
    right.grid(alpha=0.3)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", claim.name.lower()).strip("-")[:80] + ".png")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
