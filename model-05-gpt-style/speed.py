"""How fast a machine can go, and how close to that we come.

    writing     one token at a time, a row by each matrix: as fast as weights can be read
    training    many rows by the same matrix: as fast as the machine can multiply

generate.py takes what makes the first fast from here; train.py says how fast the second is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "4090": 165,
    "3090": 71,
    "T4": 65,
}  # TFLOP/s, 16 bit


@contextlib.contextmanager
def as_fast_as_memory(one_row: bool) -> Iterator[None]:
    """Products without oneDNN, where they have a single row: PyTorch's own loop multiplies that
    by weights of 16 bits as fast as it can read them, and oneDNN, made for many, half as fast."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not one_row
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def share_of_peak(run, speed: float) -> str:
    """ ", 50 % MFU": of the operations that the GPU can do, those that the model needs (Chowdhery
    et al. 2022, B): 6 a parameter and token, and 12 L C T a token for attention."""
    name = torch.cuda.get_device_name() if run.device == "cuda" else ""
    peak = next((1e12 * peak for part, peak in PEAKS.items() if part in name), None)
    if peak is None or run.dtype == torch.float32:
        return ""
    weights = sum(p.numel() for p in run.model.blocks.parameters()) + run.model.head.weight.numel()
    attention = 12 * run.args.layers * run.args.hidden_size * run.args.context
    return f", {speed * (6 * weights + attention) / peak / run.world:.0%} MFU"
