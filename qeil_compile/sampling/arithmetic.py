"""Arithmetic in chains of reasoning: every `<<16-3-4=9>>`, or equation in the text, is worked out again."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from fractions import Fraction

#: Equations in GSM8K's annotation, and as people write them.
_NOTED = re.compile(r"<<([^<>=]{1,200})=([^<>=]{1,60})>>")
_PLAIN = re.compile(
    r"(?<![\w.)])([-(]?[$\d.][\d\s.,$%()+\-*/x×÷]{0,120}?)"  # sums and products
    r"=\s*\$?\s*(-?\d[\d,]*(?:\.\d+)?|-?\.\d+)(%?)"  # a number
    r"(?![\d/*+]|\s*[-+*/x×÷]\s*\d)"  # that is not the beginning of the next product
)
_SIGNS = {"×": "*", "÷": "/", "x": "*", "$": "", ",": "", " ": "", "%": "/100"}
_DEEPEST = 50


@dataclass(frozen=True)
class Arithmetic:
    """Equations found, those that are wrong (as text), and the last right-hand side."""

    equations: int
    wrong: tuple[str, ...]
    result: str | None

    @property
    def score(self) -> float | None:
        """Share of equations that hold; None without any."""
        return 1 - len(self.wrong) / self.equations if self.equations else None


def check_arithmetic(text: str, tolerance: float = 5e-3) -> Arithmetic:
    """Work out every equation of a chain. `tolerance`: rounding allowed, of the value or absolute.

    Only + - * / and brackets over numbers are worked out; what is anything else is no equation. A percentage on the
    right, or left out there (25% of 80 written as 25 / 100 * 80 = 20), is read as such.
    """
    noted = [(a, b, "") for a, b in _NOTED.findall(text)]
    found = noted or _PLAIN.findall(text)
    equations, wrong, result = 0, [], None
    for left, right, percent in found:
        a, b = evaluate(left), evaluate(right + percent)
        if a is None or b is None or not re.search(r"[-+*/x×÷%]", left.strip().lstrip("-")):
            continue
        equations += 1
        result = right.strip().replace(",", "")
        slack = max(Fraction(tolerance), abs(b) * Fraction(tolerance))
        if abs(a - b) > slack and not (percent and abs(a - b * 100) <= slack * 100):
            wrong.append(f"{left.strip()} = {right.strip()}{percent}")
    return Arithmetic(equations, tuple(wrong), result)


def chain_features(text: str) -> dict[str, float]:
    """What a chain says of itself, for ARDE: `arithmetic`, the share of its equations that hold (NaN: it has none)."""
    score = check_arithmetic(text).score
    return {"arithmetic": math.nan if score is None else score}


def evaluate(expression: str) -> Fraction | None:
    """The value of sums and products of numbers; None for anything else, a division by 0 included."""
    plain = expression
    for sign, plainer in _SIGNS.items():
        plain = plain.replace(sign, plainer)
    # Python knows no 007, and numbers are kept exact.
    if not plain or not re.fullmatch(r"[\d.+\-*/()]{1,200}", plain) or "**" in plain or "//" in plain:
        return None
    plain = re.sub(r"(?<![\d.])0+(?=\d)", "", plain)
    try:
        return _value(ast.parse(plain, mode="eval").body, plain, 0)
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return None


def _value(node: ast.expr, text: str, depth: int) -> Fraction:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Fraction(ast.get_source_segment(text, node) or "")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _value(node.operand, text, depth + 1)
        return -inner if isinstance(node.op, ast.USub) else inner
    if not isinstance(node, ast.BinOp):
        raise ValueError("not arithmetic")
    a, b = _value(node.left, text, depth + 1), _value(node.right, text, depth + 1)
    match node.op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
    raise ValueError("not arithmetic")
