"""Devices: target profiles with a source for every number, engine overheads, and this machine as a target."""

from .engines import EngineConstants, boundary_seconds, constants_of, engine_constants
from .host import ReportRow, host_target, system_report
from .loader import (
    Known,
    check_profile,
    known_devices,
    known_profiles,
    known_targets,
    load_target,
    parse_target,
    power_modes,
    user_folder,
)
from .profile import Coefficient, DeviceProfile, Link, Placement, Target
from .ranges import uncertain, vary

__all__ = [
    "Coefficient",
    "DeviceProfile",
    "EngineConstants",
    "Known",
    "Link",
    "Placement",
    "ReportRow",
    "Target",
    "boundary_seconds",
    "check_profile",
    "constants_of",
    "engine_constants",
    "host_target",
    "known_devices",
    "known_profiles",
    "known_targets",
    "load_target",
    "parse_target",
    "power_modes",
    "system_report",
    "uncertain",
    "user_folder",
    "vary",
]
