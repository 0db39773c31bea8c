"""Cutting stages: FX as JSON, the ONNX translation with holes, names that survive folding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qeil_compile import Settings, aot_compile, lower_plan, price, trace
from qeil_compile.backends.torch import TorchBackend
from qeil_compile.cli import main
from qeil_compile.errors import ArtifactError, UnsupportedOperatorError, VerificationError
from qeil_compile.forms import fx_json
from qeil_compile.frontends import Traced
from qeil_compile.passes.annotate import CostTable
from qeil_compile.passes.partition import assign_plan
from qeil_compile.runtime.compare import compare


class WithHole(torch.nn.Module):
    """An inverse has no ONNX translation; what is around it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self.after(torch.linalg.inv(self.before(x) + 5 * torch.eye(6))).relu(), 3


class Copies(torch.nn.Module):
    """Copies that an optimizer reads through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.nn.functional.dropout(x.permute(1, 0), 0.5, self.training)
        return a.contiguous().view(3, 2, 4).clone().sum(0) + 1


def _alternate(traced: Traced, costs: CostTable) -> np.ndarray:
    """Neighbouring operators on different placements, wherever both are allowed."""
    allowed = [np.flatnonzero(s) for s in costs.supported]
    return np.array([a[i % len(a)] for i, a in enumerate(allowed)])


def _agrees(traced: Traced, costs: CostTable) -> None:
    compiled = lower_plan(traced, assign_plan(costs, _alternate(traced, costs)), golden=False)
    found = compiled.run(traced.samples)
    for name, expected in zip(traced.graph.outputs, traced.run_reference(traced.samples), strict=True):
        assert compare(name, found[name], expected).ok


def test_an_operator_without_translation_leaves_the_rest_to_other_engines() -> None:
    torch.manual_seed(0)
    traced = trace(WithHole().eval(), (torch.randn(6, 6),))
    costs = price(traced, "host", Settings(fuse=False))
    specs = [p.spec for p in costs.placements]
    ort = costs.supported[:, specs.index("onnxruntime:CPU")]
    names = [costs.groups.graph.ops[g.ops[0]].type for g in costs.groups.groups]
    assert [n for n, ok in zip(names, ort, strict=True) if not ok] == ["aten.linalg_inv_ex.default"]
    assert "no ONNX translation" in next(iter(costs.reasons.values()))
    _agrees(traced, costs)


def test_the_operator_without_translation_is_the_one_that_is_named() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"linalg_inv_ex.*onnxruntime:CPU: .*no ONNX translation"):
        aot_compile(WithHole().eval(), (torch.randn(6, 6),), settings=Settings(target="onnxruntime:CPU"))


def test_a_plan_that_differs_from_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TorchBackend.compile

    def wrong(self: TorchBackend, *args: Any, **kwargs: Any) -> Any:
        run = real(self, *args, **kwargs)
        return lambda inputs: [v * 1.01 for v in run(inputs)]

    monkeypatch.setattr(TorchBackend, "compile", wrong)
    settings = Settings(target="torch:cpu")
    with pytest.raises(VerificationError, match=r"first stage that differs is 0 on torch:cpu.*--no-verify"):
        aot_compile(Copies().eval(), (torch.randn(6, 4),), settings=settings)
    aot_compile(Copies().eval(), (torch.randn(6, 4),), settings=replace(settings, verify=False))


def test_copies_are_cut_where_the_graph_says() -> None:
    traced = trace(Copies().eval(), (torch.randn(6, 4),))
    _agrees(traced, price(traced, "host", Settings(fuse=False)))


def test_json_form_holds_no_machine_paths() -> None:
    traced = trace(Copies().eval(), (torch.randn(6, 4),))
    graph = traced.graph
    for form in traced.source.forms():
        payload = traced.source.cut(form, range(len(graph.ops)), graph.inputs, graph.outputs).payload
        assert b"/" not in payload.replace(b"/out", b"") or form == "onnx"
        assert b".py" not in payload


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "torch.load", "aten.no_such_op.default", "higher_order.triton_kernel_wrapper",
     "operator.attrgetter", "aten.linear", "profiler._record_function_enter.default", ""],
)  # fmt: skip
def test_only_registered_operators_are_read(target: str) -> None:
    graph = {"inputs": ["x"], "nodes": [{"name": "y", "target": target, "args": [{"node": "x"}], "kwargs": {}}],
             "outputs": ["y"]}  # fmt: skip
    with pytest.raises(ArtifactError):
        fx_json.decode(fx_json.dumps(graph), torch.device("cpu"))


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{}", b'{"inputs":[],"nodes":[{}],"outputs":[]}', b'{"inputs":["x"],"nodes":[],"outputs":["y"]}',
     b'{"inputs":[1],"nodes":[],"outputs":[1]}x', b'{"inputs":["x"],"nodes":[],"outputs":[["x"]]}',
     b'{"inputs":["x"],"nodes":[{"name":"y","target":"aten.relu.default","args":[{"dtype":"load"}],"kwargs":{}}],'
     b'"outputs":["y"]}'],
)  # fmt: skip
def test_malformed_json_is_refused(payload: bytes) -> None:
    with pytest.raises(ArtifactError):
        fx_json.decode(payload, torch.device("cpu"))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_program_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], keep: float) -> None:
    whole = tmp_path / "whole.pt2"
    torch.export.save(torch.export.export(Copies().eval(), (torch.randn(6, 4),)), whole)
    cut = tmp_path / "cut.pt2"
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * keep)])
    capfd.readouterr()
    assert main(["compile", str(cut), "--trust", "-o", str(tmp_path / "out.qeil")]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "cut.pt2" in lines[0]
    assert not (tmp_path / "out.qeil").exists()
