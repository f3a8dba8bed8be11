"""The n-gram model against sums, hand and an independent dictionary implementation."""

from __future__ import annotations

import itertools
import math
import random
import re
import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import ROOT, assert_one_line_error, modules, run_script

ngram = modules("model-01-char-rnn").ngram
NGram = ngram.NGram
TEXTS = {
    "random": [random.Random(1).randrange(5) for _ in range(400)],
    "period": [0, 1, 2, 3] * 30,
    "constant": [2] * 50,
    "begins with what never comes again": [4, 0, 1, 0, 1, 1, 0, 0, 1, 2, 0, 1],
    "one": [3],
    "two": [3, 1],
    "same two": [3, 3],
    "three": [0, 1, 0],
    "each once": [0, 1, 2, 3, 4],
    "none": [],
}
V = 5


class SlowKneserNey:
    """Interpolated modified Kneser-Ney (Chen & Goodman 1999, section 4.1.6) with dictionaries.

    Written from the paper, recursively, one probability at a time. Where tiny texts leave the
    paper's discounts undefined or out of bounds it follows the bounds stated in ngram.py:
    D(c) from 0.1 to c - 0.1, and 0.5, 1.0, 1.5 where the counts needed are 0.
    """

    def __init__(self, tokens: list[int], order: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        order = min(order, len(tokens))
        seen = {
            k: Counter(tuple(tokens[i : i + k]) for i in range(len(tokens) - k + 1))
            for k in range(1, order + 1)
        }
        self.counts = {}
        for k in range(1, order + 1):
            if k == order:
                self.counts[k] = dict(seen[k])
            else:  # N1+(. gram): how many different tokens stood before it
                before = defaultdict(set)
                for gram in seen[k + 1]:
                    before[gram[1:]].add(gram[0])
                self.counts[k] = {gram: len(before[gram]) for gram in seen[k]}
        self.discounts = {k: self.estimate(self.counts[k].values()) for k in self.counts}

    @staticmethod
    def estimate(counts) -> dict[int, float]:
        n = Counter(counts)
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        raw = {
            1: 1 - 2 * y * n[2] / n[1] if n[1] else 0.5,
            2: 2 - 3 * y * n[3] / n[2] if n[2] else 1.0,
            3: 3 - 4 * y * n[4] / n[3] if n[3] else 1.5,
        }
        return {0: 0.0} | {c: min(max(d, 0.1), c - 0.1) for c, d in raw.items()}

    def p(self, token: int, context: tuple[int, ...]) -> float:
        """p(token | context), at most order - 1 tokens of context."""
        k = len(context) + 1
        shorter = self.p(token, context[1:]) if context else 1 / self.vocab_size
        if k not in self.counts:
            return shorter
        follow = {g: c for g, c in self.counts[k].items() if g[:-1] == context}
        total = sum(follow.values())
        if not total:  # a context never seen, or only at the very beginning
            return shorter
        discount = self.discounts[k]
        taken = sum(discount[min(c, 3)] for c in follow.values())
        count = follow.get((*context, token), 0)
        return (count - discount[min(count, 3)]) / total + taken / total * shorter


def contexts_for(order: int) -> list[list[int]]:
    """Seen and unseen, short, as long as the order takes, and longer."""
    dice = random.Random(order)
    every = [list(c) for k in range(min(order, 3)) for c in itertools.product(range(V), repeat=k)]
    return every + [[dice.randrange(V) for _ in range(dice.randrange(9))] for _ in range(40)]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("order", [1, 2, 3, 5, 9])
def test_probabilities_sum_to_1_after_every_context(name, order):
    model = NGram(TEXTS[name], order, V)
    for context in contexts_for(order):
        p = model.next_probs(context[-order + 1 :] if order > 1 else [])
        assert p.shape == (V,)
        assert p.sum() == pytest.approx(1, abs=1e-12), context
        assert (p > 0).all(), context


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_equal_the_dictionaries(name, order):
    fast, slow = NGram(TEXTS[name], order, V), SlowKneserNey(TEXTS[name], order, V)
    for context in contexts_for(order):
        cut = context[len(context) - min(order - 1, len(context)) :]
        expected = [slow.p(token, tuple(cut)) for token in range(V)]
        np.testing.assert_allclose(fast.next_probs(cut), expected, rtol=1e-10, err_msg=str(cut))


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("order", [1, 2, 3, 5, 9])
def test_log_probs_are_the_chain_of_next_probs(name, order):
    model = NGram(TEXTS[name], order, V)
    text = [*TEXTS[name][:40], *(random.Random(2).randrange(V) for _ in range(40))]
    chain = [
        math.log(model.next_probs(text[max(0, i - order + 1) : i])[token])
        for i, token in enumerate(text)
    ]
    np.testing.assert_allclose(model.log_probs(text), chain, rtol=1e-10)


def test_a_hand_computed_example():
    """Text a b a b a c, order 2, V = 3.

    Bigrams: ab 2, ba 2, ac 1. n1 = 1, n2 = 2, n3 = 0. Y = 1 / (1 + 4) = 1/5.
    D1 = 1 - 2 * 1/5 * 2/1 = 1/5; D2 = 2 - 3 * 1/5 * 0/2 = 2, bounded to 1.9.
    Unigrams by what stands before: a 1 (b), b 1 (a), c 1 (a). n1 = 3, n2 = 0: Y = 1, D1 = 1,
    bounded to 0.9. p1(w) = (1 - 0.9) / 3 + 2.7 / 3 * 1/3 = 1/30 + 3/10 = 1/3 each.
    p(b | a) = (2 - 1.9) / 3 + (1.9 + 0.2) / 3 * 1/3 = 0.1/3 + 0.7/3 = 0.8/3.
    """
    p = NGram([0, 1, 0, 1, 0, 2], 2, 3).next_probs([0])
    np.testing.assert_allclose(p, [0.7 / 3, 0.8 / 3, (0.8 + 0.7) / 3], rtol=1e-12)


def test_order_1_is_the_smoothed_count():
    text = TEXTS["random"]
    model, count = NGram(text, 1, V), Counter(text)
    for context in ([], [1], [1, 2]):
        p = model.next_probs(context[:0])
        order = sorted(range(V), key=lambda token: count[token])
        assert sorted(range(V), key=lambda token: p[token]) == order
        assert all(abs(p[token] - count[token] / len(text)) < 0.02 for token in range(V))


def test_longer_contexts_beat_shorter_and_all_beat_guessing():
    from shared.data.tales import write_corpus

    text = write_corpus(60_000, seed=3)[0]
    alphabet = sorted(set(text))
    ids = [alphabet.index(character) for character in text]
    train, valid = ids[:50_000], ids[50_000:]
    losses = [ngram.ngram_loss(train, valid, order, len(alphabet)) for order in (1, 2, 3, 5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < math.log(len(alphabet)) - 0.5


def test_a_token_never_seen_still_has_a_probability():
    model = NGram([0, 1, 0, 1, 0, 1], 3, 4)
    for context in ([], [0], [0, 1], [3], [3, 3], [0, 3]):
        p = model.next_probs(context)
        assert p[3] > 0 and p[2] == pytest.approx(p[3])
    assert np.isfinite(model.log_probs([3, 2, 3, 0, 1, 2])).all()


def test_no_token_has_no_log_probs():
    assert len(NGram([0, 1], 2, V).log_probs([])) == 0


def test_a_large_vocabulary_and_a_long_context_do_not_overflow():
    dice = np.random.default_rng(0)
    text = dice.integers(0, 50_000, 2000)
    model = NGram(text, 12, 50_000)
    assert np.isfinite(model.log_probs(text)).all()
    assert model.next_probs(list(text[:11])).argmax() == text[11]


def test_unique_counts_by_table_and_by_sorting_agree():
    dice = np.random.default_rng(0)
    for high in (50, 10**9):
        keys = dice.integers(0, high, 500)
        unique, number, count = ngram.unique_counts(keys)
        assert (unique[number] == keys).all()
        assert (np.diff(unique) > 0).all()
        assert dict(zip(unique.tolist(), count.tolist(), strict=True)) == Counter(keys.tolist())


def test_a_sample_depends_on_its_seed_alone():
    model = NGram(TEXTS["random"], 4, V)
    assert model.sample(50, 1) == model.sample(50, 1)
    assert model.sample(50, 1) != model.sample(50, 2)
    assert model.sample(50, 1)[:20] == model.sample(20, 1)
    assert model.sample(0, 1) == []
    assert set(model.sample(50, 1)) <= set(range(V))


# ------------------------------------------------------------------------------ the command line


def test_the_command_line_shows_a_loss_per_order_and_a_sample(text_file):
    script = ROOT / "model-01-char-rnn" / "ngram.py"
    result = run_script(script, "--order 4 --length 50 --dataset", text_file)
    assert result.status == 0 and result.err == "", result
    rows = re.findall(r"^ +(\d) +([\d,]+) +(\S+) +(\S+) +(\S+)$", result.out, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [1, 2, 3, 4]
    for _, _, nats, perplexity, bits in rows:
        assert float(perplexity) == pytest.approx(math.exp(float(nats)), rel=1e-2)
        assert float(bits) == pytest.approx(float(nats) / math.log(2), rel=1e-2)
    assert len(result.out.rpartition(rows[-1][4])[2].strip("\n")) >= 45


def test_the_command_line_reports_mistakes_in_one_line(run_main, tmp_path, text_file):
    assert_one_line_error(run_main(ngram, "--order 0 --length -1"), "--order 0", "--length -1")
    assert_one_line_error(run_main(ngram, "--dataset", tmp_path / "none.txt"), "none.txt")


@pytest.mark.parametrize("text", ["ab", "abc", "aaaa", "abcabcabcabcabcabcabc"])
def test_the_command_line_takes_tiny_texts_or_says_why_not(run_main, tmp_path, text):
    (tmp_path / "tiny.txt").write_text(text, encoding="utf-8")
    result = run_main(ngram, "--length 5 --dataset", tmp_path / "tiny.txt")
    assert "nan" not in result.out
    if result.status:
        assert_one_line_error(result, "tiny.txt")
