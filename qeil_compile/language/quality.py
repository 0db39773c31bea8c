"""Perplexity of a form of the weights against that of the weights as they are, measured on one text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qeil_compile.errors import InputError
from qeil_compile.runtime.resilient import ResilientSession
from qeil_compile.runtime.session import Session

#: Tokens of a text that the model writes itself where none is given, and how many such texts.
_OWN, _TEXTS = 256, 4


def own_text(session: Session | ResilientSession, begin: int, seed: int = 0) -> list[list[int]]:
    """Texts drawn from the model at temperature 1: on these, the increase of the logarithm of the perplexity is the
    divergence of the other form from the model."""
    rng = np.random.default_rng(seed)
    length = min(_OWN, session.context - 1)
    logits = session.prefill([[begin]] * _TEXTS)
    texts = [[begin] for _ in range(_TEXTS)]
    for k in range(length):
        # The largest of logits and Gumbel noise is a draw from the softmax.
        chosen = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        for text, token in zip(texts, chosen, strict=True):
            text.append(int(token))
        if k + 1 < length:
            logits = session.step(chosen)
    return texts


def windows(tokens: Sequence[int], context: int, most: int | None = None) -> list[list[int]]:
    """Consecutive parts of a text, each at most a context long; of its first `most` tokens.

    Raises `InputError` for a text too short to have a probability.
    """
    length = min(context, 512)
    cut = [list(tokens[k : k + length]) for k in range(0, min(len(tokens), most or len(tokens)), length)]
    found = [c for c in cut if len(c) > 1]
    if not found:
        raise InputError(f"text: found {len(tokens)} tokens, expected at least 2")
    return found


def perplexity(session: Session | ResilientSession, texts: Sequence[Sequence[int]]) -> tuple[float, int]:
    """e to the mean negative logarithm of the probability of a token given those before it in its text, and how many
    tokens that is over."""
    scores = np.concatenate([session.score([text])[0] for text in texts])
    return float(np.exp(-scores.mean())), len(scores)
