"""Decoders as artifacts: a plan and units per phase, weights of each form once, the tokenizer's files.

The layout is that of a model (`read.py`, `folder.py`) with `kind` "decoder": `plans/` has one plan per phase, `costs/`
its cost table, `tokenizer/` the checkpoint's files, and `golden/` what the unpartitioned decoder answers to one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import ArtifactError
from qeil_compile.frontends.decoder import PROMPT, Generation, step_phase
from qeil_compile.ir import mapping, strings, text
from qeil_compile.models.decoder import DecoderFacts
from qeil_compile.passes.lower import LoweredUnit
from qeil_compile.plan import Plan
from qeil_compile.untrusted import parse_json

from .contents import Sizes
from .costs import check_costs, rounded
from .folder import ArtifactFolder
from .read import Tensors, check_wiring, kind_of, read_manifest, read_plan, read_units, refused_fields
from .store import Store, atomic_folder, open_store, verify_files

#: Inputs that every unit may read without another one writing them.
GIVEN = ("tokens", "positions", "lengths", "total", "fresh", "take", "mask")
_FORMS = (32, 16, 8, 4)
#: Prompts, samples and tokens of a workload.
_MOST = 1 << 24
_NUMBER = (int, float)
_QUALITY = {"bits": (int,), "perplexity": _NUMBER, "tokens": (int,), "text": (str,)}
_TIMING = {"candidate": (str,), "bits": (int,), "phase": (str,), "seconds": _NUMBER, "runs": (int,)}


@dataclass(frozen=True)
class PhaseUnits:
    """One phase: its plan, its units in order, the bits of their matrices, and the cost table that the plan was made
    from (`CostTable.to_json()`), empty where there is none: of spare plans, and in artifacts of earlier versions."""

    plan: Plan
    units: Sequence[LoweredUnit]
    bits: int
    costs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenPrompt:
    """A prompt int64 [n], and the logits float32 [vocab] of its last token on one engine, unpartitioned, by the bits of
    each form of the weights that is used."""

    tokens: np.ndarray
    logits: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class DecoderContents:
    """A compiled decoder as plain data. `weight` gives an array by the bits of the form and its key; `states` maps
    inputs to outputs; `spares` are the phases of each spare plan; `quality` and `timings` are rows for the report."""

    name: str
    facts: DecoderFacts
    workload: Generation
    phases: Mapping[str, PhaseUnits]
    states: Mapping[str, str]
    weight: Callable[[int, str], np.ndarray]
    files: Mapping[str, bytes] = field(default_factory=dict)
    golden: GoldenPrompt | None = None
    engines: Mapping[str, str] = field(default_factory=dict)
    quality: Sequence[Mapping[str, Any]] = ()
    timings: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    spares: Sequence[Mapping[str, PhaseUnits]] = ()


def is_decoder_artifact(path: str | Path) -> bool:
    """Whether an artifact holds a decoder. Raises `ArtifactError` where there is no artifact."""
    return kind_of(path) == "decoder"


def write_decoder(contents: DecoderContents, path: str | Path, overwrite: bool = False) -> Sizes:
    """Write `path` (a folder, or an uncompressed zip if it ends in .zip), whole or not at all; returns its sizes.

    Raises `OutputError` when it exists or cannot be written.
    """
    with atomic_folder(Path(path), overwrite) as folder:
        return _write(ArtifactFolder(folder), contents)


def _write(folder: ArtifactFolder, contents: DecoderContents) -> Sizes:
    references: dict[tuple[int, str], dict[str, Any]] = {}

    def units_of(phase: PhaseUnits) -> list[dict[str, Any]]:
        units = []
        for unit in phase.units:
            # A weight is hashed once, however many phases and spare plans read it.
            for key in unit.program.weights.values():
                if (phase.bits, key) not in references:
                    array = contents.weight(phase.bits, key)
                    references[phase.bits, key] = folder.tensor(array, "weights")
            entry = folder.program(unit)
            entry["weights"] = {n: references[phase.bits, key] for n, key in unit.program.weights.items()}
            units.append(entry)
        return units

    phases = {}
    for k, (name, phase) in enumerate(contents.phases.items()):
        plan = f"plans/{k}.json"
        folder.json(plan, phase.plan.to_json())
        phases[name] = {"plan": plan, "bits": phase.bits, "units": units_of(phase)}
        if phase.costs:
            costs = phases[name]["costs"] = f"costs/{k}.json"
            folder.json(costs, rounded(phase.costs))
    before = sum(int(f["size"]) for f in folder.files.values())
    spares = [{n: {"bits": p.bits, "units": units_of(p)} for n, p in spare.items()} for spare in contents.spares]
    growth = sum(int(f["size"]) for f in folder.files.values()) - before
    for name, data in contents.files.items():
        folder.file(f"tokenizer/{name}", data)
    golden = contents.golden
    manifest = folder.manifest("decoder", {
        "engines": dict(contents.engines),
        "model": contents.name,
        "target": contents.phases[PROMPT].plan.target,
        "facts": asdict(contents.facts),
        "workload": {**asdict(contents.workload), "buckets": sorted(contents.workload.buckets.items())},
        "states": dict(contents.states),
        "phases": phases,
        "spares": spares,
        "golden": None if golden is None else {
            "tokens": folder.tensor(golden.tokens, "golden"),
            "logits": [[bits, folder.tensor(a, "golden")] for bits, a in sorted(golden.logits.items())],
        },
        "quality": list(contents.quality),
        "timings": list(contents.timings),
        "notes": list(contents.notes),
        "seconds": dict(contents.seconds),
    })  # fmt: skip
    folder.seal(manifest)
    return Sizes(folder.size(manifest), growth)


def read_decoder(path: str | Path) -> DecoderContents:
    """Verify and read a decoder. Raises `ArtifactError`; no engine has seen a byte by then."""
    store = open_store(Path(path))
    manifest = read_manifest(store)
    if manifest.get("kind") != "decoder":
        raise ArtifactError(f"{store.path}: holds a {manifest.get('kind')!r:.20}, expected a decoder")
    with refused_fields(store):
        return _contents(store, manifest)


def _contents(store: Store, manifest: Mapping[str, Any]) -> DecoderContents:
    files = verify_files(store, manifest["files"])
    tensors = Tensors(store, files)
    states = {text(k): text(v) for k, v in mapping(manifest["states"]).items()}
    facts, workload = _facts(manifest["facts"]), _workload(manifest["workload"])
    phases: dict[str, PhaseUnits] = {}
    if len(set(states.values())) != len(states):
        raise ArtifactError(f"{store.path}: two states have one output; refused")
    arrays: dict[int, dict[str, np.ndarray]] = {}
    for name, phase in mapping(manifest["phases"]).items():
        plan, bits = read_plan(files[phase["plan"]]), phase["bits"]
        if bits not in _FORMS:
            raise ArtifactError(f"{store.path}: phase {name} has weights of {bits!r} bits, expected one of {_FORMS}")
        units = read_units(store, phase["units"], plan, files, tensors, arrays.setdefault(bits, {}))
        _check_phase(store, units, plan, states)
        costs = mapping(parse_json(files[phase["costs"]], "infinite")) if "costs" in phase else {}
        check_costs(costs, plan)
        phases[name] = PhaseUnits(plan, units, bits, costs)
    expected = [PROMPT, *(step_phase(rows) for rows in workload.shares)]
    if list(phases) != expected:
        raise ArtifactError(f"{store.path}: phases are {', '.join(phases)}, expected {', '.join(expected)}; refused")
    spares = _spares(store, manifest["spares"], phases, files, tensors, arrays, states)
    golden = manifest["golden"]
    return DecoderContents(
        text(manifest["model"]), facts, workload, phases, states, lambda bits, key: arrays[bits][key],
        {n.partition("/")[2]: bytes(data) for n, data in files.items() if n.startswith("tokenizer/")},
        None if golden is None else _golden(golden, tensors, facts),
        {k: text(v) for k, v in mapping(manifest["engines"]).items()}, _rows(manifest["quality"], _QUALITY),
        _rows(manifest["timings"], _TIMING), strings(manifest["notes"]),
        {k: float(v) for k, v in mapping(manifest["seconds"]).items()}, spares,
    )  # fmt: skip


def _golden(golden: Mapping[str, Any], tensors: Tensors, facts: DecoderFacts) -> GoldenPrompt:
    """The golden prompt and its logits, of the sizes that the decoder's facts say."""
    tokens = tensors.array(golden["tokens"])
    if tokens.dtype != np.int64 or tokens.ndim != 1 or not 1 <= len(tokens) <= facts.context:
        raise ValueError(f"golden tokens are {tokens.dtype}{list(tokens.shape)}, expected 1 to {facts.context} int64")
    logits = {bits: tensors.array(a) for bits, a in golden["logits"]}
    for bits, array in logits.items():
        if bits not in _FORMS or array.dtype != np.float32 or array.shape != (facts.vocab,):
            raise ValueError(f"golden logits of {bits!r:.20} bits are {array.dtype}{list(array.shape)}, expected "
                             f"float32 [{facts.vocab}]")  # fmt: skip
    return GoldenPrompt(tokens, logits)


def _rows(listed: Any, fields: Mapping[str, tuple[type, ...]]) -> list[dict[str, Any]]:
    """Rows of a report, each with these fields of these types. Raises `ValueError`."""
    for row in listed:
        if set(mapping(row)) != set(fields) or not all(type(row[n]) in kinds for n, kinds in fields.items()):
            raise ValueError(f"{row!r:.80} is no row of {', '.join(fields)}")
    return [dict(row) for row in listed]


def _check_phase(store: Store, units: Sequence[LoweredUnit], plan: Plan, states: Mapping[str, str]) -> None:
    """Wiring, and that the unit which reads a state writes it."""
    check_wiring(store, [*GIVEN, *states], ["logits", *states.values()], units, plan)
    for k, unit in enumerate(units):
        lost = [states[n] for n in unit.program.inputs if n in states and states[n] not in unit.program.outputs]
        if lost:
            raise ArtifactError(f"{store.path}: unit {k} has a state whose output {lost[0]} it does not write; refused")


def _spares(
    store: Store, listed: Any, phases: Mapping[str, PhaseUnits], files: Mapping[str, memoryview], tensors: Tensors,
    arrays: dict[int, dict[str, np.ndarray]], states: Mapping[str, str],
) -> list[dict[str, PhaseUnits]]:  # fmt: skip
    """Units of each spare plan, checked like those of the plan."""
    if any(len(p.plan.spares) != len(listed) for p in phases.values()):
        raise ArtifactError(f"{store.path}: manifest and plans list different numbers of failover plans; refused")
    found = []
    for k, spare in enumerate(listed):
        if list(spare) != list(phases):
            raise ArtifactError(f"{store.path}: failover plan {k} has other phases than the plan; refused")
        one = {}
        for name, phase in spare.items():
            plan, bits = phases[name].plan.spares[k], phase["bits"]
            if bits not in _FORMS:
                raise ArtifactError(f"{store.path}: failover plan {k} has weights of {bits!r} bits; refused")
            units = read_units(store, phase["units"], plan, files, tensors, arrays.setdefault(bits, {}))
            _check_phase(store, units, plan, states)
            one[name] = PhaseUnits(plan, units, bits)
        found.append(one)
    return found


def _facts(data: Mapping[str, Any]) -> DecoderFacts:
    return DecoderFacts(**{**data, "family": text(data["family"]), "tables": tuple(strings(data["tables"]))})


def _workload(data: Mapping[str, Any]) -> Generation:
    buckets = {int(k): float(v) for k, v in data["buckets"]}
    numbers = [v for n, v in data.items() if n != "buckets"] + list(buckets)
    if not all(type(v) is int and v <= _MOST for v in numbers):
        raise ValueError(f"workload {data!r:.80} has a field that is no whole number up to {_MOST}")
    return Generation(**{**data, "buckets": buckets})
