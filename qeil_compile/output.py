"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from qeil_compile.errors import OutputError


class replacing:
    """A temporary sibling that takes the place of `path` on success: whole or not at all. Raises `OutputError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            folder = self.path.absolute().parent
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".tmp", dir=folder)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self.temporary.replace(self.path)
        except OSError as failed:
            raise OutputError(f"{self.path}: cannot be written ({failed.strerror})") from failed
        finally:
            self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
