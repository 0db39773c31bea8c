"""Commands of the documentation that cannot run in a test as they stand, why, and the shorter form that runs instead.

`tests/test_docs.py` fails for an entry that no page has any more. `$ROOT` is the checkout, `$CHECKOUT` a folder of
links to what an installation reads of it: building leaves files behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Instead:
    """Why a command is not run, and what is; "" where nothing shorter says anything.

    `page` is the only one on which it runs, where it takes long all the same: on others `--help` behind the command as
    it stands shows that its options can be read.
    """

    reason: str
    command: str
    page: str = ""


_MINUTES = "takes minutes"
_LIVE = "a live screen that ends at Ctrl-C"
_SMALL = "--family gpt2-125m --target lunar-lake-258v --no-quality"
_PACKAGES = "downloads packages"
_PIP = "pip install --dry-run --no-index"
_TRAIN = "python -m qeil_compile.models.reasoner.train"
_OWN = f"cd $CHECKOUT && {_PIP} --no-build-isolation -c constraints.txt"

INSTEAD: Mapping[str, Instead] = {
    "make demo": Instead("makes an environment, which downloads packages", "make -n -C $ROOT demo"),
    "make test": Instead("runs this very test", "make -n -C $ROOT test"),
    "make venv lint test": Instead("runs this very test", "make -n -C $ROOT venv lint test"),
    "python3 -m venv .venv && . .venv/bin/activate": Instead(
        "pip in it takes ten seconds", "python3 -m venv --without-pip .venv && . .venv/bin/activate && python3 -c pass"
    ),
    "pip install -c constraints.txt torch==2.13.0": Instead(
        _PACKAGES, f"cd $CHECKOUT && {_PIP} -c constraints.txt torch==2.13.0"
    ),
    "pip install -c constraints.txt -e '.[dev]'": Instead(_PACKAGES, f"{_OWN} -e '.[dev]'"),
    "pip install -c constraints.txt -e '.[llm]'": Instead(_PACKAGES, f"{_OWN} -e '.[llm]'"),
    "pip install -e '.[bench-llm]'": Instead(
        "downloads and builds other engines", f"{_OWN} --no-deps -e '.[bench-llm]'"
    ),
    "pip install ./reference-engine": Instead(
        "would change this environment",
        "pip install --quiet --no-index --no-build-isolation --no-deps --target site ./reference-engine",
    ),
    "python -m venv export": Instead("pip in it takes ten seconds", "python -m venv --without-pip export"),
    "export/bin/pip install optimum-intel nncf": Instead(_PACKAGES, ""),
    "python benchmarks/llm.py --folder FOLDER --export-python export/bin/python": Instead(
        "takes hours; tests/test_benchmarks.py runs it with --quick",
        "python $ROOT/benchmarks/llm.py --folder FOLDER --export-python export/bin/python --help",
    ),
    "python benchmarks/gpu.py": Instead(
        "writes a result file into the checkout", "python $ROOT/benchmarks/gpu.py --quick --json gpu.json"
    ),
    "python benchmarks/llm.py --device cuda --torch-compile --families gpt2-125m --forms fp32": Instead(
        "wants an NVIDIA GPU", "python $ROOT/benchmarks/llm.py --device cuda --families gpt2-125m --help"
    ),
    "qeil demo": Instead("a hundred tokens, twice", "qeil demo --steps 12"),
    "qeil calibrate": Instead(
        _MINUTES, "qeil calibrate onnxruntime:CPU --threads 1 --seconds 1", page="docs/calibration.md"
    ),
    "qeil calibrate openvino:CPU --threads 1,2 --seconds 120 --json calibration.json": Instead(
        _MINUTES, "qeil calibrate openvino:CPU --threads 1,2 --seconds 120 --json calibration.json --help"
    ),
    "qeil top": Instead(_LIVE, "qeil top --seconds 0.5"),
    "qeil top --record run.jsonl --seconds 60": Instead(_MINUTES, "qeil top --record run.jsonl --seconds 0.5"),
    "qeil top --seconds 10 --json": Instead("ten seconds", "qeil top --seconds 0.5 --json"),
    "qeil validate": Instead(
        _MINUTES, "qeil validate --only temperature --data $ROOT/benchmarks/data --models $ROOT/tests/data/models"
    ),
    "qeil validate --only temperature --only token-energy": Instead(
        "fits for half a minute", "qeil validate --only temperature --only temperature"
    ),
    "qeil validate --data OTHER --fit-data benchmarks/data --only gpu-latency": Instead(
        _MINUTES, "qeil validate --data OTHER --fit-data benchmarks/data --only temperature"
    ),
    "python -m qeil_compile.models.reasoner.evaluate --problems 300 --samples 20 --temperature 0.8": Instead(
        _MINUTES, "python -m qeil_compile.models.reasoner.evaluate --problems 1 --samples 2 --temperature 0.8"
    ),
    f"{_TRAIN} --minutes 18 --threads 2 --gsm8k train.jsonl --out my-reasoner": Instead(
        "18 minutes", f"{_TRAIN} --steps 1 --threads 1 --gsm8k train.jsonl --out my-reasoner"
    ),
    "qeil bench paper --quick": Instead(_MINUTES, f"qeil bench paper --quick {_SMALL}", page="docs/paper.md"),
    "qeil bench paper --quick --target jetson-agx-orin@30W -o orin": Instead(
        _MINUTES, "qeil bench paper --quick --target jetson-agx-orin@30W -o orin --help"
    ),
    "qeil bench paper --quick --family llama-3.2-1b -o one": Instead(
        _MINUTES, "qeil bench paper --quick --family llama-3.2-1b -o one --help"
    ),
    "qeil bench paper --quick --answers LOG -o mine": Instead(
        _MINUTES, f"qeil bench paper --quick --answers LOG -o mine {_SMALL}"
    ),
    "qeil bench paper --quick --checkpoint CHECKPOINT --task gsm8k.jsonl --price 900 -o own": Instead(
        f"{_MINUTES}; tests/test_paper.py lets a model answer", "qeil bench paper --quick --checkpoint CHECKPOINT "
        "--task gsm8k.jsonl --price 900 -o own --help"
    ),
    "qeil bench paper --measure -o whole": Instead(_MINUTES, "qeil bench paper --measure -o whole --help"),
}
