"""Adapters: no effect at first, the same merged and beside, gradients only for them, files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MODELS, QUICK, ROOT, assert_one_line_error, modules, run_script, words
from torch import Tensor, nn

from shared import UserError

FOLDER = MODELS[4].folder
VOCAB = 20


@pytest.fixture
def mods() -> SimpleNamespace:
    return modules(FOLDER)


def new_model(mods, kind: str, copy: str = "none") -> nn.Module:
    """A small model in evaluation mode with weights that are not small."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = {"GPT": mods.model.GPT, "Llama": mods.llama.Llama}[kind](
            VOCAB, hidden_size=32, layers=2, heads=4, context=16, copy=copy
        )
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3) if weight.dim() > 1 else weight.data.add_(0.1)
    return model.eval()


@pytest.fixture(params=["GPT", "Llama"])
def model(request, mods) -> nn.Module:
    return new_model(mods, request.param)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))


def learned(mods, model: nn.Module) -> nn.Module:
    """Adapters as after some training: B is no longer zero."""
    dice = torch.Generator().manual_seed(2)
    for layer in mods.lora.layers_of(model).values():
        layer.B.data = torch.randn(layer.B.shape, generator=dice) * 0.1
    return model


def test_before_the_first_step_nothing_has_changed(mods, model, tokens):
    before, _ = model(tokens)
    mods.lora.inject(model, rank=4, alpha=8, dropout=0.5)
    assert torch.equal(model(tokens)[0], before)
    assert torch.equal(model.train()(tokens)[0], before)  # dropout, too, acts on nothing


@pytest.mark.parametrize(
    "targets", [("qkv",), ("qkv", "out"), ("qkv", "out", "gate", "up", "down")]
)
def test_detours_are_around_the_chosen_layers_only(mods, model, targets):
    mods.lora.inject(model, rank=4, targets=targets)
    names = mods.lora.layers_of(model)
    expected = {name for name, each in model.named_modules()
                if name.startswith("blocks.") and name.endswith(targets)
                and isinstance(each, mods.lora.LoRA)}  # fmt: skip
    assert set(names) == expected and expected
    plain = [n for n, each in model.named_modules()
             if isinstance(each, nn.Linear) and not n.endswith(".base")]  # fmt: skip
    assert not [n for n in plain if n.endswith(targets)]
    assert "head" in plain


@pytest.mark.parametrize("copy", ["pointer", "words"])
@pytest.mark.parametrize("kind", ["GPT", "Llama"])
def test_a_pointer_gets_detours_too_as_one_target(mods, kind, copy, tokens):
    model = new_model(mods, kind, copy)
    before, _ = model(tokens)
    inside = {n for n, each in model.pointer.named_modules() if isinstance(each, nn.Linear)}
    mods.lora.inject(model, rank=4, targets=("pointer",))
    assert set(mods.lora.layers_of(model)) == {f"pointer.{name}" for name in inside}
    assert torch.equal(model(tokens)[0], before)
    learned(mods, model).train()(tokens)[0].square().sum().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {f"pointer.{name}.{part}" for name in inside for part in "AB"}
    beside, _ = model.eval()(tokens)
    mods.lora.absorb(model)
    torch.testing.assert_close(model(tokens)[0], beside, atol=1e-4, rtol=1e-4)
    mods.lora.inject(model, targets=("qkv", "gate"))  # not the pointer's gate
    assert all(name.startswith("blocks.") for name in mods.lora.layers_of(model))


def test_gradients_reach_the_adapters_only(mods, model, tokens):
    learned(mods, mods.lora.inject(model, rank=4))
    model.train()(tokens)[0].square().sum().backward()
    for name, p in model.named_parameters():
        is_adapter = name.endswith((".A", ".B"))
        assert p.requires_grad == is_adapter, name
        assert (p.grad is not None and bool(p.grad.any())) == is_adapter, name


def test_merged_equals_beside_and_merging_is_idempotent(mods, model, tokens):
    learned(mods, mods.lora.inject(model, rank=4, alpha=8))
    beside, _ = model(tokens)
    first = {name: w.clone() for name, w in model.state_dict().items()}
    mods.lora.merge(model)
    torch.testing.assert_close(model(tokens)[0], beside, atol=1e-5, rtol=1e-5)
    once = {name: w.clone() for name, w in model.state_dict().items()}
    mods.lora.merge(model)
    assert all(torch.equal(w, once[name]) for name, w in model.state_dict().items())
    mods.lora.unmerge(model)
    mods.lora.unmerge(model)
    for name, w in model.state_dict().items():
        torch.testing.assert_close(w, first[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(model(tokens)[0], beside, atol=1e-5, rtol=1e-5)


def test_the_scale_is_alpha_over_rank(mods, tokens):
    for rank, alpha in ((2, 8), (8, 8), (4, 1)):
        layer = mods.lora.LoRA(nn.Linear(6, 5), rank, alpha)
        nn.init.ones_(layer.B)
        x = torch.randn(3, 6)
        with torch.no_grad():
            detour = layer(x) - layer.base(x)
            expected = alpha / rank * x @ layer.A.T @ layer.B.T
            torch.testing.assert_close(detour, expected, atol=1e-5, rtol=1e-5)
            before = layer.base.weight.clone()
            layer.merge()
            added = layer.base.weight - before
        torch.testing.assert_close(added, alpha / rank * (layer.B @ layer.A), atol=1e-5, rtol=0)


def test_absorbed_is_an_ordinary_model(mods, model, tokens):
    names = list(model.state_dict())
    learned(mods, mods.lora.inject(model, rank=4))
    beside, _ = model(tokens)
    mods.lora.absorb(model)
    assert list(model.state_dict()) == names and not mods.lora.layers_of(model)
    torch.testing.assert_close(model(tokens)[0], beside, atol=1e-5, rtol=1e-5)


def test_disabled_is_the_model_before(mods, model, tokens):
    before, _ = model(tokens)
    learned(mods, mods.lora.inject(model, rank=4))
    after, _ = model(tokens)
    with mods.lora.disabled(model):
        assert torch.equal(model(tokens)[0], before)
    assert torch.equal(model(tokens)[0], after) and not torch.allclose(after, before)


def test_dropout_acts_in_training_only(mods, model, tokens):
    learned(mods, mods.lora.inject(model, rank=4, dropout=0.5))
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


def test_adapters_learn(mods, model, tokens):
    mods.lora.inject(model, rank=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model.train()(tokens)[0].flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_qlora_trains_adapters_over_nf4(mods, model, tokens):
    mods.lora.inject(mods.quantize.quantize(model, "nf4"), rank=4)
    before, _ = model(tokens)
    learned(mods, model)
    model.train()(tokens)[0].square().sum().backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == name.endswith((".A", ".B"))
        assert not p.requires_grad or bool(p.grad.any()), name
    with mods.lora.disabled(model.eval()):
        assert torch.equal(model(tokens)[0], before)
    with pytest.raises(UserError, match="quantized"):
        mods.lora.merge(model)


def test_a_model_takes_adapters_once_and_only_where_there_are_layers(mods, model):
    with pytest.raises(UserError, match="no layer is called"):
        mods.lora.inject(model, targets=("nose",))
    mods.lora.inject(model)
    with pytest.raises(UserError, match="already"):
        mods.lora.inject(model)


def test_the_forward_equals_peft(mods, tokens):
    peft = pytest.importorskip("peft")
    ours, theirs = new_model(mods, "GPT"), new_model(mods, "GPT")
    learned(mods, mods.lora.inject(ours, rank=4, alpha=6, targets=("qkv", "up")))
    wrapped = nn.Module()
    wrapped.gpt = theirs
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["qkv", "up"])
    peft.inject_adapter_in_model(config, wrapped)
    for name, layer in mods.lora.layers_of(ours).items():
        twin = theirs.get_submodule(name)
        twin.lora_A["default"].weight.data = layer.A.data
        twin.lora_B["default"].weight.data = layer.B.data
    found, _ = ours(tokens)
    torch.testing.assert_close(found, theirs(tokens)[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, new_model(mods, "GPT")(tokens)[0], atol=1e-2)


# ------------------------------------------------------------------------------------- the files

SETTINGS = dict(rank=4, alpha=8.0, dropout=0.0, targets=("qkv", "out"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, text_file) -> Path:
    """A checkpoint of a tiny model."""
    out = tmp_path_factory.mktemp("base") / "out"
    flags = words(MODELS[4].flags, QUICK, "--steps 5 --eval-every 5 --seed 5 --dataset", text_file)
    done = run_script(ROOT / FOLDER / "train.py", flags, "--out", out)
    assert done.status == 0, done
    return out / "best.pt"


def with_adapters(mods, base: Path) -> nn.Module:
    model, _, _ = mods.generate.load_checkpoint(base)
    return learned(mods, mods.lora.inject(model, **SETTINGS))


def test_a_file_holds_the_adapters_only_and_loads(mods, base, tmp_path):
    model = with_adapters(mods, base)
    path = tmp_path / "adapters.pt"
    mods.lora.save_adapters(path, model, base, SETTINGS, note="x")
    assert list(tmp_path.iterdir()) == [path]
    saved = mods.generate.read_checkpoint(path)
    assert set(saved["adapters"]) == {
        f"blocks.0.attention.{layer}.{part}" for layer in ("qkv", "out") for part in "AB"
    }
    assert saved["base"] == mods.lora.sha256_of(base) and saved["note"] == "x"
    other, _, _ = mods.generate.load_checkpoint(base)
    mods.lora.load_adapters(path, other, base)
    x = torch.arange(6)[None]
    assert torch.equal(other(x)[0], model(x)[0])


def test_adapters_of_another_base_are_refused(mods, base, tmp_path):
    path = tmp_path / "adapters.pt"
    mods.lora.save_adapters(path, with_adapters(mods, base), base, SETTINGS)
    other = tmp_path / "other.pt"
    mods.train.write_checkpoint(other, mods.generate.read_checkpoint(base) | {"note": "another"})
    model, _, _ = mods.generate.load_checkpoint(other)
    with pytest.raises(UserError, match="was not trained on"):
        mods.lora.load_adapters(path, model, other)
    with pytest.raises(UserError, match="holds no adapters"):
        mods.lora.load_adapters(base, model, base)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="no whole checkpoint"):
        mods.lora.load_adapters(path, model, base)


def test_merged_files_write_the_same_text(mods, base, tmp_path, run_main):
    path, out = tmp_path / "adapters.pt", tmp_path / "merged.pt"
    model = with_adapters(mods, base)
    mods.lora.save_adapters(path, model, base, SETTINGS)
    result = run_main(mods.lora, "--merge", [base, path], "--out", out)
    assert result.status == 0, result
    merged, _, _ = mods.generate.load_checkpoint(out)
    x = torch.arange(6)[None]
    torch.testing.assert_close(merged(x)[0], model(x)[0], atol=1e-5, rtol=1e-5)
    assert "optimizer" not in mods.generate.read_checkpoint(out)  # of a run that is another's
    assert_one_line_error(run_main(mods.train, "--resume", out), "is fine-tuned")
    for arguments in (["--checkpoint", path], ["--checkpoint", path, "--quantize", "int8"]):
        assert_one_line_error(run_main(mods.generate, arguments), "merge them into a model")
    assert_one_line_error(run_main(mods.lora, "--spectrum", [base, path]), "adapters only")


# ---------------------------------------------------------------------------------- the spectrum


def test_a_low_rank_keeps_all_of_an_update_of_low_rank(mods):
    dice = torch.Generator().manual_seed(0)
    update = torch.randn(20, 3, generator=dice) @ torch.randn(3, 30, generator=dice)
    shares = mods.lora.kept(update)
    assert len(shares) == 20 and np.all(np.diff(shares) >= -1e-12)
    assert shares[1] < 0.999 and shares[2] == pytest.approx(1) == shares[-1]
    u, s, v = torch.linalg.svd(update)
    rest = update - u[:, :2] * s[:2] @ v[:2]  # what a rank of two cannot keep
    assert 1 - shares[1] == pytest.approx(
        float(rest.square().sum() / update.square().sum()), abs=1e-5
    )


def test_the_spectrum_is_drawn(mods, base, tmp_path, run_main):
    checkpoint = mods.generate.read_checkpoint(base)
    model = mods.lora.absorb(with_adapters(mods, base))
    tuned, out = tmp_path / "tuned.pt", tmp_path / "spectrum.png"
    mods.train.write_checkpoint(tuned, checkpoint | {"model": model.state_dict()})
    result = run_main(mods.lora, "--spectrum", [base, tuned], "--out", out)
    assert result.status == 0, result
    assert out.read_bytes()[:4] == b"\x89PNG"
    line = next(each for each in result.out.splitlines() if "attention.qkv" in each)
    assert float(line.split()[-3].rstrip("%")) == pytest.approx(100)  # rank 4 was injected
    assert "mlp" not in result.out


def test_errors_are_one_line(mods, base, tmp_path, run_main):
    out = tmp_path / "x.png"
    cases = [
        ("", "nothing to do"),
        (["--spectrum", base, base], "same matrices"),
        (["--spectrum", base, tmp_path / "no.pt"], "no.pt"),
        (["--merge", base, base], "holds no adapters"),
        (["--spectrum", base], "--spectrum"),
    ]
    for arguments, mentioned in cases:
        result = run_main(mods.lora, arguments, "--out", out)
        assert_one_line_error(result, mentioned)
        assert not out.exists()


def test_the_module_runs_as_a_script(base, tmp_path):
    result = run_script(ROOT / FOLDER / "lora.py", "--help")
    assert result.status == 0 and "--spectrum" in result.out, sys.executable
