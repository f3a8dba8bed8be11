"""How long may a text be? What the next token costs, and what the past is worth, by length.

time per token     all tokens are read again for each new one: twice the text, twice the time
                   (more than twice, once attention, which grows with its square, weighs in)
loss per token     falls while more of the past helps; beyond the length of the training
                   pieces it shows what a kind of positions is worth there (Press et al. 2022)

python show_length.py                                    # lengths.png, of the last training
python show_length.py rope/best.pt alibi/best.pt learned/best.pt
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import torch
from generate import Arguments, Model, command, find, load_checkpoint
from looking import set_context
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from shared import UserError
from shared.data.download import load_text
from shared.utils import visualize

REPEATS = 5  # of each measurement of time; the median counts


@torch.inference_mode()
def seconds_per_token(model: Model, lengths: list[int]) -> list[float]:
    """The time of one more token after so many."""
    medians = []
    for length in tqdm(lengths, desc="time", leave=False, disable=None):
        state, token, times = torch.zeros(1, length - 1, dtype=torch.int64), torch.tensor([[0]]), []
        for _ in range(REPEATS + 1):  # the first one only warms up
            start = time.perf_counter()
            model(token, state)
            times.append(time.perf_counter() - start)
        medians.append(sorted(times[1:])[REPEATS // 2])
    return medians


@torch.inference_mode()
def loss_by_position(model: Model, tokens: Tensor, length: int) -> Tensor:
    """Mean nats of the 1st, 2nd, ... token after the first of a piece: (T,)

    The pieces overlap by three quarters: more of them make a smoother curve.
    """
    pieces = tokens.unfold(0, length + 1, max(1, length // 4))
    inputs, targets = pieces[:, :-1], pieces[:, 1:]
    total, rows = torch.zeros(length), max(1, 8192 // length)
    for batch in tqdm(range(0, len(inputs), rows), desc="loss", leave=False, disable=None):
        logits, _ = model(inputs[batch : batch + rows])
        losses = F.cross_entropy(
            logits.transpose(1, 2), targets[batch : batch + rows], reduction="none"
        )
        total += losses.sum(dim=0)
    return total / len(inputs)


def edges_up_to(length: int) -> list[int]:
    """Bounds of the groups of positions that are averaged, about three to a doubling.

    >>> edges_up_to(16)
    [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
    """
    edges = [1]
    while edges[-1] < length:
        edges.append(min(length, max(edges[-1] + 1, round(edges[-1] * 1.26))))
    return edges


def main() -> None:
    parser = Arguments("Draw what length costs and what it is worth.", "show_length.py")
    parser.text("checkpoints", "of which models (checkpoints/best.pt)", nargs="*")
    parser.number("--length", int, "tokens, at most", 8, 1e5, default=1024)
    parser.text("--out", "the picture", "lengths.png")
    args = parser.parse()
    times, losses, trained = {}, {}, {}
    for path in args.checkpoints or ["checkpoints/best.pt"]:
        model, tokenizer, checkpoint = load_checkpoint(find(path))
        if not model.causal:
            raise UserError(f"{path}: a masked model has no next token: give a causal one")
        name = f"{model.positions} positions"
        name += f" ({path})" if name in losses else ""
        length = min(args.length, model.config["context"] if model.positions == "learned" else 1e9)
        set_context(model, length)
        valid = torch.tensor(tokenizer.encode(load_text(checkpoint["dataset"]["name"]).valid))
        if len(valid) <= length:
            raise UserError(f"the validation text has {len(valid)} tokens: give a lower --length")
        each, edges = loss_by_position(model, valid, length), edges_up_to(length)
        means = [each[a:b].mean().item() for a, b in pairwise(edges)]
        losses[name], trained[name] = (edges[1:], means), checkpoint["config"]["context"]
        # after the loss: memory that was never used before comes slowly
        lengths = [2**n for n in range(3, 30) if 2**n <= length]
        times[name] = (lengths, [1000 * s for s in seconds_per_token(model, lengths)])
        print(f"{name}: trained on {trained[name]} tokens")
        for at, ms in zip(*times[name], strict=True):
            loss = min(zip(*losses[name], strict=True), key=lambda pair: abs(pair[0] - at))[1]
            print(f"  {at:>6} tokens  {ms:8.2f} ms for one more  {loss:.4f} nats")
    visualize.plot_lengths(times, losses, trained, Path(args.out))
    print(f"The picture is in {args.out}")


if __name__ == "__main__":
    command(main)
