"""Spam: the split, the last real token, what may change, the baselines, resume, errors."""

from __future__ import annotations

import csv
import os
import re
import signal
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MODELS, QUICK, ROOT, assert_one_line_error, modules, run_script, words
from torch import Tensor, nn

from shared import UserError
from shared.utils.tokenizers import CharTokenizer

SPEC = MODELS[4]
TINY = "--preset tiny --seed 3 --device cpu --dtype float32 --batch-size 16"


@pytest.fixture
def mods() -> SimpleNamespace:
    return modules(SPEC.folder)


def some_messages(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Ham and spam that a word tells apart, most of the time."""
    dice, rows = Random(seed), []
    nice, bad = words("home lunch see you ok later love"), words("win prize free claim call now")
    for _ in range(count):
        label = "spam" if dice.random() < 0.3 else "ham"
        pool = bad if label == "spam" else nice
        text = " ".join(dice.choice(pool if dice.random() < 0.8 else nice + bad) for _ in range(6))
        rows.append((label, f"{text.capitalize()} {dice.randint(1, 999)}!"))
    return rows


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("messages") / "sms.tsv"
    rows = "".join(f"{label}\t{text}\n" for label, text in some_messages(150))
    path.write_text(rows, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory, text_file) -> Path:
    """A checkpoint of a tiny GPT that knows the characters of tales."""
    out = tmp_path_factory.mktemp("base") / "out"
    flags = words(SPEC.flags, QUICK, "--layers 2 --steps 5 --eval-every 5 --context 64 --seed 5")
    done = run_script(
        ROOT / SPEC.folder / "train.py", flags, ["--dataset", text_file, "--out", out]
    )
    assert done.status == 0, done
    return out / "best.pt"


# --------------------------------------------------------------------------------------- the data


def test_the_split_is_that_of_pandas(mods, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = some_messages(200)
    rows[50] = ("ham", '"A quote that begins')  # pandas reads on to the next quote
    rows[57] = ("spam", 'and ends here" now')
    path = tmp_path / "sms.tsv"
    path.write_text("".join(f"{label}\t{text}\n" for label, text in rows), encoding="utf-8")
    frame = pandas.read_csv(path, sep="\t", header=None, names=["label", "text"])
    assert len(frame) < 200
    frame = frame.sample(frac=1, random_state=123).reset_index(drop=True)
    splits, _ = mods.finetune_spam.load_messages(str(path))
    one, two = int(len(frame) * 0.7), int(len(frame) * 0.7) + int(len(frame) * 0.1)
    parts = (frame[:one], frame[one:two], frame[two:])
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        assert splits[name].texts == part["text"].tolist()
        assert splits[name].labels.tolist() == (part["label"] == "spam").astype(int).tolist()


def test_a_long_message_keeps_its_beginning_and_its_end(mods):
    spam = mods.finetune_spam
    tokenizer = spam.BPETokenizer.train("a b c\n", 256)
    whole = spam.encode(tokenizer, "abcdef", 100)
    assert tokenizer.decode(whole) == "\nabcdef\n"
    assert tokenizer.decode(spam.encode(tokenizer, "abcdef", 4)) == "\nab\n"


def test_characters_that_a_tokenizer_does_not_know_are_left_out(mods):
    tokenizer = CharTokenizer.train("abc\n")
    assert tokenizer.decode(mods.finetune_spam.encode(tokenizer, "a£b5c", 100)) == "\nabc\n"
    assert mods.finetune_spam.encode(CharTokenizer.train("xyz"), "abc", 100) == [0]


def test_batches_hold_every_message_once(mods):
    lengths = Random(0).choices(range(1, 200), k=333)
    found = mods.tuning.batches(lengths, 16, np.random.default_rng(0))
    assert sorted(i for batch in found for i in batch) == list(range(333))
    assert len(found) == -(-333 // 16) and max(map(len, found)) == 16
    again = mods.tuning.batches(lengths, 16, np.random.default_rng(0))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_disguise_keeps_most_of_a_message(mods):
    text = "Call 09061701461 now to claim your prize, it is waiting for you here"
    assert mods.finetune_spam.disguise(text, 0.0, Random(0)) == text
    others = {mods.finetune_spam.disguise(text, 0.5, Random(i)) for i in range(20)}
    assert len(others) > 8
    assert all(len(other.split()) >= 8 for other in others)
    assert mods.finetune_spam.disguise("x", 1.0, Random(1)).lower() == "x"  # never empty


# -------------------------------------------------------------------------------------- the model


def new_classifier(mods, kind: str = "Llama") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make = {"GPT": mods.model.GPT, "Llama": mods.llama.Llama}[kind]
        body = make(30, hidden_size=16, layers=2, heads=2, context=40)
        model = mods.finetune_spam.Classifier(body)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3) if weight.dim() > 1 else weight.data.add_(0.1)
    return model.eval()


@pytest.mark.parametrize("kind", ["GPT", "Llama"])
def test_padding_of_any_length_changes_nothing(mods, kind):
    model = new_classifier(mods, kind)
    row = torch.randint(30, (1, 7), generator=torch.Generator().manual_seed(1))
    alone, _ = model(row, torch.tensor([7]))
    for more in (1, 5, 33):
        for filling in (0, 29):
            padded = nn.functional.pad(row, (0, more), value=filling)
            found, _ = model(padded, torch.tensor([7]))
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    shorter, _ = model(row, torch.tensor([6]))
    assert not torch.allclose(shorter, alone, atol=1e-3)  # it is the last token that is read


def test_the_head_reads_what_the_read_out_would(mods):
    """The hidden vector is the one from which the language model makes its logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = mods.model.GPT(30, hidden_size=16, layers=2, heads=2, context=40).eval()
    tokens = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(1))
    logits, _ = body(tokens)
    names = set(body.state_dict())
    model = mods.finetune_spam.Classifier(body)
    _, hidden = model(tokens, torch.tensor([9, 9]))
    torch.testing.assert_close(model.read_out(hidden), logits)
    assert set(model.language_model()) == names


def test_messages_in_a_batch_are_judged_as_alone(mods):
    rows = [[1, 2, 3], [4] * 20, [5], [6, 7] * 8]
    model = new_classifier(mods)
    together, _ = model(*mods.finetune_spam.pad(rows, 40))
    for row, found in zip(rows, together, strict=True):
        alone, _ = model(*mods.finetune_spam.pad([row], 40))
        torch.testing.assert_close(found, alone[0], atol=1e-5, rtol=1e-5)


def test_the_loss_of_the_language_model_leaves_padding_out(mods):
    model, rows = new_classifier(mods), [[1, 2, 3, 4], [5, 6]]
    tokens, lengths = mods.finetune_spam.pad(rows, 40)
    _, hidden = model(tokens, lengths)
    found = mods.finetune_spam.lm_loss(model, hidden, tokens, lengths)
    nats = []
    for row in rows:
        _, h = model(torch.tensor([row]), torch.tensor([len(row)]))
        logs = model.read_out(h)[0].log_softmax(-1)
        nats += [-logs[i, row[i + 1]] for i in range(len(row) - 1)]
    torch.testing.assert_close(found, torch.stack(nats).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("context", [8, 16, 40])
def test_padding_ends_where_the_places_do(mods, context):
    for length in range(1, context + 1):
        tokens, lengths = mods.finetune_spam.pad([[1], [2] * length], context)
        assert length <= tokens.size(1) <= context and lengths.tolist() == [1, length]
        assert tokens.size(1) in (context, 16, 32)
        assert tokens[0].sum() == 1 and tokens[1].sum() == 2 * length


@pytest.mark.parametrize("mode", ["head", "last-block", "all", "lora"])
def test_what_may_change_changes_and_nothing_else(mods, mode, base, messages, run_main, tmp_path):
    spam = mods.finetune_spam
    flags = words(TINY, "--epochs 1", "--checkpoint", base, "--dataset", messages)
    result = run_main(spam, flags, "--train", mode, "--out", tmp_path, "--lm-weight 0 --average 0")
    assert result.status == 0, result
    before = mods.generate.read_checkpoint(base)["model"]
    saved = mods.generate.read_checkpoint(tmp_path / "last.pt")
    if mode == "lora":
        assert "model" not in saved
        assert all(each.any() for name, each in saved["adapters"].items() if name.endswith(".B"))
        return
    changed = {name for name in before if not torch.equal(before[name], saved["model"][name])}
    if mode == "head":
        assert changed == set()
    elif mode == "last-block":
        assert changed
        assert all(name.startswith(("blocks.1.", "norm.")) for name in changed)
    else:
        assert {name.split(".")[0] for name in changed} >= {"blocks", "norm", "embedding"}
    assert saved["classifier"][0]["weight"].any()


# ---------------------------------------------------------------------------------- the baselines


def some_split(mods, count: int = 150) -> tuple[list[str], np.ndarray]:
    rows = some_messages(count, seed=4)
    return [text for _, text in rows], np.array([int(label == "spam") for label, _ in rows])


def test_naive_bayes_is_that_of_scikit_learn(mods):
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    texts, labels = some_split(mods)
    ours, counter = mods.baselines.NaiveBayes(texts, labels), CountVectorizer()
    theirs = MultinomialNB().fit(counter.fit_transform(texts), labels)
    asked = [*texts, "unheard words", ""]
    assert list(ours.vocabulary) == list(counter.get_feature_names_out())
    logs = theirs.feature_log_prob_[1] - theirs.feature_log_prob_[0]
    np.testing.assert_allclose(ours.weights, logs, atol=1e-9)
    assert ours.predict(asked).tolist() == theirs.predict(counter.transform(asked)).tolist()


@pytest.mark.parametrize("strength", [1.0, 100.0])
def test_logistic_regression_is_that_of_scikit_learn(mods, strength):
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = some_split(mods)
    ours, counter = mods.baselines.LogisticRegression(texts, labels, strength), TfidfVectorizer()
    rows = counter.fit_transform(texts)
    theirs = LogisticRegression(C=strength, tol=1e-9, max_iter=5000).fit(rows, labels)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-3)
    assert ours.bias == pytest.approx(theirs.intercept_[0], abs=1e-3)
    asked = [*texts, "unheard words", ""]
    assert ours.predict(asked).tolist() == theirs.predict(counter.transform(asked)).tolist()


def test_a_logistic_fit_has_no_gradient_left(mods):
    texts, labels = some_split(mods)
    model = mods.baselines.LogisticRegression(texts, labels, 10.0)
    x = model.rows_of(texts)
    wrong = 10 * (1 / (1 + np.exp(-(x.times(model.weights) + model.bias))) - labels)
    assert np.abs(model.weights + x.transposed_times(wrong)).max() < 1e-5
    assert abs(wrong.sum()) < 1e-5


def test_the_figures_of_a_score(mods):
    predicted, labels = np.array([1, 1, 1, 0, 0, 0, 0]), np.array([1, 1, 0, 1, 1, 0, 0])
    found = mods.baselines.score(predicted, labels)
    assert tuple(found) == (2, 1, 2, 2)
    assert found.accuracy == 4 / 7 and found.precision == 2 / 3 and found.recall == 1 / 2
    assert found.f1 == pytest.approx(2 / (1 / (2 / 3) + 1 / (1 / 2)))
    nothing = mods.baselines.score(np.zeros(3, int), np.ones(3, int))
    assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)


def test_the_majority_is_what_most_are(mods):
    assert mods.baselines.Majority(["a"] * 3, np.array([0, 1, 0])).predict(["x", "y"]).tolist() == [
        0,
        0,
    ]


# --------------------------------------------------------------------------------------- the runs


@pytest.mark.slow
def test_a_run_learns_and_prints_the_baselines_beside(mods, messages, run_main, tmp_path):
    flags = words(TINY, "--dataset", messages, "--out", tmp_path)
    result = run_main(mods.finetune_spam, flags, "--epochs 12 --lr 0.02")
    assert result.status == 0, result
    for name in ("majority class", "naive Bayes", "logistic regression", "this model"):
        assert name in result.out
    rows = {line[:34].strip(): line[34:].split() for line in result.out.splitlines()}
    own, most = (rows[name] for name in ("this model, from nothing", "majority class"))
    assert float(own[0].rstrip("%")) > float(most[0].rstrip("%"))
    assert sum(map(int, own[4:])) == 30  # the test split
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12 and float(lines[-1]["train_loss"]) < 0.5 * float(lines[0]["train_loss"])
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    asked = run_main(mods.finetune_spam, "--out", tmp_path, "--ask", ["Win free prize now 77!"])
    assert asked.out.startswith("spam"), asked
    asked = run_main(
        mods.finetune_spam, "--out", tmp_path, "--ask", ["See you home later, love 5!"]
    )
    assert asked.out.startswith("ham"), asked
    written = run_main(mods.generate, "--length 5 --checkpoint", tmp_path / "best.pt")
    assert written.status == 0, written  # still a language model


def test_a_model_that_loses_says_so(mods, messages, run_main, tmp_path):
    flags = words(TINY, "--dataset", messages, "--out", tmp_path)
    result = run_main(mods.finetune_spam, flags, "--epochs 1 --lr 0")
    assert result.status == 0, result
    assert re.search("This model loses to .*naive Bayes.*: use", result.out), result.out


def leaves(path: Path) -> list:
    saved = torch.load(path, weights_only=True)
    for row in saved["progress"]["history"]:
        row[1] = 0  # seconds
    saved["progress"]["seconds"] = 0
    return torch.utils._pytree.tree_leaves(saved)


@pytest.mark.parametrize("start", ["from nothing", "all", "lora"])
def test_a_stopped_run_resumes_to_the_bit(mods, messages, base, run_main, tmp_path, start):
    flags = words(TINY, "--dataset", messages, "--epochs 3")
    if start != "from nothing":
        flags += ["--checkpoint", str(base), "--train", start, "--dropout", "0.2"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_main(mods.finetune_spam, flags, "--out", one).status == 0
    stop = iter([0] * 14 + [signal.SIGINT] * 99)  # two looks a step, in the middle of an epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mods.train.Stop, "signal", property(lambda _: next(stop)), raising=False)
        stopped = run_main(mods.finetune_spam, flags, "--out", two)
        assert stopped.status == 130 and "--resume" in stopped.out, stopped
    resumed = run_main(mods.finetune_spam, "--resume", two / "last.pt", "--device cpu")
    assert resumed.status == 0, resumed
    first, second = leaves(one / "last.pt"), leaves(two / "last.pt")
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_adapters_are_judged_with_their_base(mods, messages, base, run_main, tmp_path):
    flags = words(TINY, "--dataset", messages, "--epochs 2 --rank 2", "--checkpoint", base)
    assert run_main(mods.finetune_spam, flags, "--train lora --out", tmp_path).status == 0
    assert (tmp_path / "best.pt").stat().st_size < 0.8 * base.stat().st_size
    model, tokenizer = mods.finetune_spam.load_classifier(tmp_path / "best.pt", "cpu")
    assert len(mods.lora.layers_of(model)) == 8
    out = tmp_path / "merged.pt"
    assert run_main(mods.lora, "--merge", [base, tmp_path / "best.pt"], "--out", out).status == 0
    merged, _, _ = mods.generate.load_checkpoint(out)
    rows = mods.finetune_spam.pad([mods.finetune_spam.encode(tokenizer, "Win now", 60)], 60)
    twin = mods.finetune_spam.Classifier(merged)
    twin.head.load_state_dict(model.members[0].head.state_dict())
    ham, spam = twin(*rows)[0][0]
    torch.testing.assert_close(spam - ham, model(*rows)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "mentioned"),
    [
        ("--train lora", "--checkpoint"),
        ("--train nose", "--train nose"),
        ("--epochs 0 --lr x", "--epochs 0"),
        ("--dataset no.tsv", "no.tsv"),
        ("--checkpoint no.pt", "no.pt"),
        ("--resume no.pt", "no.pt"),
        ("--optimizer sgd", "--optimizer sgd"),
        ("--hidden-size 10 --heads 4", "--hidden-size 10"),
        ("--ask hello", "no checkpoint"),
    ],
)
def test_errors_are_one_line(mods, messages, run_main, tmp_path, flags, mentioned):
    out = tmp_path / "out"
    start = [] if "--dataset" in flags or "--resume" in flags else ["--dataset", messages]
    result = run_main(mods.finetune_spam, start, flags, "--out", out)
    assert_one_line_error(result, mentioned)
    assert not out.exists()


def test_other_errors_are_one_line(mods, messages, base, run_main, tmp_path):
    bad = tmp_path / "bad.tsv"
    for text in ("", "ham\n", "eggs\tgood\n", "ham\tone\nspam\ttwo\n"):
        bad.write_text(text, encoding="utf-8")
        assert_one_line_error(run_main(mods.finetune_spam, "--dataset", bad), "bad.tsv")
    flags = ["--dataset", messages, "--checkpoint", base]
    result = run_main(mods.finetune_spam, flags, "--layers 3 --out", tmp_path / "x")
    assert_one_line_error(result, "--layers")
    assert_one_line_error(run_main(mods.finetune_spam, "--resume", base), "last.pt")
    flags = ["--dataset", messages, "--out", tmp_path / "run"]
    assert run_main(mods.finetune_spam, words(TINY), flags, "--epochs 1").status == 0
    result = run_main(mods.finetune_spam, "--resume", tmp_path / "run" / "last.pt", "--lr 0.3")
    assert_one_line_error(result, "--lr 0.3")
    result = run_main(mods.finetune_spam, "--resume", tmp_path / "run" / "last.pt", "--out x")
    assert_one_line_error(result, "--out x")
    with pytest.raises(UserError, match="no head for spam"):
        mods.finetune_spam.load_classifier(base, "cpu")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the memory of a process is told there only")
def test_ranks_are_compared_and_nothing_is_measured_twice(base, messages, tmp_path):
    script = ROOT / "tests" / "benchmarks" / "bench_lora.py"
    flags = ["--checkpoint", base, "--dataset", messages, "--out", tmp_path / "ranks"]
    flags += words("--ranks 2 --epochs 1")
    first = run_script(script, flags)
    assert first.status == 0, first
    rows = [line.strip("| ").split(" | ") for line in first.out.splitlines() if line[0] == "|"]
    assert [row[0] for row in rows[2:]] == ["rank 2", "all"]
    learned = [int(row[1].split(" ")[0].replace(",", "")) for row in rows[2:]]
    assert 0 < learned[0] < learned[1]
    assert all(float(row[5].replace(",", "")) > 50 for row in rows[2:])  # PyTorch alone has more
    assert (tmp_path / "ranks" / "ranks.png").stat().st_size > 1000
    (tmp_path / "ranks" / "all" / "best.pt").unlink()  # a second measurement would write it
    assert run_script(script, flags).out == first.out
    assert not (tmp_path / "ranks" / "all" / "best.pt").exists()
