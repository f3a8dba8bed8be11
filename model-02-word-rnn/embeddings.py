"""What words mean to the model: the nearest neighbours of a word, and a map of its words.

Nobody tells the model that "king" and "queen" have something in common. But the same words follow
them, and precede them, so that training moves their vectors to the same place.

    similarity      cos(e, f) = e f / (|e| |f|): 1 in the same direction, 0 if nothing is shared
    map             the plane in which the vectors differ most (principal components, Pearson 1901)

Shapes: N words, H entries of an embedding

    python embeddings.py                     # some frequent words, and embeddings.png
    python embeddings.py king night love     # these
"""

from __future__ import annotations

from pathlib import Path

import torch
from generate import Arguments, command, find, load_checkpoint
from torch import Tensor

from shared import UserError
from shared.utils import visualize


def similarities(vectors: Tensor, index: int) -> Tensor:
    """Cosine of the angle between one vector and each: vectors (N, H) -> (N,)

    What all vectors share is taken off first: it says nothing about a single word.
    """
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
    return vectors @ vectors[index]


def principal_plane(vectors: Tensor) -> tuple[Tensor, float]:
    """Where the vectors lie in the plane in which they differ most, and its share of the variance.

    vectors (N, H) -> points (N, 2). The right singular vectors of the centred vectors are the
    directions of greatest variance, in their order.
    """
    centred = vectors - vectors.mean(dim=0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)  # (N or H,), (.., H)
    return centred @ directions[:2].t(), float(sizes[:2].square().sum() / sizes.square().sum())


def frequent_words(tokens: list[str]) -> list[int]:
    """The ids of frequent words of three letters or more, the most frequent first (as ids are).

    Of rare words the model knows little.
    """
    return [i for i, word in enumerate(tokens[:2000]) if len(word) > 2 and word.isalpha()]


def main() -> None:
    parser = Arguments("Show the neighbours of words, and draw a map of words.", "embeddings.py")
    parser.text("words", "words to look up (some frequent ones)", nargs="*")
    parser.text("--checkpoint", "whose words", "checkpoints/best.pt")
    parser.text("--out", "the picture", "embeddings.png")
    args = parser.parse()
    model, tokenizer, _ = load_checkpoint(find(args.checkpoint))
    vectors = model.embedding.weight.detach().float()
    frequent = frequent_words(tokenizer.tokens)
    if len(frequent) < 100:  # those left out below, and enough to fill a list and a map
        raise UserError(f"{args.checkpoint} knows too few words to compare: train on more text")
    if missing := [word for word in args.words if word not in tokenizer.id_of]:
        raise UserError(f"not in the model's vocabulary: {', '.join(missing)}: try other words")
    for word in args.words or [tokenizer.tokens[i] for i in frequent[60:260:20]]:
        index = tokenizer.id_of[word]
        alike = similarities(vectors, index).tolist()
        near = sorted((i for i in frequent if i != index), key=lambda i: -alike[i])
        print(f"{word:12} {'  '.join(tokenizer.tokens[i] for i in near[:8])}")
    shown = frequent[20:220]  # the first ones are words like "the"
    # Directions only: the words of the validation text that training never saw have long vectors.
    points, share = principal_plane(torch.nn.functional.normalize(vectors[shown], dim=1))
    names = [tokenizer.tokens[i] for i in shown]
    title = f"The plane in which {len(names)} words differ most ({100 * share:.0f} % of variance)"
    visualize.plot_words(names, points.tolist(), Path(args.out), title)
    print(f"The map is in {args.out}")


if __name__ == "__main__":
    command(main)
