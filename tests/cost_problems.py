"""Small cost problems for tests: devices, chains of operators, and random ones that reach every branch of the model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from qeil_compile.devices import Coefficient, DeviceProfile, Link, Target
from qeil_compile.devices.profile import Efficiency, Thermal
from qeil_compile.devices.work import KernelTable
from qeil_compile.ir import GroupGraph, Op, OpGraph, OpGroup, TensorSpec
from qeil_compile.passes.annotate import CostTable, annotate
from qeil_compile.passes.conditions import Conditions
from qeil_compile.passes.count import OpCount


def singles(graph: OpGraph) -> GroupGraph:
    return GroupGraph(graph, tuple(OpGroup(i, (i,)) for i in range(len(graph.ops))))


def one_kernel_each(counts: tuple[OpCount, ...], target: Target) -> dict[str, KernelTable]:
    """Kernels as an engine without fusion runs them, by engine: one per operator, which is a group of its own."""
    columns = {n: np.array([getattr(c, n) for c in counts], dtype=float)
               for n in ("flops", "bytes_in", "bytes_weights", "bytes_out")}  # fmt: skip
    table = KernelTable(
        tuple(c.kind for c in counts), tuple(c.dims for c in counts), tuple(c.dtype for c in counts),
        ("op",) * len(counts), **columns, group=np.arange(len(counts)),
    )  # fmt: skip
    return {p.engine: table for p in target.placements}


def priced(
    groups: GroupGraph, counts: tuple[OpCount, ...], target: Target, conditions: Conditions | None = None, **more: Any
) -> CostTable:
    """The cost table for kernels that are exactly the counted operators."""
    tables = {e: replace(t, group=np.array(groups.group_of)) for e, t in one_kernel_each(counts, target).items()}
    return annotate(groups, counts, target, conditions=conditions, kernels=tables, **more)


def value(v: float, unit: str = "1", low: float | None = None, high: float | None = None) -> Coefficient:
    return Coefficient(v, unit, "test", low, high)


def wide(v: float, unit: str) -> Coefficient:
    """A coefficient known to a factor of two."""
    return value(v, unit, v / 2, v * 2)


def thermal(**changed: float) -> Thermal:
    found = {"leakage": 3.0, "reference": 70.0, "slope": 2500.0, "resistance": 1.5, "time_constant": 40.0,
             "ambient": 25.0} | changed  # fmt: skip
    units = {"leakage": "W", "slope": "K", "resistance": "K/W", "time_constant": "s"}  # others are in C
    return Thermal(**{k: wide(float(v), units[k]) if k in units else value(float(v), "C") for k, v in found.items()})


def device(name: str, spec: str, **changed: Any) -> DeviceProfile:
    profile = DeviceProfile(
        name=name, kind="cpu", title=name, engines=(spec,), pool=name,
        peak_flops={"fp32": value(1e10, "FLOP/s"), "fp16": value(4e10, "FLOP/s")},
        energy_per_flop={"fp32": value(1e-10, "J/FLOP"), "fp16": value(3e-11, "J/FLOP")},
        memory_bandwidth=value(1e9, "B/s"), memory_bytes=value(1e9, "B"), launch_seconds=value(1e-6, "s"),
        power_const=value(1.0, "W"), power_idle=value(0.5, "W"), tdp=value(10.0, "W"),
        energy_per_byte=value(1e-9, "J/B"), t_max=value(100.0, "C"), efficiency_compute=value(0.8),
        efficiency_memory=value(0.6),
    )  # fmt: skip
    return replace(profile, **changed)


def link(a: str, b: str, bandwidth: float = 2e8) -> Link:
    return Link(a, b, value(bandwidth, "B/s"), value(1e-5, "s"), value(2e-9, "J/B"))


def pair(**second: Any) -> Target:
    """Two devices with memories of their own."""
    devices = device("a", "torch:cpu"), device("b", "onnxruntime:CPU", kind="npu", **second)
    return Target("pair", "pair", devices, (link("a", "b"),))


def chain_graph(sizes: list[int]) -> OpGraph:
    """Operator i reads t<i> of `sizes[i]` floats and writes t<i+1>."""
    roles: Any = ["input", *["activation"] * len(sizes)]
    tensors = {f"t{i}": TensorSpec(f"t{i}", (n,), "float32", roles[i]) for i, n in enumerate(sizes)}
    ops = tuple(Op(f"op{i}", "onnx.Relu", (f"t{i}",), (f"t{i + 1}",)) for i in range(len(sizes) - 1))
    return OpGraph("chain", "onnx", ops, tensors, ("t0",), (f"t{len(sizes) - 1}",), {"": 17})


def costs_of(target: Target, *counts: OpCount, conditions: Conditions | None = None) -> CostTable:
    """One group per count, in a chain."""
    groups = singles(chain_graph([64] * (len(counts) + 1)))
    return priced(groups, counts, target, conditions=conditions)


def work(flops: float, nbytes: int, kind: Any = "gemm", dtype: str = "float32") -> OpCount:
    return OpCount(flops, nbytes, 0, 0, kind, True, dtype)


# ---- random problems


def random_graph(rng: np.random.Generator) -> tuple[GroupGraph, tuple[OpCount, ...]]:
    n = int(rng.integers(1, 16))
    tensors = {"x": TensorSpec("x", (int(rng.integers(1, 60000)),), "float32", "input")}
    tensors |= {f"w{i}": TensorSpec(f"w{i}", (int(rng.integers(1, 200000)),), "float32", "weight") for i in range(4)}
    ops: list[Op] = []
    for i in range(n):
        reads = [f"t{r}" for r in rng.choice(i, size=min(i, int(rng.integers(0, 4))), replace=False)] or ["x"]
        reads += [f"w{rng.integers(4)}"] if rng.random() < 0.5 else []
        tensors[f"t{i}"] = TensorSpec(f"t{i}", (int(rng.integers(1, 60000)),), "float32", "activation")
        ops.append(Op(f"op{i}", "onnx.Relu", tuple(reads), (f"t{i}",)))
    read = {t for op in ops for t in op.inputs}
    outputs = tuple(f"t{i}" for i in range(n) if f"t{i}" not in read or rng.random() < 0.1)
    graph = OpGraph("random", "onnx", tuple(ops), tensors, ("x",), outputs, {"": 17})
    cuts = [0, *(i for i in range(1, n) if rng.random() < 0.7), n]
    runs = enumerate(itertools.pairwise(cuts))
    groups = GroupGraph(graph, tuple(OpGroup(k, tuple(range(a, b))) for k, (a, b) in runs))
    counts = tuple(
        OpCount(float(10 ** rng.uniform(3, 9.5)), *(int(10 ** rng.uniform(2, 6)) for _ in range(3)),
                str(rng.choice(["gemm", "gemv", "softmax"])), True, str(rng.choice(["float32", "float16", "int8"])))
        for _ in range(n)
    )  # fmt: skip
    return groups, counts


def random_target(rng: np.random.Generator) -> Target:
    engines = ("torch:cpu", "onnxruntime:X", "openvino:CPU", "openvino:NPU")
    count = int(rng.integers(1, 5))
    pools = ["host"] + [str(rng.choice(["host", "card"])) for _ in range(count - 1)]
    memory = {p: float(10 ** rng.uniform(5.5, 7)) for p in ("host", "card")}
    devices = []
    for i in range(count):
        roofs = {"fp32": value(float(10 ** rng.uniform(9, 12)), "FLOP/s"), "int8": value(1e12, "FLOP/s")}
        own = {"softmax": Efficiency(value(rng.uniform(0.1, 1)), value(rng.uniform(0.1, 1)))}
        hot = thermal(
            leakage=rng.uniform(0, 5), slope=rng.uniform(0, 5000), resistance=10 ** rng.uniform(-2, 1),
            time_constant=rng.uniform(1, 100), ambient=rng.uniform(0, 40),
        )  # fmt: skip
        devices.append(device(
            f"d{i}", engines[i], kind="cpu" if i == 0 else "npu", pool=pools[i], peak_flops=roofs,
            energy_per_flop={d: wide(float(10 ** rng.uniform(-12, -10)), "J/FLOP") for d in roofs},
            memory_bandwidth=value(float(10 ** rng.uniform(8, 10)), "B/s"), memory_bytes=value(memory[pools[i]], "B"),
            launch_seconds=value(float(rng.uniform(0, 1e-5)), "s"), power_const=wide(float(rng.uniform(0, 5)), "W"),
            power_idle=wide(float(rng.uniform(0, 2)), "W"), may_spill=pools[i] == "card",
            energy_per_byte=wide(float(10 ** rng.uniform(-11, -9)), "J/B"),
            efficiencies=own if rng.random() < 0.5 else {}, thermal=hot if rng.random() < 0.7 else None,
        ))  # fmt: skip
    links: tuple[Link, ...] = ()
    if "card" in pools:
        road = link("d0", f"d{pools.index('card')}", float(10 ** rng.uniform(8, 9)))
        links = (replace(road, energy_per_byte=wide(2e-9, "J/B")),)
    return Target("random", "random", tuple(devices), links)
