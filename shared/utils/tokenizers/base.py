"""What the tokenizers have in common: the interface, and how ids become text one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator

from shared import UserError


class Tokenizer(ABC):
    """Text to ids and back.

    A tokenizer trains itself (`train`), lists its `tokens` in the order of their ids, and tells
    `encode` and `decode_stream`; the rest follows from these.
    """

    tokens: list
    unk_id: int | None = None  # the token of unknown words, where there are such
    cut_at = " \n"  # a text cut before a lone space, or after a lone newline, encodes to the same

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to vocab_size - 1."""
        return len(self.tokens)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    @abstractmethod
    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that arrive one at a time, each piece as soon as it is certain.

        The pieces add up to `decode(ids)`, and no piece holds half a character. Raises UserError
        for an id out of range.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids. Raises UserError for an id out of range."""
        return "".join(self.decode_stream(ids))

    def token_text(self, index: int) -> str:
        """One token as a reader should see it, for pictures and tables."""
        return str(self.tokens[index])

    def checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as a list. Raises UserError for an id out of range."""
        ids = list(ids)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise UserError(f"token id out of range: ids run from 0 to {self.vocab_size - 1}")
        return ids


class Cache(dict):
    """What `compute` made of each key: worked out once, looked up from then on.

    It forgets everything when it is full and never keeps long keys, so a text without
    repetitions costs time but no memory.
    """

    SIZE = 500_000  # entries; some 100 MB
    LONGEST = 200  # characters of a key

    def __init__(self, compute: Callable[[str], Hashable]) -> None:
        self.compute = compute

    def __missing__(self, key: str) -> Hashable:
        value = self.compute(key)
        if len(key) <= self.LONGEST:
            if len(self) >= self.SIZE:
                self.clear()
            self[key] = value
        return value
