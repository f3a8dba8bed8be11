"""Look into a model: what could stand in a blank, and where it looked.

    "The [MASK] of the king" --> tokens, None for the blank --> probabilities --> bars
    a text --> model --> what each head of each layer took of each token --> a page, or a picture

generate.py and interactive.py show what is here: --fill, --attention, /top and /attention.

Shapes: T time, L layers, H heads, V vocabulary
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from model import MiniTransformer
from torch import Tensor

from shared import UserError
from shared.utils import visualize
from shared.utils.tokenizers import CharTokenizer, Tokenizer, WordTokenizer

MASK = "[MASK]"  # stands for a blank in a text
MOST = 150  # tokens that a picture of attention can hold


def blanks(tokenizer: Tokenizer, text: str) -> list[int | None]:
    """A text with [MASK]s as tokens, with None for each [MASK].

    Words know no spaces, pieces begin with theirs: the spaces at a blank belong to the token.
    """
    if isinstance(tokenizer, WordTokenizer):
        # What spaces and quotation marks become depends on what stands before: a word stands in.
        fresh = (token for token in tokenizer.tokens if token.isalpha() and token not in text)
        word = next(fresh, tokenizer.tokens[-1])
        apart = re.sub(r"(?<=[\w\]])(?=\[MASK\])|(?<=\[MASK\])(?=\w)", " ", text)
        ids = tokenizer.encode(apart.replace(MASK, word))
        return [None if index == tokenizer.id_of[word] else index for index in ids]
    parts = text.split(MASK)
    if not isinstance(tokenizer, CharTokenizer):
        parts = [part.rstrip(" ") for part in parts]
    tokens: list[int | None] = []
    for part in parts:
        tokens += [None, *tokenizer.encode(part)]
    return tokens[1:]


@torch.inference_mode()
def fill(model: MiniTransformer, tokens: list[int | None]) -> list[Tensor]:
    """For each blank (None) the probabilities of all tokens: (V,)

    A masked model sees both sides of a blank, and guesses all blanks at once. A causal one sees
    only what stands before, and guesses one by one, each after its likeliest for those before.
    """
    device, found, given = next(model.parameters()).device, [], list(tokens)
    holes = [i for i, token in enumerate(tokens) if token is None]
    if not model.causal:
        hidden = [model.mask_id if token is None else token for token in tokens]
        logits, _ = model(torch.tensor([hidden], device=device))
        return list(logits[0, holes].softmax(dim=-1))
    for i in holes:
        logits, _ = model(torch.tensor([given[:i] or [0]], device=device))
        found.append(logits[0, -1].softmax(dim=-1))
        given[i] = int(found[-1].argmax())
    return found


def bars(tokenizer: Tokenizer, p: Tensor, count: int = 8) -> str:
    """The likeliest tokens of a distribution (V,), one a line, with a bar each."""
    lines = []
    for share, token in zip(*p.topk(min(count, len(p))), strict=True):
        name = visualize.visible(tokenizer.token_text(int(token))).strip("\n")
        lines.append(f"  {name:>14} {100 * share:5.1f} % {'█' * round(40 * float(share))}")
    return "\n".join(lines)


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
