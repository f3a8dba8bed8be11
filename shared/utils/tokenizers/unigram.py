r"""Unigram: every token has a probability, and a text is cut in the most probable way (Kudo 2018).

    vocabulary      h .05    u .05    g .05    s .10    ug .20    hug .10

    "hugs" = hug s      .10 * .10             = .010      <- wins
           = h ug s     .05 * .20 * .10       = .001
           = h u g s    .05 * .05 * .05 * .10 = .0000125

Every token is a factor below 1, so few long tokens beat many short ones, though "ug" is more
likely than "hug". In practice logarithms are added: log .10 + log .10 = -4.6.

BPE builds its vocabulary up, merge by merge; Unigram carves it out of a large one:

    1. seed    every substring that occurs twice or more is a candidate
    2. E-step  how often is each token used, over *all* ways to write the text?  (forward-backward)
    3. M-step  its share of all uses is its new probability; repeat 2 and 3
    4. prune   of the tokens that are missed least when written with others, drop a quarter;
               go to 2 until vocab_size is reached

Tokens never cross the words that GPT2_PATTERN cuts (pretokenize.py). A character that is not in
the vocabulary is written as its UTF-8 bytes, for which there are 256 tokens, as in LLaMA; so every
text can be encoded, and comes back. Where SentencePiece (Kudo & Richardson 2018), the home of this
algorithm, has a token "▁the", the token here is " the" with a real space.
"""

from __future__ import annotations

import codecs
import io
import math
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, pairwise
from pathlib import Path

import numpy as np

from shared import UserError
from shared.utils.tokenizers import corpus
from shared.utils.tokenizers.base import Cache, Tokenizer
from shared.utils.tokenizers.pretokenize import (
    GPT2_PATTERN,
    count_pieces,
    cut_at_spaces,
    fitting,
    key_text,
)

BYTES = [f"<0x{value:02X}>" for value in range(256)]
UNKNOWN = -1  # in a path: a character that no token covers
UNKNOWN_PENALTY = 10.0  # nats by which an unknown character is less likely than any token
PIECE = ""  # key of a trie node that ends a token; the others are characters

LONGEST = 16  # characters of a trained token
SEEDS = 10  # candidates for each token of the final vocabulary
EM_ROUNDS = 2  # between two prunings
SHRINK = 0.75  # of the tokens survive a pruning
RARE = 0.01  # uses granted to a token that is never used: its probability must not be 0
TRAIN_WORDS, TRAIN_LENGTH = 200_000, 64  # the words that matter most, in parts this long


class UnigramTokenizer(Tokenizer):
    """The most probable segmentation under a vocabulary of tokens with log probabilities.

    pieces: (token, natural logarithm of its probability), in the order of their ids.
    unk_id: the token for runs of unknown characters, or None.
    byte_fallback: unknown characters become bytes; `<0x00>` to `<0xFF>` must be among the pieces.
    These tokens are known by their ids: the text "<0x41>" is six characters like any others.
    Raises UserError if the pieces cannot be a vocabulary.

    >>> hug = [("h", .05), ("u", .05), ("g", .05), ("s", .10), ("ug", .20), ("hug", .10)]
    >>> tokenizer = UnigramTokenizer([(piece, math.log(p)) for piece, p in hug])
    >>> [tokenizer.tokens[i] for i in tokenizer.encode("hugs")]
    ['hug', 's']
    """

    def __init__(
        self,
        pieces: Iterable[tuple[str, float]],
        unk_id: int | None = None,
        byte_fallback: bool = False,
    ) -> None:
        pieces = list(pieces)
        check_pieces(pieces, unk_id)
        self.tokens = [piece for piece, _ in pieces]
        self.log_probs = [float(log_prob) for _, log_prob in pieces]
        self.unk_id = unk_id
        id_of = {piece: index for index, piece in enumerate(self.tokens)}
        if byte_fallback and not id_of.keys() >= set(BYTES):
            raise UserError("byte_fallback needs all of <0x00> to <0xFF>: add them to the pieces")
        self.byte_ids = [id_of[name] for name in BYTES] if byte_fallback else []
        self.bytes_of = [piece.encode() for piece in self.tokens]  # what each id stands for
        for value, index in enumerate(self.byte_ids):
            self.bytes_of[index] = bytes([value])
        self.unknown_log_prob = min(self.log_probs) - UNKNOWN_PENALTY
        self.trie: dict = {}
        silent = {unk_id, *self.byte_ids}  # their names mean nothing in a text
        for piece, index in id_of.items():
            if index not in silent:
                node = self.trie
                for character in piece:
                    node = node.setdefault(character, {})
                node[PIECE] = (len(piece), index, self.log_probs[index])
        self.longest = max(map(len, self.tokens))
        self.word_ids = Cache(self._best_path)
        self.key_ids = Cache(self._encode_key)

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | list[Path],
        vocab_size: int,
        processes: int | None = None,
    ) -> UnigramTokenizer:
        """A vocabulary for a text (or UTF-8 files): the 256 bytes, then tokens, likeliest first.

        vocab_size counts all of them. Every character of the text becomes a token; there are
        fewer tokens than asked for if the text is too short to offer them. Raises UserError if
        bytes and characters alone are more than vocab_size, or the text is empty.
        """
        counts = corpus.count(text_or_files, count_pieces, processes)
        alphabet = sorted(set().union(*counts))
        if vocab_size < len(BYTES) + len(alphabet):
            raise UserError(
                f"vocab_size {vocab_size} is too small: the text's {len(alphabet)} characters "
                f"and {len(BYTES)} bytes need {len(BYTES) + len(alphabet)}"
            )
        trained = train_pieces(counts, alphabet, vocab_size - len(BYTES))
        return cls([(name, 0.0) for name in BYTES] + trained, byte_fallback=True)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises UserError for a lone surrogate, or a character that is
        unknown to a vocabulary without bytes and `unk_id`.

        >>> tokenizer = UnigramTokenizer.train("low lower lowest", 270)
        >>> [tokenizer.tokens[i] for i in tokenizer.encode("low ä")]
        ['low', ' ', '<0xC3>', '<0xA4>']
        """
        parts = map(self.key_ids.__getitem__, chain.from_iterable(cut_at_spaces(text)))
        return list(chain.from_iterable(parts))

    def _encode_key(self, key: str) -> list[int]:
        """The ids of one key of `cut_at_spaces`."""
        return [index for word in split(key_text(key)) for index in self.word_ids[word]]

    def _best_path(self, word: str) -> list[int]:
        """Viterbi: the best way to a position goes through the best way to an earlier one.

        Of equally good ways the one whose last token is longest wins.
        """
        best = array("d", [0.0]) + array("d", [-math.inf]) * len(word)  # log prob. up to here
        last = [UNKNOWN] * (len(word) + 1)  # id of the token that ends here
        for start in range(len(word)):
            before = best[start]
            for length, index, log_prob in self._tokens_at(word, start):
                if before + log_prob > best[start + length]:
                    best[start + length] = before + log_prob
                    last[start + length] = index
        path, end = [], len(word)
        while end > 0:
            path.append(last[end])
            end -= 1 if last[end] == UNKNOWN else len(self.tokens[last[end]])
        return self._resolve(word, path[::-1])

    def _tokens_at(self, word: str, start: int) -> list[tuple[int, int, float]]:
        """The tokens that continue a word, shortest first: (characters, id, log probability)."""
        node, found = self.trie, []
        for character in word[start : start + self.longest]:
            node = node.get(character)
            if node is None:
                break
            if PIECE in node:
                found.append(node[PIECE])
        if not found or found[0][0] > 1:  # the character alone is no token
            found.append((1, UNKNOWN, self.unknown_log_prob))
        return found

    def _resolve(self, word: str, path: list[int]) -> list[int]:
        """The path with the ids of bytes, or of one `unk_id` a run, in the place of UNKNOWN."""
        if UNKNOWN not in path:
            return path
        ids, end = [], 0
        for unknown, group in groupby(path, UNKNOWN.__eq__):
            run, start = list(group), end
            end += len(run) if unknown else sum(len(self.tokens[index]) for index in run)
            ids += self._unknown(word[start:end]) if unknown else run
        return ids

    def _unknown(self, characters: str) -> list[int]:
        data = utf8(characters)
        if self.byte_ids:
            return [self.byte_ids[value] for value in data]
        if self.unk_id is None:
            raise UserError(
                f"not in the vocabulary: {characters[0]!r}: train on texts that have it, or give "
                f"the tokenizer byte_fallback or unk_id"
            )
        return [self.unk_id]

    def sample(self, text: str, alpha: float, seed: int) -> list[int]:
        """Ids of a random segmentation: subword regularization (Kudo 2018, section 3.2).

        A model that sees a text cut differently each time learns what its words are made of. A
        segmentation of probability p is drawn with a probability proportional to p ** alpha:
        at 0 all are equal, at 1000 nearly all are the best one.
        """
        if not 0 <= alpha <= 1000:
            raise UserError(f"alpha {alpha} is out of range: use 0 to 1000")
        dice = random.Random(seed)
        return [index for word in split(text) for index in self._random_path(word, alpha, dice)]

    def _random_path(self, word: str, alpha: float, dice: random.Random) -> list[int]:
        """Sum the probabilities forward, then choose the tokens from the last to the first."""
        total = [0.0]  # log of the sum over all ways that lead here
        ending: list[list] = [[] for _ in range(len(word) + 1)]
        for start in range(len(word)):
            for length, index, log_prob in self._tokens_at(word, start):
                ending[start + length].append((length, index, total[start] + alpha * log_prob))
            total.append(log_sum_exp([weight for *_, weight in ending[start + 1]]))
        path, end = [], len(word)
        while end > 0:
            weights = [math.exp(weight - total[end]) for *_, weight in ending[end]]
            length, index, _ = dice.choices(ending[end], weights)[0]
            path.append(index)
            end -= length
        return self._resolve(word, path[::-1])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids. Raises UserError for an id out of range."""
        data = io.BytesIO()  # b"".join would need 80 bytes for each token
        data.writelines(map(self.bytes_of.__getitem__, self.checked(ids)))
        return data.getvalue().decode("utf-8", "replace")

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that arrive one at a time; a character waits for its last byte.

        Bytes that are no UTF-8 become U+FFFD. Raises UserError for an id out of range.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for index in ids:
            yield decoder.decode(self.bytes_of[self.checked([index])[0]])
        yield decoder.decode(b"", final=True)

    def state_dict(self) -> dict:
        """Plain types that say all there is to know."""
        return {
            "type": "unigram",
            "pieces": list(self.tokens),
            "log_probs": list(self.log_probs),
            "unk_id": self.unk_id,
            "byte_fallback": bool(self.byte_ids),
        }

    @classmethod
    def from_state_dict(cls, state: dict) -> UnigramTokenizer:
        """The tokenizer of a `state_dict()`. Raises UserError for a damaged one."""
        pieces, log_probs = state.get("pieces"), state.get("log_probs")
        if not (
            isinstance(pieces, list)
            and isinstance(log_probs, list)
            and len(pieces) == len(log_probs)
            and isinstance(state.get("byte_fallback"), bool)
            and "unk_id" in state
        ):
            raise UserError("the tokenizer's state is not complete: the file is damaged")
        vocabulary = zip(pieces, log_probs, strict=True)
        return cls(vocabulary, state["unk_id"], state["byte_fallback"])

    def __reduce__(self):  # the caches stay behind when another process gets a copy
        return type(self).from_state_dict, (self.state_dict(),)


def check_pieces(pieces: list, unk_id: int | None) -> None:
    """Raises UserError unless these are pairs of different strings and log probabilities."""
    if not pieces:
        raise UserError("the vocabulary is empty: train it on some text")
    for piece, log_prob in pieces:
        if not isinstance(piece, str) or not piece:
            raise UserError(f"{piece!r} is no token: a vocabulary lists texts that are not empty")
        # The lower bound keeps the sums over any text finite.
        if not isinstance(log_prob, (int, float)) or not -1e100 < log_prob <= 0:
            raise UserError(
                f"{log_prob!r} of {piece!r} is no log probability: it must be finite, at most 0"
            )
    texts = [piece for piece, _ in pieces]
    utf8("".join(texts))
    if len(set(texts)) < len(texts):
        twice = next(piece for piece, count in Counter(texts).items() if count > 1)
        raise UserError(f"the vocabulary lists {twice!r} twice: keep one of them")
    if unk_id is not None and (type(unk_id) is not int or not 0 <= unk_id < len(pieces)):
        raise UserError(f"unk_id {unk_id!r} is no id: use 0 to {len(pieces) - 1} or None")


def utf8(text: str) -> bytes:
    """The bytes of a text. Raises UserError for a lone surrogate, which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"lone surrogate {text[error.start]!r} in the text: it is damaged, read it again with "
            f"errors='replace'"
        ) from None


def log_sum_exp(values: list[float]) -> float:
    """log(sum(exp(value))) that neither overflows nor underflows."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


# ------------------------------------------------------------------------------------- training


def split(text: str) -> list[str]:
    """The words of a text, which no token crosses."""
    return fitting(GPT2_PATTERN, text).findall(text)


def train_pieces(counts: Counter[str], alphabet: list[str], size: int) -> list[tuple[str, float]]:
    """The `size` tokens that words with these counts are best written with, likeliest first.

    Steps 1 to 4 of the module's docstring. A token never loses its index: the pruned ones are
    no longer `alive`, and the lattices have no edges for them.
    """
    words = training_words(counts)
    uses = np.array([words[word] for word in words], dtype=float)
    pieces, scores = seed_pieces(words, alphabet, size * SEEDS)
    log_probs = np.log(scores / scores.sum())
    lattice = Lattice(words, pieces)
    others = Lattice(pieces[len(alphabet) :], pieces)  # ways to write each token with others:
    others.keep(others.piece != others.end % others.n_words + len(alphabet))  # not with itself
    alive = np.ones(len(pieces), dtype=bool)
    while True:
        for _ in range(EM_ROUNDS):
            expected = np.maximum(lattice.expected_counts(log_probs, uses), RARE)
            log_probs = np.log(expected) - np.log(expected[alive].sum())
        if alive.sum() <= size:
            break
        # What is lost, in nats, when each use of a token is written with other tokens instead:
        # in all other ways together (SentencePiece looks at the best one only).
        loss = np.full(len(pieces), np.inf)  # a single character has no other way
        loss[len(alphabet) :] = log_probs[len(alphabet) :] - others.log_totals(log_probs)
        loss = np.where(alive, expected * loss, -np.inf)
        best = np.argsort(-loss, kind="stable")[: max(size, int(SHRINK * alive.sum()))]
        alive = np.isin(np.arange(len(pieces)), best)
        lattice.keep(alive[lattice.piece])
        others.keep(alive[others.piece])
    trained = [(pieces[i], float(log_probs[i])) for i in np.flatnonzero(alive)]
    return sorted(trained, key=lambda pair: (-pair[1], pair[0]))


def training_words(counts: Counter[str]) -> dict[str, int]:
    """The words that take part: most frequent first, very long ones in parts.

    The order does not depend on that of `counts`, hence neither does any rounding error.

    >>> training_words(Counter({"no": 2, "o" * 100: 3})) == {"o" * 64: 3, "o" * 36: 3, "no": 2}
    True
    """
    words: Counter[str] = Counter()
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TRAIN_WORDS]:
        for start in range(0, len(word), TRAIN_LENGTH):
            words[word[start : start + TRAIN_LENGTH]] += count
    return words


def seed_pieces(
    words: dict[str, int], alphabet: list[str], size: int
) -> tuple[list[str], np.ndarray]:
    """All characters, then the substrings that cover most: count * length, as SentencePiece.

    >>> seed_pieces({"hug": 2, "hugs": 1}, ["g", "h", "s", "u"], 6)
    (['g', 'h', 's', 'u', 'hug', 'hu'], array([3., 3., 1., 3., 9., 6.]))
    """
    cover = {}
    for length in range(1, LONGEST + 1):  # one length after the other: memory for one at a time
        found: Counter[str] = Counter()
        for word, count in words.items():
            for start in range(len(word) - length + 1):
                found[word[start : start + length]] += count
        cover.update({piece: n * length for piece, n in found.items() if n > 1 or length == 1})
    longer = [piece for piece in cover if len(piece) > 1]
    longer.sort(key=lambda piece: (-cover[piece], piece))
    pieces = alphabet + longer[: size - len(alphabet)]
    return pieces, np.array([cover.get(piece, RARE) for piece in pieces], dtype=float)


class Lattice:
    """All ways to write some words with some pieces: a graph, and sums over its paths.

        o --h--> o --u--> o --g--> o       a node is a position in a word,
        |        `-------ug------->|       an edge is a piece between two of them,
        `----------hug------------>'       a path is a way to write the word

    The graphs of all words are computed together, in as many NumPy steps as the longest word has
    characters. Node = position * number of words + number of the word; edges are sorted by the
    node they end at. So a step is a slice of the edges, `steps`, and in it the edges that end at
    one node are neighbours, beginning at `first`.
    """

    def __init__(self, words: Sequence[str] | dict[str, int], pieces: list[str]) -> None:
        id_of = {piece: index for index, piece in enumerate(pieces)}
        self.n_words = n = len(words)
        edges = array("i")
        for number, word in enumerate(words):
            for end in range(1, len(word) + 1):
                for start in range(max(0, end - LONGEST), end):
                    index = id_of.get(word[start:end])
                    if index is not None:
                        edges.extend((start * n + number, end * n + number, index))
        self.start, self.end, self.piece = np.array(edges).reshape(-1, 3).T  # each (edges,)
        self.final = np.array([len(word) * n + i for i, word in enumerate(words)])  # (words,)
        self.keep(np.argsort(self.end, kind="stable"))

    def keep(self, chosen: np.ndarray) -> None:
        """Leaves only the chosen edges: indices or a mask."""
        self.start, self.end = self.start[chosen], self.end[chosen]
        self.piece = self.piece[chosen]
        position = self.end // self.n_words
        cuts = np.flatnonzero(np.diff(position, prepend=0, append=-1)).tolist()
        self.steps = [slice(*pair) for pair in pairwise(cuts)]
        self.first = [np.flatnonzero(np.diff(self.end[step], prepend=-1)) for step in self.steps]

    def forward(self, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log of the summed probability of all paths (up to each node, through each edge to its
        end). log_probs (pieces,) -> (nodes,), (edges,)
        """
        reach = np.zeros(self.final.max() + 1)
        through = log_probs[self.piece]
        for step, first in zip(self.steps, self.first, strict=True):
            through[step] += reach[self.start[step]]
            reach[self.end[step][first]] = np.logaddexp.reduceat(through[step], first)
        return reach, through

    def log_totals(self, log_probs: np.ndarray) -> np.ndarray:
        """Log probability of each word, all its paths together. (pieces,) -> (words,)"""
        return self.forward(log_probs)[0][self.final]

    def expected_counts(self, log_probs: np.ndarray, uses: np.ndarray) -> np.ndarray:
        """The E-step: how often each piece is used if each word takes each path as often as its
        probability says. log_probs (pieces,), uses of the words (words,) -> (pieces,)

        The uses flow from the end of a word back to its start. At each node they part in
        proportion to the probabilities of the edges that end there.
        """
        reach, through = self.forward(log_probs)
        flow = np.exp(through - reach[self.end])
        passing = np.zeros(len(reach))
        passing[self.final] = uses
        for step in reversed(self.steps):
            flow[step] *= passing[self.end[step]]
            np.add.at(passing, self.start[step], flow[step])
        return np.bincount(self.piece, flow, minlength=len(log_probs))
