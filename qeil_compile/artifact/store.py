"""Where the files of an artifact live: a folder, or an uncompressed zip file.

Reading gives bytes that were checked against the manifest's sizes and hashes first; no name can leave the
artifact and no link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import mmap
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from qeil_compile.errors import ArtifactError, OutputError

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

#: Names that artifacts use: no parent folders, no absolute paths, no drive letters, at most one folder deep.
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
MANIFEST = "manifest.json"
#: A zip file's list of its members is read at once; no real one comes near this size.
_LIST_LIMIT = 4 << 20
_ENCRYPTED = 1
#: A rename fails with these when another process has put its own artifact there a moment before.
_TAKEN = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR})
_ATTEMPTS = 10


class Store(Protocol):
    """Read access to the named files of one artifact."""

    path: Path

    def read(self, name: str, limit: int | None = None) -> memoryview:
        """The file's bytes, mapped where possible. Raises `ArtifactError`, also where it has more than `limit`."""
        ...


def open_store(path: Path) -> Store:
    """A folder or zip artifact. Raises `ArtifactError` when there is none at `path`."""
    if path.is_dir():
        return FolderStore(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return ZipStore(path)
    found = "is no artifact" if path.exists() else "no such artifact"
    raise ArtifactError(f"{path}: {found}; expected a folder or zip file written by qeil compile")


def check_name(path: Path, name: str) -> None:
    """Raise `ArtifactError` for a name that could leave the artifact."""
    if not SAFE_NAME.fullmatch(name) or ".." in name:
        raise ArtifactError(f"{path}: file name {name!r} leaves the artifact or is malformed; refused")


class FolderStore:
    """Files of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str, limit: int | None = None) -> memoryview:
        """Map one regular file."""
        check_name(self.path, name)
        full = self.path / name
        try:
            for part in (full.parent, full):
                if part != self.path and part.is_symlink():
                    raise ArtifactError(f"{self.path}: {name} is a link; artifacts hold regular files only; refused")
            # O_NOFOLLOW: the file could be replaced by a link between the check and the opening.
            # O_NONBLOCK: opening a named pipe would wait for a writer for ever.
            handle = os.open(full, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise ArtifactError(f"{self.path}: {name:.80} cannot be read ({error.strerror})") from error
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise ArtifactError(f"{self.path}: {name} is no regular file; refused")
            _check_size(self.path, name, info.st_size, limit)
            return _mapped(handle, info.st_size)
        except (OSError, ValueError) as error:
            # No room in the address space, or the file was cut after its size was asked for.
            raise ArtifactError(f"{self.path}: {name} cannot be mapped into memory ({error})") from error
        finally:
            os.close(handle)


class ZipStore:
    """Members of a zip file, stored without compression, so that none can grow when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with _Listed(path) as file, zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                self._map = _mapped(file.fileno(), os.fstat(file.fileno()).st_size)
        except ArtifactError:
            raise
        except Exception as error:  # zipfile raises struct, index and encoding errors of its own for damaged files
            raise ArtifactError(f"{path}: damaged zip file ({error})") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            self._check(entry)
            self._entries[entry.filename] = entry
        total = sum(e.file_size for e in entries)
        if total > len(self._map):
            # Members that lie over one another would be hashed again and again.
            raise ArtifactError(f"{path}: members of {total} bytes in a file of {len(self._map)}; refused")

    def _check(self, entry: zipfile.ZipInfo) -> None:
        check_name(self.path, entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ArtifactError(f"{self.path}: {entry.filename} is compressed; artifacts are stored; refused")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & _ENCRYPTED:
            raise ArtifactError(f"{self.path}: {entry.filename} is a link, encrypted, or no regular file; refused")
        if entry.filename in self._entries:
            raise ArtifactError(f"{self.path}: {entry.filename} occurs twice; refused")

    def read(self, name: str, limit: int | None = None) -> memoryview:
        """A window of the mapped file."""
        entry = self._entries.get(name)
        if entry is None:
            raise ArtifactError(f"{self.path}: {name} is missing")
        _check_size(self.path, name, entry.file_size, limit)
        # The local header repeats name and extra field with lengths of its own.
        header = self._map[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or bytes(header[:4]) != b"PK\x03\x04":
            raise ArtifactError(f"{self.path}: {name} has a damaged header")
        start = entry.header_offset + 30
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if start + entry.file_size > len(self._map):
            raise ArtifactError(f"{self.path}: {name} is cut off")
        return self._map[start : start + entry.file_size]


class _Listed(io.FileIO):
    """A zip file as `zipfile` reads it: the list of members in one piece, whose size the file itself declares."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LIST_LIMIT:
            raise ArtifactError(f"{self._path}: list of members of {size} bytes, expected at most {_LIST_LIMIT}")
        return super().read(-1 if size is None else size) or b""


def _check_size(path: Path, name: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise ArtifactError(f"{path}: {name} of {size} bytes, expected at most {limit}; refused")


def _mapped(handle: int, size: int) -> memoryview:
    """The file as private memory: engines take only writable arrays without a copy, and no write reaches the file."""
    return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_COPY) if size else bytearray())


def digest(data: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def verify_files(store: Store, files: Mapping[str, Mapping[str, object]]) -> dict[str, memoryview]:
    """All files of the manifest, each checked for size and hash before anyone sees its bytes."""
    checked: dict[str, memoryview] = {}
    for name, expected in files.items():
        data = store.read(name)
        if len(data) != expected.get("size"):
            raise ArtifactError(
                f"{store.path}: {name} has {len(data)} bytes, the manifest says {expected.get('size')}; damaged or "
                "incomplete: copy it again"
            )
        found = digest(data)
        if found != expected.get("sha256"):
            raise ArtifactError(
                f"{store.path}: {name} has SHA-256 {found[:12]}..., the manifest says "
                f"{str(expected.get('sha256'))[:12]}...; damaged or changed: copy it again"
            )
        checked[name] = data
    return checked


@contextlib.contextmanager
def atomic_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling folder that becomes `path` when the block ends, and vanishes if it fails.

    A path that ends in `.zip` becomes one uncompressed zip file. Raises `OutputError`.
    """
    _check_replaceable(path, overwrite)
    with _terminable():
        yield from _written(path, overwrite)


def _written(path: Path, overwrite: bool) -> Iterator[Path]:
    created = [p for p in path.absolute().parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        work, lock = _workplace(path)
    except OSError as error:
        _remove_empty(created)
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        inner = work / "contents"
        inner.mkdir()
        yield inner
        result = inner
        if path.suffix == ".zip":
            result = work / "contents.zip"
            _zip(inner, result)
        _sync(result)
        _swap(result, path, work, overwrite)
    except OSError as error:
        what = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise OutputError(f"{path}: cannot be written ({what}); nothing was left behind") from error
    finally:
        # Also on Ctrl-C: whoever looks at the output folder sees the whole artifact or none.
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        if not path.exists():
            _remove_empty(created)


def _workplace(path: Path) -> tuple[Path, int | None]:
    """A temporary folder beside `path`, with a lock on it that goes when this process does."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        lock = _lock(work, wait=True)
        # Somebody who cleared up may have taken it for abandoned before it was locked.
        if work.exists():
            return work, lock
        if lock is not None:
            os.close(lock)


def _clear_abandoned(path: Path) -> None:
    """Remove what writers of the same path left that were killed: nobody holds the locks of their folders."""
    for work in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if work.is_dir() and not work.is_symlink() and (lock := _lock(work, wait=False)) is not None:
            shutil.rmtree(work, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """A lock on a folder; None where another process has it, or where the system has no such locks."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, that this call made and nobody has filled since."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _check_replaceable(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputError(f"{path}: exists already; choose another name or pass --overwrite")
    # A mistyped name must not cost a folder of something else.
    if path.is_dir() and not (path / MANIFEST).is_file() and _filled(path):
        raise OutputError(f"{path}: is a folder but no artifact, and is not replaced; choose another name")


def _filled(folder: Path) -> bool:
    """Whether anything is in it; what another writer moved away a moment ago is empty."""
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False


def _swap(result: Path, path: Path, work: Path, overwrite: bool) -> None:
    """Rename into place. Whoever fails or is interrupted between two renames puts the old artifact back."""
    for attempt in range(_ATTEMPTS):
        replaced = work / f"replaced{attempt}"
        # Checked again: another process may have written the same path in the meantime.
        _check_replaceable(path, overwrite)
        try:
            # Without leave to overwrite, what came there after the check is another writer's: it stays.
            if overwrite and os.path.lexists(path) and (path.is_dir() or result.is_dir()):
                with contextlib.suppress(FileNotFoundError):
                    path.rename(replaced)
            _move(result, path, overwrite)
        except BaseException as error:
            if os.path.lexists(replaced) and not os.path.lexists(path):
                replaced.rename(path)
            if isinstance(error, OSError) and error.errno in _TAKEN and attempt + 1 < _ATTEMPTS:
                continue
            raise
        _sync_one(path.parent)
        return


def _move(result: Path, path: Path, overwrite: bool) -> None:
    if not overwrite and result.is_file():
        # Renaming a file replaces what is there; a hard link does not. Some file systems have no hard links.
        with contextlib.suppress(OSError):
            os.link(result, path)
            return
        _check_replaceable(path, overwrite)
    result.rename(path)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While this lasts, SIGTERM ends the process as Ctrl-C does: by an exception, so that work is cleaned up."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # a program with a handler of its own decides itself
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            # A fixed date: equal plans give equal files.
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=False) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _sync(path: Path) -> None:
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        _sync_one(file)


def _sync_one(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows cannot open folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
