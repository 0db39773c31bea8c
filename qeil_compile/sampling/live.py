"""A live decoder as a source: rounds are batches of `qeil_compile.generation`, whose rows leave when they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qeil_compile.errors import InputError
from qeil_compile.generation import Batch, Completion, DecoderSession, Sampling, Tokenizer
from qeil_compile.generation.batch import Prompt

from .allocation import Draw, Price
from .extract import Extractor, number
from .reliability import summarise
from .samples import Cost, Sample

#: Joules of an energy counter so far, of which differences are taken.
Meter = Callable[[], float]
#: Features of a sample by name, read off its text.
Features = Callable[[str], Mapping[str, float]]


class KeptPrompt:
    """A session that runs the same prompts only once in a row: a further round of samples goes on from their cache.

    `session` is a `DecoderSession` with `save` and `restore`; `ran` says whether the last `prefill` ran.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._kept: tuple[list[list[int]], Any, np.ndarray] | None = None
        self.ran = False

    def forget(self) -> None:
        """Run the next prompt, whatever it is."""
        self._kept = None

    @property
    def vocab(self) -> int:
        return int(self._session.vocab)

    @property
    def context(self) -> int:
        return int(self._session.context)

    @property
    def leaves_cores(self) -> bool:
        return bool(getattr(self._session, "leaves_cores", False))

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray(self._session.lengths)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        key = [list(p) for p in prompts]
        self.ran = self._kept is None or self._kept[0] != key
        if not self.ran:
            assert self._kept is not None
            self._session.restore(self._kept[1])
            return self._kept[2]
        # What the session returns is overwritten by its next call.
        logits = np.array(self._session.prefill(prompts))
        self._kept = key, self._session.save(), logits
        return logits

    def select(self, rows: np.ndarray) -> None:
        self._session.select(rows)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.step(tokens))


@dataclass
class Rung:
    """One decoder. `prompt` makes a prompt of a question; `meter` measures joules, else they are the price's.

    `pass_tokens`: tokens of the pass that `price` speaks of; steps of shorter or longer rounds count in proportion.
    """

    session: DecoderSession
    tokenizer: Tokenizer | None
    sampling: Sampling
    price: Price = field(default_factory=Price)
    pass_tokens: int = 128
    prompt: Callable[[Any], Prompt] = lambda question: question
    meter: Meter | None = None


class LiveSource:
    """Fulfils `Source` over decoder sessions, small to large. Not thread-safe: a session holds one round at a time."""

    def __init__(self, rungs: Sequence[Rung], extract: Extractor = number, features: Features | None = None) -> None:
        """`features` reads more features of a finished sample off its text, beside those of its log-probabilities.

        Raises `InputError` without rungs, or for a pass of no tokens.
        """
        if not rungs or min(r.pass_tokens for r in rungs) < 1:
            raise InputError(f"source: found {len(rungs)} rungs, expected at least one, with passes of 1 token or more")
        self.rungs = list(rungs)
        self.extract, self.features = extract, features
        self._sessions = [_kept(r.session) for r in rungs]

    def price(self, rung: int) -> Price:
        return self.rungs[rung].price

    def forget(self) -> None:
        """Let go of kept prompts: the next round pays for its own, though the last question was the same."""
        for session in self._sessions:
            if isinstance(session, KeptPrompt):
                session.forget()

    def draw(self, question: Any, draw: Draw, drawn: int) -> LiveRound:
        """Raises `InputError` for a prompt that is empty or leaves no room in the context."""
        rung = self.rungs[draw.rung]
        temperature = rung.sampling.temperature if draw.temperature is None else draw.temperature
        sampling = replace(rung.sampling, n=draw.size, temperature=temperature)
        # Samples go on numbering where the last round ended, and have random numbers of their own by that.
        session = self._sessions[draw.rung]
        batch = Batch(session, rung.tokenizer, [rung.prompt(question)], sampling, first_sample=drawn)
        return LiveRound(batch, rung, self.extract, draw.rung, self.features)


def _kept(session: DecoderSession) -> DecoderSession:
    """The session with its prompts kept, where it can hold them."""
    return KeptPrompt(session) if hasattr(session, "save") and hasattr(session, "restore") else session


class LiveRound:
    """Fulfils `Round`; one step is one token of every live sample.

    Passes are counted from the steps that ran: one with r rows is (1 + (r - 1) rho) / pass_tokens of a pass. Seconds
    are measured; joules are measured where the rung has a meter, else the price's for these passes.
    """

    def __init__(
        self, batch: Batch, rung: Rung, extract: Extractor, number_: int, features: Features | None = None
    ) -> None:  # fmt: skip
        self._batch, self._rung, self._extract, self._number = batch, rung, extract, number_
        self._features = features
        self._passes = self._seconds = 0.0
        self._joules = 0.0

    @property
    def live(self) -> Sequence[int]:
        return self._batch.live

    @property
    def cost(self) -> Cost:
        measured = self._rung.meter is not None
        joules = self._joules if measured else self._passes * self._rung.price.joules
        return Cost(self._passes, joules, self._seconds, "measured" if measured else self._rung.price.label)

    def step(self) -> Sequence[tuple[int, Sample]]:
        rows, first = len(self._batch.live), self._passes == 0
        before = self._rung.meter() if self._rung.meter is not None else 0.0
        started = time.perf_counter()
        events = self._batch.step()
        self._seconds += time.perf_counter() - started
        if self._rung.meter is not None:
            self._joules += self._rung.meter() - before
        self._passes += (1 + (rows - 1) * self._rung.price.rho) / self._rung.pass_tokens
        if first and getattr(self._batch.session, "ran", True):
            self._passes += self._rung.price.prompt
        return [(e.row, self._sample(self._batch.rows[e.row])) for e in events if e.finish_reason is not None]

    def partial(self, place: int) -> Sample:
        row = self._batch.rows[place]
        return Sample(None, row.text, len(row.tokens), summarise(row.logprobs), rung=self._number, index=row.sample)

    def cancel(self, places: Iterable[int]) -> None:
        self._batch.cancel(places)

    def _sample(self, row: Completion) -> Sample:
        # A sample cut by the limit of tokens has no answer to speak of, unless it can be read all the same.
        answer = self._extract(row.text)
        features = summarise(row.logprobs)
        if self._features is not None:
            features = {**features, **self._features(row.text)}
        return Sample(answer, row.text, len(row.tokens), features, rung=self._number, index=row.sample)
