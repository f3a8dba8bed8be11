"""Is BPE in Python as fast as the Rust tokenizers? And far faster than minbpe? One thread each.

Every row first checks that both did the same work, then times them in turns, so that a machine
that gets faster or slower meanwhile treats them alike: the median of seven, and the ratio is what
to look at. Encoding must give identical ids. Trainers break ties differently, so after training
the number of tokens on the first million characters must agree within 0.5 %.

    python tests/benchmarks/bench_tokenizers.py                          # everything: ten minutes
    python tests/benchmarks/bench_tokenizers.py --only "encode warm" --data books.txt
    python tests/benchmarks/bench_tokenizers.py --only file --file 2gb.txt          # and memory
    python tests/benchmarks/bench_tokenizers.py --only minbpe --minbpe ../minbpe    # a checkout

It needs tiktoken and tokenizers (and regex for minbpe), and GPT-2's vocabulary and Tiny
Shakespeare in $LMFS_DATA_DIR.
"""

from __future__ import annotations

import os

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before the imports

import argparse
import platform
import random
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.utils.tokenizers import BPETokenizer  # noqa: E402
from shared.utils.tokenizers.corpus import encode_file, read_chunks  # noqa: E402
from shared.utils.tokenizers.pretokenize import GPT2_PATTERN  # noqa: E402

DATA = Path(os.environ.get("LMFS_DATA_DIR") or ROOT.parent / "shared/data")
MILLION = 1_000_000
LETTERS = bytes(97 + byte % 26 for byte in range(256))  # a byte -> a letter
HOSTILE = {
    "latin-1": lambda n, dice: dice.randbytes(n).decode("latin-1"),
    "letters": lambda n, dice: dice.randbytes(n).translate(LETTERS).decode(),
    "aaaa": lambda n, dice: "a" * n,
    "spaces": lambda n, dice: " " * n,
}


# -------------------------------------------------------------------------------------- the texts


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def large_text(data: Path | None, characters: int) -> tuple[str, str]:
    """A text of this length, without repeating any of it, and what it is."""
    if data:
        text, name = read(data), data.name
    else:
        paths = [
            *sorted(DATA.glob("[!g]*/*")),
            *sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")),
        ]
        text, name = "", "the data files, then the sources of Python's library"
        for path in paths:
            if len(text) < characters:
                text += path.read_bytes().decode("utf-8", "replace")
    return text[:characters], name


# ------------------------------------------------------------------------------------- the others


def rust_trained(chunks: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(chunks, trainer)
    return tokenizer


def rust_gpt2() -> tokenizers.Tokenizer:
    files = map(str, (DATA / "gpt2/vocab.json", DATA / "gpt2/merges.txt"))
    tokenizer = tokenizers.Tokenizer(models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


def tiktoken_gpt2() -> tiktoken.Encoding:
    files = map(str, (DATA / "gpt2/merges.txt", DATA / "gpt2/vocab.json"))
    ranks = data_gym_to_mergeable_bpe_ranks(*files)
    return tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )


def our_gpt2() -> BPETokenizer:
    return BPETokenizer.from_gpt2(DATA / "gpt2/vocab.json", DATA / "gpt2/merges.txt")


# -------------------------------------------------------------------------------------- the clock


Work = Callable[[], Any]


def clock(work: Work) -> tuple[float, Any]:
    """Seconds that it took, and what it gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def race(ours: Callable[[], Work], theirs: Callable[[], Work], repeat: int) -> tuple[float, float]:
    """The median of each, run in turns. ours() and theirs() prepare what is timed."""
    times = [(clock(ours())[0], clock(theirs())[0]) for _ in range(repeat)]
    mine, other = map(statistics.median, zip(*times, strict=True))
    return mine, other


def row(name: str, other: str, characters: int, times: tuple[float, float]) -> None:
    mine, theirs = times
    print(
        f"{name:28}{characters / MILLION:7.2f}{mine:10.3f}{theirs:10.3f}  {other:12}"
        f"{mine / theirs:8.3f}",
        flush=True,
    )


# ---------------------------------------------------------------------------------------- the rows


def bench_train(name: str, text: str, vocab_size: int, repeat: int) -> None:
    chunks = list(read_chunks(text, size=20_000))  # it is twice as fast as on the text as a whole
    ours = partial(BPETokenizer.train, text, vocab_size, processes=1)
    theirs = partial(rust_trained, chunks, vocab_size)
    sample = text[:MILLION]
    lengths = len(ours().encode(sample)), len(theirs().encode(sample).ids)
    assert abs(lengths[0] / lengths[1] - 1) < 0.005, lengths
    row(name, "tokenizers", len(text), race(lambda: ours, lambda: theirs, repeat))


def bench_minbpe(name: str, text: str, folder: Path) -> None:
    """Training takes it more than a minute, so everything runs once. Ours encodes cold."""
    sys.path.insert(0, str(folder))
    from minbpe import RegexTokenizer

    reference = RegexTokenizer(GPT2_PATTERN)
    mine, ours = clock(lambda: BPETokenizer.train(text, 512, processes=1))
    other, _ = clock(lambda: reference.train(text, 512))
    ids = ours.encode(text)
    assert abs(len(ids) / len(reference.encode(text)) - 1) < 0.005
    row(f"{name} train 512", "minbpe", len(text), (mine, other))
    reference.merges = {pair: 256 + rank for rank, pair in enumerate(ours.merges)}
    ours = BPETokenizer.from_state_dict(ours.state_dict())
    mine, ids = clock(lambda: ours.encode(text))
    other, other_ids = clock(lambda: reference.encode(text))
    assert ids == other_ids
    row(f"{name} encode 512", "minbpe", len(text), (mine, other))


def bench_encode(name: str, text: str, cold: bool, repeat: int) -> None:
    """Warm: one tokenizer for all rounds. Cold: a new one, with nothing cached, for each."""
    ours, theirs = our_gpt2(), tiktoken_gpt2()
    assert ours.encode(text) == theirs.encode_ordinary(text)
    times = race(
        lambda: partial((our_gpt2() if cold else ours).encode, text),
        lambda: partial(theirs.encode_ordinary, text),
        repeat,
    )
    row(name, "tiktoken", len(text), times)


def bench_rust_encode(name: str, text: str) -> None:
    """It takes many times as long, so both run once, ours cold."""
    ours, theirs = our_gpt2(), rust_gpt2()
    mine, ids = clock(lambda: ours.encode(text))
    other, encoding = clock(lambda: theirs.encode(text))
    assert ids == encoding.ids
    row(name, "tokenizers", len(text), (mine, other))


def bench_hostile(name: str, kind: str, repeat: int) -> None:
    """Time from 10 KB to 10 MB, cold: ten times the text must take some ten times as long."""
    theirs = tiktoken_gpt2()
    for size in (10_000, 100_000, MILLION, 10 * MILLION):
        text = HOSTILE[kind](size, random.Random(size))
        try:
            theirs.encode_ordinary(text)
        except KeyboardInterrupt:
            raise
        except BaseException:  # what a panic in Rust becomes is no Exception
            mine, _ = clock(partial(our_gpt2().encode, text))
            print(f"{name:28}{size / MILLION:7.2f}{mine:10.3f}   crashes  tiktoken", flush=True)
        else:
            bench_encode(name, text, cold=True, repeat=repeat if size < 10 * MILLION else 1)


def tree_memory(process: int) -> int:
    """Bytes that a process and all its children hold, what they share counted once (Linux)."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return 0
    own = int(rollup.split("Pss:")[1].split()[0]) * 1024
    return own + sum(tree_memory(int(child)) for child in children.split())


def bench_file(name: str, path: Path) -> None:
    """Encode a whole file into a file, on all cores, and watch the memory."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            peak = max(peak, tree_memory(os.getpid()))

    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = our_gpt2()
        watcher.start()
        seconds, ids = clock(lambda: encode_file(tokenizer, path, Path(folder) / "ids"))
        done.set()
        watcher.join()
        print(
            f"{name}: {path.stat().st_size:,} bytes -> {len(ids):,} ids ({ids.dtype}) in "
            f"{seconds:.0f} s, {peak / 1e9:.2f} GB at the peak"
        )


def rows(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Name and work of each row."""
    shakespeare = read(DATA / "tiny-shakespeare/input.txt")
    large, about = large_text(args.data, round(args.megabytes * MILLION))
    print(f"large text: {len(large):,} characters of {about}")
    for vocab_size in (1024, 8192):
        for title, text in (("shakespeare", shakespeare), ("large", large)):
            yield (
                f"train {title} {vocab_size:,}",
                partial(bench_train, text=text, vocab_size=vocab_size, repeat=args.repeat),
            )
    for title, text in (("shakespeare", shakespeare), ("large", large)):
        for kind in ("warm", "cold"):
            yield (
                f"encode {title} {kind}",
                partial(bench_encode, text=text, cold=kind == "cold", repeat=args.repeat),
            )
    yield "encode large, tokenizers", partial(bench_rust_encode, text=large)
    for kind in HOSTILE:
        yield f"hostile {kind}", partial(bench_hostile, kind=kind, repeat=args.repeat)
    if args.file:
        yield "file", partial(bench_file, path=args.file)
    if args.minbpe:
        yield "minbpe", partial(bench_minbpe, text=shakespeare, folder=args.minbpe)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our BPE against tokenizers, tiktoken, minbpe.")
    parser.add_argument("--data", type=Path, help="a large text file (default: composed)")
    parser.add_argument("--megabytes", type=float, default=20, help="of it, in million characters")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--file", type=Path, help="a file of any size to encode on all cores")
    parser.add_argument("--minbpe", type=Path, help="a checkout of karpathy/minbpe")
    args = parser.parse_args()
    print(
        f"Python {platform.python_version()}, tokenizers {tokenizers.__version__}, tiktoken "
        f"{tiktoken.__version__}, one thread, median of {args.repeat}"
    )
    chosen = [(name, work) for name, work in rows(args) if args.only in name]
    print(f"{'what':28}{'M chars':>7}{'ours s':>10}{'theirs s':>10}  {'':12}{'ours/theirs':>8}")
    for name, work in chosen:
        work(name)


if __name__ == "__main__":
    main()
