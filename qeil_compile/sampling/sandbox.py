"""Run a stranger's program with limits: wall and CPU time, memory, output, and no network where the kernel allows it.

It keeps mistakes of generated programs from hanging or filling the machine, and cuts network and processes off. Files
of this user stay readable: for hostile programs take a virtual machine.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qeil_compile.errors import InputError

_LAUNCH = Path(__file__).with_name("_launch.py")
_SHOWN = 1 << 16


@dataclass(frozen=True)
class Outcome:
    """What became of a program. `status`: exit status, negative for a signal; None where it could not be started.

    `timed_out`: it was killed at the wall limit. `isolated`: it had no network, and no process outlived it. Text is
    cut at 64 KiB.
    """

    status: int | None
    output: str
    errors: str
    seconds: float
    timed_out: bool
    isolated: bool


def run(
    command: Sequence[str], stdin: str = "", *, seconds: float = 3.0, memory: int = 1 << 30, output: int = 1 << 24,
    files: Mapping[str, str] | None = None, isolate: bool = True, environment: Mapping[str, str] | None = None,
) -> Outcome:  # fmt: skip
    """Run `command` in a new folder that holds `files`, and remove the folder.

    seconds: wall and CPU time; memory: bytes of address space of each process; output: bytes of any file it writes,
    standard output included. Its process group is killed at the end. Raises `InputError` for an empty command or
    limits that are not positive, or where the system is not POSIX.
    """
    if os.name != "posix":
        raise InputError(f"sandbox: this system is {os.name}, expected POSIX, whose limits it needs")
    if not command or not all(isinstance(part, str) and part for part in command):
        raise InputError(f"sandbox: found the command {list(command)!r}, expected a program and its arguments")
    if not (math.isfinite(seconds) and seconds > 0 and memory > 0 and output > 0):
        raise InputError(f"sandbox: found {seconds} s, {memory} B, {output} B of output, expected positive limits")
    with (
        tempfile.TemporaryDirectory(prefix="qeil-sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as given,
    ):
        for name, text in (files or {}).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        given.write(stdin.encode("utf-8", "replace"))
        given.seek(0)
        path = os.environ.get("PATH", os.defpath)
        inner = {"PATH": path, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
                 **(environment or {})}  # fmt: skip
        read, write = os.pipe()
        settings = {"command": list(command), "environment": inner, "memory": memory, "seconds": math.ceil(seconds),
                    "output": output, "isolate": isolate, "report": write}  # fmt: skip
        started = time.monotonic()
        try:
            # A file of its own, not preexec_fn: that one may deadlock where other threads run.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCH), json.dumps(settings)], stdin=given, stdout=out, stderr=err,
                cwd=folder, start_new_session=True, pass_fds=(write,),
            )  # fmt: skip
        except OSError as error:
            os.close(read)
            return Outcome(None, "", str(error), 0.0, False, False)
        finally:
            os.close(write)
        timed_out = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        took = time.monotonic() - started
        with os.fdopen(read, "rb") as report:
            isolated = report.read(1) == b"1"
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(_SHOWN).decode("utf-8", "replace"))
        out_text, err_text = texts
        return Outcome(process.returncode, out_text, err_text, took, timed_out, isolated)
