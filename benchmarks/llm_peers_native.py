"""Peers that keep their own cache: OpenVINO, openvino-genai, llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from llm_convert import gguf, openvino
from llm_peer import Peer, Unavailable

# ---- OpenVINO

PRECISE = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


class OpenVino(Peer):
    """OpenVINO with optimum-intel's stateful model: the cache is a state of the request, `beam_idx` takes its rows."""

    forms = ("fp32", "int8", "int4")

    def prepare(self) -> None:
        self.folder("openvino", openvino)

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

    def prepare(self) -> None:
        self.folder("openvino", openvino)

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
        found = 0.0
        for _ in range(2):  # the first does not count
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
        self.prefill(prompt)
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

    def prepare(self) -> None:
        self.folder("gguf", gguf)

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

    def _decode(
        self, tokens: Sequence[int], rows: Sequence[int], positions: Sequence[int], wanted: Sequence[int]
    ) -> None:
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
        self.begin([prompt])
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
