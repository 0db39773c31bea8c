"""Share of the ONNX standard's own test cases that pass the front-end and each backend, and why the rest do not.

python benchmarks/onnx_coverage.py [--quick] [--limit N] [--json FILE]

Every node case, and the model cases that need no download: the case's model is traced with the case's inputs,
compiled for one placement in one stage, run, and compared with the shipped outputs under the case's own
tolerances. A worker process runs the cases; when an engine's native code brings it down or a case takes too
long, that is the case's result and a new worker goes on.
"""

from __future__ import annotations

import multiprocessing as mp
import re
import warnings
from collections import Counter, defaultdict
from multiprocessing.connection import Connection
from typing import Any

from common import Report, options, publish

PLACEMENTS = ("onnxruntime:CPU", "openvino:CPU", "torch:cpu")
SECONDS = 60.0


def load_cases() -> dict[str, Any]:
    """Cases of the installed onnx package by kind and name, in a stable order; none of them is downloaded."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            f"{kind}/{case.name}": case
            for kind in ("node", "simple")
            for case in sorted(load_model_tests(kind=kind), key=lambda c: c.name)
        }


def run_case(case: Any) -> dict[str, str]:
    """Result per step: "" or the reason why it failed."""
    from qeil_compile.errors import QeilError
    from qeil_compile.frontends import trace

    model, sets = _read(case)
    initial = {t.name for t in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in initial]
    try:
        given, _ = sets[0]
        traced = trace(model, inputs=dict(zip(names, given, strict=False)))
    except QeilError as error:
        return {"front-end": str(error)}
    except Exception as error:  # what escapes the front-end's own errors is a fault, and reported as one
        return {"front-end": f"UNCAUGHT {type(error).__name__}: {error}"}
    return {"front-end": "", **{p: _run(case, traced, p, names, sets) for p in PLACEMENTS}}


def _read(case: Any) -> tuple[Any, list[tuple[list[Any], list[Any]]]]:
    """The model and its (inputs, outputs); values that are no tensors are lists or None."""
    import pathlib

    import onnx

    if case.model is not None:
        return case.model, [([_array(v) for v in i], [_array(v) for v in o]) for i, o in case.data_sets]
    folder = pathlib.Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        found = ([_file(data / f"input_{k}.pb", v) for k, v in enumerate(model.graph.input)],
                 [_file(data / f"output_{k}.pb", v) for k, v in enumerate(model.graph.output)])  # fmt: skip
        sets.append(found)
    return model, sets


def _file(path: Any, info: Any) -> Any:
    import onnx

    kind = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(
        info.type.WhichOneof("value"), onnx.TensorProto
    )()
    if not path.exists():  # inputs with an initializer for a default have no file
        return None
    kind.ParseFromString(path.read_bytes())
    convert = {onnx.SequenceProto: onnx.numpy_helper.to_list, onnx.OptionalProto: onnx.numpy_helper.to_optional}
    return convert.get(type(kind), onnx.numpy_helper.to_array)(kind)


def _array(value: Any) -> Any:
    import numpy as np
    import onnx

    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if value is None or isinstance(value, (list, dict)) else np.asarray(value)


def _run(case: Any, traced: Any, placement: str, names: list[str], sets: list[Any]) -> str:
    from qeil_compile.api import lower_plan, price
    from qeil_compile.errors import QeilError
    from qeil_compile.passes.partition import assign_plan

    try:
        costs = price(traced, placement)
        compiled = lower_plan(traced, assign_plan(costs, [0] * len(costs.groups.groups)), golden=False)
        for given, expected in sets:
            inputs = {n: v for n, v in zip(names, given, strict=False) if v is not None}
            found = compiled.run(inputs)
            for k, (value, e) in enumerate(zip(found.values(), expected, strict=True)):
                wrong = _differs(value, e, case.rtol, case.atol)
                if wrong:
                    return f"output {k}: {wrong}"
    except QeilError as error:
        return str(error)
    except Exception as error:  # what escapes the package's own errors is a fault, and reported as one
        return f"UNCAUGHT {type(error).__name__}: {error}"
    return ""


def _differs(found: Any, expected: Any, rtol: float, atol: float) -> str:
    import numpy as np

    if found.shape != expected.shape:
        return f"wrong shape {list(found.shape)} for {list(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"wrong dtype {found.dtype} for {expected.dtype}"
    if expected.dtype.kind in "OSU":
        return "" if found.astype(str).tolist() == expected.astype(str).tolist() else "wrong values"
    from qeil_compile.runtime.compare import compare

    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = found.astype(wide), expected.astype(wide)
    if np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    # The shipped tolerance is for one operator in its own type; engines compute in another order or wider.
    return "rounded otherwise, within this package's tolerance" if compare("", found, expected).ok else "wrong values"


def worker(pipe: Connection) -> None:
    """Run the cases whose names come in; send each result back."""
    cases = load_cases()
    pipe.send(list(cases))
    while (name := pipe.recv()) is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.send(run_case(cases[name]))


class Pool:
    """One worker, started again when it dies or hangs."""

    def __init__(self) -> None:
        self._context = mp.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, other = self._context.Pipe()
        self._process = self._context.Process(target=worker, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self.names: list[str] = self._pipe.recv()

    def run(self, name: str) -> dict[str, str]:
        """One case; a crash or a time-out is its result."""
        self._pipe.send(name)
        try:
            if self._pipe.poll(SECONDS):
                return self._pipe.recv()
            why = f"CRASH: no answer in {SECONDS:g} s"
        except EOFError:
            self._process.join()
            why = f"CRASH: the worker ended with code {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._start()
        return {"front-end": why}

    def close(self) -> None:
        """End the worker."""
        self._pipe.send(None)
        self._process.join()


def group(reason: str) -> str:
    """The reason without names and numbers, so that equal ones can be counted."""
    text = re.sub(r"(model|input|output|dimension|operator|group|stage|unit) \S+", r"\1 *", reason)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^]]*\]|\([^)]*\)|\d+", "*", text)
    return " ".join(text.split())[:110]


def main() -> None:
    """Run the benchmark."""

    def more(parser: Any) -> None:
        parser.add_argument("--limit", type=int, default=None, help="every n-th case only, up to N cases")
        parser.add_argument("--match", default="", help="cases whose name holds this text")

    args = options(__doc__ or "", more)
    pool = Pool()
    names = [n for n in pool.names if args.match in n]
    limit = args.limit or (24 if args.quick else None)
    if limit and limit < len(names):
        names = names[:: len(names) // limit][:limit]
    results: dict[str, dict[str, str]] = {}
    for k, name in enumerate(names):
        results[name] = pool.run(name)
        if k % 200 == 199:
            print(f"{k + 1} of {len(names)} cases", flush=True)
    pool.close()
    shares, reasons = tables(results)
    publish([shares, reasons], args, "onnx_coverage", cases=results)


def tables(results: dict[str, dict[str, str]]) -> tuple[Report, Report]:
    """Pass shares per step, and the grouped reasons of the rest."""
    shares = Report("shares", "ONNX test cases that pass", ("step", "passed", "of", "share of all cases"))
    reasons = Report("reasons", "Why the rest do not pass", ("step", "cases", "reason", "example"))
    for step in ("front-end", *PLACEMENTS):
        asked = {n: r[step] for n, r in results.items() if step in r}
        passed = sum(not r for r in asked.values())
        shares.rows.append({"step": step, "passed": passed, "of": len(asked),
                            "share of all cases": f"{passed / len(results):.1%}"})  # fmt: skip
        examples: dict[str, list[str]] = defaultdict(list)
        for name, reason in asked.items():
            if reason:
                examples[group(reason)].append(name)
        for text, count in Counter({t: len(e) for t, e in examples.items()}).most_common():
            reasons.rows.append({"step": step, "cases": count, "reason": text, "example": examples[text][0]})
    return shares, reasons


if __name__ == "__main__":
    main()
