"""Chat templates: conversations in a model's own form, rendered in a sandbox as `transformers` does."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from qeil_compile.errors import InputError, ModelError, first_line

#: A message: `role`, `content`, and whatever else the template knows.
Message = Mapping[str, Any]
#: Private-use characters: two of them that a conversation does not use mark what came from it.
_PRIVATE = range(0xF0000, 0xFFFFE)
#: Characters of a rendered conversation, and numbers in it: Jinja's sandbox keeps templates from Python's insides, not
#: from filling the memory.
_LONGEST, _LARGEST = 1 << 24, 1 << 20
_WIDTH = re.compile(r"\d{6,}")


class ChatTemplate:
    """A Jinja template that comes with a checkpoint: code of a stranger, run in Jinja's sandbox on plain data."""

    def __init__(self, source: str, names: Mapping[str, str], added: Sequence[tuple[str, bool]]) -> None:
        """`names`: special tokens by name (`bos_token`), known to the template; `added`: spelling of each added token
        and whether it is special. Raises `ModelError` where the template is no Jinja or Jinja is not installed.
        """
        self._names = dict(names)
        # Control tokens: the special ones, and those that the template itself writes. Blank ones are ordinary text.
        control = [text for text, special in added if special or (text in source and not text.isspace())]
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._template, self._errors = _compile(source)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as text. Raises `InputError` where the template refuses it, with its words."""
        return self._render(*_plain(messages, variables), add_generation_prompt)

    def pieces(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[tuple[str, bool]]:
        """The conversation in pieces, each with whether it is a control token's spelling that the conversation brought.

        Such spellings are marked before the template sees them, so that it can move or trim text as it likes.
        """
        messages, variables = _plain(messages, variables)
        used = json.dumps([messages, variables], ensure_ascii=False)
        start, end = [mark for mark in map(chr, _PRIVATE) if mark not in used][:2]

        def mark(value: Any) -> Any:
            if isinstance(value, str):
                return self._control.sub(lambda found: f"{start}{found[0]}{end}", value)
            if isinstance(value, dict):
                return {key: mark(inner) for key, inner in value.items()}
            return [mark(inner) for inner in value] if isinstance(value, list) else value

        text = self._render(mark(messages), mark(variables), add_generation_prompt)
        # Text, control token, text, ...; a mark that lost its partner still parts the text around it.
        parts = re.split(f"{start}({self._control.pattern}){end}|[{start}{end}]", text)
        return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]

    def _render(self, messages: list[Any], variables: dict[str, Any], add_generation_prompt: bool) -> str:
        given = {**self._names, "tools": None, "documents": None, **variables}
        given |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        pieces, size = [], 0
        try:
            for piece in self._template.generate(given):
                pieces.append(piece)
                size += len(piece)
                if size > _LONGEST:
                    raise ValueError(f"a conversation of more than {_LONGEST} characters")
            return "".join(pieces)
        except self._errors as error:
            raise InputError(f"chat: the model's template refuses the messages: {first_line(error)}") from error


def _plain(messages: Sequence[Message], variables: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Copies of plain JSON types: a template could call methods of anything else. Keys without value are left out."""
    if isinstance(messages, (str, Mapping)) or not messages:
        raise InputError("chat: expected a list of at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"chat: message {i} is {message!r}, expected a mapping with a role and a content")
    try:
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        return json.loads(json.dumps(plain)), json.loads(json.dumps(dict(variables)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"chat: expected messages of text, numbers, lists and mappings: {first_line(error)}"
        ) from error


def _bounded(value: float) -> None:
    """Raise `ValueError` for a number that a template has no use for."""
    if not abs(value) <= _LARGEST:
        raise ValueError(f"the template computes with {value!s:.20}, expected at most {_LARGEST}")


def _bounded_arguments(*values: Any) -> None:
    for value in values:
        _bounded(value if isinstance(value, int) else 0)


def _compile(source: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """The template in `transformers`' environment, and the errors that running it may raise."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ModelError(
            f"chat template: needs the package jinja2, which is not installed ({first_line(error)}); "
            "pip install 'qeil-compile[llm]'"
        ) from error

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` parts: they tell trainers what the model wrote, and are ordinary text here."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    class Names(jinja2.utils.Namespace):
        """`namespace()` of plain names only: others would reach into Python's own attributes."""

        def __init__(*given: Any, **named: Any) -> None:  # so that a name may be `self`
            own, *rest = given
            jinja2.utils.Namespace.__init__(own)
            for name, value in dict(*rest, **named).items():
                own[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
            super().__setitem__(name, value)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        # Jinja's own escapes the characters of HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    class Bounded(ImmutableSandboxedEnvironment):
        """The sandbox, without repetitions, powers and widths that no conversation needs."""

        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%":
                if isinstance(left, str) and _WIDTH.search(left):
                    raise ValueError(f"the template formats by {left!r:.40}")
            else:
                for value in (left, right):
                    _bounded(value if isinstance(value, (int, float)) else 0)
                if operator == "*" and not isinstance(left, (int, float)):
                    _bounded(len(left) * right)
                elif operator == "*" and not isinstance(right, (int, float)):
                    _bounded(len(right) * left)
                elif operator == "**" and isinstance(right, (int, float)):
                    _bounded(right * 1000)
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            _bounded_arguments(*args, *kwargs.values())
            return super().call(__context, __obj, *args, **kwargs)

    def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose arguments are bounded; the first is the value that it is for."""
        own = 2 if hasattr(function, "jinja_pass_arg") else 1

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            _bounded_arguments(*args[own:], *kwargs.values())
            return function(*args, **kwargs)

        return call

    environment = Bounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.filters.update({name: bounded(function) for name, function in environment.filters.items()})
    environment.globals["namespace"] = Names
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        template = environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
        raise ModelError(f"chat template: not a Jinja template: {first_line(error)}") from error
    return template, (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError,
                      ArithmeticError, MemoryError, RecursionError)  # fmt: skip
