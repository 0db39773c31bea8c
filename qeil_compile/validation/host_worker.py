"""Times the whole models of the latency row on one engine at one number of threads, in a process of its own.

    python -m qeil_compile.validation.host_worker FOLDER ENGINE DEVICE THREADS ROUNDS

One JSON line on standard output: seconds of each round by model, and why a model could not run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qeil_compile.calibration.worker import prepared, turn
from qeil_compile.errors import QeilError, first_line

from .host_models import host_models


def main(arguments: list[str]) -> None:
    """Compile, time in turns, report."""
    folder, engine, device, threads, rounds = arguments[0], *arguments[1:3], int(arguments[3]), int(arguments[4])
    calls, refused = {}, {}
    for name, build in host_models(Path(folder)).items():
        try:
            calls[name] = prepared(build(), engine, device, threads)
        except QeilError as error:
            refused[name] = first_line(error)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(turn(call))
    print(json.dumps({"seconds": seconds, "refused": refused}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
