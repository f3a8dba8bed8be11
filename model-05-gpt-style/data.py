"""Text to tokens, once; what is too large for memory stays on disk.

    small    text in memory --> tokenizer --> ids in memory
    large    files --> tokenizer, in pieces, on all cores --> tokens/<hash>-train.bin --> np.memmap

A memory-mapped file looks like an array, and the system reads those pages that are asked for: a
batch needs a few, so training on gigabytes takes no more memory than training on a novel. The name
of the file is a hash of the text and of the tokenizer: the same two are never encoded again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.data.download import DATASETS, Corpus, ensure, load_default, load_text, sha256_of
from shared.utils.tokenizers import Tokenizer, corpus

LARGE = 50_000_000  # bytes of text that stay on disk
VALID = 2_000_000  # tokens of one large file that are kept for validation, at most


class Source(NamedTuple):
    """A text that has not been encoded yet."""

    corpus: Corpus  # of a large text, `train` and `valid` are empty
    files: list[Path]  # of a large text

    @property
    def text(self) -> str | list[Path]:
        """What a tokenizer is trained on."""
        return self.files or self.corpus.train + self.corpus.valid


def find(name: str | None, default: str) -> Source:
    """A dataset or a file; None for the default one. Raises UserError."""
    if files := large_files(name or default):
        sha256 = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
        return Source(Corpus(name or default, "", "", sha256, None), files)
    return Source(load_text(name) if name else load_default(default), [])


def large_files(name: str) -> list[Path]:
    """The files of a large text: training and validation, or one that holds both; else none."""
    paths = [Path(name).expanduser()]
    if name in DATASETS:
        if all(file.size < LARGE for file in DATASETS[name].files):
            return []
        paths = ensure(name, only=("input.txt", "train.txt", "valid.txt"))
    there = all(path.is_file() for path in paths)
    return paths if there and sum(path.stat().st_size for path in paths) > LARGE else []


def part_of(path: Path, size: int, end: bool = False) -> str:
    """So many bytes of a large text: its first ones, or its last."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size) if end else 0)
        return file.read(size).decode(errors="ignore")


def encode(
    source: Source, tokenizer: Tokenizer, folder: Path
) -> tuple[Corpus, np.ndarray, np.ndarray]:
    """The corpus, and its training and validation ids (N,), of a type that just holds them.

    folder: where those of a large text are kept. Raises UserError.
    """
    text, files = source
    dtype = corpus.id_dtype(tokenizer.vocab_size)
    if not files:
        train, valid = (np.array(tokenizer.encode(t), dtype) for t in (text.train, text.valid))
        return text, train, valid
    key = hashlib.sha256(f"{text.sha256} {tokenizer.state_dict()}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ids = []
    for file in files:
        out = folder / f"{key}-{file.stem}.bin"
        done = out.exists()
        ids.append(np.memmap(out, dtype, "r") if done else corpus.encode_file(tokenizer, file, out))
    if len(ids) == 1:  # the first 90 % train, as of every text, and more where the rest is enough
        cut = max(int(0.9 * len(ids[0])), len(ids[0]) - VALID)
        ids = [ids[0][:cut], ids[0][cut:]]
    valid = tokenizer.decode(ids[1].tolist())  # its length tells bits per character
    return text._replace(valid=valid), *ids
