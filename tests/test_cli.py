"""The command line: every command on small models, and every bad input as one line that leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qeil_compile import api
from qeil_compile.artifact.folder import ArtifactFolder, digest, manifest_digest
from qeil_compile.cli import main
from tests.artifacts import tiny

ROOT = Path(__file__).parent.parent
TARGET = "openvino:CPU,onnxruntime:CPU"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx and two.qeil, which has a stage on OpenVINO and one on ONNX Runtime."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(tiny(), folder / "tiny.onnx")
    arguments = ["compile", f"{folder}/tiny.onnx", "-o", f"{folder}/two.qeil", "--dim", "batch=2", "--target", TARGET]
    pins = ["--pin", "first=onnxruntime:CPU", "--pin", "add=openvino:CPU", "--pin", "second=openvino:CPU"]
    assert main([*arguments, *pins, "--no-measure", "--quiet"]) == 0
    return folder


def files(folder: Path) -> set[str]:
    """Every path below a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def fails(capfd: Capture, folder: Path, arguments: list[str], *words: str, status: int = 1) -> None:
    """One error line with these words, the exit status, no traceback, nothing on standard output or on disk."""
    before = files(folder)
    capfd.readouterr()
    assert main(arguments) == status
    seen = capfd.readouterr()
    assert seen.out == ""
    lines = seen.err.splitlines()
    assert len(lines) == 1, seen.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
    assert files(folder) == before


# The commands


def test_compile_prints_the_plan(models: Path, tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "report.json"
    arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/a.qeil", "--dim", "batch=3", "--target", TARGET]
    assert main([*arguments, "--json", str(report)]) == 0
    seen = capsys.readouterr().out
    assert "(modelled)" in seen and "(measured)" in seen and "compile steps" in seen and "objective latency" in seen
    data = json.loads(report.read_text())
    assert data["plan"]["stages"] and data["timings"] and data["emulated"] == {}
    assert files(tmp_path) >= {"a.qeil/manifest.json", "report.json"}
    assert not [f for f in files(tmp_path) if "tmp" in f]


def test_compile_json_is_pure(models: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/a.zip", "--dim", "batch=3", "--no-measure"]
    assert main([*arguments, "--target", TARGET, "--no-fuse", "--strategy", "single", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["plan"]["strategy"].startswith("single") and data["timings"] == {}
    assert main(["verify", f"{tmp_path}/a.zip"]) == 0


def test_compile_takes_sample_inputs_and_overwrites(models: Path, tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "in.npz", x=np.full((2, 64), 7, np.float32))
    arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/a.qeil", "--dim", "batch=2", "--target", TARGET]
    for _ in range(2):
        assert main([*arguments, "--no-measure", "--overwrite", "--inputs", f"{tmp_path}/in.npz"]) == 0
    assert api.load(tmp_path / "a.qeil").golden.inputs["x"][0, 0] == 7


def test_compile_takes_conditions(models: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/a.qeil", "--dim", "batch=2", "--target", TARGET]
    assert main([*arguments, "--no-measure", "--duration", "5", "--ambient", "35", "--ceiling", "0.9"]) == 0
    assert main([*arguments, "--no-measure", "--overwrite", "--ceiling", "1.5"]) == 1
    assert "ceiling: found 1.5" in capsys.readouterr().err


def test_run_agrees_with_numpy(models: Path, tmp_path: Path, capsys: Capture) -> None:
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    arguments = ["run", f"{models}/two.qeil", "--inputs", f"{tmp_path}/in.npz", "--output", f"{tmp_path}/out.npz"]
    assert main([*arguments, "--repeat", "3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["latency"]["runs"] == 3 and data["latency"]["label"] == "measured"
    assert data["outputs"]["y"]["shape"] == [2, 64]
    w1, w2 = (numpy_helper.to_array(t) for t in tiny().graph.initializer)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["y"], np.maximum(x @ w1, 0) @ w2 + x, rtol=1e-4, atol=1e-4)


def test_run_takes_json_lists_and_sample_inputs(models: Path, capsys: Capture) -> None:
    assert main(["run", f"{models}/two.qeil", "--input", f"x={[[1.5] * 64] * 2}"]) == 0
    assert "sample inputs" not in capsys.readouterr().out
    assert main(["run", f"{models}/two.qeil", "--repeat", "2"]) == 0
    seen = capsys.readouterr().out
    assert "sample inputs" in seen and "median" in seen and "(measured)" in seen


def test_explain_gives_a_reason_for_each_placement(models: Path, capsys: Capture) -> None:
    assert main(["explain", f"{models}/two.qeil", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["stages"]) == 2 and data["pins"]["first"] == "onnxruntime:CPU"
    options = [o for g in data["groups"] for o in g["options"]]
    assert all(o["why"] and o["label"] == "modelled" for o in options)
    assert all(sum(o["chosen"] for o in g["options"]) == 1 for g in data["groups"])
    named = [n for g in data["groups"] for n in g["ops"]]
    assert sorted(named) == ["add", "first", "relu", "second"]
    boundary = data["boundaries"][1]
    assert boundary["seconds"] > 0 and boundary["joules"] > 0
    assert boundary["nbytes"] == sum(t["nbytes"] for t in boundary["tensors"])
    assert boundary["label"] == data["alternatives"][0]["label"] == data["devices"][0]["label"] == "modelled"
    assert all(max(o["dasi"], o["beta"]) == 1.0 and o["phi"] == 1.0 for o in options if o["seconds"] is not None)
    (cpu,) = data["devices"]
    assert 0 < cpu["cpq"] < 1 and cpu["arena_bytes"] >= cpu["peak_bytes"] > 0 and cpu["weight_bytes"] > 0
    assert data["sensitivity"] and "over the ranges of" in data["ranges"][0]


def test_explain_tables(models: Path, capsys: Capture) -> None:
    assert main(["explain", f"{models}/two.qeil", "--operators"]) == 0
    seen = capsys.readouterr().out
    for word in ("boundaries (modelled)", "alternatives considered", "pinned by first", "pin: first",
                 "devices (modelled)", "DASI [1]", "CPQ [1]", "over the ranges of"):  # fmt: skip
        assert word in seen
    assert main(["explain", f"{models}/two.qeil", "--stage", "1"]) == 0
    assert "alternatives" not in capsys.readouterr().out
    text = api.load(models / "two.qeil").explain().as_text()
    assert "boundaries (modelled)" in text and "pinned by first" in text


def test_explain_says_why_not_elsewhere(models: Path, tmp_path: Path) -> None:
    settings = api.Settings(target=TARGET, measure=False)
    compiled = api.aot_compile(models / "tiny.onnx", workload=api.Workload({"batch": 2}), settings=settings)
    whys = [o.why for g in compiled.explain().groups for o in g.options if not o.chosen]
    assert whys and all("more" in w or "same" in w or "cheaper" in w or "refuses" in w for w in whys)


def test_verify(models: Path, capsys: Capture) -> None:
    assert main(["verify", f"{models}/two.qeil", "--units"]) == 0
    seen = capsys.readouterr().out
    assert "SHA-256" in seen and "verified: 1 outputs" in seen and "each unit alone" in seen


def test_devices(capsys: Capture) -> None:
    assert main(["devices"]) == 0
    assert "this machine" in capsys.readouterr().out
    assert main(["devices", "--json"]) == 0
    assert {"CPU", "NVIDIA"} <= {r["device"].split(" ")[0] for r in json.loads(capsys.readouterr().out)}
    assert main(["devices", "list", "--json"]) == 0
    names = [t["name"] for t in json.loads(capsys.readouterr().out)]
    assert names == api.known_targets()
    assert main(["devices", "show", names[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"]
    assert main(["devices", "show", names[0]]) == 0
    plain = capsys.readouterr().out
    assert main(["devices", "show", names[0], "--sources"]) == 0
    assert len(capsys.readouterr().out) > len(plain)


def test_absent_devices_are_emulated(models: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/e.qeil", "--dim", "batch=2", "--json", "-"]
    pins = ["--pin", "first=openvino:NPU", "--pin", "add=onnxruntime:CPU", "--pin", "second=openvino:CPU"]
    assert main([*arguments, *pins, "--target", "lunar-lake-258v"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["plan"]["stages"]) == 3 and data["timings"] == {}
    assert main(["verify", f"{tmp_path}/e.qeil", "--units"]) == 0
    capsys.readouterr()
    assert main(["run", f"{tmp_path}/e.qeil", "--repeat", "2", "--json"]) == 0
    label = "emulated" if "openvino:NPU" in data["emulated"] else "measured"
    assert json.loads(capsys.readouterr().out)["latency"]["label"] == label
    assert main(["explain", f"{tmp_path}/e.qeil"]) == 0
    assert ("emulated:" in capsys.readouterr().out) == (label == "emulated")


def test_compile_demo(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["compile", "demo", "-o", f"{tmp_path}/d.qeil", "--dim", "tokens.1=8", "--target", "torch:cpu"]
    assert main([*arguments, "--no-measure"]) == 0
    assert main(["run", f"{tmp_path}/d.qeil", "--input", f"tokens={[[1] * 8]}", "--json"]) == 0
    assert main(["verify", f"{tmp_path}/d.qeil"]) == 0
    assert "1 outputs agree" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_writes_the_reference_story(capsys: Capture) -> None:
    assert main(["demo", "--steps", "12"]) == 0
    seen = capsys.readouterr().out
    assert "Once upon a time, there was a" in seen
    assert "equal to those of the unpartitioned model" in seen and "tokens/s" in seen and "next: qeil" in seen


def test_help_version_and_quiet(models: Path, capsys: Capture) -> None:
    for command in ([], ["compile"], ["run"], ["explain"], ["verify"], ["devices"], ["demo"]):
        assert main([*command, "--help"]) == 0
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qeil-compile")
    assert main(["verify", f"{models}/two.qeil", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", ["run", "verify", "explain"])
def test_an_artifact_without_torch_stages_needs_no_torch(models: Path, command: str) -> None:
    code = (
        f"import sys; from qeil_compile.cli import main; status = main([{command!r}, {str(models / 'two.qeil')!r}]); "
        "sys.exit(99 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Bad input


BAD_MODELS: list[tuple[str, Callable[[Path], object], str]] = [
    ("text.onnx", lambda p: p.write_text("this is no model\n" * 9), "ONNX"),
    ("cut.onnx", lambda p: p.write_bytes(tiny().SerializeToString()[:-40]), "ONNX"),
    ("empty.onnx", lambda p: p.write_bytes(b""), "ONNX"),
    ("missing.onnx", lambda p: None, "no such file"),
    ("model.txt", lambda p: p.write_text("x"), "suffix .txt"),
    ("folder.onnx", lambda p: p.mkdir(), "folder"),
    ("text.pt2", lambda p: p.write_text("this is no model"), "--trust"),
]


@pytest.mark.parametrize(("name", "make", "word"), BAD_MODELS, ids=[m[0] for m in BAD_MODELS])
def test_bad_models(
    tmp_path: Path, capfd: Capture, name: str, make: Callable[[Path], object], word: str
) -> None:
    make(tmp_path / name)
    fails(capfd, tmp_path, ["compile", f"{tmp_path}/{name}", "-o", f"{tmp_path}/o.qeil"], name, word)


BAD_OPTIONS: list[tuple[list[str], tuple[str, ...]]] = [
    ([], ("batch", "--dim batch=N")),
    (["--dim", "bach=2"], ("bach", "no such dimension")),
    (["--dim", "batch=0"], ("batch", "0")),
    (["--dim", "batch=two"], ("two", "whole number")),
    (["--dim", "batch"], ("NAME=N",)),
    (["--dim", "batch=2", "--target", "lunar-lake"], ("did you mean lunar-lake-258v",)),
    (["--dim", "batch=2", "--target", "onnxruntime:Foo"], ("onnxruntime:Foo",)),
    (["--dim", "batch=2", "--pin", "first=openvino:CPU", "--pin", "f*=onnxruntime:CPU"], ("contradict", "first")),
    (["--dim", "batch=2", "--pin", "first=openvino:CPU", "--pin", "first=onnxruntime:CPU"], ("contradict", "first")),
    (["--dim", "batch=2", "--pin", "nothing=openvino:CPU"], ("nothing", "matches no operator")),
    (["--dim", "batch=2", "--pin", "first=openvino:XPU"], ("openvino:XPU",)),
    (["--dim", "batch=2", "--pin", "first"], ("PATTERN=ENGINE:DEVICE",)),
    (["--dim", "batch=2", "--objective", "speed"], ("speed", "latency")),
    (["--dim", "batch=2", "--strategy", "magic"], ("magic", "greedy")),
    (["--dim", "batch=2", "--input", "z=1"], ("z", "no such input")),
    (["--dim", "batch=2", "--input", "x=[[1]]"], ("x", "shape")),
    (["--dim", "batch=2", "--input", "x=one"], ("x", "JSON")),
    (["--dim", "batch=2", "--inputs", "absent.npz"], ("absent.npz", "no such file")),
    (["--dim", "batch=2", "--inputs", "absent.csv"], ("absent.csv", ".npz")),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=[" ".join(o[0]) or "none" for o in BAD_OPTIONS])
def test_bad_options(models: Path, tmp_path: Path, capfd: Capture, options: list[str], words: tuple[str, ...]) -> None:
    target = [] if "--target" in options else ["--target", TARGET]
    fails(capfd, tmp_path, ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/o.qeil", *target, *options], *words)


def test_absent_device(models: Path, tmp_path: Path, capfd: Capture) -> None:
    if any(m.startswith("openvino:NPU") for r in api.device_report() for m in r.missing):
        arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/o.qeil", "--target", "openvino:NPU"]
        fails(capfd, tmp_path, [*arguments, "--dim", "batch=2"], "openvino:NPU", "not usable")


@pytest.mark.parametrize(("old", "new", "words"), [
    ("[[device]]", "[device", ("not TOML",)),
    ("[[device]]", "[[device]]\nspeed = 3", ("speed", "unknown key")),
    ("", "", ("does not fit", "memory")),
])  # fmt: skip
def test_bad_target_files(
    models: Path, tmp_path: Path, capfd: Capture, old: str, new: str, words: tuple[str, ...]
) -> None:
    source = ROOT / "qeil_compile/devices/profiles/lunar-lake-258v.toml"
    text = source.read_text()
    if not old:
        # A pool of 128 bytes holds neither of the two weights.
        text = text.replace("[[device]]", '[[device]]\nmemory_bytes = { value = 128, source = "test" }')
    (tmp_path / "t.toml").write_text(text.replace(old, new) if old else text)
    arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/o.qeil", "--target", f"{tmp_path}/t.toml"]
    fails(capfd, tmp_path, [*arguments, "--dim", "batch=2"], *words)


def test_output_exists_is_refused_before_any_work(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "aot_compile", lambda *a, **k: pytest.fail("worked before it looked"))
    (tmp_path / "o.qeil").mkdir()
    fails(capfd, tmp_path, ["compile", "x.onnx", "-o", f"{tmp_path}/o.qeil"], "exists already", "--overwrite")
    (tmp_path / "file").write_text("x")
    fails(capfd, tmp_path, ["compile", "x.onnx", "-o", f"{tmp_path}/file/o.qeil"], "cannot be written", "no folder")
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        fails(capfd, tmp_path, ["compile", "x.onnx", "-o", f"{tmp_path}/closed/o.qeil"], "not writable")


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change(artifact: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest and make its digest right again."""
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest | {"digest": manifest_digest(manifest)}))


def leave(manifest: dict[str, Any]) -> None:
    """Let a file name point out of the artifact."""
    manifest["files"]["../../secret"] = next(iter(manifest["files"].values()))


BAD_ARTIFACTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("weight", lambda p: flip(next((p / "weights").iterdir())), "SHA-256"),
    ("stage", lambda p: flip(next((p / "stages").iterdir())), "SHA-256"),
    ("plan", lambda p: flip(p / "plan.json"), "SHA-256"),
    ("manifest", lambda p: flip(p / "manifest.json"), "manifest"),
    ("no manifest", lambda p: (p / "manifest.json").unlink(), "manifest.json"),
    ("newer", lambda p: change(p, lambda m: m.update(schema=99)), "upgrade"),
    ("leaving", lambda p: change(p, leave), "leaves the artifact"),
    ("missing", lambda p: (p / "plan.json").unlink(), "plan.json"),
    ("link", lambda p: ((p / "plan.json").unlink(), (p / "plan.json").symlink_to("/etc/hostname")), "link"),
    ("absent", lambda p: shutil.rmtree(p), "no such artifact"),
]


@pytest.mark.parametrize("command", ["run", "verify", "explain"])
@pytest.mark.parametrize(("name", "damage", "word"), BAD_ARTIFACTS, ids=[a[0] for a in BAD_ARTIFACTS])
def test_bad_artifacts(
    models: Path, tmp_path: Path, capfd: Capture, name: str, damage: Callable[[Path], object], word: str, command: str
) -> None:
    artifact = tmp_path / "a.qeil"
    shutil.copytree(models / "two.qeil", artifact)
    damage(artifact)
    fails(capfd, tmp_path, [command, str(artifact)], "a.qeil", word)


def test_verify_names_the_first_stage_that_differs(models: Path, tmp_path: Path, capsys: Capture) -> None:
    artifact = tmp_path / "a.qeil"
    shutil.copytree(models / "two.qeil", artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    wrong = next(w["file"] for w in manifest["units"][1]["weights"].values())
    raw = (np.frombuffer((artifact / wrong).read_bytes(), np.float32) * 2).tobytes()
    (artifact / wrong).write_bytes(raw)
    change(artifact, lambda m: m["files"][wrong].update(sha256=digest(raw)))
    assert main(["verify", str(artifact), "--units"]) == 1
    seen = capsys.readouterr()
    assert "first stage that differs is 1 on openvino:CPU" in seen.err and seen.err.count("\n") == 1
    assert "DIFFERS" in seen.out


@pytest.mark.parametrize(("options", "words"), [
    (["--input", "z=1"], ("unknown input z",)),
    (["--input", "x=[1,2]"], ("shape", "x")),
    (["--input", 'x="a"'], ("x",)),
    (["--inputs", "half.npz"], ("dtype", "float16")),
    (["--inputs", "object.npz"], ("cannot be read",)),
    (["--inputs", "text.npz"], ("cannot be read",)),
    (["--output", "there.npz"], ("exists already",)),
    (["--output", "out.txt"], (".npz",)),
    (["--output", "nowhere/out.npz"], ("nowhere",)),
])  # fmt: skip
def test_bad_run_inputs(
    models: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, options: list[str],
    words: tuple[str, ...]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("half.npz", x=np.zeros((2, 64), np.float16))
    np.savez("object.npz", x=np.array([None]))
    np.savez("there.npz", x=1)
    Path("text.npz").write_text("no zip")
    fails(capfd, tmp_path, ["run", f"{models}/two.qeil", *options], *words)


def test_usage_errors(models: Path, tmp_path: Path, capfd: Capture) -> None:
    for arguments in (["frobnicate"], ["compile"], ["run", "a", "--repeat", "0"], ["explain", "--nonsense"]):
        fails(capfd, tmp_path, arguments, "qeil --help", status=2)
    fails(capfd, tmp_path, ["explain", f"{models}/two.qeil", "--stage", "7"], "--stage 7", "0 to 1")
    fails(capfd, tmp_path, ["devices", "show", "lunar-lake"], "did you mean")
    fails(capfd, tmp_path, ["compile", "demo", "-o", f"{tmp_path}/o", "--dim", "x.0=1"], "x.0", "tokens.1")


# What is not the user's fault


def test_bugs_and_interrupts(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["compile", "x.onnx", "-o", f"{tmp_path}/o.qeil"]

    def stop(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(api, "aot_compile", fail)

    stop(ZeroDivisionError("no\nway"))
    fails(capfd, tmp_path, arguments, "ZeroDivisionError: no way", "bug", "--debug", status=70)
    assert main([*arguments, "--debug"]) == 70
    assert "Traceback" in capfd.readouterr().err
    stop(KeyboardInterrupt())
    fails(capfd, tmp_path, arguments, "interrupted", status=130)


def test_termination_while_writing_leaves_nothing(
    models: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def killed(self: Any, name: str, data: Any) -> None:
        (self.folder / "half").write_text("half of it")
        seen.append(files(tmp_path))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ArtifactFolder, "json", killed)
    arguments = ["compile", f"{models}/tiny.onnx", "-o", f"{tmp_path}/sub/o.qeil", "--dim", "batch=2", "--no-measure"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--target", TARGET])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert any(f.endswith("half") for f in seen[0])
    assert files(tmp_path) == set()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_reader_that_leaves_is_no_error(models: Path) -> None:
    command = f"{sys.executable} -m qeil_compile.cli explain {models}/two.qeil --json | head -c 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")
