"""Model 04: its blocks against torch.nn, positions against their papers, and what it forgets."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import math
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, QUICK, Result, assert_one_line_error, modules, printed_command, words
from test_resume import assert_same_results, signal_at_step
from torch import Tensor, nn
from torch.nn import functional as F

from shared.data.tales import write_corpus
from shared.utils import visualize

SPEC = MODELS[3]
MODS = modules(SPEC.folder)
MiniTransformer, POSITIONS = MODS.model.MiniTransformer, MODS.model.POSITIONS
VOCAB = 20
ABLATIONS = [part for part in MODS.model.PARTS if part != "none"]


def make(seed: int = 0, **how: object) -> nn.Module:
    """A small model in evaluation mode, its weights large enough to choose, no norm a plain one."""
    torch.manual_seed(seed)
    small = {"vocab_size": VOCAB, "hidden_size": 8, "layers": 2, "heads": 2, "context": 16}
    model = MiniTransformer(**small | how).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def some_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def changed(tokens: Tensor, t: int) -> Tensor:
    """The same tokens, but another one at t."""
    other = tokens.clone()
    other[:, t] = (other[:, t] + 1) % VOCAB
    return other


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------- the blocks, against torch.nn

THEIR_NAMES = {
    **{"blocks.": "encoder.layers.", "attention.qkv.": "self_attn.in_proj_"},
    **{"attention.out.": "self_attn.out_proj.", "mlp.up.": "linear1.", "mlp.down.": "linear2."},
}


def their_name(name: str) -> str:
    """What torch calls a weight of ours."""
    for ours, theirs in THEIR_NAMES.items():
        name = name.replace(ours, theirs)
    return f"encoder.{name}" if name.startswith("norm.") else name


class Twin(nn.Module):
    """A model with the same weights, all of them, built from torch's own parts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        how = SimpleNamespace(**model.config)
        self.embedding = nn.Embedding(model.embedding.num_embeddings, how.hidden_size)
        if how.positions == "learned":
            self.places = nn.Embedding(how.context, how.hidden_size)
        layer = nn.TransformerEncoderLayer(
            how.hidden_size, how.heads, 4 * how.hidden_size, dropout=0.0, batch_first=True,
            activation=how.activation, norm_first=how.norm == "pre",
        )  # fmt: skip
        final = nn.LayerNorm(how.hidden_size) if how.norm == "pre" else None
        self.encoder = nn.TransformerEncoder(layer, how.layers, final, enable_nested_tensor=False)
        self.head = nn.Linear(how.hidden_size, how.vocab_size)
        self.load_state_dict({their_name(k): v for k, v in model.state_dict().items()})

    def forward(self, tokens: Tensor, added: Tensor, bias: Tensor) -> Tensor:
        """tokens (B, T), what is added to embeddings (T, C), to scores (T, T) or (B H, T, T)"""
        return self.head(self.encoder(self.embedding(tokens) + added, bias))


def assert_equal_with_all_gradients(
    model: nn.Module, added: Callable[[Twin], Tensor], bias: Tensor
) -> None:
    """Logits, and the gradients of every weight, equal torch's for two texts of 9 tokens."""
    model = model.double()
    twin, tokens = Twin(model).double(), some_tokens(2, 9)
    logits, theirs = model(tokens)[0], twin(tokens, added(twin).double(), bias.double())
    assert_close(logits, theirs)
    at = torch.randn_like(logits)
    for each in (logits, theirs):
        (each * at).sum().backward()
    gradients = {name: weight.grad for name, weight in twin.named_parameters()}
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 0, name
        assert_close(weight.grad, gradients[their_name(name)])


NO_PEEKING = nn.Transformer.generate_square_subsequent_mask(9)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (3, 4)])
def test_logits_and_all_gradients_equal_torch(norm, activation, layers, heads):
    how = dict(norm=norm, activation=activation, layers=layers, heads=heads, positions="none")
    assert_equal_with_all_gradients(make(**how), lambda twin: torch.zeros(9, 8), NO_PEEKING)


def test_a_masked_model_equals_torch_without_a_mask():
    model = make(positions="none", objective="masked")
    assert_equal_with_all_gradients(model, lambda twin: torch.zeros(9, 8), torch.zeros(9, 9))


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "alibi"])
def test_positions_are_added_where_their_papers_say(positions, objective):
    """To the embeddings, and ALiBi to the scores, of each head its own. (RoPE: see below.)"""
    bias = NO_PEEKING if objective == "causal" else torch.zeros(9, 9)
    if positions == "alibi":
        distances = [[abs(t - s) for s in range(9)] for t in range(9)]
        slopes = torch.tensor(published_slopes(2))
        bias = (bias - slopes[:, None, None] * torch.tensor(distances)).repeat(2, 1, 1)
    added = {
        "learned": lambda twin: twin.places.weight[:9],
        "sinusoidal": lambda twin: torch.tensor(slow_waves(9, 8)),
        "alibi": lambda twin: torch.zeros(9, 8),
    }
    model = make(positions=positions, objective=objective, context=9)
    assert_equal_with_all_gradients(model, added[positions], bias)


def test_layer_norm_and_its_gradients_equal_torch():
    ours, theirs = MODS.model.LayerNorm(6), nn.LayerNorm(6)
    with torch.no_grad():
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.copy_(torch.randn(6))
            other.copy_(own)
    x = (5 + 3 * torch.randn(2, 4, 6)).requires_grad_()
    at, found = torch.randn(2, 4, 6), []
    for norm in (ours, theirs):
        y = norm(x)
        found.append([y, *torch.autograd.grad((y * at).sum(), [x, *norm.parameters()])])
    for own, other in zip(*found, strict=True):
        assert_close(own, other)
    same = torch.full((1, 6), 7.0)  # variance 0
    assert_close(ours(same), theirs(same))


def test_swiglu_equals_its_formula_and_costs_no_more_weights():
    """Shazeer 2020: (Swish(x W) * x V) W2, with Swish(x) = x sigmoid(x)."""
    torch.manual_seed(0)
    mlp, x = MODS.model.MLP(6, "swiglu"), torch.randn(2, 3, 6)
    inner = mlp.down.in_features
    w, v = mlp.up.weight[:inner], mlp.up.weight[inner:]
    gate, value = x @ w.T + mlp.up.bias[:inner], x @ v.T + mlp.up.bias[inner:]
    expected = (gate / (1 + torch.exp(-gate)) * value) @ mlp.down.weight.T + mlp.down.bias
    assert_close(mlp(x), expected)
    one, other = (
        sum(weight.numel() for weight in MODS.model.MLP(96, activation).parameters())
        for activation in ("swiglu", "gelu")
    )
    assert one == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_every_combination_is_causal_and_makes_itself_again(positions, norm, activation):
    model = make(positions=positions, norm=norm, activation=activation)
    tokens = some_tokens(1, 10)
    twin = MiniTransformer(**model.config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.inference_mode():
        logits, _ = model(tokens)
        assert torch.equal(twin(tokens)[0], logits)
        for t in range(10):
            other, _ = model(changed(tokens, t))
            assert torch.equal(other[:, :t], logits[:, :t])
            assert all(not torch.allclose(other[:, s], logits[:, s]) for s in range(t, 10))


# --------------------------------------------------------------------------------- the positions


def slow_waves(length: int, size: int) -> list[list[float]]:
    """Vaswani et al. 2017, 3.5: PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(...)"""
    rows = []
    for position in range(length):
        angles = [position / 10_000 ** (2 * i / size) for i in range(size // 2)]
        rows.append([wave(angle) for angle in angles for wave in (math.sin, math.cos)])
    return rows


def slow_turn(x: list[float], position: int) -> list[float]:
    """Su et al. 2021, eq. 34, with theta_i = 10000^(-2i/d), for the pairs (i, i + D/2)."""
    half = len(x) // 2
    turned = [0.0] * len(x)
    for i in range(half):
        angle = position * 10_000 ** (-2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return turned


def published_slopes(heads: int) -> list[float]:
    """The rule in the code that Press et al. 2022 published, for any number of heads."""
    lower = 2 ** math.floor(math.log2(heads))
    start = 2 ** -(2 ** -(math.log2(lower) - 3))
    slopes = [start * start**i for i in range(lower)]
    if lower < heads:
        slopes += published_slopes(2 * lower)[0::2][: heads - lower]
    return slopes


def test_sinusoidal_positions_equal_the_formula():
    assert_close(MODS.model.sinusoidal(40, 6), torch.tensor(slow_waves(40, 6)))
    first, second = MODS.model.sinusoidal(2, 4).tolist()
    assert first == [0, 1, 0, 1]
    expected = [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]
    assert second == pytest.approx(expected, abs=1e-6)


def test_rope_equals_the_formula():
    torch.manual_seed(0)
    x = torch.randn(12, 6)
    expected = [slow_turn(row, t) for t, row in enumerate(x.tolist())]
    assert_close(MODS.model.rotate(x, MODS.model.angles(12, 6)), torch.tensor(expected))
    quarter = torch.tensor([[math.pi / 2, 0]])  # one pair by 90 degrees, the other not at all
    turned = MODS.model.rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), quarter)
    assert_close(turned, torch.tensor([[-3.0, 2.0, 1.0, 4.0]]))


def test_the_score_of_turned_vectors_depends_on_their_distance_only():
    torch.manual_seed(0)
    turn = MODS.model.angles(50, 8)
    q, k = (MODS.model.rotate(torch.randn(8).expand(50, 8), turn) for _ in range(2))
    scores = q @ k.T
    by_distance = {d: scores.diagonal(-d) for d in range(-49, 50)}
    for found in by_distance.values():
        assert_close(found, found[:1].expand_as(found))
    assert torch.stack([found[0] for found in by_distance.values()]).std() > 0.1
    assert_close(q.norm(dim=1), q[0].norm().expand(50))  # a turn makes nothing longer


def test_the_pointer_equals_loops():
    torch.manual_seed(0)
    pointer, C, V = MODS.model.Pointer(6, 9, 5), 6, 9
    logits, outputs, words = torch.randn(2, 3, V), torch.randn(2, 5, C), torch.randint(4, (2, 5))
    found = pointer(logits, outputs, words)
    for b in range(2):
        for t in range(3):  # the last three of five positions
            place, total = t + 2, logits[b, t].exp()
            now = outputs[b, place]
            for s in range(place + 1):
                before = pointer.key(outputs[b, s - 1]) if s else torch.zeros(C)
                score = pointer.query(now) @ before / C**0.5
                total[words[b, s]] += (pointer.gate(now) + score).exp().item()
            assert_close(found[b, t], total.log())


def test_one_layer_with_a_pointer_can_look_for_what_stands_before():
    """Induction, "a b ... a -> b", takes two layers without one (Olsson et al. 2022)."""
    losses = {}
    for copy in MODS.model.COPY:
        torch.manual_seed(0)
        model = MiniTransformer(16, 32, 1, heads=2, context=32, copy=copy).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        dice = torch.Generator().manual_seed(0)
        for _ in range(300):
            half = torch.stack([torch.randperm(16, generator=dice) for _ in range(16)])
            tokens = torch.cat((half, half), dim=1)  # each once, then all again
            logits, _ = model(tokens[:, :-1])
            loss = F.cross_entropy(logits[:, 16:].flatten(0, 1), tokens[:, 17:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[copy] = loss.item()
    assert losses["pointer"] < 0.3 and losses["none"] > 1, losses


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_with_a_pointer_chunks_equal_the_whole(positions):
    model, tokens = make(copy="pointer", positions=positions), some_tokens(2, 40)
    with torch.inference_mode():
        whole, _ = model(tokens)
        state, found = None, []
        for piece in tokens.split([7, 1, 20, 12], dim=1):
            logits, state = model(piece, state)
            found.append(logits)
    assert_close(torch.cat(found, dim=1), whole)


def test_alibi_slopes_of_8_heads_are_powers_of_a_half():
    bias = MODS.model.alibi(3, 8)
    assert bias[:, 1, 0].tolist() == [-(2.0**-n) for n in range(1, 9)]
    assert bias[0].tolist() == [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]]


@pytest.mark.parametrize("heads", range(1, 18))
def test_alibi_slopes_of_any_number_of_heads_follow_the_published_rule(heads):
    slopes = torch.tensor(published_slopes(heads))
    bias = MODS.model.alibi(5, heads)
    for t, s in itertools.product(range(5), repeat=2):
        assert_close(bias[:, t, s], -slopes * abs(t - s))
    if heads == 6:
        assert slopes.tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    if heads == 12:
        assert_close(slopes[8:], torch.tensor([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]))


def test_one_layer_without_positions_does_not_know_the_order_of_the_past():
    tokens = some_tokens(1, 8)
    mixed = tokens[:, [3, 0, 6, 1, 5, 2, 4, 7]]  # the last one stays
    for positions in POSITIONS:
        model = make(positions=positions, layers=1)
        one, other = (model(each)[0][:, -1] for each in (tokens, mixed))
        assert torch.allclose(one, other, atol=1e-5) == (positions == "none"), positions
    deeper = make(positions="none", layers=2)  # position t has seen t tokens: the second layer
    one, other = (deeper(each)[0][:, -1] for each in (tokens, mixed))  # knows
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("positions", [each for each in POSITIONS if each != "learned"])
def test_a_larger_context_than_in_training_works_and_is_used(positions):
    model, tokens = make(positions=positions, context=8), some_tokens(1, 60)
    with torch.inference_mode():
        short = [model(each)[0] for each in (tokens, changed(tokens, 20))]
        model.context = 60
        long = [model(each)[0] for each in (tokens, changed(tokens, 20))]
    assert torch.equal(short[0][:, -1], short[1][:, -1])  # token 20 was forgotten
    assert not torch.equal(long[0][:, -1], long[1][:, -1])
    assert long[0].isfinite().all()
    assert_close(short[0][:, :8], long[0][:, :8])


def test_learned_positions_refuse_a_longer_text():
    model, tokens = make(positions="learned", context=8), some_tokens(1, 20)
    assert model.read(tokens[:, :8], 8).isfinite().all()
    with pytest.raises(ValueError, match="8 tokens"):
        model.read(tokens[:, :9], 1)
    assert model(tokens)[0].shape == (1, 20, VOCAB)  # as a text is read, piece by piece, all goes
    model.context = 4  # fewer than learned is no trouble
    assert model(tokens)[0].isfinite().all()


def loss_near_and_far(positions: str, steps: int = 200) -> tuple[float, float]:
    """Trained on 16 tokens, read at 64: nats at positions 8 to 16, and from 17 on.

    The texts repeat 5 tokens, new ones in each: who looks 5 back knows what comes.
    """

    def some_texts(length: int, dice: torch.Generator) -> Tensor:
        tokens = torch.rand(32, 12, generator=dice).argsort(1)[:, :5]
        return tokens.repeat(1, length // 5 + 2)[:, : length + 1]

    torch.manual_seed(0)
    model = MiniTransformer(12, 32, layers=2, heads=4, context=16, positions=positions)
    optimizer, dice = torch.optim.Adam(model.parameters(), lr=0.01), torch.Generator()
    for _ in range(steps):
        texts = some_texts(16, dice)
        logits, _ = model(texts[:, :-1])
        loss = F.cross_entropy(logits.transpose(1, 2), texts[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    texts, model.context = some_texts(64, dice), 64
    with torch.inference_mode():
        logits, _ = model(texts[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), texts[:, 1:], reduction="none").mean(0)
    return losses[8:16].mean().item(), losses[16:].mean().item()


@pytest.mark.slow
def test_alibi_stays_as_good_far_beyond_the_trained_length_and_waves_do_not():
    """Press et al. 2022. Measured: 0.8 near and far; sinusoidal 0.0 near, 4 far."""
    near, far = loss_near_and_far("alibi")
    assert near < 1.5  # it has learned to look: guessing costs ln 12 = 2.5
    assert far < near + 0.2
    near, far = loss_near_and_far("sinusoidal")
    assert near < 0.5 and far > near + 1


# ------------------------------------------------------------------------------------- the state


def kept(length: int, context: int) -> list[list[int]]:
    """Which tokens each of a text's tokens is read with (itself included), by the docstring."""
    now, found = [], []
    for t in range(length):
        if len(now) == context:  # full: the older half is forgotten
            now = now[-(context // 2) :] if context > 1 else []
        now = [*now, t]
        found.append(now)
    return found


def test_kept_is_what_the_drawing_says():
    assert kept(6, 4) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [2, 3, 4], [2, 3, 4, 5]]
    assert kept(5, 3)[3:] == [[2, 3], [2, 3, 4]]
    assert kept(3, 1) == [[0], [1], [2]]


@pytest.mark.parametrize("context", [1, 2, 7, 8])
@pytest.mark.parametrize("positions", POSITIONS)
def test_whole_equals_chunks_equals_token_by_token_far_past_the_context(positions, context):
    model, tokens = make(positions=positions, context=context), some_tokens(2, 40)
    with torch.inference_mode():
        slow = torch.cat([model.read(tokens[:, seen], 1) for seen in kept(40, context)], dim=1)
        for sizes in ([40], [1] * 40, [5, 1, 30, 4], [context] * (40 // context)):
            state, pieces = None, []
            for piece in tokens[:, : sum(sizes)].split(sizes, dim=1):
                logits, state = model(piece, state)
                pieces.append(logits)
                assert state.size(1) <= context
            assert_close(torch.cat(pieces, 1), slow[:, : sum(sizes)])
            assert torch.equal(state, tokens[:, kept(40, context)[sum(sizes) - 1]])


@pytest.mark.parametrize("context", [1, 7, 8])
def test_a_prediction_depends_on_exactly_the_tokens_still_in_the_state(context):
    model, tokens = make(context=context, layers=1), some_tokens(1, 30)
    others = torch.cat([changed(tokens, t) for t in range(30)])
    with torch.inference_mode():
        logits, changes = model(tokens)[0], model(others)[0]
    different = (changes - logits).abs().amax(-1)  # (changed token, prediction)
    for t, seen in enumerate(kept(30, context)):
        assert (different[:, t] > 1e-4).nonzero().flatten().tolist() == seen


def test_no_call_reads_more_than_the_context_and_a_text_costs_twice_its_length_at_most():
    model, read = make(context=8), []
    model.embedding.register_forward_hook(lambda _, inputs, output: read.append(output.size(1)))
    with torch.inference_mode():
        model(some_tokens(1, 400))
        assert max(read) == 8 and sum(read) <= 2 * 400 + 8
        read.clear()
        state = None
        for token in some_tokens(1, 400).split(1, dim=1):
            _, state = model(token, state)
    assert len(read) == 400 and max(read) == 8


def test_a_context_made_smaller_in_the_middle_of_a_text_drops_the_oldest():
    model, tokens = make(context=8), some_tokens(1, 9)
    with torch.inference_mode():
        _, state = model(tokens[:, :8])
        model.context = 4
        logits, state = model(tokens[:, 8:], state)
        assert torch.equal(state, tokens[:, 6:])
        assert_close(logits, model.read(tokens[:, 6:], 1))


# ------------------------------------------------------------------------------- where it looks


def slow_weights(how: dict, head: int, q: Tensor, k: Tensor) -> Tensor:
    """Of one head: queries and keys (T, D) -> weights (T, T), by the papers."""
    length, size = q.shape
    weights, rows = torch.zeros(length, length), [q.tolist(), k.tolist()]
    if how["positions"] == "rope":
        rows = [[slow_turn(row, t) for t, row in enumerate(each)] for each in rows]
    for t in range(length):
        seen = range(t + 1) if how["objective"] == "causal" else range(length)
        scores = [sum(a * b for a, b in zip(rows[0][t], rows[1][s], strict=True)) for s in seen]
        scores = [score / math.sqrt(size) for score in scores]
        if how["positions"] == "alibi":
            slope = published_slopes(how["heads"])[head]
            scores = [score - slope * abs(t - s) for score, s in zip(scores, seen, strict=True)]
        total = sum(map(math.exp, scores))
        for s, score in zip(seen, scores, strict=True):
            weights[t, s] = math.exp(score) / total
    return weights


def slow_reading(model: nn.Module, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Of a model with one layer: weights (H, T, T) and logits (T, V)."""
    how, block, length, size = (
        model.config,
        model.blocks[0],
        len(tokens),
        model.config["hidden_size"],
    )
    x = model.embedding.weight[tokens]
    if how["positions"] == "sinusoidal":
        x = x + torch.tensor(slow_waves(length, size))
    if how["positions"] == "learned":
        x = x + model.places.weight[:length]
    h = F.layer_norm(x, (size,), block.norm1.weight, block.norm1.bias)
    qkv = h @ block.attention.qkv.weight.T + block.attention.qkv.bias  # (T, 3 C)
    q, k, v = (each.chunk(how["heads"], dim=1) for each in qkv.chunk(3, dim=1))
    weights = [slow_weights(how, head, q[head], k[head]) for head in range(how["heads"])]
    mixed = torch.cat([each @ values for each, values in zip(weights, v, strict=True)], dim=1)
    x = x + mixed @ block.attention.out.weight.T + block.attention.out.bias
    x = x + block.mlp(F.layer_norm(x, (size,), block.norm2.weight, block.norm2.bias))
    x = F.layer_norm(x, (size,), model.norm.weight, model.norm.bias)
    return torch.stack(weights), x @ model.head.weight.T + model.head.bias


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_weights_and_logits_equal_loops(positions, objective):
    model = make(positions=positions, objective=objective, layers=1)
    tokens = some_tokens(7).tolist()
    with torch.inference_mode():
        weights, logits = MODS.looking.attention_weights(model, tokens)
        expected, expected_logits = slow_reading(model, tokens)
    assert_close(weights[0], expected)
    assert_close(logits, expected_logits)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_attention_weights_are_shares_of_each_head_in_each_layer(objective):
    model = make(objective=objective, layers=3, heads=4)
    tokens = some_tokens(9).tolist()
    weights, logits = MODS.looking.attention_weights(model, tokens)
    assert weights.shape == (3, 4, 9, 9)
    assert_close(weights.sum(-1), torch.ones(3, 4, 9))
    assert torch.equal(weights, weights.tril()) == (objective == "causal")
    assert (weights.tril() > 0).sum() == 3 * 4 * 45
    assert len({tuple(head.flatten().tolist()) for head in weights.flatten(0, 1)}) == 12
    assert torch.equal(logits, model(torch.tensor([tokens]))[0][0])
    assert not any(block.attention._forward_hooks for block in model.blocks)  # none is left


# ------------------------------------------------------------------------------------- ablations


def weight_names(**how: object) -> set[str]:
    return {name for name, _ in make(**how).named_parameters()}


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    ("part", "pattern", "with_it"),
    [
        ("attention", r"\.attention\.", r"\.norm1\."),  # and the norm before it, of no use now
        ("mlp", r"\.mlp\.", r"\.norm2\."),
        ("norm", r"norm", "-"),
        ("positions", r"^places\.", "-"),
        ("residual", "-", "-"),
    ],
)
def test_an_ablation_takes_away_the_weights_of_its_part_and_no_others(norm, part, pattern, with_it):
    every = weight_names(positions="learned", norm=norm)
    gone = every - weight_names(positions="learned", norm=norm, ablate=part)
    assert {name for name in every if re.search(pattern, name)} <= gone
    assert all(re.search(f"{pattern}|{with_it}", name) for name in gone)
    assert bool(gone) == (part != "residual")


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("part", ABLATIONS)
def test_what_an_ablation_leaves_is_all_used_and_causal(part, norm):
    model, tokens = make(ablate=part, norm=norm, positions="learned"), some_tokens(1, 16)
    model(tokens)[0].square().sum().backward()
    with torch.inference_mode():
        logits, _ = model(tokens)
        for t in range(16):
            assert torch.equal(model(changed(tokens, t))[0][:, :t], logits[:, :t])
    unused = [n for n, weight in model.named_parameters() if weight.grad is None]
    assert unused == []  # a weight that nothing reads counts as a parameter, and is none


@pytest.mark.parametrize("positions", POSITIONS)
def test_without_attention_each_token_is_by_itself(positions):
    tokens = some_tokens(1, 9)
    for part in ("none", "attention"):
        model = make(ablate=part, positions=positions)
        logits, other = model(tokens)[0], model(changed(tokens, 4))[0]
        assert not torch.allclose(other[:, 4], logits[:, 4])
        assert torch.equal(other[:, 5:], logits[:, 5:]) == (part == "attention")


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_without_residuals_x_is_lost_where_the_parts_say_nothing(norm):
    tokens = some_tokens(1, 9)
    for part in ("none", "residual"):
        model = make(ablate=part, norm=norm, layers=1)
        with torch.no_grad():
            for silent in (model.blocks[0].attention.out, model.blocks[0].mlp.down):
                silent.weight.zero_()
        logits, _ = model(tokens)
        same = torch.allclose(logits, logits[:, :1].expand_as(logits), atol=1e-6)
        assert same == (part == "residual")


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_without_norms_a_model_of_mere_sums_grows_with_its_input(norm):
    """A norm makes large and small inputs alike; without one, twice the input is twice as much."""
    for part in ("none", "norm"):
        model = make(ablate=part, norm=norm, layers=1, positions="none")
        with torch.no_grad():
            for silent in (model.blocks[0].attention.out, model.blocks[0].mlp.down, model.head):
                silent.bias.zero_()
            for silent in (model.blocks[0].attention.out, model.blocks[0].mlp.down):
                silent.weight.zero_()
            logits, _ = model(some_tokens(1, 5))
            model.embedding.weight *= 2
            twice, _ = model(some_tokens(1, 5))
        assert torch.allclose(twice, 2 * logits, atol=1e-5) == (part == "norm")
        assert torch.allclose(twice, logits, atol=1e-2) == (part == "none")


@pytest.mark.parametrize("positions", POSITIONS)
def test_without_positions_all_kinds_of_positions_are_none(positions):
    model, none = make(positions=positions, ablate="positions"), make(positions="none")
    none.load_state_dict(model.state_dict())
    assert torch.equal(model(some_tokens(2, 9))[0], none(some_tokens(2, 9))[0])
    model.context = 40  # learned positions end, but there are none
    assert model(some_tokens(1, 40))[0].isfinite().all()


# -------------------------------------------------------------------------------- what is hidden


def hidden_kinds(vocab: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """200,000 tokens, the inputs made of them, and the targets."""
    dice = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (100, 2000), generator=dice)
    return tokens, *MODS.blanks.hide(tokens, vocab, dice)


def assert_share(found: Tensor, expected: float) -> None:
    """Of so many throws of a coin, a share within 5 standard deviations."""
    deviation = (expected * (1 - expected) / found.numel()) ** 0.5
    assert abs(found.float().mean().item() - expected) < 5 * deviation


def test_15_percent_are_asked_and_most_of_these_hidden():
    tokens, inputs, targets = hidden_kinds(vocab=10_000)
    asked = targets != -100
    assert_share(asked, 0.15)
    assert torch.equal(targets[asked], tokens[asked])
    assert torch.equal(inputs[~asked], tokens[~asked])
    of_asked = inputs[asked]
    assert_share(of_asked == 10_000, 0.8)
    assert_share((of_asked != 10_000) & (of_asked != tokens[asked]), 0.1 * (1 - 1e-4))
    assert_share(of_asked == tokens[asked], 0.1 + 1e-5)


def test_a_token_in_the_place_of_another_is_any_of_the_vocabulary():
    tokens, inputs, targets = hidden_kinds(vocab=3)
    wrong = (targets != -100) & (inputs < 3) & (inputs != tokens)
    for token in range(3):
        assert_share(inputs[wrong] == token, 1 / 3)
    assert_share(inputs[targets != -100] == 3, 0.8)  # so it is never [MASK]


def test_the_same_dice_hide_the_same_and_the_text_stays_as_it_was():
    tokens, inputs, targets = hidden_kinds(vocab=50)
    before = tokens.clone()
    again = hidden_kinds(vocab=50)
    assert torch.equal(inputs, again[1]) and torch.equal(targets, again[2])
    assert not torch.equal(inputs, hidden_kinds(vocab=50, seed=1)[1])
    MODS.blanks.hide(tokens, 50, torch.Generator())
    assert torch.equal(tokens, before)


def test_however_few_the_tokens_at_least_one_is_asked():
    """A mean over nothing is not a number."""
    for seed in range(100):
        _, targets = MODS.blanks.hide(some_tokens(1, 3), VOCAB, torch.Generator().manual_seed(seed))
        assert (targets != -100).any(), seed


def test_a_masked_model_sees_both_sides_and_has_a_token_for_the_blank():
    model, tokens = make(objective="masked"), some_tokens(1, 9)
    assert model.embedding.num_embeddings == VOCAB + 1 and model.mask_id == VOCAB
    assert make().embedding.num_embeddings == VOCAB
    logits, _ = model(tokens)
    assert logits.shape == (1, 9, VOCAB)  # [MASK] is never an answer
    for t in range(9):
        other, _ = model(changed(tokens, t))
        assert all(not torch.allclose(other[:, s], logits[:, s]) for s in range(9))
    tokens[0, 3] = model.mask_id
    assert model(tokens)[0].isfinite().all()


def test_a_causal_model_fills_one_blank_after_the_other():
    model = make()
    first, second = MODS.blanks.fill(model, [3, None, 5, 7, None, 2])
    with torch.inference_mode():
        assert_close(first, model(torch.tensor([[3]]))[0][0, -1].softmax(0))
        given = torch.tensor([[3, int(first.argmax()), 5, 7]])
        assert_close(second, model(given)[0][0, -1].softmax(0))
    again = MODS.blanks.fill(model, [3, None, 6, 8, None, 1])
    assert torch.equal(again[0], first) and not torch.allclose(again[1], second)
    at_the_start = MODS.blanks.fill(model, [None, 5])
    assert at_the_start[0].shape == (VOCAB,)
    assert_close(at_the_start[0].sum(), torch.tensor(1.0))


def test_a_masked_model_fills_all_blanks_at_once_from_both_sides():
    model = make(objective="masked")
    found = MODS.blanks.fill(model, [3, None, 5, 7, None, 2])
    with torch.inference_mode():
        logits = model(torch.tensor([[3, VOCAB, 5, 7, VOCAB, 2]]))[0][0]
    assert_close(torch.stack(found), logits[[1, 4]].softmax(-1))
    for other in ([4, None, 5, 7, None, 2], [3, None, 5, 7, None, 1]):  # before, and behind
        for p, q in zip(MODS.blanks.fill(model, other), found, strict=True):
            assert not torch.allclose(p, q)


@functools.cache
def tokenizer_of(name: str) -> object:
    """A small tokenizer, trained on tales."""
    kind, sizes = MODS.train.TOKENIZERS[name]
    return kind.train(write_corpus(20_000, seed=1)[0], **dict.fromkeys(sizes, 600))


@pytest.mark.parametrize("name", MODS.train.TOKENIZERS)
def test_the_spaces_at_a_blank_belong_to_its_token(name):
    tokenizer = tokenizer_of(name)
    before, behind = {
        "char": ("The ", " of the king"),
        "word": ("The", "of the king"),
        "wordpiece": ("The", "of the king"),
        "bpe": ("The", " of the king"),
        "unigram": ("The", " of the king"),
    }[name]
    blanks = functools.partial(MODS.blanks.blanks, tokenizer)
    encode = tokenizer.encode
    assert blanks("The [MASK] of the king") == [*encode(before), None, *encode(behind)]
    assert blanks("[MASK]") == [None]
    assert blanks("[MASK][MASK]") == [None, None]
    assert blanks("The king") == encode("The king")
    assert blanks("The [MASK], the king")[-len(encode(", the king")) :] == encode(", the king")


@pytest.mark.parametrize("name", MODS.train.TOKENIZERS)
def test_the_true_tokens_in_the_blanks_make_the_text_again(name):
    """Wherever a whole word of a tale is one token, and in several places at once."""
    tokenizer = tokenizer_of(name)
    line = next(line for line in write_corpus(20_000, seed=1)[0].split("\n") if len(line) > 200)
    found, places = line.split(" "), []
    for i, word in enumerate(found):
        text = " ".join([*found[:i], "[MASK]", *found[i + 1 :]])
        tokens = MODS.blanks.blanks(tokenizer, text)
        true, at = tokenizer.encode(line), tokens.index(None)
        if len(true) != len(tokens) or true[at] == tokenizer.unk_id:
            continue  # the word is several tokens, or none
        assert [*tokens[:at], true[at], *tokens[at + 1 :]] == true
        assert word in tokenizer.decode([true[at]])
        places.append(i)
    if name == "char":
        assert [found[i] for i in places] == [word for word in found if len(word) == 1]
    assert places
    text = " ".join("[MASK]" if i in places else word for i, word in enumerate(found))
    tokens, true = MODS.blanks.blanks(tokenizer, text), tokenizer.encode(line)
    assert tokens.count(None) == len(places)
    pairs = zip(tokens, true, strict=True)
    assert [right if token is None else token for token, right in pairs] == true


def test_a_word_after_a_blank_keeps_its_place_in_the_quotes():
    """Whether a quotation mark opens or closes depends on those before the blank."""
    text = 'Once a fox said, "Go home," and the hen said, "No!"'
    tokenizer = MODS.train.tokenizers.WordTokenizer.train(text)
    for word in ("fox", "home", "hen", "No"):
        true = tokenizer.encode(text)
        true[true.index(tokenizer.id_of[word])] = None
        assert MODS.blanks.blanks(tokenizer, text.replace(word, "[MASK]")) == true


def test_choices_are_one_line_each_likeliest_first():
    """Even where the choice is a line break."""
    tokenizer = MODS.train.tokenizers.CharTokenizer("\n ab")
    lines = MODS.blanks.bars(tokenizer, torch.tensor([0.5, 0.25, 0.25, 0])).split("\n")
    assert len(lines) == 4
    assert "50.0 %" in lines[0] and lines[0].count("█") == 20
    assert "·" in lines[1] and lines[1].count("█") == 10
    assert "0.0 %" in lines[3] and "█" not in lines[3]


# ----------------------------------------------------------------------------------- the training


def test_weight_decay_pulls_at_matrices_only():
    model = make(positions="learned")
    args = SimpleNamespace(weight_decay=0.25)
    optimizer = MODS.train.new_optimizer(model, args)
    grouped = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))  # each in exactly one
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in model.named_parameters():
        matrix = "norm" not in name and not name.endswith("bias")
        assert_close(weight, before[name] * (1 - 0.1 * 0.25 if matrix else 1))


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine():
    args = SimpleNamespace(lr=0.1, steps=150)
    worked = {0: 0.002, 24: 0.05, 49: 0.1, 50: 0.1, 75: 0.05 + 0.05 * 0.5**0.5, 100: 0.05}
    worked |= {125: 0.05 - 0.05 * 0.5**0.5, 150: 0.0}
    for step, expected in worked.items():
        assert MODS.train.learning_rate(step, args) == pytest.approx(expected, abs=1e-12), step
    rates = [MODS.train.learning_rate(step, args) for step in range(151)]
    assert rates[:50] == sorted(rates[:50]) and rates[50:] == sorted(rates[50:], reverse=True)
    args.steps = None  # --minutes, while the speed is measured: it stays high
    assert MODS.train.learning_rate(1000, args) == 0.1


def run_of(objective: str = "causal", **more: object) -> SimpleNamespace:
    """As much of a run as get_batch needs: token t of its text is t."""
    args = SimpleNamespace(batch_size=3, context=8, seed=5, objective=objective)
    model = SimpleNamespace(mask_id=1000)
    run = dict(args=args, train=torch.arange(1000), model=model, step=7, device="cpu")
    return SimpleNamespace(**run | more)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_batch_depends_on_seed_and_step_alone(objective):
    run = run_of(objective)
    first = MODS.train.get_batch(run)
    torch.rand(3)  # other dice
    for one, other in zip(first, MODS.train.get_batch(run), strict=True):
        assert one.shape == (3, 8) and torch.equal(one, other)
    run.step = 8
    assert not torch.equal(MODS.train.get_batch(run)[0], first[0])
    run.step, run.args.seed = 7, 500
    assert not torch.equal(MODS.train.get_batch(run)[0], first[0])


def test_batches_come_from_the_whole_text_and_targets_are_what_comes_next():
    run = run_of(train=torch.arange(30))
    starts = set()
    for run.step in range(200):
        inputs, targets = MODS.train.get_batch(run)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))
        assert torch.equal(targets, inputs + 1)
        starts |= set(inputs[:, 0].tolist())
    assert starts == set(range(22))  # the last target is the last token


def test_a_masked_run_is_asked_for_the_same_tokens_at_each_evaluation():
    """And for each of them once, padding not at all: here it would cost 100 nats a token."""
    asked = []

    class OnlyKnowsPadding(nn.Module):
        mask_id = VOCAB

        def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, None]:
            asked.append(tokens)
            logits = torch.zeros(*tokens.shape, VOCAB)
            logits[..., 0] = -100
            return logits, None

    valid = some_tokens(501) % (VOCAB - 1) + 1  # token 0 pads, and is not in the text
    run = run_of("masked", valid=valid, model=OnlyKnowsPadding(), dtype=torch.float32)
    run.args.batch_size = 7  # 500 tokens do not fit into 7 streams: some padding
    before = torch.get_rng_state()
    loss = MODS.train.evaluate(run)
    first, asked = asked, []
    assert MODS.train.evaluate(run) == loss
    assert all(torch.equal(one, other) for one, other in zip(first, asked, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert loss == pytest.approx(math.log(VOCAB - 1), rel=1e-6)
    blanks = torch.cat(first, 1) == VOCAB
    assert 0.07 < blanks.float().mean() < 0.17


# ------------------------------------------------------------------------------- the command lines


@pytest.fixture
def train(run_main, text_file) -> Callable[..., Result]:
    """train("--steps 3", ...): a tiny run in this process, on the small text."""
    flags = words(SPEC.flags, QUICK, "--lr 0.01 --dataset", text_file)
    return lambda *parts: run_main(MODS.train, flags, *parts)


@pytest.fixture(scope="module")
def made(tmp_path_factory, text_file) -> Callable[[str], Path]:
    """made("--tokenizer bpe"): best.pt of a run of two steps, made once. To be read only."""

    @functools.cache
    def make_checkpoint(how: str) -> Path:
        out = tmp_path_factory.mktemp("made")
        flags = words(SPEC.flags, QUICK, "--steps 2 --eval-every 2 --dataset", text_file, how)
        with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
            patch.setattr(visualize, "plot_loss", lambda rows, path, **_: path.write_bytes(b""))
            patch.setattr(sys, "argv", ["train.py", *flags, "--out", str(out)])
            with contextlib.redirect_stdout(io.StringIO()):
                MODS.train.main()
        return out / "best.pt"

    return lambda how="": make_checkpoint(how)


@pytest.fixture
def write(run_main) -> Callable[..., Result]:
    """write(checkpoint, ...): generate.py in this process."""
    return lambda path, *parts: run_main(MODS.generate, "--checkpoint", path, *parts)


@pytest.mark.parametrize(
    "how",
    [
        "--ablate attention --positions alibi --norm pre --activation relu",
        "--ablate mlp --positions none --norm post --activation gelu",
        "--ablate residual --positions learned --norm pre --activation swiglu",
        "--ablate norm --positions sinusoidal --norm post --activation gelu",
        "--ablate positions --positions rope --norm pre --activation relu",
    ],
)
def test_flags_choose_the_model_and_it_trains_writes_and_is_resumed(train, run_main, tmp_path, how):
    out = tmp_path / "out"
    result = train(how, "--layers 2 --steps 2 --eval-every 2 --out", out)
    assert result.status == 0 and result.err == "", result
    model, _, checkpoint = MODS.generate.load_checkpoint(out / "last.pt")
    chosen = dict(zip(*[iter(how.replace("--", "").split())] * 2, strict=True))
    chosen |= {"context": 8, "heads": 2, "layers": 2, "objective": "causal"}
    assert model.config.items() >= chosen.items()
    assert checkpoint["settings"].items() >= chosen.items()
    written = run_main(MODS.generate, "--checkpoint", out / "last.pt", "--length 30 --prompt Once")
    assert written.status == 0 and len(written.out) == len("Once") + 30 + 1
    for flag, other in {"--positions": "nope", "--heads": "4", "--objective": "masked"}.items():
        refused = run_main(MODS.train, "--resume", out / "last.pt", flag, other)
        assert_one_line_error(refused, flag, other)
    assert run_main(MODS.train, "--steps 3 --resume", out / "last.pt").status == 0


def test_impossible_choices_are_reported_together(train, tmp_path):
    flags = "--positions nope --norm mid --activation tanh --objective both --ablate all --heads 0"
    result = train(flags, "--steps 1 --out", tmp_path / "out")
    assert_one_line_error(result, *(f"--{flag.strip()}" for flag in flags.split("--")[1:]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("heads", [3, 16, 32])
def test_heads_that_cannot_share_the_channels_are_refused(train, tmp_path, heads):
    """16 channels for 16 heads make one each, and rope turns pairs."""
    result = train("--steps 1 --heads", str(heads), "--out", tmp_path / "out")
    assert_one_line_error(result, f"--heads {heads}", "--hidden-size 16", str(2 * heads))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["--tokenizer char", ""])
def test_characters_have_no_vocabulary_size_to_choose(train, tmp_path, how):
    """char is also what is meant where no tokenizer is named."""
    result = train(how, "--vocab-size 400 --steps 1 --out", tmp_path / "out")
    assert_one_line_error(result, "--vocab-size", "char")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MODS.train.TOKENIZERS)
def test_every_tokenizer_trains_and_writes(train, write, text_file, tmp_path, name):
    size = "" if name == "char" else "--vocab-size 400"
    result = train(f"--tokenizer {name} --steps 2 --eval-every 2", size, "--out", tmp_path)
    assert result.status == 0 and result.err == "", result
    _, tokenizer, checkpoint = MODS.generate.load_checkpoint(tmp_path / "best.pt")
    alphabet = set(text_file.read_text(encoding="utf-8"))
    assert tokenizer.vocab_size == (len(alphabet) if name == "char" else 400)
    assert checkpoint["tokenizer"]["type"] == name
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    nats, bits = float(last["val_loss"]), float(last["bits_per_char"])
    assert bits <= nats / math.log(2) * 1.0001  # a token is a character or more
    assert (bits == pytest.approx(nats / math.log(2), rel=1e-6)) == (name == "char")
    once = write(tmp_path / "best.pt", "--prompt Once --length 30 --seed 1")
    assert once.status == 0 and once.err == "" and once.out.startswith("Once"), once
    assert len(once.out) > len("Once") + 15
    assert write(tmp_path / "best.pt", "--length 30 --seed 1").status == 0  # from a line's start


def test_a_prompt_without_a_token_is_refused(made, write):
    """To WordPiece a space is nothing."""
    path = made("--tokenizer wordpiece --vocab-size 400")
    assert_one_line_error(write(path, ["--prompt", " "]), "--prompt")


def test_a_larger_context_is_given_on_the_command_line(made, write):
    flags = "--prompt Once --length 200 --temperature 2 --seed 1 --context 40"
    for positions in POSITIONS:
        result = write(made(f"--positions {positions}"), flags)
        if positions == "learned":
            assert_one_line_error(result, "--context 40", "8 tokens")
            assert result.out == ""
        else:
            assert result.status == 0 and len(result.out) == len("Once") + 200 + 1
    result = write(made("--positions alibi"), flags)
    assert write(made("--positions alibi"), flags, "--context 8").out != result.out
    model, tokenizer, _ = MODS.generate.load_checkpoint(made("--positions alibi"))
    model.context = 40
    tokens = MODS.generate.generate(model, tokenizer.encode("Once"), 200, temperature=2, seed=1)
    assert result.out == "Once" + tokenizer.decode(list(tokens)) + "\n"
    assert write(made("--positions learned"), flags, "--context 4").status == 0
    assert_one_line_error(write(made("--positions rope"), "--context 1"), "--context")


# ------------------------------------------------------------------ blanks, on the command line

CHOICE = re.compile(r"^ +(\S+) +(\d+\.\d) %(?: █*)?$")


def choices(out: str) -> list[tuple[str, float]]:
    """What was offered: (token, percent)."""
    found = [CHOICE.match(line) for line in out.splitlines()]
    return [(match[1], float(match[2])) for match in found if match]


def assert_offered(offered: list[tuple[str, float]], tokenizer: object, p: Tensor) -> None:
    """The likeliest tokens of a distribution, with their probabilities."""
    assert len(offered) >= 5
    for (name, percent), share, token in zip(offered, *p.topk(len(offered)), strict=True):
        assert percent == pytest.approx(100 * share.item(), abs=0.051)
        assert name == visualize.visible(tokenizer.token_text(int(token))).strip()


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_fill_prints_what_could_stand_in_each_blank(made, write, objective):
    path = made(f"--objective {objective}")
    text = "a [MASK]o[MASK]x"
    result = write(path, ["--fill", text])
    assert result.status == 0 and result.err == "", result
    _, *parts = result.out.split("[MASK]")
    model, tokenizer, _ = MODS.generate.load_checkpoint(path)
    a, o, x = map(tokenizer.encode, ("a ", "o", "x"))
    expected = MODS.blanks.fill(model, [*a, None, *o, None, *x])
    for part, p in zip(parts, expected, strict=True):
        assert_offered(choices(part), tokenizer, p)
    assert write(path, ["--fill", text]) == result  # no dice


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize(
    ("text", "said"),
    [("no blank", "[MASK]"), ("", "[MASK]"), ("[MASK] far too long", "8"), ("[MASK] 雪", "'雪'")],
)
def test_texts_that_cannot_be_filled_are_refused(made, write, objective, text, said):
    result = write(made(f"--objective {objective}"), ["--fill", text])
    assert_one_line_error(result, said)
    assert result.out == ""


def test_a_masked_model_refuses_to_write(made, write, tmp_path):
    for flags in ("--prompt Once", "", f"--attention {tmp_path / 'a.html'}"):
        result = write(made("--objective masked"), flags)
        assert_one_line_error(result, "masked", "--fill")
        assert result.out == ""
    assert not (tmp_path / "a.html").exists()


MASKED = "--objective masked --batch-size 16 --context 32 --lr 0.01 --layers 1"


def losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]


def test_a_masked_run_learns_what_both_sides_tell(train, run_main, tmp_path):
    """a to f over and over: any neighbour tells what is hidden. Guessing costs ln 6 = 1.8 nats."""
    text = tmp_path / "round.txt"
    text.write_text("abcdef" * 500 + "\n", encoding="utf-8")
    how = "--steps 200 --eval-every 200 --positions learned --hidden-size 32 --lr 0.02 --seed 3"
    result = train(MASKED, how, "--dataset", text, "--out", tmp_path / "out")
    assert result.status == 0 and result.err == "", result
    first, last = losses(tmp_path / "out")
    assert first > 1.2 and last < 0.3
    samples = (tmp_path / "out" / "samples.txt").read_text(encoding="utf-8").split("--- step ")
    pairs = [pair.split("/") for pair in samples[-1].splitlines()[1].split()]
    assert len(pairs) == 10  # each eighth of 80 tokens: the right one, the guess
    assert sum(right == guess for right, guess in pairs) >= 9
    path = tmp_path / "out" / "best.pt"
    filled = run_main(MODS.generate, "--checkpoint", path, "--fill ab[MASK]def")
    assert choices(filled.out)[0][0] == "c"


def test_the_command_that_a_masked_run_prints_works(train, run_main, tmp_path):
    result = train(MASKED, "--steps 2 --eval-every 2 --out", tmp_path)
    assert result.status == 0, result
    command = shlex.split(printed_command(result.out, "generate.py"))
    filled = run_main(MODS.generate, command[2:])
    assert filled.status == 0 and len(choices(filled.out)) == 8, filled


@pytest.mark.parametrize("how", ["--objective masked", "--positions learned --tokenizer bpe"])
def test_a_stopped_run_goes_on_exactly(train, run_main, tmp_path, how):
    flags = words(how, "--dropout 0.2 --steps 16 --eval-every 8 --save-every 1000")
    assert train(flags, "--batch-size 16 --out", tmp_path / "one").status == 0
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 11)
        assert train(flags, "--batch-size 16 --out", tmp_path / "two").status == 130
    assert run_main(MODS.train, "--resume", tmp_path / "two" / "last.pt").status == 0
    assert_same_results(tmp_path / "two", tmp_path / "one")


def test_a_masked_run_with_the_smallest_batches_ends_well(train, tmp_path):
    how = "--objective masked --batch-size 1 --context 2 --steps 40 --eval-every 40"
    result = train(how, "--out", tmp_path)
    assert result.status == 0 and result.err == "", result


def test_a_masked_run_with_hardly_a_validation_text_ends_well(train, tmp_path):
    """A few characters to validate on, and chance may hide none of them."""
    for size in (20, 30, 40, 50):
        text = tmp_path / f"{size}.txt"
        text.write_text(("the fox and the hen went away. " * 2)[:size], encoding="utf-8")
        how = "--objective masked --batch-size 1 --context 4 --steps 1 --dataset"
        result = train(how, text, "--out", tmp_path / "out")
        assert result.status == 0 and result.err == "", (size, result)
        assert all(loss > 0.5 for loss in losses(tmp_path / "out"))


# --------------------------------------------------------------------------------- conversations


@pytest.fixture
def talk(made, run_main, monkeypatch) -> Callable[..., Result]:
    """talk("line", "line", how="--objective masked"): a conversation in this process."""

    def run(*lines: str, how: str = "", flags: str = "--length 20 --seed 1") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        result = run_main(MODS.interactive, "--checkpoint", made(how), flags)
        assert result.status == 0 and result.err == "", result
        return result

    return run


def after_header(result: Result) -> str:
    return result.out.split("\n", 1)[1]


def conversation(path: Path, *lines: str, length: int = 20) -> tuple[str, list[int]]:
    """What a conversation prints, and all its tokens, from calls of `generate` on all of them."""
    model, tokenizer, _ = MODS.generate.load_checkpoint(path)
    tokens, printed = [], ""
    for line in lines:
        tokens += tokenizer.encode("\n" + line if tokens else line)
        start = list(tokens)
        tokens += MODS.generate.generate(model, tokens, length, temperature=0.8, seed=1)
        printed += line + tokenizer.decode(tokens[len(start) :]) + "\n\n"
    return printed, tokens


def test_a_reply_goes_on_from_all_that_was_said(made, talk):
    """Far past the context of 8, so the state must be what one reading of it all makes it."""
    printed, tokens = conversation(made(), "Once", "The king", "said")
    assert after_header(talk("Once", "The king", "said")) == printed + "\n"
    assert len(tokens) == 3 * 20 + len("Once\nThe king\nsaid")
    alone, _ = conversation(made(), "The king")
    assert alone not in printed  # what was said before makes a difference


def test_an_empty_line_lets_it_go_on_without_a_word_of_yours(made, talk):
    model, tokenizer, _ = MODS.generate.load_checkpoint(made())
    printed, tokens = conversation(made(), "Once")
    more = MODS.generate.generate(model, tokens, 20, temperature=0.8, seed=1)
    expected = printed + tokenizer.decode(list(more)) + "\n\n\n"
    assert after_header(talk("Once", "")) == expected


@pytest.mark.parametrize("undone", [["A fox"], ["A fox", "雪"], ["A fox", "/top"], ["", "/seed 1"]])
def test_undo_takes_back_one_line_and_its_reply(made, talk, undone):
    """A line that failed, or a command, is no turn."""
    printed, _ = conversation(made(), "Once", "The king")
    before, after = printed.split("\n\n", 1)[0], printed.split("\n\n", 1)[1]
    out = after_header(talk("Once", *undone, "/undo", "The king"))
    assert out.startswith(before + "\n\n") and out.endswith("\n" + after + "\n")
    shown = out.removeprefix(before).removesuffix(after + "\n")
    assert " / ".join(before[-60:].splitlines()) + "\n" in shown  # where the text stands now


def test_undo_at_the_start_says_so_and_harms_nothing(made, talk):
    printed, _ = conversation(made(), "Once")
    out = after_header(talk("/undo", "A fox", "/undo", "/undo", "Once"))
    assert out.count("nothing is left") == 3
    assert out.endswith("\n" + printed + "\n")


def test_reset_forgets_all(made, talk):
    printed, _ = conversation(made(), "Once")
    out = after_header(talk("A fox", "/length 7", "The king", "/reset", "Once"))
    assert out.endswith("  as at the start\n" + printed + "\n")


def test_a_reply_cut_short_by_ctrl_c_stays_as_far_as_it_came(made, talk, monkeypatch):
    sample, calls = MODS.generate.sample, itertools.count()

    def interrupted(*args: object) -> Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return sample(*args)

    printed, tokens = conversation(made(), "Once", length=5)
    monkeypatch.setattr(MODS.generate, "sample", interrupted)
    out = after_header(talk("Once", "/top"))
    assert out.startswith(printed.rstrip("\n") + " ...")
    model, tokenizer, _ = MODS.generate.load_checkpoint(made())
    expected = model(torch.tensor([tokens]))[0][0, -1].softmax(0)
    assert_offered(choices(out), tokenizer, expected)


@pytest.mark.parametrize("lines", [[], ["Once"], ["Once", "The king"]])
def test_top_shows_what_the_model_expects_next(made, talk, lines):
    model, tokenizer, _ = MODS.generate.load_checkpoint(made())
    printed, tokens = conversation(made(), *lines)
    result = after_header(talk(*lines, "/top", *lines))
    assert result.startswith(printed)
    logits, _ = model(torch.tensor([tokens or tokenizer.encode("\n")]))
    shown = result.removeprefix(printed).split("Once")[0]
    assert_offered(choices(shown), tokenizer, logits[0, -1].softmax(0))
    assert len(choices(shown)) == 8
    again, _ = conversation(made(), *lines, *lines)
    assert result.endswith(again.removeprefix(printed) + "\n")  # a look changes nothing


@pytest.mark.parametrize("name", MODS.train.TOKENIZERS)
def test_a_conversation_may_begin_without_a_word_whatever_a_token_is(talk, name):
    size = "" if name == "char" else "--vocab-size 400"
    out = after_header(talk("/top", "", "/top", how=f"--tokenizer {name} {size}"))
    assert len(choices(out)) == 16 and "error" not in out


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_line_with_a_blank_shows_what_could_stand_there(made, talk, objective):
    model, tokenizer, _ = MODS.generate.load_checkpoint(made(f"--objective {objective}"))
    out = after_header(talk("a [MASK]x", "[MASK] far too long", how=f"--objective {objective}"))
    tokens = [*tokenizer.encode("a "), None, *tokenizer.encode("x")]
    assert_offered(choices(out), tokenizer, MODS.blanks.fill(model, tokens)[0])
    assert out.count("error: ") == 1 and out.rstrip().splitlines()[-1].startswith("error: ")


def test_a_blank_is_no_turn(made, talk):
    printed, _ = conversation(made(), "Once", "The king")
    out = after_header(talk("Once", "a [MASK]", "The king"))
    assert out.endswith("\n" + printed.split("\n\n", 1)[1] + "\n")


def test_a_masked_model_says_that_it_cannot_write_and_the_talk_goes_on(talk):
    out = after_header(talk("Once", "", "/top", "a [MASK]", how="--objective masked"))
    lines = out.splitlines()
    assert all(line.startswith("error: ") and "masked" in line for line in lines[:5] if line)
    assert out.count("error: ") == 3 and len(choices(out)) == 8


def test_help_names_the_new_commands(talk):
    out = talk("/help").out
    assert all(name in out for name in ("/top", "/attention", "/undo", "[MASK]"))


# ------------------------------------------------------------------------- pictures of attention


class Drawn(list):
    """What was to be drawn, each as (names, weights, path, title, guesses), and a file for it."""

    def __call__(self, names, weights, path, title, guesses=None) -> None:
        self.append((names, torch.tensor(weights), path, title, guesses))
        path.write_text("drawn", encoding="utf-8")


@pytest.fixture
def drawn(monkeypatch) -> Drawn:
    """In place of the two kinds of drawing, which have tests of their own."""
    made = Drawn()
    monkeypatch.setattr(visualize, "plot_heads", made)
    monkeypatch.setattr(visualize, "write_attention_page", made)
    return made


def assert_drawn(one: tuple, path: Path, checkpoint: Path, tokens: list[int]) -> None:
    model, tokenizer, _ = MODS.generate.load_checkpoint(checkpoint)
    names, weights, where, title, guesses = one
    expected, logits = MODS.looking.attention_weights(model, tokens)
    assert names == [visualize.visible(tokenizer.token_text(token)) for token in tokens]
    assert_close(weights, expected)
    assert where == path and title
    if path.suffix == ".html":
        for row, guessed in zip(logits.softmax(-1), guesses, strict=True):
            shares = [share for _, share in guessed]
            assert shares == pytest.approx(row.topk(len(shares)).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_attention_is_drawn_of_the_text_written(made, write, drawn, tmp_path, suffix):
    path, how = tmp_path / f"out{suffix}", "--prompt Once --length 30 --seed 1"
    plain = write(made("--context 50"), how)
    result = write(made("--context 50"), how, "--attention", path)
    assert result.status == 0 and result.err == "" and path.exists()
    assert result.out.startswith(plain.out) and str(path) in result.out[len(plain.out) :]
    _, tokenizer, _ = MODS.generate.load_checkpoint(made("--context 50"))
    tokens = tokenizer.encode(plain.out.removesuffix("\n"))
    assert len(tokens) == 34
    assert_drawn(drawn[0], path, made("--context 50"), tokens)


def test_of_a_text_longer_than_the_context_the_beginning_is_drawn(made, write, drawn, tmp_path):
    result = write(made(), "--prompt Once --length 30 --seed 1 --attention", tmp_path / "a.html")
    assert result.status == 0, result
    _, tokenizer, _ = MODS.generate.load_checkpoint(made())
    tokens = tokenizer.encode(result.out[:8])
    assert_drawn(drawn[0], tmp_path / "a.html", made(), tokens)
    assert "8 tokens" in result.out.splitlines()[-1]


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_a_page_and_a_picture_are_written(made, write, tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    assert write(made(), "--length 10 --attention", path).status == 0
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<!")


def test_blanks_and_a_picture_are_not_had_at_once(made, write, tmp_path):
    flags = ["--fill", "a [MASK]", "--attention", tmp_path / "a.html"]
    assert_one_line_error(write(made(), flags), "--fill", "--attention")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.PNG.gz"])
def test_a_picture_of_another_kind_is_refused_before_anything_is_written(made, write, name):
    result = write(made(), "--length 10 --attention", name)
    assert_one_line_error(result, name, ".html", ".png")
    assert result.out == ""


def test_where_there_is_no_attention_none_is_drawn(made, write, talk, tmp_path):
    how = "--ablate attention"
    result = write(made(how), "--length 10 --attention", tmp_path / "a.html")
    assert_one_line_error(result, "--ablate attention")
    assert result.out == ""
    out = after_header(talk("Once", f"/attention {tmp_path / 'a.html'}", how=how))
    assert "error: " in out.splitlines()[-1] or "error: " in out.splitlines()[-2]
    assert not (tmp_path / "a.html").exists()


def test_attention_in_a_conversation_is_of_all_that_was_said(made, talk, drawn, tmp_path):
    printed, tokens = conversation(made(), "Once", "The king")
    path = tmp_path / "with space.html"
    out = after_header(talk("Once", "The king", f"/attention {path}"))
    assert out.startswith(printed) and str(path) in out[len(printed) :]
    assert_drawn(drawn[0], path, made(), tokens[:8])


def test_attention_without_a_name_is_a_page_in_this_folder(talk, drawn, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "attention.html" in talk("Once", "/attention").out
    assert [path.name for path in tmp_path.iterdir()] == ["attention.html"]


@pytest.mark.parametrize("name", ["a.txt", "no/such/folder/a.html", "."])
def test_attention_that_cannot_be_written_is_told_so_and_the_talk_goes_on(
    made, talk, monkeypatch, tmp_path, name
):
    monkeypatch.chdir(tmp_path)
    printed, _ = conversation(made(), "Once", "The king")
    out = after_header(talk("Once", f"/attention {name}", "The king"))
    said = out.removeprefix(printed.split("\n\n", 1)[0]).split("The king")[0].strip()
    assert said.startswith("error: ") and "\n" not in said
    assert out.endswith("\n" + printed.split("\n\n", 1)[1] + "\n")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- what length costs


def test_loss_by_position_is_that_of_each_piece_read_alone():
    model, tokens = make(context=8), some_tokens(40)
    found = MODS.show_length.loss_by_position(model, tokens, 8)
    pieces = [tokens[start : start + 9] for start in range(0, 32, 2)]
    with torch.inference_mode():
        logits = [model(piece[None, :-1])[0][0] for piece in pieces]
    losses = [
        F.cross_entropy(each, piece[1:], reduction="none")
        for each, piece in zip(logits, pieces, strict=True)
    ]
    assert_close(found, torch.stack(losses).mean(dim=0))


def test_one_more_token_is_timed_after_as_many_as_the_length_says(monkeypatch):
    model, read = make(context=64), []
    plain = model.read
    monkeypatch.setattr(model, "read", lambda x, last: read.append(x.size(1)) or plain(x, last))
    times = MODS.show_length.seconds_per_token(model, [8, 64])
    assert set(read[: len(read) // 2]) == {8} and set(read[len(read) // 2 :]) == {64}
    assert len(times) == 2 and min(times) > 0


def test_groups_of_positions_follow_one_another_without_a_gap():
    edges = MODS.show_length.edges_up_to(1000)
    assert edges[0] == 1 and edges[-1] == 1000
    assert all(1 <= b - a <= 0.26 * a + 1 for a, b in itertools.pairwise(edges))


def test_the_picture_of_length_compares_models_and_learned_positions_end(made, run_main, tmp_path):
    flags = ["--length", "32", "--out", tmp_path / "l.png"]
    checkpoints = [made(f"--positions {positions}") for positions in ("alibi", "learned")]
    result = run_main(MODS.show_length, checkpoints, flags)
    assert result.status == 0, result
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")
    alibi, learned = result.out.split("learned positions")
    assert "    32 tokens" in alibi and "    16 tokens" not in learned
    refused = run_main(MODS.show_length, [made("--objective masked")], flags)
    assert_one_line_error(refused, "masked")
