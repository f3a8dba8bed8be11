"""Model 01's mathematics against torch.nn.RNN, and the two things that are its own."""

from __future__ import annotations

import pytest
import torch
from conftest import modules
from torch import Tensor, nn
from torch.nn import functional as F

CharRNN = modules("model-01-char-rnn").model.CharRNN
RNNLayer = modules("model-01-char-rnn").model.RNNLayer
V, H, B, T = 11, 8, 3, 9


def pair(layers: int) -> tuple[nn.Module, nn.RNN]:
    """A CharRNN and torch's RNN with the same weights."""
    torch.manual_seed(layers)
    ours = CharRNN(V, hidden_size=H, layers=layers)
    theirs = nn.RNN(V, H, layers, batch_first=True)
    with torch.no_grad():
        for i, layer in enumerate(ours.layers):
            getattr(theirs, f"weight_ih_l{i}").copy_(layer.W.weight)
            getattr(theirs, f"bias_ih_l{i}").copy_(layer.W.bias)
            getattr(theirs, f"weight_hh_l{i}").copy_(layer.U.weight)
            getattr(theirs, f"bias_hh_l{i}").zero_()
    return ours, theirs


def tokens() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("given", [False, True], ids=["no state", "given state"])
def test_outputs_and_state_equal_torch(layers, given):
    ours, theirs = pair(layers)
    state = torch.randn(layers, B, H) if given else None
    logits, end = ours(tokens(), state)
    outputs, their_end = theirs(F.one_hot(tokens(), V).float(), state)
    torch.testing.assert_close(logits, ours.head(outputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(end, their_end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_equal_torch(layers):
    ours, theirs = pair(layers)
    state = torch.randn(layers, B, H)
    mine, other = state.clone().requires_grad_(), state.clone().requires_grad_()
    weight = torch.randn(B, T, V)
    (ours(tokens(), mine)[0] * weight).sum().backward()
    head = nn.Linear(H, V)
    head.load_state_dict(ours.head.state_dict())
    (head(theirs(F.one_hot(tokens(), V).float(), other)[0]) * weight).sum().backward()
    pairs = [(mine.grad, other.grad), (ours.head.weight.grad, head.weight.grad)]
    for i, layer in enumerate(ours.layers):
        pairs.append((layer.W.weight.grad, getattr(theirs, f"weight_ih_l{i}").grad))
        pairs.append((layer.U.weight.grad, getattr(theirs, f"weight_hh_l{i}").grad))
        pairs.append((layer.W.bias.grad, getattr(theirs, f"bias_ih_l{i}").grad))
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    layer = RNNLayer(3, 4).double()
    x, h = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(), h.requires_grad_()))


def test_a_one_hot_input_is_a_row_look_up():
    ours, _ = pair(1)
    layer = ours.layers[0]
    ids = tokens().t()
    rows = layer.W.weight.t()[ids] + layer.W.bias  # (T, B, H): W's column of each character
    torch.testing.assert_close(layer.W(F.one_hot(ids, V).float()), rows)


def test_the_first_step_from_nothing_equals_a_state_of_zeros():
    ours, _ = pair(2)
    nothing, zeros = ours(tokens())[0], ours(tokens(), torch.zeros(2, B, H))[0]
    assert torch.equal(nothing, zeros)


def test_each_character_starts_with_a_strong_pattern_of_its_own():
    torch.manual_seed(0)
    first, second = (layer.W.weight for layer in CharRNN(V, hidden_size=500, layers=2).layers)
    assert 4.9 < first.abs().max() <= 5
    assert second.abs().max() <= 500**-0.5


def masks(model: nn.Module, steps: int) -> Tensor:
    """What drop() multiplies by: (T, B, H)"""
    return model.drop(torch.ones(steps, 64, 200))


def test_dropout_switches_a_unit_off_for_the_whole_sequence_or_not_at_all():
    torch.manual_seed(0)
    model = CharRNN(V, hidden_size=200, layers=1, dropout=0.4).train()
    mask = masks(model, 7)
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert not torch.equal(mask, masks(model, 7))  # another mask for the next sequence
    assert not torch.equal(mask[0, 0], mask[0, 1])  # and for each text of the batch
    torch.testing.assert_close(mask.unique(), torch.tensor([0, 1 / 0.6]))
    assert abs((mask[0] == 0).float().mean() - 0.4) < 0.02
    assert abs(mask[0].mean() - 1) < 0.03  # on average nothing is lost


def test_dropout_is_off_in_evaluation_and_at_0():
    x = torch.randn(4, 2, H)
    assert torch.equal(CharRNN(V, H, 1, dropout=0.5).eval().drop(x), x)
    assert torch.equal(CharRNN(V, H, 1, dropout=0.0).train().drop(x), x)


def test_dropout_never_touches_the_memory():
    """The state carries the undropped hidden vectors on (only what the next layer reads is cut)."""
    ours, _ = pair(1)
    ours.config["dropout"] = 0.5
    plain = ours.eval()(tokens())[1]
    assert torch.equal(ours.train()(tokens())[1], plain)
