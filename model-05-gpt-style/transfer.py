"""Start a run from weights that have been trained: our own, or published ones.

    a checkpoint, gpt2, ... --> model, tokenizer --> a shorter context --> gentle settings --> train

train.py --init-from. The sizes of the model that is there become those of the run; learning is
slower, so that what the weights know is not lost in the first steps.
"""

from __future__ import annotations

import argparse

import generate
from generate import Model
from pretrained import load_pretrained, shapes_of

from shared import UserError
from shared.utils.tokenizers import Tokenizer

GENTLE = dict(optimizer="adamw", lr=0.0001)  # where weights have been trained already


def init_from(args: argparse.Namespace, device: str, preset: dict) -> tuple[Model, Tokenizer]:
    """The model and tokenizer to start from; their sizes become the settings of this run.

    Raises UserError where flags ask for others. A context may be shorter: what stands behind it
    is not used then, and of GPT's places not kept.
    """
    path = generate.find(args.init_from)
    own = path.is_file() or path.suffix == ".pt"
    load = generate.load_checkpoint if own else load_pretrained
    model, tokenizer, found = load(path if own else args.init_from, device)
    config, problems = model.config, []
    kind = tokenizer.state_dict()["type"]
    fixed = {name: config[name] for name in ("hidden_size", "layers", "heads", "copy", "ngrams")}
    fixed |= {"kv_heads": config.get("kv_heads", config["heads"]), "tokenizer": kind}
    fixed |= {"arch": generate.kind_of(model).lower()}
    fixed |= {"vocab_size": None if kind == "char" else tokenizer.vocab_size}
    for name, value in fixed.items():
        if getattr(args, name) not in (None, value):
            flag = f"--{name.replace('_', '-')}"
            problems.append(f"{flag} {getattr(args, name)}: {args.init_from} has {value}")
        setattr(args, name, value)
    if args.context is None:
        args.context = config["context"] if own else min(config["context"], preset["context"])
    if args.context > config["context"]:
        problems.append(f"--context {args.context}: {args.init_from} has {config['context']}")
    if problems:
        raise UserError(f"{'; '.join(problems)}: leave these flags out, or --init-from")
    for name, value in GENTLE.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.dropout = config["dropout"] if args.dropout is None else args.dropout
    args.begin, args.ends = generate.edges(found)
    return shortened(model.float(), args.context, args.dropout), tokenizer


def shortened(model: Model, context: int, dropout: float) -> Model:
    """The same weights in a model of a shorter context, and with this dropout."""
    sizes = {**model.config, "context": context, "dropout": dropout}
    new, weights = shapes_of(type(model), sizes), model.state_dict()
    if "places.weight" in weights:
        weights["places.weight"] = weights["places.weight"][:context].clone()
    new.load_state_dict(weights, assign=True)
    if sizes["tied"]:
        new.head.weight = new.embedding.weight
    return new
