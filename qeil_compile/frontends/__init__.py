"""Models to operator graphs: torch modules and functions, `.pt2` programs, `.onnx` files."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from qeil_compile.errors import InputError, ModelError
from qeil_compile.ir import Workload

from .traced import RUN_SECONDS, Arrays, CallSpec, Traced, check_input, numpy_dtype, sample_inputs

__all__ = ["RUN_SECONDS", "Arrays", "CallSpec", "Traced", "check_input", "numpy_dtype", "sample_inputs", "trace"]


def trace(
    model: Any,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    *,
    workload: Workload | None = None,
    inputs: Arrays | None = None,
    seed: int = 0,
    trust: bool = False,
    allow_operators: Collection[str] = (),
    run_seconds: float = RUN_SECONDS,
) -> Traced:
    """Trace a model to one operator graph.

    `model` is a path to an `.onnx` or `.pt2` file, an ONNX `ModelProto`, an `ExportedProgram`, or a torch
    module or function with example arguments `args`, `kwargs` (tensors; on the meta device the model is
    traced without weights). `workload` binds dynamic dimensions of files and programs; `inputs` gives
    sample inputs by name. A `.pt2` file can run code when it is read and is refused without `trust`; `allow_operators`
    are domains of ONNX operators that may occur although no engine here has them. An ONNX model is run while it is
    traced, and is refused where one run takes more than `run_seconds`. Raises `ModelError`, `UnboundDimensionError`,
    `InputError`.
    """
    workload, inputs = workload or Workload(), inputs or {}
    if isinstance(model, (str, Path)):
        return _trace_file(Path(model), workload, inputs, seed, trust, allow_operators, run_seconds)
    if type(model).__module__.startswith("onnx.") and type(model).__name__ == "ModelProto":
        from .onnx import trace_onnx

        return trace_onnx(model, workload, inputs, seed, allow_operators, run_seconds)
    trace_module, trace_program = _torch_frontend(type(model).__name__)

    if type(model).__name__ == "ExportedProgram":
        return trace_program(model, workload, inputs, seed=seed)
    if args is None and kwargs is None:
        raise InputError(f"{type(model).__name__}: a torch model needs example arguments; pass args=(tensor, ...)")
    return trace_module(model, args or (), kwargs or {}, workload)


def _torch_frontend(model: str) -> tuple[Callable[..., Traced], Callable[..., Traced]]:
    try:
        from .fx import trace_module, trace_program
    except ImportError as error:
        raise ModelError(f"{model}: needs torch, which is not installed here ({error}); install it") from error
    return trace_module, trace_program


def _trace_file(
    path: Path, workload: Workload, inputs: Arrays, seed: int, trust: bool, allow_operators: Collection[str],
    run_seconds: float,
) -> Traced:  # fmt: skip
    if not path.exists():
        raise ModelError(f"{path}: no such file; expected an .onnx or .pt2 model")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; expected an .onnx or .pt2 file")
    if not path.is_file():
        raise ModelError(f"{path}: is no regular file; expected an .onnx or .pt2 file")
    if path.suffix == ".pt2":
        if not trust:
            raise ModelError(
                f"{path}: a .pt2 program holds pickled objects, which can run any code when they are read; pass "
                "--trust (trust=True in Python) if you trust where it comes from, or hand the model over as .onnx"
            )
        _, trace_program = _torch_frontend(str(path))
        return trace_program(path, workload, inputs, seed=seed)
    if path.suffix == ".onnx":
        from .onnx import trace_onnx

        return trace_onnx(path, workload, inputs, seed, allow_operators, run_seconds)
    raise ModelError(f"{path}: suffix {path.suffix or '(none)'} is no known model format; expected .onnx or .pt2")
