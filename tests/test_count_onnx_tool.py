"""Counts of ONNX models against onnx-tool, a counter made elsewhere (https://github.com/ThanatosShinji/onnx-tool).

It counts multiply-accumulates, of which a bias is one per result; ours counts 2 FLOP each and the bias as the
value that the accumulator starts from. Known gaps of it: operators that it has no profile for (If, GlobalMaxPool),
and functions, to which it gives weights of its own.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import onnx
import onnx_tool
import pytest
from onnx import TensorProto, helper

from qeil_compile.frontends import trace
from qeil_compile.passes.count import count

F = TensorProto.FLOAT
ULTRAFACE = Path(__file__).resolve().parent / "data" / "models" / "ultraface" / "version-RFB-320.onnx"
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def macs_of(model: onnx.ModelProto | str) -> dict[str, float]:
    """Output tensor -> multiply-accumulates of the product that writes it, as onnx-tool counts them."""
    with contextlib.redirect_stdout(io.StringIO()):
        graph = onnx_tool.Model(model).graph
        graph.graph_reorder_nodes()
        graph.shape_infer(None)
        graph.profile()
    return {n.output[0]: float(n.macs[0]) for n in graph.nodemap.values() if n.op_type in PRODUCTS}


def test_every_convolution_of_a_published_model_agrees() -> None:
    graph = trace(ULTRAFACE).graph
    theirs = macs_of(str(ULTRAFACE))
    compared = 0
    for op, c in zip(graph.ops, count(graph), strict=True):
        if op.short_type != "Conv":
            continue
        bias = graph.tensors[op.outputs[0]].elements if len(op.inputs) > 2 else 0
        assert c.flops == 2 * (theirs[op.outputs[0]] - bias), op.name
        compared += 1
    assert compared == len(theirs) == 52


def _model(kind: str, shape: tuple[int, ...], weight: tuple[int, ...], **attributes: object) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    w = onnx.numpy_helper.from_array(rng.standard_normal(weight, np.float32), "w")
    node = helper.make_node(kind, ["x", "w"], ["y"], name="n", **attributes)
    x = helper.make_tensor_value_info("x", F, shape)
    y = helper.make_tensor_value_info("y", F, None)
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [w]), opset_imports=[helper.make_opsetid("", 17)]
    )
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(
    ("kind", "shape", "weight", "attributes"),
    [
        ("MatMul", (7, 16), (16, 5), {}),
        ("MatMul", (2, 3, 7, 16), (16, 5), {}),
        ("Gemm", (7, 16), (5, 16), {"transB": 1}),
        ("Conv", (1, 8, 13, 13), (12, 8, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("Conv", (2, 8, 9, 9), (12, 4, 3, 3), {"group": 2, "dilations": [2, 2]}),
        ("Conv", (1, 8, 9, 9), (8, 1, 3, 3), {"group": 8}),
        ("Conv", (1, 4, 21), (6, 4, 5), {"strides": [2]}),
    ],
)
def test_products_agree(
    kind: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, object]
) -> None:
    model = _model(kind, shape, weight, **attributes)
    (theirs,) = macs_of(model).values()
    graph = trace(_saved(model)).graph
    assert [c.flops for c in count(graph)] == [2 * theirs]


def _saved(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
