"""Direct preference optimization: learn from two replies which of them is better.

    instruction + chosen    --> policy    log p    \\
                            --> reference log p     >  how much likelier than before: reward
    instruction + rejected  --> policy, reference  /   loss: -ln sigmoid(reward - reward)

The third step of InstructGPT, without a reward model and without sampling (Rafailov et al. 2023).
The model that maximizes a reward, less beta times its distance (KL) from a reference, has

    reward(reply) = beta * (ln p_policy(reply) - ln p_reference(reply)) + what is the same for both

so a preference between two replies is a loss on the policy itself. The reference is the model as
it was: a frozen copy, or, with --lora, the same model with its adapters switched off. At step 0
both are equal, all rewards are 0 and the loss is ln 2.

On `tales` the rejected story breaks one of the facts that were asked for.

Shapes: B batch (of pairs), T time, V vocabulary

    python finetune_dpo.py --checkpoint checkpoints/instruct/best.pt
    python finetune_dpo.py --checkpoint checkpoints/instruct/best.pt --lora --beta 0.3
    python finetune_dpo.py --dataset instruct --checkpoint my-tuned-model.pt
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import finetune_instruct as sft
import generate
import instruction_data as instructions
import lora
import torch
import train
import tuning
from finetune_instruct import judge
from generate import HERE, Arguments, Model, command
from instruction_data import IGNORED, Pair, Row
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from tuning import ADAPTERS

from shared import UserError
from shared.utils.tokenizers import Tokenizer

PRESETS = {
    "tiny": dict(examples=16, test=4, epochs=1, batch_size=4, lr=0.0001, beta=0.1),
    "small": dict(examples=800, test=200, epochs=1, batch_size=8, lr=0.0001, beta=0.1),
}
DEFAULTS = ADAPTERS | dict(
    dataset="tales", preset="small", lora=False, targets=",".join(lora.TARGETS), optimizer="adamw",
    weight_decay=0.0, seed=1337, dtype="auto",
)  # fmt: skip
LORA_LR = 0.001
SETTINGS = (
    "dataset", "preset", "checkpoint", "beta", "lora", *ADAPTERS, "targets", "examples", "test",
    "epochs", "batch_size", "optimizer", "lr", "weight_decay", "seed", "dtype",
)  # fmt: skip
COLUMNS = (
    "step", "seconds", "train_loss", "val_loss", "val_margin", "val_accuracy", "learning_rate",
)  # fmt: skip


@dataclass
class Run(sft.Run):
    """A run of finetune_instruct.py with a reference; rows are pairs (chosen, rejected)."""

    reference: Model | None = None  # None: the model with its adapters switched off


def parse_args() -> argparse.Namespace:
    usual = {key: DEFAULTS[key] for key in ("seed", "targets", "optimizer", *ADAPTERS)} | PRESETS[
        "small"
    ]
    parser = Arguments("Learn from preferences.", "finetune_dpo.py", usual)
    parser.section("data and start")
    parser.text("--dataset", "tales, instruct or a JSON file (tales)")
    parser.choice("--preset", "sets all that is not given (small)", list(PRESETS))
    help = "a model of finetune_instruct.py (checkpoints/instruct/best.pt)"
    parser.text("--checkpoint", help)
    parser.number("--examples", int, "pairs to train on, at most", 1, 1e7)
    parser.number("--test", int, "held-out instructions for the report, at most", 1, 1e6)
    tuning.add_adapter_flags(parser)
    parser.section("training (in brackets: preset small)")
    parser.number("--beta", float, "how dear it is to depart from the reference", 1e-6, 1e3)
    tuning.add_training_flags(parser, LORA_LR)
    parser.section("output")
    parser.text("--out", "folder of the results (checkpoints/dpo/ in this model's folder)")
    parser.text("--resume", "go on from this checkpoint", metavar="CHECKPOINT")
    tuning.add_machine_flags(parser)
    return parser.parse()


def prepare(args: argparse.Namespace) -> Run:
    """Pairs, policy, reference and optimizer: new ones, or those of the checkpoint to resume."""
    device = generate.pick_device(args.device)
    saved = tuning.resumed(args, device, "dpo", "finetune_dpo.py")
    out = Path(args.out or HERE / "checkpoints" / "dpo")
    args.checkpoint = args.checkpoint or (None if saved else "checkpoints/instruct/best.pt")
    sft.settle_start(args, saved and saved["dpo"], SETTINGS, DEFAULTS, PRESETS, LORA_LR)
    torch.manual_seed(args.seed)
    args.template = sft.template_of(Path(args.checkpoint), device)
    model, tokenizer = sft.starting_model(args, device, args.resume)
    without_dropout(model)
    reference = None
    if not args.lora:  # with adapters the model itself is the reference, without a second copy
        reference, _, _ = generate.load_checkpoint(Path(args.checkpoint), device)
        reference.requires_grad_(False)
    sizes = (args.examples, max(8, args.examples // 20), 1)
    data = instructions.load(args.dataset, sizes, args.seed, pairs=True)
    if args.dataset == "tales":  # instructions to be checked, the same as in finetune_instruct.py
        held_out = instructions.load("tales", (1, 1, args.test), sft.DEFAULTS["seed"])
        data = data._replace(test=held_out.test)
    sft.check_unchanged(saved, data)
    rows = {part: encode_pairs(getattr(data, part), tokenizer, args.template, model.context)
            for part in ("train", "valid")}  # fmt: skip
    dtype = generate.pick_dtype(args.dtype, device)
    args.dtype = str(dtype).removeprefix("torch.")
    args.steps = args.epochs * -(-len(rows["train"]) // args.batch_size)
    optimizer = train.new_optimizer(model, args)
    run = Run(args, data, rows, tokenizer, model.train(), optimizer, device, dtype, out)
    run.reference = reference
    if saved:
        tuning.restore(run, saved)
    return run


def without_dropout(model: Model) -> Model:
    """The same model. Two of them are compared, and dice would be a difference that nobody made."""
    model.config["dropout"] = 0.0
    return model


def encode_pairs(
    pairs: list[Pair], tokenizer: Tokenizer, template: str, context: int
) -> list[tuple[Row, Row]]:
    """Pairs in tokens, without those whose prompt alone fills the context.

    Raises UserError if none is left.
    """
    found = []
    for pair in pairs:
        prompt = instructions.prompt_of(template, pair.instruction, pair.input)
        rows = [instructions.encode(tokenizer, prompt, text, context)
                for text in (pair.chosen, pair.rejected)]  # fmt: skip
        found += [tuple(rows)] if all(rows) else []
    if not found:
        raise UserError(
            f"no prompt leaves room for a response in a context of {context} tokens: use a model "
            "with a longer one"
        )
    return found


# -------------------------------------------------------------------------------- the training


def log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """ln p of each response: logits (N, T, V), targets (N, T), prompts IGNORED -> (N,)"""
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return -nats.view_as(targets).sum(dim=1)


def rewards(run: Run, pairs: list[tuple[Row, Row]]) -> Tensor:
    """beta * (ln p_policy - ln p_reference): (2, B), of the chosen and of the rejected"""
    rows = [row for part in zip(*pairs, strict=True) for row in part]  # all chosen, all rejected
    inputs, targets = instructions.collate(rows, True, run.device, run.model.context)
    with train.autocast(run):
        policy = log_probs(run.model(inputs)[0], targets)
        with torch.no_grad():
            reference = log_probs(reference_logits(run, inputs), targets)
    return run.args.beta * (policy - reference).view(2, -1)


def reference_logits(run: Run, inputs: Tensor) -> Tensor:
    """What the model made of these before it was trained: (B, T) -> (B, T, V)"""
    if run.reference is not None:
        return run.reference(inputs)[0]
    with lora.disabled(run.model):
        return run.model(inputs)[0]


def dpo_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-ln sigmoid(difference of the rewards), eq. 7: (B,), (B,) -> (); ln 2 where both are 0"""
    return -F.logsigmoid(chosen - rejected).mean()


def train_step(run: Run) -> float:
    """One update of the weights. Returns the loss before it, in nats per pair."""
    # (1) learning rate
    for group in run.optimizer.param_groups:
        group["lr"] = tuning.learning_rate(run.step, run.args)

    # (2) batch
    rows = run.rows["train"]
    places = sft.places_of(run, lambda: [len(chosen.tokens) for chosen, _ in rows])

    # (3) forward, loss
    loss = dpo_loss(*rewards(run, [rows[i] for i in places]))

    # (4) backward, clip
    run.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0).item()
    tuning.check_finite(run, loss.item(), norm)

    # (5) step
    run.optimizer.step()
    run.step += 1
    return loss.item()


@torch.no_grad()
def evaluate(run: Run) -> None:
    """Loss, reward margin and accuracy on the validation pairs; keep the best weights."""
    run.model.eval()
    size, rows = run.args.batch_size, run.rows["valid"]
    parts = [rewards(run, rows[at : at + size]) for at in range(0, len(rows), size)]
    run.model.train()
    chosen, rejected = torch.cat(parts, dim=1)
    margin = (chosen - rejected).mean().item()
    accuracy = (chosen > rejected).float().mean().item()
    loss = dpo_loss(chosen, rejected).item()
    mean = run.losses[0] / run.losses[1] if run.losses[1] else None
    lr = tuning.learning_rate(max(0, run.step - 1), run.args)
    run.history.append([run.step, round(run.seconds, 2), mean, loss, margin, accuracy, lr])
    run.losses = (0.0, 0)
    trained = f"train {mean:.4f}  " if mean else ""
    tqdm.write(
        f"step {run.step:<5} {trained}valid {loss:.4f}  margin {margin:.3f} (chosen "
        f"{chosen.mean():+.3f}, rejected {rejected.mean():+.3f})  accuracy {accuracy:.1%}"
    )
    if loss < run.best:
        run.best = loss
        save(run, "best.pt")
    write_results(run)


# --------------------------------------------------------------------------------- the results


def save(run: Run, name: str) -> None:
    sft.save(run, name, "dpo", SETTINGS)


def write_results(run: Run) -> None:
    """metrics.csv and loss.png, as far as the run has come."""
    tuning.write_table(run.out / "metrics.csv", COLUMNS, run.history)
    lines = {"accuracy": 5, "loss, nats per pair": 3, "reward margin": 4}
    tuning.draw_losses(run, lines, f"DPO: {run.data.name}, validation pairs")


def introduce(run: Run) -> str:
    learn = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    reference = "adapters off" if run.reference is None else "a frozen copy"
    return (
        f"{run.data.name}: {len(run.rows['train']):,} pairs to train on, "
        f"{len(run.rows['valid']):,} to validate | {generate.kind_of(run.model)}: {learn:,} "
        f"parameters learn, reference: {reference}, {run.device}, {run.args.dtype}"
    )


def main() -> None:
    args = parse_args()
    train.keep_memory()
    run = prepare(args)
    print(introduce(run))
    run.out.mkdir(parents=True, exist_ok=True)
    base = sft.base_of(Path(args.checkpoint), run.device)
    if not args.resume:
        train.set_aside(run.out)
        start, _, _ = generate.load_checkpoint(Path(args.checkpoint), run.device)
        run.before = judge(run, start, base)
        print(f"before: {run.before}")
    if stopped := tuning.train_all(run, train_step, evaluate, save):
        tuning.stop(run, "finetune_dpo.py", stopped)
    best, _ = sft.starting_model(args, run.device, run.out / "best.pt")
    print(f"before: {run.before}\nafter:  {judge(run, best.eval(), base)}")
    sft.say_how_to_go_on(run)


if __name__ == "__main__":
    command(main)
