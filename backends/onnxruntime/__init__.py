"""ONNX Runtime: CPU, and every execution provider that the installed build has."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort

from qeil_compile.backends.base import DecoderStage, EngineDevice, Executable, Support
from qeil_compile.backends.onnx_tools import ask_one_by_one, whole_program
from qeil_compile.errors import BackendError
from qeil_compile.forms.program import Form, Source, StageProgram

_KINDS = {"CPU": "cpu", "QNN": "npu", "VitisAI": "npu", "Nnapi": "npu", "Rknpu": "npu", "VSINPU": "npu", "CANN": "npu",
          "CoreML": "npu", "Xnnpack": "cpu", "Dnnl": "cpu", "ACL": "cpu", "ArmNN": "cpu"}  # fmt: skip
#: numpy has no such types; values travel as integers of the same width beside the ONNX element type.
_CARRIED = {"tensor(bfloat16)": ("bfloat16", 16), "tensor(float8e4m3fn)": ("float8_e4m3fn", 17),
            "tensor(float8e5m2)": ("float8_e5m2", 19)}  # fmt: skip


class OnnxRuntimeBackend:
    """Devices are provider names without their ending: `CPU`, `CUDA`, `Tensorrt`, `QNN`."""

    name = "onnxruntime"

    def version(self) -> str:
        """Version of ONNX Runtime."""
        return str(ort.__version__)

    def forms(self) -> tuple[Form, ...]:
        """ONNX only."""
        return ("onnx",)

    def devices(self) -> list[EngineDevice]:
        """All providers that ONNX Runtime knows; those missing from this build say so."""
        here = set(ort.get_available_providers())
        found = []
        for provider in ort.get_all_providers():
            short = provider.removesuffix("ExecutionProvider")
            if short == "Azure":  # a remote service, not a device
                continue
            ok = provider in here
            reason = "" if ok else f"the installed onnxruntime {ort.__version__} was built without {provider}"
            found.append(
                EngineDevice(f"onnxruntime:{short}", _KINDS.get(short, "gpu"), f"ONNX Runtime {provider}", ok, reason)
            )
        return found

    def supports(self, source: Source, device: str) -> list[Support]:
        """Whole model first, because that is one question; operator by operator when it is refused."""
        try:
            refused = bool(self._refusal(source, whole_program(source), device))
        except BackendError:  # some operator has no ONNX form
            refused = True
        if refused:
            return ask_one_by_one(source, lambda program: self._refusal(source, program, device))
        return [Support(True)] * len(source.graph.ops)

    def _refusal(self, source: Source, program: StageProgram, device: str) -> str:
        options = _options(device)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            weights = {n: np.ascontiguousarray(source.weight(k)) for n, k in program.weights.items()}
            _session(program, weights, device, options)
        except BackendError as error:
            return str(error)
        return ""

    def compile(
        self,
        program: StageProgram,
        weights: Mapping[str, np.ndarray],
        device: str,
        exclusive: bool = True,
        threads: int = 0,
    ) -> Executable:
        """Compile one ONNX stage for a provider. Never falls back to another provider."""
        # The session reads these arrays in place: a contiguous copy has to live as long as the session.
        weights = {name: np.ascontiguousarray(a) for name, a in weights.items()}
        return _Executable(_session(program, weights, device, _settings(device, exclusive, threads)), weights)

    def integer_rows(self, device: str) -> bool:
        """On the CPU, where its products of integers do not saturate."""
        from qeil_compile.backends.onnxruntime.integer import exact

        return device == "CPU" and exact()

    def compile_decoder(
        self,
        program: StageProgram,
        states: Mapping[str, str],
        weights: Mapping[str, np.ndarray],
        device: str,
        exclusive: bool = True,
        threads: int = 0,
    ) -> DecoderStage:
        """Compile a stage of a decoder, its states in buffers bound to the session."""
        from qeil_compile.backends.onnxruntime.decoder import decoder_stage, readable_in_place
        from qeil_compile.backends.onnxruntime.integer import rewritten
        from qeil_compile.backends.onnxruntime.prefix import shared_prefix

        kept: Mapping[str, np.ndarray] = {name: np.ascontiguousarray(a) for name, a in weights.items()}
        own: frozenset[str] = frozenset()
        try:
            if self.integer_rows(device):
                found = rewritten(program, kept)
                program, kept, own = found.program, found.weights, found.packed
            running = replace(program, payload=shared_prefix(program.payload, states)) if device == "CPU" else program
            settings = _settings(device, exclusive, threads)
            session = _session(running, kept, device, settings, readable_in_place(running.payload, kept) - own)
            return decoder_stage(session, program.payload, states)
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
            # States of a form that no cache has; packed weights and attention without what their operators need.
            raise BackendError(f"onnxruntime:{device}: {_line(error)}") from error


def _settings(device: str, exclusive: bool, threads: int) -> Any:
    options = _options(device)
    options.intra_op_num_threads = threads
    if not exclusive:
        # Threads that still spin when a run has ended would take the cores from the next stage's engine; within a run
        # they save each kernel the time to wake them.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _options(device: str) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if device != "CPU":
        # Without this an operator that the provider lacks would silently run on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _session(
    program: StageProgram, weights: Mapping[str, np.ndarray], device: str, options: Any,
    lasting: frozenset[str] = frozenset(),
) -> Any:  # fmt: skip
    """A session. Weights named `lasting` it reads where they are, as long as it lives (see `readable_in_place`)."""
    provider = f"{device}ExecutionProvider"
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"onnxruntime:{device}: this build of ONNX Runtime has no {provider}; "
            f"it has {', '.join(ort.get_available_providers())}"
        )
    try:
        values = {n: _value(a) for n, a in weights.items()}
        if values:
            # Those that the optimisers look into; each is copied into the graph, and a copy that some operator reads
            # as it is stays, beside the form that another one packs for itself.
            options.add_external_initializers(list(values), list(values.values()))
        shared = {name: values[name] for name in lasting}
        for name, value in shared.items():
            options.add_initializer(name, value)
        session = ort.InferenceSession(program.payload, options, providers=[provider])
        session.shared_values = shared  # which it reads, and does not hold
    except Exception as error:  # ONNX Runtime raises a family of types without a common base
        raise BackendError(f"onnxruntime:{device}: {_line(error)}") from error
    if provider not in session.get_providers():
        raise BackendError(f"onnxruntime:{device}: the session fell back to {session.get_providers()}; refused")
    return session


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _value(array: np.ndarray) -> Any:
    array = np.asarray(array, order="C")  # ascontiguousarray would make a scalar one-dimensional
    for name, code in _CARRIED.values():
        if array.dtype.name == name:
            carrier = array.view(np.uint16 if array.itemsize == 2 else np.uint8)
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(carrier, code)
    return ort.OrtValue.ortvalue_from_numpy(array)


class _Executable:
    def __init__(self, session: Any, weights: Mapping[str, np.ndarray]) -> None:
        self._session, self._weights = session, weights
        self._names = [i.name for i in session.get_inputs()]
        self._outputs = [o.name for o in session.get_outputs()]
        self._run = session.run
        if any(not o.shape for o in session.get_outputs()):
            # numpy scalars come back for rank 0; the next engine wants arrays.
            self._run = lambda names, feed: [np.asarray(v) for v in session.run(names, feed)]
        if any(i.type in _CARRIED for i in [*session.get_inputs(), *session.get_outputs()]):
            self._run = self._run_carried

    def __call__(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            return self._run(self._outputs, dict(zip(self._names, inputs, strict=True)))
        except Exception as error:
            raise BackendError(f"onnxruntime: {_line(error)}") from error

    def _run_carried(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        values = self._session.run_with_ort_values(names, {n: _value(a) for n, a in feed.items()})
        return [_array(v) for v in values]


def _array(value: Any) -> np.ndarray:
    carried = _CARRIED.get(value.data_type())
    if carried is None:
        return value.numpy()
    import ml_dtypes

    # Copied at once: the memory belongs to the value.
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, dtype=getattr(ml_dtypes, carried[0])).reshape(value.shape())
