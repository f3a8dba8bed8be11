"""Counting n-grams: the language model from before neural networks, and the bar to clear.

How often did each token follow the last n - 1? That table is the whole model; with letters:

    "the quee" ->  n 412   r 3   .  1            order 9: sharp, but rarely seen before
            e  ->  ' ' 9800   r 5200   n 3100    order 2: always seen, but vague

Long contexts are sharp and rare, short ones vague and common. Interpolated Kneser-Ney smoothing
mixes them: take a little (the discount D) off every count, and give what was taken to the next
shorter context. A short context's counts are then not "how often" but "after how many different
tokens", for it is asked only when the long one does not know (Kneser & Ney 1995; the three
discounts are Chen & Goodman's, 1999).

Shapes: N tokens, V vocabulary, G_k different k-grams

    python ngram.py                              # loss of orders 1 to 5, and a sample
    python ngram.py --order 8 --dataset tales
"""

from __future__ import annotations

import math

import numpy as np
from generate import Arguments, command

from shared import UserError
from shared.data.download import load_default, load_text
from shared.utils.tokenizers import CharTokenizer


class NGram:
    """Interpolated modified Kneser-Ney of any order, over integer tokens of any vocabulary.

    For each k = 1 .. order it keeps, in sorted arrays, the k-grams that occur. A k-gram has a
    number (its row), and the k-gram "context c, then token w" has the key c * V + w, where c is
    the number of its first k - 1 tokens: so keys stay small however long the n-grams grow.
    """

    def __init__(self, tokens: list[int] | np.ndarray, order: int, vocab_size: int) -> None:
        """Count `tokens` (N,), ids below vocab_size."""
        self.order, self.vocab_size = order, vocab_size
        tokens = np.asarray(tokens, dtype=np.int64)
        self.keys = []  # [k - 1]: (G_k,) sorted keys of the k-grams
        grams = np.zeros(len(tokens) + 1, dtype=np.int64)  # number of the (k-1)-gram before each
        counts, suffixes = [], []
        for _ in range(min(order, len(tokens))):
            key = grams[:-1] * self.vocab_size + tokens[len(tokens) - len(grams) + 1 :]
            unique, number, count = unique_counts(key)
            # The k-gram without its first token is a (k-1)-gram: the one that ends where it ends.
            suffix = np.zeros(len(unique), dtype=np.int64)
            suffix[number] = grams[1:]
            self.keys.append(unique)
            counts.append(count)
            suffixes.append(suffix)
            grams = number
        # The longest n-grams are counted as they are, each shorter one once per longer n-gram
        # that ends in it.
        for k in range(len(counts) - 1):
            counts[k] = np.bincount(suffixes[k + 1], minlength=len(counts[k]))
        self.direct, self.backoff = [], []
        for k, count in enumerate(counts):
            contexts = len(self.keys[k - 1]) if k else 1
            direct, backoff = discounted(count, self.keys[k] // vocab_size, contexts)
            self.direct.append(direct)  # (G_k,) probability from this order's own counts
            self.backoff.append(backoff)  # (G_{k-1},) what is left for the shorter contexts

    def log_probs(self, tokens: list[int] | np.ndarray) -> np.ndarray:
        """ln p(token | the tokens before it) of each token: (N,) -> (N,), in nats."""
        tokens = np.asarray(tokens, dtype=np.int64)
        p = np.full(len(tokens), 1 / self.vocab_size)
        context = np.zeros(len(tokens), dtype=np.int64)  # number of the context, -1: never seen
        for keys, direct, backoff in zip(self.keys, self.direct, self.backoff, strict=True):
            key = context * self.vocab_size + tokens
            row = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            row = np.where((keys[row] == key) & (context >= 0), row, -1)
            p = np.where(context >= 0, backoff[context] * p, p) + np.where(row >= 0, direct[row], 0)
            context = np.concatenate(([-1], row[:-1]))[: len(tokens)]
        return np.log(p)

    def next_probs(self, context: list[int]) -> np.ndarray:
        """p(next token | context) of every token: (V,), summing to 1."""
        p = np.full(self.vocab_size, 1 / self.vocab_size)
        for k in range(min(len(self.keys), len(context) + 1)):
            row = 0
            for j, token in enumerate(context[len(context) - k :]):
                key = row * self.vocab_size + token
                row = int(np.searchsorted(self.keys[j], key))
                if row == len(self.keys[j]) or self.keys[j][row] != key:
                    return p  # a context never seen: what the shorter ones said stands
            first = row * self.vocab_size
            low, high = np.searchsorted(self.keys[k], [first, first + self.vocab_size])
            p = self.backoff[k][row] * p
            p[self.keys[k][low:high] - first] += self.direct[k][low:high]
        return p

    def sample(self, length: int, seed: int) -> list[int]:
        """`length` tokens drawn one after the other."""
        random, tokens = np.random.default_rng(seed), []
        for _ in range(length):
            p = self.next_probs(tokens[max(0, len(tokens) - self.order + 1) :])
            tokens.append(int(random.choice(self.vocab_size, p=p / p.sum())))
        return tokens


def unique_counts(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """keys (N,) -> unique (G,) sorted, number (N,) with unique[number] == keys, count (G,)

    >>> unique_counts(np.array([7, 3, 7]))
    (array([3, 7]), array([1, 0, 1]), array([1, 2]))
    """
    if keys.max() < 8 * len(keys) + 1000:  # few possible keys: count in a table, no sorting
        table = np.bincount(keys)
        return np.flatnonzero(table), (np.cumsum(table > 0) - 1)[keys], table[table > 0]
    return np.unique(keys, return_inverse=True, return_counts=True)


def discounted(count: np.ndarray, context: np.ndarray, contexts: int) -> tuple:
    """Turn counts into probabilities: count (G,), context (G,) -> direct (G,), backoff (contexts,)

    direct is (count - D) / total and backoff the mass taken, sum of D / total, per context. D
    depends on the count: 1, 2 or more (Chen & Goodman 1999, equation 17).
    """
    n1, n2, n3, n4 = (int((count == c).sum()) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.5
    estimates = [1 - 2 * y * n2 / n1 if n1 else 0.5]
    estimates.append(2 - 3 * y * n3 / n2 if n2 else 1.0)
    estimates.append(3 - 4 * y * n4 / n3 if n3 else 1.5)
    # Tiny texts give estimates out of bounds. A discount stays between nothing and the count.
    discounts = [min(max(d, 0.1), c - 0.1) for d, c in zip(estimates, (1, 2, 3), strict=True)]
    taken = np.array([0.0, *discounts])[np.minimum(count, 3)]
    total = np.bincount(context, weights=count, minlength=contexts)
    with np.errstate(divide="ignore", invalid="ignore"):
        backoff = np.bincount(context, weights=taken, minlength=contexts) / total
    # A context that only begins the text follows nothing, so it counts for nothing: total is 0.
    return (count - taken) / np.maximum(total, 1)[context], np.where(total > 0, backoff, 1.0)


def ngram_loss(train: list[int], valid: list[int], order: int, vocab_size: int) -> float:
    """Nats per token of an n-gram model, over all of `valid` but its first token."""
    return float(-NGram(train, order, vocab_size).log_probs(valid)[1:].mean())


def main() -> None:
    parser = Arguments("Count n-grams, predict with them, and write.", "ngram.py")
    parser.text("--dataset", "a dataset's name or a text file (tiny-shakespeare, or tales)")
    parser.number("--order", int, "longest n-gram, in tokens", 1, 30, default=5)
    parser.number("--length", int, "tokens to write with the longest", 0, default=300)
    parser.number("--seed", int, "seed of what it writes", 0, default=1337)
    args = parser.parse()
    corpus = load_text(args.dataset) if args.dataset else load_default("tiny-shakespeare")
    tokenizer = CharTokenizer.train(corpus.train + corpus.valid)
    train, valid = (np.array(tokenizer.encode(text)) for text in (corpus.train, corpus.valid))
    if len(valid) < 2:
        raise UserError(f"{corpus.name} has under 2 tokens to predict: give it more text")
    print(f"{corpus.name}: {len(train):,} tokens counted, {len(valid):,} predicted")
    print("order      n-grams  nats/token   perplexity   bits/char")
    for order in range(1, args.order + 1):
        model = NGram(train, order, tokenizer.vocab_size)
        nats = -model.log_probs(valid)[1:].mean()
        grams = sum(len(keys) for keys in model.keys)
        bits = nats / math.log(2) * len(valid) / len(corpus.valid)
        print(f"{order:5}{grams:13,}{nats:12.4f}{math.exp(nats):13.2f}{bits:12.4f}")
    if corpus.floor is not None:
        print(f"entropy floor: {corpus.floor:.4f} bits/char: no model can do better")
    print("\n" + tokenizer.decode(model.sample(args.length, args.seed)))


if __name__ == "__main__":
    command(main)
