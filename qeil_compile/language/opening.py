"""Language models from all that people have: families by their configuration, the rest by export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeil_compile.errors import ModelError, UnknownFamilyError
from qeil_compile.models.decoder import Decoder, ExportedDecoder, open_decoder
from qeil_compile.models.decoder.checkpoint import tokenizer_files


def open_language_model(source: str | Path | Mapping[str, Any] | Any, name: str = "") -> Decoder | ExportedDecoder:
    """What `open_decoder` opens, and any other model of `transformers` with a key/value cache, by export to ONNX.

    Raises `ModelError` (with the operator that stops an export), `InputError`.
    """
    try:
        return open_decoder(source, name)
    except UnknownFamilyError as unknown:
        model, files = _torch_model(source, unknown)
        from qeil_compile.frontends.export_decoder import export_decoder

        return export_decoder(model, name, files)


def _torch_model(source: Any, unknown: UnknownFamilyError) -> tuple[Any, Mapping[str, Path]]:
    if hasattr(source, "state_dict") and hasattr(source, "config"):
        return source, {}
    folder = Path(source) if isinstance(source, (str, Path)) else None
    if folder is None or not folder.is_dir():
        raise unknown
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ModelError(f"{unknown}; or install qeil-compile[llm], which exports other families") from error
    try:
        # Code out of a folder is never run, no pickle is read, and nothing is fetched.
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # transformers raises types of every kind
        raise ModelError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from error
    return model, tokenizer_files(folder)
