"""The pages about language models, read as `test_docs.py` reads the others: every command and snippet runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from qeil_compile.api import Settings
from qeil_compile.language import Generation, compile_decoder
from tests.doc_commands import place
from tests.doc_pages import LANGUAGE, REASONER, prepare


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reasoner as an artifact, with a plan for the loss of its engine."""
    pytest.importorskip("transformers")
    settings = Settings(target="openvino:CPU,onnxruntime:CPU", measure=False, threads=1)
    path = tmp_path_factory.mktemp("reasoner") / "reasoner.qeil"
    compile_decoder(REASONER, Generation(64, 64, 8), settings).save(path)
    return path


@pytest.mark.parametrize("page", LANGUAGE)
def test_commands_and_snippets_run(
    page: str, reasoner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(page, place(tmp_path, monkeypatch), reasoner).run()
