"""OpenVINO: CPU, GPU, NPU; neighbouring stages on several devices run as one HETERO model."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import openvino as ov
from openvino.passes import ConstantFolding, Manager

from qeil_compile.backends.base import DecoderStage, EngineDevice, Executable, Support
from qeil_compile.backends.onnx_tools import ask_one_by_one, weights_as_inputs, whole_program
from qeil_compile.errors import BackendError
from qeil_compile.forms.program import Form, Source, StageProgram

#: Prefix of the second names under which the CPU plugin stands in for a device that is not here; OpenVINO
#: wants a plugin's own name in every name it is registered under.
EMULATED = "CPUFOR"
_KNOWN = {"CPU": "cpu", "GPU": "gpu", "NPU": "npu"}
#: numpy has no such types of its own (`ml_dtypes` adds them); OpenVINO takes their bits.
_CARRIED = {"bfloat16": ov.Type.bf16, "float8_e4m3fn": ov.Type.f8e4m3, "float8_e5m2": ov.Type.f8e5m2,
            "float8_e8m0fnu": ov.Type.f8e8m0}  # fmt: skip
#: Results must not depend on the device: OpenVINO would otherwise pick bfloat16 or float16 by itself.
_CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


#: What OpenVINO and its Python layer raise for a model that they cannot compile or run.
FAILURES = (LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class OpenVinoBackend:
    """Devices are OpenVINO's names: `CPU`, `GPU`, `GPU.0`, `NPU`."""

    name = "openvino"

    @cached_property
    def core(self) -> Any:
        """One core for the process: plugins registered under second names live in it."""
        return ov.Core()

    def version(self) -> str:
        """Version of OpenVINO."""
        return str(ov.__version__)

    def forms(self) -> tuple[Form, ...]:
        """ONNX only."""
        return ("onnx",)

    def devices(self) -> list[EngineDevice]:
        """CPU, GPU and NPU with the plugin's own reason where one is missing, and what else is registered."""
        here = [d for d in self.core.available_devices if not d.startswith(EMULATED)]
        found = [self._device(d, True, "") for d in here]
        for name in _KNOWN:
            if not any(d == name or d.startswith(f"{name}.") for d in here):
                found.append(self._device(name, False, self._reason(name)))
        return found

    def _device(self, name: str, ok: bool, reason: str) -> EngineDevice:
        title = name
        if ok:
            with contextlib.suppress(RuntimeError):
                title = str(self.core.get_property(name, "FULL_DEVICE_NAME")).strip()
        return EngineDevice(f"openvino:{name}", _KNOWN.get(name.split(".")[0], "cpu"), f"OpenVINO {title}", ok, reason)

    def _reason(self, name: str) -> str:
        try:
            found = self.core.get_property(name, "AVAILABLE_DEVICES")
        except RuntimeError as error:
            # The plugin's library may not load (no driver), or find no device.
            return _line(error)
        return f"the {name} plugin loads but finds no device (it lists {list(found)})"

    def emulate(self, device: str) -> str:
        """Name under which the CPU plugin stands in for `device`; registered on first use."""
        # OpenVINO refuses a name that does not contain the plugin's own.
        alias = f"{EMULATED}{device.replace('.', '').replace('_', '')}CPU"
        with contextlib.suppress(RuntimeError):  # registered already
            self.core.register_plugin("openvino_intel_cpu_plugin", alias)
        return alias

    def supports(self, source: Source, device: str) -> list[Support]:
        """Asked of the plugin by `query_model`; operator by operator when the whole model is refused."""
        try:
            accepted = self._query(source, whole_program(source), device)
        except BackendError:
            return ask_one_by_one(source, lambda program: self._refusal(source, program, device))
        if all(accepted.values()):
            return [Support(True)] * len(source.graph.ops)
        return ask_one_by_one(source, lambda program: self._refusal(source, program, device))

    def _refusal(self, source: Source, program: StageProgram, device: str) -> str:
        """`query_model` forgets operators that a plugin fuses away: compiling is the last word."""
        try:
            self.compile(program, {n: source.weight(k) for n, k in program.weights.items()}, device)
        except BackendError as error:
            return str(error)
        return ""

    def _query(self, source: Source, program: StageProgram, device: str) -> dict[str, bool]:
        """Tensor name -> whether the operator that writes it is supported."""
        weights = _dense({n: source.weight(k) for n, k in program.weights.items()})
        model = self._read(program, weights, device)
        try:
            listed = self.core.query_model(model, device, _config(device))
        except RuntimeError as error:
            raise BackendError(f"openvino:{device}: {_line(error)}") from error
        return {
            name: op.get_friendly_name() in listed
            for op in model.get_ordered_ops()
            if op.get_type_name() not in ("Parameter", "Constant", "Result")
            for output in op.outputs()
            for name in output.get_names()
        }

    def compile(
        self,
        program: StageProgram,
        weights: Mapping[str, np.ndarray],
        device: str,
        exclusive: bool = True,
        threads: int = 0,
    ) -> Executable:
        """Compile a stage, or several neighbouring ones by their affinity. Weights are shared, not copied."""
        weights = _dense(weights)
        model = self._read(program, weights, device)
        try:
            if program.affinity:
                device = _set_affinity(model, program.affinity)
            compiled = self.core.compile_model(model, device, _config(device, threads))
            return _Executable(compiled, device, program.inputs, weights)
        except FAILURES as error:
            raise BackendError(f"openvino:{device}: {_line(error)}") from error

    def compile_decoder(
        self,
        program: StageProgram,
        states: Mapping[str, str],
        weights: Mapping[str, np.ndarray],
        device: str,
        exclusive: bool = True,
        threads: int = 0,
    ) -> DecoderStage:
        """Compile a stage of a decoder, its states variables of the request."""
        from qeil_compile.backends.openvino.decoder import OvDecoderStage, prepared, reading, with_variables

        weights = _dense(weights)
        try:
            with reading(weights):
                model = self._decoders.read_model(prepared(program.payload, weights))
            _bind_weights(model, weights, False)
            model = with_variables(model, states)
            config = _config(device, threads)
            if device.startswith("CPU"):
                # Keys and values would be stored in 8 bits by default.
                config["KV_CACHE_PRECISION"] = "f32"
            compiled = self._decoders.compile_model(model, device, config)
            return OvDecoderStage(compiled, states, weights, [o for o in program.outputs if o not in states.values()])
        except Exception as error:  # the ONNX reader raises types of its own
            raise BackendError(f"openvino:{device}: {_line(error)}") from error

    @cached_property
    def _decoders(self) -> Any:
        """The core, with the translations of a decoder's operators."""
        from qeil_compile.backends.openvino.decoder import extensions

        for extension in extensions():
            self.core.add_extension(extension)
        return self.core

    def _read(self, program: StageProgram, weights: Mapping[str, np.ndarray], device: str) -> Any:
        payload = weights_as_inputs(program) if program.weights else program.payload
        try:
            model = self.core.read_model(payload)
            if program.affinity:
                # HETERO cuts shape arithmetic and masks, which hang on no input, into sub-models of their own and
                # fails on them. Weights are still inputs here: they are not folded, so stay shared.
                _fold_constants(model)
            _bind_weights(model, weights, bool(program.affinity))
        except Exception as error:  # the ONNX reader raises types of its own
            raise BackendError(f"openvino:{device}: {_line(error)}") from error
        return model


def _config(device: str, threads: int = 0) -> dict[str, Any]:
    """Properties of a device, or of every device of a HETERO string."""
    name, _, members = device.partition(":")
    if name == "HETERO":
        return {"DEVICE_PROPERTIES": {member: _config(member, threads) for member in members.split(",")}}
    # An NPU computes in float16 and knows no such hint.
    config = {k: v for k, v in _CONFIG.items() if not (name.startswith("NPU") and k == "INFERENCE_PRECISION_HINT")}
    return config | ({"INFERENCE_NUM_THREADS": threads} if threads and name.startswith("CPU") else {})


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    while text.startswith("Exception from "):
        text = text.split(": ", 1)[1] if ": " in text else text.split(" ", 3)[-1]
    # Where the engine is installed says nothing about what is missing.
    return re.sub(r'"/[^"]*/([^"/]+)"', r'"\1"', text)[:300]


def _fold_constants(model: Any) -> None:
    """Fold what hangs on no input, and give each reader a constant of its own.

    HETERO cuts at a constant with readers in several stages, however small it is: 79 sub-models for 3 stages.
    """
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant":
            for target in list(op.output(0).get_target_inputs())[1:]:
                target.replace_source_output(ov.op.Constant(op.tensor_view, shared_memory=False).output(0))


def _dense(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """C-contiguous arrays. OpenVINO shares their memory and does not own it: the caller keeps them alive."""
    return {name: np.asarray(array, order="C") for name, array in weights.items()}


def _bind_weights(model: Any, weights: Mapping[str, np.ndarray], one_each: bool) -> None:
    """Constants over the arrays' memory in place of the inputs with their names; one per reader if asked."""
    for parameter in list(model.get_parameters()):
        array = weights.get(next((n for n in parameter.output(0).get_names() if n in weights), ""))
        if array is None:
            continue
        constant = None
        for target in parameter.output(0).get_target_inputs():
            if constant is None or one_each:
                constant = ov.op.Constant(_tensor(array), shared_memory=True)
                constant.set_friendly_name(parameter.get_friendly_name())
            target.replace_source_output(constant.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _tensor(array: np.ndarray) -> Any:
    """The array's own memory as a tensor: OpenVINO never writes to constants and inputs."""
    carried = None if array.dtype.isbuiltin == 1 else _CARRIED.get(array.dtype.name)
    if carried is None:
        return ov.Tensor(_writeable(array), shared_memory=True)
    carrier = np.uint16 if array.itemsize == 2 else np.uint8
    return ov.Tensor(_writeable(array.view(carrier)), list(array.shape), carried)


def _writeable(array: np.ndarray) -> np.ndarray:
    """A view that claims to be writeable: OpenVINO shares no other, and never writes to a constant.

    `array` is contiguous, and the caller keeps it alive: neither the view nor OpenVINO does.
    """
    if array.flags.writeable or not array.nbytes:
        return array if array.flags.writeable else array.copy()
    raw = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memoryview(raw), dtype=np.uint8).view(array.dtype).reshape(array.shape)


def _set_affinity(model: Any, affinity: Mapping[str, str]) -> str:
    """Give every operator a device, because HETERO refuses a partial map; returns the HETERO device string.

    The reader splits one ONNX node into several operators, of which only the last carries the node's
    tensor name: an operator without a name of its own goes where its reader goes.
    """
    operators = model.get_ordered_ops()
    default = next(iter(affinity.values()))
    chosen: dict[str, str] = {}
    for op in reversed(operators):
        named = (affinity.get(n) for o in op.outputs() for n in o.get_names())
        device = next((d for d in named if d), None)
        if device is None:
            readers = (t.get_node().get_friendly_name() for o in op.outputs() for t in o.get_target_inputs())
            device = next((chosen[r] for r in readers if r in chosen), default)
        if op.get_type_name() == "Result":
            source = op.input_value(0)
            device = next((affinity[n] for n in source.get_names() if n in affinity), default)
        chosen[op.get_friendly_name()] = device
        op.get_rt_info()["affinity"] = device
    return "HETERO:" + ",".join(dict.fromkeys(affinity.values()))


class _Executable:
    """One request. Tensors are set and fetched one by one: `infer(list)` would look at each of them in Python."""

    #: Output arrays are the request's own buffers.
    shares_outputs = True

    def __init__(self, compiled: Any, device: str, names: Sequence[str], weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights  # their memory is the model's memory
        self._device = device
        self._request = compiled.create_infer_request()
        _check_types([*compiled.inputs, *compiled.outputs])
        places = _places(compiled.inputs, names)
        self._inputs = [
            (k, i, port.element_type == ov.Type.i64)
            for k, (i, port) in enumerate(zip(places, compiled.inputs, strict=True))
        ]
        types = {v.to_string(): k for k, v in _CARRIED.items()}
        self._outputs = [(k, types.get(port.element_type.to_string())) for k, port in enumerate(compiled.outputs)]
        self._ports = list(compiled.outputs)
        self._text = any(port.element_type == ov.Type.string for port in (*compiled.inputs, *compiled.outputs))

    def __call__(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        request = self._request
        try:
            if self._text:
                found = request.infer({k: inputs[i] for k, i, _ in self._inputs})
                return [found[port] for port in self._ports]
            # The list keeps copies of strided arrays alive until the run has ended.
            arrays = [inputs[i] if inputs[i].flags.c_contiguous else inputs[i].copy("C") for _, i, _ in self._inputs]
            for (k, _, is_long), array in zip(self._inputs, arrays, strict=True):
                # ONNX Runtime hands out C's `long long`, which OpenVINO does not know as int64.
                request.set_input_tensor(k, _tensor(array.view(np.int64) if is_long else array))
            request.infer(share_outputs=True)
            return [_fetched(request.get_output_tensor(k), dtype) for k, dtype in self._outputs]
        except FAILURES as error:
            raise BackendError(f"openvino:{self._device}: {_line(error)}") from error


def _places(ports: Sequence[Any], names: Sequence[str]) -> list[int]:
    """Which of the stage's inputs each port is. The reader drops inputs that no operator reads."""
    place = {name: k for k, name in enumerate(names)}
    found = [next((place[n] for n in port.get_names() if n in place), None) for port in ports]
    if None not in found:
        return [k for k in found if k is not None]
    # An input that is handed straight on gets the output's name; then only the order tells.
    if len(ports) != len(names):
        raise RuntimeError(f"the reader renamed an input of {', '.join(names)} and dropped another one")
    return list(range(len(names)))


def _check_types(ports: Sequence[Any]) -> None:
    types = (p.element_type for p in ports)
    packed = next((t for t in types if t.bitwidth < 8 and t not in (ov.Type.boolean, ov.Type.string)), None)
    if packed is not None:
        raise RuntimeError(f"{packed.to_string()} tensors have no form in which they could enter or leave a stage")


def _fetched(tensor: Any, dtype: str | None) -> np.ndarray:
    """A view of the tensor; OpenVINO hands some types out under another one of the same width."""
    if dtype is None:
        return tensor.data
    import ml_dtypes

    return tensor.data.view(getattr(ml_dtypes, dtype))
