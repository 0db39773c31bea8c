"""Text from a decoder: sampling, stopping, streaming, tokenizers. Knows sessions by their protocol only.

    generate(session, tokenizer, ["Once upon a time"], Sampling(n=8, temperature=0.8, max_tokens=64))
"""

from __future__ import annotations

from .batch import Batch, Completion, Event, FinishReason, Prompt
from .generate import batches, generate, stream
from .protocol import DecoderSession, Tokenizer
from .sampler import Sampler
from .sampling import Sampling
from .tokenizers import TOKENIZER_FILES, CheckpointTokenizer, Llama2cText, load_tokenizer

__all__ = ["TOKENIZER_FILES", "Batch", "CheckpointTokenizer", "Completion", "DecoderSession", "Event", "FinishReason",
           "Llama2cText", "Prompt", "Sampler", "Sampling", "Tokenizer", "batches", "generate", "load_tokenizer",
           "stream"]  # fmt: skip
