"""Training batches: problems generated without end, mixed with given texts, in rows of like length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qeil_compile.models.reasoner.checkpoint import CONTEXT, END
from qeil_compile.models.reasoner.problems import generate, prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Weight in the loss of a token of the question: names and numbers there cannot be foretold.
QUESTION_WEIGHT = 0.1
#: Share of the documents that come from the given texts, if any are given.
TEXT_SHARE = 0.04
#: Documents sorted by length together; a row of a batch is one document from its start, so training sees
#: positions and neighbours exactly as answering does, and padding stays at a few per cent.
POOL = 2048


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens int64 [rows, length]; weights float32 [rows, length - 1] of the predicted tokens, 0 on padding."""

    tokens: np.ndarray
    weights: np.ndarray


def document(texts: Sequence[tuple[str, str]], seed: int, index: int) -> tuple[str, str]:
    """Prompt and answer of training document `index`."""
    rng = random.Random(f"mix/{seed}/{index}")
    if texts and rng.random() < TEXT_SHARE:
        question, solution = rng.choice(texts)
    else:
        problem = generate("train", seed, index)
        question, solution = problem.question, problem.solution
    return prompt(question), solution + END


def batches(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, str]], seed: int, pool: int, batch_tokens: int
) -> Iterator[tuple[int, Batch]]:
    """Batches of about `batch_tokens` tokens from pool number `pool` on, each with the number of its pool."""
    while True:
        yield from ((pool, batch) for batch in _pool(tokenizer, texts, seed, pool, batch_tokens))
        pool += 1


def _pool(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, str]], seed: int, pool: int, batch_tokens: int
) -> list[Batch]:
    pairs = [document(texts, seed, i) for i in range(pool * POOL, (pool + 1) * POOL)]
    # Prompt and answer apart: an answer begins a line, so no token spans the two.
    heads = [e.ids for e in tokenizer.encode_batch([head for head, _ in pairs])]
    tails = [e.ids for e in tokenizer.encode_batch([tail for _, tail in pairs], add_special_tokens=False)]
    rows = sorted(((h, t) for h, t in zip(heads, tails, strict=True) if len(h) + len(t) <= CONTEXT), key=_length)
    made, start = [], 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and _length(rows[stop]) * (stop + 1 - start) <= batch_tokens:
            stop += 1
        made.append(_batch(rows[start:stop]))
        start = stop
    random.Random(f"order/{seed}/{pool}").shuffle(made)
    return made


def _length(row: tuple[list[int], list[int]]) -> int:
    return len(row[0]) + len(row[1])


def _batch(rows: list[tuple[list[int], list[int]]]) -> Batch:
    tokens = np.zeros((len(rows), max(map(_length, rows))), dtype=np.int64)
    weights = np.zeros(tokens.shape, dtype=np.float32)
    for i, (head, tail) in enumerate(rows):
        end = len(head) + len(tail)
        tokens[i, :end] = head + tail
        weights[i, : len(head)] = QUESTION_WEIGHT
        weights[i, len(head) : end] = 1.0
    return Batch(tokens, weights[:, 1:])
