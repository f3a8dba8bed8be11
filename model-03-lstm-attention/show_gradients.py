"""How far back does learning reach? The gradient of a loss, against the distance of the input.

    loss_t --> h_t --> h_{t-1} --> h_{t-2} --> ...        on its way back a gradient is multiplied
                |         |           |                   by U and by a slope < 1 at every step
               x_t      x_{t-1}     x_{t-2}

What arrives at x_{t-k} tells how strongly a mistake at t can change what the model keeps of a
word k steps ago. In an RNN it fades exponentially (vanishing gradients: Hochreiter 1991, Bengio
et al. 1994). The gates of a GRU and an LSTM leave a way along which nothing is multiplied by U,
and attention leads straight to the word.

    python show_gradients.py                              # new models, of each cell
    python show_gradients.py lstm/best.pt gru/best.pt     # trained ones
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from generate import Arguments, Model, command, find, load_checkpoint, name_of
from torch.nn import functional as F

from shared import UserError
from shared.data.download import load_text
from shared.data.tales import write_corpus
from shared.utils import visualize
from shared.utils.tokenizers import Tokenizer, WordTokenizer

TEXTS = 64  # places in the text that the gradient is averaged over


def gradient_norms(model: Model, tokenizer: Tokenizer, text: str, reach: int) -> list[float]:
    """|d loss / d input| by distance, 0 to reach - 1, as a share of that at distance 0.

    The loss is that of one prediction, after `reach` tokens; the inputs are their vectors.
    """
    tokens = torch.tensor(tokenizer.encode(text))
    if len(tokens) <= reach:
        raise UserError(f"the text has {len(tokens)} tokens: give a --reach below that")
    starts = random.Random(0).choices(range(len(tokens) - reach), k=TEXTS)
    rows = torch.stack([tokens[start : start + reach + 1] for start in starts])  # (B, reach + 1)
    model.double()  # float32 ends at 1e-38
    inputs = []
    hook = model.embedding.register_forward_hook(lambda _, tokens, output: inputs.append(output))
    logits, _ = model(rows[:, :-1])
    hook.remove()
    loss = F.cross_entropy(logits[:, -1], rows[:, -1], reduction="sum")
    # A word is read by the first layer (T, B, H) and, where there is attention, filed (B, S, H):
    # window by window, and the last prediction looks at the last S words, its own window's.
    gradient, *filed = torch.autograd.grad(loss, inputs)
    for part in filed[-1:]:
        gradient[-part.size(1) :] += part.transpose(0, 1)
    norms = gradient.norm(dim=2).mean(dim=1).flip(0)  # (T,), the last token first
    return (norms / norms[0]).tolist()


def new_models(tokenizer: Tokenizer) -> dict[str, Model]:
    """An untrained model of each cell, and one with attention."""
    torch.manual_seed(0)
    kinds = [("rnn", "none"), ("gru", "none"), ("lstm", "none"), ("lstm", "dot")]
    made = [Model(tokenizer.vocab_size, cell=c, attention=a) for c, a in kinds]
    return {name_of(model.config): model for model in made}


def main() -> None:
    parser = Arguments("Draw how far back gradients reach.", "show_gradients.py")
    parser.text("checkpoints", "trained models (new ones)", nargs="*")
    parser.number("--reach", int, "longest distance, in tokens", 2, 10_000, default=100)
    parser.text("--out", "the picture", "gradients.png")
    args = parser.parse()
    curves = {}
    if args.checkpoints:
        for path in args.checkpoints:
            model, tokenizer, checkpoint = load_checkpoint(find(path))
            text = load_text(checkpoint["dataset"]["name"]).valid
            name = name_of(model.config)
            name += f" ({path})" if name in curves else ""
            curves[name] = gradient_norms(model, tokenizer, text, args.reach)
    else:
        text = write_corpus(10_000 + 10 * args.reach, seed=0, split="valid")[0]
        tokenizer = WordTokenizer.train(text)
        for name, model in new_models(tokenizer).items():
            curves[name] = gradient_norms(model, tokenizer, text, args.reach)
    for name, norms in curves.items():
        shown = "  ".join(f"{k}: {norms[k]:.1e}" for k in (1, 5, 20, 50, 99) if k < len(norms))
        print(f"{name:20} {shown}")
    title = "How far back the gradient reaches"
    visualize.plot_gradients(curves, Path(args.out), title)
    print(f"The picture is in {args.out}")


if __name__ == "__main__":
    command(main)
