"""How a stage's products with packed weights are to be computed, where its engine knows more ways than one."""

from __future__ import annotations

from dataclasses import replace

import onnx

from qeil_compile.forms.program import StageProgram

#: Key of an ONNX stage's metadata, and the one value that says more than its absence.
_PRODUCTS, INTEGER_ROWS = "qeil.products", "integer rows"


def with_integer_rows(program: StageProgram) -> StageProgram:
    """The program that asks for its packed weights as rows of 8-bit integers, whatever bits they are stored in: more
    memory, and faster where many tokens go through a product. Engines that know no such way take no notice."""
    model = onnx.load_model_from_string(program.payload)
    if not asks_integer_rows(model):
        entry = model.metadata_props.add()
        entry.key, entry.value = _PRODUCTS, INTEGER_ROWS
    return replace(program, payload=model.SerializeToString())


def asks_integer_rows(model: onnx.ModelProto) -> bool:
    """Whether a stage's model is one of `with_integer_rows`."""
    return any(p.key == _PRODUCTS and p.value == INTEGER_ROWS for p in model.metadata_props)
