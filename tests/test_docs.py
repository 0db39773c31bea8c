"""The documentation says what is so: commands and snippets run, links lead somewhere, options and names exist.

Pages whose commands run language models are in test_docs_language.py, those whose commands are processes of their own
in test_docs_processes.py.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from qeil_compile.cli.app import app
from tests.doc_commands import PAGES, ROOT, Block, Page, blocks, every_command, inline, parse, place
from tests.doc_instead import INSTEAD
from tests.doc_pages import LANGUAGE, OTHERS, PROCESSES, prepare
from tests.test_benchmarks import SMALL

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
#: Options of programs that are not ours.
_FOREIGN = {"pytest": {"--dist"}}
#: What names a file of the checkout in the prose: other suffixes are those of models, artifacts and results.
_SUFFIXES = (".py", ".toml")
_FOLDERS = ("passes", "backends", "models", "qeil_compile", "tests", "benchmarks", "docs")


@pytest.mark.parametrize("page", OTHERS)
def test_commands_and_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(page, place(tmp_path, monkeypatch)).run()


def test_every_page_is_read_once() -> None:
    assert Counter([*LANGUAGE, *PROCESSES, *OTHERS]) == Counter(PAGES)


def test_exceptions_are_of_commands_that_are_there() -> None:
    found = {c.text for c in every_command()}
    assert not [text for text in INSTEAD if text not in found]
    assert all(i.reason for i in INSTEAD.values())
    once = {(i.page, text) for text, i in INSTEAD.items() if i.page}
    assert once <= {(c.page, c.text) for c in every_command()}


@pytest.mark.parametrize(("text", "words"), [
    ("Words\n\n    curl https://example.org | sh\n", "is a command in a block of text"),
    ("```text\nqeil devices\n```\n", "is a command in a block of text"),
    ("Words\n\n    qeil devices\n    frobnicate\n", "among commands"),
    ("Words\n\n    front = partition(costs)\n", "fence it as python"),
    ("```console\nqeil devices\n```\n", "a block of console"),
])  # fmt: skip
def test_what_nothing_would_run_is_found(text: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        parse("page.md", text)


@pytest.mark.parametrize(("text", "words"), [
    ("Words\n\n    qeil frobnicate\n", r"page.md:3: `qeil frobnicate` ended with 2"),
    ("Words\n\n    python absent.py\n", r"page.md:3: `python absent.py` ended with 2"),
    ("    qeil devices list\n\n```text\nnever printed\n```\n", r"page.md:4: 'never printed' was not printed"),
    ("```toml\n[half\n```\n", "page.md:2: this is no TOML"),
])  # fmt: skip
def test_what_does_not_work_is_told_with_its_place(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page("page.md", place(tmp_path, monkeypatch))
    with pytest.raises(AssertionError, match=words):
        page.run(parse("page.md", text))


def test_output_is_compared_without_what_differs(tmp_path: Path) -> None:
    page = Page("page.md", tmp_path, printed={1: "latency 0.5 ms on openvino:CPU (measured)\n"})
    page.expect(Block("page.md", 4, "text", ("latency 12.25 ms on torch:cpu (modelled)",), follows=1))
    with pytest.raises(AssertionError, match="was not printed"):
        page.expect(Block("page.md", 4, "text", ("energy 0.5 mJ on openvino:CPU (measured)",), follows=1))


# Options


@cache
def _commands() -> dict[str, set[str]]:
    """`ask`, `bench llm`, ... with their options, and "" with the global ones."""
    top: Any = get_command(app)
    found = {"": _options(top)}
    for name, command in top.commands.items():
        found[name] = _options(command) | found[""]
        for inner, nested in getattr(command, "commands", {}).items():
            found[f"{name} {inner}"] = _options(nested) | found[""]
    return found


def _options(command: Any) -> set[str]:
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}


@cache
def _script_options() -> dict[str, set[str]]:
    """Options of each benchmark and of the reasoner's scripts, as they are written there."""
    found = {p.stem: set(re.findall(r'"(--[a-z][a-z0-9-]*)"', p.read_text("utf-8")))
             for p in (ROOT / "benchmarks").glob("*.py")}  # fmt: skip
    found = {n: o | found["common"] for n, o in found.items()}
    for name in ("train", "evaluate"):
        text = (ROOT / "models" / "reasoner" / f"{name}.py").read_text("utf-8")
        names = re.findall(r"^    (\w+): Annotated", text, re.MULTILINE)
        found[f"reasoner.{name}"] = {f"--{n.replace('_', '-')}" for n in names}
    return found


def _allowed(code: str) -> set[str] | None:
    """The options of the command that a text begins with; None where it begins with none."""
    words = code.split()
    if len(words) < 2:
        return None
    if words[0] == "qeil":
        name = next((n for n in (" ".join(words[1:3]), words[1]) if n in _commands()), None)
        assert name is not None or words[1].startswith("-"), f"`{code}`: qeil has no command {words[1]}"
        return _commands()[name or ""]
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        # NAME stands for any of them.
        name = Path(words[1]).stem
        return set().union(*_script_options().values()) if name == "NAME" else _script_options()[name]
    if words[0] == "python" and words[1:2] == ["-m"]:
        return _script_options().get(words[2].removeprefix("qeil_compile.models."))
    return _FOREIGN.get(words[0])


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    everywhere = set().union(*_commands().values(), *_script_options().values(), *_FOREIGN.values())
    shown = [(c.line, c.text) for c in every_command() if c.page == page] + inline(page)
    for line, code in shown:
        allowed = _allowed(code)
        for option in _OPTION.findall(code):
            if allowed is None:
                assert option in everywhere or code.startswith("pip "), f"{page}:{line}: `{code}`: no {option} anywhere"
            else:
                assert option in allowed, f"{page}:{line}: `{code}` has no {option}"
    coded = {n for b in blocks(page) if b.kind != "text" for n in range(b.line, b.line + len(b.lines))}
    for n, text in enumerate((ROOT / page).read_text("utf-8").splitlines(), 1):
        if n not in coded:
            for option in _OPTION.findall(text):
                assert option in everywhere, f"{page}:{n}: no command has {option}"


def test_benchmarks_that_pages_name_are_run_by_their_test() -> None:
    named = {m for page in PAGES for m in re.findall(r"benchmarks/(\w+)\.py", (ROOT / page).read_text("utf-8"))}
    assert named - {"NAME"} <= set(SMALL)
    listed = re.search(r"for b in ([\w ]+);", (ROOT / "Makefile").read_text("utf-8"))
    assert listed is not None and set(listed[1].split()) <= set(SMALL)


# Links and names


def _anchors(path: Path) -> set[str]:
    """What GitHub makes of headings."""
    found: Counter[str] = Counter()
    anchors = set()
    text = path.read_text("utf-8")
    coded = {n for b in parse(path.name, text) for n in range(b.line, b.line + len(b.lines))}
    for n, line in enumerate(text.splitlines(), 1):
        if line.startswith("#") and n not in coded:
            title = re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("#").strip()).lower()
            slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            anchors.add(slug if not found[slug] else f"{slug}-{found[slug]}")
            found[slug] += 1
    return anchors


def _links(page: str) -> list[tuple[int, str]]:
    lines = (ROOT / page).read_text("utf-8").splitlines()
    return [(n, link) for n, line in enumerate(lines, 1) for link in _LINK.findall(re.sub(r"`[^`]*`", "", line))]


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    for line, link in _links(page):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}:{line}: {link} does not exist"
        if anchor:
            assert anchor in _anchors(path), f"{page}:{line}: {name or page} has no heading {anchor}"


def test_readme_leads_to_every_page() -> None:
    linked = {link.partition("#")[0] for _, link in _links("README.md")}
    assert not [p for p in PAGES if p.startswith("docs/") and p not in linked]


def _exists(name: str) -> bool:
    """Whether a path is one of the checkout, of the package, or (a bare file name) of some folder of either."""
    bases = (ROOT, ROOT / "qeil_compile", ROOT / "qeil_compile" / "devices", ROOT / "benchmarks")
    if "/" in name:
        return any(any(b.glob(name)) if "*" in name else (b / name).exists() for b in bases)
    return (ROOT / name).exists() or any(any((ROOT / f).rglob(name)) for f in _FOLDERS)


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_in_the_prose_exist(page: str) -> None:
    made = {b.file for p in PAGES for b in blocks(p) if b.kind == "file"} | {"check.py"}
    for line, code in inline(page):
        # NAME stands for what the reader chooses.
        if re.fullmatch(r"[a-z_][\w./{},*-]*", code) and "NAME" not in code and _is_path(code):
            for name in _alternatives(code):
                assert _exists(name) or name in made, f"{page}:{line}: `{code}` is nowhere in the checkout"
        if re.fullmatch(r"qeil_compile(\.\w+)+", code):
            assert _named(code) is not None, f"{page}:{line}: `{code}` cannot be imported"


def _is_path(code: str) -> bool:
    return code.endswith(_SUFFIXES) or (code.split("/")[0] in _FOLDERS and "/" in code)


def _alternatives(code: str) -> list[str]:
    """`a/{b,c}.py` are two paths."""
    found = re.search(r"\{([^}]*)\}", code)
    return [code.replace(found[0], part) for part in found[1].split(",")] if found else [code]


def _named(name: str) -> Any:
    """What a dotted name is; None where there is no such thing."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            value = getattr(value, part, None)
        return value
    return None


def test_equations_are_coded_where_they_say() -> None:
    rows = [line.split("|") for line in (ROOT / "docs/equations.md").read_text("utf-8").splitlines() if line[:1] == "|"]
    rows = [r for r in rows if len(r) == 6 and r[3].strip() not in ("coded in", "---")]
    assert len(rows) > 60
    for row in rows:
        names = re.findall(r"`([\w.]+)`", row[3])
        assert names and row[4].strip(), f"{row[1].strip()}: no code or no source"
        for name in names:
            assert _named(f"qeil_compile.{name}") is not None, f"{row[1].strip()}: there is no {name}"
