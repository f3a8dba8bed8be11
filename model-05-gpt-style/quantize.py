"""Weights in 8 or 4 bits: a model that takes an eighth of the memory and writes the same.

    weights    0.31  -0.07   0.90  -0.52  ...         a block of 64: 32 bits each
    / largest  0.34  -0.08   1.00  -0.58  ...         the scale: 0.90
    nearest    0.34  -0.09   1.00  -0.53  ...         of 16 levels
    codes        11      6     15      2  ...         4 bits each, two to a byte

    int8  per channel    a scale for each row,       levels -127/127 ... 127/127       8.0 bits
    int4  group-wise     a scale for each 64 weights, levels -7/7 ... 7/7              4.5 bits
    nf4   NormalFloat    levels where a normal distribution has its weights, and the
                         scales in 8 bits themselves (double quantization)            4.1 bits

Only weights are quantized, of the linear layers in the blocks; sums run in floating point.
Embedding and read-out are in int8 with each of the three, what else there is stays as it is. A
weight that becomes its nearest level moves by half the gap of two at most, times the scale:

    int8  1/254 of the largest weight of its row
    int4  1/14  of the largest weight of its block
    nf4   0.152 of it, at the rim; 0.040 near 0, where most weights are; and what the scale moves

Sources: Dettmers et al. 2022 (LLM.int8()), 2023 (QLoRA: NF4, double quantization)

Shapes: N weights, R rows (outputs), C columns (inputs), K blocks of 64

    python generate.py --quantize nf4
    python quantize.py --checkpoint checkpoints/best.pt     # size, speed and cost of each
"""

from __future__ import annotations

import sys
import time
from statistics import NormalDist

import data
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from shared import UserError

FEW = 0 if sys.platform == "win32" else 32  # rows; that product is a plain loop on Windows
BLOCK, OUTER = 64, 256  # weights that share a scale, scales that share a scale (QLoRA, section 3)


def normal_float() -> Tensor:
    """The 16 levels of NF4 (Dettmers et al. 2023, appendix E): (16,), from -1 to 1.

    Equal shares of a normal distribution lie between them, so each code is used about as often.
    Eight levels from -1 to 0 and nine from 0 to 1, the 0 counted once: 0 itself is a level.
    """
    least, normal = 1 - 0.9677083, NormalDist()  # the outermost share, as the authors chose it
    below = [normal.inv_cdf(least + (0.5 - least) * i / 7) for i in range(7)]
    above = [-normal.inv_cdf(least + (0.5 - least) * i / 8) for i in range(8)]
    return torch.tensor([*below, 0.0, *above[::-1]]) / above[0]


class Quantized(nn.Module):
    """A linear layer that holds codes, and makes its weights of them when it needs them.

    The codes cannot be trained; gradients pass through to what came before (and to adapters).
    Each kind has its pack(weight), which keeps weights (R, C) as codes and scales, and its
    dequantize(), which says what they stand for: (R, C), float32.
    """

    def __init__(self, layer: nn.Linear | nn.Embedding) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.bias = getattr(layer, "bias", None)
        self.pack(layer.weight.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., R)"""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return Multiply.apply(x, self) if bias is None else Multiply.apply(x, self) + bias


class Multiply(torch.autograd.Function):
    """x W^T, where W is made anew for the way back: otherwise every layer's weights would wait
    for their gradient, unpacked, and nothing would be saved while training adapters."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: Quantized) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantize().to(gradient.dtype), None


class Int8(Quantized):
    """8 bits: a scale for each row (Dettmers et al. 2022, 2.1)."""

    def pack(self, weight: Tensor) -> None:
        scales = weight.abs().amax(dim=1) / 127  # (R,)
        codes = (weight / scales.clamp(min=1e-30)[:, None]).round()
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scales", scales)

    def dequantize(self) -> Tensor:
        return self.codes * self.scales[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., R)

        To write a token is to read all weights, so the fewer bytes, the faster: for few rows,
        PyTorch has a product for CPUs of bfloat16 and codes as they are. It reads 16 numbers at a
        time, aligned (a copy is), and does not check.
        """
        rows = x.numel() // self.in_features
        if rows > FEW or x.device.type != "cpu" or self.in_features % 16 or x.requires_grad:
            return super().forward(x)
        x16 = x.reshape(rows, -1).to(torch.bfloat16, copy=True)
        ones = torch.ones_like(self.scales, dtype=torch.bfloat16)  # it would have scales of 16 bits
        y = torch._weight_int8pack_mm(x16, self.codes, ones) * self.scales
        y = y.view(*x.shape[:-1], -1).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


class Rows(nn.Module):
    """An embedding in 8 bits: of a matrix, the rows that are asked for."""

    def __init__(self, matrix: Int8, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix, self.dtype = matrix, dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (...) -> (..., C)"""
        scales = self.matrix.scales[tokens][..., None]
        return (self.matrix.codes[tokens] * scales).to(self.dtype)


class Int4(Quantized):
    """4 bits: 15 evenly spaced levels (of 16 codes one stays unused), a scale for each block."""

    LEVELS = torch.arange(-8, 8) / 7

    def pack(self, weight: Tensor) -> None:
        blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(dim=1)  # (K,)
        shares = blocks / scales.clamp(min=1e-30)[:, None]  # -1 to 1
        borders = (self.LEVELS[1:] + self.LEVELS[:-1]) / 2
        codes = torch.bucketize(shares, borders.to(shares.device)).to(torch.uint8)
        self.register_buffer("codes", codes[:, ::2] | codes[:, 1::2] << 4)  # (K, 32): two a byte
        # What each of the 256 bytes stands for, two weights (256, 2): one look-up for both.
        low, high = torch.arange(256) % 16, torch.arange(256) // 16
        pairs = torch.stack((self.LEVELS[low], self.LEVELS[high]), dim=1)
        self.register_buffer("pairs", pairs.to(codes.device), persistent=False)
        self.pack_scales(scales)

    def dequantize(self) -> Tensor:
        # Two float32 fetched as one number of 64 bits: several times faster than as a row.
        pairs = self.pairs.view(torch.float64).flatten()
        shares = pairs.index_select(0, self.codes.flatten().int()).view(torch.float32)
        blocks = shares.view(-1, BLOCK) * self.unpack_scales()[:, None]
        return blocks.flatten()[: self.out_features * self.in_features].view(
            self.out_features, self.in_features
        )

    def pack_scales(self, scales: Tensor) -> None:
        """Keep the largest weight of each block: (K,)"""
        self.register_buffer("scales", scales)

    def unpack_scales(self) -> Tensor:
        """The scales again: (K,)"""
        return self.scales


class NF4(Int4):
    """4-bit NormalFloat with double quantization (Dettmers et al. 2023).

    A scale of 32 bits for 64 weights is half a bit a weight. In 8 bits, 256 of them with a scale
    of their own, it is an eighth. All are positive, so their mean is taken off before.
    """

    LEVELS = normal_float()

    def pack_scales(self, scales: Tensor) -> None:
        mean = scales.mean()
        rows = F.pad(scales - mean, (0, -len(scales) % OUTER)).view(-1, OUTER)
        outer = rows.abs().amax(dim=1, keepdim=True) / 127  # (K / 256, 1)
        codes = (rows / outer.clamp(min=1e-30)).round().to(torch.int8)
        self.register_buffer("scales", codes.flatten()[: len(scales)].clone())
        self.register_buffer("outer", outer)
        self.register_buffer("mean", mean)

    def unpack_scales(self) -> Tensor:
        rows = F.pad(self.scales, (0, -len(self.scales) % OUTER)).view(-1, OUTER)
        return (rows * self.outer + self.mean).flatten()[: len(self.scales)]


SCHEMES = {"int8": Int8, "int4": Int4, "nf4": NF4}


def quantize(model: nn.Module, scheme: str) -> nn.Module:
    """The model with its blocks, embedding and read-out quantized, in place.

    Raises UserError for a model that is quantized already: its weights are gone.
    """
    for block in model.blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, Quantized):
                    raise UserError("this model is quantized already: load it again")
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, SCHEMES[scheme](layer))
    embedding, table = model.embedding.weight, Int8(model.embedding)
    model.embedding = Rows(table, embedding.dtype)
    if isinstance(model.head, nn.Linear):  # a classifier has no read-out
        model.head = table if model.head.weight is embedding else Int8(model.head)
    return model


def size_of(model: nn.Module) -> int:
    """Bytes of all that the model must keep, a tied matrix counted once."""
    kept = {each.data_ptr(): each for each in model.state_dict().values()}
    return sum(each.numel() * each.element_size() for each in kept.values())


# ------------------------------------------------------------------------------- the comparison


@torch.inference_mode()
def nats_per_token(model: nn.Module, tokens: Tensor, batch_size: int = 16) -> float:
    """Mean cross-entropy over the tokens (N,), read in pieces of a context each."""
    T, nats = model.context, 0.0
    usable = (len(tokens) - 1) // T * T
    inputs, targets = tokens[:usable].view(-1, T), tokens[1 : usable + 1].view(-1, T)
    starts = range(0, len(inputs), batch_size)
    for at in tqdm(starts, unit="batch", leave=False, disable=None):
        rows = slice(at, at + batch_size)
        logits, _ = model(inputs[rows])
        nats += F.cross_entropy(logits.flatten(0, 1), targets[rows].flatten(), reduction="sum")
    return float(nats) / usable


@torch.inference_mode()
def tokens_per_second(model: nn.Module, prompt: Tensor, rounds: int = 3) -> float:
    """How fast the model goes on from a prompt (1, T), the best of some rounds of 100 tokens."""
    times = []
    for _ in range(rounds):
        token, state = prompt, None
        start = time.perf_counter()
        for _ in range(100):
            logits, state = model(token, state)
            token = logits[:, -1:].argmax(dim=-1)
        token.tolist()  # a GPU may still be at work: wait for it
        times.append(time.perf_counter() - start)
    return 100 / min(times)


def main() -> None:
    import generate  # here, because it imports this file

    parser = generate.Arguments("Size, speed and cost of fewer bits.", "quantize.py")
    parser.text("--checkpoint", "the model", "checkpoints/best.pt")
    parser.text("--dataset", "text to measure the loss on (the one it was trained on)")
    parser.number("--tokens", int, "of the validation split, at most", 2, default=100_000)
    generate.add_device_flag(parser)
    args = parser.parse()
    path, device = generate.find(args.checkpoint), generate.pick_device(args.device)
    _, tokenizer, checkpoint = generate.load_checkpoint(path, device)
    source = data.find(args.dataset or checkpoint["dataset"]["name"], "tales")
    text = source.corpus.valid or data.part_of(source.files[-1], 2_000_000, end=True)
    tokens = torch.tensor(tokenizer.encode(text)[: args.tokens], device=device)
    if len(tokens) <= checkpoint["config"]["context"]:
        raise UserError(f"{source.corpus.name} is shorter than the context: give a longer text")
    print("weights      MB   of the blocks   tokens/s   nats/token   perplexity     cost")
    for scheme in ("float32", *SCHEMES):
        model, _, _ = generate.load_checkpoint(path, device)
        if scheme != "float32":
            quantize(model, scheme)
        loss = nats_per_token(model, tokens)
        if scheme == "float32":
            first = loss
        cost = torch.tensor(loss - first).expm1()
        print(
            f"{scheme:7} {size_of(model) / 1e6:7.2f} {size_of(model.blocks) / 1e6:12.2f} MB "
            f"{tokens_per_second(model, tokens[None, :8]):10.1f} {loss:12.4f} "
            f"{torch.tensor(loss).exp():12.4f} {cost:+8.3%}"
        )


if __name__ == "__main__":
    import generate

    generate.command(main)
