r"""Byte-pair encoding: the most frequent pair of neighbours becomes a token, again and again.

    text           low lower lowest
    bytes          l o w | ␣ l o w e r | ␣ l o w e s t    256 tokens to start with
    merge o+w      l ow  | ␣ l ow e r  | ␣ l ow e s t
    merge l+ow     low   | ␣ low e r   | ␣ low e s t
    merge low+e    low   | ␣ lowe r    | ␣ lowe s t       frequent strings end up as one token

Encoding replays the merges in the order in which they were learned. Any text can be written,
because it starts from bytes; frequent words are one token, rare ones a few.

Sennrich et al. 2016, "Neural machine translation of rare words with subword units"; on bytes,
with a pattern that keeps words apart: Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

import codecs
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise, repeat
from operator import add
from pathlib import Path

from shared import UserError
from shared.utils.tokenizers.base import Cache, Tokenizer
from shared.utils.tokenizers.corpus import count
from shared.utils.tokenizers.pretokenize import (
    GPT2_PATTERN,
    count_pieces,
    cut_at_spaces,
    fitting,
    key_text,
    safe_cuts,
    split_pieces,
)


def learn_merges(words: dict[str, int], tokens: list[bytes], n: int) -> list[tuple[int, int]]:
    """The first n merges: each time the most frequent pair, its tokens side by side in a word.

    words maps each different word to its number of occurrences; the character chr(i) in it
    stands for token i, so that a merge is a `str.replace`. Equally frequent pairs: the
    lexicographically greatest pair of byte strings wins, so the result does not depend on the
    order of the words. Fewer than n merges are returned when every word is a single token.
    `tokens` grows by the token of each merge. Counting all pairs anew for each would take hours;
    but a merge changes counts only where it happens, and `where` remembers these words.

    >>> tokens = [bytes([i]) for i in range(256)]
    >>> learn_merges({"low": 1, " lower": 1, " lowest": 1}, tokens, 3), tokens[256:]
    ([(111, 119), (108, 256), (257, 101)], [b'ow', b'low', b'lowe'])
    """
    spelled, numbers = list(words), list(words.values())
    counts, where = count_pairs(words)
    order = [falling(token) for token in tokens]
    level_of = defaultdict(list)  # count -> the pairs that had it when they were last looked at
    for pair, number in counts.items():
        level_of[number].append(pair)
    levels = [-number for number in level_of]  # a heap: the highest count first
    heapify(levels)
    merges = []
    while levels and len(merges) < n:
        level = -heappop(levels)
        equal = [(order[ord(p[0])], order[ord(p[1])], p) for p in level_of.pop(level)]
        heapify(equal)
        while equal and len(merges) < n:
            *_, pair = heappop(equal)
            touched = [pair]  # it may have lost occurrences to earlier merges
            if counts[pair] == level:
                first, second = map(ord, pair)
                merges.append((first, second))
                tokens.append(tokens[first] + tokens[second])
                order.append(falling(tokens[-1]))
                touched = merge_pair(pair, chr(len(tokens) - 1), spelled, numbers, counts, where)
            for p in touched:
                number = counts[p]
                if number == level:
                    heappush(equal, (order[ord(p[0])], order[ord(p[1])], p))
                elif number:
                    if number not in level_of:
                        heappush(levels, -number)
                    level_of[number].append(p)
    return merges


def count_pairs(words: dict[str, int]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """How often each pair of neighbours occurs, and in which words (by their place).

    >>> counts, where = count_pairs({"low": 2, "lot": 1})
    >>> dict(counts), dict(where)
    ({'lo': 3, 'ow': 2, 'ot': 1}, {'lo': [0, 1], 'ow': [0], 'ot': [1]})
    """
    counts, where = defaultdict(int), defaultdict(list)
    for index, (word, number) in enumerate(words.items()):
        for pair in map(add, word, word[1:]):
            counts[pair] += number
            where[pair].append(index)
    return counts, where


def merge_pair(
    pair: str,
    new: str,
    spelled: list[str],
    numbers: list[int],
    counts: dict[str, int],
    where: dict[str, list[int]],
) -> list[str]:
    """Puts the new token in place of the pair in every word -> the pairs that came into being."""
    first, second = pair
    fresh = defaultdict(list)
    for index in dict.fromkeys(where.pop(pair)):
        word, number = spelled[index], numbers[index]
        at, end = word.find(pair), -1
        while at >= 0:
            if at == end:  # the left neighbour is new as well: new first -> new new
                fresh[new + first].pop()
                fresh[new + new].append(index)
            elif at:  # left first -> left new
                left = word[at - 1]
                counts[left + first] -= number
                fresh[left + new].append(index)
            end = at + 2
            if end < len(word):  # second right -> new right
                right = word[end]
                counts[second + right] -= number
                fresh[new + right].append(index)
            at = word.find(pair, end)
        spelled[index] = word.replace(pair, new)
    del counts[pair]
    for each, indices in fresh.items():
        counts[each] = sum([numbers[index] for index in indices])
    where.update(fresh)
    return list(fresh)


def falling(token: bytes) -> str:
    """A key that sorts byte strings from the greatest to the least.

    >>> sorted([b"a", b"b", b"ab"], key=falling)
    [b'b', b'ab', b'a']
    """
    return "".join([chr(255 - byte) for byte in token]) + "\u0100"


def surrogate(error: UnicodeEncodeError) -> UserError:
    """Half a character (a lone surrogate) has no UTF-8."""
    half = error.object[error.start]
    return UserError(f"lone surrogate {half!r} in the text: read it again with errors='replace'")


def check_special(special_tokens: Collection[str]) -> Collection[str]:
    """Raises UserError unless these can be told from each other and from ordinary text."""
    for text in special_tokens:
        if not isinstance(text, str) or not text or re.search("[\ud800-\udfff]", text):
            raise UserError(f"{text!r} cannot be a special token: give a text like '<|endoftext|>'")
    unordered = isinstance(special_tokens, str | set | frozenset)  # ids are given in order
    if unordered or len(set(special_tokens)) < len(special_tokens):
        raise UserError("special_tokens must be a list of different texts")
    return special_tokens


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """Raises UserError unless `patterns` is a list of patterns that compile."""
    patterns = (None,) if isinstance(patterns, str) else tuple(patterns)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError("patterns must be a list of texts, such as [GPT2_PATTERN]")
    for pattern in patterns:
        fitting(pattern, "")
    return patterns


def special_pattern(special_tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds special tokens, the longest first."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def merge_short(ids: list[int], ranks: dict[tuple[int, int], int], merged: list[int]) -> list[int]:
    """Replays the merges, the lowest rank first: quadratic, and fastest for a word.

    ids are changed in place. ranks[pair] is the place of a merge in their order, merged[rank]
    the id of its token.

    >>> merge_short([97, 98, 97, 98], {(97, 98): 0, (256, 256): 1}, [256, 257])
    [257]
    """
    never = len(merged)
    get = ranks.get
    row = list(map(get, pairwise(ids), repeat(never)))
    while row:
        lowest = min(row)
        if lowest == never:
            break
        at = row.index(lowest)
        ids[at : at + 2] = [merged[lowest]]
        del row[at]
        if at:
            row[at - 1] = get((ids[at - 1], ids[at]), never)
        if at < len(row):
            row[at] = get((ids[at], ids[at + 1]), never)
    return ids


def merge_long(ids: list[int], ranks: dict[tuple[int, int], int], merged: list[int]) -> list[int]:
    """The same with a heap and a linked list: n log n, for pieces of any length.

    >>> merge_long([97, 98, 97, 98], {(97, 98): 0, (256, 256): 1}, [256, 257])
    [257]
    """
    n = len(ids)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))
    get = ranks.get
    heap = [  # rank and place in one number, which compares faster than a pair
        rank * n + at for at, pair in enumerate(pairwise(ids)) if (rank := get(pair)) is not None
    ]
    heapify(heap)
    while heap:
        rank, at = divmod(heappop(heap), n)
        gone = after[at]
        if gone >= n or get((ids[at], ids[gone])) != rank:
            continue  # merged in the meantime
        ids[at], ids[gone] = merged[rank], -1
        after[at] = follower = after[gone]
        if follower < n:
            before[follower] = at
            if (rank := get((ids[at], ids[follower]))) is not None:
                heappush(heap, rank * n + at)
        if (leader := before[at]) >= 0 and (rank := get((ids[leader], ids[at]))) is not None:
            heappush(heap, rank * n + leader)
    return [each for each in ids if each >= 0]


def hex_bytes(error: UnicodeDecodeError) -> tuple[str, int]:
    part = error.object[error.start : error.end]
    return "".join(f"<0x{byte:02X}>" for byte in part), error.end


codecs.register_error("hex_bytes", hex_bytes)

LONG = 100  # symbols: from here on the heap is faster


class BPETokenizer(Tokenizer):
    """Byte-level BPE: 256 bytes, a token for each merge, special tokens.

    tokens: the bytes of each id. merges: pairs of ids, in the order in which they were learned.
    special_tokens: their text and id. patterns: how a text is split before (see pretokenize.py).
    ignore_merges: a piece that is a token as a whole is taken as it is. For tokens that were
    learned by merging this is only faster. prefix_space: a text gets a space in front unless it
    has one, so that its first word is like all others.
    """

    BYTE_TOKENS = tuple(bytes([byte]) for byte in range(256))

    def __init__(
        self,
        tokens: list[bytes],
        merges: list[tuple[int, int]],
        special_tokens: dict[str, int] | None = None,
        patterns: Iterable[str] = (GPT2_PATTERN,),
        ignore_merges: bool = True,
        prefix_space: bool = False,
    ) -> None:
        self.tokens, self.merges = tokens, merges
        self.special_tokens = check_special(special_tokens or {})
        self.patterns, self.ignore_merges = check_patterns(patterns), ignore_merges
        self.prefix_space = prefix_space
        self.cut_at = safe_cuts(self.patterns)
        if prefix_space:  # it would come in behind a newline as well
            self.cut_at = self.cut_at.replace("\n", "")
        specials = set(self.special_tokens.values())
        self.index = {token: i for i, token in enumerate(tokens) if i not in specials}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        for text, i in self.special_tokens.items():
            if not 0 <= i < len(tokens) or tokens[i] not in (text.encode(), text):
                raise UserError(f"special token {text!r} is not token {i}: the file is damaged")
        try:
            if min(map(min, merges), default=0) < 0:
                raise IndexError
            self.merged = [self.index[tokens[first] + tokens[second]] for first, second in merges]
            self.byte_ids = [self.index[token] for token in self.BYTE_TOKENS]
        except (IndexError, KeyError):
            raise UserError(
                "merges and vocabulary do not belong together: take both from one tokenizer"
            ) from None
        self.piece_ids = Cache(self.encode_piece)
        self.key_ids = Cache(self.encode_key)

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | list[Path],
        vocab_size: int,
        special_tokens: Collection[str] = (),
        patterns: Iterable[str] = (GPT2_PATTERN,),
        processes: int | None = None,
    ) -> BPETokenizer:
        """The most frequent tokens of a text or of UTF-8 files.

        Ids: bytes 0 to 255, merges in their order, special tokens last. The vocabulary is
        smaller than vocab_size if the text has no more pairs to merge. Raises UserError.

        >>> tokenizer = BPETokenizer.train("low lower lowest", vocab_size=259)
        >>> [tokenizer.token_text(i) for i in tokenizer.encode("slow lowest")]
        ['s', 'low', ' ', 'lowe', 's', 't']
        """
        special_tokens, patterns = check_special(special_tokens), check_patterns(patterns)
        if vocab_size < (least := 256 + len(special_tokens)):
            raise UserError(
                f"vocab_size {vocab_size} is too small: it must hold 256 bytes and the special "
                f"tokens, so {least} at least"
            )
        counter = partial(count_pieces, patterns=patterns)
        pieces = count(text_or_files, counter, processes, special_tokens, safe_cuts(patterns))
        try:
            words = {piece.encode().decode("latin-1"): times for piece, times in pieces.items()}
        except UnicodeEncodeError as error:
            raise surrogate(error) from None
        tokens = [bytes([byte]) for byte in range(256)]
        merges = learn_merges(words, tokens, vocab_size - least)
        specials = {text: len(tokens) + i for i, text in enumerate(special_tokens)}
        tokens += [text.encode() for text in specials]
        return cls(tokens, merges, specials, patterns)

    @staticmethod
    def from_gpt2(vocab_json: str | Path, merges_txt: str | Path) -> BPETokenizer:
        """GPT-2's tokenizer, or any in its two files: the same ids as tiktoken's "gpt2"."""
        from shared.utils.tokenizers.formats import read_gpt2

        return BPETokenizer(**read_gpt2(Path(vocab_json), Path(merges_txt)))

    def save_gpt2(self, folder: str | Path) -> None:
        """Writes vocab.json and merges.txt, as GPT-2 has them, into a folder."""
        from shared.utils.tokenizers.formats import write_gpt2

        write_gpt2(self, Path(folder))

    @staticmethod
    def from_huggingface(tokenizer_json: str | Path) -> BPETokenizer:
        """The tokenizer in a tokenizer.json: the same ids as the `tokenizers` library's."""
        from shared.utils.tokenizers.formats import read_huggingface

        return read_huggingface(Path(tokenizer_json))

    def save_huggingface(self, tokenizer_json: str | Path) -> None:
        """Writes a tokenizer.json that the `tokenizers` library reads."""
        from shared.utils.tokenizers.formats import write_huggingface

        write_huggingface(self, Path(tokenizer_json))

    def encode(
        self,
        text: str,
        allowed_special: str | Collection[str] = (),
        disallowed_special: str | Collection[str] = (),
    ) -> list[int]:
        """The ids of a text.

        A special token in the text is ordinary text, unless it is in `allowed_special` (or that
        is "all"): then it becomes its id. One in `disallowed_special` raises UserError; "all"
        means all that are not allowed, which is tiktoken's default. Raises UserError for lone
        surrogates, which no UTF-8 text can hold.
        """
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        refused = disallowed_special
        if refused == "all":
            refused = self.special_tokens.keys() - set(allowed)
        for special in refused:
            if special in text:
                raise UserError(
                    f"the text contains the special token {special!r}: put it into "
                    f"allowed_special, or take it out of disallowed_special"
                )
        try:
            if not allowed:
                return self.encode_ordinary(text)
            ids = []
            for i, part in enumerate(special_pattern(allowed).split(text)):
                ids += [self.special_tokens[part]] if i % 2 else self.encode_ordinary(part, i == 0)
            return ids
        except UnicodeEncodeError as error:
            raise surrogate(error) from None
        except KeyError as error:
            raise UserError(
                f"{error} is no special token of this tokenizer: it has "
                f"{', '.join(map(repr, self.special_tokens)) or 'none'}"
            ) from None

    def encode_ordinary(self, text: str, first: bool = True) -> list[int]:
        """The ids of a text without special tokens. first: none is before it (for subclasses)."""
        if self.prefix_space and text and text[0] != " ":
            text = " " + text
        if self.patterns != (GPT2_PATTERN,):
            pieces = split_pieces(text, self.patterns)
            return list(chain.from_iterable(map(self.piece_ids.__getitem__, pieces)))
        ids = []
        for keys in cut_at_spaces(text):
            ids.extend(chain.from_iterable(map(self.key_ids.__getitem__, keys)))
        return ids

    def encode_key(self, key: str) -> tuple[int, ...]:
        text = key_text(key)
        if key.isalpha():
            return self.piece_ids[text]
        pieces = fitting(GPT2_PATTERN, text).findall(text)
        return tuple(chain.from_iterable(map(self.piece_ids.__getitem__, pieces)))

    def encode_piece(self, piece: str) -> tuple[int, ...]:
        data = piece.encode()
        if self.ignore_merges and data in self.index:
            return (self.index[data],)
        ids = [self.byte_ids[byte] for byte in data]
        merge = merge_short if len(ids) < LONG else merge_long
        return tuple(merge(ids, self.ranks, self.merged))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; bytes that are no UTF-8 become U+FFFD. Raises UserError."""
        tokens = self.tokens
        return b"".join([tokens[i] for i in self.checked(ids)]).decode("utf-8", "replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that arrive one at a time; a character waits for its last byte."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for index in ids:
            yield decoder.decode(self.tokens[self.checked([index])[0]])
        yield decoder.decode(b"", final=True)

    def token_text(self, index: int) -> str:
        """One token as a reader should see it; bytes that are no character as <0xE2>."""
        return self.tokens[index].decode("utf-8", "hex_bytes")

    def state_dict(self) -> dict:
        return {
            "type": "bpe",
            "tokens": [token.decode("latin-1") for token in self.tokens],  # a character a byte
            "merges": [list(pair) for pair in self.merges],
            "special_tokens": dict(self.special_tokens),
            "patterns": list(self.patterns),
            "ignore_merges": self.ignore_merges,
            "prefix_space": self.prefix_space,
        }

    @classmethod
    def from_state_dict(cls, state: dict) -> BPETokenizer:
        """The tokenizer of this state. Raises UserError if it is damaged."""
        try:
            tokens = [token.encode("latin-1") for token in state["tokens"]]
            merges = [(int(first), int(second)) for first, second in state["merges"]]
            specials = {text: int(i) for text, i in state["special_tokens"].items()}
            options = state["patterns"], state["ignore_merges"], state["prefix_space"]
            if not all(isinstance(flag, bool) for flag in options[1:]):
                raise TypeError
            return cls(tokens, merges, specials, *options)
        except (AttributeError, KeyError, OverflowError, TypeError, UnicodeError, ValueError):
            raise UserError("the tokenizer's state is damaged: take a whole checkpoint") from None
