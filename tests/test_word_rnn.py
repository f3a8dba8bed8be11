"""Model 02: embeddings, tied weights, and what it says of words."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import MODELS, assert_one_line_error, modules

SPEC = MODELS[1]


@pytest.fixture(scope="module")
def mods():
    return modules(SPEC.folder)


def test_the_recurrence_is_that_of_model_01(mods):
    torch.manual_seed(0)
    layer, twin = mods.model.RNNLayer(3, 5), torch.nn.RNN(3, 5)
    with torch.no_grad():
        twin.weight_ih_l0.copy_(layer.W.weight)
        twin.bias_ih_l0.copy_(layer.W.bias)
        twin.weight_hh_l0.copy_(layer.U.weight)
        twin.bias_hh_l0.zero_()
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(layer(x, None)[0], twin(x)[0], atol=1e-5, rtol=1e-5)


def test_reading_and_writing_share_one_table(mods):
    model = mods.model.WordRNN(vocab_size=11, hidden_size=4)
    assert model.head.weight is model.embedding.weight
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert sum(sizes.values()) == 11 * 4 + 11 + (4 * 4 + 4) + 4 * 4
    again = mods.model.WordRNN(**model.config)
    again.load_state_dict(model.state_dict())
    assert again.head.weight is again.embedding.weight


def test_a_one_hot_vector_times_the_table_is_a_row_of_it(mods):
    model = mods.model.WordRNN(vocab_size=11, hidden_size=4)
    one_hot = torch.nn.functional.one_hot(torch.tensor(7), 11).float()
    assert torch.equal(one_hot @ model.embedding.weight, model.embedding(torch.tensor(7)))


def test_a_forbidden_token_is_never_drawn(mods):
    torch.manual_seed(0)
    model = mods.model.WordRNN(vocab_size=3, hidden_size=4).eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([5.0, 0.0, 0.0]))  # it would draw 0 nearly always
    drawn = list(mods.generate.generate(model, [1], 200))
    assert drawn.count(0) > 100
    for temperature in (0.0, 1.0):
        assert 0 not in mods.generate.generate(model, [1], 200, temperature, never=0)


def test_unk_is_written_only_where_asked_for(mods, run_main, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 60, encoding="utf-8")
    flags = "--vocab-size 5 --preset tiny --context 4 --steps 20 --device cpu --dtype float32"
    out = tmp_path / "out"
    result = run_main(mods.train, flags, "--dataset", text, "--out", out)
    assert result.status == 0, result
    assert "<unk>" not in (out / "samples.txt").read_text(encoding="utf-8")
    how = ["--checkpoint", out / "best.pt", "--seed", "1", "--length", "50"]
    assert "<unk>" not in run_main(mods.generate, how).out
    assert "<unk>" in run_main(mods.generate, how, "--unk").out


def test_similarity_is_one_in_the_same_direction(mods):
    vectors = torch.tensor([[2.0, 0.0], [4.0, 0.0], [-3.0, 0.0], [-3.0, 0.0]])
    torch.testing.assert_close(
        mods.embeddings.similarities(vectors, 0), torch.tensor([1.0, 1.0, -1.0, -1.0])
    )


def test_the_map_keeps_the_directions_of_greatest_variance(mods):
    torch.manual_seed(0)
    plane, noise = torch.randn(200, 2) * torch.tensor([5.0, 3.0]), 0.01 * torch.randn(200, 6)
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    vectors = torch.cat((plane, torch.zeros(200, 4)), dim=1) @ turn + noise + 7
    points, share = mods.embeddings.principal_plane(vectors)
    assert share > 0.999
    torch.testing.assert_close(
        torch.cdist(points, points), torch.cdist(plane, plane), atol=0.1, rtol=0
    )


@pytest.mark.slow
def test_recall_is_measured_where_all_answers_are_unknown_words(mods, run_main, tmp_path):
    flags = "--preset tiny --vocab-size 50 --steps 2 --dataset tales --device cpu --out"
    result = run_main(mods.train, flags, tmp_path)
    assert result.status == 0, result
    assert (tmp_path / "recall.csv").stat().st_size > 10_000


def test_a_model_of_few_words_has_no_map(mods, run_main, tmp_path):
    names = ["".join(pair) for pair in itertools.product("bdfgk", "aeiou", "lmnr")]
    (tmp_path / "text.txt").write_text(" ".join(30 * names[:20]), encoding="utf-8")
    flags = ["--preset tiny --context 4 --steps 2 --device cpu --dtype float32 --dataset"]
    assert run_main(mods.train, *flags, tmp_path / "text.txt", "--out", tmp_path).status == 0
    picture = tmp_path / "map.png"
    how = ["--checkpoint", tmp_path / "last.pt", "--out", picture]
    assert_one_line_error(run_main(mods.embeddings, *how), "too few words")
    assert not picture.exists()
