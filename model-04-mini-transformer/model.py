"""Model 04: a small transformer. No recurrence: every position is computed at once.

    tokens                  Once      upon      a         time
    embedding               x         x         x         x          (+ positions)
      block, L times:
        attention           x   <---  x   <---  x   <---  x          looks at what has passed
        mlp                 x         x         x         x          each position for itself
    norm, read-out          upon      a         time      there

What a block finds out is added to x and never replaces it: x is a stream that all blocks read
from and write to. Attention moves information from position to position, the mlp works on it.

New since model 03: blocks of attention and mlp in place of cells; queries, keys and values in
several heads; layer norm; positions, which a recurrence had for nothing.

Sources: Vaswani et al. 2017 (the transformer), Ba et al. 2016 (layer norm), Xiong et al. 2020
(norm before the part instead of after), Hendrycks & Gimpel 2016 (GELU), Shazeer 2020 (SwiGLU),
Su et al. 2021 (RoPE), Press et al. 2022 (ALiBi), Devlin et al. 2019 (masked), Merity et al. 2017
(copying)

Shapes: B batch, T time, S tokens of the state, C channels, H heads, D = C / H head size,
        V vocabulary

    python train.py --preset tiny        # this model, trained in seconds
    python generate.py                   # and writing
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POSITIONS = ("none", "sinusoidal", "learned", "rope", "alibi")
COPY = ("none", "pointer")
PARTS = ("none", "attention", "mlp", "residual", "norm", "positions")  # that can be left out


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    query, keys, values (B, H, T, D), bias (T, T) or (H, T, T), minus infinity where nothing may
    be seen -> mixed (B, H, T, D), weights (B, H, T, T)
    """
    # A sum of D products grows with D, and softmax of large numbers looks at one token only.
    scores = (query / query.size(-1) ** 0.5) @ keys.transpose(-2, -1)  # (B, H, T, T)
    weights = (scores + bias.to(scores.dtype)).softmax(dim=-1)  # each row sums to 1
    return weights @ values, weights


# ----------------------------------------------------------------------------------- positions


def sinusoidal(length: int, size: int) -> Tensor:
    """Waves of many lengths, from 2 pi to 20,000 pi: (T, C) (Vaswani et al. 2017, 3.5).

    position t: sin(t), cos(t), ..., sin(t / 10000^(2i / C)), cos(t / 10000^(2i / C)), ...
    """
    waves = angles(length, size + size % 2)  # (T, C / 2)
    return torch.stack((waves.sin(), waves.cos()), dim=-1).flatten(1)[:, :size]


def angles(length: int, size: int) -> Tensor:
    """t / 10000^(2i / size) for all positions t and all i < size / 2: (T, size / 2)"""
    speeds = 10_000.0 ** (-torch.arange(0, size, 2) / size)
    return torch.arange(length)[:, None] * speeds


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, eq. 34): x (..., T, D), turn (T, D / 2) -> (..., T, D)

    The numbers i and i + D/2 of each vector are a point in a plane, turned by an angle that grows
    with the position. The product of a query and a key, both turned, depends on their distance
    only. (The paper pairs neighbours; which pairs is a matter of naming.)
    """
    cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def alibi(length: int, heads: int) -> Tensor:
    """Minus distance times the slope of the head: (H, T, T) (Press et al. 2022).

    Slopes for 8 heads: 1/2, 1/4, ..., 1/256. Some heads see only near tokens, others far ones.
    """
    n = 2 ** int(math.log2(heads))  # the paper: other numbers take every other slope of 2n
    powers = [(i + 1) / n for i in range(n)] + [(i + 0.5) / n for i in range(heads - n)]
    slopes = 2.0 ** (-8 * torch.tensor(powers))
    t = torch.arange(length)
    return -slopes[:, None, None] * (t[:, None] - t).abs()


# -------------------------------------------------------------------------------------- blocks


class LayerNorm(nn.Module):
    """Each vector to mean 0 and variance 1, then scaled and shifted as learned (Ba et al. 2016)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)"""
        x = x - x.mean(dim=-1, keepdim=True)
        x = x * (x.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
        return x * self.weight + self.bias


class Attention(nn.Module):
    """Each position asks (query), all offer (key), and what they say (value) is mixed."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor, bias: Tensor, turn: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, C) -> (B, T, C), weights (B, H, T, T)"""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D): one sentence to each head
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        mixed, weights = attend(q, k, v, bias)
        return self.out(mixed.transpose(1, 2).reshape(B, T, C)), weights


class MLP(nn.Module):
    """Two layers, the inner one four times as wide, for each position by itself."""

    def __init__(self, size: int, activation: str) -> None:
        super().__init__()
        # SwiGLU has three matrices for two: two thirds of the width make as many parameters.
        self.activation, gated = activation, activation == "swiglu"
        inner = 8 * size // 3 if gated else 4 * size
        self.up = nn.Linear(size, 2 * inner if gated else inner)
        self.down = nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        x = self.up(x)
        if self.activation == "swiglu":  # one half opens and shuts the other
            gate, x = x.chunk(2, dim=-1)
            return self.down(F.silu(gate) * x)
        return self.down(F.relu(x) if self.activation == "relu" else F.gelu(x))


class Block(nn.Module):
    """Attention, then an mlp; each reads the stream x and adds to it."""

    def __init__(self, size: int, heads: int, norm: str, activation: str, ablate: str) -> None:
        super().__init__()
        self.norm, self.residual = norm, ablate != "residual"
        make_norm = nn.Identity if ablate == "norm" else LayerNorm
        self.attention = self.mlp = None
        if ablate != "attention":
            self.attention, self.norm1 = Attention(size, heads), make_norm(size)
        if ablate != "mlp":
            self.mlp, self.norm2 = MLP(size, activation), make_norm(size)

    def forward(self, x: Tensor, bias: Tensor, turn: Tensor | None, drop) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        if self.attention is not None:
            x = self.add(x, lambda x: drop(self.attention(x, bias, turn)[0]), self.norm1)
        if self.mlp is not None:
            x = self.add(x, lambda x: drop(self.mlp(x)), self.norm2)
        return x

    def add(self, x: Tensor, part, norm: nn.Module) -> Tensor:
        """The norm before the part: x itself flows from first to last layer untouched (Xiong et
        al. 2020). After it, as in the first transformer: every layer rescales it."""
        if self.norm == "pre":
            return x + part(norm(x)) if self.residual else part(norm(x))
        return norm(x + part(x)) if self.residual else norm(part(x))


class Pointer(nn.Module):
    """Words of the text so far may be said again: those that followed outputs like this one.

    The look back of model 03, over a transformer's outputs: a word's key is the output before it,
    so that the question is "when did I expect what I expect now?" (Grave et al. 2017).
    """

    def __init__(self, size: int, vocab_size: int, context: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.gate = nn.Linear(size, 1)
        # At first all scores are about 0: so it copies in one case of eight, if the text is long.
        nn.init.constant_(self.gate.bias, math.log(vocab_size / context) - 2)

    def forward(self, logits: Tensor, outputs: Tensor, words: Tensor) -> Tensor:
        """logits (B, T, V), outputs (B, S, C) and words (B, S), the T last of them -> (B, T, V)"""
        T, S = logits.size(1), words.size(1)
        now = outputs[:, S - T :]
        scores = self.query(now) @ self.key(outputs).transpose(1, 2) / outputs.size(-1) ** 0.5
        scores = F.pad(scores[..., :-1].float(), (1, 0))  # (B, T, S): the first word has no key
        ahead = torch.ones(T, S, device=words.device).triu(S - T + 1).bool()
        return self.copy(logits.float(), now, scores.masked_fill(ahead, -torch.inf), words)

    def copy(self, logits: Tensor, outputs: Tensor, scores: Tensor, words: Tensor) -> Tensor:
        """Let words be copied: logits (B, T, V), scores (B, T, S), words (B, S) -> logits

        One softmax over the vocabulary and the past (Merity et al. 2017): exp(logit) of a word
        grows by the sum of exp(gate + score) over all entries with that word. How wide the gate
        is, the output says.
        """
        ordered, places = words.sort(dim=1, stable=True)  # equal words side by side: one slot
        new = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
        slot = new.cumsum(dim=1)[:, None].expand_as(scores)
        top = scores.detach().amax(dim=2, keepdim=True)  # taken off, so that exp cannot overflow
        weights = (scores - top).exp().gather(2, places[:, None].expand_as(scores))
        weights = torch.zeros_like(weights).scatter_add(2, slot, weights)  # (B, T, slots)
        index = torch.zeros_like(slot).scatter(2, slot, ordered[:, None].expand_as(slot))
        copied = self.gate(outputs).float() + top + weights.clamp(min=1e-30).log()
        copied = copied.masked_fill(weights == 0, -torch.inf)  # a slot not used, or not seen yet
        gain = F.softplus(copied - logits.gather(2, index))  # log(e^logit + e^copied) - logit
        return logits.scatter_add(2, index, gain)


class MiniTransformer(nn.Module):
    """Embeddings and positions, a stack of blocks, a read-out."""

    def __init__(
        self, vocab_size: int, hidden_size: int = 256, layers: int = 4, dropout: float = 0.0,
        heads: int = 4, context: int = 128, positions: str = "rope", norm: str = "pre",
        activation: str = "gelu", objective: str = "causal", ablate: str = "none",
        copy: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = dict(
            vocab_size=vocab_size, hidden_size=hidden_size, layers=layers, dropout=dropout,
            heads=heads, context=context, positions=positions, norm=norm, activation=activation,
            objective=objective, ablate=ablate, copy=copy,
        )  # fmt: skip
        self.context = context  # tokens read at once, at most; may be changed later
        self.positions = "none" if ablate == "positions" else positions
        self.causal = objective == "causal"
        self.mask_id = vocab_size  # the token that stands where a word is hidden
        self.embedding = nn.Embedding(vocab_size + (not self.causal), hidden_size)
        if self.positions == "learned":
            self.places = nn.Embedding(context, hidden_size)
        self.blocks = nn.ModuleList(
            [Block(hidden_size, heads, norm, activation, ablate) for _ in range(layers)]
        )
        final = norm == "pre" and ablate != "norm"
        self.norm = LayerNorm(hidden_size) if final else nn.Identity()
        # A read-out of its own: x still holds the token read, and would call for it again.
        self.head = nn.Linear(hidden_size, vocab_size)
        self.pointer = None if copy == "none" else Pointer(hidden_size, vocab_size, context)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T), state (B, S) or None -> logits (B, T, V), state

        The state: the tokens themselves, at most `context` of them, all read again at each call.
        Once they are that many, the older half is forgotten, and they grow again.
        """
        past = tokens[:, :0] if state is None else state
        logits = []
        while tokens.size(1):
            if past.size(1) >= self.context:
                past = past[:, past.size(1) - self.context // 2 :]
            new = tokens[:, : self.context - past.size(1)]
            tokens = tokens[:, new.size(1) :]
            past = torch.cat((past, new), dim=1)
            logits.append(self.read(past, new.size(1)))
        return logits[0] if len(logits) == 1 else torch.cat(logits, dim=1), past

    def read(self, tokens: Tensor, last: int) -> Tensor:
        """tokens (B, S) -> logits of the last T of them (B, T, V)"""
        T, device = tokens.size(1), tokens.device
        x = self.embed(tokens)
        bias = torch.zeros(T, T, device=device)
        if self.causal:  # no peeking ahead
            bias = bias.masked_fill(torch.ones_like(bias).triu(1).bool(), -torch.inf)
        if self.positions == "alibi":
            bias = bias + alibi(T, self.config["heads"]).to(device)
        turn = None
        if self.positions == "rope":
            turn = angles(T, self.config["hidden_size"] // self.config["heads"]).to(device)
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, bias, turn, self.drop)
        x = self.norm(x)
        logits = self.head(x[:, T - last :])
        return logits if self.pointer is None else self.pointer(logits, x, tokens)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> vectors (B, T, C), which know their place if positions are added"""
        T, size = tokens.size(1), self.config["hidden_size"]
        x = self.embedding(tokens)
        if self.positions == "sinusoidal":
            x = x + sinusoidal(T, size).to(x.device)
        if self.positions == "learned":
            if self.places.num_embeddings < T:
                raise ValueError(f"learned positions end at {self.places.num_embeddings} tokens")
            x = x + self.places.weight[:T]
        return x

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
