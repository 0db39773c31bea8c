"""What a backend receives: one stage in a portable form, with its weights by name.

Two forms travel, in memory and in artifacts alike: `onnx` (a serialized ModelProto whose large
initializers are declared as external data and listed in `weights`) and `fx` (the JSON of
`forms.fx_json`). Neither holds code or pickled objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from qeil_compile.ir import OpGraph

Form = Literal["onnx", "fx"]
#: Initializers up to this size stay inside the ONNX form: engines fold shapes, axes and clip limits
#: while they read a model, so these must be constants there.
INLINE_BYTES = 4096


@dataclass(frozen=True)
class StageProgram:
    """One stage, cut from the source model.

    `inputs` and `outputs` are tensor names in calling order. `weights` maps the names that the form
    uses to keys of the weight store. `affinity` (OpenVINO only) maps tensor names to the engine device
    that must run the operator writing them, when several neighbouring stages are lowered as one.
    """

    form: Form
    payload: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A traced model that can be cut. Implemented by `forms.onnx_source` and `forms.fx_source`."""

    @property
    def graph(self) -> OpGraph:
        """The operator graph whose tensors and operators the cuts name."""
        ...

    def forms(self) -> tuple[Form, ...]:
        """Forms that this model can be cut into; the first is its own."""
        ...

    def cut(self, form: Form, ops: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]) -> StageProgram:
        """The sub-model that computes `outputs` from `inputs` by the operators `ops`."""
        ...

    def weight(self, key: str) -> np.ndarray:
        """The array of one weight. Raises `ModelError` for a model traced without weights (meta device)."""
        ...
