"""What does one more token cost, with the cache and without?

without    all tokens are read again, as model 04 does: twice the text, twice the time
with       one position is computed, and looks at what is kept: hardly more for a longer text

python show_length.py                      # lengths.png, of the last training
python show_length.py --checkpoint checkpoints/best.pt
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from generate import Arguments, Model, command, find, load_checkpoint
from tqdm import tqdm

from shared.utils import visualize

REPEATS = 7  # of each measurement; the median counts


@torch.inference_mode()
def seconds_per_token(model: Model, lengths: list[int], cached: bool) -> list[float]:
    """The time of one more token after so many."""
    medians = []
    for length in tqdm(lengths, desc="time", leave=False, disable=None):
        text, token, times = torch.zeros(1, length - 1, dtype=torch.int64), torch.tensor([[0]]), []
        _, state = model(text)
        for _ in range(REPEATS + 1):  # the first one only warms up
            start = time.perf_counter()
            if cached:
                _, state = model(token, state)
            else:
                model(torch.cat((text, token), dim=1))
            times.append(time.perf_counter() - start)
        medians.append(sorted(times[1:])[REPEATS // 2])
    return medians


def main() -> None:
    parser = Arguments("Draw what one more token costs.", "show_length.py")
    parser.text("--checkpoint", "of which model", "checkpoints/best.pt")
    parser.text("--out", "the picture", "lengths.png")
    args = parser.parse()
    model, _, _ = load_checkpoint(find(args.checkpoint))
    most = max(2, model.context - REPEATS - 1)  # room for what is timed
    lengths = [*(2**n for n in range(1, 30) if 2**n < most), most]
    times = {}
    for name, cached in (("all read again, as in model 04", False), ("with the cache", True)):
        times[name] = (lengths, [1000 * s for s in seconds_per_token(model, lengths, cached)])
    for length, again, once in zip(lengths, *(ms for _, ms in times.values()), strict=True):
        print(f"{length:>6} tokens  {again:8.2f} ms read again  {once:8.2f} ms with the cache")
    visualize.plot_lengths(times, {}, {}, Path(args.out))
    print(f"The picture is in {args.out}")


if __name__ == "__main__":
    command(main)
