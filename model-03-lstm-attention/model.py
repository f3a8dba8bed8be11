"""Model 03: a gated recurrent network that looks back (LSTM + attention).

A memory of one vector forgets. The gates in cells.py make it forget less; attention goes round it.
Each output was an expectation of the next word. The model files it together with the word that
then came, and asks later: when did I expect what I expect now, and what came then?

    words read        Once      upon      a         time
    filed             0:Once    h1:upon   h2:a      h3:time      key: the output before a word
                        |         |         |         |
    weights           softmax(score(h4, key)), by dot or additive scores; they sum to 1
                        |         |         |         |
    what came then    the words' vectors, weighted and added up: s       and the words themselves
                                       |                                            |
                      tanh([h4, s] W): the output          +          copied: each word gets
                      to read the next word from                      its weight once more

New since model 02: cells with gates, attention over the past, a state of several tensors.

Sources: Bahdanau et al. 2015 (additive scores), Luong et al. 2015 (dot scores, and how to mix),
Merity et al. 2017 (copying), Daniluk et al. 2017 (keys that are not values)

Shapes: B batch, T time, S filed entries, L layers, H hidden units, V vocabulary

    python train.py --preset tiny        # this model, trained in seconds
    python generate.py                   # and writing
"""

import math

import torch
from cells import GRULayer, LSTMLayer, RNNLayer
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = {"rnn": RNNLayer, "gru": GRULayer, "lstm": LSTMLayer}


class Attention(nn.Module):
    """A look back at filed entries, each a key and a word: additive or dot scores."""

    def __init__(self, kind: str, vocab_size: int, hidden_size: int, window: int) -> None:
        super().__init__()
        self.kind, self.window = kind, window
        size = hidden_size if kind == "dot" else max(1, hidden_size // 4)
        self.query = nn.Linear(hidden_size, size, bias=False)
        self.key = nn.Linear(hidden_size, size, bias=False)
        if kind == "additive":
            self.score = nn.Linear(size, 1, bias=False)
        self.mix = nn.Linear(2 * hidden_size, hidden_size)
        self.gate = nn.Linear(hidden_size, 1)
        # At first all scores are about 0: so it copies in one case of eight, if the window is full.
        nn.init.constant_(self.gate.bias, math.log(vocab_size / window) - 2)

    def forward(self, outputs: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """outputs (B, T, H), keys and values (B, S, H) -> mixed (B, T, H), scores (B, T, S)

        The last T entries are those of the T outputs. An output sees its own entry and those
        before it, `window` in all; the others score minus infinity.
        """
        q, k = self.query(outputs), self.key(keys)
        if self.kind == "dot":  # Luong et al. 2015 ("general"), scaled as in Vaswani et al. 2017
            scores = q @ k.transpose(1, 2) / q.size(-1) ** 0.5  # (B, T, S)
        else:  # Bahdanau et al. 2015
            scores = self.score(torch.tanh(q[:, :, None] + k[:, None])).squeeze(-1)
        T, S = scores.shape[1:]
        entry = torch.arange(S, device=scores.device)
        age = entry[S - T :, None] - entry  # (T, S): 0 for an output's own entry
        scores = scores.masked_fill((age < 0) | (age >= self.window), -torch.inf)
        seen = scores.softmax(dim=-1) @ values  # (B, T, H); the weights of an output sum to 1
        return torch.tanh(self.mix(torch.cat((outputs, seen), dim=-1))), scores

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


class AttentionLSTM(nn.Module):
    """Embeddings, a stack of recurrent layers, a look back, a read-out with the same embeddings."""

    def __init__(
        self, vocab_size: int, hidden_size: int = 256, layers: int = 1, dropout: float = 0.0,
        cell: str = "lstm", attention: str = "dot", window: int = 256, bidirectional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = dict(
            vocab_size=vocab_size, hidden_size=hidden_size, layers=layers, dropout=dropout,
            cell=cell, attention=attention, window=window, bidirectional=bidirectional,
        )  # fmt: skip
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        make = CELLS[cell]
        self.layers = nn.ModuleList([make(hidden_size, hidden_size) for _ in range(layers)])
        # These read from the end to the beginning: they see the answer. A lesson, not a model.
        readers = layers if bidirectional else 0
        self.readers = nn.ModuleList([make(hidden_size, hidden_size) for _ in range(readers)])
        self.attention = None
        if attention != "none":
            self.attention = Attention(attention, vocab_size, hidden_size, window)
        self.head = nn.Linear(hidden_size, vocab_size)
        self.head.weight = self.embedding.weight
        # Read-out wants short vectors, so that at the start all words are about equally likely;
        # the recurrence wants entries of about 1. So they are stored short, and read out long.
        nn.init.normal_(self.embedding.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """tokens (B, T), state or None -> logits (B, T, V), state

        The state: what the cells carry, (L, B, H), or (L, 2, B, H) with the c of LSTMs; and what
        is filed: keys (B, S + 1, H), the last of them still without its word, and words (B, S).
        """
        x = self.embed(tokens.t())  # (T, B, H)
        last = []
        for i, layer in enumerate(self.layers):
            below = self.drop(x)
            x, h = layer(below, None if state is None else state[0][i])  # (T, B, H), (.., B, H)
            if self.readers:
                x = x + self.readers[i](below.flip(0), None)[0].flip(0)
            last.append(h)
        keys, words = x.new_zeros(x.size(1), 1, x.size(2)), tokens[:, :0]
        if state is not None:
            keys, words = state[1].to(x.dtype), state[2]
        if self.attention is None:
            return self.read_out(x), (torch.stack(last), keys, words)
        logits, keys, words = self.look_back(x.transpose(0, 1), tokens, keys, words)
        return logits, (torch.stack(last), keys, words)

    def look_back(
        self, outputs: Tensor, tokens: Tensor, keys: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """outputs (B, T, H), tokens (B, T), what is filed -> logits (B, T, V), what is filed now"""
        window, T = self.attention.window, tokens.size(1)
        keys = torch.cat((keys, outputs), dim=1)  # (B, S + T + 1, H)
        words = torch.cat((words, tokens), dim=1)  # (B, S + T)
        start, logits = words.size(1) - T, []
        # Piece by piece: however long the text, there are never more than 2 window^2 scores.
        for t in range(0, T, window):
            now = outputs[:, t : t + window]
            seen = slice(max(0, start + t - window), start + t + now.size(1))
            mixed, scores = self.attention(now, keys[:, seen], self.embed(words[:, seen]))
            read = self.read_out(mixed.transpose(0, 1)).float()
            logits.append(self.attention.copy(read, now, scores.float(), words[:, seen]))
        whole = logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)
        return whole, keys[:, -window - 1 :], words[:, -window:]

    def embed(self, tokens: Tensor) -> Tensor:
        """Any shape (...) of tokens -> their vectors (..., H), with entries of about 1"""
        return self.embedding(tokens) * self.config["hidden_size"] ** 0.5

    def read_out(self, x: Tensor) -> Tensor:
        """x (T, B, H) -> logits (B, T, V)"""
        return self.head(self.drop(x).transpose(0, 1))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout with one mask for a whole sequence (Gal & Ghahramani 2016): x (T, B, H).

        A unit is off for all T steps or for none. Drawing T times fewer random numbers also
        makes it several times faster on a CPU than a new mask each step.
        """
        p = self.config["dropout"]
        if not self.training or p == 0:
            return x
        keep = torch.empty_like(x[0]).bernoulli_(1 - p)  # (B, H)
        return x * (keep / (1 - p))
