"""Characters as tokens: the smallest vocabulary there is, and nothing to learn.

    text     T   o       b   e
    ids      32  53  1   40  43       (Tiny Shakespeare: 65 different characters)

Every text of the alphabet can be written, no word is unknown, and one token is one character, so
nats per token are nats per character. The price is length: five tokens for an average word, and a
model must carry what it knows across all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from shared import UserError
from shared.utils.tokenizers.base import Tokenizer
from shared.utils.tokenizers.corpus import count


class CharTokenizer(Tokenizer):
    """One id for each character, in the order of their code points."""

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise UserError("the vocabulary must list each character once: train it on some text")
        self.tokens = list(characters)
        self.id_of = {character: index for index, character in enumerate(characters)}

    @classmethod
    def train(cls, text_or_files: str | Path | list[Path]) -> CharTokenizer:
        """The alphabet of a text, or of UTF-8 files. Raises UserError for what it cannot read.

        >>> CharTokenizer.train("hello").tokens
        ['e', 'h', 'l', 'o']
        """
        in_memory = isinstance(text_or_files, str)
        found = set(text_or_files) if in_memory else count(text_or_files, Counter)
        return cls("".join(sorted(found)))

    def encode(self, text: str) -> list[int]:
        """One id a character. Raises UserError that names the characters not in the vocabulary.

        >>> CharTokenizer("ehlo").encode("hello")
        [1, 0, 2, 2, 3]
        """
        try:
            return [self.id_of[character] for character in text]
        except KeyError:
            unknown = sorted(set(text) - self.id_of.keys())
            shown = " ".join(map(repr, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
            raise UserError(
                f"not in the model's vocabulary: {shown}: use only the {self.vocab_size} "
                f"characters it was trained on"
            ) from None

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The characters of ids that arrive one at a time.

        >>> "".join(CharTokenizer("ehlo").decode_stream([1, 0, 2, 2, 3]))
        'hello'
        """
        for index in ids:
            yield self.tokens[self.checked([index])[0]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `encode` turns into these ids. Raises UserError for an id out of range."""
        tokens = self.tokens
        return "".join([tokens[index] for index in self.checked(ids)])

    def state_dict(self) -> dict:
        return {"type": "char", "characters": "".join(self.tokens)}

    @classmethod
    def from_state_dict(cls, state: dict) -> CharTokenizer:
        characters = state.get("characters")
        if not isinstance(characters, str):
            raise UserError("the tokenizer's characters are missing: the file is damaged")
        return cls(characters)
