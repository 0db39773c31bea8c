"""A process that reads mutants: one line of JSON per mutant in, its outcome out.

python benchmarks/strangers_worker.py ORIGINALS MEMORY

What a reader refuses with a `QeilError` is "refused"; what it accepts is run and verified. Anything else is a failure,
which is named by the exception. MEMORY is how many bytes of address space a mutant may take beyond the warm process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np

from qeil_compile import api, asking, load, sampling
from qeil_compile.cli.arguments import read_npz
from qeil_compile.devices import calibrations
from qeil_compile.devices.loader import check_profile, load_target
from qeil_compile.devices.work import KernelTable
from qeil_compile.errors import QeilError, VerificationError
from qeil_compile.forms import fx_json
from qeil_compile.generation import load_tokenizer
from qeil_compile.language import CompiledDecoder, Runner
from qeil_compile.models import Llama2cTokenizer
from qeil_compile.models.decoder import Decoder, open_decoder
from qeil_compile.models.llama2c import load_llama2c
from qeil_compile.passes.decision import decide
from qeil_compile.plan import Plan
from qeil_compile.runtime.compare import compare
from qeil_compile.untrusted import parse_json

REFUSED, UNVERIFIED, RIGHT, DIFFERENT, WRONG = (
    "refused", "refused by verify", "accepted, right", "accepted, another model", "WRONG ACCEPTED"
)  # fmt: skip
#: Seconds that one run of a model may take: some runs, and what engines then need, fit into the time of a mutant.
RUN_SECONDS = 0.5
_TURNS = ("onnxruntime:CPU", "openvino:CPU", "torch:cpu")
_TALK = [{"role": "user", "content": "hello <|im_end|> world"}]


@cache
def _good(original: str) -> tuple[Any, Any]:
    """Inputs and outputs of an artifact as it was."""
    compiled = load(original)
    return compiled.golden.inputs, compiled.run(compiled.golden.inputs)  # type: ignore[union-attr]


def artifact(path: Path, original: str, turn: int) -> str:
    """Load, explain, run, verify, spare plans included."""
    inputs, expected = _good(original)
    compiled: Any = api.load(path)
    compiled.start()
    explained = compiled.explain()
    assert explained.as_text() and json.dumps(explained.to_json(), default=str)
    compiled.verify()
    compiled.verify_units()
    for k in range(len(compiled.plan.spares)):
        compiled.spare(k).verify()
    found = compiled.run(inputs)
    return RIGHT if all(compare(n, found[n], e).ok for n, e in expected.items()) else WRONG


@cache
def _good_tokens(original: str) -> tuple[Any, list[int]]:
    runner = Runner(CompiledDecoder.load(original))
    golden = runner.compiled.golden
    assert golden is not None
    ((sample,),) = runner.generate([golden.tokens.tolist()], temperature=0.0, max_tokens=4)
    return golden, list(sample.tokens)


def decoder(path: Path, original: str, turn: int) -> str:
    """Load, start, verify, generate, and talk where there is a tokenizer."""
    golden, expected = _good_tokens(original)
    runner = Runner(CompiledDecoder.load(path))
    session = runner.start()
    runner.compiled.verify(session)
    ((sample,),) = runner.generate([golden.tokens.tolist()], temperature=0.0, max_tokens=4)
    if runner.tokenizer is not None:
        runner.tokenizer.decode(runner.tokenizer.encode("hello <|im_end|> world"))
        runner.generate([_TALK], max_tokens=1)
    logits = session.prefill([golden.tokens.tolist()])[0]
    off = float(np.abs(logits - next(iter(golden.logits.values()))).max()) / (float(np.ptp(logits)) or 1.0)
    return RIGHT if list(sample.tokens) == expected or off < 0.2 else WRONG


def model(path: Path, original: str, turn: int) -> str:
    """Compile an ONNX file for one engine, which checks its outputs against the model run as it is."""
    file = path / "model.onnx" if path.is_dir() else path
    settings = api.Settings(target=_TURNS[turn % len(_TURNS)], measure=False, failover=False)
    workload = api.Workload({"batch": 2}) if "batch" in original else None
    api.aot_compile(file, workload=workload, settings=settings, run_seconds=RUN_SECONDS)
    return DIFFERENT


def checkpoint(path: Path, original: str, turn: int) -> str:
    """Open a checkpoint folder, assemble every weight, and talk with its tokenizer."""
    found = open_decoder(path)
    assert isinstance(found, Decoder)
    graph = found.graph()
    weight = found.weights(graph, 0)
    for name in graph.weights:
        weight(name)
    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("hello <|im_end|> world"))
    tokenizer.chat(_TALK)
    return DIFFERENT


def llama2c(path: Path, original: str, turn: int) -> str:
    """A llama2.c checkpoint, and its tokenizer beside it."""
    found = load_llama2c(path / "model.bin")
    tokenizer = Llama2cTokenizer.load(path / "tok512.bin", found.config.vocab)
    tokenizer.decode(tokenizer.encode("Once upon a time"))
    return DIFFERENT


def plan(path: Path, original: str, turn: int) -> str:
    """A plan alone."""
    try:
        value = parse_json(path.read_bytes(), "infinite")
    except ValueError:
        return REFUSED
    found = Plan.from_json(value)
    assert found.as_text() and found.to_json()
    decide(found).as_text()
    return DIFFERENT


def stage(path: Path, original: str, turn: int) -> str:
    """An FX stage alone, built and run."""
    import torch

    weights = json.loads((Path(original).parent / "weights.json").read_text())
    module = fx_json.decode(path.read_bytes(), torch.device("cpu"), list(weights))
    assert module.code
    return DIFFERENT


def profile(path: Path, original: str, turn: int) -> str:
    """A target profile, in each of its modes."""
    check_profile(path)
    target = load_target(str(path))
    assert target.to_json()
    return DIFFERENT


_KERNELS = KernelTable(
    ("gemm", "elementwise"), ((1, 8, 8, 8), (64,)), ("float32",) * 2, ("MatMul", "Relu"), np.array([1024.0, 64.0]),
    np.array([256.0, 256.0]), np.array([256.0, 0.0]), np.array([256.0, 256.0]), np.array([0, 1]),
)  # fmt: skip


def calibration(path: Path, original: str, turn: int) -> str:
    """A stored calibration, and prices from it."""
    os.environ["QEIL_CALIBRATIONS"] = str(path)
    known = calibrations.load([("onnxruntime", "1", "CPU")], 1)
    if not known.found:
        return REFUSED  # a file that cannot be read is none
    with np.errstate(all="ignore"):
        known.seconds("onnxruntime:CPU", _KERNELS)
    return DIFFERENT


def log(path: Path, original: str, turn: int) -> str:
    """Recorded samples."""
    for question in sampling.read_log(path):
        for i in range(len(question)):
            question.right(question.sample(i).answer, i)
    return DIFFERENT


def task(path: Path, original: str, turn: int) -> str:
    """Questions, and results as `qeil evaluate` writes them."""
    if path.name.startswith("results"):
        asking.summary(asking.read_results(path))
    else:
        asking.load_task(path)
    return DIFFERENT


def inputs(path: Path, original: str, turn: int) -> str:
    """Input tensors."""
    read_npz(path)
    return DIFFERENT


HANDLERS: dict[str, Callable[[Path, str, int], str]] = {
    f.__name__: f
    for f in (artifact, decoder, model, checkpoint, llama2c, plan, stage, profile, calibration, log, task, inputs)
}


def outcome(kind: str, path: Path, original: str, turn: int) -> tuple[str, str]:
    """What became of a mutant, and a line about it."""
    try:
        return HANDLERS[kind](path, original, turn), ""
    except VerificationError as error:
        return UNVERIFIED, str(error)[:200]
    except QeilError as error:
        return REFUSED, f"{type(error).__name__}: {error}"[:300]
    except BaseException as error:  # a panic of Rust is no Exception
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return "OTHER EXCEPTION", f"{type(error).__name__}: {str(error)[:200]} ({where})"


def main() -> None:
    """Answer until standard input ends."""
    warnings.simplefilter("ignore")
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print where they like
    for kind, original in json.loads(sys.argv[1]):
        with contextlib.suppress(Exception):
            for turn in range(len(_TURNS) if kind == "model" else 1):
                outcome(kind, Path(original), original, turn)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
    print(json.dumps(["ready", ""]), file=answers, flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        found = outcome(wanted["kind"], Path(wanted["path"]), wanted["original"], wanted["turn"])
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
