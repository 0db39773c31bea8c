"""Write a compiled model as an artifact: every tensor once by its content hash, the manifest last.

Failover plans come after everything else: what the plan's own stages have written already is shared, so that a spare
costs its programs and the weights of a form that no other stage has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contents import Contents, Sizes
from .folder import ArtifactFolder
from .store import atomic_folder


def write(contents: Contents, path: str | Path, overwrite: bool = False) -> Sizes:
    """Write `path` (a folder, or an uncompressed zip if it ends in .zip), whole or not at all; returns its sizes.

    Raises `OutputError` when it exists or cannot be written.
    """
    with atomic_folder(Path(path), overwrite) as folder:
        return _write(ArtifactFolder(folder), contents)


def _write(folder: ArtifactFolder, contents: Contents) -> Sizes:
    units = [folder.unit(unit, contents.weight) for unit in contents.units]
    golden = {
        kind: {name: folder.tensor(array, "golden") for name, array in getattr(contents.golden, kind).items()}
        for kind in ("inputs", "outputs", "boundaries")
    }
    folder.json("graph.json", contents.graph.to_json())
    folder.json("costs.json", dict(contents.costs))
    plan = contents.plan.to_json()
    # What the artifact would be without failover plans, to tell what they cost.
    folder.json("plan.json", {**plan, "failovers": [], "spares": []})
    alone = folder.size(_manifest(folder, contents, units, [], golden))
    spares = [{"units": [folder.unit(u, contents.weight) for u in lowered]} for lowered in contents.spares]
    folder.json("plan.json", plan)
    manifest = _manifest(folder, contents, units, spares, golden)
    folder.seal(manifest)
    return Sizes(folder.size(manifest), folder.size(manifest) - alone)


def _manifest(
    folder: ArtifactFolder, contents: Contents, units: list[Any], spares: list[Any], golden: dict[str, Any]
) -> str:
    return folder.manifest("model", {
        "engines": dict(contents.engines),
        "model": contents.graph.name,
        "target": contents.plan.target,
        "workload": contents.workload.to_json(),
        "units": units,
        "spares": spares,
        "golden": golden,
        "seconds": dict(contents.seconds),
        "timings": {k: dict(v) for k, v in contents.timings.items()},
    })  # fmt: skip
