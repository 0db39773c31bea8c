"""Text from a decoder: sampling, stopping, streaming, tokenizers. Knows sessions by their protocol only.

    generate(session, tokenizer, ["Once upon a time"], Sampling(n=8, temperature=0.8, max_tokens=64))
"""

from __future__ import annotations

from .batch import Batch, Completion, Event, FinishReason, Prompt
from .generate import batches, generate, stream
from .protocol import DecoderSession, Tokenizer
from .sampler import Sampler
from .sampling import Sampling

__all__ = ["Batch", "Completion", "DecoderSession", "Event", "FinishReason", "Prompt", "Sampler", "Sampling",
           "Tokenizer", "batches", "generate", "stream"]  # fmt: skip
