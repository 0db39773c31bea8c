"""Multiple choice without sampling: the options' log-probabilities decide, EXACT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from qeil_compile.errors import InputError

from .samples import Reason, Stop


def choose_option(
    logprobs: Mapping[str, float] | Sequence[float], lengths: Sequence[int] | None = None
) -> tuple[Stop, dict[str, float]]:  # fmt: skip
    """The likeliest option, and the probabilities among the options (NaN: unknown).

    logprobs: log P(option | question) of each option, as a whole; a sequence has the options "0", "1", ... `lengths`:
    tokens (or characters) of each option, to compare log-probabilities per token: a score then and no probability, so
    that the reason is RULE. Where an option's number is not finite the best of the others is given as RULE without
    claim, and without any finite one the answer is None. -inf is a number here: P = 0. Raises `InputError` for no
    options, and for lengths that do not fit.
    """
    named = dict(logprobs) if isinstance(logprobs, Mapping) else {str(i): v for i, v in enumerate(logprobs)}
    if not named:
        raise InputError("options: found none, expected at least one")
    if lengths is not None and (len(lengths) != len(named) or min(lengths) < 1):
        raise InputError(f"lengths: found {list(lengths)}, expected {len(named)} numbers from 1")
    divisors = lengths or [1] * len(named)
    scores = {o: float(v) / n for (o, v), n in zip(named.items(), divisors, strict=True)}
    unknown = [o for o, v in scores.items() if math.isnan(v) or v == math.inf]
    known = {o: v for o, v in scores.items() if o not in unknown}
    if not known or max(known.values()) == -math.inf:
        return Stop(Reason.RULE, None, None, "no option has a log-probability"), dict.fromkeys(named, math.nan)
    best = max(known, key=lambda o: known[o])
    values = np.array(list(known.values()))
    shares = np.exp(values - values.max())
    found = dict.fromkeys(named, math.nan) | dict(zip(known, (shares / shares.sum()).tolist(), strict=True))
    if unknown:
        return Stop(Reason.RULE, best, None, f"no log-probability of {', '.join(unknown)}"), found
    ties = [o for o, v in known.items() if v == known[best]]
    if lengths is not None or len(ties) > 1:
        why = f"{len(ties)} options are equally likely" if len(ties) > 1 else "per token: a score, not a probability"
        return Stop(Reason.RULE, best, None, why), found
    return Stop(Reason.EXACT, best, None, f"p = {found[best]:.4g} among {len(named)} options"), found
