"""Weights in few bits: the levels of the paper, error bounds, packed storage, the scripts."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MODELS, assert_one_line_error, modules
from torch import Tensor, nn
from torch.nn import functional as F

from shared import UserError

SPEC = MODELS[4]
SHAPES = [(96, 128), (7, 5), (1, 64), (33, 65)]  # also where blocks do not fit
NF4 = [  # Dettmers et al. 2023, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


@pytest.fixture
def mods() -> SimpleNamespace:
    return modules(SPEC.folder)


def some_linear(shape: tuple[int, int], seed: int = 0, bias: bool = True) -> nn.Linear:
    """Rows of very different size, as trained matrices have."""
    dice = torch.Generator().manual_seed(seed)
    linear = nn.Linear(shape[1], shape[0], bias=bias)
    sizes = torch.logspace(-3, 1, shape[0])[:, None]
    linear.weight.data = torch.randn(shape, generator=dice) * sizes
    return linear


def blocks_of(weight: Tensor) -> Tensor:
    return F.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)


def test_the_levels_of_nf4_are_those_of_the_paper(mods):
    levels = mods.quantize.normal_float()
    torch.testing.assert_close(levels, torch.tensor(NF4), atol=1e-6, rtol=0)
    assert levels[7] == 0 and bool((levels.diff() > 0).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_moves_a_weight_by_half_a_level_of_its_row_at_most(mods, shape):
    weight = some_linear(shape).weight.detach()
    error = (mods.quantize.Int8(some_linear(shape)).dequantize() - weight).abs()
    bound = weight.abs().amax(dim=1, keepdim=True) / 254
    assert bool((error <= bound * 1.0001).all())
    if weight.numel() > 100:
        assert bool((error > 0.8 * bound).any()), "the bound would be too loose"


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_moves_a_weight_by_half_a_level_of_its_block_at_most(mods, shape):
    weight = some_linear(shape).weight.detach()
    error = blocks_of(mods.quantize.Int4(some_linear(shape)).dequantize() - weight).abs()
    bound = blocks_of(weight).abs().amax(dim=1, keepdim=True) / 14
    assert bool((error <= bound * 1.0001).all())
    if weight.numel() > 100:
        assert bool((error > 0.9 * bound).any()), "the bound would be too loose"


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_moves_a_weight_by_half_a_gap_and_what_its_scale_moved(mods, shape):
    weight = some_linear(shape).weight.detach()
    packed = mods.quantize.NF4(some_linear(shape))
    blocks, levels = blocks_of(weight), mods.quantize.normal_float()
    scales = blocks.abs().amax(dim=1)
    moved = (packed.unpack_scales() - scales).abs()
    rows = F.pad(scales - scales.mean(), (0, -len(scales) % 256)).view(-1, 256)
    outer = (rows.abs().amax(dim=1, keepdim=True) / 254).expand_as(rows).flatten()
    assert bool((moved <= outer[: len(moved)] * 1.0001 + 1e-7).all())
    error = blocks_of(packed.dequantize() - weight).abs()
    bound = levels.diff().max() / 2 * scales + moved
    assert float(levels.diff().max() / 2) == pytest.approx(0.152, abs=1e-3)  # as quantize.py says
    assert float(levels[6:9].diff().min() / 2) == pytest.approx(0.040, abs=1e-3)
    assert bool((error <= bound[:, None] * 1.0001 + 1e-7).all())


def test_every_code_decodes_to_the_nearest_level(mods):
    """Against the slow way: compare each weight with all levels."""
    weight = some_linear((16, 64), seed=3).weight.detach()
    for kind in (mods.quantize.Int4, mods.quantize.NF4):
        packed = kind(some_linear((16, 64), seed=3))
        shares = weight / weight.abs().amax(dim=1, keepdim=True)  # a row is a block here
        nearest = packed.LEVELS[(shares[..., None] - packed.LEVELS).abs().argmin(dim=-1)]
        expected = nearest * packed.unpack_scales()[:, None]
        torch.testing.assert_close(packed.dequantize(), expected, atol=1e-6, rtol=1e-6)


def test_nf4_loses_less_than_int4_on_normal_weights(mods):
    linear = nn.Linear(256, 256, bias=False)
    linear.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    errors = {
        name: float((kind(linear).dequantize() - linear.weight.detach()).square().mean())
        for name, kind in mods.quantize.SCHEMES.items()
    }
    assert errors["int8"] < errors["nf4"] / 50 and errors["nf4"] < 0.9 * errors["int4"]


def test_codes_are_used_about_as_often_with_nf4(mods):
    linear = nn.Linear(256, 256, bias=False)
    linear.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    codes = mods.quantize.NF4(linear).codes
    counts = torch.bincount(torch.cat((codes & 15, codes >> 4)).flatten().long(), minlength=16)
    assert bool((counts > 0).all()) and counts[1:15].max() < 3 * counts[1:15].min()


@pytest.mark.parametrize("bits", [("int8", 8.0, 0.13), ("int4", 4.5, 0), ("nf4", 4.127, 0.003)])
def test_storage_is_really_small(mods, bits):
    scheme, expected, more = bits
    linear = nn.Linear(256, 1024, bias=False)
    size = mods.quantize.size_of(mods.quantize.SCHEMES[scheme](linear))
    assert expected <= 8 * size / linear.weight.numel() + 1e-3 <= expected + more + 2e-3
    kept = mods.quantize.SCHEMES[scheme](linear).state_dict()
    assert "weight" not in kept and kept["codes"].element_size() == 1


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_a_matrix_of_zeros_stays_zero(mods, scheme):
    linear = nn.Linear(64, 8, bias=False)
    nn.init.zeros_(linear.weight)
    assert not mods.quantize.SCHEMES[scheme](linear).dequantize().any()


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_by_what_its_codes_stand_for(mods, scheme, bias):
    layer = mods.quantize.SCHEMES[scheme](some_linear((7, 5), bias=bias))
    x = torch.randn(2, 3, 5, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.dequantize(), layer.bias))
    gradient = torch.randn_like(y)
    y.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ layer.dequantize())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 16), (7, 48), (65, 32), (96, 128), (5, 512)])
def test_few_rows_are_multiplied_by_the_codes_as_they_are(mods, monkeypatch, shape, dtype, bias):
    layer = mods.quantize.Int8(some_linear(shape, bias=bias).to(dtype))
    weight = layer.dequantize()
    monkeypatch.setattr(mods.quantize, "FEW", 32)  # on Windows, too
    monkeypatch.setattr(mods.quantize.Int8, "dequantize", lambda _: pytest.fail("unpacked"))
    for rows in (1, 2, 3, 5, 32):
        x = torch.randn(rows, shape[1]).bfloat16().to(dtype)[None]
        y = layer(x).detach()
        assert y.dtype == dtype and y.shape == (1, rows, shape[0])
        bias = None if layer.bias is None else layer.bias.detach().float()
        expected = F.linear(x.float(), weight, bias)
        near = (2 if dtype == torch.bfloat16 else 1) * 2**-8 * expected.abs().amax()
        assert float((y - expected).abs().amax()) <= near


def test_a_row_may_lie_anywhere_in_memory(mods):
    layer = mods.quantize.Int8(some_linear((8, 32)))
    for start in (1, 3, 8, 17):
        x = torch.randn(64).bfloat16()[None, start : start + 32]
        assert torch.equal(layer(x), layer(x.clone()))


def test_many_rows_odd_sizes_and_gradients_take_the_weights_unpacked(mods):
    wide, odd = (mods.quantize.Int8(some_linear(shape)) for shape in ((8, 32), (8, 20)))
    grad = torch.randn(1, 32, requires_grad=True)
    for layer, x in ((wide, torch.randn(33, 32)), (odd, torch.randn(1, 20)), (wide, grad)):
        assert torch.equal(layer(x), layer.bias + F.linear(x, layer.dequantize()))


@pytest.mark.parametrize("kind", ["GPT", "Llama"])
def test_embedding_and_read_out_are_quantized_and_stay_one_if_they_were(mods, kind):
    make = {"GPT": mods.model.GPT, "Llama": mods.llama.Llama}[kind]
    model = make(20, hidden_size=32, layers=1, heads=4, context=16)
    before = model.embedding.weight.detach().clone(), model.head.weight.detach().clone()
    mods.quantize.quantize(model, "nf4")
    tokens = torch.tensor([[3, 19, 3]])
    found = model.embedding(tokens)
    assert torch.equal(found, model.embedding.matrix.dequantize()[tokens])
    step = before[0].abs().amax(dim=1) / 127
    assert bool(((found - before[0][tokens]).abs() <= 0.5001 * step[tokens][..., None]).all())
    step = before[1].abs().amax(dim=1, keepdim=True) / 127
    assert bool(((model.head.dequantize() - before[1]).abs() <= 0.5001 * step).all())
    one = model.head.codes.data_ptr() == model.embedding.matrix.codes.data_ptr()
    assert one == (kind == "GPT") == torch.equal(*before)


@pytest.mark.parametrize("kind", ["GPT", "Llama"])
@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_a_quantized_model_reads_in_chunks_and_survives_its_state_dict(mods, kind, scheme):
    torch.manual_seed(0)
    make = {"GPT": mods.model.GPT, "Llama": mods.llama.Llama}[kind]
    models = [make(20, hidden_size=32, layers=2, heads=4, context=16).eval() for _ in range(2)]
    for model in models:
        mods.quantize.quantize(model, scheme)
        left = [name for name, each in model.named_modules() if isinstance(each, nn.Linear)]
        assert left == []
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.randint(20, (2, 12))
    whole, _ = models[0](tokens)
    assert torch.equal(models[1](tokens)[0], whole)
    first, state = models[0](tokens[:, :5])
    rest, _ = models[0](tokens[:, 5:], state)
    torch.testing.assert_close(torch.cat((first, rest), 1), whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="quantized already"):
        mods.quantize.quantize(models[0], scheme)


# ----------------------------------------------------------------------------------- the scripts


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_generate_and_interactive_write_with_fewer_bits(
    mods, trained_of, run_main, monkeypatch, scheme
):
    trained = trained_of(SPEC)
    flags = ["--checkpoint", trained.best, "--length", "30", "--seed", "3", "--temperature", "0"]
    result = run_main(mods.generate, flags, "--prompt Once", "--quantize", scheme)
    assert result.status == 0 and len(result.out) >= 34, result
    lines = iter(["Once", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    again = run_main(mods.interactive, flags, "--quantize", scheme)
    assert again.status == 0 and result.out.strip() in again.out, again


def test_an_unknown_scheme_is_one_line(mods, trained_of, run_main):
    flags = ["--checkpoint", trained_of(SPEC).best, "--quantize", "int2"]
    assert_one_line_error(run_main(mods.generate, flags), "--quantize int2", "int8, int4, nf4")


def test_one_command_makes_the_table(mods, trained_of, run_main, text_file, monkeypatch):
    monkeypatch.setattr(mods.quantize, "tokens_per_second", lambda *_: 1.0)
    flags = ["--checkpoint", trained_of(SPEC).best, "--dataset", text_file]
    monkeypatch.setattr(mods.quantize, "command", mods.generate.command, raising=False)
    monkeypatch.setitem(sys.modules, "generate", mods.generate)
    result = run_main(mods.quantize, flags)
    assert result.status == 0, result
    header, *rows = result.out.splitlines()
    assert [row.split()[0] for row in rows] == ["float32", "int8", "int4", "nf4"]
    assert "perplexity" in header
    costs = [float(row.split()[-1].rstrip("%")) for row in rows]
    assert costs[0] == 0 and abs(costs[1]) < 0.5 and all(abs(cost) < 20 for cost in costs)


def test_the_loss_of_the_table_is_the_cross_entropy(mods):
    torch.manual_seed(0)
    model = mods.model.GPT(20, hidden_size=32, layers=1, heads=4, context=8).eval()
    tokens = torch.randint(20, (8 * 5 + 3,))
    expected = []
    for at in range(0, 40, 8):
        logits, _ = model(tokens[None, at : at + 8])
        expected.append(F.cross_entropy(logits[0], tokens[at + 1 : at + 9]).item())
    found = mods.quantize.nats_per_token(model, tokens, batch_size=2)
    assert found == pytest.approx(np.mean(expected), abs=1e-5)


def test_a_part_of_a_large_text_is_its_beginning_or_its_end(mods, tmp_path):
    path = tmp_path / "large.txt"
    path.write_text("äbc" * 10, encoding="utf-8")  # four bytes each
    assert mods.data.part_of(path, 5) == "äbc"  # not half a letter
    assert mods.data.part_of(path, 7, end=True) == "bcäbc"
    assert mods.data.part_of(path, 999) == mods.data.part_of(path, 999, end=True) == "äbc" * 10


def test_errors_of_the_table_are_one_line(mods, run_main, tmp_path, trained_of, monkeypatch):
    monkeypatch.setattr(mods.quantize, "command", mods.generate.command, raising=False)
    monkeypatch.setitem(sys.modules, "generate", mods.generate)
    result = run_main(mods.quantize, ["--checkpoint", tmp_path / "no.pt"])
    assert_one_line_error(result, "no.pt")
    flags = ["--checkpoint", trained_of(SPEC).best, "--dataset", tmp_path / "no.txt"]
    assert_one_line_error(run_main(mods.quantize, flags), "no.txt")
    assert_one_line_error(run_main(mods.quantize, "--tokens 1"), "--tokens 1")
