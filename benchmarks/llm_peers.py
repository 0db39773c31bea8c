"""What people would use in place of a compiled decoder, each driven as its users drive it at its best.

Every peer answers the same calls: `load`, `setup`, `logits`, `prefill`, `decode`, `job` (see `Peer`). The engines that
are driven by hand run a step without sampling, as our session does; `onnxruntime-genai` and `openvino-genai` know no
step without their greedy choice. Caches are 32-bit floats everywhere, as ours are.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from llm_convert import onnx_builder, onnx_export
from llm_peer import Peer, Unavailable, device
from llm_peers_native import LlamaCpp, OpenVino, OpenVinoGenai

# ---- transformers


class Transformers(Peer):
    """PyTorch with a dynamic cache."""

    def load(self) -> str:
        import torch
        import transformers

        torch.set_num_threads(self.threads)
        self.torch, self.device = torch, device()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(self.source, dtype=torch.float32).eval()
        self.model.to(self.device)
        return f"transformers {transformers.__version__}, torch {torch.__version__}"

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        return self._run(self.torch.tensor(prompts, device=self.device))

    def spread(self, rows: int) -> None:
        self.cache.batch_repeat_interleave(rows)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(self.torch.from_numpy(tokens).to(self.device)[:, None])

    def _run(self, tokens: Any) -> np.ndarray:
        with self.torch.inference_mode():
            found = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return np.asarray(found.logits[:, -1].cpu())

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        if shared:
            raise Unavailable("generate runs the prompt once per sample")
        self.begin([prompt])
        before = time.perf_counter()
        given = self.torch.tensor([prompt], device=self.device)
        found = self.model.generate(
            given, attention_mask=self.torch.ones_like(given), do_sample=True, temperature=temperature, top_k=0,
            num_return_sequences=samples, max_new_tokens=tokens, min_new_tokens=tokens, **self._generate(),
        )  # fmt: skip
        found.tolist()  # a GPU is done when its results are read
        return time.perf_counter() - before

    def _generate(self) -> dict[str, Any]:
        return {}


class TorchCompile(Transformers):
    """PyTorch compiled by inductor, over a cache of fixed size; compiles anew for each number of rows."""

    def load(self) -> str:
        found = super().load()
        # With CUDA graphs where there is CUDA.
        mode = "reduce-overhead" if self.device.startswith("cuda") else "default"
        self.model.forward = self.torch.compile(self.model.forward, mode=mode)
        return found

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        from transformers import StaticCache

        self.cache = StaticCache(config=self.model.config, max_cache_len=self.room)
        self.prompts = prompts
        return self._run(self.torch.tensor(prompts, device=self.device))

    def spread(self, rows: int) -> None:
        # A static cache has as many rows as it began with.
        self.begin(self.prompts * rows)

    def _generate(self) -> dict[str, Any]:
        return {"cache_implementation": "static"}


# ---- ONNX Runtime


class Ort(Peer):
    """ONNX Runtime with the exported graph: a new cache comes out of every step and goes into the next one."""

    forms = ("fp32", "int8", "int4")

    def _model(self) -> Path:
        return self.folder("onnx", onnx_export)

    def prepare(self) -> None:
        self._model()

    def load(self) -> str:
        import onnxruntime as ort

        self.ort = ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        self.session = ort.InferenceSession(self._model() / "model.onnx", options, ["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), [o.name for o in self.session.get_outputs()]
        self.given = {i.name for i in inputs} & {"input_ids", "attention_mask", "position_ids"}
        self.past = [i for i in inputs if i.name not in self.given]
        self.present = [o for o in outputs if o != "logits"]
        c = json.loads((self.source / "config.json").read_text(encoding="utf-8"))
        heads, width = c.get("n_head") or c["num_attention_heads"], c.get("n_embd") or c["hidden_size"]
        self.heads = c.get("num_key_value_heads", heads), c.get("head_dim") or width // heads
        return f"onnxruntime {ort.__version__}"

    def _empty(self, rows: int, length: int) -> list[np.ndarray]:
        return [np.zeros((rows, self.heads[0], length, self.heads[1]), np.float32) for _ in self.past]

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        self.values = [self.ort.OrtValue.ortvalue_from_numpy(e) for e in self._empty(len(prompts), 0)]
        self.total = 0
        return self._run(np.asarray(prompts, np.int64))

    def spread(self, rows: int) -> None:
        self.values = [self.ort.OrtValue.ortvalue_from_numpy(np.repeat(v.numpy(), rows, axis=0)) for v in self.values]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(tokens[:, None])

    def _feed(self, binding: Any, tokens: np.ndarray) -> None:
        rows, new = tokens.shape
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones((rows, self.total + new), np.int64),
            "position_ids": np.tile(np.arange(self.total, self.total + new), (rows, 1)),
        }
        for name in self.given:
            binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        binding = self.session.io_binding()
        self._feed(binding, tokens)
        for value, held in zip(self.past, self.values, strict=True):
            binding.bind_ortvalue_input(value.name, held)
        for name in ("logits", *self.present):
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        logits, *self.values = binding.get_outputs()
        self.total += tokens.shape[1]
        return np.asarray(logits.numpy()[:, -1])


class OrtDynamic(Ort):
    """ONNX Runtime's own int8: whole columns with one scale, activations quantised as they come."""

    forms = ("int8",)

    def _model(self) -> Path:
        return self.folder("onnx", onnx_export, "int8-dynamic")


class OrtShared(Ort):
    """ONNX Runtime with the graph of onnxruntime-genai's builder: GroupQueryAttention writes into its own cache."""

    def _model(self) -> Path:
        return self.folder("genai", onnx_builder)

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        self._bind(self._empty(len(prompts), self.room))
        self.total = 0
        return self._run(np.asarray(prompts, np.int64))

    def _bind(self, buffers: list[np.ndarray]) -> None:
        self.values = [self.ort.OrtValue.ortvalue_from_numpy(b) for b in buffers]
        self.buffers = buffers
        self.binding = self.session.io_binding()
        self.binding.bind_output("logits", "cpu")
        for value, name, held in zip(self.past, self.present, self.values, strict=True):
            self.binding.bind_ortvalue_input(value.name, held)
            self.binding.bind_ortvalue_output(name, held)

    def spread(self, rows: int) -> None:
        self._bind([np.repeat(b, rows, axis=0) for b in self.buffers])

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        self._feed(self.binding, tokens)
        self.binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(self.binding)
        self.total += tokens.shape[1]
        return np.asarray(self.binding.get_outputs()[0].numpy()[:, -1])


class OrtGenai(Peer):
    """onnxruntime-genai. It has no samples of one prompt: the prompt is given once per sample."""

    forms = ("fp32", "int8", "int4")

    def prepare(self) -> None:
        self.folder("genai", onnx_builder)

    def load(self) -> str:
        import onnxruntime_genai as og

        self.og = og
        config = og.Config(str(self.folder("genai", onnx_builder)))
        config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {self.threads}}}}}}}}}')
        self.model = og.Model(config)
        return f"onnxruntime-genai {og.__version__}"

    def _generator(self, rows: int, **options: Any) -> Any:
        parameters = self.og.GeneratorParams(self.model)
        parameters.set_search_options(batch_size=rows, max_length=self.room, min_length=self.room, **options)
        return self.og.Generator(self.model, parameters)

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        self.generator = self._generator(len(prompts), do_sample=False)
        self.generator.append_tokens(np.asarray(prompts, np.int32))
        return np.asarray(self.generator.get_logits()[:, -1])

    def decode(self, prompt: list[int], rows: int, steps: int) -> list[float]:
        self.begin([prompt] * rows)
        times = []
        for _ in range(steps + 2):
            before = time.perf_counter()
            self.generator.generate_next_token()
            times.append(time.perf_counter() - before)
        return times[2:]

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        if shared:
            raise Unavailable("it knows no samples of one prompt")
        self.begin([prompt])
        before = time.perf_counter()
        generator = self._generator(samples, do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
        generator.append_tokens(np.asarray([prompt] * samples, np.int32))
        for _ in range(tokens):
            generator.generate_next_token()
        return time.perf_counter() - before


PEERS: dict[str, type[Peer]] = {
    "transformers": Transformers,
    "torch.compile": TorchCompile,
    "onnxruntime": Ort,
    "onnxruntime int8": OrtDynamic,
    "onnxruntime GQA": OrtShared,
    "onnxruntime-genai": OrtGenai,
    "openvino": OpenVino,
    "openvino-genai": OpenVinoGenai,
    "llama.cpp": LlamaCpp,
}
