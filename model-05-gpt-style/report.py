"""The report of an evaluation: tables and pictures, and what has become worse since another one.

    finding      tables, notes, pictures, and measures: numbers that can become better or worse
    file         evaluation.json, for programs, and evaluation.md, for people

evaluate.py fills it, metrics.py computes the numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from metrics import Bin, Measure, worsened
from train import replacing

from shared.utils import visualize


@dataclass
class Finding:
    """What one part of an evaluation has found out."""

    measures: dict[str, Measure] = field(default_factory=dict)  # those that are compared
    notes: list[str] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)  # rows of cells, the header first
    pictures: list[str] = field(default_factory=list)  # names of files


def from_plain(each: dict) -> Finding:
    """A finding that was written to a file."""
    measures = {name: Measure(*values) for name, values in each["measures"].items()}
    return Finding(measures, each["notes"], each["tables"], each["pictures"])


def read(out: Path, about: dict) -> dict[str, Finding]:
    """The findings in evaluation.json, if it is about the same; else none."""
    path = out / "evaluation.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["about"] == about:
            return {name: from_plain(each) for name, each in earlier["parts"].items()}
    except (OSError, ValueError, LookupError, TypeError):  # none, or another's: it is made anew
        pass
    return {}


def write(out: Path, about: dict, done: dict[str, Finding]) -> None:
    """evaluation.json, for programs, and evaluation.md, for people."""
    parts = {name: vars(each) for name, each in done.items()}
    plain = json.dumps({"about": about, "parts": parts}, indent=1, ensure_ascii=False)
    head = [f"# Evaluation of {about['checkpoint']}, kind {about['kind']}"]
    if about["limit"]:
        head.append(f"**A quick look (--limit {about['limit']}), not the whole of anything.**")
    page = "\n\n".join([*head, *(section(name, each) for name, each in done.items())]) + "\n"
    for name, content in (("evaluation.json", plain), ("evaluation.md", page)):
        with replacing(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n")


def section(name: str, found: Finding) -> str:
    """A part of the report, in Markdown."""
    pictures = [f"![{Path(each).stem}]({each})" for each in found.pictures]
    blocks = [f"## {name.capitalize()}", *found.notes, *map(table, found.tables), *pictures]
    return "\n\n".join(blocks)


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the header first, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
             for row in rows]  # fmt: skip
    return "\n".join(
        [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
    )


def compare(before: dict[str, Finding], after: dict[str, Finding], tolerance: float) -> list[str]:
    """Print both side by side. Returns what has become worse."""
    rows, worse = [["", "before", "after", "worse by"]], []
    for part in (name for name in after if name in before):
        old, new = before[part].measures, after[part].measures
        for name in (name for name in new if name in old):
            by, full = worsened(old[name], new[name]), f"{part}: {name}"
            mark = " *" if by > tolerance else ""
            worse += [full] if mark else []
            rows.append([full, str(old[name]), str(new[name]), f"{by:+.3f}{mark}"])
    print(f"\n{table(rows)}\n")
    return worse


def draw_reliability(bins: list[Bin], error: float, name: str, path: Path) -> None:
    """Accuracy against confidence, and where most of the cases are."""
    figure, axes = visualize.new_figure((6, 6))
    axes.plot([0, 1], [0, 1], ls="--", color=visualize.GREY, label="as sure as right")
    total = sum(each.count for each in bins)
    for each in bins:
        width = each.high - each.low
        axes.bar(each.low, each.count / total, width, align="edge", color=visualize.GREY, alpha=0.3)
    points = [(each.confidence, each.accuracy) for each in bins]
    axes.plot(*zip(*points, strict=True), "o-", color=visualize.BLUE, label="share that is right")
    axes.bar(0, 0, color=visualize.GREY, alpha=0.3, label="share of all cases")
    axes.set(title=f"Calibration error {error:.4f}\n{name}", xlabel="confidence", xlim=(0, 1),
             ylim=(0, 1))  # fmt: skip
    axes.legend(frameon=False, loc="upper left")
    save_picture(figure, path)


def save_picture(figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def draw_repetitions(lengths: dict[str, list[int]], path: Path) -> None:
    """The share of stretches of which so many characters and more were repeated."""
    figure, axes = visualize.new_figure()
    for (name, found), colour in zip(lengths.items(), visualize.COLOURS[2:0:-1], strict=True):
        heights = 1 - np.arange(len(found) + 1) / len(found)
        axes.step([0, *sorted(found)], heights, color=colour, label=f"{name} text")
    axes.set(
        title="How far a text is repeated", xlabel="characters, word for word, at least",
        ylabel="share of stretches", ylim=(0, 1.02),
    )  # fmt: skip
    axes.legend(frameon=False)
    save_picture(figure, path)
