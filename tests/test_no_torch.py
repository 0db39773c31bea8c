"""Where torch is not installed: artifacts of other engines run, ONNX models compile, torch stages say why not."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save

from qeil_compile import aot_compile
from tests import artifacts, zoo
from tests.artifacts import run_all, settings, spread
from tests.checkpoints import byte_level

ROOT = Path(__file__).resolve().parent.parent
#: torch and what comes with it or needs it.
_ABSENT = ("torch", "functorch", "torchgen", "nvidia", "triton", "~")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to every installed package but torch: `python -I -S` finds nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for base in {*site.getsitepackages(), str(Path(np.__file__).parent.parent)}:
        for entry in Path(base).glob("*"):
            link = folder / entry.name
            if not entry.name.lower().startswith(_ABSENT) and not os.path.lexists(link) and entry.suffix != ".pth":
                link.symlink_to(entry)
    return folder


def without_torch(packages: Path, code: str, *args: object) -> str:
    """Output of `code` in an interpreter that has no torch; its last line is always `no torch`."""
    whole = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(packages)!r}]\n{code}\n"
        "try:\n    import torch\nexcept ImportError:\n    print('no torch')\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'torch']\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", whole, *map(str, args)], capture_output=True, text=True, timeout=120,
        cwd=packages,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "no torch"
    return done.stdout


def onnx_model(path: Path) -> Path:
    """x float32 [batch, 40] -> relu(x W + b), W with 6400 bytes."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 40)).astype(np.float32)
    bias = rng.standard_normal(40).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], "product"),
        helper.make_node("Add", ["xw", "b"], ["sum"], "bias"),
        helper.make_node("Relu", ["sum"], ["y"], "relu"),
    ]
    graph = helper.make_graph(
        nodes, "dense", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 40])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


RUN = """
import numpy as np
from qeil_compile import load
compiled = load(sys.argv[1])
assert all(d.ok for d in compiled.verify())
np.savez(sys.argv[2], *compiled.run(compiled.golden.inputs).values())
"""


@pytest.mark.parametrize("placements", [["onnxruntime:CPU"], ["openvino:CPU"], ["onnxruntime:CPU", "openvino:CPU"]])
@pytest.mark.parametrize("source", ["torch", "onnx"])
def test_artifacts_run(packages: Path, tmp_path: Path, source: str, placements: list[str]) -> None:
    if source == "torch":
        compiled = spread(artifacts.tied(), (artifacts.TOKENS,), *placements)
    else:
        from qeil_compile import Workload
        from qeil_compile.api import lower_plan, price, trace
        from qeil_compile.passes.partition import assign_plan

        traced = trace(onnx_model(tmp_path / "m.onnx"), workload=Workload({"batch": 2}))
        costs = price(traced, ",".join(placements))
        groups = len(costs.groups.groups)
        compiled = lower_plan(traced, assign_plan(costs, [g % len(placements) for g in range(groups)]), costs)
    compiled.save(tmp_path / "m.qeil")
    without_torch(packages, RUN, tmp_path / "m.qeil", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        for value, expected in zip(found.values(), run_all(compiled).values(), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_onnx_model_compiles_and_is_saved(packages: Path, tmp_path: Path) -> None:
    code = """
from pathlib import Path
import numpy as np
from qeil_compile import Settings, Workload, aot_compile, load
settings = Settings(target="onnxruntime:CPU,openvino:CPU")
compiled = aot_compile(Path(sys.argv[1]), workload=Workload({"batch": 3}), settings=settings)
assert all(d.ok for d in compiled.verify())
assert compiled(np.zeros((3, 40), np.float32))["y"].shape == (3, 40)
compiled.save(sys.argv[2])
assert load(sys.argv[2]).plan == compiled.plan
"""
    without_torch(packages, code, onnx_model(tmp_path / "m.onnx"), tmp_path / "m.qeil")


def test_host_target_leaves_torch_out(packages: Path, tmp_path: Path) -> None:
    code = """
from pathlib import Path
from qeil_compile import Settings, Workload, aot_compile
from qeil_compile.backends import found_devices
compiled = aot_compile(Path(sys.argv[1]), workload=Workload({"batch": 3}), settings=Settings(measure=False))
assert compiled.plan.stages
(torch,) = [d for d in found_devices() if d.spec.startswith("torch:")]
assert not torch.available and "not installed" in torch.reason, torch
"""
    without_torch(packages, code, onnx_model(tmp_path / "m.onnx"))


def test_torch_stage_says_what_is_missing(packages: Path, tmp_path: Path) -> None:
    aot_compile(zoo.mlp(), zoo.EXAMPLES["mlp"](), settings=settings("torch:cpu")).save(tmp_path / "m.qeil")
    code = """
from qeil_compile import load
from qeil_compile.errors import QeilError, TargetError
compiled = load(sys.argv[1])
try:
    compiled.run(compiled.golden.inputs)
except TargetError as error:
    message = str(error)
assert "engine torch: not installed" in message and "pip install" in message, message
"""
    without_torch(packages, code, tmp_path / "m.qeil")


def test_text_is_generated(packages: Path, tmp_path: Path) -> None:
    byte_level(tmp_path / "checkpoint")
    code = """
import numpy as np
from qeil_compile.generation import Sampling, generate, load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
class Session:
    vocab, context, lengths = len(tokenizer), 64, np.zeros(0, np.int64)
    def prefill(self, prompts): return self.step(np.array([prompt[-1] for prompt in prompts]))
    def select(self, rows): pass
    def step(self, tokens): return -np.abs(np.arange(self.vocab)[None] - tokens[:, None] - 1.0).astype(np.float32)
chat = tokenizer.chat([{"role": "user", "content": "hello"}])
((sample,),) = generate(Session(), tokenizer, [chat], Sampling(temperature=0, max_tokens=5))
assert sample.tokens == list(range(chat[-1] + 1, chat[-1] + 6)) and sample.text
"""
    without_torch(packages, code, tmp_path / "checkpoint")


def test_pt2_model_says_what_is_missing(packages: Path, tmp_path: Path) -> None:
    program = torch.export.export(zoo.mlp(), zoo.EXAMPLES["mlp"]())
    torch.export.save(program, tmp_path / "m.pt2")
    code = """
from pathlib import Path
from qeil_compile import aot_compile
from qeil_compile.errors import QeilError
try:
    aot_compile(Path(sys.argv[1]), trust=True)
except QeilError as error:
    message = str(error)
assert "torch" in message and "install" in message, message
"""
    without_torch(packages, code, tmp_path / "m.pt2")


def test_import_loads_no_engine() -> None:
    code = """
import sys
import qeil_compile
engines = {"torch", "onnx", "onnxruntime", "openvino", "onnxscript", "numpy"}
assert not engines & set(sys.modules), engines & set(sys.modules)
import qeil_compile.api
assert not (engines - {"numpy"}) & set(sys.modules), engines & set(sys.modules)
try:
    qeil_compile.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
