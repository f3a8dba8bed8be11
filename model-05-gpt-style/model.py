"""Model 05: GPT. The blocks of model 04, in the form in which they were scaled up.

    tokens                  Once      upon      a         time
    embedding + place       x         x         x         x
      block, L times:
        norm, attention     x   <---  x   <---  x   <---  x          looks at what has passed
        norm, mlp           x         x         x         x          each position for itself
    norm, embedding again   upon      a         time      there

    cache                   k v       k v       k v       .  .       room for `context` tokens

New since model 04: a cache. What a token offers to later ones, its key and its value, does not
depend on what comes after, so it is computed once and kept: the next token costs one position,
not all. And the details of GPT-2: one matrix to read tokens in and out, a start in which every
block adds nothing.

Sources: Radford et al. 2019 (GPT-2), Press & Wolf 2017 (one matrix), Shazeer 2019 (the cache),
Merity et al. 2017 (copying), Pagnoni et al. 2024 (n-grams)

Shapes: B batch, T time, S tokens of the state and new ones, C channels, H heads, D = C / H head
        size, L layers, V vocabulary

    diff model.py llama.py               # the other architecture: four changes
    python train.py --preset tiny        # this model, trained in seconds
    python generate.py                   # and writing
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Cache:
    """The keys and values of all that has been read, with room for `context` tokens.

    The room is set aside once: to add a token, nothing that is there must move.
    """

    def __init__(self, layers: int, context: int) -> None:
        self.layers, self.context = layers, context
        self.store: Tensor | None = None  # (2, L, B, H, context, D): keys, values
        self.length = 0  # places in use

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values (B, H, T, D) of a layer -> all of them so far (B, H, S, D)"""
        B, H, T, D = k.shape
        if self.store is None:
            self.store = k.new_zeros(2, self.layers, B, H, self.context, D)
        end = self.length + T
        self.store[:, layer, :, :, self.length : end] = torch.stack((k, v))
        return self.store[:, layer, :, :, :end].unbind()

    def branch(self, length: int) -> Cache:
        """A copy that goes on from an earlier token, and leaves this one as it is."""
        copy = Cache(self.layers, self.context)
        copy.store, copy.length = self.store.clone(), length
        return copy


class State(NamedTuple):
    """What the model knows of the text so far."""

    tokens: Tensor  # (B, S), at most `context` of them
    cache: Cache


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention: q (B, H, T, D), k, v (B, H, S, D), mask (T, S) -> (B, H, T, D)

    mask: 0, or minus infinity where nothing may be seen; None where there is nothing to hide.
    """
    if q.device.type != "cpu" or mask is None:  # one kernel for all of it (Dao et al. 2022)
        whole = mask is not None and q.size(2) == k.size(2)
        return F.scaled_dot_product_attention(q, k, v, None if whole else mask, is_causal=whole)
    # On a CPU, for many queries in bfloat16, the same written out is several times faster.
    scores = (q / q.size(-1) ** 0.5) @ k.transpose(-2, -1) + mask  # (B, H, T, S)
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Each position asks (query), all offer (key), and what they say (value) is mixed."""

    def __init__(self, config: dict, layer: int) -> None:
        super().__init__()
        C, self.heads, self.layer = config["hidden_size"], config["heads"], layer
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D)
        mixed = attend(q, k, v, mask)
        return self.out(mixed.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two layers, the inner one four times as wide, for each position by itself."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        C = config["hidden_size"]
        self.up = nn.Linear(C, 4 * C)
        self.down = nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # as GPT-2 has it


class Block(nn.Module):
    """Attention, then an mlp; each reads the stream x, normed, and adds to it."""

    def __init__(self, config: dict, layer: int) -> None:
        super().__init__()
        C = config["hidden_size"]
        self.norm1, self.attention = nn.LayerNorm(C), Attention(config, layer)
        self.norm2, self.mlp = nn.LayerNorm(C), MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None, drop) -> Tensor:
        """x (B, T, C) -> (B, T, C)"""
        x = x + drop(self.attention(self.norm1(x), mask, cache))
        return x + drop(self.mlp(self.norm2(x)))


class NGrams(nn.Module):
    """What the last 2, 3, ... N tokens are together: a row of a table for each, added up.

    Blocks must first learn that "q" and "u" make "qu". A table that is asked for both at once
    knows it as soon as it has seen them. One of all n-grams would have V ** N rows, so a hash
    picks one of a few, which strangers share (Pagnoni et al. 2024, 3.2.1).
    """

    ROWS = 8192  # of each table

    def __init__(self, config: dict) -> None:
        super().__init__()
        sizes = range(2, config["ngrams"] + 1)
        self.tables = nn.ModuleList([nn.Embedding(self.ROWS, config["hidden_size"]) for _ in sizes])
        for table in self.tables:
            nn.init.zeros_(table.weight)  # it begins as the model without it

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """tokens (B, S + T) -> for the last T of them (B, T, C)"""
        earlier = key = tokens[:, -T - len(self.tables) :]
        total = 0.0
        for table in self.tables:
            earlier = F.pad(earlier[:, :-1], (1, 0), value=-1)  # -1: before the first token
            key = (key * 31_337 + earlier) % (2**31 - 1)
            total = total + table(key[:, -T:] % self.ROWS)
        return total


class Pointer(nn.Module):
    """Words of the text so far may be said again: those that followed outputs like this one.

    The look back of model 03, over a transformer's outputs: a word's key is the output before it,
    so that the question is "when did I expect what I expect now?" (Grave et al. 2017). The keys
    lie in the cache, behind those of the last layer.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        C, self.layer = config["hidden_size"], config["layers"]
        self.heads = config.get("kv_heads", config["heads"])  # only to fit into the cache
        size = self.heads * config.get("head_size", C // config["heads"])
        self.query, self.key = nn.Linear(C, size, bias=False), nn.Linear(C, size, bias=False)
        self.gate = nn.Linear(C, 1)
        # At first all scores are about 0: so it copies in one case of eight, if the text is long.
        nn.init.constant_(self.gate.bias, math.log(config["vocab_size"] / config["context"]) - 2)

    def forward(
        self, outputs: Tensor, words: Tensor, embedding: nn.Module, head: nn.Module,
        mask: Tensor | None, cache: Cache | None,
    ) -> Tensor:  # fmt: skip
        """outputs (B, T, C), words (B, S), the last T theirs -> logits (B, T, V)"""
        logits = head(outputs)
        q, k = self.query(outputs), self.key(outputs)
        q, k = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (q, k))
        if cache is not None:
            k, _ = cache.append(self.layer, k, k)  # (B, H, S, D)
        scores = (q / (q.size(1) * q.size(3)) ** 0.5) @ k.transpose(2, 3)
        scores = F.pad(scores.sum(dim=1).float()[..., :-1], (1, 0))  # the first word has no key
        if mask is not None:
            scores = scores + mask
        return self.copy(logits.float(), outputs, scores, words)

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


class WordPointer(Pointer):
    """A pointer that misses nothing that was said: model 04's, with three additions.

    - A word's key is the word itself as well. The first word of a text follows no output.
    - `Umber` and ` Umber` are two tokens and one word. Both may be said; which, the output says.
    - What it points at it also reads. Who had seven and gave three has four left: that number may
      stand nowhere, so the two that do must reach the read-out.
    """

    def __init__(self, config: dict) -> None:
        super().__init__(config)
        C, size = config["hidden_size"], self.key.out_features
        self.own, self.value = nn.Linear(C, size, bias=False), nn.Linear(C, C, bias=False)
        self.first, self.blank = nn.Parameter(torch.zeros(size)), nn.Linear(C, 1)
        nn.init.zeros_(self.own.weight)  # it begins as the pointer without these two
        nn.init.zeros_(self.value.weight)
        # The token of each word without and with a blank before it; see `join`.
        self.register_buffer("forms", torch.arange(config["vocab_size"]).repeat(2, 1))  # (2, V)

    def join(self, texts: list[str]) -> None:
        """Make tokens one word that differ only in a blank before it: the text of each token."""
        ids = {text: index for index, text in enumerate(texts)}
        forms = self.forms.cpu()  # on a GPU the model may be by now
        for text, bare in ids.items():
            spaced = ids.get(f" {text}")
            if text.isalpha() and spaced is not None:
                forms[0, spaced], forms[1, bare] = bare, spaced
        self.forms.copy_(forms)

    def forward(
        self, outputs: Tensor, words: Tensor, embedding: nn.Module, head: nn.Module,
        mask: Tensor | None, cache: Cache | None,
    ) -> Tensor:  # fmt: skip
        """outputs (B, T, C), words (B, S), the last T theirs -> logits (B, T, V)"""
        bare, spaced = self.forms[:, words]  # each (B, S)
        read = embedding(bare).to(outputs.dtype)  # (B, S, C)
        q, k, own = self.query(outputs), self.key(outputs), self.own(read[:, -outputs.size(1) :])
        q, k, own = (each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (q, k, own))
        if cache is not None:
            k, own = cache.append(self.layer, k, own)  # (B, H, S, D)
        first = self.first.to(k.dtype).view(1, self.heads, 1, -1).expand(len(k), -1, -1, -1)
        k = torch.cat((first, k[:, :, :-1]), dim=2) + own
        scores = (q / (q.size(1) * q.size(3)) ** 0.5) @ k.transpose(2, 3)
        scores = scores.sum(dim=1).float()  # (B, T, S)
        if mask is not None:
            scores = scores + mask
        seen = scores.softmax(dim=2).to(read.dtype) @ read  # (B, T, C)
        logits = head(outputs + self.value(seen)).float()
        blank = self.blank(outputs).float()  # log-odds of one before the word
        scores = torch.cat((scores + F.logsigmoid(-blank), scores + F.logsigmoid(blank)), dim=2)
        return self.copy(logits, outputs, scores, torch.cat((bare, spaced), dim=1))


POINTERS = {"none": lambda config: None, "pointer": Pointer, "words": WordPointer}  # --copy


class GPT(nn.Module):
    """Embeddings and places, a stack of blocks, a read-out; GPT-2 with its usual arguments."""

    def __init__(
        self, vocab_size: int, hidden_size: int = 256, layers: int = 6, dropout: float = 0.0,
        heads: int = 4, context: int = 256, tied: bool = True, copy: str = "none", ngrams: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = dict(
            vocab_size=vocab_size, hidden_size=hidden_size, layers=layers, dropout=dropout,
            heads=heads, context=context, tied=tied, copy=copy, ngrams=ngrams,
        )  # fmt: skip
        self.context = context  # tokens it sees, at most
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.places = nn.Embedding(context, hidden_size)
        self.blocks = nn.ModuleList([Block(self.config, layer) for layer in range(layers)])
        self.norm = nn.LayerNorm(hidden_size)
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
        x = self.embedding(tokens[:, S:]) + self.places.weight[S : S + T]  # (B, T, C)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, T)
        if torch.is_autocast_enabled(device.type):  # half as many bytes to move
            x = x.to(torch.get_autocast_dtype(device.type))
        mask = None
        if T > 1:  # no peeking ahead
            mask = torch.full((T, S + T), -torch.inf, dtype=x.dtype, device=device).triu(S + 1)
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, mask, cache, self.drop)
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
