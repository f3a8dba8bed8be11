"""Tokenizer files: what the `tokenizers` library and tiktoken read and write, with equal ids."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import torch
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, PreTokenizer, Sequence, Split
from tokenizers.trainers import BpeTrainer

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils.tokenizers import BPETokenizer, SentencePieceBPE, tokenizer_from_state_dict
from shared.utils.tokenizers.formats import byte_symbols
from shared.utils.tokenizers.pretokenize import GPT2_PATTERN, LLAMA3_PATTERN

DATA = Path(os.environ.get("LMFS_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared/data")
FILES = sorted(path for path in DATA.glob("*/*") if path.is_file())
END = "<|endoftext|>"
SPECIALS = [END, "<a>", "<a><b>", " <x> ", "\n\n<y>"]
LLAMA2_SPECIALS = ["<unk>", "<s>", "</s>"]
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
EXTRA = "It's 1984, CAN'T we'll HELLOWorld'S ½ Ⅷ naïve 東京都 🦊🦊 x\r\n\r\n  def f(x):\n\t\treturn x\n"


# ----------------------------------------------------------------------------- the look-alikes


@functools.cache
def tales() -> str:
    return write_corpus(60_000, 1, "train")[0] + EXTRA * 20


def split(pattern: str) -> PreTokenizer:
    """As in Llama 3's file."""
    return Sequence(
        [
            Split(Regex(pattern), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


BYTE_LEVEL: dict[str, Callable[[], PreTokenizer]] = {
    "gpt2": lambda: ByteLevel(add_prefix_space=False),
    "gpt2, prefix space": lambda: ByteLevel(add_prefix_space=True),
    "no pattern": lambda: ByteLevel(add_prefix_space=False, use_regex=False),
    "llama3": lambda: split(LLAMA3_PATTERN),
    "qwen2": lambda: split(QWEN2_PATTERN),
    "o200k": lambda: split(O200K_PATTERN),
    "smollm": lambda: Sequence([Digits(True), ByteLevel(add_prefix_space=False)]),
    "groups of digits": lambda: Sequence([Digits(False), ByteLevel(add_prefix_space=False)]),
}
SENTENCEPIECE = ["prepend", "always", "first", "never"]
KINDS = [*BYTE_LEVEL, *SENTENCEPIECE]


@functools.cache
def library(kind: str) -> Tokenizer:
    """A small tokenizer of the library's, made like the real one of this name."""
    return llama2(kind) if kind in SENTENCEPIECE else byte_level(kind)


def byte_level(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = BYTE_LEVEL[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=1000, initial_alphabet=ByteLevel.alphabet())
    trainer.show_progress = False
    tokenizer.train_from_iterator([tales()], trainer)
    if kind == "llama3":  # its tokens are taken whole even if merges do not lead to them
        data = json.loads(tokenizer.to_str())
        data["model"]["ignore_merges"] = True
        del data["model"]["merges"][10:600:7]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens(SPECIALS[:3])
    tokenizer.add_tokens(SPECIALS[3:])
    return tokenizer


def llama2(prefix: str) -> Tokenizer:
    """Merges come from the tokens, as when a SentencePiece model is converted.

    Each way to split a token into two others is a merge of its rank.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Metaspace(split=True)
    trainer = BpeTrainer(vocab_size=1000)
    trainer.show_progress = False
    trained.train_from_iterator([tales().replace("\n", " ")], trainer)
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    learned = [t for t in learned if t not in "🦊½"] + ["▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁"]
    vocab = [*LLAMA2_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab += sorted(learned, key=lambda token: len(token) == 1)  # characters last, as there
    ids = {token: index for index, token in enumerate(vocab)}
    merges = [
        (ids[token], i, len(token) - i, token)
        for token in vocab[259:]
        for i in range(1, len(token))
        if token[:i] in ids and token[i:] in ids
    ]
    merges = [(token[:i], token[i:]) for _, i, _, token in sorted(merges)]
    assert len(merges) > sum(len(token) > 1 for token in learned) + 50  # several ways for some
    tokenizer = Tokenizer(
        models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "prepend":
        visible = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(visible)
    else:
        tokenizer.pre_tokenizer = Metaspace(prepend_scheme=prefix, split=False)
    if prefix != "never":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in LLAMA2_SPECIALS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in [*SPECIALS, "<s>x"]])
    return tokenizer


@functools.cache
def ours(kind: str) -> BPETokenizer:
    """The same tokenizer, read from its file."""
    return through_a_file(library(kind))


def through_a_file(theirs: Tokenizer) -> BPETokenizer:
    path = Path(os.environ["PYTEST_TOKENIZER_FOLDER"]) / "tokenizer.json"
    theirs.save(str(path))
    return BPETokenizer.from_huggingface(path)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    os.environ["PYTEST_TOKENIZER_FOLDER"] = str(tmp_path_factory.mktemp("tokenizers"))


def random_text(dice: random.Random) -> str:
    """Words, white space of all kinds, special tokens, literal ▁, characters of all planes."""
    spaces = [chr(i) for i in range(0x3001) if chr(i).isspace()]
    kinds = [
        lambda: dice.choice(WORDS),
        lambda: " ",
        lambda: "".join(dice.choices([*spaces, *" \n\r\t" * 5], k=dice.randint(1, 5))),
        lambda: " " * dice.randint(1, 12),
        lambda: chr(dice.choice([dice.randrange(0x80), dice.randrange(0x3000)])),
        lambda: dice.choice("▁é½🦊'`\x00\x1c\u0301\u200d\u017fĠ"),
        lambda: dice.choice([*SPECIALS, *LLAMA2_SPECIALS, "<s>x", "<|end", "<0x41>", "<a", "b>"]),
        lambda: dice.choice(ASSIGNED),
    ]
    weights = dice.choice([(8, 4, 1, 1, 1, 1, 1, 1), (1,) * 8, (9, 9, 0, 0, 0, 0, 0, 0)])
    return "".join(kind() for kind in dice.choices(kinds, weights, k=dice.randint(0, 30)))


WORDS = [*"it's I'LL don't 1984 12 x1y2 HELLOWorld naïve 東京都 fox the The . ... !? _ --".split()]
# Characters that this Python knows, and no surrogates.
ASSIGNED = [chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i))[0] != "C"]


def their_ids(theirs: Tokenizer, text: str) -> list[int]:
    return theirs.encode(text, add_special_tokens=False).ids


def assert_same(mine: BPETokenizer, theirs: Tokenizer, text: str) -> None:
    expected = their_ids(theirs, text)
    ids = mine.encode(text, allowed_special="all")
    if ids != expected:
        at = next(i for i, (a, b) in enumerate(zip(ids, expected)) if a != b)  # noqa: B905
        pytest.fail(
            f"{mine.decode(ids[at - 3 : at + 5])!r} in {text[:200]!r}: ids {ids[at : at + 5]} "
            f"should be {expected[at : at + 5]}"
        )
    assert mine.decode(ids) == theirs.decode(expected, skip_special_tokens=False)
