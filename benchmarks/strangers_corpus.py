"""The originals that `strangers.py` mutates: small artifacts, models and files of every reader, made on the fly."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import ROOT
from onnx import TensorProto, helper, numpy_helper

from qeil_compile import language
from qeil_compile.api import Settings, aot_compile
from qeil_compile.devices import calibrations
from qeil_compile.devices.calibrated import PARAMETERS, Calibration, Memory, Residuals
from qeil_compile.devices.loader import load_target


@dataclass(frozen=True)
class Original:
    """`kind` is a handler of the worker, `form` how it is mutated: file, folder, artifact or zip."""

    name: str
    kind: str
    form: str
    path: Path


def corpus(folder: Path) -> list[Original]:
    """Write all originals."""
    made: list[Original] = []
    for build in (_artifacts, _decoders, _models, _checkpoints, _llama2c, _texts, _profiles, _calibration):
        made += build(folder)
    return made


def _settings(*placements: str, **more: Any) -> Settings:
    return Settings(target=",".join(placements), measure=False, **more)


def _artifacts(folder: Path) -> list[Original]:
    from tests.artifacts import ENGINES, TOKENS, spread, tied, tiny

    mixed = spread(tied(), (TOKENS,), *ENGINES)
    mixed.save(folder / "mixed.qeil")
    aot_compile(tiny(False), settings=_settings(*ENGINES)).save(folder / "spares.qeil")
    stage = json.loads((folder / "mixed.qeil" / "manifest.json").read_text())
    unit = next(u for u in stage["units"] if u["form"] == "fx")
    (folder / "fx").mkdir()
    shutil.copy(folder / "mixed.qeil" / unit["file"], folder / "fx" / "stage.json")
    (folder / "fx" / "weights.json").write_text(json.dumps(list(unit["weights"])))
    shutil.copy(folder / "spares.qeil" / "plan.json", folder / "plan.json")
    return [
        Original("artifact, three engines", "artifact", "artifact", folder / "mixed.qeil"),
        Original("artifact, failover plans", "artifact", "artifact", folder / "spares.qeil"),
        Original("artifact, zip", "artifact", "zip", folder / "mixed.qeil"),
        Original("plan", "plan", "file", folder / "plan.json"),
        Original("FX stage", "stage", "file", folder / "fx" / "stage.json"),
    ]


#: A Llama of 30,000 parameters.
_CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 420, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 2,
}  # fmt: skip


def _checkpoint(folder: Path) -> Path:
    from safetensors.numpy import save_file

    from tests.checkpoints import byte_level

    byte_level(folder)
    rng, tensors = np.random.default_rng(0), {}

    def weight(name: str, *shape: int) -> None:
        tensors[f"model.{name}.weight"] = (rng.standard_normal(shape) * 0.2).astype(np.float32)

    weight("embed_tokens", 420, 32)
    weight("norm", 32)
    for k in range(2):
        parts = {"input_layernorm": (32,), "post_attention_layernorm": (32,), "self_attn.q_proj": (32, 32),
                 "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
                 "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)}  # fmt: skip
        for part, shape in parts.items():
            weight(f"layers.{k}.{part}", *shape)
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    return folder


def _decoders(folder: Path) -> list[Original]:
    checkpoint = _checkpoint(folder / "decoder-source")
    made = []
    for engine in ("onnxruntime:CPU", "openvino:CPU"):
        found = language.open_language_model(checkpoint)
        compiled = language.compile_decoder(
            found, language.Generation(prompt=6, tokens=4, samples=2), _settings(engine, failover=False)
        )
        path = folder / f"decoder-{engine.partition(':')[0]}.qeil"
        compiled.save(path)
        made.append(Original(f"decoder artifact, {engine}", "decoder", "artifact", path))
    return [*made, Original("decoder artifact, zip", "decoder", "zip", made[0].path)]


def _checkpoints(folder: Path) -> list[Original]:
    return [Original("checkpoint folder", "checkpoint", "folder", _checkpoint(folder / "checkpoint"))]


def _models(folder: Path) -> list[Original]:
    from tests.artifacts import tiny

    made = []
    for name, model in {"image": _image(), "branches": _branches(), "batch": tiny()}.items():
        onnx.save(model, folder / f"{name}.onnx")
        made.append(Original(f"ONNX, {name}", "model", "file", folder / f"{name}.onnx"))
    outside = folder / "external"
    outside.mkdir()
    onnx.save(tiny(False), outside / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    return [*made, Original("ONNX, external data", "model", "folder", outside)]


def _array(rng: np.random.Generator, name: str, *shape: int) -> Any:
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def _made(nodes: Sequence[Any], given: Sequence[Any], found: Sequence[Any], weights: Sequence[Any]) -> Any:
    graph = helper.make_graph(list(nodes), "g", list(given), list(found), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _image() -> Any:
    rng = np.random.default_rng(1)
    weights = [_array(rng, "k", 8, 1, 3, 3), _array(rng, "s", 8), _array(rng, "b", 8), _array(rng, "m", 8),
               numpy_helper.from_array(np.ones(8, np.float32), "v"), _array(rng, "w", 8, 10), _array(rng, "c", 10),
               numpy_helper.from_array(np.array([1, 8], np.int64), "flat"),
               numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")]  # fmt: skip
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Conv", ["p", "k"], ["a"], group=4, strides=[1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["q"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["q"], ["g"]),
        helper.make_node("Reshape", ["g", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "c"], ["h"], alpha=1.0),
        helper.make_node("Softmax", ["h"], ["y"], axis=-1),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])]  # fmt: skip
    return _made(nodes, ends[:1], ends[1:], weights)


def _branches() -> Any:
    """An If, a Loop and a recurrent layer, with shape arithmetic."""
    rng = np.random.default_rng(2)

    def branch(name: str, op: str) -> Any:
        out = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [1, 2, 6])
        return helper.make_graph([helper.make_node(op, ["h"], [f"{name}.y"])], name, [], [out])

    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["state", "state"], ["next"])], "step",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 2, 6])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, 2, 6])],
    )  # fmt: skip
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R"], ["", "h", ""], hidden_size=6),
        helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["i.y"], then_branch=branch("then", "Relu"), else_branch=branch("else", "Neg")),
        helper.make_node("Loop", ["trips", "yes", "i.y"], ["l"], body=step),
        helper.make_node("Shape", ["l"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["last"], axis=0),
        helper.make_node("Concat", ["minus", "last"], ["to"], axis=0),
        helper.make_node("Reshape", ["l", "to"], ["y"]),
    ]
    whole = {"zero": np.array(0, np.float32), "trips": np.array(2, np.int64), "yes": np.array(True),
             "two": np.array([2], np.int64), "minus": np.array([-1], np.int64)}  # fmt: skip
    weights = [_array(rng, "W", 1, 24, 5), _array(rng, "R", 1, 24, 6),
               *(numpy_helper.from_array(a, n) for n, a in whole.items())]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2, 5]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])]  # fmt: skip
    return _made(nodes, ends[:1], ends[1:], weights)


def _llama2c(folder: Path) -> list[Original]:
    place = folder / "llama2c"
    place.mkdir()
    from qeil_compile.models.llama2c import LlamaConfig, rope_tables

    config = LlamaConfig(16, 24, 2, 2, 1, 512, 16)
    rng, file = np.random.default_rng(0), io.BytesIO()
    file.write(np.array([16, 24, 2, 2, 1, 512, 16], "<i4").tobytes())
    # Embedding, then per kind over both layers, the last norm; then the tables of angles.
    count = 512 * 16 + 2 * (16 + 16 * 16 + 2 * 16 * 8 + 16 * 16 + 16 + 3 * 16 * 24) + 16
    file.write((rng.standard_normal(count) * 0.1).astype("<f4").tobytes())
    for table in rope_tables(config):
        file.write(table.numpy().astype("<f4").tobytes())
    (place / "model.bin").write_bytes(file.getvalue())
    shutil.copy(ROOT / "models" / "data" / "stories260K" / "tok512.bin", place / "tok512.bin")
    return [Original("llama2.c checkpoint", "llama2c", "folder", place)]


def _texts(folder: Path) -> list[Original]:
    rows = [{"pid": k, "gold": "a", "ans": ["a", "b", None, "a"], "ok": [1, 0, 0, 1], "tok": [3, 4, 5, 6],
             "bits": ["01"] * 4,
             "pair": [[1, 2.5]] * 4} for k in range(6)]  # fmt: skip
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [{"question": f"How much is {k} + 1?", "answer": f"#### {k + 1}", "id": k} for k in range(6)]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    result = {"pid": "1", "gold": "2", "answer": "2", "correct": True, "reason": "CERT", "samples": 4,
              "counts": {"2": 4},
              "passes": 1.5, "joules": 2.0, "seconds": 0.1, "label": "modelled", "note": ""}  # fmt: skip
    (folder / "results.jsonl").write_text("\n".join(json.dumps({**result, "pid": str(k)}) for k in range(6)) + "\n")
    np.savez(folder / "inputs.npz", x=np.zeros((2, 3), np.float32), tokens=np.arange(4))
    return [
        Original("log of samples", "log", "file", folder / "log.jsonl"),
        Original("task", "task", "file", folder / "task.jsonl"),
        Original("results", "task", "file", folder / "results.jsonl"),
        Original("inputs, .npz", "inputs", "file", folder / "inputs.npz"),
    ]


def _profiles(folder: Path) -> list[Original]:
    source = ROOT / "qeil_compile" / "devices" / "profiles"
    names = sorted(p for p in source.glob("*.toml") if p.name not in ("engines.toml", "rules.toml"))
    chosen = [names[0], next(iter(sorted((source / "devices").glob("jetson*.toml"))))]
    made = []
    for k, path in enumerate(chosen):
        shutil.copy(path, folder / f"profile{k}.toml")
        load_target(str(folder / f"profile{k}.toml"))
        made.append(Original(f"profile, {path.stem}", "profile", "file", folder / f"profile{k}.toml"))
    return made


def _calibration(folder: Path) -> list[Original]:
    import os

    place = folder / "calibrations"
    before = os.environ.get("QEIL_CALIBRATIONS")
    os.environ["QEIL_CALIBRATIONS"] = str(place)
    try:
        points = Residuals(np.zeros((2, 5)), np.array([0.1, -0.1]))
        families = dict.fromkeys(("gemm", "elementwise relu"), tuple(1e-6 for _ in PARAMETERS))
        calibrations.save(Calibration("onnxruntime", "CPU", 1, "1", 8, 1e-5, Memory(1e11, 1e10, 1e7), families,
                                      {"gemm": points}))
    finally:
        if before is None:
            del os.environ["QEIL_CALIBRATIONS"]
        else:
            os.environ["QEIL_CALIBRATIONS"] = before
    return [Original("calibration", "calibration", "folder", place)]
