"""Pre-tokenization: tiktoken's character classes, tokenizers' pieces, and the short cut to them."""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest

from shared import UserError
from shared.utils.tokenizers import pretokenize
from shared.utils.tokenizers.pretokenize import (
    ASCII,
    BMP,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    compile_pattern,
    cut_at_spaces,
    fitting,
    key_text,
    split_pieces,
)

SURROGATES = range(0xD800, 0xE000)
EVERYTHING = "".join(chr(i) for i in range(sys.maxunicode + 1) if i not in SURROGATES)
NEWEST = "\u088f"  # a letter that Unicode 17 added
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def matched_by_tiktoken(pattern: str, text: str) -> str:
    """The characters of a text that a pattern finds: tiktoken's ids of bytes are these bytes."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return bytes(encoding.encode_ordinary(text)).decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [r"\p{L}", r"\p{N}", r"\s", r"\P{L}", r"\S", r"[^\s\p{L}\p{N}]", r"[^\r\n\p{L}\p{N}]"],
)
def test_a_class_has_the_characters_that_tiktoken_sees_in_it(pattern):
    newer = unicodedata.category(NEWEST) != "Cn" or matched_by_tiktoken(r"\p{L}", NEWEST)
    if newer and pattern not in (r"\s", r"\S"):
        pytest.skip("Python or tiktoken knows letters of Unicode 17; ours are those of 16")
    found = compile_pattern(pattern).findall(EVERYTHING)
    assert "".join(found) == matched_by_tiktoken(pattern, EVERYTHING)
    assert found


def test_letters_and_numbers_that_this_python_knows_are_all_there():
    expected = {"L": [], "N": []}
    for character in EVERYTHING:
        if (major := unicodedata.category(character)[0]) in expected:
            expected[major].append(character)
    assert set(expected["L"]) <= set(compile_pattern(r"\p{L}").findall(EVERYTHING))
    assert set(expected["N"]) <= set(compile_pattern(r"\p{N}").findall(EVERYTHING))


def test_white_space_is_unicodes_and_not_pythons():
    assert compile_pattern(r"\s").findall(EVERYTHING) == list(WHITE_SPACE)
    assert compile_pattern(r"[\s]").findall("a\x1c\x1d\x1e\x1f b") == [" "]
    assert compile_pattern(r"\S").findall("\x1c \x1f") == ["\x1c", "\x1f"]


@pytest.mark.parametrize("name", ["L", "N", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "P", "Nd", "Zl"])
@pytest.mark.parametrize("limit", [ASCII, BMP])
def test_classes_for_few_characters_agree_with_the_full_ones(name, limit):
    text = "".join(chr(i) for i in range(limit + 1))
    for pattern in (rf"\p{{{name}}}", rf"\P{{{name}}}", rf"[^\s\p{{{name}}}]"):
        full = compile_pattern(pattern).findall(text)
        assert compile_pattern(pattern, limit).findall(text) == full


@pytest.mark.parametrize(
    "text", ["", "a", "\x7f", "\x80", "é", "\uffff", "\U00010000", "a\U0010ffff"]
)
def test_the_pattern_fits_the_text(text):
    pattern = r"[^\s\p{L}\p{N}]"
    assert fitting(pattern, text).findall(text) == compile_pattern(pattern).findall(text)


def test_classes_in_and_out_of_brackets():
    text = "aB1² -é漢\n"
    assert compile_pattern(r"\p{Lu}").findall(text) == ["B"]
    assert compile_pattern(r"[\p{Lu}\p{N}\-]+").findall(text) == ["B1²", "-"]
    assert compile_pattern(r"[^\p{L}\s]").findall(text) == ["1", "²", "-"]
    assert compile_pattern(r"\[\p{L}\]").findall("[a][1]") == ["[a]"]
    assert compile_pattern(r"[\]\p{N}]").findall("]a1") == ["]", "1"]
    assert compile_pattern(r"\\s").findall(r"\s ") == [r"\s"]


@pytest.mark.parametrize(
    "pattern", ["(", "[", "*", "a{2,1}", r"(?<=a+)b", r"\p{L", r"\pL", r"\p{Foo}", r"[\P{L}]", "a)"]
)
def test_a_broken_pattern_is_refused(pattern):
    with pytest.raises(UserError) as caught:
        compile_pattern(pattern)
    message = str(caught.value)
    assert pattern in message
    assert len(message.splitlines()) == 1


# ------------------------------------------------------------------------------------- the pieces

LETTERS = ["a", "the", "İ", "é", "e\u0301", "漢字", "ʰ", "ª", "ǅ", "𝒳", "न", "ी"]
OTHERS = ["0", "42", "²", "½", "Ⅷ", "٣", ".", ",", "!?", "_", "-", "<", "¿", "\u0301", "🦊", "👩‍🚀"]
ODD = ["\0", "\x1c", "\x1f", "\x7f", "\xad", "\u200b", "\u200d", "\u2060", "\ufeff", "\ufffd"]
QUOTES = ["'", "'s", "'S", "'t", "'re", "'ve", "'m", "'ll", "'d", "'lls", "''s", "’s", "'ſ"]
SPACES = [" ", "\n", "  ", " \n", "\n ", "\n\n", "\r\n", "\t", "     ", "\n\n    ", " \t "]


def random_text(dice: random.Random, length: int) -> str:
    """White space of all kinds between letters, digits, punctuation, contractions and oddities."""
    kinds = [LETTERS, LETTERS, OTHERS, ODD, QUOTES, SPACES, SPACES, [" "], ["\n"], WHITE_SPACE]
    kinds = dice.sample(kinds, dice.randint(1, len(kinds)))
    return "".join(dice.choice(dice.choice(kinds)) for _ in range(dice.randint(0, length)))


@pytest.mark.parametrize("block", [1, 7, 30, pretokenize.BLOCK])
def test_cutting_at_spaces_gives_the_patterns_pieces(monkeypatch, block):
    monkeypatch.setattr(pretokenize, "BLOCK", block)
    dice = random.Random(block)
    for _ in range(3000):
        text = random_text(dice, 40)
        keys = [key for keys in cut_at_spaces(text) for key in keys]
        parts = [key_text(key) for key in keys]
        assert "".join(parts) == text
        pieces = [piece for part in parts for piece in fitting(GPT2_PATTERN, part).findall(part)]
        assert pieces == fitting(GPT2_PATTERN, text).findall(text), repr(text)


def test_a_long_text_comes_in_blocks():
    text = "one two  three\n" * 100_000
    blocks = list(cut_at_spaces(text))
    assert len(blocks) > 3
    assert max(sum(map(len, block)) for block in blocks) < 2 * pretokenize.BLOCK
    assert "".join(key_text(key) for block in blocks for key in block) == text


@pytest.mark.parametrize(
    "patterns",
    [
        [GPT2_PATTERN],
        [LLAMA3_PATTERN],
        [r"\p{N}", GPT2_PATTERN],
        [r"\p{N}{1,3}", r"[\u0e00-\u9fff]+", r"[^\r\n\p{L}\p{N}]?\p{L}+|\s+"],
    ],
)
def test_pieces_are_those_of_the_tokenizers_library(patterns):
    library = pytest.importorskip("tokenizers")
    split = [
        library.pre_tokenizers.Split(library.Regex(pattern), "isolated") for pattern in patterns
    ]
    splitter = library.pre_tokenizers.Sequence(split)
    dice = random.Random(1)
    for _ in range(3000):
        text = random_text(dice, 40)
        expected = [piece for piece, _ in splitter.pre_tokenize_str(text)]
        assert split_pieces(text, patterns) == expected, repr(text)


def test_no_character_is_lost_between_the_pieces():
    dice = random.Random(2)
    for _ in range(1000):
        text = random_text(dice, 40)
        for patterns in ([], [GPT2_PATTERN], [LLAMA3_PATTERN], ["'s"], [r"\p{L}+", r"\s"], ["x*"]):
            pieces = split_pieces(text, patterns)
            assert "".join(pieces) == text
            assert all(pieces)
