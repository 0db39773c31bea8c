"""Arithmetic word problems with worked solutions in the manner of GSM8K, in two splits that share no form.

A problem is an opening, up to four events and a question, told in one scene:

    Anna has 4 baskets with 6 apples in each. She gives 5 apples to Ben. How many apples does Anna have now?
    Anna starts with <<4*6=24>>24 apples.
    Now Anna has <<24-5=19>>19 apples.
    #### 19

A *form* is a scene with a sequence of opening, events and question. A hash of the form's name assigns it to
one split, whatever the numbers and names: no test problem has a form that a training problem has.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from qeil_compile.errors import InputError
from qeil_compile.models.reasoner.scenes import DAYS, FRACTIONS, MULTIPLES, PEOPLE, SCENES, Scene

Split = Literal["train", "test"]

#: One form of so many is kept for the test split.
TEST_SHARE = 8
#: No quantity in a problem is larger.
LIMIT = 999
#: Problems with 0, 1, 2, ... events between opening and question, as weights.
EVENT_WEIGHTS = (1, 1, 2, 3, 3)

_ANSWER = re.compile(r"####\s*(-?[\d,]+)")
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its worked solution (which ends in `#### answer`), and the form that decided its split."""

    question: str
    solution: str
    answer: int
    form: str

    @property
    def prompt(self) -> str:
        """What the model reads before it answers."""
        return prompt(self.question)


def prompt(question: str) -> str:
    """The text before an answer; an answer follows as it is, without a space."""
    return f"Question: {question}\nAnswer:\n"


def read_answer(text: str) -> int | None:
    """The number after the first `####`, or None where there is none."""
    found = _ANSWER.search(text)
    digits = found[1].replace(",", "") if found else ""
    return int(digits) if digits.lstrip("-") else None


def split_of(form: str) -> Split:
    """The split that a form belongs to."""
    return "test" if zlib.crc32(form.encode()) % TEST_SHARE == 0 else "train"


def generate(split: Split, seed: int, index: int) -> Problem:
    """Problem number `index` of a split: the same for the same arguments. Raises `InputError`."""
    if split not in ("train", "test"):
        raise InputError(f"split: found {split!r}, expected train or test")
    rng = random.Random(f"{split}/{seed}/{index}")
    while True:
        scene, parts = _draw_form(rng)
        form = "/".join([scene.items, *parts])
        if split_of(form) == split:
            return _tell(rng, scene, parts, form)


def _draw_form(rng: random.Random) -> tuple[Scene, list[str]]:
    """A scene and the names of opening, events and question."""
    count = rng.choices(range(len(EVENT_WEIGHTS)), EVENT_WEIGHTS)[0]
    events = rng.sample(list(_EVENTS), count)
    return rng.choice(SCENES), [rng.choice(list(_OPENINGS)), *events, rng.choice(list(_QUESTIONS))]


class _Unfit(Exception):
    """The numbers drawn do not fit the form: draw others."""


def _tell(rng: random.Random, scene: Scene, parts: list[str], form: str) -> Problem:
    opening, *events, question = parts
    while True:
        (name, he), (friend, _) = rng.sample(PEOPLE, 2)
        tale = _Tale(rng, scene, name, he, friend)
        try:
            _OPENINGS[opening](tale)
            for event in events:
                _EVENTS[event](tale)
            _QUESTIONS[question](tale)
        except _Unfit:
            continue
        solution = "\n".join([*tale.lines, f"#### {tale.value}"])
        return Problem(" ".join(tale.text), solution, tale.value, form)


@dataclass
class _Tale:
    """A problem while it is told: `value` is what the hero has so far."""

    rng: random.Random
    scene: Scene
    name: str
    he: str
    friend: str
    value: int = 0
    text: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def small(self) -> int:
        """A factor, a price or a number of groups."""
        return self.rng.randint(2, 9)

    def number(self) -> int:
        """A quantity of things."""
        return self.rng.randint(2, 80)

    def say(self, sentence: str) -> None:
        """Add to the question."""
        self.text.append(sentence)

    def work(self, words: str, a: int, operation: str, b: int, unit: str = "") -> int:
        """Add a line to the solution and return its result. Raises `_Unfit` outside 1 to `LIMIT`."""
        if operation == "/" and a % b:
            raise _Unfit
        result = _OPERATIONS[operation](a, b)
        if not 1 <= result <= LIMIT:
            raise _Unfit
        self.lines.append(f"{words} <<{a}{operation}{b}={result}>>{result} {unit or self.scene.items}.")
        return result

    @property
    def He(self) -> str:
        """The pronoun at the start of a sentence."""
        return self.he.capitalize()


def _have(t: _Tale) -> None:
    t.value = t.number()
    t.say(f"{t.name} has {t.value} {t.scene.items}.")


def _groups(t: _Tale) -> None:
    a, b = t.small(), t.rng.randint(3, 24)
    t.say(f"{t.name} has {a} {t.scene.boxes} with {b} {t.scene.items} in each.")
    t.value = t.work(f"{t.name} starts with", a, "*", b)


def _two_days(t: _Tale) -> None:
    a, b = t.number(), t.number()
    first, second = t.rng.sample(DAYS, 2)
    t.say(f"{t.name} {t.scene.gain} {a} {t.scene.items} on {first} and {b} on {second}.")
    t.value = t.work(f"{t.name} starts with", a, "+", b)


def _every_day(t: _Tale) -> None:
    a, b = t.rng.randint(3, 24), t.small()
    t.say(f"{t.name} {t.scene.gain} {a} {t.scene.items} every day for {b} days.")
    t.value = t.work(f"{t.name} starts with", a, "*", b)


def _more_than(t: _Tale) -> None:
    a, b = t.number(), t.number()
    t.say(f"{t.friend} has {a} {t.scene.items}. {t.name} has {b} more than {t.friend}.")
    t.value = t.work(f"{t.name} starts with", a, "+", b)


def _fewer_than(t: _Tale) -> None:
    a, b = t.rng.randint(12, 150), t.number()
    t.say(f"{t.friend} has {a} {t.scene.items}. {t.name} has {b} fewer than {t.friend}.")
    t.value = t.work(f"{t.name} starts with", a, "-", b)


def _times_as_many(t: _Tale) -> None:
    a, k = t.number(), t.rng.choice(list(MULTIPLES))
    t.say(f"{t.friend} has {a} {t.scene.items}. {t.name} has {MULTIPLES[k]} as many as {t.friend}.")
    t.value = t.work(f"{t.name} starts with", a, "*", k)


def _half_as_many(t: _Tale) -> None:
    a = 2 * t.number()
    t.say(f"{t.friend} has {a} {t.scene.items}. {t.name} has half as many as {t.friend}.")
    t.value = t.work(f"{t.name} starts with", a, "/", 2)


def _gain(t: _Tale) -> None:
    a = t.number()
    t.say(t.rng.choice([f"{t.He} {t.scene.gain} {a} more.", f"Then {t.he} {t.scene.gain} {a} more {t.scene.items}."]))
    t.value = t.work(f"Now {t.name} has", t.value, "+", a)


def _lose(t: _Tale) -> None:
    a = t.number()
    t.say(t.rng.choice([f"{t.He} {t.scene.lose} {a} to {t.friend}.", f"A neighbor takes {a} of the {t.scene.items}."]))
    t.value = t.work(f"Now {t.name} has", t.value, "-", a)


def _gain_boxes(t: _Tale) -> None:
    a, b = t.small(), t.rng.randint(3, 15)
    t.say(f"{t.He} {t.scene.gain} {a} more {t.scene.boxes} of {b} {t.scene.items}.")
    more = t.work(f"The {t.scene.boxes} hold", a, "*", b)
    t.value = t.work(f"Now {t.name} has", t.value, "+", more)


def _lose_to_each(t: _Tale) -> None:
    a, b = t.small(), t.small()
    t.say(f"{t.He} {t.scene.lose} {a} {t.scene.items} to each of {b} friends.")
    gone = t.work("The friends get", b, "*", a)
    t.value = t.work(f"Now {t.name} has", t.value, "-", gone)


def _gain_multiple(t: _Tale) -> None:
    k = t.rng.choice(list(MULTIPLES))
    t.say(f"Then {t.he} {t.scene.gain} {MULTIPLES[k]} as many {t.scene.items} as {t.he} already has.")
    more = t.work("That adds", t.value, "*", k)
    t.value = t.work(f"Now {t.name} has", t.value, "+", more)


def _lose_fraction(t: _Tale) -> None:
    k = t.rng.choice(list(FRACTIONS))
    t.say(t.rng.choice([f"Then {FRACTIONS[k]} of them are lost.", f"{t.He} sells {FRACTIONS[k]} of them."]))
    gone = t.work("That removes", t.value, "/", k)
    t.value = t.work(f"Now {t.name} has", t.value, "-", gone)


def _ask_double(t: _Tale) -> None:
    k = t.rng.choice(list(MULTIPLES))
    t.say(f"{t.friend} has {MULTIPLES[k]} as many {t.scene.items} as {t.name} now. How many does {t.friend} have?")
    t.value = t.work(f"{t.friend} has", t.value, "*", k)


def _ask_share(t: _Tale) -> None:
    k = t.rng.randint(2, 9)
    t.say(f"{t.He} puts them equally into {k} {t.scene.boxes}. How many {t.scene.items} are in each {t.scene.box}?")
    t.value = t.work(f"Each {t.scene.box} holds", t.value, "/", k)


def _ask_price(t: _Tale) -> None:
    p = t.small()
    t.say(f"{t.He} sells all of them for ${p} each. How many dollars does {t.name} get?")
    t.value = t.work(f"{t.name} gets", t.value, "*", p, "dollars")


def _ask_price_spend(t: _Tale) -> None:
    p, s = t.small(), t.number()
    t.say(f"{t.He} sells all of them for ${p} each and spends ${s}. How many dollars are left?")
    money = t.work(f"{t.name} gets", t.value, "*", p, "dollars")
    t.value = t.work("After spending there are", money, "-", s, "dollars")


def _ask_need(t: _Tale) -> None:
    goal = t.value + t.number()
    t.say(f"{t.name} wants to have {goal} {t.scene.items}. How many more does {t.he} need?")
    t.value = t.work(f"{t.name} needs", goal, "-", t.value)


def _ask_together(t: _Tale) -> None:
    a = t.number()
    t.say(f"{t.friend} has {a} more {t.scene.items} than {t.name} now. How many do they have together?")
    other = t.work(f"{t.friend} has", t.value, "+", a)
    t.value = t.work("Together they have", t.value, "+", other)


def _ask_boxes(t: _Tale) -> None:
    k = t.rng.randint(2, 9)
    t.say(f"A {t.scene.box} holds {k} {t.scene.items}. How many {t.scene.boxes} can {t.name} fill?")
    t.value = t.work(f"{t.name} fills", t.value, "/", k, t.scene.boxes)


_Part = Callable[[_Tale], None]

_OPENINGS: dict[str, _Part] = {
    "have": _have, "groups": _groups, "two-days": _two_days, "every-day": _every_day, "more-than": _more_than,
    "fewer-than": _fewer_than, "times-as-many": _times_as_many, "half-as-many": _half_as_many,
}  # fmt: skip
_EVENTS: dict[str, _Part] = {
    "gain": _gain, "lose": _lose, "gain-boxes": _gain_boxes, "lose-to-each": _lose_to_each,
    "gain-multiple": _gain_multiple, "lose-fraction": _lose_fraction,
}  # fmt: skip
_QUESTIONS: dict[str, _Part] = {
    "double": _ask_double, "share": _ask_share, "price": _ask_price, "price-spend": _ask_price_spend,
    "need": _ask_need, "together": _ask_together, "boxes": _ask_boxes,
}  # fmt: skip
