"""interactive.py: through a pipe, and as a person sees it, through a terminal."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import PATIENCE, ROOT, Result, copied, environment, run_script

needs_posix = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
COMMANDS = ("/help", "/temperature", "/top-k", "/top-p", "/length", "/seed", "/reset", "/quit")


@pytest.fixture
def talk(mods, trained, run_main, monkeypatch) -> Callable[..., Result]:
    """talk("line", "line", flags="--seed 1"): a conversation in this process."""

    def run(*lines: str, flags: str = "--length 20 --seed 1") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return run_main(mods.interactive, "--checkpoint", trained.best, flags)

    return run


def after_options(result: Result) -> list[str]:
    """What was said after each of the last two lines that show the options."""
    assert result.status == 0 and result.err == "", result
    said = re.split(r"^  length \d+  temp.*\n", result.out, flags=re.MULTILINE)[-2:]
    assert all(text.startswith("Once") for text in said), result.out
    # the end of input adds a line break, /reset a line
    return [text.removesuffix("  as at the start\n").rstrip("\n") for text in said]


def test_it_goes_on_from_what_is_typed(talk, spec):
    result = talk("Once upon a time")
    assert spec.name in result.out.splitlines()[0]
    assert "300 steps" in result.out.splitlines()[0]
    text = result.out.split("\n", 1)[1]
    assert text.startswith("Once upon a time")
    assert len(text.rstrip("\n")) >= len("Once upon a time")


def test_same_seed_same_reply_and_a_free_seed_another(talk):
    lines = ("/seed 4", "Once", "/reset", "/seed 4", "Once")  # /reset: some keep what was said
    first, second = after_options(talk(*lines, flags="--length 60"))
    assert first == second
    first, second = after_options(talk("/seed", "Once", "/seed", "Once", flags="--length 60"))
    assert first != second


def test_temperature_0_is_greedy_whatever_the_seed(talk):
    lines = ("/seed 1", "Once", "/reset", "/seed 2", "Once")  # /reset: some keep what was said
    result = talk(*lines, flags="--length 40 --temperature 0")
    first, second = after_options(result)
    assert first == second


@copied("set_option")
def test_options_are_set_shown_and_reset(talk):
    result = talk(
        "/temperature 0.5", "/top-k 7", "/top-p 0.9", "/length 5", "/seed 3", "/reset", "/seed 9"
    )
    shown = result.out.strip().splitlines()[1:]
    assert "temperature 0.5" in shown[0] and "temperature 0.5" in shown[4]
    assert "top-k 7" in shown[1]
    assert "top-p 0.9" in shown[2]
    assert "length 5" in shown[3]
    assert "seed 3" in shown[4]
    for part in ("temperature 0.8", "top-k 0", "top-p 1", "length 20", "seed 9"):
        assert part in shown[-1]


def test_length_counts_the_new_tokens(spec, talk):
    texts = [talk(f"/length {n}", "/temperature 0", "Once").out for n in (10, 30)]
    assert len(texts[1]) > len(texts[0])
    if spec.unit == "character":
        assert len(texts[1]) - len(texts[0]) in (
            19,
            20,
            21,
        )  # the shown length may have a digit more


def test_help_names_every_command(talk):
    out = talk("/help").out
    for command in COMMANDS[1:]:
        assert command in out


@copied("set_option")
@pytest.mark.parametrize(
    "line",
    [
        *["/temperature", "/temperature x", "/temperature -1", "/temperature nan", "/top-k 1.5"],
        *["/top-k", "/top-p 2", "/length 0", "/length -5", "/seed x", "/seed -1", "/nonsense", "/"],
        *["/temperature --help", "/temperature -h", "/length -x", "/top-k 3 4", "/seed --seed"],
        *["/checkpoint x", "/device cpu", "/temperature=3", "/ help", "/top_k 3 "],
    ],
)
def test_a_bad_command_is_told_so_and_the_talk_goes_on(talk, line):
    result = talk(line, "Once", "/quit")
    assert result.status == 0 and result.err == "", result
    lines = result.out.splitlines()
    assert lines[1].startswith(("error: ", "  length")), lines
    assert "--" not in lines[1] or line.count("--")  # as typed here, not as on a command line
    assert any(text.startswith("Once") for text in lines[2:])


@copied("set_option")
def test_a_refused_value_changes_nothing(talk):
    result = talk("/length 7", "/length 0", "/temperature nan", "/seed 2")
    shown = result.out.strip().splitlines()[-1]
    assert "length 7" in shown and "temperature 0.8" in shown and "seed 2" in shown


def test_unknown_characters_are_named_and_the_talk_goes_on(spec, talk):
    out = talk("雪", "Once").out
    if spec.unit == "character":  # to a word model it is an unknown word
        assert "error: " in out and "'雪'" in out
    assert "Once" in out.split("雪")[-1]


def test_an_empty_line_starts_a_line(talk):
    assert len(talk("", flags="--length 30 --seed 1").out.split("\n", 1)[1].strip()) > 5


@copied("main", "command")
@pytest.mark.parametrize("lines", [(), ("Once",), ("/quit", "Once")])
def test_it_ends_at_quit_and_at_the_end_of_input(talk, lines):
    result = talk(*lines)
    assert result.status == 0 and result.err == ""
    if lines[:1] == ("/quit",):
        assert "Once" not in result.out.split("\n", 1)[1]


@copied("main", "command")
def test_through_a_pipe_there_is_no_prompt_and_the_last_line_needs_no_end(spec, trained):
    script = ROOT / spec.folder / "interactive.py"
    flags = ["--checkpoint", trained.best, "--length", 5, "--seed", 1]
    result = run_script(script, flags, stdin="/temperature 0\nOnce")
    assert result.status == 0 and result.err == "", result
    assert "you >" not in result.out
    assert "\nOnce" in result.out


@copied("main", "command")
def test_bytes_that_are_not_utf_8_do_not_end_it(spec, trained):
    command = [sys.executable, str(ROOT / spec.folder / "interactive.py"), "--length", "5"]
    for encoding in ("utf-8:strict", "utf-8:surrogateescape"):
        done = subprocess.run(
            [*command, "--checkpoint", str(trained.best)],
            input=b"caf\xe9\nOnce\n/quit\n",
            env=environment(PYTHONIOENCODING=encoding),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0 and done.stderr == b"", (encoding, done)
        assert b"\nOnce" in done.stdout


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, handle: int, process: subprocess.Popen) -> None:
        self.handle, self.process, self.seen = handle, process, ""

    def until(self, text: str, seconds: float = PATIENCE) -> str:
        """Read until `text` appears; returns what came up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.handle], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            try:
                block = os.read(self.handle, 4096)
            except OSError:  # the other end has closed
                block = b""
            assert block, f"no {text!r} in {self.seen!r}"
            self.seen += block.decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())


@contextmanager
def terminal(*command: str) -> Iterator[Terminal]:
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # 40 by 120

    def take_terminal() -> None:  # so that Ctrl-C reaches the process
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="dumb"),
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


@copied("main", "command")
@needs_posix
def test_in_a_terminal_with_ctrl_c_and_ctrl_d(spec, trained):
    script = str(ROOT / spec.folder / "interactive.py")
    flags = ["--checkpoint", str(trained.best), "--length", "10000000"]
    with terminal(sys.executable, script, *flags) as screen:
        screen.until("you > ")
        screen.type("/help\n")
        assert "/temperature" in screen.until("you > ")
        screen.type("Once upon\n")
        screen.until("Once upon")  # the echo
        screen.until("Once upon")  # the reply, streaming without an end in sight
        screen.type("\x03")
        screen.until("you > ")  # Ctrl-C stops the writing only
        screen.type("/length 4\n")
        screen.until("you > ")
        screen.type("Once\n")
        screen.until("you > ")
        screen.type("\x04")
        assert screen.process.wait(timeout=PATIENCE) == 0


@copied("Stop", "command")
@needs_posix
@pytest.mark.slow
def test_training_in_a_terminal_shows_a_bar_and_ctrl_c_saves(spec, text_file, tmp_path):
    script = str(ROOT / spec.folder / "train.py")
    flags = [*spec.flags.split(), *["--batch-size", "4", "--context", "8", "--steps", "1000000"]]
    flags += ["--dataset", str(text_file), "--out", str(tmp_path), "--eval-every", "1000000"]
    with terminal(sys.executable, script, *flags) as screen:
        screen.until("tokens/s")
        screen.type("\x03")
        said = screen.until("train.py --resume")
        assert "Traceback" not in said
        assert screen.process.wait(timeout=PATIENCE) == 128 + signal.SIGINT
    assert (tmp_path / "last.pt").exists()
