"""Counts of PyTorch operators: against PyTorch's own counter and against values derived by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from math import isfinite
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qeil_compile.ir import Op, OpGraph, TensorSpec
from qeil_compile.passes.count import OpCount, count, unknown_report
from qeil_compile.passes.count.aten import RULES
from qeil_compile.passes.count.formulas import SOFTMAX
from tests.count_graphs import count_one, from_export, one

MATMUL_LIKE = ("gemm", "gemv", "conv")


class Block(nn.Module):
    """A GPT-2-like block: its attention either fused or written out."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, rows, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=-1)
        q, k, v = (p.view(batch, rows, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        if self.fused:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(batch, rows, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 16, 3, groups=4, dilation=2),
            nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1),
            nn.ConvTranspose2d(12, 6, 3, groups=3),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Products(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (
            torch.baddbmm(c, a, b)
            + torch.bmm(a, b)
            + torch.matmul(a[0], b)
            + torch.einsum("bij,bjk->bik", a, b)
        )


def torch_flops(module: nn.Module, args: tuple[Any, ...]) -> int:
    """What PyTorch's counter says of one run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(*args)
    return counter.get_total_flops()


def flops_of(counts: tuple[OpCount, ...], *kinds: str) -> float:
    return sum(c.flops for c in counts if c.kind in kinds)


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    ("module", "args"),
    [
        (lambda: Block(32, 4, fused=False), lambda: (torch.randn(2, 7, 32),)),
        (Convolutions, lambda: (torch.randn(2, 3, 17, 19),)),
        (Products, lambda: (torch.randn(3, 4, 5), torch.randn(3, 5, 6), torch.randn(3, 4, 6))),
        (lambda: nn.Conv1d(4, 6, 3, groups=2), lambda: (torch.randn(2, 4, 11),)),
        (lambda: nn.Conv3d(2, 4, 3), lambda: (torch.randn(1, 2, 5, 6, 7),)),
        (lambda: nn.Linear(8, 3), lambda: (torch.randn(8),)),
    ],
    ids=["gpt2", "convolutions", "products", "conv1d", "conv3d", "linear-vector"],
)
def test_matmul_like_flops_equal_torchs_counter(
    module: Callable[[], nn.Module], args: Callable[[], tuple[Any, ...]], decompose: bool
) -> None:
    model, inputs = module(), args()
    counts = count(from_export(model, inputs, decompose=decompose))
    assert flops_of(counts, *MATMUL_LIKE) == torch_flops(model, inputs)
    assert all(c.known for c in counts)


def test_fused_attention_counts_what_its_parts_count() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 7, 32),)
    fused = count(from_export(Block(32, 4, fused=True), inputs))
    parts = count(from_export(Block(32, 4, fused=False), inputs))
    assert sum(c.flops for c in fused) == sum(c.flops for c in parts)
    attention = [c for c in fused if c.kind == "attention"]
    assert len(attention) == 1
    assert attention[0].flops == 2 * 4 * 7 * 7 * (4 * 8 + 1 + SOFTMAX)


def test_weights_are_read_through_views() -> None:
    """Decomposed, a linear layer multiplies by a transposed view of its weight."""
    for decompose in (False, True):
        counts = count(from_export(nn.Linear(16, 4), (torch.randn(3, 16),), decompose=decompose))
        assert sum(c.bytes_weights for c in counts) == (16 * 4 + 4) * 4
        assert sum(c.bytes_in for c in counts) == 3 * 16 * 4
        assert sum(c.bytes_out for c in counts) == 3 * 4 * 4


@pytest.mark.parametrize(
    ("rows", "causal", "live"), [(4, False, 16), (4, True, 10), (1, True, 1), (7, True, 28)]
)
def test_a_causal_mask_leaves_half_of_the_scores_and_the_diagonal(rows: int, causal: bool, live: int) -> None:
    heads, width = 6, 8
    tensors = dict.fromkeys(("q", "k", "v"), ("float32", (2, 3, rows, width)))
    attributes = {"is_causal": causal, "#inputs": ["query", "key", "value"]}
    c = count_one(
        "aten.scaled_dot_product_attention.default", tensors, [("float32", (2, 3, rows, width))], attributes
    )
    assert c.flops == heads * live * (2 * width + 2 * width + 1 + SOFTMAX)
    assert c.kind == "attention"


def test_depthwise_convolution_by_hand() -> None:
    c = count_one(
        "aten.conv2d.default",
        {"x": ("float32", (1, 32, 10, 10)), "w": ("float32", (32, 1, 3, 3))},
        [("float32", (1, 32, 8, 8))],
        {"groups": 32, "#inputs": ["input", "weight"]},
        weights=["w"],
    )
    assert c == OpCount(
        2.0 * 32 * 8 * 8 * 9, 32 * 400, 32 * 36, 32 * 256, "conv", True, "float32", (1, 32, 32, 1, 64, 9, 1, 8, 2)
    )


@pytest.mark.parametrize(
    ("layer", "gates"),
    [
        (lambda: nn.LSTM(5, 6, num_layers=2, bidirectional=True), 4),
        (lambda: nn.GRU(5, 6, num_layers=2, bidirectional=True), 3),
        (lambda: nn.RNN(5, 6, num_layers=2, bidirectional=True), 1),
    ],
    ids=["lstm", "gru", "rnn"],
)
def test_recurrent_layers_by_hand(layer: Callable[[], nn.Module], gates: int) -> None:
    """Layer 1 reads 5 inputs, layer 2 both directions of layer 1; each has 6 states a direction."""
    steps, batch, hidden = 7, 3, 6
    counts = count(from_export(layer(), (torch.randn(steps, batch, 5),)))
    recurrent = [c for c in counts if c.kind == "recurrent"]
    products = 2 * gates * hidden * ((5 + hidden) + (2 * hidden + hidden))
    cell = {4: 3 * 14 + 2 * 8 + 4, 3: 2 * 14 + 8 + 5, 1: 8}[gates]
    assert len(recurrent) == 1
    assert recurrent[0].flops == steps * batch * (2 * products + 4 * hidden * cell)


def test_lstm_with_projection_counts_its_states() -> None:
    counts = count(from_export(nn.LSTM(5, 8, proj_size=4), (torch.randn(2, 3, 5),)))
    (c,) = (c for c in counts if c.kind == "recurrent")
    products = 32 * 5 + 32 * 4 + 4 * 8
    assert c.flops == 2 * 3 * (2 * products + 8 * (3 * 14 + 2 * 8 + 4))


def test_embedding_reads_rows_not_the_table() -> None:
    inputs = {"w": ("float16", (50000, 64)), "i": ("int64", (2, 3))}
    c = count_one(
        "aten.embedding.default",
        inputs,
        [("float16", (2, 3, 64))],
        {"#inputs": ["weight", "indices"]},
        weights=["w"],
    )
    assert (c.bytes_in, c.bytes_weights, c.bytes_out) == (6 * 8, 6 * 64 * 2, 6 * 64 * 2)
    assert (c.flops, c.kind) == (0, "gather")


def test_views_move_nothing_and_copies_do() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.transpose(0, 1).unsqueeze(0).expand(3, 6, 4)[:, 1:].clone()

    counts = count(from_export(Model(), (torch.randn(4, 6),)))
    assert [c.nbytes for c in counts[:-1]] == [0] * (len(counts) - 1)
    # The clone reads at most the 24 numbers behind the expanded view, and writes 3 x 5 x 4.
    assert (counts[-1].bytes_in, counts[-1].bytes_out) == (24 * 4, 60 * 4)


def test_in_place_scatter_writes_only_the_values() -> None:
    cache, values = ("float32", (1, 8, 1024, 64)), ("float32", (1, 8, 1, 64))
    inputs = {"cache": cache, "i": ("int64", (1,)), "v": values}
    attributes = {"#inputs": ["self", "index", "source"], "dim": 2}
    held = count_one("aten.index_copy_.default", inputs, [cache], attributes)
    copied = count_one("aten.index_copy.default", inputs, [cache], attributes)
    assert (held.bytes_in, held.bytes_out) == (8 + 8 * 64 * 4, 8 * 64 * 4)
    assert copied.bytes_out == 8 * 1024 * 64 * 4


def test_one_tensor_twice_is_read_once() -> None:
    graph = one(
        "aten.mul.Tensor", {"x": ("float32", (10,))}, [("float32", (10,))], {"#inputs": ["self", "other"]}
    )
    op = graph.ops[0]
    twice = Op(op.name, op.type, ("x", "x"), op.outputs, op.attributes)
    (c,) = count(OpGraph("g", "fx", (twice,), graph.tensors, ("x",), op.outputs))
    assert (c.bytes_in, c.bytes_out, c.flops) == (40, 40, 10)


def test_pointwise_operators_without_a_row_are_known_by_their_tag() -> None:
    c = count_one("aten.special_bessel_j0.default", {"x": ("float32", (10,))}, [("float32", (10,))])
    assert (c.known, c.kind, c.flops) == (True, "elementwise", 80)


def test_max_of_two_tensors_is_elementwise_and_max_over_an_axis_reduces() -> None:
    x = ("float32", (4, 5))
    assert count_one("aten.max.other", {"x": x, "y": x}, [x]).kind == "elementwise"
    assert (
        count_one("aten.max.dim", {"x": x}, [("float32", (4,)), ("int64", (4,))], {"dim": 1}).kind == "reduce"
    )


def test_gemv_is_told_from_gemm_by_the_rows() -> None:
    def kind(rows: int) -> str:
        inputs = {"x": ("bfloat16", (1, rows, 8)), "w": ("bfloat16", (4, 8))}
        return count_one("aten.linear.default", inputs, [("bfloat16", (1, rows, 4))]).kind

    assert (kind(1), kind(2)) == ("gemv", "gemm")


def test_an_unknown_operator_is_reported_with_its_bytes() -> None:
    x = TensorSpec("x", (100,), "float32", "input")
    y = TensorSpec("y", (100,), "float32", "activation")
    z = TensorSpec("z", (100,), "float32", "activation")
    ops = (Op("a", "mylib.magic.default", ("x",), ("y",)), Op("b", "aten.relu.default", ("y",), ("z",)))
    graph = OpGraph("g", "fx", ops, {"x": x, "y": y, "z": z}, ("x",), ("z",))
    counts = count(graph)
    assert (counts[0].known, counts[0].flops, counts[0].nbytes, counts[0].kind) == (False, 0, 800, "other")
    assert unknown_report(graph, counts) == [("mylib.magic.default", 1, 0.5)]
    assert unknown_report(graph, (counts[1], counts[1])) == []


def test_unknown_dimensions_count_as_one() -> None:
    for shape in ((None, 8), None, ()):
        c = count_one(
            "aten.linear.default", {"x": ("float32", shape), "w": ("float32", (4, 8))}, [("float32", None)]
        )
        assert c.known
        assert c.flops == 2 * 4 * 8 if shape else isfinite(c.flops)


def test_counts_add_up() -> None:
    a = OpCount(10.0, 1, 2, 3, "gemm", True, "float16")
    b = OpCount(5.0, 100, 0, 0, "norm", False, "float32")
    assert a + b == b + a == OpCount(15.0, 101, 2, 3, "gemm", False, "float16")
    assert a.times(3) == OpCount(30.0, 3, 6, 9, "gemm", True, "float16")


@pytest.mark.slow
def test_every_operator_of_common_layers_has_a_rule() -> None:
    """Convolutional, recurrent and attention layers, as exported and decomposed."""
    layers: list[tuple[nn.Module, tuple[Any, ...]]] = [
        (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (torch.randn(2, 5, 16),)),
        (nn.TransformerDecoderLayer(16, 4, 32), (torch.randn(2, 5, 16), torch.randn(3, 5, 16))),
        (nn.MultiheadAttention(16, 4), tuple(torch.randn(2, 5, 16) for _ in range(3))),
        (nn.LSTM(4, 5), (torch.randn(3, 2, 4),)),
        (nn.GRU(4, 5), (torch.randn(3, 2, 4),)),
        (nn.LSTMCell(4, 5), (torch.randn(2, 4),)),
        (Convolutions(), (torch.randn(2, 3, 17, 19),)),
        *((f, (torch.randn(2, 8, 9, 9),)) for f in _image_layers()),
        *((f, (torch.randn(2, 8),)) for f in _activations()),
    ]
    unknown: list[tuple[str, int, float]] = []
    for layer, args in layers:
        for decompose in (False, True):
            graph = from_export(layer, args, decompose=decompose)
            unknown += unknown_report(graph, count(graph))
    assert unknown == []


def _image_layers() -> list[nn.Module]:
    return [
        nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8, affine=True),
        nn.LocalResponseNorm(3),
        nn.AvgPool2d(3),
        nn.AdaptiveMaxPool2d(3),
        nn.AdaptiveAvgPool2d(4),
        nn.LPPool2d(2, 3),
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(7, 7), mode="bicubic"),
        nn.PixelShuffle(2),
        nn.ReflectionPad2d(1),
        nn.ReplicationPad2d(1),
        nn.ConstantPad2d(1, 0.0),
        nn.Unfold(3),
        nn.Softmax2d(),
        nn.PReLU(),
        nn.Dropout2d(),
        nn.ChannelShuffle(2),
    ]


def _activations() -> list[nn.Module]:
    names = """ELU Hardshrink Hardsigmoid Hardtanh Hardswish LeakyReLU LogSigmoid ReLU ReLU6 SELU CELU GELU
    Sigmoid SiLU Mish Softplus Softshrink Softsign Tanh Tanhshrink GLU Softmin LogSoftmax Identity RReLU"""
    norms: list[nn.Module] = [nn.LayerNorm(8), nn.RMSNorm(8), nn.BatchNorm1d(8), nn.Threshold(0.1, 0.0)]
    return [getattr(nn, name)() for name in names.split()] + norms


def test_no_schema_makes_the_count_fail() -> None:
    """Made-up ranks, sizes and types, arguments present, missing or of the wrong type."""
    rng = random.Random(5)
    junk: list[Any] = [0, 1, 2, -1, 1.5, "sum", "ij,jk->ik", [], [1, 2], ["a"], None, True, False]
    dtypes = ["float32", "float16", "int64", "bool", "opaque"]

    def spec() -> tuple[str, list[int | None] | None]:
        rank = rng.randrange(6)
        return rng.choice(dtypes), [rng.choice([None, 0, 1, 2, 5]) for _ in range(rank)] if rank < 5 else None

    for key in RULES:
        packet = getattr(torch.ops.aten, key.removeprefix("aten."), None)
        schemas = [getattr(packet, o)._schema.arguments for o in packet.overloads()] if packet else []
        for arguments, _ in itertools.product(schemas, range(4)):
            inputs = {
                a.name: spec() if rng.random() < 0.9 else None for a in arguments if "Tensor" in str(a.type)
            }
            attributes = {a.name: rng.choice(junk) for a in arguments if rng.random() < 0.5}
            labelled = attributes | ({"#inputs": list(inputs)} if rng.random() < 0.7 else {})
            for given in (inputs, {}):
                c = count_one(f"{key}.default", given, [spec() for _ in range(rng.randrange(3))], labelled)
                assert isfinite(c.flops), key
                assert min(c.flops, c.bytes_in, c.bytes_weights, c.bytes_out) >= 0, key


def test_every_core_operator_has_a_rule() -> None:
    """The operators that PyTorch calls core: what a decomposed graph may hold."""
    missing = []
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        overloads = [getattr(packet, o) for o in packet.overloads()] if hasattr(packet, "overloads") else []
        if any(torch.Tag.core in o.tags for o in overloads) and "backward" not in name:
            c = count_one(f"aten.{name}.default", {"x": ("float32", (2, 3))}, [("float32", (2, 3))])
            missing += [] if c.known else [name]
    assert missing == []
