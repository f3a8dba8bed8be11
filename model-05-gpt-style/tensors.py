"""Files of tensors: safetensors and PyTorch's. Read strictly, written whole, no code run.

    model.safetensors     8 bytes     how long the header is
                          header      JSON: {"norm.weight": {"dtype": "F32", "shape": [64],
                                                             "data_offsets": [0, 256]}, ...}
                          bytes       of all tensors, one after the other

    pytorch_model.bin     a zip archive with a pickle, a little program that builds the values

A pickle can be made to run anything. torch.load with weights_only=True obeys only those steps of
it that make tensors and plain values. The other format has no steps: it was made to be read by
sixty lines like these, so there is no need of the library of that name.

Either way a tensor is read once, into memory that then is a weight of the model. Files that are
mapped into memory instead (mmap) would count twice: as pages of the file, and as weights.

Below pretrained.py, which knows what the tensors are for.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shared import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # bytes; masks and the like
LONGEST_HEADER = 100_000_000  # bytes, as in the library


class Stored(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: no floating-point number
    read: Callable[[], Tensor]  # once: a file may forget what it has handed over


def open_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name; those of a safetensors file are read when they are asked for.

    Raises UserError for a missing, truncated, damaged or malicious file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: download it again, or copy it there by hand")
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)


def open_safetensors(path: Path) -> dict[str, Stored]:
    """See open_tensors. No two tensors share bytes, and no byte is left over."""
    damaged = UserError(f"{path} is truncated or damaged: download it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise damaged
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found, spans = {}, []
        for name, entry in header.items():
            shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
                raise damaged
            dtype = DTYPES.get(entry["dtype"])
            each = dtype.itemsize if dtype else OTHERS.get(entry["dtype"])
            if each is None:
                kind = str(entry["dtype"])[:20]
                raise UserError(f"{path}: numbers of type {kind} are not supported: take a model "
                                "in float32, float16 or bfloat16")  # fmt: skip
            if end - start != math.prod(shape) * each:
                raise damaged
            spans.append((start, end))
            found[name] = Stored(shape, dtype, reader(path, 8 + length + start, shape, dtype))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    at = 0
    for start, end in sorted(spans):
        if start != at:
            raise damaged
        at = end
    if at != size - 8 - length:
        raise damaged
    return found


def reader(
    path: Path, start: int, shape: tuple[int, ...], dtype: torch.dtype | None
) -> Callable[[], Tensor]:
    """Reads a tensor's bytes, from `start` in a file, straight into its memory."""

    def read() -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        view = memoryview(tensor.flatten().view(torch.uint8).numpy())
        with path.open("rb") as file:
            file.seek(start)
            while view:  # the system may hand over less than was asked for
                got = file.readinto(view)
                if not got:
                    raise UserError(f"{path} became shorter while it was read: download it again")
                view = view[got:]
        return tensor

    return read


def open_torch(path: Path) -> dict[str, Stored]:
    """See open_tensors. The file is read as a whole, and lets go of each tensor as it is taken."""
    damaged = UserError(f"{path} is truncated, damaged or no file of tensors: download it again")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only" not in str(error) and "weights_only" not in str(error):
            raise damaged from None
        raise UserError(
            f"{path} holds more than plain tensors, perhaps a program: do not trust it"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # what torch.load raises for foreign bytes is not documented
        if "memory" in str(error):
            raise
        raise damaged from None
    if not isinstance(tensors, dict) or not tensors:
        raise damaged
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not isinstance(name, str) or not plain or tensor.is_quantized:
            raise UserError(f"{path}: {str(name)[:60]!r} is no plain tensor: take another file")
    return {name: stored(tensors, name) for name in tensors}


def stored(tensors: dict[str, Tensor], name: str) -> Stored:
    """One of the tensors, which is taken out of them when it is read."""

    def read() -> Tensor:
        tensor = tensors.pop(name).detach().contiguous()
        own = tensor.untyped_storage().nbytes() == tensor.nbytes
        return tensor if own else tensor.clone()  # else it would keep the whole storage alive

    tensor = tensors[name]
    dtype = tensor.dtype if tensor.dtype in DTYPES.values() else None
    return Stored(tuple(tensor.shape), dtype, read)


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes float tensors, each from the CPU or another device, and flushes them to the disk."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        shape, offsets = list(tensor.shape), [at, end]
        header[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": offsets}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers lie where processors like them to
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            flat = tensor.detach().cpu().contiguous().flatten()
            file.write(memoryview(flat.view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())
