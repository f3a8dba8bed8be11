"""Train model 05, a GPT.

    text --> tokens --> (1) learning rate   (2) batch   (3) forward, loss   (4) backward, clip
                        (5) step   (6) log   (7) evaluate, sample, save     ... and again
         --> checkpoints/:  best.pt  last.pt  metrics.csv  loss.png  samples.txt

The loss is cross-entropy in nats per token: -ln of the probability that the model gave to the
token that came. Validation loss is always over the whole validation split.

New since model 04: two architectures; Muon for the matrices; texts that need not fit into memory
(data.py); batches in parts (--accumulate); an average of the weights (averaging.py); several
processes, on one machine or many (parallel.py); weights to start from (transfer.py).

Shapes: B batch, T time (context), V vocabulary

    python train.py                                  # four minutes on a laptop
    python train.py --dataset my_novel.txt --preset tiny
    python train.py --resume checkpoints/last.pt     # go on, exactly where it stopped
    python train.py --init-from gpt2                 # a published model learns your text
    torchrun --nproc-per-node 2 train.py             # in two processes
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import hashlib
import io
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import data
import generate
import numpy as np
import parallel
import torch
from averaging import add_to_average, averaged
from generate import FORMAT, HERE, MODELS, VERSION, Arguments, Model, command
from model import POINTERS
from muon import Muon, Optimizers
from ngram import NGram
from speed import share_of_peak
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transfer import init_from

from shared import UserError
from shared.data.download import Corpus
from shared.data.tales import Probe, recall_probes
from shared.utils import tokenizers, visualize
from shared.utils.tokenizers import Tokenizer

DATASET = "wikitext-2"  # where none is named
PRESETS = {  # tiny: seconds; small: a laptop's CPU; full: a GPU, or patience; gpt2: many GPUs
    "tiny": dict(
        tokenizer="char", arch="llama", hidden_size=64, layers=2, dropout=0.0, heads=4,
        copy="none", ngrams=1, optimizer="muon", batch_size=16, accumulate=1, context=64,
        lr=0.01, weight_decay=0.1, average=0.0, steps=600,
    ),
    "small": dict(
        tokenizer="char", arch="llama", hidden_size=192, layers=6, dropout=0.0, heads=4,
        copy="none", ngrams=1, optimizer="muon", batch_size=16, accumulate=1, context=128,
        lr=0.005, weight_decay=0.5, average=0.0, minutes=3.75,
    ),
    "full": dict(
        tokenizer="char", arch="llama", hidden_size=192, layers=6, dropout=0.0, heads=4,
        copy="none", ngrams=1, optimizer="muon", batch_size=16, accumulate=1, context=128,
        lr=0.005, weight_decay=1.0, average=0.0, epochs=6.0,
    ),
    "gpt2": dict(
        tokenizer="bpe", vocab_size=50304, arch="gpt", hidden_size=768, layers=12, dropout=0.0,
        heads=12, copy="none", ngrams=1, optimizer="adamw", batch_size=512, accumulate=64,
        context=1024, lr=0.0006, weight_decay=0.1, average=0.0, epochs=1.0,
    ),
}  # fmt: skip
TOKENIZERS = {
    "char": (tokenizers.CharTokenizer, {}),
    "word": (tokenizers.WordTokenizer, {"max_size": 40_000}),
    "bpe": (tokenizers.BPETokenizer, {"vocab_size": 1024}),
    "wordpiece": (tokenizers.WordPieceTokenizer, {"vocab_size": 1024}),
    "unigram": (tokenizers.UnigramTokenizer, {"vocab_size": 1024}),
}
DTYPES = ("auto", "float32", "bfloat16", "float16")
LENGTHS = ("epochs", "steps", "minutes")
MODEL = ("hidden_size", "layers", "dropout", "heads", "context", "copy", "ngrams")  # + kv_heads
KEPT = (  # by --resume
    "tokenizer", "vocab_size", "arch", "kv_heads", "optimizer", "average",
    "preset", "seed", "dtype", *MODEL, "batch_size", "weight_decay",
)  # fmt: skip
SETTINGS = (*KEPT, *LENGTHS, "lr", "save_every", "eval_every")  # stored in checkpoints
SETTINGS += ("accumulate", "begin", "ends")  # ... of a text: a published model's tokens around it
NGRAM_ORDER = 7
NGRAM_TOKENS = 10_000_000  # at most, counted for the baseline
SAVE_SECONDS = 30  # between two saves of last.pt, where --save-every says nothing
EVALUATIONS = 5  # over a run; each reads the text twice, as the window slides


@dataclass
class Run:
    """A training run: what is fixed, then all that changes and goes into a checkpoint."""

    args: argparse.Namespace
    corpus: Corpus
    tokenizer: Tokenizer
    train: np.ndarray  # (N,) token ids, perhaps on disk
    valid: Tensor
    model: Model
    shared: torch.nn.Module  # the same model, as all processes train it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: str
    dtype: torch.dtype
    out: Path
    started: float  # time.perf_counter() at the start of the program
    rank: int = 0  # number of this process,
    world: int = 1  # of so many
    baseline: float = math.nan  # nats per token of the n-gram model

    step: int = 0  # steps done; with the seed it fixes the position in the data
    best: float = math.inf  # lowest validation loss so far, nats per token
    seconds: float = 0.0  # of training, evaluation left out
    evaluation: float = 0.0  # seconds of the first evaluation
    losses: tuple[float, int] = (0.0, 0)  # sum and number since the last line of metrics.csv
    history: list[list] = field(default_factory=list)  # the lines of metrics.csv
    samples: list[list] = field(default_factory=list)  # [step, text]
    average: list[Tensor] = field(default_factory=list)  # of the weights

    @property
    def name(self) -> str:
        """Of the model's architecture."""
        return generate.kind_of(self.model)

    def bits_per_char(self, nats: float) -> float:
        """From nats per token: one scale for all tokenizers."""
        return nats / math.log(2) * len(self.valid) / len(self.corpus.valid)


PROGRESS = ("step", "best", "seconds", "evaluation", "losses", "history", "samples", "average")
RESULTS = (
    "best.pt", "last.pt", "metrics.csv", "loss.png", "samples.txt", "recall.csv", "recall.png",
)  # fmt: skip
COLUMNS = ("step", "tokens", "seconds", "train_loss", "val_loss", "bits_per_char", "learning_rate")


# ------------------------------------------------------------------------------- the arguments


def parse_args() -> argparse.Namespace:
    parser = Arguments(__doc__.partition("\n")[0], "train.py", PRESETS["small"])
    parser.section("data and size")
    names = "tales, tales-25mb, tiny-shakespeare, wikitext-2, tinystories, python-stdlib or a file"
    parser.text("--dataset", f"{names} ({DATASET}, or tales where that cannot be had)")
    parser.choice("--preset", "sets all that is not given (small)", list(PRESETS))
    parser.choice("--tokenizer", "what a token is", list(TOKENIZERS))
    parser.number("--vocab-size", int, "tokens (pieces: 1024; words: 40000 at most)", 5, 1e7)
    parser.section("model (in brackets, here and below: preset small)")
    parser.choice("--arch", "as GPT-2 is built, or as LLaMA", ["gpt", "llama"])
    parser.number("--hidden-size", int, "channels of each position", 1, 1e5)
    parser.number("--layers", int, "blocks", 1, 1000)
    parser.number("--dropout", float, "share of channels switched off", 0, 0.95)
    parser.number("--heads", int, "of attention, in each block", 1, 1000)
    parser.number("--kv-heads", int, "of keys and values, llama only (as many as --heads)", 1, 1000)
    parser.choice("--copy", "pointing at the text so far: its tokens, or its words", list(POINTERS))
    parser.number("--ngrams", int, "longest run of tokens that has an embedding", 1, 64)
    parser.section("training")
    parser.number("--epochs", float, "length: passes over the training text", 1e-6)
    parser.number("--steps", int, "length: updates of the weights", 1)
    parser.number("--minutes", float, "length: as many steps as fit", 1e-3)
    parser.number("--batch-size", int, "texts read side by side", 1, 1e6)
    parser.number("--context", int, "tokens of each text a step", 1, 1e6)
    parser.number("--accumulate", int, "parts in which a batch is computed, to save memory", 1, 1e6)
    parser.choice("--optimizer", "muon is for the matrices, beside adamw", ["adamw", "muon"])
    parser.number("--lr", float, "highest learning rate", 0, 10)
    parser.number("--weight-decay", float, "pull of the matrices towards 0", 0, 100)
    parser.number("--average", float, "share of the past in an average of weights", 0, 0.99999)
    parser.number("--seed", int, "of weights, batches and samples (1337)", 0, 2**31)
    parser.section("output")
    parser.text("--out", "folder of the results (checkpoints/ in this model's folder)")
    parser.text("--resume", "go on from this checkpoint", metavar="CHECKPOINT")
    parser.text("--init-from", "start with weights of: a checkpoint, gpt2, ...", metavar="NAME")
    parser.number("--save-every", int, "steps between saves (half a minute's)", 1)
    parser.number("--eval-every", int, "steps between evaluations (a fifth of all)", 1)
    generate.add_device_flag(parser)
    parser.choice("--dtype", "of matrix products (auto: bfloat16 where fast)", DTYPES)
    parser.text("--compile", "try torch.compile", action="store_true", default=False)
    parser.choice("--parallel", "how processes of torchrun share the work", ["ddp", "fsdp"], "ddp")
    parser.set_defaults(begin=None, ends=None)
    args = parser.parse()
    if sum(getattr(args, name) is not None for name in LENGTHS) > 1:
        raise UserError("--epochs, --steps and --minutes each set the length: give one of them")
    return args


def settle(args: argparse.Namespace, stored: dict | None) -> None:
    """Fill in the flags not given: from the checkpoint that is resumed, else from the preset."""
    preset = PRESETS[args.preset or "small"]
    usual = dict(preset="small", seed=1337, dtype="auto", save_every=None, eval_every=None)
    defaults = stored or {**usual, **preset}
    for name in KEPT if stored else ():
        if getattr(args, name) not in (None, stored.get(name)):
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(args, name)}: this checkpoint was made with "
                f"{stored.get(name)}: leave the flag out, or start a new run without --resume"
            )
    lengths = () if any(getattr(args, name) for name in LENGTHS) else LENGTHS
    for name in SETTINGS:
        if getattr(args, name) is None and (name in lengths or name not in LENGTHS):
            setattr(args, name, defaults.get(name))


def check(args: argparse.Namespace, world: int) -> None:
    """Raises UserError for settings that do not go together."""
    problems = []
    new = not args.resume and not args.init_from
    usual = PRESETS[args.preset].get("vocab_size")  # of its own tokenizer
    if new and args.tokenizer == "char" and args.vocab_size not in (None, usual):
        problems.append("--vocab-size: --tokenizer char has all characters: leave it out")
    if new and args.hidden_size % (2 * args.heads):
        problems.append(
            f"--hidden-size {args.hidden_size} cannot be shared by --heads {args.heads}: "
            f"give a multiple of {2 * args.heads}"
        )
    if new and args.kv_heads and args.arch == "gpt":
        problems.append("--kv-heads: --arch gpt has as many as --heads: leave it out")
    if new and args.kv_heads and args.heads % args.kv_heads:
        problems.append(f"--heads {args.heads}: give a multiple of --kv-heads {args.kv_heads}")
    if world > 1 and args.parallel == "fsdp" and (args.optimizer == "muon" or args.average):
        problems.append("--parallel fsdp: give --optimizer adamw and no --average, or use ddp")
    if problems:
        raise UserError("; ".join(problems))


def new_tokenizer(args: argparse.Namespace, text: str | list[Path]) -> Tokenizer:
    """A tokenizer trained on the text, or on files."""
    kind, sizes = TOKENIZERS[args.tokenizer]
    more = {name: args.vocab_size or size for name, size in sizes.items()}
    return kind.train(text, **more)


def find_text(args: argparse.Namespace, checkpoint: dict | None) -> data.Source:
    """The text to train on. Raises UserError if it is not that of the checkpoint to resume."""
    name = args.dataset or (checkpoint and checkpoint["dataset"]["name"])
    source = data.find(name, DATASET)
    corpus = source.corpus
    if checkpoint and corpus.sha256 != checkpoint["dataset"]["sha256"]:
        raise UserError(
            f"{corpus.name} is not the text this checkpoint was trained on "
            f"({checkpoint['dataset']['name']}): resume with that one, or start a new run"
        )
    return source


def new_model(args: argparse.Namespace, vocab_size: int) -> Model:
    sizes = {name: getattr(args, name) for name in MODEL}
    if args.arch == "llama":
        sizes["kv_heads"] = args.kv_heads or args.heads
    return MODELS[{"gpt": "GPT", "llama": "Llama"}[args.arch]](vocab_size, **sizes)


def check_own(path: Path, checkpoint: dict) -> None:
    """Raises UserError for a checkpoint that another script made."""
    if not {"settings", "rng"} <= checkpoint.keys():  # merged files have settings, too
        raise UserError(f"{path} is fine-tuned: --resume it with that script, or --init-from it")


def fit_batch(args: argparse.Namespace, name: str, train: int, valid: int) -> None:
    """Make the batch fit a text of so many tokens. Raises UserError where the text is too short."""
    if train <= args.context or valid < 2:
        raise UserError(
            f"{name} has {train} training and {valid} validation tokens, too few "
            f"for --context {args.context}: give it more text, or a shorter --context"
        )
    if args.batch_size > (most := (train - 1) // args.context):
        print(f"{name} is short: --batch-size {most} instead of {args.batch_size}")
        args.batch_size, args.accumulate = most, 1


def prepare(args: argparse.Namespace) -> Run:
    """Data, model and optimizer: new ones, or those of the checkpoint to resume."""
    started = time.perf_counter()
    if args.resume and args.init_from:
        raise UserError("--resume goes on with a run and --init-from begins one: give one of them")
    device = generate.pick_device(args.device)
    rank, world = parallel.begin(device)
    out = Path(args.out or HERE / "checkpoints")
    model = tokenizer = checkpoint = None
    if args.resume:
        path = generate.find(args.resume)
        model, tokenizer, checkpoint = generate.load_checkpoint(path, device)
        out = Path(args.out or path.parent)
        check_own(path, checkpoint)
    elif args.init_from:
        model, tokenizer = init_from(args, device, PRESETS[args.preset or "small"])
    settle(args, checkpoint and checkpoint["settings"])
    check(args, world)
    source = find_text(args, checkpoint)
    tokenizer = tokenizer or new_tokenizer(args, source.text)
    with parallel.in_turn():  # the first process encodes a large text, the others find it done
        corpus, train, valid = data.encode(source, tokenizer, out / "tokens")
    fit_batch(args, corpus.name, len(train), len(valid))
    args.parts = parallel.parts_of(args.batch_size, args.accumulate, world)
    dtype = generate.pick_dtype(args.dtype, device)
    args.dtype = str(dtype).removeprefix("torch.")
    torch.manual_seed(args.seed)
    model = (model or new_model(args, tokenizer.vocab_size)).to(device).train()
    if model.config["copy"] == "words":
        model.pointer.join([tokenizer.token_text(index) for index in range(tokenizer.vocab_size)])
    shared = parallel.share(model, args.parallel)
    torch.manual_seed(args.seed + rank)  # each process has dropout of its own
    optimizer = new_optimizer(model, args)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    valid = torch.from_numpy(valid.astype(np.int64))
    fixed = (args, corpus, tokenizer, train, valid, model, shared, optimizer, scaler, device, dtype)
    run = Run(*fixed, out, started, rank, world)
    if args.average:
        run.average = [p.detach().clone() for p in model.parameters()]
    if args.epochs and not args.steps:
        args.steps = max(1, round(args.epochs * steps_per_epoch(run)))
    if checkpoint:
        dice = [checkpoint["rng"], *checkpoint.get("others", [])]  # new processes keep their own
        restore(run, checkpoint | {"rng": dice[rank] if rank < len(dice) else {}})
    return run


def new_optimizer(model: Model, args: argparse.Namespace) -> Optimizers:
    """AdamW (Loshchilov & Hutter 2019), and with --optimizer muon that for the blocks' matrices."""
    # Decay pulls at what multiplies, so that no weight grows without need. A norm's scale belongs
    # at 1 and a bias where the data have it: pulling these to 0 would only do harm.
    inner = [p for p in model.blocks.parameters() if p.dim() > 1 and args.optimizer == "muon"]
    own = {id(p) for p in inner}
    matrices = [p for p in model.parameters() if p.dim() > 1 and id(p) not in own]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.0 if inner else args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    parts = [torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)]
    if inner:
        dtype = torch.float32 if args.dtype == "float32" else torch.bfloat16
        parts.append(Muon(inner, weight_decay=args.weight_decay, dtype=dtype))
    return Optimizers(*parts)


# ------------------------------------------------------------------------------------ the data


def steps_per_epoch(run: Run) -> int:
    return (len(run.train) - 1) // run.args.batch_size // run.args.context


def get_batch(run: Run, part: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T), each target the token after its input, from random places.

    Nothing is carried from batch to batch, so the pieces need not follow one another. A batch
    depends on seed and step alone, so a resumed run sees the same ones.
    """
    batch_size, context = run.args.batch_size, run.args.context
    random = torch.Generator().manual_seed(run.args.seed + run.step)
    starts = torch.randint(len(run.train) - context, (batch_size, 1), generator=random)
    mine = starts[run.rank :: run.world].chunk(run.args.parts)[part]  # of what all processes read
    places = (mine + torch.arange(context + 1)).numpy()
    batch = torch.from_numpy(run.train[places].astype(np.int64))  # (B, T + 1)
    if run.device == "cuda":  # copied while the GPU computes: nobody waits
        batch = batch.pin_memory().to("cuda", non_blocking=True)
    inputs, targets = batch[:, :-1], batch[:, 1:]
    return inputs.to(run.device), targets.to(run.device)


# ---------------------------------------------------------------------------------- evaluation


def loss_of(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats: logits (B, T, V), targets (B, T), where -100 does not count."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def loss_on(run: Run, inputs: Tensor, targets: Tensor) -> Tensor:
    """The model's mean loss on a batch, in nats per token: inputs, targets (B, T)"""
    logits, _ = run.shared(inputs)
    return loss_of(logits, targets)


def autocast(run: Run) -> torch.autocast:
    """Matrix products in run.dtype; the weights themselves stay float32."""
    return torch.autocast(run.device, run.dtype, enabled=run.dtype != torch.float32)


@torch.inference_mode()
def evaluate(run: Run) -> float:
    """Nats per token over the whole validation split: each token but the first is predicted once.

    The split is read as B streams side by side, each from beginning to end.
    """
    run.model.eval()
    predicted = len(run.valid) - 1
    at_once = run.args.batch_size // run.args.accumulate
    streams = min(at_once, math.ceil(predicted / run.args.context))
    streams = min(max(run.world, streams), predicted)  # one at least for each process
    length = math.ceil(predicted / streams)  # of a stream; what the last one lacks is not counted
    padding = streams * length - predicted
    inputs, targets = run.valid[:-1], run.valid[1:]
    inputs = F.pad(inputs, (0, padding)).view(streams, length)
    targets = F.pad(targets, (0, padding), value=-100).view(streams, length)
    inputs, targets = inputs[run.rank :: run.world], targets[run.rank :: run.world]
    total, state = 0.0, None
    for t in range(0, length, run.args.context):
        chunk = slice(t, t + run.args.context)
        with autocast(run):
            logits, state = run.model(inputs[:, chunk].to(run.device), state)
        total += loss_of(logits, targets[:, chunk].to(run.device), "sum").item()
    run.model.train()
    return parallel.total(total) / predicted


def write_sample(run: Run, length: int = 80) -> str:
    """What the model writes now, from the start of a line, with dice of its own."""
    run.model.eval()
    prompt = run.args.begin or generate.opening(run.tokenizer)
    how = dict(temperature=0.8, seed=run.args.seed, never=run.tokenizer.unk_id)
    tokens = generate.generate(run.model, prompt, length, **how)
    text = run.tokenizer.decode(list(tokens)).strip("\n")
    run.model.train()
    return text


def evaluate_and_sample(run: Run) -> None:
    """Measure the validation loss, show it with a sample, keep the best weights."""
    loss, text = evaluate(run), write_sample(run)
    row = run.history[-1]
    row[4:6] = [loss, run.bits_per_char(loss)]
    run.samples.append([run.step, text])
    train = f"train {row[3]:.4f}  " if row[3] is not None else ""
    tqdm.write(
        f"step {run.step:<6} {train}valid {loss:.4f} nats/token = {row[5]:.4f} bits/char  "
        f"lr {row[6]:.2g}\n    {' / '.join(text.splitlines())[:90]}"
    )
    if loss < run.best:
        run.best = loss
        save_checkpoint(run, "best.pt")
    write_results(run)


def kept_dice(run: Run) -> AbstractContextManager:
    """Random numbers drawn meanwhile do not count. Of several GPUs only this run's is asked."""
    return torch.random.fork_rng([run.device] if run.device == "cuda" else [])


def estimate_memory(run: Run) -> float:
    """Bytes that training takes: weights, gradients, two moments, and what one batch keeps."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:  # called for each tensor that backward will need
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with kept_dice(run), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        inputs, targets, *_ = get_batch(run)
        with autocast(run):
            loss = loss_of(run.model(inputs)[0], targets)
        del loss  # only now may the storages be freed, and their addresses used again
    return sum(kept.values()) + 4 * 4 * sum(p.numel() for p in run.model.parameters())


# --------------------------------------------------------------------------------- the results


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place once all is written, or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    """Plain tensors and plain values, then the SHA-256 of all that; the whole file or none."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.write(hashlib.sha256(buffer.getbuffer()).digest())


def save_checkpoint(run: Run, name: str) -> None:
    """All it takes to go on exactly from here."""
    rng = {"cpu": torch.get_rng_state()}
    if run.device != "cpu":
        rng[run.device] = getattr(torch, run.device).get_rng_state()
    checkpoint = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": run.name,
        "config": run.model.config,
        "tokenizer": run.tokenizer.state_dict(),
        "model": parallel.whole(run.model.state_dict()),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "settings": {name: getattr(run.args, name) for name in SETTINGS},
        "dataset": {"name": run.corpus.name, "sha256": run.corpus.sha256},
        "progress": {name: getattr(run, name) for name in PROGRESS},
        "rng": rng,
        "others": parallel.everyones(rng)[1:],  # the same of all processes but the first
    }
    if not run.rank:  # all have given what they have of it, one writes
        write_checkpoint(run.out / name, checkpoint)


def restore(run: Run, checkpoint: dict) -> None:
    """Put back what save_checkpoint saved (the model and the settings are there already)."""
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    run.scaler.load_state_dict(checkpoint["scaler"])
    for name in PROGRESS:
        setattr(run, name, checkpoint["progress"][name])
    for device, state in checkpoint["rng"].items():
        if device in (run.device, "cpu"):
            (torch if device == "cpu" else getattr(torch, device)).set_rng_state(state.cpu())


def write_results(run: Run) -> None:
    """metrics.csv, samples.txt and loss.png, as far as the run has come."""
    if run.rank:
        return
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *run.history])
    samples = "".join(f"--- step {step}\n{text}\n\n" for step, text in run.samples)
    for name, text in (("metrics.csv", table.getvalue()), ("samples.txt", samples)):
        with replacing(run.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    if not run.step:
        return  # one point is no curve
    with replacing(run.out / "loss.png") as temporary:
        visualize.plot_loss(
            [dict(zip(COLUMNS, row, strict=True)) for row in run.history],
            temporary,
            title=f"{run.name} on {run.corpus.name}",
            bits_per_nat=run.bits_per_char(1.0),
            baseline=(f"{NGRAM_ORDER}-gram", run.baseline),
            floor=run.corpus.floor,
        )


def set_aside(out: Path) -> None:
    """Move the results of an earlier run to a folder of their own: nothing is ever lost."""
    earlier = [out / name for name in RESULTS if (out / name).exists()]
    if earlier:
        newest = max(path.stat().st_mtime for path in earlier)
        folder = out / time.strftime("run-%Y-%m-%d-%H-%M-%S", time.localtime(newest))
        while folder.exists():
            folder = folder.with_name(folder.name + "+")
        folder.mkdir()
        for path in earlier:
            path.replace(folder / path.name)
        print(f"the results of the run before are now in {shown(folder)}")


# -------------------------------------------------------------------------------- the training


def keep_memory() -> None:
    """Ask Linux's malloc to keep what is freed: the logits of a large vocabulary, handed back to
    the system after each step and fetched again page by page, can double the time of a step."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system, another malloc
        return
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: hand back from 1 GB of free memory on
    mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own


class Stop:
    """Ctrl-C or SIGTERM asks for an end after the step under way; a second one insists."""

    signal = 0

    def __enter__(self) -> Stop:
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, number: int, frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def learning_rate(step: int, args: argparse.Namespace, warmup: int = 50) -> float:
    """Rises over the first steps, then falls along half a cosine, to reach 0 after the last.

    At first the gradients are large and point everywhere, so steps must be small; at the end
    small steps settle into the valley that large ones only jumped across. A cosine stays long at
    the height where most is learned, and long near 0 (Loshchilov & Hutter 2017).
    """
    if step < warmup or not args.steps:
        return args.lr * min(1, (step + 1) / warmup)
    done = min(1, (step - warmup) / max(1, args.steps - warmup))
    return args.lr * (1 + math.cos(math.pi * done)) / 2


def train_step(run: Run, forward: Callable) -> float:
    """One update of the weights. Returns the loss before it, in nats per token."""
    # (1) learning rate
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, run.args)

    total = torch.zeros((), device=run.device)
    for part in range(run.args.parts):  # whose gradients add up
        # (2) batch
        inputs, targets = get_batch(run, part)

        # (3) forward, loss
        parallel.synchronize(run.shared, part == run.args.parts - 1)
        with autocast(run):
            loss = forward(run, inputs, targets) / run.args.parts
        total += loss.detach()

        # (4) backward, clip: one wild batch must not throw the weights far away
        run.scaler.scale(loss).backward()
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    norm, value = parallel.whole(norm).item(), parallel.total(total.item()) / run.world
    if not math.isfinite(value + (0 if run.scaler.is_enabled() else norm)):  # a scaler mends these
        raise UserError(
            f"loss {value}, gradient {norm} at step {run.step + 1}: start again with a lower --lr, "
            f"such as {run.args.lr / 3:.1g} (last.pt holds the run before it went wrong)"
        )

    # (5) step
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    run.step += 1
    add_to_average(run)
    return value


def evaluate_first(run: Run) -> None:
    """What the model knows before its first step; and how long an evaluation takes."""
    run.history, run.samples, run.best = [], [], math.inf
    log(run)
    visualize.new_figure()  # loads matplotlib, which must not count as evaluation
    began = time.perf_counter()
    with averaged(run):
        evaluate_and_sample(run)
    run.evaluation = time.perf_counter() - began
    save_checkpoint(run, "last.pt")


def train(run: Run) -> int:
    """Train to the end, or to a signal. Returns the number of that signal, or 0."""
    args, times, saved = run.args, [], time.perf_counter()
    forward = compiled(run) if args.compile else loss_on
    quiet = True if run.rank else None  # None: where there is no terminal
    bar = tqdm(initial=run.step, total=args.steps, unit="step", disable=quiet)
    with Stop() as stop, bar:
        if run.step == 0:  # also where a run was killed before its first step
            evaluate_first(run)
        while not args.steps or run.step < args.steps:
            began = time.perf_counter()
            loss = train_step(run, forward)  # (1) to (5)
            times.append(time.perf_counter() - began)

            # (6) log
            run.seconds += times[-1]
            run.losses = (run.losses[0] + loss, run.losses[1] + 1)
            speed = args.batch_size * args.context / times[-1]
            text = f"loss {loss:.3f}, {speed:,.0f} tokens/s{share_of_peak(run, speed)}"
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            stopping = parallel.highest(stop.signal)
            if not args.steps:  # --minutes: measure a tenth, or one minute, then fix the length
                if parallel.highest(sum(times) < min(60, 6 * args.minutes)) and not stopping:
                    continue
                bar.total = args.steps = parallel.highest(steps_that_fit(run, times))
            evaluating = run.step == args.steps or run.step % evaluate_every(args) == 0
            if evaluating or run.step % max(1, args.steps // 200) == 0:
                log(run)

            # (7) evaluate, sample, save
            if evaluating:
                with averaged(run):
                    evaluate_and_sample(run)
            due = parallel.highest(time.perf_counter() - saved > SAVE_SECONDS)
            if args.save_every:
                due = run.step % args.save_every == 0
            if due or evaluating or stopping:
                save_checkpoint(run, "last.pt")
                saved = time.perf_counter()
            if stopping and run.step < args.steps:
                return stopping
    return 0


def steps_that_fit(run: Run, times: list[float]) -> int:
    """--minutes in steps, evaluations included: times holds the seconds of each step so far."""
    warm = times[2:] or times  # the first two only warm up
    each, every = sum(warm) / len(warm), run.args.eval_every
    left = 60 * run.args.minutes - (time.perf_counter() - run.started)
    left -= run.evaluation * (1 if every else EVALUATIONS)
    left *= 0.95  # machines slow down as they grow warm
    return run.step + max(1, int(left / (each + (run.evaluation / every if every else 0))))


def evaluate_every(args: argparse.Namespace) -> int:
    return args.eval_every or math.ceil(args.steps / EVALUATIONS)


def log(run: Run) -> None:
    """Add a line to the history, with the mean training loss since the line before."""
    total, number = run.losses
    tokens = run.step * run.args.batch_size * run.args.context
    lr = learning_rate(max(0, run.step - 1), run.args)
    mean = total / number if number else None
    run.history.append([run.step, tokens, round(run.seconds, 2), mean, None, None, lr])
    run.losses = (0.0, 0)


def compiled(run: Run) -> Callable:
    """torch.compile's version of loss_on, if that works on this machine; else the function.

    With the loss compiled as well, the logits of a large vocabulary need not be written in 32 bits.
    """
    try:
        forward = torch.compile(loss_on)
        with kept_dice(run), autocast(run):
            forward(run, *get_batch(run)).backward()
        return forward
    except Exception as error:  # whatever a compiler may meet on a machine, eager mode works
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"--compile does not work here, going on without ({reason[:100]})")
        return loss_on
    finally:
        run.optimizer.zero_grad()


# ---------------------------------------------------------------------------------- the report


@torch.inference_mode()
def next_scores(run: Run, contexts: list[list[int]]) -> Tensor:
    """What the model gives each token as the next one after each context: logits (N, V)"""
    run.model.eval()
    scores = torch.empty(len(contexts), run.tokenizer.vocab_size)
    order = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
    for batch in (order[i : i + 32] for i in range(0, len(order), 32)):  # of about equal lengths
        rows = [torch.tensor(contexts[i]) for i in batch]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(run.device)
        with autocast(run):
            logits, _ = run.model(tokens)  # (B, T, V); padding stands behind and changes nothing
        ends = torch.tensor([len(row) - 1 for row in rows])
        scores[batch] = logits[torch.arange(len(batch)), ends].float().cpu()
    return scores


def answers_of(
    tokenizer: Tokenizer, probes: list[Probe]
) -> tuple[list[list[int]], list[list[int]]]:
    """For each probe the tokens before the answers differ, and the next one of each answer."""
    contexts, choices = [], []
    for probe in probes:
        texts = [tokenizer.encode(probe.prompt + candidate) for candidate in probe.candidates]
        # up to the token in which they differ, if they do: all may be <unk>
        same = len(os.path.commonprefix([text[:-1] for text in texts]))
        contexts.append(texts[0][:same])
        choices.append([text[same] for text in texts])
    return contexts, choices


def measure_recall(run: Run, ngram: NGram, count: int = 600) -> None:
    """Does it remember? The answers of model and n-grams to the recall probes of `tales`.

    recall.csv: model, kind, distance in characters, choices, 1 if the right one scored highest.
    """
    probes = recall_probes(count)
    contexts, choices = answers_of(run.tokenizer, probes)
    counted = [ngram.next_probs(context[-NGRAM_ORDER + 1 :]) for context in contexts]
    scores = {
        f"{NGRAM_ORDER}-gram": torch.tensor(np.array(counted)),
        generate.name_of(run.model.config): next_scores(run, contexts),
    }
    if run.rank:
        return
    lines = ["model,kind,distance,choices,right"]
    for name, table in scores.items():
        for probe, tokens, row in zip(probes, choices, table, strict=True):
            right = probe.candidates[int(row[tokens].argmax())] == probe.answer
            lines.append(f"{name},{probe.kind},{probe.distance},{len(tokens)},{right:d}")
    with replacing(run.out / "recall.csv") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    with replacing(run.out / "recall.png") as temporary:
        visualize.plot_recall([run.out / "recall.csv"], temporary)


def verdict(run: Run) -> str:
    """In plain words: learning, overfitting or diverged, and against what."""
    losses = [row[4] for row in run.history if row[4] is not None]
    first, last, best = losses[0], losses[-1], min(losses)
    text = f"validation {best:.4f} nats/token = {run.bits_per_char(best):.4f} bits/char, "
    text += "better" if best < run.baseline else "not better"
    text += f" than counting ({NGRAM_ORDER}-gram {run.baseline:.4f} nats)"
    if run.corpus.floor is not None:
        text += f"; no model can go below {run.corpus.floor:.4f} bits/char"
    if not last <= min(1.02 * first, 2 * best):  # "not" catches NaN as well
        return f"diverged: {text}. The loss rose in the end: try a third of the --lr."
    if last > 1.02 * best:
        return f"overfitting: {text}. best.pt is from before it did: try more --dropout."
    return f"learning: {text}."


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    try:
        return min(os.path.relpath(path), str(path), key=len)
    except ValueError:  # Windows: on another drive
        return str(path)


def type_next(script: str, *arguments: str) -> str:
    """A command line that works from here."""
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return "    " + join([sys.orig_argv[0], shown(HERE / script), *arguments])


def introduce(run: Run) -> str:
    """The first line: what is trained on what, and what knowing nothing costs."""
    size, parameters = run.tokenizer.vocab_size, sum(p.numel() for p in run.model.parameters())
    return (
        f"{run.corpus.name}: {len(run.train):,} tokens, vocabulary {size} | "
        f"{run.name}: {parameters:,} parameters, "
        f"{estimate_memory(run) / 1e6:,.0f} MB to train, {run.device}, {run.args.dtype}"
        f"{f', {run.world} processes' if run.world > 1 else ''} | "
        f"guessing costs ln V = {math.log(size):.3f} nats/token, "
        f"a {NGRAM_ORDER}-gram {run.baseline:.3f}"
    )


def main() -> None:
    keep_memory()
    run = prepare(parse_args())
    counted = run.train[: NGRAM_TOKENS if run.corpus.train else NGRAM_TOKENS // 10]
    counted = counted.astype(np.int64)
    ngram = NGram(counted, NGRAM_ORDER, run.tokenizer.vocab_size)
    run.baseline = float(-ngram.log_probs(run.valid.numpy())[1:].mean())
    print(introduce(run))
    if run.args.steps and run.step >= run.args.steps:
        raise UserError(f"this run is over ({run.step} steps): for more, give a longer --steps")
    run.out.mkdir(parents=True, exist_ok=True)
    elsewhere = not run.args.resume or not run.out.samefile(generate.find(run.args.resume).parent)
    if elsewhere and not run.rank:
        set_aside(run.out)
    if parallel.everyones(elsewhere or not (run.out / "best.pt").exists())[0]:  # one disk decides
        run.best = math.inf  # so that the next evaluation writes one
    stopped = train(run)
    if stopped:
        print(f"stopped after step {run.step} of {run.args.steps}; to go on:")
        print(type_next("train.py", "--resume", shown(run.out / "last.pt")))
        parallel.end()
        sys.exit(128 + stopped)
    best = ["--checkpoint", shown(run.out / "best.pt")]
    if run.corpus.floor is not None:  # tales
        measure_recall(run, ngram)
    parallel.end()
    print(f"{verdict(run)}\nPictures and samples are in {shown(run.out)}. Let it write:")
    print(type_next("generate.py", *best))


if __name__ == "__main__":
    command(main)
