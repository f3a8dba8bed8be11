"""LoRA: fine-tuning by a small detour around each frozen matrix (Hu et al. 2021).

              x (C)
         ┌──────┴──────┐
         │             │  A (rank, C), random
       W (R, C)        ▼
      frozen      rank numbers           8 instead of hundreds
         │             │  B (R, rank), zero at the start
         │             ▼
         │        * alpha / rank
         └──────┬──────┘
                + (R)            merged: W + alpha / rank * B A, and the detour is gone

B starts at zero, so the model starts as it was. Only A and B learn: a few percent of the weights,
with their gradients and moments, and a file of a few percent of the size. `alpha / rank` keeps the
step about as large whatever the rank, so that one learning rate fits several.

Why a low rank is enough: fine-tuning moves a matrix in few directions. --spectrum shows how few
in a model of yours.

QLoRA (Dettmers et al. 2023) is this file over quantize.py's NF4 layer: W lies in 4 bits, with
double quantization, and A and B in floating point beside it. quantize(model, "nf4"), then
inject(model): nothing else changes.

Shapes: B batch, T time, C inputs of a layer, R its outputs

    python lora.py --spectrum checkpoints/last.pt spam/best.pt          # -> spectrum.png
    python lora.py --merge checkpoints/last.pt spam-lora/best.pt --out merged.pt
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from generate import DIGEST_SIZE, FORMAT, MODELS, VERSION, Arguments, command, find
from generate import read_checkpoint as read
from quantize import Quantized
from torch import Tensor, nn
from torch.nn import functional as F
from train import replacing, shown, write_checkpoint

from shared import UserError
from shared.utils import visualize

# The linear layers of a block, by name, and all those of a pointer.
TARGETS = ("qkv", "out", "gate", "up", "down", "pointer")
KIND = "LoRA"  # what `architecture` says in a file of adapters


class LoRA(nn.Module):
    """A linear layer, frozen, and a detour of low rank: W x + alpha / rank * B A drop(x)"""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base, self.drop, self.scale = base, nn.Dropout(dropout), alpha / rank
        device = next(base.buffers() if isinstance(base, Quantized) else base.parameters()).device
        # A x is about as large as x; B is 0, so that nothing changes before the first step.
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.merged, self.off = False, False
        self.to(device).train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, R)"""
        y = self.base(x)
        if self.merged or self.off:
            return y
        return y + self.scale * F.linear(F.linear(self.drop(x), self.A), self.B)

    @torch.no_grad()
    def merge(self, sign: int = 1) -> None:
        """Add the detour to W, or with -1 take it out again; done twice is done once.

        Raises UserError for a quantized W: the sum would not be one of its levels.
        """
        if isinstance(self.base, Quantized):
            raise UserError("adapters do not fit into quantized weights: merge them without")
        if self.merged != (sign > 0):
            self.base.weight += sign * self.scale * self.B @ self.A
            self.merged = sign > 0


def layers_of(model: nn.Module) -> dict[str, LoRA]:
    """All detours of a model, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, LoRA)}


def inject(
    model: nn.Module, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0,
    targets: tuple[str, ...] = TARGETS,
) -> nn.Module:  # fmt: skip
    """The model, frozen, with detours around the linear layers of these names, in place.

    Raises UserError where no layer has such a name, or where there are detours already.
    """
    if layers_of(model):
        raise UserError("this model has adapters already: merge them first")
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        called = child if parent.startswith("blocks.") else parent
        if parent and called in targets and isinstance(layer, nn.Linear | Quantized):
            setattr(model.get_submodule(parent), child, LoRA(layer, rank, alpha, dropout))
    if not layers_of(model):
        raise UserError(f"no layer is called {', '.join(targets)}: choose of {', '.join(TARGETS)}")
    return model


def merge(model: nn.Module) -> nn.Module:
    """Each W + alpha / rank * B A: as fast as before, and the same to rounding, in place."""
    for layer in layers_of(model).values():
        layer.merge()
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Detours beside their W again, to train on, in place."""
    for layer in layers_of(model).values():
        layer.merge(-1)
    return model


def absorb(model: nn.Module) -> nn.Module:
    """Merge, and take the detours off: a model as it was before inject, in place."""
    for name, layer in layers_of(merge(model)).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The model as it was before fine-tuning, meanwhile: a reference that needs no second copy."""
    layers = layers_of(model).values()
    for layer in layers:
        layer.off = True
    try:
        yield
    finally:
        for layer in layers:
            layer.off = False


# ------------------------------------------------------------------------------------ the files


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    """What has been learned, and nothing else: {"blocks.0.attention.qkv.A": (rank, C), ...}"""
    pairs = [(f"{name}.{part}", getattr(layer, part).detach())
             for name, layer in layers_of(model).items() for part in ("A", "B")]  # fmt: skip
    return dict(pairs)


def load_adapters_into(model: nn.Module, adapters: dict[str, Tensor]) -> None:
    """Raises UserError if these are not the adapters of this model's layers."""
    own = adapters_of(model)
    if {name: each.shape for name, each in own.items()} != {
        name: each.shape for name, each in adapters.items()
    }:
        raise UserError("these adapters are of another model: use the one they were trained on")
    for name, each in adapters.items():
        own[name].copy_(each)


def sha256_of(path: Path) -> str:
    """The SHA-256 that a checkpoint carries in its last bytes, hex."""
    with path.open("rb") as file:
        file.seek(-DIGEST_SIZE, 2)
        return file.read().hex()


def save_adapters(path: Path, model: nn.Module, base: Path, settings: dict, **more) -> None:
    """The adapters only, with the SHA-256 of the checkpoint that they belong to.

    settings: the arguments of inject. more: whatever else shall be in the file, plain values.
    """
    kind = {"format": FORMAT, "version": VERSION, "architecture": KIND}
    settings = settings | {"targets": list(settings["targets"])}
    own = {"lora": settings, "base": sha256_of(base), "adapters": adapters_of(model)}
    write_checkpoint(path, kind | own | more)


def load_adapters(path: Path, model: nn.Module, base: Path) -> dict:
    """Inject into the model what save_adapters saved; returns all that is in the file.

    Raises UserError if the file holds no adapters, or those of another base.
    """
    saved = read(path)
    if tuple(saved.get(key) for key in ("format", "version", "architecture")) != (
        FORMAT, VERSION, KIND,
    ):  # fmt: skip
        raise UserError(f"{path} holds no adapters: give a file that --train lora wrote")
    if saved["base"] != sha256_of(base):
        raise UserError(f"{path} was not trained on {base}: give the checkpoint it belongs to")
    inject(model, **(saved["lora"] | {"targets": tuple(saved["lora"]["targets"])}))
    load_adapters_into(model, saved["adapters"])
    return saved


# --------------------------------------------------------------------- why a low rank is enough


def kept(update: Tensor) -> np.ndarray:
    """What the best matrix of rank 1, 2, ... keeps of an update: shares of its squared length.

    The best one is made of the largest singular values (Eckart & Young 1936).
    """
    energy = torch.linalg.svdvals(update.double()).square()
    return (energy.cumsum(0) / energy.sum()).numpy()


def weights_of(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint. Raises UserError if it holds adapters only."""
    saved = read(path)
    if "model" not in saved:
        raise UserError(f"{path} holds adapters only: merge them into a model with lora.py")
    return saved["model"]


def updates(base: dict, tuned: dict) -> dict[str, Tensor]:
    """What fine-tuning has added to each matrix of the blocks. Raises UserError if nothing."""
    found = {}
    for name, weight in base.items():
        if name.startswith("blocks.") and weight.dim() == 2:
            if name not in tuned or tuned[name].shape != weight.shape:
                raise UserError(
                    "the two checkpoints differ in shape: give one tuned from the other"
                )
            if not torch.equal(tuned[name], weight):
                found[name] = tuned[name] - weight
    if not found:
        raise UserError("the two checkpoints have the same matrices: give one tuned from the other")
    return found


def plot_spectrum(shares: dict[str, np.ndarray], chance: np.ndarray, path: Path) -> None:
    """A line for each matrix, and what a random update of the same shape would show."""
    figure, axes = visualize.new_figure()
    names = sorted({name.split(".")[-2] for name in shares})
    colours = dict(zip(names, visualize.COLOURS[1:], strict=False))
    for name, share in shares.items():
        colour = colours[name.split(".")[-2]]
        axes.plot(range(1, len(share) + 1), share, color=colour, alpha=0.5, lw=1)
    for name, colour in colours.items():
        axes.plot([], [], color=colour, label=name)
    style = dict(color=visualize.GREY, ls="--", label="random numbers")
    axes.plot(range(1, len(chance) + 1), chance, **style)
    axes.legend(frameon=False, loc="lower right")
    axes.set(
        title="How much of a fine-tuning update a low rank keeps",
        xlabel="rank", ylabel="share of the update's squared length", xscale="log", ylim=(0, 1.02),
    )  # fmt: skip
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    figure.savefig(path, format="png", dpi=120)


def show_spectrum(base: Path, tuned: Path, out: Path) -> None:
    """Print, and draw, how many directions fine-tuning has used."""
    found = updates(weights_of(base), weights_of(tuned))
    shares = {name: kept(update) for name, update in found.items()}
    widest = max(found.values(), key=lambda update: min(update.shape))
    chance = kept(torch.randn(widest.shape, generator=torch.Generator().manual_seed(0)))
    print("matrix                        shape         rank 1   rank 8  rank 32   90 % at rank")
    for name, share in [*shares.items(), ("random numbers", chance)]:
        shape = " x ".join(map(str, found[name].shape if name in found else widest.shape))
        some = " ".join(f"{share[min(r, len(share)) - 1]:8.1%}" for r in (1, 8, 32))
        print(f"{name:28}  {shape:12} {some}   {np.searchsorted(share, 0.9) + 1:12}")
    with replacing(out) as temporary:
        plot_spectrum(shares, chance, temporary)
    print(f"picture: {shown(out)}")


def merge_files(base: Path, adapters: Path, out: Path) -> None:
    """Write a checkpoint that every script reads, with the adapters merged into the base."""
    checkpoint = read(base)
    if checkpoint.get("architecture") not in MODELS:
        raise UserError(f"{base} holds no model: give the checkpoint the adapters belong to")
    model = MODELS[checkpoint["architecture"]](**checkpoint["config"])
    model.load_state_dict(checkpoint["model"])
    saved = load_adapters(adapters, model, base)
    for key in ("optimizer", "scaler", "rng"):  # the base's run does not go on from here
        checkpoint.pop(key, None)
    kept = ("template", "dataset", "progress", "instruct", "dpo") if "template" in saved else ()
    learned = {key: saved[key] for key in kept if key in saved}  # of a model that obeys
    write_checkpoint(out, checkpoint | learned | {"model": absorb(model).state_dict()})
    print(f"merged: {shown(out)}")


def main() -> None:
    parser = Arguments("Look at a fine-tuning update, or merge adapters.", "lora.py")
    help = "draw the singular values of TUNED - BASE"
    parser.text("--spectrum", help, nargs=2, metavar=("BASE", "TUNED"))
    help = "write BASE with ADAPTERS merged into it"
    parser.text("--merge", help, nargs=2, metavar=("BASE", "ADAPTERS"))
    parser.text("--out", "the file to write (spectrum.png, or merged.pt)")
    args = parser.parse()
    if bool(args.spectrum) == bool(args.merge):
        raise UserError("nothing to do: give --spectrum BASE TUNED, or --merge BASE ADAPTERS")
    first, second = map(find, args.spectrum or args.merge)
    if args.spectrum:
        show_spectrum(first, second, Path(args.out or "spectrum.png"))
    else:
        merge_files(first, second, Path(args.out or "merged.pt"))


if __name__ == "__main__":
    command(main)
