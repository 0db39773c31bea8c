"""`validate`: every row of the table, its JSON and its plots."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from qeil_compile.errors import InputError

from . import annotation, host_latency
from .report import Claim

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """`data` is reported on, `fit_data` is fitted on (the same folder unless sets of another place are tried);
    `models` has the ONNX files of the host row. `only` names parts; `seconds` calibrates one engine once, 0 takes what
    is stored.
    """

    data: Path
    fit_data: Path
    models: Path
    only: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1, 2)
    seconds: float = 40.0


def splits() -> Mapping[str, Any]:
    """What is fitted and what is reported: fixed in `splits.toml` before anything was fitted."""
    return tomllib.loads(files(__package__).joinpath("splits.toml").read_text("utf-8"))


def _public(module: str, table: str = "") -> Callable[[Settings, Progress], list[Claim]]:
    """A part that reads published measurements; imported late, because each costs some time."""

    def run(settings: Settings, progress: Progress) -> list[Claim]:
        from importlib import import_module

        split = splits()[table] if table else splits()
        found: list[Claim] = import_module(f"{__package__}.{module}").evaluate(settings.data, split, settings.fit_data)
        return found

    return run


def _host(settings: Settings, progress: Progress) -> list[Claim]:
    return host_latency.evaluate(settings.models, settings.threads, settings.seconds, progress=progress)


def _annotation(settings: Settings, progress: Progress) -> list[Claim]:
    return annotation.evaluate()


PARTS: Mapping[str, Callable[[Settings, Progress], list[Claim]]] = {
    "annotation": _annotation,
    "gpu-latency": _public("gpu_latency"),
    "end-to-end": _public("end_to_end"),
    "token-energy": _public("token_energy", "tokens"),
    "inference-energy": _public("inference_energy", "inference_energy"),
    "temperature": _public("temperature", "temperature"),
    "host-latency": _host,
}


def validate(settings: Settings, progress: Progress = lambda part, share: None) -> dict[str, list[Claim]]:
    """The claims of each chosen part. A part whose files are missing has none.

    Raises `InputError` for an unknown part or a folder that is not there.
    """
    unknown = [p for p in settings.only if p not in PARTS]
    if unknown:
        raise InputError(f"--only {unknown[0]}: unknown; expected one of {', '.join(PARTS)}")
    chosen = [p for p in PARTS if not settings.only or p in settings.only]
    for name, folder in (("--data", settings.data), ("--fit-data", settings.fit_data), ("--models", settings.models)):
        if not folder.is_dir():
            raise InputError(
                f"{name} {folder}: no such folder; expected one laid out as benchmarks/data, for --models .onnx files"
            )
    found: dict[str, list[Claim]] = {}
    for k, part in enumerate(chosen):
        progress(part, k / len(chosen))
        found[part] = PARTS[part](settings, lambda spec, share, p=part: progress(f"{p}, {spec}", share))  # type: ignore[misc]
    progress("plots", 1.0)
    return found


def write(claims: Sequence[Claim], folder: Path, environment: Mapping[str, Any]) -> list[Path]:
    """`validation.json` and one plot per claim."""
    from .plots import plot

    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "date": time.strftime("%Y-%m-%d"),
        "environment": dict(environment),
        "claims": [c.to_json() for c in claims],
    }
    path = folder / "validation.json"
    path.write_text(json.dumps(data, indent=1, allow_nan=False, default=float) + "\n", "utf-8")
    return [path, *(plot(c, folder) for c in claims if len(c.points) > 1)]
