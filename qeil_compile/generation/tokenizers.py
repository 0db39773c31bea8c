"""Tokenizers: a checkpoint folder's `tokenizer.json`, and llama2.c's; found with `load_tokenizer`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qeil_compile.errors import InputError, ModelError, first_line
from qeil_compile.models import Llama2cTokenizer
from qeil_compile.untrusted import JSON_LIMIT, parse_json, read_file

from .chat import ChatTemplate, Message

if TYPE_CHECKING:
    import tokenizers

#: Files of a checkpoint folder that a tokenizer is read from; all but the first may be missing.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
                   "chat_template.jinja", "config.json")  # fmt: skip
#: Bytes; the largest published ones have 35 million and 20 thousand.
_TOKENIZER_LIMIT, _TEMPLATE_LIMIT = 256 << 20, 1 << 20
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(path: str | PathLike[str]) -> CheckpointTokenizer | Llama2cText:
    """The tokenizer of a checkpoint folder, or of llama2.c's file (`.bin`). Raises `ModelError` naming the file."""
    path = Path(path)
    return CheckpointTokenizer(path) if path.is_dir() else Llama2cText(Llama2cTokenizer.load(path))


class Llama2cText:
    """A llama2.c tokenizer as generation wants it. Its models end a text with either mark, as llama2.c has it."""

    #: Whether it has a form of conversation.
    has_template = False

    def __init__(self, tokenizer: Llama2cTokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos
        self.eos = frozenset({tokenizer.bos, tokenizer.eos})

    def encode(self, text: str, special: bool = True, allow_control: bool = False) -> list[int]:
        """Token numbers of `text`, behind the begin mark if `special`; no text is a control token here."""
        return self._tokenizer.encode(text, bos=special)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`."""
        return self._tokenizer.decode(ids)

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, allow_control: bool = False
    ) -> list[int]:
        """Raises `InputError`: llama2.c's models have no form of conversation."""
        raise InputError("chat: this model has no chat template (a llama2.c tokenizer); give a plain prompt")


class CheckpointTokenizer:
    """The tokenizer of a checkpoint folder, through the `tokenizers` library. Not thread-safe.

    It gives the numbers that `transformers` gives. `eos` holds the end tokens of `generation_config.json`
    (`config.json` where that says nothing) and the tokenizer's own.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        """Raises `ModelError` naming the file that is missing or malformed, or the package that is not installed."""
        folder = Path(folder)
        self.folder = folder
        self._config = _read_json(folder / "tokenizer_config.json")
        self._names = _special_names(self._config, _read_json(folder / "special_tokens_map.json"))
        self._tokenizer = _read_tokenizer(folder / "tokenizer.json")
        self._add_missing_tokens()
        self._added = self._tokenizer.get_added_tokens_decoder()
        plain = sorted((t.content for t in self._added.values() if not t.special and len(t.content) > 1), key=len)
        self._spelled = re.compile("|".join(map(re.escape, reversed(plain))) or "(?!)")
        self.bos: int | None = self._number("bos_token")
        self.eos = self._find_eos()
        self._template: ChatTemplate | None = None

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = True, allow_control: bool = False) -> list[int]:
        """Token numbers of `text`, in which nothing is a control token, whatever it spells, unless `allow_control`.

        `special` adds what the checkpoint puts around a text. With `allow_control` the numbers are those of
        `transformers`. Raises `InputError` where the text is no valid Unicode.
        """
        if allow_control:
            return list(self._encoding(text, special).ids)
        first, *rest = self._pieces(text)
        self._tokenizer.encode_special_tokens = True
        try:
            found = self._encoding(first, special)
            # Marks behind the text are the checkpoint's own.
            end = len(found.ids)
            while end and found.special_tokens_mask[end - 1]:
                end -= 1
            ids = list(found.ids[:end])
            for piece in rest:
                ids += self._encode_behind(piece, lambda t: self._encoding(t, False).ids)
            return [*ids, *found.ids[end:]]
        finally:
            self._tokenizer.encode_special_tokens = False

    def _pieces(self, text: str) -> list[str]:
        """The text, cut within each added token that it spells: those that are not marked special would be matched."""
        pieces, at = [], 0
        while found := self._spelled.search(text, at):
            pieces.append(text[at : found.start() + 1])
            at = found.start() + 1
        return [*pieces, text[at:]]

    def _encoding(self, text: str, special: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except (TypeError, UnicodeEncodeError) as error:
            raise InputError(f"text: cannot be encoded: {first_line(error)}") from error

    def _encode_plain(self, text: str) -> list[int]:
        return self.encode(text, special=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without control tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    @property
    def has_template(self) -> bool:
        """Whether it has a form of conversation. Raises `ModelError` for a file of one that cannot be read."""
        return self._template is not None or _template_source(self.folder, self._config) is not None

    @property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's form of conversation. Raises `InputError` where it has none, `ModelError` if malformed."""
        if self._template is None:
            source = _template_source(self.folder, self._config)
            if source is None:
                raise InputError(
                    f"chat: {self.folder} has no chat template, expected one in chat_template.jinja or in "
                    "tokenizer_config.json; give a plain prompt, or the template of the model's family"
                )
            added = [(token.content, token.special) for token in self._added.values()]
            self._template = ChatTemplate(source, self._names, added)
        return self._template

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as text, to look at; control tokens inside messages cannot be told from real ones in it."""
        return self.chat_template.render(messages, add_generation_prompt, **variables)

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, allow_control: bool = False,
        **variables: Any,
    ) -> list[int]:  # fmt: skip
        """Token numbers of a conversation.

        `variables` (`tools`, `enable_thinking`, ...) go to the template. Control tokens spelled in messages or
        variables are read as plain text unless `allow_control`. Raises `InputError` where the template refuses.
        """
        if allow_control:
            text = self.chat_text(messages, add_generation_prompt, **variables)
            return self.encode(text, special=False, allow_control=True)
        ids: list[int] = []
        for piece, control in self.chat_template.pieces(messages, add_generation_prompt, **variables):
            encode = self._encode_plain if control else self._encode_text
            ids += encode(piece) if not ids else self._encode_behind(piece, encode)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        return self.encode(text, special=False, allow_control=True)

    @staticmethod
    def _encode_behind(piece: str, encode: Any) -> list[int]:
        """Encode text that does not open the conversation: behind a line break, which is taken off again.

        Some tokenizers put a space before the first word of whatever they are given.
        """
        line = encode("\n")
        ids = encode("\n" + piece)
        return ids[len(line) :] if ids[: len(line)] == line else encode(piece)

    def _add_missing_tokens(self) -> None:
        """Added tokens that only `tokenizer_config.json` names, and special tokens that nothing else does."""
        from tokenizers import AddedToken

        known = self._tokenizer.get_vocab(with_added_tokens=True)
        listed = self._config.get("added_tokens_decoder") or {}
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        try:
            for number, entry in sorted(listed.items(), key=lambda item: int(item[0])):
                if entry["content"] not in known:
                    token = AddedToken(entry["content"], **{k: bool(entry[k]) for k in flags if k in entry})
                    self._tokenizer.add_tokens([token])
                    found = self._tokenizer.token_to_id(entry["content"])
                    if found != int(number):
                        raise ModelError(
                            f"{self.folder}: token {entry['content']!r} of tokenizer_config.json would get number "
                            f"{found}, expected {number}; the folder's files do not belong together"
                        )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self.folder / 'tokenizer_config.json'}: added_tokens_decoder is malformed ({first_line(error)})"
            ) from error
        missing = [text for text in self._names.values() if self._tokenizer.token_to_id(text) is None]
        self._tokenizer.add_special_tokens(missing)

    def _number(self, name: str) -> int | None:
        return self._tokenizer.token_to_id(self._names[name]) if name in self._names else None

    def _find_eos(self) -> frozenset[int]:
        for file in ("generation_config.json", "config.json"):
            value = _read_json(self.folder / file).get("eos_token_id")
            if value is not None:
                break
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ModelError(f"{self.folder / file}: eos_token_id is {value!r}, expected token numbers")
        own = self._number("eos_token")
        return frozenset(numbers) | (frozenset() if own is None else {own})


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ModelError(
            f"{path}: needs the package tokenizers, which is not installed ({first_line(error)}); "
            "pip install 'qeil-compile[llm]'"
        ) from error
    if not path.is_file():
        raise ModelError(
            f"{path}: found no such file, expected the tokenizer of a checkpoint; where the folder has only an older "
            "form (tokenizer.model, vocab.json), load and save it with transformers' AutoTokenizer once"
        )
    try:
        tokenizer = Tokenizer.from_buffer(read_file(path, _TOKENIZER_LIMIT))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and a panic of Rust is none
        raise ModelError(f"{path}: not a tokenizer: {first_line(error)}") from error
    # The file may hold the training's settings; prompts are neither cut nor padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = parse_json(read_file(path, JSON_LIMIT), "any")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: found a JSON {type(value).__name__}, expected an object")
    return value


def _special_names(config: Mapping[str, Any], fallback: Mapping[str, Any]) -> dict[str, str]:
    """Spellings of the named special tokens; a token is a string, or an object with its `content`."""
    names = {}
    for name in _NAMES:
        value = config.get(name) or fallback.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) and value:
            names[name] = value
    return names


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: its own file first, then the configuration's, of several the one named default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return read_file(path, _TEMPLATE_LIMIT).decode("utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read: {first_line(error)}") from error
    value = config.get("chat_template")
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}.get("default")
    return value if isinstance(value, str) else None
