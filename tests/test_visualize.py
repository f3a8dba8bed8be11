"""Pictures are what they claim, and a mistake is one line."""

from __future__ import annotations

import itertools
import re
import struct
import sys
import warnings
from pathlib import Path

import pytest
from conftest import ROOT, Result, assert_one_line_error, run_script, words

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils import visualize
from shared.utils.tokenizers.bpe import BPETokenizer
from shared.utils.tokenizers.word import WordTokenizer
from shared.utils.tokenizers.wordpiece import WordPieceTokenizer

SCRIPT = ROOT / "shared" / "utils" / "visualize.py"
HEADER = "model,kind,distance,choices,right\n"
ROWS = "".join(
    f"{name},name,{distance},4,{(distance + i) % 2}\n"
    for name in ("7-gram", "CharRNN")
    for i, distance in enumerate((0, 1, 8, 15, 16, 100, 1000, 1001))
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


def history(*rows: tuple) -> list[dict]:
    return [dict(zip(("tokens", "train_loss", "val_loss"), row, strict=True)) for row in rows]


HISTORIES = {
    "usual": history((0, None, 4.2), (1000, 3.5, None), (2000, 3.0, 3.1)),
    "one point": history((0, None, 4.2)),
    "no evaluation": history((1000, 3.5, None), (2000, 3.0, None)),
    "no training": history((0, None, 4.2), (1000, None, 3.0)),
}


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("baseline", [None, ("5-gram", 1.9), ("5-gram", float("nan"))])
@pytest.mark.parametrize("floor", [None, 0.5])
def test_loss_is_drawn_with_and_without_its_lines(tmp_path, name, baseline, floor):
    path = tmp_path / "loss.part"  # whatever the name: a PNG
    visualize.plot_loss(HISTORIES[name], path, "A title", 1 / 0.6931, baseline, floor)
    assert size_of_png(path) == (960, 600)


def test_the_loss_picture_shows_what_it_is_given(tmp_path):
    pictures = set()
    for baseline, floor in [(None, None), (("5-gram", 1.9), None), (("5-gram", 1.9), 0.5)]:
        visualize.plot_loss(HISTORIES["usual"], tmp_path / "p", "t", 1.44, baseline, floor)
        pictures.add((tmp_path / "p").read_bytes())
    assert len(pictures) == 3


def test_the_loss_picture_takes_any_name_of_a_file(tmp_path):
    for title in ("on my$x_{$.txt", "on 雪.txt"):
        visualize.plot_loss(HISTORIES["usual"], tmp_path / "p", title, 1.44)
        assert size_of_png(tmp_path / "p") == (960, 600)


def test_curves_of_several_models_are_drawn(tmp_path):
    curves = {"RNN": [(0, 6.0), (10, 3.0), (100, 2.1)], "GPT": [(5, 2.5)]}
    pictures = set()
    for lines in ({}, {"7-gram": 2.2}, {"7-gram": 2.2, "entropy floor": 0.25}):
        visualize.plot_curves(curves, tmp_path / "p", "A title", "seconds", lines)
        assert size_of_png(tmp_path / "p") == (960, 600)
        pictures.add((tmp_path / "p").read_bytes())
    assert len(pictures) == 3


def test_recall_of_several_models_is_drawn(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + ROWS, encoding="utf-8")
    (tmp_path / "b.csv").write_text(HEADER + ROWS.replace("CharRNN", "GPT"), encoding="utf-8")
    visualize.plot_recall([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "recall.png")
    assert size_of_png(tmp_path / "recall.png") == (960, 600)


def test_recall_answers_are_read_by_model(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "X,name,12,3,1\nX,name,40,3,0\n", encoding="utf-8")
    assert visualize.read_recall([tmp_path / "a.csv"]) == {
        "X": [(12, 1 / 3, True), (40, 1 / 3, False)]
    }


def test_the_command_line_draws(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + ROWS, encoding="utf-8")
    result = run_script(
        SCRIPT, "recall", tmp_path / "a.csv", "--out", tmp_path / "r.png", cwd=tmp_path
    )
    assert result.status == 0 and result.err == "", result
    assert size_of_png(tmp_path / "r.png") == (960, 600)


DAMAGED = {
    "another table": b"step,loss\n1,2\n",
    "words for numbers": (HEADER + "X,name,far,3,1\n").encode(),
    "a row cut off": (HEADER + "X,name,12\n").encode(),
    "not text": b"\xff\xfe\x00" * 50,
    "zeros": bytes(100),
    "nothing": b"",
    "header alone": HEADER.encode(),
    "an endless field": (HEADER + '"' + "x" * 200_000).encode(),
    "no choices": (HEADER + "X,name,12,0,1\n").encode(),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_refused_by_name(tmp_path, name):
    (tmp_path / "bad.csv").write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=r"bad\.csv"):
        visualize.plot_recall([tmp_path / "bad.csv"], tmp_path / "r.png")
    assert not (tmp_path / "r.png").exists()


def test_mistakes_on_the_command_line_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.csv").write_bytes(DAMAGED["another table"])
    for flags in (
        ["recall", tmp_path / "none.csv"],
        ["recall", tmp_path / "bad.csv"],
        ["recall"],
        [],
        ["--nonsense"],
        ["tokens", "--dataset", tmp_path / "none.txt"],
        ["tokens", "--vocab-size", "20"],
        ["tokens", "--vocab-size", "many"],
        ["tokens", ["--text", ""]],
        ["compression", "--dataset", tmp_path / "none.txt"],
    ):
        monkeypatch.setattr(sys, "argv", ["visualize.py", *words(*flags)])
        assert_one_line_error(Result(visualize.main(), *capsys.readouterr()))
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.csv"]


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + ROWS, encoding="utf-8")
    result = run_script(SCRIPT, "recall", tmp_path / "a.csv", "--out", tmp_path / "no" / "r.png")
    assert_one_line_error(result, "cannot write", "r.png", "no such folder")


def test_a_picture_is_refused_before_the_work_and_after_it(tmp_path, monkeypatch, capsys):
    out = tmp_path / "c.png"
    monkeypatch.setattr(sys, "argv", ["visualize.py", "compression", "--out", str(tmp_path)])
    monkeypatch.setattr(visualize, "load_text", None)  # not called
    assert_one_line_error(Result(visualize.main(), *capsys.readouterr()), "a folder")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(visualize, "plot_recall", full)
    monkeypatch.setattr(sys, "argv", ["visualize.py", "recall", "a.csv", "--out", str(out)])
    assert_one_line_error(Result(visualize.main(), *capsys.readouterr()), "c.png", "No space")


# ------------------------------------------------------------------------- where tokens are cut

TEXT = "The fox said:\n\n  “Naïve 漢字 😀!”\tCosts $5, or $6?\x1b[31m\u200b\u0301\n"


@pytest.fixture(scope="module")
def five() -> dict:
    return visualize.train_all(write_corpus(100_000, seed=1)[0], 1024, also=TEXT)


def uncoloured(shown: str) -> str:
    return re.sub(r"\033\[[\d;]*m", "", shown)


def test_all_five_tokenizers_are_there(five):
    assert list(five) == ["Char", "Word", "BPE", "WordPiece", "Unigram"]


@pytest.mark.parametrize("name", ["Char", "BPE", "Unigram"])
def test_the_tokens_shown_add_up_to_the_text(five, name):
    text = write_corpus(3000, seed=7)[0]
    shown = visualize.show_tokens(five[name], text)
    assert len(shown) == len(five[name].encode(text))
    assert not any(gap or unknown for gap, _, unknown in shown)
    back = "".join(token for _, token, _ in shown)
    assert back.replace("↵\n", "\n").replace("·", " ") == text
    assert len(text.splitlines()) > 3  # or there was nothing to see


def test_spaces_that_are_in_no_token_stand_outside_them():
    tokenizer = WordTokenizer.train("the fox, the hen  sat")
    shown = visualize.colour_tokens(tokenizer, "the  fox, the dog", colour=False)
    assert shown == "the|··|fox|,| the| <unk>"
    tokenizer = WordPieceTokenizer(["[UNK]", "fox", "##es", "!"])
    assert visualize.colour_tokens(tokenizer, "foxes\nfox!", colour=False) == "fox|##es| fox|!"


def test_parts_of_a_character_are_shown_as_bytes(five):
    assert visualize.colour_tokens(five["Unigram"], "漢", False) == "<0xE6>|<0xBC>|<0xA2>"
    assert visualize.colour_tokens(five["BPE"], "漢", False) == "<0xE6>|<0xBC>|<0xA2>"
    tokenizer = BPETokenizer.train("漢" * 9, vocab_size=257)  # one merge: two bytes of three
    assert visualize.colour_tokens(tokenizer, "漢", False) in (
        "<0xE6><0xBC>|<0xA2>",
        "<0xE6>|<0xBC><0xA2>",
    )


@pytest.mark.parametrize("name", ["Char", "Word", "BPE", "WordPiece", "Unigram"])
def test_neighbours_have_different_colours_and_no_colour_crosses_a_line_end(five, name):
    coloured = visualize.colour_tokens(five[name], TEXT)
    assert uncoloured(coloured) == visualize.colour_tokens(five[name], TEXT, False).replace("|", "")
    backgrounds = []
    for line in coloured.split("\n"):
        pieces = re.findall(r"\033\[48;5;(\d+);38;5;\d+m(.+?)\033\[0m", line)
        assert line.count("\033[48") == line.count("\033[0m") == len(pieces)
        backgrounds += [colour for colour, _ in pieces]
    assert len(backgrounds) == len(five[name].encode(TEXT))  # no token here spans two lines
    assert all(a != b for a, b in itertools.pairwise(backgrounds))


def test_a_token_with_two_line_ends_has_one_colour():
    tokenizer = BPETokenizer.train("a\n\n" * 9, vocab_size=257)
    colours = re.findall(r"48;5;(\d+)", visualize.colour_tokens(tokenizer, "a\n\n\na"))
    assert visualize.colour_tokens(tokenizer, "\n\n", False) == "↵\n↵\n"
    assert len(colours) == 5 and len(set(colours[1:3])) == 1


def test_the_text_cannot_send_codes_to_the_terminal(five):
    shown = visualize.colour_tokens(five["Char"], TEXT.strip(), False)
    assert "<0x1B>|[|3|1|m|<U+200B>" in shown
    for code in ("\x07", "\x9b", "\u202e", "\r", "\x7f", "\u2028", "\ufeff"):
        assert visualize.visible(code).isprintable()


def test_rows_are_filled_and_nothing_is_lost_or_overlaps(five):
    text = write_corpus(2000, seed=7)[0] + "x" * 70
    for tokenizer in five.values():
        shown = visualize.show_tokens(tokenizer, text)
        boxes = list(visualize.lay_out(shown, 30))
        assert "".join(box.text for box in boxes) == "".join(
            token.replace("\n", "") for _, token, _ in shown
        )
        assert [box.token for box in boxes] == sorted(box.token for box in boxes)
        for box, following in itertools.pairwise(boxes):
            assert box.column + len(box.text) <= 30
            assert following.row > box.row or following.column >= box.column + len(box.text)
            assert following.row <= box.row + 2


def test_all_tokenizers_share_one_picture_without_warnings(five, tmp_path):
    heights = []
    for chosen in (["BPE"], ["BPE", "Word"], list(five)):
        visualize.plot_tokens({name: five[name] for name in chosen}, TEXT, tmp_path / "t.part")
        heights.append(size_of_png(tmp_path / "t.part")[1])
    assert sorted(set(heights)) == heights


def test_the_picture_depends_on_where_the_cuts_are(tmp_path):
    pictures = set()
    for size in (256, 257, 258):
        tokenizer = BPETokenizer.train("low low low", vocab_size=size)
        visualize.plot_tokens({"": tokenizer}, "low", tmp_path / "t.png")
        pictures.add((tmp_path / "t.png").read_bytes())
    assert len(pictures) == 3


def test_dollars_in_a_token_are_not_read_as_mathematics(tmp_path):
    tokenizer = BPETokenizer.train("$_$ " * 9, vocab_size=258)
    assert visualize.colour_tokens(tokenizer, "$_$", False) == "$_$"
    visualize.plot_tokens({"BPE": tokenizer}, "$_$", tmp_path / "t.png")
    assert size_of_png(tmp_path / "t.png")[0] == 930


def test_a_text_too_long_for_a_picture_is_refused(five, tmp_path):
    with pytest.raises(UserError, match="shorter text"):
        visualize.plot_tokens(five, "a\n" * 1000, tmp_path / "t.png")
    assert not (tmp_path / "t.png").exists()


def test_the_tokens_command_works_offline_without_arguments(tmp_path):
    result = run_script(SCRIPT, "tokens", cwd=tmp_path)
    assert result.status == 0 and result.err == "", result
    assert [line.split(":")[0] for line in result.out.splitlines() if "vocabulary" in line] == [
        "Char", "Word", "BPE", "WordPiece", "Unigram",
    ]  # fmt: skip
    assert "\033" not in result.out and "|" in result.out  # no terminal, so no colours
    assert list(tmp_path.iterdir()) == []


def test_the_tokens_command_draws_any_text(tmp_path, text_file):
    flags = ["tokens", "--dataset", text_file, ["--text", TEXT], "--out", tmp_path / "t.png"]
    result = run_script(SCRIPT, *flags, env={"PYTHONIOENCODING": "ascii"})
    assert result.status == 0 and result.err == "", result
    assert "漢" in result.out
    assert size_of_png(tmp_path / "t.png")[0] == 930


@pytest.mark.parametrize(
    ("terminal", "no_color", "expected"),
    [(True, "", True), (True, "1", False), (False, "", False)],
)
def test_colours_are_for_terminals_that_want_them(monkeypatch, terminal, no_color, expected):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(visualize.sys.stdout, "isatty", lambda: terminal)
    assert visualize.in_colour() is expected


def test_a_passage_ends_with_a_line_or_a_word():
    assert visualize.passage("\nshort") == "short"
    assert visualize.passage("word " * 100) == ("word " * 48).rstrip()
    assert visualize.passage(("x" * 99 + "\n") * 9) == "x" * 99 + "\n" + "x" * 99
    assert visualize.passage("x" * 999) == "x" * 240


# ------------------------------------------------------------- compression and vocabulary size


def test_compression_is_measured_on_the_held_out_text():
    train, held_out = write_corpus(60_000, seed=1)[0], write_corpus(6000, seed=2)[0]
    measured = visualize.measure_compression(train, held_out, (256, 512))
    assert list(measured) == ["Char", "Word", "BPE", "WordPiece", "Unigram"]
    assert [each.vocab_size for each in measured["BPE"]] == [256, 512]
    assert measured["Char"] == [(len(set(train + held_out)), 1.0, 0.0, True)]
    bytes_alone, merged = measured["BPE"]
    assert bytes_alone.characters_per_token == len(held_out) / len(held_out.encode())
    ids = BPETokenizer.train(train, 512).encode(held_out)
    assert merged == (512, len(held_out) / len(ids), 0.0, True)
    small, large = measured["Word"]
    assert not small.exact and small.unknown > large.unknown > 0
    assert [each.vocab_size for each in measured["Unigram"]] == [512]  # 256 hold the bytes alone


def test_a_size_that_the_text_does_not_fill_is_drawn_once():
    measured = visualize.measure_compression("low lower lowest", "low", (512, 1024, 2048))
    assert all(len(points) == 1 for points in measured.values())


def test_no_size_large_enough_is_an_error():
    with pytest.raises(UserError, match="vocab"):
        visualize.measure_compression("low lower lowest", "low", (8, 16))


def test_compression_is_drawn(tmp_path):
    train, held_out = write_corpus(60_000, seed=1)[0], write_corpus(6000, seed=2)[0]
    measured = visualize.measure_compression(train, held_out, (256, 512, 1024))
    visualize.plot_compression(measured, tmp_path / "c.part", "漢 costs $5 or $6")
    whole = (tmp_path / "c.part").read_bytes()
    assert size_of_png(tmp_path / "c.part") == (960, 600)
    exact = {name: [each._replace(exact=True) for each in row] for name, row in measured.items()}
    visualize.plot_compression(exact, tmp_path / "c.part", "漢 costs $5 or $6")
    assert (tmp_path / "c.part").read_bytes() != whole  # the hollow markers


def test_names_at_the_line_ends_do_not_overlap():
    _, axes = visualize.new_figure()
    axes.set_ylim(0, 4)
    heights = {"Char": 1.0, "Word": 3.0, "BPE": 3.01, "WordPiece": 3.02, "Unigram": 2.0}
    ends = {name: visualize.Compression(512, y, 0.0, True) for name, y in heights.items()}
    visualize.label_ends(axes, ends)
    placed = {text.get_text(): text.xy[1] for text in axes.texts}
    assert placed["Unigram"] == 2.0 and placed["Char"] == 1.0
    assert placed["WordPiece"] - placed["BPE"] >= 0.199 <= placed["BPE"] - placed["Word"]


@pytest.mark.slow
def test_the_compression_command_works_offline_without_arguments(tmp_path):
    result = run_script(SCRIPT, "compression", cwd=tmp_path)
    assert result.status == 0 and result.err == "", result
    assert re.search(r"^BPE +256 +1\.000 +0\.00 % +yes$", result.out, re.MULTILINE)
    assert size_of_png(tmp_path / "compression.png") == (960, 600)
