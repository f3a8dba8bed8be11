"""Where does it look? A heat map of attention over a text, as a PNG.

    words looked at          Once    upon    a       fox
    words expected     fox   0.1     0.1     0.8                 each row sums to 1: softmax
                       ran   0.0     0.1     0.1     0.8

Each row is a moment: the word that comes next, and how much of each word read so far the model
took to guess it. A word that is copied has its weight where it stood before.

    python show_attention.py                                   # a text that the model writes
    python show_attention.py --text "Pip the fox lost a key. Poor"
"""

from __future__ import annotations

from pathlib import Path

import torch
from generate import Arguments, Model, command, find, generate, load_checkpoint, opening
from torch import Tensor

from shared import UserError
from shared.utils import visualize

LENGTH, MOST = 50, 150  # tokens: written at most where there is no text; that a picture can hold


@torch.inference_mode()
def attention_weights(model: Model, tokens: list[int]) -> Tensor:
    """What each output takes of each entry: (T, T), for a text within the model's window."""
    caught = []
    hook = model.attention.register_forward_hook(lambda _, inputs, output: caught.append(output[1]))
    model(torch.tensor([tokens]))
    hook.remove()
    return caught[0][0].softmax(dim=-1)


def main() -> None:
    parser = Arguments("Draw where the model looks while it reads a text.", "show_attention.py")
    parser.text("--checkpoint", "whose attention", "checkpoints/best.pt")
    parser.text("--text", f"what it reads ({LENGTH} tokens that it writes)")
    parser.number("--seed", int, "of the text that it writes", 0, 2**31, default=1)
    parser.text("--out", "the picture", "attention.png")
    args = parser.parse()
    model, tokenizer, _ = load_checkpoint(find(args.checkpoint))
    if model.attention is None:
        raise UserError(f"{args.checkpoint} has no attention: train with --attention dot")
    most = min(MOST, model.attention.window)
    if args.text is None:
        start = opening(tokenizer)
        how = dict(temperature=0.8, seed=args.seed, never=tokenizer.unk_id)
        tokens = [*start, *generate(model, start, min(LENGTH, most - len(start)), **how)]
    else:
        tokens = tokenizer.encode(args.text)
    if most < 2:
        raise UserError(f"{args.checkpoint} sees one word only: train with a larger --window")
    if not 2 <= len(tokens) <= most:
        raise UserError(f"--text has {len(tokens)} tokens: give it from 2 to {most}")
    names = [visualize.visible(tokenizer.token_text(token)) for token in tokens]
    weights = attention_weights(model, tokens)[:-1]  # nobody knows what comes after the last
    visualize.plot_attention(names[1:], names, weights.tolist(), Path(args.out), "Where it looks")
    print(f"{tokenizer.decode(tokens)}\n\nThe heat map is in {args.out}")


if __name__ == "__main__":
    command(main)
