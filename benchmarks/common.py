"""What the benchmarks share: options, tables, result files, models, and scattered assignments."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # runs from a checkout without an installation
    sys.path.insert(0, str(ROOT))

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qeil_compile.devices import Target
from qeil_compile.devices.loader import parse_target
from qeil_compile.frontends import Traced, trace
from qeil_compile.ir import Workload
from qeil_compile.paper.environment import environment
from qeil_compile.passes.annotate import CostTable

RESULTS = ROOT / "benchmarks" / "results"
ONNX_MODELS = ROOT / "tests" / "data" / "models"


@dataclass
class Report:
    """One table of a benchmark: `rows` are dictionaries by column."""

    name: str
    title: str
    columns: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print the table."""
        # Units in brackets would be taken for markup.
        table = Table(title=escape(self.title), title_justify="left")
        for k, column in enumerate(self.columns):
            table.add_column(escape(column), justify="left" if k == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(shown(row.get(c, ""))) for c in self.columns))
        # A pipe has no width: tables there are not folded.
        console = Console(width=None if sys.stdout.isatty() else 200)
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)


def shown(value: Any) -> str:
    """A cell: floats with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def options(description: str, more: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> Any:
    """Parsed command line: `--quick`, `--json FILE` and what `more` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smallest settings: a check, not a measurement")
    parser.add_argument("--json", type=Path, default=None, help="result file (default benchmarks/results/NAME.json)")
    more(parser)
    return parser.parse_args()


def publish(reports: Sequence[Report], args: Any, name: str, **more: Any) -> Path:
    """Print the tables and write them with the machine and the versions as JSON."""
    for report in reports:
        report.show()
    suffix = ".quick.json" if args.quick else ".json"
    path = args.json or RESULTS / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "benchmark": name,
        "quick": args.quick,
        "environment": environment(),
        **more,
        "tables": {r.name: {"title": r.title, "rows": r.rows, "notes": r.notes} for r in reports},
    }
    path.write_text(json.dumps(data, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


#: Two devices that share one memory. The second is emulated on the CPU where it is not here.
_TARGET = """
name = "two-devices"
title = "CPU with three engines, and an NPU that the CPU stands in for"
{cpu}{npu}
"""
_DEVICE = """
[[device]]
name = "{name}"
kind = "{name}"
title = "{name}"
engines = [{engines}]
pool = "memory"
memory_bandwidth = {{ value = 2.5e10, unit = "B/s", assumed = true, low = 1e10, high = 5e10, source = "benchmark" }}
memory_bytes = {{ value = 68719476736, unit = "B", source = "benchmark" }}
launch_seconds = {{ value = 5e-7, unit = "s", assumed = true, low = 1e-7, high = 5e-6, source = "benchmark" }}
power_const = {{ value = 3.0, unit = "W", assumed = true, low = 1.0, high = 9.0, source = "benchmark" }}
power_idle = {{ value = 1.0, unit = "W", assumed = true, low = 0.0, high = 2.0, source = "benchmark" }}
tdp = {{ value = 30.0, unit = "W", source = "benchmark" }}
energy_per_byte = {{ value = 6e-11, unit = "J/B", assumed = true, low = 3e-11, high = 2e-10, source = "benchmark" }}
t_max = {{ value = 100.0, unit = "C", source = "benchmark" }}
efficiency_compute = {{ value = 0.6, unit = "1", assumed = true, low = 0.3, high = 0.9, source = "benchmark" }}
efficiency_memory = {{ value = 0.7, unit = "1", assumed = true, low = 0.3, high = 0.9, source = "benchmark" }}
[device.peak_flops]
fp32 = {{ value = 1.3e11, unit = "FLOP/s", assumed = true, low = 5e10, high = 1e12, source = "benchmark" }}
[device.energy_per_flop]
fp32 = {{ value = 3e-11, unit = "J/FLOP", assumed = true, low = 1e-11, high = 9e-11, source = "benchmark" }}
"""


def four_placements() -> Target:
    """openvino:CPU, onnxruntime:CPU, torch:cpu, and openvino:NPU, which runs emulated where there is none."""
    cpu = _DEVICE.format(name="cpu", engines='"openvino:CPU", "onnxruntime:CPU", "torch:cpu"')
    npu = _DEVICE.format(name="npu", engines='"openvino:NPU"')
    return parse_target(tomllib.loads(_TARGET.format(cpu=cpu, npu=npu)), "two-devices.toml")


def zoo() -> Any:
    """The small networks of the tests."""
    spec = importlib.util.spec_from_file_location("qeil_benchmark_zoo", ROOT / "tests" / "zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def models() -> dict[str, Callable[[], Traced]]:
    """Name -> tracing of every model of the benchmarks, with random inputs of a fixed seed."""
    from qeil_compile.models import demo_model
    from qeil_compile.models.gpt2 import GPT2

    def tokens(vocab: int, length: int) -> tuple[Any]:
        import torch

        return (torch.randint(0, vocab, (1, length), generator=torch.Generator().manual_seed(0)),)

    def network(name: str, dtype: str = "") -> Traced:
        import torch

        module, inputs = getattr(zoo(), name)(), zoo().EXAMPLES[name]()
        if dtype:
            kind = getattr(torch, dtype)
            module, inputs = module.to(kind), tuple(x.to(kind) for x in inputs)
        return trace(module, inputs)

    # Bytes of a file; with few different values its normalisation would divide noise by noise.
    data = {"bytes": np.random.default_rng(0).integers(0, 256, (1, 2048), np.int32)}
    rate = {"sr": np.array(16000, np.int64)}
    old, new = ONNX_MODELS / "silero_vad/silero_vad_16k_op15.onnx", ONNX_MODELS / "silero_vad/silero_vad.onnx"
    free = Workload({"input.0": 1, "input.1": 576, "state.1": 1})
    return {
        "silero_vad": lambda: trace(new, workload=free, inputs=rate),
        "silero_vad_16k_op15": lambda: trace(old, workload=Workload({"batch": 1, "sequence": 576}), inputs=rate),
        "magika": lambda: trace(
            ONNX_MODELS / "magika/standard_v3_3.onnx", workload=Workload({"bytes.0": 1}), inputs=data
        ),
        "ultraface": lambda: trace(ONNX_MODELS / "ultraface/version-RFB-320.onnx"),
        "stories260K": lambda: trace(demo_model(), tokens(512, 32)),
        "bf16 MLP": lambda: network("bf16_mlp"),
        "fp16 MLP": lambda: network("mlp", "float16"),
        "ResNet-50": lambda: network("resnet50"),
        "GPT-2 125M": lambda: trace(GPT2(), tokens(50257, 16)),
    }


def scattered(rng: np.random.Generator, costs: CostTable, devices: int, run: float) -> list[int]:
    """A random placement per group among `devices` placements that changes every `run` groups on average.

    Where an engine refuses a group the next of the chosen ones takes it, or else any that can.
    """
    chosen = rng.choice(len(costs.placements), size=devices, replace=False)
    current = int(rng.choice(chosen))
    assignment = []
    for g in range(len(costs.groups.groups)):
        if rng.random() * run < 1:
            current = int(rng.choice(chosen))
        able = [int(p) for p in (current, *chosen, *range(len(costs.placements))) if costs.supported[g, p]]
        assignment.append(able[0])
    return assignment


def thousands(
    calls: Mapping[str, Callable[[], object]], rounds: int, batch: int = 1, seconds: float = 8.0
) -> dict[str, np.ndarray]:
    """Seconds per call, one sample per round: all calls take turns, so that noise hits them alike.

    Ends after `rounds`, or after `seconds` in all but at least 5 rounds.

    The order turns from round to round, and each call is warmed by one uncounted run in its turn.
    """
    names_ = list(calls)
    samples: dict[str, list[float]] = {n: [] for n in names_}
    started = time.perf_counter()
    for k in range(rounds):
        if k >= min(rounds, 5) and time.perf_counter() - started > seconds:
            break
        for name in names_[k % len(names_) :] + names_[: k % len(names_)]:
            call = calls[name]
            call()
            before = time.perf_counter()
            for _ in range(batch):
                call()
            samples[name].append((time.perf_counter() - before) / batch)
    return {n: np.array(s) for n, s in samples.items()}


def spread(samples: np.ndarray) -> tuple[float, float, float]:
    """Median, and the quartiles around it."""
    low, middle, high = (float(q) for q in np.quantile(samples, [0.25, 0.5, 0.75]))
    return middle, low, high
