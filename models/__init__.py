"""Built-in decoders, and a trained demonstration model small enough to ship (stories260K, 1 MB).

Importing this package does not import torch: `demo_tokenizer` runs where only an artifact is run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from qeil_compile.models.tokenizer import Llama2cTokenizer

if TYPE_CHECKING:
    from qeil_compile.models.llama2c import LlamaDecoder

__all__ = ["Llama2cTokenizer", "demo_checkpoint", "demo_model", "demo_tokenizer"]


def demo_model() -> LlamaDecoder:
    """A new copy of stories260K: tokens int64 [batch, length up to 512] -> logits [batch, length, 512]."""
    from qeil_compile.models.llama2c import load_llama2c

    with demo_checkpoint() as path:
        return load_llama2c(path)


def demo_checkpoint() -> AbstractContextManager[Path]:
    """The llama2.c file of stories260K on disk."""
    return as_file(files(__name__) / "data" / "stories260K" / "stories260K.bin")


def demo_tokenizer() -> Llama2cTokenizer:
    """The tokenizer of stories260K: 512 tokens."""
    with as_file(files(__name__) / "data" / "stories260K" / "tok512.bin") as path:
        return Llama2cTokenizer.load(path, vocab=512)
