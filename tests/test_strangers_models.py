"""Models of strangers: ONNX files, programs of torch, checkpoints and tokenizers."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 - to attack with
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qeil_compile import aot_compile, trace
from qeil_compile.cli import main
from qeil_compile.errors import InputError, ModelError
from qeil_compile.forms import onnx_check
from qeil_compile.generation import CheckpointTokenizer
from qeil_compile.models import Llama2cTokenizer
from qeil_compile.models.decoder import open_decoder
from tests.artifacts import tiny
from tests.checkpoints import byte_level
from tests.strangers import within

# ---- ONNX files


def _saved(path: Path, change: Callable[[onnx.ModelProto], Any], model: onnx.ModelProto | None = None) -> Path:
    model = model or tiny(False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _weight(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.graph.initializer[0]


def _set_dims(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        del _weight(model).dims[:]
        _weight(model).dims.extend(dims)

    return change


def _external(**entries: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = _weight(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return change


def _call_itself(model: onnx.ModelProto) -> None:
    for name, other in (("F", "G"), ("G", "F")):
        body = [helper.make_node(other, ["a"], ["b"], domain="own")]
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], body, [helper.make_opsetid("own", 1)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "own"


def _call_twice(model: onnx.ModelProto) -> None:
    """Inlined, 2^40 operators."""
    for k in range(40):
        inner = ("Relu", "") if k == 0 else (f"F{k - 1}", "own")
        body = [helper.make_node(inner[0], ["a"], ["t"], domain=inner[1]),
                helper.make_node(inner[0], ["t"], ["b"], domain=inner[1])]
        imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 20)]
        model.functions.append(helper.make_function("own", f"F{k}", ["a"], ["b"], body, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F39", "own"


def _nest(model: onnx.ModelProto) -> None:
    inner = onnx.GraphProto(name="inner")
    for _ in range(33):
        node = helper.make_node("If", ["x"], ["o"])
        node.attribute.append(helper.make_attribute("then_branch", inner))
        inner = onnx.GraphProto(name="outer", node=[node])
    model.graph.node.extend(inner.node)


def _sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros((1, 2), np.int64), "indices")
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices,
        dims=[1 << 20, 1 << 20]))


def _constant_of_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "huge"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["hole"], name="fill"))
    model.graph.node.append(helper.make_node("ReduceSum", ["hole"], ["sum"], name="sum", keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["y", "sum"], ["z"], name="last"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 64]))


def _input_dim(size: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size

    return change


BAD_MODELS: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "more data than the shape": (_set_dims(64, 63), "needs 16128"),
    "less data than the shape": (_set_dims(64, 1 << 30), "needs"),
    "negative dimension": (_set_dims(64, -64), "dimension -64"),
    "dimension beyond memory": (_set_dims(1 << 50), "dimension"),
    "product beyond memory": (_set_dims(1 << 30, 1 << 30), "elements"),
    "rank": (_set_dims(*[1] * 70), "70 dimensions"),
    "unknown type": (lambda m: setattr(_weight(m), "data_type", 99), "type 99"),
    "no type": (lambda m: setattr(_weight(m), "data_type", 0), "type 0"),
    "data twice": (lambda m: _weight(m).float_data.append(1.0), "twice"),
    "data of two types": (lambda m: (_weight(m).ClearField("raw_data"), _weight(m).float_data.append(1.0),
                                     _weight(m).int64_data.append(1)), "one of them"),
    "custom operator": (lambda m: setattr(m.graph.node[1], "domain", "evil.ops"), "--allow-operators evil.ops"),
    "functions that call one another": (_call_itself, "calls itself"),
    "functions that double": (_call_twice, "inlined"),
    "graphs in graphs": (_nest, "nested deeper"),
    "sparse weight": (_sparse, "made dense"),
    "tensor out of nothing": (_constant_of_shape, "takes 4.4e"),
    "huge input": (_input_dim(1 << 30), "--dim"),
    "impossible input": (_input_dim(1 << 60), "dimension"),
    "stride of 2^32": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", [1, 1 << 32])),
                       "strides is 4294967296"),
    "no group": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", 0)), "group is 0"),
    "numbers that are called texts": (lambda m: m.graph.value_info.append(
        helper.make_tensor_value_info("b", TensorProto.STRING, [2, 64])), "another than computed"),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "c"), "no valid ONNX model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MODELS)
def test_models_that_no_exporter_writes(case: str, tmp_path: Path, lean: None) -> None:
    change, message = BAD_MODELS[case]
    path = _saved(tmp_path / "m.onnx", change)
    with pytest.raises(ModelError, match=message) as caught:
        within(60, lambda: trace(path))
    assert "\n" not in str(caught.value)


def test_custom_operators_are_allowed_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = _saved(tmp_path / "m.onnx", lambda m: (
        setattr(m.graph.node[1], "domain", "evil.ops"), m.opset_import.append(helper.make_opsetid("evil.ops",
            1))))  # fmt: skip
    assert onnx_check.read_model(path, ("evil.ops",)).graph.node[1].domain == "evil.ops"
    command = ["compile", str(path), "-o", str(tmp_path / "m.qeil")]
    assert main(command) == 1
    assert "--allow-operators evil.ops" in capfd.readouterr().err
    # With leave it gets as far as the engines, none of which has it.
    assert main([*command, "--allow-operators", "evil.ops"]) == 1
    assert "--allow-operators" not in capfd.readouterr().err


def _looping(trips: int | None) -> onnx.ModelProto:
    """y = x, added to itself `trips` times; without end where that is None."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("x", "y", "state", "next")]
    count, go, on = (helper.make_tensor_value_info(n, t, []) for n, t in (
        ("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("on", TensorProto.BOOL)))  # fmt: skip
    turn = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["state", "state"], ["next"])]
    body = helper.make_graph(turn, "body", [count, go, value[2]], [on, value[3]])
    loop = helper.make_node("Loop", ["" if trips is None else "trips", "yes", "x"], ["y"], body=body)
    weights = [numpy_helper.from_array(np.array(True), "yes")]
    weights += [] if trips is None else [numpy_helper.from_array(np.array(trips, np.int64), "trips")]
    graph = helper.make_graph([loop], "turns", value[:1], value[1:2], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class _Refusing:
    """In place of ONNX Runtime's session: the evaluator of the specification has to run the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no kernel")


@pytest.mark.parametrize("engine", ["onnxruntime", "evaluator"])
@pytest.mark.parametrize("trips", [10**12, None])
def test_a_model_that_computes_for_ever_is_stopped(
    trips: int | None, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_looping(trips).SerializeToString())
    before = set(threading.enumerate())
    if engine == "evaluator":
        monkeypatch.setattr("onnxruntime.InferenceSession", _Refusing)
    with pytest.raises(ModelError, match=r"m: a run of it has not ended after 0\.5 s.*--run-seconds"):
        within(120, lambda: trace(path, inputs={"x": np.ones((2, 3), np.float32)}, run_seconds=0.5).run_reference(
            {"x": np.ones((2, 3), np.float32)}))  # fmt: skip
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive(), "it is only left behind, and goes on computing"


def test_runs_that_end_in_time_are_let_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_looping(3).SerializeToString())
    ones = np.ones((2, 3), np.float32)
    assert np.array_equal(trace(path).run_reference({"x": ones})[0], 8 * ones)
    path.write_bytes(_looping(10**12).SerializeToString())
    command = ["compile", str(path), "-o", str(tmp_path / "m.qeil"), "--run-seconds"]
    assert main([*command, "0.5"]) == 1
    assert "--run-seconds N" in capfd.readouterr().err and not (tmp_path / "m.qeil").exists()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run_seconds"):
        trace(_looping(3), run_seconds=seconds)


SECRET = np.full(64 * 64, 7.0, np.float32).tobytes()
LEAVING: dict[str, dict[str, str]] = {
    "parent folder": {"location": "../secret"},
    "absolute": {"location": "{outside}"},
    "hidden parent": {"location": "x/../../secret"},
    "backslash": {"location": "..\\secret"},
    "link out": {"location": "link"},
    "link to a device": {"location": "zero"},
    "pipe": {"location": "pipe"},
    "folder": {"location": "folder"},
    "no location": {},
    "missing": {"location": "nothing"},
    "beyond the end": {"location": "data", "offset": "16"},
    "negative offset": {"location": "data", "offset": "-16"},
    "offset no number": {"location": "data", "offset": "x"},
    "too long": {"location": "data", "length": "99999999999999"},
    "too short": {"location": "data", "length": "4"},
}


@pytest.mark.parametrize("case", LEAVING)
def test_external_data_stays_in_the_folder(case: str, tmp_path: Path, lean: None) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "x").mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    (folder / "data").write_bytes(SECRET)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "zero").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    entries = {k: v.replace("{outside}", str(tmp_path / "secret")) for k, v in LEAVING[case].items()}
    path = _saved(folder / "m.onnx", _external(**entries))
    with pytest.raises(ModelError, match=r"m\.onnx: tensor 'w1'"):
        within(20, lambda: trace(path))


def test_external_data_in_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"before" + SECRET)
    path = _saved(tmp_path / "m.onnx", _external(location="data", offset="6", length=str(len(SECRET))))
    assert onnx_check.read_model(path).graph.initializer[0].raw_data == SECRET


def test_a_model_in_memory_reads_no_file() -> None:
    model = tiny(False)
    _external(location="/etc/hostname")(model)
    with pytest.raises(ModelError, match="is in a file"):
        trace(model)


@pytest.mark.parametrize("place", ["location", "name", "input", "graph"])
def test_texts_that_are_none(place: str, tmp_path: Path) -> None:
    """protobuf takes any bytes for a text, and fails when it is looked at."""
    model = tiny(False)
    _external(location="MARKMARK")(model)
    raw = {"location": b"MARKMARK", "name": b"first", "input": b"w1", "graph": b"tiny"}[place]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(raw, b"\xff" * len(raw)))
    with pytest.raises(ModelError, match="in place of a text"):
        trace(path)


def test_inputs_without_a_type_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m.onnx", lambda m: m.graph.input[0].type.Clear())
    with pytest.raises(ModelError):
        trace(path)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_pipe_is_no_model(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"m{suffix}")
    with pytest.raises(ModelError):
        within(20, lambda: trace(tmp_path / f"m{suffix}", trust=True))


# ---- programs of torch


class _Touch:
    """Pickled, it runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_pt2_file_needs_trust(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = torch.export.export(torch.nn.Linear(3, 3), (torch.zeros(1, 3),))
    path = tmp_path / "m.pt2"
    torch.export.save(program, path)
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if "sample_inputs" in entry.filename:
                data = pickle.dumps(_Touch(tmp_path / "ran"))
            target.writestr(entry.filename, data)
    with pytest.raises(ModelError, match="pass --trust"):
        trace(evil)
    assert main(["compile", str(evil), "-o", str(tmp_path / "m.qeil")]) == 1
    assert "--trust" in capfd.readouterr().err and not (tmp_path / "ran").exists()
    with pytest.raises(ModelError, match="pass --trust"):
        aot_compile(path)
    assert trace(path, trust=True).graph.ops


# ---- checkpoints and tokenizers

CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 10**12}, {"num_hidden_layers": 10**9}, {"hidden_size": 1 << 40},
     {"max_position_embeddings": 10**15},
     {"max_position_embeddings": 1 << 24, "head_dim": 1 << 20}, {"num_attention_heads": 0}, {"hidden_size": "64"},
     {"hidden_size": [64]}, {"hidden_size": 64.0}, {"vocab_size": True}, {"rms_norm_eps": "x"},
     {"rms_norm_eps": float("nan")},
     {"rope_theta": float("inf")}, {"rope_theta": 0}, {"rope_scaling": [1]},
     {"rope_scaling": {"rope_type": "linear", "factor": "x"}},
     {"rms_norm_eps": 10**25}, {"layer_types": [[]]}, {"num_key_value_heads": -2}, {"head_dim": 10**30}],
)  # fmt: skip
def test_configurations_of_no_model(change: dict[str, Any], tmp_path: Path, lean: None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ModelError) as caught:
        within(20, lambda: open_decoder(tmp_path).graph())  # type: ignore[union-attr]
    assert "\n" not in str(caught.value)


def test_configurations_that_promise_more_than_the_weights(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"model.layers.1.mlp.up_proj.weight": np.zeros((4, 4), np.float32)},
                          tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 4000}))
    with pytest.raises(ModelError, match="4000 layers"):
        open_decoder(tmp_path)


def _header(text: str, length: int | None = None, data: bytes = b"\0" * 64) -> bytes:
    raw = text.encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


@pytest.mark.parametrize(
    "raw",
    [_header("{}", 1 << 62), _header('{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,64]}}'),
     _header('{"w":{"dtype":"F32","shape":[16],"data_offsets":[0,9999999]}}'),
     _header('{"w":{"dtype":"F32","shape":[16],"data_offsets":[64,0]}}'),
     _header('{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"b":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}'),
     _header('{"w":{"dtype":"PICKLE","shape":[16],"data_offsets":[0,64]}}'), b"", b"\xff" * 100],
    ids=["length", "shape", "end", "order", "overlap", "type", "empty", "noise"],
)  # fmt: skip
def test_safetensors_headers_that_lie(raw: bytes, tmp_path: Path, lean: None) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match="safetensors"):
        open_decoder(tmp_path)


def test_weights_that_cannot_be_mapped_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors")

    def full(*args: Any) -> None:
        raise MemoryError("Cannot allocate memory")

    monkeypatch.setattr(safetensors, "safe_open", full)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="Cannot allocate memory"):
        open_decoder(tmp_path)


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="no regular file"):
        within(20, lambda: open_decoder(tmp_path / "config.json"))


def test_tokenizers_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = byte_level(tmp_path / "t")
    tokenizer = folder / "tokenizer.json"
    good = tokenizer.read_bytes()
    for bad in (b"{}", b"[" * 100_000, good[:-1], good.replace(b'"BPE"', b'"Nothing"')):
        tokenizer.write_bytes(bad)
        with pytest.raises(ModelError, match="not a tokenizer"):
            CheckpointTokenizer(folder)
    with tokenizer.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="expected at most"):
        CheckpointTokenizer(folder)

    class Panic(BaseException):
        """As pyo3 raises where Rust panics."""

    def panic(data: bytes) -> None:
        raise Panic("index out of bounds")

    import tokenizers

    tokenizer.write_bytes(good)
    monkeypatch.setattr(tokenizers, "Tokenizer", type("Tokenizer", (), {"from_buffer": staticmethod(panic)}))
    with pytest.raises(ModelError, match="index out of bounds"):
        CheckpointTokenizer(folder)


def test_llama2c_tokenizers_are_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tok.bin")
    with pytest.raises(ModelError, match="no regular file"):
        within(20, lambda: Llama2cTokenizer.load(tmp_path / "tok.bin"))


@pytest.mark.parametrize("template", ["{{ 'a' * 10**10 }}", "{{ [0] * 10**10 }}", "{{ 9 ** 10**8 }}",
                                      "{{ 'a' | center(9999999999) }}", "{{ 'a'.ljust(9999999999) }}",
                                      "{{ '%99999999999d' % 1 }}",
                                      "{% for i in range(10**9) %}{% endfor %}",
                                      "{% for i in range(90000) %}{{ 'a' * 9000 }}{% endfor %}"])  # fmt: skip
def test_templates_that_want_all_memory(template: str, tmp_path: Path, lean: None) -> None:
    pytest.importorskip("jinja2")
    tokenizer = CheckpointTokenizer(byte_level(tmp_path, chat_template=template))
    with pytest.raises(InputError, match="template refuses"):
        within(20, lambda: tokenizer.chat([{"role": "user", "content": "x"}]))
