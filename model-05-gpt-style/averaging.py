"""An average of the weights over the last steps (Polyak & Juditsky 1992).

    weights    jump from side to side of the valley, as each batch pulls them
    average    lies between the sides: the model that is evaluated and kept

--average 0.99 is the share that the past keeps at each step: a hundred steps or so count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def add_to_average(run) -> None:
    """Let the weights after this step count, where the run keeps an average."""
    if run.average:  # at first of few steps only, or the start would weigh for long
        share = max(1 - run.args.average, 1 / run.step)
        torch._foreach_lerp_(run.average, [p.detach() for p in run.model.parameters()], share)


@contextmanager
def averaged(run) -> Iterator[None]:
    """With --average the model holds the averaged weights meanwhile."""
    weights = [p.data for p in run.model.parameters()]
    for p, mean in zip(run.model.parameters(), run.average, strict=False):
        p.data = mean
    try:
        yield
    finally:
        for p, own in zip(run.model.parameters(), weights, strict=True):
            p.data = own
