"""Where and with what a result was made: processor, versions, date and commit."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.backends import backend, names
from qeil_compile.devices.cpuinfo import cpu_facts, usable_cores
from qeil_compile.errors import QeilError


def environment() -> dict[str, Any]:
    """CPU, versions, date and commit of a measurement."""
    facts = cpu_facts()
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for engine in names():
        try:
            versions[engine] = backend(engine).version()
        except QeilError:
            versions[engine] = "not installed"
    return {
        "cpu": facts.model,
        "cores": facts.cores,
        "usable_cores": usable_cores(),
        "system": platform.system(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the checkout that runs, marked where files differ from it; else the installed version."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        try:
            return f"version {version('qeil-compile')}"
        except PackageNotFoundError:
            return "unknown"
