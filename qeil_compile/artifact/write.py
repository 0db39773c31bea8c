"""Write a compiled model as an artifact: every tensor once by its content hash, the manifest last.

Failover plans come after everything else: what the plan's own stages have written already is shared, so that a spare
costs its programs and the weights of a form that no other stage has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.passes.lower import LoweredUnit

from .contents import Contents, Sizes
from .store import MANIFEST, atomic_folder, digest

#: Raised when the layout changes; readers refuse newer ones.
SCHEMA = 2


def write(contents: Contents, path: str | Path, overwrite: bool = False) -> Sizes:
    """Write `path` (a folder, or an uncompressed zip if it ends in .zip), whole or not at all; returns its sizes.

    Raises `OutputError` when it exists or cannot be written.
    """
    with atomic_folder(Path(path), overwrite) as folder:
        return _Writer(folder).write(contents)


class _Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        #: SHA-256 of each program -> its file.
        self.programs: dict[str, str] = {}

    def write(self, contents: Contents) -> Sizes:
        units = [self._unit(unit, contents.weight) for unit in contents.units]
        golden = {
            kind: {name: self._tensor(array, "golden") for name, array in getattr(contents.golden, kind).items()}
            for kind in ("inputs", "outputs", "boundaries")
        }
        self._json("graph.json", contents.graph.to_json())
        self._json("costs.json", dict(contents.costs))
        plan = contents.plan.to_json()
        # What the artifact would be without failover plans, to tell what they cost.
        self._json("plan.json", {**plan, "failovers": [], "spares": []})
        alone = self._size(self._manifest(contents, units, [], golden))
        spares = [{"units": [self._unit(u, contents.weight) for u in lowered]} for lowered in contents.spares]
        self._json("plan.json", plan)
        manifest = self._manifest(contents, units, spares, golden)
        (self.folder / MANIFEST).write_text(manifest, encoding="utf-8")
        return Sizes(self._size(manifest), self._size(manifest) - alone)

    def _manifest(self, contents: Contents, units: list[Any], spares: list[Any], golden: dict[str, Any]) -> str:
        manifest = {
            "schema": SCHEMA,
            "tool": {"name": "qeil_compile", "version": _version()},
            "engines": dict(contents.engines),
            "model": contents.graph.name,
            "target": contents.plan.target,
            "workload": contents.workload.to_json(),
            "units": units,
            "spares": spares,
            "golden": golden,
            "seconds": dict(contents.seconds),
            "timings": {k: dict(v) for k, v in contents.timings.items()},
            "files": dict(sorted(self.files.items())),
        }
        return json.dumps({**manifest, "digest": manifest_digest(manifest)}, indent=1)

    def _size(self, manifest: str) -> int:
        return sum(int(f["size"]) for f in self.files.values()) + len(manifest.encode())

    def _unit(self, unit: LoweredUnit, weight: Callable[[str], np.ndarray]) -> dict[str, Any]:
        program = unit.program
        content = digest(program.payload)
        if content not in self.programs:
            name = f"stages/{len(self.programs):04d}.{'onnx' if program.form == 'onnx' else 'json'}"
            self._file(name, program.payload, content)
            self.programs[content] = name
        return {
            "stages": list(unit.stages),
            "placements": list(unit.placements),
            "form": program.form,
            "file": self.programs[content],
            "inputs": list(program.inputs),
            "outputs": list(program.outputs),
            "weights": {n: self._tensor(weight(key), "weights") for n, key in program.weights.items()},
            "affinity": dict(program.affinity),
        }

    def _tensor(self, array: np.ndarray, folder: str) -> dict[str, Any]:
        data = np.ascontiguousarray(array)
        raw = memoryview(data.reshape(-1).view(np.uint8).data) if data.size else memoryview(b"")
        content = digest(raw)
        name = f"{folder}/{content}.bin"
        if name not in self.files:
            self._file(name, raw, content)
        return {"file": name, "dtype": array.dtype.name, "shape": list(array.shape)}

    def _json(self, name: str, data: Mapping[str, Any]) -> None:
        self._file(name, json.dumps(data, separators=(",", ":"), default=_number).encode())

    def _file(self, name: str, data: bytes | memoryview, content: str = "") -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.files[name] = {"sha256": content or digest(data), "size": len(data)}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's canonical JSON without its own `digest`."""
    plain = {k: v for k, v in manifest.items() if k != "digest"}
    return digest(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qeil-compile")
    except PackageNotFoundError:
        return "source tree"
