"""Look into a model: where each head looked, and what could come next.

    a text --> model --> what each head of each layer took of each token --> a page, or a picture

generate.py and interactive.py show what is here: --attention, --context, /attention and /top.

Shapes: T time, L layers, H heads, V vocabulary
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from blanks import bars, check_causal, fill, show_fill
from model import MiniTransformer
from torch import Tensor

from shared import UserError
from shared.utils import visualize
from shared.utils.tokenizers import Tokenizer

MOST = 150  # tokens that a picture of attention can hold


@torch.inference_mode()
def attention_weights(model: MiniTransformer, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """What each position takes of each other in each head, (L, H, T, T), and logits (T, V)"""
    caught = []
    hooks = [
        block.attention.register_forward_hook(lambda _, inputs, output: caught.append(output[1][0]))
        for block in model.blocks
    ]
    logits, _ = model(torch.tensor([tokens], device=next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return torch.stack(caught).cpu(), logits[0].cpu()


def check_drawable(model: MiniTransformer, path: Path) -> None:
    """Raises UserError where attention cannot be drawn into this file."""
    if path.suffix not in (".html", ".png"):
        raise UserError(f"{path}: name a file that ends in .html or .png")
    if model.blocks[0].attention is None:
        raise UserError("this model was trained with --ablate attention: there is none to draw")


def draw_attention(
    model: MiniTransformer, tokenizer: Tokenizer, tokens: list[int], path: Path
) -> str:
    """Draw where the model looks while it reads, as a page (.html) or a picture (.png).

    Of a long text the beginning is drawn. Returns what to say. Raises UserError.
    """
    check_drawable(model, path)

    def name(token: int) -> str:
        return visualize.visible(tokenizer.token_text(token))

    tokens = tokens[: min(MOST, model.context)]
    weights, logits = attention_weights(model, tokens)
    names, title = [name(token) for token in tokens], "Where each head looks"
    if path.suffix == ".png":
        visualize.plot_heads(names, weights.tolist(), path, title)
    else:
        best = logits.softmax(dim=-1).topk(min(5, logits.size(-1)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        guesses = [list(zip(map(name, ids), p, strict=True)) for ids, p in pairs]
        visualize.write_attention_page(names, weights.tolist(), path, title, guesses)
    return f"where it looked, over {len(tokens)} tokens, is in {path}"


def set_context(model: MiniTransformer, context: int) -> None:
    """Let the model see more or fewer tokens than in training. Raises UserError."""
    most = model.config["context"]
    if model.positions == "learned" and context > most:
        raise UserError(
            f"--context {context}: this model has learned the positions of {most} tokens and no "
            "more; rope, alibi, sinusoidal and none have no such end"
        )
    model.context = context


def set_up(model: MiniTransformer, args: argparse.Namespace) -> None:
    """Set --context, and see whether --fill, --attention or writing can be had of this model.

    Raises UserError.
    """
    if args.context:
        set_context(model, args.context)
    if args.fill is not None and args.attention:
        raise UserError("--fill and --attention: give one of them")
    if args.fill is None:
        check_causal(model)
    if args.attention:
        check_drawable(model, Path(args.attention))


def look(
    model: MiniTransformer, tokenizer: Tokenizer, line: str, said: list[int], start: list[int]
) -> None:
    """Carry out /top, /attention FILE, or show what could stand for the [MASK]s of a line.

    said: the tokens of the conversation; start: what it begins with where nothing was said.
    """
    said = said or start
    try:
        if line == "/top":
            check_causal(model)
            print(bars(tokenizer, fill(model, [*said, None])[0]))
        elif line.startswith("/attention"):
            path = Path(line.removeprefix("/attention").strip() or "attention.html")
            print("  " + draw_attention(model, tokenizer, said, path))
        else:
            show_fill(model, tokenizer, line, start)
    except (UserError, OSError) as error:
        print(f"error: {error}")
