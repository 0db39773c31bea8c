"""Sample the reasoner on problems of forms that it never saw: pass@1, pass@k, majority vote.

    python -m qeil_compile.models.reasoner.evaluate [FOLDER] --problems 300 --samples 20 --temperature 0.8

Samples come from the full distribution at the temperature (no top-k, no top-p) through `transformers`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer

from qeil_compile.errors import InputError
from qeil_compile.models.reasoner import checkpoint, reasoner_folder
from qeil_compile.models.reasoner.problems import generate, prompt, read_answer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

#: Seed of the problems reported on: training draws from the other split, whatever its seed.
SEED = 20
#: Rows sampled at once.
ROWS = 480
MAX_NEW_TOKENS = 224


@dataclass(frozen=True, slots=True)
class Record:
    """One problem with its samples: answers (None: no answer found), generated tokens and text of each."""

    name: str
    gold: int
    answers: tuple[int | None, ...]
    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    @property
    def correct(self) -> int:
        """Number of samples with the right answer."""
        return sum(a == self.gold for a in self.answers)

    def to_json(self) -> str:
        """One line of a sample log: pid, gold, ans[k] ('' is no answer), ok[k], tok[k], text[k]."""
        answers = ["" if a is None else str(a) for a in self.answers]
        row = {"pid": self.name, "gold": str(self.gold), "ans": answers,
               "ok": [int(a == self.gold) for a in self.answers], "tok": list(self.tokens),
               "text": list(self.texts)}  # fmt: skip
        return json.dumps(row)


def held_out(count: int, seed: int = SEED) -> list[tuple[str, str, int]]:
    """(name, prompt, answer) of `count` problems of the test split."""
    made = (generate("test", seed, i) for i in range(count))
    return [(f"{i}:{p.form}", p.prompt, p.answer) for i, p in enumerate(made)]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(one of k samples is right) from `correct` of `samples`. Raises `InputError`."""
    if not 1 <= k <= samples:
        raise InputError(f"pass@k: found k = {k}, expected 1 to the {samples} samples drawn")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over problems."""
    rows = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(0, len(rows), (resamples, len(rows)))
    low, high = np.percentile(rows[draws].mean(axis=1), [2.5, 97.5])
    return float(rows.mean()), float(low), float(high)


def majority(record: Record) -> float:
    """1 where the most frequent answer is right; a tie counts as the share of it that is."""
    votes = Counter(a for a in record.answers if a is not None)
    best = [a for a, n in votes.items() if n == max(votes.values())]
    return best.count(record.gold) / len(best) if best else 0.0


def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[tuple[str, str, int]],
    samples: int,
    temperature: float,
    seed: int,
) -> Iterable[Record]:
    """Draw `samples` answers to each problem; temperature 0 is greedy (one sample)."""
    torch.manual_seed(seed)
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    together = max(1, ROWS // samples)
    # Neighbours of like length: little padding. Records keep the names, so the order does not matter.
    ordered = sorted(problems, key=lambda problem: len(problem[1]))
    for start in range(0, len(ordered), together):
        group = ordered[start : start + together]
        inputs = tokenizer([text for _, text, _ in group], return_tensors="pt", padding=True)
        with torch.inference_mode():
            rows = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                num_return_sequences=samples, max_new_tokens=MAX_NEW_TOKENS, **how,
            )  # fmt: skip
        made = rows[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(made, skip_special_tokens=True)
        answers = [read_answer(text) for text in texts]
        lengths = (made != tokenizer.pad_token_id).sum(dim=1).tolist()
        for i, (name, _, gold) in enumerate(group):
            own = slice(i * samples, (i + 1) * samples)
            yield Record(name, gold, tuple(answers[own]), tuple(lengths[own]), tuple(texts[own]))


def report(records: Sequence[Record]) -> str:
    """pass@k and majority vote with 95 % intervals, a line each."""
    samples = len(records[0].answers)
    rows = {f"pass@{k}": [pass_at_k(samples, r.correct, k) for r in records] for k in (1, 5, 20) if k <= samples}
    if samples > 1:
        rows[f"majority of {samples}"] = [majority(r) for r in records]
    lines = []
    for name, values in rows.items():
        mean, low, high = interval(values)
        lines.append(f"{name}: {100 * mean:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f})")
    return "\n".join(lines)


def main(
    folder: Annotated[Path | None, typer.Argument(help="Checkpoint folder; default: the shipped one.")] = None,
    problems: Annotated[int, typer.Option(help="Held-out problems.")] = 300,
    samples: Annotated[int, typer.Option(help="Samples a problem.")] = 20,
    temperature: Annotated[float, typer.Option(help="Temperature; 0 is greedy.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
    gsm8k: Annotated[Path | None, typer.Option(help="Problems of this GSM8K file instead of generated ones.")] = None,
    log: Annotated[Path | None, typer.Option(help="Write the samples there, one JSON line a problem.")] = None,
) -> None:
    """Report pass@1, pass@5, pass@20 and majority vote on held-out problems (measured)."""
    if threads:
        torch.set_num_threads(threads)
    if gsm8k:
        pairs = checkpoint.read_gsm8k(gsm8k)[:problems]
        chosen = [(str(i), prompt(q), read_answer(a) or 0) for i, (q, a) in enumerate(pairs)]
    else:
        chosen = held_out(problems)
    with reasoner_folder() as shipped:
        model, tokenizer = checkpoint.load(folder or shipped)
    if not temperature:
        samples = 1
    records = list(sample(model, tokenizer, chosen, samples, temperature, seed))
    if log:
        log.write_text("".join(r.to_json() + "\n" for r in records), encoding="utf-8")
    print(f"measured: {len(records)} problems, {samples} samples each, temperature {temperature}\n{report(records)}")


if __name__ == "__main__":
    typer.run(main)
