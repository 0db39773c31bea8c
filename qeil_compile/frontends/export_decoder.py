"""Language models of `transformers` that have no form of their own here: exported to ONNX with their cache outside.

The well-known families are built from their configurations (`models.decoder`), which is faster to run; this is for the
rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qeil_compile.errors import ModelError, first_line
from qeil_compile.models.decoder.exported import ExportedDecoder, open_exported

_OPSET = 20
_LARGEST = 1 << 31


class _WithCache(nn.Module):
    """The model with keys and values of each layer as tensors in and out."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache([(past[2 * k], past[2 * k + 1]) for k in range(self.layers)])
        found = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        states = [t for layer in found.past_key_values.layers for t in (layer.keys, layer.values)]
        return found.logits, *states


def export_decoder(model: Any, name: str = "", files: Mapping[str, Path] | None = None) -> ExportedDecoder:
    """A `transformers` model (evaluated, in float32) as an ONNX decoder. Raises as `export_file` does."""
    name = name or str(getattr(model.config, "model_type", type(model).__name__))
    with tempfile.TemporaryDirectory(prefix="qeil-export-") as folder:
        path = Path(folder) / f"{name}.onnx"
        context = export_file(model, path)
        return open_exported(path, context, dict(files or {}))


def export_file(model: Any, path: Path) -> int:
    """Write a model as ONNX with its cache as inputs and outputs; returns its context.

    Raises `ModelError` with the exporter's first reason: the operator that has no translation, or what cannot be
    traced.
    """
    name = path.stem
    layers, heads, width, context = _sizes(model.config, name)
    past = [torch.zeros(2, heads, 5, width) for _ in range(2 * layers)]
    example = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    positions = torch.arange(5, 8).repeat(2, 1)
    dynamic = torch.export.Dim.DYNAMIC
    free = ({0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic})
    names = [f"past.{k}.{part}" for k in range(layers) for part in ("key", "value")]
    before = model.training
    try:
        exported = torch.onnx.export(
            _WithCache(model.float(), layers).eval(), (*example, positions, past), dynamo=True, verbose=False,
            dynamic_shapes=(*free, [{0: dynamic, 2: dynamic}] * len(past)), opset_version=_OPSET,
            input_names=["tokens", "mask", "positions", *names],
            output_names=["logits", *(n.replace("past", "present") for n in names)],
        )  # fmt: skip
    except Exception as error:  # the exporter raises a family of types, and whatever the model raises
        raise ModelError(f"model {name}: cannot be exported to ONNX: {_reason(error)}") from error
    finally:
        model.train(before)
    assert exported is not None
    exported.save(str(path), external_data=sum(p.nbytes for p in model.parameters()) > _LARGEST // 2)
    return context


def _sizes(config: Any, name: str) -> tuple[int, int, int, int]:
    """Layers, key heads, width of a head, context."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def first(*names: str) -> int:
        found = next((v for n in names if isinstance(v := getattr(text, n, None), int) and v > 0), None)
        if found is None:
            raise ModelError(f"model {name}: its configuration has none of {', '.join(names)}; expected one of them")
        return found

    heads = first("num_attention_heads", "n_head", "num_heads")
    hidden = first("hidden_size", "n_embd", "d_model")
    own = getattr(text, "head_dim", None)
    return (
        first("num_hidden_layers", "n_layer", "num_layers"),
        getattr(text, "num_key_value_heads", None) or heads,
        own if isinstance(own, int) else hidden // heads,
        first("max_position_embeddings", "n_positions", "max_seq_len"),
    )


def _reason(error: BaseException) -> str:
    """The innermost cause: the outer ones repeat advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:300]
