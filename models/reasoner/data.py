"""Training batches: problems generated without end, drills and given texts, in rows of like length."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from qeil_compile.models.reasoner.checkpoint import BEGIN, CONTEXT, END
from qeil_compile.models.reasoner.problems import generate, prompt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Weight in the loss of what cannot be foretold: names and numbers of a question, operands of a drill.
GIVEN_WEIGHT = 0.1
#: Share of the documents that come from the given texts, if any are given.
TEXT_SHARE = 0.03
#: Share of the documents that are drills: the calculations of some problems without their words. The words
#: are learned in the first minutes, the tables take longer.
DRILL_SHARE = 0.5
DRILL_PROBLEMS = 3
#: Documents sorted by length together; a row of a batch is one document from its start, so training sees
#: positions and neighbours exactly as answering does, and padding stays at a few per cent.
POOL = 2048

_CALCULATION = re.compile(r"<<([^=]*=)(\d+)>>")

#: Pieces of text, each with its weight in the loss; no token spans two pieces.
Document = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Batch:
    """tokens int64 [rows, length]; weights float32 [rows, length - 1] of the predicted tokens, 0 on padding."""

    tokens: np.ndarray
    weights: np.ndarray


def document(texts: Sequence[tuple[str, str]], seed: int, index: int) -> Document:
    """Training document `index`: a given text, a drill or a problem."""
    rng = random.Random(f"mix/{seed}/{index}")
    if texts and rng.random() < TEXT_SHARE:
        return _answered(*rng.choice(texts))
    if rng.random() < DRILL_SHARE:
        return _drill(rng, seed, index)
    problem = generate("train", seed, index)
    return _answered(problem.question, problem.solution)


def _answered(question: str, solution: str) -> Document:
    return [(BEGIN, GIVEN_WEIGHT), (prompt(question), GIVEN_WEIGHT), (solution, 1.0), (END, 1.0)]


def _drill(rng: random.Random, seed: int, index: int) -> Document:
    # Negative numbers: the problems that stand whole in the training text are others.
    sources = [generate("train", seed, -(index * DRILL_PROBLEMS + i) - 1) for i in range(DRILL_PROBLEMS)]
    calculations = _CALCULATION.findall("".join(p.solution for p in sources))
    rng.shuffle(calculations)
    pieces: Document = [(BEGIN, GIVEN_WEIGHT)]
    for given, result in calculations:
        pieces += [(f" <<{given}", GIVEN_WEIGHT), (result, 1.0), (">>", 1.0)]
    return pieces


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
    documents = [document(texts, seed, i) for i in range(pool * POOL, (pool + 1) * POOL)]
    pieces = tokenizer.encode_batch([text for d in documents for text, _ in d], add_special_tokens=False)
    ids, rows = iter(pieces), []
    for made in documents:
        parts = [(next(ids).ids, weight) for _, weight in made]
        row = [(token, weight) for part, weight in parts for token in part]
        if len(row) <= CONTEXT:
            rows.append(row)
    rows.sort(key=len)
    starts = [0]
    for i, row in enumerate(rows):
        if len(row) * (i + 1 - starts[-1]) > batch_tokens and i > starts[-1]:
            starts.append(i)
    batched = [_batch(rows[start:stop]) for start, stop in pairwise([*starts, len(rows)])]
    random.Random(f"order/{seed}/{pool}").shuffle(batched)
    return batched


def _batch(rows: list[list[tuple[int, float]]]) -> Batch:
    tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    weights = np.zeros(tokens.shape, dtype=np.float32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = [token for token, _ in row]
        weights[i, : len(row)] = [weight for _, weight in row]
    return Batch(tokens, weights[:, 1:])
