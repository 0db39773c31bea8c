"""Decoders: every family on every engine against `transformers`, rows that come and go, caches that move."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qeil_compile.backends import backend
from qeil_compile.backends.onnxruntime import decoder as ort_decoder
from qeil_compile.errors import BackendError, InputError, ModelError
from qeil_compile.models.decoder import (
    FAMILIES,
    Rope,
    decoder_config,
    decoder_graph,
    is_decoder,
    open_decoder,
    pack,
    unpack,
)
from qeil_compile.runtime.session import Session
from tests.decoders import SMALL, VOCAB, last_logits, program, session, small, small_stage

ENGINES = ("onnxruntime", "openvino", "torch")


class Rows:
    """Sequences beside a session: what its logits have to be."""

    def __init__(self, model: object, session: Session, prompts: list[list[int]]) -> None:
        self.model, self.session, self.rows = model, session, [list(p) for p in prompts]
        self.check(session.prefill(prompts))

    def check(self, logits: np.ndarray) -> None:
        expected = np.stack([last_logits(self.model, r) for r in self.rows])
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        assert self.session.lengths.tolist() == [len(r) for r in self.rows]

    def step(self, seed: int) -> None:
        tokens = np.random.default_rng(seed).integers(0, VOCAB, len(self.rows))
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))
        self.check(self.session.step(tokens))

    def select(self, rows: list[int]) -> None:
        self.session.select(np.array(rows))
        self.rows = [list(self.rows[r]) for r in rows]


PROMPTS = [[5, 9, 60, 3, 3, 17, 80], [4, 4, 4, 90], [33, 2, 8, 71, 70, 69, 1, 2, 3]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
def test_a_family_on_an_engine(name: str, engine: str) -> None:
    model = small(name)
    decoder = open_decoder(model)
    graph = decoder.graph()
    weight = decoder.weights(graph)
    rows = Rows(model, session(graph, {n: weight(n) for n in graph.weights}, engine), PROMPTS)
    rows.step(0)
    rows.select([0, 0, 1, 2, 2])  # samples share a prompt
    rows.step(1)
    rows.select([1, 2, 4])  # rows end, those behind them move up
    rows.step(2)
    rows.select([2, 1])  # a row ends, others change places
    rows.step(3)
    rows.step(4)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "lfm2"])
def test_the_cache_moves_between_engines(name: str, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    new = ort_decoder.OrtDecoderStage._block

    def poisoned(stage: ort_decoder.OrtDecoderStage, name: str, shape: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Memory that nobody has written may hold anything."""
        block, part = new(stage, name, shape)
        block.fill(np.nan)
        return block, part

    monkeypatch.setattr(ort_decoder.OrtDecoderStage, "_block", poisoned)
    model = small(name)
    decoder = open_decoder(model)
    graph = decoder.graph()
    weight = decoder.weights(graph)
    weights = {n: weight(n) for n in graph.weights}
    units = {}
    for e in ENGINES:
        compile_decoder = backend(e).compile_decoder  # type: ignore[attr-defined]
        units[e] = [compile_decoder(program(graph), graph.states, weights, "cpu" if e == "torch" else "CPU", True, 1)]
    whole = Session(units["openvino"], {1: units["torch"], 2: units["openvino"], 4: units["onnxruntime"]}, VOCAB, 64)
    rows = Rows(model, whole, PROMPTS if ragged else [p[:4] for p in PROMPTS])
    rows.step(0)  # openvino -> onnxruntime
    rows.select([0, 1])  # -> openvino
    rows.step(1)
    rows.select([1])  # -> torch
    rows.step(2)
    rows.select([0, 0, 0, 0])  # -> onnxruntime
    rows.step(3)
    assert whole.bytes_moved > 0


def test_a_prompt_runs_once_for_all_its_samples() -> None:
    decoder = open_decoder(small("qwen2"))
    graph = decoder.graph()
    weight = decoder.weights(graph)
    s = session(graph, {n: weight(n) for n in graph.weights}, "onnxruntime")
    s.prefill([PROMPTS[0]])
    s.select(np.zeros(16, np.int64))
    s.step(np.arange(16))
    assert s.tokens_run == len(PROMPTS[0]) + 16


@pytest.mark.parametrize("name", SMALL)
def test_samples_share_the_cache_of_their_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept once, whatever becomes of the rows: they leave, change places, branch, move elsewhere, begin anew."""
    monkeypatch.setattr(ort_decoder, "_WORTH_SHARING", 1)
    model = small(name)
    unit, other = (small_stage(name, e) for e in ("onnxruntime", "openvino"))
    rows = Rows(model, Session([unit], {1: [other], 16: [unit]}, VOCAB, 64), PROMPTS[:1])
    rows.select([0] * 5)
    rows.select([0, 2, 3, 4])  # one ends before any has a token of its own
    rows.step(1)
    assert unit._shared == len(PROMPTS[0]) and all(len(b) == 4 for b in unit._buffers.values())
    rows.step(2)
    rows.select([0, 2, 3])
    rows.step(3)
    rows.select([2, 0])
    rows.step(4)
    rows.select([1, 1, 1, 0])
    rows.step(5)
    saved, before = rows.session.save(), [list(r) for r in rows.rows]
    rows.step(6)
    rows.session.restore(saved)
    rows.rows = before
    rows.step(7)
    rows.select([1])
    rows.step(8)  # on another engine
    rows.select([0, 0])
    rows.step(9)  # and back
    assert unit._shared == len(rows.rows[0]) - 1
    rows = Rows(model, rows.session, PROMPTS)
    rows.select([1] * 6)  # of prompts of different lengths, one
    rows.step(10)
    assert unit._shared == len(PROMPTS[1])
    rows.select([0, 3])
    rows.step(11)
    rows = Rows(model, rows.session, PROMPTS[:2])
    rows.select([0, 0, 1, 1])  # of two prompts: each row has its own
    rows.step(12)
    assert not unit._shared
    for seed in range(13, 20):
        rows.step(seed)


def test_a_long_prompt_is_shared_and_a_short_one_is_not() -> None:
    unit = small_stage("qwen2", "onnxruntime")
    s = Session([unit], {1: [unit]}, VOCAB, 64)
    for length, samples, shared in ((4, 16, 0), (60, 2, 0), (60, 6, 60)):
        s.prefill([list(range(length))])
        s.select(np.zeros(samples, np.int64))
        s.step(np.arange(samples))
        assert unit._shared == shared


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gpt2", "lfm2"])
def test_rows_are_saved_and_taken_up_again(name: str, engine: str) -> None:
    model = small(name)
    decoder = open_decoder(model)
    graph = decoder.graph()
    weight = decoder.weights(graph)
    rows = Rows(model, session(graph, {n: weight(n) for n in graph.weights}, engine), PROMPTS)
    saved, before = rows.session.save(), [list(r) for r in rows.rows]
    assert saved.nbytes > 0
    for seed in (1, 2):  # two rounds from the same prompts
        rows.select([1, 1, 0, 2])
        rows.step(seed)
        rows.step(seed + 5)
        rows.session.restore(saved)
        rows.rows = [list(r) for r in before]
    rows.step(3)


def test_samples_begin_with_room_for_their_next_tokens() -> None:
    """One copy of the prompt's cache per sample, none of them twice; none at all where rows end."""
    unit = small_stage("qwen2", "onnxruntime")
    s = Session([unit], {1: [unit]}, VOCAB, 64)
    s.prefill([PROMPTS[0]])
    s.select(np.zeros(16, np.int64))
    held = {n: b.ctypes.data for n, b in unit._buffers.items()}
    s.step(np.arange(16))
    s.select(np.arange(0, 16, 2))
    s.step(np.arange(8))
    assert {n: b.ctypes.data for n, b in unit._buffers.items()} == held


def test_scores_are_log_probabilities() -> None:
    import torch

    model = small("llama3")
    decoder = open_decoder(model)
    graph = decoder.graph()
    weight = decoder.weights(graph)
    s = session(graph, {n: weight(n) for n in graph.weights}, "openvino")
    tokens = PROMPTS[2]
    with torch.no_grad():
        whole = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
    expected = [float(whole[k, t]) for k, t in enumerate(tokens[1:])]
    # Beside texts of other lengths.
    found = s.score([PROMPTS[1], tokens, PROMPTS[0]])
    assert [len(f) for f in found] == [3, 8, 6]
    np.testing.assert_allclose(found[1], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.prefill([]), "prompts: found none"),
        (lambda s: s.prefill([[1], []]), "prompt 1 has 0 tokens"),
        (lambda s: s.prefill([[1] * 65]), "prompt 0 has 65 tokens, expected 1 to 64"),
        (lambda s: s.prefill([[1, VOCAB]]), f"token {VOCAB}: expected 0 to {VOCAB - 1}"),
        (lambda s: s.select(np.array([3])), "below the 1 live rows"),
        (lambda s: s.step(np.array([1, 2])), "one for each of the 1 live rows"),
        (lambda s: s.step(np.array([-1])), "token -1"),
    ],
)
def test_a_session_refuses(call: object, message: str) -> None:
    decoder = open_decoder(small("gpt2"))
    graph = decoder.graph()
    weight = decoder.weights(graph)
    s = session(graph, {n: weight(n) for n in graph.weights}, "torch")
    s.prefill([[1, 2]])
    with pytest.raises(InputError, match=message):
        call(s)  # type: ignore[operator]


def test_stages_without_logits_are_no_decoder() -> None:
    class Mute:
        states, compact = (), True

        def reset(self, rows: int) -> None:
            pass

        def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"present.0.key": np.zeros((1, 1, 1, 1), np.float32)}

    with pytest.raises(BackendError, match="no stage has written logits"):
        Session([Mute()], {1: [Mute()]}, VOCAB, 64).prefill([[1]])  # type: ignore[list-item]


def test_a_full_context_is_refused() -> None:
    decoder = open_decoder(small("qwen2"))
    graph = decoder.graph()
    weight = decoder.weights(graph)
    s = session(graph, {n: weight(n) for n in graph.weights}, "onnxruntime")
    s.prefill([[1] * 63])
    s.step(np.array([1]))
    with pytest.raises(InputError, match="context is full"):
        s.step(np.array([1]))


# ---- packed weights


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_as_close_as_its_levels_allow(bits: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((96, 128)).astype(np.float32)
    matrix[3, 32:64] = 0.0
    codes, scales = pack(matrix, bits, 4)
    assert codes.shape == (96, 4, 4 * bits) and scales.shape == (96, 4)
    back = unpack(codes, scales, bits)
    assert not back[3, 32:64].any()
    if bits == 8:
        assert (scales == scales[:, :1]).all() and codes.min() >= 1
    shared = np.abs(matrix).reshape(96, 4 if bits == 4 else 1, -1).max(axis=2) / 2 ** (bits - 1)
    step = np.broadcast_to(shared, (96, 4))
    # Half a step, and a whole one at the short end of the codes; the scale's own correction stays small.
    assert (np.abs(back - matrix).reshape(96, 4, 32) <= 1.15 * step[..., None] + 1e-7).all()
    assert np.linalg.norm(back - matrix) / np.linalg.norm(matrix) < {4: 0.1, 8: 0.008}[bits]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_on_an_engine(bits: int, engine: str) -> None:
    decoder = open_decoder(small("qwen2"))
    packed, plain = decoder.graph(bits=bits), decoder_graph(replace(decoder.config, tied=False))
    weight = decoder.weights(packed)
    stored = {n: weight(n) for n in packed.weights}
    meant = {
        n: unpack(stored[f"{n}.codes"], stored[f"{n}.scales"], bits) if f"{n}.codes" in stored else stored[n]
        for n in plain.weights
    }
    assert sum(n.endswith(".codes") for n in stored) == 1 + 5 * 3
    found = session(packed, stored, engine).prefill(PROMPTS)
    expected = session(plain, meant, "torch").prefill(PROMPTS)
    # Engines round activations to 8 bits; torch does not.
    np.testing.assert_allclose(found, expected, atol=2e-5 if engine == "torch" else 0.04)


# ---- checkpoints


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "granite 4"])
def test_a_checkpoint_folder(name: str, shards: bool, tmp_path: Path) -> None:
    model = small(name)
    model.save_pretrained(tmp_path, max_shard_size="40KB" if shards else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    assert is_decoder(tmp_path)
    decoder = open_decoder(tmp_path)
    graph = decoder.graph()
    weight = decoder.weights(graph)
    Rows(model, session(graph, {n: weight(n) for n in graph.weights}, "onnxruntime"), PROMPTS)


def test_stories260k_reads_as_before() -> None:
    from qeil_compile.models import demo_model

    model = demo_model()
    path = Path("models/data/stories260K/stories260K.bin")
    decoder = open_decoder(path)
    graph = decoder.graph()
    weight = decoder.weights(graph)
    import torch

    s = session(graph, {n: weight(n) for n in graph.weights}, "openvino")
    with torch.no_grad():
        expected = np.asarray(model(torch.tensor([[1, 400, 300, 20]]))[0, -1])
    np.testing.assert_allclose(s.prefill([[1, 400, 300, 20]])[0], expected, atol=2e-4)


def _config(**changes: object) -> dict[str, object]:
    return {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64,
            **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba', expected one of gpt2"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'silu'"),
        ({"num_key_value_heads": 3}, "4 heads, expected a multiple of the 3 key heads"),
        ({"num_hidden_layers": 0}, "layers is 0, expected a number from 1"),
        ({"vocab_size": "96"}, "vocab is '96'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window is 4096"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has sliding_attention"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 4, "shared_intermediate_size": 4}, "experts is 4"),
    ],
)
def test_a_configuration_that_has_no_form(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        decoder_config(_config(**changes))


def test_a_missing_field_is_named() -> None:
    data = _config()
    del data["intermediate_size"]
    with pytest.raises(ModelError, match="no field intermediate_size"):
        decoder_config(data, "here/config.json")


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    small("qwen2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ModelError, match="has 4 layers, its weights have no such layer"):
        open_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    decoder = open_decoder(tmp_path)
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.2\.self_attn\.q_norm"):
        decoder.weights(decoder.graph())("layers.2.attention.query_norm.weight")
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 130}))
    decoder = open_decoder(tmp_path)
    with pytest.raises(ModelError, match=r"shape \[128, 64\], expected \[130, 64\]"):
        decoder.weights(decoder.graph())("layers.0.feed_forward.up.weight")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        open_decoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(ModelError, match="is no file of the folder"):
        open_decoder(tmp_path)


def test_no_weights_no_run() -> None:
    decoder = open_decoder("gpt2-125m")
    with pytest.raises(ModelError, match="has no weights"):
        decoder.weights(decoder.graph())


#: Parameters of the published models, in millions.
SIZES = {"gpt2-125m": 124, "granite-350m": 352, "qwen2-0.5b": 494, "llama-3.2-1b": 1236, "lfm2-2.6b": 2570,
         "llama-3.1-8b": 8030}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_of_the_families(name: str) -> None:
    graph = open_decoder(name).graph("bfloat16")
    assert graph.parameters / 1e6 == pytest.approx(SIZES[name], rel=0.01)


def test_rope_of_llama_3_stretches_only_long_waves() -> None:
    cos, _ = Rope(500000.0, 8.0, 1.0, 4.0, 8192).tables(64, 128)
    plain, _ = Rope(500000.0).tables(64, 128)
    np.testing.assert_allclose(cos[:, 0], plain[:, 0], atol=1e-6)
    np.testing.assert_allclose(cos[8 * 7, -1], plain[7, -1], atol=1e-6)


# ---- models that come as ONNX, and families without a form of their own


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, Path]:
    """A family without a form here (partial rotation), as an exporter writes it."""
    transformers = pytest.importorskip("transformers")
    import torch

    from qeil_compile.frontends.export_decoder import export_file

    torch.manual_seed(0)
    config = transformers.StableLmConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1 if p.dim() > 1 else 0.3)
    path = tmp_path_factory.mktemp("exported") / "stablelm.onnx"
    assert export_file(model, path) == 64
    return model, path


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exported_decoder_on_an_engine(exported: tuple[object, Path], engine: str) -> None:
    model, path = exported
    found = open_decoder(path)
    rows = Rows(model, session(found.whole, dict(found.arrays), engine), PROMPTS)  # type: ignore[union-attr]
    rows.step(0)
    rows.select([0, 0, 2, 1])
    rows.step(1)
    rows.select([1, 3])
    rows.step(2)


def test_an_exported_decoder_is_compiled_and_saved(exported: tuple[object, Path], tmp_path: Path) -> None:
    from qeil_compile.api import Settings
    from qeil_compile.language import Generation, Runner, compile_decoder, load_decoder

    model, path = exported
    assert is_decoder(path) and not is_decoder(Path("tests/data/models/magika/standard_v3_3.onnx"))
    settings = Settings(target="onnxruntime:CPU,openvino:CPU", measure=False, threads=1)
    compiled = compile_decoder(path, Generation(prompt=8, tokens=8, samples=2), settings)
    compiled.save(tmp_path / "m.qeil")
    tokens = load_decoder(tmp_path / "m.qeil").generate([[5, 6, 7]], temperature=0.0, max_tokens=6)[0][0].tokens
    expected = [5, 6, 7]
    for _ in range(6):
        expected.append(int(last_logits(model, expected).argmax()))
    assert tokens == expected[3:]
    # The model object itself takes the same road.
    other = Runner(compile_decoder(model, Generation(prompt=8, tokens=8), settings))
    assert other.generate([[5, 6, 7]], temperature=0.0, max_tokens=6)[0][0].tokens == tokens
    with pytest.raises(InputError, match="its weights stay as they are"):
        from qeil_compile.language import DecoderSettings

        compile_decoder(path, Generation(8, 8), settings, DecoderSettings("int8"))


def test_what_stops_an_export_is_named() -> None:
    transformers = pytest.importorskip("transformers")
    from qeil_compile.language import open_language_model

    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=VOCAB, state_size=4)
    with pytest.raises(ModelError, match="mamba"):
        open_language_model(transformers.AutoModelForCausalLM.from_config(config))


def test_a_weight_that_the_engine_transposes_is_not_read_in_place() -> None:
    """The optimiser pushes both transposes through the Add, and writes the weight anew under its old name."""
    from onnx import TensorProto, helper

    from qeil_compile.backends.onnxruntime import OnnxRuntimeBackend
    from qeil_compile.backends.onnxruntime.decoder import readable_in_place
    from qeil_compile.forms.onnx_source import declare_external
    from qeil_compile.forms.program import StageProgram

    arrays = {"added": np.arange(16, dtype=np.float32).reshape(4, 4), "table": np.eye(5, 4, dtype=np.float32)}
    tensors = []
    for name, array in arrays.items():
        tensors.append(TensorProto(name=name, dims=array.shape, data_type=TensorProto.FLOAT))
        declare_external(tensors[-1], name)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Add", ["turned", "added"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["logits"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes, "turned", [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 4, 4])], tensors,
    )  # fmt: skip
    payload = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    assert readable_in_place(payload, arrays) == {"table"}
    stage = OnnxRuntimeBackend().compile_decoder(
        StageProgram("onnx", payload, ("tokens",), ("logits",), {n: n for n in arrays}), {}, arrays, "CPU"
    )
    tokens = np.array([[0, 1, 2, 3]])
    found = stage.run({"tokens": tokens, "mask": np.ones((1, 4), np.int64)})["logits"]
    np.testing.assert_array_equal(found, arrays["table"][tokens] + arrays["added"].T)


def test_a_matrix_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine that is tried asks for all weights."""
    packed: list[tuple[int, ...]] = []

    def counted(matrix: np.ndarray, bits: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
        packed.append(matrix.shape)
        return pack(matrix, bits, blocks)

    monkeypatch.setattr("qeil_compile.models.decoder.weights.pack", counted)
    decoder = open_decoder(small("qwen2"))
    graph = decoder.graph(bits=4)
    weight = decoder.weights(graph)
    for _ in range(3):
        for name in graph.weights:
            weight(name)
    assert len(packed) == sum(n.endswith(".codes") for n in graph.weights) > 0
