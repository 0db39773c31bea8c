"""Helpers for tests of artifacts: small compiled models, and manifests rewritten as an attacker would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from qeil_compile.api import Settings, price, trace
from qeil_compile.api import lower_plan as lower
from qeil_compile.artifact.folder import manifest_digest
from qeil_compile.passes.partition import assign_plan
from qeil_compile.runtime import Compiled

ENGINES = ("torch:cpu", "onnxruntime:CPU", "openvino:CPU")


class Tied(nn.Module):
    """tokens int64 [b, l] -> [b, l, 50]; the head is the embedding's own matrix, 10 kB."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 50)
        self.middle = nn.Linear(50, 50, bias=False)
        self.head = nn.Linear(50, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.embedding(tokens))))


def tied() -> nn.Module:
    """A seeded `Tied`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Tied().eval()


def tiny(dynamic: bool = True) -> onnx.ModelProto:
    """x [batch, 64] -> MatMul, Relu, MatMul, Add -> y."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), n) for n in ("w1", "w2")]
    batch = "batch" if dynamic else 2
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Add", ["c", "x"], ["y"], name="add"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 64]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


TOKENS = torch.tensor([[1, 7, 49]])


def settings(*placements: str, **more: Any) -> Settings:
    """Settings for placements of this machine, without measuring."""
    return Settings(target=",".join(placements or ENGINES), measure=False, **more)


def spread(model: Any, args: tuple[Any, ...], *placements: str) -> Compiled:
    """The model with its groups dealt out to the placements in turn: as many boundaries as there can be."""
    traced = trace(model, args)
    costs = price(traced, ",".join(placements))
    order = [[p.spec for p in costs.placements].index(s) for s in placements]
    groups = len(costs.groups.groups)
    assignment = [
        next(p for p in (*order[g % len(order) :], *order) if costs.supported[g, p]) for g in range(groups)
    ]
    return lower(traced, assign_plan(costs, assignment), costs)


def files_of(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and give it the digest that fits."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps({**manifest, "digest": manifest_digest(manifest)}))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and enter its new size and hash."""
    (folder / name).write_bytes(data)

    def enter(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    rewrite(folder, enter)


def run_all(compiled: Compiled) -> Mapping[str, np.ndarray]:
    """Outputs for the golden inputs."""
    return compiled.run(compiled.golden.inputs)
