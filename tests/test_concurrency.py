"""Several threads and processes on one artifact and one store; writers that are killed; disks that are full."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qeil_compile import aot_compile, load
from qeil_compile.cli import main
from qeil_compile.devices import calibrations
from qeil_compile.devices.calibrated import PARAMETERS, Calibration, Memory, Residuals
from qeil_compile.errors import OutputError, QeilError
from qeil_compile.runtime import Compiled
from tests import artifacts, zoo
from tests.artifacts import TOKENS, files_of, run_all, settings, spread, tied

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Path]:
    """Stages on all three engines."""
    compiled = spread(tied(), (TOKENS,), *artifacts.ENGINES)
    path = tmp_path_factory.mktemp("mixed") / "m.qeil"
    compiled.save(path)
    return compiled, path


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick to start: one engine, no torch."""
    path = tmp_path_factory.mktemp("light") / "m.qeil"
    aot_compile(zoo.mlp(), zoo.EXAMPLES["mlp"](), settings=settings("onnxruntime:CPU", failover=False)).save(path)
    return path


def at_once(*jobs: Callable[[], object]) -> None:
    """All jobs at the same time; the first failure is raised, and a job that hangs is one."""
    barrier, failures = threading.Barrier(len(jobs)), []

    def run(job: Callable[[], object]) -> None:
        try:
            barrier.wait(60)
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads), "a job hangs"
    if failures:
        raise failures[0]


def python(code: str, *args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], cwd=ROOT, text=True, env={**os.environ, **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_threads_load_run_verify_and_save_one_artifact(mixed: tuple[Compiled, Path], tmp_path: Path) -> None:
    _, path = mixed
    expected = run_all(load(path))
    shared = load(path)

    def equal(compiled: Any) -> None:
        for _ in range(5):
            for name, value in run_all(compiled).items():
                np.testing.assert_array_equal(value, expected[name])

    def own() -> None:
        equal(load(path))

    def save(k: int) -> Callable[[], None]:
        return lambda: shared.save(tmp_path / f"{k}.qeil")  # type: ignore[func-returns-value]

    # The first call of all on `shared` starts its engines.
    at_once(*[lambda: equal(shared)] * 3, own, own, lambda: shared.verify(), save(0), save(1))
    assert files_of(tmp_path / "0.qeil") == files_of(tmp_path / "1.qeil")


RUNNER = """
import hashlib, sys
from qeil_compile import load
compiled = load(sys.argv[1])
compiled.verify()
for _ in range(5):
    found = compiled.run(compiled.golden.inputs)
print(hashlib.sha256(b"".join(v.tobytes() for v in found.values())).hexdigest())
compiled.save(sys.argv[2], overwrite=True)
"""


def test_processes_load_run_verify_and_save_one_artifact(light: Path, tmp_path: Path) -> None:
    running = [python(RUNNER, str(light), str(tmp_path / "out.qeil")) for _ in range(3)]
    found = [p.communicate(timeout=120) for p in running]
    assert [p.returncode for p in running] == [0, 0, 0], found
    assert len({out for out, _ in found}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.qeil"]
    load(tmp_path / "out.qeil").verify()


def test_an_artifact_that_is_replaced_stays_whole_for_who_has_it(light: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.qeil"
    compiled = load(light)
    compiled.save(path)
    held = load(path)
    for _ in range(3):
        compiled.save(path, overwrite=True)
    assert all(d.ok for d in held.verify())


def test_two_compilers_share_what_numba_keeps(tmp_path: Path) -> None:
    """A fresh cache of machine code, written by two processes at once, and read by a third."""
    code = (
        "from qeil_compile.generation import kernel; import numpy as np; "
        "print(kernel._argmax(np.array([1.0, 3.0, 2.0], np.float32)))"
    )
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    running = [python(code, **cache) for _ in range(2)]
    found = [p.communicate(timeout=300) for p in running]
    assert [out.strip() for out, _ in found] == ["1", "1"], found
    last = python(code, **cache).communicate(timeout=300)
    assert last[0].strip() == "1", last


# ---- calibrations


def _calibration(entry: float) -> Calibration:
    families = {"gemm": tuple(1e-6 for _ in PARAMETERS)}
    points = Residuals(np.zeros((200, 5)), np.full(200, entry))
    return Calibration("onnxruntime", "CPU", 2, "1", 8, entry, Memory(1e11, 1e10, 1e7), families, {"gemm": points})


def _stored() -> Calibration | None:
    return calibrations.load([("onnxruntime", "1", "CPU")], 2).found.get("onnxruntime:CPU")


def test_threads_store_and_read_one_calibration(own_folders: Path) -> None:
    calibrations.save(_calibration(1.0))

    def write(value: float) -> Callable[[], None]:
        return lambda: [calibrations.save(_calibration(value)) for _ in range(20)]  # type: ignore[return-value]

    def read() -> None:
        for _ in range(60):
            found = _stored()
            assert found is not None and (found.residuals["gemm"].weights == found.entry).all()

    at_once(write(1.0), write(2.0), write(3.0), read, read)
    assert len(list((own_folders / "calibrations").iterdir())) == 1


WRITER = """
import sys
from tests.test_concurrency import _calibration, _stored
from qeil_compile.devices import calibrations
for k in range(30):
    calibrations.save(_calibration(float(sys.argv[1])))
    found = _stored()
    assert (found.residuals["gemm"].weights == found.entry).all()
"""


def test_processes_store_one_calibration(own_folders: Path) -> None:
    running = [python(WRITER, str(k)) for k in (1, 2)]
    found = [p.communicate(timeout=120) for p in running]
    assert [p.returncode for p in running] == [0, 0], found
    assert [p.suffix for p in (own_folders / "calibrations").iterdir()] == [".json"]
    assert _stored() is not None


def test_a_calibration_that_was_cut_is_named(own_folders: Path) -> None:
    path = calibrations.save(_calibration(1.0))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(QeilError, match=r"malformed.*run `qeil calibrate` again"):
        _stored()


@pytest.mark.parametrize(
    "change",
    [lambda d: d["memory"].update(memory=0.0), lambda d: d["memory"].update(cache=-1.0), lambda d: d.update(lanes=0),
     lambda d: d["families"]["gemm"].update(rate=0.0), lambda d: d["residuals"]["gemm"].update(points=[[0.0]]),
     lambda d: d["residuals"]["gemm"]["weights"].append(1.0), lambda d: d.update(entry="x"),
     lambda d: d.pop("families"),
     lambda d: d["families"].clear()],
)  # fmt: skip
def test_calibrations_that_price_nothing_are_named(change: Callable[[dict[str, Any]], Any], own_folders: Path) -> None:
    path = calibrations.save(_calibration(1.0))
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(QeilError, match="malformed"):
        _stored()


# ---- writers that are killed

COMPILER = """
import sys
from qeil_compile import load
from qeil_compile.artifact.folder import ArtifactFolder
compiled, at = load(sys.argv[1]), int(sys.argv[3])
real, count = ArtifactFolder.file, 0
def file(self, *args):
    global count
    count += 1
    if count == at:
        print("midway", flush=True)
        sys.stdin.readline()
    real(self, *args)
ArtifactFolder.file = file
compiled.save(sys.argv[2])
print("done", flush=True)
"""


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("name", ["m.qeil", "m.zip"])
def test_a_killed_writer_leaves_nothing_that_stands_in_the_way(light: Path, tmp_path: Path, at: int, name: str) -> None:
    path = tmp_path / name
    writer = python(COMPILER, str(light), str(path), str(at))
    assert writer.stdout is not None
    assert writer.stdout.readline() == "midway\n", writer.communicate()
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1  # its temporary folder
    load(light).save(path)
    assert load(path).verify()
    # The next writer clears away what the killed one left.
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_writer_at_work_is_left_alone(light: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.qeil"
    writer = python(COMPILER, str(light), str(path), "3")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "midway\n", writer.communicate()
    load(light).save(path)
    output, errors = writer.communicate("go on\n", timeout=60)
    # It finished its own work, and found that it came second.
    assert "done" not in output and "exists already" in errors
    assert load(path).verify() and [p.name for p in tmp_path.iterdir()] == ["m.qeil"]


# ---- full disks


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No file can be flushed to the disk."""
    asked: list[str] = []

    def fail(handle: int) -> None:
        asked.append("fsync")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    return asked


@pytest.mark.parametrize("name", ["m.qeil", "m.zip"])
def test_no_artifact_on_a_full_disk(light: Path, tmp_path: Path, name: str, full_disk: list[str]) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(disk full\); nothing was left behind"):
        load(light).save(tmp_path / name)
    assert full_disk and list(tmp_path.iterdir()) == []


def test_no_calibration_on_a_full_disk(own_folders: Path, full_disk: list[str]) -> None:
    with pytest.raises(QeilError, match="cannot be written") as caught:
        calibrations.save(_calibration(1.0))
    assert "\n" not in str(caught.value) and full_disk
    assert list((own_folders / "calibrations").iterdir()) == []


def test_a_limit_of_file_sizes_is_one_line(light: Path, tmp_path: Path) -> None:
    """The system's own refusal, in the middle of a calibration."""
    code = (
        "import resource, signal; from tests.test_concurrency import _calibration\n"
        "from qeil_compile.devices import calibrations\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))\n"
        "calibrations.save(_calibration(1.0))"
    )
    done = python(code, QEIL_CALIBRATIONS=str(tmp_path / "c"))
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 1 and "QeilError: calibration" in errors.strip().splitlines()[-1]
    assert list((tmp_path / "c").iterdir()) == []


def test_outputs_on_a_full_disk_are_one_line(
    light: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert main(["run", str(light), "--output", str(tmp_path / "out.npz"), "--repeat", "1"]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error
    assert list(tmp_path.iterdir()) == []
