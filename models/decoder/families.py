"""The families of the published results, as their configurations say (`config.json` of gpt2, granite-4.0-350m,
Qwen2-0.5B, Llama-3.2-1B, LFM2-2.6B and Llama-3.1-8B). No weights: they can be planned, and timed with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5}
_LFM2_ATTENTION = frozenset({2, 6, 9, 13, 17, 21, 24, 27})


def _llama3(factor: float) -> dict[str, Any]:
    return {"rope_theta": 500000.0, "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip


#: Name -> configuration.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gpt2-125m": {
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024,
    },
    "granite-350m": {
        "model_type": "granitemoehybrid", "hidden_size": 1024, "intermediate_size": 2048,
        "shared_intermediate_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 4,
        "vocab_size": 100352, "max_position_embeddings": 32768, "layer_types": ["attention"] * 28,
        "num_local_experts": 0, "position_embedding_type": "rope", "rope_theta": 10000000.0, "rms_norm_eps": 1e-5,
        "embedding_multiplier": 12.0, "residual_multiplier": 0.246, "attention_multiplier": 0.015625,
        "logits_scaling": 4.0, "tie_word_embeddings": True,
    },
    "qwen2-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 131072,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "rope_parameters": _llama3(32.0), "tie_word_embeddings": True,
    },
    "lfm2-2.6b": {
        "model_type": "lfm2", "hidden_size": 2048, "intermediate_size": 10752, "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": 30, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536,
        "max_position_embeddings": 128000, "rope_theta": 1000000.0, "norm_eps": 1e-5, "conv_L_cache": 3,
        "layer_types": ["full_attention" if k in _LFM2_ATTENTION else "conv" for k in range(30)],
    },
    "llama-3.1-8b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rope_parameters": _llama3(8.0), "tie_word_embeddings": False,
    },
}  # fmt: skip
