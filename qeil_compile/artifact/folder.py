"""The folder that an artifact is written into: programs and tensors once by their content, the manifest last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.passes.lower import LoweredUnit

from .store import MANIFEST, digest

#: Raised when the layout changes; readers refuse newer ones.
SCHEMA = 2


class ArtifactFolder:
    """Files of one artifact with their hashes. `seal` writes the manifest, after everything else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        #: SHA-256 of each program -> its file.
        self.programs: dict[str, str] = {}

    def manifest(self, kind: str, fields: Mapping[str, Any]) -> str:
        """The manifest as text, with the files written so far and its own digest. `kind` is model or decoder."""
        whole = {
            "schema": SCHEMA, "kind": kind, "tool": {"name": "qeil_compile", "version": _version()}, **fields,
            "files": dict(sorted(self.files.items())),
        }  # fmt: skip
        return json.dumps({**whole, "digest": manifest_digest(whole)}, indent=1)

    def seal(self, manifest: str) -> None:
        """Write the manifest."""
        (self.folder / MANIFEST).write_text(manifest, encoding="utf-8")

    def size(self, manifest: str) -> int:
        """Bytes of all files and of this manifest."""
        return sum(int(f["size"]) for f in self.files.values()) + len(manifest.encode())

    def unit(self, unit: LoweredUnit, weight: Callable[[str], np.ndarray]) -> dict[str, Any]:
        """Write a unit's program and weights; returns its entry."""
        weights = {n: self.tensor(weight(key), "weights") for n, key in unit.program.weights.items()}
        return {**self.program(unit), "weights": weights}

    def program(self, unit: LoweredUnit) -> dict[str, Any]:
        """Write a unit's program; returns its entry without the weights."""
        program = unit.program
        content = digest(program.payload)
        if content not in self.programs:
            name = f"stages/{len(self.programs):04d}.{'onnx' if program.form == 'onnx' else 'json'}"
            self.file(name, program.payload, content)
            self.programs[content] = name
        return {
            "stages": list(unit.stages),
            "placements": list(unit.placements),
            "form": program.form,
            "file": self.programs[content],
            "inputs": list(program.inputs),
            "outputs": list(program.outputs),
            "affinity": dict(program.affinity),
        }

    def tensor(self, array: np.ndarray, folder: str) -> dict[str, Any]:
        """Write an array; returns a reference to it."""
        data = np.ascontiguousarray(array)
        raw = memoryview(data.reshape(-1).view(np.uint8).data) if data.size else memoryview(b"")
        content = digest(raw)
        name = f"{folder}/{content}.bin"
        if name not in self.files:
            self.file(name, raw, content)
        return {"file": name, "dtype": array.dtype.name, "shape": list(array.shape)}

    def json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write plain data."""
        self.file(name, json.dumps(data, separators=(",", ":"), default=_number).encode())

    def file(self, name: str, data: bytes | memoryview, content: str = "") -> None:
        """Write bytes; `content` is their SHA-256 where it is known."""
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
