"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from qeil_compile.errors import OutputError


class replacing:
    """A temporary sibling that takes the place of `path` on success: whole or not at all. Raises `OutputError`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            name = f".{self.path.name}.{secrets.token_hex(8)}.tmp"
            self.temporary = self.path.absolute().parent / name
            # Readable by whom the user's umask says, unlike the files of `tempfile`.
            os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
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
