"""train.py from start to end: what it writes, whether its numbers are true, how long it runs."""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, QUICK, ROOT, clock, copied, environment, printed_command, run_script
from torch.nn import functional as F

from shared.data.download import load_text

HEADER = "step,tokens,seconds,train_loss,val_loss,bits_per_char,learning_rate"
FILES = {"best.pt", "last.pt", "metrics.csv", "loss.png", "samples.txt"}


def read_metrics(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_five_files_and_nothing_else(trained):
    assert {path.name for path in trained.out.iterdir()} == FILES
    assert (trained.out / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert trained.result.err == ""


def test_metrics_have_the_promised_columns(trained):
    text = (trained.out / "metrics.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == HEADER
    assert "\r" not in text
    rows = read_metrics(trained.out)
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [0, 100, 200, 300]
    for row in rows:
        assert int(row["tokens"]) == int(row["step"]) * 4 * 8
        assert bool(row["val_loss"]) == bool(row["bits_per_char"])
        assert float(row["learning_rate"]) <= 0.01
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    assert rows[0]["train_loss"] == ""
    assert all(row["train_loss"] for row in rows[1:])


def test_the_loss_falls(trained):
    rows = read_metrics(trained.out)
    validation = [float(row["val_loss"]) for row in rows if row["val_loss"]]
    assert validation[-1] < validation[0] - 0.8
    start = [float(row["train_loss"]) for row in rows[1:20]]
    end = [float(row["train_loss"]) for row in rows[-20:]]
    assert sum(end) / len(end) < sum(start) / len(start) - 0.8


def test_samples_are_written_at_each_evaluation(trained):
    text = (trained.out / "samples.txt").read_text(encoding="utf-8")
    assert re.findall(r"^--- step (\d+)$", text, flags=re.MULTILINE) == ["0", "100", "200", "300"]


def test_best_is_the_checkpoint_with_the_lowest_validation_loss(mods, trained):
    losses = {
        int(r["step"]): float(r["val_loss"]) for r in read_metrics(trained.out) if r["val_loss"]
    }
    _, _, best = mods.generate.load_checkpoint(trained.best)
    assert best["progress"]["step"] == min(losses, key=losses.get)
    assert best["progress"]["best"] == min(losses.values())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_val_loss_is_that_of_a_slow_computation_over_the_whole_split(
    mods, spec, text_file, tmp_path, run_main, batch_size
):
    """Token by token, in plain sums: the split is read as `streams` texts, each from its start."""
    flags = [spec.flags, QUICK, "--steps 3 --eval-every 3", f"--batch-size {batch_size}"]
    result = run_main(mods.train, *flags, "--dataset", text_file, "--out", tmp_path)
    assert result.status == 0, result
    model, tokenizer, _ = mods.generate.load_checkpoint(tmp_path / "last.pt")
    text = text_file.read_text(encoding="utf-8")
    valid = torch.tensor(tokenizer.encode(text[int(0.9 * len(text)) :]))
    length = math.ceil((len(valid) - 1) / batch_size)
    total, count = 0.0, 0
    with torch.inference_mode():
        for stream in range(batch_size):
            state = None
            for i in range(stream * length, min((stream + 1) * length, len(valid) - 1)):
                logits, state = model(valid[i].view(1, 1), state)
                total -= F.log_softmax(logits[0, -1].double(), -1)[valid[i + 1]].item()
                count += 1
    assert count == len(valid) - 1  # every token but the first, each once
    row = read_metrics(tmp_path)[-1]
    assert float(row["val_loss"]) == pytest.approx(total / count, abs=1e-5)
    bits = total / math.log(2) / len(text[int(0.9 * len(text)) :]) * len(valid) / count
    assert float(row["bits_per_char"]) == pytest.approx(bits, abs=1e-5)


def training_tokens(mods, checkpoint: Path) -> int:
    tokenizer, saved = mods.generate.load_checkpoint(checkpoint)[1:]
    return len(tokenizer.encode(load_text(saved["dataset"]["name"]).train))


def test_the_first_line_tells_what_is_trained_on_what(spec, mods, trained, text_file):
    first = trained.result.out.splitlines()[0]
    size = training_tokens(mods, trained.last)
    for part in (str(text_file), f"{size:,} tokens", spec.name, "parameters", "cpu", "float32"):
        assert part in first
    assert "ln V" in first and "MB" in first


def test_each_evaluation_prints_one_line_and_a_sample(trained):
    lines = trained.result.out.splitlines()
    found = [i for i, line in enumerate(lines) if re.match(r"step \d+ ", line)]
    assert [int(lines[i].split()[1]) for i in found] == [0, 100, 200, 300]
    for i in found:
        assert "valid" in lines[i] and "bits/char" in lines[i] and "lr" in lines[i]
        assert lines[i + 1].startswith("    ")


def test_the_end_is_a_verdict_and_a_command_that_works(trained, tmp_path):
    verdicts = re.findall(r"^(learning|overfitting|diverged): ", trained.result.out, re.MULTILINE)
    assert verdicts == ["learning"]
    command = printed_command(trained.result.out, "generate.py")
    assert command == trained.result.out.splitlines()[-1].strip()
    done = subprocess.run(
        [*shlex.split(command), "--length", "20"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert len(done.stdout) >= 20


@copied("verdict")
@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([4.0, 3.0, 2.0], "learning"),
        ([4.0, 4.001], "learning"),  # three steps, say: nothing has happened yet
        ([4.0, 3.0, 2.9, 3.1], "overfitting"),
        ([4.0, 5.0], "diverged"),
        ([4.0, 1.0, 2.1], "diverged"),
        ([4.0, 3.0, math.nan], "diverged"),
    ],
)
def test_the_verdict_is_that_of_the_losses(mods, losses, word):
    corpus = SimpleNamespace(floor=None)
    history = [[step, 0, 0.0, None, loss, None, 0.1] for step, loss in enumerate(losses)]
    history.insert(1, [1, 0, 0.0, 3.5, None, None, 0.1])  # a line without an evaluation
    run = SimpleNamespace(
        history=history, baseline=1.0, corpus=corpus, bits_per_char=lambda nats: 2 * nats
    )
    assert mods.train.verdict(run).startswith(f"{word}: validation {min(losses):.4f} nats")


@copied("type_next")
def test_a_command_is_quoted_as_the_shell_of_the_system_wants_it(mods, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python"])
    assert mods.train.type_next("a.py", "my runs/best.pt").endswith("a.py 'my runs/best.pt'")
    monkeypatch.setattr(sys, "platform", "win32")  # where ' is a letter like others
    said = mods.train.type_next("a.py", r"runs\best.pt", r"my runs\best.pt")
    assert said.endswith(r'a.py runs\best.pt "my runs\best.pt"')


@copied("find", "set_aside", "shown")
@pytest.mark.slow
def test_default_out_and_relative_paths_from_inside_and_from_the_root(
    spec, folder_copy, text_file, tmp_path
):
    """`python train.py` in the folder and `python model-01.../train.py` above it do the same."""
    script, root = folder_copy / "train.py", folder_copy.parent
    before = (folder_copy / "checkpoints" / "last.pt").read_bytes()
    more = run_script(script, "--resume checkpoints/last.pt --steps 310", cwd=folder_copy)
    assert more.status == 0, more
    more = run_script(script, "--resume checkpoints/last.pt --steps 320", cwd=root)
    assert more.status == 0, more
    assert not (root / "checkpoints").exists()
    assert (folder_copy / "checkpoints" / "last.pt").read_bytes() != before
    flags = [spec.flags, QUICK, "--steps 2 --eval-every 2", "--dataset", text_file]
    fresh = run_script(script, *flags, cwd=tmp_path)
    assert fresh.status == 0, fresh
    assert not (tmp_path / "checkpoints").exists()
    kept = [path for path in (folder_copy / "checkpoints").iterdir() if path.is_dir()]
    assert len(kept) == 1 and {path.name for path in kept[0].iterdir()} == FILES
    assert {path.name for path in folder_copy.iterdir()} - {"__pycache__"} == {
        path.name for path in (ROOT / spec.folder).iterdir()
    } - {"__pycache__"} | {"checkpoints"}


# ------------------------------------------------------------------------------- earlier results


@pytest.fixture
def quick(spec, mods, text_file, run_main):
    """quick("--steps 3", ...): a run of this model in this process, on the small text."""

    def run(*parts: object):
        return run_main(mods.train, spec.flags, QUICK, "--dataset", text_file, *parts)

    return run


@copied("set_aside")
def test_results_of_earlier_runs_are_moved_aside(quick, tmp_path):
    """Even when three runs end in the same second."""
    written = set()
    for seed in (1, 2, 3):
        result = quick(f"--steps 2 --eval-every 2 --seed {seed}", "--out", tmp_path)
        assert result.status == 0, result
        written.add(hashlib.sha256((tmp_path / "best.pt").read_bytes()).hexdigest())
        for path in tmp_path.iterdir():
            if path.is_file():
                os.utime(path, (1.7e9, 1.7e9))
    kept = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("**/best.pt")}
    assert len(written) == 3
    assert kept == written
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == FILES


@copied("set_aside")
def test_a_new_run_leaves_files_alone_that_are_not_its_own(quick, tmp_path, text_file):
    """--out may be a folder with a novel, notes and pictures in it."""
    for name in ("novel.txt", "cat.png", "table.csv", "other-model.pt"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    assert quick("--steps 2 --eval-every 2", "--out", tmp_path).status == 0
    assert quick("--steps 2 --eval-every 2", "--out", tmp_path).status == 0
    for name in ("novel.txt", "cat.png", "table.csv", "other-model.pt"):
        assert (tmp_path / name).is_file(), f"{name} was moved"
        assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


def test_a_refused_run_touches_nothing(quick, tmp_path):
    assert quick("--steps 2 --eval-every 2", "--out", tmp_path).status == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert quick("--steps 2 --context 100000", "--out", tmp_path).status == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---------------------------------------------------------------------------------- how long


def test_epochs_are_passes_over_the_training_text(quick, mods, tmp_path):
    result = quick("--epochs 1 --eval-every 1000000", "--out", tmp_path)
    assert result.status == 0, result
    size = training_tokens(mods, tmp_path / "last.pt")
    last = mods.generate.load_checkpoint(tmp_path / "last.pt")[2]
    assert last["progress"]["step"] == (size - 1) // (4 * 8)


@copied("steps_that_fit")
@pytest.mark.slow
def test_minutes_train_that_long_and_the_steps_are_stored(quick, mods, tmp_path, monkeypatch):
    """Three seconds, evaluations included."""
    monkeypatch.setattr(time, "perf_counter", clock)
    start = clock()
    result = quick("--minutes 0.05", "--out", tmp_path)
    seconds = clock() - start
    assert result.status == 0, result
    assert 1.5 < seconds < 6
    last = mods.generate.load_checkpoint(tmp_path / "last.pt")[2]
    assert last["settings"]["steps"] == last["progress"]["step"] > 20
    assert read_metrics(tmp_path)[-1]["step"] == str(last["progress"]["step"])
    assert float(read_metrics(tmp_path)[-1]["learning_rate"]) < 1e-3  # the schedule fits the length


def test_minutes_measure_their_speed_for_one_minute_at_most(quick, mods, tmp_path, monkeypatch):
    """Until the length is fixed nothing is saved: of ten hours the first would be at risk."""
    clock = itertools.count(0, 0.25)  # seconds; 240 steps are a minute
    fake = SimpleNamespace(**vars(time) | {"perf_counter": lambda: next(clock)})
    monkeypatch.setattr(mods.train, "time", fake)
    stop = iter([0] * 300 + [signal.SIGINT] * 99)
    monkeypatch.setattr(mods.train.Stop, "signal", property(lambda _: next(stop)), raising=False)
    saved, save = [], mods.train.save_checkpoint
    monkeypatch.setattr(
        mods.train, "save_checkpoint", lambda run, *a: (saved.append(run.step), save(run, *a))
    )
    assert quick("--minutes 600", "--out", tmp_path).status == 130
    assert 100 < saved[2] < 300, saved  # after best.pt and last.pt of step 0


@pytest.mark.parametrize("spec", MODELS[:3], ids=lambda spec: spec.folder)  # they carry a state
def test_every_epoch_shows_every_text_and_targets_follow_inputs(mods, spec, text_file, tmp_path):
    """One epoch's batches hold each position of the text once, but for the rest of a division."""
    parser_words = [*spec.flags.split(), *QUICK.split(), "--steps", "3", "--seed", "4"]
    args = [*parser_words, "--dataset", str(text_file), "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr("sys.argv", ["train.py", *args])
        run = mods.train.prepare(mods.train.parse_args())
    run.train = torch.arange(len(run.train))  # each token is its own position
    seen = []
    for step in range((len(run.train) - 1) // 32):
        run.step = step
        inputs, targets, beginning = mods.train.get_batch(run)
        # with attention, also after every four windows
        every = 4 * getattr(run.args, "window", 10**9) // run.args.context
        assert beginning == (run.step % every == 0)
        assert torch.equal((inputs + 1) % len(run.train), targets)
        if run.step:  # each stream goes on where it was
            assert torch.equal((before + 1) % len(run.train), inputs[:, 0])  # noqa: F821
        before = inputs[:, -1]  # noqa: F841
        seen += inputs.flatten().tolist()
    assert len(set(seen)) == len(seen) > len(run.train) - 33


# --------------------------------------------------------------------------- numbers and compilers


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_trains(quick, mods, tmp_path, dtype):
    flags = f"--dtype {dtype} --steps 200 --eval-every 200 --lr 0.01"
    result = quick(flags, "--out", tmp_path)
    assert result.status == 0 and result.err == "", result
    assert dtype in result.out.splitlines()[0]
    rows = read_metrics(tmp_path)
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"]) - 0.4
    model, _, checkpoint = mods.generate.load_checkpoint(tmp_path / "last.pt")
    assert checkpoint["settings"]["dtype"] == dtype
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_a_seed_fixes_everything(quick, mods, tmp_path):
    weights = []
    for n, seed in enumerate((3, 3, 4)):
        out = tmp_path / str(n)
        assert (
            quick(f"--steps 5 --eval-every 5 --dropout 0.2 --seed {seed}", "--out", out).status == 0
        )
        weights.append(mods.generate.load_checkpoint(out / "last.pt")[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.slow
def test_compile_trains_or_says_in_one_line_that_it_does_not(spec, text_file, tmp_path):
    script, flags = ROOT / spec.folder / "train.py", [spec.flags, QUICK]
    flags += ["--compile --context 2 --steps 3 --eval-every 3 --dataset", text_file]
    result = run_script(script, *flags, "--out", tmp_path)
    assert result.status == 0, result
    checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all("_orig_mod" not in name for name in checkpoint["model"])


@copied("compiled")
def test_compile_without_a_compiler_falls_back_with_one_line(quick, monkeypatch, tmp_path):
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler\nand a long story about it")

    monkeypatch.setattr(torch, "compile", broken)
    with_flag = quick("--compile --steps 3 --eval-every 3", "--out", tmp_path / "a")
    without = quick("--steps 3 --eval-every 3", "--out", tmp_path / "b")
    assert with_flag.status == without.status == 0
    told = [line for line in with_flag.out.splitlines() if "--compile" in line]
    assert len(told) == 1 and "no C++ compiler" in told[0]
    assert (tmp_path / "a" / "samples.txt").read_bytes() == (
        tmp_path / "b" / "samples.txt"
    ).read_bytes()


@pytest.mark.slow
def test_training_on_tales_ends_with_the_recall_figure_and_the_floor(
    spec, mods, tmp_path, run_main
):
    result = run_main(
        mods.train, spec.flags, QUICK, "--steps 2 --eval-every 2 --dataset tales --out", tmp_path
    )
    assert result.status == 0, result
    assert "no model can go below" in result.out
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"recall.csv", "recall.png"}
    with (tmp_path / "recall.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "kind", "distance", "choices", "right"]
    names = {row["model"] for row in rows}
    assert f"{mods.train.NGRAM_ORDER}-gram" in names and len(names) == 2
    assert all(int(row["choices"]) >= 2 and row["right"] in "01" for row in rows)
