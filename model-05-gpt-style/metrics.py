"""Numbers that say how good a language model is, and where it fails; evaluate.py prints them.

    perplexity      windows that overlap, so that each token is predicted with a past
    calibration     of what it calls 70 % likely, do 70 % happen?
    robustness      the same text with slips of the pen
    memorisation    how far does it go on with a text word for word?
    contradictions  where does a tale say what it cannot say, after what it has said?

    stride 2, context 4:   [a b c d] e f g h        predicts b c d e
                            a b[c d e f] g h        predicts         f g
                            a b c d[e f g h]        predicts             h i

Sources: Guo et al. 2017 (calibration), Pruthi et al. 2019 (misspellings), Carlini et al. 2021, 2023
(memorisation)

Shapes: B batch, T time, V vocabulary, N tokens
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from instruction_data import before_a_slip
from torch import Tensor, nn
from tqdm import tqdm

from shared.data.tales import SLOTS, prefix_bits, read_tale

MOST = 2**26  # logits at once: 256 MB


# ------------------------------------------------------------------------------------ prediction


class Predictions(NamedTuple):
    """What a model made of each token of a text but the first."""

    nats: Tensor  # (N - 1,) -ln p of the token that came
    confidence: Tensor  # (N - 1,) probability of the token that seemed likeliest
    right: Tensor  # (N - 1,) whether that one came


def windows(predicted: int, context: int, stride: int) -> list[tuple[int, int]]:
    """Where windows end, and how many of their last predictions are new.

    >>> windows(8, 4, 2)          # the drawing above
    [(4, 4), (6, 2), (8, 2)]
    """
    ends = [*range(min(context, predicted), predicted, stride), predicted]
    return [(end, end - before) for before, end in zip([0, *ends], ends, strict=False)]


@torch.inference_mode()
def predict(
    model: nn.Module, tokens: Tensor, stride: int, dtype: torch.dtype = torch.float32
) -> Predictions:
    """Predict each token (N,) but the first, once, from a window of the context's length.

    The windows are `stride` tokens apart: each new prediction has at least context - stride tokens
    before it, but at the start. stride = context is fastest and knows least.
    """
    device = tokens.device
    size = max(1, min(16, MOST // (model.context * model.config["vocab_size"])))
    plan = windows(len(tokens) - 1, model.context, stride)
    batches = [plan[:1], *(plan[at : at + size] for at in range(1, len(plan), size))]
    parts = []
    for batch in tqdm(batches, "reading", unit="batch", leave=False, disable=None):
        length, new = min(model.context, batch[0][0]), max(fresh for _, fresh in batch)
        inputs = torch.stack([tokens[end - length : end] for end, _ in batch])  # (B, T)
        targets = torch.stack([tokens[end + 1 - new : end + 1] for end, _ in batch])
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits, _ = model(inputs)
        logs = logits[:, -new:].float().log_softmax(dim=-1)  # (B, new, V)
        best, guess = logs.max(dim=-1)
        nats = -logs.gather(-1, targets[..., None])[..., 0]
        for row, (_, fresh) in enumerate(batch):
            own = (nats[row], best[row].exp(), guess[row] == targets[row])
            parts.append([each[new - fresh :].cpu() for each in own])
    return Predictions(*(torch.cat(each) for each in zip(*parts, strict=True)))


@torch.inference_mode()
def continue_greedily(model: nn.Module, prompts: Tensor, length: int) -> Tensor:
    """The likeliest token, `length` times: prompts (B, T) -> (B, length)"""
    written, tokens, state = [], prompts, None
    for _ in tqdm(range(length), "continuing", unit="token", leave=False, disable=None):
        logits, state = model(tokens, state)
        tokens = logits[:, -1:].argmax(dim=-1)  # (B, 1)
        written.append(tokens)
    return torch.cat(written, dim=1)


# ----------------------------------------------------------------------------------- calibration


class Bin(NamedTuple):
    """The predictions of about equal confidence."""

    low: float
    high: float
    count: int
    confidence: float  # their mean
    accuracy: float  # the share that was right


def reliability(confidence: Iterable[float], right: Iterable[bool], bins: int = 15) -> list[Bin]:
    """Bins of equal width, those without a prediction left out (Guo et al. 2017, section 2).

    >>> reliability([0.9, 0.9, 0.6], [True, False, True], 2)
    [Bin(low=0.5, high=1.0, count=3, confidence=0.8, accuracy=0.6666666666666666)]
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, bool)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high]
    found = []
    for place in sorted(set(places.tolist())):
        own = places == place
        means = float(confidence[own].mean()), float(right[own].mean())
        found.append(Bin(place / bins, (place + 1) / bins, int(own.sum()), *means))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, on average (eq. 3)."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.accuracy - each.confidence) for each in bins) / total


def standard_error(share: float, count: int) -> float:
    """How far a share of so many questions may be off by chance.

    As if two more were right and two more wrong (Agresti & Coull 1998): none of 7 is not "never".
    """
    share, count = (share * count + 2) / (count + 4), count + 4
    return math.sqrt(share * (1 - share) / count)


# ------------------------------------------------------------------------------------ robustness

LOOK_ALIKES = str.maketrans("aeiostAEIOST", "4310574310$7")


def slip(word: str, dice: Random) -> str:
    """A word as a hurried hand types it: two letters swapped, or one lost, or one twice."""
    at = dice.randrange(1, len(word) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return dice.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at:][:1] + word[at:]))


def with_typos(text: str, dice: Random, share: float = 0.1) -> str:
    """A slip in a share of the words of four letters and more (Pruthi et al. 2019)."""
    return re.sub(
        r"[^\W\d_]{4,}", lambda w: slip(w[0], dice) if dice.random() < share else w[0], text
    )


DISTURBED = {
    "typos": with_typos,
    "lower case": lambda text, dice: text.lower(),
    "upper case": lambda text, dice: text.upper(),
    "look-alikes": lambda text, dice: text.translate(LOOK_ALIKES),  # fr33 pr1z3
}


# ----------------------------------------------------------------------------------- memorisation


def repeated(written: str, true: str) -> int:
    """How many characters are the same from the start: repeated("a fox", "a fig") is 3."""
    return len(os.path.commonprefix([written, true]))


# --------------------------------------------------------------------------------- contradictions


NAMED = {  # slots of tales.py, one for each table
    "hero": "name", "kind": "animal", "thing": "thing", "sex": "pronoun", "sum": "number",
    "place": "place", "owed": "promise", "wish": "wish", "treat": "treat", "land": "country",
    "season": "month",
}  # fmt: skip


class Slip(NamedTuple):
    """A word that a tale cannot have where it stands, after what it has said."""

    about: str  # one of NAMED
    said: str
    true: str
    at: int  # characters before it


def words_at(text: str, place: int) -> Iterator[tuple[str, str, int, list[str]]]:
    """Words of the tables that stand over a place: slot, word, its start, the others' forms."""
    for name, table in SLOTS.items():
        if name not in NAMED:
            continue  # of the same table as another
        for form in table[0]:
            column = list(dict.fromkeys(row[form] for row in table))
            for said in column:
                for at in range(max(0, place - len(said) + 1), place + 1):
                    end = at + len(said)
                    inside = text[at - 1 : at].isalpha() or text[end : end + 1].isalpha()
                    if text.startswith(said, at) and not inside:
                        yield NAMED[name], said, at, [word for word in column if word != said]


def mend(text: str, place: int) -> tuple[Slip, str] | None:
    """The slip at the first place where a text is no tale, and the text without it.

    None if it is of another kind: no single other word of the same table would do, or one that
    has not been said yet.
    """
    for name, said, at, others in words_at(text, place):
        end = at + len(said)
        fit = [word for word in others
               if math.isfinite(prefix_bits(text[:at] + word + text[end : end + 1]))]  # fmt: skip
        if len(fit) == 1 or (fit and all(word in text[:at] for word in fit)):
            mended = [text[:at] + word + text[end:] for word in fit]
            best = max(range(len(fit)), key=lambda i: before_a_slip(mended[i]) - len(mended[i]))
            return Slip(name, said, fit[best], at), mended[best]
    return None


def contradictions(text: str) -> tuple[list[Slip], str]:
    """Each word with which a tale contradicts itself, and what it is when they are mended.

    "whole": a tale. "unfinished": the beginning of one. "lost": at some place no tale goes on
    like that, for another reason; what follows has not been looked at.
    The grammar that writes the tales decides, so each slip that is found is one: the name, animal,
    thing, pronoun or number that must stand there is certain. Slips behind "lost" are not counted.
    """
    text, found = text.strip(), []
    while (place := before_a_slip(text)) < len(text):
        mended = mend(text, place)
        if mended is None:
            return found, "lost"
        found.append(mended[0])
        text = mended[1]
    return found, "whole" if read_tale(text) else "unfinished"


# ------------------------------------------------------------------------------------- comparison


class Measure(NamedTuple):
    """A number of a report that can become better or worse."""

    value: float
    unit: str  # "share", or what it is counted in
    better: str  # "higher" or "lower"
    count: int = 0  # a share of so many

    def __str__(self) -> str:
        if self.unit != "share":
            return f"{self.value:.4f} {self.unit}"
        error = f" ± {100 * standard_error(self.value, self.count):.1f}" if self.count else ""
        return f"{100 * self.value:.1f}{error} %"


def worsened(before: Measure, after: Measure) -> float:
    """How much worse it has become: a share by its difference, all else by its ratio; < 0: better.

    >>> round(worsened(Measure(0.9, "share", "higher"), Measure(0.87, "share", "higher")), 3)
    0.03
    """
    change = after.value - before.value
    if before.unit != "share":
        change /= max(abs(before.value), 1e-9)
    return -change if before.better == "higher" else change
