"""Plots: accuracy and coverage against what was spent, and paths of evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import OutputError, first_line

from .certificate import Cert
from .log import Recorded
from .metrics import CoverageLaw, pass_at_k
from .recorded import replayed
from .replay import Replay
from .samples import Tally


def plot_accuracy(replays: Sequence[Replay], path: Path, unit: str = "passes") -> Path:
    """Accuracy of each rule against passes or joules per question (modelled), with 95 % intervals."""
    figure, axes = _figure()
    for replay in replays:
        summary = replay.summary()
        low, high = summary["accuracy 95 %"]
        x = float(getattr(replay, unit).mean())
        y = summary["accuracy"]
        axes.errorbar([x], [y], [[y - low], [high - y]], fmt="o", capsize=2, label=replay.name)
    axes.set(xscale="log", xlabel=f"{unit} per question (modelled)", ylabel="accuracy of the answer")
    axes.legend(fontsize=7)
    return _write(figure, path)


def plot_coverage(
    log: Sequence[Recorded], path: Path, price: Mapping[int, float] | None = None, law: CoverageLaw | None = None
) -> Path:  # fmt: skip
    """Coverage (unbiased pass@k) against samples, or against what `price` says k samples cost, and the fitted law."""
    figure, axes = _figure()
    marked = [r for r in log if r.correct is not None]
    k = min(map(len, marked))
    sizes = [2**i for i in range(k.bit_length()) if 2**i < k] + [k]
    cover = [np.mean([pass_at_k(len(r), round(sum(r.correct or ())), s) for r in marked]) for s in sizes]
    x = [price[s] for s in sizes] if price is not None else sizes
    axes.plot(x, cover, "o-", label="pass@k")
    if law is not None:
        axes.plot(x, law(np.array(sizes)), "--", label=f"1 - exp(-{law.alpha.value:.3g} S^{law.b_s.value:.3g})")
    axes.set(xscale="log", xlabel="samples" if price is None else "passes (modelled)", ylabel="coverage")
    axes.legend(fontsize=7)
    return _write(figure, path)


def plot_evidence(question: Recorded, path: Path, delta: float = 0.05, most: int = 4) -> Path:
    """log evidence of the leading candidates by draw, and the bar that each has to reach."""
    figure, axes = _figure()
    cert, tally = Cert(delta), Tally()
    paths: dict[str, list[tuple[int, float]]] = {}
    for n, sample in enumerate(replayed(question).samples, 1):
        tally.add(sample)
        for answer in tally.counts:
            paths.setdefault(answer, []).append((n, cert.evidence(tally, answer)))
    for i, answer in enumerate(sorted(tally.counts, key=lambda a: -tally.counts[a])[:most]):
        axes.plot(*zip(*paths[answer], strict=True), color=f"C{i}", label=f"{answer:.20} ({tally.counts[answer]})")
        axes.axhline(cert.threshold(tally.places[answer]), color=f"C{i}", ls=":", lw=0.8)
    axes.set(xlabel="draws", ylabel="log evidence")
    axes.set_title(f"question {question.pid}: dotted, the bars at delta {delta:g}")
    axes.legend(fontsize=7)
    return _write(figure, path)


def closest(log: Sequence[Recorded]) -> Recorded:
    """The question whose two most frequent answers are closest, among those where they hold half of the samples."""

    def gap(question: Recorded) -> tuple[bool, float]:
        tally = Tally()
        for sample in replayed(question).samples:
            tally.add(sample)
        first, second = tally.lead
        return 2 * (first + second) < len(question), (first - second) / max(first, 1)

    return min(log, key=gap)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.add_subplot()


def _write(figure: Any, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: the plot cannot be written ({first_line(error)})") from error
    return path
