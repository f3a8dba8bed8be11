"""Muon, the optimizer for matrices (Jordan et al. 2024).

    gradient --> averaged over steps --> U S V^T --> U V^T --> step
                                              S: 9, 2, 0.1 ... --> 1, 1, 1 ...

AdamW scales each number of a weight by itself, as if a matrix were a list. But a matrix turns and
stretches, and gradients stretch a few directions far more than the others: those that belong to
what is frequent. Muon keeps the directions of a gradient and makes all stretches 1, so that what
is rare is learned as fast. It is made for matrices between hidden layers; embeddings, whose rows
are a list, the read-out and vectors stay with AdamW.
"""

from __future__ import annotations

import parallel
import torch
from torch import Tensor

# One turn of x -> A x + B x^3 + C x^5 on the stretches; these three push small ones up fastest.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrices: Tensor, turns: int = 5) -> Tensor:
    """About U V^T of each U S V^T, without computing any of the three: (N, R, C) -> (N, R, C)

    Newton-Schulz iteration. The stretches end between 0.7 and 1.2, which is near enough.
    """
    if matrices.size(1) > matrices.size(2):  # the product below is then the smaller one
        return orthogonal(matrices.mT, turns).mT
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)  # all at most 1
    for _ in range(turns):
        square = x @ x.mT  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, and decoupled weight decay.

    Steps have 0.2 of the learning rate as their root mean square, as those of AdamW have, so that
    one learning rate fits both (Liu et al. 2025). dtype: of the products, which can be rough.
    """

    def __init__(
        self, params: list[Tensor], momentum: float = 0.95, weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(params, dict(lr=0.0, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for shape, weights in alike.items():  # all of a shape at once: several times faster
                wanted = torch.stack([self.averaged(p, group["momentum"]) for p in weights])
                steps = orthogonal(wanted.to(self.dtype)).to(wanted.dtype)
                size = 0.2 * group["lr"] * max(shape) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(steps), alpha=-size)

    def averaged(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient, averaged over steps and with a look ahead (Nesterov): (R, C)"""
        state = self.state[p]
        if not state:
            state["average"] = torch.zeros_like(p)
        return p.grad.lerp(state["average"].lerp_(p.grad, 1 - momentum), momentum)


class Optimizers:
    """Several optimizers, each for some of the weights, that look like one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [parallel.whole(part.state_dict()) for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, own in zip(self.parts, state["parts"], strict=True):
            parallel.load_optimizer(part, own)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
