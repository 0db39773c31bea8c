"""The tokenizer out of the files that travel with a decoder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from qeil_compile.generation import Tokenizer, load_tokenizer


def load_files(files: Mapping[str, bytes]) -> Tokenizer | None:
    """A tokenizer from its files by name; None where they hold none. Raises `ModelError`."""
    if not any(n == "tokenizer.json" or n.endswith(".bin") for n in files):
        return None
    # Tokenizers read files, and an artifact may be a zip.
    folder = tempfile.TemporaryDirectory(prefix="qeil-tokenizer-")
    for name, data in files.items():
        (Path(folder.name) / name).write_bytes(data)
    binary = next((n for n in files if n.endswith(".bin")), "")
    tokenizer: Tokenizer = load_tokenizer(Path(folder.name) / binary)
    # A chat template is read when it is first wanted: the folder lives as long as the tokenizer.
    tokenizer._qeil_folder = folder  # type: ignore[attr-defined]
    return tokenizer
