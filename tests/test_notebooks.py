"""The notebooks of docs/notebooks/ run, and what is saved of them is fit to be read.

Each asks one question, predicts, measures, finds. What it finds stands in a cell of asserts, so
that executing a notebook checks its findings anew.
"""

from __future__ import annotations

import ast
import functools
import os
import re

import nbformat
import pytest
from conftest import PATIENCE, ROOT
from execute_notebooks import FOLDER, METADATA, execute

NAMES = [
    "language_model_basics",
    "tokenization",
    "rnn_lstm_language_models",
    "attention_from_scratch",
    "language_model_training",
    "text_generation",
    "sft_alignment_overview",
    "lora_qlora_comparison",
    "inference_efficiency",
    "evaluation_and_failures",
]
SECTIONS = ["Prediction", "Experiment", "Picture", "Finding", "Limits", "Exercises", "Where next"]
SECONDS = 120  # at most, on two cores


@functools.cache
def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def prose(name: str) -> str:
    return "\n\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")


def test_the_ten_notebooks_are_there_and_in_the_table():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[.*?\]\((\w+)\.ipynb\)", table, re.MULTILINE) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_finds_what_it_says(name, monkeypatch):
    for variable in ("PYTHONPATH", "LMFS_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = set(FOLDER.iterdir())
    before = sum(os.times()[2:4])  # seconds of the processor for ended processes that we started
    found = execute(FOLDER / f"{name}.ipynb", timeout=PATIENCE)
    assert sum(os.times()[2:4]) - before < SECONDS
    assert set(FOLDER.iterdir()) == files, "a notebook writes nothing beside itself"
    now = [cell for cell in found.cells if cell.cell_type == "code"]
    for cell, saved in zip(now, code(name), strict=True):
        kinds = [{output.output_type for output in each.outputs} for each in (cell, saved)]
        assert kinds[0] == kinds[1], cell.source


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_saved_executed(name):
    cells = code(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", "warnings and progress bars do not belong here"
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert 1 <= len(pictures) <= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_says_nothing_of_the_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text.encode()) < 150_000
    assert read(name).metadata == METADATA, "save it with tests/execute_notebooks.py"
    assert all(not cell.metadata for cell in read(name).cells)
    plain = re.sub(r'"image/png": "[^"]*"', "", text)
    assert str(ROOT) not in plain
    assert not re.search(r"/(home|Users|tmp|root|work|var)/|[A-Z]:\\\\|0x[0-9a-f]{6}", plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_its_sections_in_order(name):
    first = read(name).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert first.source.count("**Question.**") == 1 and "?" in first.source
    assert re.findall(r"^## (.*)$", prose(name), re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_checks_its_findings(name):
    trees = [ast.parse(cell.source) for cell in code(name)]
    asserts = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert asserts


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_begins_with_the_same_code(name):
    assert code(name)[0].source == code(NAMES[0])[0].source


@functools.cache
def known() -> set[str]:
    """Functions and classes that the project's modules define, but for a script's usual ones."""
    names = set()
    for folder in ("model-*", "shared"):
        for path in ROOT.glob(f"{folder}/**/*.py"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            names |= {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return names - {"main"}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_uses_the_modules_and_does_not_redefine_them(name):
    source = "\n".join(cell.source for cell in code(name)[1:])
    tree = ast.parse(source)
    kinds = ast.FunctionDef | ast.ClassDef
    defined = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    assert defined & known() == set()
    assert re.search(r'\bload\("model-\d\d', source) or "from shared" in source


@pytest.mark.parametrize("name", NAMES)
def test_links_of_a_notebook_lead_somewhere(name):
    from test_docs import anchors

    text = re.sub(r"`[^`]*`", "", prose(name))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (FOLDER / file).resolve()
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target
