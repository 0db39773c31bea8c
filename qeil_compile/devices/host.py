"""This machine as a target, and a report of what is on it.

What the engines report (`SeenDevice`, in practice `backends.base.EngineDevice`) says which placements work;
the operating system and NVML say what the devices behind them are. Placements of several engines on one
physical device are put under one profile, so that a plan never books a device twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

from qeil_compile.errors import TargetError

from .cpuinfo import CpuFacts, cpu_facts
from .estimate import assumed, cpu_profile, known_board, like, nvidia_profile
from .loader import catalogue_device, known_targets, load_target
from .nvml import NvidiaFacts, nvidia_devices
from .profile import Coefficient, DeviceProfile, Link, Target
from .reader import did_you_mean
from .rules import shipped_rules

_POOL = "host memory"
#: Where the templates for devices come from about which the system tells little.
_TEMPLATES = "intel-285hx-rtx-pro-5000"


class SeenDevice(Protocol):
    """A device as an engine sees it (the shape of `backends.base.EngineDevice`)."""

    @property
    def spec(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def available(self) -> bool: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One physical device: the placements that drive it, and per missing one `spec: reason`."""

    device: str
    kind: str
    details: str
    engines: tuple[str, ...]
    missing: tuple[str, ...]


def host_target(specs: Sequence[str] | None, found: Sequence[SeenDevice]) -> Target:
    """The target `host`: the placements `specs` (None: all that work) of this machine.

    Raises `TargetError` for a placement that is unknown or does not work here.
    """
    chosen = _choose(specs, found)
    boards, _ = nvidia_devices()
    facts = cpu_facts()
    groups: dict[str, list[SeenDevice]] = {}
    for seen in chosen:
        groups.setdefault(_physical(seen), []).append(seen)
    devices = tuple(_profile(name, group, facts, boards) for name, group in groups.items())
    return Target("host", f"this machine: {facts.model}", devices, _host_links(devices), host=True)


def _choose(specs: Sequence[str] | None, found: Sequence[SeenDevice]) -> list[SeenDevice]:
    working = {s.spec: s for s in found if s.available}
    if specs is None:
        if not working:
            reasons = "; ".join(f"{s.spec}: {s.reason}" for s in found) or "no engine is installed"
            raise TargetError(f"this machine: found no usable device ({reasons}), expected at least one")
        return list(working.values())
    if not specs:
        raise TargetError(
            "target: found an empty list of devices, expected at least one such as openvino:CPU"
        )
    for spec in specs:
        if spec not in working:
            raise TargetError(_unusable(spec, found, list(working)))
    return [working[spec] for spec in dict.fromkeys(specs)]


def _unusable(spec: str, found: Sequence[SeenDevice], working: list[str]) -> str:
    reasons = [s.reason or "the engine gives no reason" for s in found if s.spec == spec]
    if reasons:
        why, hint = f"not usable on this machine ({reasons[0]})", ""
    else:
        why, hint = "reported by no engine on this machine", did_you_mean(spec, working)
    return (
        f"device {spec}: {why}; available here: {', '.join(working) or 'none'}{hint}; "
        f"a target profile can be compiled for without the device: {', '.join(known_targets())}"
    )


def _physical(seen: SeenDevice) -> str:
    """Name of the physical device behind a placement: `cpu`, `npu`, `cuda0`, `igpu`, ..."""
    if seen.kind in ("cpu", "npu"):
        return seen.kind
    engine, _, device = seen.spec.partition(":")
    number = re.search(r"(\d+)$", device)
    index = int(number[1]) if number else 0
    if _is_nvidia(seen):
        return f"cuda{index}"
    if engine == "openvino":
        # OpenVINO marks discrete cards in the name that it gives.
        return f"{'dgpu' if 'dGPU' in seen.description else 'igpu'}{index or ''}"
    return re.sub(r"[^A-Za-z0-9]+", "-", f"gpu-{device}").strip("-").lower()


def _is_nvidia(seen: SeenDevice) -> bool:
    device = seen.spec.partition(":")[2].lower()
    return seen.kind == "gpu" and device.startswith(("cuda", "tensorrt", "nvtensorrt"))


def _profile(
    name: str, group: list[SeenDevice], facts: CpuFacts, boards: Sequence[NvidiaFacts]
) -> DeviceProfile:
    engines = tuple(s.spec for s in group)
    first = group[0]
    if first.kind == "cpu":
        return cpu_profile(name, facts, engines, _POOL)
    known = load_target(_TEMPLATES)
    title = first.description or first.spec
    if _is_nvidia(first):
        board = _board(first, boards, int(name.removeprefix("cuda")))
        template, rules = known.device_of("gpu"), shipped_rules()
        if board is None:
            return like(template, name, title, engines, f"{name} memory")
        device = catalogue_device(board.name)
        if device is not None:
            return known_board(name, board, engines, device, rules.voltage)
        return nvidia_profile(name, board, engines, template, rules)
    if name.startswith("dgpu"):
        return like(known.device_of("gpu"), name, title, engines, f"{name} memory")
    # Every other GPU or NPU is taken to live in the host's memory.
    template = known.device_of("npu" if first.kind == "npu" else "igpu")
    shared = like(template, name, title, engines, _POOL)
    return replace(shared, memory_bytes=Coefficient(facts.memory_bytes, "B", "told by the operating system"))


def _board(seen: SeenDevice, boards: Sequence[NvidiaFacts], index: int) -> NvidiaFacts | None:
    """The board that an engine means. CUDA may number boards otherwise than NVML: the name decides first."""
    named = [b for b in boards if b.name and b.name in seen.description]
    candidates = named if named and not any(b.index == index for b in named) else boards
    return next((b for b in candidates if b.index == index), candidates[0] if candidates else None)


def _host_links(devices: Sequence[DeviceProfile]) -> tuple[Link, ...]:
    """A road between each two memories; between two boards it leads through the host."""
    one_per_pool = {d.pool: d.name for d in reversed(devices)}
    bandwidth = assumed(
        1.2e10, "B/s", "PCIe 4.0 x8 or 3.0 x16 at 75 %; run `qeil calibrate` to measure it", 5.0
    )
    latency = assumed(1e-5, "s", "start of one DMA copy from user space")
    energy = assumed(3e-10, "J/B", "PCIe at both ends plus one read and one write of DRAM")
    return tuple(Link(a, b, bandwidth, latency, energy) for a, b in combinations(one_per_pool.values(), 2))


def system_report(found: Sequence[SeenDevice]) -> list[ReportRow]:
    """What is on this machine, which engine drives it, and why something is missing.

    There is always a row for the CPU, NVIDIA, an Intel GPU and an Intel NPU; other devices follow.
    """
    facts = cpu_facts()
    boards, reason = nvidia_devices()
    cpu_text = (
        f"{facts.model}, {facts.cores} cores, {facts.memory_bytes / 2**30:.1f} GiB, {facts.vector_text}"
    )
    left = {s.spec: s for s in found}

    def take(device: str, kind: str, details: str, members: list[SeenDevice]) -> ReportRow:
        for s in members:
            left.pop(s.spec, None)
        engines = tuple(s.spec for s in members if s.available)
        missing = tuple(f"{s.spec}: {s.reason or 'no reason given'}" for s in members if not s.available)
        return ReportRow(device, kind, details, engines, missing)

    rows = [take("CPU", "cpu", cpu_text, [s for s in found if s.kind == "cpu"])]
    nvidia = [s for s in found if _is_nvidia(s)]
    for b in boards:
        memory = f"{b.memory_bytes / 2**30:.1f} GiB" if b.memory_bytes else "memory not told"
        power = f", {b.power_limit:.0f} W limit" if b.power_limit else ""
        mine = [s for s in nvidia if _board(s, boards, int(_physical(s).removeprefix("cuda"))) is b]
        rows.append(take(f"NVIDIA {b.index}: {b.name}", "gpu", memory + power, mine))
    if not boards:
        rows.append(take("NVIDIA", "gpu", f"NVIDIA: {reason}", nvidia))
    for device, kind in (("Intel GPU", "gpu"), ("Intel NPU", "npu")):
        mine = [s for s in found if s.kind == kind and s.spec.startswith("openvino:") and not _is_nvidia(s)]
        names = ", ".join(dict.fromkeys(s.description for s in mine if s.available and s.description))
        rows.append(take(device, kind, names or f"{device}: {_unseen(mine, found)}", mine))
    for s in list(left.values()):
        if s.available:
            rows.append(take(s.description or s.spec, s.kind, s.description or s.spec, [s]))
    # Devices that an engine knows by name only are no devices of this machine: one row an engine, not one each.
    for engine in dict.fromkeys(spec.partition(":")[0] for spec in left):
        others = [s for spec, s in left.items() if spec.startswith(f"{engine}:")]
        details = f"{len(others)} more that {engine} could drive: {', '.join(s.spec.partition(':')[2] for s in others)}"
        rows.append(take(f"other ({engine})", "other", details, others))
    return rows


def _unseen(mine: Sequence[SeenDevice], found: Sequence[SeenDevice]) -> str:
    if any(s.available for s in mine):
        return "seen by OpenVINO, which gives no name"
    reasons = [s.reason for s in mine if s.reason]
    if reasons:
        return reasons[0]
    if any(s.spec.startswith("openvino:") for s in found):
        return "not seen by OpenVINO (no such device, or its driver is missing)"
    return "OpenVINO reports no devices (is it installed?)"
