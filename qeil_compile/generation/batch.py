"""A batch of samples that advances one token at a time, and from which rows leave when they end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qeil_compile.errors import GenerationError, InputError

from .protocol import DecoderSession, Tokenizer
from .sampler import Sampler
from .sampling import Sampling
from .text import RowText

#: Why a sample ended: a stop token, a stop string, `max_tokens`, a full context, `Batch.cancel`.
FinishReason = Literal["stop", "stop_string", "length", "context", "cancelled"]
#: A prompt as text or as token numbers.
Prompt = str | Sequence[int]
#: The likeliest tokens at a position, with their log-probabilities.
Alternatives = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one sample, as it comes.

    `text` is what can be shown of the sample's text now, in whole characters; often more or less than the token's own.
    `finish_reason` is set on the sample's last event. An event of a cancelled sample has no token.
    """

    prompt: int
    sample: int
    row: int
    token: int | None
    text: str
    logprob: float | None
    alternatives: Alternatives = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Completion:
    """One sample. `text` is without the stop string; `tokens` and `logprobs` include the token that ended it.

    Log-probabilities are natural, of the model's own distribution: before penalty, temperature and filters.
    `finish_reason` is `None` while the sample goes on.
    """

    prompt: int
    sample: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Batch:
    """Samples of some prompts, decoded together over one session.

    Each prompt is run once, however many samples it has (equal prompts once together); a row is dropped from the
    session before the step after its last. Rows are numbered prompt by prompt: row = place of the prompt * n + sample.
    The session belongs to the batch until it is done.
    """

    def __init__(
        self, session: DecoderSession, tokenizer: Tokenizer | None, prompts: Sequence[Prompt], sampling: Sampling, *,
        first_prompt: int = 0, first_sample: int = 0,
    ) -> None:  # fmt: skip
        """Nothing runs yet. `tokenizer` may be `None` if prompts are token numbers: samples then have no text.

        `first_prompt`, `first_sample`: numbers of the first prompt and sample, the coordinates of the random numbers. A
        later batch that goes on where this one stopped (samples 8 to 15 of question 3) gets samples of its own by them.

        Raises `InputError` for a prompt that is empty or leaves no room in the context, and for stop strings without a
        tokenizer.
        """
        if tokenizer is None and sampling.stop:
            raise InputError("sampling: stop strings need a tokenizer, found none; give one or use stop_tokens")
        self.session = session
        self.sampling = sampling
        self._prompts = encode_prompts(session, tokenizer, prompts, first_prompt)
        self._stop_tokens = sampling.stop_tokens | (
            frozenset() if tokenizer is None or sampling.ignore_eos else tokenizer.eos
        )
        self.rows = [
            Completion(first_prompt + p, first_sample + s) for p in range(len(prompts)) for s in range(sampling.n)
        ]
        self._texts = [
            None if tokenizer is None else RowText(tokenizer, self._prompt(row), sampling.stop)
            for row in range(len(self.rows))
        ]
        self._sampler = Sampler(sampling, [c.prompt for c in self.rows], [c.sample for c in self.rows])
        for row in range(len(self.rows)):
            self._sampler.remember(row, self._prompt(row))
        self._live = np.arange(len(self.rows))
        self._places = self._live  # of each live row, its row in the session
        self._held: int | None = None  # rows in the session; None before the prompts have run
        self.prefilled_tokens = 0
        self.decoded_rows = 0

    @property
    def live(self) -> tuple[int, ...]:
        """Rows that go on."""
        return tuple(self._live.tolist())

    @property
    def completions(self) -> list[list[Completion]]:
        """Samples by prompt, as far as they are."""
        n = self.sampling.n
        return [self.rows[i : i + n] for i in range(0, len(self.rows), n)]

    def step(self) -> list[Event]:
        """One token for each live row; the first call runs the prompts. No events when no row is live.

        `prefilled_tokens` and `decoded_rows` count what the session had to do. Raises `GenerationError` when the
        session's logits are not finite or of another shape; the live rows are cancelled then.
        """
        if not len(self._live):
            return []
        try:
            logits, source = self._prefill() if self._held is None else self._decode()
            # An engine on the processor lets its threads spin: drawing on their cores as well was 2 % slower.
            chosen = self._sampler.draw(logits, self._live, source, getattr(self.session, "leaves_cores", False))
        except BaseException:
            # The session has moved and the rows have not: they cannot go on.
            self.cancel(self.live)
            raise
        self._places = source
        events = []
        for i, row in enumerate(self._live.tolist()):
            pairs = zip(chosen.alternatives[i].tolist(), chosen.alternative_logprobs[i].tolist(), strict=True)
            events.append(self._append(row, int(chosen.tokens[i]), float(chosen.logprobs[i]), tuple(pairs)))
        self._drop({event.row for event in events if event.finish_reason})
        return events

    def cancel(self, rows: Iterable[int]) -> list[Event]:
        """End rows before their time; those that have ended already stay as they are.

        Returns the events that carry the text held back. Raises `InputError` for a row that the batch does not have.
        """
        wanted = dict.fromkeys(rows)
        unknown = [row for row in wanted if not 0 <= row < len(self.rows)]
        if unknown:
            raise InputError(f"row {unknown[0]}: not in this batch, expected a number from 0 to {len(self.rows) - 1}")
        ended = [row for row in wanted if self.rows[row].finish_reason is None]
        events = []
        for row in ended:
            text = self._texts[row]
            events.append(self._close(row, None, "" if text is None else text.finish(), None, (), "cancelled"))
        self._drop(set(ended))
        return events

    def _prompt(self, row: int) -> list[int]:
        return self._prompts[row // self.sampling.n]

    def _prefill(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits of each distinct prompt, and where each live row reads."""
        keys = [tuple(self._prompt(row)) for row in self._live.tolist()]
        distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        logits = self._check(self.session.prefill([list(key) for key in distinct]), len(distinct))
        self._held = len(distinct)
        self.prefilled_tokens += sum(map(len, distinct))
        return logits, np.array([distinct[key] for key in keys], np.int64)

    def _decode(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits of each live row, after the session has been left with just those."""
        own = np.arange(len(self._live))
        if self._held != len(own) or not np.array_equal(self._places, own):
            self.session.select(self._places)
            self._held = len(own)
        last = np.array([self.rows[row].tokens[-1] for row in self._live], np.int64)
        logits = self._check(self.session.step(last), len(own))
        self.decoded_rows += len(own)
        return logits, own

    def _check(self, logits: np.ndarray, rows: int) -> np.ndarray:
        if logits.shape != (rows, self.session.vocab):
            raise GenerationError(
                f"logits: found the shape {logits.shape}, expected {(rows, self.session.vocab)}, rows and vocabulary"
            )
        return logits

    def _append(self, row: int, token: int, logprob: float, alternatives: Alternatives) -> Event:
        """Add a token to a row, and end it where it ends."""
        done, text, settings = self.rows[row], self._texts[row], self.sampling
        done.tokens.append(token)
        done.logprobs.append(logprob)
        if settings.alternatives:
            done.alternatives.append(alternatives)
        reason: FinishReason | None = None
        piece = ""
        if token in self._stop_tokens:
            reason = "stop"
        elif text is not None:
            piece = text.push(token)
        if reason is None and text is not None and text.stopped:
            reason = "stop_string"
        elif reason is None and len(done.tokens) == settings.max_tokens:
            reason = "length"
        elif reason is None and len(self._prompt(row)) + len(done.tokens) == self.session.context:
            reason = "context"
        if reason is not None and text is not None:
            piece += text.finish()
        return self._close(row, token, piece, logprob, alternatives, reason)

    def _close(
        self, row: int, token: int | None, piece: str, logprob: float | None, alternatives: Alternatives,
        reason: FinishReason | None,
    ) -> Event:  # fmt: skip
        done = self.rows[row]
        done.text += piece
        done.finish_reason = reason
        return Event(done.prompt, done.sample, row, token, piece, logprob, alternatives, reason)

    def _drop(self, rows: set[int]) -> None:
        """Forget live rows; the session is told before it runs again."""
        if rows:
            stay = np.array([row not in rows for row in self._live.tolist()], bool)
            self._live, self._places = self._live[stay], self._places[stay]


def encode_prompts(
    session: DecoderSession, tokenizer: Tokenizer | None, prompts: Sequence[Prompt], first: int = 0
) -> list[list[int]]:
    """Token numbers of prompts, each checked against the session. Raises `InputError` naming the prompt."""
    if isinstance(prompts, str):
        raise InputError("prompts: found one text, expected a list of prompts")
    return [_encode(session, tokenizer, prompt, first + i) for i, prompt in enumerate(prompts)]


def _encode(session: DecoderSession, tokenizer: Tokenizer | None, prompt: Prompt, number: int) -> list[int]:
    name = f"prompt {number}"
    if not isinstance(prompt, str):
        tokens = [int(token) for token in prompt]
    elif tokenizer is None:
        raise InputError(f"{name}: found text and no tokenizer, expected token numbers; give a tokenizer")
    else:
        tokens = tokenizer.encode(prompt)
    if not tokens:
        raise InputError(f"{name}: found no token, expected at least one to go on from")
    wrong = [token for token in tokens if not 0 <= token < session.vocab]
    if wrong:
        raise InputError(f"{name}: found token {wrong[0]}, expected numbers from 0 to {session.vocab - 1}")
    if len(tokens) >= session.context:
        raise InputError(
            f"{name}: found {len(tokens)} tokens, expected at most {session.context - 1}, so that one fits behind them "
            f"in the context of {session.context}; shorten the prompt"
        )
    return tokens
