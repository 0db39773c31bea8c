"""Memory that mapped weights take: pages of a file that an engine has read once and copied into its own form."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

#: Seconds between two looks: an engine repacks some tens of megabytes meanwhile.
_PERIOD = 0.02


@contextmanager
def passing_pages(arrays: Iterable[np.ndarray]) -> Iterator[None]:
    """Inside and at the end pages of mapped files are let go, so that weights and their copies are not there at once.

    They come back from the file when something reads them. Arrays that are in no file stay.
    """
    maps, ended = _maps(arrays), threading.Event()
    if not maps:
        yield
        return

    def watch() -> None:
        while not ended.wait(_PERIOD):
            for mapped in maps:
                _forget(mapped)

    watcher = threading.Thread(target=watch, name="qeil-pages", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        for mapped in maps:
            _forget(mapped)


def _maps(arrays: Iterable[np.ndarray]) -> list[mmap.mmap]:
    """The files behind arrays, each once."""
    found: dict[int, mmap.mmap] = {}
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        mapped = base.obj if isinstance(base, memoryview) else base
        if isinstance(mapped, mmap.mmap):
            found[id(mapped)] = mapped
    return list(found.values())


def _forget(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
