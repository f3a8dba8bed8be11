"""Spam or not? A language model becomes a classifier.

    \\n   Free   entry   to   win   \\n   .   .        a message, ended, and padding
    x    x      x       x    x     x                what the model makes of each token
                                   |
                                   head             on the last real token, which has seen all
                                   |
                               ham, spam

The read-out to the vocabulary is taken off and a head with two outputs stands in its place.
Attention looks back only, so the last token is the one that has seen the whole message; what is
padded behind it changes nothing.

Without --checkpoint the model starts from nothing, on these few thousand messages: then it also
goes on predicting each next token (Radford et al. 2018, 3.2), and every message looks a little
different each time it is read. With one, --train says how much of it may change. Majority class,
naive Bayes and logistic regression stand beside the result, and it says so if it loses to them.

Shapes: B batch, T time, C channels, V vocabulary, N messages

    python finetune_spam.py                                              # from nothing
    python finetune_spam.py --checkpoint checkpoints/best.pt --train lora --rank 8
    python finetune_spam.py --ask "WINNER!! Claim your prize now"        # of what was trained
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

import baselines
import generate
import lora
import numpy as np
import torch
import train
import tuning
from averaging import add_to_average, averaged
from baselines import LogisticRegression, Majority, NaiveBayes, Score
from generate import FORMAT, HERE, VERSION, Arguments, Model, command
from llama import Llama
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from train import shown, type_next, write_checkpoint
from tuning import ADAPTERS

from shared import UserError
from shared.data.download import DATASETS, ensure, sha256_of
from shared.utils.tokenizers import BPETokenizer, Tokenizer

LABELS = ("ham", "spam")
PRESETS = {  # of the model from nothing, and of its training
    "tiny": dict(
        vocab_size=300, hidden_size=16, layers=1, heads=2, dropout=0.1, context=64, epochs=2,
        batch_size=32, lr=0.005, weight_decay=0.1, optimizer="muon", average=0.9,
        disguise=0.3, noise=0.1, lm_weight=1.0, members=2,
    ),
    "small": dict(
        vocab_size=1024, hidden_size=64, layers=2, heads=4, dropout=0.1, context=256, epochs=8,
        batch_size=32, lr=0.005, weight_decay=0.1, optimizer="muon", average=0.99,
        disguise=0.3, noise=0.1, lm_weight=1.0, members=3,
    ),
}  # fmt: skip
TUNED = dict(members=1, disguise=0.0, noise=0.0, lm_weight=0.0, average=0.9, epochs=6, dropout=0.0)
MODES = {  # what may change of a model from a checkpoint, and how fast
    "head": TUNED | dict(optimizer="adamw", lr=0.01, weight_decay=0.0),
    "last-block": TUNED | dict(optimizer="adamw", lr=0.001),
    "all": TUNED | dict(optimizer="adamw", lr=0.0005),
    "lora": TUNED | dict(optimizer="adamw", lr=0.002, weight_decay=0.0),
}
SHAPE = ("hidden_size", "layers", "heads", "context")
OWN = ("vocab_size", *SHAPE, "members")  # settings of a new model
SETTINGS = (
    "dataset", "preset", "checkpoint", "train", *OWN, "dropout", *ADAPTERS, "targets", "epochs",
    "batch_size", "lr", "weight_decay", "optimizer", "average", "disguise", "noise",
    "lm_weight", "seed", "dtype",
)  # fmt: skip
COLUMNS = ("step", "seconds", "train_loss", "val_loss", "val_accuracy", "val_f1", "learning_rate")
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # of logistic regression, tried on the validation split


# ------------------------------------------------------------------------------------ the data


class Split(NamedTuple):
    """Some messages and what they are."""

    texts: list[str]
    labels: np.ndarray  # (N,) of 0 (ham) and 1 (spam)


def load_messages(name: str) -> tuple[dict[str, Split], dict[str, str]]:
    """`train`, `valid` and `test`: 70, 10 and 20 %, shuffled with seed 123, classes as they are;
    and the dataset's name and SHA-256.

    The split of Raschka's "Build a large language model (from scratch)", chapter 6, before it is
    balanced, to the row: the file is read as pandas.read_csv(path, sep="\\t", header=None) reads
    it (a quote at the start of a message may hold line ends, so 5,574 lines are 5,572 messages),
    and shuffled as df.sample(frac=1, random_state=123) shuffles. Raises UserError.
    """
    path = ensure(name)[0] if name in DATASETS else Path(name).expanduser()
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error):
        rows = [[]]
    if not rows or any(len(row) != 2 or row[0] not in LABELS for row in rows):
        raise UserError(f"{path} is no list of messages: write `ham`, or `spam`, tab, text a line")
    order = np.random.RandomState(123).permutation(len(rows))
    first, second = int(0.7 * len(rows)), int(0.7 * len(rows)) + int(0.1 * len(rows))
    splits = {}
    for part, places in zip(
        ("train", "valid", "test"), np.split(order, [first, second]), strict=True
    ):
        labels = np.array([LABELS.index(rows[i][0]) for i in places])
        if len(set(labels.tolist())) < 2:
            raise UserError(f"{path} has too few messages: each split needs both ham and spam")
        splits[part] = Split([rows[i][1] for i in places], labels)
    return splits, {"name": name, "sha256": sha256_of(path)}


def encode(tokenizer: Tokenizer, text: str, context: int) -> list[int]:
    """A message, ended: at most `context` tokens, of which the last stays the end.

    Characters that the tokenizer does not know are left out.
    """
    ids = encode_known(tokenizer, f"\n{text}\n") or generate.opening(tokenizer)
    return ids if len(ids) <= context else [*ids[: context - 1], ids[-1]]


def encode_known(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text)
    except UserError:  # one of characters, of another alphabet
        known = set(tokenizer.tokens)
        return tokenizer.encode("".join(each for each in text if each in known))


def disguise(text: str, share: float, dice: Random) -> str:
    """The message as another might have sent it: other digits, upper or lower case, words lost.

    Each of the three happens to a share of the messages. So the model cannot learn the few
    thousand by heart, telephone numbers least of all.
    """
    if dice.random() < share:
        text = re.sub("[0-9]", lambda _: dice.choice("0123456789"), text)
    if dice.random() < share:
        text = dice.choice((str.lower, str.lower, str.upper, str.capitalize))(text)
    if dice.random() < share:
        words = text.split(" ")
        text = " ".join([word for word in words if dice.random() > 0.1] or words)
    return text


def pad(rows: list[list[int]], context: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Messages of different lengths -> tokens (B, T), padded behind with 0, and lengths (B,)

    T is a multiple of 16, or the context: for each new shape the CPU's library plans its matrix
    products anew.
    """
    longest = min(context, -(-max(map(len, rows)) // 16) * 16)
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    return tokens, torch.tensor([len(row) for row in rows], device=device)


# ----------------------------------------------------------------------------------- the model


class Classifier(nn.Module):
    """A language model whose read-out has been taken off, and a head for the last real token."""

    def __init__(self, body: Model) -> None:
        super().__init__()
        self.read_out, body.head = body.head, nn.Identity()  # the body ends with its last norm
        self.pointer, body.pointer = body.pointer, None
        self.body = body
        self.head = nn.Linear(body.config["hidden_size"], len(LABELS))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, T), padded, lengths (B,) -> scores of the labels (B, 2), hidden (B, T, C)"""
        hidden = self.body.read(tokens, None)  # (B, T, C)
        last = hidden[torch.arange(len(lengths), device=tokens.device), lengths - 1]  # (B, C)
        return self.head(last), hidden

    def language_model(self) -> dict[str, Tensor]:
        """The weights under the names of the model that it was made of, read-out included."""
        inside = {f"head.{name}": each for name, each in self.read_out.state_dict().items()}
        aside = self.pointer.state_dict() if self.pointer else {}
        return self.body.state_dict() | inside | {f"pointer.{n}": each for n, each in aside.items()}


class Committee(nn.Module):
    """Several classifiers that differ in their dice only; what they say is averaged.

    Where one is sure for a reason of its own the others do not share, they outvote it
    (Lakshminarayanan et al. 2017). All read the same batch, and each learns as if alone.
    """

    def __init__(self, members: list[Classifier]) -> None:
        super().__init__()
        self.members, self.context = nn.ModuleList(members), members[0].body.context

    @property
    def blocks(self) -> nn.ModuleList:
        """All blocks: the matrices in them are Muon's."""
        return nn.ModuleList([block for each in self.members for block in each.body.blocks])

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (B, T), padded, lengths (B,) -> how much likelier spam is than ham, nats (B,)"""
        scores = torch.stack([member(tokens, lengths)[0].float() for member in self.members])
        return (scores[..., 1] - scores[..., 0]).mean(dim=0)


def open_up(model: Classifier, mode: str) -> None:
    """Let that part of the model learn, and the head always; lora freezes by itself."""
    if mode != "lora":
        model.requires_grad_(mode == "all")
    if mode == "last-block":
        model.body.blocks[-1].requires_grad_(True)
        model.body.norm.requires_grad_(True)
    model.head.requires_grad_(True)


def lm_loss(model: Classifier, hidden: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of each next token in nats, padding left out: hidden (B, T, C)"""
    real = torch.arange(1, tokens.size(1), device=tokens.device) < lengths[:, None]  # (B, T - 1)
    targets = tokens[:, 1:].masked_fill(~real, -100)
    return train.loss_of(model.read_out(hidden[:, :-1]), targets)


# ------------------------------------------------------------------------------------- the run


@dataclass
class Run:
    """A training run: what is fixed, then all that changes and goes into a checkpoint."""

    args: argparse.Namespace
    splits: dict[str, Split]
    dataset: dict[str, str]  # name, sha256
    tokenizer: Tokenizer
    model: Committee
    optimizer: torch.optim.Optimizer
    device: str
    dtype: torch.dtype
    out: Path

    step: int = 0
    best: float = math.inf  # lowest validation loss
    seconds: float = 0.0
    losses: tuple[float, int] = (0.0, 0)  # sum and number since the last evaluation
    history: list[list] = field(default_factory=list)  # the lines of metrics.csv
    average: list[Tensor] = field(default_factory=list)  # of the weights
    epoch: tuple[int, list, list] = (-1, [], [])  # its number, messages in tokens, batches


PROGRESS = ("step", "best", "seconds", "losses", "history", "average")


def parse_args() -> argparse.Namespace:
    usual = PRESETS["small"] | ADAPTERS | dict(seed=1337, targets=",".join(lora.TARGETS))
    parser = Arguments("Spam or not? Train a classifier.", "finetune_spam.py", usual)
    parser.section("data and start")
    parser.text("--dataset", "messages, or a file of them (sms-spam)")
    parser.choice("--preset", "sets all that is not given (small)", list(PRESETS))
    parser.text("--checkpoint", "a model of train.py to start from (none: from nothing)")
    parser.choice("--train", "what of it may change (all)", list(MODES))
    parser.number("--rank", int, "of the adapters, --train lora", 1, 1e5)
    parser.number("--alpha", float, "their size: they count alpha / rank times", 1e-6, 1e6)
    parser.number("--lora-dropout", float, "before the adapters", 0, 0.95)
    parser.text("--targets", "layers that get adapters")
    parser.section("model from nothing (in brackets, here and below: preset small)")
    parser.number("--vocab-size", int, "tokens", 256, 1e6)
    parser.number("--hidden-size", int, "channels of each position", 1, 1e5)
    parser.number("--layers", int, "blocks", 1, 1000)
    parser.number("--heads", int, "of attention, in each block", 1, 1000)
    parser.number("--context", int, "tokens of a message that are read, at most", 2, 1e6)
    parser.number("--dropout", float, "share of channels switched off", 0, 0.95)
    parser.number("--members", int, "models that are trained side by side and averaged", 1, 100)
    parser.section("training")
    parser.number("--epochs", int, "length: times that each message is read", 1, 1e6)
    parser.number("--batch-size", int, "messages read side by side", 1, 1e6)
    parser.choice("--optimizer", "muon is for the matrices, beside adamw", ["adamw", "muon"])
    parser.number("--lr", float, "highest learning rate", 0, 10)
    parser.number("--weight-decay", float, "pull of the matrices towards 0", 0, 100)
    parser.number("--average", float, "share of the past in an average of weights", 0, 0.99999)
    parser.number("--disguise", float, "share of messages that are changed a little", 0, 1)
    parser.number("--noise", float, "share of tokens that are others by chance", 0, 0.95)
    parser.number("--lm-weight", float, "weight of the loss of a language model beside", 0, 100)
    parser.number("--seed", int, "of weights, batches and disguises", 0, 2**31)
    parser.section("output")
    parser.text("--out", "folder of the results (checkpoints/spam/ in this model's folder)")
    parser.text("--resume", "go on from this checkpoint", metavar="CHECKPOINT")
    parser.text("--ask", "do not train: what is this message?", metavar="MESSAGE")
    tuning.add_machine_flags(parser)
    return parser.parse()


def settle(args: argparse.Namespace, stored: dict | None) -> None:
    """Fill in the flags not given: from the checkpoint that is resumed, else from preset and mode.

    Raises UserError for what does not go together.
    """
    if args.checkpoint:
        args.checkpoint = str(generate.find(args.checkpoint).resolve())
    if not stored and not args.checkpoint and args.train not in (None, "all"):
        raise UserError(f"--train {args.train} has nothing to start from: give a --checkpoint")
    given = [f"--{name.replace('_', '-')}" for name in OWN if getattr(args, name) is not None]
    if not stored and args.checkpoint and given:
        raise UserError(f"{', '.join(given)}: the checkpoint's model has its own: leave it out")
    preset = PRESETS[args.preset or "small"]
    usual = dict(
        dataset="sms-spam", preset="small", checkpoint=None, train="all", seed=1337, dtype="auto",
        targets=",".join(lora.TARGETS),
    )  # fmt: skip
    mode = MODES[args.train or "all"] if args.checkpoint else {}
    tuning.settle(args, stored, SETTINGS, {**usual, **ADAPTERS, **preset, **mode})
    if args.hidden_size % (2 * args.heads) and not args.checkpoint:
        raise UserError(
            f"--hidden-size {args.hidden_size} cannot be shared by --heads {args.heads}: "
            f"give a multiple of {2 * args.heads}"
        )


def prepare(args: argparse.Namespace) -> Run:
    """Data, model and optimizer: new ones, or those of the checkpoint to resume."""
    device = generate.pick_device(args.device)
    saved = tuning.resumed(args, device, "spam", "finetune_spam.py")
    out = Path(args.out or HERE / "checkpoints" / "spam")
    settle(args, saved and saved["spam"])
    splits, dataset = load_messages(args.dataset)
    if saved and saved["dataset"] != dataset:
        raise UserError(f"{args.dataset} has changed since this run began: start a new one")
    dtype = generate.pick_dtype(args.dtype, device)
    args.dtype = str(dtype).removeprefix("torch.")
    torch.manual_seed(args.seed)
    model, tokenizer = (
        load_classifier(args.resume, device) if saved else new_model(args, splits, device)
    )
    for member in model.train().members:
        member.body.config["dropout"] = args.dropout
        open_up(member, args.train)
    args.steps = args.epochs * -(-len(splits["train"].texts) // args.batch_size)
    optimizer = train.new_optimizer(model, args)
    run = Run(args, splits, dataset, tokenizer, model, optimizer, device, dtype, out)
    run.average = [p.detach().clone() for p in model.parameters()] if args.average else []
    if saved:
        tuning.restore(run, saved)
        run.average = saved["average"]
    return run


def new_model(
    args: argparse.Namespace, splits: dict[str, Split], device: str
) -> tuple[Committee, Tokenizer]:
    """A head on the language model of --checkpoint, with its tokenizer, or on new ones."""
    if args.checkpoint:
        body, tokenizer, _ = generate.load_checkpoint(Path(args.checkpoint), device)
        if args.train == "lora":
            lora.inject(body, **tuning.adapter_settings(args))
        return Committee([Classifier(body)]).to(device), tokenizer
    tokenizer = BPETokenizer.train("\n".join(splits["train"].texts), args.vocab_size)
    sizes = {name: getattr(args, name) for name in (*SHAPE, "dropout")}
    new = [Classifier(Llama(tokenizer.vocab_size, **sizes)) for _ in range(args.members)]
    return Committee(new).to(device), tokenizer


def load_classifier(path: Path, device: str) -> tuple[Committee, Tokenizer]:
    """What `save` saved, in evaluation mode. Raises UserError."""
    saved = generate.read_checkpoint(path, device)
    if "classifier" not in saved:
        raise UserError(f"{path} has no head for spam: make one with finetune_spam.py")
    base = path
    if saved["architecture"] == lora.KIND:
        base = Path(saved["spam"]["checkpoint"])
    body, tokenizer, _ = generate.load_checkpoint(base, device)
    if base != path:
        lora.load_adapters(path, body, base)
    members = [Classifier(body)]
    for weights in saved["others"]:
        other = type(body)(**saved["config"])
        other.load_state_dict(weights)
        members.append(Classifier(other))
    for member, weights in zip(members, saved["classifier"], strict=True):
        member.head.load_state_dict(weights)
    return Committee(members).to(device).eval(), tokenizer


# -------------------------------------------------------------------------------- the training


def get_batch(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, T), lengths (B,) and labels (B,) of the step that comes.

    Disguises and order of an epoch depend on its number and the seed alone.
    """
    args, messages = run.args, run.splits["train"]
    epoch, number = divmod(run.step, args.steps // args.epochs)
    if run.epoch[0] != epoch:
        dice, context = Random(f"{args.seed} {epoch}"), run.model.context
        texts = [disguise(text, args.disguise, dice) for text in messages.texts]
        rows = [encode(run.tokenizer, text, context) for text in texts]
        order = np.random.default_rng([args.seed, epoch])
        run.epoch = epoch, rows, tuning.batches([len(row) for row in rows], args.batch_size, order)
    _, rows, places = run.epoch
    tokens, lengths = pad([rows[i] for i in places[number]], run.model.context, run.device)
    return tokens, lengths, torch.from_numpy(messages.labels[places[number]]).to(run.device)


def blur(run: Run, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The tokens (B, T), a share of them others by chance, but for the last real ones.

    What remains must do: no single word decides.
    """
    dice = torch.Generator().manual_seed(run.args.seed + run.step)
    hit = torch.rand(tokens.shape, generator=dice) < run.args.noise
    others = torch.randint(run.tokenizer.vocab_size, tokens.shape, generator=dice)
    hit[torch.arange(len(tokens)), lengths.cpu() - 1] = False
    return torch.where(hit.to(run.device), others.to(run.device), tokens)


def learning_rate(run: Run) -> float:
    """That of train.py, which rises over a tenth of the steps where these are few."""
    return train.learning_rate(run.step, run.args, warmup=min(50, run.args.steps // 10))


def train_step(run: Run) -> float:
    """One update of the weights. Returns the loss of the labels before it, in nats."""
    # (1) learning rate
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run)

    # (2) batch
    tokens, lengths, labels = get_batch(run)
    inputs = blur(run, tokens, lengths)

    # (3) forward, loss
    value, total = 0.0, 0.0
    for member in run.model.members:
        with train.autocast(run):
            scores, hidden = member(inputs, lengths)
            loss = F.cross_entropy(scores.float(), labels)
            value += loss.item() / len(run.model.members)
            if run.args.lm_weight:
                loss = loss + run.args.lm_weight * lm_loss(member, hidden, tokens, lengths)
        total = total + loss

    # (4) backward, clip
    run.optimizer.zero_grad()
    total.backward()
    norms = [nn.utils.clip_grad_norm_(each.parameters(), 1.0) for each in run.model.members]
    tuning.check_finite(run, value, sum(norms).item())

    # (5) step
    run.optimizer.step()
    run.step += 1
    add_to_average(run)
    return value


@torch.inference_mode()
def scores_of(run: Run, texts: list[str], batch_size: int = 64) -> np.ndarray:
    """How much likelier spam is than ham, in nats: (N,)"""
    run.model.eval()
    rows = [encode(run.tokenizer, text, run.model.context) for text in texts]
    scores, order = np.zeros(len(rows)), sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for at in range(0, len(order), batch_size):
        some = order[at : at + batch_size]
        with train.autocast(run):
            found = run.model(*pad([rows[i] for i in some], run.model.context, run.device))
        scores[some] = found.cpu().numpy()
    run.model.train()
    return scores


def evaluate(run: Run) -> None:
    """Loss, accuracy and F1 on the validation split; keep the best weights."""
    split = run.splits["valid"]
    scores = scores_of(run, split.texts)
    loss = float(np.logaddexp(0, np.where(split.labels, -scores, scores)).mean())
    found = baselines.score((scores > 0).astype(int), split.labels)
    mean = run.losses[0] / max(1, run.losses[1])
    lr = run.optimizer.param_groups[0]["lr"]
    row = [run.step, round(run.seconds, 2), mean, loss, found.accuracy, found.f1, lr]
    run.history.append(row)
    run.losses = (0.0, 0)
    tqdm.write(
        f"step {run.step:<5} train {mean:.4f}  valid {loss:.4f} nats  accuracy "
        f"{found.accuracy:.2%}  F1 {found.f1:.4f}  lr {lr:.2g}"
    )
    if loss < run.best:
        run.best = loss
        save(run, "best.pt")
    write_results(run)


def evaluate_average(run: Run) -> None:
    """The same of the averaged weights, where there are any."""
    with averaged(run):
        evaluate(run)


# --------------------------------------------------------------------------------- the results


def save(run: Run, name: str) -> None:
    """best.pt is for use, and last.pt holds also what it takes to go on exactly from here.

    With --train lora the file holds the adapters and the head only; otherwise it is a checkpoint
    of a language model, read by generate.py too, that has a head for spam beside.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    members, body = run.model.members, run.model.members[0].body
    more = {
        "spam": {name: getattr(run.args, name) for name in SETTINGS},
        "classifier": [each.head.state_dict() for each in members],
        "others": [each.language_model() for each in members[1:]],
        "dataset": run.dataset,
        "progress": {name: getattr(run, name) for name in PROGRESS if name != "average"},
    }
    if name == "last.pt":
        rng = tuning.rng_state(run.device)
        more |= {"optimizer": run.optimizer.state_dict(), "rng": rng, "average": run.average}
    if run.args.train == "lora":
        base = Path(run.args.checkpoint)
        settings = tuning.adapter_settings(run.args)
        lora.save_adapters(run.out / name, body, base, settings, **more)
        return
    kind = {"format": FORMAT, "version": VERSION, "architecture": generate.kind_of(body)}
    own = {"config": body.config, "tokenizer": run.tokenizer.state_dict()}
    weights = {"model": members[0].language_model()}
    write_checkpoint(run.out / name, kind | own | weights | more)


def write_results(run: Run) -> None:
    """metrics.csv and loss.png, as far as the run has come."""
    tuning.write_table(run.out / "metrics.csv", COLUMNS, run.history)
    lines = {"training": 2, "validation": 3}
    tuning.draw_losses(run, lines, "Spam or not", "loss of the label, nats", scale="log")


def table_row(name: str, found: Score) -> str:
    numbers = f"{found.accuracy:8.2%} {found.precision:10.4f} {found.recall:8.4f} {found.f1:8.4f}"
    return f"{name:34} {numbers}   {found.true_positive:4} {found.false_negative:4}" + (
        f"   {found.false_positive:4} {found.true_negative:4}"
    )


def report(run: Run) -> None:
    """The test split, once, at the very end: this model and those that came before."""
    run.model, _ = load_classifier(run.out / "best.pt", run.device)
    test = run.splits["test"]
    rivals = {}
    for kind in (Majority, NaiveBayes):
        rivals[kind.name] = kind(*run.splits["train"]).predict(test.texts)
    strength = best_strength(run.splits)
    rivals[f"{LogisticRegression.name}, C {strength:g}"] = LogisticRegression(
        *run.splits["train"], strength
    ).predict(test.texts)
    rivals = {name: baselines.score(found, test.labels) for name, found in rivals.items()}
    own = baselines.score((scores_of(run, test.texts) > 0).astype(int), test.labels)
    print(f"{len(test.texts):,} test messages                      ", end="")
    print("accuracy  precision   recall       F1   spam: as it is, missed; ham: wronged, as it is")
    for name, found in rivals.items():
        print(table_row(name, found))
    start = f"--train {run.args.train}" if run.args.checkpoint else "from nothing"
    print(table_row(f"this model, {start}"[:34], own))
    lost = [name for name, found in rivals.items() if found.accuracy > own.accuracy]
    lost += [name for name, each in rivals.items() if each.f1 > own.f1 and name not in lost]
    if lost:
        print(f"This model loses to {' and '.join(lost)}: use that, it is simpler and better.")
    else:
        print("No baseline is better.")


def best_strength(splits: dict[str, Split]) -> float:
    """The strength of logistic regression that is best on the validation split."""
    texts, labels = splits["valid"]
    rights = [(LogisticRegression(*splits["train"], strength).predict(texts) == labels).sum()
              for strength in STRENGTHS]  # fmt: skip
    return STRENGTHS[int(np.argmax(rights))]


def introduce(run: Run) -> str:
    sizes = ", ".join(f"{len(split.texts):,} {name}" for name, split in run.splits.items())
    spam = run.splits["train"].labels.mean()
    every = sum(p.numel() for p in run.model.parameters())
    learn = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    kind = generate.kind_of(run.model.members[0].body)
    kind += f" x {len(run.model.members)}" if len(run.model.members) > 1 else ""
    return (
        f"{run.dataset['name']}: {sizes} messages, {spam:.1%} spam | {kind}: "
        f"{learn:,} of {every:,} parameters learn ({learn / every:.1%}), {run.device}, "
        f"{run.args.dtype}"
    )


def answer(args: argparse.Namespace) -> None:
    """Print what the model trained last makes of a message."""
    device = generate.pick_device(args.device)
    path = Path(args.out or HERE / "checkpoints" / "spam") / "best.pt"
    model, tokenizer = load_classifier(path, device)
    tokens, lengths = pad([encode(tokenizer, args.ask, model.context)], model.context, device)
    with torch.inference_mode():
        spam = model(tokens, lengths).sigmoid().item()
    print(f"{LABELS[spam > 0.5]} (spam with probability {spam:.3f})")


def main() -> None:
    args = parse_args()
    if args.ask is not None:
        answer(args)
        return
    train.keep_memory()
    run = prepare(args)
    print(introduce(run))
    run.out.mkdir(parents=True, exist_ok=True)
    if not args.resume:
        train.set_aside(run.out)
    if stopped := tuning.train_all(
        run, train_step, evaluate_average, save, args.epochs, first=False
    ):
        tuning.stop(run, "finetune_spam.py", stopped)
    report(run)
    print(f"{run.seconds:.0f} seconds of training; results are in {shown(run.out)}. Ask it:")
    where = ["--out", shown(run.out)] if run.out != HERE / "checkpoints" / "spam" else []
    print(type_next("finetune_spam.py", *where, "--ask", "WINNER!! Claim your prize now"))


if __name__ == "__main__":
    command(main)
