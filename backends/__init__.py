"""Engines that run stages: torch, ONNX Runtime, OpenVINO, and whatever registers itself.

Other packages add an engine through the entry-point group `qeil_compile.backends`; each is imported on
first use, and an engine that cannot be imported is a reason in a report, never a crash.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

from qeil_compile.backends.base import Backend, EngineDevice, Executable, Support
from qeil_compile.errors import TargetError

__all__ = ["Backend", "EngineDevice", "Executable", "Support", "backend", "found_devices", "names"]

_OWN = {
    "torch": "qeil_compile.backends.torch:TorchBackend",
    "onnxruntime": "qeil_compile.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "qeil_compile.backends.openvino:OpenVinoBackend",
}


@cache
def _registry() -> dict[str, str]:
    others = {p.name: p.value for p in entry_points(group="qeil_compile.backends")}
    return {**others, **_OWN}


def names() -> list[str]:
    """Names of all registered engines, installed or not."""
    return list(_registry())


@cache
def backend(name: str) -> Backend:
    """The engine's backend. Raises `TargetError` for an unknown name or an engine that cannot be imported."""
    value = _registry().get(name)
    if value is None:
        close = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise TargetError(f"engine {name}: unknown; expected one of {', '.join(names())}{hint}")
    module, _, attribute = value.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)()
    except ImportError as error:
        raise TargetError(f"engine {name}: not installed here ({error}); pip install it") from error


def found_devices(engines: Iterable[str] | None = None) -> list[EngineDevice]:
    """Every device of these engines (all by default), available or not, with the reason."""
    found: list[EngineDevice] = []
    for name in names() if engines is None else dict.fromkeys(engines):
        try:
            found += backend(name).devices()
        except TargetError as error:
            found.append(EngineDevice(f"{name}:-", "cpu", name, False, str(error)))
    return found
