"""Runs of a whole ONNX model while it is traced, each within a time: a model may loop for as long as it likes."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from qeil_compile.errors import InputError, ModelError
from qeil_compile.forms.onnx_source import dtype_name
from qeil_compile.watch import Watch

from .traced import Arrays

T = TypeVar("T")
#: Node name -> (type, shape) of each output.
Events = Mapping[str, list[tuple[str, list[int]]]]
#: The reference of a model with its weights, for one name and one time.
Runs = Callable[[onnx.ModelProto, Arrays], "Reference"]


class OverrunError(ModelError):
    """A run of a model has not ended in the time that it may take."""


class Reference:
    """The unpartitioned model on ONNX Runtime's CPU provider; the specification's own evaluator where that refuses.

    Whatever it does takes no more than `seconds` each time: else it is told to stop, left behind where it does not
    listen, and `OverrunError` is raised.
    """

    def __init__(self, model: onnx.ModelProto, arrays: Arrays, name: str, seconds: float) -> None:
        """Raises `InputError` for a time that is none."""
        import onnxruntime

        if not 0 < seconds <= threading.TIMEOUT_MAX:
            most = f"{threading.TIMEOUT_MAX:g}"
            raise InputError(f"run_seconds: found {seconds} s, expected a time above 0 and at most {most} s")
        self._model, self._arrays, self._name, self._seconds = model, arrays, name, seconds
        self._session: Any = None
        self._options, self._run_options = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
        self._options.log_severity_level = 4

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Outputs in the model's order. Raises `ModelError` when neither evaluator can run the model."""
        return self._run(inputs, None)

    def values(self, inputs: Arrays, names: list[str]) -> dict[str, np.ndarray]:
        """Values that these tensors have in one run; empty if the model cannot be run. Raises `OverrunError`."""
        try:
            values = self._run(inputs, names)
        except OverrunError:
            raise
        except ModelError:
            return {}
        return {n: np.asarray(v) for n, v in zip(names, values, strict=True) if isinstance(v, (np.ndarray, np.generic))}

    def loads(self) -> bool:
        """Whether ONNX Runtime accepts the model. Raises `OverrunError`."""
        try:
            self._session = self._within(self._open)
        except OverrunError:
            raise
        except ModelError:
            return False
        return True

    def profile(self, inputs: Arrays) -> Events:
        """What each node gave in one run of ONNX Runtime without optimisation. Raises `ModelError`."""
        import onnxruntime

        self._options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            self._options.profile_file_prefix = str(Path(folder) / "run")
            return self._within(lambda: self._profiled(inputs))

    # ---- inside

    def _run(self, inputs: Arrays, names: list[str] | None) -> list[np.ndarray]:
        return self._within(lambda: self._outputs(dict(inputs), names))

    def _outputs(self, inputs: dict[str, np.ndarray], names: list[str] | None) -> list[np.ndarray]:
        import onnxruntime

        self._session = self._session or self._make()
        if isinstance(self._session, onnxruntime.InferenceSession):
            return list(self._session.run(names, inputs, self._run_options))
        return list(self._session.run(names, inputs))

    def _profiled(self, inputs: Arrays) -> Events:
        session = self._open()
        session.run(None, dict(inputs), self._run_options)
        found: dict[str, list[tuple[str, list[int]]]] = {}
        for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
            name = event["name"]
            if name.endswith("_kernel_time"):
                shapes = event["args"].get("output_type_shape", [])
                found.setdefault(name.removesuffix("_kernel_time"), [kv for s in shapes for kv in s.items()])
        return found

    def _within(self, call: Callable[[], T]) -> T:
        watch = Watch()
        try:
            return watch.call(call, self._seconds)
        except TimeoutError as error:
            self._stop()
            raise OverrunError(
                f"model {self._name}: a run of it has not ended after {self._seconds:g} s; if it is meant to take "
                "longer, allow that with --run-seconds N (run_seconds=N in Python)"
            ) from error
        except Exception as error:  # both evaluators raise types of their own
            raise ModelError(f"model {self._name}: cannot be run as it is ({_line(error)})") from error
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            watch.close()

    def _stop(self) -> None:
        """Heard between two operators, or two turns of a loop; by the evaluator when it begins a graph."""
        self._options.set_load_cancellation_flag(True)
        self._run_options.terminate = True

    def _make(self) -> Any:
        try:
            return self._open()
        except Exception:  # ONNX Runtime has no kernel for some operators of the standard
            if self._run_options.terminate:
                raise
            return self._evaluator()

    def _open(self) -> Any:
        import onnxruntime

        values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for n, a in self._arrays.items()}
        if values:
            self._options.add_external_initializers(list(values), list(values.values()))
        return onnxruntime.InferenceSession(
            self._model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )

    def _evaluator(self) -> Any:
        from onnx.reference import ReferenceEvaluator

        options = self._run_options

        class Evaluator(ReferenceEvaluator):  # bodies of loops are run by the same class
            def run(self, *args: Any, **kwargs: Any) -> Any:
                if options.terminate:
                    raise TimeoutError
                return super().run(*args, **kwargs)

        return Evaluator(self._whole())

    def _whole(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if tensor.name in self._arrays:
                assert dtype_name(tensor.data_type) != "string"
                tensor.CopyFrom(onnx.numpy_helper.from_array(self._arrays[tensor.name], tensor.name))
        return model


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
