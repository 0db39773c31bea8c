"""From a plan's placements to the engines of this machine.

A placement whose device is here runs there. Otherwise another engine device stands in ("emulated"): for
OpenVINO its CPU plugin under a second name, so that the multi-device path is the true one; for torch and
ONNX Runtime their CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qeil_compile.backends import EngineDevice, backend
from qeil_compile.errors import TargetError

_STAND_IN = {"torch": "cpu", "onnxruntime": "CPU"}


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a placement runs here: `device` is the engine's name for it; `reason` says why it is emulated."""

    engine: str
    device: str
    emulated: bool
    reason: str = ""


def resolve(placements: Iterable[str], found: Sequence[EngineDevice]) -> dict[str, Resolved]:
    """One answer per placement. Raises `TargetError` when the engine itself is not installed."""
    known = {d.spec: d for d in found}
    answers: dict[str, Resolved] = {}
    for spec in dict.fromkeys(placements):
        engine, _, device = spec.partition(":")
        here = known.get(spec) or known.get(f"{spec}.0") or known.get(f"{spec}:0")
        if here is not None and here.available:
            answers[spec] = Resolved(engine, device, False)
            continue
        reason = here.reason if here is not None else f"{engine} lists no device {device} on this machine"
        answers[spec] = Resolved(engine, _stand_in(engine, device), True, reason)
    return answers


def _stand_in(engine: str, device: str) -> str:
    emulate = getattr(backend(engine), "emulate", None)
    if emulate is not None:
        return str(emulate(device))
    if engine not in _STAND_IN:
        raise TargetError(f"engine {engine}: device {device} is not here and nothing can stand in for it")
    return _STAND_IN[engine]
