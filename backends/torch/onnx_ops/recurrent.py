"""RNN, GRU and LSTM: every direction, layout, activation, sequence lengths, peepholes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qeil_compile.backends.torch.onnx_ops.recurrent_fused import fused_kernel
from qeil_compile.backends.torch.onnx_ops.table import Kernel, Node, fail, rule

Activation = Callable[[Tensor], Tensor]
#: One step: (input projection, states, recurrent weight, recurrent bias, peepholes) -> new states.
Step = Callable[[Tensor, tuple[Tensor, ...], Tensor, Tensor, "Tensor | None"], tuple[Tensor, ...]]

_ACTIVATIONS: dict[str, Callable[[float | None, float | None], Activation]] = {
    "relu": lambda _a, _b: torch.relu,
    "tanh": lambda _a, _b: torch.tanh,
    "sigmoid": lambda _a, _b: torch.sigmoid,
    "softsign": lambda _a, _b: F.softsign,
    "softplus": lambda _a, _b: F.softplus,
    "affine": lambda a, b: lambda x: (1.0 if a is None else a) * x + (b or 0.0),
    "leakyrelu": lambda a, _b: lambda x: F.leaky_relu(x, 0.01 if a is None else a),
    "thresholdedrelu": lambda a, _b: lambda x: F.threshold(x, 1.0 if a is None else a, 0.0),
    "scaledtanh": lambda a, b: (
        lambda x: (1.0 if a is None else a) * torch.tanh((1.0 if b is None else b) * x)
    ),
    "hardsigmoid": lambda a, b: (
        lambda x: torch.clamp((0.2 if a is None else a) * x + (0.5 if b is None else b), 0, 1)
    ),
    "elu": lambda a, _b: lambda x: F.elu(x, 1.0 if a is None else a),
}
_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_TAKES_ALPHA = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
_TAKES_BETA = {"affine", "scaledtanh", "hardsigmoid"}


def _activations(node: Node, directions: int) -> list[list[Activation]]:
    """The activations of each direction; alphas and betas are consumed by those that take them."""
    defaults = _DEFAULTS[node.op_type]
    names = [n.lower() for n in node.attr("activations", defaults * directions)]
    alphas, betas = list(node.attr("activation_alpha", [])), list(node.attr("activation_beta", []))
    found: list[Activation] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise fail(node, f"found activation {name}, expected one of {', '.join(sorted(_ACTIVATIONS))}")
        alpha = alphas.pop(0) if name in _TAKES_ALPHA and alphas else None
        beta = betas.pop(0) if name in _TAKES_BETA and betas else None
        found.append(_ACTIVATIONS[name](alpha, beta))
    size = len(defaults)
    return [found[i * size : (i + 1) * size] for i in range(directions)]


def _rnn_step(_node: Node, acts: list[Activation], bound: Activation) -> Step:
    def step(
        x: Tensor, states: tuple[Tensor, ...], r: Tensor, rb: Tensor, _p: Tensor | None
    ) -> tuple[Tensor, ...]:
        return (acts[0](bound(x + F.linear(states[0], r, rb))),)

    return step


def _gru_step(node: Node, acts: list[Activation], bound: Activation) -> Step:
    after = node.attr("linear_before_reset", 0)
    f, g = acts

    def step(
        x: Tensor, states: tuple[Tensor, ...], r: Tensor, rb: Tensor, _p: Tensor | None
    ) -> tuple[Tensor, ...]:
        (h,) = states
        n = h.shape[-1]
        xz, xr, xh = x.split(n, -1)
        hz, hr = F.linear(h, r[: 2 * n], rb[: 2 * n]).split(n, -1)
        z, reset = f(bound(xz + hz)), f(bound(xr + hr))
        if after:
            new = xh + reset * F.linear(h, r[2 * n :], rb[2 * n :])
        else:
            new = xh + F.linear(reset * h, r[2 * n :], rb[2 * n :])
        return ((1 - z) * g(bound(new)) + z * h,)

    return step


def _lstm_step(node: Node, acts: list[Activation], bound: Activation) -> Step:
    coupled = node.attr("input_forget", 0)
    f, g, h_act = acts

    def step(
        x: Tensor, states: tuple[Tensor, ...], r: Tensor, rb: Tensor, p: Tensor | None
    ) -> tuple[Tensor, ...]:
        h, c = states
        i, o, forget, new = (x + F.linear(h, r, rb)).chunk(4, -1)
        if p is not None:
            pi, po, pf = p.chunk(3, -1)
            i, forget = i + pi * c, forget + pf * c
        i = f(bound(i))
        keep = 1 - i if coupled else f(bound(forget))
        c = keep * c + i * g(bound(new))
        if p is not None:
            o = o + po * c
        return f(bound(o)) * h_act(c), c

    return step


_STEPS: dict[str, tuple[Callable[[Node, list[Activation], Activation], Step], int]] = {
    "RNN": (_rnn_step, 1),
    "GRU": (_gru_step, 3),
    "LSTM": (_lstm_step, 4),
}


def _unroll(
    step: Step,
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor, Tensor, Tensor, Tensor | None],
    lengths: Tensor | None,
    backward: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one direction over x[time, batch, gates]; gives all hidden states and the last states."""
    _, r, rb, p = weights
    found: list[Tensor] = []
    times = range(x.shape[0])
    for t in reversed(times) if backward else times:
        new = step(x[t], states, r, rb, p)
        if lengths is None:
            states = new
            found.append(new[0])
        else:
            # Beyond its own length a sequence keeps its state and puts out zeros.
            live = (t < lengths).unsqueeze(1)
            states = tuple(torch.where(live, a, b) for a, b in zip(new, states, strict=True))
            found.append(torch.where(live, new[0], torch.zeros_like(new[0])))
    if backward:
        found.reverse()
    return torch.stack(found), states


@rule("RNN", "GRU", "LSTM")
def _recurrent(node: Node) -> Kernel:
    fused = fused_kernel(node)
    if fused is not None:
        return fused
    make, gates = _STEPS[node.op_type]
    kind = node.attr("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[kind]
    clip = node.attr("clip")
    is_lstm = node.op_type == "LSTM"

    def bound(x: Tensor) -> Tensor:
        return x if clip is None else x.clamp(-clip, clip)

    steps = [make(node, acts, bound) for acts in _activations(node, len(backwards))]
    batch_first = node.attr("layout", 0)

    def run(x: Tensor, w: Tensor, r: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        b, lengths, h0, c0, peephole = [*rest, None, None, None, None, None][:5]
        if batch_first:
            x = x.transpose(0, 1)
            h0, c0 = (None if s is None else s.transpose(0, 1) for s in (h0, c0))
        size = r.shape[-1]
        outs, lasts = [], []
        for d, (step, backward) in enumerate(zip(steps, backwards, strict=True)):
            bias = x.new_zeros(2 * gates * size) if b is None else b[d]
            blank = x.new_zeros(x.shape[1], size)
            states: tuple[Tensor, ...] = (blank if h0 is None else h0[d],)
            if is_lstm:
                states = (*states, blank if c0 is None else c0[d])
            wb, rb = bias.chunk(2)
            projected = F.linear(x, w[d], wb)
            weights = (w[d], r[d], rb, peephole[d] if is_lstm and peephole is not None else None)
            all_h, last = _unroll(step, projected, states, weights, lengths, backward)
            outs.append(all_h)
            lasts.append(last)
        y = torch.stack(outs, 1)
        finals = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
        if batch_first:
            y = y.permute(2, 0, 1, 3)
            finals = [s.transpose(0, 1) for s in finals]
        return (y, *finals)

    return run
