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
from qeil_compile.runtime.decisions import DecisionLog
from qeil_compile.runtime.guard import CallRecorder
from qeil_compile.runtime.resilience import Resilience
from qeil_compile.runtime.resilient import ResilientSession, TaintedError
from qeil_compile.runtime.supervisor import Oversight

#: Text, token numbers, or messages of a conversation with `role` and `content`.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class Runner:
    """Generation with one compiled decoder. Engines start on first use; calls from several threads take turns.

    When an engine or a device fails, a failover plan takes over and generation goes on with the same tokens (see
    `runtime.resilient`). What was decided is in `log`; `recorder` is told of each call of a stage. `oversight`, a
    `Supervisor`, says which devices should rest and which plan should be in force.
    """

    def __init__(
        self, compiled: CompiledDecoder, resilience: Resilience | None = None, log: DecisionLog | None = None,
        recorder: CallRecorder | None = None, oversight: Oversight | None = None,
    ) -> None:  # fmt: skip
        self.compiled = compiled
        self.log = log or DecisionLog()
        self._resilient = (resilience, self.log, recorder, oversight)
        self._lock = threading.Lock()

    @cached_property
    def session(self) -> ResilientSession:
        """The engines with their cache. Raises `FailoverError` where no plan can be started, and why."""
        return self.start()

    def start(self, progress: Callable[[int, int], None] = lambda done, total: None) -> ResilientSession:
        """Start the engines now. Raises as `session` does."""
        self.__dict__["session"] = session = ResilientSession(self.compiled, *self._resilient, progress)
        return session

    def close(self) -> None:
        """End the engines' threads and processes; the next call starts them anew."""
        session = self.__dict__.pop("session", None)
        if session is not None:
            session.close()

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
        on what runs beside it. Where golden inputs are checked and come out wrong, the job runs again by another plan,
        and `on_token` hears of all its tokens anew. Raises `InputError` before anything runs, `FailoverError` when
        no plan is left, with the samples that had ended in `finished`.
        """
        with self._lock:
            encoded = self._encode(prompts)
            settings = _settings(sampling, fields)
            while True:
                try:
                    found = generate(
                        self.session, self.tokenizer, encoded, settings, on_token=on_token, max_rows=max_rows
                    )  # fmt: skip
                    self.session.trusted()
                    return found
                except TaintedError:
                    # Another plan runs now; the samples depend on the seed alone, so they are the same ones.
                    self.log.record("again", self.compiled.name, reason="tokens since the last check may be wrong")

    def stream(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | None = None, *, max_rows: int | None = None,
        **fields: Any,
    ) -> Iterator[Event]:  # fmt: skip
        """The events of `generate` as they come. Raises `TaintedError` where golden inputs come out wrong."""
        with self._lock:
            encoded = self._encode(prompts)
            yield from stream(self.session, self.tokenizer, encoded, _settings(sampling, fields), max_rows=max_rows)

    def encode(self, prompt: Prompt, allow_control: bool = False) -> str | Sequence[int]:
        """One prompt as `generation` takes it: a conversation becomes tokens. Raises `InputError`.

        With `allow_control` a text does as well, and the control tokens that a text or a message spells are tokens.
        """
        if _is_chat(prompt):
            return self._chat(prompt, allow_control)
        if allow_control and isinstance(prompt, str) and self.tokenizer is not None:
            return self.tokenizer.encode(prompt, allow_control=True)
        return prompt  # type: ignore[return-value]

    def _encode(self, prompts: Prompt | Sequence[Prompt]) -> list[str | Sequence[int]]:
        """One prompt or several; conversations in the model's own form."""
        many = prompts if _is_many(prompts) else [prompts]
        return [self.encode(p) for p in many]  # type: ignore[arg-type]

    def _chat(self, messages: Any, allow_control: bool) -> list[int]:
        if self.tokenizer is None:
            raise InputError(f"model {self.compiled.name} has no tokenizer, which a conversation needs; give tokens")
        return self.tokenizer.chat(messages, allow_control=allow_control)


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
