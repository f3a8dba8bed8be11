r"""A text larger than memory: read in chunks, counted and encoded on all cores.

    file      The fox found a key.\nThe door was  shut.\n\nHe knocked.
                           |         |                       |             some of the safe cuts
    chunks    The fox found| a key.\n|The door was  shut.\n\nHe| knocked.
                    │           │               │               │
                process 1   process 2       process 1       process 2
                    │           │               │               │
    counted      Counter   +  Counter    +   Counter     +   Counter
    or encoded  [5, 9, 31]   [7, 2, 13]   [5, 88, ..., 6]  [16, 70, 13]    in order, to a file

The tokenizers split a text at its white space first and never merge across. A single space
belongs to the word behind it, a single line end to what is before it or to nobody; so a text cut
before the one or after the other can be counted and encoded in pieces, anywhere, at any time, and
they add up to the whole (MapReduce, Dean & Ghemawat 2004, on one machine). In a run of white space
nobody may cut: what belongs to whom differs there. Memory holds one chunk for each process, never
the text.

    counts = count(Path("train.txt"), counter)
    ids = encode_file(tokenizer, Path("train.txt"), Path("train.bin"))    # an np.memmap
"""

from __future__ import annotations

import codecs
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared import UserError

if TYPE_CHECKING:
    from shared.utils.tokenizers.base import Tokenizer

CHUNK = 1 << 20  # bytes: some 50 ms of work; each process takes up to 40 MB for it

# A space or line end alone. Python's `\s` is Unicode's White_Space and \x1c to \x1f, white space to
# some, as ▁ is to SentencePiece: next to those no cut is made, and that is always safe.
ALONE = re.compile(r"[ \n](?<=[^\s▁][ \n])(?=[^\s▁])")  # a set in front: `re` skips to it quickly


# ---------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------


def read_chunks(
    text_or_files: str | Path | Iterable[Path],
    special_tokens: Iterable[str] = (),
    size: int = CHUNK,
    cut_at: str = " \n",
) -> Iterator[str]:
    """A text (a str), or UTF-8 files (a Path or several), in chunks that add up to it.

    A str is always the text itself, never a file's name. Chunks have about `size` characters
    (bytes, in a file) and end at a safe boundary; where there is none, a chunk goes on until there
    is. No special token is cut. A file's end is a chunk's end. cut_at: "\\n" for cuts at line ends
    only, "" for none. Line ends stay as they are; a byte order mark goes. Raises UserError for a
    missing, empty or non-UTF-8 file, and an empty text.

    >>> list(read_chunks("one two\\nthree  four five", size=6))
    ['one two\\n', 'three  four', ' five']
    """
    texts = _texts(_sources(text_or_files), special_tokens, size, cut_at)
    return (chunk for chunk in texts if chunk is not None)


def _sources(text_or_files: str | Path | Iterable[Path]) -> list[str | Path]:
    """The text, or the files; a missing one is found now and not after an hour's work."""
    if isinstance(text_or_files, str):
        return [text_or_files]
    files = [text_or_files] if isinstance(text_or_files, Path) else list(text_or_files)
    if not files:
        raise UserError("no files to read: name at least one")
    for path in files:
        if not isinstance(path, Path):
            raise UserError(f"{path!r:.60} is not a Path: give pathlib.Path objects for files")
        if path.is_dir():
            raise UserError(f"{path} is a folder: give text files")
        if not path.exists():
            raise UserError(f"{path} does not exist: give the path of a text file")
    return files


def _texts(
    sources: list[str | Path], special_tokens: Iterable[str], size: int, cut_at: str = " \n"
) -> Iterator[str | None]:
    """The chunks of each text, and None where a text ends."""
    special_tokens = list(special_tokens)
    empty = True
    for source in sources:
        blocks = _slices(source, size) if isinstance(source, str) else _decoded(source, size)
        for chunk in _cut(blocks, special_tokens, cut_at):
            empty = False
            yield chunk
        yield None
    if empty:
        name = "the text" if isinstance(sources[0], str) else ", ".join(map(str, sources[:3]))
        raise UserError(f"nothing to read, {name} is empty: give some text")


def _slices(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def _decoded(path: Path, size: int) -> Iterator[str]:
    """A file as text; a character on the border of two blocks is in the second one."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            if file.peek(3).startswith(codecs.BOM_UTF8):
                file.read(3)
            try:
                while block := file.read(size):
                    yield decoder.decode(block)
                yield decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                # error.object: what was left over from the block before, and this block.
                at = file.tell() - len(error.object) + error.start
                raise UserError(
                    f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
                    f"{at}): save it as UTF-8 text"
                ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file") from error


def _cut(blocks: Iterable[str], special_tokens: list[str], cut_at: str) -> Iterator[str]:
    """Blocks cut anywhere -> chunks cut at a safe boundary, the first one in each block.

    No character is searched twice, so a text without boundaries takes linear time as well.

    >>> list(_cut(["one tw", "o three fo", "ur five"], [], " "))
    ['one two', ' three four', ' five']
    """
    # Only these can have a boundary inside: a cut is before a space or after a line end.
    fragile = [token for token in special_tokens if " " in token[1:] or "\n" in token[:-1]]
    reach = max(map(len, fragile), default=2)  # a cut depends on so much text on either side
    parts: list[str] = []  # of the chunk: searched
    tail = ""  # of the chunk: its last `reach` characters still have to be searched
    for block in blocks:
        text = tail + block
        at = None
        if tail:
            at = _boundary(text, max(1, len(tail) - reach), reach, fragile, cut_at)
        if at is not None:
            yield "".join([*parts, text[:at]])
            parts, text = [], text[at:]
        parts.append(text[: -2 * reach])
        tail = text[-2 * reach :]
    if tail:
        yield "".join([*parts, tail])


def _boundary(text: str, start: int, reach: int, fragile: list[str], cut_at: str) -> int | None:
    """The first place after `start` to cut, `reach` characters before the end or earlier."""
    for match in ALONE.finditer(text, start):
        at = match.start() if match[0] == " " else match.end()
        if at + reach > len(text):
            break
        # No occurrence of a token may begin before the cut and end after it.
        if match[0] in cut_at and not any(
            t in text[max(0, at - len(t) + 1) : at + len(t) - 1] for t in fragile
        ):
            return at
    return None


# ---------------------------------------------------------------------------------------------
# Counting and encoding
# ---------------------------------------------------------------------------------------------


def count(
    text_or_files: str | Path | Iterable[Path],
    counter: Callable[[str], Mapping],
    processes: int | None = None,
    special_tokens: Iterable[str] = (),
    cut_at: str = " \n",
) -> Counter:
    """The sum of counter(piece) over a text or files (see read_chunks), on all cores.

    counter: text -> Counter, picklable. It gets the text without the special tokens, in pieces
    that end at them and at safe boundaries. processes: all cores when None. Neither their number
    nor the cutting changes the sum or its order. Raises UserError as read_chunks does, and what
    `counter` raises.

    >>> count("a b<s>a", lambda text: Counter(text.split()), special_tokens=["<s>"])
    Counter({'a': 2, 'b': 1})
    """
    sources = _sources(text_or_files)
    special_tokens = sorted(special_tokens, key=len, reverse=True)  # the longest wins
    splitter = re.compile("|".join(map(re.escape, special_tokens))) if special_tokens else None
    texts = _texts(sources, special_tokens, CHUNK, cut_at)
    chunks = (chunk for chunk in texts if chunk is not None)
    total: Counter = Counter()
    work = partial(_count_chunk, counter, splitter)
    with closing(_results(work, chunks, sources, processes, "counting")) as results:
        for counts in results:
            total.update(counts)
    return total


def _count_chunk(
    counter: Callable[[str], Mapping], splitter: re.Pattern | None, chunk: str
) -> Counter:
    counts: Counter = Counter()
    for piece in splitter.split(chunk) if splitter else [chunk]:
        counts.update(counter(piece))
    return counts


def id_dtype(vocab_size: int) -> np.dtype:
    """The type of the ids in a file: uint16 while they fit, else uint32, little-endian.

    >>> id_dtype(50257), id_dtype(128256)
    (dtype('uint16'), dtype('uint32'))
    """
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def encode_file(
    tokenizer: Tokenizer,
    files: Path | Iterable[Path],
    out: Path,
    processes: int | None = None,
    separator: int | None = None,
    **encode_options: Any,
) -> np.memmap:
    """Write the ids of UTF-8 files to the file `out`, and open it: (N,) ids that stay on disk.

    They equal tokenizer.encode(text, **encode_options) of each file, one after the other, with
    the id `separator`, such as that of <|endoftext|>, after each. The file holds nothing else, so

        ids = np.memmap("train.bin", id_dtype(tokenizer.vocab_size), mode="r")

    opens it again. It appears under its name when it is whole, or not at all. processes: all
    cores when None. A tokenizer whose ids depend on more than the word says where a text may be
    cut for it: `cut_at = "\\n"`, or "" for nowhere (then memory holds the text). Raises UserError
    as read_chunks and `encode` do, and when `out` cannot be written.
    """
    if isinstance(files, str):
        raise UserError(f"{files!r:.60} is not a Path: give pathlib.Path objects for files")
    if separator is not None and not 0 <= separator < tokenizer.vocab_size:
        raise UserError(f"separator {separator}: ids run from 0 to {tokenizer.vocab_size - 1}")
    sources = _sources(files)
    out = Path(out)
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"{out} cannot be written: name a file in a folder that exists")
    dtype = id_dtype(tokenizer.vocab_size)
    special_tokens = getattr(tokenizer, "special_tokens", ())
    chunks = _texts(sources, special_tokens, CHUNK, getattr(tokenizer, "cut_at", " \n"))
    work = partial(_encode_chunk, tokenizer, encode_options, separator, dtype)
    with closing(_results(work, chunks, sources, processes, "encoding")) as results:
        _write(out, results, sources[0])
    return np.memmap(out, dtype, mode="r")


def _write(out: Path, blocks: Iterable[np.ndarray], source: Path) -> None:
    """The blocks, one after the other, as a file: whole or not at all."""
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            for block in blocks:
                file.write(block)
            if not file.tell():
                raise UserError(f"no tokens in {source}: give more text")
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave half of it
        unfinished.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): mend that") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _encode_chunk(
    tokenizer: Tokenizer, options: dict, separator: int | None, dtype: np.dtype, chunk: str | None
) -> np.ndarray:
    if chunk is None:  # a text ends here
        return np.array([] if separator is None else [separator], dtype)
    return np.array(tokenizer.encode(chunk, **options), dtype)


# ---------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------


def _results(
    work: Callable[[Any], Any],
    chunks: Iterator[str | None],
    sources: list[str | Path],
    processes: int | None,
    title: str,
) -> Iterator[Any]:
    """work(chunk) of each chunk, in order; on several processes where that is worth it."""
    if processes is None:
        affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores we may use
        processes = len(affinity(0)) if affinity else os.cpu_count() or 1
    if processes < 1:
        raise UserError(f"processes must be 1 or more, not {processes}: leave it out for all cores")
    if isinstance(sources[0], str):
        size = sum(map(_bytes, _slices(sources[0], CHUNK)))
    else:
        size = sum(path.stat().st_size for path in sources)
    if size <= 2 * CHUNK:  # done as soon as a process would have started
        yield from map(work, chunks)
        return
    processes = min(processes, size // CHUNK)
    with closing(_with_bar(chunks, size, title)) as watched:
        if processes == 1:
            yield from map(work, watched)
        else:
            with closing(_in_processes(work, watched, processes)) as results:
                yield from results


def _with_bar(chunks: Iterable[str | None], size: int, title: str) -> Iterator[str | None]:
    """The chunks, with a progress bar in bytes where stderr is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=title, total=size, unit="B", unit_scale=True, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(_bytes(chunk or ""))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _in_processes(
    work: Callable[[Any], Any], chunks: Iterable[Any], processes: int
) -> Iterator[Any]:
    """work(chunk) of each chunk, in order. Chunk i goes to process i % processes.

    Turns instead of a queue: the order comes for free, each process holds one chunk at a time,
    and whatever ends this generator (an error, Ctrl-C, close) ends all processes at once.
    """
    # fork: a script without `if __name__ == "__main__"` works too, and `work` is not copied.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    workers, pipes = [], []
    try:
        for _ in range(processes):
            with _alive():
                here, there = context.Pipe()
                worker = context.Process(target=_serve, args=(work, there, here), daemon=True)
                worker.start()
            there.close()  # now only the worker holds it: should it die, `here` tells
            workers.append(worker)
            pipes.append(here)
        sent = received = 0
        for chunk in chunks:
            if sent - received == processes:
                yield _receive(pipes[received % processes])
                received += 1
            with _alive():
                pipes[sent % processes].send(chunk)
            sent += 1
        while received < sent:
            yield _receive(pipes[received % processes])
            received += 1
    finally:
        for worker, pipe in zip(workers, pipes, strict=True):
            worker.kill()
            worker.join()
            pipe.close()


def _receive(pipe: Connection) -> Any:
    """The result of a worker; its exception is raised here."""
    with _alive():
        result, error, trace = pipe.recv()
    if error is not None:
        raise error from RuntimeError(f"in a worker process:\n{trace}")
    return result


@contextmanager
def _alive() -> Iterator[None]:
    """A worker that did not start, or is no more: one clear error for all that then fails."""
    try:
        yield
    except (EOFError, OSError) as ended:
        raise UserError(
            "a worker process was killed or did not start, perhaps for want of memory: "
            "use fewer processes"
        ) from ended


def _serve(work: Callable[[Any], Any], pipe: Connection, other_end: Connection) -> None:
    """What a worker does: chunk in, (result, exception, traceback) out, until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who ends us
    other_end.close()  # came along with the fork; while it is open, a dead parent is not seen
    parent = multiprocessing.parent_process().sentinel
    with suppress(EOFError, ConnectionError):  # the parent is gone
        while parent not in wait([pipe, parent]):
            chunk = pipe.recv()
            try:
                answer = (work(chunk), None, None)
            except Exception as error:
                answer = (None, error, traceback.format_exc())
            pipe.send(answer)
