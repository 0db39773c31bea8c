"""One batch of live rows of a decoder, with its cache inside the engines that own it.

    session = Session(prompt_units, {16: step_units}, vocab, context)
    logits = session.prefill([[1, 5, 7], [1, 9]])      # each prompt once
    session.select(np.repeat([0, 1], 8))               # eight samples of each share its cache
    logits = session.step(tokens)

Prompts of different lengths stand side by side, padding behind the shorter ones. The cache moves between engines only
where the units of two phases are not the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qeil_compile.backends.base import DecoderStage
from qeil_compile.errors import BackendError, InputError

Units = Sequence[DecoderStage]


@dataclass(frozen=True)
class SavedRows:
    """Rows that a session may return to, and the units that had them."""

    states: Mapping[str, np.ndarray]
    lengths: np.ndarray
    mask: np.ndarray
    units: list[DecoderStage]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(a.nbytes for a in self.states.values())


class Session:
    """Rows and their cache. Not safe to call from several threads.

    `prompt` are the units that run prompts, in order; `steps` maps a number of rows to the units that serve steps of up
    to so many (the largest serves all above).
    """

    def __init__(self, prompt: Units, steps: Mapping[int, Units], vocab: int, context: int) -> None:
        self._prompt, self._steps = list(prompt), {k: list(steps[k]) for k in sorted(steps)}
        self.vocab, self.context = vocab, context
        self._units: list[DecoderStage] = self._prompt
        self._lengths = np.zeros(0, np.int64)
        self._mask = np.zeros((0, 0), np.int64)
        self._zero = np.zeros((0, 1, 1), np.int64)
        #: Tokens that units have run, padding left out, and bytes of cache that moved between units.
        self.tokens_run = 0
        self.bytes_moved = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in the cache of each live row, int64 [rows]."""
        return self._lengths.copy()

    @property
    def leaves_cores(self) -> bool:
        """Whether what holds the cache runs beside the processor, whose cores are free between the steps."""
        return all(getattr(unit, "leaves_cores", False) for unit in self._units)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forget everything and run prompts; returns the logits of their last tokens.

        float32 [prompts, vocab], valid until the next call. Raises `InputError` where there is no prompt, an empty one,
        one longer than the context, or a token that is none.
        """
        fresh = self._begin(prompts)
        return self._run(self._pack(prompts, fresh), fresh, (fresh - 1)[:, None, None])[:, 0]

    def score(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Natural logarithms of the probability of each token after the first given those before it.

        float64 [n - 1] per text of n tokens. The texts run together, and stay as live rows. Raises as `prefill` does.
        """
        fresh = self._begin(texts)
        take = np.tile(np.arange(int(fresh.max()), dtype=np.int64)[None, :, None], (len(texts), 1, 1))
        rows = self._run(self._pack(texts, fresh), fresh, take)
        return [_scored(logits[: len(text)], text) for logits, text in zip(rows, texts, strict=True)]

    def select(self, rows: np.ndarray) -> None:
        """Live rows become rows[i], int64 [n]: repeats share a cache, absences drop it. Raises `InputError`."""
        rows = np.asarray(rows, np.int64)
        live = len(self._lengths)
        if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= live:
            raise InputError(f"rows {rows.tolist()!r:.60}: expected numbers below the {live} live rows, at least one")
        # A cache moves before it is repeated: there is less of it.
        self._move(self._serving(len(rows)))
        for unit in self._units:
            unit.select(rows)
        self._lengths, self._mask = self._lengths[rows], self._mask[rows]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """One more token per row, int64 [rows]; float32 logits [rows, vocab], valid until the next call.

        Raises `InputError` for a wrong number of tokens, one that is none, and for rows that fill the context.
        """
        rows = len(self._lengths)
        tokens = np.asarray(tokens, np.int64)
        if tokens.shape != (rows,) or not rows:
            raise InputError(f"tokens: found shape {list(tokens.shape)}, expected one for each of the {rows} live rows")
        self._check(tokens)
        if self._mask.shape[1] >= self.context:
            raise InputError(f"a row has {self.context} tokens: the context is full")
        self._move(self._serving(rows))
        if len(self._zero) != rows:
            self._zero = np.zeros((rows, 1, 1), np.int64)
        return self._run(tokens[:, None], np.ones(rows, np.int64), self._zero)[:, 0]

    def save(self) -> SavedRows:
        """A copy of the cache of all live rows, to go on from later: a further round of samples of a prompt."""
        states = {n: a for unit in self._units for n, a in unit.export().items()}
        return SavedRows(states, self._lengths.copy(), self._mask.copy(), self._units)

    def restore(self, saved: SavedRows) -> None:
        """The rows of `save` are the live ones again."""
        self._units = saved.units
        for unit in self._units:
            unit.load({n: saved.states[n] for n in unit.states})
        self._lengths, self._mask = saved.lengths.copy(), saved.mask.copy()

    def adopt(self, saved: SavedRows) -> None:
        """The rows that another session of the same model saved are the live ones."""
        self._units, self._lengths, self._mask = saved.units, saved.lengths.copy(), saved.mask.copy()
        self._hand_over(self._serving(len(self._lengths)), lambda unit: {n: saved.states[n] for n in unit.states})

    # ---- inside

    def _begin(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        if not prompts:
            raise InputError("prompts: found none, expected at least one")
        for k, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.context:
                raise InputError(f"prompt {k} has {len(prompt)} tokens, expected 1 to {self.context} (the context)")
        self._units = self._prompt
        for unit in self._units:
            unit.reset(len(prompts))
        self._lengths = np.zeros(len(prompts), np.int64)
        self._mask = np.zeros((len(prompts), 0), np.int64)
        return np.array([len(p) for p in prompts], np.int64)

    def _pack(self, prompts: Sequence[Sequence[int]], fresh: np.ndarray) -> np.ndarray:
        tokens = np.zeros((len(prompts), int(fresh.max())), np.int64)
        for k, prompt in enumerate(prompts):
            tokens[k, : len(prompt)] = prompt
        self._check(tokens)
        return tokens

    def _check(self, tokens: np.ndarray) -> None:
        if tokens.min() < 0 or tokens.max() >= self.vocab:
            bad = tokens[(tokens < 0) | (tokens >= self.vocab)][0]
            raise InputError(f"token {bad}: expected 0 to {self.vocab - 1}")

    def _serving(self, rows: int) -> list[DecoderStage]:
        return self._steps[next((k for k in self._steps if k >= rows), max(self._steps))]

    def _move(self, units: list[DecoderStage]) -> None:
        """Hand the cache over to the units that run next, where they are others."""
        if units is not self._units:
            self._hand_over(units, lambda unit: unit.export())

    def _hand_over(
        self, units: list[DecoderStage], states_of: Callable[[DecoderStage], Mapping[str, np.ndarray]]
    ) -> None:
        """`states_of` gives the states of a unit that is left."""
        leaving = {id(u) for u in self._units}
        # Padding stands elsewhere in engines of two kinds: then those that stay take their cache anew as well.
        ragged = not self._mask.all()
        there = [u for u in units if id(u) not in leaving or (ragged and not u.compact)]
        if any(id(u) not in leaving for u in units):
            wanted = {n for u in there for n in u.states}
            found: dict[str, np.ndarray] = {}
            for unit in self._units:
                if wanted.intersection(unit.states):
                    found |= {n: self._compacted(a, unit.compact) for n, a in states_of(unit).items()}
            if ragged:
                self._mask = (np.arange(self._mask.shape[1]) < self._lengths[:, None]).astype(np.int64)
            for unit in there:
                unit.load({n: found[n] for n in unit.states})
                self.bytes_moved += sum(found[n].nbytes for n in unit.states)
        self._units = units

    def _compacted(self, state: np.ndarray, compact: bool) -> np.ndarray:
        """Keys or values [rows, heads, total, width] with each row's tokens at its beginning, and zeros behind them."""
        if state.ndim < 4 or self._mask.all():
            return state
        if not compact:
            order = np.argsort(1 - self._mask, axis=1, kind="stable")
            return np.take_along_axis(state, order[:, None, :, None], axis=2)
        # What was never written may be anything: engines that mask multiply it by 0, and NaN stays NaN.
        padding = np.arange(state.shape[2]) >= self._lengths[:, None]
        return np.where(padding[:, None, :, None], np.zeros((), state.dtype), state)

    def _run(self, tokens: np.ndarray, fresh: np.ndarray, take: np.ndarray) -> np.ndarray:
        new = tokens.shape[1]
        start = self._lengths
        self._lengths = start + fresh
        real = (np.arange(new) < fresh[:, None]).astype(np.int64)
        self._mask = np.concatenate([self._mask, real], axis=1)
        values: dict[str, np.ndarray] = {
            "tokens": tokens,
            "positions": start[:, None] + np.arange(new),
            "lengths": (self._lengths - 1).astype(np.int32),
            "total": np.array(self._lengths.max(), np.int32),
            "fresh": fresh,
            "take": take,
            "mask": self._mask,
        }
        for unit in self._units:
            values.update(unit.run(values))
        self.tokens_run += int(fresh.sum())
        if "logits" not in values:
            # Of an artifact by somebody else: its hashes fit whatever it holds.
            raise BackendError("no stage has written logits, which the last one should; get or compile the model again")
        return values["logits"]


def _scored(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Of logits [n, vocab], each of them of the token that follows."""
    plain = logits[:-1].astype(np.float64)
    plain -= plain.max(axis=1, keepdims=True)
    chosen = plain[np.arange(len(tokens) - 1), np.asarray(tokens[1:], np.int64)]
    return np.asarray(chosen - np.log(np.exp(plain).sum(axis=1)))
