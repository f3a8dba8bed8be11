"""What surrounds the drawing of tokens: where a text begins and ends, and what it may repeat.

    begin, prompt --> tokens drawn, less likely where they stand already --> ... up to an end token
                      or, in letters, up to a stop string

Published models have tokens of their own before a text and after it; stop strings and the penalty
are for any model. generate.py does the drawing.

Shapes: B batch, S tokens so far, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from shared.utils.tokenizers import BPETokenizer, Tokenizer


def edges(checkpoint: dict) -> tuple[list[int], list[int]]:
    """The tokens before a text, and those after which it is over: published models have such."""
    settings = checkpoint.get("settings") or {}
    return settings.get("begin") or [], settings.get("ends") or []


def encode_prompt(tokenizer: Tokenizer, text: str, begin: Sequence[int] = ()) -> list[int]:
    """The tokens of a prompt. Special ones in it, such as <|im_start|>, are taken as such."""
    special = {"allowed_special": "all"} if isinstance(tokenizer, BPETokenizer) else {}
    tokens = tokenizer.encode(text, **special)
    there = tokens[: len(begin)] == list(begin)
    return tokens if there or not tokens else [*begin, *tokens]


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that stand there less likely: logits (B, V), seen (B, S) -> (B, V)

    Positive logits are divided by the penalty and negative ones multiplied (Keskar et al. 2019).
    """
    scores = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(scores > 0, scores / penalty, scores * penalty))


def before(tokens: Iterator[int], ends: Sequence[int]) -> Iterator[int]:
    """The tokens before the first of the `ends`."""
    return takewhile(lambda token: token not in ends, tokens)


def without(texts: Iterator[str], length: int) -> Iterator[str]:
    """The same text but for so many characters at its start."""
    for text in texts:
        yield text[length:]
        length = max(0, length - len(text))


def until(texts: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The same text, up to the stop string that is complete first, which is left out.

    What could be the beginning of one is held back until it is clear that it is not.
    """
    held = ""
    for text in texts:
        held += text
        found = [(held.index(stop) + len(stop), -len(stop)) for stop in stops if stop in held]
        if found:
            yield held[: sum(min(found))]
            return
        most = max((len(stop) for stop in stops), default=1) - 1
        lengths = range(min(most, len(held)), 0, -1)
        keep = next((n for n in lengths if any(s.startswith(held[-n:]) for s in stops)), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
