"""Text to tokens, once; what is too large for memory stays on disk.

    small    text in memory --> tokenizer --> ids in memory
    large    files --> tokenizer, in pieces, on all cores --> tokens/<hash>-train.bin --> np.memmap

A memory-mapped file looks like an array, and the system reads those pages that are asked for: a
batch needs a few, so training on gigabytes takes no more memory than training on a novel. The name
of the file is a hash of the text and of the tokenizer: the same two are never encoded again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.data.download import DATASETS, Corpus, ensure, load_default, load_text, sha256_of
from shared.utils.tokenizers import CharTokenizer, Tokenizer, corpus

LARGE = 50_000_000  # bytes of text that stay on disk


class Data(NamedTuple):
    corpus: Corpus  # of a large text, `train` is empty
    tokenizer: Tokenizer
    train: np.ndarray  # (N,) ids, of a type that just holds them
    valid: np.ndarray


def load(
    name: str | None, default: str, folder: Path, tokenizer: Tokenizer | None,
    new_tokenizer: Callable[[str | list[Path]], Tokenizer],
) -> Data:  # fmt: skip
    """The tokens of a dataset or a file. Raises UserError.

    name: None for the default one. folder: where those of a large text are kept. tokenizer: None
    for a new one, made of the text.
    """
    if files := large_files(name or default):
        return load_large(name or default, files, folder, tokenizer, new_tokenizer)
    text = load_text(name) if name else load_default(default)
    tokenizer = tokenizer or new_tokenizer(text.train + text.valid)
    dtype = corpus.id_dtype(tokenizer.vocab_size)
    ids = (np.array(tokenizer.encode(part), dtype) for part in (text.train, text.valid))
    return Data(text, tokenizer, *ids)


def large_files(name: str) -> list[Path]:
    """The files of a large text: training and validation, or one that holds both; else none."""
    paths = [Path(name).expanduser()]
    if name in DATASETS:
        if all(file.size < LARGE for file in DATASETS[name].files):
            return []
        paths = ensure(name, only=("input.txt", "train.txt", "valid.txt"))
    there = all(path.is_file() for path in paths)
    return paths if there and sum(path.stat().st_size for path in paths) > LARGE else []


def load_large(
    name: str, files: list[Path], folder: Path, tokenizer: Tokenizer | None,
    new_tokenizer: Callable[[list[Path]], Tokenizer],
) -> Data:  # fmt: skip
    """The tokens of files that are too large to be read at once."""
    sha256 = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    tokenizer = tokenizer or new_tokenizer(files)
    key = hashlib.sha256(f"{sha256} {tokenizer.state_dict()}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ids, dtype = [], corpus.id_dtype(tokenizer.vocab_size)
    for file in files:
        out = folder / f"{key}-{file.stem}.bin"
        done = out.exists()
        ids.append(np.memmap(out, dtype, "r") if done else corpus.encode_file(tokenizer, file, out))
    if len(ids) == 1:  # the first 90 % train, as of every text
        cut = int(0.9 * len(ids[0]))
        ids = [ids[0][:cut], ids[0][cut:]]
    valid = tokenizer.decode(ids[1].tolist())  # its length tells bits per character
    return Data(Corpus(name, "", valid, sha256, None), tokenizer, *ids)


def alphabet_of(text_or_files: str | list[Path]) -> CharTokenizer:
    """CharTokenizer.train, of files as well."""
    if isinstance(text_or_files, str):
        return CharTokenizer.train(text_or_files)
    return CharTokenizer("".join(sorted(corpus.count(text_or_files, Counter))))
