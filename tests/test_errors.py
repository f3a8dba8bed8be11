"""A user's mistake gets one line, `error: what is wrong: what to do`, and status 2. No traceback.

And what a hostile or damaged file may do to whoever opens it: nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, Result, assert_one_line_error, copied, run_script, words
from torch.nn import functional as F

from shared import UserError

needs_posix = pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")


@pytest.fixture
def train(mods, spec, run_main, tmp_path) -> Callable[..., Result]:
    """train("--steps 3", ...): in this process, into tmp_path / "out"."""
    return lambda *parts: run_main(
        mods.train, spec.flags, QUICK, "--steps 3 --out", tmp_path / "out", *parts
    )


@pytest.fixture
def generate(mods, run_main) -> Callable[..., Result]:
    return lambda *parts: run_main(mods.generate, *parts)


# ----------------------------------------------------------------------------------- the dataset

TEXTS = {
    "empty.txt": (b"", ["empty"]),
    "one.txt": (b"x", ["one character"]),
    "latin1.txt": ("Märchen".encode("latin-1") * 100, ["UTF-8"]),
    "binary.txt": (bytes(range(256)) * 10, ["UTF-8"]),
    "short.txt": (b"Once up", ["--context"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_be_used(train, tmp_path, name):
    content, mentioned = TEXTS[name]
    (tmp_path / name).write_bytes(content)
    assert_one_line_error(train("--dataset", tmp_path / name), name, *mentioned)
    assert not (tmp_path / "out").exists()


def test_a_text_of_any_few_tokens_trains_or_says_why_not(spec, train, tmp_path, recwarn):
    path, trained = tmp_path / "few.txt", []
    space = " " if spec.unit == "word" else ""
    for size in (*range(1, 14), 20, 30):
        path.write_text(space.join(("abcab cabba" + "ab" * 20)[:size]), encoding="utf-8")
        out = tmp_path / str(size)
        result = train("--batch-size 2 --context 4 --steps 1 --out", out, "--dataset", path)
        if result.status:
            assert_one_line_error(result, "few.txt")
            assert not out.exists()
        else:
            assert {"best.pt", "last.pt", "metrics.csv"} <= {each.name for each in out.iterdir()}
            assert result.err == ""
            assert "nan" not in (out / "metrics.csv").read_text(encoding="utf-8") + result.out
            trained.append(size)
    assert {20, 30} <= set(trained)
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("name", ["shakespear", "no/such/file.txt", "sms-spam", "."])
def test_a_dataset_that_does_not_exist(train, tmp_path, name):
    assert_one_line_error(train("--dataset", name), name)
    assert not (tmp_path / "out").exists()


def test_a_named_dataset_is_never_swapped(train, tmp_path, monkeypatch):
    monkeypatch.setenv("LMFS_DATA_DIR", str(tmp_path / "nothing here"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = train("--dataset tiny-shakespeare")
    assert_one_line_error(result, "tiny-shakespeare")
    assert "tales" not in result.out


# --------------------------------------------------------------------------------- the arguments

IMPOSSIBLE = {
    "train": (
        "--dropout 1 --batch-size 0 --context 0 --lr -1 --seed -1 --save-every 0 --eval-every 1.5",
        "--dropout 0.96 --batch-size x --context 1e3 --lr nan --seed 1e99 --save-every -5",
        "--dropout nan --batch-size -1 --context inf --lr inf --seed 0x10 --eval-every nan",
    ),
    "generate": (
        "--length 0 --temperature -1 --top-k -1 --top-p 2 --seed -1",
        "--length nan --temperature nan --top-k nan --top-p nan --seed nan",
        "--length 1.5 --temperature inf --top-k x --top-p -0.1 --seed 1e99",
    ),
}


@pytest.mark.parametrize(("script", "flags"), [(s, f) for s in IMPOSSIBLE for f in IMPOSSIBLE[s]])
def test_impossible_numbers_are_reported_all_together(mods, run_main, tmp_path, script, flags):
    more = words("--out", tmp_path / "out") if script == "train" else []
    result = run_main(getattr(mods, script), flags, more)
    assert_one_line_error(result, *re.findall(r"--[\w-]+ \S+", flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "x", "''"])
def test_an_impossible_size_or_length_of_the_run(spec, mods, run_main, value):
    lengths = ["--epochs", "--steps", "--minutes"] if value not in ("1.5", "x") else ["--steps"]
    for flag in [*spec.flags.split()[::2], *lengths]:
        assert_one_line_error(run_main(mods.train, f"{flag} {value}"), flag)


@pytest.mark.parametrize("flag", ["--seed", "--steps", "--length", "--epochs", "--context"])
def test_a_number_too_large_is_told_the_true_bound(mods, run_main, flag):
    """Bounds are printed as they can be typed: whole, not 2.14748e+09, and on the right side."""
    module = mods.generate if flag == "--length" else mods.train
    result = run_main(module, flag, "9" * 30)
    assert_one_line_error(result, flag)
    assert "e+" not in result.err
    assert not re.search(r"of at least \S+$", result.err.strip()), result.err


def test_all_kinds_of_bad_arguments_are_reported_together(mods, run_main):
    flags = "--preset huge --steps 0 --device abacus --dtype int3 --no-such-flag"
    result = run_main(mods.train, flags)
    assert_one_line_error(result, "--preset", "--steps", "--device", "--dtype", "--no-such-flag")


def test_lengths_exclude_each_other(mods, run_main):
    for flags in ("--steps 3 --epochs 1", "--epochs 1 --minutes 1", "--steps 3 --minutes 1"):
        assert_one_line_error(run_main(mods.train, flags), *re.findall(r"--\w+", flags))


@copied("Arguments")
@pytest.mark.parametrize("script", ["train", "generate", "interactive"])
@pytest.mark.parametrize(
    "flags", ["--no-such-flag", "surplus", "--seed", "--device abacus", "--temp 1", "--step 3"]
)
def test_an_argument_that_does_not_exist(mods, run_main, script, flags):
    assert_one_line_error(run_main(getattr(mods, script), flags), flags.split()[0])


@copied("pick_device")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there(mods, train, generate, trained, text_file, tmp_path, device):
    if getattr(torch.backends if device == "mps" else torch, device).is_available():
        pytest.skip(f"this machine has {device}")
    result = train("--dataset", text_file, "--device", device)
    assert_one_line_error(result, f"--device {device}", "cpu")
    assert not (tmp_path / "out").exists()
    result = generate("--checkpoint", trained.best, "--device", device)
    assert_one_line_error(result, f"--device {device}")


# ----------------------------------------------------------------------------------- the prompt


def test_unknown_characters_of_a_prompt_are_named(spec, generate, trained):
    result = generate("--checkpoint", trained.best, ["--prompt", "Once 雪 upon Ω 雪"])
    if spec.unit == "word":  # they are unknown words, and the model has a token for these
        assert result.status == 0 and "<unk>" not in result.out
        return
    assert_one_line_error(result, "'雪'", "'Ω'")
    assert result.out == ""


def test_an_empty_prompt(generate, trained):
    assert_one_line_error(generate("--checkpoint", trained.best, ["--prompt", ""]), "--prompt")


@copied("command")
def test_a_prompt_that_is_not_utf_8(spec, trained):
    script = ROOT / spec.folder / "generate.py"
    flags = ["--checkpoint", trained.best, "--prompt", os.fsdecode(b"caf\xe9")]
    assert_one_line_error(run_script(script, flags))


# ------------------------------------------------------------------------------- the checkpoint


def sealed(content: bytes) -> bytes:
    """What train.py makes of the bytes of a checkpoint: a SHA-256 behind them."""
    return content + hashlib.sha256(content).digest()


def saved(value: object, **how: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.fixture
def refused(mods, generate, run_main, tmp_path) -> Callable[..., None]:
    """Asserts that no script takes a file with this content as a checkpoint."""

    def check(content: bytes, *mentioned: str, scripts: tuple = ("train", "generate")) -> None:
        path = tmp_path / "bad.pt"
        path.write_bytes(content)
        flags = {"train": "--resume", "generate": "--checkpoint", "interactive": "--checkpoint"}
        for name in scripts:
            result = run_main(getattr(mods, name), flags[name], path)
            assert_one_line_error(result, *mentioned)
        assert path.read_bytes() == content

    return check


ALL = ("train", "generate", "interactive")


def test_no_checkpoint_there(generate, tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        assert_one_line_error(generate("--checkpoint", path), str(path), "train.py")


@copied("load_checkpoint")
def test_foreign_files_are_refused(refused):
    refused(b"", "bad.pt", scripts=ALL)
    refused(b"x", "bad.pt")
    refused(b"Once upon a time there was a text." * 10, "bad.pt", scripts=ALL)
    refused(saved({"model": {}}), "bad.pt", scripts=ALL)
    refused(saved(torch.zeros(3)), "bad.pt")
    refused(pickle.dumps([1, 2, 3]), "bad.pt")


FOREIGN = {
    "tensor": torch.zeros(3), "number": 3, "none": None, "list": [1, 2], "text": "hello",
    "empty dict": {}, "weights alone": {"head.weight": torch.zeros(2, 2)},
}  # fmt: skip


@copied("load_checkpoint")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_values_with_a_right_seal_are_refused(refused, kind):
    refused(sealed(saved(FOREIGN[kind])), "bad.pt")
    refused(sealed(b"no zip at all"), "bad.pt")
    refused(sealed(b""), "bad.pt")


@copied("load_checkpoint")
def test_a_truncated_checkpoint_is_refused(refused, trained):
    whole = trained.last.read_bytes()
    for size in (1, 31, 32, 33, 1000, len(whole) // 2, len(whole) - 33, len(whole) - 1):
        refused(whole[:size], "bad.pt")
    refused(whole + b"\0", "bad.pt")


@copied("load_checkpoint")
def test_any_flipped_bit_is_noticed(mods, trained, tmp_path):
    whole, dice = trained.last.read_bytes(), random.Random(4)
    places = [0, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(50))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.pt"):
            mods.generate.load_checkpoint(tmp_path / "damaged.pt")


@copied("load_checkpoint")
def test_a_checkpoint_with_code_in_it_never_runs_it(refused, trained, tmp_path):
    trap = tmp_path / "trap"
    honest = torch.load(trained.last, weights_only=True)
    loads = [Evil(trap), honest | {"model": Evil(trap)}, honest | {"dataset": [Evil(trap)]}]
    for load in loads:
        for content in (saved(load), saved(load, _use_new_zipfile_serialization=False)):
            refused(content, "bad.pt")
            refused(sealed(content), "bad.pt", scripts=ALL)
    refused(pickle.dumps(Evil(trap)), "bad.pt")
    refused(sealed(pickle.dumps(Evil(trap))), "bad.pt")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil(trap))).close()
    assert trap.exists()  # the trap would have worked


CHANGES = {
    "format": "another-project", "version": 2, "architecture": "SomethingElse",
    "config": {"vocab_size": 5}, "model": {}, "tokenizer": {"type": "quantum"}, "config ": 3,
}  # fmt: skip


@copied("load_checkpoint")
@pytest.mark.parametrize("key", CHANGES)
def test_a_checkpoint_of_another_kind_is_refused(refused, trained, key):
    checkpoint = torch.load(trained.last, weights_only=True)
    refused(sealed(saved(checkpoint | {key.strip(): CHANGES[key]})))


@copied("load_checkpoint")
@pytest.mark.parametrize(
    "key", ["config", "model", "tokenizer", "format", "version", "architecture"]
)
def test_a_checkpoint_without_one_of_its_parts_is_refused(refused, trained, key):
    checkpoint = torch.load(trained.last, weights_only=True)
    del checkpoint[key]
    refused(sealed(saved(checkpoint)), "bad.pt")


def test_a_message_of_another_version_says_which(refused, trained, spec):
    checkpoint = torch.load(trained.last, weights_only=True)
    refused(sealed(saved(checkpoint | {"version": 99})), "99", spec.name)


# --------------------------------------------------------------------------------- the machine


def test_an_out_that_is_a_file(train, tmp_path, text_file):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        assert_one_line_error(train("--dataset", text_file, "--out", out), str(out))
    assert (tmp_path / "out").read_text(encoding="utf-8") == "a file"


@copied("replacing", "save_checkpoint", "command")
@needs_posix
def test_a_full_disk(spec, text_file, tmp_path):
    """No file may grow beyond 20 KB: the first checkpoint does not fit."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    flags = [spec.flags, QUICK, "--steps 3", "--hidden-size 64", "--dataset", text_file]
    script = ROOT / spec.folder / "train.py"
    result = run_script(script, *flags, "--out", tmp_path / "out", preexec_fn=limit)
    assert_one_line_error(result)
    assert list((tmp_path / "out").iterdir()) == []


@copied("replacing", "save_checkpoint", "command")
@needs_posix
def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(
    mods, train, text_file, tmp_path, monkeypatch
):
    """From the third checkpoint on there is no room."""
    assert train("--dataset", text_file).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    fsync, count = os.fsync, [0]

    def full(handle: int) -> None:
        count[0] += 1
        if count[0] > 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    resume = words("--steps 300 --eval-every 1 --resume", tmp_path / "out" / "last.pt")
    result = train(resume)
    assert_one_line_error(result, "No space left on device")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(before)
    for name in ("best.pt", "last.pt"):
        mods.generate.load_checkpoint(tmp_path / "out" / name)


@copied("command")
@needs_posix
def test_out_of_memory(spec, text_file, tmp_path):
    """Weights of 14 GB where 8 GB may be had."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9, 8 * 10**9))

    flags = [QUICK, "--steps 3 --layers 1 --hidden-size 60000", "--dataset", text_file]
    script = ROOT / spec.folder / "train.py"
    result = run_script(script, *flags, "--out", tmp_path / "out", preexec_fn=limit)
    assert_one_line_error(result, "memory", "--batch-size")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_while_training(train, text_file, monkeypatch, error):
    def failing(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", failing)
    assert_one_line_error(train("--dataset", text_file), "memory", "--batch-size")


def test_not_every_error_about_memory_is_a_lack_of_it(train, text_file, monkeypatch):
    def failing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", failing)
    with pytest.raises(RuntimeError, match="illegal"):
        train("--dataset", text_file)


def spoil(patch: pytest.MonkeyPatch, call: int, how: Callable) -> None:
    """Change the training loss of the given step."""
    true, count = F.cross_entropy, [0]

    def cross_entropy(*args: object, **kwargs: object) -> torch.Tensor:
        loss = true(*args, **kwargs)
        if loss.requires_grad and torch.is_grad_enabled() and kwargs.get("reduction") != "sum":
            count[0] += 1
            if count[0] >= call:
                return how(loss)
        return loss

    patch.setattr(F, "cross_entropy", cross_entropy)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_names_the_step_and_keeps_the_checkpoint(
    train, mods, text_file, tmp_path, monkeypatch, value
):
    flags = words("--steps 20 --save-every 1 --eval-every 20 --dataset", text_file)
    # one call more than steps: memory is estimated on a first batch
    spoil(monkeypatch, 8, lambda loss: loss * float(value))
    result = train(flags)
    assert_one_line_error(result, value, "step 7", "--lr")
    last = mods.generate.load_checkpoint(tmp_path / "out" / "last.pt")[2]
    assert last["progress"]["step"] == 6
    assert all(weight.isfinite().all() for weight in last["model"].values())


def test_gradients_that_are_no_numbers_never_reach_a_saved_checkpoint(
    train, mods, text_file, tmp_path, monkeypatch
):
    """The loss is still fine in the step whose gradients are not; only the next loss is NaN."""
    flags = words("--steps 20 --save-every 1 --eval-every 20 --dataset", text_file)
    spoil(monkeypatch, 8, lambda loss: loss + (loss - loss.detach()).sqrt() * 0)
    assert_one_line_error(train(flags), "step", "--lr")
    last = mods.generate.load_checkpoint(tmp_path / "out" / "last.pt")[2]
    assert all(weight.isfinite().all() for weight in last["model"].values())
    best = mods.generate.load_checkpoint(tmp_path / "out" / "best.pt")[2]
    assert all(weight.isfinite().all() for weight in best["model"].values())


def test_ctrl_c_before_training_ends_without_a_traceback(mods, train, text_file, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mods.train, "prepare", interrupted)
    result = train("--dataset", text_file)
    assert result.status == 130 and result.err == ""


@pytest.mark.slow
@copied("command")
def test_real_processes_end_like_that_too(spec, tmp_path):
    """One of each script: the exit status and the one line are the process's own."""
    folder = ROOT / spec.folder
    train = run_script(folder / "train.py", "--steps 0 --lr nan --out", tmp_path / "out")
    assert_one_line_error(train, "--steps 0", "--lr nan")
    (tmp_path / "bad.pt").write_bytes(b"bad")
    for name in ("generate.py", "interactive.py"):
        assert_one_line_error(
            run_script(folder / name, "--checkpoint", tmp_path / "bad.pt"), "bad.pt"
        )
    assert not (tmp_path / "out").exists()


@copied("command")
def test_streams_that_are_closed_are_empty(mods, monkeypatch):
    """`python generate.py <&- >&- 2>&-`, or a program without a console, on Windows."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    said = []
    mods.generate.command(lambda: said.append((sys.stdin.read(), print("to nobody"))))
    assert said == [("", None)]
    for name in ("stdin", "stdout", "stderr"):
        getattr(sys, name).close()
