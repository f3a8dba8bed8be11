"""Characters as tokens: the smallest vocabulary there is, and nothing to learn.

    text     T   o       b   e
    ids      32  53  1   40  43       (Tiny Shakespeare: 65 different characters)

Every text of the alphabet can be written, no word is unknown, and one token is one character, so
nats per token are nats per character. The price is length: five tokens for an average word, and a
model must carry what it knows across all of them.
"""

from __future__ import annotations

from shared import UserError


class CharTokenizer:
    """One id for each character, in the order of their code points."""

    def __init__(self, characters: str) -> None:
        if not characters or len(set(characters)) != len(characters):
            raise UserError("the vocabulary must list each character once: train it on some text")
        self.characters = characters
        self.id_of = {character: index for index, character in enumerate(characters)}

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """The alphabet of `text`.

        >>> CharTokenizer.train("hello").characters
        'ehlo'
        """
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """One id a character. Raises UserError that names the characters not in the vocabulary.

        >>> CharTokenizer("ehlo").encode("hello")
        [1, 0, 2, 2, 3]
        """
        try:
            return [self.id_of[character] for character in text]
        except KeyError:
            unknown = sorted(set(text) - set(self.characters))
            shown = " ".join(map(repr, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
            raise UserError(
                f"not in the model's vocabulary: {shown}: use only the {self.vocab_size} "
                f"characters it was trained on"
            ) from None

    def decode(self, ids: list[int]) -> str:
        """The text that `encode` turns into these ids. Raises UserError for an id out of range.

        >>> CharTokenizer("ehlo").decode([1, 0, 2, 2, 3])
        'hello'
        """
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise UserError(f"token id out of range: ids run from 0 to {self.vocab_size - 1}")
        return "".join([self.characters[index] for index in ids])

    def state_dict(self) -> dict:
        return {"type": "char", "characters": self.characters}

    @classmethod
    def from_state_dict(cls, state: dict) -> CharTokenizer:
        characters = state.get("characters")
        if not isinstance(characters, str):
            raise UserError("the tokenizer's characters are missing: the file is damaged")
        return cls(characters)
