"""Decoders as operator graphs: one model, bound to the sizes of each phase.

The graph of a phase has the model's operators and weights under the same names, so that phases are planned as one
problem and cut out of one source. No weight is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx

from qeil_compile.errors import InputError
from qeil_compile.forms.onnx_source import OnnxSource, build_graph, dtype_name
from qeil_compile.frontends.onnx import trace_onnx
from qeil_compile.frontends.traced import numpy_dtype
from qeil_compile.ir import OpGraph, Workload
from qeil_compile.models.decoder import Decoder, DecoderGraph, ExportedDecoder, bind

PROMPT = "prefill"


@dataclass(frozen=True)
class Generation:
    """What a decoder is used for: `prompts` of `prompt` tokens at once, `samples` of each, `tokens` steps.

    `buckets` are numbers of live rows that are planned apart, with the share of the steps that each serves; by default
    all rows live to the end.
    """

    prompt: int = 256
    tokens: int = 64
    samples: int = 1
    prompts: int = 1
    buckets: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompt", "tokens", "samples", "prompts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected a number from 1")
        wrong = [k for k, share in self.buckets.items() if k < 1 or not share > 0]
        if wrong:
            raise InputError(f"bucket {wrong[0]}: expected a number of rows from 1 with a share above 0")

    @property
    def rows(self) -> int:
        """Rows that live at most."""
        return self.prompts * self.samples

    @property
    def shares(self) -> dict[int, float]:
        """Rows -> share of the steps, adding up to 1."""
        found = dict(self.buckets) or {self.rows: 1.0}
        total = sum(found.values())
        return {k: found[k] / total for k in sorted(found)}


def step_phase(rows: int) -> str:
    """Name of the phase of steps with so many live rows."""
    return f"decode at {rows}"


@dataclass(frozen=True)
class TracedDecoder:
    """A decoder's phases. `runs` says how often each runs per use, `carried` what a step reads of the prompt."""

    decoder: Decoder | ExportedDecoder
    whole: DecoderGraph
    workload: Generation
    phases: Mapping[str, OpGraph]
    runs: Mapping[str, float]
    weight: Callable[[str], np.ndarray] | None
    seconds: float

    @property
    def carried(self) -> Mapping[str, str]:
        """Input of a step -> output of the prompt that it holds."""
        return self.whole.states

    @cached_property
    def source(self) -> OnnxSource:
        """What stages are cut out of: sizes stay open. Weights come when they are asked for."""
        model = self.whole.model
        return OnnxSource(build_graph(model, self.decoder.name), model, _Lazy(self.whole.weights, self.weight))


class _Lazy(Mapping[str, np.ndarray]):
    """Arrays by name, made on request."""

    def __init__(self, names: Mapping[str, object], weight: Callable[[str], np.ndarray] | None) -> None:
        self._names, self._weight = names, weight

    def __getitem__(self, name: str) -> np.ndarray:
        if self._weight is None or name not in self._names:
            raise KeyError(name)
        return self._weight(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def trace_decoder(
    decoder: Decoder | ExportedDecoder, workload: Generation, dtype: str = "float32", bits: int | None = None,
    seed: int | None = None,
) -> TracedDecoder:  # fmt: skip
    """Graphs of the prompt and of the steps; `dtype`, `bits` as in `decoder_graph`, `seed` for random weights where the
    decoder has none. An exported decoder keeps its own types.

    Raises `InputError` where the workload does not fit into the context.
    """
    started = time.perf_counter()
    whole = decoder.whole if isinstance(decoder, ExportedDecoder) else decoder.graph(dtype, bits)
    context = whole.facts.context
    if workload.prompt + workload.tokens > context:
        raise InputError(
            f"prompt of {workload.prompt} and {workload.tokens} new tokens: {decoder.name} has a context of {context}"
        )
    sizes = {PROMPT: (workload.prompts, workload.prompt, 0)}
    # A step's cache is halfway between the prompt's end and the last token.
    past = workload.prompt + workload.tokens // 2
    sizes |= {step_phase(rows): (rows, 1, past) for rows in workload.shares}
    phases = {}
    for name, size in sizes.items():
        title = f"{decoder.name}, {name}"
        if isinstance(decoder, ExportedDecoder):
            graph = _exported_phase(decoder, whole, title, *size)
        else:
            graph = phase_graph(decoder, whole, title, *size)
        phases[name] = replace(graph, states=frozenset((*whole.states, *whole.states.values())))
    runs = {PROMPT: 1.0} | {step_phase(k): share * workload.tokens for k, share in workload.shares.items()}
    weight: Callable[[str], np.ndarray] | None = None
    if isinstance(decoder, ExportedDecoder):
        weight = decoder.arrays.__getitem__
    elif decoder.tensors is not None or seed is not None:
        weight = decoder.weights(whole, seed)
    return TracedDecoder(decoder, whole, workload, phases, runs, weight, time.perf_counter() - started)


def phase_graph(
    decoder: Decoder, whole: DecoderGraph, name: str, rows: int, new: int, past: int, scored: int = 1
) -> OpGraph:
    """`whole` for `rows` sequences of `new` tokens behind a cache of `past`; `scored` positions of each get logits."""
    joined = new + decoder.config.taps - 1
    dims = {"batch": rows, "new": new, "past": past, "total": past + new, "rows": scored, "joined": joined}
    return build_graph(bind(whole.model, dims), name)


def _exported_phase(
    decoder: ExportedDecoder, whole: DecoderGraph, name: str, rows: int, new: int, past: int
) -> OpGraph:
    """Shapes are those of a run."""
    past = max(past, 1)  # an empty cache has no shape that inference takes; for a price one place more is nothing
    dims = {"batch": rows, "new": new, "past": past, "total": past + new, "rows": 1}
    model = onnx.ModelProto()
    model.CopyFrom(decoder.filled())
    model.graph.name = name
    known = {"tokens", "mask", "positions", "take", *whole.states}
    given: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name not in known:
            continue
        shape = [dims.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim]
        kind = numpy_dtype(dtype_name(value.type.tensor_type.elem_type))
        given[value.name] = np.ones(shape, kind) if value.name == "mask" else np.zeros(shape, kind)
    return trace_onnx(model, Workload(dims), given).graph
