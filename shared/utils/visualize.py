"""Pictures: loss curves, how far back a model remembers, and what tokenizers do to a text.

    python shared/utils/visualize.py recall a/recall.csv b/recall.csv --out recall.png

draws the answers of several models, each line of a recall.csv (written by train.py on `tales`)
one question, as accuracy against distance.

    python shared/utils/visualize.py tokens --text "Unbelievable foxes!" --out tokens.png
    python shared/utils/visualize.py compression --out compression.png

train the five tokenizers on a dataset (`tales`, or --dataset). The first shows where each cuts a
text, in colours on a terminal and in a picture:

    Bramble|,|·a|·cl|um|sy|,|·sil|ver|-|t|ong|u|ed|·kitten        BPE, vocabulary 1,024
    Bramble|,| a| clumsy|,| silver|-|<unk>| kitten                Word, the same

The second draws how many characters a token holds on average, for growing vocabularies.
"""

from __future__ import annotations

import argparse
import base64
import csv
import functools
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

if not __package__:  # run as a script: `shared` is two folders up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shared import UserError
from shared.data.download import load_text
from shared.utils.tokenizers.base import Tokenizer
from shared.utils.tokenizers.bpe import BPETokenizer
from shared.utils.tokenizers.char import CharTokenizer
from shared.utils.tokenizers.unigram import UnigramTokenizer
from shared.utils.tokenizers.word import WordTokenizer
from shared.utils.tokenizers.wordpiece import WordPieceTokenizer

BLUE, ORANGE, GREY, GREEN = "#2563eb", "#ea580c", "#6b7280", "#15803d"
COLOURS = (GREY, BLUE, ORANGE, GREEN, "#9333ea", "#be123c", "#0891b2", "#a16207")


def new_figure(size: tuple[float, float] = (8, 5)):
    """An empty picture (size in inches) and its axes, drawn without a screen."""
    figure = empty_figure(size)
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def empty_figure(size: tuple[float, float]):
    """A picture without axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
    axes.set(title=drawable(title), xlabel="training tokens", ylabel="loss, nats per token")
    axes.title.set_parse_math(False)  # a file's name may hold dollars
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M")
    axes.secondary_yaxis(
        "right", functions=(lambda y: y * bits_per_nat, lambda y: y / bits_per_nat)
    ).set_ylabel("bits per character")
    figure.savefig(path, format="png", dpi=120)


def plot_curves(
    curves: dict[str, list[tuple[float, float]]],
    path: Path,
    title: str,
    xlabel: str,
    lines: dict[str, float],
) -> None:
    """Validation loss of several models in bits per character, as a PNG.

    curves holds for each model points (x, bits); x is on a logarithmic scale, so a point at 0,
    before training, is left out. lines: names and heights of what they are compared with.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = new_figure()
    for colour, (name, points) in zip(COLOURS[1:] * 9, curves.items(), strict=False):
        xs, bits = zip(*[point for point in points if point[0] > 0], strict=True)
        axes.plot(xs, bits, "o-", ms=4, color=colour, label=f"{name} {min(bits):.3f}")
    for name, height in lines.items():
        floor = name == "entropy floor"
        line(axes, height, f"{name} {height:.3f}", GREEN if floor else GREY)
    axes.set(title=title, xlabel=xlabel, ylabel="bits per character", xscale="log")
    axes.set_xlim(right=2.5 * axes.get_xlim()[1])  # room for the names of the lines
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e5 else f"{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, format="png", dpi=120)


def read_recall(paths: list[Path]) -> dict[str, list[tuple[int, float, bool]]]:
    """recall.csv files -> (distance in characters, chance of a guess, right?) by model.

    A model that stands in several files, as n-grams do, is taken from the first of them.
    """
    answers = {}
    for path in paths:
        found = defaultdict(list)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    chance = 1 / int(row["choices"])
                    found[row["model"]].append((int(row["distance"]), chance, row["right"] == "1"))
        except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError, csv.Error):
            raise UserError(f"{path} is no recall.csv: train on tales to make one") from None
        for name, rows in found.items():
            answers.setdefault(name, rows)
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
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, format="png", dpi=120)


def plot_words(words: list[str], points: list[list[float]], path: Path, title: str) -> None:
    """Words at points of a plane (N, 2), as a PNG."""
    figure, axes = new_figure((11, 8))
    axes.scatter(*zip(*points, strict=True), s=6, color=ORANGE)
    for word, point in zip(words, points, strict=True):
        style = dict(xytext=(2, 2), textcoords="offset points", size=8, parse_math=False)
        axes.annotate(drawable(word), point, color=BLUE, **style)
    axes.set(title=title, xlabel="first component", ylabel="second component")
    figure.savefig(path, format="png", dpi=120)


def plot_attention(
    rows: list[str], columns: list[str], weights: list[list[float]], path: Path, title: str
) -> None:
    """A heat map of attention: weights (rows, columns), each row from 0 to 1, as a PNG."""
    side = 2 + 0.17 * max(len(rows), len(columns))  # inches: a label needs 0.17
    figure, axes = new_figure((side, side))
    image = draw_weights(axes, weights)
    name_ticks(axes.xaxis, columns, 8)
    name_ticks(axes.yaxis, rows, 8)
    axes.set(title=title, xlabel="words looked at", ylabel="words expected")
    figure.colorbar(image, shrink=0.5, label="weight")
    figure.savefig(path, format="png", dpi=120)


def draw_weights(axes, weights):
    """A heat map on some axes, blue from 0 to 1."""
    axes.grid(visible=False)
    return axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")


def name_ticks(axis, names: list[str], size: float) -> None:
    """A name of `size` points at each row or column of a heat map."""
    short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
    labels = [drawable(name.replace("\n", "")) for name in short]
    axis.set_ticks(range(len(names)), labels, fontsize=size, parse_math=False)
    if axis.axis_name == "x":
        axis.set_tick_params(rotation=90)


def check_heads(names: list[str], weights) -> np.ndarray:
    """The weights of a text's T tokens as an array (L, H, T, T). Raises ValueError."""
    try:
        array = np.asarray(weights, dtype=np.float32)
    except ValueError:
        raise ValueError("weights must be (L, H, T, T): some row is shorter than others") from None
    if array.ndim != 4 or 0 in array.shape or array.shape[2:] != (len(names),) * 2:
        raise ValueError(
            f"weights must be (L, H, T, T) with T = {len(names)} names, not {array.shape}"
        )
    if not (array.min() >= 0 and array.max() < 1.001):  # false for nan, too
        raise ValueError("weights must be from 0 to 1")
    return array


def plot_heads(names: list[str], weights, path: Path, title: str) -> None:
    """A small heat map for each head of each layer, as a PNG.

    weights (L, H, T, T): row t is what a head takes of each of the T tokens, and sums to 1.
    Layers go down, heads to the right. Tokens are named if there is room: up to some 30.
    Raises ValueError for weights of another shape.
    """
    weights = check_heads(names, weights)
    layers, heads, length, _ = weights.shape
    side = min(max(1.2, 0.1 * length), 3, 24 / max(layers, heads))  # of a map, in inches
    figure = empty_figure((heads * side + 1.6, layers * (side + 0.2) + 1.2))
    grid = figure.subplots(layers, heads, squeeze=False)
    for (layer, head), axes in np.ndenumerate(grid):
        image = draw_weights(axes, weights[layer, head])
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
    if side / length >= 0.09:  # inches: a label of 6 points needs that
        for axes in grid[0]:
            axes.xaxis.tick_top()
            name_ticks(axes.xaxis, names, 6)
        for axes in grid[:, 0]:
            name_ticks(axes.yaxis, names, 6)
    figure.suptitle(drawable(title), parse_math=False)
    figure.colorbar(image, ax=grid, fraction=0.02, shrink=0.5, label="weight")
    figure.savefig(path, format="png", dpi=120)


def write_attention_page(
    names: list[str],
    weights,
    path: Path,
    title: str,
    guesses: list[list[tuple[str, float]]] | None = None,
) -> None:
    """A web page to point at: what every head looks at from each token, in one file.

    names and weights (L, H, T, T) as for plot_heads. guesses: for each of the T tokens the
    likeliest next ones, as (text, probability). The page itself is attention.html, beside this
    file; what is written needs no network and no other file.
    Raises ValueError for weights of another shape, or guesses for another number of tokens.
    """
    weights = check_heads(names, weights)
    layers, heads, length, _ = weights.shape
    if guesses is not None:
        if len(guesses) != length:
            raise ValueError(f"guesses must be for {length} tokens, not {len(guesses)}")
        guesses = [[(text, round(float(p), 4)) for text, p in each or ()] for each in guesses]
    # Ten digits for each weight would make megabytes. A colour needs no more than a byte (base64
    # makes them letters), and the upper half of a map that looks only back is zeros: left out.
    small = np.rint(255 * weights).astype(np.uint8)
    causal = not np.triu(weights, 1).any()
    if causal:
        rows, columns = np.tril_indices(length)
        small = small[:, :, rows, columns]  # (L, H, T (T + 1) / 2)
    data = {
        "title": title,
        "names": names,
        "layers": layers,
        "heads": heads,
        "causal": causal,
        "weights": base64.b64encode(small.tobytes()).decode(),
        "guesses": guesses,
    }
    page = Path(__file__).with_name("attention.html").read_text(encoding="utf-8")
    # In HTML "</script>" ends the data, even within a string; JSON may write < as \u003c.
    text = json.dumps(data).replace("<", "\\u003c")
    path.write_text(page.replace("{{data}}", text), encoding="utf-8")


def plot_gradients(curves: dict[str, list[float]], path: Path, title: str) -> None:
    """Gradient norm against distance in tokens, a line for each model, as a PNG."""
    figure, axes = new_figure()
    for colour, (name, norms) in zip(COLOURS[1:] * 9, curves.items(), strict=False):
        axes.plot(range(len(norms)), norms, color=colour, label=name)
    axes.set(
        title=title,
        xlabel="how many tokens ago the input was read",
        ylabel="norm of the loss's gradient (1: at the last token)",
        yscale="log",
        ylim=(1e-12, 2),
    )
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, format="png", dpi=120)


def plot_lengths(
    times: dict[str, tuple[list[int], list[float]]],
    losses: dict[str, tuple[list[int], list[float]]],
    trained: dict[str, int],
    path: Path,
) -> None:
    """What a token costs and what the past is worth, by length in tokens, as a PNG.

    times and losses hold for each model lengths with milliseconds or nats, trained the length of
    its training pieces. Without losses the right half is left out.
    """
    figure = empty_figure((12 if losses else 7, 5))
    left, *right = figure.subplots(1, 2 if losses else 1, squeeze=False)[0]
    colours = dict(zip(times, COLOURS[1:] * 9, strict=False))
    for name, colour in colours.items():
        left.plot(*times[name], "o-", ms=4, color=colour, label=name)
    for axes in right:
        for name, colour in colours.items():
            axes.plot(*losses[name], color=colour, label=name)
        axes.set(title="What the past is worth", xlabel="tokens before", ylabel="nats per token")
    for length in set(trained.values()):
        right[0].axvline(length, color=GREY, linestyle="--", linewidth=1.2)
        at = (length, 0.97)
        right[0].annotate(" trained", at, xycoords=("data", "axes fraction"), color=GREY)
    for axes in (left, *right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    left.set_yscale("log", base=2)
    left.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
    left.set(title="What a token costs", xlabel="tokens before", ylabel="ms for one more")
    figure.savefig(path, format="png", dpi=120)


# ---------------------------------------------------------------------------------------------
# Where tokenizers cut a text
# ---------------------------------------------------------------------------------------------

TRAINERS: dict[str, Callable[[str, int], Tokenizer]] = {
    "Word": lambda text, size: WordTokenizer.train(text, max_size=size),
    "BPE": BPETokenizer.train,
    "WordPiece": WordPieceTokenizer.train,
    "Unigram": UnigramTokenizer.train,
}
PASTELS = ("#bfdbfe", "#fed7aa", "#bbf7d0", "#fbcfe8", "#fef08a")  # neighbours get different ones
ANSI_PASTELS = (153, 223, 157, 225, 229)  # the same among the 256 colours of a terminal
BLACK, DIM, RED = 16, 243, 160
MISSING = "□"  # in the place of a character that the picture's font lacks
COLUMNS, SIZE, DPI = 80, 11, 120  # characters in a row of the picture, points, pixels per inch
CELL = 0.602 * SIZE / 72  # inches: DejaVu Sans Mono is 0.602 times as wide as high
ROW, MARGIN = 0.25, 0.2  # inches
MOST_ROWS = 1000  # 30,000 pixels; matplotlib draws up to 65,536


def train_all(text: str, vocab_size: int, also: str = "") -> dict[str, Tokenizer]:
    """The five tokenizers, trained on a text. Raises UserError.

    also: characters that Char must know as well; the others have a way to write any character.
    """
    trained = {name: train(text, vocab_size) for name, train in TRAINERS.items()}
    return {"Char": CharTokenizer.train(text + also), **trained}


class Shown(NamedTuple):
    """A token as a reader sees it."""

    gap: str  # " " if decoding puts a space before it that is not in the token, else ""
    text: str  # space ·  tab ⇥  line end ↵ and a real one
    unknown: bool  # <unk>: what stood here is lost


def show_tokens(tokenizer: Tokenizer, text: str) -> list[Shown]:
    """The tokens of a text, one for each id.

    >>> tokenizer = WordTokenizer.train("the fox, the hen")
    >>> [(gap, text) for gap, text, _ in show_tokens(tokenizer, "the fox, the dog")]
    [('', 'the'), (' ', 'fox'), ('', ','), (' ', 'the'), (' ', '<unk>')]
    """
    ids = tokenizer.encode(text)
    unk_id = getattr(tokenizer, "unk_id", None)  # BPE has none
    shown = []
    # not strict: at the end the stream gives what is left of a broken character
    for index, piece in zip(ids, tokenizer.decode_stream(ids), strict=False):
        token = tokenizer.token_text(index)
        gap = " " if piece == " " + token else ""
        shown.append(Shown(gap, visible(token), index == unk_id))
    return shown


def visible(token: str) -> str:
    """A token with its white space and control characters made visible.

    >>> visible(" fox"), visible("\\t"), visible("\\n"), visible("\\x1b"), visible("\\u200b")
    ('·fox', '⇥', '↵\\n', '<0x1B>', '<U+200B>')
    """
    marks = {" ": "·", "\t": "⇥", "\n": "↵\n"}
    seen = []
    for character in token:
        if character in marks:
            seen.append(marks[character])
        elif character.isprintable():
            seen.append(character)
        else:
            code = ord(character)
            seen.append(f"<0x{code:02X}>" if code < 0x80 else f"<U+{code:04X}>")
    return "".join(seen) or "‿"  # the word tokenizer's "no space here"


def colour_tokens(tokenizer: Tokenizer, text: str, colour: bool = True) -> str:
    """The tokens of a text on backgrounds of different colours, for a terminal.

    The text keeps its lines. Without colour a | stands before each token but the first.

    >>> tokenizer = BPETokenizer.train("low lower lowest", vocab_size=259)
    >>> colour_tokens(tokenizer, "low lowest", colour=False)
    'low|·|lowe|s|t'
    """
    shown = show_tokens(tokenizer, text)
    if not colour:
        return "|".join(gap + token for gap, token, _ in shown)
    parts = []
    for i, (gap, token, unknown) in enumerate(shown):
        ink = RED if unknown else BLACK  # black on pastel reads well on any terminal
        start = f"\033[48;5;{ANSI_PASTELS[i % len(ANSI_PASTELS)]};38;5;{ink}m"
        dotted = token.replace("·", f"\033[38;5;{DIM}m·\033[38;5;{ink}m")
        # Colour ends before a line does: some terminals fill the rest of the line with it.
        lines = [f"{start}{part}\033[0m" if part else "" for part in dotted.split("\n")]
        parts.append(gap + "\n".join(lines))
    return "".join(parts)


def describe(name: str, tokenizer: Tokenizer, text: str, shown: list[Shown]) -> str:
    """A line of figures: vocabulary 1,024, 52 tokens, 3.81 characters per token."""
    line = f"{name}: vocabulary {tokenizer.vocab_size:,}, {len(shown):,} tokens"
    if shown:
        line += f", {len(text) / len(shown):.2f} characters per token"
    unknown = sum(each.unknown for each in shown)
    return line + (f", {unknown:,} unknown" if unknown else "")


@functools.cache
def known_characters() -> frozenset[int]:
    """The code points that the pictures' monospaced font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans Mono")).get_charmap())


def drawable(text: str) -> str:
    """The text, with a box in the place of each character that the font lacks."""
    known = known_characters()
    return "".join(each if ord(each) in known else MISSING for each in text)


class Box(NamedTuple):
    """A token in the picture, or the part of it that is in one row."""

    row: int
    column: int
    text: str
    token: int  # its number in the text


def lay_out(shown: Iterable[Shown], columns: int) -> Iterator[Box]:
    """Tokens in rows of so many columns; a word that does not fit goes to the next row.

    >>> tokens = [Shown("", "the", False), Shown(" ", "fox", False), Shown("", "es", False)]
    >>> [tuple(box) for box in lay_out(tokens, 7)]
    [(0, 0, 'the', 0), (1, 0, 'fox', 1), (1, 3, 'es', 2)]
    """
    words: list[list[tuple[int, str]]] = []
    gaps = []
    for i, (gap, text, _) in enumerate(shown):
        if gap or text[0] in "·↵" or not words:
            gaps.append(gap)
            words.append([])
        words[-1].append((i, text))
    row = column = 0
    for gap, word in zip(gaps, words, strict=True):
        column += len(gap)
        if column + sum(len(text) for _, text in word) > columns:
            row, column = row + (column > 0), 0
        for i, text in word:
            for number, line_of_token in enumerate(text.split("\n")):
                if number:
                    row, column = row + 1, 0
                for at in range(0, len(line_of_token), columns):
                    part = line_of_token[at : at + columns]
                    if column + len(part) > columns:  # a word longer than a row
                        row, column = row + 1, 0
                    yield Box(row, column, part, i)
                    column += len(part)


def plot_tokens(tokenizers: dict[str, Tokenizer], text: str, path: Path) -> None:
    """What several tokenizers make of one text, under each other, as a PNG.

    Raises UserError for a text that is too long for a picture.
    """
    panels, rows = [], 0  # each panel has a title, the text, and an empty row
    for name, tokenizer in tokenizers.items():
        shown = show_tokens(tokenizer, text)
        boxes = list(lay_out(shown, COLUMNS))
        panels.append((rows, describe(name, tokenizer, text, shown), boxes, shown))
        rows += (boxes[-1].row + 1 if boxes else 0) + 2
    if rows > MOST_ROWS:
        raise UserError(f"the picture would have {rows:,} rows of text: show a shorter text")
    width, height = COLUMNS * CELL + 2 * MARGIN, (rows - 1) * ROW + 2 * MARGIN
    figure, axes = new_figure((width, height))
    axes.set(position=(0, 0, 1, 1), xlim=(-MARGIN, width - MARGIN), ylim=(height - MARGIN, -MARGIN))
    axes.set_axis_off()
    for first_row, title, boxes, shown in panels:
        axes.text(0, (first_row + 0.4) * ROW, title, size=SIZE - 1, weight="bold", va="center")
        for box in boxes:
            draw_box(axes, box, (first_row + box.row + 1.5) * ROW, shown[box.token].unknown)
    figure.savefig(path, format="png", dpi=DPI)


def draw_box(axes, box: Box, middle: float, unknown: bool) -> None:
    """One token: a coloured box and the text in it. Units of the axes: inches."""
    from matplotlib.patches import FancyBboxPatch

    colour = PASTELS[box.token % len(PASTELS)]
    left, width = box.column * CELL, len(box.text) * CELL
    inset, height = 0.008, 0.86 * ROW
    axes.add_patch(
        FancyBboxPatch(
            (left + inset, middle - height / 2),
            width - 2 * inset,
            height,
            boxstyle="round,pad=0,rounding_size=0.035",
            facecolor="white" if unknown else colour,
            edgecolor="#be123c" if unknown else "none",
        )
    )
    spaces = "".join("·" if each == "·" else " " for each in box.text)
    style = dict(size=SIZE, family="DejaVu Sans Mono", va="center_baseline", parse_math=False)
    axes.text(left, middle, spaces, color="#9ca3af", **style)
    axes.text(left, middle, drawable(box.text.replace("·", " ")), color="#111827", **style)


# ---------------------------------------------------------------------------------------------
# Compression against vocabulary size
# ---------------------------------------------------------------------------------------------

SIZES = (256, 512, 1024, 2048, 4096, 8192)


class Compression(NamedTuple):
    """What a trained tokenizer makes of a held-out text."""

    vocab_size: int
    characters_per_token: float
    unknown: float  # share of the tokens
    exact: bool  # decoding gives the text back


def compress(tokenizer: Tokenizer, text: str) -> Compression:
    """Encodes a text and decodes it again.

    >>> compress(WordTokenizer.train("the fox, the hen"), "the fox, the dog")
    Compression(vocab_size=8, characters_per_token=3.2, unknown=0.2, exact=False)
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise UserError("the held-out text has no tokens: give a longer text")
    unknown = ids.count(getattr(tokenizer, "unk_id", None)) / len(ids)
    exact = tokenizer.decode(ids) == text
    return Compression(tokenizer.vocab_size, len(text) / len(ids), unknown, exact)


def measure_compression(
    train: str, held_out: str, sizes: Iterable[int] = SIZES
) -> dict[str, list[Compression]]:
    """Every tokenizer, trained on `train` at every size that it can have, on a held-out text.

    A size below the alphabet's is left out, and one that the text does not fill is drawn where
    the vocabulary ended. Raises UserError if no size is large enough.
    """
    sizes = sorted(sizes)
    measured = {"Char": [Compression(len(set(train + held_out)), 1.0, 0.0, True)]}  # by definition
    for name, trainer in TRAINERS.items():
        points = {}
        for size in sizes:
            try:
                tokenizer = trainer(train, size)
            except UserError:
                if size == sizes[-1]:
                    raise
                continue
            points.setdefault(tokenizer.vocab_size, compress(tokenizer, held_out))
        measured[name] = list(points.values())
    return measured


def plot_compression(measured: dict[str, list[Compression]], path: Path, name: str) -> None:
    """Characters per token against vocabulary size, as a PNG. name: of the text, for the title."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = new_figure()
    points = [each for points in measured.values() for each in points]
    axes.set(
        title=f"Compression against vocabulary size: {drawable(name)}",
        xlabel="vocabulary size, tokens",
        ylabel="characters per token, held-out text",
        xscale="log",
        ylim=(0, 1.1 * max(each.characters_per_token for each in points)),
    )
    axes.title.set_parse_math(False)
    for colour, row in zip(COLOURS, measured.values(), strict=False):
        axes.plot(*zip(*[each[:2] for each in row], strict=True), color=colour)
        if len(row) > 1:  # a text offers only so many tokens: more cannot be had
            end = row[-1].characters_per_token
            rightmost = max(each.vocab_size for each in points)
            axes.plot([row[-1].vocab_size, rightmost], [end, end], ":", color=colour, lw=1)
        draw_points(axes, row, colour)
    label_ends(axes, {name: row[-1] for name, row in measured.items()})
    for fill, text in (("black", "the text comes back exactly"), ("white", "some of it is lost")):
        axes.plot([], [], "o", ms=5, mec="black", mfc=fill, label=text)
    style = dict(marker=r"$\%$", ms=9, mew=0, color="black")
    axes.plot([], [], " ", label="of the tokens stand for unknown words", **style)
    axes.legend(frameon=False, loc="lower right")
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    figure.savefig(path, format="png", dpi=DPI)


def draw_points(axes, row: list[Compression], colour: str) -> None:
    """A tokenizer's points: hollow where text is lost, with the share of unknown tokens."""
    labelled = 0
    for each in row:
        at, face = each[:2], colour if each.exact else "white"
        axes.plot(*at, "o", ms=5, mec=colour, mfc=face, zorder=3)
        if each.unknown >= 0.001 and each.vocab_size > 1.5 * labelled:  # there is room
            labelled = each.vocab_size
            style = dict(xytext=(6, 7), textcoords="offset points", ha="right", size=9)
            axes.annotate(f"{100 * each.unknown:.2g} %", at, color=colour, **style)


def label_ends(axes, ends: dict[str, Compression]) -> None:
    """Names at the right edge, moved apart where they would overlap; Char is where its point is."""
    apart = 0.05 * axes.get_ylim()[1]
    colours = dict(zip(ends, COLOURS, strict=False))
    style = dict(xytext=(8, 0), textcoords="offset points", va="center", weight="bold")
    axes.annotate("Char", ends["Char"][:2], color=colours["Char"], **style)
    names = sorted(set(ends) - {"Char"}, key=lambda name: ends[name].characters_per_token)
    heights = [ends[name].characters_per_token for name in names]
    up, down = heights.copy(), heights.copy()
    for i in range(1, len(names)):
        up[i] = max(up[i], up[i - 1] + apart)
        down[-1 - i] = min(down[-1 - i], down[-i] - apart)
    right = max(each.vocab_size for each in ends.values())
    for name, high, low in zip(names, up, down, strict=True):
        axes.annotate(name, (right, (high + low) / 2), color=colours[name], **style)


def print_compression(measured: dict[str, list[Compression]]) -> None:
    """The numbers behind the picture."""
    print("tokenizer   vocabulary   characters per token   unknown tokens   text comes back")
    for name, row in measured.items():
        for size, per_token, unknown, exact in row:
            end = f"{100 * unknown:14.2f} %   {'yes' if exact else 'no'}"
            print(f"{name:10} {size:11,} {per_token:22.3f} {end}")


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------

SAMPLE, PASSAGE = 1_000_000, 240  # characters: tokenizers are trained on; shown by default


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}: see --help")


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    recall = commands.add_parser("recall", help="draw recall against distance of several models")
    recall.add_argument("recall", nargs="+", type=Path, help="recall.csv files")
    tokens = commands.add_parser("tokens", help="show where five tokenizers cut a text")
    tokens.add_argument("--text", help="what to show (some lines of the validation text)")
    tokens.add_argument(
        "--vocab-size", type=int, default=1024, help="of all but Char (%(default)s)"
    )
    compression = commands.add_parser(
        "compression", help="draw characters per token against vocabulary size"
    )
    for command in (tokens, compression):
        command.add_argument(
            "--dataset", default="tales", help="NAME or PATH of the text to train on (%(default)s)"
        )
    recall.add_argument("--out", type=Path, default=Path("recall.png"), help="(%(default)s)")
    tokens.add_argument("--out", type=Path, help="a PNG to write as well (none)")
    compression.add_argument(
        "--out", type=Path, default=Path("compression.png"), help="(%(default)s)"
    )
    return parser.parse_args()


def in_colour() -> bool:
    """Does standard output go to a terminal that wants colours (no-color.org)?"""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def passage(text: str) -> str:
    """Its first PASSAGE characters or a little less: up to the end of a line, else of a word."""
    text = text.lstrip()
    start = text[: PASSAGE + 1]
    if len(start) <= PASSAGE:
        return text
    return (start.rpartition("\n")[0] or start.rpartition(" ")[0] or start[:-1]).rstrip()


def run(args: argparse.Namespace) -> None:
    if args.out and (args.out.is_dir() or not args.out.parent.is_dir()):  # said before the work
        why = "a folder" if args.out.is_dir() else "no such folder"
        raise UserError(f"cannot write {args.out} ({why}): name another file")
    if args.command == "recall":
        plot_recall(args.recall, args.out)
        return
    corpus = load_text(args.dataset)
    train, held_out = corpus.train[:SAMPLE], corpus.valid[:SAMPLE]
    if args.command == "compression":
        measured = measure_compression(train, held_out)
        plot_compression(measured, args.out, Path(corpus.name).name)
        print_compression(measured)
        return
    text = passage(held_out) if args.text is None else args.text
    if not text:
        raise UserError("there is nothing to show: give a --text that is not empty")
    tokenizers = train_all(train, args.vocab_size, also=text)
    if args.out:
        plot_tokens(tokenizers, text, args.out)
    for name, tokenizer in tokenizers.items():
        print(describe(name, tokenizer, text, show_tokens(tokenizer, text)))
        print(colour_tokens(tokenizer, text, in_colour()), end="\n\n")


def main() -> int:
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        run(parse_args())
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # what is read has errors of its own
        why = f"cannot write {error.filename} ({error.strerror}): name another file"
        print(f"error: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
