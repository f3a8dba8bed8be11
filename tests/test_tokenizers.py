"""Tokenizers: what is encoded comes back, what cannot be encoded is named."""

from __future__ import annotations

import doctest
import importlib
import io
import random
import sys

import pytest
import torch

from shared import UserError
from shared.utils.tokenizers import CharTokenizer, tokenizer_from_state_dict
from shared.utils.visualize import TRAINERS


def random_text(seed: int, length: int = 200) -> str:
    """Characters of all planes: controls, accents, emoji, unassigned ones; no surrogates."""
    dice = random.Random(seed)
    ranges = [(0, 0x80), (0, 0x250), (0x3000, 0x9FFF), (0xE000, 0x10FFFF), (0x1F300, 0x1F6FF)]
    return "".join(chr(dice.randint(*dice.choice(ranges))) for _ in range(length))


@pytest.mark.parametrize("seed", range(20))
def test_text_comes_back_from_its_ids(seed):
    text = random_text(seed)
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert isinstance(ids, list) and all(type(i) is int for i in ids)
    assert len(ids) == len(text)
    assert set(ids) == set(range(tokenizer.vocab_size))  # every id is in use
    assert tokenizer.decode(ids) == text
    piece = text[50:80]
    assert tokenizer.decode(tokenizer.encode(piece)) == piece
    assert "".join(tokenizer.decode([i]) for i in ids) == text  # streaming


def test_nothing_is_encoded_as_nothing():
    tokenizer = CharTokenizer.train("ab")
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_the_vocabulary_does_not_depend_on_the_order_of_the_text():
    assert CharTokenizer.train("hello").encode("ole") == CharTokenizer.train("olleh").encode("ole")


def test_decode_takes_what_models_give():
    tokenizer = CharTokenizer.train("abc")
    assert tokenizer.decode(torch.tensor([2, 0]).tolist()) == "ca"
    assert tokenizer.decode(iter([2, 0])) == "ca"
    assert tokenizer.decode((2, 0)) == "ca"


@pytest.mark.parametrize("text", ["x", "abx", "\n", "Ä", "\udce9", "\0", "🦊"])
def test_unknown_characters_are_named(text):
    tokenizer = CharTokenizer.train("abc")
    with pytest.raises(UserError) as caught:
        tokenizer.encode(text)
    message = str(caught.value)
    assert repr(text[-1]) in message
    assert repr("a") not in message
    assert len(message.splitlines()) == 1
    assert "3 characters" in message


def test_many_unknown_characters_make_no_long_message():
    with pytest.raises(UserError) as caught:
        CharTokenizer.train("abc").encode("".join(map(chr, range(1000, 3000))))
    assert len(str(caught.value)) < 300
    assert "..." in str(caught.value)


@pytest.mark.parametrize("ids", [[3], [-1], [0, 1, 99], [0, -5, 1]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(UserError, match="0 to 2"):
        CharTokenizer.train("abc").decode(ids)


@pytest.mark.parametrize("train", [CharTokenizer.train, *TRAINERS.values()])
@pytest.mark.parametrize("index", [-1, 10**6])
def test_a_stream_refuses_ids_out_of_range_too(train, index):
    """Python takes -1 for the last token: a slip would be a wrong text, not an error."""
    size = () if train == CharTokenizer.train else (300,)
    stream = train("low lower lowest", *size).decode_stream([0, index])
    with pytest.raises(UserError, match="out of range"):
        list(stream)


@pytest.mark.parametrize("text", ["", "aa"])
def test_a_vocabulary_is_a_list_of_different_characters(text):
    with pytest.raises(UserError):
        CharTokenizer(text)
    if not text:
        with pytest.raises(UserError):
            CharTokenizer.train(text)


def test_a_state_travels_through_a_checkpoint():
    text = random_text(1)
    tokenizer = CharTokenizer.train(text)
    buffer = io.BytesIO()
    torch.save(tokenizer.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    twin = tokenizer_from_state_dict(state)
    assert type(twin) is CharTokenizer
    assert twin.encode(text) == tokenizer.encode(text)
    assert twin.state_dict() == tokenizer.state_dict()


@pytest.mark.parametrize(
    "state",
    [
        *[None, [], "char", 3, {}, {"type": None}, {"type": "quantum"}, {"type": ["char"]}],
        *[{"type": "char"}, {"type": "char", "characters": None}, {"characters": "abc"}],
        *[{"type": "char", "characters": ""}, {"type": "char", "characters": "aa"}],
        {"type": "char", "characters": ["a", "b"]},
    ],
)
def test_a_damaged_state_is_refused(state):
    with pytest.raises(UserError):
        tokenizer_from_state_dict(state)


def test_the_examples_in_the_docstrings_are_true():
    package = importlib.import_module("shared.utils.tokenizers")
    names = [n for n in sys.modules if n.startswith(package.__name__)]
    results = [doctest.testmod(sys.modules[name]) for name in names]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) >= 3
