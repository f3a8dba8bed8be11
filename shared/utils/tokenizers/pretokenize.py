r"""Pre-tokenization: a text is cut into word-like pieces before any token is looked for.

    "Hello world,\n  it's 42!"  ->  Hello| world|,|\n | it|'s| 42|!

Tokens never reach across these cuts. That keeps "dog", "dog." and "dog!" from becoming three
unrelated tokens (Radford et al. 2019), and it makes tokenizers fast: a text has few different
pieces, so each is worked out once and looked up from then on.

The patterns are written as their authors published them. They speak of Unicode's letters
`\p{L}` and numbers `\p{N}`, which Python's `re` does not know, so these are spelled out here
from `unicodedata`.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from shared import UserError

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Unicode's White_Space. Python's \s has four control characters more (\x1c to \x1f).
WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# Letters and numbers of Unicode 14, 15 and 16. Python 3.10's unicodedata stops at Unicode 13;
# with these, every Python gives the same ids, and they are those of today's reference tokenizers.
NEWER = {
    "L": """870-887 889-88e 8b5 8c8-8c9 c5d cdd 170d 171f 1b4c 1c89-1c8a 2c2f 2c5f 9ffd-9fff
        a7c0-a7c1 a7cb-a7cd a7d0-a7d1 a7d3 a7d5-a7dc a7f2-a7f4 10570-1057a 1057c-1058a 1058c-10592
        10594-10595 10597-105a1 105a3-105b1 105b3-105b9 105bb-105bc 105c0-105f3 10780-10785
        10787-107b0 107b2-107ba 10d4a-10d65 10d6f-10d85 10ec2-10ec4 10f70-10f81 11071-11072 11075
        1123f-11240 11380-11389 1138b 1138e 11390-113b5 113b7 113d1 113d3 11740-11746 11ab0-11abf
        11bc0-11be0 11f02 11f04-11f10 11f12-11f33 12f90-12ff0 1342f 13441-13446 13460-143fa
        16100-1611d 16a70-16abe 16d40-16d6c 18cff 1aff0-1aff3 1aff5-1affb 1affd-1affe 1b11f-1b122
        1b132 1b155 1df00-1df1e 1df25-1df2a 1e030-1e06d 1e290-1e2ad 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0
        1e7e0-1e7e6 1e7e8-1e7eb 1e7ed-1e7ee 1e7f0-1e7fe 2a6de-2a6df 2b735-2b739 2ebf0-2ee5d
        31350-323af""",
    "N": "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16ac0-16ac9 16d70-16d79 "
    "1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa",
}


CATEGORIES = "C[cfnos]?|L[lmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?"
ASCII, BMP = 0x7F, 0xFFFF  # below: simple characters; below: the basic multilingual plane


@functools.cache
def categories(limit: int) -> dict[str, set[int]]:
    """Code points up to `limit` by general category: "Lu", "Nd", ...; its first letter: "L", ..."""
    points = defaultdict(set)
    for code in range(limit + 1):
        name = unicodedata.category(chr(code))
        points[name].add(code)
        points[name[0]].add(code)
    for name, listed in NEWER.items():
        for low, _, high in (each.partition("-") for each in listed.split()):
            span = range(int(low, 16), int(high or low, 16) + 1)
            points[name].update(code for code in span if code <= limit)
    return points


def members(name: str, limit: int) -> str:
    """What stands between the brackets of a character class: "N" -> "0-9²³¹¼-¾..." (escaped)."""
    if name == "s":
        return WHITE_SPACE
    if not re.fullmatch(CATEGORIES, name):
        raise re.error(f"{name!r} is no general category of Unicode")
    spans = []
    for code in sorted(categories(limit)[name]):
        if spans and spans[-1][1] == code - 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    listed = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in spans)
    return listed or "\\U0010ffff"  # a class must not be empty; no text up to `limit` has this one


@functools.cache
def compile_pattern(pattern: str, limit: int = sys.maxunicode) -> re.Pattern[str]:
    r"""A pattern with \p{...} and \s in Unicode's meaning, for texts of code points up to `limit`.

    Python's `re` looks up short lists of characters much faster than long ones, hence the limit.
    Raises UserError for what it cannot compile.

    >>> compile_pattern(GPT2_PATTERN).findall("Hello world,\n  it's 42!")
    ['Hello', ' world', ',', '\n ', ' it', "'s", ' 42', '!']
    """
    inside = False  # of [brackets], where a class is listed without brackets of its own
    parts = []
    try:
        for part in re.findall(r"\\[pP]\{\w+\}|\\.|\[\^?|.", pattern, re.DOTALL):
            name = part[3:-1] if part[1:2] in ("p", "P") else "s"
            if part[:2] in ("\\p", "\\s"):
                listed = members(name, limit)
                parts.append(listed if inside else f"[{listed}]")
            elif part[:2] in ("\\P", "\\S") and not inside:
                parts.append(f"[^{members(name, limit)}]")
            else:
                parts.append(part)
                inside = part[0] == "[" or (inside and part != "]")
        return re.compile("".join(parts))
    except (re.error, OverflowError) as error:
        raise UserError(f"not a pre-tokenization pattern: {error}: {pattern}") from None


def fitting(pattern: str, text: str) -> re.Pattern[str]:
    """The pattern compiled for the characters of this text."""
    if text.isascii():
        return compile_pattern(pattern, ASCII)
    return compile_pattern(pattern, BMP if max(text) <= chr(BMP) else sys.maxunicode)


def split_pieces(text: str, patterns: Iterable[str]) -> list[str]:
    r"""The text's pieces: what the first pattern finds and what lies between, and so on for each.

    >>> split_pieces("in 1984", [r"\p{N}", GPT2_PATTERN])     # every digit on its own
    ['in', ' ', '1', '9', '8', '4']
    """
    pieces = [text]
    for pattern in patterns:
        if pattern in (GPT2_PATTERN, LLAMA3_PATTERN):  # these leave nothing between
            pieces = [each for piece in pieces for each in fitting(pattern, piece).findall(piece)]
            continue
        pieces, whole = [], pieces
        for piece in whole:
            end = 0
            for match in fitting(pattern, piece).finditer(piece):
                pieces += [piece[end : match.start()], match[0]]
                end = match.end()
            pieces.append(piece[end:])
    return [piece for piece in pieces if piece]


def safe_cuts(patterns: Iterable[str]) -> str:
    """Where corpus.py may cut a text: in our two patterns words go with the space before them.

    In a pattern that we do not know a piece may reach across any place: "", nowhere.
    """
    words = {GPT2_PATTERN, LLAMA3_PATTERN}
    known = words | {r"\p{N}", r"\p{N}+"}
    return " \n" if set(patterns) <= known and set(patterns) & words else ""


LONE_SPACE = re.compile(r"(?<=\S) (?=\S)")
BLOCK = 200_000  # characters: what is made of one block stays in the processor's cache
WHITE = np.array([re.match(f"[{WHITE_SPACE}]", chr(code)) is not None for code in range(0x3002)])


def cut_at_spaces(text: str) -> Iterator[list[str]]:
    r"""The text in keys, cut only where GPT2_PATTERN cuts whatever the neighbours are; by blocks.

    The pattern always cuts before a space that follows a non-space and after a newline that
    stands alone; in a run of white space it cuts before the run and before its last character.
    `str.split` finds these places several times faster than the pattern finds its pieces, and
    each different key needs the pattern only once. A key stands for " " + key, or, if it begins
    with "\n", for key[1:]; see `key_text`.

    >>> [key_text(key) for keys in cut_at_spaces("It's here:\nlook,  there!") for key in keys]
    ["It's", ' here:\n', 'look,', ' ', '', ' there!']
    """
    start, end = 0, len(text)
    while start < end:
        space = LONE_SPACE.search(text, start + BLOCK)
        stop = space.start() if space else end
        yield keys_of(text[start:stop])
        start = stop


def keys_of(block: str) -> list[str]:
    keys, start, end = [], 0, len(block)
    for low, high in [*white_runs(block), (end, end)]:
        keys += ("\n" + block[start:low].replace("\n", "\n \n")).split(" ")
        start = high - (high < end)
        if low < start:
            keys.append("\n" + block[low:start])
    return keys


def white_runs(text: str) -> list[tuple[int, int]]:
    r"""Where white space stands next to white space: the start and end of each run.

    >>> white_runs("a  b c\n\n\n")
    [(1, 3), (6, 9)]
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    white = WHITE.take(codes, mode="clip")
    twos = np.flatnonzero(white[1:] & white[:-1])  # the place of the first of two
    if not len(twos):
        return []
    first = np.diff(twos, prepend=-2) > 1  # of a run; where the next one is the first: last
    last = np.roll(first, -1)
    return list(zip(twos[first].tolist(), (twos[last] + 2).tolist(), strict=True))


def key_text(key: str) -> str:
    """The text that a key of `cut_at_spaces` stands for."""
    return key[1:] if key[:1] == "\n" else " " + key


def count_pieces(text: str, patterns: tuple[str, ...] = (GPT2_PATTERN,)) -> Counter[str]:
    """How often each pre-token occurs.

    >>> count_pieces("low lower low low")
    Counter({' low': 2, 'low': 1, ' lower': 1})
    """
    if patterns != (GPT2_PATTERN,):
        return Counter(split_pieces(text, patterns))
    keys = Counter()
    for block in cut_at_spaces(text):
        keys.update(block)
    pieces = defaultdict(int)
    for key, number in keys.items():
        text = key_text(key)
        for piece in fitting(GPT2_PATTERN, text).findall(text):
            pieces[piece] += number
    return Counter(pieces)
