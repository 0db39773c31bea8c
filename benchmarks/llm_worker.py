"""A process of its own for each engine, idle while another is measured: commands and answers are lines of JSON.

python benchmarks/llm_worker.py PEER CHECKPOINT FORM THREADS WORKPLACE

Commands are calls of the peer's methods, {"call": "decode", "rows": 4, ...}; answers are {"value": ...} or
{"error": "..."}.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class PeerError(Exception):
    """A peer is missing, refuses, or died."""


class Worker:
    """A peer's process. Raises `PeerError` from every call once it failed."""

    def __init__(
        self, peer: str, checkpoint: Path, form: str, threads: int, place: Path, python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.peer, self.form = peer, form
        self._log = place / f"{peer}-{form}.log"
        command = [python, __file__, peer, str(checkpoint), form, str(threads), str(place)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put("")

    def call(self, method: str, seconds: float = 1800.0, **arguments: Any) -> Any:
        """The value of the peer's method."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": method, **arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=seconds)
        except (OSError, queue.Empty) as error:
            self.close()
            raise PeerError(f"{method}: {f'no answer in {seconds:.0f} s' if isinstance(error, queue.Empty) else error}"
                            ) from error  # fmt: skip
        if not answer:
            status = self._process.wait()
            raise PeerError(f"{method}: the process ended with status {status}: {self._last_line()}")
        found = json.loads(answer)
        if "error" in found:
            raise PeerError(f"{method}: {found['error']}")
        return found["value"]

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "nothing was printed"

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _serve(peer: str, checkpoint: str, form: str, threads: str, place: str) -> None:
    # Engines print as they like; answers go where they cannot.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        method = command.pop("call")
        try:
            if made is None:
                if peer == "ours":
                    from llm_ours import Ours as Kind
                else:
                    from llm_peers import PEERS

                    Kind = PEERS[peer]
                made = Kind(Path(checkpoint), form, int(threads), Path(place))
            answer = {"value": getattr(made, method)(**command)}
        except Exception as error:  # whatever an engine raises is that row's reason
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
