"""Plots are written as PNG files, and a damaged table is one line."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest
from conftest import ROOT, assert_one_line_error, run_script

from shared import UserError
from shared.utils import visualize

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
    result = run_script(SCRIPT, tmp_path / "a.csv", "--out", tmp_path / "r.png", cwd=tmp_path)
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


def test_mistakes_on_the_command_line_are_one_line(tmp_path):
    (tmp_path / "bad.csv").write_bytes(DAMAGED["another table"])
    for flags in ([tmp_path / "none.csv"], [tmp_path / "bad.csv"], [], ["--nonsense"]):
        result = run_script(SCRIPT, *flags, cwd=tmp_path)
        assert_one_line_error(result)
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.csv"]


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + ROWS, encoding="utf-8")
    result = run_script(SCRIPT, tmp_path / "a.csv", "--out", tmp_path / "no" / "r.png")
    assert_one_line_error(result, "r.png")
