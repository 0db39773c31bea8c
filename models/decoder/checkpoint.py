"""Decoders from where people have them: a checkpoint folder, a `transformers` model, a llama2.c file, a configuration.

A folder holds `config.json` and `model.safetensors`, or shards that `model.safetensors.index.json` lists. Tensors are
mapped, not read: a weight comes into memory when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import InputError, ModelError
from qeil_compile.models.decoder.config import DecoderConfig, Rope, decoder_config
from qeil_compile.models.decoder.exported import ExportedDecoder, is_exported, open_exported
from qeil_compile.models.decoder.families import FAMILIES
from qeil_compile.models.decoder.graph import DecoderGraph, decoder_graph
from qeil_compile.models.decoder.weights import Assembler, Tensors, random_array
from qeil_compile.untrusted import JSON_LIMIT, parse_json, read_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
#: Files of a folder that generation reads; they travel with an artifact.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
                   "chat_template.jinja")  # fmt: skip


#: Most tokens of a row where an ONNX file has no configuration beside it.
_CONTEXT = 2048


@dataclass(frozen=True)
class Decoder:
    """A decoder as it was found. `tensors` is None where there are no weights: then it can be planned, and timed with
    random weights. `files` are those that a tokenizer needs, by name."""

    name: str
    config: DecoderConfig
    tensors: Tensors | None
    files: Mapping[str, Path] = field(default_factory=dict)

    def graph(self, dtype: str = "float32", bits: int | None = None) -> DecoderGraph:
        """The ONNX model; see `decoder_graph`."""
        return decoder_graph(self.config, dtype, bits)

    def weights(self, graph: DecoderGraph, seed: int | None = None) -> Callable[[str], np.ndarray]:
        """Array of a weight by name. Raises `ModelError` where there are none and no `seed` for random ones."""
        if self.tensors is not None:
            return Assembler(graph, self.tensors, self.name).array
        if seed is None:
            raise ModelError(
                f"model {self.name} has no weights: it can be planned; pass a seed to time it with random ones"
            )
        return lambda name: random_array(graph, name, seed)


def is_decoder(source: str | Path) -> bool:
    """Whether a name or path looks like something that `open_decoder` reads."""
    path = Path(source)
    return (
        str(source) in FAMILIES or path.suffix == ".bin" or path.name == "config.json" or is_exported(path)
        or (path.is_dir() and (path / "config.json").is_file())
    )  # fmt: skip


def open_decoder(source: str | Path | Mapping[str, Any] | Any, name: str = "") -> Decoder | ExportedDecoder:
    """Open a checkpoint folder, a `config.json`, a llama2.c version-0 file, an ONNX decoder with cache inputs (with a
    `config.json` and a tokenizer beside it, if any), a `transformers` model, or, for planning and timing only, the name
    of one of `FAMILIES` or a `transformers` configuration.

    Raises `ModelError`, `InputError`.
    """
    if isinstance(source, str) and source in FAMILIES:
        return Decoder(source, decoder_config(FAMILIES[source], source), None)
    if isinstance(source, (str, Path)):
        return _from_path(Path(source))
    if isinstance(source, Mapping):
        config = decoder_config(source, name or "configuration")
        return Decoder(name or config.family, config, None)
    config = getattr(source, "config", source)
    if not hasattr(config, "to_dict"):
        raise InputError(
            f"{source!r:.60} is no decoder; expected a checkpoint folder, a config.json, a llama2.c file, or a "
            "transformers configuration or model"
        )
    data = config.to_dict()
    found = decoder_config(data, name or type(source).__name__)
    tensors = _StateDict(source.state_dict()) if config is not source else None
    return Decoder(name or found.family, found, tensors)


def _from_path(path: Path) -> Decoder | ExportedDecoder:
    if path.suffix == ".bin":
        return _from_llama2c(path)
    if path.suffix == ".onnx":
        beside = path.parent / "config.json"
        data = _json(beside) if beside.is_file() else {}
        context = data.get("max_position_embeddings") or data.get("n_positions") or _CONTEXT
        return open_exported(path, context, tokenizer_files(path.parent))
    folder = path.parent if path.name == "config.json" else path
    config = decoder_config(_json(folder / "config.json"), str(folder / "config.json"))
    files = tokenizer_files(folder)
    shards = _shards(folder)
    if shards and not any(f".{config.layers - 1}." in name for name in shards):
        # Before a graph of so many layers is built.
        raise ModelError(f"{folder}: its configuration has {config.layers} layers, its weights have no such layer")
    return Decoder(folder.resolve().name, config, _SafeTensors(shards) if shards else None, files)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Files of a checkpoint folder that a tokenizer reads, by name."""
    return {n: folder / n for n in TOKENIZER_FILES if (folder / n).is_file()}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        data = parse_json(read_file(path, JSON_LIMIT), "any")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); expected a checkpoint's file") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path}: found a {type(data).__name__}, expected an object")
    return data


def _shards(folder: Path) -> dict[str, Path]:
    """Tensor name -> file; empty where the folder has no weights. A shard that is named but absent is an error."""
    if (folder / INDEX).is_file():
        listed = _json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
            raise ModelError(f"{folder / INDEX}: found no weight_map from tensors to files")
        for file in sorted(set(listed.values())):
            if Path(file).name != file or not (folder / file).is_file():
                raise ModelError(f"{folder / INDEX}: names {file!r}, which is no file of the folder; fetch it again")
        return {name: folder / file for name, file in listed.items()}
    if not (folder / SINGLE).is_file():
        return {}
    return dict.fromkeys(_open(folder / SINGLE).keys(), folder / SINGLE)


def _open(path: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ModelError(f"{path}: needs the package safetensors; install qeil-compile[llm]") from error
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error}); fetch it again") from error


class _SafeTensors:
    """Tensors of the shards, mapped into memory."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._open: dict[Path, Any] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def array(self, name: str) -> np.ndarray:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = _open(path)
        if name not in self._open[path].keys():  # noqa: SIM118 - no mapping
            raise ModelError(f"{path}: found no tensor {name}, which the index puts there; fetch it again")
        return _numpy(self._open[path].get_tensor(name))


class _StateDict:
    """Tensors of a torch module."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def array(self, name: str) -> np.ndarray:
        tensor = self._tensors[name].detach()
        if tensor.is_meta:
            raise ModelError(f"tensor {name} is on the meta device: it can be planned, not run; load its weights")
        return _numpy(tensor.cpu())


def _numpy(tensor: Any) -> np.ndarray:
    """A torch tensor as an array; bfloat16, which numpy lacks, as float32."""
    import torch

    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ModelError(f"found a tensor of {tensor.dtype}, expected float32, float16 or bfloat16 weights")
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _from_llama2c(path: Path) -> Decoder:
    # Its reader is a torch module; an artifact is loaded without torch.
    from qeil_compile.models.llama2c import load_llama2c

    model = load_llama2c(path)
    c = model.config
    config = DecoderConfig(
        family="llama", width=c.width, hidden=c.hidden, layers=c.layers, heads=c.heads, kv_heads=c.kv_heads,
        head_width=c.head_width, vocab=c.vocab, context=c.context, norm_eps=c.norm_eps, tied=c.tied,
        rope=Rope(c.rope_base, interleaved=True),
    )  # fmt: skip
    names = {
        "embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm", "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj", "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    }  # fmt: skip
    tensors = {}
    for name, value in model.named_parameters():
        key = name.removesuffix(".weight")
        if key.startswith("layers."):
            _, k, rest = key.split(".", 2)
            tensors[f"model.layers.{k}.{names[rest]}.weight"] = value
        else:
            tensors[f"{names[key]}.weight"] = value
    files = {p.name: p for p in path.parent.glob(f"tok{c.vocab}.bin")}
    return Decoder(path.stem, config, _StateDict(tensors), files)
