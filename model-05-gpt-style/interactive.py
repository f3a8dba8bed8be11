"""Write together with a trained model: you begin a line, it goes on.

you > HAMLET:
Now is the winter ...                  <- streamed as it is drawn
you > KING RICHARD:                    <- goes on from all that stands there
you > /temperature 0.5

New since model 04: a model that finetune_instruct.py made is told what to do. Each line goes into
the template that it knows, its reply ends at the end mark, and of earlier exchanges it reads the
latest that fit into its context.

python interactive.py --checkpoint checkpoints/best.pt
python interactive.py --length 200 --top-k 40
python interactive.py --pretrained gpt2
"""

from __future__ import annotations

import contextlib
import sys

import torch
from generate import (
    Arguments,
    add_device_flag,
    add_dtype_flag,
    add_model_flags,
    add_quantize_flag,
    add_sampling_flags,
    command,
    edges,
    encode_prompt,
    generate,
    load,
    opening,
    pick_device,
    remember,
    show,
)
from instruction_data import END, in_template

from shared import UserError

with contextlib.suppress(ImportError):  # Windows has none
    import readline  # noqa: F401  arrow keys and earlier lines, for input()

HELP = """\
  text               the model goes on from it, and from all before; an empty line: no word of yours
  /undo              take back your last line and what followed
  /temperature 0.8   0 is greedy, higher is bolder
  /top-k 40          draw from the 40 likeliest tokens only; 0: from all
  /top-p 0.95        draw from the likeliest up to probability 0.95
  /min-p 0.05        ... only tokens with this share of the likeliest one's probability
  /repetition-penalty 1.1   makes tokens that stand there less likely
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


def reply(
    model, tokenizer, line: str, options: dict, turns: list[list[int]], stops: list[str],
    ends: list[int], template: str | None = None,
) -> None:  # fmt: skip
    """Go on from all that was said and the line, which begins a new one if anything was said.

    Prints each token as it is drawn; Ctrl-C ends it early. turns: all that was said, in tokens,
    as it stood at the start and after each reply. ends: tokens after which it is over. template:
    that of a model that is told what to do; its line is not shown again.
    """
    seed = torch.seed() % 2**31 if options["seed"] is None else options["seed"]
    said = turns[-1]
    try:
        if template:
            room = model.context - options["length"]
            turns.append(in_template(tokenizer, template, said, line, room))
        else:
            new = encode_prompt(tokenizer, "\n" + line if len(turns) > 1 and line else line)
            turns.append(said + new or opening(tokenizer))
            print(line, end="", flush=True)
        start = list(turns[-1])
        how = {**options, "seed": seed, "never": tokenizer.unk_id, "ends": ends}
        tokens = generate(model, start, **how)
        show(tokenizer, start, remember(tokens, turns[-1]), stops)
    except UserError as error:
        print(f"error: {error}", end="")
    except KeyboardInterrupt:
        print(" ...", end="")
    print("\n")


def main() -> None:
    parser = Arguments("Write together with a trained model.", "interactive.py")
    add_model_flags(parser)
    add_sampling_flags(parser, length=300)
    add_device_flag(parser)
    add_quantize_flag(parser)
    add_dtype_flag(parser)
    args = parser.parse()
    model, tokenizer, checkpoint = load(args, pick_device(args.device))
    begin, ends = edges(checkpoint)
    names = ("length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    first = {key: getattr(args, key) for key in names}
    options, turns = dict(first), [begin]
    template = checkpoint.get("template")
    stops = (args.stop or []) + ([END] if template else [])
    name, steps = checkpoint["dataset"]["name"], checkpoint["progress"]["step"]
    trained = "published" if args.pretrained else f"trained on {name} for {steps} steps"
    to_do = "Tell it what to do" if template else "Begin a line, it goes on"
    print(f"{checkpoint['architecture']}, {trained}. {to_do}. /help, /quit")
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
            options, turns = dict(first), [begin]
            print("  as at the start")
        elif line.strip() == "/undo":
            turns = turns[:-1] or [begin]
            left = " / ".join(tokenizer.decode(turns[-1][len(begin) :])[-60:].splitlines())
            print(f"  ... {left}" if left else "  nothing is left")
        elif line.startswith("/"):
            print(set_option(parser, options, line.strip()))
        else:
            reply(model, tokenizer, line, options, turns, stops, ends, template)


if __name__ == "__main__":
    command(main)
