"""docs/results.md says what docs/results.json holds, and --check finds what is not so."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT, assert_one_line_error, modules, run_script, words

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import results
import results_page

SCRIPT = ROOT / "tests" / "benchmarks" / "results.py"
STORE = results.load()
QUICK = [name for name, row in results.ROWS.items() if row.quick and name in STORE]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The measurements, in a file that may be changed."""
    path = tmp_path / "results.json"
    path.write_text(results.STORE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(results, "STORE", path)
    return path


def check(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results.py", "--check", *flags])
    return results.main()


# ---------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("path", results_page.render(STORE, ROOT), ids=lambda path: path.name)
def test_pages_are_made_of_the_measurements(path):
    made = results_page.render(STORE, ROOT)[path]
    assert path.read_text(encoding="utf-8") == made, f"use python {SCRIPT.name} --render"


def test_the_front_page_has_the_table_of_the_defaults():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert text.count(results_page.BEGIN) == text.count(results_page.END) == 1
    table = text.partition(results_page.BEGIN)[2].partition(results_page.END)[0]
    figures = re.findall(r"\| (\d\.\d{4}) \|", table)
    assert len(figures) == 6 and all(f"| {figure} |" in page for figure in figures)
    assert "docs/results.md" in text


def test_every_row_of_the_page_is_measured_by_the_command_of_today():
    """And what is not measured, the page says."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, row in results.ROWS.items():
        if name in STORE:
            assert STORE[name]["command"] == row.command, f"{name}: measure it again"
            assert STORE[name].get("read") or not row.by_hand
        assert (f"`{name}`" in page) == (name not in STORE), name
    assert set(results_page.EXPECTED) == set(results.ROWS)
    assert len(QUICK) >= 5 and set(STORE) <= set(results.ROWS)


def test_a_number_that_changes_in_the_file_changes_the_page():
    page = results_page.render(STORE, ROOT)
    for name, row in STORE.items():
        for key in {"nats", "bits", "parameters", "memory", "wall_seconds"} & set(row):
            changed = {**STORE, name: {**row, key: 1.5 * row[key]}}
            assert results_page.render(changed, ROOT) != page or row.get("read"), (name, key)


# ------------------------------------------------------------------------------------ the commands


@pytest.mark.parametrize("name", results.ROWS)
def test_every_figure_has_a_command_that_its_script_understands(name, monkeypatch):
    python, script, *arguments = shlex.split(results.ROWS[name].command)
    path = ROOT / script
    assert python == "python" and path.is_file()
    monkeypatch.setattr(sys, "argv", [path.name, *arguments])
    if path.name == "train.py":
        train = modules(path.parent.name).train
        args = train.parse_args()
        train.settle(args, None)
        assert args.dataset in ("tales", "tales-25mb", "tiny-shakespeare")
    else:
        source = path.read_text(encoding="utf-8")
        assert all(f'"{flag}"' in source for flag in arguments if flag.startswith("--"))


def test_the_models_are_those_that_were_measured():
    """A preset that changes makes its row a lie."""
    for name, row in STORE.items():
        if "preset" in row:
            script, *flags = shlex.split(row["command"])[1:]
            preset = flags[flags.index("--preset") + 1] if "--preset" in flags else "small"
            now = modules(Path(script).parent.name).train.PRESETS[preset]
            assert row["preset"] == now, f"measure it again: --only {name} --again"


# --------------------------------------------------------------------------------------- --check


def again(row: results.Row, cores: int) -> dict:
    """Stands for a measurement: finds what is in the checkout's file."""
    return {**STORE[row.name], "machine": {**STORE[row.name]["machine"], "cores": cores}}


def test_check_passes_where_all_is_true(stored, monkeypatch, capsys):
    monkeypatch.setattr(results, "measure", again)
    assert check(monkeypatch) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(QUICK) and all(line.startswith("ok") for line in out)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("key", ["nats", "bits", "parameters", "command"])
def test_check_fails_where_a_figure_was_altered(stored, monkeypatch, capsys, name, key):
    monkeypatch.setattr(results, "measure", again)
    changed = {**STORE, name: {**STORE[name], key: "x"}}
    if key != "command":
        changed[name][key] = 1.01 * STORE[name][key]
    stored.write_text(json.dumps(changed), encoding="utf-8")
    pages = results_page.render(changed, ROOT)  # page and file agree: only measuring can tell
    monkeypatch.setattr(results, "render", lambda *_: {p: p.read_text("utf-8") for p in pages})
    assert check(monkeypatch, "--only", name) == 1
    assert f"WRONG {name}" in capsys.readouterr().err


def test_check_fails_where_the_page_was_altered(stored, monkeypatch, capsys, tmp_path):
    path = results.ROOT / "docs" / "results.md"
    text = results_page.render(STORE, ROOT)[path]
    monkeypatch.setattr(results, "measure", again)
    monkeypatch.setattr(results, "render", lambda *_: {path: text.replace("1", "2")})
    assert check(monkeypatch) == 1
    assert "docs/results.md is not what docs/results.json gives" in capsys.readouterr().err


def test_another_machine_may_differ_a_little(stored, monkeypatch):
    name = next(name for name in QUICK if "tiny" in name)
    row = STORE[name]

    def elsewhere(_: results.Row, cores: int) -> dict:
        share = 1.005
        off = {"nats": share * row["nats"], "bits": share * row["bits"]}
        return {**row, **off, "machine": {**row["machine"], "cpu": "another"}}

    monkeypatch.setattr(results, "measure", elsewhere)
    assert check(monkeypatch, "--only", name) == 0
    monkeypatch.setattr(results, "SAME", 0)
    monkeypatch.setattr(results, "OTHER", 0.004)
    assert check(monkeypatch, "--only", name) == 1


@pytest.mark.slow
def test_a_row_is_measured_again_in_earnest(stored, monkeypatch, tmp_path, text_file):
    """By the real thing, on a text that every machine has."""
    command = f"python model-01-char-rnn/ngram.py --dataset {shlex.quote(str(text_file))} --order 3"
    row = results.Row("shakespeare-ngram-chars", "ngram", command, quick=True)
    monkeypatch.setitem(results.ROWS, row.name, row)
    store = {**STORE, row.name: results.measure(row, 1)}
    wrong = [line for line in results.lies(store, [row.name]) if line.startswith(row.name)]
    assert wrong == []  # but for the pages, which know nothing of it
    store[row.name]["nats"] += 0.01
    assert any(line.startswith(row.name) for line in results.lies(store, [row.name]))


# -------------------------------------------------------------------------------------- measuring


@pytest.mark.slow
def test_a_training_run_is_read(text_file, monkeypatch):
    flags = "--preset tiny --steps 20 --eval-every 10 --device cpu --dtype float32"
    command = f"python model-01-char-rnn/train.py --dataset {shlex.quote(str(text_file))} {flags}"
    found = results.measure(results.Row("x", "train", command), 1)
    assert found["steps"] == 20 and found["dtype"] == "float32" and found["class"] == "CharRNN"
    assert [line[0] for line in found["history"]] == [0, 10, 20]
    assert found["nats"] == min(line[3] for line in found["history"])
    assert found["parameters"] > 1000 and found["seconds"] <= found["wall_seconds"]
    assert found["sample"] and "--- step" not in found["sample"]
    assert found["memory"] is None or found["memory"] > 1e8


def test_a_run_made_by_hand_is_read(stored, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "write_pages", lambda _: None)
    (tmp_path / "metrics.csv").write_text(
        "step,tokens,seconds,train_loss,val_loss,bits_per_char,learning_rate\n"
        "0,0,0.0,,4.0,5.77,0.1\n10,100,1.5,3.0,2.0,2.885,0.1\n12,120,1.8,3.0,,,0.1\n",
        encoding="utf-8",
    )
    (tmp_path / "samples.txt").write_text("--- step 0\nx\n\n--- step 10\ny\n\n", encoding="utf-8")
    rows = ["7-gram,name,5,4,1", "A,name,5,4,1", "A,name,7,4,0", "A,name,9,2,1"]
    header = "model,kind,distance,choices,right"
    (tmp_path / "recall.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    argv = words("results.py --read recall-01", tmp_path)
    monkeypatch.setattr(sys, "argv", argv)
    assert results.main() == 0
    found = json.loads(stored.read_text(encoding="utf-8"))["recall-01"]
    assert (found["steps"], found["seconds"], found["nats"], found["bits"]) == (12, 1.8, 2.0, 2.885)
    assert found["sample"] == "y" and found["read"]
    assert found["recall"]["A"] == {"4": [1, 2, 0.5], "8": [1, 1, 0.5]}


def test_measuring_goes_on_where_it_stopped(stored, monkeypatch):
    """Only what is missing, and each row is stored before the next begins."""
    first, second = list(results.ROWS)[:2]
    stored.write_text(
        json.dumps({k: v for k, v in STORE.items() if k not in (first, second)}), encoding="utf-8"
    )
    asked = []

    def killed(row: results.Row, cores: int) -> dict:
        asked.append(row.name)
        if row.name == second:
            raise KeyboardInterrupt
        return STORE[row.name]

    monkeypatch.setattr(results, "measure", killed)
    monkeypatch.setattr(sys, "argv", ["results.py"])
    with pytest.raises(KeyboardInterrupt):
        results.main()
    assert asked == [first, second]
    assert set(json.loads(stored.read_text(encoding="utf-8"))) == set(STORE) - {second}


@pytest.mark.parametrize(
    ("flags", "mentioned"),
    [
        ("--only nonsense", "no such row"),
        ("--read tokenizers-train .", "no such run"),
        ("--read recall-01 nowhere", "no finished run"),
        ("--nonsense", "see --help"),
    ],
)
def test_mistakes_are_one_line(flags, mentioned):
    assert_one_line_error(run_script(SCRIPT, flags), mentioned)


def test_a_command_that_fails_says_so():
    with pytest.raises(results.UserError, match=r"ngram\.py .*ended with 2: error: "):
        results.run("python model-01-char-rnn/ngram.py --dataset nowhere.txt", 1)
