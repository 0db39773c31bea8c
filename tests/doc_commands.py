"""Commands and snippets of the documentation, and how they are run: as they stand, in the order of the page.

How a page is written, so that every block of it has a reader here:

- an indented block whose lines begin with a program is commands, one a line;
- a fenced `python` block is run, in one namespace per page; a fenced `toml` block is read;
- a fenced block whose first line is `# NAME.SUFFIX` is that file: later commands and snippets find it under its name;
- a fenced `text` block right behind commands is what they print: see `Page.expect`; any other block of text, fenced or
  indented, is formulas, file names or output, and holds no command.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

from qeil_compile.cli import main
from tests.doc_instead import INSTEAD

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
Kind = Literal["commands", "python", "toml", "text", "file"]
#: What a line of commands may begin with.
PROGRAMS = ("qeil", "python", "python3", "pip", "pytest", "make", "export/bin/pip")
#: What a reader would also take for a command.
_SHELL = (*PROGRAMS, ".", "apt", "apt-get", "bash", "brew", "cat", "cd", "chmod", "conda", "cp", "curl", "docker",
          "echo", "export", "git", "huggingface-cli", "ls", "mkdir", "mv", "nvidia-smi", "pip3", "rm", "sh", "source",
          "sudo", "tar", "uv", "wget")  # fmt: skip
_FILE = re.compile(r"# (?P<name>[\w/-]+\.(?:py|toml|json|jsonl|txt))")
_COMMENT = re.compile(r"\s+# .*$")


@dataclass(frozen=True)
class Block:
    """One block of code. `line` is the number of its first line; `follows` that of the block right before it, or 0."""

    page: str
    line: int
    kind: Kind
    lines: tuple[str, ...]
    follows: int = 0

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines) + "\n"

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The name of the file that a block of kind `file` is."""
        found = _FILE.fullmatch(self.lines[0])
        assert found is not None, f"{self.where}: no file"
        return found["name"]


@dataclass(frozen=True)
class Command:
    """One line of commands, without its comment."""

    page: str
    line: int
    text: str

    @property
    def run(self) -> str:
        """What is run: the command as it stands, or what the table of exceptions has in its place."""
        instead = INSTEAD.get(self.text)
        if instead is None:
            return self.text
        return f"{self.text} --help" if instead.page not in ("", self.page) else instead.command


@cache
def blocks(page: str) -> list[Block]:
    """All blocks of a page, in their order."""
    return parse(page, (ROOT / page).read_text("utf-8"))


def parse(page: str, text: str) -> list[Block]:
    """All blocks of a text. Raises `AssertionError` for one that nothing would run although it looks like a command."""
    found: list[Block] = []
    lines = text.splitlines()
    i, ended, last = 0, -1, 0
    while i < len(lines):
        start, info = i, ""
        if lines[i].startswith("```"):
            info, i = lines[i][3:].strip(), i + 1
            while not lines[i].startswith("```"):
                i += 1
            body, number, i = lines[start + 1 : i], start + 2, i + 1
        elif lines[i].startswith("    ") and (i == 0 or not lines[i - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            body, number = [line[4:] for line in lines[start:i]], start + 1
            while not body[-1].strip():
                body.pop()
        else:
            i += 1
            continue
        between = [line for line in lines[ended:start] if line.strip()] if ended >= 0 else ["nothing before"]
        block = Block(page, number, _kind(info, body, f"{page}:{number}"), tuple(body), 0 if between else last)
        found.append(block)
        ended, last = i, block.line
    return found


def _kind(info: str, body: Sequence[str], where: str) -> Kind:
    if _FILE.fullmatch(body[0]):
        return "file"
    if info in ("python", "toml"):
        return "python" if info == "python" else "toml"
    assert info in ("", "text"), f"{where}: a block of {info}; expected python, toml or text, or an indented block"
    if not info and _program(body[0]) in PROGRAMS:
        odd = next((line for line in body if _program(line) not in PROGRAMS), None)
        assert odd is None, f"{where}: {odd!r} among commands does not begin with one of {', '.join(PROGRAMS)}"
        return "commands"
    hidden = next((line for line in body if _program(line) in _SHELL), None)
    assert hidden is None, f"{where}: {hidden!r} is a command in a block of text: nothing would run it"
    assert not _is_python("\n".join(body)), f"{where}: this is Python: fence it as python, or nothing would run it"
    return "text"


def _program(line: str) -> str:
    return line.split(" ", 1)[0]


def _is_python(text: str) -> bool:
    """Whether it parses and does something: a list of file names or a lone formula may parse by chance."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    return any(isinstance(n, (ast.Call, ast.Import, ast.ImportFrom, ast.FunctionDef)) for n in ast.walk(tree))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block."""
    for k, line in enumerate(block.lines):
        text = _COMMENT.sub("", line).strip()
        assert not text.endswith("\\"), f"{block.page}:{block.line + k}: a command goes over one line here"
        yield Command(block.page, block.line + k, text)


def every_command() -> list[Command]:
    """The commands of all pages."""
    return [c for page in PAGES for b in blocks(page) if b.kind == "commands" for c in commands(b)]


def inline(page: str) -> list[tuple[int, str]]:
    """Line and text of all code in the prose of a page."""
    inside = {k for b in blocks(page) for k in range(b.line, b.line + len(b.lines))}
    lines = (ROOT / page).read_text("utf-8").splitlines()
    return [(n, code) for n, line in enumerate(lines, 1) if n not in inside and not line.startswith("```")
            for code in re.findall(r"`([^`]+)`", line)]  # fmt: skip


@dataclass
class Page:
    """A page that is being read. `names` are what its snippets take for granted; `typed` is what a reader types, by the
    beginning of the command; `reasoner` is an artifact that is there already.

    In `processes` every command is a process of its own, by a shell; otherwise `qeil` is called in this process, which
    spares each the start of the engines.
    """

    name: str
    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    processes: bool = False
    typed: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    reasoner: Path = Path()
    #: What each block of commands printed, by its line.
    printed: dict[int, str] = field(default_factory=dict)

    def run(self, found: Sequence[Block] | None = None) -> None:
        """Everything on the page, or those blocks.

        Raises `AssertionError` with page and line of what does not work, and where something was written to the
        checkout.
        """
        before = _checkout_files()
        by_kind: dict[Kind, Callable[[Block], None]] = {
            "commands": self._commands, "python": self._python, "toml": _read_toml, "file": self._write,
            "text": self.expect,
        }  # fmt: skip
        for block in blocks(self.name) if found is None else found:
            by_kind[block.kind](block)
        left = _checkout_files() ^ before
        assert not left, f"{self.name}: its commands wrote to the checkout: {', '.join(sorted(left)[:5])}"

    def expect(self, block: Block) -> None:
        """Each line of a text right behind commands is in what they printed.

        Numbers, placements and labels are another machine's, and `...` stands for anything.
        """
        printed = self.printed.get(block.follows)
        if printed is None:
            return
        seen = [_flat(line) for line in printed.splitlines()]
        for line in block.lines:
            wanted = ".*".join(re.escape(_flat(part)) for part in line.split("..."))
            assert any(re.search(wanted, s) for s in seen), f"{block.where}: {line!r} was not printed, but\n{printed}"

    def _write(self, block: Block) -> None:
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, "utf-8")

    def _python(self, block: Block) -> None:
        name = f"<{block.where}>"
        # Line numbers of errors are those of the page; torch looks for the source of functions.
        source = ["\n"] * (block.line - 1) + block.text.splitlines(keepends=True)
        linecache.cache[name] = (sum(map(len, source)), None, source, name)
        tree = ast.increment_lineno(ast.parse(block.text, name), block.line - 1)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, name, "exec"), self.names)
        self.printed[block.line] = printed.getvalue()

    def _commands(self, block: Block) -> None:
        texts = []
        for command in commands(block):
            text = command.run
            if text:
                texts.append(self._command(f"{command.page}:{command.line}", text))
        self.printed[block.line] = "\n".join(texts)

    def _command(self, where: str, text: str) -> str:
        text = text.replace("$ROOT", str(ROOT))
        typed = next((v for k, v in self.typed.items() if text.startswith(k)), "")
        if self.processes or _program(text) != "qeil":
            status, printed, errors = self._shell(text, typed)
        else:
            status, printed, errors = _call(shlex.split(text)[1:], typed)
        assert status == 0, f"{where}: `{text}` ended with {status}:\n{printed}\n{errors}"
        return printed

    def _shell(self, text: str, typed: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", text], cwd=self.folder, input=typed, capture_output=True, text=True, timeout=300,
            env=os.environ | self.environment,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


def _call(arguments: list[str], typed: str) -> tuple[int, str, str]:
    """The command line in this process: exit status, standard output, standard error."""
    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(typed)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
    finally:
        sys.stdin = before
    return status, out.getvalue(), err.getvalue()


def _checkout_files() -> set[str]:
    """Files of the checkout, without hidden folders and what Python compiles."""
    found = set()
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [n for n in inner if not n.startswith(".") and n != "__pycache__"]
        found |= {str(Path(folder, n).relative_to(ROOT)) for n in names}
    return found


def _read_toml(block: Block) -> None:
    try:
        tomllib.loads(block.text)
    except tomllib.TOMLDecodeError as error:
        raise AssertionError(f"{block.where}: this is no TOML: {error}") from error


def _flat(text: str) -> str:
    """Without what differs from machine to machine: numbers, their labels, placements, spaces and lines of tables."""
    text = re.sub(r"\b(?:openvino|onnxruntime|torch):[\w:]+", "@", text)
    text = re.sub(r"\((?:measured|calibrated|modelled|emulated)\)", "()", text)
    text = re.sub(r"[┃│|]", " ", text)
    return " ".join(re.sub(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?", "#", text).split())


def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to read a page in, and nothing else within reach: home, profiles, calibrations, programs on the path."""
    home, bin_, folder = tmp_path / "home", tmp_path / "bin", tmp_path / "page"
    for path in (home, bin_, folder):
        path.mkdir()
    for name, call in (("qeil", "-m qeil_compile.cli"), ("python", ""), ("python3", ""), ("pip", "-m pip"),
                       ("pytest", "-m pytest")):  # fmt: skip
        (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PIP_CACHE_DIR", str(home / "pip"))
    for name in ("QEIL_PROFILES", "QEIL_CALIBRATIONS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder
