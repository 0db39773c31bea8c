"""Engines in processes of their own: one that crashes, or is killed for the memory that it takes, takes nothing along.

A message is the length of a JSON head, the head, and the bytes of the arrays that the head lists. Parent and child talk
over a socket that only they have; the child ends when the parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.backends.base import DecoderStage, Executable
from qeil_compile.errors import BackendError
from qeil_compile.forms.program import StageProgram

_HEAD = struct.Struct("<Q")
#: Seconds that a child has to end by itself.
_GRACE = 1.0


def send(channel: socket.socket, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one message. Raises `OSError` where nobody reads."""
    # ascontiguousarray would make a scalar one-dimensional.
    plain = {n: np.asarray(a, order="C") for n, a in arrays.items()}
    listed = [[n, a.dtype.name, list(a.shape)] for n, a in plain.items()]
    text = json.dumps({**head, "arrays": listed}).encode()
    channel.sendall(_HEAD.pack(len(text)) + text)
    for array in plain.values():
        if array.nbytes:
            channel.sendall(array.reshape(-1).view(np.uint8).data)


def receive(channel: socket.socket) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message. Raises `EOFError` where the other side has gone."""
    head = json.loads(bytes(_exactly(channel, _HEAD.unpack(bytes(_exactly(channel, _HEAD.size)))[0])))
    arrays = {}
    for name, dtype, shape in head.pop("arrays"):
        kind = _dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        arrays[name] = np.frombuffer(_exactly(channel, size), kind).reshape(shape)
    return head, arrays


def _exactly(channel: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = channel.recv_into(view)
        if not count:
            raise EOFError("its process ended")
        view = view[count:]
    return data


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


class _Child:
    """A process that serves one stage."""

    def __init__(self, where: str) -> None:
        self._where = where
        mine, theirs = socket.socketpair()
        command = [sys.executable, "-m", "qeil_compile.backends.isolated", str(theirs.fileno())]
        try:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=_environment())
        except (OSError, ValueError) as error:
            raise BackendError(f"{where}: no process of its own can be started ({error})") from error
        finally:
            theirs.close()
        self._channel = mine
        self._end = weakref.finalize(self, _end, self.process, mine)

    def ask(
        self, verb: str, arrays: Mapping[str, np.ndarray], **facts: Any
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Its answer. Raises `BackendError` for what the engine refused, `EOFError` or `OSError` where it has ended."""
        try:
            send(self._channel, {"verb": verb, **facts}, arrays)
            head, found = receive(self._channel)
        except (EOFError, OSError) as error:
            raise EOFError(f"its process ended{self._status()}") from error
        if "memory" in head:
            raise MemoryError(head["memory"])
        if "error" in head:
            raise BackendError(f"{self._where}: {head['error']}")
        return head, found

    def kill(self) -> None:
        """End the process at once; who waits for an answer learns it."""
        self.process.kill()

    def _status(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(_GRACE)
            return f" by signal {-code}" if code < 0 else f" with status {code}"
        return ""


def _end(process: subprocess.Popen[bytes], channel: socket.socket) -> None:
    channel.close()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    # A source tree that runs without an installation has to be found by the child as well.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path)}


class IsolatedStage:
    """A stage of a decoder in another process; a `DecoderStage`."""

    def __init__(
        self, engine: str, program: StageProgram, states: Mapping[str, str], weights: Mapping[str, np.ndarray],
        device: str, exclusive: bool, threads: int,
    ) -> None:  # fmt: skip
        """Raises `BackendError` where the engine refuses, `EOFError` where the process ends."""
        self._child = _Child(f"{engine}:{device}")
        facts = {"engine": engine, "device": device, "exclusive": exclusive, "threads": threads}
        answer, _ = _compile(self._child, program, weights, states=dict(states), **facts)
        self.states: Sequence[str] = tuple(answer["states"])
        self.compact: bool = answer["compact"]
        self._wanted = {*program.inputs, "positions", "mask"} - {*states}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._child.ask("run", {n: a for n, a in feeds.items() if n in self._wanted})[1]

    def reset(self, rows: int) -> None:
        self._child.ask("reset", {}, rows=rows)

    def select(self, rows: np.ndarray) -> None:
        self._child.ask("select", {"rows": rows})

    def export(self) -> dict[str, np.ndarray]:
        return self._child.ask("export", {})[1]

    def load(self, states: Mapping[str, np.ndarray]) -> None:
        self._child.ask("load", states)

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.process.pid


class IsolatedExecutable:
    """A stage without states in another process; an `Executable`."""

    def __init__(
        self, engine: str, program: StageProgram, weights: Mapping[str, np.ndarray], device: str, exclusive: bool,
        threads: int,
    ) -> None:  # fmt: skip
        """Raises as `IsolatedStage` does."""
        self._child = _Child(f"{engine}:{device}")
        facts = {"engine": engine, "device": device, "exclusive": exclusive, "threads": threads}
        _compile(self._child, program, weights, **facts)

    def __call__(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return list(self._child.ask("call", {str(k): a for k, a in enumerate(inputs)})[1].values())

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.process.pid


def _compile(
    child: _Child, program: StageProgram, weights: Mapping[str, np.ndarray], **facts: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    described = {n: v for n, v in asdict(program).items() if n != "payload"}
    arrays = {"": np.frombuffer(program.payload, np.uint8), **weights}
    return child.ask("compile", arrays, program=described, **facts)


def serve(channel: socket.socket) -> None:
    """The child's side: compile what the first message holds, answer calls until the parent has gone."""
    stage: Any = None
    while True:
        try:
            head, arrays = receive(channel)
        except (EOFError, OSError):
            return
        try:
            if head["verb"] == "compile":
                stage = _compiled(head, arrays)
                facts = {"states": list(stage.states), "compact": stage.compact} if "states" in head else {}
                send(channel, facts, {})
            else:
                send(channel, {}, _answer(stage, head, arrays))
        except MemoryError as error:
            send(channel, {"memory": str(error) or "MemoryError"}, {})
        except BrokenPipeError:
            return
        except Exception as error:
            send(channel, {"error": " ".join(str(error).split())[:300] or type(error).__name__}, {})


def _compiled(head: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> DecoderStage | Executable:
    from qeil_compile.backends import backend

    payload = arrays.pop("").tobytes()
    given = {**head["program"], "payload": payload}
    program = StageProgram(**{**given, "inputs": tuple(given["inputs"]), "outputs": tuple(given["outputs"])})
    engine: Any = backend(head["engine"])
    rest = (arrays, head["device"], head["exclusive"], head["threads"])
    if "states" in head:
        return engine.compile_decoder(program, head["states"], *rest)
    return engine.compile(program, *rest)


def _answer(stage: Any, head: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    verb = head["verb"]
    if verb == "call":
        return {str(k): a for k, a in enumerate(stage(list(arrays.values())))}
    if verb == "run":
        return stage.run(arrays)
    if verb == "export":
        return stage.export()
    if verb == "load":
        stage.load(arrays)
    elif verb == "select":
        stage.select(arrays["rows"])
    else:
        stage.reset(head["rows"])
    return {}
