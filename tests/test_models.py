"""Built-in decoders: the demo model against an independent forward pass, its reader against damaged files."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qeil_compile.models.llama2c as llama2c
from qeil_compile.errors import InputError, ModelError
from qeil_compile.models import Llama2cTokenizer, demo_model, demo_tokenizer
from qeil_compile.models.gpt2 import GPT2, GPT2Config
from qeil_compile.models.llama2c import LLAMA_3_8B, LlamaConfig, LlamaDecoder, load_llama2c
from tests import zoo

DATA = Path(llama2c.__file__).parent / "data" / "stories260K"
STORIES = Path(__file__).parent / "data" / "tinystories_excerpt.txt"
FILE_HEALTH = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

#: What llama2.c's own test expects of this checkpoint for 200 steps at temperature 0 without a prompt.
UPSTREAM = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she"
)


@pytest.fixture(scope="module")
def model() -> LlamaDecoder:
    return demo_model()


@pytest.fixture(scope="module")
def tokenizer() -> Llama2cTokenizer:
    return demo_tokenizer()


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    return (DATA / "stories260K.bin").read_bytes()


class Reference:
    """The forward pass of a checkpoint in plain numpy, head by head, as run.c writes it."""

    def __init__(self, data: bytes) -> None:
        self.dim, hidden, self.n, self.heads, self.kv, vocab, context = struct.unpack("<7i", data[:28])
        flat, at = np.frombuffer(data, "<f4", offset=28), 0
        self.size = self.dim // self.heads
        kv_dim = self.size * self.kv

        def take(*shape: int) -> np.ndarray:
            nonlocal at
            at += math.prod(shape)
            return flat[at - math.prod(shape) : at].reshape(shape)

        n, d = self.n, self.dim
        self.table = take(abs(vocab), d)
        self.att_norm, self.wq, self.wk = take(n, d), take(n, d, d), take(n, kv_dim, d)
        self.wv, self.wo, self.ffn_norm = take(n, kv_dim, d), take(n, d, d), take(n, d)
        self.w1, self.w2, self.w3 = take(n, hidden, d), take(n, d, hidden), take(n, hidden, d)
        self.final = take(d)
        take(2, context, self.size // 2)
        self.head = take(abs(vocab), d) if vocab < 0 else self.table
        assert at == flat.size

    def __call__(self, tokens: list[int]) -> np.ndarray:
        x = self.table[tokens]
        for i in range(self.n):
            x = x + self.attend(self.norm(x, self.att_norm[i]), i)
            y = self.norm(x, self.ffn_norm[i])
            gate = y @ self.w1[i].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ self.w3[i].T)) @ self.w2[i].T
        return self.norm(x, self.final) @ self.head.T

    @staticmethod
    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def attend(self, x: np.ndarray, i: int) -> np.ndarray:
        q, k, v = x @ self.wq[i].T, x @ self.wk[i].T, x @ self.wv[i].T
        out = np.empty_like(q)
        for h in range(self.heads):
            mine = slice(h * self.size, (h + 1) * self.size)
            group = h // (self.heads // self.kv)
            theirs = slice(group * self.size, (group + 1) * self.size)
            scores = self.turn(q[:, mine]) @ self.turn(k[:, theirs]).T / math.sqrt(self.size)
            scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, mine] = weights / weights.sum(-1, keepdims=True) @ v[:, theirs]
        return out @ self.wo[i].T

    def turn(self, x: np.ndarray) -> np.ndarray:
        turned = np.empty_like(x)
        for j in range(0, self.size, 2):
            angle = np.arange(len(x)) / 10000.0 ** (j / self.size)
            cos, sin = np.cos(angle).astype("f4"), np.sin(angle).astype("f4")
            turned[:, j] = x[:, j] * cos - x[:, j + 1] * sin
            turned[:, j + 1] = x[:, j] * sin + x[:, j + 1] * cos
        return turned


def greedy(logits: Callable[[list[int]], np.ndarray], prompt: list[int], steps: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(steps):
        tokens.append(int(logits(tokens)[-1].argmax()))
    return tokens


def run(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0].numpy()


# The demo model


def test_perplexity_of_the_demo_model_on_stories(model: LlamaDecoder, tokenizer: Llama2cTokenizer) -> None:
    # Short ASCII stories: on curly quotes, which become bytes it hardly saw, the model does far worse.
    total = count = 0.0
    for story in STORIES.read_text(encoding="utf-8").split("<|endoftext|>"):
        tokens = torch.tensor([tokenizer.encode(story.strip())[: model.config.context]])
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:], reduction="sum")
        total, count = total + loss.item(), count + tokens.shape[1] - 1
    assert 3.0 < math.exp(total / count) < 5.0


def test_greedy_text_equals_llama2c(model: LlamaDecoder, tokenizer: Llama2cTokenizer) -> None:
    assert tokenizer.decode(greedy(lambda t: run(model, t), [tokenizer.bos], 200)) == UPSTREAM


def test_demo_model_equals_an_independent_forward_pass(
    model: LlamaDecoder, tokenizer: Llama2cTokenizer, checkpoint: bytes
) -> None:
    reference = Reference(checkpoint)
    prompt = tokenizer.encode("Once upon a time")
    ours = greedy(lambda t: run(model, t), prompt, 64)
    assert ours == greedy(reference, prompt, 64)
    assert np.abs(run(model, ours) - reference(ours)).max() < 1e-3


def test_batch_rows_are_independent_and_attention_is_causal(model: LlamaDecoder) -> None:
    tokens = torch.randint(0, 512, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(tokens)
        assert whole.shape == (3, 20, 512) and whole.dtype == torch.float32
        torch.testing.assert_close(model(tokens[1:2, :7]), whole[1:2, :7], atol=1e-4, rtol=1e-4)


def test_too_long_input_is_refused(model: LlamaDecoder) -> None:
    with pytest.raises(InputError, match=r"513.*512"):
        model(torch.zeros(1, 513, dtype=torch.int64))


# Checkpoints


def untied_checkpoint() -> bytes:
    """A random checkpoint with a separate head and fewer key heads than heads."""
    dim, hidden, n, heads, kv, vocab, context = sizes = 16, 24, 2, 4, 2, 11, 9
    size, random = dim // heads, np.random.default_rng(0)
    before = vocab * dim + n * (2 * dim + 2 * dim * dim + 2 * dim * size * kv + 3 * dim * hidden) + dim
    angles = np.outer(np.arange(context), 10000.0 ** (-np.arange(0, size, 2) / size))
    parts = (random.normal(0, 0.5, before), np.cos(angles).ravel(), np.sin(angles).ravel())
    body = np.concatenate([*parts, random.normal(0, 0.5, vocab * dim)]).astype("<f4")
    return struct.pack("<7i", *sizes[:5], -vocab, context) + body.tobytes()


def test_untied_checkpoint(tmp_path: Path) -> None:
    data = untied_checkpoint()
    (tmp_path / "m.bin").write_bytes(data)
    model = load_llama2c(tmp_path / "m.bin")
    assert not model.config.tied and model.config.vocab == 11
    tokens = [1, 10, 3, 0, 7, 7]
    assert np.abs(run(model, tokens) - Reference(data)(tokens)).max() < 1e-3


def assert_refused(path: Path, data: bytes, *words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        load_llama2c(path)
    assert all(word in str(caught.value) for word in (str(path), *words))


@FILE_HEALTH
@given(st.data())
def test_cut_checkpoint_is_refused(tmp_path: Path, checkpoint: bytes, data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, len(checkpoint) - 1))
    wanted = "1056540" if keep >= 28 else "28"
    assert_refused(tmp_path / "m.bin", checkpoint[:keep], str(keep), wanted)


@FILE_HEALTH
@given(extra=st.binary(min_size=1, max_size=64))
def test_extended_checkpoint_is_refused(tmp_path: Path, checkpoint: bytes, extra: bytes) -> None:
    assert_refused(tmp_path / "m.bin", checkpoint + extra, str(len(checkpoint) + len(extra)), "1056540")


INT32 = st.integers(-(2**31), 2**31 - 1)


@FILE_HEALTH
@given(field=st.integers(0, 6), value=INT32 | st.integers(-1024, 1024))
def test_changed_header_is_refused(tmp_path: Path, checkpoint: bytes, field: int, value: int) -> None:
    header = list(struct.unpack("<7i", checkpoint[:28]))
    if header[field] != value:
        header[field] = value
        assert_refused(tmp_path / "m.bin", struct.pack("<7i", *header) + checkpoint[28:])


def test_header_of_the_right_size_but_other_layout_is_refused(tmp_path: Path, checkpoint: bytes) -> None:
    # Half the vocabulary with a separate head, or twice the heads and context: the sums stay equal.
    for header in ((64, 172, 5, 8, 4, -256, 512), (64, 172, 5, 16, 8, 512, 1024)):
        assert_refused(tmp_path / "m.bin", struct.pack("<7i", *header) + checkpoint[28:])


@FILE_HEALTH
@given(header=st.lists(INT32, min_size=7, max_size=7))
def test_declared_sizes_are_not_believed(
    tmp_path: Path, header: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: object, **__: object) -> None:
        raise AssertionError("a model was built before the size was checked")

    with monkeypatch.context() as patch:
        patch.setattr(llama2c, "LlamaDecoder", allocate)
        assert_refused(tmp_path / "m.bin", struct.pack("<7i", *header) + bytes(100))


def test_other_files_are_refused(tmp_path: Path, checkpoint: bytes) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_llama2c(tmp_path / "absent.bin")
    with pytest.raises(ModelError, match=r"m\.bin|no such file"):
        load_llama2c(tmp_path)
    assert_refused(tmp_path / "m.bin", struct.pack("<7i", 0x616B3432, 1, 0, 0, 0, 0, 0), "version 1")
    damaged = checkpoint[:40] + struct.pack("<f", math.nan) + checkpoint[44:]
    assert_refused(tmp_path / "m.bin", damaged, "finite")


# The tokenizer


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text("Once upon time,.\n \t"))
def test_any_text_survives_the_round_trip(tokenizer: Llama2cTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokens[0] == tokenizer.bos
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode(text, bos=False) == tokens[1:]
    assert tokenizer.decode(tokens[1:]) == (f" {text}" if text else "")


@settings(max_examples=200, deadline=None)
@given(text=st.text("Once upon a time there was\nL", min_size=1, max_size=60))
def test_merges_equal_the_plain_loop(tokenizer: Llama2cTokenizer, text: str) -> None:
    number = {p: i for i, p in enumerate(tokenizer.pieces)}
    tokens = [number.get(c.encode(), ord(c) + 3) for c in f" {text}"]
    while True:
        joined = [number.get(tokenizer.pieces[a] + tokenizer.pieces[b]) for a, b in pairwise(tokens)]
        scores = [-math.inf if j is None else tokenizer.scores[j] for j in joined]
        if not scores or max(scores) == -math.inf:
            break
        i = scores.index(max(scores))
        tokens[i : i + 2] = [j for j in joined[i : i + 1] if j is not None]
    assert tokenizer.encode(text, bos=False) == tokens


def test_known_encodings(tokenizer: Llama2cTokenizer) -> None:
    assert tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert tokenizer.encode("") == [1]
    assert tokenizer.decode([1, 3 + 0xC3, 3 + 0xA9, 2]) == "é"
    assert tokenizer.decode([3 + 0xC3]) == "\ufffd"


def test_impossible_text_and_tokens_are_refused(tokenizer: Llama2cTokenizer) -> None:
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode("\ud800")
    for token in (-1, 512):
        with pytest.raises(InputError, match=str(token)):
            tokenizer.decode([token])


@FILE_HEALTH
@given(keep=st.integers(0, 6226))
def test_cut_tokenizer_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes((DATA / "tok512.bin").read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"t\.bin"):
        Llama2cTokenizer.load(path, vocab=512)


@FILE_HEALTH
@given(noise=st.binary(max_size=400))
def test_noise_is_no_tokenizer(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(noise)
    with pytest.raises(ModelError, match=r"t\.bin"):
        Llama2cTokenizer.load(path)


def test_tokenizer_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from qeil_compile.models import demo_tokenizer\n"
        "print(demo_tokenizer().encode('Once upon a time'))"
    )
    root = Path(__file__).parent.parent
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False
    )
    assert found.stdout.strip() == "[1, 403, 407, 261, 378]", found.stderr


# Sizes and seeds


def test_8b_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = LlamaDecoder(LLAMA_3_8B)
        logits = model(torch.zeros(2, 16, dtype=torch.int64))
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert logits.shape == (2, 16, 128256)


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT2().parameters()) == 124_439_808
    assert sum(p.numel() for p in zoo.resnet50().parameters()) == 25_557_032


TINY_GPT2 = GPT2Config(layers=2, heads=2, width=32, vocab=97, context=40)
TINY_LLAMA = LlamaConfig(32, 48, 2, 4, 2, 97, 40)


def test_seed_decides_every_weight_and_nothing_else() -> None:
    before = torch.random.get_rng_state()
    builders: tuple[Callable[[int], torch.nn.Module], ...] = (
        lambda seed: GPT2(TINY_GPT2, seed),
        lambda seed: LlamaDecoder(TINY_LLAMA, seed),
    )
    for build in builders:
        one, same, other = build(3).state_dict(), build(3).state_dict(), build(4).state_dict()
        assert all(torch.equal(one[k], same[k]) for k in one)
        assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_gpt2_starts_as_published() -> None:
    state = GPT2(GPT2Config(layers=2, vocab=1000)).state_dict()
    assert state["embedding.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert state["layers.0.attention.output.weight"].std().item() == pytest.approx(0.01, rel=0.02)
    assert not state["layers.1.mlp.up.bias"].any()


@pytest.mark.parametrize("field", ["width", "hidden", "layers", "heads", "kv_heads", "vocab", "context"])
def test_impossible_sizes_are_refused(field: str) -> None:
    sizes: dict[str, Any] = {
        "width": 32,
        "hidden": 48,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "vocab": 97,
        "context": 40,
    }
    with pytest.raises(ModelError, match=field):
        LlamaConfig(**{**sizes, field: 0})
    if field in ("heads", "kv_heads", "width"):
        with pytest.raises(ModelError):
            LlamaConfig(**{**sizes, field: 3})
    if field in GPT2Config.__dataclass_fields__:
        with pytest.raises(ModelError):
            GPT2Config(**{field: -1})


# Export


def tiny(name: str) -> torch.nn.Module:
    return (GPT2(TINY_GPT2) if name == "gpt2" else LlamaDecoder(TINY_LLAMA)).eval()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(length))


DYNAMIC = {"tokens": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=40)}}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_export_with_static_and_dynamic_shapes(name: str) -> None:
    model = tiny(name)
    static = torch.export.export(model, (tokens(2, 9),)).module()
    torch.testing.assert_close(static(tokens(2, 9)), model(tokens(2, 9)))
    dynamic = torch.export.export(model, (tokens(2, 9),), dynamic_shapes=DYNAMIC).module()
    for shape in ((1, 1), (3, 17), (2, 40)):
        torch.testing.assert_close(dynamic(tokens(*shape)), model(tokens(*shape)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_export(name: str, dynamic: bool, tmp_path: Path) -> None:
    import onnxruntime

    model = tiny(name)
    shapes = DYNAMIC if dynamic else None
    program = torch.onnx.export(model, (tokens(2, 9),), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for shape in ((1, 1), (2, 9), (2, 40)) if dynamic else ((2, 9),):
        (found,) = session.run(None, {"tokens": tokens(*shape).numpy()})
        np.testing.assert_allclose(found, model(tokens(*shape)).detach().numpy(), atol=1e-4)


# The zoo of other tests


@pytest.mark.parametrize("name", zoo.EXAMPLES)
def test_zoo_member_runs_finite_and_repeats(name: str) -> None:
    inputs = zoo.EXAMPLES[name]()
    with torch.no_grad():
        first, second = (getattr(zoo, name)()(*inputs) for _ in range(2))
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (first, second)), strict=True):
        assert a.isfinite().all() and a.float().std() > 1e-3
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm:UserWarning")
@pytest.mark.parametrize("name", zoo.EXAMPLES)
def test_zoo_member_exports(name: str) -> None:
    inputs = zoo.EXAMPLES[name]()
    # Without decompositions the graph still writes in place, and its signature names no mutation.
    program = torch.export.export(getattr(zoo, name)(), inputs).run_decompositions({})
    assert bool(program.graph_signature.buffers_to_mutate) == (name == "mutating")
    conditions = [n for n in program.graph.nodes if n.target is torch.ops.higher_order.cond]
    assert bool(conditions) == (name == "conditional")
