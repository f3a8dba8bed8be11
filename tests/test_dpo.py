"""Preferences: DPO's loss and its reference; a reward model and GRPO, by hand; runs that go on."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, assert_one_line_error, modules, printed_command, words
from test_instructions import write_json, write_start
from torch.nn import functional as F

FOLDER = MODELS[4].folder
TINY = "--preset tiny --dtype float32 --device cpu --test 2"


@pytest.fixture
def mods() -> SimpleNamespace:
    return modules(FOLDER)


@pytest.fixture(autouse=True)
def no_pictures(mods, monkeypatch) -> None:
    """Pictures take longer than tiny runs. A test in test_instructions.py draws one."""
    monkeypatch.setattr(mods.tuning, "draw_losses", lambda *_, **__: None)


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    return write_start(tmp_path_factory.mktemp("start"))


def prepared(mods, script: str, start: Path, out: Path, monkeypatch, flags: str = ""):
    """A run before its first step."""
    module = getattr(mods, script)
    arguments = [script, *TINY.split(), *flags.split(), "--checkpoint", str(start)]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(out)])
    with torch.random.fork_rng():
        return module.prepare(module.parse_args())


# ------------------------------------------------------------------------------------------- DPO


@pytest.mark.parametrize("flags", ["", "--lora --rank 2"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_loss_starts_at_ln_2(mods, start, tmp_path, monkeypatch, flags, dropout):
    """Also of a base with dropout: its dice are no difference between policy and reference."""
    saved = mods.generate.read_checkpoint(start)
    saved["config"]["dropout"] = dropout
    mods.train.write_checkpoint(tmp_path / "start.pt", saved)
    out = tmp_path / "out"
    run = prepared(mods, "finetune_dpo", tmp_path / "start.pt", out, monkeypatch, flags)
    assert (run.reference is None) == bool(flags)
    chosen, rejected = mods.finetune_dpo.rewards(run, run.rows["train"][:4])
    assert chosen.tolist() == rejected.tolist() == [0.0] * 4
    loss = mods.finetune_dpo.dpo_loss(chosen, rejected)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert mods.finetune_dpo.train_step(run) == pytest.approx(math.log(2), abs=1e-6)


def test_log_probs_are_those_of_the_response_alone(mods, start, tmp_path, monkeypatch):
    run = prepared(mods, "finetune_dpo", start, tmp_path, monkeypatch)
    pairs = run.rows["train"][:3]
    with torch.no_grad():
        for kind in (0, 1):
            rows = [pair[kind] for pair in pairs]
            inputs, targets = mods.instruction_data.collate(rows)
            found = mods.finetune_dpo.log_probs(run.model(inputs)[0], targets)
            for row, value in zip(rows, found, strict=True):
                table = run.model(torch.tensor([row.tokens[:-1]]))[0][0].log_softmax(-1)
                expected = sum(table[i - 1, row.tokens[i]]
                               for i in range(row.prompt, len(row.tokens)))  # fmt: skip
                assert value.item() == pytest.approx(float(expected), rel=1e-4)


def test_the_loss_of_known_rewards(mods):
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert mods.finetune_dpo.dpo_loss(chosen, rejected).item() == pytest.approx(expected)


def test_the_reference_stays_as_it_was_and_rewards_part(mods, start, tmp_path, monkeypatch):
    run = prepared(mods, "finetune_dpo", start, tmp_path, monkeypatch, "--lr 0.01 --epochs 2")
    before = {name: each.clone() for name, each in run.reference.state_dict().items()}
    for _ in range(4):
        mods.finetune_dpo.train_step(run)
    assert all(torch.equal(run.reference.state_dict()[name], before[name]) for name in before)
    assert not any(each.requires_grad for each in run.reference.parameters())
    own = run.model.state_dict()
    assert not torch.equal(own["embedding.weight"], before["embedding.weight"])
    chosen, rejected = mods.finetune_dpo.rewards(run, run.rows["train"])
    assert chosen.abs().min() > 0 and (chosen != rejected).all()


def test_with_adapters_gradients_reach_these_only(mods, start, tmp_path, monkeypatch):
    run = prepared(mods, "finetune_dpo", start, tmp_path, monkeypatch, "--lora --rank 2")
    names = set(mods.lora.adapters_of(run.model))
    before = {name: each.clone() for name, each in run.model.named_parameters()}
    for _ in range(2):  # in the first step B is 0, so A gets no gradient yet
        mods.finetune_dpo.train_step(run)
    for name, weight in run.model.named_parameters():
        assert (weight.grad is not None) == (name in names), name
        assert torch.equal(weight, before[name]) == (name not in names), name
    with mods.lora.disabled(run.model), torch.no_grad():
        model, _, _ = mods.generate.load_checkpoint(start)
        x = torch.arange(5)[None]
        assert torch.equal(run.model.eval()(x)[0], model(x)[0])


# ------------------------------------------------------------------------------ the reward model


def test_a_score_is_the_implicit_reward(mods, start, tmp_path, monkeypatch):
    run = prepared(mods, "finetune_grpo", start, tmp_path, monkeypatch)
    grpo = mods.finetune_grpo
    rows = [mods.instruction_data.Row([5, 6, 7, 8], 2), mods.instruction_data.Row([5, 6, 9], 1)]
    model, _, _ = mods.generate.load_checkpoint(start)
    assert grpo.scores_of(run, model, rows).tolist() == [0, 0]  # the reference itself
    torch.nn.init.normal_(model.head.weight)
    with torch.no_grad():
        for row, score in zip(rows, grpo.scores_of(run, model, rows), strict=True):
            own, other = (each(torch.tensor([row.tokens]))[0][0].log_softmax(-1)
                          for each in (model, run.reference))  # fmt: skip
            apart = sum(own[i - 1, row.tokens[i]] - other[i - 1, row.tokens[i]]
                        for i in range(row.prompt, len(row.tokens)))  # fmt: skip
            assert score.item() == pytest.approx(0.1 * float(apart), rel=1e-4)


def test_the_reward_model_learns_what_its_pairs_have_in_common(
    mods, start, tmp_path, monkeypatch, capsys
):
    """In every pair the chosen reply says "fox", about things that are not in training."""
    pair = mods.instruction_data.Pair
    things = words("bell hat key lamp drum kite map rope spoon boot coat cup")
    pairs = [pair(f"Tell me {word}.", "", f"{word} the fox.", f"{word} the owl.", {}, "")
             for word in things]  # fmt: skip
    data = SimpleNamespace(train=pairs[:8] * 8, valid=pairs[8:])
    run = prepared(mods, "finetune_grpo", start, tmp_path, monkeypatch, "--examples 8")
    monkeypatch.setattr(mods.instruction_data, "load", lambda *_, **__: (data.train, data.valid))
    before = {name: each.clone() for name, each in run.reference.state_dict().items()}
    model = mods.finetune_grpo.train_reward_model(run, batch_size=4)
    assert "right about 100.0% of 4 validation pairs" in capsys.readouterr().out
    assert not any(each.requires_grad for each in model.parameters())
    after = run.reference.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


# ------------------------------------------------------------------------------------------ GRPO


def test_advantages_are_standard_scores_within_a_group(mods):
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 4.0]])
    found = mods.finetune_grpo.advantages_of(rewards)
    expected = [[1, -1, 1, -1], [0] * 4, [-1 / 3**0.5] * 3 + [3**0.5]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-3,
                               rtol=0)  # fmt: skip


def test_the_grpo_loss_by_hand(mods):
    old = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]])
    new = old + torch.tensor([[0.1, 0.5, -0.5], [0.5, -0.5, 9.0]])
    reference, advantages = old.clone(), torch.tensor([1.0, -2.0])
    real = torch.tensor([[True, True, True], [True, True, False]])
    loss, distance = mods.finetune_grpo.grpo_loss(new, old, reference, advantages, real, 0.1, 0.2)
    e = math.exp
    gains = [(e(0.1) + 1.2 + e(-0.5)) / 3, (-2 * e(0.5) - 2 * 0.8) / 2]  # the worse of the two

    def k3(x: float) -> float:
        return e(-x) + x - 1

    apart = [(k3(0.1) + k3(0.5) + k3(-0.5)) / 3, (k3(0.5) + k3(-0.5)) / 2]
    assert distance.item() == pytest.approx(sum(apart) / 2, rel=1e-5)
    assert loss.item() == pytest.approx(0.1 * sum(apart) / 2 - sum(gains) / 2, rel=1e-5)


def test_a_step_makes_better_replies_likelier(mods, start, tmp_path, monkeypatch):
    """The gradient at the first step is that of -advantage * ln p: no more, no less."""
    run = prepared(mods, "finetune_grpo", start, tmp_path, monkeypatch)
    rows = [mods.instruction_data.Row([5, 6, 7, 8], 2), mods.instruction_data.Row([5, 6, 9], 2)]
    inputs, targets = mods.instruction_data.collate(rows)
    new = mods.finetune_grpo.token_log_probs(run.model(inputs)[0], targets)
    with torch.no_grad():
        reference = mods.finetune_grpo.token_log_probs(run.reference(inputs)[0], targets)
    advantages, real = torch.tensor([1.0, -1.0]), targets != mods.instruction_data.IGNORED
    loss, distance = mods.finetune_grpo.grpo_loss(
        new, new.detach(), reference, advantages, real, 0.5, 0.2
    )
    assert distance.item() == pytest.approx(0, abs=1e-6)
    (found,) = torch.autograd.grad(loss, run.model.head.weight, retain_graph=True)
    plain = -(new[0].sum() / 2 - new[1].sum()) / 2
    (expected,) = torch.autograd.grad(plain, run.model.head.weight)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert int(real.sum()) == 3


def test_the_checker_pays_for_facts_and_for_a_story_without_a_slip(
    mods, start, tmp_path, monkeypatch
):
    """A true story is worth most, one with a slip more the later it comes; none without an end."""
    run = prepared(mods, "finetune_grpo", start, tmp_path, monkeypatch, "--grammar 0.5")
    example = next(each for each in mods.instruction_data.load("tales", (9, 1, 1), 3).train
                   if set(each.asked) == {"kind", "hero", "thing"})  # fmt: skip
    text = example.response
    half = len(text) // 2
    other = next(each for each in mods.instruction_data.KINDS
                 if each["name"] != example.asked["kind"])["name"]  # fmt: skip
    texts = [text, text[:half] + "#" + text[half:], text[:half], text.replace(" ", f" {other} ", 1)]
    replies = iter([(each, True) for each in texts] + [(text, False)])
    monkeypatch.setattr(mods.finetune_grpo, "text_of", lambda *_: next(replies))
    rows = [mods.instruction_data.Row([1, 2], 1)] * 5
    found, (obeyed, read) = mods.finetune_grpo.reward(run, rows, [example] * 5)
    whole, slip, short, wrong, endless = found.tolist()
    assert whole == 1.5
    assert slip == pytest.approx(1 + 0.5 * half / (len(text) + 1))
    facts = mods.instruction_data.check(texts[2], example.asked).right.values()
    assert short == pytest.approx(sum(facts) / 3 + 0.5 * half / len(text))  # a tale is longer
    assert wrong < 1 and endless == 0.5
    assert (obeyed, read) == (pytest.approx((2 + all(facts)) / 5), pytest.approx(2 / 5))


def test_token_log_probs_add_up_to_those_of_dpo(mods):
    logits, targets = torch.randn(2, 4, 9), torch.tensor([[1, 2, -100, -100], [-100, 3, 4, 5]])
    each = mods.finetune_grpo.token_log_probs(logits, targets)
    torch.testing.assert_close(each.sum(1), mods.finetune_dpo.log_probs(logits, targets))
    assert each[0, 2:].tolist() == [0, 0]
    torch.testing.assert_close(each[0, 0], F.log_softmax(logits[0, 0], -1)[1])


# ------------------------------------------------------------------------------------------ runs


CASES = [("finetune_dpo", ""), ("finetune_dpo", "--lora --rank 2"), ("finetune_grpo", ""),
         ("finetune_grpo", "--reward model --kl 0")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("script", "flags"), CASES)
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    mods, run_main, start, tmp_path, monkeypatch, script, flags
):
    module = getattr(mods, script)
    flags += " --examples 8"
    whole = run_main(module, TINY, flags, "--checkpoint", start, "--out", tmp_path / "a")
    assert whole.status == 0, whole
    assert "before: obeyed" in whole.out and "after:  obeyed" in whole.out
    step = module.train_step

    def stop_after_one(run):
        loss = step(run)
        if run.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(module, "train_step", stop_after_one)
    stopped = run_main(module, TINY, flags, "--checkpoint", start, "--out", tmp_path / "b")
    assert stopped.status == 143, stopped
    assert "--resume" in printed_command(stopped.out, f"{script}.py")
    monkeypatch.undo()
    resumed = run_main(module, "--device cpu --resume", tmp_path / "b" / "last.pt")
    assert resumed.status == 0, resumed
    for name in ("best.pt", "last.pt"):
        one, other = (mods.generate.read_checkpoint(tmp_path / each / name) for each in "ab")
        key = "adapters" if "adapters" in one else "model"
        assert all(torch.equal(one[key][k], other[key][k]) for k in one[key])
    ends = [result.out.partition("after:")[2].splitlines()[:2] for result in (whole, resumed)]
    assert ends[0] == ends[1] and len(ends[0]) == 2


def test_preferences_of_a_file(mods, run_main, start, tmp_path):
    path = write_json(tmp_path / "some.json", chosen="A fox.", rejected="An owl.")
    rows = json.loads(path.read_text(encoding="utf-8"))  # and no "output": pairs need none
    rows = [{key: row[key] for key in row if key != "output"} for row in rows]
    path.write_text(json.dumps(rows), encoding="utf-8")
    result = run_main(mods.finetune_dpo, TINY, "--checkpoint", start, "--dataset", path, "--out",
                      tmp_path / "out")  # fmt: skip
    assert result.status == 0, result
    table = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert table[0].startswith("step,seconds,train_loss,val_loss,val_margin,val_accuracy")


def test_errors_are_one_line(mods, run_main, start, tmp_path):
    plain = tmp_path / "plain.pt"
    saved = mods.generate.read_checkpoint(start)
    mods.train.write_checkpoint(plain, {k: v for k, v in saved.items() if k != "template"})
    out, no_pairs = tmp_path / "out", write_json(tmp_path / "no.json")
    short = tmp_path / "short.pt"
    saved["config"] |= {"context": 12}
    mods.train.write_checkpoint(short, saved)
    cases = [
        ("finetune_dpo", ["--checkpoint", plain], "knows no template"),
        ("finetune_dpo", ["--checkpoint", start, "--dataset", no_pairs], "chosen"),
        ("finetune_dpo", ["--beta", "0", "--lr", "x"], "--beta 0"),
        ("finetune_dpo", ["--resume", start], "no last.pt"),
        ("finetune_grpo", ["--checkpoint", plain], "knows no template"),
        ("finetune_grpo", ["--checkpoint", short], "no prompt leaves room"),
        ("finetune_grpo", ["--group", "1"], "--group 1"),
        ("finetune_grpo", ["--reward", "money"], "--reward money"),
        ("finetune_grpo", ["--resume", start], "no last.pt"),
    ]
    for script, arguments, mentioned in cases:
        result = run_main(getattr(mods, script), TINY, arguments, "--out", out)
        assert_one_line_error(result, mentioned)
        assert not out.exists()
