"""Blanks in a text: hide tokens to train on, and guess what stood there.

    The crown of the king  --> hide   --> The [MASK] of the king, and the target crown
    The [MASK] of the king --> blanks --> tokens, None for the blank --> fill --> probabilities

A model trained with --objective masked has learned nothing else (Devlin et al. 2019); a causal one
guesses from what stands before. train.py hides; generate.py and interactive.py fill: --fill.

Shapes: B batch, T time, V vocabulary
"""

from __future__ import annotations

import re

import torch
from model import MiniTransformer
from torch import Tensor

from shared import UserError
from shared.utils import visualize
from shared.utils.tokenizers import CharTokenizer, Tokenizer, WordTokenizer

MASK = "[MASK]"  # stands for a blank in a text


def hide(tokens: Tensor, mask_id: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide 15 % of the tokens (Devlin et al. 2019): (B, T) -> inputs, targets (B, T)

    Of these 80 % become [MASK], 10 % any token, 10 % stay: so the model may trust none of them.
    Targets are the tokens that were hidden, and -100, which does not count, everywhere else.
    """
    dice = torch.rand(tokens.shape, generator=random)
    dice.view(-1)[dice.argmin()] *= 0.15  # one at least: the mean over none is no number
    other = torch.randint(mask_id, tokens.shape, generator=random)
    inputs = tokens.masked_fill(dice < 0.12, mask_id)
    inputs = torch.where((dice >= 0.12) & (dice < 0.135), other, inputs)
    return inputs, tokens.masked_fill(dice >= 0.15, -100)


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


def guesses(model: MiniTransformer, tokenizer: Tokenizer, tokens: list[int]) -> str:
    """Every eighth token hidden, and guessed: "right/guess  right/guess ..." """
    model.eval()
    hidden = [None if i % 8 == 4 else token for i, token in enumerate(tokens)]
    guessed = [int(p.argmax()) for p in fill(model, hidden)]
    pairs = zip(tokens[4::8], guessed, strict=False)  # the right one, and the guess
    names = (map(tokenizer.token_text, pair) for pair in pairs)
    model.train()
    return "  ".join("/".join(map(visualize.visible, pair)) for pair in names)


def show_fill(model: MiniTransformer, tokenizer: Tokenizer, text: str, start: list[int]) -> None:
    """Print what could stand for each [MASK] of a text. Raises UserError.

    start: the tokens before a text that begins with one.
    """
    tokens = blanks(tokenizer, text)
    if None not in tokens:
        raise UserError(f"no {MASK} in {text!r}: put one where a word is to be guessed")
    if tokens[0] is None:
        tokens = [*start, *tokens]
    if len(tokens) > model.context:
        raise UserError(f"{len(tokens)} tokens, but the model sees {model.context}: shorten it")
    for number, p in enumerate(fill(model, tokens), start=1):
        print(f"{MASK} {number}\n{bars(tokenizer, p)}")


def check_causal(model: MiniTransformer) -> None:
    """Raises UserError for a model that cannot write."""
    if not model.causal:
        raise UserError(
            "a masked model fills blanks, and cannot write: use --fill, or train with "
            "--objective causal"
        )
