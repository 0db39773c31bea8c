"""Calls with a deadline: each runs on a thread of its own while the caller waits for it.

What hangs cannot be interrupted, but it can be left behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Watch:
    """Runs calls one after the other on a thread that is left behind when one does not come back."""

    def __init__(self) -> None:
        self._worker: _Worker | None = None
        self._lock = threading.Lock()

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """The result of `function`, or what it raised; `TimeoutError` when there is none after `seconds`."""
        with self._lock:
            if self._worker is None:
                self._worker = _Worker()
                self._worker.start()
            job = self._worker.submit(function)
            if not job.done.acquire(timeout=seconds):
                # It may come back some time; nobody waits for it then, and the thread ends.
                self.close()
                raise TimeoutError
        if job.error is not None:
            raise job.error
        return job.result

    def close(self) -> None:
        """End the thread, or leave it behind."""
        if self._worker is not None:
            self._worker.leave()
            self._worker = None

    def __del__(self) -> None:
        # The thread knows nothing of its watch and would wait for ever.
        self.close()


class _Job:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


class _Worker(threading.Thread):
    """Waits for jobs. Locks are the cheapest hand-over between two threads."""

    def __init__(self) -> None:
        super().__init__(name="qeil-watch", daemon=True)
        self._ready = threading.Lock()
        self._ready.acquire()
        self._job: _Job | None = None
        self._left = False

    def submit(self, function: Callable[[], Any]) -> _Job:
        job = self._job = _Job(function)
        self._ready.release()
        return job

    def leave(self) -> None:
        self._left = True
        if self._ready.locked():
            self._ready.release()

    def run(self) -> None:
        while True:
            self._ready.acquire()
            job, self._job = self._job, None
            if job is None:
                return
            try:
                job.result = job.function()
            except BaseException as error:
                job.error = error
            job.done.release()
            del job  # what the call held must not wait for the next one
            if self._left:
                return
