"""Counts of whole models: the shared ones, and the operators of seven families of language models."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from qeil_compile.frontends import trace
from qeil_compile.passes.count import branches, count, unknown_report
from tests.count_graphs import count_one
from tests.fusion_models import SEEN, UNSEEN

#: What decoders of GPT-2, Granite, Qwen2, Llama and LFM2 (short convolution) hold, traced from the configurations of
#: transformers 5.24 on the meta device, attention fused and written out.
IN_LANGUAGE_MODELS = """
    _to_copy.default add.Tensor addmm.default alias.default arange.start_step bitwise_and.Tensor cat.default
    clone.default convolution.default cos.default cumsum.default div.Tensor embedding.default eq.Tensor expand.default
    full.default index.Tensor layer_norm.default le.Tensor linear.default matmul.default mean.dim mul.Tensor ne.Scalar
    neg.default permute.default pow.Tensor_Scalar rsqrt.default scalar_tensor.default
    scaled_dot_product_attention.default silu.default sin.default slice.Tensor softmax.int split.Tensor squeeze.dims
    sub.Tensor tanh.default unsqueeze.default view.default where.self
"""


def test_operators_of_language_models_have_a_rule() -> None:
    x = ("float32", (2, 3))
    missing = [n for n in IN_LANGUAGE_MODELS.split() if not count_one(f"aten.{n}", {"x": x, "y": x}, [x]).known]
    assert missing == []


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15", "ultraface", "magika", "stories260K"])
def test_no_operator_of_a_shared_model_is_unknown(name: str) -> None:
    graph = SEEN[name]().graph.priced()
    counts = count(graph)
    assert unknown_report(graph, counts) == []
    assert sum(c.flops for c in counts) > 1e6


def test_two_exports_of_one_network_cost_the_same() -> None:
    """Silero VAD once with a branch per sampling rate, once for 16 kHz alone: the branch that the input declares."""
    both, one = (SEEN[n]().graph.priced() for n in ("silero_vad", "silero_vad_16k_op15"))
    flops = [sum(c.flops for c in count(g)) for g in (both, one)]
    assert flops[0] == pytest.approx(flops[1], rel=1e-3)
    (costs,) = branches(both).values()
    assert len(costs) == 2 and min(c.flops for c in costs) < 0.5 * max(c.flops for c in costs)


def test_decoding_reads_the_cache_and_writes_the_new_one() -> None:
    graph = UNSEEN["gated decoder with cache"]().graph.priced()
    joined = [c for op, c in zip(graph.ops, count(graph), strict=True)
              if op.short_type == "cat" and "keys" in op.inputs]  # fmt: skip
    row = 2 * 16 * 4  # two key heads of 16 float32
    assert [(c.bytes_in, c.bytes_out) for c in joined] == [(32 * row, 32 * row)]
    (mixed,) = (c for c in count(graph) if c.kind == "attention")
    assert mixed.dims == (4, 1, 32, 16, 16)
    assert mixed.bytes_in == 4 * 16 * 4 + 2 * 32 * row  # a query of 4 heads, keys and values of 2


class ShortConvolution(nn.Module):
    """The gated depthwise convolution of LFM2: x [b, l, 16] -> [b, l, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(16, 48), nn.Linear(16, 16)
        self.conv = nn.Conv1d(16, 16, 3, groups=16, padding=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, y = self.inward(x).transpose(1, 2).chunk(3, 1)
        return self.outward((c * self.conv(b * y)[..., : x.shape[1]]).transpose(1, 2))


def test_short_convolution_counts_its_window_per_channel() -> None:
    counts = count(trace(ShortConvolution().eval(), (torch.randn(1, 9, 16),)).graph)
    (c,) = (c for c in counts if c.kind == "conv")
    assert (c.flops, c.dims) == (2.0 * 16 * (9 + 2) * 3, (1, 16, 16, 1, 11, 3, 1, 11, 1))


def test_weights_quantised_by_onnxruntime_count_half_a_byte() -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    inner, cols, block = 64, 32, 32
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((inner, cols), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 5, d]) for n, d in (("x", inner), ("y", cols)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "g", [x], [y], [weight])
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), block_size=block, is_symmetric=True
    )
    quantizer.process()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q.onnx"
        quantizer.model.save_model_to_file(str(path))
        (c,) = count(trace(path).graph)
    assert c.bytes_weights == inner * cols // 2 + inner // block * cols * 4
    assert (c.flops, c.known, c.kind) == (2.0 * 5 * inner * cols, True, "gemm")
