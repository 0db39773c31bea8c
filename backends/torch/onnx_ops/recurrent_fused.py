"""torch's own LSTM, GRU and RNN for nodes that they can express: no Python loop over time.

The weights must be constants: their gates are put into torch's order once, at construction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node

#: Where each of torch's gates (LSTM i f g o, GRU r z n, RNN h) stands in ONNX's order.
_GATE_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_DEFAULT_ACTIVATIONS = {
    "LSTM": ["sigmoid", "tanh", "tanh"],
    "GRU": ["sigmoid", "tanh"],
    "RNN": ["tanh"],
}
_CALLS: dict[str, Callable[..., Any]] = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}


def _expressible(node: Node) -> bool:
    kind = node.op_type
    directions = 2 if node.attr("direction", "forward") == "bidirectional" else 1
    wanted = _DEFAULT_ACTIVATIONS[kind] * directions
    return (
        [a.lower() for a in node.attr("activations", wanted)] == wanted
        and node.attr("clip") is None
        and not node.attr("input_forget", 0)
        and (kind != "GRU" or bool(node.attr("linear_before_reset", 0)))
        and not node.has_input(4)
        and not node.has_input(7)
        and all(node.constant(i) is not None for i in (1, 2))
        and (not node.has_input(3) or node.constant(3) is not None)
    )


def fused_kernel(node: Node) -> Kernel | None:
    """The kernel of torch's own recurrent operator, or None where the node needs more."""
    w, r, b = (node.constant(i) for i in (1, 2, 3))
    if w is None or r is None or w.dtype not in (torch.float32, torch.float64) or not _expressible(node):
        return None
    order, call, is_lstm = _GATE_ORDER[node.op_type], _CALLS[node.op_type], node.op_type == "LSTM"
    directions, size = r.shape[0], r.shape[-1]
    backward = node.attr("direction", "forward") == "reverse"
    batch_first = node.attr("layout", 0)

    def reorder(gates: Tensor) -> Tensor:
        parts = gates.chunk(len(order), 0)
        return torch.cat([parts[i] for i in order]).to(node.device)

    parameters: list[Tensor] = []
    for d in range(directions):
        parameters += [reorder(w[d]), reorder(r[d])]
        if b is not None:
            parameters += [reorder(half) for half in b[d].chunk(2)]

    def run(x: Tensor, _w: Tensor, _r: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        _b, _lengths, h0, c0 = [*rest, None, None, None, None][:4]
        if batch_first:
            x = x.transpose(0, 1)
            h0, c0 = (None if s is None else s.transpose(0, 1) for s in (h0, c0))
        if backward:
            x = x.flip(0)
        blank = x.new_zeros(directions, x.shape[1], size)
        h = (blank if h0 is None else h0).contiguous()
        state = [h, (blank if c0 is None else c0).contiguous()] if is_lstm else h
        y, *finals = call(x, state, parameters, b is not None, 1, 0.0, False, directions == 2, False)
        y = y.reshape(x.shape[0], x.shape[1], directions, size).permute(0, 2, 1, 3)
        if backward:
            y = y.flip(0)
        if batch_first:
            y, finals = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in finals]
        return (y, *finals)

    return run
