"""A compiled model: its plan, its units, and how to call, check and time it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.artifact import Contents, Golden, Sizes, write
from qeil_compile.backends import backend, found_devices
from qeil_compile.errors import ArtifactError, InputError, TargetError, VerificationError
from qeil_compile.frontends.traced import CallSpec, check_input, numpy_dtype
from qeil_compile.ir import OpGraph, Workload
from qeil_compile.passes.lower import LoweredUnit
from qeil_compile.plan import Plan

from .compare import Difference, compare
from .executor import Executor, build_executor, compile_unit
from .explain import Explanation, explain
from .failover import names_used, spare_for
from .guard import Guard
from .measure import Timing, interleaved
from .resolve import Resolved, resolve


@dataclass
class Compiled:
    """A plan with its lowered units, and those of its spare plans. Engines are started on the first run."""

    graph: OpGraph
    plan: Plan
    units: Sequence[LoweredUnit]
    weight: Callable[[str], np.ndarray]
    golden: Golden
    workload: Workload
    costs: Mapping[str, Any] = field(default_factory=dict)
    call: CallSpec | None = None
    #: Seconds of each compile step, measured.
    seconds: dict[str, float] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=dict)
    #: CPU threads of each engine; 0 leaves the number to the engine.
    threads: int = 0
    #: Units of each of `plan.spares`.
    spares: Sequence[Sequence[LoweredUnit]] = ()
    _without: dict[int, Compiled] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def failovers(self) -> dict[str, Plan]:
        """Name of what may be lost (placement, device, engine) -> the plan that does without it, where there is one."""
        plan = self.plan
        return {n: plan.spares[f.spare] for f in plan.failovers if f.spare is not None for n in f.names}

    def without(self, *lost: str) -> Compiled:
        """The model compiled without placements ("openvino:CPU"), devices ("gpu") or engines ("openvino").

        Nothing is compiled but the stages of that plan, on its first run; it is the same object each time. This object
        itself where its plan uses nothing of what is lost. Raises `FailoverError` where no plan does without it, and
        why; `InputError` for a name that the target does not have.
        """
        k = spare_for(self.plan, self.costs, lost)
        if k is None:
            return self
        return self.numbered(k + 1)

    def numbered(self, k: int) -> Compiled:
        """By its own plan (0), or by its spare k - 1; the same object each time."""
        # Of several threads that ask at once all get the same one.
        return self._without.setdefault(k - 1, self.spare(k - 1)) if k else self

    def spare(self, k: int) -> Compiled:
        """Spare plan k, with nothing started; it shares the weights of this one."""
        return replace(
            self, plan=self.plan.spares[k], units=self.spares[k], golden=replace(self.golden, boundaries={}),
            spares=(), seconds={}, timings={},
        )  # fmt: skip

    @cached_property
    def resolved(self) -> dict[str, Resolved]:
        """Where each placement of the plan runs on this machine."""
        specs = [s.placement for s in self.plan.stages]
        # Only the plan's engines are asked: an artifact without torch stages must not import torch.
        return resolve(specs, found_devices(spec.partition(":")[0] for spec in specs))

    @property
    def emulated(self) -> dict[str, str]:
        """Placements whose device is not here, with the reason; their stages run on a stand-in."""
        return {spec: r.reason for spec, r in self.resolved.items() if r.emulated}

    @cached_property
    def executor(self) -> Executor:
        """The running form; compiles all units on first use."""
        return self.start()

    def start(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Executor:
        """Compile every unit on its engine."""
        self.__dict__["executor"] = executor = build_executor(
            self.units, self.weight, self.resolved, self.graph.inputs, self.graph.outputs, progress, self.threads
        )
        return executor

    def start_guarded(self, guard: Guard, isolate: bool, progress: Callable[[int, int], None]) -> Executor:
        """Compile every unit on its engine, each under watch (see `runtime.resilient`)."""
        self.__dict__["executor"] = executor = build_executor(
            self.units, self.weight, self.resolved, self.graph.inputs, self.graph.outputs, progress, self.threads,
            guard, isolate,
        )  # fmt: skip
        return executor

    def check(self, running: Executor) -> None:
        """Run the golden inputs, if there are any, on what `start_guarded` returned. Raises `VerificationError`."""
        if self.golden.outputs:
            arrays = [np.asarray(self.golden.inputs[n]) for n in self.graph.inputs]
            found = dict(zip(self.graph.outputs, running(arrays), strict=True))
            wrong = [d for n, e in self.golden.outputs.items() if not (d := compare(n, found[n], e)).ok]
            if wrong:
                raise VerificationError(f"model {self.graph.name}: output {wrong[0].as_text()}")

    @property
    def placements(self) -> list[str]:
        """What the plan uses, each once."""
        return list(dict.fromkeys(s.placement for s in self.plan.stages))

    @property
    def used(self) -> frozenset[str]:
        """Names of the placements, devices and engines that the plan uses."""
        return names_used(self.plan.stages)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Arrays by input name to arrays by output name. Raises `InputError`, `BackendError`."""
        signature = self._signature
        if inputs.keys() != signature.keys():
            self._refuse_names(inputs)
        arrays = [self._checked(n, inputs[n]) for n in signature]
        return dict(zip(self.graph.outputs, self.executor(arrays), strict=True))

    @cached_property
    def _signature(self) -> dict[str, tuple[np.dtype[Any], Any]]:
        """Input name -> dtype and shape."""
        specs = (self.graph.tensors[n] for n in self.graph.inputs)
        return {s.name: (numpy_dtype(s.dtype), s.shape) for s in specs}

    def _checked(self, name: str, value: Any) -> np.ndarray:
        dtype, shape = self._signature[name]
        # What fits exactly needs no closer look; this is the road of every call that is timed.
        if type(value) is np.ndarray and value.dtype == dtype and value.shape == shape:
            return value
        return check_input(self.graph.tensors[name], value)

    def _refuse_names(self, inputs: Mapping[str, Any]) -> None:
        missing = [n for n in self.graph.inputs if n not in inputs]
        extra = [n for n in inputs if n not in self.graph.inputs]
        if missing or extra:
            raise InputError(
                f"model {self.graph.name}: {'unknown' if extra else 'missing'} input {(extra or missing)[0]}; "
                f"expected {', '.join(self.graph.inputs)}"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call like the source model: torch arguments in, its own output structure out.

        A model from an ONNX file or artifact takes one array per input, in order or by name, and returns a
        dict.
        """
        if self.call is None:
            named = dict(zip(self.graph.inputs, args, strict=False)) | kwargs
            if len(args) > len(self.graph.inputs):
                raise InputError(f"model {self.graph.name}: {len(args)} arguments for {len(self.graph.inputs)} inputs")
            return self.run(named)
        return self._call_torch(self.call, args, kwargs)

    def _call_torch(self, call: CallSpec, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from qeil_compile.forms.fx_source import from_numpy, to_numpy

        given = dict(zip(call.leaves, call.flatten(args, kwargs), strict=True))
        direct = self.executor.run_tensors
        if direct is not None and all(self._fits(given[n], n) for n in self.graph.inputs):
            found = dict(zip(self.graph.outputs, direct([given[n] for n in self.graph.inputs]), strict=True))
            return call.unflatten([found[n] if n is not None else v for n, v in call.results])
        arrays = [self._checked(n, to_numpy(given[n])) for n in self.graph.inputs]
        results = dict(zip(self.graph.outputs, self.executor(arrays), strict=True))
        return call.unflatten([from_numpy(results[n]) if n is not None else v for n, v in call.results])

    def _fits(self, tensor: Any, name: str) -> bool:
        """Whether a torch tensor is on the CPU and exactly what the input expects."""
        spec = self.graph.tensors[name]
        return bool(tensor.is_cpu and tensor.shape == spec.shape and self._torch_dtypes[name] is tensor.dtype)

    @cached_property
    def _torch_dtypes(self) -> dict[str, Any]:
        import torch

        return {n: getattr(torch, self.graph.tensors[n].dtype, None) for n in self.graph.inputs}

    def verify(self) -> list[Difference]:
        """Run the golden inputs and compare. Raises `VerificationError` naming the first unit that differs."""
        if not self.golden.outputs:
            raise VerificationError(f"model {self.graph.name}: no golden outputs to compare with; compile it again")
        outputs = self.run(self.golden.inputs)
        found = [compare(n, outputs[n], e) for n, e in self.golden.outputs.items()]
        wrong = next((d for d in found if not d.ok), None)
        if wrong is not None:
            raise VerificationError(f"output {wrong.as_text()}; {self._first_difference()}")
        return found

    def verify_units(self) -> list[tuple[LoweredUnit, list[Difference]]]:
        """Each unit alone, on the reference's inputs for it, against the reference's outputs of it.

        A unit that reads a tensor which the reference could not give is left out.
        """
        known = {**self.golden.inputs, **self.golden.boundaries, **self.golden.outputs}
        checked = []
        for unit in self.units:
            if any(n not in known for n in unit.program.inputs):
                continue
            run = compile_unit(unit, self.weight, self.resolved, threads=self.threads)
            found = run([known[n] for n in unit.program.inputs])
            pairs = zip(unit.program.outputs, found, strict=True)
            checked.append((unit, [compare(n, a, known[n]) for n, a in pairs if n in known]))
        return checked

    def _first_difference(self) -> str:
        checked = self.verify_units()
        for unit, differences in checked:
            wrong = next((d for d in differences if not d.ok), None)
            if wrong is not None:
                names = "+".join(str(s) for s in unit.stages)
                return f"the first stage that differs is {names} on {'+'.join(unit.placements)}: {wrong.as_text()}"
        if len(checked) < len(self.units):
            return f"{len(checked)} of {len(self.units)} units could be checked alone, and agree with the reference"
        return "every stage alone agrees with the reference; the error builds up over the stages"

    def measure(self, others: Mapping[str, Compiled] | None = None, seconds: float = 1.0) -> dict[str, Timing]:
        """Time one run on the golden inputs, interleaved with other compiled forms of the same model."""
        calls: dict[str, Callable[[], object]] = {}
        for name, compiled in {self.plan.strategy: self, **(others or {})}.items():
            arrays = [np.asarray(compiled.golden.inputs[n]) for n in compiled.graph.inputs]
            calls[name] = lambda run=compiled.executor, a=arrays: run(a)  # type: ignore[misc]
        return interleaved(calls, seconds)

    def explain(self) -> Explanation:
        """Which operator goes where, why not elsewhere, and what each boundary costs."""
        return explain(self)

    def save(self, path: str | Path, overwrite: bool = False) -> Sizes:
        """Write the artifact, whole or not at all. Raises `OutputError` when it exists or cannot be written."""
        return write(self.contents(), path, overwrite)

    def contents(self) -> Contents:
        """Everything an artifact holds."""
        engines = {r.engine: backend(r.engine).version() for r in self.resolved.values()} | self._spare_engines()
        timings = {name: asdict(t) for name, t in self.timings.items()}
        return Contents(
            self.graph, self.plan, self.units, self.weight, self.golden, self.workload, self.costs, engines,
            self.seconds, timings, self.spares,
        )  # fmt: skip

    def _spare_engines(self) -> dict[str, str]:
        """Versions of the engines that spare plans need, as far as they are installed."""
        found = {}
        for name in dict.fromkeys(u.engine for units in self.spares for u in units):
            with contextlib.suppress(TargetError):
                found[name] = backend(name).version()
        return found

    @staticmethod
    def from_contents(contents: Contents) -> Compiled:
        """A compiled model from what an artifact holds."""
        try:
            timings = {name: Timing(**t) for name, t in contents.timings.items()}  # type: ignore[arg-type]
        except TypeError as error:
            raise ArtifactError(f"timings: malformed ({error}); compile the model again") from error
        return Compiled(
            contents.graph, contents.plan, contents.units, contents.weight, contents.golden, contents.workload,
            contents.costs, seconds=dict(contents.seconds), timings=timings, spares=contents.spares,
        )  # fmt: skip
