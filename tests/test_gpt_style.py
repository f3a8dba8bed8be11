"""Model 05: two architectures, a cache, texts on disk, batches in parts, several processes."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    MODELS,
    PATIENCE,
    QUICK,
    ROOT,
    assert_one_line_error,
    environment,
    modules,
    words,
)
from test_contract import golden_text
from torch import Tensor, nn
from torch.nn import functional as F

from shared import UserError
from shared.utils.tokenizers import CharTokenizer

SPEC = MODELS[4]
FOLDER = ROOT / SPEC.folder
LLAMA = SPEC._replace(flags=SPEC.flags.replace("gpt", "llama") + " --optimizer muon")
VOCAB = 20


@pytest.fixture
def mods() -> SimpleNamespace:
    return modules(SPEC.folder)


KINDS = ["GPT", "Llama", "Llama, 2 keys for 4 queries"]
KINDS += ["GPT, pointer", "Llama, 2 keys, pointer", "GPT, words", "Llama, 2 keys, words"]
KINDS += ["GPT, n-grams", "Llama, n-grams"]


@pytest.fixture(params=KINDS)
def model(request, mods) -> nn.Module:
    """A small model in evaluation mode with weights that are not small."""
    kind = mods.model.GPT if "GPT" in request.param else mods.llama.Llama
    more = {"kv_heads": 2} if "2 keys" in request.param else {}
    if "pointer" in request.param or "words" in request.param:
        more["copy"] = request.param.split()[-1]
    if "n-grams" in request.param:
        more["ngrams"] = 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(VOCAB, hidden_size=32, layers=3, heads=4, context=16, **more).eval()
        for name, weight in model.named_parameters():
            if not name.startswith("pointer"):  # whose scores would be in the hundreds
                nn.init.normal_(weight, std=0.3) if weight.dim() > 1 else weight.data.add_(0.1)
            elif more["copy"] == "words":  # what would begin at nothing
                nn.init.normal_(weight, std=0.1)
        if more.get("copy") == "words":
            model.pointer.join(["a", " a", "b", "!", " !", " c", *map(str, range(6, VOCAB))])
    return model


def some_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------- the mathematics


def test_the_pointer_is_that_of_model_04(mods):
    theirs = modules("model-04-mini-transformer").model.Pointer(8, VOCAB, 16)
    config = dict(hidden_size=8, layers=1, heads=2, vocab_size=VOCAB, context=16)
    ours = modules(SPEC.folder).model.Pointer(config)
    ours.load_state_dict(theirs.state_dict())
    head = nn.Linear(8, VOCAB)
    outputs, words = torch.randn(2, 5, 8), some_tokens(2, 5)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    found = ours(outputs, words, nn.Identity(), head, mask, None)
    torch.testing.assert_close(found, theirs(head(outputs), outputs, words))


def test_the_pointer_to_words_equals_loops(mods):
    torch.manual_seed(0)
    config = dict(hidden_size=8, layers=1, heads=2, vocab_size=6, context=16)
    pointer = mods.model.WordPointer(config)
    for weight in pointer.parameters():
        nn.init.normal_(weight, std=0.5)
    pointer.join(["a", " a", "b", " b", "!", " !"])
    other = [1, 0, 3, 2, 4, 5]  # the same word in its other form; "!" is none
    embedding, head = nn.Embedding(6, 8), nn.Linear(8, 6)
    outputs, words = torch.randn(2, 5, 8), torch.randint(6, (2, 5))
    mask = torch.full((5, 5), -torch.inf).triu(1)
    found = pointer(outputs, words, embedding, head, mask, None)
    for b in range(2):
        for t in range(5):
            now, scores, seen = outputs[b, t], [], []
            for s in range(t + 1):
                word = words[b, s].item()
                bare = min(word, other[word])
                before = pointer.key(outputs[b, s - 1]) if s else pointer.first
                key = before + pointer.own(embedding.weight[bare])
                scores.append(pointer.query(now) @ key / 8**0.5)
                seen.append(embedding.weight[bare])
            share = torch.stack(scores).softmax(0)
            logits = head(now + pointer.value(share @ torch.stack(seen)))
            total = logits.exp().tolist()
            with_blank = pointer.blank(now).sigmoid().item()
            for s, score in enumerate(scores):
                word, mass = words[b, s].item(), (pointer.gate(now) + score).exp().item()
                if other[word] == word:
                    total[word] += mass
                else:
                    total[word | 1] += mass * with_blank
                    total[word & ~1] += mass * (1 - with_blank)
            torch.testing.assert_close(found[b, t], torch.tensor(total).log(), atol=1e-4, rtol=1e-4)


def test_words_are_pointed_at_whether_or_not_a_blank_stood_before_them(mods):
    """a b c d ? - the first word again, with a blank, which it never had. Four of sixteen words
    are never asked for in training: to say these, one must know what the pointer to words does."""
    letters = "abcdefghijklmnop"
    losses = {}
    for copy in ("pointer", "words"):
        torch.manual_seed(0)
        sizes = dict(hidden_size=32, layers=1, heads=2, context=8, copy=copy)
        model = mods.llama.Llama(33, **sizes).train()
        if copy == "words":
            model.pointer.join(["?", *letters, *(f" {letter}" for letter in letters)])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(200):
            text = torch.randint(1, 17, (64, 5))
            text[:, 0] = (
                torch.randint(13, 17, (64,)) if step == 199 else torch.randint(1, 13, (64,))
            )
            text[:, 4] = 0
            loss = F.cross_entropy(model(text)[0][:, -1], text[:, 0] + 16)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[copy] = loss.item()  # of the words never asked for
    assert losses["words"] < 1 and losses["pointer"] > 4, losses


def test_training_knows_which_tokens_are_one_word(mods, tmp_path):
    (tmp_path / "text.txt").write_text("low lower low low, " * 200, encoding="utf-8")
    flags = [*words("--tokenizer bpe --vocab-size 270 --copy words --preset tiny"), *QUICK.split()]
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr("sys.argv", ["train.py", *flags, "--dataset", str(tmp_path / "text.txt")])
        run = mods.train.prepare(mods.train.parse_args())
    names = [list(map(run.tokenizer.token_text, row)) for row in run.model.pointer.forms.tolist()]
    low = run.tokenizer.encode(" low")[0]
    assert [row[low] for row in names] == ["low", " low"]
    assert [row[ord("!")] for row in names] == ["!", "!"]


def test_n_grams_equal_loops(mods):
    table = mods.model.NGrams(dict(hidden_size=8, ngrams=3))
    assert not any(weight.any() for weight in table.parameters())  # at first it adds nothing
    for weight in table.parameters():
        nn.init.normal_(weight)
    tokens = some_tokens(2, 6)
    for b in range(2):
        for t in range(6):
            text, expected = [-1, -1, *tokens[b].tolist()][: t + 3], 0
            for own, n in zip(table.tables, (2, 3), strict=True):
                key = 0
                for token in text[: -n - 1 : -1]:  # backwards
                    key = key * 31_337 + token
                expected = expected + own.weight[key % (2**31 - 1) % 8192]
            torch.testing.assert_close(table(tokens[:, : t + 1], 1)[b, 0], expected)
    torch.testing.assert_close(table(tokens, 6)[:, 2:], table(tokens, 4))


@pytest.mark.parametrize("arch", ["GPT", "Llama"])
def test_a_model_of_n_grams_knows_what_two_tokens_are_together(mods, arch):
    """The next token is that of a random table for the last two, 81 pairs. With one layer and few
    steps that is much to ask of attention and mlp, and little of a row for each pair."""
    torch.manual_seed(0)
    table, losses = torch.randint(9, (9, 9)), []
    kind = getattr(mods.model if arch == "GPT" else mods.llama, arch)
    for ngrams in (1, 2):
        torch.manual_seed(0)
        model = kind(9, hidden_size=16, layers=1, heads=2, context=16, ngrams=ngrams).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            text = torch.randint(9, (32, 16))
            targets = table[text[:, :-1], text[:, 1:]]
            loss = F.cross_entropy(model(text)[0][:, 1:].flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < 0.1 and losses[0] > 0.7, losses


def test_gpt_equals_a_stack_of_torch_encoder_layers(mods):
    torch.manual_seed(0)
    gpt = mods.model.GPT(VOCAB, hidden_size=32, layers=2, heads=4, context=16).eval()
    x = gpt.embedding.weight[some_tokens(3, 16)] + gpt.places.weight
    mask = nn.Transformer.generate_square_subsequent_mask(16)
    for block in gpt.blocks:
        twin = nn.TransformerEncoderLayer(
            32, 4, 128, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True,
            norm_first=True,
        ).eval()  # fmt: skip
        parts = {
            "self_attn.in_proj_": block.attention.qkv, "self_attn.out_proj.": block.attention.out,
            "linear1.": block.mlp.up, "linear2.": block.mlp.down,
            "norm1.": block.norm1, "norm2.": block.norm2,
        }  # fmt: skip
        copied = {name + kind: getattr(part, kind) for name, part in parts.items()
                  for kind in ("weight", "bias")}  # fmt: skip
        twin.load_state_dict(copied)
        x = twin(x, src_mask=mask, is_causal=True)
    expected = F.layer_norm(x, (32,), gpt.norm.weight, gpt.norm.bias) @ gpt.embedding.weight.T
    torch.testing.assert_close(gpt(some_tokens(3, 16))[0], expected, atol=1e-5, rtol=1e-5)


def turned(x: Tensor) -> Tensor:
    """Rotary positions by complex numbers, as the paper has them: x (B, H, T, D)"""
    T, half = x.size(2), x.size(3) // 2
    angles = torch.outer(torch.arange(T), 10_000 ** (-torch.arange(half) / half))
    points = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones(()), angles)
    return torch.cat((points.real, points.imag), dim=-1)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama_equals_its_formulas_on_torch_functions(mods, kv_heads):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, layers=2, heads=4, context=16, kv_heads=kv_heads)
    llama = mods.llama.Llama(VOCAB, **sizes).eval()
    for weight in llama.parameters():
        nn.init.normal_(weight, std=0.2)

    def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, 1e-5)

    x = llama.embedding.weight[some_tokens(3, 16)]
    for block in llama.blocks:
        part = block.attention
        qkv = F.linear(norm(x, block.norm1.weight), part.qkv.weight).view(3, 16, -1, 8)
        q, k, v = qkv.transpose(1, 2).split((4, kv_heads, kv_heads), dim=1)
        mixed = F.scaled_dot_product_attention(
            turned(norm(q)), turned(norm(k)), v, is_causal=True, enable_gqa=True
        )
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), part.out.weight)
        h, mlp = norm(x, block.norm2.weight), block.mlp
        x = x + F.linear(
            F.silu(F.linear(h, mlp.gate.weight)) * F.linear(h, mlp.up.weight), mlp.down.weight
        )
    expected = norm(x, llama.norm.weight) @ llama.head.weight.T
    found, _ = llama(some_tokens(3, 16))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_on_a_gpu_the_one_kernel_computes_the_same(mods, monkeypatch):
    """The branch for other devices, run on the CPU: masked whole, masked in part, one query."""
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.full((6, 6), -torch.inf).triu(1)
    other = SimpleNamespace(type="cuda")
    for rows, hidden in ((slice(0, 6), mask), (slice(3, 6), mask[3:]), (slice(5, 6), None)):
        asked = q[:, :, rows]
        written_out = mods.model.attend(asked, k, v, hidden)

        class Elsewhere(Tensor):
            device = other

        kernel = mods.model.attend(asked.as_subclass(Elsewhere), k, v, hidden)
        torch.testing.assert_close(kernel.as_subclass(Tensor), written_out, atol=1e-5, rtol=1e-5)


def test_only_gpt_knows_places_and_only_llama_turns(mods):
    """Without positions, the mask aside, the last logits would not depend on the order before."""
    for kind in (mods.model.GPT, mods.llama.Llama):
        torch.manual_seed(0)
        model = kind(VOCAB, hidden_size=32, layers=1, heads=4, context=16).eval()
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.5)
        one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 2, 1, 4]])
        assert not torch.allclose(model(one)[0][:, -1], model(other)[0][:, -1], atol=1e-3)


def test_golden_greedy_text_of_llama(mods):
    there = SimpleNamespace(**vars(mods) | {"model": mods.llama})
    text, logits = golden_text(LLAMA._replace(name="Llama"), there)
    exact_text, exact = golden_text(LLAMA._replace(name="Llama"), there, torch.float64)
    assert text == exact_text == GOLDEN_LLAMA
    best, second = exact.topk(2).values.unbind(1)
    assert (best - second).min() > 20 * (logits - exact).abs().max()


GOLDEN_LLAMA = "pmqpppcccmmsccmmxmsmxmxmcccmxmcaamxwaaawawawwwawawwwwcwwwwwc"


# --------------------------------------------------------------------------------------- the cache


def windows(model: nn.Module, tokens: Tensor) -> Tensor:
    """The same logits without a cache: each window of the text read whole, in one call each."""
    context, half, logits, start = model.context, model.context // 2, [], 0
    before = 0  # tokens of the window that were in the one before
    while start + before < tokens.size(1):
        window = tokens[:, start : start + context]
        found, _ = model(window)
        logits.append(found[:, before:])
        start, before = start + context - half, half
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 24, 25, 60])
def test_cached_logits_equal_logits_without_a_cache(model, length):
    """Any chunking, at and past the end of the context, in a batch."""
    tokens, dice = some_tokens(3, length), random.Random(length)
    with torch.inference_mode():
        expected = windows(model, tokens)
        for longest in (1, 4, 40):
            state, found, at = None, [], 0
            while at < length:
                size = dice.randint(1, longest)
                logits, state = model(tokens[:, at : at + size], state)
                found.append(logits)
                at += size
            torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)
            assert state.tokens.size(1) <= model.context


def test_a_token_more_computes_one_position_and_moves_nothing(model):
    """The store stays where it is, and the blocks see one position, until the context is full."""
    seen = []
    model.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].size(1)))
    with torch.inference_mode():
        _, state = model(some_tokens(1, 5))
        where = state.cache.store.data_ptr()
        for token in some_tokens(1, 12).split(1, dim=1):
            _, state = model(token, state)
    assert seen == [5, *[1] * 11, 9]  # the newer half, 8 tokens, read again, and the new one
    assert state.cache.store.data_ptr() != where


def test_two_texts_may_go_on_from_one_state(model):
    one, other = some_tokens(2, 3, seed=5), some_tokens(2, 3, seed=6)
    with torch.inference_mode():
        _, state = model(some_tokens(2, 6))
        model(one, state)
        found, _ = model(other, state)
        expected, _ = model(torch.cat((some_tokens(2, 6), other), dim=1))
    torch.testing.assert_close(found, expected[:, 6:], atol=1e-5, rtol=1e-5)


def test_grouped_queries_make_the_cache_smaller(mods):
    sizes = []
    for kv_heads in (4, 1):
        llama = mods.llama.Llama(VOCAB, hidden_size=32, layers=2, heads=4, kv_heads=kv_heads).eval()
        _, state = llama(some_tokens(1, 3))
        sizes.append(state.cache.store.numel())
    assert sizes[0] == 4 * sizes[1]


def test_training_keeps_no_cache(model):
    _, state = model.train()(some_tokens(2, 8))
    assert state is None


# -------------------------------------------------------------------------------------- generation


def test_min_p_keeps_what_is_likely_enough(mods):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.04, 0.01]]).log().expand(5000, -1)
    drawn = mods.generate.sample(logits, 1.0, 0, 1.0, torch.Generator().manual_seed(0), 0.2)
    shares = torch.bincount(drawn.flatten(), minlength=5) / 5000
    expected = torch.tensor([0.5, 0.3, 0.15, 0, 0]) / 0.95
    assert (shares - expected).abs().max() < 0.03
    assert shares[3:].sum() == 0


def test_a_penalty_makes_what_stands_there_less_likely(mods):
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0]])
    found = mods.generate.penalize(logits, torch.tensor([[0, 1, 0]]), 2.0)
    assert found.tolist() == [[1.0, -2.0, 0.5, -3.0]]  # once, however often it stands there


def test_texts_of_a_batch_follow_the_same_prompt_and_differ(mods, model):
    rows = list(mods.generate.generate_batch(model, [1, 2], 20, seed=3, count=4))
    assert len(rows) == 20 and {len(row) for row in rows} == {4}
    assert len(set(zip(*rows, strict=True))) == 4
    greedy = list(mods.generate.generate_batch(model, [1, 2], 20, temperature=0, count=3))
    assert all(len(set(row)) == 1 for row in greedy)
    alone = list(mods.generate.generate(model, [1, 2], 20, temperature=0))
    assert [row[0] for row in greedy] == alone


def test_a_text_ends_before_a_stop_string_however_it_is_cut(mods):
    dice = random.Random(0)
    for _ in range(500):
        text = "".join(dice.choice("ab.") for _ in range(dice.randint(0, 12)))
        stops = ["".join(dice.choice("ab.") for _ in range(dice.randint(1, 3))) for _ in range(2)]
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
        pieces, rest = [], text
        while rest:
            size = dice.randint(1, 4)
            pieces, rest = [*pieces, rest[:size]], rest[size:]
        written = "".join(mods.generate.until(iter(pieces), stops))
        end = min(found, key=lambda pair: (pair[0], pair[1]))[1] if found else len(text)
        assert written == text[:end], (text, stops, pieces)


def test_text_that_cannot_become_a_stop_string_is_not_held_back(mods):
    found = mods.generate.until(iter(["On", "ce ", "upon", "."]), ["up.", "x"])
    assert [next(found) for _ in range(3)] == ["On", "ce ", "upon"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text_file) -> Path:
    """A small Llama, trained with Muon: its folder."""
    out = tmp_path_factory.mktemp("llama") / "out"
    flags = words(LLAMA.flags, QUICK, "--steps 60 --eval-every 30 --seed 5 --dataset", text_file)
    done = subprocess.run(
        [sys.executable, FOLDER / "train.py", *flags, "--out", out],
        env=environment(), check=True, capture_output=True,
    )  # fmt: skip
    assert b"Llama" in done.stdout
    return out


def test_generate_writes_several_texts_and_stops(mods, trained, run_main):
    flags = ["--checkpoint", trained / "best.pt", "--prompt", "Once"]
    result = run_main(mods.generate, flags, "--length 30 --seed 3 --num-samples 3")
    assert result.status == 0, result
    texts = result.out.split("--- ")[1:]
    assert [text[:6] for text in texts] == ["1\nOnce", "2\nOnce", "3\nOnce"]
    assert len({text[6:] for text in texts}) == 3
    whole = run_main(mods.generate, flags, "--length 60 --seed 3").out
    stop = whole[20]
    cut = run_main(mods.generate, flags, "--length 60 --seed 3 --stop", [stop]).out
    assert cut == whole[: whole.index(stop, 4)] + "\n"


def test_every_option_of_sampling_can_be_set_while_talking(mods, trained, run_main, monkeypatch):
    lines = iter(["/min-p 0.1", "/repetition-penalty 1.3", "/length 9", "Once", "/undo", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    result = run_main(mods.interactive, "--checkpoint", trained / "best.pt", "--seed 1")
    assert result.status == 0, result
    assert "min-p 0.1" in result.out and "repetition-penalty 1.3" in result.out
    assert "nothing is left" in result.out


# ---------------------------------------------------------------------------------------- training


@pytest.fixture
def flags(text_file) -> list[str]:
    more = "--steps 12 --eval-every 6 --seed 5 --lr 0.01 --dropout 0"
    return words(LLAMA.flags, QUICK, more, "--dataset", text_file)


def losses(out: Path) -> Tensor:
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([float(row["train_loss"]) for row in rows[1:]])


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_in_parts_is_the_same_batch(mods, flags, run_main, tmp_path, optimizer):
    for parts in ("1", "4"):
        more = ["--accumulate", parts, "--out", tmp_path / parts, "--optimizer", optimizer]
        result = run_main(mods.train, flags, more)
        assert result.status == 0, result
    torch.testing.assert_close(losses(tmp_path / "1"), losses(tmp_path / "4"), atol=1e-4, rtol=0)


def test_a_run_with_muon_n_grams_and_an_average_resumes_to_the_bit(mods, flags, run_main, tmp_path):
    more = ["--dropout", "0.3", "--average", "0.8", "--ngrams", "3"]
    assert run_main(mods.train, flags, more, "--out", tmp_path / "whole").status == 0
    stop = iter([0] * 7 + [signal.SIGINT] * 99)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mods.train.Stop, "signal", property(lambda _: next(stop)), raising=False)
        assert run_main(mods.train, flags, more, "--out", tmp_path / "two").status == 130
    result = run_main(mods.train, "--resume", tmp_path / "two" / "last.pt")
    assert result.status == 0, result
    one, two = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "two")
    )
    for part in ("model", "optimizer", "rng"):
        leaves = zip(*(torch.utils._pytree.tree_leaves(each[part]) for each in (one, two)),
                     strict=True)  # fmt: skip
        assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in leaves), part
    means = zip(one["progress"]["average"], two["progress"]["average"], strict=True)
    assert all(torch.equal(a, b) for a, b in means)


def test_a_checkpoint_of_another_script_is_not_resumed(mods, trained, run_main, tmp_path):
    whole = mods.generate.read_checkpoint(trained / "best.pt")
    whole["instruct"] = whole.pop("settings")
    mods.train.write_checkpoint(tmp_path / "tuned.pt", whole)
    assert_one_line_error(run_main(mods.train, "--resume", tmp_path / "tuned.pt"), "--init-from")


def test_a_short_validation_text_is_cut_into_no_more_pieces_than_its_length_asks_for(mods, model):
    """40 predictions, context 16: three pieces, though sixteen fit into a batch."""
    valid, args = some_tokens(41), SimpleNamespace(batch_size=16, accumulate=1, context=16)
    about = dict(device="cpu", dtype=torch.float32, rank=0, world=1)
    found = mods.train.evaluate(SimpleNamespace(model=model, valid=valid, args=args, **about))
    nats = 0.0
    with torch.inference_mode():
        for start in (0, 14, 28):
            piece = valid[start : start + 15]
            logits, _ = model.eval()(piece[None, :-1])
            nats += F.cross_entropy(logits[0], piece[1:], reduction="sum").item()
    assert found == pytest.approx(nats / 40, abs=1e-5)


def test_best_holds_the_average_and_last_the_weights_themselves(mods, flags, run_main, tmp_path):
    assert run_main(mods.train, flags, "--average 0.9", "--out", tmp_path / "out").status == 0
    last = torch.load(tmp_path / "out" / "last.pt", weights_only=True)
    names = list(last["model"])
    means = dict(zip(names, last["progress"]["average"], strict=True))
    best = weights(tmp_path / "out" / "best.pt")
    assert all(torch.equal(best[name], means[name]) for name in names)
    assert not torch.equal(best["norm.weight"], last["model"]["norm.weight"])


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_newton_and_schulz_make_every_stretch_about_1(mods, shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    stretches = torch.linalg.svdvals(mods.muon.orthogonal(matrices))
    assert stretches.min() > 0.6 and stretches.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert (
        F.cosine_similarity(mods.muon.orthogonal(matrices).flatten(), (u @ v).flatten(), 0) > 0.95
    )


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has none")
def test_muon_steps_as_pytorchs_does(mods):
    dice = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(s, generator=dice)) for s in ((8, 24), (24, 8), (8, 24))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizer = mods.muon.Muon(ours, weight_decay=0.1, dtype=torch.bfloat16)
    twin = torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for group in (*optimizer.param_groups, *twin.param_groups):
        group["lr"] = 0.02
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=dice)
            q.grad = p.grad.clone()
        optimizer.step()
        twin.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)


def test_mfu_is_the_share_of_the_peak(mods, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    llama = mods.llama.Llama(VOCAB, hidden_size=32, layers=2, heads=4)
    args = SimpleNamespace(layers=2, hidden_size=32, context=16)
    run = SimpleNamespace(model=llama, args=args, device="cuda", dtype=torch.bfloat16, world=1)
    used = [p for name, p in llama.named_parameters() if "embedding" not in name]
    needed = 6 * (sum(p.numel() for p in used) - 32) + 12 * 2 * 32 * 16  # the last norm is nothing
    assert mods.train.share_of_peak(run, 0.5 * 989e12 / needed) == ", 50% MFU"
    run.device = "cpu"
    assert mods.train.share_of_peak(run, 1e6) == ""


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
        ("--arch llama --heads 4 --kv-heads 3", "--kv-heads 3"),
        ("--arch gpt --kv-heads 2", "--kv-heads"),
        ("--hidden-size 20 --heads 4", "--hidden-size 20"),
        ("--accumulate 3", "--accumulate 3"),
        ("--optimizer sgd", "--optimizer sgd"),
    ],
)
def test_settings_that_do_not_go_together(mods, flags, run_main, tmp_path, changes, mentioned):
    result = run_main(mods.train, flags, changes, "--out", tmp_path / "out")
    assert_one_line_error(result, mentioned)
    assert not (tmp_path / "out").exists()


def test_a_presets_vocabulary_belongs_to_its_own_tokenizer(mods, monkeypatch):
    for flags, fits in (("", True), ("--tokenizer char", True), ("--tokenizer word", True),
                        ("--tokenizer char --vocab-size 99", False)):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["train.py", *words("--preset gpt2", flags)])
        args = mods.train.parse_args()
        mods.train.settle(args, None)
        if fits:
            mods.train.check(args, 1)
            continue
        with pytest.raises(UserError, match="--vocab-size"):
            mods.train.check(args, 1)


# ----------------------------------------------------------------------------------- texts on disk


def test_a_large_text_gives_the_same_tokens_from_disk(mods, text_file, tmp_path, monkeypatch):
    kinds = [("char", None), ("bpe", 300), ("word", 200), ("wordpiece", 300), ("unigram", 400)]
    text = text_file.read_text(encoding="utf-8")
    for kind, size in kinds:
        args = SimpleNamespace(tokenizer=kind, vocab_size=size)
        tokenizer = mods.train.new_tokenizer(args, text)
        monkeypatch.setattr(mods.data, "LARGE", 1000)
        source = mods.data.find(str(text_file), "")
        assert source.corpus.train == "" and source.files == [text_file]
        assert mods.train.new_tokenizer(args, source.text).state_dict() == tokenizer.state_dict()
        corpus, train, valid = mods.data.encode(source, tokenizer, tmp_path)
        assert isinstance(train, np.memmap)
        ids = np.concatenate([train, valid]).tolist()
        assert ids == tokenizer.encode(text), kind
        assert abs(len(valid) - 0.1 * len(ids)) < 1
        if kind in ("char", "bpe", "unigram"):  # which lose nothing
            assert text.endswith(corpus.valid)


def test_a_text_on_disk_is_encoded_once(mods, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(mods.data, "LARGE", 1000)
    tokenizer = CharTokenizer.train(text_file.read_text(encoding="utf-8"))
    source = mods.data.find(str(text_file), "")
    _, first, _ = mods.data.encode(source, tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(mods.data.corpus, "encode_file", None)  # would fail if called
    _, again, _ = mods.data.encode(source, tokenizer, tmp_path)
    assert np.array_equal(first, again)
    assert file.name.endswith("-small.bin") and file.stat().st_size < 2.1 * 20_000


def test_training_on_a_text_on_disk_equals_training_in_memory(
    mods, flags, run_main, tmp_path, monkeypatch
):
    assert run_main(mods.train, flags, "--out", tmp_path / "memory").status == 0
    monkeypatch.setattr(mods.data, "LARGE", 1000)
    result = run_main(mods.train, flags, "--out", tmp_path / "disk")
    assert result.status == 0, result
    one, two = (losses(tmp_path / name) for name in ("memory", "disk"))
    assert torch.equal(one, two)  # characters are cut at the same 90 %
    assert (tmp_path / "disk" / "tokens").is_dir()
    result = run_main(mods.train, "--resume", tmp_path / "disk" / "last.pt", "--steps 14")
    assert result.status == 0, result


# --------------------------------------------------------------------------------- many processes


def torchrun(*parts: object, **more: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*command, FOLDER / "train.py", *words(*parts)], env=env, **pipes)


@pytest.mark.parametrize(("device", "mentioned"), [("mps", "cpu"), ("cuda", "--nproc-per-node 1")])
def test_every_process_needs_a_device_of_its_own(mods, monkeypatch, device, mentioned):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=mentioned):
        mods.parallel.begin(device)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--optimizer muon", "--optimizer adamw --parallel fsdp"])
def test_two_processes_reach_the_losses_of_one(mods, flags, run_main, tmp_path, more):
    alone = more.replace("--parallel fsdp", "")
    assert run_main(mods.train, flags, alone, "--out", tmp_path / "one").status == 0
    process = torchrun(flags, more, "--accumulate 4", "--out", tmp_path / "two")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out.count("2 processes") == 1  # one of them prints
    torch.testing.assert_close(
        losses(tmp_path / "one"), losses(tmp_path / "two"), atol=1e-4, rtol=0
    )
    one, two = (weights(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert all((one[name] - two[name]).abs().max() < 2e-3 for name in one)
    result = run_main(mods.train, "--resume", tmp_path / "two" / "last.pt", "--steps 14")
    assert result.status == 0, result  # on another number of processes
    assert len(list((tmp_path / "two").glob("*.part"))) == 0


@pytest.mark.slow
def test_a_killed_worker_leaves_a_checkpoint_to_go_on_from(mods, flags, run_main, tmp_path):
    process = torchrun(flags, "--steps 100000 --save-every 5 --out", tmp_path / "out")
    try:
        last, began = tmp_path / "out" / "last.pt", time.monotonic()
        while not (last.exists() and weights_step(last) >= 10):
            assert process.poll() is None and time.monotonic() - began < PATIENCE
            time.sleep(0.2)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(children[-1]), signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
    finally:
        process.kill()
    step = weights_step(last)
    result = run_main(mods.train, "--resume", last, "--steps", str(step + 2), "--eval-every 1")
    assert result.status == 0, result


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_equal_two_never_stopped(flags, tmp_path):
    """To the bit, though each has dropout of its own."""
    more = "--dropout 0.3 --steps 300 --eval-every 300 --save-every 5 --out"
    whole, out = tmp_path / "whole", tmp_path / "two"
    first = torchrun(flags, more, whole)
    err = first.communicate(timeout=120)[1]
    assert first.returncode == 0, err
    process = torchrun(flags, more, out)
    last, began = out / "last.pt", time.monotonic()
    while not (last.exists() and weights_step(last) >= 10):
        assert process.poll() is None and time.monotonic() - began < 90
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "to go on" in process.communicate(timeout=60)[0]
    assert 10 <= weights_step(last) < 300
    process = torchrun("--resume", last)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    one, two = (torch.load(path / "last.pt", weights_only=True) for path in (whole, out))
    assert not torch.equal(one["rng"]["cpu"], one["others"][0]["cpu"])
    for name, weight in one["model"].items():
        assert torch.equal(weight, two["model"][name]), name


def weights_step(path: Path) -> int:
    return torch.load(path, weights_only=True)["progress"]["step"]
