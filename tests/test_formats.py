"""Tokenizer files: what the `tokenizers` library and tiktoken read and write, with equal ids."""

from __future__ import annotations

import functools
import io
import json
import os
import random
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
EXTRA = (
    "It's 1984, CAN'T we'll HELLOWorld'S ½ Ⅷ naïve 東京都 🦊🦊 x\r\n\r\n  def f(x):\n\t\treturn x\n"
)


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


WORDS = """it's I'LL don't 1984 12 x1y2 HELLOWorld naïve 東京都 fox the The . ... !? _ --""".split()  # noqa: SIM905
# Characters that this Python knows, and no surrogates.
UNASSIGNED = ("Cn", "Co", "Cs")
ASSIGNED = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in UNASSIGNED]


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


# --------------------------------------------------------------- tokenizer.json: theirs, read here


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_random_strings_are_the_librarys(kind):
    for seed in range(400):
        assert_same(ours(kind), library(kind), random_text(random.Random(seed)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_thousands_of_random_strings_are_the_librarys(kind):
    for seed in range(400, 3000):
        assert_same(ours(kind), library(kind), random_text(random.Random(seed)))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_tales_are_the_librarys(kind):
    assert_same(ours(kind), library(kind), write_corpus(30_000, 2, "valid")[0] + EXTRA)


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="needs data: set LMFS_DATA_DIR")
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_real_files_are_the_librarys(kind):
    for path in FILES:
        assert_same(ours(kind), library(kind), path.read_bytes().decode()[:200_000])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama3", "o200k", "smollm", "prepend", "first"])
def test_ids_of_every_assigned_character_are_the_librarys(kind):
    for start in range(0, len(ASSIGNED), 64):
        text = "".join(f"a{c}1 {c} {c}{c}'" for c in ASSIGNED[start : start + 64])
        assert_same(ours(kind), library(kind), text)


@pytest.mark.parametrize("kind", KINDS)
def test_long_runs_are_the_librarys(kind):
    for text in [" " * 1001, "\n" * 1001, "a" * 1001, "1" * 1001, "▁" * 1001, "🦊" * 301]:
        assert_same(ours(kind), library(kind), text)
        assert_same(ours(kind), library(kind), text + "x")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_names_and_the_longest_wins(kind):
    mine, theirs = ours(kind), library(kind)
    for text in ["<a><b>", "<a><a><b>", "<|endoftext|><a>", "x <x> y", "a\n\n<y>b", "<a", "<s>x"]:
        assert_same(mine, theirs, text)
    assert mine.encode("<a><b>", allowed_special="all") == [mine.special_tokens["<a><b>"]]
    assert mine.special_tokens[END] == theirs.token_to_id(END)
    assert mine.special_tokens[END] not in mine.encode(f"{END}")  # unless it is allowed


@pytest.mark.parametrize("kind", ["gpt2", "no pattern", "llama3", "smollm", "prepend", "never"])
def test_every_text_comes_back(kind):
    for seed in range(300):
        text = random_text(random.Random(seed)).replace("▁", "_")
        assert ours(kind).decode(ours(kind).encode(text)) == text


def test_the_last_of_two_equal_merges_counts():
    """Also their order: files are not always in the order in which tokens were made."""
    theirs = library("no pattern")
    data = json.loads(theirs.to_str())
    merges = data["model"]["merges"]
    random.Random(1).shuffle(merges)
    data["model"]["merges"] = merges + merges[::3]
    theirs = Tokenizer.from_str(json.dumps(data))
    mine = through_a_file(theirs)
    assert_same(mine, theirs, tales()[:20_000])
    assert mine.encode(tales()[:2000]) != ours("no pattern").encode(tales()[:2000])


def test_tokens_with_a_space_inside_are_found_in_sentencepiece_files():
    data = json.loads(library("prepend").to_str())
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    for first, second in [("e", "▁"), ("e▁", "t"), (".", "▁The"), ("▁▁", "▁")]:
        vocab.setdefault(first + second, len(vocab))
        merges.insert(0, [first, second])
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in LLAMA2_SPECIALS]
    ordered = sorted(vocab, key=vocab.get)
    data["model"]["vocab"] = {token: index for index, token in enumerate(ordered)}
    theirs = Tokenizer.from_str(json.dumps(data))
    mine = through_a_file(theirs)
    assert not mine.cuts and ours("prepend").cuts
    assert mine.cut_at == ""
    assert_same(mine, theirs, tales()[:20_000])
    for seed in range(200):
        assert_same(mine, theirs, random_text(random.Random(seed)))


def test_merges_may_be_texts_or_pairs(tmp_path):
    for kind in ("llama3", "prepend"):
        data = json.loads(library(kind).to_str())
        assert isinstance(data["model"]["merges"][0], list)
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        (tmp_path / "t.json").write_text(json.dumps(data), encoding="utf-8")
        mine = BPETokenizer.from_huggingface(tmp_path / "t.json")
        assert mine.state_dict() == ours(kind).state_dict()


# ------------------------------------------------------------------------- tokenizer.json: written


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_reads_what_is_written(kind, tmp_path):
    mine = ours(kind)
    mine.save_huggingface(tmp_path / "t.json")
    theirs = Tokenizer.from_file(str(tmp_path / "t.json"))
    assert theirs.get_vocab_size() == mine.vocab_size
    for seed in range(200):
        assert_same(mine, theirs, random_text(random.Random(seed)))
    assert BPETokenizer.from_huggingface(tmp_path / "t.json").state_dict() == mine.state_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    "patterns", [(), (GPT2_PATTERN,), (LLAMA3_PATTERN,), (r"\p{N}", GPT2_PATTERN)]
)
def test_a_tokenizer_trained_here_is_read_by_the_library(patterns, tmp_path):
    text = tales()[:5000] if not patterns else tales()
    mine = BPETokenizer.train(text, 600, [END, "<a>", "<a><b>"], patterns)
    mine.save_huggingface(tmp_path / "t.json")
    theirs = Tokenizer.from_file(str(tmp_path / "t.json"))
    assert_same(mine, theirs, tales()[:20_000])
    for seed in range(200):
        assert_same(mine, theirs, random_text(random.Random(seed)))


def test_transformers_reads_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    for kind in ("llama3", "prepend"):
        ours(kind).save_huggingface(tmp_path / "tokenizer.json")
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tmp_path / "tokenizer.json")
        )
        text = tales()[:3000] + END
        assert theirs.encode(text) == ours(kind).encode(text, allowed_special="all")


def test_special_tokens_that_are_written_like_others_are_refused(tmp_path):
    tokenizer = BPETokenizer.train("xy xy", 258, special_tokens=["a"])
    with pytest.raises(UserError, match="'a'"):
        tokenizer.save_huggingface(tmp_path / "t.json")
    with pytest.raises(UserError, match="'a'"):
        tokenizer.save_gpt2(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ GPT-2's files


@pytest.fixture(scope="module")
def trained() -> BPETokenizer:
    return BPETokenizer.train(tales(), 800, special_tokens=[END, "<a>", "<a><b>"])


def test_byte_symbols_are_the_librarys():
    assert sorted(byte_symbols()) == sorted(ByteLevel.alphabet())
    assert len(set(byte_symbols())) == 256


def test_gpt2_files_come_back(trained, tmp_path):
    trained.save_gpt2(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    twin = BPETokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert twin.state_dict() == trained.state_dict()
    text = (tmp_path / "merges.txt").read_text("utf-8").partition("\n")[2]
    (tmp_path / "merges.txt").write_bytes(text.replace("\n", "\r\n").encode())  # and no version
    twin = BPETokenizer.from_gpt2(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert twin.state_dict() == trained.state_dict()


def test_merges_that_begin_with_a_hash_are_no_comments(tmp_path):
    trained = BPETokenizer.train("## ## ##version ##version #", 262)
    trained.save_gpt2(tmp_path)
    assert "\n# #\n" in (tmp_path / "merges.txt").read_text("utf-8")
    twin = BPETokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert twin.merges == trained.merges


def test_the_libraries_read_gpt2_files(trained, tmp_path):
    trained.save_gpt2(tmp_path)
    files = [str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")]
    theirs = Tokenizer(models.BPE.from_file(*files))
    theirs.pre_tokenizer, theirs.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    theirs.add_special_tokens(list(trained.special_tokens))
    vocab = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    assert list(vocab.values()) == list(range(800))
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    ranks = {
        bytes(byte_of[symbol] for symbol in token): index
        for token, index in vocab.items()
        if token not in trained.special_tokens
    }
    other = tiktoken.Encoding(
        "x",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens=trained.special_tokens,
    )
    for seed in range(300):
        text = random_text(random.Random(seed))
        assert_same(trained, theirs, text)
        assert other.encode_ordinary(text) == trained.encode(text)


def test_transformers_reads_gpt2_files(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    trained.save_gpt2(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
    text = tales()[:5000] + EXTRA
    assert theirs.encode(text) == trained.encode(text)
    assert theirs.encode(END) == [trained.special_tokens[END]]


@pytest.mark.skipif(not (DATA / "gpt2").is_dir(), reason="needs data: set LMFS_DATA_DIR")
def test_gpt2_itself_is_written_as_it_was(tmp_path):
    names = ["vocab.json", "merges.txt"]
    gpt2 = BPETokenizer.from_gpt2(*(DATA / "gpt2" / name for name in names))
    gpt2.save_gpt2(tmp_path)
    old, new = [
        [json.loads((folder / names[0]).read_text("utf-8")), (folder / names[1]).read_text("utf-8")]
        for folder in (DATA / "gpt2", tmp_path)
    ]
    assert new == old
    ranks = data_gym_to_mergeable_bpe_ranks(str(tmp_path / names[1]), str(tmp_path / names[0]))
    assert ranks == gpt2.index


def without_a_merge() -> BPETokenizer:
    state = BPETokenizer.train("abab", 258).state_dict()
    return BPETokenizer.from_state_dict({**state, "merges": state["merges"][:1]})


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (lambda: ours("llama3"), "save_huggingface"),
        (lambda: ours("gpt2, prefix space"), "save_huggingface"),
        (lambda: ours("smollm"), "save_huggingface"),
        (lambda: ours("prepend"), "save_huggingface"),
        (lambda: BPETokenizer.train("ab", 257, ["<Ġ>"]), "'Ġ'"),
        (without_a_merge, "no merge makes"),
    ],
)
def test_what_gpt2_files_cannot_hold_is_refused(tokenizer, says, tmp_path):
    with pytest.raises(UserError, match=says):
        tokenizer().save_gpt2(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- SentencePiece-style BPE


def test_bytes_that_are_no_utf8_are_decoded_as_by_the_library():
    mine, theirs, dice = ours("prepend"), library("prepend"), random.Random(1)
    byte = mine.byte_ids
    for _ in range(2000):
        run = dice.choice([dice.choices(byte, k=3), [byte[b] for b in "é🦊".encode()], []])
        ids = [*run, *dice.choices(range(mine.vocab_size), k=dice.randint(0, 3)), *run]
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert "".join(mine.decode_stream(ids)) == mine.decode(ids)


def test_a_stream_waits_for_the_end_of_bytes_only():
    mine = ours("prepend")
    ids = mine.encode("The 🦊 saw")
    pieces = list(mine.decode_stream(iter(ids)))
    assert "".join(pieces) == "The 🦊 saw"
    assert pieces[0] == mine.tokens[ids[0]].replace("▁", " ")[1:]
    assert sum(map(bool, pieces)) > 2
    assert [piece[:3] for piece in pieces if "🦊" in piece] == ["🦊 s"]
    first = next(mine.decode_stream(iter([ids[0]])))
    assert first == pieces[0]


@pytest.mark.parametrize("kind", ["always", "first", "never", "prepend", "gpt2, prefix space"])
def test_a_file_in_chunks_is_encoded_like_the_text(kind, tmp_path, monkeypatch):
    from shared.utils.tokenizers import corpus

    monkeypatch.setattr(corpus, "CHUNK", 1)
    path, text = tmp_path / "a.txt", (tales()[:2000] + EXTRA + "<s> a <a> b c" * 30 + "x▁ ½ ▁\n▁ ")
    path.write_text(text, "utf-8", newline="")
    ids = corpus.encode_file(ours(kind), path, tmp_path / "ids", 1, allowed_special="all")
    assert ids.tolist() == ours(kind).encode(text, allowed_special="all")


SETTINGS = {  # of SentencePiece's trainer: whether its model can be read
    "Llama 2": ({}, True),
    "no dummy": ({"add_dummy_prefix": False}, True),
    "control": ({"control_symbols": ["<a>"]}, True),
    "pieces of spaces": ({"allow_whitespace_only_pieces": True}, True),
    "user's": ({"user_defined_symbols": ["<a>", "\n"], "add_dummy_prefix": False}, True),
    "user's, dummy": ({"user_defined_symbols": ["<a>"]}, False),
    "spaces behind": ({"treat_whitespace_as_suffix": True}, False),
    "changed text": ({"normalization_rule_name": "nmt_nfkc"}, False),
    "fewer spaces": ({"remove_extra_whitespaces": True}, False),
    "no bytes": ({"byte_fallback": False}, False),
    "unigram": ({"model_type": "unigram"}, False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_tokenizer_model_gives_sentencepieces_ids_or_is_refused(name, tmp_path):
    spm = pytest.importorskip("sentencepiece")
    settings, readable = SETTINGS[name]
    file, path = io.BytesIO(), tmp_path / "tokenizer.model"
    given = dict(model_type="bpe", vocab_size=600, byte_fallback=True, minloglevel=2)
    given |= dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
    lines = iter(tales()[:30_000].splitlines())
    spm.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=file, **given | settings)
    path.write_bytes(file.getvalue())
    if not readable:
        with pytest.raises(UserError, match="only BPE"):
            SentencePieceBPE.from_sentencepiece(path)
        return
    theirs = spm.SentencePieceProcessor(model_proto=file.getvalue())
    mine, dice = SentencePieceBPE.from_sentencepiece(path), random.Random(1)
    allowed = settings.get("user_defined_symbols", [])
    parts = [
        "",
        " ",
        "  ",
        "▁",
        "\n",
        "the",
        " fox",
        "é",
        "🦊",
        "<a>",
        "<s>",
        "<0x41>",
        "\0",
        "\u200b",
    ]
    for text in [EXTRA, *("".join(dice.choices(parts, k=n % 12)) for n in range(500))]:
        ids = mine.encode(text, allowed_special=allowed)
        assert ids == theirs.encode(text)
        assert mine.decode(ids) == theirs.decode(ids)


def test_it_is_loaded_and_not_trained():
    with pytest.raises(UserError, match="BPETokenizer"):
        SentencePieceBPE.train("low lower", 300)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff b"])
def test_lone_surrogates_are_refused(text):
    for kind in KINDS:
        with pytest.raises(UserError, match="surrogate"):
            ours(kind).encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_travels_through_a_checkpoint(kind):
    buffer = io.BytesIO()
    torch.save(ours(kind).state_dict(), buffer)
    buffer.seek(0)
    twin = tokenizer_from_state_dict(torch.load(buffer, weights_only=True))
    assert type(twin) is type(ours(kind))
    assert twin.state_dict() == ours(kind).state_dict()
    assert twin.encode(tales()[:3000]) == ours(kind).encode(tales()[:3000])


@pytest.mark.parametrize(
    "damage",
    [
        *[{"tokens": None}, {"tokens": []}, {"tokens": [1, 2]}, {"tokens": "abc"}],
        *[{"merges": [[1]]}, {"merges": [[10**9, 1]]}, {"merges": None}, {"merges": [["a", "b"]]}],
        *[{"merges": [[-1, -2]]}, {"special_tokens": {"<s>": 5}}, {"special_tokens": []}],
        *[{"prefix": None}, {"prefix": "sometimes"}, {"prefix": ["first"]}],
    ],
)
def test_a_damaged_state_is_refused(damage):
    with pytest.raises(UserError) as caught:
        tokenizer_from_state_dict({**ours("first").state_dict(), **damage})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["tokens", "merges", "special_tokens", "prefix"])
def test_an_incomplete_state_is_refused(name):
    state = ours("first").state_dict()
    del state[name]
    with pytest.raises(UserError):
        tokenizer_from_state_dict(state)


# ------------------------------------------------------------------------------- damaged files


def put(data: dict, place: str, value: object) -> None:
    """put(data, "model.dropout", 0.1)"""
    *names, last = [int(name) if name.isdigit() else name for name in place.split(".")]
    for name in names:
        data = data[name]
    data[last] = value


def pattern(text: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False}


SPLIT = "pre_tokenizer.pretokenizers.0"
UNSUPPORTED = [
    ("llama3", "model.type", "WordPiece", "WordPiece"),
    ("llama3", "model.type", "Unigram", "Unigram"),
    ("llama3", "model.dropout", 0.1, "dropout"),
    ("prepend", "model.dropout", 0.1, "dropout"),
    ("llama3", "model.continuing_subword_prefix", "##", "continuing_subword_prefix"),
    ("llama3", "model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
    ("llama3", "normalizer", {"type": "NFC"}, "NFC"),
    ("llama3", "normalizer", {"type": "NFKC"}, "NFKC"),
    ("prepend", "normalizer", {"type": "Precompiled", "precompiled_charsmap": "A" * 999}, "Precom"),
    ("prepend", "normalizer", {"type": "Lowercase"}, "Lowercase"),
    ("prepend", "normalizer", None, "normalizer null"),
    ("first", "normalizer", {"type": "NFC"}, "NFC"),
    ("llama3", "decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
    ("prepend", "decoder", None, "decoder null"),
    ("never", "decoder", {"type": "Metaspace"}, "Metaspace"),
    ("llama3", "pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
    ("first", "pre_tokenizer.split", True, "Metaspace"),
    ("first", "pre_tokenizer.replacement", "_", "Metaspace"),
    ("llama3", f"{SPLIT}.behavior", "Removed", "Removed"),
    ("llama3", f"{SPLIT}.invert", True, "invert"),
    ("llama3", f"{SPLIT}.pattern", {"String": " "}, "String"),
    ("llama3", SPLIT, {"type": "Punctuation", "behavior": "Isolated"}, "Punctuation"),
    ("llama3", SPLIT, pattern(r"\p{Han}+|\s"), "Han"),
    ("llama3", SPLIT, pattern(r"\pL+"), r"\\pL"),
    ("llama3", SPLIT, pattern(r"\w+"), r"\\w"),
    ("llama3", SPLIT, pattern(r"[[:alpha:]]+"), "alpha"),
    ("llama3", SPLIT, pattern(r"[a-z&&[^b]]+"), "&&"),
    ("llama3", SPLIT, pattern(r"[^\S]+"), "S"),
    ("llama3", SPLIT, pattern(r"\p{L}++"), r"\+\+|\}\+"),
    ("llama3", SPLIT, pattern(r"a(b"), "pattern"),
    ("llama3", "pre_tokenizer.pretokenizers.1.add_prefix_space", True, "add_prefix_space"),
    ("llama3", "pre_tokenizer.pretokenizers.1", {"type": "Digits", "individual_digits": True}, "D"),
    ("prepend", "model.byte_fallback", False, "byte_fallback"),
    ("prepend", "model.ignore_merges", True, "ignore_merges"),
    ("prepend", "added_tokens.1.normalized", True, "normalized"),
    ("llama3", "added_tokens.1.lstrip", True, "lstrip"),
    ("llama3", "added_tokens.1.rstrip", True, "rstrip"),
    ("llama3", "added_tokens.1.single_word", True, "single_word"),
    ("llama3", "added_tokens.1.normalized", True, "overlaps"),  # with <a><b>
]
DAMAGED = [
    *[
        ("llama3", name, value, "damaged")
        for name in ("model", "added_tokens")
        for value in (3, "x")
    ],
    *[("llama3", "model.merges", value, "damaged") for value in (None, [1], [["a"]], ["a b c"])],
    ("llama3", "model.vocab", None, "vocabulary"),
    ("llama3", "model.vocab.Ġ", None, "vocabulary"),
    ("llama3", "model.vocab.Ġ", 1, "ids"),
    ("llama3", "model.vocab.new", 10**30, "ids"),
    ("llama3", "model.vocab.\ud800", 1000, "surrogate"),
    ("llama3", "model.merges.5", ["a", "Ġqqq"], "'Ġqqq'"),
    ("llama3", "model.merges.5", "q qqq", "'qqq'"),
    ("prepend", "model.merges.5", ["a", "▁qqq"], "'▁qqq'"),
    ("llama3", "added_tokens.1.id", 5, "two ids"),
    ("llama3", "added_tokens.1.id", 5000, "ids"),
    ("llama3", "added_tokens.1.id", None, "damaged|vocabulary"),
    ("llama3", "added_tokens.1.content", "", "special token"),
    ("llama3", "added_tokens.1.content", "\ud800", "special token"),
    ("llama3", "added_tokens.1.content", 7, "special token"),
    ("llama3", "pre_tokenizer", "ByteLevel", "damaged"),
    ("llama3", "pre_tokenizer", {}, "damaged"),
    ("llama3", "pre_tokenizer.pretokenizers", [], "damaged"),
]


@pytest.mark.parametrize(("kind", "place", "value", "says"), UNSUPPORTED + DAMAGED)
def test_what_cannot_be_read_is_refused_in_one_line(kind, place, value, says, tmp_path):
    data = json.loads(library(kind).to_str())
    put(data, place, value)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(UserError, match=says) as caught:
        BPETokenizer.from_huggingface(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 400 + len(str(path))
    assert ": " in message


@pytest.mark.parametrize("kind", ["llama3", "prepend"])
def test_a_missing_byte_is_named(kind, tmp_path):
    data = json.loads(library(kind).to_str())
    vocab, byte = data["model"]["vocab"], {"llama3": "ħ", "prepend": "<0x85>"}[kind]
    vocab["other"] = vocab.pop(byte)
    (tmp_path / "t.json").write_text(json.dumps(data), "utf-8")
    with pytest.raises(UserError, match=byte):
        BPETokenizer.from_huggingface(tmp_path / "t.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff{}", b"{}", b"[" * 100_000])
def test_what_is_no_tokenizer_is_refused(content, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    (tmp_path / "merges.txt").write_text("a b\n", "utf-8")
    for read in (
        lambda: BPETokenizer.from_huggingface(path),
        lambda: BPETokenizer.from_gpt2(path, tmp_path / "merges.txt"),
    ):
        with pytest.raises(UserError, match=r"file\.json|merges\.txt") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def damaged_gpt2(folder: Path, vocab: Callable[[dict], object], merges: Callable[[str], str]):
    """Reads GPT-2's files after a change of both."""
    old = json.loads((folder / "vocab.json").read_text("utf-8"))
    new = vocab(old)
    (folder / "vocab.json").write_text(json.dumps(old if new is None else new), "utf-8")
    text = merges((folder / "merges.txt").read_text("utf-8"))
    (folder / "merges.txt").write_text(text, "utf-8")
    return BPETokenizer.from_gpt2(folder / "vocab.json", folder / "merges.txt")


def same(text: object) -> None:
    """Nothing is changed."""


@pytest.mark.parametrize(
    ("vocab", "merges", "says"),
    [
        (lambda v: [1, 2], str, "vocab.json"),
        (lambda v: {**v, "a": "b"}, str, r"vocab\.json: the vocabulary"),
        (lambda v: {**v, "a": True}, str, r"vocab\.json: the vocabulary"),
        (lambda v: {**v, "a": 1.5}, str, r"vocab\.json: the vocabulary"),
        (lambda v: {**v, "a": -1}, str, "ids are not 0 to 799"),
        (lambda v: {**v, "a": 800}, str, "ids are not 0 to 799"),
        (lambda v: {**v, "a": 3}, str, "ids are not 0 to 799"),
        (lambda v: {"q" * 99 if t == "a" else t: i for t, i in v.items()}, str, "'a'"),
        (lambda v: {"xyz" if t == "ħ" else t: i for t, i in v.items()}, str, "256 bytes.*'ħ'"),
        (lambda v: {"xyz" if t == "Ġt" else t: i for t, i in v.items()}, str, "'Ġt'"),
        (same, lambda m: m.replace("Ġ t\n", "Ġt\n"), r"merges\.txt, line \d+: 'Ġt'"),
        (same, lambda m: m.replace("Ġ t\n", "Ġ t h\n"), r"merges\.txt, line"),
        (same, lambda m: m.replace("Ġ t\n", "\nĠ t\n"), r"merges\.txt, line"),
        (same, lambda m: m.replace("Ġ t\n", "Ġ  t\n"), r"merges\.txt, line"),
        (same, lambda m: m[: len(m) // 2 + 1], "merges.txt"),
        (same, lambda m: "", "merges.txt"),
        (same, lambda m: m + "Ġ qqq\n", "'qqq'"),
        (same, lambda m: m + "# z\n", "'#z'"),
    ],
)
def test_damaged_gpt2_files_are_refused(vocab, merges, says, trained, tmp_path):
    trained.save_gpt2(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        damaged_gpt2(tmp_path, vocab, merges)
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_not_there_are_named(trained, tmp_path):
    trained.save_gpt2(tmp_path)
    for read in (
        lambda: BPETokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "no.txt"),
        lambda: BPETokenizer.from_gpt2(tmp_path / "no.json", tmp_path / "merges.txt"),
        lambda: BPETokenizer.from_huggingface(tmp_path / "no.json"),
        lambda: trained.save_gpt2(tmp_path / "no"),
        lambda: trained.save_huggingface(tmp_path / "no" / "t.json"),
    ):
        with pytest.raises(UserError, match=r"[\\/]no"):
            read()
    with pytest.raises(UserError, match="cannot be read"):
        BPETokenizer.from_huggingface(tmp_path)
