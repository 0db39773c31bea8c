"""The reader of llama2.c's tokenizer files (`tok*.bin`): byte-pair encoding by score, with byte fallback.

A file is an int32 (the longest token in bytes) followed, for each token, by a float32 score, an int32
length and the bytes; all little-endian. Tokens 0, 1 and 2 are unknown, begin and end of sequence; 3 to 258
are the 256 bytes.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path

from qeil_compile.errors import InputError, ModelError
from qeil_compile.untrusted import read_file

#: Bytes of a tokenizer file.
_LIMIT = 1 << 28
_LENGTH = struct.Struct("<i")
_TOKEN = struct.Struct("<fi")
_BYTE_BASE = 3
_BYTE_NAMES = tuple(b"<0x%02X>" % value for value in range(256))


class Llama2cTokenizer:
    """Text to token numbers and back, equal to llama2.c's own."""

    bos = 1
    eos = 2

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float]) -> None:
        """`pieces` and `scores` by token number. Raises `ModelError` if the byte tokens are not in place."""
        if len(pieces) != len(scores):
            raise ModelError(f"tokenizer: found {len(scores)} scores, expected {len(pieces)}, one a token")
        if tuple(pieces[_BYTE_BASE : _BYTE_BASE + 256]) != _BYTE_NAMES:
            raise ModelError("tokenizer: tokens 3 to 258 are not the 256 bytes, expected <0x00> to <0xFF>")
        self.pieces = tuple(pieces)
        self.scores = tuple(scores)
        # The three special tokens and the bytes have spellings that text may contain by chance: text
        # never becomes one of them. On equal spellings the first token wins.
        first = _BYTE_BASE + 256
        self._number = {piece: i for i, piece in reversed(list(enumerate(pieces))) if i >= first}

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.pieces)

    @classmethod
    def load(cls, path: str | PathLike[str], vocab: int | None = None) -> Llama2cTokenizer:
        """Read a tokenizer file to its end. Raises `ModelError` naming the file.

        The format does not say how many tokens follow, so a file cut between two tokens looks whole:
        `vocab`, the model's vocabulary, finds that out.
        """
        path = Path(path)
        try:
            data = read_file(path, _LIMIT)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            tokenizer = cls(*_parse(data))
        except ModelError as error:
            raise ModelError(f"{path}: not a llama2.c tokenizer: {error}") from error
        if vocab is not None and len(tokenizer) != vocab:
            raise ModelError(f"{path}: found {len(tokenizer)} tokens, expected {vocab} for the model")
        return tokenizer

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token numbers of `text`, with a space put before it as llama2.c does; empty text gets none."""
        try:
            tokens = [t for char in (f" {text}" if text else "") for t in self._spell(char.encode())]
        except UnicodeEncodeError as error:
            raise InputError(
                f"text: found a lone surrogate at {error.start}, expected valid Unicode"
            ) from error
        return [self.bos] * bos + self._merge(tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Begin and end marks vanish; one space after a begin mark is the prefix that
        `encode` added, and vanishes too. Bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._piece(a, b) for a, b in pairwise([self.eos, *ids])).decode(errors="replace")

    def _spell(self, char: bytes) -> list[int]:
        """The token of one character, or its bytes."""
        number = self._number.get(char)
        return [number] if number is not None else [byte + _BYTE_BASE for byte in char]

    def _merge(self, tokens: list[int]) -> list[int]:
        """Join neighbours, best score first and leftmost among equals, until no pair is a token."""
        following = list(range(1, len(tokens) + 1))
        preceding = list(range(-1, len(tokens) - 1))
        alive = [True] * len(tokens)
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(left: int) -> None:
            if left < 0 or following[left] >= len(tokens):
                return
            pair = tokens[left], tokens[following[left]]
            joined = self._number.get(self.pieces[pair[0]] + self.pieces[pair[1]])
            if joined is not None:
                heapq.heappush(heap, (-self.scores[joined], left, *pair, joined))

        for left in range(len(tokens)):
            offer(left)
        while heap:
            _, left, first, second, joined = heapq.heappop(heap)
            right = following[left]
            # An offer is stale once either of its tokens was joined to something else.
            if not alive[left] or right >= len(tokens) or (tokens[left], tokens[right]) != (first, second):
                continue
            tokens[left], alive[right] = joined, False
            following[left] = following[right]
            if following[right] < len(tokens):
                preceding[following[right]] = left
            offer(left)
            offer(preceding[left])
        return [token for token, kept in zip(tokens, alive, strict=True) if kept]

    def _piece(self, before: int, token: int) -> bytes:
        """Bytes of `token` after the token `before`."""
        if not 0 <= token < len(self.pieces):
            raise InputError(f"token {token}: expected a number from 0 to {len(self.pieces) - 1}")
        if token in (self.bos, self.eos):
            return b""
        if _BYTE_BASE <= token < _BYTE_BASE + 256:
            return bytes([token - _BYTE_BASE])
        piece = self.pieces[token]
        return piece.removeprefix(b" ") if before == self.bos else piece


def _parse(data: bytes) -> tuple[list[bytes], list[float]]:
    """Pieces and scores of a tokenizer file."""
    if len(data) < _LENGTH.size:
        raise ModelError(f"found {len(data)} bytes, expected at least {_LENGTH.size}")
    (longest,) = _LENGTH.unpack_from(data)
    pieces: list[bytes] = []
    scores: list[float] = []
    at = _LENGTH.size
    while at < len(data):
        if at + _TOKEN.size > len(data):
            raise ModelError(
                f"token {len(pieces)}: found {len(data)} bytes, expected at least {at + _TOKEN.size}"
            )
        score, length = _TOKEN.unpack_from(data, at)
        at += _TOKEN.size
        if not 1 <= length <= longest or not math.isfinite(score):
            raise ModelError(
                f"token {len(pieces)}: found length {length} and score {score}, "
                f"expected a length from 1 to {longest} and a finite score"
            )
        if at + length > len(data):
            raise ModelError(f"token {len(pieces)}: found {len(data)} bytes, expected at least {at + length}")
        pieces.append(data[at : at + length])
        scores.append(score)
        at += length
    return pieces, scores
