"""`qeil_compile.load`: whatever an artifact holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .artifact.read import kind_of

if TYPE_CHECKING:
    from .language import Runner
    from .runtime import Compiled


def load(path: str | Path) -> Compiled | Runner:
    """Read a verified artifact: a model, or a language model that generates. Raises `ArtifactError`.

    torch is imported only if one of its stages needs it.
    """
    if kind_of(path) == "decoder":
        from .language import load_decoder

        return load_decoder(path)
    from .api import load as load_model

    return load_model(path)
