"""Text from a decoder: sampling, stopping, streaming, tokenizers. Knows sessions by their protocol only."""

from __future__ import annotations

from .protocol import DecoderSession, Tokenizer
from .sampling import Sampling

__all__ = ["DecoderSession", "Sampling", "Tokenizer"]
