"""Language models: prompt and steps planned together, run with a cache that stays in its engine.

    runner = Runner(compile_decoder("checkpoint/", Generation(prompt=256, tokens=64, samples=16)))
    runner.compiled.save("model.qeil")
    load_decoder("model.qeil").generate("Once upon a time", n=8, temperature=0.8)
"""

from __future__ import annotations

from pathlib import Path

from qeil_compile.artifact.decoder import is_decoder_artifact
from qeil_compile.frontends.decoder import PROMPT, Generation, step_phase, trace_decoder
from qeil_compile.generation import Completion, Event, Sampling
from qeil_compile.language.bench import Speed, StepSpeed, bench
from qeil_compile.language.compile import FORMS, DecoderSettings, compile_decoder
from qeil_compile.language.compiled import CompiledDecoder, PhaseTiming, Quality
from qeil_compile.language.opening import open_language_model
from qeil_compile.language.planning import PlannedDecoder, plan_decoder
from qeil_compile.language.runner import Runner
from qeil_compile.models.decoder import FAMILIES, is_decoder

__all__ = ["FAMILIES", "FORMS", "PROMPT", "CompiledDecoder", "Completion", "DecoderSettings", "Event", "Generation",
           "PhaseTiming", "PlannedDecoder", "Quality", "Runner", "Sampling", "Speed", "StepSpeed", "bench",
           "compile_decoder", "is_decoder", "is_decoder_artifact", "load_decoder", "open_language_model",
           "plan_decoder", "step_phase", "trace_decoder"]  # fmt: skip


def load_decoder(path: str | Path) -> Runner:
    """Read a verified artifact of a decoder. Raises `ArtifactError`."""
    return Runner(CompiledDecoder.load(path))
