"""Choosing tokens: the compiled sampler against transformers' processors. Goal: at most 3 ms for 16 rows of 151,936.

python benchmarks/sampling.py [--quick] [--json FILE]

The rival is what `transformers.generate` does with the logits of a step: its processors, softmax, multinomial, and
log_softmax for the token's log-probability; on one thread, as the sampler. Logits are either like a language model's
(a normal bulk, and 40 leaders a row) or flat (normal only: a random network's, the sampler's worst case for top-p).
The second table is all that a step costs beside the model: sampler, text of the tokens, bookkeeping.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, Report, options, publish, spread, thousands
from transformers.generation import logits_process as theirs

from qeil_compile.generation import Batch, CheckpointTokenizer, Sampler, Sampling

COLUMNS = ("logits", "rows", "vocabulary", "settings", "sampler [ms]", "quartiles [ms]", "5 % fastest [ms]",
           "transformers [ms]", "ratio", "goal")  # fmt: skip
SETTINGS = {
    "greedy": Sampling(temperature=0),
    "temperature 1": Sampling(),
    "temperature .7, top-k 50": Sampling(temperature=0.7, top_k=50),
    "temperature .7, top-p .95": Sampling(temperature=0.7, top_p=0.95),
    "temperature 1, min-p .05": Sampling(min_p=0.05),
    "all filters, penalty 1.1": Sampling(
        temperature=0.7, top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.1
    ),
}  # fmt: skip
GOAL_SECONDS, GOAL_SHAPE, HISTORY = 3e-3, (16, 151936), 300


def logits_like(kind: str, rows: int, vocab: int) -> np.ndarray:
    """Logits [rows, vocab] of a kind, seeded."""
    rng = np.random.default_rng(0)
    if kind == "flat":
        return rng.standard_normal((rows, vocab)).astype(np.float32)
    logits = (rng.standard_normal((rows, vocab)) * 2.2).astype(np.float32)
    for row in logits:
        row[rng.integers(0, vocab, 40)] += 12
    return logits


def sampler_call(logits: np.ndarray, history: np.ndarray, sampling: Sampling) -> Callable[[], object]:
    """Our way; the history grows by what is drawn, as it does in use."""
    rows = np.arange(len(logits))
    sampler = Sampler(sampling, [0] * len(rows), rows.tolist())
    for row in rows:
        sampler.remember(row, history[row].tolist())
    return lambda: sampler.draw(logits, rows)


def transformers_call(logits: np.ndarray, history: np.ndarray, sampling: Sampling) -> Callable[[], object]:
    """Their way, with the processors that their `generate` would build."""
    chain = theirs.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chain.append(theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature not in (0, 1):
        chain.append(theirs.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        chain.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(theirs.MinPLogitsWarper(sampling.min_p))
    raw, seen = torch.from_numpy(logits), torch.from_numpy(history)

    def call() -> object:
        with torch.inference_mode():
            scores = chain(seen, raw)
            if sampling.greedy:
                tokens = scores.argmax(-1, keepdim=True)
            else:
                tokens = torch.multinomial(torch.softmax(scores, -1), 1)
            return tokens, torch.log_softmax(raw, -1).gather(1, tokens)

    return call


def measure_sampler(kind: str, rows: int, vocab: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one shape."""
    logits = logits_like(kind, rows, vocab)
    history = np.random.default_rng(1).integers(0, vocab, (rows, HISTORY))
    result = []
    for name, sampling in SETTINGS.items():
        arguments = (logits, history, sampling)
        samples = thousands({"ours": sampler_call(*arguments), "theirs": transformers_call(*arguments)}, rounds)
        middle, low, high = spread(samples["ours"])
        rival, rival_low, rival_high = spread(samples["theirs"])
        goal = "met" if middle <= GOAL_SECONDS else "unclear" if low <= GOAL_SECONDS else "MISSED"
        result.append({
            "logits": kind, "rows": rows, "vocabulary": vocab, "settings": name, "sampler [ms]": middle * 1e3,
            "quartiles [ms]": f"{low * 1e3:.2f} to {high * 1e3:.2f}",
            "5 % fastest [ms]": float(np.quantile(samples["ours"], 0.05)) * 1e3, "transformers [ms]": rival * 1e3,
            "transformers, quartiles [ms]": f"{rival_low * 1e3:.2f} to {rival_high * 1e3:.2f}",
            "ratio": rival / middle, "goal": goal if (rows, vocab) == GOAL_SHAPE and kind == "like a model's" else "",
            "rounds": len(samples["ours"]),
        })  # fmt: skip
    return result


class FixedLogits:
    """A session that costs nothing: the same logits at every step."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits
        self.vocab, self.context = logits.shape[1], 10**9
        self.lengths = np.zeros(len(logits), np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        return self._logits[: len(prompts)]

    def select(self, rows: np.ndarray) -> None:
        self.lengths = self.lengths[rows]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._logits[: len(tokens)]


def measure_step(rows: int, vocab: int, rounds: int) -> dict[str, Any]:
    """A row: one step of a batch beside the model, with text and a stop string, and the sampler's part of it."""
    spec = importlib.util.spec_from_file_location("qeil_benchmark_checkpoints", ROOT / "tests" / "checkpoints.py")
    assert spec is not None and spec.loader is not None
    checkpoints = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checkpoints)
    sampling = Sampling(temperature=0.7, top_p=0.95, n=rows, stop=("never to come",), ignore_eos=True)
    logits = logits_like("like a model's", rows, vocab)
    logits[:, 3:380] += 14  # tokens that the small tokenizer can spell
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = CheckpointTokenizer(checkpoints.byte_level(Path(folder)))
    batch = Batch(FixedLogits(logits), tokenizer, ["hello world"], sampling)
    history = np.zeros((rows, 1), np.int64)
    samples = thousands({"step": batch.step, "sampler": sampler_call(logits, history, sampling)}, rounds)
    middle, low, high = spread(samples["step"])
    rest, rest_low, rest_high = spread(samples["step"] - samples["sampler"])
    return {
        "rows": rows, "vocabulary": vocab, "step without model [ms]": middle * 1e3,
        "quartiles [ms]": f"{low * 1e3:.2f} to {high * 1e3:.2f}", "of it not sampler [ms]": rest * 1e3,
        "quartiles of that [ms]": f"{rest_low * 1e3:.2f} to {rest_high * 1e3:.2f}",
    }  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    args = options(__doc__ or "")
    torch.set_num_threads(1)
    rounds = 2 if args.quick else 60
    shapes = [(2, 512)] if args.quick else [(16, 151936), (1, 151936), (16, 50257)]
    sampler = Report("sampler", "The compiled sampler against transformers' processors, one thread (measured)", COLUMNS)
    for rows, vocab in shapes:
        sampler.rows += measure_sampler("like a model's", rows, vocab, rounds)
    sampler.rows += measure_sampler("flat", *shapes[0], rounds)
    sampler.notes = ["Medians of turns taken one after the other; ratio: transformers over the sampler. "
                     "Goal: 3 ms, 2 % of a step of 150 ms; unclear: the lower quartile meets it.",
                     "5 % fastest: the quantile that a busy machine disturbs least."]  # fmt: skip
    step = Report("step", "A step of a batch beside the model (measured)",
                  ("rows", "vocabulary", "step without model [ms]", "quartiles [ms]", "of it not sampler [ms]",
                   "quartiles of that [ms]"))  # fmt: skip
    step.rows = [measure_step(rows, vocab, rounds) for rows, vocab in shapes]
    publish([sampler, step], args, "sampling")


if __name__ == "__main__":
    main()
