"""Model 02: a word-level recurrent neural network (Mikolov et al. 2010).

The same recurrence as in model 01, but it reads whole words, and each word has a vector:

    words               Once     upon     a        time
    ids                 512      873      9        101
    embedding           e        e        e        e      a row of a table, learned (Bengio 2003)
                        |        |        |        |      h_t = tanh(x_t W + h_{t-1} U + b)
    state     0 ------> h -----> h -----> h -----> h ---> the state handed to the next call
                        |        |        |        |      logits_t = h_t E^T + c: how much the
    next?               upon?    a?       time?    ,?     memory looks like each word's vector

New since model 01: the embedding E takes the place of the one-hot vector (which it equals: a
one-hot vector times E is a row of E), and the read-out uses the same table (Press & Wolf 2017,
Inan et al. 2017), so that a word has one meaning, whether it is read or written.

Shapes: B batch, T time, L layers, H hidden units (and entries of an embedding), V vocabulary

    python train.py --preset tiny        # this model, trained in seconds
    python generate.py                   # and writing
"""

import torch
from torch import Tensor, nn


class Recurrence(torch.autograd.Function):
    """h_t = tanh(a_t + h_{t-1} U) for T steps, and its backward pass, written out.

    Backpropagation through time (Werbos 1990), from the last step to the first:

        d_t = (1 - h_t^2) * (g_t + d_{t+1} U^T)      d_t: gradient of a_t, g_t: of the output h_t
        gradient of U: the sum over t of h_{t-1}^T d_t

    Autograd would do the same; but that sum, T small products for it, is one large one here.
    """

    @staticmethod
    def forward(ctx, a: Tensor, h: Tensor, U: Tensor) -> Tensor:
        """a (T, B, H), h (B, H), U (H, H) -> outputs h_1 to h_T (T, B, H)"""
        outputs = torch.empty_like(a)
        for t in range(len(a)):
            h_before = h if t == 0 else outputs[t - 1]
            torch.mm(h_before, U, out=outputs[t]).add_(a[t]).tanh_()
        ctx.save_for_backward(outputs, h, U)
        return outputs

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """g (T, B, H), the gradient of the outputs -> the gradients of a, h and U"""
        outputs, h, U = ctx.saved_tensors
        d, later = torch.empty_like(outputs), g[-1]
        for t in reversed(range(len(g))):
            # (1 - h_t^2) * later, straight into d[t]
            torch.ops.aten.tanh_backward.grad_input(later, outputs[t], grad_input=d[t])
            later = d[t] @ U.t()
            if t > 0:
                later += g[t - 1]
        h_before = torch.cat((h[None], outputs[:-1]))  # (T, B, H)
        return d, later, h_before.flatten(0, 1).t() @ d.flatten(0, 1)


class RNNLayer(nn.Module):
    """h_t = tanh(x_t W + h_{t-1} U + b), the recurrence of Elman (1990), for T steps."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W = nn.Linear(input_size, hidden_size)  # holds b as well
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (T, B, input_size), h (B, H) -> outputs (T, B, H), the last h (B, H)"""
        # x W + b needs no state, so it is one large matrix product for all steps, outside the
        # loop. Only h U has to wait for the step before: that wait is why RNNs train slowly.
        a = self.W(x)  # (T, B, H)
        h = a.new_zeros(a.shape[1:]) if h is None else h.to(a.dtype)
        outputs = Recurrence.apply(a, h, self.U.weight.t().to(a.dtype))
        return outputs, outputs[-1]


class WordRNN(nn.Module):
    """Word embeddings, a stack of recurrent layers, and a read-out with the same embeddings."""

    def __init__(
        self, vocab_size: int, hidden_size: int = 256, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = dict(
            vocab_size=vocab_size, hidden_size=hidden_size, layers=layers, dropout=dropout
        )
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList([RNNLayer(hidden_size, hidden_size) for _ in range(layers)])
        self.head = nn.Linear(hidden_size, vocab_size)
        self.head.weight = self.embedding.weight
        # Read-out wants short vectors, so that at the start all words are about equally likely;
        # the recurrence wants entries of about 1. So they are stored short, and read out long.
        nn.init.normal_(self.embedding.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, T), state (L, B, H) or None -> logits (B, T, V), state (L, B, H)

        logits[:, t] score the word after tokens[:, t], seen the state and tokens[:, :t + 1].
        """
        x = self.embedding(tokens.t()) * self.config["hidden_size"] ** 0.5  # (T, B, H)
        x = self.drop(x)
        last = []
        for i, layer in enumerate(self.layers):
            x, h = layer(x, None if state is None else state[i])  # (T, B, H), (B, H)
            x = self.drop(x)
            last.append(h)
        return self.head(x.transpose(0, 1)), torch.stack(last)

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
