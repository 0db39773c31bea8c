"""Read an artifact: check the manifest and every hash first, then hand out arrays over mapped files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from qeil_compile.errors import ArtifactError, QeilError
from qeil_compile.forms.program import Form, StageProgram
from qeil_compile.frontends.traced import check_input, numpy_dtype
from qeil_compile.ir import DTYPE_BYTES, OpGraph, Workload, mapping, strings, text
from qeil_compile.passes.lower import LoweredUnit
from qeil_compile.plan import Plan
from qeil_compile.untrusted import JSON_LIMIT, elements, parse_json

from .contents import Contents, Golden
from .costs import check_costs, check_places
from .folder import SCHEMA, manifest_digest
from .store import MANIFEST, Store, check_name, open_store, verify_files


def read(path: str | Path) -> Contents:
    """Verify and read an artifact. Raises `ArtifactError`; no engine has seen a byte by then."""
    store = open_store(Path(path))
    manifest = read_manifest(store)
    if manifest.get("kind") != "model":
        raise ArtifactError(
            f"{store.path}: holds a {manifest.get('kind')!r:.20}, expected a model; a decoder is run by qeil run "
            "--prompt, qeil chat and qeil_compile.load"
        )
    with refused_fields(store):
        return _contents(store, manifest)


@contextlib.contextmanager
def refused_fields(store: Store) -> Iterator[None]:
    """What a malformed field makes of Python becomes an `ArtifactError`."""
    try:
        yield
    except ArtifactError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError, RecursionError,
            QeilError) as error:  # fmt: skip
        raise ArtifactError(
            f"{store.path}: malformed field ({type(error).__name__}: {error}); compile the model again"
        ) from error


def kind_of(path: str | Path) -> str:
    """What an artifact holds: model or decoder. Raises `ArtifactError`."""
    return str(read_manifest(open_store(Path(path))).get("kind"))


def read_manifest(store: Store) -> dict[str, Any]:
    """The manifest, checked for schema version, digest and file names."""
    raw = store.read(MANIFEST, JSON_LIMIT)
    try:
        manifest = parse_json(raw)
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{store.path}: manifest is malformed ({error}); damaged: copy it again") from error
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise ArtifactError(
            f"{store.path}: schema version {schema}, this qeil_compile reads {SCHEMA}; "
            f"{'upgrade qeil-compile' if newer else 'compile the model again'}"
        )
    if manifest.get("digest") != manifest_digest(manifest):
        raise ArtifactError(f"{store.path}: manifest does not match its own digest; damaged or changed: copy it again")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(f, dict) for f in files.values()):
        raise ArtifactError(f"{store.path}: manifest lists no files; compile the model again")
    for name in files:
        check_name(store.path, name)
    return manifest


def _contents(store: Store, manifest: Mapping[str, Any]) -> Contents:
    files = verify_files(store, manifest["files"])
    tensors = Tensors(store, files)
    plan = read_plan(files["plan.json"])
    weights: dict[str, np.ndarray] = {}
    units = read_units(store, manifest["units"], plan, files, tensors, weights)
    listed = manifest["spares"]
    if not isinstance(listed, list) or len(listed) != len(plan.spares):
        raise ArtifactError(f"{store.path}: manifest and plan list different numbers of failover plans; refused")
    pairs = zip(listed, plan.spares, strict=True)
    spares = [read_units(store, s["units"], p, files, tensors, weights) for s, p in pairs]
    golden = Golden(
        *({n: tensors.array(r) for n, r in manifest["golden"][k].items()} for k in ("inputs", "outputs", "boundaries"))
    )
    graph = OpGraph.from_json(parse_json(files["graph.json"]))
    graph.check()
    costs = mapping(parse_json(files["costs.json"], "infinite"))
    for p in (plan, *plan.spares):
        check_places(graph, p)
    check_costs(costs, plan)
    _check_golden(store, golden, graph)
    contents = Contents(
        graph, plan, units, weights.__getitem__,
        golden, Workload(manifest["workload"]["dims"]), costs,
        {k: text(v) for k, v in manifest["engines"].items()}, _numbers(manifest["seconds"]),
        {k: _numbers(v) for k, v in manifest["timings"].items()}, spares,
    )  # fmt: skip
    for some, of in ((units, plan), *zip(spares, plan.spares, strict=True)):
        check_wiring(store, graph.inputs, graph.outputs, some, of)
    return contents


def read_plan(data: memoryview) -> Plan:
    """A plan's file. What a plan never reached may be infinite. Raises `ArtifactError`, `ValueError`."""
    return Plan.from_json(parse_json(data, "infinite"))


def _check_golden(store: Store, golden: Golden, graph: OpGraph) -> None:
    """An output that is not among the golden ones would never be compared; none at all are refused by `verify`."""
    if set(golden.inputs) != set(graph.inputs) or (golden.outputs and set(golden.outputs) != set(graph.outputs)):
        raise ArtifactError(f"{store.path}: golden tensors are not those of the graph's inputs and outputs; refused")
    for name, array in golden.inputs.items():
        check_input(graph.tensors[name], array)


def read_units(
    store: Store,
    listed: Sequence[Mapping[str, Any]],
    plan: Plan,
    files: Mapping[str, memoryview],
    tensors: Tensors,
    weights: dict[str, np.ndarray],
) -> list[LoweredUnit]:
    """The units of one plan; their weights are added to `weights`."""
    units: list[LoweredUnit] = []
    for unit in listed:
        program = _program(store, unit, files)
        # All of them now: a malformed reference must not wait for the engine that needs it.
        arrays = {name: tensors.array(unit["weights"][name]) for name in program.weights}
        weights.update({key: arrays[name] for name, key in program.weights.items()})
        _check_program(program, arrays)
        indices = tuple(_integers(unit["stages"]))
        stages = [plan.stages[i] for i in indices]
        placements, devices = tuple(s.placement for s in stages), tuple(s.device for s in stages)
        if not stages or list(placements) != list(strings(unit["placements"])):
            raise ArtifactError(f"{store.path}: unit {len(units)} and plan disagree about placements; refused")
        if not set(program.affinity.values()) <= {p.partition(":")[2] for p in placements}:
            raise ArtifactError(f"{store.path}: unit {len(units)} has operators on devices of no stage of it; refused")
        units.append(LoweredUnit(indices, placements, devices, program))
    return units


def _program(store: Store, unit: Mapping[str, Any], files: Mapping[str, memoryview]) -> StageProgram:
    if unit["form"] not in get_args(Form):
        raise ArtifactError(f"{store.path}: stage form {unit['form']!r}; expected one of {', '.join(get_args(Form))}")
    # The key of a weight is its file with its type, so that equal tensors are mapped once.
    weights = {n: f"{r['file']}|{r['dtype']}|{r['shape']}" for n, r in unit["weights"].items()}
    return StageProgram(
        unit["form"], bytes(files[unit["file"]]), tuple(strings(unit["inputs"])), tuple(strings(unit["outputs"])),
        weights, {text(k): text(v) for k, v in unit["affinity"].items()},
    )  # fmt: skip


def _check_program(program: StageProgram, weights: Mapping[str, np.ndarray]) -> None:
    """What the program itself declares, against what its unit says of it."""
    if program.form == "onnx":
        # Importing this package imports no engine, and not their formats either.
        from qeil_compile.forms.onnx_check import check_stage

        check_stage(program.payload, weights, program.inputs, program.outputs)
        return
    stage = mapping(parse_json(program.payload))
    if strings(stage["inputs"]) != list(program.inputs) or len(strings(stage["outputs"])) != len(program.outputs):
        raise ValueError("an FX stage has other inputs or outputs than its unit")


def _integers(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(v) is int for v in values):
        raise TypeError(f"{values!r:.60} is no list of integers")
    return values


def _numbers(values: Any) -> dict[str, float]:
    if not all(type(v) in (int, float) for v in mapping(values).values()):
        raise TypeError(f"{values!r:.60} has values that are no numbers")
    return dict(values)


class Tensors:
    """Arrays over verified files."""

    def __init__(self, store: Store, files: Mapping[str, memoryview]) -> None:
        self._store, self._files = store, files

    def array(self, reference: Mapping[str, Any]) -> np.ndarray:
        name, dtype, shape = reference["file"], reference["dtype"], reference["shape"]
        if dtype not in DTYPE_BYTES or dtype in ("opaque", "string"):
            raise ArtifactError(f"{self._store.path}: tensor {name} has unknown dtype {dtype!r}; refused")
        if not isinstance(shape, list):
            raise ArtifactError(f"{self._store.path}: tensor {name} has shape {shape!r:.60}; refused")
        kind, data = numpy_dtype(dtype), self._files[name]
        need = elements(shape) * kind.itemsize
        if need != len(data):
            raise ArtifactError(
                f"{self._store.path}: tensor {name} has {len(data)} bytes, {dtype}{shape} needs {need}; refused"
            )
        return np.frombuffer(data, dtype=np.uint8).view(kind).reshape(shape)


def check_wiring(
    store: Store, inputs: Sequence[str], outputs: Sequence[str], units: Sequence[LoweredUnit], plan: Plan
) -> None:
    """Every unit reads what exists by then, and every output is written: a plan cannot read out of bounds."""
    known = set(inputs)
    for k, unit in enumerate(units):
        missing = [n for n in unit.program.inputs if n not in known]
        if missing:
            raise ArtifactError(f"{store.path}: unit {k} reads {missing[0]}, which nothing before it writes; refused")
        known |= set(unit.program.outputs)
    lost = [n for n in outputs if n not in known]
    if lost:
        raise ArtifactError(f"{store.path}: output {lost[0]} is written by no unit; refused")
    stages = [s for u in units for s in u.stages]
    if stages != [s.index for s in plan.stages] or stages != list(range(len(stages))):
        raise ArtifactError(f"{store.path}: units and plan list different stages; refused")
    placed = [p for u in units for p in u.placements]
    if placed != [s.placement for s in plan.stages]:
        raise ArtifactError(f"{store.path}: units and plan place stages differently; refused")
    if any(not u.stages or len({p.partition(":")[0] for p in u.placements}) > 1 for u in units):
        raise ArtifactError(f"{store.path}: a unit has no stages or stages of several engines; refused")
