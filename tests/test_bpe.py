"""BPE: a naive trainer's merges, tiktoken's ids, the text back, linear time, clear errors."""

from __future__ import annotations

import functools
import io
import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import clock
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils.tokenizers import BPETokenizer, corpus, tokenizer_from_state_dict
from shared.utils.tokenizers.bpe import LONG, learn_merges, merge_long, merge_short
from shared.utils.tokenizers.pretokenize import GPT2_PATTERN, LLAMA3_PATTERN, compile_pattern

DATA = Path(os.environ.get("LMFS_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared/data")
FILES = sorted(path for path in DATA.glob("*/*") if path.is_file())
END = "<|endoftext|>"
SURROGATES = range(0xD800, 0xE000)


@pytest.fixture(scope="module")
def tales() -> str:
    return write_corpus(100_000, 1, "train")[0]


@pytest.fixture(scope="module")
def trained(tales) -> BPETokenizer:
    return BPETokenizer.train(tales, 1000, special_tokens=[END, "<a>", "<a><b>"])


# ------------------------------------------------------------------------ training, and its twin


def naive_merges(text: str, n: int) -> list[tuple[bytes, bytes]]:
    """The definition of BPE training, word for word: all pairs are counted anew each time."""
    pieces = Counter(compile_pattern(GPT2_PATTERN).findall(text))
    words = [([bytes([b]) for b in piece.encode()], number) for piece, number in pieces.items()]
    merges = []
    while len(merges) < n:
        counts = Counter()
        for word, number in words:
            for pair in pairwise(word):
                counts[pair] += number
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word, _ in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = [best[0] + best[1]]
                at += 1
    return merges


def merges_of(tokenizer: BPETokenizer) -> list[tuple[bytes, bytes]]:
    return [(tokenizer.tokens[a], tokenizer.tokens[b]) for a, b in tokenizer.merges]


@pytest.mark.parametrize("vocab_size", [256, 257, 300, 700])
def test_merges_on_tales_are_the_naive_trainers(tales, vocab_size):
    text = tales[:20_000]
    tokenizer = BPETokenizer.train(text, vocab_size)
    assert merges_of(tokenizer) == naive_merges(text, vocab_size - 256)
    assert tokenizer.vocab_size == vocab_size


@pytest.mark.parametrize(
    "alphabet", ["a", "ab", "abc", "a ", "ab ", "aé", "漢a", "a\n b", "ab'st "]
)
def test_merges_on_ties_and_overlaps_are_the_naive_trainers(alphabet):
    dice = random.Random(alphabet)
    for _ in range(60):
        text = "".join(dice.choice(alphabet) for _ in range(dice.randint(1, 60)))
        vocab_size = 256 + dice.choice([1, 2, 5, 100])
        tokenizer = BPETokenizer.train(text, vocab_size)
        assert merges_of(tokenizer) == naive_merges(text, vocab_size - 256), repr(text)


@pytest.mark.parametrize("text", ["aaaa", "aaa", "abab", "aaaaaaa baaaa", "abcbcbcab", "aab" * 5])
def test_merges_of_repetitions_are_the_naive_trainers(text):
    assert merges_of(BPETokenizer.train(text, 300)) == naive_merges(text, 44)


def test_the_greatest_pair_wins_a_tie():
    assert merges_of(BPETokenizer.train("ab ba", 257)) == [(b"b", b"a")]
    assert merges_of(BPETokenizer.train("xé xa", 258)) == [(b"\xc3", b"\xa9"), (b"x", b"\xc3\xa9")]


def test_a_longer_token_is_greater_than_its_beginning():
    text = "ab ab ab abx ax abx ax"  # "ab" is first; then "ab" + "x" and "a" + "x" are equal
    assert merges_of(BPETokenizer.train(text, 260)) == naive_merges(text, 4)


def test_a_later_merge_never_spells_an_earlier_token():
    dice = random.Random(3)
    for _ in range(100):
        text = "".join(dice.choice("ab") for _ in range(80))
        tokens = BPETokenizer.train(text, 330).tokens
        assert len(set(tokens)) == len(tokens)


def test_the_order_of_the_words_does_not_matter(tales):
    words = Counter(compile_pattern(GPT2_PATTERN).findall(tales[:20_000]))
    names = sorted(words)
    results = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        tokens = [bytes([byte]) for byte in range(256)]
        results.append((learn_merges({name: words[name] for name in names}, tokens, 200), tokens))
    assert results[0] == results[1] == results[2]


def test_files_chunks_and_processes_do_not_matter(tales, tmp_path, monkeypatch):
    path = tmp_path / "tales.txt"
    path.write_text(tales, encoding="utf-8", newline="")
    whole = BPETokenizer.train(tales, 600, [END]).state_dict()
    assert BPETokenizer.train(path, 600, [END]).state_dict() == whole
    monkeypatch.setattr(corpus, "CHUNK", 5000)
    for processes in (1, 2, 3):
        assert BPETokenizer.train(path, 600, [END], processes=processes).state_dict() == whole
        assert BPETokenizer.train(tales, 600, [END], processes=processes).state_dict() == whole


@pytest.mark.parametrize("patterns", [(), (r"[^e]+",), (LLAMA3_PATTERN,)])
def test_other_patterns_are_counted_whatever_the_cutting(patterns, tales, monkeypatch):
    whole = BPETokenizer.train(tales[:5000], 400, patterns=patterns)
    monkeypatch.setattr(corpus, "CHUNK", 20)
    cut = BPETokenizer.train(tales[:5000], 400, patterns=patterns, processes=1)
    assert cut.state_dict() == whole.state_dict()


def test_a_file_of_several_chunks_is_counted_like_its_text(tales, tmp_path):
    text = tales * (3 * corpus.CHUNK // len(tales) + 1)
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8", newline="")
    states = [BPETokenizer.train(path, 500, processes=n).state_dict() for n in (1, 2)]
    assert states[0] == states[1] == BPETokenizer.train(text, 500, processes=1).state_dict()


def test_several_files_are_one_corpus(tales, tmp_path):
    lines = tales.splitlines(keepends=True)
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("".join(lines[i::3]), encoding="utf-8", newline="")
    paths = [tmp_path / f"{i}.txt" for i in range(3)]
    states = [BPETokenizer.train(each, 500).state_dict() for each in (paths, paths[::-1])]
    assert states[0] == states[1]


def test_a_short_text_has_fewer_merges():
    assert BPETokenizer.train("a", 1000).vocab_size == 256
    assert BPETokenizer.train(" ", 1000).vocab_size == 256
    tokenizer = BPETokenizer.train("low", 1000, special_tokens=[END])
    assert tokenizer.vocab_size == 256 + 2 + 1
    assert tokenizer.tokens[256:] == [b"ow", b"low", END.encode()]
    assert tokenizer.encode("low" + END, allowed_special="all") == [257, 258]


@pytest.mark.parametrize("vocab_size", [-1, 0, 1, 255])
def test_a_vocabulary_holds_all_bytes(vocab_size):
    with pytest.raises(UserError, match="256"):
        BPETokenizer.train("some text", vocab_size)
    with pytest.raises(UserError, match="258"):
        BPETokenizer.train("some text", 257, special_tokens=["<a>", "<b>"])


def test_an_empty_text_has_nothing_to_learn(tmp_path):
    with pytest.raises(UserError, match="empty"):
        BPETokenizer.train("", 300)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="empty"):
        BPETokenizer.train(tmp_path / "empty.txt", 300)
    with pytest.raises(UserError, match="does not exist"):
        BPETokenizer.train(tmp_path / "missing.txt", 300)


@pytest.mark.parametrize(
    "special",
    ["<a>", {"<a>", "<b>"}, ["<a>", "<a>"], [""], ["<a>", ""], [3], [None], [["<a>"]], ["\ud800"]],
)
def test_conflicting_special_tokens_are_refused(special):
    with pytest.raises(UserError, match="special") as caught:
        BPETokenizer.train("some text", 300, special_tokens=special)
    assert len(str(caught.value).splitlines()) == 1


def test_a_broken_pattern_is_refused_before_the_work():
    with pytest.raises(UserError, match="pattern"):
        BPETokenizer.train("some text", 300, patterns=["("])


def test_other_patterns_cut_other_pieces(tales):
    tokenizer = BPETokenizer.train(tales[:5000] + " 123456", 500, patterns=[LLAMA3_PATTERN])
    assert len(tokenizer.encode("123456")) >= 2  # never more than three digits in a token
    digits = BPETokenizer.train("12 12 12 12", 300, patterns=[r"\p{N}", GPT2_PATTERN])
    assert digits.tokens[256:] == []
    for text in ("123 x!\n\n  y", "é12漢\t "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert digits.decode(digits.encode(text)) == text


# ---------------------------------------------------------------- special tokens: never cut, never


def test_training_never_looks_into_special_tokens():
    text = f"low{END}low\n{END} low<pad> low"
    plain = BPETokenizer.train("low low\n low low", 300)
    tokenizer = BPETokenizer.train(text, 300, [END, "<pad>"], processes=1)
    assert not any(b"<" in token or b"end" in token for token in tokenizer.tokens[256:-2])
    assert tokenizer.tokens[-2:] == [END.encode(), b"<pad>"]
    assert tokenizer.special_tokens == {END: 259, "<pad>": 260}
    assert merges_of(tokenizer)[:2] == merges_of(plain)[:2] == [(b"o", b"w"), (b"l", b"ow")]


def test_training_never_merges_across_a_special_token():
    tokenizer = BPETokenizer.train("ab<s>ab<s>ab", 300, ["<s>"])
    assert tokenizer.tokens[256:] == [b"ab", b"<s>"]
    tokenizer = BPETokenizer.train(("x" + END) * 50, 300, [END])
    assert tokenizer.tokens[256:] == [END.encode()]


def test_special_tokens_survive_the_cutting_of_files(tmp_path, monkeypatch):
    special = ["<| end |>", "<|\n|>"]  # with a place inside where a text could be cut
    text = "".join(f"word{i} fox<| end |>key {i}<|\n|>" for i in range(400))
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    whole = BPETokenizer.train(text, 400, special)
    monkeypatch.setattr(corpus, "CHUNK", 64)
    for processes in (1, 2):
        again = BPETokenizer.train(path, 400, special, processes=processes)
        assert again.state_dict() == whole.state_dict()
    assert not any(b"|" in token for token in whole.tokens[256:-2])


def test_the_longest_special_token_wins(trained):
    end, a, ab = (trained.special_tokens[text] for text in (END, "<a>", "<a><b>"))
    text = f"<a><b><a>{END}<a><a><b>"
    assert trained.encode(text, allowed_special="all") == [ab, a, end, a, ab]
    assert trained.decode([ab, a, end, a, ab]) == text
    assert trained.encode("<a><b>", allowed_special={"<a>"}) == [a, *trained.encode("<b>")]


def test_special_tokens_are_ordinary_text_unless_allowed(trained):
    text = f"a fox{END} a key"
    ids = trained.encode(text)
    assert trained.special_tokens[END] not in ids
    assert trained.decode(ids) == text
    assert trained.encode(text, allowed_special={"<a>"}) == ids
    allowed = trained.encode(text, allowed_special="all")
    middle = [trained.special_tokens[END]]
    assert allowed == trained.encode("a fox") + middle + trained.encode(" a key")


def test_a_special_token_may_be_a_text_that_merges_would_make():
    tokenizer = BPETokenizer.train("low low lower a", 300, special_tokens=["low", "a"])
    low, a = tokenizer.special_tokens["low"], tokenizer.special_tokens["a"]
    assert low not in tokenizer.encode("low") and a not in tokenizer.encode("a")
    assert tokenizer.encode("lowa", allowed_special="all") == [low, a]
    assert tokenizer.decode(tokenizer.encode("low a")) == "low a"


def test_a_special_token_of_another_tokenizer_is_named(trained):
    with pytest.raises(UserError, match=r"<\|pad\|>"):
        trained.encode("text<|pad|>", allowed_special={"<|pad|>"})


# ------------------------------------------------------------------------------- tiktoken's ids


def twin_of(tokenizer: BPETokenizer, name: str = "twin") -> object:
    """tiktoken with the vocabulary of a trained tokenizer: there, a rank is an id."""
    tiktoken = pytest.importorskip("tiktoken")
    special = tokenizer.special_tokens
    ranks = {token: i for i, token in enumerate(tokenizer.tokens) if i not in special.values()}
    return tiktoken.Encoding(
        name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def gpt2_files() -> tuple[Path, Path]:
    vocabulary, merges = DATA / "gpt2/vocab.json", DATA / "gpt2/merges.txt"
    if not vocabulary.exists():
        pytest.skip("GPT-2's vocabulary is not here: set LMFS_DATA_DIR")
    return vocabulary, merges


@pytest.fixture(scope="module", params=["gpt2", "tales"])
def both(request, trained) -> tuple[BPETokenizer, object]:
    """Our tokenizer, and tiktoken with the same vocabulary."""
    if request.param == "tales":
        return trained, twin_of(trained)
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    vocabulary, merges = gpt2_files()
    reference = tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary)),
        special_tokens={END: 50256},
        explicit_n_vocab=50257,
    )
    return BPETokenizer.from_gpt2(vocabulary, merges), reference


def assert_same(ours: BPETokenizer, theirs: object, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs.encode_ordinary(text), repr(text[:200])
    assert ours.decode(ids) == text


def test_the_vocabulary_is_tiktokens(both):
    ours, theirs = both
    assert ours.vocab_size == theirs.n_vocab
    for i, token in enumerate(ours.tokens):
        assert token == theirs.decode_single_token_bytes(i)


@pytest.mark.parametrize("path", FILES or [None], ids=lambda path: path.name if path else "none")
def test_ids_of_real_files_are_tiktokens(both, path):
    if path is None:
        pytest.skip("no data files here: set LMFS_DATA_DIR")
    assert_same(*both, path.read_bytes().decode())


def test_ids_of_tales_are_tiktokens(both):
    assert_same(*both, write_corpus(300_000, 2, "valid")[0])


@pytest.mark.slow
def test_ids_of_every_code_point_are_tiktokens(both):
    ours, theirs = both
    for code in range(sys.maxunicode + 1):
        if code not in SURROGATES and ours.encode(chr(code)) != theirs.encode_ordinary(chr(code)):
            pytest.fail(f"U+{code:04X}")


CROWDED = [(0, 0x33FF), (0xA000, 0xABFF), (0xF900, 0x123FF), (0x16000, 0x17000), (0x1B000, 0x20000)]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["a{}b ", "{0}{0} {0}\n", "1{0}'{0}s"])
def test_ids_of_code_points_between_others_are_tiktokens(both, form):
    codes = [code for low, high in CROWDED for code in range(low, high + 1)]
    assert_same(*both, "".join(form.format(chr(code)) for code in codes))


RANGES = {
    "ASCII": (0, 0x7F),
    "controls": (0, 0x1F),
    "Latin": (0x20, 0x24F),
    "combining marks": (0x300, 0x36F),
    "Indic": (0x900, 0xDFF),
    "spaces": (0x2000, 0x206F),
    "CJK": (0x3000, 0x9FFF),
    "private, forms": (0xE000, 0xFFFF),
    "plane 1": (0x10000, 0x1FFFF),
    "emoji": (0x1F300, 0x1FAFF),
    "all planes": (0x20000, sys.maxunicode),
}
WORDS = ["the", "The", "fox", "hello", "ing", "x" * 30, "1984", "3.14", "don't", "we'll", "'S", "_"]
WHITE = [
    " ",
    " ",
    "\n",
    "  ",
    "\n\n",
    "\t",
    "\r\n",
    " " * 9,
    " \n ",
    "\xa0",
    "\u3000",
    "\x1c",
    "\x85",
]


def random_text(dice: random.Random) -> str:
    """Words, white space and characters of a few ranges, in turn and in runs."""
    ranges = dice.sample(list(RANGES.values()), 3)
    parts = []
    for _ in range(dice.randint(0, 12)):
        kind = dice.random()
        if kind < 0.35:
            parts.append(dice.choice(WORDS))
        elif kind < 0.65:
            parts.append(dice.choice(WHITE) * dice.choice([1, 1, 1, 2, 5]))
        else:
            low, high = dice.choice(ranges)
            parts += [chr(dice.randint(low, high)) for _ in range(dice.choice([1, 2, 8]))]
    return "".join(parts)


def test_ids_of_20000_random_strings_are_tiktokens(both):
    dice = random.Random(1)
    for _ in range(20_000):
        assert_same(*both, random_text(dice))


@pytest.mark.parametrize(
    "alphabet", ["abcdefghijklmnopqrstuvwxyz", "a", "ab", "é漢🦊", "!?", "0123456789", "a\u0301"]
)
@pytest.mark.parametrize("size", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_ids_of_megabyte_long_words_are_tiktokens(both, alphabet, size):
    dice = random.Random(alphabet)
    size //= max(len(character.encode()) for character in alphabet)
    assert_same(*both, "".join(dice.choices(alphabet, k=size)))


@pytest.mark.parametrize("length", range(LONG - 3, LONG + 4))
def test_ids_are_tiktokens_where_the_method_changes(both, length):
    dice = random.Random(length)
    for alphabet in ("ab", "etaoin", "abcdefghijklmnopqrstuvwxyz"):
        for _ in range(20):
            assert_same(*both, "".join(dice.choices(alphabet, k=length)))


@pytest.mark.parametrize("character", [" ", "\n", "\t", "\xa0", "\r\n"])
def test_runs_of_white_space_are_tiktokens(both, character):
    for n in [*range(1, 70), 1000, 5000]:
        for form in ("{}", "a{}", "{}a", "a{}!", "{} {}\n", "1{}'s"):
            assert_same(*both, form.replace("{}", character * n))


@pytest.mark.parametrize("text", [f"a{END}b", END, f"{END}{END}", f" {END}\n", "<|endoftext", ""])
def test_special_tokens_are_allowed_and_refused_as_in_tiktoken(both, text):
    ours, theirs = both
    assert ours.encode(text) == theirs.encode(text, disallowed_special=())
    for allowed in ("all", {END}, set()):
        for disallowed in ("all", {END}, ()):
            try:
                expected = theirs.encode(
                    text, allowed_special=allowed, disallowed_special=disallowed
                )
            except ValueError:
                with pytest.raises(UserError, match=r"<\|endoftext\|>"):
                    ours.encode(text, allowed, disallowed)
            else:
                assert ours.encode(text, allowed, disallowed) == expected


def test_ids_do_not_depend_on_what_was_encoded_before(trained, tales):
    fresh = BPETokenizer.from_state_dict(trained.state_dict())
    for text in (tales[5000:6000], tales[:7000], tales[5000:6000]):
        assert trained.encode(text) == fresh.encode(text)
        trained.encode(tales)


# --------------------------------------------------------------------------- the text comes back


@functools.cache
def small() -> BPETokenizer:
    """With merges inside characters and across them."""
    text = "éa 漢字 🦊🦊 the the 00 \t\t  \n\n" * 3
    return BPETokenizer.train(text, 290, special_tokens=["00", "é"])


@settings(deadline=None, max_examples=300)
@given(st.text())
def test_every_text_comes_back(text):
    tokenizer = small()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.decode_stream(iter(ids))) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    ids = tokenizer.encode(text, allowed_special="all")
    assert tokenizer.decode(ids) == text


@settings(deadline=None, max_examples=500)
@given(st.lists(st.integers(0, small().vocab_size - 1)))
def test_a_stream_never_breaks_a_character(ids):
    tokenizer = small()
    whole = tokenizer.decode(ids)
    assert whole == b"".join(tokenizer.tokens[i] for i in ids).decode("utf-8", "replace")
    pieces = list(tokenizer.decode_stream(iter(ids)))
    assert "".join(pieces) == whole
    for piece in pieces:
        piece.encode()  # no half of a surrogate pair
        assert "\ufffd" in whole or "\ufffd" not in piece


def test_a_stream_waits_for_the_last_byte_only():
    pieces = list(small().decode_stream("a🦊b".encode()))
    assert pieces == ["a", "", "", "", "🦊", "b", ""]


def test_a_stream_gives_text_before_the_next_id_arrives(trained):
    def ids():
        yield from trained.encode("The fox")
        pytest.fail("asked for more ids before the text of the first was given")

    stream = trained.decode_stream(ids())
    assert next(stream) == trained.decode(trained.encode("The fox")[:1])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "\ufffd"),
        (b"a\x80b", "a\ufffdb"),
        (b"\xe6\xbc", "\ufffd"),  # two of three bytes
        (b"\xe6\xbca", "\ufffda"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),  # a surrogate in disguise
        (b"\xc0\xaf", "\ufffd\ufffd"),  # an overlong "/"
    ],
)
def test_bytes_that_are_no_utf8_become_replacement_characters(trained, data, text):
    ids = list(data)
    assert trained.decode(ids) == text == data.decode("utf-8", "replace")
    assert "".join(trained.decode_stream(ids)) == text


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83e\udd8a", " " * 300 + "\udc80"])
def test_lone_surrogates_are_refused(trained, text):
    for encode in (trained.encode, lambda text: trained.encode(text, allowed_special="all")):
        with pytest.raises(UserError, match="surrogate") as caught:
            encode(text)
        assert len(str(caught.value).splitlines()) == 1
        str(caught.value).encode()  # the message itself can be printed
    with pytest.raises(UserError, match="surrogate"):
        BPETokenizer.train(text, 300)


@pytest.mark.parametrize("ids", [[-1], [1003], [0, 10**9], [97, -5, 98]])
def test_ids_out_of_range_are_refused(trained, ids):
    with pytest.raises(UserError, match=f"0 to {trained.vocab_size - 1}"):
        trained.decode(ids)
    with pytest.raises(UserError, match=f"0 to {trained.vocab_size - 1}"):
        list(trained.decode_stream(iter(ids)))


def test_nothing_is_encoded_as_nothing(trained):
    assert trained.encode("") == trained.encode("", allowed_special="all") == []
    assert trained.decode([]) == "".join(trained.decode_stream([])) == ""


def test_decode_takes_what_models_give(trained):
    ids = trained.encode("The fox found a key.")
    for given_ids in (torch.tensor(ids), torch.tensor(ids).numpy(), iter(ids), tuple(ids)):
        assert trained.decode(given_ids) == "The fox found a key."


def test_a_token_can_be_shown(trained):
    assert trained.token_text(97) == "a"
    assert trained.token_text(0xFF) == "<0xFF>"
    assert trained.token_text(trained.special_tokens[END]) == END


# ------------------------------------------------------------------------------ fast and faster


@pytest.mark.parametrize("alphabet", [1, 2, 3, 10])
def test_the_two_ways_to_merge_agree(alphabet):
    dice = random.Random(alphabet)
    for _ in range(300):
        ranks, merged = {}, []
        for rank in range(dice.randint(0, 30)):  # any pairs, in any order, of any known symbols
            known = range(alphabet + rank)
            ranks.setdefault((dice.choice(known), dice.choice(known)), rank)
            merged.append(alphabet + rank)
        ids = [dice.randrange(alphabet) for _ in range(dice.randint(0, 60))]
        assert merge_short(ids[:], ranks, merged) == merge_long(ids[:], ranks, merged)


def growth(work: Callable[[str], object], short: str, long: str) -> float:
    """How many times as long the long text takes: the best of ten rounds, in turns, of each."""
    best = {short: math.inf, long: math.inf}
    for text in [short, long] * 10:
        start = clock()
        work(text)
        best[text] = min(best[text], clock() - start)
    return best[long] / best[short]


def hostile(kind: str, n: int) -> str:
    """About n characters that no cache can help with, or that a careless method is slow on."""
    dice = random.Random(n)
    if kind == "letters":
        return "".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=n))
    if kind == "latin-1":
        return "".join(chr(dice.randrange(256)) for _ in range(n))
    return kind * (n // len(kind))


KINDS = ["letters", "latin-1", "a", " ", "a!", "\n", " \n", "a\n", "a ", "'", "1", "漢", "\x1c "]


@pytest.mark.parametrize("kind", KINDS)
def test_time_to_encode_is_linear(trained, kind):
    tokenizer = BPETokenizer.from_state_dict(trained.state_dict())
    short, long = hostile(kind, 6_000), hostile(kind, 48_000)
    assert tokenizer.decode(tokenizer.encode(long)) == long
    assert growth(tokenizer.encode, short, long) < 16


@pytest.mark.parametrize("kind", KINDS)
def test_time_to_train_is_linear(kind):
    short, long = hostile(kind, 6_000), hostile(kind, 48_000)
    assert growth(lambda text: BPETokenizer.train(text, 300, processes=1), short, long) < 16


@pytest.mark.slow
def test_a_million_spaces_come_back(both):
    ours, _ = both  # tiktoken panics here
    for text in (" " * 1_000_000, " " * 1_000_000 + "a", "\n" * 1_000_000 + " "):
        assert ours.decode(ours.encode(text)) == text


# ---------------------------------------------------------------------------- inside a checkpoint


def test_a_state_travels_through_a_checkpoint(trained, tales):
    buffer = io.BytesIO()
    torch.save(trained.state_dict(), buffer)
    buffer.seek(0)
    twin = tokenizer_from_state_dict(torch.load(buffer, weights_only=True))
    assert type(twin) is BPETokenizer
    assert twin.state_dict() == trained.state_dict()
    assert twin.encode(tales) == trained.encode(tales)
    for name in ("tokens", "merges", "special_tokens", "patterns", "ignore_merges"):
        assert getattr(twin, name) == getattr(trained, name)


def test_a_state_is_a_copy(trained):
    state = trained.state_dict()
    state["special_tokens"].clear()
    state["merges"].clear()
    assert trained.state_dict()["special_tokens"] and trained.state_dict()["merges"]


DAMAGES = {
    "no tokens": {"tokens": None},
    "no merges": {"merges": None},
    "no special tokens": {"special_tokens": None},
    "no patterns": {"patterns": None},
    "tokens: numbers": {"tokens": [1, 2, 3]},
    "tokens: a text": {"tokens": "abc"},
    "tokens: no bytes": {"tokens": ["\u1234"] * 300},
    "tokens: too few": {"tokens": ["a", "b"]},
    "merges: triples": {"merges": [[1, 2, 3]]},
    "merges: texts": {"merges": ["ab"]},
    "merges: no such id": {"merges": [[97, 100_000]]},
    "merges: no such token": {"merges": [[255, 255]]},
    "merges: infinite": {"merges": [[float("inf"), 97]]},
    "special: a list": {"special_tokens": [END]},
    "special: no such id": {"special_tokens": {END: 100_000}},
    "special: negative": {"special_tokens": {END: -3}},
    "special: a byte": {"special_tokens": {END: 97}},
    "special: another's id": {"special_tokens": {"<x>": 1000}},
    "special: the same id": {"special_tokens": {END: 1000, "<a>": 1000}},
    "special: empty": {"special_tokens": {"": 1000}},
    "special: a number": {"special_tokens": {5: 1000}},
    "patterns: broken": {"patterns": ["("]},
    "patterns: a text": {"patterns": GPT2_PATTERN},
    "patterns: numbers": {"patterns": [3]},
    "ignore_merges: a text": {"ignore_merges": "no"},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_refused(trained, damage):
    state = trained.state_dict()
    with pytest.raises(UserError) as caught:
        BPETokenizer.from_state_dict(state | damage)
    assert len(str(caught.value).splitlines()) == 1


def test_a_merge_of_ids_counted_from_the_end_is_refused(trained):
    state = trained.state_dict()
    state["merges"][0][0] -= trained.vocab_size
    with pytest.raises(UserError):
        BPETokenizer.from_state_dict(state)


@pytest.mark.parametrize(
    "name", ["tokens", "merges", "special_tokens", "patterns", "ignore_merges"]
)
def test_an_incomplete_state_is_refused(trained, name):
    state = trained.state_dict()
    del state[name]
    with pytest.raises(UserError):
        BPETokenizer.from_state_dict(state)


@pytest.mark.parametrize("state", [None, [], "bpe", 3, {}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(UserError):
        BPETokenizer.from_state_dict(state)
