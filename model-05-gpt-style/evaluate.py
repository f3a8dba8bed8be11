"""How good is this model, and where does it fail? A report, or a comparison that can fail.

    checkpoint --> what kind?  base        perplexity, robustness, calibration, memorisation,
                                           on tales hallucination
                               instruct    the same and instructions
                               spam        spam, robustness, calibration
    each part --> tables, a few numbers, a picture --> evaluation.json, evaluation.md

One number never says how good a model is (Liang et al. 2022). Each part asks another question and
says of how many cases. What is done is written at once; the same command again goes on from there.
--compare evaluates an older checkpoint with the same settings, puts both side by side, and ends
with status 1 if something has become worse by more than --tolerance. The numbers come from
metrics.py; obedience and scores of spam from the scripts that train for them.

    python evaluate.py --checkpoint checkpoints/best.pt
    python evaluate.py --checkpoint checkpoints/instruct/best.pt --what hallucination
    python evaluate.py --checkpoint checkpoints/dpo/best.pt --compare checkpoints/instruct/best.pt

Shapes: N tokens, V vocabulary
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import baselines
import data
import finetune_instruct as sft
import finetune_spam as spam
import generate
import instruction_data as instructions
import lora
import metrics
import numpy as np
import report
import torch
import train
import tuning
from generate import Arguments, command
from instruction_data import END, THINGS, WHO, Example
from metrics import DISTURBED, Measure
from quantize import quantize
from report import Finding, draw_reliability, draw_repetitions
from tqdm import tqdm
from train import shown

from shared import UserError
from shared.data.tales import read_tale, recall_probes
from shared.utils.tokenizers import Tokenizer

LARGEST = 2_000_000  # characters of a large text that are read
STRIDES = 20_000  # tokens that are read at several strides
SOME_TEXT = 50_000  # characters that are read with slips of the pen
PROMPT, CONTINUED = 50, 50  # tokens of a stretch: given, and compared (Carlini et al. 2023)
COUNTS = dict(test=200, probes=600, stories=100, stretches=200)
TUNED = ("spam", "instruct", "dpo", "grpo")  # keys of what fine-tuning scripts write


class Text(NamedTuple):
    """What a language model is measured on."""

    name: str
    train: str
    valid: str
    floor: float | None  # entropy of `valid` in bits per character, where it is known
    own: bool  # whether the model has been trained on this very text
    whole: bool  # whether all of it is here
    sha256: str  # of all of it


@dataclass
class Subject:
    """A model that is evaluated; and where its pictures go."""

    path: Path
    kind: str  # base, instruct or spam
    model: generate.Model | spam.Committee
    tokenizer: Tokenizer
    saved: dict
    args: argparse.Namespace
    device: str
    dtype: torch.dtype
    out: Path

    def count(self, name: str) -> int:
        """How many cases: as many as usual, or --limit."""
        usual = self.args.test if name == "test" else COUNTS[name]
        return min(usual, self.args.limit or usual)

    @functools.cached_property
    def text(self) -> Text:
        return read_text(self)

    @functools.cached_property
    def tokens(self) -> torch.Tensor:
        """The validation text, (N,). Raises UserError."""
        tokens = self.encode(self.text.valid)
        if len(tokens) < 2 * (PROMPT + CONTINUED):
            raise UserError(f"{self.text.name} has {len(tokens)} tokens to measure: give more text")
        return tokens

    @functools.cached_property
    def predictions(self) -> metrics.Predictions:
        return metrics.predict(self.model, self.tokens, stride_of(self), self.dtype)

    def encode(self, text: str) -> torch.Tensor:
        return torch.tensor(spam.encode_known(self.tokenizer, text), device=self.device)


# ------------------------------------------------------------------------------------ the subject


def parse_args() -> argparse.Namespace:
    parser = Arguments("Evaluate a model.", "evaluate.py")
    parser.text("--checkpoint", "what is evaluated", generate.CHECKPOINT)
    parser.choice("--what", "which part", ["all", *PARTS], "all")
    help = "an earlier model: end with status 1 if something has become worse since"
    parser.text("--compare", help, metavar="CHECKPOINT")
    help = "how much worse is worse: points of a share / 100, or parts of any other number"
    parser.number("--tolerance", float, help, 0, 1, default=0.02)
    parser.text("--dataset", "the text, or the messages (those that it was trained on)")
    parser.number("--stride", int, "tokens from window to window (half the context)", 1, 1e9)
    parser.number("--test", int, "held-out instructions", 1, 1e6, default=COUNTS["test"])
    help = "a quick look: so many cases of each kind, and so many thousand characters of text"
    parser.number("--limit", int, help, 1, 1e9)
    help = "of instructions, replies and slips; another one, other instructions"
    parser.number("--seed", int, help, 0, 2**31, default=sft.DEFAULTS["seed"])
    parser.text("--out", "folder of the results (evaluation/ beside the checkpoint)")
    generate.add_quantize_flag(parser)
    tuning.add_machine_flags(parser)
    return parser.parse()


def load(path: Path, args: argparse.Namespace, out: Path) -> Subject:
    """Any checkpoint or file of adapters that a script of this folder wrote. Raises UserError."""
    device = generate.pick_device(args.device)
    saved = generate.read_checkpoint(path, device)
    kind = "spam" if "classifier" in saved else "instruct" if "template" in saved else "base"
    key = next((key for key in TUNED if key in saved), None)
    if kind == "spam":
        model, tokenizer = spam.load_classifier(path, device)
    elif saved.get("architecture") == lora.KIND and key:
        model, tokenizer = sft.starting_model(argparse.Namespace(**saved[key]), device, path)
    else:
        model, tokenizer, _ = generate.load_checkpoint(path, device)
    bodies = [each.body for each in model.members] if kind == "spam" else [model]
    for body in bodies if args.quantize else ():
        quantize(body, args.quantize)
    dtype = generate.pick_dtype(args.dtype or "auto", device)
    return Subject(path, kind, model.eval(), tokenizer, saved, args, device, dtype, out)


def beginning(saved: dict, device: str) -> dict:
    """What the checkpoint holds that a tuned one was made of, as far back as files are there."""
    while before := [saved[key]["checkpoint"] for key in TUNED if key in saved]:
        if not before[0] or not Path(before[0]).exists():
            break
        saved = generate.read_checkpoint(Path(before[0]), device)
    return saved


def read_text(subject: Subject) -> Text:
    """The text of --dataset, or that on which the model, or its base, was trained."""
    args, of = subject.args, beginning(subject.saved, subject.device).get("dataset", {})
    source = data.find(args.dataset or of.get("name"), "tales")
    corpus, most = source.corpus, 1000 * args.limit if args.limit else LARGEST
    train_text, valid, floor = corpus.train, corpus.valid, corpus.floor
    if source.files:  # too large for memory: the beginning of it, and the end
        train_text = data.part_of(source.files[0], LARGEST)
        valid = data.part_of(source.files[-1], LARGEST, end=True)
    complete = not source.files and len(valid) <= most
    own, floor = corpus.sha256 == of.get("sha256"), floor if complete else None
    return Text(corpus.name, train_text, valid[:most], floor, own, complete, corpus.sha256)


def stride_of(subject: Subject) -> int:
    """Raises UserError if the windows would leave gaps."""
    context, stride = subject.model.context, subject.args.stride
    if stride and stride > context:
        raise UserError(f"--stride {stride} leaves gaps: give at most {context}, the context")
    return stride or max(1, context // 2)


def of_tales(subject: Subject) -> bool:
    """Whether the text is made of tales."""
    stories = [story for story in split_stories(subject.text.train[-20_000:])[1:-1] if story]
    return bool(stories) and any(read_tale(story) for story in stories[:5])


def split_stories(text: str) -> list[str]:
    return [part.strip() for part in text.replace(END, "\n\n").split("\n\n")]


# -------------------------------------------------------------------------------------- the parts


def measure_perplexity(subject: Subject) -> Finding:
    """What the text costs, in units that can be compared with other models, or not."""
    text, tokens, nats = subject.text, subject.tokens, subject.predictions.nats.double()
    bits = nats.sum().item() / math.log(2) * len(tokens) / len(nats)  # the first one as the rest
    loss = nats.mean().item()
    sizes = len(text.valid), len(text.valid.encode())
    values = loss, math.exp(loss), bits / sizes[0], bits / sizes[1]
    rows = [["nats/token", "perplexity", "bits/char", "bits/byte"], [f"{v:.4f}" for v in values]]
    found = Finding({"bits per character": Measure(bits / sizes[0], "bits", "lower")})
    part = "the validation text" if text.whole else "a part of the validation text"
    found.notes = [
        f"{text.name}, {part}: {sizes[0]:,} characters, {len(tokens):,} tokens, windows "
        f"of {subject.model.context} tokens, {stride_of(subject)} apart."
    ]
    if text.floor is not None:
        found.notes.append(f"No model can go below {text.floor:.4f} bits/char, the entropy.")
    if subject.tokenizer.unk_id is not None:
        lost = (tokens == subject.tokenizer.unk_id).float().mean().item()
        found.notes.append(
            f"{lost:.2%} of the tokens are <unk>: what they stood for costs nothing."
        )
    elif missing := len(text.valid) - len(subject.tokenizer.decode(tokens.tolist())):
        found.notes.append(f"{missing:,} characters are unknown to the tokenizer and left out.")
    some = tokens[:STRIDES]
    found.notes.append(f"The second table: the first {len(some):,} tokens, at several strides.")
    found.tables = [rows, stride_table(subject, some)]
    return found


def stride_table(subject: Subject, tokens: torch.Tensor) -> list[list[str]]:
    """Perplexity of the same tokens (N,) from windows that overlap more and more."""
    context = subject.model.context
    rows = [["stride", "least past, tokens", "times each token is read", "perplexity"]]
    for stride in dict.fromkeys(max(1, context // part) for part in (1, 2, 4, 8)):
        nats = metrics.predict(subject.model, tokens, stride, subject.dtype).nats.double()
        times = f"{context / stride:.0f}"
        rows.append([str(stride), str(context - stride), times, f"{nats.mean().exp():.4f}"])
    return rows


def measure_instructions(subject: Subject) -> Finding:
    """Obedience on held-out instructions of `tales`, as finetune_instruct.py has it."""
    found = obedience(subject, test_examples(subject, subject.count("test")))
    rows = [["", "share"], ["obeyed", str(share(found.obeyed, found.asked))]]
    rows += [[name, f"{value:.0%}"] for name, value in found.right.items()]
    rows.append(["no slip at all", str(share(found.read, found.asked))])
    return Finding(
        {
            "instructions obeyed": share(found.obeyed, found.asked),
            "replies without a slip": share(found.read, found.asked),
        },
        [
            f"{found.asked} held-out instructions; {found.bits:.3f} bits/char of the replies under "
            f"the base model (true stories {found.true_bits:.3f})."
        ],
        [rows],
    )


def test_examples(subject: Subject, count: int) -> list[Example]:
    return instructions.load("tales", (1, 1, count), subject.args.seed).test


def obedience(subject: Subject, examples: list[Example]) -> sft.Obedience:
    path = subject.path
    if subject.saved["architecture"] == lora.KIND:
        path = Path(subject.saved[next(key for key in TUNED if key in subject.saved)]["checkpoint"])
    base = sft.base_of(path, subject.device)
    template, seed = subject.saved["template"], subject.args.seed
    return sft.obedience(subject.model, subject.tokenizer, template, examples, base, seed)


def share(value: float, count: int, better: str = "higher") -> Measure:
    return Measure(value, "share", better, count)


def measure_spam(subject: Subject) -> Finding:
    """The test split, as finetune_spam.py has it."""
    messages = some_messages(subject)
    own = baselines.score(
        (spam.scores_of(subject, messages.texts) > 0).astype(int), messages.labels
    )
    count = len(messages.texts)
    some = [f"{each:.4f}" for each in (own.precision, own.recall, own.f1)]
    numbers = [["accuracy", "precision", "recall", "F1"], [f"{own.accuracy:.2%}", *some]]
    matrix = [["", "called spam", "called ham"],
              ["is spam", str(own.true_positive), str(own.false_negative)],
              ["is ham", str(own.false_positive), str(own.true_negative)]]  # fmt: skip
    share_of_ham = 1 - messages.labels.mean()
    return Finding(
        {"accuracy": share(own.accuracy, count), "F1": Measure(own.f1, "share", "higher")},
        [f"{count:,} test messages; who always says ham is right in {share_of_ham:.2%}."],
        [numbers, matrix],
    )


def some_messages(subject: Subject) -> spam.Split:
    """The test split; of it as many as --limit says."""
    test = spam.load_messages(name_of_messages(subject))[0]["test"]
    return spam.Split(*(each[: subject.args.limit] for each in test))


def name_of_messages(subject: Subject) -> str:
    return subject.args.dataset or subject.saved["spam"]["dataset"]


# ----------------------------------------------------------------------------------- robustness


def measure_robustness(subject: Subject) -> Finding:
    """The same again with slips of the pen, other case, other words."""
    ask = {"base": bits_of, "instruct": obeyed_of, "spam": accuracy_of}[subject.kind]
    name, cases, changes, measure = ask(subject)
    found = Finding(notes=[f"{name}; typos: a slip in one word of ten with four letters or more."])
    first = measure(cases)
    found.measures["as it is"] = first
    rows = [["", "", "change"], ["as it is", str(first), ""]]
    for how, change in tqdm(changes.items(), "robustness", leave=False, disable=None):
        dice = Random(f"{subject.args.seed} {how}")
        value = measure([change(each, dice) for each in cases])
        gap = value.value - first.value
        gap = f"{100 * gap:+.1f} points" if value.unit == "share" else f"{gap / first.value:+.1%}"
        rows.append([how, str(value), gap])
        found.measures[how] = value
    found.tables = [rows]
    return found


def bits_of(subject: Subject) -> tuple[str, list, dict, Callable]:
    def measure(texts: list[str]) -> Measure:
        stride = stride_of(subject)
        nats = metrics.predict(subject.model, subject.encode(texts[0]), stride, subject.dtype).nats
        return Measure(nats.sum().item() / math.log(2) / len(texts[0]), "bits/char", "lower")

    text = subject.text.valid[:SOME_TEXT]
    name = f"The first {len(text):,} characters of the validation text"
    if subject.tokenizer.unk_id is not None:
        name += ", where a word that is unknown is one cheap <unk>"
    changes = {how: DISTURBED[how] for how in ("typos", "lower case", "upper case")}
    return name, [text], changes, measure


def obeyed_of(subject: Subject) -> tuple[str, list, dict, Callable]:
    def measure(examples: list[Example]) -> Measure:
        return share(obedience(subject, examples).obeyed, len(examples))

    def changed(how: str) -> Callable[[Example, Random], Example]:
        change = DISTURBED[how]
        return lambda each, dice: each._replace(instruction=change(each.instruction, dice))

    changes = {how: changed(how) for how in ("typos", "lower case", "upper case")}
    changes["other words"] = lambda each, dice: each._replace(instruction=rephrased(each, dice))
    examples = test_examples(subject, subject.count("stories"))
    return f"{len(examples)} instructions, obeyed", examples, changes, measure


def accuracy_of(subject: Subject) -> tuple[str, list, dict, Callable]:
    messages = some_messages(subject)

    def measure(texts: list[str]) -> Measure:
        called = (spam.scores_of(subject, texts) > 0).astype(int)
        return share(baselines.score(called, messages.labels).accuracy, len(texts))

    return f"{len(messages.texts):,} test messages, accuracy", messages.texts, DISTURBED, measure


def rephrased(example: Example, dice: Random) -> str:
    """The same wishes in a wording that no training instruction has, of words that they have.

    "Tell a story. There is a fox. The name of the fox is Pip. It is ..."
    """
    asked, wishes = example.asked, []
    fine = next((row["fine"] for row in THINGS if row["name"] == asked.get("thing")), "")
    kind = asked.get("kind", "")
    if kind:
        wishes.append(f"It is about {'an' if kind[0] in 'aeiou' else 'a'} {kind}.")
    if "hero" in asked:
        wishes.append(f"The name is {asked['hero']}.")
    if "friend" in asked:
        wishes.append(f"{asked['friend']} is a friend.")
    if "plot" in asked:
        wishes.append(
            f"It is about somebody {dice.choice(WHO[asked['plot']]).format(a_thing=fine)}."
        )
    elif fine:
        wishes.append(f"It is about {fine}.")
    return " ".join(["Tell me a story.", *wishes])


# ------------------------------------------------------------- calibration and memorisation


def measure_calibration(subject: Subject) -> Finding:
    """Is it as often right as it is sure?"""
    if subject.kind == "spam":
        messages = some_messages(subject)
        p = 1 / (1 + np.exp(-spam.scores_of(subject, messages.texts).astype(float)))
        confidence, right = np.maximum(p, 1 - p), (p > 0.5) == messages.labels
        name = f"{len(p):,} test messages"
    else:
        _, confidence, right = subject.predictions
        name = (
            f"{len(right):,} tokens of {Path(subject.text.name).name}, the likeliest one each time"
        )
    return calibration(subject, confidence, right, name)


def calibration(subject: Subject, confidence, right, name: str) -> Finding:
    """Table and picture of reliability."""
    bins = metrics.reliability(confidence, right)
    error, count = metrics.calibration_error(bins), len(right)
    rows = [["confidence", "cases", "mean confidence", "right"]]
    for each in bins:
        shares = f"{each.confidence:.3f}", f"{each.accuracy:.3f}"
        rows.append([f"{each.low:.2f}-{each.high:.2f}", f"{each.count:,}", *shares])
    draw_reliability(bins, error, name, subject.out / "calibration.png")
    said, was = float(np.mean(np.asarray(confidence))), float(np.mean(np.asarray(right)))
    way = "too sure" if said > was else "not sure enough"
    return Finding(
        {"calibration error": share(error, 0, "lower")},
        [f"{name}: on average {said:.1%} sure and {was:.1%} right: {way}. Expected calibration "
         f"error {error:.4f} (15 bins, {count:,} cases)."],
        [rows],
        ["calibration.png"],
    )  # fmt: skip


def measure_memorisation(subject: Subject) -> Finding:
    """Given 50 tokens, how far does it go on with the text, word for word?

    A text that is easy to guess is repeated as well, so validation text stands beside.
    """
    lengths = {name: repetitions(subject, text) for name, text in
               (("training", subject.text.train), ("validation", subject.text.valid))}  # fmt: skip
    rows = [["stretches of", "number", "median", "mean", "longest", "all of it"]]
    for name, (found, whole) in lengths.items():
        cells = f"{np.median(found):.0f}", f"{np.mean(found):.1f}", str(max(found))
        rows.append([f"{name} text", str(len(found)), *cells, str(share(whole, len(found)))])
    found = {name: each for name, (each, _) in lengths.items()}
    draw_repetitions(found, subject.out / "memorisation.png")
    extra = lengths["training"][1] - lengths["validation"][1]
    note = (
        f"{subject.text.name}: {PROMPT} tokens given, then the likeliest {CONTINUED}; characters."
    )
    if not subject.text.own:
        note += " It was not, or not only, this text that the model was trained on."
    count = len(lengths["training"][0])
    measure = share(max(0.0, extra), count, "lower")
    return Finding({"repeated, beyond validation": measure}, [note], [rows], ["memorisation.png"])


def repetitions(subject: Subject, text: str) -> tuple[list[int], float]:
    """For stretches of the text: characters repeated, and the share that are so to their end."""
    tokens = subject.encode(text[:LARGEST])
    length, dice = PROMPT + CONTINUED, np.random.default_rng(subject.args.seed)
    count = min(subject.count("stretches"), len(tokens) // length)
    starts = dice.choice(len(tokens) // length, count, replace=False) * length
    rows = torch.stack([tokens[start : start + length] for start in starts])
    parts = [metrics.continue_greedily(subject.model, some, CONTINUED)
             for some in rows[:, :PROMPT].split(32)]  # fmt: skip
    found, decode = [], subject.tokenizer.decode
    for true, written in zip(rows.tolist(), torch.cat(parts).tolist(), strict=True):
        prompt = true[:PROMPT]
        texts = (decode(prompt + written), decode(true))
        found.append(max(0, metrics.repeated(*texts) - len(decode(prompt))))
    whole = (torch.cat(parts) == rows[:, PROMPT:]).all(dim=1).float().mean().item()
    return found, whole


# --------------------------------------------------------------------------------- hallucination


def measure_hallucination(subject: Subject) -> Finding:
    """Does it say what the story before it makes false? Asked, and left to itself.

    Asked: at the recall probes of `tales` only one answer is true. Left to itself: stories that it
    writes are read with the grammar, up to where that loses them. Raises UserError without tales.
    """
    if not of_tales(subject):
        raise UserError(
            f"{subject.text.name} holds no tales, and only there a false statement is certain: "
            "give --dataset tales, or another --what"
        )
    probes = recall_probes(subject.count("probes"))
    contexts, choices = train.answers_of(subject.tokenizer, probes)
    logits = train.next_scores(subject, contexts)
    sure, said = logits.softmax(dim=-1).max(dim=-1)  # of all tokens, not of the candidates only
    true = torch.tensor([row[probe.candidates.index(probe.answer)]
                         for probe, row in zip(probes, choices, strict=True)])  # fmt: skip
    right = (said == true).numpy()
    wrong_and_sure = ~right & (sure.numpy() > 0.9)
    kinds = np.array([probe.kind for probe in probes])
    rows = [["asked for", "probes", "wrong", "wrong, and more than 90 % sure"]]
    for kind in [*dict.fromkeys(kinds.tolist()), "all"]:
        own = kinds == kind if kind != "all" else np.full(len(kinds), True)
        wrongs = [share(float(each[own].mean()), int(own.sum()), "lower")
                  for each in (~right, wrong_and_sure)]  # fmt: skip
        rows.append([kind, str(own.sum()), *map(str, wrongs)])
    found = contradictory_stories(subject)
    found.tables.insert(0, rows)
    names = ("wrong at probes", "wrong at probes, and sure")
    return Finding(
        dict(zip(names, wrongs, strict=True)) | found.measures, found.notes, found.tables
    )


def contradictory_stories(subject: Subject) -> Finding:
    """How many stories of its own does it contradict?"""
    texts = write_stories(subject, subject.count("stories"))
    read = [metrics.contradictions(text)
            for text in tqdm(texts, "stories read", leave=False, disable=None)]  # fmt: skip
    count, ends = len(read), Counter(end for _, end in read)
    bad = [slips for slips, _ in read if slips]
    clean = sum(not slips and end != "lost" for slips, end in read)
    rows = [["stories", "number", "share"]]
    for name, number in (
        ("without a slip", clean), ("that contradict themselves", len(bad)),
        ("that leave the grammar (and are read no further)", ends["lost"]),
        ("all", count),
    ):  # fmt: skip
        rows.append([name, str(number), "" if name == "all" else str(share(number / count, count))])
    of = Counter(slip.about for slips in bad for slip in slips)
    kinds = ", ".join(f"{about} {number}" for about, number in of.most_common()) or "none"
    notes = [f"{sum(of.values())} contradictions in {count} stories: {kinds}."]
    for slips in bad[:3]:
        notes.append(f"It says {slips[0].said!r} where the story has {slips[0].true!r}.")
    measures = {
        "stories without a slip": share(clean / count, count),
        "stories that contradict themselves": share(len(bad) / count, count, "lower"),
    }
    return Finding(measures, notes, [rows])


def write_stories(subject: Subject, count: int) -> list[str]:
    """Stories of the model's own, at temperature 0.8; those cut off without their last word."""
    model, tokenizer, seed = subject.model, subject.tokenizer, subject.args.seed
    if subject.kind == "instruct":
        template = subject.saved["template"]
        prompts = [tokenizer.encode(instructions.prompt_of(template, *each[:2]))
                   for each in test_examples(subject, count)]  # fmt: skip
        replies = sft.reply_to(model, tokenizer, prompts, model.context, 0.8, seed)
        pairs = [sft.text_of(tokenizer, reply) for reply in replies]
    else:
        between = f"{END}\n" if END in subject.text.train[:10_000] else ".\n\n"
        start = tokenizer.encode(between)  # what stands between two stories
        per_token = len(subject.text.valid) / len(subject.tokens)
        length = int(1200 / per_token)  # the longest tales have about so many characters
        steps = generate.generate_batch(
            model, start, length, 0.8, seed=seed, never=tokenizer.unk_id, count=count
        )
        rows = zip(*tqdm(steps, "stories", length, leave=False, disable=None), strict=True)
        told = [tokenizer.decode([*start, *row])[len(tokenizer.decode(start)) :] for row in rows]
        pairs = [(split_stories(text.lstrip())[0], len(split_stories(text.lstrip())) > 1)
                 for text in told]  # fmt: skip
    return [text if ended else text[: text.rfind(" ")] for text, ended in pairs]


# ------------------------------------------------------------------------------------ the report

PARTS: dict[str, Callable[[Subject], Finding]] = {
    "perplexity": measure_perplexity,
    "instructions": measure_instructions,
    "spam": measure_spam,
    "robustness": measure_robustness,
    "calibration": measure_calibration,
    "memorisation": measure_memorisation,
    "hallucination": measure_hallucination,
}
OF_KIND = {
    "base": ("perplexity", "robustness", "calibration", "memorisation", "hallucination"),
    "instruct": ("instructions", "perplexity", "robustness", "calibration", "memorisation",
                 "hallucination"),
    "spam": ("spam", "robustness", "calibration"),
}  # fmt: skip


def parts_of(subject: Subject) -> list[str]:
    """Which parts to do. Raises UserError if this kind of model has not that one."""
    names = list(OF_KIND[subject.kind])
    if subject.args.what != "all":
        if subject.args.what not in names:
            raise UserError(
                f"--what {subject.args.what} is not for {subject.path}, a model of kind "
                f"{subject.kind}: give one of {', '.join(names)}"
            )
        return [subject.args.what]
    if "hallucination" in names and not of_tales(subject):
        names.remove("hallucination")
    if subject.kind == "instruct" and subject.saved["dataset"]["name"] != "tales":
        names = [name for name in names if name not in ("instructions", "robustness")]
    return names


def evaluate(subject: Subject) -> dict[str, Finding]:
    """All parts asked for; each is written as soon as it is done, and not done twice."""
    about = about_of(subject)
    subject.out.mkdir(parents=True, exist_ok=True)
    done = report.read(subject.out, about)
    names = parts_of(subject)
    for name in names:
        if name in done:
            print(f"{name}: as measured before, in {shown(subject.out)}")
            continue
        done[name] = PARTS[name](subject)
        print(f"\n{report.section(name, done[name])}", flush=True)
        report.write(subject.out, about, done)
    return {name: done[name] for name in names}


def about_of(subject: Subject) -> dict:
    """What makes two evaluations the same."""
    args = subject.args
    kept = {name: getattr(args, name) for name in ("stride", "test", "limit", "seed", "quantize")}
    if subject.kind == "spam":
        text = spam.load_messages(name_of_messages(subject))[1]
    else:
        text = {"name": subject.text.name, "sha256": subject.text.sha256}
    return {
        "checkpoint": subject.path.name,
        "sha256": lora.sha256_of(subject.path),
        "kind": subject.kind,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "text": text,
        **kept,
    }


def main() -> None:
    args = parse_args()
    train.keep_memory()
    path = generate.find(args.checkpoint)
    subject = load(path, args, Path(args.out or path.parent / "evaluation"))
    if args.limit:
        print(f"A quick look (--limit {args.limit}), not the whole of anything.")
    found = evaluate(subject)
    print(f"\nThe report is {shown(subject.out / 'evaluation.md')}.")
    if not args.compare:
        return
    earlier = load(generate.find(args.compare), args, subject.out / "compared")
    if (earlier.kind == "spam") != (subject.kind == "spam"):
        raise UserError(f"{path} and {earlier.path} do different things: compare two of a kind")
    if subject.kind != "spam":
        args.dataset = args.dataset or subject.text.name
    print(f"\nThe earlier model, {shown(earlier.path)}:")
    before = evaluate(earlier)
    if worse := report.compare(before, found, args.tolerance):
        print(f"WORSE by more than {args.tolerance:g}: {'; '.join(worse)}")
        sys.exit(1)
    print(f"Nothing has become worse by more than {args.tolerance:g}.")


if __name__ == "__main__":
    command(main)
