"""What strangers may hand over: every reader refuses what no honest writer makes, before it allocates anything."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qeil_compile import load
from qeil_compile.artifact import store
from qeil_compile.cli import main
from qeil_compile.cli.arguments import read_npz
from qeil_compile.cli.console import printable
from qeil_compile.devices.loader import check_profile, load_target
from qeil_compile.errors import ArtifactError, InputError, QeilError, TargetError
from qeil_compile.forms import fx_json
from qeil_compile.plan import Plan
from qeil_compile.runtime import Compiled
from qeil_compile.sampling import log as sample_log
from qeil_compile.sampling import read_log
from qeil_compile.untrusted import elements, parse_json, read_file
from tests import artifacts
from tests.artifacts import TOKENS, replace_file, rewrite, spread, tied
from tests.strangers import within

ROOT = Path(__file__).resolve().parent.parent
FUZZ = settings(max_examples=150, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip


# ---- JSON and files


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', "[NaN]", "[Infinity]", "[-Infinity]", "[1e999]", "[-1e999]", "[99999999999999999999]",
     "9" * 5000,
     "[" * 101 + "]" * 101, "[" * 100_000, '{"a":' * 101 + "1" + "}" * 101, '["\\ud800"]', "", "{", "[1,]", "'a'"],
)  # fmt: skip
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_that_is_read() -> None:
    assert parse_json('{"a\\n\\"[[{": [1, -2.5e3, "]", "\\ud83d\\ude42", 18446744073709551615]}') == {
        'a\n"[[{': [1, -2500.0, "]", "🙂", (1 << 64) - 1]
    }
    assert parse_json(b"[" * 100 + b"]" * 100)
    assert parse_json("[Infinity, -1e999]", "infinite") == [math.inf, -math.inf]
    assert math.isnan(parse_json("[NaN, 9999999999999999999999]", "any")[0])
    with pytest.raises(ValueError, match="NaN"):
        parse_json("[NaN]", "infinite")
    with pytest.raises(ValueError, match="expected at most 3"):
        parse_json("[1, 2]", limit=3)
    with pytest.raises(ValueError):
        parse_json(b"\xff")


CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]))


@FUZZ
@given(st.recursive(st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1)
                    | st.floats(allow_nan=False, allow_infinity=False) | CHARACTERS,
                    lambda inner: st.lists(inner) | st.dictionaries(CHARACTERS, inner)))  # fmt: skip
def test_plain_json_means_what_it_means_elsewhere(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == json.loads(text)


@FUZZ
@given(st.text(alphabet='[]{}",:\\0123456789eE+-.tfnul \n', max_size=40))
def test_any_text_is_json_or_a_value_error(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    try:
        assert parse_json(text, "any") == expected
    except ValueError:
        return


@pytest.mark.parametrize("dims", [[-1], [1 << 60], [1 << 40, 1 << 40], [1] * 65, [2] * 60, [0, 1 << 60], [True],
                                  ["2"], [2.0]])
def test_shapes_that_no_tensor_has(dims: list[Any]) -> None:
    with pytest.raises(ValueError):
        elements(dims)


def test_shapes() -> None:
    assert elements([]) == 1 and elements([3, 4]) == 12 and elements([0, 5]) == 0


def test_a_file_is_a_regular_one_of_bounded_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(1 << 40)
    for name, message in (("pipe", "no regular file"), ("giant", "expected at most 100"), ("none", "No such file")):
        with pytest.raises(OSError, match=message):
            within(20, lambda name=name: read_file(tmp_path / name, 100))
    with pytest.raises(OSError, match="no regular file"):
        within(20, lambda: read_file(Path("/dev/zero"), 100))
    (tmp_path / "small").write_bytes(b"x" * 100)
    # Room is made for what the file has, not for what it may have.
    assert read_file(tmp_path / "small", 1 << 62) == b"x" * 100


def test_a_file_that_memory_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise MemoryError

    (tmp_path / "x").write_bytes(b"x" * 100)
    monkeypatch.setattr("os.fdopen", lambda handle, mode: Full())
    with pytest.raises(OSError, match="100 bytes, more than there is memory"):
        read_file(tmp_path / "x", 1000)


# ---- artifacts, with hashes that fit


@pytest.fixture(scope="module")
def mixed() -> Compiled:
    return spread(tied(), (TOKENS,), *artifacts.ENGINES)


@pytest.fixture
def artifact(mixed: Compiled, tmp_path: Path) -> Path:
    mixed.save(tmp_path / "m.qeil")
    return tmp_path / "m.qeil"


def refused(path: Path, match: str) -> None:
    """Refused by reading alone: no engine has seen anything."""
    with pytest.raises(ArtifactError, match=match) as caught:
        within(20, lambda: load(path))
    assert "\n" not in str(caught.value)


def _unit(artifact: Path, form: str, weighted: bool = False) -> dict[str, Any]:
    units = json.loads((artifact / "manifest.json").read_text())["units"]
    return next(u for u in units if u["form"] == form and (u["weights"] or not weighted))


def _stage(artifact: Path, change: Callable[[onnx.ModelProto], Any], weighted: bool = False) -> None:
    name = _unit(artifact, "onnx", weighted)["file"]
    model = onnx.ModelProto.FromString((artifact / name).read_bytes())
    change(model)
    replace_file(artifact, name, model.SerializeToString())


def _outside(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=location)
        model.graph.initializer.append(tensor)

    return change


def _outside_attribute(model: onnx.ModelProto) -> None:
    inner = onnx.ModelProto()
    _outside("/etc/hostname")(inner)
    model.graph.node.append(helper.make_node("Constant", [], ["stolen"], value=inner.graph.initializer[0]))


def _renamed(model: onnx.ModelProto, old: str, new: str) -> None:
    """Consistent in itself: only the unit knows the tensor by its old name."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if n == old else n for n in names]


STAGES: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "weight in a file": (_outside("/etc/hostname"), "no files"),
    "constant in a file": (_outside_attribute, "no files"),
    "weight of another file": (lambda m: m.graph.initializer[0].external_data.add(key="offset", value="4"), "no files"),
    "weight of another shape": (lambda m: m.graph.initializer[0].dims.append(2), "the stage says"),
    "weight of another type": (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.INT32),
                               "the stage says"),
    "output more": (lambda m: m.graph.output.add(name=m.graph.output[0].name), "outputs"),
    "input more": (lambda m: m.graph.input.add(name="more"), "inputs"),
    "input of another name": (lambda m: _renamed(m, m.graph.input[0].name, "lengths"), "different inputs"),
    "output of another name": (lambda m: _renamed(m, m.graph.output[0].name, "lengths"), "different outputs"),
    "operator set of no version": (lambda m: setattr(m.opset_import[0], "version", 1 << 40), "version 10995"),
    "no operator set": (lambda m: m.ClearField("opset_import"), "imports no operator set"),
    "operator sets without end": (lambda m: m.opset_import.extend([m.opset_import[0]] * 100), "101 operator sets"),
    "operator without its inputs": (lambda m: setattr(m.graph.node[0], "op_type", "Pad"), "has 1 inputs, its"),
    "operator without an input": (lambda m: m.graph.node[-1].input.__setitem__(0, ""), "has no input"),
    "attribute of another operator": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("axis", 1)),
                                      "attribute 'axis'"),
    "attribute of another type": (lambda m: m.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("perm", 1)),
                                  "attribute 'perm'"),
    "node reads nothing": (lambda m: m.graph.node[0].input.append("nowhere"), "nothing writes"),
    "output of nothing": (lambda m: setattr(m.graph.output[0], "name", "nowhere"), "written by no operator"),
    "written twice": (lambda m: m.graph.node.append(m.graph.node[0]), "written twice"),
    "number that is called a text": (lambda m: m.graph.value_info.append(
        helper.make_tensor_value_info(m.graph.node[0].output[0], TensorProto.STRING, [1, 3, 50])),
        "another than computed"),
    "no model": (lambda m: m.Clear(), "inputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", STAGES)
def test_stages_that_no_compiler_writes(artifact: Path, case: str) -> None:
    change, message = STAGES[case]
    _stage(artifact, change, weighted=True)
    refused(artifact, message)


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_graph_that_lists_a_tensor_twice(artifact: Path, kind: str) -> None:
    graph = json.loads((artifact / "graph.json").read_text())
    graph[kind] *= 2
    replace_file(artifact, "graph.json", json.dumps(graph).encode())
    refused(artifact, f"{kind[:-1]}s by 1 names")


def test_stage_that_is_no_message(artifact: Path) -> None:
    replace_file(artifact, _unit(artifact, "onnx")["file"], b"\xff" * 100)
    refused(artifact, "no ONNX model")


def _fx(artifact: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    name = _unit(artifact, "fx")["file"]
    stage = json.loads((artifact / name).read_text())
    change(stage)
    replace_file(artifact, name, json.dumps(stage).encode())


def test_names_of_arguments_become_no_source(artifact: Path, tmp_path: Path) -> None:
    """torch writes `name = value` into the module that it generates."""
    ran = tmp_path / "ran"
    evil = f"input=__import__('pathlib').Path({str(ran)!r}).touch() or i0, other"

    def change(stage: dict[str, Any]) -> None:
        stage["nodes"][0]["kwargs"] = {evil: None}

    _fx(artifact, change)
    with pytest.raises(ArtifactError, match="is none of"):
        load(artifact).run(load(artifact).golden.inputs)
    assert not ran.exists()


def test_no_operator_reads_or_writes_files(tmp_path: Path) -> None:
    target = tmp_path / "written"
    node = {"name": "n", "target": "aten.from_file.default", "args": [str(target), True, 4], "kwargs": {}}
    stage = {"inputs": [], "nodes": [node], "outputs": ["n"]}
    with pytest.raises(ArtifactError, match="refused"):
        fx_json.decode(json.dumps(stage).encode(), torch.device("cpu"))()
    assert not target.exists()


@pytest.mark.parametrize(
    "target", ["aten.add_.Tensor", "aten.copy_.default", "aten.set.source_Tensor", "aten._reshape_alias.default",
               "aten.relu.out", "aten._sparse_coo_tensor_unsafe.default"]
)  # fmt: skip
def test_operators_that_write_to_memory_of_others(target: str) -> None:
    node = {"name": "n", "target": target, "args": [{"node": "x"}], "kwargs": {}}
    stage = {"inputs": ["x"], "nodes": [node], "outputs": ["n"]}
    with pytest.raises(ArtifactError, match="refused"):
        fx_json.decode(json.dumps(stage).encode(), torch.device("cpu"))


def test_a_stage_that_wants_all_memory_is_an_error(artifact: Path) -> None:
    def change(stage: dict[str, Any]) -> None:
        stage["nodes"].append({"name": "big", "target": "operator.mul", "args": [[0], 1 << 60], "kwargs": {}})
        stage["nodes"].append({"name": "use", "target": "operator.getitem", "args": [{"node": "big"}, 0], "kwargs": {}})

    _fx(artifact, change)
    with pytest.raises(QeilError):
        load(artifact).verify()


def test_fx_stage_with_other_ends(artifact: Path) -> None:
    _fx(artifact, lambda stage: stage["outputs"].append(stage["outputs"][0]))
    refused(artifact, "other inputs or outputs")


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "golden output left out": (lambda m: m["golden"]["outputs"].clear() or m["golden"]["outputs"].update(
        x=next(iter(m["golden"]["inputs"].values()))), "golden tensors"),
    "golden input left out": (lambda m: m["golden"]["inputs"].clear(), "golden tensors"),
    "shape of a million dimensions": (lambda m: next(iter(m["golden"]["inputs"].values())).update(
        shape=[(1 << 47) - 1] * 1_000_000), "dimensions"),
    "boolean as a dimension": (lambda m: next(iter(m["golden"]["inputs"].values())).update(shape=[True, 3]),
                               "dimension"),
    "affinity to a strange device": (lambda m: m["units"][0].update(affinity={"x": "GPU.7"}), "devices"),
    "digits": (lambda m: m.update(seconds={"trace": 10**30}), "64 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_no_compiler_writes(artifact: Path, case: str, lean: None) -> None:
    change, message = MANIFESTS[case]
    rewrite(artifact, change)
    refused(artifact, message)


@pytest.mark.parametrize("text", ['"model": "a", "model": "b"', '"seconds": {"trace": NaN}',
                                  '"seconds": {"trace": 1e999}'])
def test_manifests_that_mean_two_things(artifact: Path, text: str) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace("{", "{" + text + ", ", 1))
    refused(artifact, "malformed")


def _costs(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(artifact: Path) -> None:
        costs = json.loads((artifact / "costs.json").read_text())
        change(costs)
        replace_file(artifact, "costs.json", json.dumps(costs).encode())

    return apply


def _plan(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(artifact: Path) -> None:
        plan = json.loads((artifact / "plan.json").read_text())
        change(plan)
        replace_file(artifact, "plan.json", json.dumps(plan).encode())

    return apply


EXPLAINED: dict[str, Callable[[Path], None]] = {
    "costs without a table": _costs(lambda c: c.pop("seconds")),
    "row cut": _costs(lambda c: c["joules"][0].pop()),
    "row missing": _costs(lambda c: c["phi"].pop()),
    "text in a table": _costs(lambda c: c["dasi"][0].__setitem__(0, "x")),
    "no work": _costs(lambda c: c.pop("flops")),
    "no traffic": _costs(lambda c: c.pop("nbytes")),
    "text as an attained share": _costs(lambda c: c["dasi_eff"][0].__setitem__(0, "x")),
    "attained share cut": _costs(lambda c: c["beta_eff"][0].pop()),
    "types of other operators": _costs(lambda c: c["types"][0].clear()),
    "ceilings cut": _costs(lambda c: c["ceiling"].pop()),
    "ceiling that is none": _costs(lambda c: c["ceiling"].__setitem__(0, "hot")),
    "NaN in a table": _costs(lambda c: c["beta"][0].__setitem__(0, math.nan)),
    "powers": _costs(lambda c: c["working_power"].append(1.0)),
    "operators that are none": _costs(lambda c: c["groups"][0].append("nothing")),
    "group of nothing": _costs(lambda c: c["groups"][0].clear()),
    "placement missing": _costs(lambda c: c["placements"].__setitem__(0, "other:X")),
    "unsupported": _costs(lambda c: c["unsupported"].append({"group": 0})),
    "stage of unknown operators": _plan(lambda p: p["stages"][0]["ops"].append("nothing")),
    "stage reads unknown tensors": _plan(lambda p: p["stages"][0]["inputs"].append("nothing")),
    "NaN in a plan": _plan(lambda p: p["objectives"].update(latency=math.nan)),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_what_explanations_rely_on_is_checked(artifact: Path, case: str) -> None:
    EXPLAINED[case](artifact)
    refused(artifact, str(artifact) if "plan" not in case else "malformed")


def test_names_longer_than_a_file_system_takes(artifact: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["weights/" + "9" * 5000] = {"size": 1, "sha256": ""}

    rewrite(artifact, change)
    refused(artifact, "cannot be read")


@pytest.mark.parametrize("name", ["manifest.json", "graph.json"])
def test_sparse_giants_are_not_read(artifact: Path, name: str, lean: None) -> None:
    path = artifact / name
    with path.open("r+b") as file:
        file.truncate(1 << 42)
    if name != "manifest.json":
        rewrite(artifact, lambda m: m["files"][name].update(size=1 << 30))
    refused(artifact, "bytes|mapped")


def test_a_file_that_cannot_be_mapped_is_an_error(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(store.mmap, "mmap", full)
    refused(artifact, "cannot be mapped")


# ---- zip files


def _members(artifact: Path) -> Iterator[tuple[str, bytes]]:
    yield from artifacts.files_of(artifact).items()


def test_zip_members_that_are_links(artifact: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in _members(artifact):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16 if name == "plan.json" else 0o644 << 16
            archive.writestr(entry, data)
    refused(tmp_path / "x.zip", "plan.json is a link")


def test_zip_members_that_are_encrypted(artifact: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in _members(artifact):
            archive.writestr(name, data)
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    refused(tmp_path / "x.zip", "encrypted")


def test_zip_members_over_one_another(tmp_path: Path) -> None:
    """A small file that would be hashed a thousand times."""
    path, data = tmp_path / "x.zip", b"\0" * (1 << 16)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", data)
        for k in range(100):
            archive.filelist.append(zipfile.ZipInfo(f"b{k}"))
            archive.filelist[-1].file_size = archive.filelist[-1].compress_size = len(data)
            archive.filelist[-1].CRC = archive.filelist[0].CRC
            archive.filelist[-1].header_offset = 0
        archive._didModify = True
    refused(path, "members of")


def test_zip_with_an_endless_list(tmp_path: Path, lean: None) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}")
    raw = path.read_bytes()
    entry = raw[raw.index(b"PK\x01\x02") : raw.index(b"PK\x05\x06")]
    copies = (5 << 20) // len(entry)
    end = bytearray(raw[raw.index(b"PK\x05\x06") :])
    end[12:16] = (copies * len(entry)).to_bytes(4, "little")
    path.write_bytes(raw[: raw.index(b"PK\x01\x02")] + entry * copies + end)
    refused(path, "list of members")


# ---- inputs, logs, tasks, profiles


def _npz(path: Path, header: str, data: bytes) -> Path:
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", raw)
    return path


@pytest.mark.parametrize(
    ("shape", "dtype"), [("(1099511627776,)", "'<f4'"), ("(-1,)", "'<f4'"), ("(1000000, 1000000, 1000000, 1000000)",
        "'<f4'"),
                         ("(4,)", "'|O'"), ("(5,)", "'<f4'")]
)  # fmt: skip
def test_arrays_that_declare_more_than_they_have(shape: str, dtype: str, tmp_path: Path, lean: None) -> None:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n"
    with pytest.raises(InputError, match=r"another size|dimension|elements"):
        read_npz(_npz(tmp_path / "x.npz", header, b"\0" * 16))


def test_arrays_that_unpack_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 20, np.float32))
    assert read_npz(tmp_path / "x.npz")["x"].shape == (1 << 20,)
    monkeypatch.setattr("qeil_compile.cli.arguments._NPZ_LIMIT", 1 << 20)
    with pytest.raises(InputError, match="more than"):
        read_npz(tmp_path / "x.npz")


def test_logs_that_unpack_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(b'{"ans": ["a"]}\n' * 10_000))
    assert len(read_log(path)) == 10_000
    monkeypatch.setattr(sample_log, "_LIMIT", 10_000)
    with pytest.raises(InputError, match="more than 10000 bytes"):
        read_log(path)


def test_numbers_beyond_all_floats_count_as_missing(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"ans": ["a"], "tok": [' + "9" * 400 + '], "x": [NaN]}')
    (found,) = read_log(tmp_path / "log.jsonl")
    assert found.sample(0).tokens == 0 and math.isnan(found.sample(0).features["x"])


@pytest.mark.parametrize("read", [read_log, lambda p: load_target(str(p)), read_npz])
def test_pipes_are_no_files(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for suffix in (".toml", ".npz", ".jsonl"):
        os.mkfifo(tmp_path / f"x{suffix}")
    suffix = {read_log: ".jsonl", read_npz: ".npz"}.get(read, ".toml")
    with pytest.raises((InputError, TargetError), match="no regular file"):
        within(20, lambda: read(tmp_path / f"x{suffix}"))


def test_names_of_strangers_do_not_steer_the_terminal(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printable("a\x1b]0;owned\x07b\nc\td") == "a\ufffd]0;owned\ufffdb\nc\td"
    assert main(["verify", str(tmp_path / "\x1b[2Jmodel")]) == 1
    assert "\x1b" not in capfd.readouterr().err


# ---- fuzzing

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from([10**30,
    -1, 1 << 63, ""])
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
    max_size=3),
                     max_leaves=5)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [p for k in keys for p in [(value, k), *_places(value[k])]]


def _edited(text: str, data: st.DataObject) -> Any:
    value = json.loads(text)
    owner, key = data.draw(st.sampled_from(_places(value)))
    if data.draw(st.booleans()):
        owner[key] = data.draw(TREES)
    else:
        del owner[key]
    return value


@FUZZ
@given(data=st.data())
def test_any_plan_is_read_or_refused(mixed: Compiled, data: st.DataObject) -> None:
    value = _edited(json.dumps(mixed.plan.to_json()), data)
    try:
        plan = Plan.from_json(value)
    except ArtifactError:
        return
    assert plan.as_text() and Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


PROFILE = (ROOT / "qeil_compile" / "devices" / "profiles" / "devices" / "jetson-orin-nx.toml").read_text()


@FUZZ
@given(data=st.data())
def test_any_profile_is_read_or_has_problems(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    lines = PROFILE.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    key = lines[at].partition("=")[0]
    lines[at] = data.draw(st.text(max_size=20) | st.builds(lambda v: f"{key}= {json.dumps(v)}", TREES) | st.just(""))
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    problems = check_profile(path)
    try:
        target = load_target(str(path))
    except TargetError:
        assert problems
        return
    assert target.to_json()


@FUZZ
@given(rows=st.lists(st.builds(json.dumps, TREES | st.fixed_dictionaries(
    {"ans": st.lists(TREES, max_size=4)}, optional={"ok": TREES, "gold": TREES, "tok": st.lists(TREES, max_size=4)}))
    | st.text(max_size=20), max_size=4))  # fmt: skip
def test_any_log_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, rows: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8", errors="replace")
    try:
        questions = read_log(path)
    except InputError:
        return
    for question in questions:
        for i in range(len(question)):
            question.right(question.sample(i).answer, i)


def test_a_minute_of_mutants(tmp_path: Path) -> None:
    """The hunt of `benchmarks/strangers.py`: no crash, no hang, no other exception, nothing written, nothing wrong."""
    command = [sys.executable, str(ROOT / "benchmarks" / "strangers.py"), "--count", "1200", "--seed", "20",
               "--json", str(tmp_path / "result.json")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = json.loads((tmp_path / "result.json").read_text())["tables"]["outcomes"]["rows"]
    assert rows[-1]["mutants"] == 1200 and rows[-1]["refused"] > 600 and rows[-1]["accepted, right"] > 30
