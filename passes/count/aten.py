"""Count rules of PyTorch operators (dialect "fx"): a table from `aten.NAME` to its rule.

The overload is dropped, an in-place name (`relu_`) falls back on the functional one, and an operator that the
table does not list but that PyTorch tags `pointwise` costs one exponential per element. PyTorch is asked
only then, and its absence only makes such an operator unknown. Operators that yield symbolic integers cost
nothing.
"""

from __future__ import annotations

from functools import cache

from qeil_compile.ir import Op, OpGraph
from qeil_compile.passes.count import aten_ops as a
from qeil_compile.passes.count import formulas as f
from qeil_compile.passes.count.base import (
    Rule,
    Work,
    isize,
    nothing,
    osize,
    per_input,
    per_output,
    runs,
    table,
)
from qeil_compile.passes.count.traffic import VIEWS, key_of

RULES: dict[str, Rule] = {
    **{view: nothing("movement") for view in VIEWS if view.startswith("aten.")},
    **{f"aten.{name}": per_output(cost) for name, cost in f.FUNCTION.items()},
    **table(
        "aten",
        # matrix products
        (a.linear, "linear"),
        (
            a.matmul,
            """
            mm bmm matmul mv dot vdot inner _int_mm _scaled_mm _scaled_mm_v2 _grouped_mm _scaled_grouped_mm
            """,
        ),
        (a.addmm, "addmm addmv baddbmm addbmm _addmm_activation"),
        (a.outer, "outer ger addr"),
        (a.bilinear, "bilinear _trilinear"),
        (a.einsum, "einsum"),
        (
            a.packed_linear,
            """
            _weight_int4pack_mm _weight_int4pack_mm_for_cpu _weight_int8pack_mm _dyn_quant_matmul_4bit
            _weight_int4pack_mm_with_scales_and_zeros
            """,
        ),
        (a.distances, "cdist _cdist_forward _euclidean_dist pdist _pdist_forward pairwise_distance"),
        # convolutions
        (
            a.convolution,
            """
            convolution _convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
            mkldnn_convolution cudnn_convolution _conv_depthwise2d convolution_overrideable thnn_conv2d
            slow_conv3d
            """,
        ),
        # attention and recurrence
        (
            a.attention,
            """
            scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
            _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
            _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math
            _scaled_dot_product_attention_math_for_mps _scaled_dot_product_fused_attention_overrideable
            """,
        ),
        (a.multi_head, "_native_multi_head_attention"),
        (a.encoder_layer, "_transformer_encoder_layer_fwd"),
        (a.recurrent, "lstm gru rnn_tanh rnn_relu"),
        (a.recurrent_cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
        (a.mkldnn_rnn, "mkldnn_rnn_layer"),
        # norms and softmax
        (a.layer_norm, "layer_norm native_layer_norm rms_norm _fused_rms_norm"),
        (a.group_norm, "group_norm native_group_norm"),
        (a.instance_norm, "instance_norm"),
        (
            a.batch_norm,
            """
            batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
            cudnn_batch_norm _batch_norm_no_update
            """,
        ),
        (a.softmax, "softmax _softmax _safe_softmax log_softmax _log_softmax"),
        (a.softmax, "special_softmax special_log_softmax"),
        # reductions
        (
            per_input(1.0),
            """
            sum nansum amax amin any all argmax argmin cumsum cumprod cummax cummin prod count_nonzero trace
            """,
        ),
        (per_input(2.0), "aminmax"),
        (per_input(1.0, f.DIV), "mean nanmean"),
        (per_input(4.0, 2 * f.DIV), "var var_mean"),
        (per_input(4.0, 2 * f.DIV + f.SQRT), "std std_mean"),
        (per_input(3 + f.EXP, f.EXP), "logsumexp"),
        (per_input(3 + 2 * f.EXP), "logcumsumexp"),
        (a.vector_norm, "norm linalg_vector_norm frobenius_norm dist"),
        (a.extremum, "max min"),
        (per_input(4.0), "mse_loss l1_loss smooth_l1_loss huber_loss"),
        (per_output(2.0, "reduce"), "nll_loss nll_loss_forward nll_loss2d_forward"),
        (
            per_input(2 * f.EXP + 4),
            "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy_loss",
        ),
        # pools and samples
        (a.pool_mean, "avg_pool1d avg_pool2d avg_pool3d"),
        (
            a.pool_max,
            """
            max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
            max_pool3d_with_indices mkldnn_max_pool2d
            """,
        ),
        (
            per_input(1.0, f.DIV),
            """
            adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
            _adaptive_avg_pool3d
            """,
        ),
        (per_input(1.0), "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
        (
            a.upsample,
            """
            upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
            _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
            upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
            """,
        ),
        (a.grid_sample, "grid_sampler grid_sampler_2d grid_sampler_3d"),
        (per_output(6.0), "affine_grid_generator"),
        # orders
        (
            a.sort,
            """
            sort argsort topk kthvalue median nanmedian mode unique_dim _unique _unique2 unique_consecutive
            msort
            """,
        ),
        (lambda op, graph: f.sort(osize(op, graph), isize(op, graph)), "searchsorted bucketize"),
        (per_input(1.0, kind="gather"), "nonzero nonzero_static nonzero_numpy"),
        # gathers and scatters
        (
            nothing("gather"),
            """
            embedding index _unsafe_index _unsafe_masked_index index_select gather take take_along_dim
            masked_select scatter index_copy index_fill slice_scatter select_scatter diagonal_scatter
            as_strided_scatter masked_scatter narrow_copy max_unpool2d max_unpool3d
            """,
        ),
        (a.accumulate, "scatter_add scatter_reduce index_add index_reduce"),
        (a.index_put, "index_put _unsafe_index_put _index_put_impl"),
        (a.embedding_bag, "embedding_bag _embedding_bag"),
        (nothing("gather"), "one_hot bincount"),
        # copies and constants
        (runs, "cat concat"),
        (
            nothing("movement"),
            """
            clone contiguous _to_copy to copy fill zero stack hstack vstack repeat
            repeat_interleave tile constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d
            replication_pad1d replication_pad2d replication_pad3d _pad_circular flip fliplr flipud roll rot90
            tril triu diag diag_embed block_diag pixel_shuffle pixel_unshuffle channel_shuffle col2im im2col
            full full_like zeros zeros_like ones ones_like empty empty_like empty_strided empty_permuted
            new_full new_zeros new_ones new_empty new_empty_strided arange eye scalar_tensor linspace
            logspace tril_indices triu_indices lift_fresh_copy view_copy permute_copy transpose_copy t_copy
            expand_copy squeeze_copy unsqueeze_copy slice_copy select_copy split_copy unbind_copy alias_copy
            detach_copy diagonal_copy as_strided_copy unfold_copy _reshape_copy fft_fftshift fft_ifftshift
            split_with_sizes_copy complex polar type_as
            """,
        ),
        (per_output(f.LIBRARY), "rand rand_like randn randn_like randint randint_like randperm"),
        (per_output(f.LIBRARY), "bernoulli normal uniform exponential multinomial poisson"),
        # special cases of elementwise functions
        (a.power, "pow"),
        (a.gelu, "gelu"),
        (per_output(f.FUNCTION["log_sigmoid"]), "log_sigmoid_forward"),
        (per_output(3.0), "_weight_norm_interface _weight_norm"),
        (per_output(2.0), "_prelu_kernel rrelu_with_noise rrelu_with_noise_functional"),
        (lambda op, graph: f.sort(isize(op, graph), isize(op, graph, 1)), "isin"),
        (per_output(3.0), "linalg_cross cross"),
        (per_output(f.EXP + 3), "hann_window hamming_window blackman_window"),
        (per_input(6.0, f.SQRT + f.DIV), "cosine_similarity"),
        # transforms
        (
            a.fft,
            """
            _fft_r2c _fft_c2r _fft_c2c fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2
            fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfft fft_ihfft
            """,
        ),
        (a.stft, "stft istft"),
        # checks and symbolic integers
        (
            nothing("control"),
            """
            sym_size sym_numel sym_stride sym_storage_offset sym_is_contiguous sym_constrain_range
            sym_constrain_range_for_size size numel dim item _local_scalar_dense _assert_async _assert_scalar
            _assert_tensor_metadata is_nonzero _is_all_true is_complex is_contiguous is_same_size stride
            storage_offset _functional_assert_async _functional_sym_constrain_range
            _functional_sym_constrain_range_for_size
            """,
        ),
    ),
    **table(
        "quantized_decomposed",
        (
            per_output(f.DIV + 4, "quantize"),
            "quantize_per_tensor quantize_per_channel quantize_per_token quantize_per_channel_group",
        ),
        (
            per_output(2.0, "quantize"),
            "dequantize_per_tensor dequantize_per_channel dequantize_per_token dequantize_per_channel_group",
        ),
        (
            per_input(2.0, kind="quantize"),
            "choose_qparams choose_qparams_symmetric choose_qparams_per_token",
        ),
        (per_input(2.0, kind="quantize"), "choose_qparams_per_token_asymmetric"),
        (per_output(2.0, "gather"), "embedding_byte embedding_4bit"),
    ),
}

#: Name spaces of scalar arithmetic on symbolic integers.
SCALAR_SPACES = frozenset(("_operator", "operator", "math", "sym"))


def work(op: Op, graph: OpGraph) -> Work | None:
    """FLOPs and kind; None when no rule exists."""
    key = key_of(op)
    rule = RULES.get(key) or RULES.get(key.removesuffix("_"))
    if rule:
        return rule(op, graph)
    if op.type.split(".")[0] in SCALAR_SPACES or op.type.startswith("torch.sym_"):
        return 0.0, "control"
    return (f.LIBRARY * osize(op, graph), "elementwise") if _is_pointwise(key.removesuffix("_")) else None


@cache
def _is_pointwise(key: str) -> bool:
    """True when PyTorch is there and tags an overload of this operator as pointwise."""
    space, _, name = key.partition(".")
    try:
        import torch
    except ImportError:
        return False
    packet = getattr(getattr(torch.ops, space, None), name, None)
    if packet is None or not hasattr(packet, "overloads"):
        return False
    return any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())
