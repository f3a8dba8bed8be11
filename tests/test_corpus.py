"""Corpora larger than memory: chunks add up, cuts are safe, processes change nothing."""

from __future__ import annotations

import doctest
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, clock, environment

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils.tokenizers import CharTokenizer, corpus
from shared.utils.tokenizers.corpus import count, encode_file, id_dtype, read_chunks

# Unicode's property White_Space (PropList.txt).
WHITE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
WHITE += "".join(map(chr, range(0x2000, 0x200B)))
SPECIALS = ["<|end of text|>", "<|end|>", "two\nlines", " <x> ", "a b", "b a b", "\n", "<|end"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


def random_text(seed: int, length: int = 300) -> str:
    """Words, all kinds of white space alone and in runs, special tokens whole and broken."""
    dice = random.Random(seed)
    kinds = [
        lambda: dice.choice([*"ab狐🦊", "fox", "\u0301", "\x1c", "\u200b", "\u180e"]),
        lambda: dice.choice(" \n"),
        lambda: "".join(dice.choices(WHITE + "\r\n  \n\n", k=dice.randint(1, 4))),
        lambda: dice.choice(SPECIALS)[: dice.choice([3, 5, None, None])],
    ]
    weights = dice.choice([(4, 3, 1, 1), (1, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0), (2, 2, 0, 3)])
    return "".join(kind() for kind in dice.choices(kinds, weights, k=length)) or "a"


def assert_safe(text: str, chunks: list[str], specials: list[str]) -> None:
    """The definition, letter by letter: one white space alone, and no token across the cut."""
    assert "".join(chunks) == text
    assert all(chunks)
    at = 0
    for chunk in chunks[:-1]:
        at += len(chunk)
        alone = at if text[at] == " " else at - 1
        assert text[alone] in (" " if alone == at else "\n")
        assert 0 < alone < len(text) - 1
        assert text[alone - 1] not in WHITE
        assert text[alone + 1] not in WHITE
        for token in specials:
            starts = range(max(0, at - len(token) + 1), at)
            assert not any(text.startswith(token, start) for start in starts)


def test_the_list_of_white_space_is_the_one_this_python_knows_too():
    spaces = {chr(i) for i in range(sys.maxunicode + 1) if chr(i).isspace()}
    assert spaces == set(WHITE) | set("\x1c\x1d\x1e\x1f")
    assert {c for c in spaces if unicodedata.category(c).startswith("Z")} <= set(WHITE)


# ---------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40, 200])
def test_chunks_add_up_and_every_cut_is_safe(size):
    cuts = 0
    for seed in range(150):
        text = random_text(seed)
        for specials in ([], SPECIALS, SPECIALS[:1]):
            chunks = list(read_chunks(text, specials, size))
            assert_safe(text, chunks, specials)
            cuts += len(chunks) - 1
    assert cuts > 100


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_a_file_gives_the_same_text_wherever_its_blocks_end(tmp_path, size):
    path = tmp_path / "text.txt"
    for seed in range(100):
        text = random_text(seed)
        path.write_bytes(text.encode())
        assert_safe(text, list(read_chunks(path, SPECIALS, size)), SPECIALS)


def test_chunks_have_about_the_size_asked_for():
    text = write_corpus(100_000, seed=1)[0]
    lengths = list(map(len, read_chunks(text, size=5_000)))
    assert len(lengths) == -(-len(text) // 5_000)
    assert all(4_900 < length < 5_100 for length in lengths[:-1])
    assert list(read_chunks(text, size=len(text))) == [text]


def test_a_special_token_is_not_cut_even_where_it_overlaps_itself():
    text = "x a a a a a a a y z"
    for size in range(1, len(text)):
        chunks = list(read_chunks(text, ["a a"], size))
        assert_safe(text, chunks, ["a a"])
        assert any("a a a a a a a" in chunk for chunk in chunks)


def seconds(length: int, filler: str) -> float:
    text = filler * (length // len(filler))
    start = clock()
    chunks = list(read_chunks(text, ["a  b c"], size=10_000))
    took = clock() - start
    assert len(chunks) == 1
    return took


@pytest.mark.slow
@pytest.mark.parametrize("filler", ["x", "x  ", "a  b c", "\n\n"])
def test_a_text_without_boundaries_takes_linear_time(filler):
    short = min(seconds(500_000, filler) for _ in range(3))
    assert min(seconds(4_000_000, filler) for _ in range(3)) < 8 * 3 * short + 0.05


def test_files_are_texts_of_their_own(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, text in zip(paths, ["one two", "", " three\n"], strict=True):
        path.write_text(text, encoding="utf-8")
    assert list(read_chunks(paths)) == ["one two", " three\n"]
    assert list(read_chunks(iter(paths))) == ["one two", " three\n"]
    assert list(read_chunks(paths[0])) == ["one two"]
    assert list(read_chunks(str(paths[0]))) == [str(paths[0])]  # a str is a text


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path, size):
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone two\r\nthree four\rfive \xef\xbb\xbfsix\r\n")
    assert "".join(read_chunks(path, size=size)) == "one two\r\nthree four\rfive \ufeffsix\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 64])
@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [
        *[(b"caf\xe9 au lait", "e9", 3), (b"\xef\xbb\xbfcaf\xe9", "e9", 6), (b"\xff", "ff", 0)],
        *[(b"ab\xe7\x8b", "e7", 2), (b"a\xf0\x9f\xa6 b", "f0", 1), (b"a b \xed\xa0\x80", "ed", 4)],
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path, content, byte, offset, size):
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"latin\.txt .*0x{byte} at offset {offset}\)"):
        list(read_chunks(path, size=size))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "nothing.txt"
    path.write_bytes(content)
    for work in (list, lambda chunks: count(path, Counter)):
        with pytest.raises(UserError, match=r"nothing\.txt is empty"):
            work(read_chunks(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *[("", "empty"), ([], "no files"), (["corpus.txt"], "not a Path"), ([3], "not a Path")],
        *[(Path("missing.txt"), r"missing\.txt does not exist"), (Path.cwd(), "is a folder")],
    ],
)
def test_what_cannot_be_read_is_one_clear_error(given, message):
    for work in (lambda: list(read_chunks(given)), lambda: count(given, Counter)):
        with pytest.raises(UserError, match=message) as caught:
            work()
        assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_found_before_the_first_chunk(tmp_path):
    (tmp_path / "there").write_text("text", encoding="utf-8")
    with pytest.raises(UserError, match="gone"):
        read_chunks([tmp_path / "there", tmp_path / "gone"])


# -------------------------------------------------------------------------------------- counting


def pieces(text: str) -> Counter:
    """GPT-2's way with white space: a word takes one space along."""
    return Counter(re.findall(r" ?\S+|\s+(?!\S)|\s+", text))


def no_fox(text: str) -> Counter:
    if "\nfox" in text:
        raise UserError("a fox: choose another animal")
    return pieces(text)


def dies(text: str) -> Counter:
    if "fox" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    return pieces(text)


def process_ids(text: str) -> Counter:
    return Counter([os.getpid()])


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK", 4096)


@pytest.mark.parametrize("processes", [None, 1, 2, 3])
@pytest.mark.parametrize("size", [1000, 4096, 1 << 20])
def test_the_count_depends_on_neither_processes_nor_cutting(tmp_path, monkeypatch, processes, size):
    monkeypatch.setattr(corpus, "CHUNK", size)
    text = write_corpus(30_000, seed=1)[0] + "".join(random_text(seed) for seed in range(30))
    whole = pieces(text)
    found = count(text, pieces, processes)
    assert type(found) is Counter
    assert list(found.items()) == list(whole.items())  # the order too
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    assert list(count(path, pieces, processes).items()) == list(whole.items())


@pytest.mark.parametrize("processes", [1, 2])
def test_special_tokens_are_not_counted_and_the_longest_wins(small_chunks, processes):
    specials = ["<|end|>", "<|end of text|>", "<|end of"]
    text = "one two<|end of text|> three <|end|><|end of\nfour <|end|>" * 500
    found = count(text, pieces, processes, special_tokens=specials)
    once = pieces("one two") + pieces(" three ") + pieces("\nfour ")
    assert found == Counter({piece: 500 * times for piece, times in once.items()})


def test_lone_surrogates_reach_the_counter(small_chunks):
    text = "a \udce9b " * 5000
    assert count(text, pieces, 2) == pieces(text)


def test_a_small_text_starts_no_process_and_a_large_one_as_many_as_it_can_use(
    small_chunks, tmp_path
):
    assert set(count("a b " * 1000, process_ids, 3)) == {os.getpid()}
    large = count("a b " * 20_000, process_ids, 3)
    assert len(large) == 3 and os.getpid() not in large
    assert len(count("a b " * 3000, process_ids, 3)) == 2  # less than 3 chunks
    paths = [tmp_path / str(i) for i in range(20)]
    for path in paths:
        path.write_text("a b", encoding="utf-8")
    assert set(count(paths, process_ids, 3)) == {os.getpid()}
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_exception_in_a_worker_arrives_as_itself(small_chunks, processes):
    text = "one two\n" * 3000 + "\nfox\n" + "three four\n" * 3000
    with pytest.raises(UserError, match=r"^a fox: choose another animal$") as caught:
        count(text, no_fox, processes)
    if processes > 1:
        assert "in no_fox" in str(caught.value.__cause__)  # the worker's traceback
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("place", [0, 3000, 6000])
def test_a_killed_worker_is_an_error_and_not_a_long_wait(small_chunks, place):
    text = "one two\n" * place + "fox " + "one two\n" * (6000 - place)
    with pytest.raises(UserError, match="a worker process was killed"):
        count(text, dies, 2)
    assert multiprocessing.active_children() == []


def test_a_worker_that_cannot_start_is_one_clear_error(small_chunks, monkeypatch):
    def too_many(self) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", too_many)
    with pytest.raises(UserError, match=r"did not start.*: use fewer processes"):
        count("one two\n" * 6000, pieces, 2)


@pytest.mark.parametrize("processes", [0, -1])
def test_an_impossible_number_of_processes_is_refused(processes):
    with pytest.raises(UserError, match="processes must be 1 or more"):
        count("text", pieces, processes)


@pytest.mark.slow
def test_other_ways_to_start_a_process_give_the_same(small_chunks, monkeypatch, tmp_path):
    """Windows and macOS have no fork: everything that a worker needs is pickled there."""
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: spawn)
    path = tmp_path / "text.txt"
    path.write_text("one two\n" * 2000, encoding="utf-8")
    assert count(path, pieces, 2) == pieces("one two\n" * 2000)
    ids = encode_file(CharTokenizer("\n enotw"), path, tmp_path / "out.bin", 2)
    assert len(ids) == 16_000


# -------------------------------------------------------------------------------------- encoding


class WordIds:
    """A stand-in with special tokens, options and any number of ids."""

    special_tokens = {"<|end of text|>": 0}  # noqa: RUF012

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, shift: int = 0) -> list[int]:
        if "wolf" in text:
            raise UserError("unknown word wolf: train on it")
        found = re.findall(r"<\|end of text\|>| ?\S+|\s+(?!\S)|\s+", text)
        return [(sum(map(ord, word)) * 2_654_435_761 + shift) % self.vocab_size for word in found]


@pytest.fixture
def tale(tmp_path):
    path = tmp_path / "tale.txt"
    text = write_corpus(50_000, seed=3)[0].replace("\n\n", "\n<|end of text|>\n")
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("processes", [None, 1, 2, 3])
@pytest.mark.parametrize("size", [500, 4096, 1 << 20])
def test_the_ids_in_the_file_are_those_of_the_whole_text(
    tmp_path, tale, monkeypatch, processes, size
):
    monkeypatch.setattr(corpus, "CHUNK", size)
    text = tale.read_bytes().decode()
    out = tmp_path / "ids.bin"
    for tokenizer in (WordIds(50_000), WordIds(1 << 20), CharTokenizer.train(text)):
        ids = encode_file(tokenizer, tale, out, processes)
        assert isinstance(ids, np.memmap)
        assert ids.tolist() == tokenizer.encode(text)
        assert out.stat().st_size == ids.nbytes
        again = np.memmap(out, id_dtype(tokenizer.vocab_size), mode="r")
        assert np.array_equal(ids, again)
    shifted = encode_file(WordIds(50_000), [tale], out, processes, shift=7)
    assert shifted.tolist() == WordIds(50_000).encode(text, shift=7)


@pytest.mark.parametrize("cut_at", ["\n", ""])
def test_a_tokenizer_with_a_memory_is_cut_only_where_it_says(tmp_path, small_chunks, cut_at):
    class Column(WordIds):
        """The ids are where the words stand in their line, or in the text."""

        def encode(self, text: str) -> list[int]:
            starts = [0] + [found.end() for found in re.finditer("\n", text) if cut_at]
            lines = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
            return [found.start() for line in lines for found in re.finditer(r"\S+", line)]

    path = tmp_path / "text.txt"
    path.write_text("one two three\nfour five\n" * 1000, encoding="utf-8")
    tokenizer = Column(1 << 20)
    tokenizer.cut_at = cut_at
    whole = tokenizer.encode(path.read_text(encoding="utf-8"))
    assert encode_file(tokenizer, path, tmp_path / "ids.bin", 2).tolist() == whole
    chunks = list(read_chunks(path, size=100, cut_at=cut_at))
    assert len(chunks) > 100 if cut_at else len(chunks) == 1
    assert all(chunk.endswith("\n") for chunk in chunks)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_separator_follows_each_file_and_nothing_else_comes_between(
    tmp_path, tale, small_chunks, processes
):
    empty = tmp_path / "empty.txt"
    empty.touch()
    tokenizer, out = WordIds(50_000), tmp_path / "ids.bin"
    one = tokenizer.encode(tale.read_bytes().decode())
    ids = encode_file(tokenizer, [tale, empty, tale], out, processes)
    assert ids.tolist() == one + one
    ids = encode_file(tokenizer, [tale, empty, tale], out, processes, separator=49_999)
    assert ids.tolist() == [*one, 49_999, 49_999, *one, 49_999]
    for separator in (-1, 50_000):
        with pytest.raises(UserError, match="ids run from 0 to 49999"):
            encode_file(tokenizer, tale, out, processes, separator=separator)


@pytest.mark.parametrize(
    ("vocab_size", "name"), [(2, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (10**6, "<u4")]
)
def test_the_smallest_type_that_holds_every_id(tmp_path, tale, vocab_size, name):
    ids = encode_file(WordIds(vocab_size), tale, tmp_path / "ids.bin")
    assert ids.dtype == np.dtype(name)
    assert ids.max() < vocab_size


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_an_error_on_the_way_leaves_the_folder_as_it_was(
    tmp_path, tale, small_chunks, processes, before
):
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "ids.bin"
    if before:
        out.write_bytes(before)
    wolf, latin = tmp_path / "wolf.txt", tmp_path / "latin.txt"
    wolf.write_text("a wolf", encoding="utf-8")
    latin.write_bytes(b"caf\xe9")
    for path, message in [(wolf, "^unknown word wolf"), (latin, "not UTF-8")]:
        with pytest.raises(UserError, match=message):
            encode_file(WordIds(100), [tale, path], out, processes)
        assert list(folder.iterdir()) == ([out] if before else [])
        assert not before or out.read_bytes() == before
    assert multiprocessing.active_children() == []


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path, tale, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    tokenizer = WordIds(100)
    for out in (tmp_path, tmp_path / "no" / "ids.bin", tale / "ids.bin"):
        with pytest.raises(UserError, match="cannot be written"):
            encode_file(tokenizer, tale, out)
    with pytest.raises(UserError, match="is not a Path"):
        encode_file(tokenizer, str(tale), tmp_path / "ids.bin")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        encode_file(tokenizer, tale, tmp_path / "ids.bin")
    assert list(tmp_path.iterdir()) == [tale]


def test_a_text_without_tokens_is_an_error(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("text", encoding="utf-8")
    tokenizer = WordIds(100)
    tokenizer.encode = lambda text: []
    with pytest.raises(UserError, match=r"no tokens in .*text\.txt"):
        encode_file(tokenizer, path, tmp_path / "ids.bin")
    assert list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------- as a user's script, from outside

SCRIPT = """
import sys, time
from pathlib import Path
from shared.utils.tokenizers import corpus

class Bytes:
    vocab_size = 256
    def encode(self, text):
        time.sleep({pause})
        return list(text.encode())

corpus.CHUNK = 1 << 18
folder = Path(sys.argv[1])
print("ready", flush=True)
ids = corpus.encode_file(Bytes(), folder / "text.txt", folder / "ids.bin", 2)
print(len(ids))
"""  # without `if __name__ == "__main__"`, as users write it


def started(folder: Path, megabytes: int, pause: float) -> subprocess.Popen:
    """The script at work, in a process group of its own like a command in a terminal."""
    text = write_corpus(1_000_000, seed=1)[0][:999_999] + "\n"
    with (folder / "text.txt").open("wb") as file:
        for _ in range(megabytes):
            file.write(text.encode())
    (folder / "script.py").write_text(SCRIPT.format(pause=pause), encoding="utf-8")
    script = subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder)],
        env=environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert script.stdout.readline() == "ready\n"
    return script


def family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def memory(pid: int) -> int:
    """Proportional set size in bytes: what is shared is divided among those who share it."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(size) << 10 for size in re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE))


def gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def soon(condition) -> bool:
    """True as soon as the condition holds, False if it does not within a minute."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
@linux
def test_memory_is_a_few_chunks_and_never_the_text(tmp_path):
    script = started(tmp_path, megabytes=60, pause=0)
    peak = 0
    while script.poll() is None:
        peak = max(peak, sum(map(memory, family(script.pid))))
        time.sleep(0.02)
    out, err = script.communicate()
    assert (out, err, script.returncode) == ("60000000\n", "", 0)
    assert peak > 10e6  # it was seen
    assert peak < 150e6  # three Pythons with numpy are 60; the text and its ids would add 540
    ids = np.memmap(tmp_path / "ids.bin", np.uint16, mode="r")
    text = np.memmap(tmp_path / "text.txt", np.uint8, mode="r")
    assert np.array_equal(ids, text)


@linux
@pytest.mark.parametrize("to_all", [True, False])
def test_ctrl_c_ends_everything_at_once(tmp_path, to_all):
    script = started(tmp_path, megabytes=2, pause=30)
    assert soon(lambda: len(family(script.pid)) == 3)
    workers = family(script.pid)[1:]
    time.sleep(0.2)  # until they are at work
    start = time.monotonic()
    (os.killpg if to_all else os.kill)(script.pid, signal.SIGINT)
    out, err = script.communicate(timeout=PATIENCE)
    assert time.monotonic() - start < 20
    assert script.returncode != 0 and out == ""
    assert err.count("Traceback") == 1  # the user's own
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert all(map(gone, workers))
    assert {path.name for path in tmp_path.iterdir()} == {"script.py", "text.txt"}


@linux
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = started(tmp_path, megabytes=2, pause=0.5)
    assert soon(lambda: len(family(script.pid)) == 3)
    workers = family(script.pid)[1:]
    script.kill()
    script.communicate(timeout=PATIENCE)
    assert soon(lambda: all(map(gone, workers)))


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(corpus)
    assert result.failed == 0 and result.attempted >= 4
