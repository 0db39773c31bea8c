"""Target profiles: the shipped ones and a person's own by name, any file by path, each in a power mode if asked.

Shipped are targets (`profiles/*.toml`) and the devices of the catalogue (`profiles/devices/*.toml`), each of which is a
target of its own as well. A person's own are `*.toml` in `user_folder()`. All are strictly checked.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from qeil_compile.errors import TargetError
from qeil_compile.untrusted import read_file

from .engines import PROFILES
from .parse import Machine, Parsed, parse_file
from .profile import DeviceProfile, Target
from .reader import Problems, Table, did_you_mean
from .rules import shipped_rules

#: Bytes of a profile.
_LIMIT = 4 << 20
_NO_TARGETS = ("engines.toml", "rules.toml")


@dataclass(frozen=True)
class Known:
    """A profile that can be named: `origin` is `target`, `device` (of the catalogue), or the file of a person's own."""

    name: str
    origin: str
    title: str
    placements: tuple[str, ...]
    modes: tuple[str, ...]
    problem: str = ""


def user_folder() -> Path:
    """Where a person's own profiles are: `$QEIL_PROFILES`, or qeil/profiles in the platform's configuration folder."""
    own = os.environ.get("QEIL_PROFILES")
    if own:
        return Path(own)
    if os.name == "nt":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData/Roaming") / "qeil" / "profiles"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "qeil" / "profiles"


def known_targets() -> list[str]:
    """Names of the shipped target profiles, sorted."""
    return list(_shipped_names("."))


def known_devices() -> list[str]:
    """Names of the devices of the catalogue, sorted; each is a target of its own."""
    return list(_shipped_names("devices"))


def known_profiles() -> list[Known]:
    """Everything that `load_target` knows by name: targets, then a person's own, then the devices of the catalogue."""
    rows = [_known(name, "target") for name in known_targets()]
    rows += [_known(name, str(path)) for name, path in _user_files().items()]
    return rows + [_known(name, "device") for name in known_devices()]


def load_target(name_or_path: str) -> Target:
    """A profile by name, or a file by path, either with `@MODE` for one of its power modes. Raises `TargetError`."""
    machine, mode = _find(name_or_path)
    if not mode:
        return machine.target
    known = machine.mode_names
    if mode not in known:
        expected = f"one of {', '.join(known)}{did_you_mean(mode, known)}" if known else "none: it has no power modes"
        raise TargetError(f"target {machine.target.name}: found no power mode {mode!r}, expected {expected}")
    return machine.at(mode, shipped_rules().voltage)


def power_modes(name_or_path: str) -> tuple[str, ...]:
    """Names of the power modes of a profile. Raises `TargetError`."""
    return _find(name_or_path)[0].mode_names


def catalogue_device(reported: str) -> DeviceProfile | None:
    """The device of the catalogue that drivers report under this name."""
    machines = (_shipped(name) for name in known_devices())
    return next((m.target.devices[0] for m in machines if reported in m.known_as), None)


def parse_target(data: Mapping[str, Any], file: str) -> Target:
    """Check and build a target from a parsed profile or from `Target.to_json`; `file` is for messages."""
    return _first_problem(*_parse(data, file)).target


def check_profile(path: Path) -> list[str]:
    """Every problem of a profile file, each naming the field; an empty list for a good one."""
    try:
        machine, problems = _parse(_read(path), str(path))
    except TargetError as exc:
        return [str(exc)]
    except (OSError, ValueError) as exc:
        return [f"{path}: cannot be read ({exc}), expected a TOML file"]
    if machine is not None:
        for mode in machine.mode_names:
            problems.attempt(partial(machine.at, mode, shipped_rules().voltage))
    return [str(p) for p in problems]


@cache
def _shipped_names(folder: str) -> tuple[str, ...]:
    entries = (f.name for f in files(PROFILES).joinpath(folder).iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in entries if n.endswith(".toml") and n not in _NO_TARGETS))


def _user_files() -> dict[str, Path]:
    folder = user_folder()
    return {p.stem: p for p in sorted(folder.glob("*.toml"))} if folder.is_dir() else {}


def _known(name: str, origin: str) -> Known:
    try:
        machine = _shipped(name) if origin in ("target", "device") else _own(name, Path(origin))
    except TargetError as exc:
        return Known(name, origin, "", (), (), str(exc))
    placements = tuple(p.spec for p in machine.target.placements)
    return Known(name, origin, machine.target.title, placements, machine.mode_names)


def _find(name_or_path: str) -> tuple[Machine, str]:
    """The machine and the power mode that a name or path asks for."""
    name, _, mode = name_or_path.rpartition("@") if "@" in name_or_path else (name_or_path, "", "")
    if Path(name_or_path).suffix == ".toml" and mode:
        name, mode = name_or_path, ""  # an @ in the path of a file is no mode
    own = _user_files()
    if name in own:
        return _own(name, own[name]), mode
    if name in (*known_targets(), *known_devices()):
        return _shipped(name), mode
    path = Path(name)
    try:
        return _load_file(path), mode
    except FileNotFoundError:
        targets, word = [*known_targets(), *own], path.name.removesuffix(".toml")
        near = did_you_mean(word, targets) or did_you_mean(word, known_devices())
        raise TargetError(
            f"target {name_or_path!r}: found neither a known profile nor a file of that name, expected a .toml file, "
            f"a device of the catalogue (`qeil devices list --devices`) or one of {', '.join(targets)}{near}"
        ) from None
    except (OSError, ValueError) as exc:
        raise TargetError(f"target {name_or_path!r}: cannot be read ({exc}), expected a TOML file") from exc


@cache
def _shipped(name: str) -> Machine:
    folder = files(PROFILES)
    file = folder.joinpath(f"{name}.toml") if name in known_targets() else folder.joinpath("devices", f"{name}.toml")
    return _first_problem(*_parse(_toml(file.read_bytes(), f"{name}.toml"), f"{name}.toml"))


def _own(name: str, path: Path) -> Machine:
    """A person's own profile by name; it may not stand before a shipped one."""
    if name in (*known_targets(), *known_devices()):
        raise TargetError(
            f"{path}: found a profile named {name}, which is shipped under that name, expected a name of its own: "
            "rename the file and its `name`"
        )
    machine = _load_file(path)
    if machine.target.name != name:
        raise TargetError(f"{path}: name: found {machine.target.name!r}, expected {name!r}, as the file is called")
    return machine


def _load_file(path: Path) -> Machine:
    return _first_problem(*_parse(_read(path), str(path)))


def _read(path: Path) -> dict[str, Any]:
    return _toml(read_file(path, _LIMIT), str(path))


def _toml(raw: bytes, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as exc:
        raise TargetError(f"{file}: found a file that is not TOML ({exc}), expected a target profile") from exc


def _parse(data: Mapping[str, Any], file: str) -> tuple[Machine | None, Problems]:
    problems = Problems()
    machine = problems.attempt(lambda: parse_file(Table(file, "", data), problems, shipped_rules(), _device))
    return machine, problems


def _device(name: str) -> Parsed | None:
    """What `use` may name: a device of the catalogue, or a person's own file that describes one; None for others."""
    own = _user_files()
    if name in known_devices():
        machine = _shipped(name)
    elif name in own and name not in known_targets() and "device" not in _read(own[name]):
        machine = _own(name, own[name])
    else:
        return None
    return Parsed(machine.target.devices[0], machine.modes[0])


def _first_problem(machine: Machine | None, problems: Problems) -> Machine:
    """The machine of a file without a problem; the first problem is raised, and says how many more there are."""
    if not problems and machine is not None:
        return machine
    more = len(problems) - 1
    hint = f" (and {more} more: `qeil devices check` lists them)" if more > 0 else ""
    raise TargetError(f"{problems[0]}{hint}")
