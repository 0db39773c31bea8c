"""Repeated sampling and the selection cascade: which samples to draw, what each is worth, when to stop, on any stream.

    selector = Selector(Looks((4, 8, 16, 40)), csvet(delta=0.05, samples=40))
    inquiry = selector.open()                   # by hand, sample by sample
    verdict = ask(source, selector, question)   # or over a source: a recorded log, a live decoder

EAC (allocation, schedule) prices rounds; ARDE (reliability) weighs samples; CSVET (csvet, certificate, risk)
stops with a claim. A certificate speaks of the model's most frequent answer, not of the truth: see docs/selection.md.
"""

from __future__ import annotations

from .allocation import Arm, Caps, Draw, Eac, Looks, Price
from .arithmetic import Arithmetic, chain_features, check_arithmetic
from .certificate import Cert, WeightedCert, certify_paths
from .choice import choose_option
from .consensus import Consensus
from .csvet import Curtail, Exact, Futile, Rule, Threshold, Verified, csvet
from .live import LiveSource, Rung
from .log import Recorded, read_log
from .metrics import (
    CoverageLaw,
    Interval,
    bootstrap,
    ece,
    fit_coverage,
    ipj,
    ipw,
    paired_difference,
    paired_ratio,
    pass_at_k,
    ppp,
    within_auc,
)
from .named import RULES, Settings, learned_selector, run_rule
from .recorded import RecordedSource, Replayed, replayed
from .reliability import Diversity, Reliability, effective_answers, fit_reliability, posterior, summarise, unseen_mass
from .replay import Replay, cross_replay, replay
from .risk import Controlled, control, forecast
from .samples import Cost, Reason, Sample, Stop, Tally
from .schedule import History, Schedule, learn, typical
from .selector import Inquiry, Selector, Verdict
from .source import Round, Source, Verification, ask
from .verify import (
    ArithmeticVerifier,
    Check,
    CommandVerifier,
    Guard,
    UnitTests,
    Verifier,
    false_accept_bound,
)
from .views import Likeliest, View, Votes, WeightedVotes

__all__ = [
    "RULES", "Arithmetic", "ArithmeticVerifier", "Arm", "Caps", "Cert", "Check", "CommandVerifier", "Consensus",
    "Controlled", "Cost", "CoverageLaw", "Curtail", "Diversity", "Draw", "Eac", "Exact", "Futile", "Guard", "History",
    "Inquiry", "Interval", "Likeliest", "LiveSource", "Looks", "Price", "Reason", "Recorded", "RecordedSource",
    "Reliability", "Replay", "Replayed", "Round", "Rule", "Rung", "Sample", "Schedule", "Selector", "Settings",
    "Source", "Stop", "Tally", "Threshold", "UnitTests", "Verdict", "Verification", "Verified", "Verifier", "View",
    "Votes", "WeightedCert", "WeightedVotes", "ask", "bootstrap", "certify_paths", "chain_features",
    "check_arithmetic", "choose_option", "control", "cross_replay", "csvet", "ece", "effective_answers",
    "false_accept_bound", "fit_coverage", "fit_reliability", "forecast", "ipj", "ipw", "learn", "learned_selector",
    "paired_difference", "paired_ratio", "pass_at_k", "posterior", "ppp", "read_log", "replay", "replayed", "run_rule",
    "summarise", "typical", "unseen_mass", "within_auc",
]  # fmt: skip
