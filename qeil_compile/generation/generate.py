"""Whole jobs over a session: all samples at once, or event by event."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from qeil_compile.errors import FailoverError, InputError

from .batch import Batch, Completion, Event, Prompt, encode_prompts
from .protocol import DecoderSession, Tokenizer
from .sampling import Sampling


def generate(
    session: DecoderSession, tokenizer: Tokenizer | None, prompts: Sequence[Prompt], sampling: Sampling | None = None,
    *, on_token: Callable[[Event], object] | None = None, max_rows: int | None = None,
) -> list[list[Completion]]:  # fmt: skip
    """`sampling.n` samples of each prompt.

    Prompts (text, or token numbers) are decoded together, in batches of at most `max_rows` rows; samples do not depend
    on `max_rows`. Where one prompt has more samples than that it runs once for each batch of them. `on_token` is called
    with each event as it comes. Raises `InputError` before anything runs, `GenerationError` where the model fails,
    `FailoverError` where it can run nowhere any more; samples that had ended by then are in its `finished`.
    """
    results: list[list[Completion]] = [[] for _ in prompts]
    for batch in batches(session, tokenizer, prompts, sampling, max_rows):
        try:
            while batch.live:
                for event in batch.step():
                    if on_token is not None:
                        on_token(event)
        except FailoverError as error:
            ended = [c for c in batch.rows if c.finish_reason not in (None, "cancelled")]
            error.finished = [c for samples in results for c in samples] + ended
            raise
        for completion in batch.rows:
            results[completion.prompt].append(completion)
    return results


def stream(
    session: DecoderSession, tokenizer: Tokenizer | None, prompts: Sequence[Prompt], sampling: Sampling | None = None,
    *, max_rows: int | None = None,
) -> Iterator[Event]:  # fmt: skip
    """The events of `generate` as they come. The texts of a sample's events are its text, piece by piece."""
    for batch in batches(session, tokenizer, prompts, sampling, max_rows):
        while batch.live:
            yield from batch.step()


def batches(
    session: DecoderSession, tokenizer: Tokenizer | None, prompts: Sequence[Prompt], sampling: Sampling | None = None,
    max_rows: int | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of a job, in order; each has to be done with before the next is asked for."""
    sampling = sampling or Sampling()
    if max_rows is not None and max_rows < 1:
        raise InputError(f"max_rows: found {max_rows}, expected a number from 1")
    # All of them before the first runs: a wrong prompt at the end is known at once.
    encoded = encode_prompts(session, tokenizer, prompts)
    limit = max_rows or max(1, len(encoded) * sampling.n)
    together = max(1, limit // sampling.n)
    for prompt in range(0, len(encoded), together):
        for sample in range(0, sampling.n, limit):
            part = replace(sampling, n=min(limit, sampling.n - sample))
            chunk = encoded[prompt : prompt + together]
            yield Batch(session, tokenizer, chunk, part, first_prompt=prompt, first_sample=sample)
