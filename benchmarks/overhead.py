"""Overhead of a one-stage plan over the bare engine. Goal: at most 2 % at 1 ms of work, and 20 us a call.

python benchmarks/overhead.py [--quick] [--json FILE]

The bare engine is what a careful user writes by hand: `session.run` of ONNX Runtime; OpenVINO's compiled model
called with an array, and strictly, one request with shared inputs and outputs and one copy of the output; a
torch module under `inference_mode`. Same model, same thread settings, all calls in turns of `batch` calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from common import Report, options, publish, spread, thousands

from qeil_compile.api import Settings, aot_compile

COLUMNS = ("engine", "work", "call", "bare [us]", "plan [us]", "difference [us]", "quartiles [us]", "ratio",
           "5 % fastest: difference [us]", "goal")  # fmt: skip
#: Name -> (rows, width, layers, rounds, calls per turn) of a chain of linear layers and ReLUs.
WORK = {
    "0.05 ms": (8, 256, 2, 600, 10),
    "1 ms": (64, 512, 3, 250, 4),
    "10 ms": (256, 1024, 2, 40, 2),
}
GOAL_RATIO, GOAL_SECONDS = 1.02, 20e-6


def torch_model(width: int, layers: int) -> Any:
    """The chain as a module, seeded."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [m for _ in range(layers) for m in (torch.nn.Linear(width, width), torch.nn.ReLU())]
        return torch.nn.Sequential(*parts).eval()


def onnx_model(rows: int, module: Any) -> Any:
    """The same chain in ONNX."""
    import onnx
    from onnx import helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for i, layer in enumerate(m for m in module if hasattr(m, "weight")):
        weights.append(numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), f"w{i}"))
        weights.append(numpy_helper.from_array(layer.bias.detach().numpy(), f"b{i}"))
        nodes += [helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"h{i}"]),
                  helper.make_node("Relu", [f"h{i}"], [f"y{i}"])]  # fmt: skip
        last = f"y{i}"
    width = module[0].in_features
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [rows, width]) for n in ("x", last)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", 17)], ir_version=10)


def onnxruntime_calls(model: Any, x: np.ndarray) -> dict[str, Callable[[], object]]:
    """The session called by hand."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return {"session.run": lambda: session.run(None, {"x": x})}


def openvino_calls(model: Any, x: np.ndarray) -> dict[str, Callable[[], object]]:
    """The compiled model called by hand, plainly and strictly."""
    import openvino

    core = openvino.Core()
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)
    request, port = compiled.create_infer_request(), compiled.outputs[0]

    def strict() -> object:
        return np.array(request.infer([x], share_inputs=True, share_outputs=True)[port])

    return {"compiled(x)": lambda: compiled([x]), "infer, shared": strict}


def torch_calls(module: Any, x: np.ndarray) -> dict[str, Callable[[], object]]:
    """The module called by hand."""
    import torch

    # Two OpenMP threads on a shared machine wait for one another, milliseconds at a time; both sides have one.
    torch.set_num_threads(1)
    tensor = torch.from_numpy(x)

    def call() -> object:
        with torch.inference_mode():
            return module(tensor)

    return {"module(x)": call}


def compiled_calls(engine: str, module: Any, model: Any, x: np.ndarray) -> dict[str, Callable[[], object]]:
    """A one-stage plan, called in each of its ways."""
    import torch

    place = "torch:cpu" if engine == "torch" else f"{engine}:CPU"
    settings = Settings(target=place, measure=False)
    tensor = torch.from_numpy(x)
    if engine == "torch":
        compiled = aot_compile(module, (tensor,), settings=settings)
    else:
        compiled = aot_compile(model, inputs={"x": x}, settings=settings)
    run, named, arrays = compiled.executor, {compiled.graph.inputs[0]: x}, [x]
    calls: dict[str, Callable[[], object]] = {
        "run(dict)": lambda: compiled.run(named),
        "executor(list)": lambda: run(arrays),
    }
    if engine == "torch":
        calls["plan(x)"] = lambda: compiled(tensor)
    return calls


def measure(engine: str, work: str, rounds: int | None) -> list[dict[str, Any]]:
    """Rows of one engine at one size of work."""
    rows, width, layers, many, batch = WORK[work]
    module = torch_model(width, layers)
    model = onnx_model(rows, module)
    x = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    makers = {"onnxruntime": onnxruntime_calls, "openvino": openvino_calls, "torch": torch_calls}
    bare = makers[engine](module if engine == "torch" else model, x)
    plan = compiled_calls(engine, module, model, x)
    samples = thousands({**bare, **plan}, rounds or many, batch)
    # The best hand-written form is the rival.
    best = min(bare, key=lambda n: float(np.median(samples[n])))
    result = []
    for name in plan:
        difference, low, high = spread(samples[name] - samples[best])
        ours, theirs = float(np.median(samples[name])), float(np.median(samples[best]))
        ratio = 1 + difference / theirs
        allowed = (GOAL_RATIO - 1) * theirs if work == "1 ms" else GOAL_SECONDS
        goal = "met" if difference <= allowed else "unclear" if low <= allowed else "MISSED"
        fastest = float(np.quantile(samples[name], 0.05) - np.quantile(samples[best], 0.05))
        result.append({
            "engine": engine, "work": work, "call": f"{name} / {best}", "bare [us]": theirs * 1e6,
            "plan [us]": ours * 1e6, "difference [us]": difference * 1e6,
            "quartiles [us]": f"{low * 1e6:.1f} to {high * 1e6:.1f}", "ratio": f"{ratio:.3f}",
            "5 % fastest: difference [us]": fastest * 1e6, "goal": "" if work == "10 ms" else goal,
            "calls": len(samples[name]) * batch,
            "all medians [us]": {n: float(np.median(s)) * 1e6 for n, s in samples.items()},
        })  # fmt: skip
    return result


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--engines", nargs="*", default=["torch", "onnxruntime", "openvino"])

    args = options(__doc__ or "", more)
    report = Report("overhead", "One-stage plan against the bare engine", COLUMNS)
    for engine in args.engines:
        for work in WORK:
            report.rows += measure(engine, work, 3 if args.quick else None)
    report.notes = ["difference: median over turns of plan minus the fastest hand-written form; ratio from it. "
                    "Goal: ratio <= 1.02 at 1 ms, 20 us at 0.05 ms; unclear: the lower quartile meets it.",
                    "5 % fastest: difference of the quantiles, which a busy machine disturbs least."]  # fmt: skip
    publish([report], args, "overhead")


if __name__ == "__main__":
    main()
