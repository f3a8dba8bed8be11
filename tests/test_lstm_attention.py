"""Model 03: its cells against torch.nn, attention against loops, and the flag that leaks."""

from __future__ import annotations

import csv
import functools
import itertools
import math
import random
import re
from pathlib import Path

import pytest
import torch
from conftest import MODELS, QUICK, assert_one_line_error, modules, words
from test_resume import assert_same_results, signal_at_step
from torch import Tensor, nn
from torch.nn import functional as F

from shared.data.download import Corpus
from shared.data.tales import write_corpus

SPEC = MODELS[2]
MODS = modules(SPEC.folder)
Attention, AttentionLSTM = MODS.model.Attention, MODS.model.AttentionLSTM
VOCAB = 20
CELLS, KINDS = ("rnn", "gru", "lstm"), ("none", "additive", "dot")
EVERY = list(itertools.product(CELLS, KINDS))


def make(seed: int = 0, **how: object) -> nn.Module:
    """A small model in evaluation mode."""
    torch.manual_seed(seed)
    return AttentionLSTM(**{"vocab_size": VOCAB, "hidden_size": 12} | how).eval()


def some_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------ the cells

SIZE, HIDDEN, BATCH = 5, 7, 3


class Pair:
    """A cell of ours and torch's with the same weights; torch orders an LSTM's gates i, f, g, o."""

    def __init__(self, cell: str) -> None:
        torch.manual_seed(4)
        self.cell = cell
        self.layer = MODS.model.CELLS[cell](SIZE, HIDDEN)
        self.twin = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](SIZE, HIDDEN)
        gates = self.layer.W.out_features // HIDDEN
        order = [1, 2, 3, 0] if cell == "lstm" else range(gates)
        self.order = torch.cat([torch.arange(HIDDEN) + HIDDEN * gate for gate in order])
        none = torch.zeros(HIDDEN * gates)  # torch has a second bias in every cell
        bias = none if self.layer.U.bias is None else self.layer.U.bias
        weights = self.layer.W.weight, self.layer.U.weight, self.layer.W.bias, bias
        with torch.no_grad():
            for theirs, own in zip(self.twin.parameters(), weights, strict=True):
                theirs.copy_(own[self.order])

    def state(self) -> Tensor:
        """A state to start from: h, and c of an LSTM."""
        return torch.randn(*[2] * (self.cell == "lstm"), BATCH, HIDDEN, requires_grad=True)

    def theirs(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """torch's cell, called as ours is."""
        if state is not None:
            state = tuple(state[:, None]) if self.cell == "lstm" else state[None]
        outputs, end = self.twin(x, state)
        return outputs, torch.cat(end) if self.cell == "lstm" else end[0]

    def our_gradients(self, loss: Tensor, *inputs: Tensor) -> list[Tensor]:
        """Of the inputs, W, U and the biases, with the gates in torch's order."""
        weights = [self.layer.W.weight, self.layer.U.weight, self.layer.W.bias]
        weights += [] if self.layer.U.bias is None else [self.layer.U.bias]
        found = torch.autograd.grad(loss, [*inputs, *weights], retain_graph=True)
        n = len(inputs)
        return [*found[:n], *(gradient[self.order] for gradient in found[n:])]

    def their_gradients(self, loss: Tensor, *inputs: Tensor) -> list[Tensor]:
        weights = list(self.twin.parameters())[: 4 if self.cell == "gru" else 3]
        return list(torch.autograd.grad(loss, [*inputs, *weights], retain_graph=True))


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("given", [False, True], ids=["no state", "given state"])
def test_a_cell_and_all_its_gradients_equal_torch(cell, steps, given):
    pair = Pair(cell)
    inputs = [torch.randn(steps, BATCH, SIZE, requires_grad=True)] + [pair.state()] * given
    x, state = (*inputs, None)[:2]
    outputs, end = pair.layer(x, state)
    their_outputs, their_end = pair.theirs(x, state)
    assert_close(outputs, their_outputs)
    assert_close(end, their_end)
    at_outputs, at_end = torch.randn_like(outputs), torch.randn_like(end)
    for a, b in ((1, 0), (0, 1), (1, 1)):  # through the outputs, the last state (c too), or both
        ours = a * (outputs * at_outputs).sum() + b * (end * at_end).sum()
        theirs = a * (their_outputs * at_outputs).sum() + b * (their_end * at_end).sum()
        mine = pair.our_gradients(ours, *inputs)
        for own, other in zip(mine, pair.their_gradients(theirs, *inputs), strict=True):
            assert_close(own, other)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_equal_finite_differences(cell):
    torch.manual_seed(0)
    layer = MODS.model.CELLS[cell](2, 3).double()
    shape = (2, 2, 3) if cell == "lstm" else (2, 3)
    x, state = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((4, 2, 2), shape))
    weights = tuple(layer.parameters())  # gradcheck moves them in place, one number at a time
    assert torch.autograd.gradcheck(lambda x, state, *_: layer(x, state), (x, state, *weights))


@pytest.mark.parametrize("cell", CELLS)
def test_gates_can_keep_a_memory_for_ever_and_a_plain_rnn_cannot(cell):
    """With the gate for keeping open, and the one for new content shut, nothing is lost."""
    layer = MODS.model.CELLS[cell](2, 4)
    memory = torch.tensor([[0.9, -0.5, 0.2, -0.1]])
    state = torch.stack((torch.tanh(memory), memory)) if cell == "lstm" else memory
    with torch.no_grad():
        layer.W.bias.fill_(30)  # z of a GRU, f and o of an LSTM: open
        if cell == "lstm":
            layer.W.bias[4:8] = -30  # i: shut
    _, end = layer(torch.randn(100, 1, 2), state)
    kept = end[1] if cell == "lstm" else end
    assert torch.allclose(kept, memory, atol=1e-4) == (cell != "rnn")


def test_an_lstm_starts_with_its_forget_gate_open():
    layer = MODS.model.CELLS["lstm"](3, 100)
    o, i, f, g = layer.W.bias.detach().view(4, 100)
    assert (f > 0.4).all()
    assert all(bias.abs().max() < 0.6 for bias in (o, i, g))


# ------------------------------------------------------------------------------------- attention


def slow_scores(attention: nn.Module, query: Tensor, keys: list[Tensor]) -> list[float]:
    """The scores of one output (H,) with the keys it may see, by the papers."""
    scores = []
    for key in keys:
        q, k = attention.query.weight @ query, attention.key.weight @ key
        if attention.kind == "additive":  # Bahdanau et al. 2015: v . tanh(W s + U h)
            score = attention.score.weight[0] @ torch.tanh(q + k)
        else:  # Luong et al. 2015, "general": s W h; scaled: Vaswani et al. 2017
            score = q @ k / math.sqrt(len(q))
        scores.append(score.item())
    return scores


def slow_softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


@pytest.fixture(params=["additive", "dot"])
def attention(request: pytest.FixtureRequest) -> nn.Module:
    """A look back of 4 entries at most, with weights large enough to choose."""
    torch.manual_seed(3)
    made = Attention(request.param, VOCAB, hidden_size=8, window=4)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3)
    return made


def test_attention_equals_loops(attention):
    outputs, keys, values = torch.randn(2, 5, 8), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    with torch.inference_mode():
        mixed, scores = attention(outputs, keys, values)
        for b, t in itertools.product(range(2), range(5)):
            own = 9 - 5 + t  # the entry of this output: the newest that it may see
            seen = range(own - 3, own + 1)
            expected = slow_scores(attention, outputs[b, t], [keys[b, s] for s in seen])
            for s in range(9):
                score = expected[s - own + 3] if s in seen else -math.inf
                assert scores[b, t, s] == pytest.approx(score, abs=1e-5)
            weights = slow_softmax(expected)
            seen_values = sum(p * values[b, s] for p, s in zip(weights, seen, strict=True))
            mix = (
                attention.mix.weight @ torch.cat((outputs[b, t], seen_values)) + attention.mix.bias
            )
            assert_close(mixed[b, t], torch.tanh(mix))


def test_weights_sum_to_1_over_the_window_and_are_0_elsewhere(attention):
    _, scores = attention(torch.randn(2, 7, 8), torch.randn(2, 10, 8), torch.randn(2, 10, 8))
    weights = scores.softmax(dim=-1)
    assert_close(weights.sum(-1), torch.ones(2, 7))
    for t, s in itertools.product(range(7), range(10)):
        age = (3 + t) - s
        assert ((weights[:, t, s] > 0) == (0 <= age < 4)).all(), (t, s)


def test_what_lies_outside_the_window_has_no_influence(attention):
    outputs, keys, values = (torch.randn(1, 10, 8) for _ in range(3))
    mixed, _ = attention(outputs, keys, values)
    for s in range(10):
        other_keys, other_values = keys.clone(), values.clone()
        other_keys[:, s], other_values[:, s] = torch.randn(2, 1, 8)
        other, _ = attention(outputs, other_keys, other_values)
        changed = [t for t in range(10) if not torch.equal(other[:, t], mixed[:, t])]
        assert changed == [t for t in range(s, s + 4) if t < 10]


def slow_copy(attention: nn.Module, logits: Tensor, output: Tensor, scored: list) -> Tensor:
    """Of one output: logits (V,), the output (H,), pairs of score and word -> logits (V,)"""
    gate = math.exp(attention.gate(output).item())
    weights = logits.exp()
    for score, word in scored:  # Merity et al. 2017: one softmax over vocabulary and past
        weights[word] += gate * math.exp(score)
    return weights.log()


def test_copying_equals_loops_with_words_that_come_again(attention):
    logits, outputs = torch.randn(2, 6, VOCAB), torch.randn(2, 6, 8)
    filed = torch.randint(5, (2, 9))  # few words, so each of them several times
    scores = torch.randn(2, 6, 9)
    with torch.inference_mode():
        copied = attention.copy(logits, outputs, scores, filed)
        for b, t in itertools.product(range(2), range(6)):
            pairs = list(zip(scores[b, t].tolist(), filed[b].tolist(), strict=True))
            assert_close(copied[b, t], slow_copy(attention, logits[b, t], outputs[b, t], pairs))
    assert torch.equal(copied[:, :, 5:], logits[:, :, 5:])  # words never read are as before
    high = attention.copy(logits, outputs, scores + 200, filed)  # however high the scores are
    assert torch.equal(high[:, :, 5:], logits[:, :, 5:]) and high.isfinite().all()


# ------------------------------------------------------------------------------- the whole model


def slow_logits(model: nn.Module, tokens: list[int]) -> Tensor:
    """logits (T, V) by loops: one word at a time, all that was filed kept in plain lists."""
    vectors = model.embedding.weight[tokens] * math.sqrt(model.config["hidden_size"])  # (T, H)
    states = [None] * len(model.layers)
    before, keys, rows = torch.zeros(model.config["hidden_size"]), [], []
    for t, vector in enumerate(vectors):
        x = vector.view(1, 1, -1)
        for i, layer in enumerate(model.layers):
            x, states[i] = layer(x, states[i])
        output = mixed = x[0, 0]
        keys.append(before)  # what was expected when this word came
        before = output
        if (look := model.attention) is not None:
            seen = range(max(0, t + 1 - look.window), t + 1)
            scores = slow_scores(look, output, [keys[s] for s in seen])
            weights = slow_softmax(scores)
            came = sum(weight * vectors[s] for weight, s in zip(weights, seen, strict=True))
            mixed = torch.tanh(look.mix(torch.cat((output, came))))
        logits = model.head.weight @ mixed + model.head.bias
        if look is not None:
            pairs = [(score, tokens[s]) for score, s in zip(scores, seen, strict=True)]
            logits = slow_copy(look, logits, output, pairs)
        rows.append(logits)
    return torch.stack(rows)


@pytest.mark.parametrize(("cell", "kind"), EVERY)
@pytest.mark.parametrize("length", [2, 3, 25])
def test_the_model_equals_loops_over_words_however_long_the_text(cell, kind, length):
    """A text longer than the window is looked through piece by piece: all pieces must fit."""
    model = make(cell=cell, attention=kind, window=3, layers=2)
    tokens = some_tokens(2, length)
    with torch.inference_mode():
        logits, _ = model(tokens)
        for row, expected in zip(tokens.tolist(), logits, strict=True):
            assert_close(expected, slow_logits(model, row))


@pytest.mark.parametrize(("cell", "kind"), EVERY)
def test_whole_equals_chunks_equals_token_by_token_beyond_the_window(cell, kind):
    model, tokens = make(cell=cell, attention=kind, window=3, layers=2), some_tokens(2, 12)
    with torch.inference_mode():
        whole, end = model(tokens)
        for sizes in ([5, 1, 6], [1] * 12, [2, 10]):
            state, pieces = None, []
            for piece in tokens.split(sizes, dim=1):
                logits, state = model(piece, state)
                pieces.append(logits)
            assert_close(torch.cat(pieces, 1), whole)
            for part, expected in zip(state, end, strict=True):
                assert_close(part, expected)


@pytest.mark.parametrize(("cell", "kind"), EVERY)
def test_a_token_never_changes_logits_before_it(cell, kind):
    model, tokens = make(cell=cell, attention=kind, window=3), some_tokens(1, 10)
    with torch.inference_mode():
        logits, _ = model(tokens)
        for t in range(10):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % VOCAB
            other, _ = model(changed)
            assert torch.equal(other[:, :t], logits[:, :t])
            assert not torch.allclose(other[:, t], logits[:, t])


@pytest.mark.parametrize(("cell", "kind"), EVERY)
def test_the_state_holds_no_more_than_the_window(cell, kind):
    model, state = make(cell=cell, attention=kind, window=3, layers=2), None
    filed = []
    with torch.inference_mode():
        for length in (1, 1, 1, 1, 2, 20, 1):
            _, state = model(some_tokens(2, length), state)
            cells, keys, filed_words = state
            assert cells.shape == ((2, 2, 2, 12) if cell == "lstm" else (2, 2, 12))
            filed.append(filed_words.size(1))
            assert keys.shape == (2, filed[-1] + 1, 12)  # one whose word is still to come
    assert filed == ([0] * 7 if kind == "none" else [1, 2, 3, 3, 3, 3, 3])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "kind"), EVERY)
def test_every_weight_gets_a_gradient(cell, kind, bidirectional):
    model = make(cell=cell, attention=kind, layers=2, bidirectional=bidirectional).train()
    model(some_tokens(2, 6))[0].square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_config_holds_every_argument_and_the_table_stays_tied():
    how = dict(
        vocab_size=11, hidden_size=8, layers=2, dropout=0.5, cell="gru", attention="additive",
        window=5, bidirectional=True,
    )  # fmt: skip
    model = AttentionLSTM(**how).eval()
    assert model.config == how
    twin = AttentionLSTM(**model.config).eval()
    twin.load_state_dict(model.state_dict())
    assert twin.head.weight is twin.embedding.weight
    assert list(dict(model.named_parameters())) == list(dict(twin.named_parameters()))
    tokens = torch.randint(11, (2, 9))
    assert torch.equal(model(tokens)[0], twin(tokens)[0])


# ------------------------------------------------------------------------------ what it can learn


def pairs_told_and_asked(count: int, dice: torch.Generator, pairs: int = 8) -> Tensor:
    """Texts k1 v1 k2 v2 ..., then the same pairs in another order: (count, 4 pairs) tokens.

    Keys are tokens 0 to 15, values 16 to 31; which belong together is new in every text.
    """
    keys = torch.rand(count, 16, generator=dice).argsort(1)[:, :pairs]
    values = torch.randint(16, 32, (count, pairs), generator=dice)
    order = torch.rand(count, pairs, generator=dice).argsort(1)
    asked = torch.stack((keys.gather(1, order), values.gather(1, order)), 2).flatten(1)
    return torch.cat((torch.stack((keys, values), 2).flatten(1), asked), 1)


def share_recalled(kind: str) -> float:
    """After 150 small steps: how many of the values are known when asked for."""
    torch.manual_seed(0)
    model, dice = AttentionLSTM(32, 32, attention=kind), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        texts = pairs_told_and_asked(32, dice)
        logits, _ = model(texts[:, :-1])
        loss = F.cross_entropy(logits[:, 16::2].flatten(0, 1), texts[:, 17::2].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    texts = pairs_told_and_asked(200, dice)
    with torch.inference_mode():
        likeliest = model(texts[:, :-1])[0][:, 16::2].argmax(-1)
    return (likeliest == texts[:, 17::2]).float().mean().item()


def test_attention_learns_to_recall_what_a_vector_cannot_hold():
    """Eight pairs, told once, asked once (guessing: 1 in 16). Measured: 0.1 and 1.0."""
    assert share_recalled("none") < 0.3
    assert share_recalled("dot") > 0.9


# ---------------------------------------------------------------------------------------- the leak


@pytest.mark.parametrize(("cell", "kind"), EVERY)
def test_bidirectional_reads_the_answer(cell, kind):
    """The opposite of causality: the next token, the one to be guessed, changes the logits."""
    model = make(cell=cell, attention=kind, window=3, bidirectional=True)
    tokens = some_tokens(1, 8)
    with torch.inference_mode():
        logits, _ = model(tokens)
        for t in range(7):
            changed = tokens.clone()
            changed[0, t + 1] = (changed[0, t + 1] + 1) % VOCAB
            assert not torch.allclose(model(changed)[0][:, t], logits[:, t])


def loss_after_training_on_noise(bidirectional: bool) -> tuple[float, float]:
    """On new random tokens: nats per token read in one go, and read one by one.

    The last token of a text is left out: no answer stands behind it.
    """
    torch.manual_seed(0)
    model = AttentionLSTM(VOCAB, 32, attention="none", bidirectional=bidirectional)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    for _ in range(200):
        tokens = torch.randint(VOCAB, (16, 12))
        loss = loss_of(model(tokens)[0], tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, state, pieces = torch.randint(VOCAB, (64, 12)), None, []
    with torch.inference_mode():
        for piece in tokens.split(1, dim=1):
            logits, state = model(piece, state)
            pieces.append(logits)
        return loss_of(model(tokens)[0], tokens).item(), loss_of(
            torch.cat(pieces, 1), tokens
        ).item()


def test_bidirectional_predicts_what_nobody_can_and_is_lost_when_it_must_write():
    """Dice cannot be predicted: less than ln V nats per token is a proof of cheating."""
    honest, honest_one_by_one = loss_after_training_on_noise(False)
    assert honest == pytest.approx(math.log(VOCAB), abs=0.2)
    assert honest_one_by_one == pytest.approx(honest, abs=1e-4)
    leaking, leaking_one_by_one = loss_after_training_on_noise(True)
    assert leaking < 0.1
    assert leaking_one_by_one > math.log(VOCAB)


# -------------------------------------------------------------------------------- the command lines


@pytest.fixture
def train(run_main, text_file):
    """train("--steps 3", ...): a tiny run in this process, on the small text."""
    flags = words(SPEC.flags, QUICK, "--lr 0.01 --dataset", text_file)
    return lambda *parts: run_main(MODS.train, flags, *parts)


@pytest.mark.parametrize(("cell", "kind"), [("rnn", "additive"), ("gru", "none"), ("lstm", "dot")])
def test_flags_choose_cell_attention_and_window(train, tmp_path, cell, kind):
    how = f"--cell {cell} --attention {kind} --window 7 --steps 2 --eval-every 2"
    result = train(how, "--bidirectional" if kind == "none" else "", "--out", tmp_path)
    assert result.status == 0 and result.err == "", result
    model, _, checkpoint = MODS.generate.load_checkpoint(tmp_path / "last.pt")
    chosen = {"cell": cell, "attention": kind, "window": 7, "bidirectional": kind == "none"}
    assert checkpoint["settings"].items() >= chosen.items()
    assert model.config.items() >= chosen.items()
    refused = train("--window 8 --tokenizer char --resume", tmp_path / "last.pt")
    assert_one_line_error(refused, "--tokenizer char")


def test_impossible_choices_are_reported_together(train, tmp_path):
    flags = "--cell lstn --attention luong --tokenizer bpe --window 0 --vocab-size 4"
    result = train(flags, "--out", tmp_path / "out")
    assert_one_line_error(result, *(f"--{flag.strip()}" for flag in flags.split("--")[1:]))
    assert not (tmp_path / "out").exists()


def bits_per_character(out: Path) -> tuple[float, float]:
    """The last line of metrics.csv: nats per token, bits per character."""
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return float(last["val_loss"]), float(last["bits_per_char"])


def test_characters_as_tokens_train_write_and_resume(train, run_main, tmp_path, text_file):
    flags = "--tokenizer char --dropout 0.2 --steps 60 --eval-every 30"
    result = train(flags, "--out", tmp_path / "one")
    assert result.status == 0, result
    nats, bits = bits_per_character(tmp_path / "one")
    assert bits == pytest.approx(nats / math.log(2), rel=1e-6)  # a token is a character
    alphabet = set(text_file.read_text(encoding="utf-8"))
    assert f"vocabulary {len(alphabet)} " in result.out.splitlines()[0]

    written = run_main(
        MODS.generate, "--checkpoint", tmp_path / "one" / "best.pt", ["--prompt", "Once"],
        "--length 30 --seed 1",
    )  # fmt: skip
    assert written.status == 0 and len(written.out) == len("Once") + 30 + 1
    unknown = ["--checkpoint", tmp_path / "one" / "best.pt", "--prompt", "雪"]
    assert_one_line_error(run_main(MODS.generate, unknown), "'雪'")


@pytest.mark.parametrize(
    "how",
    [
        "--tokenizer char --cell rnn --attention additive --window 5 --layers 2",
        "--tokenizer word --cell gru --attention none --bidirectional",
    ],
)
def test_a_stopped_run_goes_on_exactly_with_every_kind_of_state(train, run_main, tmp_path, how):
    flags = words(how, "--dropout 0.2 --steps 20 --eval-every 10 --save-every 1000")
    assert train(flags, "--out", tmp_path / "one").status == 0
    with pytest.MonkeyPatch.context() as patch:
        signal_at_step(patch, 13)
        assert train(flags, "--out", tmp_path / "two").status == 130
    assert run_main(MODS.train, "--resume", tmp_path / "two" / "last.pt").status == 0
    assert_same_results(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("tokenizer", ["char", "word"])
def test_recall_is_measured_whatever_a_token_is(train, monkeypatch, tmp_path, tokenizer):
    """At the word, or the letter, in which the candidates differ."""
    train_text, floor = write_corpus(20_000, seed=1)
    small = Corpus("tales", train_text[:18_000], train_text[18_000:], "0" * 64, floor)
    monkeypatch.setattr(MODS.train, "load_text", lambda name: small)
    probe = MODS.train.measure_recall
    monkeypatch.setattr(MODS.train, "measure_recall", lambda run, ngram: probe(run, ngram, 30))
    how = f"--tokenizer {tokenizer} --steps 2 --eval-every 2"
    result = train(how, "--out", tmp_path)
    assert result.status == 0, result
    with (tmp_path / "recall.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["5-gram"] * 30 + ["LSTM + attention"] * 30
    assert all(int(row["choices"]) >= 2 and row["right"] in "01" for row in rows)


# ---------------------------------------------------------------------------------- the pictures


def test_the_heat_map_shows_the_weights_of_the_text(run_main, trained_of, tmp_path):
    model, tokenizer, _ = MODS.generate.load_checkpoint(trained_of(SPEC).best)
    tokens = tokenizer.encode("Once upon a time there was a")
    weights = MODS.show_attention.attention_weights(model, tokens)
    assert weights.shape == (len(tokens), len(tokens))
    assert_close(weights.sum(1), torch.ones(len(tokens)))
    assert torch.equal(weights, weights.tril())
    how = ["--checkpoint", trained_of(SPEC).best, "--out", tmp_path / "picture.png"]
    for more in ([], ["--text", "Once upon a time"]):
        result = run_main(MODS.show_attention, how, more)
        assert result.status == 0 and result.err == "", result
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "picture.png").unlink()
    for text in ("", "Once", "Once upon a " * 60):
        assert_one_line_error(run_main(MODS.show_attention, how, ["--text", text]), "--text")
    assert not (tmp_path / "picture.png").exists()


def test_a_model_without_attention_has_no_heat_map(train, run_main, tmp_path):
    assert train("--attention none --steps 1", "--out", tmp_path).status == 0
    result = run_main(MODS.show_attention, "--checkpoint", tmp_path / "best.pt")
    assert_one_line_error(result, "--attention dot")


@torch.no_grad()
def test_gradient_norms_equal_finite_differences():
    """No word twice in a text, so that a word's row of the table is one input, however often the
    model looks it up. (The read-out gets a table of its own here: it is not an input.)"""
    text, reach = "a b c d e f g h " * 20, 6
    tokenizer = MODS.train.tokenizers.WordTokenizer.train(text)
    model = make(vocab_size=tokenizer.vocab_size, hidden_size=4).double()
    model.head.weight = nn.Parameter(model.head.weight.clone())
    with torch.enable_grad():
        found = MODS.show_gradients.gradient_norms(model, tokenizer, text, reach)
    tokens = tokenizer.encode(text)

    @functools.cache  # the text repeats itself
    def slopes(*row: int) -> Tensor:
        norms = torch.zeros(reach, dtype=torch.float64)
        for distance, word in enumerate(row[-2::-1]):
            slope = torch.zeros(4, dtype=torch.float64)
            for axis, by in itertools.product(range(4), (3e-3, -3e-3)):
                model.embedding.weight[word, axis] += by
                logits, _ = model(torch.tensor([row[:-1]]))
                slope[axis] += F.cross_entropy(logits[:, -1], torch.tensor(row[-1:])) / (2 * by)
                model.embedding.weight[word, axis] -= by
            norms[distance] = slope.norm()
        return norms

    starts = random.Random(0).choices(range(len(tokens) - reach), k=MODS.show_gradients.TEXTS)
    total = sum(slopes(*tokens[start : start + reach + 1]) for start in starts)
    torch.testing.assert_close(torch.tensor(found).double(), total / total[0], atol=2e-3, rtol=0)


def test_the_picture_of_gradients_of_new_and_of_trained_models(run_main, trained_of, tmp_path):
    for checkpoints in ([], [trained_of(SPEC).best]):
        out = tmp_path / f"{len(checkpoints)}.png"
        result = run_main(MODS.show_gradients, checkpoints, "--reach 12 --out", out)
        assert result.status == 0 and result.err == "", result
        names = re.findall(r"^(\w+(?: \+ attention)?) +1: ", result.out, re.MULTILINE)
        every = ["RNN", "GRU", "LSTM", "LSTM + attention"]
        assert names == (["LSTM + attention"] if checkpoints else every)
        assert out.read_bytes().startswith(b"\x89PNG")
    far = run_main(MODS.show_gradients, checkpoints, "--reach 9999 --out", tmp_path / "none.png")
    assert_one_line_error(far, "--reach")
    assert not (tmp_path / "none.png").exists()


def test_gradients_of_a_text_longer_than_the_window_are_all_there():
    """By another way: of a text in which no word comes twice, those of the rows of the table."""
    model, tokens = make(window=3), list(range(9))
    twin = make(window=3)
    twin.head.weight = nn.Parameter(twin.head.weight.detach().clone())  # reading only
    logits, _ = twin(torch.tensor([tokens[:-1]]))
    F.cross_entropy(logits[:, -1], torch.tensor(tokens[-1:])).backward()
    norms = twin.embedding.weight.grad[tokens[:-1]].norm(dim=1).flip(0)

    class Numbers:
        encode = staticmethod(lambda text: list(map(int, text.split())))

    text = " ".join(map(str, tokens))
    found = MODS.show_gradients.gradient_norms(model, Numbers, text, 8)
    assert found == pytest.approx((norms / norms[0]).tolist(), rel=1e-4)


def test_the_picture_of_attention_fits_the_window(run_main, tmp_path, text_file):
    for window in (1, 7):
        flags = [SPEC.flags, QUICK, "--steps 1 --window", str(window), "--dataset", text_file]
        assert run_main(MODS.train, *flags, "--out", tmp_path).status == 0
        picture = tmp_path / "picture.png"
        how = ["--checkpoint", tmp_path / "last.pt", "--out", picture]
        result = run_main(MODS.show_attention, *how)
        assert picture.exists() == (window > 1), result
        if window == 1:
            assert_one_line_error(result, "--window")
