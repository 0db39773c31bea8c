"""The words of the word problems: who, what, and where it is kept. No numbers and no logic here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scene:
    """What a story is about. `gain` and `lose` are verbs of the third person, `box` holds several `items`."""

    items: str
    gain: str
    lose: str
    box: str
    boxes: str


SCENES: tuple[Scene, ...] = (
    Scene("apples", "picks", "gives", "basket", "baskets"),
    Scene("marbles", "wins", "lends", "jar", "jars"),
    Scene("books", "buys", "donates", "shelf", "shelves"),
    Scene("stickers", "collects", "gives", "page", "pages"),
    Scene("cookies", "bakes", "hands", "tray", "trays"),
    Scene("eggs", "gathers", "brings", "carton", "cartons"),
    Scene("pencils", "buys", "lends", "box", "boxes"),
    Scene("flowers", "plants", "brings", "row", "rows"),
    Scene("shells", "finds", "gives", "bucket", "buckets"),
    Scene("stamps", "collects", "mails", "album", "albums"),
    Scene("candles", "makes", "sends", "pack", "packs"),
    Scene("cards", "draws", "hands", "deck", "decks"),
    Scene("toys", "builds", "donates", "crate", "crates"),
    Scene("muffins", "bakes", "brings", "bag", "bags"),
    Scene("bracelets", "knots", "sends", "case", "cases"),
    Scene("pears", "picks", "sends", "crate", "crates"),
)

#: Name and pronoun.
PEOPLE: tuple[tuple[str, str], ...] = (
    ("Anna", "she"), ("Ben", "he"), ("Carla", "she"), ("David", "he"), ("Ella", "she"), ("Frank", "he"),
    ("Grace", "she"), ("Henry", "he"), ("Iris", "she"), ("Jack", "he"), ("Kate", "she"), ("Leo", "he"),
    ("Maria", "she"), ("Noah", "he"), ("Olivia", "she"), ("Paul", "he"), ("Rosa", "she"), ("Sam", "he"),
    ("Tina", "she"), ("Victor", "he"), ("Wendy", "she"), ("Zack", "he"),
)  # fmt: skip

DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MULTIPLES: dict[int, str] = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}

FRACTIONS: dict[int, str] = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
