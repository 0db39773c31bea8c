"""Lengths of prompts and answers of the evaluation sets, in tokens: what `qeil bench paper` plans and prices for.

    python -m qeil_compile.paper.lengths EVAL --vocab vocab.json --merges merges.txt [--output FILE]

EVAL holds wikitext/wikitext_raw_test.txt, gsm8k/test.jsonl and arc/ARC-Challenge_test.json. Tokens are those of GPT-2's
byte-level BPE for all families, so that every family does the same work. Questions are sorted by their length and cut
into parts of equal size, each with its mean lengths. Nothing of the texts is kept, only numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

#: Parts of equal size into which a set is cut.
PARTS = 4
#: Paragraphs of fewer words are headings and captions.
LEAST_WORDS = 40
#: GPT-2's context, of which one token is left free.
CONTEXT = 1023

Encode = Callable[[str], int]
Pair = tuple[int, int]


def wikitext(path: Path, encode: Encode) -> list[Pair]:
    """The first half of each paragraph is the prompt, the second half what follows."""
    found = []
    for line in path.read_text("utf-8").split("\n"):
        words = line.split()
        if len(words) < LEAST_WORDS or words[0] == "=":
            continue
        middle = len(words) // 2
        found.append((encode(" ".join(words[:middle])), encode(" " + " ".join(words[middle:]))))
    return found


def gsm8k(path: Path, encode: Encode) -> list[Pair]:
    """The question as one asks it, and the worked solution without the calculator's marks."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        solution = re.sub(r"<<.*?>>", "", row["answer"])
        found.append((encode(f"Question: {row['question']}\nAnswer:"), encode(f" {solution}")))
    return found


def arc(path: Path, encode: Encode) -> list[Pair]:
    """The instruction with its options, and the answer in the form that it asks for."""
    return [(encode(row["instruction"] + "\n"), encode(row["output"])) for row in json.loads(path.read_text("utf-8"))]


def parts(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Means of parts of equal size, by length, and quantiles of the whole."""
    lengths = np.array([(min(p, CONTEXT - 1), a) for p, a in pairs], dtype=float)
    lengths[:, 1] = np.minimum(lengths[:, 1], CONTEXT - lengths[:, 0])
    order = np.argsort(lengths.sum(axis=1), kind="stable")
    cut = [lengths[piece].mean(axis=0) for piece in np.array_split(order, PARTS)]
    quantiles = np.quantile(lengths, (0.05, 0.5, 0.95), axis=0)
    return {
        "questions": len(pairs),
        "parts": [{"prompt": round(p), "answer": round(a)} for p, a in cut],
        "mean": {"prompt": round(lengths[:, 0].mean()), "answer": round(lengths[:, 1].mean())},
        "quantiles 5 50 95": {"prompt": quantiles[:, 0].tolist(), "answer": quantiles[:, 1].tolist()},
    }


SETS: dict[str, tuple[str, Callable[[Path, Encode], list[Pair]]]] = {
    "WikiText-103": ("wikitext/wikitext_raw_test.txt", wikitext),
    "GSM8K": ("gsm8k/test.jsonl", gsm8k),
    "ARC-Challenge": ("arc/ARC-Challenge_test.json", arc),
}


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the evaluation sets.")],
    vocab: Annotated[Path, typer.Option(help="GPT-2's vocab.json.")],
    merges: Annotated[Path, typer.Option(help="GPT-2's merges.txt.")],
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("qeil_compile/paper/data/lengths.json"),
) -> None:
    """Count, and write the numbers."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(str(vocab), str(merges))

    def encode(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    found = {name: parts(read(folder / file, encode)) for name, (file, read) in SETS.items()}
    output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for name, row in found.items():
        typer.echo(f"{name}: {row['questions']} questions, mean {row['mean']}, parts {row['parts']}")


if __name__ == "__main__":
    typer.run(main)
