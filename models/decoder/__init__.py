"""Decoders of language models: configurations, checkpoints, one ONNX model for prompt and steps."""

from qeil_compile.models.decoder.checkpoint import Decoder, is_decoder, open_decoder
from qeil_compile.models.decoder.config import FAMILIES_READ, DecoderConfig, DecoderFacts, Rope, decoder_config
from qeil_compile.models.decoder.exported import ExportedDecoder
from qeil_compile.models.decoder.families import FAMILIES
from qeil_compile.models.decoder.graph import DecoderGraph, bind, decoder_graph
from qeil_compile.models.decoder.weights import pack, unpack

__all__ = [
    "FAMILIES",
    "FAMILIES_READ",
    "Decoder",
    "DecoderConfig",
    "DecoderFacts",
    "DecoderGraph",
    "ExportedDecoder",
    "Rope",
    "bind",
    "decoder_config",
    "decoder_graph",
    "is_decoder",
    "open_decoder",
    "pack",
    "unpack",
]
