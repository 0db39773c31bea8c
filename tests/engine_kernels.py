"""What an engine really runs: its kernels, each as the operators of the traced graph that it covers.

ONNX Runtime saves the graph that it runs and its profile names every node that ran; a node covers what lies between
the tensors that it reads and writes. OpenVINO's profile says which nodes of its runtime model ran, and each
node there names the layers that it was made of.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from qeil_compile.backends import backend
from qeil_compile.backends.onnx_tools import whole_program
from qeil_compile.frontends import Traced
from qeil_compile.ir import OpGraph
from qeil_compile.passes.count import count
from qeil_compile.passes.fuse import kernels


@dataclass(frozen=True)
class Ran:
    """One kernel that an engine ran: the engine's own type and name, and indices into `OpGraph.ops`."""

    type: str
    name: str
    ops: frozenset[int]


@dataclass(frozen=True)
class Agreement:
    """Kernels that an engine ran against those predicted.

    `together` are pairs of working operators (those with FLOPs) that the engine ran in one kernel, `predicted_together`
    those that the rules put into one, `both` those in both sets.
    """

    executed: int
    predicted: int
    together: int
    predicted_together: int
    both: int

    @property
    def precision(self) -> float:
        """Share of the predicted pairs that the engine ran together; 1 if none was predicted."""
        return self.both / self.predicted_together if self.predicted_together else 1.0

    @property
    def recall(self) -> float:
        """Share of the engine's pairs that were predicted; 1 if it ran none together."""
        return self.both / self.together if self.together else 1.0


def agreement(traced: Traced, engine: str) -> Agreement:
    """Run the model on the engine and compare."""
    graph = traced.graph.priced()
    counts = count(graph)
    predicted, ran = kernels(graph, counts, engine), kernels_of(traced, engine)
    seen = {i for r in ran for i in r.ops if counts[i].flops}
    ours = _pairs((frozenset(k.ops) for k in predicted if not k.free), seen)
    theirs = _pairs((r.ops for r in ran), seen)
    number = sum(1 + len(k.extra) for k in predicted if not k.free)
    return Agreement(len(ran), number, len(theirs), len(ours), len(ours & theirs))


def _pairs(groups: Iterable[frozenset[int]], among: set[int]) -> set[tuple[int, int]]:
    return {pair for g in groups for pair in itertools.combinations(sorted(g & among), 2)}


def kernels_of(traced: Traced, engine: str) -> list[Ran]:
    """The kernels of one run of the whole model on the CPU device of `engine`, in the engine's order."""
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine](traced)


def _owners(graph: OpGraph, model: onnx.ModelProto) -> dict[str, int]:
    """ONNX node name -> operator of the graph; a node that writes no tensor of it belongs to its reader's."""
    owner: dict[str, int] = {}
    reader: dict[str, int] = {}
    for node in reversed(model.graph.node):
        known = [graph.producer[o] for o in node.output if o in graph.producer]
        known += [reader[o] for o in node.output if o in reader]
        if known:
            owner[node.name] = known[0]
            for name in node.input:
                reader.setdefault(name, known[0])
    return owner


def _onnxruntime(traced: Traced) -> list[Ran]:
    program = whole_program(traced.source)
    model = onnx.load_model_from_string(program.payload)
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}"
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        weights = {n: np.ascontiguousarray(traced.source.weight(k)) for n, k in program.weights.items()}
        values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in weights.items()}
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(list(program.outputs), {n: traced.samples[n] for n in program.inputs})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
    # What runs inside a branch of an If is an event of its own, without a node of the top graph.
    ran = {e["name"].removesuffix("_kernel_time") for e in events if e["name"].endswith("_kernel_time")}
    nodes = [n for n in optimised.graph.node if n.name in ran]
    owner = _owners(traced.graph, model)
    return [
        Ran(node.op_type, node.name, frozenset(owner[n] for n in region if n in owner))
        for node, region in _regions(model, nodes)
    ]


def _regions(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> list[tuple[onnx.NodeProto, set[str]]]:
    """The nodes of the model between the inputs and outputs of each node that ran."""
    source = _Source(model)
    alias: dict[str, str] = {}
    found = []
    for node in nodes:
        stop = {source.first(alias.get(i, i)) for i in node.input if i}
        for k, o in enumerate(node.output):
            if o and o not in source.known:
                alias[o] = source.original(node, k) or next((alias.get(i, i) for i in node.input if i), "")
        found.append((node, source.between(stop, [alias.get(o, o) for o in node.output if o])))
    return found


class _Source:
    """The model as it was handed to ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {n.name: n for n in model.graph.node}
        self.writer = {o: n for n in model.graph.node for o in n.output if o}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.twin: dict[str, str] = {}
        values: dict[bytes, str] = {}
        for i in model.graph.initializer:
            if i.data_location != onnx.TensorProto.EXTERNAL:
                data = onnx.numpy_helper.to_array(i)
                key = f"{data.dtype} {data.shape}".encode() + data.tobytes()
                self.twin[i.name] = values.setdefault(key, i.name)
        first: dict[bytes, onnx.NodeProto] = {}
        for n in model.graph.node:
            bare = onnx.NodeProto(op_type=n.op_type, input=[self.first(i) for i in n.input], attribute=n.attribute)
            earlier = first.setdefault(bare.SerializeToString(deterministic=True), n)
            if earlier is not n:
                self.twin.update(zip(n.output, earlier.output, strict=True))
            for i in n.input:
                self.readers.setdefault(i, []).append(n)
        given = (i.name for i in (*model.graph.input, *model.graph.initializer))
        self.known = {*self.writer, *given}

    def first(self, name: str) -> str:
        """The tensor that was computed first among equal ones: the engine computes them once."""
        return self.twin.get(name, name)

    def between(self, stop: set[str], ends: list[str]) -> set[str]:
        """Nodes on the way back from `ends` to `stop`."""
        region: set[str] = set()
        queue = list(ends)
        while queue:
            name = queue.pop()
            if self.first(name) not in stop and name in self.writer and self.writer[name].name not in region:
                region.add(self.writer[name].name)
                queue += [i for i in self.writer[name].input if i]
        return region

    def original(self, node: onnx.NodeProto, k: int) -> str:
        """The model's tensor that output k of a node is, in a layout of the engine's own; "" if unknown.

        A convolution in blocks of channels is named after its first result, others after the model's node. With a
        fourth input it has taken up the sum behind it, with an activation that as well, in integers the quantisation.
        """
        name = node.name.removesuffix("_nchwc")
        if name not in self.known:
            own = self.nodes.get(name.partition("_token_")[0])
            name = own.output[k] if own is not None and k < len(own.output) else ""
        activation = next((a.s.decode() for a in node.attribute if a.name == "activation"), "")
        if name and node.op_type == "Conv":
            summed = len(node.input) > 3 and node.input[3]
            name = self._behind(name, "Add") if summed else name
            name = self._behind(name, activation)
        if name and node.op_type.startswith("QLinear"):
            name = self._behind(self._behind(name, "Relu"), "QuantizeLinear")
        return name

    def _behind(self, name: str, kind: str) -> str:
        """The result of the reader of this kind, if it has one and is none itself."""
        if name in self.writer and self.writer[name].op_type == kind:
            return name
        return next((r.output[0] for r in self.readers.get(name, ()) if r.op_type == kind), name)


def _openvino(traced: Traced) -> list[Ran]:
    program = whole_program(traced.source)
    weights = {n: traced.source.weight(k) for n, k in program.weights.items()}
    engine: Any = backend("openvino")
    model = engine._read(program, weights, "CPU")
    owner = _layers(model, traced.graph)
    config = {"PERF_COUNT": "YES", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    executed: set[str] = set()
    # A kernel of less than a microsecond is reported as not run. Its implementation gives it away, but for some that
    # took longer in one first run or another; later runs are averaged with the first.
    for _ in range(4):
        compiled = engine.core.compile_model(model, "CPU", config)
        request = compiled.create_infer_request()
        request.infer({k: traced.samples[_name(p, program.inputs)] for k, p in enumerate(compiled.inputs)})
        executed |= {
            p.node_name
            for p in request.profiling_info
            if p.status.name == "EXECUTED" or not (p.exec_type.startswith("unknown") or p.node_type == "Reorder")
        }
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind = str(info["layerType"].astype(str))
        if node.get_friendly_name() not in executed or kind in ("Input", "Output", "Const", "Constant"):
            continue
        names = str(info["originalLayersNames"].astype(str)).split(",")
        found.append(Ran(kind, node.get_friendly_name(), frozenset(owner[n] for n in names if n in owner)))
    return _absorbed(found, traced.graph)


def _absorbed(found: list[Ran], graph: OpGraph) -> list[Ran]:
    """Layers that a transformation replaced have lost their name: they belong to the only kernel that reads them."""
    covering = {i: {k for k, ran in enumerate(found) if i in ran.ops} for i in range(len(graph.ops))}
    ops = [set(ran.ops) for ran in found]
    for i in reversed(range(len(graph.ops))):
        readers = {r for t in graph.ops[i].outputs if t for r in graph.consumers.get(t, ())}
        read_by = set().union(*(covering[r] for r in readers)) if readers else set()
        if not covering[i] and len(read_by) == 1:
            covering[i] = read_by
            ops[next(iter(read_by))].add(i)
    return [Ran(ran.type, ran.name, frozenset(o)) for ran, o in zip(found, ops, strict=True)]


def _name(port: Any, names: tuple[str, ...]) -> str:
    return next(n for n in names if n in port.get_names())


def _layers(model: Any, graph: OpGraph) -> dict[str, int]:
    """Friendly name of a layer -> operator of the graph; a layer without a tensor's name belongs to its reader's."""
    owner: dict[str, int] = {}
    for op in reversed(model.get_ordered_ops()):
        named = [graph.producer[n] for o in op.outputs() for n in o.get_names() if n in graph.producer]
        reads = [t.get_node().get_friendly_name() for o in op.outputs() for t in o.get_target_inputs()]
        found = named or [owner[r] for r in reads if r in owner]
        if found and op.get_type_name() not in ("Constant", "Parameter", "Result"):
            owner[op.get_friendly_name()] = found[0]
    return owner
