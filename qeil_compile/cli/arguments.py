"""NAME=VALUE arguments and .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qeil_compile.errors import InputError, OutputError, PinError
from qeil_compile.output import replacing
from qeil_compile.untrusted import elements, parse_json

#: Bytes of the arrays of an .npz file, unpacked.
_NPZ_LIMIT = 1 << 33


def pairs(option: str, values: Sequence[str], form: str) -> dict[str, str]:
    """`NAME=VALUE` arguments by name. Raises `InputError`."""
    found: dict[str, str] = {}
    for value in values:
        name, sign, rest = value.partition("=")
        if not sign or not name or not rest:
            raise InputError(f"{option} {value}: expected {form}")
        if found.get(name, rest) != rest:
            raise InputError(f"{option} {name}: given twice, as {found[name]} and {rest}; remove one")
        found[name] = rest
    return found


def dimensions(values: Sequence[str]) -> dict[str, int]:
    """`--dim NAME=N`. Raises `InputError`."""
    found: dict[str, int] = {}
    for name, text in pairs("--dim", values, "NAME=N, such as batch=4").items():
        try:
            found[name] = int(text)
        except ValueError as error:
            raise InputError(f"--dim {name}={text}: {text} is no whole number") from error
    return found


def numbers(option: str, text: str) -> list[int]:
    """`1,2` as numbers from 1. Raises `InputError`."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdigit() and int(p) > 0 for p in parts):
        raise InputError(f"{option} {text}: expected numbers from 1 with commas, such as 1,2")
    return [int(p) for p in parts]


def pins(values: Sequence[str]) -> dict[str, str]:
    """`--pin PATTERN=ENGINE:DEVICE`. Raises `PinError`."""
    found: dict[str, str] = {}
    for value in values:
        pattern, sign, placement = value.rpartition("=")
        if not sign or not pattern or ":" not in placement:
            raise PinError(f"--pin {value}: expected PATTERN=ENGINE:DEVICE, such as layers.0=openvino:CPU")
        if found.get(pattern, placement) != placement:
            raise PinError(f"pins contradict: {pattern}={found[pattern]} and {pattern}={placement}; remove one")
        found[pattern] = placement
    return found


def arrays(values: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Inputs from `--inputs FILE.npz` and `--input NAME=VALUE`; the latter win. Raises `InputError`."""
    found: dict[str, Any] = read_npz(file) if file is not None else {}
    for name, text in pairs("--input", values, "NAME=VALUE, such as x=1.5 or x=[[1,2],[3,4]]").items():
        try:
            found[name] = parse_json(text, "any")
        except ValueError as error:
            raise InputError(f"--input {name}={text[:60]}: neither a number nor a JSON list") from error
    return found


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, without pickle. Raises `InputError`."""
    if path.suffix != ".npz":
        raise InputError(f"{path}: expected an .npz file with one array per input")
    try:
        if path.exists() and not path.is_file():
            raise OSError("no regular file")
        _check_npz(path)
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError, MemoryError, zlib.error,
            SyntaxError, TypeError) as error:  # fmt: skip
        raise InputError(f"{path}: cannot be read as .npz ({' '.join(str(error).split())[:160]})") from error


def _check_npz(path: Path) -> None:
    """Raise `ValueError` where arrays are larger than any input, or than their member: numpy would make room first."""
    total = 0
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            total += entry.file_size
            if total > _NPZ_LIMIT:
                raise ValueError(f"arrays of more than {_NPZ_LIMIT} bytes")
            with archive.open(entry) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                if elements([int(d) for d in shape]) * dtype.itemsize != entry.file_size - member.tell():
                    raise ValueError(f"{entry.filename} has another size than its shape {shape!r:.60}")


def check_file(path: Path, suffix: str, overwrite: bool) -> None:
    """Refuse an output file that cannot be written, before any work. Raises `OutputError`."""
    if path.suffix != suffix:
        raise OutputError(f"{path}: expected a name that ends in {suffix}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; choose another name or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: folder {path.parent} does not exist")


def write_npz(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """Write arrays, whole or not at all. Types that .npz does not know become float32. Raises `OutputError`."""
    plain = {n: a.astype(np.float32) if a.dtype.kind == "V" else a for n, a in values.items()}
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **plain)
        except ValueError as error:
            raise OutputError(f"{path}: an output has no .npz form ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises `OutputError`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all. Raises `OutputError`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
