"""Control flow: If, Loop, Scan, SequenceMap. Nested graphs read values of the graphs around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, rule


def _results(values: list[Any]) -> Any:
    return tuple(values) if len(values) != 1 else values[0]


@rule("If")
def _if(node: Node) -> Kernel:
    branches = node.body(node.attr("else_branch")), node.body(node.attr("then_branch"))
    chosen = node.number(0)
    node.keeps_devices = True

    def run(condition: Tensor, *captured: Any) -> Any:
        return _results(branches[bool(chosen(condition))]([], captured))

    return run


@rule("Loop")
def _loop(node: Node) -> Kernel:
    body = node.body(node.attr("body"))
    limit, go_on = node.number(0), node.number(1, True)
    inputs = len(node.input_names)
    carried_count = inputs - 2
    node.keeps_devices = True

    def run(*given: Any) -> Any:
        most, goes = limit(given[0]), bool(go_on(given[1]))
        carried, captured = list(given[2:inputs]), given[inputs:]
        scans: list[list[Tensor]] = [[] for _ in range(len(node.output_names) - carried_count)]
        step = 0
        while goes and (most is None or step < most):
            condition, *values = body([torch.tensor(step), torch.tensor(True), *carried], captured)
            goes = bool(condition)
            carried = values[:carried_count]
            for rows, value in zip(scans, values[carried_count:], strict=False):
                rows.append(value)
            step += 1
        return _results([*carried, *(_stack(rows, 0, node.device) for rows in scans)])

    return run


def _stack(rows: list[Tensor], axis: int, device: torch.device) -> Tensor:
    # Without a single step neither shape nor type of a row is known; ONNX leaves it open as well.
    return torch.stack(rows, axis) if rows else torch.empty(0, device=device)


@rule("Scan")
def _scan(node: Node) -> Kernel:
    body = node.body(node.attr("body"))
    scanned = node.attr("num_scan_inputs")
    first = 1 if node.version < 9 else 0
    inputs = len(node.input_names)
    states = inputs - first - scanned
    outs = len(node.output_names) - states
    node.keeps_devices = True
    in_axes, out_axes = node.attr("scan_input_axes", [0] * scanned), node.attr("scan_output_axes", [0] * outs)
    key = "directions" if first else "scan_input_directions"
    in_back, out_back = node.attr(key, [0] * scanned), node.attr("scan_output_directions", [0] * outs)

    def once(state: list[Any], rows: list[Tensor], captured: tuple[Any, ...]) -> list[Any]:
        parts = [x.unbind(a)[:: -1 if b else 1] for x, a, b in zip(rows, in_axes, in_back, strict=True)]
        found: list[list[Tensor]] = [[] for _ in range(outs)]
        for step in zip(*parts, strict=True):
            values = body([*state, *step], captured)
            state = values[:states]
            for out, value in zip(found, values[states:], strict=True):
                out.append(value)
        stacked = [
            _stack(out[:: -1 if b else 1], a, node.device)
            for out, a, b in zip(found, out_axes, out_back, strict=True)
        ]
        return [*state, *stacked]

    def run(*given: Any) -> Any:
        captured = given[inputs:]
        state, rows = list(given[first : first + states]), list(given[first + states : inputs])
        if not first:
            return _results(once(state, rows, captured))
        # Scan-8 runs the loop for every element of a leading batch axis.
        batches = [
            once([s[i] for s in state], [r[i] for r in rows], captured) for i in range(rows[0].shape[0])
        ]
        return _results([torch.stack(values) for values in zip(*batches, strict=True)])

    return run


@rule("SequenceMap")
def _sequence_map(node: Node) -> Kernel:
    body = node.body(node.attr("body"))
    inputs = len(node.input_names)
    node.keeps_devices = True

    def run(*given: Any) -> Any:
        captured = given[inputs:]
        length = len(given[0])
        calls = [
            body([g[i] if isinstance(g, list) else g for g in given[:inputs]], captured)
            for i in range(length)
        ]
        return _results([[c[k] for c in calls] for k in range(len(node.output_names))])

    return run
