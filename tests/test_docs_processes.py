"""The quick start, and writing a backend: every command is a process of its own, typed into a shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doc_commands import place
from tests.doc_pages import PROCESSES, prepare


@pytest.mark.parametrize("page", PROCESSES)
def test_commands_and_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(page, place(tmp_path, monkeypatch)).run()
