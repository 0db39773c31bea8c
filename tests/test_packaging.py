"""Three root folders are one package: the wheel must hold all of it, and only once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REASONER = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "PROVENANCE.md")
FOLDERS = {"qeil_compile": "qeil_compile", "passes": "qeil_compile.passes", "backends": "qeil_compile.backends",
           "models": "qeil_compile.models"}  # fmt: skip


def _packages() -> set[str]:
    found = set()
    for folder, name in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder)
            through_link = any((ROOT / folder / p).is_symlink() for p in [inner, *inner.parents])
            if not through_link:
                found.add(".".join([name, *inner.parts]))
    return found


def test_every_package_is_in_the_explicit_list() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(_packages())


def test_links_show_one_tree() -> None:
    for name in ("passes", "backends", "models"):
        link = ROOT / "qeil_compile" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    # A copy: setuptools would leave a build folder in the tree and read a stale one from it.
    copy = out / "tree"
    skip = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "benchmarks")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=skip)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=copy, check=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package in _packages():
        assert f"{package.replace('.', '/')}/__init__.py" in names
    for data in ("qeil_compile/py.typed", "qeil_compile/devices/profiles/engines.toml",
                 "qeil_compile/devices/profiles/devices/rtx-4090.toml",
                 "qeil_compile/models/data/stories260K/stories260K.bin",
                 *(f"qeil_compile/models/data/reasoner/{n}" for n in REASONER)):  # fmt: skip
        assert data in names


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {n.split("/")[0] for n in wheel.namelist()} == {
        "qeil_compile",
        next(n.split("/")[0] for n in wheel.namelist() if ".dist-info/" in n),
    }
    assert not [n for n in wheel.namelist() if "__pycache__" in n]


def test_entry_points(wheel: zipfile.ZipFile) -> None:
    text = next(wheel.read(n).decode() for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "qeil = qeil_compile.cli:main" in text
    assert "qeil = qeil_compile.dynamo:qeil" in text
