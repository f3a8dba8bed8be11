"""Supervised fine-tuning: a model that goes on with texts becomes one that does as it is told.

    instruction --> template --> prompt, response, END --> loss of the response --> step
                                                      ... as often as there are examples
    before and after: held-out instructions --> replies --> does the story have what was asked?

The first of the three steps of InstructGPT (Ouyang et al. 2022): the model is trained as before,
on examples of instructions that were obeyed. What is new is in instruction_data.py: a template
around the instruction, an end mark behind the response, and a mask that keeps the loss to the
response. --lora trains adapters only (lora.py); --qlora the same over weights in 4 bits.

Start from a model that train.py made; README.md has the commands for one that fits `tales`.

    python finetune_instruct.py --checkpoint checkpoints/base/best.pt
    python finetune_instruct.py --checkpoint checkpoints/base/best.pt --lora --rank 16
    python interactive.py --checkpoint checkpoints/instruct/best.pt

Shapes: B batch, T time, V vocabulary
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import generate
import instruction_data as instructions
import lora
import numpy as np
import torch
import train
import tuning
from generate import FORMAT, HERE, VERSION, Arguments, Model, command
from instruction_data import TEMPLATES, Dataset, Example, Row, end_of
from quantize import quantize
from torch import Tensor
from tqdm import tqdm
from train import shown, type_next, write_checkpoint
from tuning import ADAPTERS

from shared import UserError
from shared.utils.tokenizers import Tokenizer

PRESETS = {
    "tiny": dict(examples=64, test=4, epochs=1, batch_size=8, lr=0.01),
    "small": dict(examples=20_000, test=200, epochs=1, batch_size=8, lr=0.01),
}
DEFAULTS = ADAPTERS | dict(
    dataset="tales", preset="small", template="alpaca", mask_instructions=True, lora=False,
    qlora=False, targets=",".join(lora.TARGETS), optimizer="muon", weight_decay=0.0, seed=1337,
    dtype="auto",
)  # fmt: skip
LORA_LR = 0.003  # adapters start at zero and are few: they take larger steps
SETTINGS = (
    "dataset", "preset", "checkpoint", "template", "mask_instructions", "lora", "qlora", *ADAPTERS,
    "targets", "examples", "test", "epochs", "batch_size", "optimizer", "lr", "weight_decay",
    "seed", "dtype",
)  # fmt: skip
COLUMNS = ("step", "seconds", "train_loss", "val_loss", "learning_rate")


@dataclass
class Run:
    """A training run: what is fixed, then all that changes and goes into a checkpoint."""

    args: argparse.Namespace
    data: Dataset
    rows: dict[str, list[Row]]  # of the parts train and valid
    tokenizer: Tokenizer
    model: Model
    optimizer: torch.optim.Optimizer
    device: str
    dtype: torch.dtype
    out: Path

    step: int = 0
    best: float = math.inf  # lowest validation loss, nats per token of the responses
    seconds: float = 0.0
    losses: tuple[float, int] = (0.0, 0)  # sum and number since the last evaluation
    history: list[list] = field(default_factory=list)  # the lines of metrics.csv
    before: str = ""  # how it obeyed before the first step
    epoch: tuple[int, list] = (-1, [])  # its number and batches


PROGRESS = ("step", "best", "seconds", "losses", "history", "before")


def parse_args() -> argparse.Namespace:
    usual = {key: DEFAULTS[key] for key in ("seed", "targets", "optimizer", *ADAPTERS)} | PRESETS[
        "small"
    ]
    parser = Arguments("Teach a model to obey instructions.", "finetune_instruct.py", usual)
    parser.section("data and start")
    parser.text("--dataset", "tales, instruct or a JSON file (tales)")
    parser.choice("--preset", "sets all that is not given (small)", list(PRESETS))
    parser.text("--checkpoint", "a model of train.py to start from (checkpoints/best.pt)")
    parser.choice("--template", "what stands around an instruction (alpaca)", list(TEMPLATES))
    help = "keep the loss to the responses (yes)"
    parser.text("--mask-instructions", help, action=argparse.BooleanOptionalAction)
    parser.number("--examples", int, "to train on, at most", 1, 1e7)
    parser.number("--test", int, "held-out instructions for the report, at most", 1, 1e6)
    tuning.add_adapter_flags(parser)
    parser.text("--qlora", "the same, and all else in 4 bits", action="store_true")
    parser.section("training (in brackets: preset small)")
    tuning.add_training_flags(parser, LORA_LR)
    parser.section("output")
    parser.text("--out", "folder of the results (checkpoints/instruct/ in this model's folder)")
    parser.text("--resume", "go on from this checkpoint", metavar="CHECKPOINT")
    tuning.add_machine_flags(parser)
    return parser.parse()


def settle_start(
    args: argparse.Namespace, stored: dict | None, names: tuple[str, ...], defaults: dict,
    presets: dict, lora_lr: float,
) -> None:  # fmt: skip
    """tuning.settle for a run that starts from a checkpoint and may train adapters."""
    if args.checkpoint:
        args.checkpoint = str(generate.find(args.checkpoint).resolve())
    more = {"lr": lora_lr, "optimizer": "adamw"} if args.lora else {}
    tuning.settle(args, stored, names, {**defaults, **presets[args.preset or "small"], **more})


def prepare(args: argparse.Namespace) -> Run:
    """Data, model and optimizer: new ones, or those of the checkpoint to resume."""
    device = generate.pick_device(args.device)
    saved = tuning.resumed(args, device, "instruct", "finetune_instruct.py")
    out = Path(args.out or HERE / "checkpoints" / "instruct")
    args.checkpoint = args.checkpoint or (None if saved else "checkpoints/best.pt")
    args.lora = args.lora or args.qlora
    settle_start(args, saved and saved["instruct"], SETTINGS, DEFAULTS, PRESETS, LORA_LR)
    torch.manual_seed(args.seed)
    model, tokenizer = starting_model(args, device, args.resume)
    instructions.check_vocabulary(tokenizer, args.template)
    sizes = (args.examples, max(8, args.examples // 40), args.test)
    data = instructions.load(args.dataset, sizes, args.seed)
    check_unchanged(saved, data)
    rows = {"train": encode_all(data.train, tokenizer, args.template, model.context),
            "valid": encode_all(data.valid, tokenizer, args.template, model.context)}  # fmt: skip
    dtype = generate.pick_dtype(args.dtype, device)
    args.dtype = str(dtype).removeprefix("torch.")
    args.steps = args.epochs * -(-len(rows["train"]) // args.batch_size)
    optimizer = train.new_optimizer(model, args)
    run = Run(args, data, rows, tokenizer, model.train(), optimizer, device, dtype, out)
    if saved:
        tuning.restore(run, saved)
    return run


def template_of(path: Path, device: str) -> str:
    """The template that a checkpoint was taught with. Raises UserError if with none."""
    template = generate.read_checkpoint(path, device).get("template")
    if template not in TEMPLATES:
        raise UserError(f"{path} knows no template: make a model with finetune_instruct.py first")
    return template


def base_of(path: Path, device: str) -> Model:
    """The model that a tuned one was made of in the end, as far as the files are still there."""
    while True:
        model, _, saved = generate.load_checkpoint(path, device)
        before = [saved[key]["checkpoint"] for key in ("instruct", "dpo", "grpo") if key in saved]
        if not before or not Path(before[0]).exists():
            return model
        path = Path(before[0])


def check_unchanged(saved: dict | None, data: Dataset) -> None:
    """Raises UserError if the data are no longer those of the run that is resumed."""
    if saved and saved["dataset"] != {"name": data.name, "sha256": data.sha256}:
        raise UserError(f"{data.name} has changed since this run began: start a new one")


def starting_model(
    args: argparse.Namespace, device: str, resumed: Path | None
) -> tuple[Model, Tokenizer]:
    """The model to train: that of --checkpoint, perhaps with adapters, or as it was saved."""
    base = Path(args.checkpoint) if args.lora or not resumed else resumed
    model, tokenizer, _ = generate.load_checkpoint(base, device)
    if getattr(args, "qlora", False):
        quantize(model, "nf4")
    if args.lora and resumed:
        lora.load_adapters(resumed, model, base)
    elif args.lora:
        lora.inject(model, **tuning.adapter_settings(args))
    return model, tokenizer


def encode_all(
    examples: list[Example], tokenizer: Tokenizer, template: str, context: int
) -> list[Row]:
    """Examples in tokens, without those whose prompt alone fills the context.

    Raises UserError if none is left.
    """
    prompts = [instructions.prompt_of(template, *example[:2]) for example in examples]
    rows = [instructions.encode(tokenizer, prompt, example.response, context)
            for prompt, example in zip(prompts, examples, strict=True)]  # fmt: skip
    if not any(rows):
        raise UserError(
            f"no prompt leaves room for a response in a context of {context} tokens: use a model "
            "with a longer one, or --template short"
        )
    return [row for row in rows if row]


# -------------------------------------------------------------------------------- the training


def places_of(run: Run, lengths: Callable[[], list[int]]) -> np.ndarray:
    """Which rows the step that comes reads, (B,): they depend on seed and step alone."""
    epoch, number = divmod(run.step, run.args.steps // run.args.epochs)
    if run.epoch[0] != epoch:
        dice = np.random.default_rng([run.args.seed, epoch])
        run.epoch = epoch, tuning.batches(lengths(), run.args.batch_size, dice)
    return run.epoch[1][number]


def get_batch(run: Run) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of the step that comes."""
    rows, mask = run.rows["train"], run.args.mask_instructions
    places = places_of(run, lambda: [len(row.tokens) for row in rows])
    return instructions.collate([rows[i] for i in places], mask, run.device, run.model.context)


def train_step(run: Run) -> float:
    """One update of the weights. Returns the loss before it, in nats per token that counts."""
    # (1) learning rate
    for group in run.optimizer.param_groups:
        group["lr"] = tuning.learning_rate(run.step, run.args)

    # (2) batch
    inputs, targets = get_batch(run)

    # (3) forward, loss
    with train.autocast(run):
        logits, _ = run.model(inputs)
    loss = train.loss_of(logits, targets)

    # (4) backward, clip
    run.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0).item()
    tuning.check_finite(run, loss.item(), norm)

    # (5) step
    run.optimizer.step()
    run.step += 1
    return loss.item()


@torch.inference_mode()
def response_loss(run: Run) -> float:
    """Nats per token of the validation responses, whether --mask-instructions or not."""
    run.model.eval()
    nats, count, size = 0.0, 0, run.args.batch_size
    rows = sorted(run.rows["valid"], key=lambda row: len(row.tokens))
    for at in range(0, len(rows), size):
        inputs, targets = instructions.collate(
            rows[at : at + size], True, run.device, run.model.context
        )
        with train.autocast(run):
            logits, _ = run.model(inputs)
        nats += train.loss_of(logits, targets, "sum").item()
        count += int((targets != instructions.IGNORED).sum())
    run.model.train()
    return nats / max(1, count)


def evaluate(run: Run) -> None:
    """Measure the validation loss, keep the best weights."""
    loss = response_loss(run)
    mean = run.losses[0] / run.losses[1] if run.losses[1] else None
    lr = tuning.learning_rate(max(0, run.step - 1), run.args)
    run.history.append([run.step, round(run.seconds, 2), mean, loss, lr])
    run.losses = (0.0, 0)
    trained = f"train {mean:.4f}  " if mean else ""
    tqdm.write(f"step {run.step:<5} {trained}valid {loss:.4f} nats/token of responses  lr {lr:.2g}")
    if loss < run.best:
        run.best = loss
        save(run, "best.pt")
    write_results(run)


# --------------------------------------------------------------------------------- the replies


@torch.inference_mode()
def reply_to(
    model: Model, tokenizer: Tokenizer, prompts: list[list[int]], length: int,
    temperature: float = 0.8, seed: int = 0, most: int = 64,
) -> list[list[int]]:  # fmt: skip
    """A reply to each prompt, in tokens, with the end mark if it came within `length` tokens.

    Prompts of equal length are read side by side, at most so many: no padding in front.
    """
    device, end = next(model.parameters()).device, end_of(tokenizer)
    dice, replies = torch.Generator().manual_seed(seed), [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    groups: list[list[int]] = []
    for i in order:
        if not groups or len(groups[-1]) == most or (
            len(prompts[groups[-1][0]]) != len(prompts[i])
        ):  # fmt: skip
            groups.append([])
        groups[-1].append(i)
    for group in tqdm(groups, "replies", leave=False, disable=None):
        logits, state = model(torch.tensor([prompts[i] for i in group], device=device))
        going = set(group)
        for _ in range(min(length, model.context - len(prompts[group[0]]))):
            scores = logits[:, -1].float()
            if tokenizer.unk_id is not None:
                scores[:, tokenizer.unk_id] = -torch.inf
            tokens = draw(scores, temperature, dice)
            for i, token in zip(group, tokens.flatten().tolist(), strict=True):
                if i in going:
                    replies[i].append(token)
                    going -= {i} if replies[i][-len(end) :] == end else set()
            if not going:
                break
            logits, state = model(tokens.to(device), state)
    return replies


def draw(scores: Tensor, temperature: float, dice: torch.Generator) -> Tensor:
    """One token of each row: scores (B, V) -> (B, 1); at temperature 0 the likeliest.

    generate.sample without its sieves: so nothing need be sorted, which would be half of the time.
    """
    if temperature == 0:
        return scores.argmax(dim=-1, keepdim=True)
    ends = (scores / temperature).softmax(dim=-1).cumsum(dim=-1).cpu()  # of each token's share
    places = torch.rand(len(ends), 1, generator=dice) * ends[:, -1:]
    return torch.searchsorted(ends, places, right=True).clamp(max=ends.size(1) - 1)


def text_of(tokenizer: Tokenizer, reply: list[int]) -> tuple[str, bool]:
    """The text of a reply, and whether it came to its end mark."""
    end = end_of(tokenizer)
    ended = reply[-len(end) :] == end
    return tokenizer.decode(reply[: -len(end)] if ended else reply).strip("\n"), ended


@dataclass
class Obedience:
    """How a model does as it is told, of held-out instructions."""

    asked: int
    obeyed: float  # share of replies with all that was asked, that come to their end
    read: float  # share that the grammar of the tales can read: a story without any slip
    right: dict[str, float]  # share of each fact that is right, where it was asked
    bits: float  # of the replies, a character, under the base model
    true_bits: float  # of the true stories

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {share:.0%}" for name, share in self.right.items())
        return (
            f"obeyed {self.obeyed:.1%} of {self.asked} held-out instructions ({facts})\n"
            f"        the grammar can read {self.read:.1%} of the replies, the rest was looked at "
            f"for words; {self.bits:.3f} bits/char under the base model (true stories "
            f"{self.true_bits:.3f})"
        )


@torch.inference_mode()
def bits_per_char(base: Model, tokenizer: Tokenizer, texts: list[str], size: int = 32) -> float:
    """What a base model thinks of stories: bits a character, all of them together.

    base in evaluation mode: what is longer than its context it reads as it writes, sliding on.
    """
    start = end_of(tokenizer) + tokenizer.encode("\n")
    rows = [Row(start + tokenizer.encode(text), len(start)) for text in texts]
    rows.sort(key=lambda row: len(row.tokens))
    nats, device = 0.0, next(base.parameters()).device
    for at in range(0, len(rows), size):
        inputs, targets = instructions.collate(rows[at : at + size], True, device, base.context)
        nats += train.loss_of(base(inputs)[0], targets, "sum").item()
    return nats / math.log(2) / max(1, sum(map(len, texts)))


def obedience(
    model: Model, tokenizer: Tokenizer, template: str, examples: list[Example], base: Model,
    seed: int = 0, temperature: float = 0.8,
) -> Obedience:  # fmt: skip
    """Ask all these, and check the replies. base: the model whose stories are to be kept."""
    training = model.training
    prompts = [tokenizer.encode(instructions.prompt_of(template, *each[:2])) for each in examples]
    replies = reply_to(model.eval(), tokenizer, prompts, model.context, temperature, seed)
    model.train(training)
    texts, ended = zip(*(text_of(tokenizer, reply) for reply in replies), strict=True)
    checks = [instructions.check(text, example.asked)
              for text, example in zip(texts, examples, strict=True)]  # fmt: skip
    right = {}
    for name in ("plot", "kind", "hero", "thing", "friend"):
        if found := [each.right[name] for each in checks if name in each.right]:
            right[name] = float(np.mean(found))
    obeyed = [each.obeyed and whole for each, whole in zip(checks, ended, strict=True)]
    read = [each.read for each in checks]
    bits = [bits_per_char(base, tokenizer, each)
            for each in (list(texts), [example.response for example in examples])]  # fmt: skip
    return Obedience(len(checks), float(np.mean(obeyed)), float(np.mean(read)), right, *bits)


# --------------------------------------------------------------------------------- the results


def save(
    run: Run, name: str, key: str = "instruct", settings: tuple[str, ...] = SETTINGS, **more
) -> None:
    """best.pt is for use, and last.pt holds also what it takes to go on exactly from here.

    With --lora the file holds the adapters only; otherwise it is a checkpoint of a language model,
    read by generate.py and interactive.py, that knows its template.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    more |= {
        key: {name: getattr(run.args, name) for name in settings},
        "template": run.args.template,
        "dataset": {"name": run.data.name, "sha256": run.data.sha256},
        "progress": {name: getattr(run, name) for name in PROGRESS},
    }
    if name == "last.pt":
        more |= {"optimizer": run.optimizer.state_dict(), "rng": tuning.rng_state(run.device)}
    write_tuned(run, run.out / name, more)


def write_tuned(run: Run, path: Path, more: dict) -> None:
    """A checkpoint of the model, or, if it has adapters, of these."""
    if lora.layers_of(run.model):
        base, settings = Path(run.args.checkpoint), tuning.adapter_settings(run.args)
        lora.save_adapters(path, run.model, base, settings, **more)
        return
    kind = {"format": FORMAT, "version": VERSION, "architecture": generate.kind_of(run.model)}
    own = {"config": run.model.config, "tokenizer": run.tokenizer.state_dict()}
    write_checkpoint(path, kind | own | {"model": run.model.state_dict()} | more)


def write_results(run: Run) -> None:
    """metrics.csv and loss.png, as far as the run has come."""
    tuning.write_table(run.out / "metrics.csv", COLUMNS, run.history)
    lines = {"training": 2, "validation, responses": 3}
    title = f"Instructions: {run.data.name}"
    tuning.draw_losses(run, lines, title, "loss, nats per token")


def introduce(run: Run) -> str:
    every = sum(p.numel() for p in run.model.parameters())
    learn = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    lost = len(run.data.train) - len(run.rows["train"])
    cut = sum(len(row.tokens) > run.model.context for row in run.rows["train"])
    return (
        f"{run.data.name}: {len(run.rows['train']):,} instructions to train on ({cut} cut off at "
        f"the context, {lost} too long), {len(run.data.test):,} for the test | "
        f"{generate.kind_of(run.model)}: {learn:,} of {every:,} parameters learn "
        f"({learn / every:.1%}), {run.device}, {run.args.dtype}"
    )


def judge(run: Run, model: Model, base: Model) -> str:
    """Obedience, where it can be checked; of other data a reply to look at."""
    test = run.data.test
    if test[0].asked:
        return str(obedience(model, run.tokenizer, run.args.template, test, base, run.args.seed))
    example = test[0]
    prompt = run.tokenizer.encode(instructions.prompt_of(run.args.template, *example[:2]))
    reply = reply_to(model.eval(), run.tokenizer, [prompt], 60, 0.0)[0]
    return f"{example.instruction!r} -> {text_of(run.tokenizer, reply)[0]!r}"


def say_how_to_go_on(run: Run) -> None:
    """The commands to type next."""
    print(f"{run.seconds:.0f} seconds of training; results are in {shown(run.out)}.")
    path = run.out / "best.pt"
    if run.args.lora:
        path = run.out / "merged.pt"
        print("Merge the adapters into a model:")
        files = [shown(Path(run.args.checkpoint)), shown(run.out / "best.pt")]
        print(type_next("lora.py", "--merge", *files, "--out", shown(path)))
    print("Talk to it:")
    print(type_next("interactive.py", "--checkpoint", shown(path)))


def main() -> None:
    args = parse_args()
    train.keep_memory()
    run = prepare(args)
    print(introduce(run))
    run.out.mkdir(parents=True, exist_ok=True)
    base = base_of(Path(args.checkpoint), run.device)
    if not args.resume:
        train.set_aside(run.out)
        run.before = judge(run, base, base)
        print(f"before: {run.before}")
    if stopped := tuning.train_all(run, train_step, evaluate, save):
        tuning.stop(run, "finetune_instruct.py", stopped)
    best, _ = starting_model(args, run.device, run.out / "best.pt")
    print(f"before: {run.before}\nafter:  {judge(run, best.eval(), base)}")
    print(f"validation {run.best:.4f} nats per token of the responses")
    say_how_to_go_on(run)


if __name__ == "__main__":
    command(main)
