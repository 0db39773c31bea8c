"""Whether an engine really runs a decoder: one small layer with the same kind of heads, asked of the engine itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qeil_compile.backends import backend, found_devices
from qeil_compile.errors import QeilError
from qeil_compile.forms.program import StageProgram
from qeil_compile.models.decoder import DecoderConfig, decoder_graph
from qeil_compile.models.decoder.weights import random_array
from qeil_compile.runtime.resolve import resolve
from qeil_compile.runtime.session import Session


def refusals(config: DecoderConfig, bits: int, specs: Sequence[str]) -> dict[str, str]:
    """Placement -> why it cannot run the decoder; those that can are left out. Absent devices are asked of their
    stand-ins."""
    small = _small(config)
    graph = decoder_graph(small, "float32", bits if bits < 16 else None)
    model = graph.model
    program = StageProgram(
        "onnx", model.SerializeToString(), tuple(i.name for i in model.graph.input),
        tuple(o.name for o in model.graph.output), {n: n for n in graph.weights},
    )  # fmt: skip
    weights = {n: random_array(graph, n) for n in graph.weights}
    found, known = {}, {}
    places = resolve(specs, found_devices({s.partition(":")[0] for s in specs}))
    for spec in specs:
        place = places[spec]
        key = (place.engine, place.device)
        if key not in known:
            known[key] = _refusal(program, dict(graph.states), weights, *key, small)
        if known[key]:
            found[spec] = known[key]
    return found


def _refusal(
    program: StageProgram, states: dict[str, str], weights: dict[str, np.ndarray], engine: str, device: str,
    config: DecoderConfig,
) -> str:
    compile_decoder = getattr(backend(engine), "compile_decoder", None)
    if compile_decoder is None:
        return f"{engine} keeps no cache of a decoder"
    try:
        units = [compile_decoder(program, states, weights, device)]
        session = Session(units, {1: units}, config.vocab, config.context)
        session.prefill([[1, 2], [3]])
        session.select(np.array([1, 1, 0]))
        logits = session.step(np.array([1, 2, 3]))
    except QeilError as error:
        return str(error)
    return "" if np.isfinite(logits).all() else f"{engine}:{device} computes values that are no numbers"


def _small(config: DecoderConfig) -> DecoderConfig:
    """One layer of each kind with few heads and a narrow stream."""
    group = config.heads // config.kv_heads
    kinds = (frozenset({0}) if config.convolutions else frozenset(), 2 if config.convolutions else 1)
    return replace(config, width=64, hidden=64, layers=kinds[1], heads=group, kv_heads=1, vocab=64, context=16,
                   convolutions=kinds[0])  # fmt: skip
