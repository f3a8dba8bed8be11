"""WordPiece: the ids of the `tokenizers` library, and its compression."""

from __future__ import annotations

import io
import math
import os
import pickle
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils.tokenizers.wordpiece import (
    SPECIAL_TOKENS,
    BasicTokenizer,
    WordPieceTokenizer,
    characters,
)

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("LMFS_DATA_DIR", BESIDE))
TALES = write_corpus(60_000, 1, "train")[0]
# Letters, marks, controls, spaces, punctuation, Chinese, Korean, emoji, and whole planes.
AWKWARD = (
    "aZéÀİΣςßǅﬁ\u0301\u0323\u0ec8\u0000\u000b\u000c\u001c\u0085\u00ad\u200b\u200d\u2028\ufeff\ufffd"
)
AWKWARD += (
    " \t\r\n\u00a0\u3000.,'\"-$+<=>^`|~#—„¿、漢字\uf900\u2f00\U0002f800가각\U0001f98a\ue000##[]"
)
RANGES = [
    (0x20, 0x7F),
    (0, 0x250),
    (0x300, 0x370),
    (0x370, 0x600),
    (0x900, 0xE00),
    (0x1E00, 0x2070),
]
RANGES += [(0x3000, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0x10000), (0x10000, 0x20000)]
RANGES += [(0x20000, 0x30000), (0xE0000, 0x110000)]
SMALL = ["[UNK]", "fox", "##es", "fo", "##x", "!", "'", "don", "t", "well", "-", "read"]


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("tokenizers", reason="the reference implementation")


def reference(library, tokens: list[str] | None = None, **options: bool | None):
    """The library's tokenizer with this vocabulary; its normalizer has other defaults than ours."""
    options = {"lowercase": False, **options}
    vocab = {token: index for index, token in enumerate(tokens or ["[UNK]"])}
    tokenizer = library.Tokenizer(library.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def reference_words(tokenizer, text: str) -> list[str]:
    text = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def our_words(basic: BasicTokenizer, text: str) -> list[str]:
    return [word for chunk in basic.chunks(text) for word in basic.words(chunk)]


def random_text(dice: random.Random) -> str:
    """Assigned characters of all planes. The others are tested one by one, below."""
    length = dice.randint(1, 40)
    if dice.random() < 0.5:
        return "".join(dice.choices(AWKWARD, k=length))
    codes = (dice.randrange(*dice.choice(RANGES)) for _ in range(length))
    return "".join(c for c in map(chr, codes) if unicodedata.category(c) not in ("Cn", "Cs"))


def splits(text: str, share: float = 0.9) -> tuple[str, str]:
    cut = text.index("\n", int(len(text) * share))
    return text[:cut], text[cut:]


def data(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not on this machine")
    return (DATA / name).read_text(encoding="utf-8")


OPTIONS = [
    {},
    {"lowercase": True},
    {"lowercase": True, "strip_accents": False},
    {"strip_accents": True, "clean_text": False},
    {"lowercase": True, "clean_text": False, "handle_chinese_chars": False},
]


# ------------------------------------------------------------------------------- the library's ids


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_random_texts_have_the_ids_of_the_library(library, options):
    dice = random.Random(str(options))
    texts = [random_text(dice) for _ in range(3000)]
    tokenizer = WordPieceTokenizer.train("".join(texts[:1500]), 20_000, **options)
    twin = reference(library, tokenizer.tokens, **options)
    known = 0
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == twin.encode(text).ids, ascii(text)
        known += tokenizer.unk_id not in ids
        if tokenizer.unk_id not in ids:
            assert tokenizer.encode(tokenizer.decode(ids)) == ids, ascii(text)
    assert known > 1000


# Planes 0 to 2 hold nearly all characters; in the others a sample, or all when there is time.
CODES = [
    pytest.param([*range(0x32000), *range(0x32000, 0x110000, 97)], id="most"),
    pytest.param(range(0x110000), id="all", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("codes", CODES)
def test_every_code_point_has_the_words_of_the_library(library, codes):
    assert unlike(library, codes) == []


@pytest.mark.parametrize("codes", CODES)
def test_lower_case_differs_only_where_the_library_knows_a_newer_unicode(library, codes):
    differ = unlike(library, codes, lowercase=True)
    assert all(code == 0x1C89 or code > 0x2C00 for code in differ)  # rare letters
    assert len(differ) < 150  # 56 where Python knows Unicode 14


def unlike(library, codes: Iterable[int], **options: bool) -> list[int]:
    """The code points that our words and the library's disagree on."""
    twin, basic = reference(library, **options), BasicTokenizer(**options)
    texts = ((code, f"a{chr(code)}b") for code in codes if not 0xD800 <= code <= 0xDFFF)
    return [code for code, t in texts if our_words(basic, t) != reference_words(twin, t)]


@pytest.mark.slow
@pytest.mark.parametrize("lowercase", [False, True])
def test_the_files_have_the_ids_of_the_library(library, lowercase):
    tokenizer = WordPieceTokenizer.train(TALES, 1000, lowercase=lowercase)
    twin = reference(library, tokenizer.tokens, lowercase=lowercase)
    texts = [TALES, Path(__file__).read_text(encoding="utf-8")]
    texts += [path.read_text(encoding="utf-8") for path in DATA.rglob("*.*") if path.is_file()]
    for text in texts:
        assert tokenizer.encode(text) == twin.encode(text).ids


def test_long_words_are_unknown_as_in_the_library(library):
    tokenizer = WordPieceTokenizer(["[UNK]", "a", "##a"])
    twin = reference(library, tokenizer.tokens)
    for length in (99, 100, 101, 5000):
        assert tokenizer.encode("a" * length) == twin.encode("a" * length).ids
    assert tokenizer.encode("a" * 3_000_000) == [0]


# ---------------------------------------------------------------------------------- compression


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [2000, 8000])
@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("name", ["tiny-shakespeare/input.txt", "wikitext-2/valid.txt", "tales"])
def test_training_compresses_within_one_percent_of_the_library(
    library, name, lowercase, vocab_size
):
    text = write_corpus(400_000, 1, "train")[0] if name == "tales" else data(name)
    vocab_size = min(vocab_size, 3000) if name == "tales" else vocab_size  # it has no more pieces
    train, held_out = splits(text)
    twin = reference(library, lowercase=lowercase)
    twin.train_from_iterator(
        [train],
        library.trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        ),
    )
    theirs = len(held_out) / len(twin.encode(held_out).ids)
    tokenizer = WordPieceTokenizer.train(train, vocab_size, lowercase=lowercase)
    assert tokenizer.vocab_size == vocab_size
    ours = len(held_out) / len(tokenizer.encode(held_out))
    assert ours > 0.99 * theirs


CRITERIA = {  # of a pair ab and its pieces a and b, among n pieces
    "count": lambda ab, a, b, n: ab,
    "gain": lambda ab, a, b, n: ab * math.log(n * ab / (a * b)),
    "ratio": lambda ab, a, b, n: ab / (a * b),
}


def learn_by(criterion: str, counts: Counter[str], vocab_size: int) -> list[str]:
    """A vocabulary by any criterion: the best pair joins, again and again."""
    words = [(characters(word), number) for word, number in counts.items()]
    pieces, pairs, where = Counter(), Counter(), defaultdict(set)
    for index, (spelled, number) in enumerate(words):
        for piece in spelled:
            pieces[piece] += number
        for pair in pairwise(spelled):
            pairs[pair] += number
            where[pair].add(index)

    def score(pair: tuple[str, str]) -> float:
        n = sum_of_pieces[0]
        return CRITERIA[criterion](pairs[pair], pieces[pair[0]], pieces[pair[1]], n)

    sum_of_pieces = [pieces.total()]
    vocab = dict.fromkeys([*SPECIAL_TOKENS, *sorted(pieces)])
    heap = [(-score(pair), pair) for pair in pairs]
    heapify(heap)
    while len(vocab) < vocab_size:
        was, pair = heappop(heap)
        if not pairs[pair]:
            continue
        if not math.isclose(-was, score(pair)):  # its counts have changed: back in line
            heappush(heap, (-score(pair), pair))
            continue
        merged = pair[0] + pair[1].removeprefix("##")
        vocab[merged] = None
        fresh = set()
        for index in where.pop(pair):
            spelled, number = words[index]
            joined = join(spelled, pair, merged)
            for piece, sign in [*((p, -1) for p in spelled), *((p, 1) for p in joined)]:
                pieces[piece] += sign * number
            sum_of_pieces[0] -= (len(spelled) - len(joined)) * number
            for each in pairwise(spelled):
                pairs[each] -= number
            for each in pairwise(joined):
                pairs[each] += number
                where[each].add(index)
                fresh.add(each)
            words[index] = joined, number
        for each in fresh:
            heappush(heap, (-score(each), each))
    return list(vocab)


def join(spelled: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    joined, free = [], False  # free: the last piece may be the left one of a pair
    for piece in spelled:
        if free and (joined[-1], piece) == pair:
            joined[-1], free = merged, False
        else:
            joined.append(piece)
            free = True
    return joined


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-shakespeare/input.txt", "wikitext-2/valid.txt"])
def test_counting_pairs_compresses_best(name):
    """The table in the module's docstring."""
    train, held_out = splits(data(name))
    basic = BasicTokenizer(lowercase=True)
    counts, left_out = basic.count(train), basic.count(held_out)
    for vocab_size in (2000, 8000):
        result = {}
        for criterion in CRITERIA:
            vocab = learn_by(criterion, counts, vocab_size)
            tokenizer = WordPieceTokenizer(vocab, lowercase=True)
            tokens = sum(len(tokenizer.encode(word)) * n for word, n in left_out.items())
            result[criterion] = len(held_out) / tokens
        ours = WordPieceTokenizer.train(train, vocab_size, lowercase=True)
        result["ours"] = len(held_out) / len(ours.encode(held_out))
        print(name, vocab_size, {key: round(value, 3) for key, value in result.items()})
        assert result["ours"] == pytest.approx(result["count"], rel=0.01)  # ties differ
        assert result["count"] > result["gain"] > result["ratio"]


# ------------------------------------------------------------------------------- the rest of it


def test_training_is_deterministic_and_takes_files(tmp_path):
    half = TALES.index("\n", len(TALES) // 2) + 1
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_bytes(TALES[half:].encode())
    paths[1].write_bytes(TALES[:half].encode())
    assert (
        WordPieceTokenizer.train(paths, 500).tokens == WordPieceTokenizer.train(TALES, 500).tokens
    )


def test_the_vocabulary_starts_with_the_special_tokens_and_the_alphabet():
    tokenizer = WordPieceTokenizer.train("ab ab abc", 8, ["[PAD]", "[UNK]"])
    assert tokenizer.tokens == ["[PAD]", "[UNK]", "##b", "##c", "a", "ab", "abc"]
    assert tokenizer.unk_id == 1


def test_greedy_takes_the_longest_piece_first():
    tokenizer = WordPieceTokenizer(SMALL)
    shown = [[SMALL[i] for i in tokenizer.encode(text)] for text in ("foxes!", "fox", "fo", "foxe")]
    assert shown == [["fox", "##es", "!"], ["fox"], ["fo"], ["[UNK]"]]


def test_decoding_prints_as_english_and_loses_only_white_space():
    tokenizer = WordPieceTokenizer(SMALL)
    text = "don't!\n  well-read   fox!"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == "don't! well-read fox!"
    tales = WordPieceTokenizer.train(TALES, 2000)
    decoded = tales.decode(tales.encode(TALES))
    assert "".join(decoded.split()) == "".join(TALES.split())
    assert tales.encode(decoded) == tales.encode(TALES)


def test_decoding_token_by_token_adds_up():
    tokenizer = WordPieceTokenizer.train(TALES, 500)
    dice = random.Random(0)
    ids = tokenizer.encode(TALES[:5000]) + dice.choices(range(tokenizer.vocab_size), k=500)
    assert "".join(tokenizer.decode_stream(iter(ids))) == tokenizer.decode(ids)


def test_special_tokens_in_a_text_are_ordinary_text():
    tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, "[", "]", "CLS"])
    assert tokenizer.encode("[CLS]") == [5, 7, 6]


def test_lower_case_takes_accents_along_unless_told_otherwise():
    assert BasicTokenizer(lowercase=True).words("Élan") == ["elan"]
    assert BasicTokenizer(lowercase=True, strip_accents=False).words("Élan") == ["élan"]
    assert BasicTokenizer().words("Élan") == ["Élan"]
    assert BasicTokenizer(lowercase=True).words("ΣΑΣ") == ["σασ"]


def test_half_a_character_is_refused():
    with pytest.raises(UserError, match="half a character"):
        WordPieceTokenizer(SMALL).encode("fox \udce9")


def test_a_given_vocabulary_is_read_from_a_file_or_a_list(tmp_path):
    for end in ("\n", "\r\n"):
        path = tmp_path / "vocab.txt"
        path.write_bytes((end.join(SMALL) + end).encode())
        tokenizer = WordPieceTokenizer.from_vocab(path, lowercase=True)
        assert tokenizer.tokens == WordPieceTokenizer.from_vocab(SMALL).tokens == SMALL
        assert tokenizer.encode("FOXES") == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *[(b"", "UNK"), (b"a\nb\n", "UNK"), (b"[UNK]\na\na\n", "more than once")],
        *[(b"[UNK]\n\xff\n", "UTF-8"), (b"[UNK]\n\na\n", "empty token"), (None, "cannot be read")],
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        WordPieceTokenizer.from_vocab(path)
    assert "vocab.txt" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "vocab_size", "special_tokens", "message"),
    [
        *[("", 100, ["[UNK]"], "empty"), (" \n", 100, ["[UNK]"], "no words")],
        ("abc", 3, ["[UNK]"], "smaller than the alphabet: choose 4 or more"),
        *[("abc", 100, [], "UNK"), ("abc", 100, ["[UNK]", "[UNK]"], "more than once")],
    ],
)
def test_impossible_training_is_refused(text, vocab_size, special_tokens, message):
    with pytest.raises(UserError, match=message) as caught:
        WordPieceTokenizer.train(text, vocab_size, special_tokens)
    assert len(str(caught.value).splitlines()) == 1


def test_a_state_travels_through_a_checkpoint():
    tokenizer = WordPieceTokenizer.train(TALES, 500, lowercase=True, strip_accents=False)
    buffer = io.BytesIO()
    torch.save(tokenizer.state_dict(), buffer)
    buffer.seek(0)
    twin = WordPieceTokenizer.from_state_dict(torch.load(buffer, weights_only=True))
    assert twin.state_dict() == tokenizer.state_dict()
    assert twin.encode(TALES + " É") == tokenizer.encode(TALES + " É")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.state_dict() == tokenizer.state_dict()


@pytest.mark.parametrize(
    "damage",
    [
        *[{"tokens": None}, {"tokens": []}, {"tokens": ["a"]}, {"tokens": ["[UNK]", 3]}],
        *[{"tokens": ["[UNK]", "a", "a"]}, {"lowercase": None}, {"clean_text": "yes"}],
    ],
)
def test_a_damaged_state_is_refused(damage):
    state = WordPieceTokenizer(SMALL).state_dict()
    with pytest.raises(UserError):
        WordPieceTokenizer.from_state_dict({**state, **damage})


@pytest.mark.parametrize("ids", [[12], [-1]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(UserError, match="0 to 11"):
        WordPieceTokenizer(SMALL).decode(ids)
