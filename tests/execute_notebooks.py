"""Execute notebooks of docs/notebooks/ where they lie, and save them with what they print.

    python tests/execute_notebooks.py                  # all of them
    python tests/execute_notebooks.py tokenization     # one

What only this machine knows (times of execution, the kernel's version) is left out, so that a
notebook that was executed again differs from the old one only where its results do.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, timeout: float = 120) -> nbformat.NotebookNode:
    """The notebook, executed by this Python in the notebook's folder; `timeout` s for a cell.

    Raises nbclient.exceptions.CellExecutionError where a cell does.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    options = dict(kernel_name="python3", record_timing=False, coalesce_streams=True)
    NotebookClient(notebook, timeout=timeout, resources=where, **options).execute()
    return notebook


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same with the metadata that all notebooks here have."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{number}"
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
            if "image/png" in output.get("data", {}):
                output.data.pop("text/plain", None)  # "<Figure size ...>"
    return notebook


def main() -> None:
    names = sys.argv[1:]
    paths = [FOLDER / f"{Path(name).stem}.ipynb" for name in names] or sorted(
        FOLDER.glob("*.ipynb")
    )
    for path in paths:
        if not path.is_file():
            sys.exit(f"error: no notebook {path.name} in docs/notebooks: name one that is there")
        start = time.perf_counter()
        notebook = cleaned(execute(path))
        nbformat.write(notebook, path)
        size = path.stat().st_size / 1000
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {size:.0f} KB")


if __name__ == "__main__":
    main()
