"""Write a compiled model as an artifact: every tensor once by its content hash, the manifest last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .contents import Contents
from .store import MANIFEST, atomic_folder, digest

#: Raised when the layout changes; readers refuse newer ones.
SCHEMA = 1


def write(contents: Contents, path: str | Path, overwrite: bool = False) -> None:
    """Write `path` (a folder, or an uncompressed zip if it ends in .zip), whole or not at all.

    Raises `OutputError` when it exists or cannot be written.
    """
    with atomic_folder(Path(path), overwrite) as folder:
        _Writer(folder).write(contents)


class _Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, object]] = {}

    def write(self, contents: Contents) -> None:
        units = [self._unit(contents, k) for k in range(len(contents.units))]
        golden = {
            kind: {name: self._tensor(array, "golden") for name, array in getattr(contents.golden, kind).items()}
            for kind in ("inputs", "outputs", "boundaries")
        }
        self._json("plan.json", contents.plan.to_json())
        self._json("graph.json", contents.graph.to_json())
        self._json("costs.json", dict(contents.costs))
        manifest = {
            "schema": SCHEMA,
            "tool": {"name": "qeil_compile", "version": _version()},
            "engines": dict(contents.engines),
            "model": contents.graph.name,
            "target": contents.plan.target,
            "workload": contents.workload.to_json(),
            "units": units,
            "golden": golden,
            "seconds": dict(contents.seconds),
            "timings": {k: dict(v) for k, v in contents.timings.items()},
            "files": dict(sorted(self.files.items())),
        }
        text = json.dumps({**manifest, "digest": manifest_digest(manifest)}, indent=1)
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")

    def _unit(self, contents: Contents, k: int) -> dict[str, Any]:
        unit = contents.units[k]
        program = unit.program
        name = f"stages/{k:04d}.{'onnx' if program.form == 'onnx' else 'json'}"
        self._file(name, program.payload)
        return {
            "stages": list(unit.stages),
            "placements": list(unit.placements),
            "form": program.form,
            "file": name,
            "inputs": list(program.inputs),
            "outputs": list(program.outputs),
            "weights": {n: self._tensor(contents.weight(key), "weights") for n, key in program.weights.items()},
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
