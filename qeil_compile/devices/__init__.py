"""Devices: target profiles with a source for every number, engine overheads, and this machine as a target."""

from .engines import EngineConstants, boundary_seconds, engine_constants
from .host import ReportRow, host_target, system_report
from .loader import known_targets, load_target, parse_target
from .profile import Coefficient, DeviceProfile, Link, Placement, Target

__all__ = [
    "Coefficient",
    "DeviceProfile",
    "EngineConstants",
    "Link",
    "Placement",
    "ReportRow",
    "Target",
    "boundary_seconds",
    "engine_constants",
    "host_target",
    "known_targets",
    "load_target",
    "parse_target",
    "system_report",
]
