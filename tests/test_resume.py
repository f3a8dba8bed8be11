"""Stopped or killed at any moment, then resumed: equal to never stopped, to the bit."""

from __future__ import annotations

import csv
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import (
    PATIENCE,
    QUICK,
    ROOT,
    Result,
    assert_one_line_error,
    clock,
    copied,
    environment,
    printed_command,
    words,
)

# Dropout on: so the dice must be restored too.
LONG = "--steps 40 --eval-every 20 --save-every 1000 --dropout 0.3 --lr 0.01 --seed 11"


@pytest.fixture
def flags(spec, text_file) -> list[str]:
    return words(spec.flags, QUICK, LONG, "--dataset", text_file)


@pytest.fixture
def train(mods, run_main) -> Callable[..., Result]:
    """Train in this process."""
    return lambda *parts: run_main(mods.train, *parts)


@pytest.fixture
def uninterrupted(train, flags, tmp_path) -> Path:
    out = tmp_path / "uninterrupted"
    assert train(flags, "--out", out).status == 0
    return out


def metrics_without_seconds(out: Path) -> list[list[str]]:
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [row[:2] + row[3:] for row in csv.reader(file)]


def assert_equal(one: object, other: object, where: str = "") -> None:
    """Equal to the bit, whatever is nested in it."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def without_times(checkpoint: dict) -> dict:
    """A checkpoint but for what a clock put into it."""
    progress = dict(checkpoint["progress"])
    progress["history"] = [row[:2] + row[3:] for row in progress["history"]]
    for measured in ("seconds", "evaluation"):
        progress.pop(measured, None)
    return checkpoint | {"progress": progress}


def assert_same_results(one: Path, other: Path) -> None:
    """Weights, optimizer, dice, metrics, samples: all but the times."""
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(out / name, weights_only=True) for out in (one, other))
        assert_equal(without_times(a), without_times(b), name)
    assert metrics_without_seconds(one) == metrics_without_seconds(other)
    assert (one / "samples.txt").read_bytes() == (other / "samples.txt").read_bytes()
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


def signal_at_step(patch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Send a signal to this process while the given step (of those to come) is under way."""
    clip, count = torch.nn.utils.clip_grad_norm_, [0]

    def clip_and_signal(*args: object, **kwargs: object) -> torch.Tensor:
        count[0] += 1
        if count[0] == step:
            signal.raise_signal(number)
        return clip(*args, **kwargs)

    patch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_signal)


def test_stopped_again_and_again_equals_never_stopped(uninterrupted, train, flags, tmp_path):
    """Stops in the first step, between evaluations, at one, just after one, near the end."""
    out, at = tmp_path / "stopped", 0
    for stop in (1, 7, 20, 21, 28, 39):
        with pytest.MonkeyPatch.context() as patch:
            signal_at_step(patch, stop - at)
            how = ["--resume", out / "last.pt"] if at else [*flags, "--out", out]
            result = train(how)
        assert result.status == 130, result
        assert f"step {stop} of 40" in result.out
        assert result.err == ""
        at = stop
    assert train("--resume", out / "last.pt").status == 0
    assert_same_results(out, uninterrupted)


@copied("Stop")
def test_sigterm_ends_with_143(train, flags, tmp_path, monkeypatch):
    signal_at_step(monkeypatch, 5, signal.SIGTERM)
    result = train(flags, "--out", tmp_path)
    assert result.status == 143, result
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["step"] == 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # handlers are put back


def test_a_stop_in_the_last_step_can_be_resumed_or_is_the_end(train, flags, tmp_path, mods):
    """The command that a stopped run prints works, even where nothing is left to train."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 40)
        result = train(flags, "--out", tmp_path)
    if result.status != 0:
        assert result.status == 130
        command = shlex.split(printed_command(result.out, "train.py"))
        again = train(command[2:])
        assert again.status == 0, again.err


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_resume_is_exact_in_half_precision_too(train, flags, tmp_path, dtype):
    flags = [*flags, "--dtype", dtype]
    assert train(flags, "--out", tmp_path / "one").status == 0
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 13)
        assert train(flags, "--out", tmp_path / "two").status == 130
    assert train("--resume", tmp_path / "two" / "last.pt").status == 0
    assert_same_results(tmp_path / "two", tmp_path / "one")


@contextmanager
def started(spec, *parts: object) -> Iterator[subprocess.Popen]:
    """A training process, ended if it hangs."""
    command = [sys.executable, str(ROOT / spec.folder / "train.py"), *words(*parts)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes) as process:
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


@copied("Stop", "type_next")
def test_a_signal_saves_and_prints_a_command_that_goes_on(spec, train, flags, tmp_path):
    """With real processes: from the first evaluation on, the signal may come at any time."""
    flags = [*flags, "--steps", "600", "--eval-every", "200"]
    assert train(flags, "--out", tmp_path / "one").status == 0
    with started(spec, flags, "--out", tmp_path / "two") as process:
        while not process.stdout.readline().startswith("step 200"):
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, (out, err)
    assert err == ""
    command = shlex.split(printed_command(out, "train.py"))
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done
    assert_same_results(tmp_path / "two", tmp_path / "one")


def test_killed_before_the_first_step_equals_never_killed(
    uninterrupted, mods, train, flags, tmp_path
):
    """The first evaluation is in last.pt already, and must not be there twice."""

    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mods.train, "train_step", killed)
        assert train(flags, "--out", tmp_path / "killed").status == 130
    assert train("--resume", tmp_path / "killed" / "last.pt").status == 0
    assert_same_results(tmp_path / "killed", uninterrupted)


@copied("replacing", "save_checkpoint", "restore")
@pytest.mark.slow
def test_killed_at_20_random_moments_equals_never_killed(spec, train, flags, tmp_path):
    """SIGKILL leaves no time for anything. Where no last.pt exists yet, the run starts anew."""
    flags = [*flags, "--steps", "2000", "--eval-every", "400", "--save-every", "20"]
    assert train(flags, "--out", tmp_path / "one").status == 0
    dice, kills, number, out = random.Random(8), 0, 0, tmp_path / "run-0"
    while True:
        last = out / "last.pt"
        how = ["--resume", last] if last.exists() else [*flags, "--out", out]
        with started(spec, how) as process:
            assert process.stdout.readline(), process.stderr.read()  # it has begun
            if kills < 20:
                time.sleep(dice.uniform(0, 0.35))
                process.kill()
            process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), how
        if process.returncode == 0:
            folders = [path for path in out.iterdir() if path.is_dir()]  # of runs begun anew
            for folder in folders:
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
            assert_same_results(out, tmp_path / "one")
            number, out = number + 1, tmp_path / f"run-{number + 1}"
            if kills == 20:
                break


@copied("replacing")
def test_what_a_kill_left_behind_is_cleared_away(train, flags, tmp_path):
    """A kill in the middle of saving leaves a *.part; a later run of that folder removes it."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 5)
        assert train(flags, "--out", tmp_path).status == 130
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert not [name for name in saved if name.endswith(".part")]
    (tmp_path / "last.pt.part").write_bytes(b"half a checkpoint")
    assert train("--resume", tmp_path / "last.pt").status == 0
    assert not list(tmp_path.glob("*.part"))


# ------------------------------------------------------------------------------------- refusals


@pytest.fixture
def stopped(train, flags, tmp_path) -> Path:
    """last.pt of a run stopped at step 5."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 5)
        assert train(flags, "--out", tmp_path / "stopped").status == 130
    return tmp_path / "stopped" / "last.pt"


def test_a_resume_with_another_text_is_refused(stopped, train, tmp_path, text_file):
    text = text_file.read_text(encoding="utf-8")
    for name, changed in {
        "alphabet.txt": text + "é",
        "words.txt": text.replace("the", "teh"),
    }.items():
        (tmp_path / name).write_text(changed, encoding="utf-8")
        before = stopped.read_bytes()
        result = train("--resume", stopped, "--dataset", tmp_path / name)
        assert_one_line_error(result, name, str(text_file))
        assert stopped.read_bytes() == before


def test_a_resume_with_a_changed_file_of_the_same_name_is_refused(
    train, flags, tmp_path, text_file
):
    mine = tmp_path / "mine.txt"
    mine.write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 5)
        assert train(flags, "--dataset", mine, "--out", tmp_path / "out").status == 130
    mine.write_text(mine.read_text(encoding="utf-8") + "The end.", encoding="utf-8")
    assert_one_line_error(train("--resume", tmp_path / "out" / "last.pt"), "mine.txt")


def test_the_same_text_under_another_name_is_the_same_text(stopped, train, tmp_path, text_file):
    (tmp_path / "moved.txt").write_bytes(text_file.read_bytes())
    assert train("--resume", stopped, "--dataset", tmp_path / "moved.txt").status == 0


@copied("settle")
@pytest.mark.parametrize(
    "flag",
    [
        "--batch-size 5",
        "--context 9",
        "--seed 12",
        "--dropout 0",
        "--dtype bfloat16",
        "--preset full",
    ],
)
def test_a_resume_with_other_settings_is_refused(stopped, train, flag):
    assert_one_line_error(train("--resume", stopped, flag), *flag.split())


@copied("settle")
def test_a_checkpoint_from_before_a_flag_existed_goes_on(stopped, train, mods):
    saved = torch.load(stopped, weights_only=True)
    del saved["settings"]["ngrams"], saved["config"]["ngrams"]
    mods.train.write_checkpoint(stopped, saved)
    assert_one_line_error(train("--resume", stopped, "--ngrams 3"), "--ngrams 3")
    assert train("--resume", stopped).status == 0


def test_a_resume_with_another_model_size_is_refused(spec, stopped, train):
    for name, value in spec.size.items():
        flag = "--" + name.replace("_", "-")
        assert_one_line_error(train("--resume", stopped, flag, str(value + 1)), flag)


def test_a_resume_with_the_same_settings_spelled_out_goes_on(stopped, train, flags, uninterrupted):
    assert train(flags, "--resume", stopped).status == 0
    assert_same_results(stopped.parent, uninterrupted)


def test_a_resume_may_lengthen_the_run(stopped, train):
    result = train("--resume", stopped, "--steps 50")
    assert result.status == 0, result
    last = torch.load(stopped, weights_only=True)
    assert last["progress"]["step"] == last["settings"]["steps"] == 50


def test_a_finished_run_says_so_and_can_be_lengthened(uninterrupted, train):
    last = uninterrupted / "last.pt"
    before = last.read_bytes()
    assert_one_line_error(train("--resume", last), "over", "40", "--steps")
    assert_one_line_error(train("--resume", last, "--steps 20"), "over")
    assert last.read_bytes() == before
    assert train("--resume", last, "--steps 44").status == 0
    assert metrics_without_seconds(uninterrupted)[-1][0] == "44"


def test_a_resume_writes_beside_its_checkpoint_or_where_it_is_told(stopped, train, tmp_path):
    before = stopped.read_bytes()
    assert train("--resume", stopped, "--out", tmp_path / "elsewhere").status == 0
    assert stopped.read_bytes() == before
    assert (
        torch.load(tmp_path / "elsewhere" / "last.pt", weights_only=True)["progress"]["step"] == 40
    )


@copied("steps_that_fit", "restore")
@pytest.mark.slow
def test_minutes_resume_with_the_steps_that_were_fixed(
    spec, mods, train, text_file, tmp_path, monkeypatch
):
    """The number of steps is measured once; after that the run is like any other."""
    monkeypatch.setattr(time, "perf_counter", clock)
    flags = words(spec.flags, QUICK, "--minutes 0.06", "--dataset", text_file)
    fit = mods.train.steps_that_fit

    def fit_and_stop(*args: object) -> int:
        signal.raise_signal(signal.SIGINT)  # the next step is the last
        return fit(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mods.train, "steps_that_fit", fit_and_stop)
        result = train(flags, "--out", tmp_path)
    assert result.status == 130, result
    steps = re.search(r"after step (\d+) of (\d+)", result.out)
    assert train("--resume", tmp_path / "last.pt").status == 0
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["progress"]["step"] == int(steps[2]) > int(steps[1])


def test_a_resume_elsewhere_keeps_what_was_there_and_has_a_best(uninterrupted, train, tmp_path):
    """Even where nothing becomes better than it was: with a learning rate of 0."""
    out, more = tmp_path / "elsewhere", ["--resume", uninterrupted / "last.pt", "--lr 0"]
    out.mkdir()
    (out / "best.pt").write_bytes(b"of another run")
    result = train(*more, "--steps 50 --out", out)
    assert result.status == 0, result
    kept = [path.read_bytes() for path in out.glob("run-*/best.pt")]
    assert kept == [b"of another run"]
    assert torch.load(out / "best.pt", weights_only=True)["progress"]["step"] == 50
    (out / "best.pt").unlink()  # only last.pt was brought to another machine
    assert train("--resume", out / "last.pt", "--steps 60 --lr 0").status == 0
    assert torch.load(out / "best.pt", weights_only=True)["progress"]["step"] == 60
