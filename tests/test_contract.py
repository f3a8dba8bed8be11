"""What every model keeps to: state, causality, learning, and how text is written from it.

Runs over every folder in conftest.MODELS. Training, resuming and errors have files of their own.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE, ROOT, Spec, clock, copied, environment, run_script
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

VOCAB = 20
TRAINING_FLAGS = [  # of every model; those of its size stand in conftest.MODELS
    *["--dataset", "--preset", "--dropout", "--epochs", "--steps", "--minutes", "--batch-size"],
    *["--context", "--lr", "--seed", "--out", "--resume", "--save-every", "--eval-every"],
    *["--device", "--dtype", "--compile"],
]

# Greedy text of a model whose weights come from a formula: no training, so no rounding piles up.
# Renew it only when a change of the model's mathematics is meant.
GOLDEN = {
    "model-01-char-rnn": "wsigxoocpuc yxzojpc yebfogcyybixokcywebqsodfvgpuyyqgffhou\nyf",
    "model-02-word-rnn": "smzmjipukb\nqixipnpolrn cokyfoipumjipukb\nqixipnpolrn cokyfoip",
    "model-03-lstm-attention": "sspepegcriseospeghrisaadrisesezhriszhrrspegspegzpehrisaepecr",
    "model-04-mini-transformer": "bbdo \n\n\n\n\nsob\n\ntbtdo b\nso  b\nsf   b\n"
    "sfoib\nsoib\nso\n\nsoib\n\n\nyf",
    "model-05-gpt-style": "jjzzzztetzjigozzzzzzzxhtzzzzztiohfiiztzxt zuozzzhhtztitoxmgt",
}


def make(spec: Spec, mods: SimpleNamespace, seed: int = 0, **more: object) -> torch.nn.Module:
    """A small model in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(mods.model, spec.name)(**{"vocab_size": VOCAB} | spec.size | more).eval()


def some_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def leaves(state: object) -> list[Tensor]:
    """All tensors of a state; of a cache, the places in use."""
    if cache := getattr(state, "cache", None):
        return [state.tokens, cache.store[..., : state.tokens.size(1), :]]
    return tree_leaves(state)


def assert_same_state(one: object, other: object) -> None:
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    assert pairs
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# ----------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (3, 7)])
def test_logits_have_one_row_of_scores_for_every_token(spec, mods, shape):
    model = make(spec, mods)
    logits, state = model(some_tokens(*shape))
    assert logits.shape == (*shape, VOCAB)
    again, _ = model(some_tokens(*shape), state)
    assert again.shape == (*shape, VOCAB)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("layers", [1, 2])
def test_whole_sequence_equals_chunks_equals_token_by_token(spec, mods, layers):
    model, tokens = make(spec, mods, layers=layers), some_tokens(3, 12)
    with torch.inference_mode():
        whole, end = model(tokens)
        for sizes in ([5, 1, 6], [1] * 12, [12]):
            state, pieces = None, []
            for piece in tokens.split(sizes, dim=1):
                logits, state = model(piece, state)
                pieces.append(logits)
            torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)
            assert_same_state(state, end)


def test_a_state_is_read_and_never_changed(spec, mods):
    model = make(spec, mods)
    with torch.inference_mode():
        _, state = model(some_tokens(2, 5))
        before = [leaf.clone() for leaf in leaves(state)]
        first, _ = model(some_tokens(2, 3, seed=2), state)
        second, _ = model(some_tokens(2, 3, seed=2), state)
        fresh, _ = model(some_tokens(2, 3, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(state), strict=True))
    assert torch.equal(first, second)
    assert not torch.allclose(first, fresh)  # the past matters


def test_texts_of_a_batch_do_not_see_each_other(spec, mods):
    model, tokens = make(spec, mods), some_tokens(3, 6)
    with torch.inference_mode():
        together, _ = model(tokens)
        for row in range(3):
            alone, _ = model(tokens[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_a_token_never_changes_logits_before_it(spec, mods):
    model, tokens = make(spec, mods), some_tokens(1, 10)
    with torch.inference_mode():
        logits, _ = model(tokens)
        for t in range(10):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % VOCAB
            other, _ = model(changed)
            assert torch.equal(other[:, :t], logits[:, :t])
            assert not torch.allclose(other[:, t], logits[:, t])  # but it does change its own


def test_initial_loss_is_about_ln_v(spec, mods):
    """Before training every token is about as likely as any other.

    Not exactly: logits of variance s^2 cost about s^2 / 2 above ln V. With PyTorch's initial
    read-out weights, uniform within 1 / sqrt(H), and hidden units near +-1 (as in model 01, whose
    input weights start wide), s^2 = 1/3: one sixth of a nat. 0.3 leaves room for chance.
    """
    losses = []
    for seed in range(5):
        model = make(spec, mods, seed=seed)
        tokens = some_tokens(16, 33, seed=seed)
        logits, _ = model(tokens[:, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item())
    assert math.log(VOCAB) - 0.05 < statistics.mean(losses) < math.log(VOCAB) + 0.3


def test_one_batch_can_be_learned_by_heart(spec, mods):
    model = make(spec, mods, hidden_size=64).train()
    tokens = some_tokens(4, 17)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        logits, _ = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_every_weight_gets_a_gradient(spec, mods):
    model = make(spec, mods, layers=2).train()
    logits, _ = model(some_tokens(2, 6))
    logits.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_config_makes_the_same_model_again(spec, mods):
    model = make(spec, mods)
    twin = type(model)(**model.config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(model(some_tokens(2, 6))[0], twin(some_tokens(2, 6))[0])


# ------------------------------------------------------------------------------------- sampling


def slow_distribution(logits: list[float], temperature: float, top_k: int, top_p: float) -> list:
    """What `sample` must draw from, in plain Python: the k likeliest, of these up to p."""
    highest = max(logits)
    weights = [math.exp((x - highest) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order[: top_k or len(order)]
    total = sum(weights[i] for i in kept)
    result, reached = [0.0] * len(logits), 0.0
    for n, i in enumerate(kept):
        if n and reached >= top_p:
            break
        result[i] = weights[i] / total
        reached += result[i]
    return [p / sum(result) for p in result]


@copied("sample")
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 100])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.8, 1.0])
def test_top_k_and_top_p_compose_as_in_a_slow_twin(mods, temperature, top_k, top_p):
    logits = torch.tensor([0.1, 2.0, -1.0, 1.9, 0.7, -3.0, 1.0, -0.2])
    expected = slow_distribution(logits.tolist(), temperature, top_k, top_p)
    generator = torch.Generator().manual_seed(3)
    draws = 4000
    rows = logits.expand(draws, -1)
    tokens = mods.generate.sample(rows, temperature, top_k, top_p, generator)
    assert tokens.shape == (draws, 1)
    found = torch.bincount(tokens.flatten(), minlength=len(logits)) / draws
    for p, share in zip(expected, found.tolist(), strict=True):
        if p == 0:
            assert share == 0  # outside the support: never drawn
        assert abs(share - p) < 5 * (p * (1 - p) / draws) ** 0.5 + 1e-9


@copied("sample")
def test_temperature_0_and_top_k_1_take_the_likeliest(mods):
    logits = torch.randn(50, 13, generator=torch.Generator().manual_seed(0))
    likeliest = logits.argmax(-1, keepdim=True)
    for temperature, top_k, top_p in [(0, 0, 1.0), (1.0, 1, 1.0), (5.0, 0, 0.0), (0, 5, 0.5)]:
        generator = torch.Generator().manual_seed(1)
        drawn = mods.generate.sample(logits, temperature, top_k, top_p, generator)
        assert torch.equal(drawn, likeliest)


@copied("sample")
@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-37, 1e-39, 1e-60, 1e-320])
def test_a_temperature_near_0_is_greedy_too(mods, temperature):
    logits = torch.randn(5, 13, generator=torch.Generator().manual_seed(0)) * 5
    drawn = mods.generate.sample(logits, temperature, 0, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, logits.argmax(-1, keepdim=True))


@copied("sample")
def test_an_apple_gpu_is_not_asked_for_64_bits(mods):
    """It has no such numbers: logits must be on the CPU before they become 64 bits wide."""

    class OnMPS(torch.Tensor):
        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

        def double(self) -> torch.Tensor:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    logits = torch.tensor([[0.0, 3.0, 1.0]])
    for temperature in (0, 1.0):
        drawn = [
            mods.generate.sample(x, temperature, 2, 1.0, torch.Generator().manual_seed(1))
            for x in (logits, logits.as_subclass(OnMPS))
        ]
        assert torch.equal(*drawn)


def test_sampling_leaves_the_global_dice_alone(spec, mods):
    model = make(spec, mods)
    before = torch.get_rng_state()
    list(mods.generate.generate(model, [1, 2], 20, temperature=1.0, top_k=5, top_p=0.9, seed=3))
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------- generation


def test_same_seed_same_text_and_another_seed_another(spec, mods):
    model = make(spec, mods)

    def write(seed: int) -> list[int]:
        return list(mods.generate.generate(model, [3], 40, temperature=1.0, seed=seed))

    assert write(1) == write(1)
    assert write(1) != write(2)
    assert len(write(1)) == 40


def test_greedy_text_is_the_argmax_at_every_step(spec, mods):
    model, prompt = make(spec, mods), [3, 1, 4]
    written = list(mods.generate.generate(model, prompt, 30, temperature=0, seed=9))
    slow = list(prompt)
    with torch.inference_mode():
        for _ in range(30):  # no state: everything is read again for each token
            logits, _ = model(torch.tensor([slow]))
            slow.append(int(logits[0, -1].argmax()))
    assert written == slow[3:]


def golden_text(
    spec: Spec, mods: SimpleNamespace, dtype: torch.dtype = torch.float32
) -> tuple[str, Tensor]:
    """Greedy text of the model with weights by formula, and the logits on its way: (60, V)"""
    alphabet = "\n abcdefghijklmnopqrstuvwxyz"
    model = getattr(mods.model, spec.name)(vocab_size=len(alphabet), **spec.size).eval().to(dtype)
    with torch.inference_mode():
        for n, (name, weight) in enumerate(model.named_parameters()):
            wave = torch.arange(weight.numel(), dtype=torch.float64)
            values = torch.sin(wave * wave * 0.37 + wave * 1.3 + n)  # no pattern that repeats
            values = values.view_as(weight) * (1.2 if weight.dim() > 1 else 0.2)
            gain = weight.dim() == 1 and name.endswith("weight")  # of a norm: about 1
            weight.copy_(values + gain)
        tokens, state, rows = [0], None, []
        for _ in range(60):
            logits, state = model(torch.tensor([tokens[-1:]]), state)
            rows.append(logits[0, -1].double())
            tokens.append(int(logits[0, -1].argmax()))
    assert list(mods.generate.generate(model, [0], 60, temperature=0)) == tokens[1:]
    return "".join(alphabet[i] for i in tokens[1:]), torch.stack(rows)


def test_golden_greedy_text(spec, mods):
    """The mathematics of the model, held fast: any change to it changes this text.

    Rounding (another CPU, another PyTorch) does not tip a choice: the closest race is won by far
    more than what float32 rounds away, and float64 writes the same.
    """
    text, logits = golden_text(spec, mods)
    exact_text, exact = golden_text(spec, mods, torch.float64)
    assert text == exact_text == GOLDEN[spec.folder]
    best, second = exact.topk(2).values.unbind(1)
    assert (best - second).min() > 20 * (logits - exact).abs().max()


def test_writing_far_past_the_context_neither_crashes_nor_slows(spec, mods):
    model, times = make(spec, mods), []
    start = clock()
    for _ in mods.generate.generate(model, [1], 2000, temperature=1.0):
        now = clock()
        times.append(now - start)
        start = now
    early, late = statistics.median(times[200:400]), statistics.median(times[-200:])
    assert late < 3 * early + 1e-4


# ------------------------------------------------------------------------------ the command lines


def test_generate_writes_the_prompt_and_then_as_many_tokens(spec, mods, trained, run_main):
    flags = ["--checkpoint", trained.best, "--prompt", "Once upon", "--seed", "7"]
    result = run_main(mods.generate, flags, "--length 40")
    assert result.status == 0 and result.err == ""
    assert result.out.startswith("Once upon")
    if spec.unit == "character":
        assert len(result.out) == len("Once upon") + 40 + 1  # and a line break
    with pytest.MonkeyPatch.context() as patch:
        drawn = []
        patch.setattr(mods.generate, "show", lambda _, prompt, tokens, *rest: drawn.extend(tokens))
        run_main(mods.generate, flags, "--length 40")
    assert len(drawn) == 40
    assert run_main(mods.generate, flags, "--length 40") == result
    flags[-1] = "8"
    assert run_main(mods.generate, flags, "--length 40").out != result.out


def test_generate_without_a_seed_differs_each_time(spec, mods, trained, run_main):
    texts = {
        run_main(mods.generate, "--checkpoint", trained.best, "--length 60").out for _ in range(3)
    }
    assert len(texts) == 3


@pytest.mark.slow
@copied("find")
def test_generate_takes_a_relative_checkpoint_from_inside_and_from_the_root(spec, folder_copy):
    flags = "--checkpoint checkpoints/best.pt --length 20 --seed 1 --device cpu"
    inside = run_script(folder_copy / "generate.py", flags, cwd=folder_copy)
    root = run_script(folder_copy / "generate.py", flags, cwd=folder_copy.parent)
    default = run_script(folder_copy / "generate.py", "--length 20 --seed 1", cwd=ROOT)
    assert inside.status == 0, inside
    assert inside == root == default


@copied("show", "command")
def test_generate_streams(spec, trained):
    """The first characters are there long before the last."""
    command = [sys.executable, str(ROOT / spec.folder / "generate.py"), "--length", "10000000"]
    command += ["--checkpoint", str(trained.best), "--prompt", "Once"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        try:
            assert process.stdout.read(12).startswith(b"Once")
            assert process.poll() is None
        finally:
            process.kill()


@copied("command")
def test_generate_into_a_pipe_that_closes_ends_quietly(spec, trained):
    """As in `python generate.py | head`."""
    command = [sys.executable, str(ROOT / spec.folder / "generate.py"), "--length", "10000000"]
    command += ["--checkpoint", str(trained.best)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        try:
            process.stdout.read(12)
            process.stdout.close()
            assert process.wait(timeout=PATIENCE) == 0
            assert process.stderr.read() == b""
        finally:
            process.kill()


@copied("command")
@pytest.mark.slow
def test_generate_writes_utf_8_whatever_the_terminal_says(spec, mods, tmp_path, run_main):
    text = "Ein Märchen über Füchse – „ja“, sagte sie. 雪\n" * 60
    (tmp_path / "fremd.txt").write_text(text, encoding="utf-8")
    flags = [*spec.flags.split(), "--steps", "2", "--batch-size", "4", "--context", "8"]
    made = run_main(
        mods.train, flags, "--dataset", tmp_path / "fremd.txt", "--out", tmp_path / "out"
    )
    assert made.status == 0, made
    script, checkpoint = ROOT / spec.folder / "generate.py", tmp_path / "out" / "best.pt"
    flags = ["--checkpoint", checkpoint, "--prompt", "Füchse 雪", "--length", "5"]
    result = run_script(script, flags, env={"PYTHONIOENCODING": "ascii"})
    assert result.status == 0, result
    assert result.out.startswith("Füchse 雪")


STOPWATCH = """
import atexit, os, runpy, sys, time
import numpy, torch
start, sys.argv[:] = time.process_time(), sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
atexit.register(lambda: print(start, time.process_time() - start, file=sys.stderr))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_help_comes_fast(spec):
    """Slow libraries are loaded when they are needed: torch alone takes most of this time.

    Seconds of the processor, both in one process: a busy machine slows them alike.
    """
    path = ROOT / spec.folder / "train.py"  # it imports more than the others
    result = run_script(Path("-c"), [STOPWATCH, path, "--help"])
    assert result.status == 0 and "--dataset" in result.out, result
    of_torch, own = map(float, result.err.split())
    assert own < max(0.3, 0.3 * of_torch)


@pytest.mark.parametrize("script", ["train", "generate", "interactive"])
def test_help_mentions_every_flag(spec, mods, run_main, monkeypatch, script):
    monkeypatch.setenv("COLUMNS", "100")
    result = run_main(getattr(mods, script), "--help")
    assert result.status == 0 and result.err == ""
    sampling = ["--length", "--temperature", "--top-k", "--top-p", "--seed", "--device"]
    flags = {
        "generate": ["--checkpoint", "--prompt", *sampling],
        "interactive": ["--checkpoint", *sampling],
        "train": [*TRAINING_FLAGS, *spec.flags.split()[::2]],
    }[script]
    for flag in flags:
        line = [line for line in result.out.splitlines() if line.startswith(f"  {flag}")]
        assert line, f"{flag} is not in the help of {script}.py"
    assert max(map(len, result.out.splitlines())) <= 100


def test_the_same_flags_have_the_same_help_in_every_script(mods, run_main):
    """--device, --seed and so on mean one thing."""
    outs = [run_main(module, "--help").out for module in (mods.generate, mods.interactive)]
    parts = [out[out.index("sampling:") :].replace("(300)", "(500)") for out in outs]
    parts[0] = re.sub(r" +--unk .*\n", "", parts[0])  # from model 02 on, generate.py has it
    assert parts[0] == parts[1]


def test_a_checkpoint_reports_how_it_was_made(spec, mods, trained):
    model, tokenizer, checkpoint = mods.generate.load_checkpoint(trained.last)
    assert isinstance(model, torch.nn.Module) and not model.training
    assert model.config == checkpoint["config"] | {"vocab_size": tokenizer.vocab_size}
    assert checkpoint["architecture"] == spec.name
    assert checkpoint["progress"]["step"] == 300
    assert set(checkpoint["dataset"]) == {"name", "sha256"}
    assert all("_orig_mod" not in name for name in checkpoint["model"])
