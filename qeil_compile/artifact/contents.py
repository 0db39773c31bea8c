"""What an artifact holds, apart from how it is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qeil_compile.ir import OpGraph, Workload
from qeil_compile.passes.lower import LoweredUnit
from qeil_compile.plan import Plan

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Golden:
    """Sample inputs, outputs of the unpartitioned model for them, and what it has at the stage boundaries."""

    inputs: Arrays
    outputs: Arrays
    boundaries: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """A compiled model as plain data. `weight` gives the array of a weight key; `spares` are the units of each spare
    plan."""

    graph: OpGraph
    plan: Plan
    units: Sequence[LoweredUnit]
    weight: Callable[[str], np.ndarray]
    golden: Golden
    workload: Workload
    costs: Mapping[str, Any] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    spares: Sequence[Sequence[LoweredUnit]] = ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of an artifact's files, and by how many they are more than without failover plans."""

    total: int
    failover: int
