"""The deployment artifact: a folder or uncompressed zip, hashed, atomic, without pickle or code."""

from .contents import Contents, Golden, Sizes
from .decoder import (
    DecoderContents,
    GoldenPrompt,
    PhaseUnits,
    is_decoder_artifact,
    read_decoder,
    write_decoder,
)
from .folder import SCHEMA
from .read import read
from .write import write

__all__ = ["SCHEMA", "Contents", "DecoderContents", "Golden", "GoldenPrompt", "PhaseUnits", "Sizes",
           "is_decoder_artifact", "read", "read_decoder", "write", "write_decoder"]  # fmt: skip
