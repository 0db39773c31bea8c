"""Rules by name, as the command line and the benchmark know them: `eac`, `cert:0.05`, `adaptive:0.95`, `lead:4`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qeil_compile.errors import InputError

from . import baselines
from .allocation import Arm, Caps, Eac, Looks, Price
from .certificate import Cert, WeightedCert
from .csvet import Curtail, Futile, Rule, Threshold, csvet
from .log import Recorded
from .recorded import replayed
from .reliability import Reliability, fit_reliability
from .replay import Replay, cross_replay, replay
from .risk import control, forecast
from .samples import Reason, Sample
from .schedule import History, learn
from .selector import Selector
from .views import View, WeightedVotes

#: What each rule is; those in `_LEARNING` learn from other questions of the log.
RULES = {
    "self-consistency": "the vote of k samples in one batch (default: all)",
    "adaptive": "Adaptive-Consistency, Beta, threshold (default .95)",
    "dirichlet": "Adaptive-Consistency, Dirichlet, threshold (default .95)",
    "esc": "ESC, window (default 5)",
    "sprt": "SPRT, share of the leader under the alternative (default .75)",
    "ppr": "PPR-1v1, delta (default .05)",
    "lead": "lead >= m (default 3)",
    "best-of-n": "the sample of the highest score among n (default: all)",
    "cges": "CGES with ARDE's reliability as confidence, threshold (default .95); learns",
    "deepconf": "DeepConf-style vote, share kept (default .9), with a feature as confidence; needs --feature",
    "cert": "CSVET with CERT, delta (default .05), and CURTAIL",
    "futile": "the same, giving up where no certificate is in reach",
    "arde": "all samples, weighted by ARDE; learns",
    "weighted-cert": "CERT of ARDE's weighted votes, delta (default .05), and CURTAIL; learns",
    "eac": "EAC: look schedule by dynamic programme, tolerated loss against the full vote (default .003); learns",
    "eac-arde": "EAC over ARDE's weighted votes; learns",
    "cascade": "eac-arde with CSVET: CERT, delta (default .05), and CURTAIL; learns",
    "risk": "RISK: threshold controlled at alpha (default .01), delta .1; calibrates on other questions",
}
#: Estimated P(the leader is the full vote's winner) at which the rules of RISK's family stop, in their order.
BARS = (1.0, 0.999, 0.998, 0.9965, 0.995, 0.9925, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.84,
        0.8, 0.75, 0.7, 0.6, 0.5)  # fmt: skip
_LEARNING = {"cges", "arde", "weighted-cert", "eac", "eac-arde", "cascade", "risk"}


@dataclass(frozen=True)
class Settings:
    """What rules by name need to know besides their own number.

    `looks`: sizes at which rules look; None: after every sample. `features`: what ARDE may use (default: all numbers of
    the log that are there for most samples). `labels`: whether learning may use the marks of the other questions.
    `like_vote`: a schedule over weighted votes need only be as right as the plain vote of all samples, which fewer may
    reach, and not as their weighted vote; that takes marks.
    """

    price: Price = field(default_factory=Price)
    looks: Sequence[int] | None = None
    caps: Caps = field(default_factory=Caps)
    features: Sequence[str] | None = None
    labels: bool = True
    orders: int = 4
    folds: int = 2
    seed: int = 0
    like_vote: bool = False


def run_rule(log: Sequence[Recorded], spec: str, settings: Settings | None = None) -> Replay:
    """Replay a rule by name. Rules that learn do so on other questions than those they are asked.

    Raises `InputError` for a name or number that is unknown, with the closest known one.
    """
    settings = settings or Settings()
    name, _, text = spec.partition(":")
    if name not in RULES:
        close = difflib.get_close_matches(name, RULES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"rule {spec}: unknown, expected one of {', '.join(RULES)}{hint}")
    value = _value(spec, text)
    k = max(map(len, log))
    if name not in _LEARNING:
        return replay(
            log, _plain(name, value, k, settings), settings.price, name=spec, orders=settings.orders, seed=settings.seed
        )  # fmt: skip
    return cross_replay(
        log, lambda history: _learned(name, value, k, history, settings), settings.price, name=spec,
        folds=settings.folds, orders=settings.orders, seed=settings.seed,
    )  # fmt: skip


def _value(spec: str, text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"rule {spec}: {text!r} is no number, expected NAME or NAME:NUMBER") from error


def looks(settings: Settings, k: int) -> Looks:
    """Sizes at which a rule that does not choose them looks, up to k."""
    sizes = range(1, k + 1) if settings.looks is None else [*(s for s in settings.looks if s < k), k]
    return Looks(tuple(sizes), settings.price)


def _plain(name: str, value: float | None, k: int, settings: Settings) -> Selector:
    rules: list[Rule]
    if name in ("self-consistency", "best-of-n"):
        n = int(value) if value is not None else k
        rule = baselines.SelfConsistency(n) if name == "self-consistency" else baselines.BestOfN(n)
        return Selector(Looks((n,), settings.price), [rule], caps=settings.caps)
    if name in ("cert", "futile"):
        cert = Cert(0.05 if value is None else value)
        rules = [cert, Curtail(k), *([Futile(cert, k)] if name == "futile" else [])]
    elif name == "deepconf":
        if not settings.features:
            raise InputError("rule deepconf: needs a feature to take for confidence, found none; name one (--feature)")
        feature = settings.features[0]
        keep = 0.9 if value is None else value
        rules = [baselines.DeepConf(lambda s: s.feature(feature), keep, min(16, k))]
    else:
        makers: dict[str, Callable[[float], Rule]] = {
            "adaptive": baselines.AdaptiveConsistency, "dirichlet": baselines.DirichletConsistency,
            "esc": lambda v: baselines.EarlyStopping(int(v)), "sprt": baselines.Sprt, "ppr": baselines.Ppr1v1,
            "lead": lambda v: baselines.Lead(int(v)),
        }  # fmt: skip
        usual = {"adaptive": 0.95, "dirichlet": 0.95, "esc": 5, "sprt": 0.75, "ppr": 0.05, "lead": 3}
        rules = [makers[name](usual[name] if value is None else value)]
    return Selector(looks(settings, k), rules, caps=settings.caps)


def learned_selector(
    name: str, history: Sequence[Recorded], samples: int, settings: Settings | None = None
) -> Selector:  # fmt: skip
    """A rule that learns, with its usual number, for questions that are not in `history`.

    Without `settings` it learns from agreement with the full vote. Raises `InputError` for another rule.
    """
    if name not in _LEARNING:
        raise InputError(f"rule {name}: does not learn, expected one of {', '.join(sorted(_LEARNING))}")
    return _learned(name, None, samples, history, settings or Settings(labels=False))


def _learned(
    name: str, value: float | None, k: int, history: Sequence[Recorded], settings: Settings
) -> Selector:  # fmt: skip
    if name == "risk":
        return risk_selector(history, k, settings, 0.01 if value is None else value)
    reliability = None
    if name == "eac":
        known = learned(history, settings)
    else:
        reliability = reliability_of(history, settings)
        if name == "arde":
            return Selector(Looks((k,), settings.price), weigh=reliability, caps=settings.caps)
        if name == "cges":
            rule = baselines.Cges(reliability, 0.95 if value is None else value)
            return Selector(looks(settings, k), [rule], caps=settings.caps)
        if name == "weighted-cert":
            cert = WeightedCert(0.05 if value is None else value)
            return Selector(looks(settings, k), [cert], weigh=reliability, caps=settings.caps)
        known = learned(history, settings, WeightedVotes(), reliability)
    tolerance = 0.003 if value is None or name == "cascade" else value
    vote = learned(history, settings) if reliability is not None and settings.like_vote else None
    schedule = known.tune(settings.price.passes, tolerance, vote=vote)[1]
    arm = Arm(name, 0, settings.price, schedule)
    rules = csvet(0.05 if value is None else value, k) if name == "cascade" else ()
    return Selector(Eac([arm]), rules, weigh=reliability, choose=schedule.view.choose, caps=settings.caps)


def samples_of(history: Sequence[Recorded]) -> list[list[Sample]]:
    """Samples of each question, in the log's order."""
    return [list(replayed(r).samples) for r in history]


def learned(
    history: Sequence[Recorded], settings: Settings, view: View | None = None, weigh: Reliability | None = None
) -> History:  # fmt: skip
    """History of the questions that have as many samples as half of all have, cut to that number.

    Marks are used where all have them and `settings.labels`.
    """
    full, k = _even(history)
    marked = settings.labels and all(r.correct is not None for r in full)
    correct = [(r.correct or ())[:k] for r in full] if marked else None
    samples = [of[:k] for of in samples_of(full)]
    if weigh is not None:
        samples = [[weigh.weigh(s) for s in of] for of in samples]
    return learn(samples, correct, view, seed=settings.seed)


def _even(history: Sequence[Recorded]) -> tuple[list[Recorded], int]:
    """Questions with at least k samples, and k: what half of the questions have."""
    k = sorted(map(len, history))[len(history) // 2]
    return [r for r in history if len(r) >= k], k


def reliability_of(history: Sequence[Recorded], settings: Settings) -> Reliability:
    """ARDE's reliability from history: marks where they may be used, else agreement with the full vote."""
    samples, labels, questions = [], [], []
    known = settings.labels and all(r.correct is not None for r in history)
    for number, recorded in enumerate(history):
        question = replayed(recorded)
        vote = question.vote
        for i, sample in enumerate(question.samples):
            samples.append(sample)
            marked = settings.labels and recorded.correct is not None
            labels.append(bool(recorded.correct[i]) if marked and recorded.correct else sample.answer == vote)
            questions.append(number)
    names = settings.features or sorted({n for s in samples for n in s.features})
    return fit_reliability(samples, labels, questions, names, marked=known)


def risk_selector(
    history: Sequence[Recorded], k: int, settings: Settings, alpha: float = 0.01, delta: float = 0.1
) -> Selector:  # fmt: skip
    """The history calibrates a family of rules; losses are disagreements with the full vote.

    The family: stop where the `forecast` that the leader wins the vote of all k reaches a bar, from 1 downwards, and
    where the vote is settled. Without a bar that can be shown, only settled votes stop.
    """
    # Logs may be sorted by difficulty; the order of the tests must not know it.
    history = [history[int(i)] for i in np.random.default_rng(settings.seed).permutation(len(history))]
    plan, score = looks(settings, k), forecast(k)
    family = [Selector(plan, [Curtail(k), Threshold(score, bar)]) for bar in BARS]
    losses = [1 - replay(history, s, orders=settings.orders, seed=settings.seed).agrees for s in family]
    found = control(losses, alpha, delta)
    rules: list[Rule] = [Curtail(k)]
    if found.place is not None:
        bar = BARS[found.place]
        note = f"alpha {alpha:g}, delta {delta:g}, P(leader wins) >= {bar:g}"
        rules.append(Threshold(score, bar, Reason.RISK, f"RISK({alpha:g})", alpha, note))
    return Selector(plan, rules, caps=settings.caps)
