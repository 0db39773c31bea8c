"""One checkpoint in the form that each engine reads: a folder per engine and form of the weights, made once.

python benchmarks/llm_convert.py openvino CHECKPOINT FORM FOLDER    # in the environment that has optimum-intel

All packed forms are alike: matrices, that of the logits included, in blocks of 32 with a scale each, symmetric.
OpenVINO's int8 has one scale per row, as NNCF knows no other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 32
#: A checkpoint of a few thousand weights, for a check of the benchmark itself.
_TINY = {
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 2, "vocab_size": 512, "n_positions": 256},
    "qwen2": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 256},
}  # fmt: skip
#: Tokens of a checkpoint's context: more than the benchmark needs, so that tables of angles do not weigh anything.
_CONTEXT = 1024


def checkpoint(family: Mapping[str, Any], folder: Path, tiny: bool) -> None:
    """Write a checkpoint of `family` with random weights of seed 0, biases and norms included."""
    if (folder / "config.json").is_file():
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(family)
    kind = sizes.pop("model_type")
    key = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    sizes |= {key: min(sizes[key], _CONTEXT), **(_TINY[kind] if tiny else {})}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.02)
    part = folder.with_name(folder.name + ".part")
    model.save_pretrained(part)
    part.rename(folder)


def once(out: Path, make: Any) -> Path:
    """`make(folder)` unless `out` is there already; a failure leaves nothing."""
    if not out.exists():
        part = out.with_name(out.name + ".part")
        subprocess.run(["rm", "-rf", str(part)], check=True)
        part.mkdir(parents=True)
        make(part)
        part.rename(out)
    return out


# ---- ONNX


def onnx_export(source: Path, form: str, out: Path) -> None:
    """`transformers`' exporter: one graph with cache inputs and outputs, Attention of opset 23, last logits only."""
    import onnx
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="sdpa").eval()
    rows, past, new = 2, 5, 3
    with torch.no_grad():
        cache = model(
            torch.ones(rows, past, dtype=torch.long), past_key_values=DynamicCache(config=model.config), use_cache=True
        ).past_key_values
    inputs = {
        "input_ids": torch.ones(rows, new, dtype=torch.long),
        "attention_mask": torch.ones(rows, past + new, dtype=torch.long),
        "position_ids": torch.arange(past, past + new)[None].repeat(rows, 1),
        "past_key_values": cache, "use_cache": True, "logits_to_keep": 1,
    }  # fmt: skip
    exported = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True, opset_version=23))
    exported.save_pretrained(out)
    if form == "fp32":
        return
    proto = onnx.load(out / "model.onnx")
    _plain_products(proto)
    if form == "int8-dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(proto, out / "model.onnx", ["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
                         use_external_data_format=True)  # fmt: skip
        return
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    how = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits={"int8": 8, "int4": 4}[form]
    )
    quantizer = MatMulNBitsQuantizer(proto, algo_config=how)
    quantizer.process()
    for name in ("model.onnx", "model.onnx.data"):
        (out / name).unlink(missing_ok=True)
    quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


def _plain_products(model: Any) -> None:
    """Gemm as MatMul and Add, and matrices that are turned at run time turned now: what quantisers look for."""
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    turned = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in constants}
    nodes = []
    for node in graph.node:
        if node.op_type == "Gemm":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if attributes.get("transA", 0) or {attributes.get("alpha", 1.0), attributes.get("beta", 1.0)} != {1.0}:
                raise ValueError(f"{node.name}: a scaled or turned Gemm has no form as MatMul here")
            matrix = _turned(graph, constants, node.input[1]) if attributes.get("transB", 0) else node.input[1]
            product = f"{node.output[0]}.product"
            nodes.append(helper.make_node("MatMul", [node.input[0], matrix], [product], f"{node.name}.product"))
            nodes.append(helper.make_node("Add", [product, node.input[2]], node.output, node.name))
            continue
        if node.op_type == "MatMul" and node.input[1] in turned:
            node.input[1] = _turned(graph, constants, turned[node.input[1]])
        nodes.append(node)
    used = {i for n in nodes for i in n.input} | {o.name for o in graph.output}
    del graph.node[:]
    graph.node.extend(n for n in nodes if used.intersection(n.output))
    kept = [numpy_helper.from_array(numpy_helper.to_array(t), t.name) for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _turned(graph: Any, constants: dict[str, Any], name: str) -> str:
    from onnx import numpy_helper

    other = f"{name}.turned"
    if other not in constants:
        array = np.ascontiguousarray(numpy_helper.to_array(constants[name]).T)
        constants[other] = numpy_helper.from_array(array, other)
        graph.initializer.append(constants[other])
    return other


def onnx_builder(source: Path, form: str, out: Path) -> None:
    """onnxruntime-genai's model builder: GroupQueryAttention over buffers that are input and output at once."""
    options = ["prune_lm_head=true"]
    if form != "fp32":
        options += [f"block_size={BLOCK}", "accuracy_level=4", "is_symmetric=true"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out), "-p", form,
               "-e", "cpu", "-c", str(out / "cache"), "--extra_options", *options]  # fmt: skip
    _quiet(command)


def _quiet(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        lines = [x for x in done.stderr.strip().splitlines() if x.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")


# ---- OpenVINO


def openvino(source: Path, form: str, out: Path) -> None:
    """optimum-intel's export to a stateful model, its weights packed by NNCF, in the environment that has both."""
    _quiet([os.environ.get("QEIL_EXPORT_PYTHON", sys.executable), __file__, "openvino", str(source), form, str(out)])


def _openvino(source: Path, form: str, out: Path) -> None:
    import openvino as ov
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    whole = out if form == "fp32" else out / "fp32"
    main_export(str(source), whole, task="text-generation-with-past", ov_config=OVConfig(dtype="fp32"),
                convert_tokenizer=False, stateful=True, local_files_only=True)  # fmt: skip
    if form == "fp32":
        return
    import nncf

    model = ov.Core().read_model(whole / "openvino_model.xml")
    if form == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, ratio=1.0, group_size=BLOCK,
                                      all_layers=True)  # fmt: skip
    ov.save_model(model, out / "openvino_model.xml", compress_to_fp16=False)
    for name in ("config.json", "generation_config.json"):
        (out / name).write_bytes((whole / name).read_bytes())
    subprocess.run(["rm", "-rf", str(whole)], check=True)


# ---- GGUF

_GPT2 = {
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_QWEN2 = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_TOP = {
    "transformer.wte.weight": "token_embd.weight", "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight", "transformer.ln_f.bias": "output_norm.bias",
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
}  # fmt: skip


def gguf(source: Path, form: str, out: Path) -> None:
    """The checkpoint as one GGUF file without a tokenizer: F32, Q8_0 or Q4_0."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants
    from safetensors.numpy import load_file

    c = json.loads((source / "config.json").read_text(encoding="utf-8"))
    gpt2 = c["model_type"] == "gpt2"
    writer = GGUFWriter(str(out / "model.gguf"), c["model_type"])
    writer.add_context_length(c["n_positions"] if gpt2 else c["max_position_embeddings"])
    writer.add_embedding_length(c["n_embd"] if gpt2 else c["hidden_size"])
    writer.add_block_count(c["n_layer"] if gpt2 else c["num_hidden_layers"])
    writer.add_feed_forward_length((c.get("n_inner") or 4 * c["n_embd"]) if gpt2 else c["intermediate_size"])
    writer.add_head_count(c["n_head"] if gpt2 else c["num_attention_heads"])
    if gpt2:
        writer.add_layer_norm_eps(c["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(c["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
        writer.add_rope_freq_base(c["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(c["vocab_size"])
    kinds = {"fp32": GGMLQuantizationType.F32, "int8": GGMLQuantizationType.Q8_0, "int4": GGMLQuantizationType.Q4_0}
    for name, array in load_file(source / "model.safetensors").items():
        target = _TOP.get(name) or _layer_name(name, _GPT2 if gpt2 else _QWEN2)
        if gpt2 and array.ndim == 2 and not name.startswith("transformer.w"):
            array = array.T
        array = np.ascontiguousarray(array, np.float32)
        kind = kinds[form] if array.ndim == 2 and "position" not in target else GGMLQuantizationType.F32
        if kind == GGMLQuantizationType.F32:
            writer.add_tensor(target, array)
        else:
            writer.add_tensor(target, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layer_name(name: str, parts: Mapping[str, str]) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    _, _, k, rest = name.split(".", 3)
    base, _, end = rest.rpartition(".")
    return f"blk.{k}.{parts[base]}.{end}"


if __name__ == "__main__":
    _openvino(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
