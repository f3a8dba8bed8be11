"""Evaluation: windows, calibration, slips of the pen, contradictions, reports, comparisons."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MODELS, ROOT, assert_one_line_error, modules, run_script, words
from test_finetune_spam import some_messages
from test_instructions import new_base

from shared.data.tales import recall_probes, write_tale
from shared.utils.tokenizers import WordTokenizer

FOLDER = MODELS[4].folder
QUICK = "--device cpu --dtype float32"


@pytest.fixture
def mods() -> SimpleNamespace:
    return modules(FOLDER)


def new_model(kind: str, context: int, vocab_size: int = 13) -> torch.nn.Module:
    make = {"GPT": modules(FOLDER).model.GPT, "Llama": modules(FOLDER).llama.Llama}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(vocab_size, hidden_size=16, layers=2, heads=2, context=context).eval()
        for weight in model.parameters():  # as sure of itself as a trained one
            weight.data.mul_(3)
    return model


# ------------------------------------------------------------------------------------ perplexity


@pytest.mark.parametrize("kind", ["GPT", "Llama"])
@pytest.mark.parametrize("count", [2, 8, 9, 10, 41])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_give_the_numbers_of_the_plain_loop(mods, kind, count, stride):
    """One window after another, no batches: what stands at its end is predicted from all of it."""
    model, T = new_model(kind, 8), 8
    tokens = torch.randint(13, (count,), generator=torch.Generator().manual_seed(1))
    wanted, end = [], min(T, count - 1)
    done = 0
    while done < count - 1:
        with torch.inference_mode():
            logs = model(tokens[None, max(0, end - T) : end])[0][0].log_softmax(dim=-1)
        for place in range(done, end):  # predicts the token at place + 1
            wanted.append(logs[place - max(0, end - T), tokens[place + 1]].item())
        done, end = end, min(end + stride, count - 1)
    found = mods.metrics.predict(model, tokens, stride)
    assert len(found.nats) == count - 1
    assert torch.allclose(-found.nats, torch.tensor(wanted), atol=1e-5)


def test_stride_one_is_the_whole_past_of_each_token(mods):
    model = new_model("Llama", 8)
    tokens = torch.randint(13, (30,), generator=torch.Generator().manual_seed(2))
    found = mods.metrics.predict(model, tokens, 1)
    for place in range(1, 30):
        with torch.inference_mode():
            p = model(tokens[None, max(0, place - 8) : place])[0][0, -1].softmax(dim=-1)
        assert math.isclose(found.nats[place - 1], -p[tokens[place]].log(), abs_tol=1e-5)
        assert math.isclose(found.confidence[place - 1], p.max(), abs_tol=1e-5)
        assert found.right[place - 1] == (p.argmax() == tokens[place])


def test_more_past_helps_where_the_past_tells(mods):
    """A model that copies what came 6 tokens ago knows nothing at the start of a window."""

    class Copier(torch.nn.Module):
        context, config = 8, {"vocab_size": 13}

        def forward(self, tokens):
            logits = torch.zeros(*tokens.shape, 13)
            seen = torch.nn.functional.one_hot(tokens[:, :-5], 13) * 20.0
            logits[:, 5:] = seen
            return logits, None

    tokens = torch.arange(60) % 6
    costs = [mods.metrics.predict(Copier(), tokens, stride).nats.mean() for stride in (8, 4, 3, 1)]
    assert costs[0] > costs[1] > costs[2]
    assert costs[3] == pytest.approx(5 / 59 * math.log(13), abs=1e-4)  # the first five only


def test_continuing_greedily_is_what_generate_does_at_temperature_0(mods):
    model = new_model("Llama", 8)
    prompts = torch.randint(13, (3, 5), generator=torch.Generator().manual_seed(3))
    found = mods.metrics.continue_greedily(model, prompts, 12)  # past the context
    for prompt, row in zip(prompts.tolist(), found.tolist(), strict=True):
        assert row == list(mods.generate.generate(model, prompt, 12, 0.0))


# ----------------------------------------------------------------------------------- calibration


def test_calibration_error_of_a_case_worked_by_hand(mods):
    """10 bins: three of 0.95 (two right), two of 0.75 (one right), one of 0.2 (wrong).

    (3 |2/3 - 0.95| + 2 |1/2 - 0.75| + 1 |0 - 0.2|) / 6 = (0.85 + 0.5 + 0.2) / 6
    """
    bins = mods.metrics.reliability(
        [0.95, 0.75, 0.95, 0.2, 0.95, 0.75], [True, False, False, False, True, True], 10
    )
    assert [(each.count, each.low) for each in bins] == [(1, 0.1), (2, 0.7), (3, 0.9)]
    assert mods.metrics.calibration_error(bins) == pytest.approx(1.55 / 6)


def test_calibration_error_is_the_plain_loops(mods):
    dice = np.random.default_rng(0)
    p, right = dice.random(3000), dice.random(3000) < 0.5
    total = 0.0
    for b in range(15):
        own = [i for i in range(3000) if b / 15 < p[i] <= (b + 1) / 15]
        total += abs(sum(right[own]) - sum(p[own])) / 3000
    bins = mods.metrics.reliability(p, right)
    assert mods.metrics.calibration_error(bins) == pytest.approx(total)
    assert sum(each.count for each in bins) == 3000
    edges = mods.metrics.reliability([0.0, 1.0, 1 / 3], [False, True, True], 3)
    assert [each.count for each in edges] == [2, 1]


def test_who_is_as_sure_as_right_has_no_calibration_error(mods):
    dice = np.random.default_rng(1)
    p = dice.random(200_000)
    error = mods.metrics.calibration_error
    assert error(mods.metrics.reliability(p, dice.random(200_000) < p)) < 0.005
    assert error(mods.metrics.reliability(np.ones(100), np.arange(100) < 60)) == pytest.approx(0.4)


def test_the_standard_error_is_that_of_many_draws_and_never_says_never(mods):
    draws = np.random.default_rng(2).binomial(200, 0.9, 20_000) / 200
    assert mods.metrics.standard_error(0.9, 200) == pytest.approx(draws.std(), rel=0.1)
    assert 0.1 < mods.metrics.standard_error(0.0, 7) < 0.15


# ------------------------------------------------------------------------------------ robustness


def test_a_slip_swaps_loses_or_doubles_one_letter(mods):
    seen = set()
    for seed in range(300):
        word = mods.metrics.slip("planet", random.Random(seed))
        assert word[0] == "p"
        swapped = sorted(word) == sorted("planet") and sum(map(str.__ne__, word, "planet")) == 2
        lost = len(word) == 5 and any(word == "planet"[:i] + "planet"[i + 1 :] for i in range(6))
        twice = len(word) == 7 and any(word == "planet"[:i] + "planet"[i - 1 :] for i in range(7))
        assert swapped + lost + twice == 1, word
        seen.add((swapped, lost, twice))
    assert len(seen) == 3


def test_typos_are_in_the_share_of_words_asked_for(mods):
    text = "It was a planet of silver, and she saw it. " * 500
    assert mods.metrics.with_typos(text, random.Random(0), 0.0) == text
    for share in (0.1, 1.0):
        changed = mods.metrics.with_typos(text, random.Random(0), share).split()
        pairs = list(zip(text.split(), changed, strict=True))
        assert all(a == b for a, b in pairs if len(a.strip(".,")) < 4)
        long = [a != b for a, b in pairs if len(a.strip(".,")) >= 4]
        assert np.mean(long) == pytest.approx(share, abs=0.03)
    again = mods.metrics.with_typos(text, random.Random(0), 0.1)
    assert again == mods.metrics.with_typos(text, random.Random(0), 0.1)


def test_a_rephrased_instruction_asks_for_the_same_in_known_words(mods):
    data = mods.instruction_data
    tokenizer = WordTokenizer.train(data.base_text(400_000, seed=3))
    begins = [request.partition("{")[0] for request in data.REQUESTS]
    for example, dice in data.write_examples("test", 60, 5):
        text = mods.evaluate.rephrased(example, dice)
        assert tokenizer.unk_id not in tokenizer.encode(text), text
        for name in ("kind", "hero", "friend"):
            assert example.asked.get(name, "") in text
        if "thing" in example.asked:
            fine = next(t["fine"] for t in data.THINGS if t["name"] == example.asked["thing"])
            assert fine in text
        assert not any(text.startswith(begin) for begin in begins if begin)


# --------------------------------------------------------------------------------- contradictions


def test_a_true_tale_never_contradicts_itself(mods):
    for seed in range(25):
        tale = write_tale(random.Random(seed), "valid")
        assert mods.metrics.contradictions(tale.text) == ([], "whole")
        part = tale.text[: seed * len(tale.text) // 25]
        assert mods.metrics.contradictions(part) == ([], "unfinished")


@pytest.mark.slow
def test_every_wrong_answer_to_a_probe_is_found_and_nothing_else(mods):
    kinds = set()
    for seed in range(12):
        tale = write_tale(random.Random(seed), "valid")
        for probe in tale.probes:
            wrong = next(each for each in probe.candidates if each != probe.answer)
            rest = tale.text[len(probe.prompt) + len(probe.answer) :]
            slips, end = mods.metrics.contradictions(probe.prompt + wrong + rest)
            assert end == "whole"
            assert [(s.said, s.true, s.at) for s in slips] == [
                (wrong.strip(), probe.answer.strip(), len(probe.prompt) + 1)
            ]
            kinds.add(slips[0].about)
    assert {"name", "thing", "number", "place"} <= kinds


def test_several_contradictions_are_all_found(mods):
    text = write_tale(random.Random(0), "valid").text  # Kit and Clover; a kite
    places = [i for i in range(len(text)) if text.startswith("Clover", i)]
    bad = text[: places[-1]] + "Dusty" + text[places[-1] + 6 :]
    bad = bad[: bad.rindex("kite")] + "bell" + bad[bad.rindex("kite") + 4 :]
    slips, end = mods.metrics.contradictions(bad)
    assert end == "whole"
    assert [(s.about, s.said, s.true) for s in slips] == [
        ("name", "Dusty", "Clover"), ("thing", "bell", "kite"),
    ]  # fmt: skip


def test_what_is_no_tale_is_lost_and_not_called_a_contradiction(mods):
    text = write_tale(random.Random(0), "valid").text
    for bad in ("Hello, world!", text + " And so on.", text.replace("note", "notte")):
        assert mods.metrics.contradictions(bad) == ([], "lost")


# ------------------------------------------------------------------------------- the whole script


@pytest.fixture(scope="module")
def base(tmp_path_factory, text_file) -> Path:
    return new_base(tmp_path_factory.mktemp("base"), text_file.read_text(encoding="utf-8"), 64)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """A tuned model with a template; its dataset is tales."""
    mods, folder = modules(FOLDER), tmp_path_factory.mktemp("told")
    path = new_base(folder, mods.instruction_data.base_text(60_000))
    saved = mods.generate.read_checkpoint(path)
    more = {"template": "short", "dataset": {"name": "tales", "sha256": ""}}
    mods.train.write_checkpoint(folder / "told.pt", saved | more)
    return folder / "told.pt"


@pytest.fixture(scope="module")
def spam(tmp_path_factory) -> tuple[Path, Path]:
    """A classifier, and its messages."""
    folder = tmp_path_factory.mktemp("spam")
    rows = "".join(f"{label}\t{text}\n" for label, text in some_messages(300))
    (folder / "sms.tsv").write_text(rows, encoding="utf-8")
    flags = words("--preset tiny --device cpu --dtype float32 --dataset", folder / "sms.tsv")
    done = run_script(ROOT / FOLDER / "finetune_spam.py", flags, "--out", folder / "out")
    assert done.status == 0, done
    return folder / "out" / "best.pt", folder / "sms.tsv"


@pytest.fixture
def run(mods, run_main, tmp_path, monkeypatch):
    """evaluate.py in this process, without pictures, which take longer."""
    for name in ("draw_reliability", "draw_repetitions"):
        monkeypatch.setattr(mods.evaluate, name, lambda *_: None)

    def evaluate(*parts, out="out"):
        return run_main(mods.evaluate, *parts, QUICK, "--out", tmp_path / out)

    return evaluate


def measures(out: Path, part: str) -> dict[str, list]:
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    return found["parts"][part]["measures"]


def subject_of(mods, path: Path, tmp_path: Path, *flags: object):
    """What evaluate.py works on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", *words(QUICK, *flags)])
        return mods.evaluate.load(path, mods.evaluate.parse_args(), tmp_path)


@pytest.mark.slow
def test_a_report_has_all_parts_and_its_pictures(base, text_file, tmp_path):
    flags = words("--checkpoint", base, "--dataset", text_file, "--limit 4", QUICK)
    done = run_script(ROOT / FOLDER / "evaluate.py", flags, "--out", tmp_path)
    assert done.status == 0 and done.err == "", done
    report = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    for part in ("Perplexity", "Robustness", "Calibration", "Memorisation"):
        assert f"## {part}" in report and f"## {part}" in done.out
    assert "A quick look (--limit 4)" in report and "A quick look (--limit 4)" in done.out
    for name in ("calibration.png", "memorisation.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in report


def test_perplexity_is_that_of_the_text_from_beginning_to_end(mods, base, text_file, tmp_path, run):
    done = run("--checkpoint", base, "--dataset", text_file, "--what perplexity --stride 16")
    assert done.status == 0, done
    valid = mods.data.find(str(text_file), "tales").corpus.valid
    model, tokenizer, _ = mods.generate.load_checkpoint(base)
    tokens = torch.tensor(tokenizer.encode(valid))
    nats = 0.0
    for place in range(1, len(tokens)):  # 64 tokens of context, stride 16
        end = place if place <= 64 else min(len(tokens) - 1, 64 + -(-(place - 64) // 16) * 16)
        begin = max(0, min(64, len(tokens) - 1) - 64) if place <= 64 else end - 64
        if place <= 64:
            end = min(64, len(tokens) - 1)
        with torch.inference_mode():
            logs = model(tokens[None, begin:end])[0][0].log_softmax(dim=-1)
        nats -= logs[place - 1 - begin, tokens[place]].item()
    loss = nats / (len(tokens) - 1)
    bits = loss * len(tokens) / math.log(2) / len(valid)
    assert measures(tmp_path / "out", "perplexity")["bits per character"][0] == pytest.approx(bits)
    assert f"{loss:.4f}" in done.out and f"{math.exp(loss):.4f}" in done.out


@pytest.mark.slow
def test_what_is_done_is_kept_and_not_done_again(mods, base, text_file, tmp_path, run, monkeypatch):
    flags = words("--checkpoint", base, "--dataset", text_file, "--limit 4")
    whole = run(flags, out="whole")
    assert whole.status == 0

    def interrupted(subject):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(mods.evaluate.PARTS, "calibration", interrupted)
        assert run(flags).status == 130
    with monkeypatch.context() as patch:
        patch.setitem(mods.evaluate.PARTS, "perplexity", interrupted)  # must not be called
        done = run(flags)
    assert done.status == 0 and "perplexity: as measured before" in done.out
    for name in ("evaluation.json", "evaluation.md"):
        pages = [(tmp_path / out / name).read_text(encoding="utf-8") for out in ("whole", "out")]
        assert pages[0] == pages[1]
    assert "as measured before" not in run(flags, "--seed 8").out  # other settings, all anew
    text = tmp_path / "text.txt"
    for sentence in ("A fox had a hat. ", "A hat had a fox. "):  # another text, all anew
        text.write_text(sentence * 1500, encoding="utf-8")
        done = run("--checkpoint", base, "--what perplexity --limit 2 --dataset", text, out="text")
        assert done.status == 0 and "as measured before" not in done.out


def spoiled(mods, path: Path, out: Path, noise: float) -> Path:
    """The same checkpoint with noise in its weights."""
    saved, dice = mods.generate.read_checkpoint(path), torch.Generator().manual_seed(0)
    for weight in saved["model"].values():
        weight.add_(noise * torch.randn(weight.shape, generator=dice))
    mods.train.write_checkpoint(out, saved)
    return out


def test_a_comparison_fails_where_something_has_become_worse(mods, text_file, tmp_path, run):
    text = text_file.read_text(encoding="utf-8")
    good = new_base(tmp_path, text, 64)
    bad = spoiled(mods, good, tmp_path / "bad.pt", 0.3)
    flags = words("--dataset", text_file, "--limit 4 --what perplexity")
    worse = run("--checkpoint", bad, "--compare", good, flags, out="a")
    assert worse.status == 1 and "WORSE by more than 0.02: perplexity: bits per char" in worse.out
    better = run("--checkpoint", good, "--compare", bad, flags, out="b")
    assert better.status == 0 and "Nothing has become worse" in better.out
    shutil.copy(good, tmp_path / "same.pt")
    same = run(
        "--checkpoint", good, "--compare", tmp_path / "same.pt", flags, "--tolerance 0", out="c"
    )
    assert same.status == 0 and "| +0.000 " in same.out
    patient = run("--checkpoint", bad, "--compare", good, flags, "--tolerance 1", out="a")
    assert patient.status == 0


def test_a_share_is_compared_by_points_and_all_else_by_its_ratio(mods):
    of, worsened = mods.metrics.Measure, mods.metrics.worsened
    assert worsened(of(0.9, "share", "higher"), of(0.8, "share", "higher")) == pytest.approx(0.1)
    assert worsened(of(0.1, "share", "lower"), of(0.2, "share", "lower")) == pytest.approx(0.1)
    assert worsened(of(2.0, "bits", "lower"), of(2.1, "bits", "lower")) == pytest.approx(0.05)
    assert worsened(of(2.0, "bits", "lower"), of(1.9, "bits", "lower")) == pytest.approx(-0.05)


def test_only_what_is_counted_alike_is_compared(mods, capsys):
    of, finding = mods.metrics.Measure, mods.report.Finding
    before = {"robustness": finding({"typos": of(0.3, "bits/char", "lower")})}
    after = {"robustness": finding({"typos": of(0.9, "share", "higher", 50)})}
    assert mods.report.compare(before, after, 0.0) == []
    worse = {"robustness": finding({"typos": of(0.7, "share", "higher", 50)})}
    assert mods.report.compare(after, worse, 0.1) == ["robustness: typos"]


def test_the_report_on_spam_counts_right(mods, spam, tmp_path, run):
    path, messages = spam
    done = run("--checkpoint", path)
    assert done.status == 0, done
    model, tokenizer = mods.finetune_spam.load_classifier(path, "cpu")
    test = mods.finetune_spam.load_messages(str(messages))[0]["test"]
    called = []
    for text in test.texts:  # one by one
        row = mods.finetune_spam.encode(tokenizer, text, model.context)
        with torch.inference_mode():
            p = model(*mods.finetune_spam.pad([row], model.context)).sigmoid().item()
        called.append(p)
    right = [(p > 0.5) == label for p, label in zip(called, test.labels, strict=True)]
    found = measures(tmp_path / "out", "spam")
    assert found["accuracy"][0] == pytest.approx(np.mean(right))
    assert found["accuracy"][3] == len(right) == 60
    bins = mods.metrics.reliability([max(p, 1 - p) for p in called], right)
    error = measures(tmp_path / "out", "calibration")["calibration error"][0]
    assert error == pytest.approx(mods.metrics.calibration_error(bins), abs=1e-4)
    spams = sum(test.labels)
    hits = sum(p > 0.5 for p, label in zip(called, test.labels, strict=True) if label)
    assert f"| is spam | {hits:<11} | {spams - hits:<10} |" in done.out
    assert measures(tmp_path / "out", "robustness")["as it is"] == found["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--quantize int8"])
def test_obedience_is_that_of_finetune_instruct(mods, told, tmp_path, run, flags):
    done = run("--checkpoint", told, "--what instructions --test 6", flags)
    assert done.status == 0, done
    model, tokenizer, _ = mods.generate.load_checkpoint(told)
    if flags:
        mods.quantize.quantize(model, "int8")
    examples = mods.instruction_data.load("tales", (1, 1, 6), 1337).test
    base = mods.generate.load_checkpoint(told)[0]
    found = mods.finetune_instruct.obedience(model, tokenizer, "short", examples, base, 1337)
    assert f"{found.bits:.3f} bits/char of the replies" in done.out
    assert measures(tmp_path / "out", "instructions")["instructions obeyed"][0] == found.obeyed


@pytest.mark.slow
def test_files_of_adapters_are_loaded_on_their_base(mods, told, tmp_path, run, monkeypatch):
    monkeypatch.setattr(mods.tuning, "draw_losses", lambda *_, **__: None)
    flags = "--preset tiny --examples 8 --test 2 --lora --template short --lr 0.1"
    script = ROOT / FOLDER / "finetune_instruct.py"
    flags = words(flags, QUICK, "--checkpoint", told, "--out", tmp_path / "lora")
    done = run_script(script, flags)
    assert done.status == 0, done
    merged = mods.lora.merge_files(told, tmp_path / "lora" / "best.pt", tmp_path / "merged.pt")
    assert merged is None
    found = []
    for name in ("lora/best.pt", "merged.pt"):
        text = tmp_path / "some.txt"
        text.write_text(mods.instruction_data.base_text(20_000, seed=2), encoding="utf-8")
        out = name.split("/")[0].removesuffix(".pt") + "-out"
        more = words("--what perplexity --dataset", text)
        assert run("--checkpoint", tmp_path / name, more, out=out).status == 0
        found.append(measures(tmp_path / out, "perplexity")["bits per character"][0])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_text_of_tales_is_known_by_its_stories(mods):
    """Also where it begins with a page of words, as the text for a base model does."""
    for text, expected in (
        (mods.instruction_data.base_text(60_000), True),
        ("No tale.\n\n" * 99, False),
    ):
        assert mods.evaluate.of_tales(SimpleNamespace(text=SimpleNamespace(train=text))) == expected


@pytest.mark.parametrize("answers", ["true", "false"])
def test_hallucination_at_probes_is_a_wrong_word_said_for_sure(
    mods, base, text_file, tmp_path, run, monkeypatch, answers
):
    """With the logits of one who knows, or of one who is sure of another answer."""

    def scores(subject, contexts):
        probes = recall_probes(20)
        logits = torch.zeros(len(probes), subject.tokenizer.vocab_size)
        _, choices = mods.train.answers_of(subject.tokenizer, probes)
        for row, probe, tokens in zip(logits, probes, choices, strict=True):
            right = probe.candidates.index(probe.answer)
            other = next(t for t in tokens if t != tokens[right])
            row[tokens[right] if answers == "true" else other] = 20.0
        return logits

    monkeypatch.setattr(mods.train, "next_scores", scores)
    monkeypatch.setattr(mods.evaluate, "of_tales", lambda subject: True)
    monkeypatch.setattr(mods.evaluate, "write_stories", lambda *_: ["Kit was", "Hello."])
    # the small text does not hold all names: a tokenizer that does
    big = new_base(tmp_path, mods.instruction_data.base_text(400_000), 64)
    done = run("--checkpoint", big, "--dataset", text_file, "--what hallucination --limit 20")
    assert done.status == 0, done
    found = measures(tmp_path / "out", "hallucination")
    wanted = 0.0 if answers == "true" else 1.0
    assert found["wrong at probes"][0] == found["wrong at probes, and sure"][0] == wanted
    assert found["stories that contradict themselves"][0] == 0


def test_stories_of_a_base_are_its_own(mods, base, text_file, tmp_path):
    subject = subject_of(mods, base, tmp_path, "--dataset", text_file, "--limit 3")
    stories = mods.evaluate.write_stories(subject, 3)
    assert len(stories) == len(set(stories)) == 3
    assert stories == mods.evaluate.write_stories(subject, 3)


# ----------------------------------------------------------------------------------- the mistakes


def test_mistakes_are_said_in_one_line(base, spam, text_file, tmp_path, run):
    data = words("--dataset", text_file)
    for flags, mentioned in (
        (["--checkpoint", base, "--what", "spam", *data], "perplexity, robustness"),
        (["--checkpoint", base, "--stride", "65", *data], "at most 64"),
        (["--checkpoint", base, "--what", "nothing"], "give one of all"),
        (["--checkpoint", tmp_path / "none.pt"], "no checkpoint"),
        (["--checkpoint", text_file], "no whole checkpoint"),
        (["--checkpoint", spam[0], "--compare", base], "two of a kind"),
        (["--checkpoint", base, "--tolerance", "2", "--limit", "0"], "--limit 0"),
    ):
        assert_one_line_error(run([*map(str, flags)]), mentioned)
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time. " * 20, encoding="utf-8")
    done = run("--checkpoint", base, ["--dataset", short, "--what", "perplexity"])
    assert_one_line_error(done, "give more text")
    short.write_text("Once upon a time. " * 500, encoding="utf-8")
    done = run("--checkpoint", base, ["--dataset", short, "--what", "hallucination"])
    assert_one_line_error(done, "holds no tales")
