"""One training run in several processes, on one machine or many, started by torchrun.

    torchrun --nproc-per-node 2 train.py

    process 0    texts 0, 2, 4 ... of the batch --> gradients --+
                                                                +--> mean --> the same step in both
    process 1    texts 1, 3, 5 ... of the batch --> gradients --+

ddp    every process holds the whole model, and they average gradients (Li et al. 2020)
fsdp   every process holds a share of each weight, of its gradient and of the optimizer's memory,
       and fetches the rest when it is needed (Rajbhandari et al. 2020, Zhao et al. 2023)

A batch is the same texts whatever the number of processes, and so are checkpoints: a run may go on
with another number. Without torchrun all of this does nothing.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

from shared import UserError


def begin(device: str) -> tuple[int, int]:
    """Meet the other processes that torchrun started: this one's number, and how many they are.

    Only process 0 prints. Raises UserError where there is no GPU for each of them.
    """
    if "RANK" not in os.environ:
        return 0, 1
    if device == "mps":
        raise UserError("an Apple GPU serves one process only: give --device cpu, or no torchrun")
    if device == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(f"process {local} has no GPU of its own: give --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if dist.get_rank():
        sys.stdout = io.StringIO()
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def in_turn() -> Iterator[None]:
    """First process 0, then all others: what it makes they find."""
    if dist.is_initialized() and dist.get_rank():
        dist.barrier()
    yield
    if dist.is_initialized() and not dist.get_rank():
        dist.barrier()


def end() -> None:
    """Take leave."""
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.1)  # a thread of gloo's that is not done when Python ends aborts the process


def parts_of(batch_size: int, accumulate: int, world: int) -> int:
    """The parts in which each process computes its share of a batch, one after another.

    Raises UserError where processes and parts cannot share it.
    """
    parts = max(1, accumulate // world)
    if batch_size % (world * parts):
        raise UserError(
            f"--batch-size {batch_size} cannot be computed by {world} processes in "
            f"--accumulate {accumulate} parts: give a multiple of {world * parts}"
        )
    return parts


def share(model: nn.Module, kind: str) -> nn.Module:
    """The model as all processes train it together; fsdp changes the model itself.

    To be called before the optimizer is made.
    """
    if not dist.is_initialized():
        return model
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:  # what is fetched at a time
        fully_shard(block)
    return fully_shard(model)


def synchronize(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass averages gradients: only that of the last part of a batch."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model.require_backward_grad_sync = wanted
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(wanted)


def total(value: float) -> float:
    """The sum of a number over all processes."""
    return reduced(value, "SUM")


def highest(value: int) -> int:
    """The highest of the numbers that the processes give, such as a signal that reached only one"""
    return int(reduced(value, "MAX"))


def reduced(value: float, how: str) -> float:
    """One number for all processes."""
    if not dist.is_initialized():
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(number, getattr(dist.ReduceOp, how))
    return number.item()


def everyones(value: object) -> list:
    """What each process gives, in their order."""
    if not dist.is_initialized():
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def whole(tree: object) -> object:
    """The same nest of values with every shared tensor put together again."""
    return tree_map(lambda x: x.full_tensor() if hasattr(x, "full_tensor") else x, tree)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state that `whole` put together: each process takes its share."""
    from torch.distributed.tensor import distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        like = parameters[index]
        if hasattr(like, "full_tensor"):
            for name, value in values.items():
                if torch.is_tensor(value) and value.shape == like.shape:
                    values[name] = distribute_tensor(value, like.device_mesh, like.placements)
    optimizer.load_state_dict(state)
