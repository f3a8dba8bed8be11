"""Three classifiers of text that came before neural networks, and must be beaten by one.

    majority              what most messages are, whatever this one says
    naive Bayes           P(label) times P(word | label) for each word, as if words were independent
    logistic regression   a weight for each word, times how much the word says (TF-IDF)

    "Free entry, free!"  -->  words  free 2, entry 1  -->  counts, one row of numbers for a text

A row is nearly all zeros, so only what is not zero is kept: Sparse holds three long lists, and
two lines multiply it with a vector. Each is tested against scikit-learn's.

Shapes: N texts, W words of the vocabulary, E entries that are not zero

    from baselines import NaiveBayes
    NaiveBayes(texts, labels).predict(["WINNER!! Claim your prize"])     # -> [1]
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

Labels = np.ndarray  # (N,) of 0 and 1


class Sparse(NamedTuple):
    """A matrix (N, W) of which only the entries that are not zero are kept."""

    rows: np.ndarray  # (E,)
    columns: np.ndarray  # (E,)
    values: np.ndarray  # (E,)
    shape: tuple[int, int]

    def times(self, vector: np.ndarray) -> np.ndarray:
        """The matrix times a vector (W,): (N,)"""
        return np.bincount(self.rows, self.values * vector[self.columns], self.shape[0])

    def transposed_times(self, vector: np.ndarray) -> np.ndarray:
        """The matrix, turned, times a vector (N,): (W,)"""
        return np.bincount(self.columns, self.values * vector[self.rows], self.shape[1])


def words_of(text: str) -> list[str]:
    """Lower case, two letters or digits at least.

    >>> words_of("Free entry, I say: FREE!")
    ['free', 'entry', 'say', 'free']
    """
    return re.findall(r"\b\w\w+\b", text.lower())


def vocabulary_of(texts: list[str]) -> dict[str, int]:
    """A number for each word of the texts."""
    return {word: i for i, word in enumerate(sorted({w for text in texts for w in words_of(text)}))}


def count_words(texts: list[str], vocabulary: dict[str, int]) -> Sparse:
    """How often each word of the vocabulary stands in each text: (N, W)"""
    entries = [
        (row, vocabulary[word], count)
        for row, text in enumerate(texts)
        for word, count in Counter(words_of(text)).items()
        if word in vocabulary
    ]
    rows, columns, counts = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    return Sparse(rows, columns, counts.astype(float), (len(texts), len(vocabulary)))


class Majority:
    """Always the commonest label."""

    name = "majority class"

    def __init__(self, texts: list[str], labels: Labels) -> None:
        self.label = int(labels.mean() > 0.5)

    def predict(self, texts: list[str]) -> Labels:
        return np.full(len(texts), self.label)


class NaiveBayes:
    """Multinomial naive Bayes; each word has been seen once more than it was (Laplace)."""

    name = "naive Bayes"

    def __init__(self, texts: list[str], labels: Labels) -> None:
        self.vocabulary = vocabulary_of(texts)
        counts = count_words(texts, self.vocabulary)
        each = [counts.transposed_times(labels == label) + 1 for label in (0, 1)]  # (W,) twice
        logs = [np.log(count / count.sum()) for count in each]
        self.weights = logs[1] - logs[0]  # nats for spam that a word is worth
        self.bias = np.log(labels.mean() / (1 - labels.mean()))

    def predict(self, texts: list[str]) -> Labels:
        scores = count_words(texts, self.vocabulary).times(self.weights) + self.bias
        return (scores > 0).astype(int)


class LogisticRegression:
    """On TF-IDF rows of length 1, with a penalty of |weights|^2 / 2 for `strength` times the loss.

    TF-IDF: a count, times ln((1 + N) / (1 + texts with the word)) + 1.
    """

    name = "TF-IDF, logistic regression"

    def __init__(self, texts: list[str], labels: Labels, strength: float = 1.0) -> None:
        self.vocabulary = vocabulary_of(texts)
        counts = count_words(texts, self.vocabulary)
        present = np.bincount(counts.columns, minlength=len(self.vocabulary))  # texts with a word
        self.rarity = np.log((1 + len(texts)) / (1 + present)) + 1
        self.weights, self.bias = fit_logistic(self.rows_of(texts), labels, strength)

    def rows_of(self, texts: list[str]) -> Sparse:
        """TF-IDF: (N, W)"""
        counts = count_words(texts, self.vocabulary)
        values = counts.values * self.rarity[counts.columns]
        lengths = np.sqrt(np.bincount(counts.rows, values**2, len(texts)))
        return counts._replace(values=values / lengths[counts.rows])

    def predict(self, texts: list[str]) -> Labels:
        return (self.rows_of(texts).times(self.weights) + self.bias > 0).astype(int)


def fit_logistic(x: Sparse, labels: Labels, strength: float) -> tuple[np.ndarray, float]:
    """Weights (W,) and bias of the least loss, by Newton's method.

    Each step solves (I + X^T D X) step = -gradient by conjugate gradients, which only multiply,
    and is halved until the loss falls. The loss is convex: there is one solution to find.
    """

    def loss(weights: np.ndarray, bias: float) -> float:
        scores = x.times(weights) + bias
        return weights @ weights / 2 + strength * (np.logaddexp(0, scores) - labels * scores).sum()

    weights, bias = np.zeros(x.shape[1]), 0.0
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x.times(weights) + bias)))
        wrong, curved = strength * (p - labels), strength * p * (1 - p)
        gradient = np.append(weights + x.transposed_times(wrong), wrong.sum())
        if np.abs(gradient).max() < 1e-6:
            break

        def curvature(v: np.ndarray, curved: np.ndarray = curved) -> np.ndarray:
            bent = curved * (x.times(v[:-1]) + v[-1])
            return np.append(v[:-1] + x.transposed_times(bent), bent.sum())

        step, size, before = conjugate_gradients(curvature, -gradient), 1.0, loss(weights, bias)
        while size > 1e-6 and loss(weights + size * step[:-1], bias + size * step[-1]) > before:
            size /= 2
        weights, bias = weights + size * step[:-1], bias + size * step[-1]
    return weights, float(bias)


def conjugate_gradients(multiply, target: np.ndarray, rounds: int = 500) -> np.ndarray:
    """The x with `multiply(x)` = target, for a symmetric matrix (Hestenes & Stiefel 1952)."""
    x, rest = np.zeros_like(target), target.copy()
    direction, length = rest.copy(), rest @ rest
    for _ in range(rounds):
        image = multiply(direction)
        size = length / (direction @ image)
        x, rest = x + size * direction, rest - size * image
        before, length = length, rest @ rest
        if length < 1e-14 * (target @ target):
            break
        direction = rest + length / before * direction
    return x


# ---------------------------------------------------------------------------------- the figures


class Score(NamedTuple):
    """How many of each kind, "positive" meaning spam, and what follows from it."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return (self.true_positive + self.true_negative) / sum(self)

    @property
    def precision(self) -> float:
        """Of what was called spam, the share that is."""
        return self.true_positive / max(1, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Of the spam, the share that was called so."""
        return self.true_positive / max(1, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """The harmonic mean of both: high only if both are."""
        wrong = self.false_positive + self.false_negative
        return 2 * self.true_positive / max(1, 2 * self.true_positive + wrong)


def score(predicted: Labels, labels: Labels) -> Score:
    """Compare (N,) with (N,)."""
    pairs = Counter(zip(predicted.tolist(), labels.tolist(), strict=True))
    return Score(pairs[1, 1], pairs[1, 0], pairs[0, 1], pairs[0, 0])
