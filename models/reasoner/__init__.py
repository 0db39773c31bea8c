"""A small Llama that solves arithmetic word problems, its training script and its problems.

The trained checkpoint is data of this package; importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path

from qeil_compile.models.reasoner.problems import Problem, generate, prompt, read_answer

__all__ = ["Problem", "generate", "prompt", "read_answer", "reasoner_folder"]


def reasoner_folder() -> AbstractContextManager[Path]:
    """The shipped checkpoint folder (config.json, model.safetensors, tokenizer.json, ...) as files on disk."""
    return as_file(files("qeil_compile.models") / "data" / "reasoner")
