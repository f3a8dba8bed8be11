"""Word tokenizer: text comes back exactly but for `<unk>`; ready-made words stay as they are."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils.tokenizers.corpus import read_chunks
from shared.utils.tokenizers.word import (
    PIECES,
    WordTokenizer,
    count_pieces,
    looks_ready_made,
    ready_pieces,
)

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("LMFS_DATA_DIR", BESIDE))
TALES = write_corpus(60_000, 1, "train")[0]
AWKWARD = [
    *"aB7 \n\t\r'\"’“”()-–_/.,;!?<>|@$%é\u0301漢🦊\u00a0\x00",
    "  ",
    "\n    ",
    "don't",
    "<unk>",
]
AWKWARD += ["<|endoftext|>", "unk", " the", " fox", '"', ' "', '" ', "'tis", "boys' ", "--", "..."]
READY = """\
 = Lobsters = \n \n He said , " Don 't re @-@ open it , U.S. lobsters ! " and 1 @,@ 000 left .
 <unk> 's claws ( 2 @.@ 5 – 3 kg ) cost $ 5 ; the <unk> @-@ red ' turf <unk> ' ... \n"""


def data(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not on this machine")
    return (DATA / name).read_text(encoding="utf-8")


def awkward_text(seed: int, length: int = 300) -> str:
    return "".join(random.Random(seed).choices(AWKWARD, k=length))


def with_unknown(tokenizer: WordTokenizer, text: str) -> str:
    """The documented loss: a piece that is not in the vocabulary reads <unk>."""

    def shown(match: re.Match) -> str:
        piece = match[0]
        return piece if piece in tokenizer.id_of or piece.strip(" ") == "" else "<unk>"

    return PIECES.sub(shown, text)


def without_layout(text: str) -> str:
    """What a text of ready-made words keeps: all but spaces and the @ around a mark."""
    return re.sub(r"@([-.,])@", r"\1", re.sub(r"[^\S\n]", "", text))


# ------------------------------------------------------------------------------------ plain text


@pytest.mark.parametrize("seed", range(200))
def test_any_text_comes_back_exactly_when_its_words_are_known(seed):
    text = awkward_text(seed)
    tokenizer = WordTokenizer.train(text, ready_made=False)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("seed", range(200))
def test_unknown_words_are_all_that_is_lost(seed):
    tokenizer = WordTokenizer.train(awkward_text(seed), max_size=20, ready_made=False)
    text = awkward_text(seed + 1000)
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    assert decoded == with_unknown(tokenizer, text)
    assert tokenizer.encode(decoded) == ids
    assert "".join(tokenizer.decode_stream(iter(ids))) == decoded
    assert tokenizer.encode(text) == ids  # from the caches as well


@pytest.mark.parametrize(
    ("name", "most"),
    [
        *[("tales", 0.0), ("tiny-shakespeare/input.txt", 0.0025)],
        *[("tinystories/sample.txt", 0.007), ("sms-spam/SMSSpamCollection", 0.04)],
    ],
)
def test_a_real_text_comes_back_and_few_tokens_are_spent_on_spaces(name, most):
    text = TALES if name == "tales" else data(name)
    tokenizer = WordTokenizer.train(text)
    assert not tokenizer.ready_made
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.tokens[index] in ("", " ") for index in ids) <= most * len(ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't go", ["don't", "go"]),
        ("well-read", ["well", "-", "read"]),
        ('"Oh, no!" she said.', ['"', "Oh", ",", "no", "!", '"', "she", "said", "."]),
        ("'tis the boys' hat", ["'", "tis", "the", "boys", "", "'", "hat"]),
        ("if:\n    go  on", ["if", ":", "\n", "    ", "go", "  ", "on"]),
        ("a , b", ["a", " ", ",", "b"]),
        ("3.5", ["3", ".", "", "5"]),
        ("one<|endoftext|>\n<unk>", ["one", "", "<|endoftext|>", "\n", "<unk>"]),
        ("tab\tand \u00a0 more", ["tab", "\t", "and", " ", "\u00a0", " ", "more"]),
    ],
)
def test_words_marks_and_exceptions_are_tokens(text, expected):
    tokenizer = WordTokenizer.train(text, ready_made=False)
    assert [tokenizer.tokens[index] for index in tokenizer.encode(text)] == expected


def test_indentation_survives_even_where_it_was_never_seen():
    tokenizer = WordTokenizer.train("if x : y\n")
    text = "if\n       x\n  y "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_frequent_words_have_small_ids_and_ties_go_by_text():
    tokenizer = WordTokenizer.train("b b b a c a c d\n")
    assert tokenizer.tokens == ["<unk>", "\n", " ", "", "b", "a", "c", "d"]
    assert tokenizer.unk_id == 0
    assert WordTokenizer.train("b b b a c a c d", min_count=2).tokens[4:] == ["b", "a", "c"]
    assert WordTokenizer.train("b b b a c a c d", max_size=6).tokens[4:] == ["b", "a"]
    assert WordTokenizer.train("b b b a c a c d", max_size=99).vocab_size == 8


def test_case_is_kept():
    tokenizer = WordTokenizer.train("The the THE")
    assert len(set(tokenizer.encode("The the THE"))) == 3


def test_unknown_words_become_unk():
    tokenizer = WordTokenizer.train("the fox, the hen")
    assert tokenizer.encode("zork") == [0]
    assert tokenizer.decode(tokenizer.encode("the zork, the hen")) == "the <unk>, the hen"
    with pytest.raises(UserError, match="surrogate"):  # what no text file can hold
        tokenizer.encode("the \udce9")


def test_counts_do_not_depend_on_where_the_text_is_cut():
    whole = count_pieces(TALES)
    for size in (1, 7, 1000):
        parts = Counter()
        for chunk in read_chunks(TALES, size=size):
            parts.update(count_pieces(chunk))
        assert parts == whole


def test_files_and_text_give_the_same_vocabulary(tmp_path):
    half = TALES.index("\n", len(TALES) // 2) + 1
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_bytes(TALES[:half].encode())
    paths[1].write_bytes(TALES[half:].encode())
    assert WordTokenizer.train(paths).tokens == WordTokenizer.train(TALES).tokens


@pytest.mark.slow
def test_a_long_line_without_spaces_takes_linear_time():
    text = "<" * 300_000 + "'" * 300_000 + "a'" * 300_000
    tokenizer = WordTokenizer.train(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(WordTokenizer.train("< ' a", ready_made=True).encode(text)) == 900_001


# ------------------------------------------------------------------------------ ready-made words


def test_ready_made_words_are_taken_as_they_are():
    tokenizer = WordTokenizer.train(READY)
    assert tokenizer.ready_made
    assert set(tokenizer.tokens) == {*READY.split(), "\n"}
    assert tokenizer.tokens[:2] == ["<unk>", "\n"]
    ids = tokenizer.encode(READY)
    lines = READY.removesuffix("\n").split("\n")
    assert [tokenizer.tokens[i] for i in ids] == [
        t for line in lines for t in [*line.split(), "\n"]
    ]


def test_ready_made_words_decode_to_print():
    tokenizer = WordTokenizer.train(READY)
    assert tokenizer.decode(tokenizer.encode(READY)) == (
        '= Lobsters =\n\nHe said, "Don\'t re-open it, U.S. lobsters!" and 1,000 left.\n'
        "<unk>'s claws (2.5 – 3 kg) cost $5; the <unk>-red 'turf <unk>'...\n"
    )


def test_print_encodes_as_ready_made_words():
    tokenizer = WordTokenizer.train(READY)
    ids = tokenizer.encode(READY)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    prompt = [tokenizer.tokens[index] for index in tokenizer.encode('(U.S. lobsters), "it')]
    assert prompt == ["(", "U.S.", "lobsters", ")", ",", '"', "it"]


def test_tales_cut_as_wikitext_is_read_like_the_uncut_ones():
    ready = "\n".join(
        " " + " ".join(piece for chunk in line.split() for piece in ready_pieces(chunk)) + " "
        for line in TALES.split("\n")
    )
    tokenizer = WordTokenizer.train(ready)
    assert tokenizer.ready_made
    assert tokenizer.encode(ready) == tokenizer.encode(TALES)
    assert tokenizer.decode(tokenizer.encode(ready)) == TALES


def test_wikitext_has_its_usual_number_of_tokens_and_loses_only_layout():
    text = data("wikitext-2/valid.txt")
    tokenizer = WordTokenizer.train(text)
    assert tokenizer.ready_made
    ids = tokenizer.encode(text)
    assert len(ids) == 217_646  # as in Merity et al. 2016, table 1, with one for each line's end
    assert tokenizer.vocab_size == len({*text.split(), "\n"})
    assert tokenizer.encode("<unk>") == [tokenizer.unk_id]
    decoded = tokenizer.decode(ids)
    assert without_layout(decoded) == without_layout(text)
    assert without_layout(tokenizer.decode(tokenizer.encode(decoded))) == without_layout(text)
    pairs = zip(text.split("\n"), decoded.split("\n"), strict=True)
    differ = sum(tokenizer.encode(before) != tokenizer.encode(after) for before, after in pairs)
    assert differ <= 11  # lines of 3,760 in which a cut moved: "No ." -> "No."


@pytest.mark.parametrize("seed", range(100))
def test_ready_made_words_lose_layout_and_unknown_words_and_nothing_more(seed):
    dice = random.Random(seed)
    text = " ".join(dice.choices([*READY.split(), "\n", "zork", "don't"], k=200))
    everything = WordTokenizer.train(text, ready_made=True)
    decoded = everything.decode(everything.encode(text))
    assert without_layout(decoded) == without_layout(text)
    few = WordTokenizer.train(text, max_size=20, ready_made=True)
    tokens = (
        [token] if token in few.id_of else ready_pieces(token)
        for token in re.findall(r"\n|\S+", text)
    )
    expected = "".join(t if t in few.id_of else "<unk>" for group in tokens for t in group)
    assert without_layout(few.decode(few.encode(text))) == without_layout(expected)


def test_plain_text_is_told_from_ready_made_words():
    assert looks_ready_made(READY)
    assert not looks_ready_made(TALES)
    assert not looks_ready_made("no commas here")
    assert not looks_ready_made("")
    assert not WordTokenizer.train(READY, ready_made=False).ready_made
    assert WordTokenizer.train("plain, text.", ready_made=True).tokens[2:] == ["plain,", "text."]


# --------------------------------------------------------------------- states, copies and errors


@pytest.mark.parametrize("text", [TALES, READY])
def test_a_state_travels_through_a_checkpoint(text):
    tokenizer = WordTokenizer.train(text)
    buffer = io.BytesIO()
    torch.save(tokenizer.state_dict(), buffer)
    buffer.seek(0)
    twin = WordTokenizer.from_state_dict(torch.load(buffer, weights_only=True))
    assert twin.state_dict() == tokenizer.state_dict()
    assert twin.encode(text) == tokenizer.encode(text)


def test_a_copy_for_another_process_is_small():
    tokenizer = WordTokenizer.train(TALES)
    before = len(pickle.dumps(tokenizer))
    ids = tokenizer.encode(TALES)
    assert len(pickle.dumps(tokenizer)) == before
    assert pickle.loads(pickle.dumps(tokenizer)).encode(TALES) == ids


def test_tokens_can_be_shown():
    tokenizer = WordTokenizer.train("a")
    assert [tokenizer.token_text(index) for index in range(5)] == ["<unk>", "\n", " ", "", "a"]


def test_nothing_is_encoded_as_nothing():
    for text in (TALES, READY):
        tokenizer = WordTokenizer.train(text)
        assert tokenizer.encode("") == []
        assert tokenizer.decode([]) == ""
        assert tokenizer.decode(tokenizer.encode("\n\n")) == "\n\n"


GOOD = {"type": "word", "tokens": ["<unk>", "\n", " ", "", "a"], "ready_made": False}


@pytest.mark.parametrize(
    "damage",
    [
        *[{"tokens": None}, {"tokens": []}, {"tokens": ["a"]}, {"tokens": "abc"}],
        *[{"tokens": [*GOOD["tokens"], "a"]}, {"tokens": [*GOOD["tokens"], 3]}],
        *[{"tokens": GOOD["tokens"][1:]}, {"ready_made": None}, {"ready_made": 0}],
    ],
)
def test_a_damaged_state_is_refused(damage):
    assert WordTokenizer.from_state_dict(GOOD).encode("a") == [4]
    with pytest.raises(UserError):
        WordTokenizer.from_state_dict({**GOOD, **damage})


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "empty"),
        (" \n ", {}, "no word"),
        ("a b a", {"min_count": 3}, "no word occurs 3 times"),
        ("a b a", {"min_count": 0}, "min_count"),
        ("a b a", {"max_size": 1}, "choose 5 or more"),
        ("a b a", {"max_size": 4}, "choose 5 or more"),
        ("a b a", {"max_size": 2, "ready_made": True}, "choose 3 or more"),
    ],
)
def test_a_vocabulary_without_words_is_refused(text, options, message):
    with pytest.raises(UserError, match=message) as caught:
        WordTokenizer.train(text, **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("ids", [[99], [-1], [0, 4, 5]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(UserError, match="0 to 4"):
        WordTokenizer.train("a").decode(ids)
