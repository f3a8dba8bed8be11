"""What all scripts that tune a model share: flags, batches, the loop, going on, tables, pictures.

    finetune_spam.py  finetune_instruct.py  finetune_dpo.py  finetune_grpo.py
             their own: data, model, train_step, evaluate, save
                                  |
                               tuning.py
                      settle, train_all, restore, draw_losses

The loop is that of train.py with what a step does, and what is measured, handed in. A script's Run
has args, model, optimizer, device, dtype and out, and what changes: step, best, seconds, losses,
history.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import generate
import numpy as np
import torch
import train
from generate import Arguments
from torch import Tensor
from tqdm import tqdm
from train import shown, type_next

from shared import UserError
from shared.utils import visualize

ADAPTERS = dict(rank=8, alpha=16.0, lora_dropout=0.0)


# ------------------------------------------------------------------------------- the arguments


def add_adapter_flags(parser: Arguments) -> None:
    parser.section("adapters")
    parser.number("--rank", int, "of the adapters", 1, 1e5)
    parser.number("--alpha", float, "their size: they count alpha / rank times", 1e-6, 1e6)
    parser.number("--lora-dropout", float, "before the adapters", 0, 0.95)
    parser.text("--targets", "layers that get adapters")
    parser.text("--lora", "train adapters only (lora.py)", action="store_true")


def add_training_flags(parser: Arguments, lora_lr: float) -> None:
    parser.number("--epochs", int, "length: times that each example is read", 1, 1e6)
    parser.number("--batch-size", int, "examples read side by side", 1, 1e6)
    help = "muon is for the matrices, beside adamw; with adapters adamw"
    parser.choice("--optimizer", help, ["adamw", "muon"])
    parser.number("--lr", float, f"highest learning rate; with adapters {lora_lr:g}", 0, 10)
    parser.number("--weight-decay", float, "pull of the matrices towards 0 (0)", 0, 100)
    parser.number("--seed", int, "of examples, batches and replies", 0, 2**31)


def add_machine_flags(parser: Arguments) -> None:
    generate.add_device_flag(parser)
    types = ["auto", "float32", "bfloat16"]
    parser.choice("--dtype", "of matrix products (auto: bfloat16 where fast)", types)


def settle(
    args: argparse.Namespace, stored: dict | None, names: tuple[str, ...], defaults: dict
) -> None:
    """Fill in the flags not given: from the run that is resumed, which stays as it was begun, or
    from the defaults. Raises UserError."""
    for name in names:
        given = getattr(args, name)
        if stored and given not in (None, stored.get(name)):
            raise UserError(
                f"--{name.replace('_', '-')} {given}: this run has {stored.get(name)}: leave the "
                "flag out, or start a new run without --resume"
            )
        if given is None:
            setattr(args, name, {**defaults, **(stored or {})}[name])


def resumed(args: argparse.Namespace, device: str, key: str, script: str) -> dict | None:
    """What the checkpoint to resume holds. Raises UserError if it is not of this script.

    A run goes on where it was: its best.pt may be from before it was stopped.
    """
    if not args.resume:
        return None
    path = generate.find(args.resume)
    saved = generate.read_checkpoint(path, device)
    if key not in saved or "rng" not in saved:
        raise UserError(f"{path} is no last.pt of {script}: give one to resume")
    if args.out and Path(args.out).resolve() != path.parent.resolve():
        raise UserError(f"--out {args.out}: a run goes on in its own folder: leave it out")
    args.resume, args.out = path, path.parent
    return saved


def adapter_settings(args: argparse.Namespace) -> dict:
    """The arguments of lora.inject."""
    targets = tuple(args.targets.split(","))
    return dict(rank=args.rank, alpha=args.alpha, dropout=args.lora_dropout, targets=targets)


# -------------------------------------------------------------------------------- the training


def batches(lengths: list[int], size: int, dice: np.random.Generator) -> list[np.ndarray]:
    """All places once, in random batches of about equal lengths, so that little is padding."""
    order = dice.permutation(len(lengths))
    found = []
    for at in range(0, len(order), 20 * size):
        some = sorted(order[at : at + 20 * size], key=lambda i: lengths[i])
        found += [np.array(some[i : i + size]) for i in range(0, len(some), size)]
    return [found[i] for i in dice.permutation(len(found))]


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """That of train.py; short runs warm up for a tenth of their steps."""
    return train.learning_rate(step, args, warmup=max(1, min(20, args.steps // 10)))


def check_finite(run, loss: float, norm: float) -> None:
    """Raises UserError: a step must not be made of what is no number."""
    if not math.isfinite(loss + norm):
        raise UserError(
            f"loss {loss}, gradient {norm} at step {run.step + 1}: start again with a lower "
            f"--lr, such as {run.args.lr / 3:.1g}"
        )


def train_all(
    run, train_step: Callable, evaluate: Callable, save: Callable, evaluations: int = 5,
    first: bool = True,
) -> int:  # fmt: skip
    """Train to the end, or to a signal. Returns the number of that signal, or 0.

    train_step(run) is one update and returns its loss; evaluate(run) is called so many times, and
    once before the first step, unless that is not wanted; save(run, name) writes a checkpoint.
    """
    args, saved = run.args, time.perf_counter()
    every = -(-args.steps // evaluations)
    bar = tqdm(initial=run.step, total=args.steps, unit="step", disable=None)
    with train.Stop() as stop, bar:
        if first and run.step == 0:
            evaluate(run)
        while run.step < args.steps:
            began = time.perf_counter()
            loss = train_step(run)  # (1) to (5)

            # (6) log
            run.seconds += time.perf_counter() - began
            run.losses = (run.losses[0] + loss, run.losses[1] + 1)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()

            # (7) evaluate, save
            if evaluating := run.step % every == 0 or run.step == args.steps:
                evaluate(run)
            if evaluating or stop.signal or time.perf_counter() - saved > train.SAVE_SECONDS:
                save(run, "last.pt")
                saved = time.perf_counter()
            if stop.signal and run.step < args.steps:
                return stop.signal
    return 0


def stop(run, script: str, signal: int) -> None:
    """Say how to go on with a run that a signal has stopped, and end as that signal asks."""
    print(f"stopped after step {run.step} of {run.args.steps}; to go on:")
    print(type_next(script, "--resume", shown(run.out / "last.pt")))
    sys.exit(128 + signal)


# --------------------------------------------------------------------------------- the results


def rng_state(device: str) -> dict[str, Tensor]:
    """All dice."""
    found = {"cpu": torch.get_rng_state()}
    if device != "cpu":
        found[device] = getattr(torch, device).get_rng_state()
    return found


def restore(run, saved: dict) -> None:
    """Go on exactly where `save` was called."""
    run.optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["progress"].items():
        setattr(run, name, value)
    for device, state in saved["rng"].items():
        if device in (run.device, "cpu"):
            (torch if device == "cpu" else getattr(torch, device)).set_rng_state(state.cpu())


def write_table(path: Path, columns: tuple[str, ...], history: list[list]) -> None:
    """metrics.csv"""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([columns, *history])
    with train.replacing(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8", newline="\n")


def draw_losses(
    run, lines: dict[str, int], title: str, unit: str = "", right: str = "", scale: str = "linear"
) -> None:
    """loss.png: these columns of the history, by name, over the steps.

    right: the name of a line that has another unit, and an axis of its own on the right.
    """
    figure, axes = visualize.new_figure()
    steps = [row[0] for row in run.history]
    drawn = []
    for (name, column), colour in zip(lines.items(), visualize.COLOURS, strict=False):
        values = [math.nan if row[column] is None else row[column] for row in run.history]
        where = axes.twinx() if name == right else axes
        drawn += where.plot(steps, values, "o-", ms=3, color=colour, label=name)
    if right:  # its line is drawn over all that is in the picture
        figure.legend(handles=drawn, frameon=False, loc="outside lower center", ncols=len(drawn))
    else:
        axes.legend(frameon=False)
    axes.set(title=title, xlabel="step", ylabel=unit, yscale=scale)
    with train.replacing(run.out / "loss.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
