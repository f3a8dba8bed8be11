r"""BPE on characters, as SentencePiece does it: the tokenizers of Llama 2, TinyLlama and Mistral.

    text             low lower!🦊
    spaces visible   ▁low▁lower!🦊                 ▁ (U+2581) stands for a space; the first one
                                                  is added, so that "low" is one word wherever
                                                  it stands: the dummy prefix
    characters       ▁ l o w ▁ l o w e r ! 🦊
    merges           ▁low ▁lower ! 🦊              as in bpe.py, on characters
    byte fall-back   ▁low ▁lower ! <0xF0> <0x9F> <0xA6> <0x8A>
                                                  a character without a token of its own is
                                                  written as the bytes of its UTF-8
    decoded          low lower!🦊                  the first space goes again

There is no pattern that keeps words apart: the space is part of the text like any letter, which
suits languages without spaces. What learned tokens look like keeps words apart here: they may
begin with ▁, but hardly ever have it behind another character.

Kudo & Richardson 2018, "SentencePiece: a simple and language independent subword tokenizer".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NoReturn

from shared import UserError
from shared.utils.tokenizers.bpe import LONG, BPETokenizer, merge_long, merge_short

SPACE = "▁"
PREFIXES = ("prepend", "always", "first", "never")


class SentencePieceBPE(BPETokenizer):
    """BPE on characters with byte fall-back.

    tokens: the text of each id; those of the bytes are "<0x00>" to "<0xFF>". merges: pairs of
    ids, the first in the list first. special_tokens: their text and id. prefix: which text gets
    a dummy space in front, where a text ends at a special token and goes on as another one:

        "prepend"   every text                                          Llama 2
        "always"    every text that does not begin with a space         Llama 2 in later files
        "first"     the same, but not behind a special token            Llama 2, "legacy" off
        "never"     none

    `decode` removes one space in front (unless "never"), so a text comes back from its ids if
    prefix is "prepend" or "never"; "always" and "first" lose the space that a text began with. A
    "▁" in the text comes back as a space, and a text behind a special token with its dummy.

    >>> bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    >>> tokenizer = SentencePieceBPE([*bytes_, "▁", "l", "o", "w", "▁l", "ow", "▁low"],
    ...                              merges=[(256, 257), (258, 259), (260, 261)])
    >>> [tokenizer.token_text(i) for i in tokenizer.encode("low é")]
    ['▁low', '▁', '<0xC3>', '<0xA9>']
    >>> tokenizer.decode(tokenizer.encode("low é"))
    'low é'
    """

    BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

    def __init__(
        self,
        tokens: list[str],
        merges: list[tuple[int, int]],
        special_tokens: dict[str, int] | None = None,
        prefix: str = "prepend",
    ) -> None:
        if prefix not in PREFIXES:
            raise UserError(f"unknown prefix {prefix!r}: choose one of {', '.join(PREFIXES)}")
        super().__init__(tokens, merges, special_tokens, patterns=(), ignore_merges=False)
        self.prefix = prefix
        self.byte_of = {index: byte for byte, index in enumerate(self.byte_ids)}
        # No merge reaches across the place before a ▁ if none makes a token that has one inside.
        # Then a text may be cut there, and most of its pieces have been seen before.
        inside = (SPACE in tokens[index].lstrip(SPACE) for index in self.merged)
        self.cuts = SPACE in self.index and not any(inside)
        # corpus.py may do so as well, but for a dummy that would come to every chunk.
        self.cut_at = " " if self.cuts and prefix != "prepend" else ""

    @classmethod
    def train(cls, *_: object, **__: object) -> NoReturn:
        """Such tokenizers are only loaded here."""
        raise UserError("SentencePieceBPE cannot be trained: load a file, or train a BPETokenizer")

    @staticmethod
    def from_sentencepiece(tokenizer_model: str | Path) -> SentencePieceBPE:
        """The tokenizer in a tokenizer.model: the same ids as SentencePiece's."""
        from shared.utils.tokenizers.formats import read_sentencepiece

        return SentencePieceBPE(**read_sentencepiece(Path(tokenizer_model)))

    def encode_ordinary(self, text: str, first: bool = True) -> list[int]:
        """The ids of a text without special tokens. first: no special token is before it."""
        text = text.replace(" ", SPACE)
        if text and (
            self.prefix == "prepend"
            or (self.prefix == "always" and text[0] != SPACE)
            or (self.prefix == "first" and text[0] != SPACE and first)
        ):
            text = SPACE + text
        pieces = re.findall(f"{SPACE}*[^{SPACE}]+|{SPACE}+", text) if self.cuts else [text]
        return list(chain.from_iterable(map(self.piece_ids.__getitem__, pieces)))

    def encode_piece(self, piece: str) -> tuple[int, ...]:
        ids = []
        for character in piece:
            if character in self.index:
                ids.append(self.index[character])
            else:
                ids += [self.byte_ids[byte] for byte in character.encode()]
        merge = merge_short if len(ids) < LONG else merge_long
        return tuple(merge(ids, self.ranks, self.merged))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids. Raises UserError for an id out of range.

        Byte tokens side by side that are no UTF-8 become U+FFFD, one for each, as in the
        `tokenizers` library.
        """
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that arrive one at a time; bytes wait for the next token of another kind.

        Only then is it certain whether they are UTF-8.
        """
        dummy = self.prefix != "never"
        for text in self.texts(ids):
            yield text.removeprefix(" ") if dummy else text
            dummy = dummy and not text

    def texts(self, ids: Iterable[int]) -> Iterator[str]:
        """The same with the dummy prefix."""
        run = bytearray()
        for index in ids:
            token = self.tokens[self.checked([index])[0]]
            if index in self.byte_of:
                run.append(self.byte_of[index])
            else:
                yield run_text(run) + token.replace(SPACE, " ")
                run.clear()
        yield run_text(run)

    def token_text(self, index: int) -> str:
        return self.tokens[index]

    def state_dict(self) -> dict:
        return {
            "type": "sentencepiece-bpe",
            "tokens": list(self.tokens),
            "merges": [list(pair) for pair in self.merges],
            "special_tokens": dict(self.special_tokens),
            "prefix": self.prefix,
        }

    @classmethod
    def from_state_dict(cls, state: dict) -> SentencePieceBPE:
        """The tokenizer of this state. Raises UserError if it is damaged."""
        try:
            tokens = [str.__str__(token) for token in state["tokens"]]
            merges = [(int(first), int(second)) for first, second in state["merges"]]
            specials = {text: int(i) for text, i in state["special_tokens"].items()}
            return cls(tokens, merges, specials, state["prefix"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError("the tokenizer's state is damaged: take a whole checkpoint") from None


def run_text(run: bytearray) -> str:
    """Bytes as text.

    >>> run_text(bytearray(b"\\xc3\\xa9")), run_text(bytearray(b"\\xc3\\xa9\\xc3"))
    ('é', '\ufffd\ufffd\ufffd')
    """
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)
