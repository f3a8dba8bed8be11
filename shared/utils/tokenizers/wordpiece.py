"""WordPiece: BERT's tokenizer. A word is written in the longest pieces that the vocabulary has.

    text         Unaffable,  hm!
    words        unaffable | , | hm | !              lower case; split at spaces and punctuation
    pieces       un  ##aff  ##able  ,  [UNK]  !      greedy: the longest piece first; ## goes on

It stands between words and BPE: frequent words are one token, rare ones a few, and the pieces say
themselves where a word goes on. A word with a character that no piece has is [UNK] as a whole.

Training starts from single characters and joins pairs, as BPE does. Schuster & Nakajima 2012
("Japanese and Korean voice search") join the pair that makes the text most likely; tutorials give
that as count(ab) / (count(a) count(b)). Mere counting, as in BPE and in Hugging Face's trainer,
leaves fewer tokens and is done here. Characters per token of the last 10 % of a text in lower
case, trained on the rest, pieces a and b of n (pytest -n 0 -s -k compresses_best):

                                                  Tiny Shakespeare     WikiText-2 valid
                                   vocabulary     2,000     8,000      2,000     8,000
    count(ab)                                      3.20      3.77       3.07      3.83
    count(ab) log(n count(ab) / count(a) count(b)) 3.14      3.74       2.99      3.78
    count(ab) / (count(a) count(b))                1.64      2.15       1.57      2.16

Devlin et al. 2019 ("BERT") added how a text becomes words, `BasicTokenizer` here.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shared import UserError
from shared.utils.tokenizers.base import Cache, Tokenizer
from shared.utils.tokenizers.bpe import learn_merges
from shared.utils.tokenizers.corpus import count
from shared.utils.tokenizers.pretokenize import WHITE_SPACE
from shared.utils.tokenizers.word import LINE_START, LOOSE, advance, kind_of, wants_space

UNKNOWN, GOES_ON = "[UNK]", "##"
SPECIAL_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
OPTIONS = ("lowercase", "strip_accents", "handle_chinese_chars", "clean_text")
MAX_WORD = 100  # characters; longer words are [UNK], so greedy search takes no long time

# ---------------------------------------------------------------------------------------------
# Text to words
# ---------------------------------------------------------------------------------------------

# BERT's vocabularies and the `tokenizers` library keep to Unicode 8 when they ask what is an
# accent, a control character or punctuation. Python's tables go on, a little further with each
# version: these code points came later (or were moved), and count as ordinary characters here.
# What is left to Python's version is the lower case and the parts of some rare letters (56 code
# points differ from the library's where Python knows Unicode 14).
LATER = """
    5c8-5c9 61d 7fd 890-8e2 9fd-9fe a76 afa-aff b53-b55 c04-c3c c77 c84 d00 d3b-d3c d81 eba ece
    180f-1886 1abf-1af0 1b4e-1b4f 1b7d-1b7f 1df6-1dfb 2e43-2e63 a82c a8c5 a8ff a9bd 10d24-10d6e
    10eab-10f89 11070-11074 110c2-110cd 111cf 1123e-11241 1133b 113bb-1145e 11660-1166c 116b9
    1182f-1183b 1193b-11df0 11ef3-11fff 12ff1-12ff2 13430-13455 1611e-1612f 16d6d-16d6f
    16e97-16f4f 16fe2-16fe4 1cf00-1cf46 1d127-1d128 1d25b-1d25c 1e000-1e136 1e2ae-1e2ef
    1e4ec-1e6f5 1e944-1e95f
"""
SPANS = [[int(end, 16) for end in span.split("-")] for span in LATER.split()]
CATEGORY = {code: "Cn" for span in SPANS for code in range(span[0], span[-1] + 1)}
CATEGORY |= {0x1734: "Mn", 0x1171E: "Mn", 0x166D: "Po", 0x111C9: "Po"}  # as they were

# Hugging Face's ranges. 2b820-2b91f, left out by a slip there, belongs to them as well.
CHINESE = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)]
CHINESE += [(0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F)]


def category(character: str) -> str:
    """The general category of a character in Unicode 8, such as "Lu", whatever the Python."""
    return CATEGORY.get(ord(character)) or unicodedata.category(character)


def without_control(character: str) -> str:
    dropped = character == "\ufffd" or category(character) in ("Cc", "Cf", "Co")
    return "" if dropped else character


def without_accent(character: str) -> str:
    return "" if category(character) == "Mn" else character


def apart_if_chinese(character: str) -> str:
    inside = any(low <= ord(character) <= high for low, high in CHINESE)
    return f" {character} " if inside else character


def apart_if_punctuation(character: str) -> str:
    """BERT's punctuation: Unicode's, and what else ASCII has beside letters and digits."""
    apart = category(character)[0] == "P" or character in "$+<=>^`|~"
    return f" {character} " if apart else character


class Table(dict):
    """What becomes of each character, for str.translate: worked out when it first occurs."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


CLEAN, ACCENTS = Table(without_control), Table(without_accent)
APART, PUNCTUATION = Table(apart_if_chinese), Table(apart_if_punctuation)
CHUNKS = re.compile(f"[^{WHITE_SPACE}]+")
SURROGATES = re.compile("[\ud800-\udfff]")


class BasicTokenizer:
    """Text to words, as BERT does it. `strip_accents` follows `lowercase` where it is None."""

    def __init__(
        self,
        lowercase: bool = False,
        strip_accents: bool | None = None,
        handle_chinese_chars: bool = True,
        clean_text: bool = True,
    ) -> None:
        self.lowercase = lowercase
        self.strip_accents = lowercase if strip_accents is None else strip_accents
        self.handle_chinese_chars = handle_chinese_chars
        self.clean_text = clean_text

    def chunks(self, text: str) -> list[str]:
        """The text between white space.

        >>> BasicTokenizer().chunks(" Oh,\\n no! ")
        ['Oh,', 'no!']
        """
        if self.clean_text:
            for both in "\x0b\x0c\x85":  # white space, but control characters first
                text = text.replace(both, "")
        return CHUNKS.findall(text)

    def words(self, chunk: str) -> list[str]:
        """The words of a text without white space. Raises UserError for half a character.

        >>> BasicTokenizer(lowercase=True).words("Café—ÄÖÜ!")
        ['cafe', '—', 'aou', '!']
        """
        if SURROGATES.search(chunk):
            raise UserError(f"half a character in {chunk!r:.60}: the text was not read as UTF-8")
        if self.clean_text:
            chunk = chunk.translate(CLEAN)
        if self.handle_chinese_chars:
            chunk = chunk.translate(APART)
        if self.strip_accents:
            chunk = unicodedata.normalize("NFD", chunk).translate(ACCENTS)
        if self.lowercase:
            chunk = chunk.replace("Σ", "σ").lower()  # by itself, `lower` ends words in ς
        return [word for word in chunk.translate(PUNCTUATION).split(" ") if word]

    def count(self, text: str) -> Counter[str]:
        """How often each word occurs."""
        counts: Counter[str] = Counter()
        for chunk, times in Counter(self.chunks(text)).items():
            for word in self.words(chunk):
                counts[word] += times
        return counts


# ---------------------------------------------------------------------------------------------
# Words to pieces
# ---------------------------------------------------------------------------------------------


def characters(word: str) -> list[str]:
    """A word in its smallest pieces.

    >>> characters("fox")
    ['f', '##o', '##x']
    """
    return [word[0], *(GOES_ON + character for character in word[1:])]


class WordPieceTokenizer(Tokenizer):
    """A vocabulary of words and pieces of words, those that go on marked ##.

    Special tokens such as [CLS] are ids for programs; in a text they are text like any other.

    Decoding joins the pieces and puts spaces as print has them (see word.py). Lost are white
    space, what BasicTokenizer changes, and unknown words. Unless an id is a special token, the
    decoded text has the same ids again.
    """

    def __init__(self, tokens: list[str], **options: bool | None) -> None:
        """tokens in the order of their ids; options as BasicTokenizer has them."""
        if UNKNOWN not in tokens:
            raise UserError(f"{UNKNOWN} is not in the vocabulary: add it")
        if twice := [token for token, times in Counter(tokens).items() if times > 1]:
            raise UserError(f"{twice[0]!r} is in the vocabulary more than once: keep one of them")
        if "" in tokens:
            raise UserError("an empty token in the vocabulary: the file is damaged")
        self.tokens = tokens
        self.id_of = {token: index for index, token in enumerate(tokens)}
        self.unk_id = self.id_of[UNKNOWN]
        self.basic = BasicTokenizer(**options)
        self._cache = Cache(self._encode_chunk)

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | list[Path],
        vocab_size: int,
        special_tokens: Iterable[str] = SPECIAL_TOKENS,
        **options: bool | None,
    ) -> WordPieceTokenizer:
        """The special tokens, all characters of the text, and the most frequent joined pieces.

        text_or_files: a text, or UTF-8 files. Equally frequent pairs: see bpe.learn_merges. A
        text with few different words gives fewer tokens than `vocab_size`. Raises UserError for a
        vocabulary smaller than the alphabet and for a text without words.

        >>> tokenizer = WordPieceTokenizer.train("low lower lowest", 11, ["[UNK]"])
        >>> tokenizer.tokens[1:8], tokenizer.tokens[8:]
        (['##e', '##o', '##r', '##s', '##t', '##w', 'l'], ['lo', 'low', 'lowe'])
        """
        special_tokens = list(special_tokens)
        counts = count(text_or_files, BasicTokenizer(**options).count)
        words = {word: times for word, times in counts.items() if len(word) <= MAX_WORD}
        if not words:
            raise UserError("there are no words in the text: train on a longer one")
        alphabet = sorted({piece for word in words for piece in characters(word)})
        room = vocab_size - len(special_tokens) - len(alphabet)
        if room < 0:
            raise UserError(
                f"a vocabulary of {vocab_size} is smaller than the alphabet: choose "
                f"{vocab_size - room} or more"
            )
        index = {piece: number for number, piece in enumerate(alphabet)}
        spelled = {
            "".join([chr(index[piece]) for piece in characters(word)]): times
            for word, times in words.items()
        }
        pieces = alphabet.copy()
        for left, right in learn_merges(spelled, [piece.encode() for piece in alphabet], room):
            pieces.append(pieces[left] + pieces[right].removeprefix(GOES_ON))
        # Two pairs can make one piece: aa + a, a + aa.
        return cls(special_tokens + list(dict.fromkeys(pieces)), **options)

    @classmethod
    def from_vocab(cls, vocab: Path | list[str], **options: bool | None) -> WordPieceTokenizer:
        """A given vocabulary: a list, or a file such as BERT's vocab.txt with a token a line.

        bert-base-uncased needs lowercase=True. Raises UserError for a damaged file.
        """
        if not isinstance(vocab, Path):
            return cls(list(vocab), **options)
        try:
            lines = vocab.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        except OSError as error:
            raise UserError(f"{vocab} cannot be read ({error.strerror}): check the path") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{vocab} is not UTF-8: it is damaged, or no vocab.txt") from error
        try:
            return cls([line.rstrip() for line in lines], **options)
        except UserError as error:
            raise UserError(f"{vocab}: {error}") from None

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Words that no pieces make up become [UNK].

        Raises UserError for half a character (a lone surrogate).

        >>> tokenizer = WordPieceTokenizer(["[UNK]", "fox", "##es", "!"], lowercase=True)
        >>> tokenizer.encode("Foxes! Foxglove!")
        [1, 2, 3, 0, 3]
        """
        ids: list[int] = []
        for chunk in self.basic.chunks(text):
            ids += self._cache[chunk]
        return ids

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids, token by token.

        >>> tokenizer = WordPieceTokenizer(["[UNK]", "fox", "##es", "!"])
        >>> list(tokenizer.decode_stream([1, 2, 3, 1]))
        ['fox', 'es', '!', ' fox']
        """
        state = LINE_START
        for index in ids:
            token = self.tokens[self.checked([index])[0]]
            if token.startswith(GOES_ON) and token != GOES_ON:
                state = LOOSE, state[1]
                yield token.removeprefix(GOES_ON)
                continue
            kind = "word"
            if len(token) == 1 and PUNCTUATION[ord(token)] != token:
                # "don't", "well-read": only next to punctuation can a space go without harm
                kind = "join" if token == "'" else kind_of(token, ready_made=False)
            space = wants_space(state, kind)
            state = advance(state, kind, space)
            yield f" {token}" if space else token

    def state_dict(self) -> dict:
        options = {name: getattr(self.basic, name) for name in OPTIONS}
        return {"type": "wordpiece", "tokens": list(self.tokens), **options}

    @classmethod
    def from_state_dict(cls, state: dict) -> WordPieceTokenizer:
        tokens, options = state.get("tokens"), {name: state.get(name) for name in OPTIONS}
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise UserError("the tokenizer's pieces are missing: the file is damaged")
        if not all(isinstance(value, bool) for value in options.values()):
            raise UserError("the tokenizer's options are missing: the file is damaged")
        return cls(list(tokens), **options)

    def __reduce__(self):  # the cache stays behind when another process gets a copy
        return type(self).from_state_dict, (self.state_dict(),)

    def _encode_chunk(self, chunk: str) -> list[int]:
        return [index for word in self.basic.words(chunk) for index in self._pieces(word)]

    def _pieces(self, word: str) -> list[int]:
        """Greedy: the longest piece that the word starts with, then the same for the rest."""
        if len(word) > MAX_WORD:
            return [self.unk_id]
        ids, start = [], 0
        while start < len(word):
            prefix = GOES_ON if start else ""
            for end in range(len(word), start, -1):
                index = self.id_of.get(prefix + word[start:end])
                if index is not None:
                    break
            else:
                return [self.unk_id]
            ids.append(index)
            start = end
        return ids
