"""Text of a growing row of tokens: whole characters only, and nothing that a stop string would take back."""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import Tokenizer

#: Tokens of context before a new one, for decoders that treat the first token of a text in their own way.
_CONTEXT = 5
#: Tokens that may wait for the rest of a character, which has at most 4 bytes: what is longer is none, and is let go.
_PATIENCE = 16
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Text of one token after another.

    A token's text depends on those before it (a space that opens a text is dropped by some decoders, a character may be
    spread over tokens), so the text of a token is the difference that it makes to the text of a short window.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._window, self._before = self._context(prompt)
        self._shown = len(self._window)  # tokens of the window whose text has been returned

    def _context(self, prompt: Sequence[int]) -> tuple[list[int], str]:
        """The last tokens of the prompt, and their text without a character that the prompt leaves open."""
        for open_tokens in range(4):
            for more in range(4):  # so that the window does not begin inside a character
                window = list(prompt[-_CONTEXT - more :])
                text = self._decode(window[: len(window) - open_tokens])
                if _REPLACEMENT not in text:
                    return window, text
        window = list(prompt[-_CONTEXT:])  # the prompt is no text
        return window, self._decode(window)

    def push(self, token: int) -> str:
        """What is certain of the text with this token; empty inside a character."""
        self._window.append(token)
        text = self._decode(self._window)
        # A token without text (a control token) stays in the window too: alone it would be no context.
        whole = len(text) > len(self._before) and not text.endswith(_REPLACEMENT)
        return self._show(text) if whole or len(self._window) - self._shown >= _PATIENCE else ""

    def finish(self) -> str:
        """Text that was held back; what is no whole character shows as U+FFFD."""
        return self._show(self._decode(self._window)) if self._shown < len(self._window) else ""

    def _show(self, text: str) -> str:
        piece = text[len(self._before) :]
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        self._before = self._decode(self._window)
        return piece


class StopStrings:
    """Text up to the first stop string, given out as soon as no stop string can begin in it."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What of the text so far can be given out; sets `stopped` where a stop string is complete."""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class RowText:
    """Text of one row: characters from tokens, then stop strings."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._characters = Detokenizer(tokenizer, prompt)
        self._stops = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """Text that can be given out after this token."""
        return self._stops.push(self._characters.push(token))

    def finish(self) -> str:
        """The rest, when the row ends."""
        if self.stopped:
            return ""
        # The rest of a character may complete a stop string.
        piece = self._stops.push(self._characters.finish())
        return piece if self.stopped else piece + self._stops.finish()
