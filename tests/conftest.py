"""What all tests share: the list of models, their modules, a small text, tiny checkpoints.

Five modules called `model` meet in one process here, so `modules` loads each folder's files the
way Python does when a script of that folder starts (its own folder first on sys.path), and then
takes the plain names away again.

Nothing is written into the checkout: every run gets --out, or works on a copy of its folder.

The suite runs in several processes (pytest-xdist; `-n 0`: in this one), each with one thread.
What takes long to make and is only read is made by one of them for all: see `made_once`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it; the tests' models are tiny
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started with `&`: Ctrl-C must work in tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from shared.data.download import locked  # noqa: E402
from shared.data.tales import write_corpus  # noqa: E402
from shared.utils import visualize  # noqa: E402


class Spec(NamedTuple):
    """One model folder, as the tests need to know it."""

    folder: str
    name: str  # the class in model.py
    flags: str  # its smallest sensible shape
    unit: str = "character"  # what a token is

    @property
    def size(self) -> dict[str, int]:
        """The same as arguments of the class, beside vocab_size."""
        pairs = zip(*[iter(self.flags.split())] * 2, strict=True)
        sizes = [(flag, int(value)) for flag, value in pairs if value.isdigit()]
        return {flag[2:].replace("-", "_"): value for flag, value in sizes}


MODELS = [
    Spec("model-01-char-rnn", "CharRNN", "--hidden-size 16 --layers 1"),
    Spec("model-02-word-rnn", "WordRNN", "--hidden-size 16 --layers 1", "word"),
    Spec("model-03-lstm-attention", "AttentionLSTM", "--hidden-size 16 --layers 1", "word"),
    Spec("model-04-mini-transformer", "MiniTransformer", "--hidden-size 16 --layers 1 --heads 2"),
    Spec("model-05-gpt-style", "GPT", "--hidden-size 16 --layers 1 --heads 2 --arch gpt"),
]


def copied(*names: str) -> pytest.MarkDecorator:
    """Run a test with the newest model only: these functions are the same in every folder.

    Or with the last of those that have it in common, too, and all after it. test_copies.py sees
    to that, to the letter. A name that may differ is refused here.
    """
    from test_copies import SAME, UP_TO

    same = set().union(*SAME.values())
    counts = [len(MODELS)] * bool(same & set(names))
    for count, files in UP_TO.items():
        counts += [count] * bool(set().union(*files.values()) & set(names))
        same |= set().union(*files.values())
    assert set(names) <= same, f"{names}: may differ between models"
    chosen = MODELS[min(counts) - 1 :]
    return pytest.mark.parametrize("spec", chosen, ids=lambda spec: spec.folder)


# How long something takes: seconds of the processor, which other programs do not lengthen.
# Windows counts them in steps of 16 ms, too coarse for what is short.
clock = time.perf_counter if os.name == "nt" else time.process_time
PATIENCE = 600  # seconds until something hangs; a crowded machine is slow

QUICK = "--batch-size 4 --context 8 --dtype float32 --device cpu"  # for every model
MODULES = (
    *("model", "generate", "ngram", "train", "interactive"),
    *("embeddings", "cells", "show_attention", "show_gradients", "show_length"),
    *("blanks", "looking"),
    *("llama", "muon", "averaging", "speed", "decoding", "data", "parallel"),
    *("hub", "tensors", "pretrained", "transfer"),
    *("quantize", "lora", "baselines", "tuning", "finetune_spam"),
    *("instruction_data", "finetune_instruct", "finetune_dpo", "finetune_grpo"),
    *("metrics", "report", "evaluate"),
)


@functools.cache
def modules(folder: str) -> SimpleNamespace:
    """The modules of a model's folder: modules("model-01-char-rnn").train, ..."""
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    sys.path.insert(0, str(ROOT / folder))
    try:
        there = [name for name in MODULES if (ROOT / folder / f"{name}.py").exists()]
        found = {name: importlib.import_module(name) for name in there}
    finally:
        sys.path.remove(str(ROOT / folder))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
    for name, module in found.items():
        sys.modules[f"{folder.replace('-', '_')}.{name}"] = module
    return SimpleNamespace(**found)


# --------------------------------------------------------------------------------- running things


class Result(NamedTuple):
    """How a command line ended."""

    status: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    """This process's, offline, and without what could change how a command behaves."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COLUMNS")}
    return kept | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"} | changes


def words(*parts: object) -> list[str]:
    """Strings are split as in a shell, lists are words already, a path is one word.

    >>> words("--steps 3", "--out", Path("a b"), ["--prompt", "c d"])
    ['--steps', '3', '--out', 'a b', '--prompt', 'c d']
    """
    found: list[str] = []
    for part in parts:
        if isinstance(part, list):
            found += map(str, part)
        else:
            found += shlex.split(part) if isinstance(part, str) else [str(part)]
    return found


def run_script(
    script: Path, *parts: object, cwd: Path | None = None, stdin: str = "",
    env: dict[str, str] | None = None, **more: object,
) -> Result:  # fmt: skip
    """Run a script as its user does, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(script), *words(*parts)],
        input=stdin.encode(),
        capture_output=True,
        cwd=cwd or ROOT,
        env=environment(**(env or {})),
        timeout=PATIENCE,
        check=False,
        **more,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def run_main(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a module's command line in this process: run_main(module, "--steps 3", ...) -> Result.

    A second faster than a process. An exception that would be a traceback comes out as itself.
    And loss.png, which takes longer than a tiny run, is not drawn: runs in processes draw it.
    """

    def plot_nothing(rows: list[dict], path: Path, **_: object) -> None:
        path.write_bytes(b"\x89PNG\r\n\x1a\n")

    monkeypatch.setattr(visualize, "plot_loss", plot_nothing)

    def run(module: object, *parts: object) -> Result:
        capsys.readouterr()
        script = Path(module.__file__)
        monkeypatch.setattr(sys, "argv", [str(script), *words(*parts)])
        status = 0
        with torch.random.fork_rng():
            try:
                module.command(module.main)
            except SystemExit as end:
                status = end.code or 0
        return Result(status, *capsys.readouterr())

    return run


def assert_one_line_error(result: Result, *mentioned: str) -> None:
    """The design's promise for a user's mistake: `error: what: what to do`, and status 2."""
    assert result.status == 2, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: "), result.err
    assert "Traceback" not in result.err
    for text in mentioned:
        assert text in lines[0], (text, lines[0])


def printed_command(out: str, script: str) -> str:
    """The command line that a run tells its user to type next."""
    found = re.findall(rf"^ +(.*{re.escape(script)}.*)$", out, flags=re.MULTILINE)
    assert found, out
    return found[-1]


# ----------------------------------------------------------------------------------- the fixtures


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """made_once(name, make) -> a folder that make(folder) has filled, once for all processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / f"once-{name}"
        with (shared / f"once-{name}.lock").open("a+") as lock:
            while not locked(lock):
                time.sleep(0.05)
            if not folder.exists():  # or half made, if it failed: then others fail as well
                folder.mkdir()
                make(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def text_file(made_once: Callable) -> Path:
    """20,000 characters of tales."""

    def write(folder: Path) -> None:
        (folder / "small.txt").write_text(write_corpus(20_000, seed=1)[0], encoding="utf-8")

    return made_once("text", write) / "small.txt"


@pytest.fixture(params=MODELS, ids=lambda spec: spec.folder)
def spec(request: pytest.FixtureRequest) -> Spec:
    """Each model in turn."""
    return request.param


@pytest.fixture
def mods(spec: Spec) -> SimpleNamespace:
    """The modules of that model's folder."""
    return modules(spec.folder)


class Trained(NamedTuple):
    """A finished tiny run."""

    out: Path
    best: Path
    last: Path
    flags: list[str]  # all but --out
    result: Result


@pytest.fixture(scope="session")
def trained_of(made_once: Callable, text_file: Path) -> Callable[[Spec], Trained]:
    """A tiny run of each model, trained once. Its files are to be read, not changed."""

    @functools.cache
    def trained(spec: Spec) -> Trained:
        flags = words(spec.flags, QUICK, "--steps 300 --eval-every 100 --lr 0.01 --seed 5")
        flags += words("--dataset", text_file)

        def train(folder: Path) -> None:
            result = run_script(ROOT / spec.folder / "train.py", *flags, "--out", folder / "out")
            assert result.status == 0, result
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")

        folder = made_once(spec.folder, train)
        result = Result(*json.loads((folder / "result.json").read_text(encoding="utf-8")))
        out = folder / "out"
        return Trained(out, out / "best.pt", out / "last.pt", flags, result)

    return trained


@pytest.fixture(scope="session")
def house(
    tmp_path_factory: pytest.TempPathFactory, made_once: Callable, trained_of: Callable,
    text_file: Path,
) -> Path:  # fmt: skip
    """A copy of the checkout with a tiny trained model in each folder and a novel to read.

    Each process has its own, because the commands that run there write into it.
    """

    def build(place: Path) -> None:
        house = place / "house"
        unwanted = ("cache", "checkpoints", "__pycache__", "tests", ".*", "*.egg*")
        shutil.copytree(ROOT, house, ignore=shutil.ignore_patterns(*unwanted))
        for model in MODELS:
            shutil.copytree(trained_of(model).out, house / model.folder / "checkpoints")
        for folder in [house, *(house / model.folder for model in MODELS)]:
            shutil.copy(text_file, folder / "my_novel.txt")
        finetuned(house / MODELS[4].folder)

    own = tmp_path_factory.mktemp("readme") / "house"
    shutil.copytree(made_once("house", build) / "house", own)
    return own


def finetuned(folder: Path) -> None:
    """What a README of model 05 calls its fine-tuned models, tiny, in its checkpoints/."""
    from test_finetune_spam import some_messages  # which need this file
    from test_instructions import write_start

    checkpoints = folder / "checkpoints"
    (unfinished := folder.parent.parent / "start").mkdir()
    start = write_start(unfinished)  # a model that knows a template
    for name in ("base", "instruct", "dpo", "grpo"):
        (checkpoints / name).mkdir()
        shutil.copy(start, checkpoints / name / "best.pt")
    rows = "".join(f"{label}\t{text}\n" for label, text in some_messages(150))
    (folder.parent / "messages.tsv").write_text(rows, encoding="utf-8")
    shutil.copy(checkpoints / "best.pt", checkpoints / "base.pt")  # no other command replaces it
    for mode, out in (("all", "spam"), ("lora", "spam-lora")):  # what lora.py looks at
        flags = f"--checkpoint checkpoints/base.pt --train {mode} --epochs 1 --device cpu"
        flags = [*words(flags), "--dataset", folder.parent / "messages.tsv"]
        done = run_script(folder / "finetune_spam.py", flags, "--out", checkpoints / out)
        assert done.status == 0, done


@pytest.fixture
def trained(spec: Spec, trained_of: Callable) -> Trained:
    return trained_of(spec)


@pytest.fixture
def folder_copy(spec: Spec, tmp_path: Path, trained: Trained) -> Iterator[Path]:
    """A copy of the model's folder, with that run in its checkpoints/."""
    copy = tmp_path / "house" / spec.folder
    unwanted = shutil.ignore_patterns("checkpoints", "__pycache__")
    shutil.copytree(ROOT / spec.folder, copy, ignore=unwanted)
    shutil.copytree(trained.out, copy / "checkpoints")
    return copy
