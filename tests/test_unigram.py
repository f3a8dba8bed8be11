"""Unigram: the best segmentation, the library's ids, EM against counting by hand, damage."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import clock

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils.tokenizers.pretokenize import GPT2_PATTERN, count_pieces
from shared.utils.tokenizers.unigram import (
    BYTES,
    Lattice,
    UnigramTokenizer,
    seed_pieces,
    split,
    train_pieces,
    training_words,
)

DATA = Path(os.environ.get("LMFS_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared/data")
PROBABILITIES = {"h": 0.05, "u": 0.05, "g": 0.05, "s": 0.10, "ug": 0.20, "hug": 0.10}
HUG = [(piece, math.log(p)) for piece, p in PROBABILITIES.items()]


def data_files() -> list[Path]:
    return sorted(p for p in DATA.glob("*/*") if p.suffix != ".bin") if DATA.is_dir() else []


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def split_90(name: str) -> tuple[str, str]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here: set LMFS_DATA_DIR")
    text = read(path)
    return text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]


@pytest.fixture(scope="module")
def tales() -> str:
    return write_corpus(120_000, 1, "train")[0]


@pytest.fixture(scope="module")
def tokenizer(tales) -> UnigramTokenizer:
    return UnigramTokenizer.train(tales, 1000, processes=1)


def random_text(dice: random.Random, length: int) -> str:
    """Characters of all planes, runs of one character, English words and white space."""
    ranges = [
        (32, 126),
        (97, 122),
        (0, 0x24F),
        (0x300, 0x36F),
        (0x3000, 0x9FFF),
        (0xE000, 0x10FFFF),
    ]
    words = ["the", " fox", " hug", "s", "\n", "  ", "\t", "'s", " 42", "<0x41>", "<unk>", "▁the"]
    parts = []
    while len(parts) < length:
        kind = dice.random()
        if kind < 0.5:
            parts.append(dice.choice(words))
        elif kind < 0.9:
            parts.append(chr(dice.randint(*dice.choice(ranges))))
        else:
            parts.append(chr(dice.randint(32, 0x3FF)) * dice.randint(2, 20))
    return "".join(parts)


def ways(word: str, pieces) -> list[list[str]]:
    """Every way to write a word, found by trying them all."""
    cuts = [range(1, len(word))] * (len(word) - 1)
    found = []
    for count in range(len(cuts) + 1):
        for chosen in itertools.combinations(range(1, len(word)), count):
            bounds = [0, *chosen, len(word)]
            way = [word[a:b] for a, b in itertools.pairwise(bounds)]
            if all(piece in pieces for piece in way):
                found.append(way)
    return found


# ---------------------------------------------------------------------------------- segmentation


def test_the_most_probable_of_all_segmentations_wins():
    dice = random.Random(0)
    for _ in range(30):
        texts = {"".join(dice.choices("abc", k=dice.randint(2, 4))) for _ in range(8)}
        pieces = {piece: math.log(dice.random()) for piece in sorted({*"abc", *texts})}
        tokenizer = UnigramTokenizer(pieces.items())
        for _ in range(10):
            word = "".join(dice.choices("abc", k=dice.randint(1, 9)))
            best = max(sum(map(pieces.get, way)) for way in ways(word, pieces))
            chosen = [tokenizer.tokens[index] for index in tokenizer.encode(word)]
            assert "".join(chosen) == word
            assert sum(map(pieces.get, chosen)) == pytest.approx(best)


def test_of_equally_probable_segmentations_the_longest_last_token_wins():
    tokenizer = UnigramTokenizer([("a", -1.0), ("aa", -1.0)])
    assert tokenizer.encode("aaa") == [0, 1]


def test_tokens_never_cross_words(tokenizer):
    words = ["The", " fox", "'s", "\n", " 42", " ", " ,"]
    text = "".join(words)
    assert split(text) == words
    assert tokenizer.encode(text) == [i for word in words for i in tokenizer.encode(word)]


# ---------------------------------------------------------------------------- the library's ids


def library(pieces, unk_id=0, byte_fallback=False):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.Unigram(pieces, unk_id, byte_fallback)
    reference = tokenizers.Tokenizer(model)
    pattern = tokenizers.Regex(GPT2_PATTERN)
    reference.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "isolated")
    return reference


def library_pieces(text: str, size: int) -> list[tuple[str, float]]:
    """What the library's trainer learns: `<unk>` and `size` tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    reference = library([("<unk>", 0.0)])
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=size + 1, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    reference.train_from_iterator([text], trainer)
    model = json.loads(reference.to_str())["model"]
    return [tuple(pair) for pair in model["vocab"]]


def assert_same_ids(ours: UnigramTokenizer, reference, count: int) -> None:
    dice = random.Random(7)
    texts = [random_text(dice, dice.randint(1, 40)) for _ in range(count)]
    for text in [*texts, write_corpus(50_000, 2, "valid")[0]]:
        assert ours.encode(text) == reference.encode(text).ids


@pytest.mark.parametrize("fallback", [False, True], ids=["unk", "bytes"])
def test_ids_are_the_librarys_for_a_vocabulary_of_ours(tokenizer, fallback):
    pieces = list(zip(tokenizer.tokens, tokenizer.log_probs, strict=True))
    pieces = pieces if fallback else pieces[256:]
    pieces.append(("<unk>", 0.0))  # the library needs it for unknown characters
    unk_id = len(pieces) - 1
    ours = UnigramTokenizer(pieces, unk_id, fallback)
    assert_same_ids(ours, library(pieces, unk_id, fallback), 3000)
    if fallback:
        text = random_text(random.Random(0), 3000)
        assert tokenizer.encode(text) == ours.encode(text)


@pytest.mark.parametrize("fallback", [False, True], ids=["unk", "bytes"])
def test_ids_are_the_librarys_for_a_vocabulary_of_the_librarys(tales, fallback):
    pieces = library_pieces(tales, 1500)
    if fallback:
        pieces += [(name, -20.0) for name in BYTES]  # in the reckoning of unknown characters
    ours = UnigramTokenizer(pieces, 0, fallback)
    assert_same_ids(ours, library(pieces, 0, fallback), 3000)


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["ours", "the library's"])
def test_ids_are_the_librarys_on_every_data_file(whose):
    train, _ = split_90("tiny-shakespeare/input.txt")
    if whose == "ours":
        pieces = UnigramTokenizer.train(train, 8000).state_dict()
        pieces = list(zip(pieces["pieces"], pieces["log_probs"], strict=True))
        pieces.append(("<unk>", 0.0))
        unk_id, fallback = len(pieces) - 1, True
    else:
        pieces, unk_id, fallback = library_pieces(train, 8000), 0, False
    ours, reference = (
        UnigramTokenizer(pieces, unk_id, fallback),
        library(pieces, unk_id, fallback),
    )
    for path in data_files():
        text = read(path)[:500_000]
        assert ours.encode(text) == reference.encode(text).ids


def test_ids_are_the_librarys_where_ties_abound():
    pieces = [("?", 0.0)]
    pieces += [("".join(p), -1.0) for n in (1, 2, 3) for p in itertools.product("abé", repeat=n)]
    dice = random.Random(3)
    for unknown in ("", "xß"):
        texts = ["".join(dice.choices("abé" + unknown, k=dice.randint(1, 30))) for _ in range(2000)]
        ours, reference = UnigramTokenizer(pieces, 0), library(pieces)
        assert all(ours.encode(text) == reference.encode(text).ids for text in texts)


def test_ids_are_the_librarys_where_a_token_begins_with_unknown_characters():
    pieces = [("<unk>", 0.0), ("a", -2.0), ("xyz", -3.0), ("ay", -40.0), ("yyy", -90.0)]
    dice = random.Random(4)
    ours, reference = UnigramTokenizer(pieces, 0), library(pieces)
    for _ in range(2000):
        text = "".join(dice.choices("axyz", k=dice.randint(1, 15)))
        assert ours.encode(text) == reference.encode(text).ids


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-shakespeare/input.txt", "wikitext-2/valid.txt"])
@pytest.mark.parametrize("size", [2000, 8000])
def test_training_compresses_as_well_as_the_librarys(name, size):
    train, held_out = split_90(name)
    pieces = library_pieces(train, size)
    ours = UnigramTokenizer.train(train, size + len(BYTES))
    assert len(pieces) - 1 == ours.vocab_size - len(BYTES) == size
    ids = ours.encode(held_out)
    reference = library(pieces).encode(held_out).ids
    assert ours.decode(ids) == held_out
    assert len(held_out) / len(ids) >= 0.99 * len(held_out) / len(reference)


def test_training_on_a_small_text_compresses_as_well_as_the_librarys(tales):
    held_out = write_corpus(30_000, 2, "valid")[0]
    pieces = library_pieces(tales, 800)
    ours = UnigramTokenizer.train(tales, 800 + len(BYTES), processes=1)
    assert len(ours.encode(held_out)) <= 1.01 * len(library(pieces).encode(held_out).ids)


# -------------------------------------------------------------------------------------- training


def test_expected_counts_and_totals_are_those_of_all_segmentations():
    words = {"hugs": 3, "ugug": 2, "s": 5, "hughug": 1}
    probabilities = PROBABILITIES
    expected, totals = Counter(), []
    for word, uses in words.items():
        found = ways(word, probabilities)
        weights = [math.prod(map(probabilities.get, way)) for way in found]
        totals.append(math.log(sum(weights)))
        for way, weight in zip(found, weights, strict=True):
            for piece in way:
                expected[piece] += uses * weight / sum(weights)
    lattice = Lattice(words, list(probabilities))
    log_probs = np.log(list(probabilities.values()))
    counts = lattice.expected_counts(log_probs, np.array(list(words.values()), dtype=float))
    assert counts == pytest.approx([expected[piece] for piece in probabilities])
    assert lattice.log_totals(log_probs) == pytest.approx(totals)


def test_a_lattice_without_some_edges_is_that_of_a_smaller_vocabulary():
    words, pieces = ["hughugs", "sug"], list(PROBABILITIES)
    log_probs = np.log(list(PROBABILITIES.values()))
    lattice = Lattice(words, pieces)
    lattice.keep(lattice.piece != pieces.index("hug"))
    smaller = Lattice(words, [piece if piece != "hug" else "-" for piece in pieces])
    uses = np.array([2.0, 1.0])
    assert lattice.log_totals(log_probs) == pytest.approx(smaller.log_totals(log_probs))
    assert lattice.expected_counts(log_probs, uses)[pieces.index("hug")] == 0


def test_every_round_of_em_makes_the_text_more_probable(tales):
    counts = count_pieces(tales[:20_000])
    words = dict(sorted(counts.items()))
    uses = np.array(list(words.values()), dtype=float)
    pieces, scores = seed_pieces(words, sorted(set().union(*words)), 2000)
    lattice, log_probs = Lattice(words, pieces), np.log(scores / scores.sum())
    before = -math.inf
    for _ in range(6):
        likelihood = lattice.log_totals(log_probs) @ uses
        assert likelihood > before
        before = likelihood
        expected = lattice.expected_counts(log_probs, uses)
        with np.errstate(divide="ignore"):
            log_probs = np.log(expected / expected.sum())


def test_seeds_are_characters_and_the_substrings_that_cover_most():
    words = {"abab": 2, "ab": 1, "xyzzy": 1, "zz": 1}
    alphabet = sorted(set("".join(words)))
    pieces, scores = seed_pieces(words, alphabet, 100)
    everywhere = Counter(
        word[a:b]
        for word, count in words.items()
        for _ in range(count)
        for a, b in itertools.combinations(range(len(word) + 1), 2)
    )
    assert dict(zip(pieces, scores, strict=True)) == {
        piece: count * len(piece)
        for piece, count in everywhere.items()
        if count > 1 or len(piece) == 1
    }
    assert pieces[: len(alphabet)] == alphabet
    assert list(scores[len(alphabet) :]) == sorted(scores[len(alphabet) :], reverse=True)
    assert seed_pieces(words, alphabet, 7)[0] == pieces[:7]


def test_training_gives_a_vocabulary_of_the_size_asked_for(tales, tokenizer):
    assert tokenizer.vocab_size == 1000
    assert tokenizer.tokens[:256] == BYTES
    assert set(tales) <= set(tokenizer.tokens)  # every character
    assert tokenizer.log_probs[256:] == sorted(tokenizer.log_probs[256:], reverse=True)
    assert sum(map(math.exp, tokenizer.log_probs[256:])) == pytest.approx(1)
    assert " the" in tokenizer.tokens
    assert all(split(piece) == [piece] for piece in tokenizer.tokens[256:])


@pytest.mark.parametrize("size", [0, 1, 100])
def test_vocabularies_from_the_smallest_to_all_there_is(size):
    text = "low lower lowest"
    least = len(BYTES) + len(set(text))
    tokenizer = UnigramTokenizer.train(text, least + size, processes=1)
    assert least <= tokenizer.vocab_size <= least + size
    assert (tokenizer.vocab_size == least + size) == (size < 100)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_result_does_not_depend_on_order_files_or_processes(tmp_path, tales):
    whole = UnigramTokenizer.train(tales, 600, processes=1).state_dict()
    cut = tales.index("\n", len(tales) // 2) + 1
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, part in zip(paths, (tales[:cut], tales[cut:]), strict=True):
        path.write_bytes(part.encode())
    assert UnigramTokenizer.train(paths, 600, processes=2).state_dict() == whole
    counts = count_pieces(tales)
    backwards = Counter(dict(reversed(counts.items())))
    alphabet = sorted(set(tales))
    assert train_pieces(backwards, alphabet, 344) == train_pieces(counts, alphabet, 344)


def test_words_are_counted_as_they_are_split(tales):
    text = tales[:20_000] + random_text(random.Random(5), 5000)
    assert count_pieces(text) == Counter(split(text))


def test_long_words_are_trained_on_in_parts():
    counts = Counter({"o" * 130: 3, "no": 4, "\U0001f98a": 5})
    assert list(training_words(counts).items()) == [
        ("\U0001f98a", 5),
        ("no", 4),
        ("o" * 64, 6),
        ("oo", 3),
    ]


def test_a_very_long_word_can_be_trained_on():
    text = "".join(random.Random(0).choices("abcdef", k=100_000))
    tokenizer = UnigramTokenizer.train(text, 300, processes=1)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(text)) == text


# ------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("seed", range(10))
def test_every_text_comes_back(tokenizer, seed):
    text = random_text(random.Random(seed), 1000)
    ids = tokenizer.encode(text)
    assert all(type(index) is int for index in ids)
    assert tokenizer.decode(ids) == text
    assert "".join(tokenizer.decode_stream(iter(ids))) == text


@pytest.mark.slow
def test_every_character_comes_back(tokenizer):
    everything = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    text = " ".join("".join(everything[i : i + 50]) for i in range(0, len(everything), 50))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_is_encoded_as_nothing(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_the_name_of_a_byte_is_not_the_byte(tokenizer):
    text = "<0x41> A <0xC3>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([0x41, 0xC3, 0xA4]) == "Aä"
    assert 0x41 not in ids
    assert tokenizer.decode(tokenizer.word_ids["<0x41>"]) == "<0x41>"  # even as one word


def test_streaming_never_shows_half_a_character(tokenizer):
    text = "A fox 🦊 naïve 日本 \U0010ffff"
    pieces = list(tokenizer.decode_stream(tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer):
    dice = random.Random(0)
    assert tokenizer.decode([0xF0, 0x9F, tokenizer.encode("e")[0]]) == "\ufffde"
    assert tokenizer.decode([0xC3]) == "\ufffd"
    for _ in range(300):
        ids = [dice.randrange(300) for _ in range(20)]
        assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids)


def test_unknown_characters_without_bytes():
    pieces = [*HUG, ("<unk>", 0.0)]
    assert UnigramTokenizer(pieces, unk_id=6).encode("xxhugyy zz") == [6, 5, 6, 6]
    with pytest.raises(UserError, match="'x'"):
        UnigramTokenizer(HUG).encode("hugx")


def test_a_long_word_takes_linear_time_and_no_place_in_the_cache(tokenizer):
    text = "".join(random.Random(0).choices("abcdefghijklmnop", k=1_000_000))
    before, seconds = len(tokenizer.word_ids), []
    for length in (100_000, 1_000_000):
        start = clock()
        ids = tokenizer.encode(text[:length])
        seconds.append(clock() - start)
        assert tokenizer.decode(ids) == text[:length]
    assert seconds[1] < 40 * seconds[0]  # 10 times if it is linear, 100 if quadratic
    assert len(tokenizer.word_ids) == before


# -------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_segmentations_are_drawn_in_proportion(alpha):
    tokenizer = UnigramTokenizer(HUG)
    drawn = Counter(tuple(tokenizer.sample("hugs", alpha, seed)) for seed in range(4000))
    found = ways("hugs", PROBABILITIES)
    weights = [math.prod(map(PROBABILITIES.get, way)) ** alpha for way in found]
    assert len(found) == 3
    for way, weight in zip(found, weights, strict=True):
        share = weight / sum(weights)
        ids = tuple(tokenizer.tokens.index(piece) for piece in way)
        assert drawn[ids] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share / 4000) + 1e-3)


def test_samples_differ_come_back_and_depend_on_the_seed_alone(tokenizer):
    text = random_text(random.Random(1), 200) + " The fox remembered everything."
    samples = [tokenizer.sample(text, 0.2, seed) for seed in range(5)]
    assert all(tokenizer.decode(ids) == text for ids in samples)
    assert len({tuple(ids) for ids in samples}) == 5
    assert tokenizer.sample(text, 0.2, 3) == samples[3]
    assert tokenizer.sample("The fox lost a key.", 1000.0, 0) == tokenizer.encode(
        "The fox lost a key."
    )


@pytest.mark.parametrize("alpha", [-1, 1e9, math.inf, math.nan])
def test_an_impossible_alpha_is_refused(tokenizer, alpha):
    with pytest.raises(UserError, match="alpha"):
        tokenizer.sample("hugs", alpha, 0)


# ----------------------------------------------------------------------------- mistakes, damage


def one_line(caught) -> bool:
    return len(str(caught.value).splitlines()) == 1 and ": " in str(caught.value)


@pytest.mark.parametrize(
    "pieces, unk_id, byte_fallback",
    [
        ([], None, False),
        ([*HUG, ("hug", -1.0)], None, False),
        ([("", -1.0)], None, False),
        ([(3, -1.0)], None, False),
        ([("\ud800", -1.0)], None, False),
        *[([("a", score)], None, False) for score in (math.nan, math.inf, -math.inf, 0.5, "x")],
        ([("a", None)], None, False),
        *[(HUG, unk_id, False) for unk_id in (-1, 6, "0", True)],
        (HUG, None, True),
        ([(name, 0.0) for name in BYTES[1:]], None, True),
    ],
)
def test_what_is_no_vocabulary_is_refused(pieces, unk_id, byte_fallback):
    with pytest.raises(UserError) as caught:
        UnigramTokenizer(pieces, unk_id, byte_fallback)
    assert one_line(caught)


@pytest.mark.parametrize("text, size", [("", 300), ("abc", 258), ("abc", 0), ("a\udce9", 1000)])
def test_what_cannot_be_trained_is_refused(text, size):
    with pytest.raises(UserError) as caught:
        UnigramTokenizer.train(text, size, processes=1)
    assert one_line(caught)
    if text == "abc":
        assert "259" in str(caught.value)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "fox \udce9"])
def test_lone_surrogates_are_refused(tokenizer, text):
    for encode in (tokenizer.encode, lambda text: tokenizer.sample(text, 1.0, 0)):
        with pytest.raises(UserError, match="surrogate") as caught:
            encode(text)
        assert one_line(caught)
    with pytest.raises(UserError, match="surrogate"):
        UnigramTokenizer([("<unk>", 0.0)], unk_id=0).encode(text)


@pytest.mark.parametrize("ids", [[1000], [-1], [0, 5000, 1]])
def test_ids_out_of_range_are_refused(tokenizer, ids):
    with pytest.raises(UserError, match="0 to 999"):
        tokenizer.decode(ids)
    with pytest.raises(UserError, match="0 to 999"):
        list(tokenizer.decode_stream(ids))


def test_a_state_travels_through_a_checkpoint(tokenizer):
    text = random_text(random.Random(2), 1000)
    for one in (tokenizer, UnigramTokenizer([*HUG, ("?", -3.0)], unk_id=6)):
        buffer = io.BytesIO()
        torch.save(one.state_dict(), buffer)
        buffer.seek(0)
        twin = UnigramTokenizer.from_state_dict(torch.load(buffer, weights_only=True))
        assert twin.state_dict() == one.state_dict()
        assert twin.encode(text) == one.encode(text)
        assert pickle.loads(pickle.dumps(one)).encode(text) == one.encode(text)


@pytest.mark.parametrize(
    "damage",
    [
        *[{key: None} for key in ("pieces", "log_probs", "byte_fallback")],
        *[{"pieces": ["a"]}, {"pieces": "ab"}, {"pieces": ["a", 3]}, {"pieces": ["a", "a"]}],
        *[{"log_probs": [-1.0]}, {"log_probs": [-1.0, math.nan]}, {"log_probs": ["x", "y"]}],
        *[{"unk_id": 2}, {"unk_id": "0"}, {"byte_fallback": True}, {"byte_fallback": 1}],
    ],
)
def test_a_damaged_state_is_refused(damage):
    state = UnigramTokenizer([("a", -1.0), ("b", -2.0)]).state_dict()
    with pytest.raises(UserError) as caught:
        UnigramTokenizer.from_state_dict({**state, **damage})
    assert one_line(caught)


@pytest.mark.parametrize("key", ["pieces", "log_probs", "unk_id", "byte_fallback"])
def test_an_incomplete_state_is_refused(key):
    state = UnigramTokenizer(HUG).state_dict()
    del state[key]
    with pytest.raises(UserError):
        UnigramTokenizer.from_state_dict(state)
