"""ONNX operators in torch, one module a family; importing the package fills the table."""

from __future__ import annotations

from qeil_compile.backends.torch.onnx_ops import (  # noqa: F401 - each module registers its rules
    activation,
    attention,
    contrib,
    control,
    conv,
    elementwise,
    indexing,
    linear,
    movement,
    norm,
    pool,
    quantized,
    recurrent,
    reduce,
    resize,
    scatter,
    sequence,
    shape,
    signal,
    vision,
)
from qeil_compile.backends.torch.onnx_ops.table import find_rule, known_operators

__all__ = ["find_rule", "known_operators"]
