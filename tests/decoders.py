"""Small decoders of every family as `transformers` models with random weights, and a session to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qeil_compile.backends import backend
from qeil_compile.forms.program import StageProgram
from qeil_compile.models.decoder import DecoderGraph, open_decoder
from qeil_compile.runtime.session import Session

VOCAB = 96
_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
_MULTIPLIERS = {"embedding_multiplier": 2.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3,
                "logits_scaling": 3.0}  # fmt: skip
#: Name -> class of `transformers` and its arguments.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64,
                            "bos_token_id": 0, "eos_token_id": 1}),
    "llama3": ("LlamaConfig", {**_SIZES, "rope_parameters": _LLAMA3}),
    "llama linear rope": ("LlamaConfig", {**_SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4,
                                                                       "factor": 4.0}}),
    "llama with biases": ("LlamaConfig", {**_SIZES, "tie_word_embeddings": True, "attention_bias": True,
                                          "mlp_bias": True}),
    "mistral": ("MistralConfig", {**_SIZES, "sliding_window": None}),
    "qwen2": ("Qwen2Config", _SIZES),
    "qwen3": ("Qwen3Config", {**_SIZES, "head_dim": 32}),
    "granite": ("GraniteConfig", {**_SIZES, **_MULTIPLIERS}),
    "granite 4": ("GraniteMoeHybridConfig", {
        **_SIZES, **_MULTIPLIERS, "shared_intermediate_size": 96, "layer_types": ["attention"] * 3,
        "num_local_experts": 0, "position_embedding_type": "rope", "mamba_n_heads": 8}),
    "lfm2": ("Lfm2Config", {**_SIZES, "layer_types": ["conv", "full_attention", "conv"]}),
}  # fmt: skip


def small(name: str, seed: int = 0) -> Any:
    """The model, evaluated in float32, with weights large enough that every part shows in the logits."""
    transformers = pytest.importorskip("transformers")
    import torch

    kind, arguments = SMALL[name]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**arguments)).eval().float()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1 if p.dim() > 1 else 0.3)
    return model


def last_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """Logits of the last token, by the model itself, without a cache."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens])).logits[0, -1])


def program(graph: DecoderGraph) -> StageProgram:
    """The whole model as one stage."""
    proto = graph.model.graph
    return StageProgram(
        "onnx", graph.model.SerializeToString(), tuple(i.name for i in proto.input),
        tuple(o.name for o in proto.output), {n: n for n in graph.weights},
    )  # fmt: skip


def stage(graph: DecoderGraph, weights: dict[str, np.ndarray], engine: str) -> Any:
    """The whole model as one stage on an engine."""
    compile_decoder = backend(engine).compile_decoder  # type: ignore[attr-defined]
    return compile_decoder(program(graph), graph.states, weights, "cpu" if engine == "torch" else "CPU", True, 1)


def small_stage(name: str, engine: str, bits: int | None = None) -> Any:
    """A small model of a family, with its weights, as one stage on an engine."""
    decoder = open_decoder(small(name))
    graph = decoder.graph(bits=bits)
    weight = decoder.weights(graph)
    return stage(graph, {n: weight(n) for n in graph.weights}, engine)


def session(graph: DecoderGraph, weights: dict[str, np.ndarray], engine: str) -> Session:
    """The whole model on one engine."""
    unit = stage(graph, weights, engine)
    return Session([unit], {1: [unit]}, graph.facts.vocab, graph.facts.context)
