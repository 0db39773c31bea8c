"""Run a compiled decoder: text in, samples out.

    runner = Runner(compiled)
    runner.generate("Once upon a time", temperature=0.8, n=8, max_tokens=64)
    for event in runner.stream([{"role": "user", "content": "How much is 3 * 4?"}]):
        print(event.text, end="")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from qeil_compile.errors import InputError
from qeil_compile.generation import Completion, Event, Sampling, Tokenizer, generate, stream
from qeil_compile.language.compiled import CompiledDecoder
from qeil_compile.language.files import load_files
from qeil_compile.runtime.session import Session

#: Text, token numbers, or messages of a conversation with `role` and `content`.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class Runner:
    """Generation with one compiled decoder. Engines start on first use; calls from several threads take turns."""

    def __init__(self, compiled: CompiledDecoder) -> None:
        self.compiled = compiled
        self._lock = threading.Lock()

    @cached_property
    def session(self) -> Session:
        """The engines with their cache. Raises `BackendError`."""
        return self.compiled.start()

    def start(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Session:
        """Start the engines now."""
        self.__dict__["session"] = session = self.compiled.start(progress)
        return session

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer; None where it has none: prompts are token numbers then. Raises `ModelError`."""
        return load_files(self.compiled.files)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | None = None, *,
        on_token: Callable[[Event], object] | None = None, max_rows: int | None = None, **fields: Any,
    ) -> list[list[Completion]]:  # fmt: skip
        """Samples of each prompt, `Sampling.n` each; `fields` are those of `Sampling`, in place of `sampling`.

        A prompt runs once and its samples share its cache. The text of a sample depends on the seed and its number, not
        on what runs beside it. Raises `InputError` before anything runs.
        """
        with self._lock:
            encoded = self._encode(prompts)
            settings = _settings(sampling, fields)
            return generate(
                self.session, self.tokenizer, encoded, settings, on_token=on_token, max_rows=max_rows
            )  # fmt: skip

    def stream(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | None = None, *, max_rows: int | None = None,
        **fields: Any,
    ) -> Iterator[Event]:  # fmt: skip
        """The events of `generate` as they come."""
        with self._lock:
            encoded = self._encode(prompts)
            yield from stream(self.session, self.tokenizer, encoded, _settings(sampling, fields), max_rows=max_rows)

    def encode(self, prompt: Prompt) -> str | Sequence[int]:
        """One prompt as `generation` takes it: a conversation becomes tokens. Raises `InputError`."""
        return self._chat(prompt) if _is_chat(prompt) else prompt  # type: ignore[return-value]

    def _encode(self, prompts: Prompt | Sequence[Prompt]) -> list[str | Sequence[int]]:
        """One prompt or several; conversations in the model's own form."""
        many = prompts if _is_many(prompts) else [prompts]
        return [self.encode(p) for p in many]  # type: ignore[arg-type]

    def _chat(self, messages: Any) -> list[int]:
        if self.tokenizer is None:
            raise InputError(f"model {self.compiled.name} has no tokenizer, which a conversation needs; give tokens")
        return self.tokenizer.chat(messages)


def _is_chat(prompt: Any) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and all(isinstance(m, Mapping) for m in prompt)


def _is_many(prompts: Any) -> bool:
    """Several prompts: a list of texts, of lists of numbers, or of conversations."""
    if isinstance(prompts, str) or _is_chat(prompts) or not len(prompts):
        return not isinstance(prompts, str) and not _is_chat(prompts)
    return all(isinstance(p, str) or hasattr(p, "__len__") for p in prompts)


def _settings(sampling: Sampling | None, fields: Mapping[str, Any]) -> Sampling:
    if not fields:
        return sampling or Sampling()
    if sampling is not None:
        raise InputError(f"sampling and {next(iter(fields))} are both given; put {next(iter(fields))} into sampling")
    unknown = sorted(set(fields) - set(Sampling.__dataclass_fields__))
    if unknown:
        raise InputError(f"{unknown[0]}: no field of Sampling, which has {', '.join(Sampling.__dataclass_fields__)}")
    return Sampling(**fields)
