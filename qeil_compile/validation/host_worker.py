"""Times the whole models of the latency row on one engine at one number of threads, in a process of its own.

    python -m qeil_compile.validation.host_worker FOLDER ENGINE DEVICE THREADS ROUNDS

One JSON line on standard output: seconds of each round by model, and why a model could not run.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from qeil_compile.calibration.worker import Model, Pinning, Run, alone
from qeil_compile.errors import QeilError, first_line

from .host_models import host_models


def main(arguments: list[str]) -> None:
    """Compile, time in turns, report."""
    folder, engine, device, threads, rounds = arguments[0], *arguments[1:3], int(arguments[3]), int(arguments[4])
    pin = Pinning(engine, threads)
    single = alone(engine, threads)
    runs: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for name, build in host_models(Path(folder)).items():
        try:
            runs[name] = Run(partial(Model.of(build()).start, engine, device, threads), pin, single)
        except QeilError as error:
            refused[name] = first_line(error)
    for _ in range(rounds):
        for run in runs.values():
            run.turn()
    seconds = {name: run.rounds for name, run in runs.items()}
    print(json.dumps({"seconds": seconds, "refused": refused}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
