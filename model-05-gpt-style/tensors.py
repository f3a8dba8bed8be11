"""Files of tensors: safetensors and PyTorch's. Read strictly, written whole, no code run.

    model.safetensors     8 bytes     how long the header is
                          header      JSON: {"norm.weight": {"dtype": "F32", "shape": [64],
                                                             "data_offsets": [0, 256]}, ...}
                          bytes       of all tensors, one after the other

    pytorch_model.bin     a zip archive with a pickle, a little program that builds the values

A pickle can be made to run anything. torch.load with weights_only=True obeys only those steps of
it that make tensors and plain values. The other format has no steps: it was made to be read by
sixty lines like these, so there is no need of the library of that name.

Either way a tensor is read once, into a weight of the model. Files that are mapped into memory
instead (mmap) would count twice: as pages of the file, and as weights.

Below pretrained.py, which knows what the tensors are for.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from shared import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # bytes; masks and the like
LONGEST_HEADER = 100_000_000  # bytes, as in the library
ROOM = 1 << 16  # bytes read at a time into what cannot be read straight into its place


class Stored(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: no floating-point number
    read: Callable[[Tensor], None]  # fills a tensor of this shape; once, then it may be forgotten


def open_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name; those of a safetensors file are read when they are asked for.

    Raises UserError for a missing, truncated, damaged or malicious file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: download it again, or copy it there by hand")
    return open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)


def open_safetensors(path: Path) -> dict[str, Stored]:
    """See open_tensors. No two tensors share bytes, and no byte is left over."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        whole = size >= 8 and 2 <= length <= min(size - 8, LONGEST_HEADER)
        text = file.read(length) if whole else b""
    found, spans = {}, [(0, 0)]
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            shape, (start, end), kind = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
            if kind not in DTYPES and kind not in OTHERS:
                raise UserError(
                    f"{path}: numbers of type {kind!r:.20} are not supported: take a model in "
                    "float32, float16 or bfloat16"
                )
            each = DTYPES[kind].itemsize if kind in DTYPES else OTHERS[kind]
            whole &= all(type(n) is int and n >= 0 for n in (*shape, start, end))
            whole &= end - start == math.prod(shape) * each
            spans.append((start, end))
            dtype = DTYPES.get(kind)
            found[name] = Stored(shape, dtype, reader(path, 8 + length + start, shape, dtype))
        spans.sort()
        whole &= all(end == start for (_, end), (start, _) in pairwise(spans))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole or spans[-1][1] != size - 8 - length:
        raise UserError(f"{path} is truncated or damaged: download it again")
    return found


def reader(
    path: Path, start: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Callable[[Tensor], None]:
    """Reads a tensor's bytes, from `start` in a file: if possible straight into their place."""

    def read(target: Tensor) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            if target.is_contiguous() and target.dtype == dtype:
                fill(target, file)
                return
            row = math.prod(shape[1:]) * dtype.itemsize  # some rows at a time
            room = torch.empty(max(ROOM, row), dtype=torch.uint8)
            for piece in target.split(max(1, ROOM // max(1, row))):
                rows = room[: piece.numel() * dtype.itemsize].view(dtype).view(piece.shape)
                fill(rows, file)
                piece.copy_(rows)

    return read


def fill(tensor: Tensor, file: BinaryIO) -> None:
    """The next bytes of a file become the numbers of a tensor."""
    view = memoryview(tensor.view(-1).view(torch.uint8).numpy())
    while view:  # the system may hand over less than was asked for
        got = file.readinto(view)
        if not got:
            raise UserError(f"{file.name} became shorter while it was read: download it again")
        view = view[got:]


def open_torch(path: Path) -> dict[str, Stored]:
    """See open_tensors. The file is read as a whole, and lets go of each tensor as it is taken."""
    damaged = UserError(f"{path} is truncated, damaged or no file of tensors: download it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one line is to say what is wrong
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

    def read(target: Tensor) -> None:
        target.copy_(tensors.pop(name).detach())

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
