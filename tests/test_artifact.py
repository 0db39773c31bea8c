"""The artifact: what is written is read back, and nothing else is ever read."""

from __future__ import annotations

import copy
import errno
import importlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qeil_compile import aot_compile, load
from qeil_compile.artifact import SCHEMA, store
from qeil_compile.backends import backend
from qeil_compile.errors import ArtifactError, OutputError
from qeil_compile.runtime import Compiled
from tests import artifacts, zoo
from tests.artifacts import TOKENS, files_of, replace_file, rewrite, run_all, settings, spread, tied

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def mixed() -> Compiled:
    """Tied weights, stages on all three engines."""
    compiled = spread(tied(), (TOKENS,), *artifacts.ENGINES)
    assert {s.placement for s in compiled.plan.stages} == set(artifacts.ENGINES)
    return compiled


@pytest.fixture(scope="module")
def written(mixed: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "model.qeil"
    mixed.save(path)
    return path


@pytest.fixture
def artifact(written: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(written, tmp_path / "model.qeil"))


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the engines that were asked to compile; the test fails if there is one."""
    asked: list[str] = []
    for name in ("torch", "onnxruntime", "openvino"):

        def record(*args: Any, name: str = name, **kwargs: Any) -> None:
            asked.append(name)

        monkeypatch.setattr(type(backend(name)), "compile", record)
    yield asked
    assert asked == []


def refused(path: Path, match: str = "") -> str:
    with pytest.raises(ArtifactError, match=match or None) as caught:
        load(path).start()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


# ---- round trips


@pytest.mark.parametrize("name", ["model.qeil", "model.qeil.zip"])
def test_round_trip(mixed: Compiled, tmp_path: Path, name: str) -> None:
    mixed.save(tmp_path / name)
    again = load(tmp_path / name)
    assert again.plan == mixed.plan
    assert again.graph.to_json() == mixed.graph.to_json()
    assert again.workload == mixed.workload
    expected = run_all(mixed)
    for key, value in run_all(again).items():
        assert value.dtype == expected[key].dtype
        np.testing.assert_array_equal(value, expected[key])
    assert all(d.ok for d in again.verify())
    again.save(tmp_path / f"again-{name}")
    assert load(tmp_path / f"again-{name}").plan == mixed.plan


@pytest.mark.parametrize("placement", artifacts.ENGINES)
@pytest.mark.parametrize("name", ["mlp", "two_branches", "bag_classifier"])
def test_round_trip_of_zoo(name: str, placement: str, tmp_path: Path) -> None:
    args = zoo.EXAMPLES[name]()
    compiled = aot_compile(getattr(zoo, name)(), args, settings=settings(placement))
    compiled.save(tmp_path / "m.qeil")
    again = load(tmp_path / "m.qeil")
    expected = run_all(compiled)
    for key, value in run_all(again).items():
        np.testing.assert_array_equal(value, expected[key])


def test_bfloat16_round_trip(tmp_path: Path) -> None:
    compiled = aot_compile(zoo.bf16_mlp(), zoo.EXAMPLES["bf16_mlp"](), settings=settings("torch:cpu"))
    compiled.save(tmp_path / "m.qeil")
    (value,) = run_all(load(tmp_path / "m.qeil")).values()
    assert value.dtype.name == "bfloat16"
    assert compiled.verify()[0].max_abs == 0


def test_weights_are_stored_once_for_all_stages(tmp_path: Path) -> None:
    table = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    same_values = table.clone()

    def twice(tokens: torch.Tensor) -> torch.Tensor:
        found = F.embedding(tokens, table)
        return F.embedding((found @ found.mT).argmax(-1), same_values)

    compiled = spread(twice, (TOKENS,), "onnxruntime:CPU", "torch:cpu", "openvino:CPU")
    compiled.save(tmp_path / "m.qeil")
    manifest = json.loads((tmp_path / "m.qeil" / "manifest.json").read_text())
    uses = [r["file"] for u in manifest["units"] for r in u["weights"].values()]
    assert len(uses) == 2 and len(set(uses)) == 1
    assert [p.stat().st_size for p in (tmp_path / "m.qeil" / "weights").iterdir()] == [8000]
    np.testing.assert_array_equal(*(next(iter(run_all(c).values())) for c in (compiled, load(tmp_path / "m.qeil"))))


def test_tied_weight_is_stored_once(tmp_path: Path) -> None:
    spread(tied(), (TOKENS,), "torch:cpu").save(tmp_path / "m.qeil")
    assert sorted(p.stat().st_size for p in (tmp_path / "m.qeil" / "weights").iterdir()) == [10000, 10000]


def test_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    for k in range(2):
        compiled = spread(tied(), (TOKENS,), *artifacts.ENGINES)
        compiled.save(tmp_path / f"{k}.qeil")
        compiled.save(tmp_path / f"{k}.zip")
        os.utime(tmp_path / f"{k}.qeil", (k, k))
    assert files_of(tmp_path / "0.qeil") == files_of(tmp_path / "1.qeil")
    assert (tmp_path / "0.zip").read_bytes() == (tmp_path / "1.zip").read_bytes()


def test_equal_bytes_under_another_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys; from tests import artifacts as a; "
        "a.spread(a.tied(), (a.TOKENS,), 'torch:cpu', 'onnxruntime:CPU').save(sys.argv[1])"
    )
    spread(tied(), (TOKENS,), "torch:cpu", "onnxruntime:CPU").save(tmp_path / "1.zip")
    _python(code, str(tmp_path / "2.zip"), env={"PYTHONHASHSEED": "2"})
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_results_of_a_loaded_model_can_be_written_to(tmp_path: Path) -> None:
    """A returned weight lies in mapped memory: writing to it must neither crash nor change the next result."""

    def constant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + table, table

    table = torch.arange(3.0)
    compiled = aot_compile(constant, (torch.zeros(3),), settings=settings("torch:cpu"))
    compiled.save(tmp_path / "m.qeil")
    again = load(tmp_path / "m.qeil")
    for _ in range(2):
        for value in again.run({again.graph.inputs[0]: np.zeros(3, np.float32)}).values():
            np.testing.assert_array_equal(value, [0, 1, 2])
            value += 1


def test_no_trace_of_this_machine(artifact: Path) -> None:
    for name, data in files_of(artifact).items():
        assert str(ROOT).encode() not in data, name
        assert str(Path.home()).encode() + b"/" not in data or str(Path.home()) == "/", name


# ---- damage


def test_every_flipped_byte_is_refused(artifact: Path, no_engine: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name, good in files_of(artifact).items():
        for offset in {0, len(good) - 1, *(int(o) for o in rng.integers(0, len(good), 4))}:
            bad = bytearray(good)
            bad[offset] ^= int(rng.integers(1, 256))
            (artifact / name).write_bytes(bad)
            refused(artifact)
        (artifact / name).write_bytes(good)


def test_every_flipped_byte_of_a_zip_is_refused(mixed: Compiled, tmp_path: Path, no_engine: list[str]) -> None:
    path = tmp_path / "m.zip"
    mixed.save(path)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        spans = [(e.header_offset, e.file_size, e.filename) for e in archive.infolist()]
    rng = np.random.default_rng(1)
    for start, size, name in spans:
        begin = start + 30 + len(name)
        for offset in (begin, begin + size - 1, int(rng.integers(begin, begin + size))):
            bad = bytearray(good)
            bad[offset] ^= 0x10
            path.write_bytes(bad)
            refused(path)


def test_no_damaged_zip_escapes_as_another_error(mixed: Compiled, tmp_path: Path) -> None:
    """Headers hold fields that do not matter (dates): such damage may pass, but only with equal contents."""
    path = tmp_path / "m.zip"
    mixed.save(path)
    good = path.read_bytes()
    rng = np.random.default_rng(2)
    tail = good.rindex(b"PK\x01\x02") - 2000
    for offset in (*rng.integers(tail, len(good), 150), *rng.integers(0, len(good), 30)):
        bad = bytearray(good)
        bad[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        try:
            again = load(path)
        except ArtifactError:
            continue
        assert again.plan == mixed.plan


@pytest.mark.parametrize("change", ["cut", "empty", "longer", "missing"])
def test_cut_extended_and_missing_files(artifact: Path, change: str, no_engine: list[str]) -> None:
    for name, good in files_of(artifact).items():
        file = artifact / name
        if change == "missing":
            file.unlink()
        else:
            file.write_bytes({"cut": good[:-1], "empty": b"", "longer": good + b"\0"}[change])
        if (change, name) == ("longer", "manifest.json"):
            refused(artifact, "malformed")
        else:
            refused(artifact)
        file.write_bytes(good)


@pytest.mark.parametrize("cut", [1, 30, 500])
def test_cut_zip(mixed: Compiled, tmp_path: Path, cut: int, no_engine: list[str]) -> None:
    path = tmp_path / "m.zip"
    mixed.save(path)
    path.write_bytes(path.read_bytes()[:-cut])
    refused(path)


@pytest.mark.parametrize(
    ("schema", "hint"),
    [(SCHEMA + 1, "upgrade"), (SCHEMA - 1, "compile the model again"), ("1", "compile"), (None, "compile"),
     (True + 0.5, "compile")],
)  # fmt: skip
def test_other_schemas(artifact: Path, schema: object, hint: str, no_engine: list[str]) -> None:
    rewrite(artifact, lambda m: m.update(schema=schema))
    refused(artifact, hint)


@pytest.mark.parametrize("found", ["nothing", "file", "empty folder", "empty zip", "other zip"])
def test_no_artifact(tmp_path: Path, found: str) -> None:
    path = tmp_path / "m.qeil"
    if found == "file":
        path.write_bytes(b"hello")
    elif found == "empty folder":
        path.mkdir()
    elif found.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            if found == "other zip":
                archive.writestr("hello", "x")
    refused(path)


# ---- attacks, with digests that fit


def _move_unit_file(artifact: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        unit = manifest["units"][0]
        manifest["files"][name] = manifest["files"].pop(unit["file"])
        unit["file"] = name

    rewrite(artifact, change)


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/hostname", "..\\outside", "stages\\0000.onnx", "C:x", "stages/../../outside", "a/b/c", "",
     ".hidden", "stages//x", "stages/", "stages/x\n", "\u2025/x", "stages/..", "a\0b"],
)  # fmt: skip
def test_names_that_leave_the_artifact(artifact: Path, name: str, no_engine: list[str]) -> None:
    (artifact.parent / "outside").write_bytes(b"secret")
    _move_unit_file(artifact, name)
    refused(artifact, "leaves the artifact")


def test_linked_file(artifact: Path, no_engine: list[str]) -> None:
    stage = next(iter(sorted((artifact / "stages").iterdir())))
    stage.rename(artifact.parent / "outside")
    stage.symlink_to(artifact.parent / "outside")
    refused(artifact, "link")


def test_linked_folder(artifact: Path, no_engine: list[str]) -> None:
    (artifact / "weights").rename(artifact.parent / "outside")
    (artifact / "weights").symlink_to(artifact.parent / "outside")
    refused(artifact, "link")


def test_linked_manifest(artifact: Path, no_engine: list[str]) -> None:
    (artifact / "manifest.json").rename(artifact.parent / "outside")
    (artifact / "manifest.json").symlink_to(artifact.parent / "outside")
    refused(artifact, "link")


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_named_pipe_does_not_hang(artifact: Path, name: str, no_engine: list[str]) -> None:
    (artifact / name).unlink()
    os.mkfifo(artifact / name)
    reader = threading.Thread(target=lambda: refused(artifact, "no regular file"), daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive()


def test_folder_in_place_of_a_file(artifact: Path, no_engine: list[str]) -> None:
    (artifact / "plan.json").unlink()
    (artifact / "plan.json").mkdir()
    refused(artifact)


def _zip_of(artifact: Path, target: Path, compress: int = zipfile.ZIP_STORED, extra: str | None = None) -> Path:
    with zipfile.ZipFile(target, "w", compress) as archive:
        for name, data in files_of(artifact).items():
            archive.writestr(name, data)
        if extra is not None:
            with pytest.warns(UserWarning, match="Duplicate") if extra == "plan.json" else _nothing():
                archive.writestr(extra, b"{}")
    return target


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


def test_zip_made_by_hand_is_read(artifact: Path, tmp_path: Path) -> None:
    load(_zip_of(artifact, tmp_path / "x.zip"))


def test_compressed_zip(artifact: Path, tmp_path: Path, no_engine: list[str]) -> None:
    refused(_zip_of(artifact, tmp_path / "x.zip", zipfile.ZIP_DEFLATED), "compressed")


def test_duplicate_member(artifact: Path, tmp_path: Path, no_engine: list[str]) -> None:
    refused(_zip_of(artifact, tmp_path / "x.zip", extra="plan.json"), "twice")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b/c"])
def test_zip_member_that_leaves(artifact: Path, tmp_path: Path, name: str, no_engine: list[str]) -> None:
    refused(_zip_of(artifact, tmp_path / "x.zip", extra=name), "leaves the artifact")


@pytest.mark.parametrize("size", [1 << 20, 0xFFFFFFF0])
def test_zip_that_declares_more_than_it_has(artifact: Path, tmp_path: Path, size: int, no_engine: list[str]) -> None:
    path = _zip_of(artifact, tmp_path / "x.zip")
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 20 : start + 28] = size.to_bytes(4, "little") * 2
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def _tensor_change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for group in (*(u["weights"] for u in manifest["units"]), manifest["golden"]["inputs"]):
            for reference in group.values():
                reference.update(fields)

    return change


@pytest.mark.parametrize("dtype", ["float33", "object", "opaque", "string", "__class__", "O", None, 3, ["float32"]])
def test_unknown_dtype(artifact: Path, dtype: object, no_engine: list[str]) -> None:
    rewrite(artifact, _tensor_change(dtype=dtype))
    refused(artifact)


@pytest.mark.parametrize(
    "shape",
    [[-1, 50], [50, -50, -1], [1 << 60, 1 << 60], [10**30], [0, 10**30], [2500, 2], [], "2500", [2500.0], None, {},
     [[50], 50], [None, 50]],
)  # fmt: skip
def test_impossible_shape(artifact: Path, shape: object, no_engine: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rewrite(artifact, _tensor_change(shape=shape))
    refused(artifact)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_bad_weight_is_refused_before_any_engine_starts(artifact: Path, no_engine: list[str]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        unit = next(u for u in reversed(manifest["units"]) if u["weights"])
        next(iter(unit["weights"].values()))["shape"] = [0, 10**30]

    rewrite(artifact, change)
    refused(artifact)


WIRING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unit reads a later tensor": lambda m: m["units"][0].update(inputs=m["units"][-1]["outputs"]),
    "output never written": lambda m: m["units"][-1].update(outputs=["elsewhere"]),
    "units in another order": lambda m: m["units"].reverse(),
    "unit dropped": lambda m: m["units"].pop(0),
    "unit twice": lambda m: m["units"].append(m["units"][0]),
    "unknown form": lambda m: m["units"][0].update(form="pickle"),
    "placement of another engine": lambda m: m["units"][0].update(placements=["openvino:CPU"]),
    "unknown stage": lambda m: m["units"][0].update(stages=[99]),
    "stage as text": lambda m: m["units"][0].update(stages=["0"]),
    "no stages": lambda m: m["units"][0].update(stages=[]),
    "inputs as text": lambda m: m["units"][0].update(inputs="tokens"),
    "file not listed": lambda m: m["files"].pop(m["units"][0]["file"]),
    "file name no text": lambda m: m["units"][0].update(file=["x"]),
    "affinity to a number": lambda m: m["units"][0].update(affinity={"a": 3}),
    "files as a list": lambda m: m.update(files=[]),
    "no units": lambda m: m.update(units=[]),
    "no golden": lambda m: m.pop("golden"),
    "dimension 0": lambda m: m.update(workload={"dims": {"x": 0}}),
    "timings": lambda m: m.update(timings={"x": {"median": "fast"}}),
    "timing fields": lambda m: m.update(timings={"x": {"mean": 1.0}}),
    "engines": lambda m: m.update(engines=[1]),
}


@pytest.mark.parametrize("case", WIRING)
def test_wrong_wiring(artifact: Path, case: str, no_engine: list[str]) -> None:
    rewrite(artifact, WIRING[case])
    with pytest.raises(ArtifactError):
        load(artifact).start()


@pytest.mark.parametrize("name", ["manifest.json", "graph.json", "plan.json", "costs.json"])
def test_deep_nesting(artifact: Path, name: str, no_engine: list[str]) -> None:
    data = b"[" * 200_000 + b"]" * 200_000
    if name == "manifest.json":
        (artifact / name).write_bytes(data)
    else:
        replace_file(artifact, name, data)
    refused(artifact)


def _fx_stage(artifact: Path) -> str:
    manifest = json.loads((artifact / "manifest.json").read_text())
    return str(next(u["file"] for u in manifest["units"] if u["form"] == "fx"))


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "builtins.eval", "operator.attrgetter", "operator.methodcaller", "operator.setitem",
     "aten.no_such_operator.default", "aten.linear.no_such_overload", "aten.linear", "aten.__class__.mro",
     "aten.linear.__class__", "higher_order.no_such", "higher_order.hints_wrapper", "load_library.x.y",
     "profiler._record_function_enter.default", "", "...", None, 3, ["aten.linear.default"]],
)  # fmt: skip
def test_fx_stage_that_names_a_python_function(
    artifact: Path, target: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []
    monkeypatch.setattr(os, "system", called.append)
    monkeypatch.setattr(torch, "load", lambda *a, **k: called.append(a))
    name = _fx_stage(artifact)
    stage = json.loads((artifact / name).read_text())
    stage["nodes"][0].update(target=target, args=["echo"], kwargs={})
    replace_file(artifact, name, json.dumps(stage).encode())
    with pytest.raises(ArtifactError, match=r"refused|malformed"):
        load(artifact).start()
    assert called == []


@pytest.mark.parametrize(
    "value",
    [{"dtype": "load"}, {"dtype": "__builtins__"}, {"layout": "float32x"}, {"module": "os"}, {"node": "nowhere"}, {},
     {"tuple": 3}, {"float": "x"}, {"a": 1, "b": 2}],
)  # fmt: skip
def test_fx_stage_with_a_foreign_value(artifact: Path, value: object) -> None:
    name = _fx_stage(artifact)
    stage = json.loads((artifact / name).read_text())
    stage["nodes"][0]["args"] = [value]
    replace_file(artifact, name, json.dumps(stage).encode())
    with pytest.raises(ArtifactError):
        load(artifact).start()


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"{}", b"\xff", b'{"inputs": 3}', b"[" * 100_000])
def test_fx_stage_that_is_no_graph(artifact: Path, payload: bytes) -> None:
    replace_file(artifact, _fx_stage(artifact), payload)
    with pytest.raises(ArtifactError):
        load(artifact).start()


# ---- fuzzing: any change of any field, with digests that fit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**30, -1, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def _places(data: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from _places(value, (*prefix, key))


def _mutated(data: Any, draw: Any) -> Any:
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(data))
        *path, key = draw(st.sampled_from(places))
        owner = data
        for step in path:
            owner = owner[step]
        action = draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "delete":
            del owner[key]
        elif action == "replace":
            owner[key] = draw(JSON)
        elif isinstance(owner, list):
            owner.append(draw(JSON))
        else:
            owner[draw(st.text(max_size=5))] = draw(JSON)
        if not data:
            break
    return data


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "graph.json", "costs.json"])
@hypothesis_settings(max_examples=120, deadline=None, derandomize=True,
                     suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow,
                                            HealthCheck.large_base_example])  # fmt: skip
@given(data=st.data())
def test_fuzz(written: Path, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{name}"
    if not folder.exists():
        shutil.copytree(written, folder)
    good = json.loads((written / name).read_text())
    bad = _mutated(good, data.draw)
    if name == "manifest.json":
        (folder / name).write_text(json.dumps(good))

        def become(manifest: dict[str, Any]) -> None:
            manifest.clear()
            manifest.update(bad)

        rewrite(folder, become)
    else:
        shutil.copy(written / "manifest.json", folder / "manifest.json")
        replace_file(folder, name, json.dumps(bad).encode())
    try:
        loaded = load(folder)
    except ArtifactError:
        return
    # What passes is well-formed enough for everything that prints it.
    assert loaded.plan.as_text() and loaded.graph.as_text()
    assert loaded.plan.to_json() and loaded.graph.to_json()
    assert loaded.graph.weight_bytes >= 0


# ---- writing, whole or not at all


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("name", ["m.qeil", "m.zip"])
def test_output_exists(mixed: Compiled, tmp_path: Path, name: str) -> None:
    mixed.save(tmp_path / name)
    with pytest.raises(OutputError, match="exists already"):
        mixed.save(tmp_path / name)
    mixed.save(tmp_path / name, overwrite=True)
    assert load(tmp_path / name).plan == mixed.plan
    assert leftovers(tmp_path) == [name]


def test_dangling_link_is_an_output_that_exists(mixed: Compiled, tmp_path: Path) -> None:
    (tmp_path / "m.qeil").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="exists already"):
        mixed.save(tmp_path / "m.qeil")
    assert leftovers(tmp_path) == ["m.qeil"]


def test_overwrite_never_costs_another_folder(mixed: Compiled, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years of work")
    with pytest.raises(OutputError, match="no artifact"):
        mixed.save(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1").read_text() == "years of work"
    assert leftovers(tmp_path) == ["thesis"]


@pytest.mark.parametrize("name", ["m.qeil", "m.zip"])
@pytest.mark.parametrize("kind", ["full", "interrupt"])
@pytest.mark.parametrize("when", ["payload", "weight", "manifest", "sync", "last rename"])
def test_failure_midway_keeps_the_old(
    mixed: Compiled, tmp_path: Path, name: str, kind: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    mixed.save(path)
    before = files_of(path) if path.is_dir() else path.read_bytes()
    error = OSError(errno.ENOSPC, "No space left on device") if kind == "full" else KeyboardInterrupt()
    fired: list[str] = []

    def failing(real: Callable[..., Any], matches: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if matches(*args):
                fired.append(when)
                raise error
            return real(*args, **kwargs)

        return call

    if when == "sync":
        monkeypatch.setattr(store, "_sync", failing(store._sync, lambda *a: True))
    elif when == "last rename":
        monkeypatch.setattr(Path, "rename", failing(Path.rename, lambda a, b: Path(b) == path and not fired))
    elif when == "manifest":
        monkeypatch.setattr(Path, "write_text", failing(Path.write_text, lambda p, *a: p.name == "manifest.json"))
    else:
        folder = {"payload": "stages", "weight": "weights"}[when]
        monkeypatch.setattr(Path, "write_bytes", failing(Path.write_bytes, lambda p, *a: p.parent.name == folder))
    with pytest.raises(OutputError if kind == "full" else KeyboardInterrupt) as caught:
        mixed.save(path, overwrite=True)
    monkeypatch.undo()
    assert fired
    if kind == "full":
        assert "disk full" in str(caught.value)
    assert (files_of(path) if path.is_dir() else path.read_bytes()) == before
    assert leftovers(tmp_path) == [name]


def test_nothing_is_left_when_the_first_write_fails(
    mixed: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, name: str, data: Any) -> None:
        (self.folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(importlib.import_module("qeil_compile.artifact.folder").ArtifactFolder, "json", fail)
    with pytest.raises(OutputError, match="disk full"):
        mixed.save(tmp_path / "m.qeil")
    assert leftovers(tmp_path) == []


def test_parent_is_a_file(mixed: Compiled, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        mixed.save(tmp_path / "file" / "m.qeil")


def test_modes_follow_the_umask(mixed: Compiled, tmp_path: Path) -> None:
    """The temporary folder is private; the artifact must not stay so."""
    before = os.umask(0o022)
    try:
        mixed.save(tmp_path / "m.qeil")
        mixed.save(tmp_path / "m.zip")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.qeil").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "m.zip").stat().st_mode) == 0o644


def _python(
    code: str, *args: str, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, env={**os.environ, **(env or {})}, check=check,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


#: Loads an artifact and saves it again; `store._sync` announces itself and waits, so that a signal hits mid-way.
WRITER = """
import sys, time
from pathlib import Path
from qeil_compile import load
from qeil_compile.artifact import store
real = store._sync
def slow(path):
    print("writing", flush=True)
    sys.stdin.readline()
    real(path)
store._sync = slow
load(sys.argv[1]).save(sys.argv[2], overwrite=len(sys.argv) > 3)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that is written again without torch or OpenVINO: quick to start."""
    path = tmp_path_factory.mktemp("light") / "m.qeil"
    aot_compile(zoo.mlp(), zoo.EXAMPLES["mlp"](), settings=settings("onnxruntime:CPU")).save(path)
    return path


def _writer(light: Path, target: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(light), str(target), *more], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_while_writing(light: Path, tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "m.qeil"
    shutil.copytree(light, target)
    before = files_of(target)
    writer = _writer(light, target, "overwrite")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(number)
    writer.communicate(timeout=60)
    assert writer.returncode != 0
    assert files_of(target) == before
    if number != signal.SIGKILL:
        assert leftovers(tmp_path) == ["m.qeil"]


def test_a_handler_of_the_program_is_left_alone(mixed: Compiled, tmp_path: Path) -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        mixed.save(tmp_path / "m.qeil")
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    mixed.save(tmp_path / "n.qeil")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("name", ["m.qeil", "m.zip"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_writers_of_the_same_path(
    mixed: Compiled, tmp_path: Path, name: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen a free path and written everything when they go on to rename."""
    barrier = threading.Barrier(2)
    monkeypatch.setattr(store, "_sync", lambda path: barrier.wait(30))
    found: list[Exception | None] = []

    def work() -> None:
        try:
            mixed.save(tmp_path / name, overwrite)
            found.append(None)
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    failures = [e for e in found if e is not None]
    assert [type(e) for e in failures] == ([] if overwrite else [OutputError])
    assert overwrite or "exists already" in str(failures[0])
    assert leftovers(tmp_path) == [name]
    load(tmp_path / name)


def test_two_processes_write_the_same_path(light: Path, tmp_path: Path) -> None:
    name = "m.qeil"
    writers = [_writer(light, tmp_path / name) for _ in range(2)]
    for w in writers:
        assert w.stdout is not None
        assert w.stdout.readline() == "writing\n"
    for w in writers:
        assert w.stdin is not None
        w.stdin.write("go\n")
        w.stdin.flush()
    errors = [w.communicate(timeout=60)[1] for w in writers]
    codes = sorted(w.returncode for w in writers)
    assert codes == [0, 1], errors
    assert sum("OutputError" in e and "exists already" in e for e in errors) == 1
    assert leftovers(tmp_path) == [name]
    load(tmp_path / name)


@pytest.mark.parametrize("name", ["m.qeil", "m.zip"])
def test_many_threads_overwrite_while_one_reads(light: Path, tmp_path: Path, name: str) -> None:
    compiled = load(light)
    target = tmp_path / name
    compiled.save(target)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(8):
                compiled.save(target, overwrite=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    assert leftovers(tmp_path) == [name]
    load(target)


def test_file_size_limit(light: Path, tmp_path: Path) -> None:
    """The system's own refusal, in the middle of a file."""
    code = (
        "import resource, signal, sys; from qeil_compile import load; c = load(sys.argv[1]); "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700)); c.save(sys.argv[2])"
    )
    done = _python(code, str(light), str(tmp_path / "m.qeil"), check=False)
    assert done.returncode == 1
    assert "OutputError" in done.stderr.splitlines()[-1]
    assert leftovers(tmp_path) == []


def test_damage_of_the_file_after_loading_is_not_seen_in_the_file(light: Path, tmp_path: Path) -> None:
    """Arrays of a loaded model are writable memory, but no write reaches the artifact."""
    path = Path(shutil.copytree(light, tmp_path / "m.qeil"))
    before = files_of(path)
    loaded = load(path)
    for array in loaded.golden.inputs.values():
        array[...] = 0
    time.sleep(0)
    assert files_of(path) == before
