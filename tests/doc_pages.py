"""What a reader has at hand on each page: the files that its commands name, and the values that its snippets take."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.artifacts import tiny
from tests.doc_commands import PAGES, ROOT, Page, blocks

REASONER = ROOT / "models" / "data" / "reasoner"
_SAMPLES = ROOT / "benchmarks" / "data" / "samples" / "tinystories_cloze" / "stories260K_T1.0_k40_logprobs.jsonl.gz"
#: What an installation reads of a checkout.
_INSTALLED = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "qeil_compile", "passes", "backends",
              "models")  # fmt: skip
_GSM8K = [{"question": "Anna has 4 boxes of 6 apples. How many apples does Anna have?", "answer": "4*6=24\n#### 24"}]
_ARC = [{"instruction": "Please choose the correct answer to the question: Who sat on the mat?\n\n"
         "Answer1: the cat Answer2: the moon Answer format: answer1/answer2", "answer": "answer1"}]  # fmt: skip
_CHECK = "import json, sys\n\nsys.exit(json.load(sys.stdin)['answer'] is None)\n"
#: What somebody says in a conversation; the empty line ends it.
_TYPED = "How much is 3 * 4?\n\n"


class _Plain(nn.Module):
    """x [n, 8] -> [n, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x))


class _Step(nn.Module):
    """x [1, new, 16] and what was kept [1, old, 16] -> [1, new, 16], and what is kept now."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.cat([past, self.key(x)], dim=1)
        return self.out(torch.softmax(x @ kept.transpose(1, 2), -1) @ kept), kept


def prepare(name: str, folder: Path, reasoner: Path = REASONER) -> Page:
    """The page, ready to run. `reasoner` is an artifact of that model, for pages that begin with one."""
    environment = {"CHECKOUT": str(_checkout(folder.parent))}
    page = Page(name, folder, typed={"qeil chat": _TYPED}, environment=environment, reasoner=reasoner)
    if any(b.kind in ("commands", "python") for b in blocks(name)):
        _PREPARE.get(name, _model_page)(page)
    return page


def _checkout(parent: Path) -> Path:
    place = parent / "checkout"
    place.mkdir()
    for name in _INSTALLED:
        (place / name).symlink_to(ROOT / name)
    return place


def _model(folder: Path) -> None:
    onnx.save(tiny(dynamic=False), folder / "model.onnx")
    np.savez(folder / "inputs.npz", x=np.ones((2, 64), np.float32))


def _artifact(folder: Path) -> None:
    """A plan over two devices of another machine, with plans for the loss of each."""
    from qeil_compile.api import Settings, aot_compile

    pins = {"first": "openvino:NPU", "second": "openvino:GPU"}
    settings = Settings("lunar-lake-258v", "balanced", pins, measure=False)
    aot_compile(folder / "model.onnx", settings=settings).save(folder / "model.qeil")


def _model_page(page: Page) -> None:
    """Pages about plans in general: a model, and its artifact."""
    _model(page.folder)
    _artifact(page.folder)


def _checkpoint(folder: Path) -> None:
    """A Llama of two small layers with random weights, and the reasoner's tokenizer: quicker to compile than that."""
    transformers = pytest.importorskip("transformers")
    told = json.loads((REASONER / "config.json").read_text())
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32}  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**told, **sizes})).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REASONER / name, folder / name)


def _readme(page: Page) -> None:
    _model(page.folder)
    _checkpoint(page.folder / "CHECKPOINT")
    _lines(page.folder / "gsm8k.jsonl", _GSM8K)
    example = torch.ones(2, 8)
    page.names |= {"model": _Plain().eval(), "example": example, "array": example.numpy()}


def _quick(page: Page) -> None:
    page.processes = True
    (page.folder / "models").symlink_to(ROOT / "models")


def _profiles(page: Page) -> None:
    _model(page.folder)


def _backends(page: Page) -> None:
    _model(page.folder)
    page.processes = True
    # Where the engine of the page is installed to.
    page.environment = {**page.environment, "PYTHONPATH": f"{ROOT}:{page.folder / 'site'}"}


def _partition(page: Page) -> None:
    from qeil_compile.api import trace

    _model_page(page)
    model = _Step().eval()
    prompt, step = (torch.ones(1, 6, 16), torch.ones(1, 2, 16)), (torch.ones(1, 1, 16), torch.ones(1, 8, 16))
    first, then = trace(model, prompt).graph, trace(model, step).graph
    page.names |= {"model": model, "prompt_args": prompt, "step_args": step, "target": "lunar-lake-258v",
                   "caches": {then.inputs[1]: first.outputs[1]}}  # fmt: skip


def _selection(page: Page) -> None:
    from qeil_compile.sampling import RecordedSource, read_log, replayed

    with gzip.open(_SAMPLES, "rt", encoding="utf-8") as file:
        (page.folder / "LOG").write_text("".join(line for _, line in zip(range(24), file, strict=False)), "utf-8")
    page.names |= {"source": RecordedSource(), "question": replayed(read_log(page.folder / "LOG")[0])}


def _paper(page: Page) -> None:
    lines = [json.dumps({"ans": list(a), "ok": [int(x == "4") for x in a]}) for a in ("444", "445", "125", "454") * 4]
    (page.folder / "LOG").write_text("\n".join(lines) + "\n", "utf-8")


def _validation(page: Page) -> None:
    for name in ("benchmarks", "tests"):
        (page.folder / name).symlink_to(ROOT / name)
    (page.folder / "OTHER").symlink_to(ROOT / "benchmarks" / "data")


def _language(page: Page) -> None:
    for name in ("CHECKPOINT", "checkpoint"):
        _checkpoint(page.folder / name)


def _generation(page: Page) -> None:
    import qeil_compile

    shutil.copytree(REASONER, page.folder / "checkpoint")
    page.names["session"] = qeil_compile.load(page.reasoner).session


def _asking(page: Page) -> None:
    for name in ("model.qeil", "small.qeil", "large.qeil"):
        shutil.copytree(page.reasoner, page.folder / name)
    (page.folder / "check.py").write_text(_CHECK)
    (page.folder / "gsm8k").mkdir()
    _lines(page.folder / "gsm8k" / "test.jsonl", _GSM8K)
    (page.folder / "ARC-Challenge_test.json").write_text(json.dumps(_ARC))
    (page.folder / "wikitext.txt").write_text("The cat sat on the mat. " * 20)


def _report(page: Page) -> None:
    _model(page.folder)
    _artifact(page.folder)
    shutil.copytree(page.reasoner, page.folder / "llm.qeil")


def _resilience(page: Page) -> None:
    shutil.copytree(page.reasoner, page.folder / "model.qeil")


def _reasoner(page: Page) -> None:
    _lines(page.folder / "train.jsonl", _GSM8K * 8)


def _nothing(page: Page) -> None:
    """For pages whose commands need no file."""


_PREPARE: Mapping[str, Callable[[Page], None]] = {
    "CONTRIBUTING.md": _nothing,
    "README.md": _readme,
    "docs/asking.md": _asking,
    "docs/backends.md": _backends,
    "docs/benchmarks.md": _nothing,
    "docs/calibration.md": _nothing,
    "docs/generation.md": _generation,
    "docs/language-models.md": _language,
    "docs/partition.md": _partition,
    "docs/profiles.md": _profiles,
    "docs/quick-start.md": _quick,
    "docs/reasoner.md": _reasoner,
    "docs/report.md": _report,
    "docs/resilience.md": _resilience,
    "docs/paper.md": _paper,
    "docs/selection.md": _selection,
    "docs/telemetry.md": _nothing,
    "docs/validation.md": _validation,
}  # fmt: skip
#: Pages whose commands run language models, which takes the most time.
LANGUAGE = ("README.md", "docs/asking.md", "docs/generation.md", "docs/language-models.md", "docs/reasoner.md",
            "docs/report.md", "docs/resilience.md")  # fmt: skip
#: Pages whose commands are processes.
PROCESSES = ("docs/backends.md", "docs/quick-start.md")
OTHERS = tuple(p for p in PAGES if p not in (*LANGUAGE, *PROCESSES))


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
