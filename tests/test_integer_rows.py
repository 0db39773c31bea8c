"""Packed weights in products of integers on ONNX Runtime: exact as such, near what they stand for, a token alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from qeil_compile.api import Settings
from qeil_compile.artifact.decoder import PhaseUnits
from qeil_compile.backends.onnxruntime import OnnxRuntimeBackend, integer
from qeil_compile.errors import BackendError
from qeil_compile.forms.products import INTEGER_ROWS, with_integer_rows
from qeil_compile.forms.program import StageProgram
from qeil_compile.language import DecoderSettings, Generation, Runner, compile_decoder, load_decoder
from qeil_compile.language.choosing import in_rows
from qeil_compile.models.decoder import open_decoder, pack, unpack
from tests.decoders import VOCAB, session, small, small_stage, stage

INNER, OUTER = 256, 96
#: The engine's own answer to what its CPU can; without it MatMulNBits stays, and there is nothing to test.
needs_integers = pytest.mark.skipif(not integer.exact(), reason="products of 8-bit integers saturate on this CPU")


def product(bits: int, blocks: int, twice: bool = False) -> StageProgram:
    """x [batch, new, INNER] times packed weights [OUTER, INNER]; `twice`: two products of one input, added up."""
    about = {"K": INNER, "N": OUTER, "bits": bits, "block_size": INNER // blocks, "accuracy_level": 4}
    nodes = [helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["a"], domain="com.microsoft", **about)]
    if twice:
        nodes += [helper.make_node("MatMulNBits", ["x", "codes2", "scales2"], ["b"], domain="com.microsoft", **about)]
    nodes.append(helper.make_node("Add", ["a", "b"] if twice else ["a", "a"], ["y"]))
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "new", INNER])
    found = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "new", OUTER])
    tensors = []
    names = ("codes", "scales", "codes2", "scales2")[: 4 if twice else 2]
    for name in names:
        dims = (OUTER, blocks, INNER // blocks * bits // 8) if name.startswith("codes") else (OUTER, blocks)
        kind = onnx.TensorProto.UINT8 if name.startswith("codes") else onnx.TensorProto.FLOAT
        tensor = onnx.TensorProto(name=name, dims=dims, data_type=kind)
        integer.declare_external(tensor, name)
        tensors.append(tensor)
    graph = helper.make_graph(nodes, "product", [given], [found], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return StageProgram("onnx", model.SerializeToString(), ("x",), ("y",), {n: n for n in names})


def run(found: integer.Rewritten, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    values = {n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in found.weights.items()}
    options.add_external_initializers(list(values), list(values.values()))
    running = ort.InferenceSession(found.program.payload, options, providers=["CPUExecutionProvider"])
    return np.asarray(running.run(None, {"x": x})[0])


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((OUTER, INNER)).astype(np.float32)


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers and a scale per token, written down from the module's equation."""
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True) / np.float32(127), np.float32(1e-30))
    return np.rint(x / scale), scale


@needs_integers
def test_the_product_is_the_equation() -> None:
    weights = dict(zip(("codes", "scales"), pack(matrix(0), 8, 2), strict=True))
    weights |= dict(zip(("codes2", "scales2"), pack(matrix(1), 8, 2), strict=True))
    found = integer.rewritten(product(8, 2, twice=True), weights)
    kinds = [n.op_type for n in onnx.load_model_from_string(found.program.payload).graph.node]
    # Both products read the integers of one input.
    assert kinds.count("MatMulIntegerToFloat") == 2 and kinds.count("QuantizeLinear") == 1
    assert "MatMulNBits" not in kinds
    x = np.random.default_rng(2).standard_normal((3, 5, INNER)).astype(np.float32)
    x[1, 2] = 0.0  # padding may be nothing but zeros
    x[0, 0] *= 1e6
    whole, scale = rounded(x)
    both = unpack(weights["codes"], weights["scales"], 8) + unpack(weights["codes2"], weights["scales2"], 8)
    expected = whole.astype(np.float64) @ both.T.astype(np.float64) * scale
    np.testing.assert_allclose(run(found, x), expected, rtol=2e-4, atol=1e-4 * np.abs(expected[1:]).max())
    assert not run(found, x)[1, 2].any()


@needs_integers
def test_a_token_is_what_it_is_alone() -> None:
    """Bit by bit: one scale for all would let a large neighbour round the others away."""
    weights = dict(zip(("codes", "scales"), pack(matrix(0), 8, 1), strict=True))
    found = integer.rewritten(product(8, 1), weights)
    x = np.random.default_rng(3).standard_normal((4, 2, INNER)).astype(np.float32)
    alone = np.stack([np.concatenate([run(found, x[b : b + 1, t : t + 1])[0] for t in range(2)]) for b in range(4)])
    x[3] *= 1e4
    np.testing.assert_array_equal(run(found, x)[:3], alone[:3])


@needs_integers
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_become_rows_only_where_a_program_asks(bits: int) -> None:
    plain = matrix(4)
    codes, scales = pack(plain, bits, 8)
    scales = scales * np.linspace(0.5, 1.5, 8, dtype=np.float32)  # no scale of a whole row
    weights = {"codes": codes, "scales": scales}
    as_is = integer.rewritten(product(bits, 8), weights)
    assert as_is.program == product(bits, 8) and not as_is.packed
    found = integer.rewritten(with_integer_rows(product(bits, 8)), weights)
    assert found.weights.keys() == {"codes.integers", "codes.integers.scales"} and not found.program.weights
    assert found.weights["codes.integers"].dtype == np.int8
    x = np.random.default_rng(5).standard_normal((1, 7, INNER)).astype(np.float32)
    expected = 2 * x @ unpack(codes, scales, bits).T
    assert np.linalg.norm(run(found, x) - expected) / np.linalg.norm(expected) < 0.015


def test_nothing_changes_where_integers_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "exact", lambda: False)
    assert not OnnxRuntimeBackend().integer_rows("CPU")
    decoder = open_decoder(small("qwen2"))
    graph = decoder.graph(bits=8)
    weight = decoder.weights(graph)
    weights = {n: weight(n) for n in graph.weights}
    found = session(graph, weights, "onnxruntime").prefill([[1, 2, 3]])
    expected = session(graph, weights, "torch").prefill([[1, 2, 3]])
    np.testing.assert_allclose(found, expected, atol=0.04)


@needs_integers
def test_what_the_engine_has_repacked_is_let_go() -> None:
    unit = small_stage("qwen2", "onnxruntime", bits=8)
    lasting = unit._session.shared_values
    assert lasting and not any(n.endswith((".codes", ".integers")) for n in lasting)


@needs_integers
def test_a_matrix_that_two_products_read_is_there_once() -> None:
    model = onnx.load_model_from_string(product(8, 2, twice=True).payload)
    model.graph.node[1].input[1:] = ["codes", "scales"]
    del model.graph.initializer[2:]
    twice = replace(product(8, 2), payload=model.SerializeToString())
    weights = dict(zip(("codes", "scales"), pack(matrix(0), 8, 2), strict=True))
    x = np.random.default_rng(6).standard_normal((1, 3, INNER)).astype(np.float32)
    found = integer.rewritten(twice, weights)
    assert len(found.packed) == 1
    np.testing.assert_array_equal(run(found, x), run(integer.rewritten(product(8, 2), weights), x))


@needs_integers
@pytest.mark.parametrize(("kind", "attribute"), [("MatMulNBits", "bits"), ("GroupQueryAttention", "kv_num_heads")])
def test_an_operator_without_what_it_needs_is_refused(kind: str, attribute: str) -> None:
    """An artifact's hashes fit whatever its maker wrote."""
    decoder = open_decoder(small("qwen2"))
    graph = decoder.graph(bits=8)
    weight = decoder.weights(graph)
    for node in graph.model.graph.node:
        if node.op_type == kind:
            kept = [a for a in node.attribute if a.name != attribute]
            del node.attribute[:]
            node.attribute.extend(kept)
    with pytest.raises(BackendError, match="onnxruntime"):
        stage(graph, {n: weight(n) for n in graph.weights}, "onnxruntime")


@needs_integers
def test_an_artifact_runs_its_four_bits_as_rows(tmp_path: Path) -> None:
    model = small("qwen2")
    job, how = Generation(prompt=8, tokens=8, samples=16), DecoderSettings("int4")
    timed = compile_decoder(model, job, Settings(threads=1, failover=False), how)
    assert any(t.candidate.endswith(INTEGER_ROWS) and t.bits == 4 for t in timed.timings)
    plain = compile_decoder(model, job, Settings("onnxruntime:CPU", measure=False, threads=1), how)
    phases = {
        n: PhaseUnits(p.plan, [replace(u, program=with_integer_rows(u.program)) for u in p.units], p.bits)
        for n, p in plain.phases.items()
    }
    replace(plain, phases=phases).save(tmp_path / "rows.qeil")
    loaded = load_decoder(tmp_path / "rows.qeil")
    assert 0 < loaded.compiled.verify() < 0.1
    assert all(in_rows(u) for p in loaded.compiled.phases.values() for u in p.units)
    assert not any(n.endswith(".codes") for n in loaded.compiled.start()._prompt[0]._session.shared_values)
    found = Runner(loaded.compiled).generate([[1, 2, 3]], n=2, max_tokens=4, ignore_eos=True)
    assert all(0 <= t < VOCAB for c in found[0] for t in c.tokens)
