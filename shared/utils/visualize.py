"""Pictures: loss curves, and how far back a model remembers.

    python shared/utils/visualize.py a/recall.csv b/recall.csv --out recall.png

draws the answers of several models, each line of a recall.csv (written by train.py on `tales`)
one question, as accuracy against distance.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

if not __package__:  # run as a script: `shared` is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shared import UserError

BLUE, ORANGE, GREY, GREEN = "#2563eb", "#ea580c", "#6b7280", "#15803d"
COLOURS = (GREY, BLUE, ORANGE, GREEN, "#9333ea", "#be123c", "#0891b2", "#a16207")


def new_figure():
    """An empty picture and its axes, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line(axes, height: float, label: str, colour: str) -> None:
    """A dashed horizontal line with its name on it."""
    axes.axhline(height, color=colour, linestyle="--", linewidth=1.2)
    axes.annotate(
        label,
        (0.995, height),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=colour,
    )


def plot_loss(
    history: list[dict],
    path: Path,
    title: str,
    bits_per_nat: float,
    baseline: tuple[str, float] | None = None,
    floor: float | None = None,
) -> None:
    """Loss against training tokens, as a PNG.

    history holds lines of metrics.csv. The left axis counts nats per token, the right one bits
    per character, `bits_per_nat` of them to a nat. baseline is a name and nats per token, floor
    is in bits per character.
    """
    figure, axes = new_figure()
    for column, label, colour, marker in (
        ("train_loss", "training", GREY, ""),
        ("val_loss", "validation", BLUE, "o"),
    ):
        points = [(row["tokens"], row[column]) for row in history if row[column] is not None]
        if points:
            style = dict(marker=marker, ms=4, color=colour, label=f"{label} {points[-1][1]:.3f}")
            axes.plot(*zip(*points, strict=True), **style)
            axes.legend(frameon=False)
    if baseline is not None:
        line(axes, baseline[1], f"{baseline[0]} {baseline[1]:.3f}", ORANGE)
    if floor is not None:
        line(axes, floor / bits_per_nat, f"entropy floor {floor / bits_per_nat:.3f}", GREEN)
    axes.set(title=title, xlabel="training tokens", ylabel="loss, nats per token")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M")
    axes.secondary_yaxis(
        "right", functions=(lambda y: y * bits_per_nat, lambda y: y / bits_per_nat)
    ).set_ylabel("bits per character")
    figure.savefig(path, format="png", dpi=120)


def read_recall(paths: list[Path]) -> dict[str, list[tuple[int, float, bool]]]:
    """recall.csv files -> (distance in characters, chance of a guess, right?) by model."""
    answers = defaultdict(list)
    for path in paths:
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    chance = 1 / int(row["choices"])
                    answers[row["model"]].append(
                        (int(row["distance"]), chance, row["right"] == "1")
                    )
        except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError, csv.Error):
            raise UserError(f"{path} is no recall.csv: train on tales to make one") from None
    if not answers:
        raise UserError(f"no answers in {', '.join(map(str, paths))}: train on tales to make some")
    return answers


def plot_recall(paths: list[Path], path: Path) -> None:
    """Accuracy against distance for every model in some recall.csv files, as a PNG.

    Distances are grouped by doublings (8-15 characters, 16-31, ...); a bar shows one standard
    error of the group's accuracy.
    """
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure()
    answers = read_recall(paths)
    for colour, (name, rows) in zip(COLOURS * 9, answers.items(), strict=False):
        groups = defaultdict(list)
        for distance, _, right in rows:
            groups[max(distance, 1).bit_length()].append(right)
        points = sorted(groups.items())
        middle = [1.5 * 2 ** (bits - 1) for bits, _ in points]
        share = [100 * sum(group) / len(group) for _, group in points]
        errors = [
            (s * (100 - s) / len(group)) ** 0.5 for s, (_, group) in zip(share, points, strict=True)
        ]
        axes.errorbar(middle, share, errors, color=colour, label=name, marker="o", ms=4, capsize=2)
    chances = [chance for rows in answers.values() for _, chance, _ in rows]
    line(axes, 100 * sum(chances) / len(chances), "guessing", GREY)
    axes.set(
        title="Who remembers? Recall on tales",
        xlabel="distance to what must be remembered, characters",
        ylabel="right answers, %",
        ylim=(0, 103),
        xscale="log",
    )
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, format="png", dpi=120)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}: see --help")


def main() -> int:
    parser = Parser(description="Draw recall against distance of several models.")
    parser.add_argument("recall", nargs="+", type=Path, help="recall.csv files")
    parser.add_argument("--out", type=Path, default=Path("recall.png"), help="(%(default)s)")
    try:
        args = parser.parse_args()
        plot_recall(args.recall, args.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
