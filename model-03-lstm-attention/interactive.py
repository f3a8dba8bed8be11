"""Write together with a trained model: you begin a line, it goes on.

you > HAMLET:
Now is the winter ...                  <- streamed as it is drawn
you > /temperature 0.5

python interactive.py --checkpoint checkpoints/best.pt
python interactive.py --length 200 --top-k 40
"""

from __future__ import annotations

import contextlib
import sys

import torch
from generate import (
    Arguments,
    add_device_flag,
    add_sampling_flags,
    command,
    find,
    generate,
    load_checkpoint,
    opening,
    pick_device,
    show,
)

from shared import UserError

with contextlib.suppress(ImportError):  # Windows has none
    import readline  # noqa: F401  arrow keys and earlier lines, for input()

HELP = """\
  text               the model goes on from it; an empty line: from the start of a line
  /temperature 0.8   0 is greedy, higher is bolder
  /top-k 40          draw from the 40 likeliest tokens only; 0: from all
  /top-p 0.95        draw from the likeliest up to probability 0.95
  /length 300        tokens to write
  /seed 7            same seed, same text; /seed alone: another each time
  /reset             everything as it was at the start
  /quit              or Ctrl-D; Ctrl-C stops the writing only"""


def set_option(parser: Arguments, options: dict, line: str) -> str:
    """Carry out "/name value" on the sampling options; returns what to say to it."""
    name, _, value = line[1:].partition(" ")
    key = name.replace("-", "_")
    if name == "seed" and not value.strip():
        options["seed"] = None
    elif key not in options:
        return f"error: /{name}: no such command: /help lists them"
    else:
        parser.problems.clear()
        parsed, _ = parser.parse_known_args([f"--{name}={value.strip()}"])
        if parser.problems:
            return "error: " + parser.problems[0].replace("--", "/", 1)
        options[key] = getattr(parsed, key)
    return "  " + "  ".join(f"{k.replace('_', '-')} {v}" for k, v in options.items())


def reply(model, tokenizer, line: str, options: dict) -> None:
    """Continue the line, printing each token as it is drawn; Ctrl-C ends it early."""
    seed = torch.seed() % 2**31 if options["seed"] is None else options["seed"]
    try:
        start = tokenizer.encode(line) or opening(tokenizer)
        print(line, end="", flush=True)
        how = {**options, "seed": seed, "never": tokenizer.unk_id}
        tokens = generate(model, start, **how)
        show(tokenizer, start, tokens)
    except UserError as error:
        print(f"error: {error}", end="")
    except KeyboardInterrupt:
        print(" ...", end="")
    print("\n")


def main() -> None:
    parser = Arguments("Write together with a trained model.", "interactive.py")
    parser.text("--checkpoint", "what to write with", "checkpoints/best.pt")
    add_sampling_flags(parser, length=300)
    add_device_flag(parser)
    args = parser.parse()
    model, tokenizer, checkpoint = load_checkpoint(find(args.checkpoint), pick_device(args.device))
    names = ("length", "temperature", "top_k", "top_p", "seed")
    first = {key: getattr(args, key) for key in names}
    options = dict(first)
    name, steps = checkpoint["dataset"]["name"], checkpoint["progress"]["step"]
    trained = f"trained on {name} for {steps} steps"
    print(f"{checkpoint['architecture']}, {trained}. Begin a line, it goes on. /help, /quit")
    while True:
        try:
            line = input("you > " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip() == "/quit":
            return
        if line.strip() == "/help":
            print(HELP)
        elif line.strip() == "/reset":
            options = dict(first)
            print("  as at the start")
        elif line.startswith("/"):
            print(set_option(parser, options, line.strip()))
        else:
            reply(model, tokenizer, line, options)


if __name__ == "__main__":
    command(main)
