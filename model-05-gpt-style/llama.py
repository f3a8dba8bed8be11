"""Model 05 in its other architecture: LLaMA. model.py with four changes, made to be diffed.

    RMSNorm                   a norm that only scales: no mean, no shift
    rotary positions          queries and keys are turned by their place; nothing is added to x
    SwiGLU                    an mlp of which one half opens and shuts the other
    grouped-query attention   several queries share a key and a value: a smaller cache

and what goes with them: no biases, a read-out of its own, and (Qwen 3) queries and keys that are
normed before they meet, so that no score can grow without bound. The arguments after `qk_norm`
are what published models of this family differ in (pretrained.py).

Sources: Touvron et al. 2023 (LLaMA), Zhang & Sennrich 2019 (RMSNorm), Su et al. 2021 (RoPE),
Shazeer 2020 (SwiGLU), Ainslie et al. 2023 (GQA), Henry et al. 2020 (norm of queries and keys)

Shapes: B batch, T time, S tokens of the state and new ones, C channels, H heads, D = C / H head
        size, L layers, V vocabulary

    diff model.py llama.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from model import POINTERS, Cache, NGrams, State, attend
from torch import Tensor, nn
from torch.nn import functional as F


def scale(x: Tensor, eps: float) -> Tensor:
    """Each vector to length sqrt(C), or D: x (..., C) -> (..., C)

    On a CPU in bfloat16 twice as fast as F.rms_norm, forward and backward.
    """
    wide = torch.float32 if x.dtype == torch.float16 else None  # 16 bits end at 65,504
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return x * (length.square() / x.size(-1) + eps).rsqrt().to(x.dtype)


class RMSNorm(nn.Module):
    """Each vector to length sqrt(C), then scaled as learned (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)"""
        return scale(x, self.eps) * self.weight.to(x.dtype)


def turns(config: dict, start: int, end: int, device: torch.device) -> Tensor:
    """The angles of the places from start to end: (T, D / 2), each pair of channels its own speed.

    scaling (Llama 3.1): factor, low, high, context. What turns less than `low` times within the
    context that a model was first trained on turns `factor` times slower, so that a longer one
    holds no angle it has not seen; what turns more than `high` times stays; between, in between.
    """
    D = config["head_size"]
    speeds = 1 / config["base"] ** (torch.arange(0, D, 2, device=device) / D)
    if config["scaling"]:
        factor, low, high, context = config["scaling"]
        stays = ((context * speeds / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        speeds = speeds * stays + speeds / factor * (1 - stays)
    return torch.arange(start, end, device=device)[:, None] * speeds


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions (Su et al. 2021, eq. 34): x (..., T, D), turn 2 times (T, D / 2)"""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    """Each position asks (query), all offer (key), and what they say (value) is mixed."""

    def __init__(self, config: dict, layer: int) -> None:
        super().__init__()
        C, self.heads, self.layer = config["hidden_size"], config["heads"], layer
        self.kv_heads, D, biases = config["kv_heads"], config["head_size"], config["biases"]
        self.qk_norm, self.eps = config["qk_norm"], config["eps"]
        self.qkv = nn.Linear(C, (self.heads + 2 * self.kv_heads) * D, bias=biases)
        self.out = nn.Linear(self.heads * D, C, bias=biases)

    def forward(
        self, x: Tensor, mask: Tensor | None, cache: Cache | None, turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        B, T, _ = x.shape
        H, shared = self.heads + self.kv_heads, self.heads // self.kv_heads  # queries to a key
        qkv = self.qkv(x).view(B, T, H + self.kv_heads, -1).transpose(1, 2)
        qk, v = qkv.split((H, self.kv_heads), dim=1)  # (B, H, T, D)
        qk = rotate(scale(qk, self.eps) if self.qk_norm else qk, turn)
        q, k = qk.split((self.heads, self.kv_heads), dim=1)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D), fewer H
        if T == 1:  # the queries of a group stand where positions do, and share what they look at
            q = q.reshape(B, self.kv_heads, shared, -1)
        elif shared > 1:
            k, v = (each.repeat_interleave(shared, dim=1) for each in (k, v))
        mixed = attend(q, k, v, mask).reshape(B, self.heads, T, -1)
        return self.out(mixed.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """Two layers, of which the inner one has a gate, for each position by itself."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        C, inner, biases = config["hidden_size"], config["inner"], config["biases"]
        self.gate = nn.Linear(C, inner, bias=biases)
        self.up = nn.Linear(C, inner, bias=biases)
        self.down = nn.Linear(inner, C, bias=biases)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then an mlp; each reads the stream x, normed, and adds to it."""

    def __init__(self, config: dict, layer: int) -> None:
        super().__init__()
        C, eps = config["hidden_size"], config["eps"]
        self.norm1, self.attention = RMSNorm(C, eps), Attention(config, layer)
        self.norm2, self.mlp = RMSNorm(C, eps), MLP(config)

    def forward(
        self, x: Tensor, mask: Tensor | None, cache: Cache | None, drop, turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        x = x + drop(self.attention(self.norm1(x), mask, cache, turn))
        return x + drop(self.mlp(self.norm2(x)))


class Llama(nn.Module):
    """Embeddings, a stack of blocks, a read-out."""

    def __init__(
        self, vocab_size: int, hidden_size: int = 256, layers: int = 6, dropout: float = 0.0,
        heads: int = 4, context: int = 256, tied: bool = False, kv_heads: int = 0,
        qk_norm: bool = True, copy: str = "none", ngrams: int = 1, inner: int = 0,
        head_size: int = 0, biases: bool = False, eps: float = 1e-5, base: float = 10_000.0,
        scaling: Sequence[float] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        inner = inner or -(-8 * hidden_size // 3 // 32) * 32  # three matrices for two: 2/3 as wide
        self.config = dict(
            vocab_size=vocab_size, hidden_size=hidden_size, layers=layers, dropout=dropout,
            heads=heads, context=context, tied=tied, kv_heads=kv_heads or heads,
            qk_norm=qk_norm, copy=copy, ngrams=ngrams, inner=inner,
            head_size=head_size or hidden_size // heads, biases=biases, eps=eps, base=base,
            scaling=list(scaling),
        )  # fmt: skip
        self.context = context  # tokens it sees, at most
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.blocks = nn.ModuleList([Block(self.config, layer) for layer in range(layers)])
        self.norm = RMSNorm(hidden_size, eps)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)
        self.start()
        self.ngrams = NGrams(self.config) if ngrams > 1 else None
        self.pointer = POINTERS[copy](self.config)
        self.kept = layers + (copy != "none")  # keys of each layer, and of the pointer

    def start(self) -> None:
        """Weights before training: small, and so small where a block writes to the stream that
        2 L blocks together add about as much as one (Radford et al. 2019, 2.3)."""
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                writes = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * len(self.blocks)) ** (0.5 * writes))
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        if self.config["tied"]:  # what a token is when read and when written (Press & Wolf 2017)
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """tokens (B, T), state or None -> logits (B, T, V), state

        Only what is new is computed; keys and values of the rest are in the cache. Once it is
        full, the older half is forgotten and the newer one read again, from the first place on:
        a place cannot be taken out of a key. While training nothing is kept: the state is None.
        """
        if self.training and state is None:
            return self.read(tokens, None), None
        past, cache = state or State(tokens[:, :0], Cache(self.kept, self.context))
        if cache.length != past.size(1):  # somebody went on from the same state before
            cache = cache.branch(past.size(1))
        logits = []
        while tokens.size(1):
            again = 0
            if past.size(1) == self.context:
                again = self.context // 2
                past, cache = past[:, self.context - again :], Cache(self.kept, self.context)
            room = self.context - past.size(1)
            past, tokens = torch.cat((past, tokens[:, :room]), dim=1), tokens[:, room:]
            logits.append(self.read(past, cache)[:, again:])
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1), State(past, cache)

    def read(self, tokens: Tensor, cache: Cache | None) -> Tensor:
        """tokens (B, S + T), of which S are in the cache -> logits of the others (B, T, V)"""
        S, device = cache.length if cache else 0, tokens.device
        T = tokens.size(1) - S
        x = self.embedding(tokens[:, S:])  # (B, T, C)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, T)
        if torch.is_autocast_enabled(device.type):  # half as many bytes to move
            x = x.to(torch.get_autocast_dtype(device.type))
        mask = None
        if T > 1:  # no peeking ahead
            mask = torch.full((T, S + T), -torch.inf, dtype=x.dtype, device=device).triu(S + 1)
        angles = turns(self.config, S, S + T, device)
        turn = angles.cos().to(x.dtype), angles.sin().to(x.dtype)  # each (T, D / 2)
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, mask, cache, self.drop, turn)
        x = self.norm(x)
        if self.pointer is None:
            logits = self.head(x)
        else:
            logits = self.pointer(x, tokens, self.embedding, self.head, mask, cache)
        if cache is not None:
            cache.length += T
        return logits

    def drop(self, x: Tensor) -> Tensor:
        """Dropout with one mask for a whole sequence (Gal & Ghahramani 2016): x (B, T, C).

        A channel is off for all T steps or for none. Drawing T times fewer random numbers also
        makes it several times faster on a CPU than a new mask each step.
        """
        p = self.config["dropout"]
        if not self.training or p == 0:
            return x
        keep = torch.empty_like(x[:, :1]).bernoulli_(1 - p)  # (B, 1, C)
        return x * (keep / (1 - p))
