"""What people would use in place of a compiled decoder, each driven as its users drive it at its best.

Every peer answers the same calls: `load`, `setup`, `logits`, `prefill`, `decode`, `job` (see `Peer`). The engines that
are driven by hand run a step without sampling, as our session does; `onnxruntime-genai` and `openvino-genai` know no
step without their greedy choice. Caches are 32-bit floats everywhere, as ours are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llm_convert import gguf, onnx_builder, onnx_export, once, openvino


class Unavailable(Exception):
    """The peer has no such form, or is not installed."""


class Peer:
    """One engine with one checkpoint in one form. Prompts are lists of tokens; times are seconds."""

    forms: Sequence[str] = ("fp32",)

    def __init__(self, source: Path, form: str, threads: int, place: Path) -> None:
        if form not in self.forms:
            raise Unavailable(f"no form {form}: it has {', '.join(self.forms)}")
        self.source, self.form, self.threads, self.place = source, form, threads, place
        self.rng = np.random.default_rng(0)

    def folder(self, kind: str, make: Callable[[Path, str, Path], None], form: str = "") -> Path:
        """The checkpoint in another engine's form, made if it is not there."""
        form = form or self.form
        return once(self.place / f"{self.source.name}-{kind}-{form}", lambda out: make(self.source, form, out))

    def load(self) -> str:
        """Start the engine; its version."""
        raise NotImplementedError

    def setup(self, rows: int, prompt: int, tokens: int) -> str:
        """What comes next; peers that choose nothing answer nothing."""
        self.room = prompt + tokens + 8
        return ""

    def logits(self, prompt: list[int], file: str) -> None:
        """Log-probabilities after a prompt, float32 [vocab], NaN where the engine does not tell."""
        values = self.begin([prompt])[0].astype(np.float64)
        values -= values.max()
        np.save(file, (values - np.log(np.exp(values).sum())).astype(np.float32))

    def prefill(self, prompt: list[int]) -> float:
        """Time of a prompt, logits of its last token included."""
        before = time.perf_counter()
        self.begin([prompt])
        return time.perf_counter() - before

    def decode(self, prompt: list[int], rows: int, steps: int) -> list[float]:
        """Times of steps with so many rows, after a prompt that all share; the first two do not count."""
        vocab = self.begin([prompt]).shape[1]
        self.spread(rows)
        tokens = self.rng.integers(0, vocab, rows)
        times = []
        for _ in range(steps + 2):
            before = time.perf_counter()
            self.step(tokens)
            times.append(time.perf_counter() - before)
        return times[2:]

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        """Time of `samples` samples of one prompt. `shared`: the prompt runs once, which its user has to arrange."""
        before = time.perf_counter()
        if shared:
            logits = np.repeat(self.begin([prompt]), samples, axis=0)
            self.spread(samples)
        else:
            logits = self.begin([prompt] * samples)
        for k in range(tokens):
            chosen = self._sampled(logits, temperature)
            if k + 1 < tokens:
                logits = self.step(chosen)
        return time.perf_counter() - before

    def _sampled(self, logits: np.ndarray, temperature: float) -> np.ndarray:
        scaled = (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
        sums = np.cumsum(np.exp(scaled, out=scaled), axis=1)
        points = self.rng.random(len(logits), np.float32) * sums[:, -1]
        return np.array([np.searchsorted(s, p) for s, p in zip(sums, points, strict=True)]).clip(max=sums.shape[1] - 1)

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        """Forget everything, run prompts of one length; logits float32 [prompts, vocab] of their last tokens."""
        raise NotImplementedError

    def spread(self, rows: int) -> None:
        """So many rows go on from the only one."""
        raise NotImplementedError

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """One token more per row; logits float32 [rows, vocab]."""
        raise NotImplementedError


# ---- transformers


class Transformers(Peer):
    """PyTorch with a dynamic cache."""

    def load(self) -> str:
        import torch
        import transformers

        torch.set_num_threads(self.threads)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(self.source, dtype=torch.float32).eval()
        return f"transformers {transformers.__version__}, torch {torch.__version__}"

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        return self._run(self.torch.tensor(prompts))

    def spread(self, rows: int) -> None:
        self.cache.batch_repeat_interleave(rows)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(self.torch.from_numpy(tokens)[:, None])

    def _run(self, tokens: Any) -> np.ndarray:
        with self.torch.inference_mode():
            found = self.model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return np.asarray(found.logits[:, -1])

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        if shared:
            raise Unavailable("generate runs the prompt once per sample")
        before = time.perf_counter()
        given = self.torch.tensor([prompt])
        self.model.generate(
            given, attention_mask=self.torch.ones_like(given), do_sample=True, temperature=temperature, top_k=0,
            num_return_sequences=samples, max_new_tokens=tokens, min_new_tokens=tokens, **self._generate(),
        )  # fmt: skip
        return time.perf_counter() - before

    def _generate(self) -> dict[str, Any]:
        return {}


class TorchCompile(Transformers):
    """PyTorch compiled by inductor, over a cache of fixed size; compiles anew for each number of rows."""

    def load(self) -> str:
        found = super().load()
        self.model.forward = self.torch.compile(self.model.forward)
        return found

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        from transformers import StaticCache

        self.cache = StaticCache(config=self.model.config, max_cache_len=self.room)
        self.prompts = prompts
        return self._run(self.torch.tensor(prompts))

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
    """ONNX Runtime with the graph of onnxruntime-genai's builder, by hand: GroupQueryAttention writes into its cache."""

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
        before = time.perf_counter()
        generator = self._generator(samples, do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
        generator.append_tokens(np.asarray([prompt] * samples, np.int32))
        for _ in range(tokens):
            generator.generate_next_token()
        return time.perf_counter() - before


# ---- OpenVINO

PRECISE = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


class OpenVino(Peer):
    """OpenVINO with optimum-intel's stateful model: its cache is a state of the request, rows are taken by `beam_idx`."""

    forms = ("fp32", "int8", "int4")

    def load(self) -> str:
        import openvino as ov

        model = ov.Core().read_model(self.folder("openvino", openvino) / "openvino_model.xml")
        _last_only(model)
        compiled = ov.Core().compile_model(
            model, "CPU", {**PRECISE, "INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        )
        self.request = compiled.create_infer_request()
        self.inputs = {next(iter(i.get_names())) for i in compiled.inputs}
        return f"openvino {ov.__version__.partition('-')[0]}"

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        self.request.reset_state()
        self.total, self.beam = 0, np.arange(len(prompts), dtype=np.int32)
        return self._run(np.asarray(prompts, np.int64))

    def spread(self, rows: int) -> None:
        self.beam = np.zeros(rows, np.int32)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(tokens[:, None])

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        rows, new = tokens.shape
        feeds = {
            "input_ids": tokens, "attention_mask": np.ones((rows, self.total + new), np.int64), "beam_idx": self.beam,
            "position_ids": np.tile(np.arange(self.total, self.total + new), (rows, 1)),
        }  # fmt: skip
        found = self.request.infer({n: feeds[n] for n in self.inputs}, share_inputs=True, share_outputs=True)
        self.total += new
        self.beam = np.arange(rows, dtype=np.int32)
        return np.asarray(found[0][:, -1])


def _last_only(model: Any) -> None:
    """Logits of the last token only, as openvino-genai asks for them."""
    import openvino.opset13 as ops

    product = model.get_results()[0].input_value(0).get_node()
    while product.get_type_name() != "MatMul":
        product = product.input_value(0).get_node()
    last = ops.gather(product.input_value(0), np.array([-1], np.int64), np.int64(1))
    product.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


class OpenVinoGenai(Peer):
    """openvino-genai's continuous batching: samples of one prompt share its pages, greedy choice included in a step."""

    forms = ("fp32", "int8", "int4")

    def load(self) -> str:
        import openvino_genai as genai

        self.genai = genai
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_batched_tokens = 2, 8192
        self.pipeline = genai.ContinuousBatchingPipeline(
            str(self.folder("openvino", openvino)), scheduler, "CPU", {**PRECISE, "INFERENCE_NUM_THREADS": self.threads}
        )
        return f"openvino-genai {genai.__version__.partition('-')[0]}"

    def _config(self, **more: Any) -> Any:
        config = self.genai.GenerationConfig()
        for name, value in ({"ignore_eos": True} | more).items():
            setattr(config, name, value)
        return config

    def _given(self, prompt: list[int]) -> Any:
        import openvino as ov

        return ov.Tensor(np.asarray([prompt], np.int64))

    def logits(self, prompt: list[int], file: str) -> None:
        request = self.pipeline.add_request(0, self._given(prompt), self._config(max_new_tokens=1, logprobs=1))
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        found = request.read_all()[0]
        values = np.full(1 + max(found.generated_ids), np.nan, np.float32)
        values[found.generated_ids[0]] = found.generated_log_probs[0]
        np.save(file, values)

    def prefill(self, prompt: list[int]) -> float:
        request = self.pipeline.add_request(0, self._given(prompt), self._config(max_new_tokens=1))
        before = time.perf_counter()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        found = time.perf_counter() - before
        del request  # a request without a holder is dropped
        return found

    def decode(self, prompt: list[int], rows: int, steps: int) -> list[float]:
        config = self._config(max_new_tokens=steps + 3)
        requests = [self.pipeline.add_request(k, self._given(prompt), config) for k in range(rows)]
        times = []
        while self.pipeline.has_non_finished_requests():
            before = time.perf_counter()
            self.pipeline.step()
            times.append(time.perf_counter() - before)
        if any(len(r.read_all()[0].generated_ids) != steps + 3 for r in requests):
            raise RuntimeError("rows ended before their time")
        # The first runs the prompts.
        return times[-steps:]

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        if not shared:
            raise Unavailable("its samples share their prompt")
        config = self._config(
            max_new_tokens=tokens, num_return_sequences=samples, do_sample=True, temperature=temperature, top_p=1.0,
            top_k=1 << 30,
        )  # fmt: skip
        before = time.perf_counter()
        found = self.pipeline.generate([self._given(prompt)], [config])
        seconds = time.perf_counter() - before
        if [len(ids) for ids in found[0].m_generation_ids] != [tokens] * samples:
            raise RuntimeError("samples ended before their time")
        return seconds


# ---- llama.cpp


class LlamaCpp(Peer):
    """llama.cpp by its own interface: one batch of several sequences, `llama_memory_seq_cp` for a shared prompt."""

    forms = ("fp32", "int8", "int4")

    def load(self) -> str:
        import ctypes

        import llama_cpp as c

        self.c, self.ctypes = c, ctypes
        silent = c.llama_log_callback(lambda level, text, data: None)
        self._keep = silent  # the library calls it later
        c.llama_log_set(silent, ctypes.c_void_p(0))
        c.llama_backend_init()
        parameters = c.llama_model_default_params()
        self.model = c.llama_model_load_from_file(
            str(self.folder("gguf", gguf) / "model.gguf").encode(), parameters
        )
        if not self.model:
            raise RuntimeError("llama.cpp cannot read the file")
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.context: Any = None
        self.unified = False
        return f"llama-cpp-python {c.__version__}"

    def _open(self, rows: int) -> None:
        """A context for so many rows. One cache for all rows masks the others' places; apart they copy their prompt."""
        c = self.c
        if self.context is not None:
            c.llama_batch_free(self.batch)
            c.llama_free(self.context)
        p = c.llama_context_default_params()
        p.n_ctx, p.n_seq_max, p.kv_unified = rows * -(-self.room // 64) * 64, rows, self.unified
        p.n_batch = p.n_ubatch = max(512, rows)
        p.n_threads = p.n_threads_batch = self.threads
        p.type_k = p.type_v = c.GGML_TYPE_F32
        self.context = c.llama_init_from_model(self.model, p)
        if not self.context:
            raise RuntimeError("llama.cpp makes no such context")
        self.batch = c.llama_batch_init(max(p.n_ctx, rows), 0, 1)
        self.memory = c.llama_get_memory(self.context)

    def setup(self, rows: int, prompt: int, tokens: int) -> str:
        super().setup(rows, prompt, tokens)
        times = {}
        # What is faster depends on how much of the cache is common; a good user tries both.
        for self.unified in (False, True) if rows > 1 else (False,):
            self._open(rows)
            text = self.rng.integers(0, self.vocab, prompt).tolist()
            times[self.unified] = sum(self.decode(text, rows, min(4, tokens - 2)))
        if min(times, key=times.__getitem__) != self.unified:
            self.unified = not self.unified
            self._open(rows)
        return "one cache" if self.unified else "a cache per row"

    def _decode(self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], wanted: Sequence[int]) -> None:
        batch = self.batch
        batch.n_tokens = len(tokens)
        for k, (token, row, position) in enumerate(zip(tokens, rows, positions, strict=True)):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = int(token), position, 1, 0
            batch.seq_id[k][0] = row
        for k in wanted:
            batch.logits[k] = 1
        if self.c.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def begin(self, prompts: list[list[int]]) -> np.ndarray:
        self.c.llama_memory_clear(self.memory, False)
        self.rows, self.total = len(prompts), len(prompts[0])
        found = []
        for row, prompt in enumerate(prompts):
            self._decode(prompt, [row] * self.total, range(self.total), [self.total - 1])
            found.append(np.array(self._logits(self.total - 1)))
        return np.stack(found)

    def _logits(self, k: int) -> np.ndarray:
        pointer = self.c.llama_get_logits_ith(self.context, k)
        return np.ctypeslib.as_array(pointer, (self.vocab,))

    def spread(self, rows: int) -> None:
        self.rows = rows
        for row in range(1, rows):
            self.c.llama_memory_seq_cp(self.memory, 0, row, -1, -1)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        rows = range(len(tokens))
        self._decode(tokens.tolist(), rows, [self.total] * len(tokens), rows)
        self.total += 1
        # The rows' logits stand one after the other.
        return np.ctypeslib.as_array(self.c.llama_get_logits(self.context), (len(tokens), self.vocab))

    def job(self, prompt: list[int], samples: int, tokens: int, temperature: float, shared: bool) -> float:
        if not shared:
            raise Unavailable("its users copy the sequence")
        c = self.c
        chains = []
        for seed in range(samples):
            chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_temp(temperature))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(seed))
            chains.append(chain)
        before = time.perf_counter()
        self.begin([prompt])
        self.spread(samples)
        chosen = [c.llama_sampler_sample(chain, self.context, self.total - 1) for chain in chains]
        for _ in range(tokens - 1):
            self.step(np.array(chosen))
            chosen = [c.llama_sampler_sample(chain, self.context, k) for k, chain in enumerate(chains)]
        found = time.perf_counter() - before
        for chain in chains:
            c.llama_sampler_free(chain)
        return found


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
