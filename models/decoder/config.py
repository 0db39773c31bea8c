"""Sizes and choices of a decoder, read from the `config.json` of a checkpoint.

One description covers the families that differ only in parts: norms, positions, gates, biases, multipliers, and layers
that mix tokens by a short convolution in place of attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

import numpy as np

from qeil_compile.errors import ModelError, UnknownFamilyError

#: Sizes above these are in no model: a configuration that has them is refused before anything is allocated by it.
#: The largest published ones are 126 layers, a vocabulary of 262,144, a context of 10,485,760 with heads of width 128.
_LARGEST = {"layers": 4096, "taps": 4096}
_LARGEST_OTHER = 1 << 24
_TABLE = 1 << 31
_FACTOR = 1e9


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: angles of pair i at position p are p * base^(-2i/width), rescaled as Llama 3 does if `factor`
    is not 1: wavelengths above `original` / `low` are stretched by `factor`, those below `original` / `high` are not.

    `interleaved` pairs are (2i, 2i+1) as in llama2.c, otherwise (i, i + width/2) as in Hugging Face's checkpoints.
    """

    base: float = 10000.0
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    interleaved: bool = False

    def __post_init__(self) -> None:
        for name in ("base", "factor", "low", "high", "original"):
            if not isfinite(getattr(self, name)) or getattr(self, name) <= 0:
                raise ModelError(f"rotary positions: {name} is {getattr(self, name)!r:.40}, expected a number above 0")

    def tables(self, context: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines, float32 [context, width / 2] each."""
        rates = self.base ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        if self.factor != 1.0:
            turns = self.original * rates / (2 * np.pi)
            smooth = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
            rates = rates * (smooth + (1 - smooth) / self.factor)
        angles = np.outer(np.arange(context, dtype=np.float64), rates)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass(frozen=True, slots=True)
class DecoderFacts:
    """What running a decoder needs to know of it: width of its logits, most tokens of a row, numbers that a token of a
    row adds to the cache, and the weights of which a step reads single rows."""

    family: str
    vocab: int
    context: int
    cache_per_token: int
    tables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab", "context"):
            _check_size(self.family, name, getattr(self, name))
        if type(self.cache_per_token) is not int or self.cache_per_token < 0:
            raise ModelError(f"decoder {self.family}: cache_per_token is {self.cache_per_token!r}, expected a number")


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder: tokens -> embedding -> layers x (mixer, feed forward) -> norm -> logits.

    `norm` is "rms" or "layer"; `gated` feed forwards are SwiGLU, others GELU (tanh form). `rope` None means learned
    positions. `convolutions` are the layers whose mixer is a gated short convolution of `taps` taps (LFM2).
    Multipliers are Granite's: of the embedding, of what each block adds, of the scores, and the divisor of the logits.
    """

    family: str
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocab: int
    context: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    gated: bool = True
    rope: Rope | None = field(default_factory=Rope)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    tied: bool = True
    convolutions: frozenset[int] = frozenset()
    taps: int = 3
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_scale: float | None = None
    logits_divisor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "layers", "heads", "kv_heads", "head_width", "vocab", "context", "taps"):
            _check_size(self.family, name, getattr(self, name))
        for name in ("norm_eps", "embedding_multiplier", "residual_multiplier", "logits_divisor", "scale"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not abs(value) <= _FACTOR:
                raise ModelError(f"decoder {self.family}: {name} is {value!r:.40}, expected a number up to {_FACTOR:g}")
        if self.context * self.head_width > _TABLE:
            raise ModelError(
                f"decoder {self.family}: a context of {self.context} with heads of width {self.head_width}, expected a "
                f"product of at most {_TABLE}, the size of its tables of angles"
            )
        if self.heads % self.kv_heads:
            raise ModelError(
                f"decoder {self.family}: {self.heads} heads, expected a multiple of the {self.kv_heads} key heads"
            )
        if self.rope is not None and self.head_width % 2:
            raise ModelError(f"decoder {self.family}: heads of width {self.head_width}, expected an even width")

    @property
    def scale(self) -> float:
        """Factor of attention scores."""
        return self.head_width**-0.5 if self.attention_scale is None else self.attention_scale


def decoder_config(data: Mapping[str, Any], source: str = "config.json") -> DecoderConfig:
    """The decoder that a checkpoint's `config.json` describes.

    Raises `ModelError` naming the field, or the family if it is none of `FAMILIES_READ`.
    """
    kind = data.get("model_type")
    reader = _READERS.get(str(kind))
    if reader is None:
        raise UnknownFamilyError(
            f"{source}: found model_type {kind!r}, expected one of {', '.join(sorted(_READERS))}; export the model to "
            "ONNX with its cache as inputs and outputs, and compile that"
        )
    try:
        return reader(data, source)
    except KeyError as error:
        raise ModelError(f"{source}: found no field {error.args[0]}, which a {kind} configuration needs") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # A text where a number should be, zero heads, ...
        raise ModelError(f"{source}: a field of the {kind} configuration has no sensible value ({error})") from error


def _check_size(family: str, name: str, value: Any) -> None:
    limit = _LARGEST.get(name, _LARGEST_OTHER)
    if type(value) is not int or not 1 <= value <= limit:
        raise ModelError(f"decoder {family}: {name} is {value!r:.40}, expected a number from 1 to {limit}")


def _llama(data: Mapping[str, Any], source: str) -> DecoderConfig:
    """Llama, Mistral, Qwen2, Qwen3, Granite and dense Granite 4."""
    kind = str(data["model_type"])
    width, heads = data["hidden_size"], data["num_attention_heads"]
    layers = data["num_hidden_layers"]
    _only(data, source, "hidden_act", "silu")
    _whole_attention(data, source, layers)
    hidden = data["intermediate_size"]
    if kind == "granitemoehybrid":
        hidden = data["shared_intermediate_size"]
        if data.get("num_local_experts"):
            raise ModelError(f"{source}: num_local_experts is {data['num_local_experts']}, expected 0 (dense)")
        _only(data, source, "position_embedding_type", "rope")
    granite = kind.startswith("granite")
    return DecoderConfig(
        family=kind, width=width, hidden=hidden, layers=layers, heads=heads,
        kv_heads=data.get("num_key_value_heads") or heads, head_width=data.get("head_dim") or width // heads,
        vocab=data["vocab_size"], context=data["max_position_embeddings"], norm_eps=data.get("rms_norm_eps", 1e-6),
        rope=_rope(data, source), qkv_bias=bool(data.get("attention_bias", kind == "qwen2")) or kind == "qwen2",
        out_bias=bool(data.get("attention_bias")) and kind != "qwen2", mlp_bias=bool(data.get("mlp_bias")),
        head_norms=kind == "qwen3", tied=bool(data.get("tie_word_embeddings", kind.startswith("granitemoe"))),
        embedding_multiplier=float(data.get("embedding_multiplier", 1.0)) if granite else 1.0,
        residual_multiplier=float(data.get("residual_multiplier", 1.0)) if granite else 1.0,
        attention_scale=float(data.get("attention_multiplier", 1.0)) if granite else None,
        logits_divisor=float(data.get("logits_scaling", 1.0)) if granite else 1.0,
    )  # fmt: skip


def _lfm2(data: Mapping[str, Any], source: str) -> DecoderConfig:
    layers, kinds = data["num_hidden_layers"], data["layer_types"]
    unknown = sorted(set(kinds) - {"conv", "full_attention"})
    if unknown or len(kinds) != layers:
        raise ModelError(f"{source}: layer_types has {len(kinds)} entries ({', '.join(unknown) or 'known kinds'}), "
                         f"expected {layers} of conv and full_attention")  # fmt: skip
    _only(data, source, "conv_bias", False)
    hidden = data.get("block_ff_dim") or data["intermediate_size"]
    if data.get("block_auto_adjust_ff_dim", True):
        hidden = int(data.get("block_ffn_dim_multiplier", 1.0) * int(2 * hidden / 3))
        step = data.get("block_multiple_of", 256)
        hidden = step * -(-hidden // step)
    width, heads = data["hidden_size"], data["num_attention_heads"]
    return DecoderConfig(
        family="lfm2", width=width, hidden=hidden, layers=layers, heads=heads, kv_heads=data["num_key_value_heads"],
        head_width=width // heads, vocab=data["vocab_size"], context=data["max_position_embeddings"],
        norm_eps=data.get("norm_eps", 1e-5), rope=_rope(data, source), head_norms=True,
        tied=bool(data.get("tie_word_embeddings", data.get("tie_embedding", True))), taps=data.get("conv_L_cache", 3),
        convolutions=frozenset(k for k, kind in enumerate(kinds) if kind == "conv"),
    )  # fmt: skip


def _gpt2(data: Mapping[str, Any], source: str) -> DecoderConfig:
    width, heads = data["n_embd"], data["n_head"]
    if data.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ModelError(f"{source}: activation_function is {data['activation_function']}, expected gelu_new")
    _only(data, source, "scale_attn_by_inverse_layer_idx", False)
    return DecoderConfig(
        family="gpt2", width=width, hidden=data.get("n_inner") or 4 * width, layers=data["n_layer"], heads=heads,
        kv_heads=heads, head_width=width // heads, vocab=data["vocab_size"], context=data["n_positions"],
        norm="layer", norm_eps=data.get("layer_norm_epsilon", 1e-5), gated=False, rope=None, qkv_bias=True,
        out_bias=True, mlp_bias=True, tied=bool(data.get("tie_word_embeddings", True)),
    )  # fmt: skip


_READERS = {
    "gpt2": _gpt2, "llama": _llama, "mistral": _llama, "qwen2": _llama, "qwen3": _llama, "granite": _llama,
    "granitemoehybrid": _llama, "lfm2": _lfm2,
}  # fmt: skip
#: Values of `model_type` that are read.
FAMILIES_READ = tuple(sorted(_READERS))


def _only(data: Mapping[str, Any], source: str, field: str, value: Any) -> None:
    """Refuse what the decoder has no form for."""
    found = data.get(field, value)
    if found != value and not (found is None and not value):
        raise UnknownFamilyError(
            f"{source}: {field} is {found!r}, expected {value!r}; export the model to ONNX and compile that"
        )


def _whole_attention(data: Mapping[str, Any], source: str, layers: int) -> None:
    """Sliding windows have no form here, unless no layer uses them."""
    kinds = set(data.get("layer_types") or ()) - {"full_attention", "attention"}
    window = data.get("sliding_window") if data.get("use_sliding_window", data["model_type"] == "mistral") else None
    if kinds or window:
        found = f"layer_types has {', '.join(sorted(kinds))}" if kinds else f"sliding_window is {window}"
        raise UnknownFamilyError(
            f"{source}: {found}, expected full attention in all {layers} layers; export the model to ONNX"
        )


def _rope(data: Mapping[str, Any], source: str) -> Rope:
    """`rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling` (before)."""
    given = dict(data.get("rope_scaling") or {}) | dict(data.get("rope_parameters") or {})
    base = float(given.get("rope_theta", data.get("rope_theta", 10000.0)))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        # All positions divided by one factor: every wavelength is stretched.
        return Rope(base, float(given["factor"]), 1e30, 2e30)
    if kind != "llama3":
        raise UnknownFamilyError(f"{source}: rope_type is {kind!r}, expected default, linear or llama3")
    return Rope(base, float(given["factor"]), float(given["low_freq_factor"]), float(given["high_freq_factor"]),
                int(given["original_max_position_embeddings"]))  # fmt: skip
