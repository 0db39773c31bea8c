"""What every test is kept apart from: calibrations and profiles that the person running the tests may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Empty folders for fixtures that outlive a test."""
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QEIL_CALIBRATIONS", str(folder / "calibrations"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        yield


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty folders for calibrations and profiles."""
    folder = tmp_path_factory.mktemp("qeil")
    monkeypatch.setenv("QEIL_CALIBRATIONS", str(folder / "calibrations"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    return folder


@pytest.fixture
def lean() -> Iterator[None]:
    """The test may not allocate much: peak memory of the process grows by less than 200 MB."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
