"""Which ONNX operators have a rule, and that no graph makes the count fail."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from math import isfinite
from typing import Any

import onnx
import pytest
from onnx import defs

from qeil_compile.ir import Op, OpGraph, TensorSpec
from qeil_compile.passes.count import count
from qeil_compile.passes.count.formulas import FUNCTION
from qeil_compile.passes.count.onnx import RULES
from tests.count_graphs import count_one

F = "float32"
TRIES = 10  # random graphs per operator and opset

#: Operators whose arithmetic has no formula in shapes: Gradient costs what the graph between its tensors costs, which
#: it only names; what ImageDecoder does depends on the format and the entropy of the bytes. Both are reported.
NO_RULE = {"ai.onnx.preview.training.Gradient", "onnx.ImageDecoder"}

#: Every operator of four published models: Magika, Silero VAD (two exports), Ultra-Light face detection.
IN_PUBLISHED_MODELS = """
    Add BatchNormalization Cast Concat Constant ConstantOfShape Conv Div Equal Exp Expand Gather GlobalMaxPool
    Identity If LSTM MatMul Max Mul Not Pad Pow Reciprocal ReduceMax ReduceMean ReduceSum Relu Reshape Shape
    Sigmoid Size Slice Softmax Sqrt Squeeze Sub Tanh Transpose Unsqueeze
"""


def full_name(domain: str, name: str) -> str:
    return f"{domain or 'onnx'}.{name}"


def test_every_operator_of_onnx_has_a_rule() -> None:
    names = {full_name(s.domain, s.name) for s in defs.get_all_schemas_with_history()}
    assert names - RULES.keys() == NO_RULE & names
    assert {f"onnx.{n}" for n in IN_PUBLISHED_MODELS.split()} <= RULES.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_node_case_of_onnx_counts() -> None:
    """The backend tests of onnx: real shapes and attributes of every operator, all opsets current."""
    from onnx.backend.test.case.node import collect_testcases

    unknown = set()
    total = 0
    for case in collect_testcases(None):
        graph = from_model(case.model)
        for op, c in zip(graph.ops, count(graph), strict=True):
            total += 1
            assert isfinite(c.flops) and c.flops >= 0 and c.nbytes >= 0, op
            # Bodies are not built here, so that a loop counts as a bare operator.
            unknown |= set() if c.known else {op.type}
    assert total > 1000
    assert unknown <= NO_RULE


def from_model(model: onnx.ModelProto) -> OpGraph:
    """A plain reading of the top graph; the types are those that shape inference gives."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    tensors: dict[str, TensorSpec] = {}
    for role, values in (("activation", [*inferred.value_info, *inferred.output]), ("input", inferred.input)):
        for value in values:
            kind = value.type.tensor_type
            shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
            known = value.type.HasField("tensor_type") and kind.HasField("shape")
            tensors[value.name] = TensorSpec(value.name, shape if known else None, F, role)  # type: ignore[arg-type]
    ops = tuple(
        Op(
            str(i),
            full_name(n.domain, n.op_type),
            tuple(n.input),
            tuple(n.output),
            {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute},
        )
        for i, n in enumerate(inferred.node)
    )
    return OpGraph("case", "onnx", ops, tensors, (), (), {o.domain: o.version for o in model.opset_import})


def test_no_schema_makes_the_count_fail() -> None:
    """Made-up ranks, sizes and types, attributes present, missing or of the wrong type."""
    rng = random.Random(7)
    dtypes = [F, "float16", "int64", "uint8", "bool", "opaque", "string", "uint4"]
    junk: list[Any] = [0, 1, 2, -1, 1.5, "sum", "ij,jk->ik", [], [1, 2], [0.5], ["a"], None, b"x", {}, True]

    def specs(formal: list[Any]) -> list[tuple[str, list[int | None] | None]]:
        shapes = [
            None if rng.random() < 0.1 else [rng.choice([None, 0, 1, 2, 5]) for _ in range(rng.randrange(6))]
            for _ in formal
        ]
        return [(rng.choice(dtypes), shape) for shape in shapes]

    schemas = {(s.domain, s.name): s for s in defs.get_all_schemas()}
    contrib = [
        (name.rpartition(".")[0], name.rpartition(".")[2]) for name in RULES if name.startswith("com.")
    ]
    targets = [
        (full_name(d, n), len(s.inputs), len(s.outputs), [*s.attributes]) for (d, n), s in schemas.items()
    ]
    targets += [
        (full_name(d, n), 8, 3, ["k", "K", "N", "num_heads", "bits", "activation"]) for d, n in contrib
    ]
    for (name, inputs, outputs, attributes), opset, _ in itertools.product(targets, (6, 26), range(TRIES)):
        given = {f"i{i}": spec if rng.random() < 0.9 else None for i, spec in enumerate(specs([0] * inputs))}
        chosen = {a: rng.choice(junk) for a in attributes if rng.random() < 0.6}
        for kept in (given, {}):
            c = count_one(name, kept, specs([0] * outputs), chosen, opset=opset)
            assert isfinite(c.flops), name
            assert min(c.flops, c.bytes_in, c.bytes_weights, c.bytes_out) >= 0, name


def test_rules_hold_for_every_function() -> None:
    assert all(isfinite(cost) and cost > 0 for cost in FUNCTION.values())


def test_counting_onnx_does_not_import_torch() -> None:
    code = "import sys, qeil_compile.passes.count; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
