"""Are the written-out cells of model 03 as fast as torch.nn's? Forward and backward, one layer.

Both read the same batch with the same sizes, in turns, so that a machine that gets faster or
slower meanwhile treats them alike. The median of seven; the ratio of the best dtypes is what to
look at.

    python tests/benchmarks/bench_cells.py
    python tests/benchmarks/bench_cells.py --hidden-size 256 --batch-size 32
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "model-03-lstm-attention"))

from cells import GRULayer, LSTMLayer, RNNLayer

PAIRS = {"RNN": (RNNLayer, nn.RNN), "GRU": (GRULayer, nn.GRU), "LSTM": (LSTMLayer, nn.LSTM)}


def seconds(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> float:
    """One forward and backward pass: x (T, B, H)."""
    layer.zero_grad()
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        outputs, _ = layer(x, None)
    outputs.backward(torch.ones_like(outputs))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Model 03's cells against torch.nn's.")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    H = args.hidden_size
    x = torch.randn(args.context, args.batch_size, H, requires_grad=True)
    print(
        f"{H} units, B {args.batch_size}, T {args.context}, {torch.get_num_threads()} threads, "
        f"PyTorch {torch.__version__}; ms, forward and backward"
    )
    print("cell   dtype       by hand   torch.nn   by hand / torch")
    for name, makers in PAIRS.items():
        layers, best = [make(H, H) for make in makers], [float("inf")] * 2
        for dtype in (torch.float32, torch.bfloat16):
            times = [[seconds(each, x, dtype) for each in layers] for _ in range(args.rounds + 1)]
            medians = [1e3 * statistics.median(each) for each in zip(*times[1:], strict=True)]
            best = [min(pair) for pair in zip(best, medians, strict=True)]
            ours, theirs = medians
            shown = str(dtype).removeprefix("torch.")
            print(f"{name:6} {shown:9}{ours:10.1f}{theirs:11.1f}{ours / theirs:18.2f}")
        print(f"{name:6} best     {best[0]:10.1f}{best[1]:11.1f}{best[0] / best[1]:18.2f}")


if __name__ == "__main__":
    main()
