"""Answers in text: numbers, patterns, boxed formulas, letters of options, blocks of code."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from qeil_compile.errors import InputError

#: From the text of a sample to its answer, None where there is none.
Extractor = Callable[[str], str | None]

_FULL = re.compile(r"(?<![\w.])" + r"[-+]?\s?[$€£]?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+(?!\d))?"
                   r"|(?<![\w.])[-+]?\.\d+")  # fmt: skip
#: Words that announce the answer; the last of them counts, and what comes first behind it.
_MARKS = re.compile(r"####|\\boxed\s*\{|(?:final\s+)?answer\s*(?:is|:|=)", re.IGNORECASE)
_LONGEST = 200


def number(text: str) -> str | None:
    """The number behind the last of '####', '\\boxed{', 'answer is'; without these the last number of the text.

    In one spelling: no currency, thousands separators, trailing zeros or '+'; 3/6 becomes 1/2, and 6/3 becomes 2.
    """
    marks = list(_MARKS.finditer(text))
    if marks:
        found = _FULL.search(text, marks[-1].end())
        if found is not None:
            return canonical(found[0])
    numbers = _FULL.findall(text)
    return canonical(numbers[-1]) if numbers else None


def canonical(number: str) -> str | None:
    """One spelling for equal numbers; None where it is none, or longer than 200 characters."""
    plain = re.sub(r"[,\s$€£+]", "", number)
    if len(plain) > _LONGEST:
        return None
    try:
        value = Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None
    if value.denominator == 1:
        return str(value.numerator)
    twos_and_fives = value.denominator
    for prime in (2, 5):
        while twos_and_fives % prime == 0:
            twos_and_fives //= prime
    if twos_and_fives != 1 or "/" in plain:
        return f"{value.numerator}/{value.denominator}"
    return plain.rstrip("0").replace("-.", "-0.") if not plain.startswith(".") else "0" + plain.rstrip("0")


def pattern(expression: str) -> Extractor:
    """The last match of a regular expression: its first group, or all of it. Raises `InputError` for a wrong one."""
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise InputError(f"pattern {expression!r}: no regular expression ({error})") from error

    def extract(text: str) -> str | None:
        last = None
        for last in compiled.finditer(text):  # noqa: B007
            pass
        if last is None:
            return None
        found = last[1] if compiled.groups else last[0]
        return (found or "").strip() or None

    return extract


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...}, braces inside it included."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip() or None
    return None


def choice(letters: str = "ABCD") -> Extractor:
    """The letter of an option: behind the last 'answer is', else the last one that stands alone."""
    alone = re.compile(rf"(?<![A-Za-z])\(?([{re.escape(letters)}])\)?(?![A-Za-z])")

    def extract(text: str) -> str | None:
        marks = list(_MARKS.finditer(text))
        behind = alone.search(text, marks[-1].end()) if marks else None
        found = behind[1] if behind else next(iter(reversed(alone.findall(text))), None)
        return found or None

    return extract


def code(text: str) -> str | None:
    """The last fenced block of code; without one, the text itself."""
    blocks = re.findall(r"```[\w+-]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    found = blocks[-1] if blocks else text
    return found.strip("\n") if found.strip() else None


def latex(answer: str) -> str:
    """One spelling for the same formula: no blanks, \\dfrac as \\frac, no \\mathrm, \\left, \\right or dollar signs.

    It compares spellings, not values: 1/2 and 0.5 stay two answers. Plain numbers get the spelling of `number`.
    """
    plain = re.sub(r"\\[dt]frac", r"\\frac", answer)
    plain = re.sub(r"\\(?:mathrm|text|mbox|mathbf)\s*\{([^{}]*)\}", r"\1", plain)
    plain = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[ ,;:!]|[\s$]", "", plain)
    return canonical(plain) or plain
