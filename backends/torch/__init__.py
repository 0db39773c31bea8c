"""torch: CPU and CUDA. Runs FX stages as they are, and ONNX stages through its operator table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
import torch

from qeil_compile.backends.base import DecoderStage, EngineDevice, Executable, Support
from qeil_compile.backends.onnx_tools import whole_program
from qeil_compile.errors import BackendError, first_line
from qeil_compile.forms import fx_json
from qeil_compile.forms.fx_source import from_numpy, to_numpy
from qeil_compile.forms.program import Form, Source, StageProgram

_Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
#: What torch raises for a stage that it cannot run.
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class TorchBackend:
    """Devices are torch's names: `cpu`, `cuda:0`."""

    name = "torch"

    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    def forms(self) -> tuple[Form, ...]:
        """FX best; ONNX through the operator table."""
        return ("fx", "onnx")

    def devices(self) -> list[EngineDevice]:
        """CPU and each CUDA device; without CUDA the reason."""
        found = [EngineDevice("torch:cpu", "cpu", "torch eager on the CPU", True)]
        for i in range(torch.cuda.device_count()):
            found.append(EngineDevice(f"torch:cuda:{i}", "gpu", torch.cuda.get_device_name(i), True))
        if not torch.cuda.is_available():
            built = "has no CUDA" if torch.version.cuda is None else "has CUDA but finds no device or driver"
            found.append(EngineDevice("torch:cuda:0", "gpu", "CUDA", False, f"torch {torch.__version__} {built}"))
        return found

    def supports(self, source: Source, device: str) -> list[Support]:
        """torch runs every operator of an FX graph; an ONNX operator needs a rule in the operator table."""
        if source.forms()[0] == "fx":
            return [Support(True)] * len(source.graph.ops)
        from qeil_compile.backends.torch.onnx_program import unsupported_reason

        nodes = {n.name: n for n in onnx.load_model_from_string(whole_program(source).payload).graph.node}
        reasons = (
            unsupported_reason(n.op_type, n.domain, source.graph.opsets.get(n.domain, 1), n) if n else ""
            for n in (nodes.get(op.name) for op in source.graph.ops)  # what nothing reads is cut off
        )
        return [Support(not r, r or "") for r in reasons]

    def compile(
        self,
        program: StageProgram,
        weights: Mapping[str, np.ndarray],
        device: str,
        exclusive: bool = True,
        threads: int = 0,
    ) -> Executable:
        """Put a stage's weights on the device (shared with the arrays on the CPU) and make it callable.

        torch has one pool of threads: `threads` holds for the whole process from here on.
        """
        where = _device(device, threads)
        run = _compile(program, weights, where)
        return _Executable(run, where, weights.values()) if where.type == "cpu" else _CudaExecutable(run, where)

    def compile_decoder(
        self,
        program: StageProgram,
        states: Mapping[str, str],
        weights: Mapping[str, np.ndarray],
        device: str,
        exclusive: bool = True,
        threads: int = 0,
    ) -> DecoderStage:
        """Compile a stage of a decoder, its states tensors on the device. `threads` as in `compile`."""
        from qeil_compile.backends.onnx_tools import appends_by_itself
        from qeil_compile.backends.torch.decoder import AppendingStage, BufferedStage

        where = _device(device, threads)
        graph = onnx.load_model_from_string(program.payload).graph
        shapes = {
            i.name: [d.dim_value if d.HasField("dim_value") else None for d in i.type.tensor_type.shape.dim]
            for i in graph.input
        }
        appends = appends_by_itself(graph, states)
        run = _compile(program, weights, where, in_place=not appends)
        kind = AppendingStage if appends else BufferedStage
        return kind(run, shapes, [o.name for o in graph.output], states, where)


def _device(name: str, threads: int) -> torch.device:
    """The device, if it is here; sets the number of threads of the process. Raises `BackendError`."""
    if threads:
        torch.set_num_threads(threads)
    try:
        where = torch.device(name)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise BackendError(f"torch:{name}: {first_line(error)}") from error
    return where


def _compile(
    program: StageProgram, weights: Mapping[str, np.ndarray], device: torch.device, in_place: bool = False
) -> _Run:
    try:
        return _runnable(program, weights, device, in_place)
    except FAILURES as error:
        raise BackendError(f"torch:{device}: {first_line(error)}") from error


def _runnable(
    program: StageProgram, weights: Mapping[str, np.ndarray], device: torch.device, in_place: bool
) -> _Run:
    if program.form == "onnx":
        from qeil_compile.backends.torch.onnx_program import OnnxProgram

        # Names inside the model may differ from the graph's; the order is the same.
        graph = onnx.load_model_from_string(program.payload).graph
        inputs, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
        return OnnxProgram(program.payload, weights, inputs, outputs, device, in_place)
    module = fx_json.decode(program.payload, device, list(program.weights))
    for i, name in enumerate(program.weights):
        # A plain attribute: modules look buffers up in Python, at every reading.
        del module._buffers[f"w{i}"]
        module.__dict__[f"w{i}"] = from_numpy(weights[name]).to(device)
    forward = module.forward
    return lambda tensors: forward(*tensors)


class _Executable:
    def __init__(self, run: _Run, device: torch.device, weights: Iterable[np.ndarray]) -> None:
        self._run, self._device = run, device
        self._on_cpu = device.type == "cpu"
        self._owned = frozenset(_address(from_numpy(w)) for w in weights)

    def __call__(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            with torch.inference_mode():
                return [to_numpy(t) for t in self._outputs([from_numpy(a) for a in inputs])]
        except FAILURES as error:
            raise BackendError(f"torch:{self._device}: {first_line(error)}") from error

    def run_tensors(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same from and to torch tensors, for a caller that has torch anyway. Raises `BackendError`."""
        try:
            # Tensors of inference mode could not be used in what the caller differentiates afterwards.
            with torch.no_grad():
                return self._outputs(tensors)
        except FAILURES as error:
            raise BackendError(f"torch:{self._device}: {first_line(error)}") from error

    def _outputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not self._on_cpu:
            tensors = [t.to(self._device) for t in tensors]
        # A view of an input or weight would change with the next call, or let the caller change a weight.
        owned, lent = self._owned, {_address(t) for t in tensors}
        return [t.clone() if (a := _address(t)) in lent or a in owned else t for t in self._run(tensors)]


class _CudaExecutable(_Executable):
    """Arrays whose shapes come up again are run by a recording, whose outputs are its own buffers."""

    shares_outputs = True

    def __init__(self, run: _Run, device: torch.device) -> None:
        from qeil_compile.backends.torch.graphs import Recordings

        super().__init__(run, device, ())
        self._recordings = Recordings(device)

    def __call__(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        key = tuple((a.shape, a.dtype) for a in inputs)
        try:
            with torch.inference_mode():
                found = self._recordings.run(key, self._run, inputs)
        except FAILURES as error:
            raise BackendError(f"torch:{self._device}: {first_line(error)}") from error
        return self.launched(inputs) if found is None else [to_numpy(t) for t in found]

    def launched(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """A pass kernel by kernel, as passes run that cannot be recorded. Raises `BackendError`."""
        return super().__call__(inputs)

    def _outputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        from qeil_compile.backends.torch.precision import full_precision

        with full_precision(self._device):
            return super()._outputs(tensors)


def _address(tensor: torch.Tensor) -> int:
    """Where the tensor's storage begins; equal for a tensor and its views."""
    return tensor.untyped_storage().data_ptr()
