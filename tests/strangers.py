"""A helper for tests of what strangers hand over: calls that must not hang."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; the test fails, in place of hanging, where it takes longer."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"no answer in {seconds} s"
    if found[0][1] is not None:
        raise found[0][1]
    return found[0][0]
