"""A published model's files, from the Hugging Face hub into a folder of the data cache.

    "gpt2", "HuggingFaceTB/SmolLM-135M"  -->  shared/data/cache/models/gpt2/
                                                  config.json
                                                  generation_config.json       not every model's
                                                  tokenizer.json  or  vocab.json, merges.txt
                                                  model.safetensors  or several, and their index
                                                  or  pytorch_model.bin, the same

Only these are fetched: nothing that could be run. Weights come last, so a folder that has them has
all; then no network is needed any more. What breaks off goes on from there the next time, as every
download here does. Without a network the same folder can be filled by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from shared import UserError
from shared.data import download
from shared.data.download import SourceError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")
LAYOUT = (
    "config.json, *.safetensors (and their index) or pytorch_model.bin, tokenizer.json or "
    "vocab.json with merges.txt"
)


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a Hugging Face folder; [] where there are none.

    An index lists those of a large model, which are several. Raises UserError for a damaged one.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / each for each in read_index(index)]
        if (folder / name).is_file():
            return [folder / name]
    return sorted(folder.glob("*.safetensors"))


def read_index(index: Path) -> list[str]:
    """The names of the files that an index lists. Raises UserError."""
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or not all(re.fullmatch(rf"[\w.-]+\{suffix}", name) for name in names):
            raise ValueError  # a name with a / in it could lead out of the folder
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index} is damaged: download it again") from None
    return names


def complete(folder: Path) -> bool:
    """Is all there that a model needs?"""
    files = weight_files(folder)
    return bool(files) and all(path.is_file() for path in (folder / "config.json", *files))


def fetch_model(name: str, check: Callable[[Path], object]) -> Path:
    """The folder of a model of the hub, downloaded if it is not there.

    check: called with the folder once config.json is there, before anything large is fetched.
    Raises UserError: one line that says why it cannot be had, and what to put where by hand.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise UserError(f"{name} is neither a folder nor a name such as gpt2: check the spelling")
    folder = download.data_dir() / "models" / name
    if complete(folder):
        return folder
    try:
        download.check_online()
        folder.mkdir(parents=True, exist_ok=True)
        with download.alone(folder):
            get(name, folder, "config.json")
            check(folder)
            get(name, folder, "generation_config.json", optional=True)
            get_tokenizer(name, folder)
            get_weights(name, folder)
    except SourceError as problem:
        hint = {401: "no such model, or one", 403: "a model", 404: "no such file"}
        why = hint.get(problem.status, "")
        if problem.status in (401, 403):
            why += " whose licence must be accepted on the hub's web page first"
        why = f"{problem}, {why}" if why else str(problem)
        raise UserError(
            f"{name} could not be downloaded ({why}): try again, or put {LAYOUT} into {folder} "
            "by hand"
        ) from None
    return folder


def get_tokenizer(name: str, folder: Path) -> None:
    """One of the three forms that a tokenizer comes in."""
    if get(name, folder, "tokenizer.json", optional=True):
        return
    if get(name, folder, "vocab.json", optional=True):
        get(name, folder, "merges.txt")
    else:
        get(name, folder, "tokenizer.model")


def get_weights(name: str, folder: Path) -> None:
    """The weights, in the safe format where they can be had in it."""
    for file in WEIGHTS:
        if get(name, folder, f"{file}.index.json", optional=True):
            for part in read_index(folder / f"{file}.index.json"):
                get(name, folder, part)
            return
        if get(name, folder, file, optional=file != WEIGHTS[-1]):
            return


def get(name: str, folder: Path, file: str, optional: bool = False) -> bool:
    """Fetch a file unless it is there. False where the hub has none. Raises SourceError."""
    path, url = folder / file, f"hf-model://{name}@main/{file}"
    part = path.with_name(path.name + ".part")
    if path.is_file():
        return True
    try:
        sha256 = download.fetch(url, part)
    except SourceError as problem:
        if optional and problem.status == 404:
            return False
        raise
    if sha256 and download.sha256_of(part) != sha256:
        download.discard(part)  # going on from it would only bring the same bytes again
        raise SourceError("wrong bytes from the hub")
    part.replace(path)
    download.discard(part)
    return True
