"""Words as tokens: short sequences, a large vocabulary, and words that nobody has seen.

    text      "Oh, no!"  said the boys' fox.
    tokens    "  Oh  ,  no  !  "  ␣␣  said  the  boys  ‿  '  fox  .

A character model spends its memory on spelling; a word model begins where the words are whole
(Bengio et al. 2003, "A Neural Probabilistic Language Model"). The price is a vocabulary of tens
of thousands, most of it rare, and `<unk>` for every word that the training text did not have.

A token is a word (letters and digits, with apostrophes inside: don't), one other character, a
run of spaces, or a marker such as <unk> or <|endoftext|>. The single spaces between words are no
tokens: decoding puts them where print has them,

    none before    . , ; : ! ? % ) ] }  and closing quotes
    none after     ( [ { $ £ € #  and opening quotes
    on no side     of  - / _ @  and dashes, or on both: "well-read", "here - there"
    on one side    of  '  : before it in "'tis", after it in "the boys' hats"
    "              opens and closes by turns; every line starts afresh

and where a text does otherwise, one more token says so: SPACE, or GLUE (‿ above) for no space.
So decode(encode(text)) is the text, `<unk>` aside, and on Tiny Shakespeare only one token in 400
is spent on that.

Texts that others have cut into words, such as WikiText ("re @-@ opened , and 1 @,@ 000"), are
taken as they are: the tokens are what stands between white space, and the ends of lines. They
decode to print, "re-opened, and 1,000". Lost are: white space other than ends of lines, the @,
and where the cuts were ("Inc." may have been one token or two).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from shared import UserError
from shared.utils.tokenizers.base import Cache, Tokenizer
from shared.utils.tokenizers.corpus import count, read_chunks

UNKNOWN, NEWLINE, SPACE, GLUE = "<unk>", "\n", " ", ""

MARKER = r"<\|?\w+\|?>"
PIECES = re.compile(rf" +|{MARKER}|[^\W_]+(?:['’][^\W_]+)*|.", re.DOTALL)
SINGLE_SPACE = re.compile(r"(?<=[^ ]) (?=[^ ])")

# The same for texts cut as WikiText is: don 't | re @-@ opened | 1 @,@ 000
READY_PIECES = re.compile(rf"{MARKER}|@[-.,]@|(?<=[\w>.])'[^\W_]+|[^\W_]+|\S")
READY_JOINS = {"@-@": "-", "@.@": ".", "@,@": ","}
MOST_JOINED = 6  # pieces: U.S.A. in one token
READY_INSIDE = re.compile(r"(?<=[\d>])[.,](?=[\d<])|(?<=[\w>])-(?=[\w<])")  # <unk> is a word

# What stands left of a token: the start of a line or white space; something no space may follow;
# anything else.
BLANK, TIGHT, LOOSE = range(3)
State = tuple[int, str]  # one of these, and the straight quotes that are open
LINE_START: State = (BLANK, "")
KINDS = {
    **dict.fromkeys(".,;:!?%)]}”’»…", "close"),
    **dict.fromkeys("([{“‘«$£€#", "open"),
    **dict.fromkeys("-–—/_@", "join"),
    **{"'": "apostrophe", '"': '"', NEWLINE: "newline", GLUE: "glue"},
}


def kind_of(token: str, ready_made: bool) -> str:
    """What the spacing rule needs to know of a token.

    >>> [kind_of(token, False) for token in ("fox", ".", "(", "-", "   ")]
    ['word', 'close', 'open', 'join', 'blank']
    """
    if ready_made and token in READY_JOINS:
        return "join"
    if ready_made and token in ("'", "-", "–", "—", "/"):  # the cutters left spaces around dashes
        return "'" if token == "'" else "word"
    if ready_made and re.match(r"'\w|\.\.\.$", token):  # 's, 't, 'll
        return "close"
    return KINDS.get(token) or ("blank" if token.isspace() else "word")


def wants_space(state: State, kind: str) -> bool:
    """Has print a space before a token of this kind?

    >>> wants_space((LOOSE, ""), '"'), wants_space((LOOSE, '"'), '"')
    (True, False)
    """
    left, quotes = state
    return left == LOOSE and kind in ("word", "open", "apostrophe", "'", '"') and kind not in quotes


def advance(state: State, kind: str, space: bool) -> State:
    """What stands left of the next token, after one of this kind with or without a space."""
    left, quotes = state
    spaced = space or left == BLANK
    if kind in ("word", "close"):
        return LOOSE, quotes
    if kind == "newline":
        return LINE_START
    if kind == "blank":
        return BLANK, quotes
    if kind == "join":
        return (LOOSE if spaced else TIGHT), quotes
    if kind == "apostrophe":
        return (TIGHT if spaced else LOOSE), quotes
    if kind in quotes:
        return LOOSE, quotes.replace(kind, "")
    if kind in ("'", '"'):
        return TIGHT, quotes + kind
    return TIGHT, quotes  # "open" and "glue"


def ready_pieces(chunk: str) -> list[str]:
    """Cut a chunk of plain text as WikiText's authors would have.

    >>> ready_pieces("(re-opened,"), ready_pieces("don't"), ready_pieces("1,000.5")
    (['(', 're', '@-@', 'opened', ','], ['don', "'t"], ['1', '@,@', '000', '@.@', '5'])
    """
    return READY_PIECES.findall(READY_INSIDE.sub(r" @\g<0>@ ", chunk))


def count_pieces(text: str) -> Counter[str]:
    """How often each word, other character and run of spaces occurs."""
    return Counter(PIECES.findall(text))


def count_ready(text: str) -> Counter[str]:
    """How often each token of a text occurs that has been cut into words already."""
    return Counter(text.split())


def looks_ready_made(text: str) -> bool:
    """Has somebody cut this text into words? Then commas and full stops stand alone.

    >>> looks_ready_made("Yes , I do ."), looks_ready_made("Yes, I do.")
    (True, False)
    """
    return len(re.findall(r"\s[.,](?!\S)", text)) > len(re.findall(r"\w[.,](?!\S)", text))


class WordTokenizer(Tokenizer):
    """Words, and what stands between them.

    tokens: `<unk>`, a newline, then (unless ready_made) SPACE and GLUE, then the words.
    """

    unk_id = 0
    cut_at = "\n"  # what a space is depends on the line before it

    def __init__(self, tokens: list[str], ready_made: bool = False) -> None:
        reserved = self.reserved(ready_made)
        if tokens[: len(reserved)] != reserved or len(set(tokens)) != len(tokens):
            raise UserError("the vocabulary must list each word once: train it on some text")
        self.tokens, self.ready_made = tokens, ready_made
        self.id_of = {token: index for index, token in enumerate(tokens)}
        self._kinds = [kind_of(token, ready_made) for token in tokens]
        self._memos: dict[tuple[State, bool], Cache] = {}

    @staticmethod
    def reserved(ready_made: bool) -> list[str]:
        """The tokens that every vocabulary starts with."""
        return [UNKNOWN, NEWLINE] if ready_made else [UNKNOWN, NEWLINE, SPACE, GLUE]

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | list[Path],
        min_count: int = 1,
        max_size: int | None = None,
        ready_made: bool | None = None,
    ) -> WordTokenizer:
        """The words of a text, frequent ones first (equals in the order of their code points).

        Words that occur fewer than `min_count` times, or find no room among `max_size` tokens
        (`<unk>` and all), become `<unk>`. ready_made: the text has been cut into words already;
        None looks at the start of it. Raises UserError where no word is left.

        >>> WordTokenizer.train("the fox, the hen").tokens
        ['<unk>', '\\n', ' ', '', 'the', ',', 'fox', 'hen']
        """
        if min_count < 1:
            raise UserError(f"min_count {min_count} is impossible: choose 1 or more")
        if ready_made is None:
            ready_made = looks_ready_made(next(read_chunks(text_or_files)))
        reserved = cls.reserved(ready_made)
        if max_size is not None and max_size <= len(reserved):
            raise UserError(
                f"a vocabulary of {max_size} has no room for words: choose {len(reserved) + 1} "
                f"or more"
            )
        counts = count(text_or_files, count_ready if ready_made else count_pieces)
        for token in reserved:
            del counts[token]
        words = [token for token, times in counts.items() if times >= min_count]
        if not words:
            raise UserError(f"no word occurs {min_count} times: lower min_count, or give more text")
        words.sort(key=lambda token: (-counts[token], token))
        return cls((reserved + words)[:max_size], ready_made)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Words that are not in the vocabulary become `<unk>`.

        >>> tokenizer = WordTokenizer.train("the fox, the hen")
        >>> tokenizer.encode("the hen, the dog"), tokenizer.encode("the fox ,")
        ([4, 7, 5, 4, 0], [4, 6, 2, 5])
        """
        ids: list[int] = []
        first = self._memo(LINE_START, False)
        for line in text.split("\n"):
            memo = first
            for chunk in line.split() if self.ready_made else SINGLE_SPACE.split(line):
                found, memo = memo[chunk]
                ids += found
            ids.append(1)
        del ids[-1]  # a newline stands between lines, not after each
        return ids

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids, token by token.

        >>> tokenizer = WordTokenizer.train("the fox, the hen")
        >>> list(tokenizer.decode_stream([4, 6, 5, 4, 7]))
        ['the', ' fox', ',', ' the', ' hen']
        """
        state = LINE_START
        for index in ids:
            self.checked([index])
            kind = self._kinds[index]
            space = wants_space(state, kind)
            state = advance(state, kind, space)
            text = self.tokens[index]
            if self.ready_made:
                text = READY_JOINS.get(text, text)
            yield SPACE + text if space else text

    def state_dict(self) -> dict:
        return {"type": "word", "tokens": list(self.tokens), "ready_made": self.ready_made}

    @classmethod
    def from_state_dict(cls, state: dict) -> WordTokenizer:
        tokens, ready_made = state.get("tokens"), state.get("ready_made")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise UserError("the tokenizer's words are missing: the file is damaged")
        if not isinstance(ready_made, bool):
            raise UserError("the tokenizer's kind of text is missing: the file is damaged")
        return cls(list(tokens), ready_made)

    def __reduce__(self):  # the caches stay behind when another process gets a copy
        return type(self).from_state_dict, (self.state_dict(),)

    def _memo(self, state: State, space: bool) -> Cache:
        """What becomes of a chunk that stands in this state, with or without a space before.

        Words repeat, so encoding is mostly looking up. What a chunk becomes depends on what stands
        before it, hence one cache for every state; each entry leads to the cache for the next one.
        """
        if self.ready_made:
            state, space = LINE_START, False  # the ids do not depend on them
        if (state, space) not in self._memos:
            self._memos[state, space] = Cache(partial(self._spell, state=state, space=space))
        return self._memos[state, space]

    def _lookup(self, chunk: str) -> list[int]:
        """The ids of the pieces of a chunk, before any SPACE or GLUE."""
        if self.ready_made:
            return self._lookup_ready(chunk)
        ids = []
        for piece in PIECES.findall(chunk):
            if piece in self.id_of or piece[0] != SPACE:
                ids.append(self.id_of.get(piece, self.unk_id))
            else:  # no run of spaces is unknown: indentation survives
                ids += [self.id_of[SPACE]] * len(piece)
        return ids

    def _lookup_ready(self, chunk: str) -> list[int]:
        """The id of a chunk that the vocabulary has, or of the longest tokens in it: U.S. and ,"""
        if chunk in self.id_of:
            return [self.id_of[chunk]]
        pieces, ids, start = ready_pieces(chunk), [], 0
        while start < len(pieces):
            for end in range(min(len(pieces), start + MOST_JOINED), start, -1):
                index = self.id_of.get("".join(pieces[start:end]), self.unk_id)
                if index != self.unk_id:
                    break
            ids.append(index)
            start = end
        return ids

    def _spell(self, chunk: str, state: State, space: bool) -> tuple[list[int], Cache]:
        """The ids of a chunk that stands in this state, and the cache for the chunk after it.

        Where the rule would print it otherwise, SPACE or GLUE come before a token.
        """
        if half := re.search("[\ud800-\udfff]", chunk):
            raise UserError(
                f"lone surrogate {half[0]!r} in the text: read it again with errors='replace'"
            )
        ids = []
        for index in self._lookup(chunk):
            kind = self._kinds[index]
            if not self.ready_made and wants_space(state, kind) != space:
                mark = SPACE if space else GLUE
                ids.append(self.id_of[mark])
                state = advance(state, kind_of(mark, False), False)
                space = False
            state = advance(state, kind, space)
            ids.append(index)
            space = False  # inside a chunk there is none
        return ids, self._memo(state, True)
