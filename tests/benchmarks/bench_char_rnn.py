"""Is the written-out recurrence of model 01 as fast as torch.nn.RNN? Forward and backward.

Both read the same batch with the same sizes, in turns, so that a machine that gets faster or
slower meanwhile treats them alike. The median of seven; the ratio is what to look at.

    python tests/benchmarks/bench_char_rnn.py
    python tests/benchmarks/bench_char_rnn.py --hidden-size 256 --layers 2
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "model-01-char-rnn"))

from model import CharRNN


class TorchRNN(nn.Module):
    """The same network around torch's fused recurrence."""

    def __init__(self, vocab_size: int, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.rnn = nn.RNN(vocab_size, hidden_size, layers)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = F.one_hot(tokens.t(), self.vocab_size).to(self.head.weight.dtype)
        x, state = self.rnn(x)
        return self.head(x).transpose(0, 1), state


def seconds(model: nn.Module, tokens: Tensor, dtype: torch.dtype) -> float:
    """One forward and backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits, _ = model(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    return time.perf_counter() - start


def race(runs: list[Callable[[], float]], rounds: int) -> list[float]:
    """The median of each, run in turns; one round to warm up."""
    times = [[run() for run in runs] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Model 01's recurrence against torch.nn.RNN.")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=65)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    sizes = args.vocab_size, args.hidden_size, args.layers
    ours, theirs = CharRNN(*sizes), TorchRNN(*sizes)
    tokens = torch.randint(args.vocab_size, (args.batch_size, args.context + 1))
    print(
        f"{args.layers} x {args.hidden_size} units, B {args.batch_size}, T {args.context}, "
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    print("dtype        by hand   torch.nn.RNN   by hand / torch   (ms, forward and backward)")
    for dtype in (torch.float32, torch.bfloat16):
        runs = [lambda m=m, d=dtype: seconds(m, tokens, d) for m in (ours, theirs)]
        mine, other = race(runs, args.rounds)
        name = str(dtype).removeprefix("torch.")
        print(f"{name:10}{1e3 * mine:10.1f}{1e3 * other:15.1f}{mine / other:18.2f}")


if __name__ == "__main__":
    main()
