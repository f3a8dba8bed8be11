"""The documents in docs/ say what is so.

Every error message of the code has its entry in troubleshooting.md; links, anchors and pictures
exist, in every .md file of the repository; worked examples give the numbers printed below them;
and each document's commands run, from its first line to its last, in the small house of
test_readme.py.
"""

from __future__ import annotations

import ast
import doctest
import functools
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import MODELS, ROOT, modules, run_script
from test_readme import commands, quick, unknown_flags

DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))
TROUBLE = "docs/troubleshooting.md"
SOURCES = [path for folder in ("model-*", "shared") for path in ROOT.glob(f"{folder}/**/*.py")]


def markdown_files() -> list[str]:
    """Every .md file of the checkout, but for what is installed or made there."""
    left_out = {".venv", ".git", "checkpoints", "cache", "build", "node_modules", ".pytest_cache"}
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*.md")]
    return sorted(path.as_posix() for path in found if not left_out & set(path.parts))


# ---------------------------------------------------------------------- every message has its entry

GAP = "\0"  # stands in a template for what the program fills in


def template(node: ast.expr) -> str | None:
    """The text that an expression makes, with gaps; None if it holds no literal text.

    >>> template(ast.parse("f'no file {x}: ' + y", mode="eval").body).replace(GAP, "_")
    'no file _: _'
    """
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(GAP if isinstance(v, ast.FormattedValue) else v.value for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = template(node.left), template(node.right)
        return None if sides == (None, None) else "".join(GAP if s is None else s for s in sides)
    return None


def letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


def functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The outermost functions of a file, methods included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            yield from (each for each in node.body if isinstance(each, ast.FunctionDef))


def said(function: ast.AST) -> Iterator[str]:
    """Templates of the mistakes that a function may report, without `error: `."""
    assigned: dict[str, list[ast.expr]] = {}
    reported: list[ast.expr] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func)
            if name.endswith(("UserError", "SourceError", "problems.append")):
                reported.append(node.args[0])
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target).endswith("problems"):
            reported += [each for each in ast.walk(node.value) if isinstance(each, ast.JoinedStr)]
        text = template(node) if isinstance(node, ast.expr) else None
        if text and text.startswith("error: "):
            reported.append(node)
            reported += [each for each in ast.walk(node) if isinstance(each, ast.Name)]
    while reported:
        node = reported.pop()
        if isinstance(node, ast.Name):
            reported += assigned.pop(node.id, [])
        elif (text := template(node)) and letters(text.removeprefix("error: ")) > 6:
            yield " ".join(text.removeprefix("error: ").split())


@functools.cache
def messages() -> dict[str, str]:
    """Template of every mistake that the code reports -> the place where it does."""
    found: dict[str, str] = {}
    for path in SOURCES:
        for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
            for text in said(function):
                found.setdefault(text, f"{path.relative_to(ROOT)}, {function.name}")
    return found


def pattern(text: str) -> re.Pattern:
    return re.compile(".+".join(map(re.escape, text.split(GAP))), re.DOTALL)


def entries() -> list[str]:
    """The messages that troubleshooting.md explains: code in the first column, `error: ` off."""
    spans = []
    for line in (ROOT / TROUBLE).read_text(encoding="utf-8").splitlines():
        if cell := re.match(r"\| (`+) ?(.+?) ?\1 \|", line):
            spans.append(cell[2].replace(r"\|", "|").removeprefix("error: "))
    return spans


def test_the_messages_are_found_in_the_sources():
    found = set(messages())
    assert len(found) > 100
    for part in ("no checkpoint at", "is no whole checkpoint", "out of memory", "cannot be shared"):
        assert any(part in text for text in found), part


@pytest.mark.parametrize("text", sorted(messages()), ids=lambda text: text.replace(GAP, "_"))
def test_every_message_has_an_entry(text):
    where = f"{messages()[text]}: add a line to {TROUBLE}"
    assert any(pattern(text).fullmatch(entry) for entry in entries()), where


@functools.cache
def all_texts() -> list[re.Pattern]:
    """Every text in the sources that could be a message."""
    found = set(messages())
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = template(node) if isinstance(node, ast.expr) else None
            found |= {" ".join(text.split())} if text and letters(text) > 6 else set()
    return [pattern(text) for text in found]


@pytest.mark.parametrize("entry", entries())
def test_every_entry_is_a_message_of_the_code(entry):
    assert any(each.fullmatch(entry) for each in all_texts()), "the code says no such thing"


# --------------------------------------------------------------------- links, anchors and pictures


def prose(text: str) -> str:
    """Without blocks of code, and without code in a line."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "``", text)


@functools.cache
def anchors(path: Path) -> set[str]:
    """What can stand behind the # of a link to this file, as forges make it of headings."""
    text, found = path.read_text(encoding="utf-8"), {}
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        if found[slug]:
            found[f"{slug}-{found[slug]}"] = 0
    return set(found) | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("name", markdown_files())
def test_links_anchors_and_pictures_exist(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(path.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            assert there.suffix == ".md" and anchor in anchors(there), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_functions_that_a_document_names_are_in_the_file_it_links_to(name):
    """Links of the form [`attend` in model.py](../model-04-mini-transformer/model.py)."""
    path = ROOT / name
    found = re.findall(r"\[([^]]*`) in [\w./-]+\]\(([^)]+\.py)\)", path.read_text(encoding="utf-8"))
    for names, file in found:
        tree = ast.parse((path.parent / file).read_text(encoding="utf-8"))
        kinds = ast.FunctionDef | ast.ClassDef
        known = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
        known |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for each in re.findall(r"`([\w.]+)`", names):
            assert set(each.split(".")) <= known, f"{each} is not in {file}"


# -------------------------------------------------------------------------------- worked examples


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^( *)```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if blocks(name)])
def test_worked_examples_give_the_numbers_printed_below_them(name, monkeypatch):
    """Blocks of Python with >>> are doctests, in order, with what the blocks before defined."""
    monkeypatch.chdir(ROOT)
    text = "\n\n".join(block for block in blocks(name))
    assert text.count(">>> ") > 0, "an example needs >>> and its result"
    case = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    try:
        runner.run(case, out=report.write)
    finally:
        torch.set_printoptions(profile="default")
    assert runner.failures == 0, report.getvalue()


# ------------------------------------------------------------------------------------ the commands


def script_of(command: str) -> tuple[Path, list[str]]:
    """The script of a command (from the root of the repository) and its arguments."""
    _, script, *arguments = shlex.split(command)
    return Path(script), arguments


PYTHON = [
    (name, command)
    for name in DOCUMENTS
    for command in dict.fromkeys(commands(name))
    if command.startswith("python ") and not command.startswith("python -")
]


def load(folder: Path, script: Path) -> object:
    """The module of a script of a model's folder, in that checkout."""
    return getattr(modules(str(folder / script.parent)), script.stem)


@pytest.mark.parametrize(("name", "command"), PYTHON, ids=[f"{n}: {c}" for n, c in PYTHON])
def test_every_command_is_one_that_its_script_understands(name, command, monkeypatch):
    """Parsed by the script's own parser; nothing runs."""
    script, arguments = script_of(command)
    assert (ROOT / script).is_file(), f"{script}: commands are typed in the root"
    if not script.parent.name.startswith("model-"):
        return  # these few run below
    module = load(ROOT, script)
    monkeypatch.setattr(sys, "argv", [script.name, *arguments])

    class Parsed(Exception):  # noqa: N818  how we get out of main() once it has parsed
        pass

    generate = modules(str(ROOT / script.parent)).generate
    monkeypatch.setitem(sys.modules, "generate", generate)  # main() of quantize.py imports it
    source = generate.Arguments
    parse = source.parse

    def parse_only(self: object) -> None:
        parse(self)
        raise Parsed

    if hasattr(module, "parse_args"):
        module.parse_args()
        return
    monkeypatch.setattr(source, "parse", parse_only)
    with pytest.raises(Parsed):
        module.main()


def follow(command: str, house: Path, run_main: Callable) -> None:
    """Run one command of a document in the house, short, as test_readme.py does."""
    script, arguments = script_of(command)
    if script.parent.name.startswith("model-"):
        spec = next(model for model in MODELS if model.folder == script.parent.name)
        arguments = quick(script.name, arguments, spec, house / "my_novel.txt")
        if script.name == "quantize.py":  # its main() is reached through a process only
            result = run_script(house / script, arguments, cwd=house)
        else:
            result = run_main(load(house, script), arguments)
    else:
        for each in arguments:  # the short runs are not on tales, so they asked no questions
            if each.endswith("recall.csv"):
                (house / each).parent.mkdir(parents=True, exist_ok=True)
                row = "model,kind,distance,choices,right\nRNN,hero,9,8,1\n"
                (house / each).write_text(row, encoding="utf-8")
        result = run_script(house / script, arguments, cwd=house)
    assert result.status == 0, (command, result)
    assert result.err == "", (command, result.err)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, _ in PYTHON}))
def test_a_document_can_be_followed(name, house, run_main, monkeypatch):
    """All its commands, in order."""
    monkeypatch.chdir(house)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for where, command in PYTHON:
        if where == name and "download.py" not in command:
            monkeypatch.setattr(sys, "stdin", io.StringIO("Once\n/quit\n"))
            follow(command, house, run_main)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_a_diff_compares_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for files in re.findall(r"^ {4,}diff (\S+) (\S+)$", text, re.MULTILINE):
        assert all((ROOT / file).is_file() for file in files), files


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_that_a_document_mentions_exist(name):
    of_others = {"--index-url", "--install", "--version"}  # of pip, xcode-select, python
    of_others |= {"--no-index"}  # of git diff
    assert unknown_flags(name) - of_others - {"--hiden-size"} == set()  # a slip, on purpose
