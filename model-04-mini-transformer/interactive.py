"""Write together with a trained model: you begin a line, it goes on.

you > HAMLET:
Now is the winter ...                  <- streamed as it is drawn
you > KING RICHARD:                    <- goes on from all that stands there
you > /top                             <- what could come next

python interactive.py --checkpoint checkpoints/best.pt
python interactive.py --length 200 --top-k 40
"""

from __future__ import annotations

import contextlib
import sys

import torch
from blanks import MASK, check_causal
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
    remember,
    show,
)
from looking import look

from shared import UserError

with contextlib.suppress(ImportError):  # Windows has none
    import readline  # noqa: F401  arrow keys and earlier lines, for input()

HELP = """\
  text               the model goes on from it, and from all before; an empty line: no word of yours
  The [MASK] said    what could stand for [MASK]
  /top               what could come next
  /attention a.html  where it looked, as a page; a.png: as a picture
  /undo              take back your last line and what followed
  /temperature 0.8   0 is greedy, higher is bolder
  /top-k 40          draw from the 40 likeliest tokens only; 0: from all
  /top-p 0.95        draw from the likeliest up to probability 0.95
  /length 300        tokens to write
  /seed 7            same seed, same text; /seed alone: another each time
  /reset             everything as it was at the start, and nothing said
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


def reply(model, tokenizer, line: str, options: dict, turns: list[list[int]]) -> None:
    """Go on from all that was said and the line, which begins a new one if anything was said.

    Prints each token as it is drawn; Ctrl-C ends it early. turns: all that was said, in tokens,
    as it stood at the start and after each reply.
    """
    seed = torch.seed() % 2**31 if options["seed"] is None else options["seed"]
    said = turns[-1]
    try:
        check_causal(model)
        new = tokenizer.encode("\n" + line if len(turns) > 1 and line else line)
        turns.append(said + new or opening(tokenizer))
        print(line, end="", flush=True)
        start = list(turns[-1])
        how = {**options, "seed": seed, "never": tokenizer.unk_id}
        tokens = generate(model, start, **how)
        show(tokenizer, start, remember(tokens, turns[-1]))
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
    options, turns = dict(first), [[]]
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
            options, turns = dict(first), [[]]
            print("  as at the start")
        elif line.strip() == "/undo":
            turns = turns[:-1] or [[]]
            left = " / ".join(tokenizer.decode(turns[-1])[-60:].splitlines())
            print(f"  ... {left}" if left else "  nothing is left")
        elif line.strip() == "/top" or line.startswith("/attention") or MASK in line:
            look(model, tokenizer, line.strip(), turns[-1], opening(tokenizer))
        elif line.startswith("/"):
            print(set_option(parser, options, line.strip()))
        else:
            reply(model, tokenizer, line, options, turns)


if __name__ == "__main__":
    command(main)
