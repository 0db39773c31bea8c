"""Bytes that an operator moves when it runs alone, for both dialects.

- Every input is read once, even where the operator takes it twice, and every output is written once; a tensor
  of role "weight" counts as weights, at its stored width.
- A **view** moves nothing: it only renames memory. In FX these are the operators whose result aliases their
  input; in ONNX the ones that keep the order of the elements (Reshape, Squeeze, Unsqueeze, Flatten,
  Identity). ONNX Transpose, Slice, Split, Concat and Expand do copy. Whoever reads a view reads its source:
  at most the source's bytes, and as a weight if the source is one.
- A **gather** reads the rows it fetches, not the table: at most as many elements as it writes.
- An operator that only asks for the **shape** reads no data.
- A **functional scatter** (`index_put`, `slice_scatter`, ScatterND) reads and writes the whole tensor; the
  in-place form (`index_put_`, `copy_`) only the values.
- A decoder's cache that an attention operator updates in place (past and present have one shape) is read
  whole and written only where new rows go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod

from qeil_compile.ir import Op, OpGraph, TensorSpec
from qeil_compile.passes.count.base import at, dims, ishape, osize, positive, tensor

Traffic = tuple[int, int, int]


def _names(prefix: str, names: str) -> frozenset[str]:
    return frozenset(f"{prefix}.{n}" for n in names.split())


VIEWS = _names(
    "aten",
    """view _unsafe_view reshape view_as reshape_as permute transpose t mT numpy_T swapaxes swapdims movedim
    moveaxis adjoint matrix_H expand expand_as broadcast_to broadcast_tensors slice select narrow unsqueeze
    squeeze alias detach split split_with_sizes chunk tensor_split unsafe_chunk unsafe_split
    unsafe_split_with_sizes hsplit vsplit dsplit unbind as_strided diagonal unfold flatten unflatten ravel
    real imag view_as_real view_as_complex lift lift_fresh resolve_conj resolve_neg _conj _neg_view
    _reshape_alias meshgrid atleast_1d atleast_2d atleast_3d dropout alpha_dropout feature_dropout pin_memory
    positive""",
) | _names("onnx", "Reshape Squeeze Unsqueeze Flatten Identity Dropout BitCast Optional OptionalGetElement")

#: Operator -> positions of its tables.
GATHERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        _names(
            "aten",
            """
            embedding index _unsafe_index _unsafe_masked_index index_select gather take take_along_dim
            masked_select narrow_copy
            """,
        )
        | _names("onnx", "Gather GatherElements GatherND Slice CenterCropPad Compress")
        | _names("ai.onnx.ml", "ArrayFeatureExtractor")
        | _names("com.microsoft", "GatherND TorchEmbedding"),
        (0,),
    ),
    "com.microsoft.GatherBlockQuantized": (0, 2, 3),
    "com.microsoft.EmbedLayerNormalization": (2, 3, 4),
}

SHAPE_ONLY = _names(
    "aten",
    """full_like zeros_like ones_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full
    new_empty new_empty_strided sym_size sym_numel sym_stride size numel dim _assert_tensor_metadata""",
) | _names("onnx", "Shape Size EyeLike RandomNormalLike RandomUniformLike SequenceLength OptionalHasElement")

#: Memory that is only named, or that was there before the run.
WRITES_NOTHING = _names(
    "aten", "empty empty_like empty_strided empty_permuted new_empty new_empty_strided"
) | {"onnx.Constant"}

IN_PLACE = _names(
    "aten", "index_put_ index_copy_ index_add_ scatter_ scatter_add_ scatter_reduce_ copy_ fill_ zero_"
)

#: Operator -> (position of the past among the inputs, of the present among the outputs).
CACHES: dict[str, tuple[tuple[int, int], ...]] = {
    "com.microsoft.GroupQueryAttention": ((3, 1), (4, 2)),
    "com.microsoft.MultiHeadAttention": ((6, 1), (7, 2)),
    "com.microsoft.DecoderMaskedMultiHeadAttention": ((5, 1), (6, 2)),
}

EXPERTS = _names("com.microsoft", "MoE QMoE")


def key_of(op: Op) -> str:
    """The type without an FX overload: `aten.linear`, `quantized_decomposed.x`, `onnx.Conv`."""
    parts = op.type.split(".")
    return ".".join(parts[:2]) if len(parts) == 3 and parts[0] not in ("com", "ai") else op.type


def is_view(op: Op, graph: OpGraph) -> bool:
    """True when the operator only renames memory."""
    key = key_of(op)
    if key == "aten.to":  # returns its argument when there is nothing to convert
        source, result = tensor(graph, op.inputs, 0), tensor(graph, op.outputs, 0)
        return source is not None and result is not None and source.dtype == result.dtype
    return key in VIEWS or (graph.dialect == "fx" and key.removesuffix("_") in VIEWS)


def sources(graph: OpGraph, views: Sequence[bool]) -> dict[str, str]:
    """Result of a view -> the tensor whose memory it is; `views` says of each operator whether it is one."""
    found: dict[str, str] = {}
    for op, view in zip(graph.ops, views, strict=True):
        if not view or not op.inputs:
            continue
        # Views of several tensors at once (`meshgrid`) pair them in order.
        paired = len(op.inputs) == len(op.outputs)
        for k, name in enumerate(op.outputs):
            before = op.inputs[k if paired else 0]
            if name and before in graph.tensors:
                found[name] = found.get(before, before)
    return found


def traffic(op: Op, graph: OpGraph, source: Mapping[str, str]) -> Traffic:
    """Bytes of activations read, weights read and results written. `source` is what `sources` gives."""
    if is_view(op, graph):
        return 0, 0, 0
    activations = weights = 0
    for name, size in reads(op, graph, source):
        if is_weight(graph, name):
            weights += size
        else:
            activations += size
    return activations, weights, _written(op, graph, key_of(op))


def is_weight(graph: OpGraph, name: str) -> bool:
    """Whether a tensor is stored with the model: a weight, or a constant inside a branch."""
    if graph.tensors[name].role == "weight":
        return True
    writer = graph.producer.get(name)
    return writer is not None and graph.ops[writer].type == "onnx.Constant"


def reads(op: Op, graph: OpGraph, source: Mapping[str, str]) -> list[tuple[str, int]]:
    """(tensor whose memory is read, bytes) for each input that is read, each once."""
    key = key_of(op)
    if key in SHAPE_ONLY:
        return []
    skip = {op.inputs[0]} if key in IN_PLACE and op.inputs else set()
    found = []
    for i, name in enumerate(op.inputs):
        if not name or name in skip or name not in graph.tensors:
            continue
        skip.add(name)
        origin = source.get(name, name)
        size = min(graph.tensors[name].nbytes, graph.tensors[origin].nbytes)
        share = _share(op, graph, key, i)
        found.append((origin, size if share == 1.0 else ceil(size * share)))
    return found


def _share(op: Op, graph: OpGraph, key: str, i: int) -> float:
    """Share of input i that is really read."""
    if i in GATHERS.get(key, ()):
        return min(1.0, osize(op, graph) / max(1, _stored_elements(op, graph, i)))
    if key in ("aten.embedding_bag", "aten._embedding_bag") and i == 0:
        rows, table = prod(ishape(op, graph, 1)), ishape(op, graph, 0)
        return min(1.0, rows / max(1, at(table, 0)))
    if key in EXPERTS and i >= 2:
        return min(1.0, routed(op, graph) / max(1, at(ishape(op, graph, i), 0)))
    return 1.0


def routed(op: Op, graph: OpGraph) -> int:
    """Rows that a mixture of experts sends to some expert."""
    return prod(ishape(op, graph)[:-1]) * positive(op, "k")


def unpacked(op: Op, spec: TensorSpec | None, bits: str, default: int) -> int:
    """Elements of a tensor that packs several into one byte."""
    size = prod(dims(spec))
    packed = spec is not None and spec.dtype in ("uint8", "int8")
    return size * 8 // positive(op, bits, default) if packed else size


def _stored_elements(op: Op, graph: OpGraph, i: int) -> int:
    table = tensor(graph, op.inputs, 0 if op.type.endswith("GatherBlockQuantized") else i)
    return unpacked(op, table, "bits", 4) if op.type.endswith("GatherBlockQuantized") else prod(dims(table))


def _written(op: Op, graph: OpGraph, key: str) -> int:
    if key in WRITES_NOTHING:
        return 0
    if key in IN_PLACE and len(op.inputs) > 1:  # without values (`fill_`) the whole tensor is written
        values = tensor(graph, op.inputs, -1)
        return values.nbytes if values else 0
    written = {n: graph.tensors[n].nbytes for n in op.outputs if n in graph.tensors}
    for past, present in CACHES.get(key, ()):
        old, new = tensor(graph, op.inputs, past), tensor(graph, op.outputs, present)
        if old and new and dims(old) == dims(new):
            rows = min(at(ishape(op, graph), 1), at(dims(new), 2))
            written[new.name] = new.nbytes * rows // max(1, at(dims(new), 2))
    return sum(written.values())
