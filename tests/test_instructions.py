"""Instructions: templates, masks, the end mark, the checker, splits, fine-tuning, talking."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, ROOT, assert_one_line_error, modules, printed_command, run_script

from shared import UserError
from shared.data.tales import read_tale
from shared.utils.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer

FOLDER = MODELS[4].folder
SMALL = "--preset tiny --dtype float32 --device cpu --examples 12 --batch-size 4 --test 3"


@pytest.fixture
def mods() -> SimpleNamespace:
    return modules(FOLDER)


@pytest.fixture
def no_pictures(mods, monkeypatch) -> None:
    """Pictures take longer than tiny runs. One test, in a process, draws them."""
    monkeypatch.setattr(mods.tuning, "draw_losses", lambda *_, **__: None)


@pytest.fixture(scope="session")
def base_text() -> str:
    return modules(FOLDER).instruction_data.base_text(60_000, seed=3)


@pytest.fixture(scope="session", params=["word", "bpe", "char"])
def tokenizer(request, base_text):
    if request.param == "bpe":
        return BPETokenizer.train(base_text, 600, ["<|endoftext|>"])
    return {"word": WordTokenizer, "char": CharTokenizer}[request.param].train(base_text)


def new_base(folder: Path, text: str, context: int = 320) -> Path:
    """A checkpoint of a model that has learned nothing."""
    mods, path = modules(FOLDER), folder / "base.pt"
    tokenizer = WordTokenizer.train(text)
    sizes = dict(hidden_size=16, layers=1, heads=2, context=context, copy="pointer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mods.llama.Llama(tokenizer.vocab_size, **sizes)
    kind = {"format": mods.generate.FORMAT, "version": 1, "architecture": "Llama"}
    more = {"config": model.config, "tokenizer": tokenizer.state_dict()}
    more |= {"model": model.state_dict(), "dataset": {"name": "x"}, "progress": {"step": 0}}
    mods.train.write_checkpoint(path, kind | more)
    return path


def write_start(folder: Path) -> Path:
    """The same, but it knows a template."""
    mods, path = modules(FOLDER), folder / "start.pt"
    saved = mods.generate.read_checkpoint(
        new_base(folder, mods.instruction_data.base_text(400_000))
    )
    mods.train.write_checkpoint(path, saved | {"template": "short"})
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory, base_text) -> Path:
    return new_base(tmp_path_factory.mktemp("base"), base_text)


@pytest.fixture(scope="session")
def short_base(tmp_path_factory, base_text) -> Path:
    """With a context that no prompt of the template alpaca fits into."""
    return new_base(tmp_path_factory.mktemp("short"), base_text, context=24)


# ------------------------------------------------------------------------- templates and masks


@pytest.mark.parametrize("template", ["alpaca", "short"])
def test_the_mask_covers_exactly_the_prompt(mods, tokenizer, template):
    data = mods.instruction_data
    prompt = data.prompt_of(template, "Tell a tale of a fox who lost a hat.")
    response = "Pip was a fox.\nHe had a hat."
    row = data.encode(tokenizer, prompt, response, 1000)
    inputs, targets = data.collate([row])
    learned = targets[0][targets[0] != data.IGNORED].tolist()
    end = data.end_of(tokenizer)
    assert learned == tokenizer.encode(response + "\n") + end
    assert tokenizer.decode(learned) == response + "\n" + data.END
    first = int((targets[0] != data.IGNORED).nonzero()[0])
    assert inputs[0, : first + 1].tolist() == tokenizer.encode(prompt)  # the last one predicts
    assert (targets[0, :first] == data.IGNORED).all()
    assert (targets[0, first:] != data.IGNORED).all()


@pytest.mark.parametrize("template", ["alpaca", "short"])
def test_without_a_mask_the_prompt_counts_and_padding_never_does(mods, tokenizer, template):
    data = mods.instruction_data
    prompt = data.prompt_of(template, "Tell a tale of a fox.")
    rows = [data.encode(tokenizer, prompt, text, 1000) for text in ("Pip.", "Pip had a hat.")]
    inputs, targets = data.collate(rows, mask=False)
    for row, source, target in zip(rows, inputs.tolist(), targets.tolist(), strict=True):
        size = len(row.tokens) - 1
        assert source[:size] == row.tokens[:-1] and target[:size] == row.tokens[1:]
        assert set(target[size:]) <= {data.IGNORED}
    _, masked = data.collate(rows)
    count = len(tokenizer.encode(prompt)) - 1
    assert ((targets != data.IGNORED).sum(1) - (masked != data.IGNORED).sum(1)).tolist() == (
        [count] * 2
    )


def test_what_is_too_long_is_cut_off_behind_and_has_no_end_mark(mods, tokenizer):
    data = mods.instruction_data
    prompt, response = data.prompt_of("short", "Tell a tale."), "Pip had a hat. " * 20
    size = len(tokenizer.encode(prompt))
    whole = data.encode(tokenizer, prompt, response, 10_000)
    for context in (size, size + 1, size + 7):
        row = data.encode(tokenizer, prompt, response, context)
        assert row.tokens == whole.tokens[: context + 1]
        inputs, targets = data.collate([row])
        assert inputs.size(1) == context
        assert int((targets != data.IGNORED).sum()) == context + 1 - size
        assert row.tokens[-len(data.end_of(tokenizer)) :] != data.end_of(tokenizer)
    assert data.encode(tokenizer, prompt, response, size - 1) is None


def test_the_end_mark_is_one_token_where_the_tokenizer_has_it(mods, tokenizer):
    end = mods.instruction_data.end_of(tokenizer)
    assert len(end) == (13 if isinstance(tokenizer, CharTokenizer) else 1)
    assert tokenizer.decode(end) == mods.instruction_data.END


def test_an_input_stands_under_the_instruction(mods):
    prompt = mods.instruction_data.prompt_of
    text = prompt("alpaca", "Edit {this}.", "He go.")
    assert text.endswith("### Instruction:\nEdit {this}.\n\n### Input:\nHe go.\n\n### Response:\n")
    assert prompt("short", "Edit.", "He go.") == "<|user|>\nEdit.\nHe go.\n<|assistant|>\n"
    assert "Input" not in prompt("alpaca", "Edit.")


def test_a_tokenizer_without_the_words_is_refused(mods):
    with pytest.raises(UserError, match="lacks words"):
        mods.instruction_data.check_vocabulary(WordTokenizer.train("the fox"), "alpaca")


# --------------------------------------------------------------------- the checker and the data


def test_true_stories_obey_and_both_ways_to_look_agree(mods):
    data = mods.instruction_data
    agree, total = 0, 0
    for example, _ in data.write_examples("train", 300, 1):
        found = data.check(example.response, example.asked)
        assert found.read and found.obeyed, example
        seen = data.look_for_facts(example.response)
        agree += sum(seen[name] == word for name, word in example.asked.items())
        total += len(example.asked)
    assert agree / total > 0.99


def test_a_story_with_a_slip_is_looked_at_for_words(mods):
    data = mods.instruction_data
    example, _ = next(data.write_examples("train", 1, 1))
    wrong = example.response + " So there."
    assert read_tale(wrong) is None
    found = data.check(wrong, example.asked)
    assert not found.read and found.obeyed
    assert not data.check("", example.asked).obeyed


def test_a_slip_is_found_where_it_is(mods):
    data = mods.instruction_data
    for example in data.load("tales", (4, 1, 1), 3).train:
        text = example.response
        assert data.before_a_slip(text) == len(text)
        assert data.before_a_slip(text[:100]) == 100  # a tale can go on from there
        assert data.before_a_slip(text[:100] + "#" + text[100:]) == 100
        assert data.before_a_slip("#" + text) == 0
    assert data.before_a_slip("") == 0


def test_a_rejected_story_breaks_exactly_one_fact(mods):
    pairs = mods.instruction_data.load("tales", (30, 30, 30), 1, pairs=True)
    told = [read_tale(text).facts.split for pair in pairs.train for text in pair[2:4]]
    assert set(told) == {"train"}  # a rejected story shows nothing that is held out, either
    for pair in [*pairs.train, *pairs.valid, *pairs.test]:
        assert mods.instruction_data.check(pair.chosen, pair.asked).obeyed
        found = mods.instruction_data.check(pair.rejected, pair.asked)
        assert found.read  # a story as good as the other
        assert [name for name, right in found.right.items() if not right] == [pair.broken]
    assert {pair.broken for pair in pairs.train} >= {"plot", "kind", "hero", "thing"}


def test_no_part_shares_plot_kind_and_thing_with_another(mods):
    data = mods.instruction_data.load("tales", (200, 60, 60), 1)
    seen = []
    for part in (data.train, data.valid, data.test):
        facts = [read_tale(example.response).facts for example in part]
        seen.append({(each.plot, each.kind, each.thing) for each in facts})
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert mods.instruction_data.load("tales", (5, 1, 1), 1).train == data.train[:5]


def test_things_with_an_are_frequent_in_training_only(mods):
    data = mods.instruction_data
    parts = data.load("tales", (400, 1, 400), 3)
    shares = {}
    for part in ("train", "test"):
        facts = [data.read_tale(each.response).facts for each in getattr(parts, part)]
        assert all(data.part_of(each) == part for each in facts)
        shares[part] = sum(each.thing in data.AN for each in facts) / len(facts)
    assert data.AN == ["umbrella"]
    assert 0.18 < shares["train"] < 0.32  # a fifth, and one in sixteen of the others
    assert shares["test"] < 0.12


def test_every_instruction_is_in_the_vocabulary_of_the_base_text(mods):
    tokenizer = WordTokenizer.train(mods.instruction_data.base_text(400_000))
    for example, _ in mods.instruction_data.write_examples("test", 100, 1):
        assert tokenizer.unk_id not in tokenizer.encode(example.instruction)


def write_json(path: Path, count: int = 40, **more: str) -> Path:
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"A fox {i}.", **more}
            for i in range(count)]  # fmt: skip
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_a_file_is_split_as_it_stands(mods, tmp_path):
    path = write_json(tmp_path / "some.json", chosen="yes", rejected="no")
    data = mods.instruction_data.load(str(path), (1000, 1000, 1000))
    assert [len(part) for part in data[:3]] == [34, 2, 4]
    assert data.test[0].instruction == "Say 34." and data.valid[0].instruction == "Say 38."
    pairs = mods.instruction_data.load(str(path), (3, 9, 9), pairs=True)
    assert len(pairs.train) == 3 and pairs.train[0][2:4] == ("yes", "no")


# ----------------------------------------------------------------------------------- fine-tuning


def tuned(mods, run_main, base: Path, out: Path, *flags: object):
    return run_main(mods.finetune_instruct, SMALL, "--checkpoint", base, "--out", out, *flags)


def weights(mods, path: Path) -> dict:
    saved = mods.generate.read_checkpoint(path)
    return saved.get("adapters") or saved["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", ["", "--no-mask-instructions --template short", "--lora --rank 2"]
)
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    mods, run_main, base, tmp_path, monkeypatch, flags
):
    whole = tuned(mods, run_main, base, tmp_path / "a", flags)
    assert whole.status == 0, whole
    assert "before: obeyed" in whole.out and "after:  obeyed" in whole.out
    step = mods.finetune_instruct.train_step

    def stop_after_two(run):
        loss = step(run)
        if run.step == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(mods.finetune_instruct, "train_step", stop_after_two)
    stopped = tuned(mods, run_main, base, tmp_path / "b", flags)
    assert stopped.status == 143, stopped
    assert "--resume" in printed_command(stopped.out, "finetune_instruct.py")
    monkeypatch.undo()
    resumed = run_main(mods.finetune_instruct, "--device cpu --resume", tmp_path / "b" / "last.pt")
    assert resumed.status == 0, resumed
    one, other = (weights(mods, tmp_path / name / "last.pt") for name in "ab")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in "ab"]
    cut = [[line.split(",")[::2] for line in each] for each in rows]  # without the seconds
    assert [line[0] for line in cut[0]] == [line[0] for line in cut[1]]
    tail = [line.partition("validation")[2] for line in (whole.out, resumed.out)]
    assert tail[0].splitlines()[0] == tail[1].splitlines()[0]


@pytest.mark.usefixtures("no_pictures")
def test_only_adapters_learn_over_four_bits(mods, run_main, base, tmp_path):
    result = tuned(mods, run_main, base, tmp_path, "--qlora --rank 2")
    assert result.status == 0, result
    saved = mods.generate.read_checkpoint(tmp_path / "best.pt")
    assert saved["architecture"] == "LoRA" and "model" not in saved
    merged = run_main(mods.lora, "--merge", [base, tmp_path / "best.pt"], "--out",
                      tmp_path / "merged.pt")  # fmt: skip
    assert merged.status == 0, merged
    assert mods.generate.read_checkpoint(tmp_path / "merged.pt")["template"] == "alpaca"
    found = mods.finetune_instruct.base_of(tmp_path / "merged.pt", "cpu").state_dict()
    true = mods.generate.load_checkpoint(base)[0].state_dict()
    assert all(torch.equal(found[name], true[name]) for name in true)


@pytest.mark.usefixtures("no_pictures")
def test_a_file_of_instructions_trains_too(mods, run_main, base, tmp_path):
    path = write_json(tmp_path / "some.json")
    result = tuned(mods, run_main, base, tmp_path / "out", "--dataset", path)
    assert result.status == 0, result
    assert "Say 34." in result.out  # a reply to look at: nobody knows whether it is right


def test_replies_end_at_the_end_mark(mods, base):
    """A model that says the end mark after three words of a fixed text."""
    _, tokenizer, _ = mods.generate.load_checkpoint(base)
    end, words = mods.instruction_data.end_of(tokenizer), tokenizer.encode("Once a fox")
    answer = words + tokenizer.encode("\n") + end + words

    class Parrot(torch.nn.Module):
        context = 64

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tokens, state=0):
            said = state + (tokens.size(1) if state else 1)
            logits = torch.full((*tokens.shape, tokenizer.vocab_size), -10.0)
            logits[:, -1, answer[min(said, len(answer)) - 1]] = 10.0
            return logits, said

    replies = mods.finetune_instruct.reply_to(Parrot(), tokenizer, [[5], [5, 6], [7]], 30, 0.0)
    assert replies == [words + tokenizer.encode("\n") + end] * 3
    assert mods.finetune_instruct.text_of(tokenizer, replies[0]) == ("Once a fox", True)
    assert mods.finetune_instruct.text_of(tokenizer, words) == ("Once a fox", False)


def test_tokens_are_drawn_as_often_as_they_are_likely(mods):
    draw, dice = mods.finetune_instruct.draw, torch.Generator().manual_seed(0)
    p = torch.tensor([0.0, 0.5, 0.125, 0.0, 0.375, 0.0])
    scores = p.log().expand(20_000, -1)
    counts = torch.bincount(draw(scores, 1.0, dice)[:, 0], minlength=6) / len(scores)
    torch.testing.assert_close(counts, p, atol=0.02, rtol=0)  # five standard deviations: 0.018
    assert counts[p == 0].sum() == 0
    sharp = p**2 / (p**2).sum()
    counts = torch.bincount(draw(scores, 0.5, dice)[:, 0], minlength=6) / len(scores)
    torch.testing.assert_close(counts, sharp, atol=0.02, rtol=0)
    assert draw(scores[:3], 0.0, dice).tolist() == [[1]] * 3


def test_bits_per_char_of_a_model_that_knows_nothing(mods, base):
    model, tokenizer, _ = mods.generate.load_checkpoint(base)
    with torch.no_grad():
        model.head.weight.zero_()
        model.pointer.gate.bias.fill_(-100.0)
    texts = ["Once a fox.", "She had a hat.", "A fox had a hat. " * 100]  # longer than the context
    expected = (
        sum(len(tokenizer.encode(text)) for text in texts)
        * torch.tensor(float(tokenizer.vocab_size)).log2()
        / sum(map(len, texts))
    )
    found = mods.finetune_instruct.bits_per_char(model, tokenizer, texts)
    assert found == pytest.approx(float(expected), rel=1e-4)


# --------------------------------------------------------------------------------------- talking


def test_history_is_kept_as_far_as_it_fits(mods, base):
    _, tokenizer, _ = mods.generate.load_checkpoint(base)
    end, data = mods.instruction_data.end_of(tokenizer), mods.instruction_data
    say = data.in_template
    first = say(tokenizer, "short", [], "Tell a tale.", 100)
    assert first == tokenizer.encode(data.prompt_of("short", "Tell a tale."))
    said = first + tokenizer.encode("Once a fox.\n") + end
    second = say(tokenizer, "short", said, "Tell a story.", 100)
    new = tokenizer.encode(data.prompt_of("short", "Tell a story."))
    assert second == said + new
    assert say(tokenizer, "short", said, "Tell a story.", len(second)) == second
    assert say(tokenizer, "short", said, "Tell a story.", len(second) - 1) == new
    interrupted = said[: -len(end)]
    assert say(tokenizer, "short", interrupted, "Tell a story.", 100) == second


@pytest.mark.slow
def test_one_talks_to_the_result(base, tmp_path):
    script = ROOT / FOLDER / "finetune_instruct.py"
    done = run_script(script, SMALL, "--checkpoint", base, "--out", tmp_path)
    assert done.status == 0 and done.err == "", done
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    result = run_script(
        ROOT / FOLDER / "interactive.py", "--length 20 --checkpoint", tmp_path / "best.pt",
        stdin="Tell a tale of a fox.\nTell a story.\n/undo\n/quit\n",
    )  # fmt: skip
    assert result.status == 0 and result.err == "", result
    assert "Tell it what to do" in result.out
    for shown_again in ("### Instruction", "Tell a tale of a fox."):
        assert shown_again not in result.out, result


# ---------------------------------------------------------------------------------------- errors


def test_errors_are_one_line(mods, run_main, base, short_base, tmp_path):
    bad, few = tmp_path / "bad.json", write_json(tmp_path / "few.json", 3)
    bad.write_text('[{"instruction": 1}]')
    out = tmp_path / "out"
    cases = [
        (["--checkpoint", tmp_path / "no.pt"], "no.pt"),
        (["--checkpoint", base, "--dataset", tmp_path / "no.json"], "no.json"),
        (["--checkpoint", base, "--dataset", bad], "no list of instructions"),
        (["--checkpoint", base, "--dataset", few], "too few"),
        (["--checkpoint", short_base], "no prompt leaves room"),
        (["--resume", base], "no last.pt of finetune_instruct.py"),
        (["--rank", "0", "--epochs", "x"], "--rank 0"),
        (["--checkpoint", base, "--targets", "nothing", "--lora"], "no layer is called"),
    ]
    for arguments, mentioned in cases:
        result = run_main(mods.finetune_instruct, SMALL, arguments, "--out", out)
        assert_one_line_error(result, mentioned)
        assert not out.exists()
    assert_one_line_error(run_main(mods.train, "--resume", base), "is fine-tuned")


@pytest.mark.usefixtures("no_pictures")
def test_a_resumed_run_stays_as_it_was_begun(mods, run_main, base, tmp_path):
    assert tuned(mods, run_main, base, tmp_path).status == 0
    for flags, mentioned in (("--template short", "alpaca"), ("--no-mask-instructions", "True")):
        result = run_main(mods.finetune_instruct, flags, "--resume", tmp_path / "last.pt")
        assert_one_line_error(result, "leave the flag out", mentioned)
    result = run_main(
        mods.finetune_instruct, "--resume", tmp_path / "last.pt", "--out", "elsewhere"
    )
    assert_one_line_error(result, "in its own folder")  # best.pt may be from before it was stopped


def test_the_module_shows_and_writes(mods, run_main, tmp_path):
    shown = run_main(mods.instruction_data, "--examples 1 --template short")
    assert shown.status == 0 and "broken: Check" in shown.out and "<|user|>" in shown.out
    path = tmp_path / "new" / "base.txt"
    written = run_main(mods.instruction_data, "--size 20000 --base", path)
    assert written.status == 0 and path.read_text().count("<|endoftext|>") > 15
    assert list(path.parent.iterdir()) == [path]
    no_folder = run_main(mods.instruction_data, "--size 20000 --base", path / "base.txt")
    assert_one_line_error(no_folder, "base.txt")


def test_dice_are_the_same_for_the_same_seed(mods):
    one, other = (mods.instruction_data.load("tales", (3, 1, 1), 7) for _ in range(2))
    assert one == other and random.Random(1).random() == random.Random(1).random()
