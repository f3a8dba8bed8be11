"""Write text with a trained model.

    checkpoint --> model, tokenizer
    prompt --> tokens --> model --> logits --> one token --> text, printed at once
                            ^                      |
                            +--- state, token <----+

New since model 04: the state is a cache, so that a token costs one position and not all; two
architectures; min-p, a penalty for repetition, texts that stop (decoding.py), and several at once;
published models (pretrained.py), whose texts begin and end with tokens of their own.

Below train.py and interactive.py, which use what is here: loading a checkpoint, sampling, and the
handling of arguments and errors on the command line.

Shapes: B batch, T time, V vocabulary

    python generate.py --prompt "Once upon a time" --length 200
    python generate.py --temperature 0.8 --top-k 40 --top-p 0.95 --seed 7
    python generate.py --prompt "The king" --num-samples 3 --stop "."
    python generate.py --pretrained gpt2 --prompt "The king"
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import math
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from decoding import before, edges, encode_prompt, penalize, until, without
from llama import Llama
from model import GPT, Cache, State
from pretrained import load_pretrained
from quantize import SCHEMES, quantize
from speed import as_fast_as_memory
from torch import Tensor
from tqdm import tqdm

from shared import UserError
from shared.utils.tokenizers import Tokenizer, tokenizer_from_state_dict

Model = GPT | Llama
MODELS = {"GPT": GPT, "Llama": Llama}
HERE = Path(__file__).resolve().parent
FORMAT, VERSION = "language-models-from-scratch", 1
CHECKPOINT = "checkpoints/best.pt"  # where none is named
DTYPES = ("float32", "bfloat16", "float16")
DIGEST_SIZE = hashlib.sha256().digest_size  # bytes at the end of a checkpoint


class Arguments(argparse.ArgumentParser):
    """A command line that reports all its bad numbers together, in one line.

    A flag's default stands in brackets behind its help: its own, or, where that is None, what
    `usual` holds for it.
    """

    def __init__(self, description: str, prog: str, usual: dict | None = None) -> None:
        super().__init__(description=description, prog=prog, allow_abbrev=False)
        self.group, self.usual, self.problems = self, usual or {}, []

    def section(self, title: str) -> None:
        """The flags that follow stand under this title in --help."""
        self.group = self.add_argument_group(title)

    def text(self, flag: str, help: str, default: str | None = None, **more) -> None:
        """A flag that takes any text."""
        usual = default or self.usual.get(flag[2:].replace("-", "_"))
        help += f" ({usual})" if usual else ""
        self.group.add_argument(flag, help=help, default=default, **more)

    def choice(self, flag: str, help: str, choices: list[str], default: str | None = None) -> None:
        """A flag that takes one of a few words."""

        def convert(text: str) -> str:
            if text not in choices:
                self.problems.append(f"{flag} {text}: give one of {', '.join(choices)}")
            return text

        self.text(flag, help, default, type=convert, metavar="{" + ",".join(choices) + "}")

    def number(
        self, flag: str, kind: type, help: str, low: float, high: float = 1e12,
        default: float | None = None,
    ) -> None:  # fmt: skip
        """A flag that takes an int or a float from low to high."""

        def convert(text: str) -> float | None:
            try:
                value = kind(text)
            except ValueError:
                value = None
            if value is None or not low <= value <= high:  # "not" catches NaN as well
                name = "a whole number" if kind is int else "a number"
                self.problems.append(f"{flag} {text}: give {name} from {low:.15g} to {high:.15g}")
            return value

        usual = self.usual.get(flag[2:].replace("-", "_")) if default is None else default
        help += "" if usual is None else f" ({usual:g})"
        metavar = "N" if kind is int else "X"
        self.group.add_argument(flag, type=convert, help=help, default=default, metavar=metavar)

    def error(self, message: str) -> None:
        raise UserError(f"{message}: see {self.prog} --help")

    def parse(self) -> argparse.Namespace:
        args, unknown = self.parse_known_args()
        self.problems += [f"{word}: no such argument, see {self.prog} --help" for word in unknown]
        if self.problems:
            raise UserError("; ".join(self.problems))
        return args


def command(main: Callable[[], None]) -> None:
    """Run a command line's main(): a user's mistake ends in one line on stderr and status 2."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us, as in `<&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdin, sys.stdout):  # Windows, and pipes, do not do it by themselves
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    try:
        main()
        sys.stdout.flush()
        return
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print()
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        message = f"{what}{error.strerror or error}: check the path, the disk and your rights"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate", str(error)):
            raise
        message = "out of memory: use a smaller --batch-size, --context or --preset"
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def find(path: str) -> Path:
    """A path as typed, or, where there is none, the same inside this model's folder."""
    return HERE / path if not Path(path).exists() and (HERE / path).exists() else Path(path)


def pick_device(name: str) -> str:
    """auto is the best there is: an NVIDIA GPU, an Apple GPU, else the CPU."""
    here = ["cuda"] if torch.cuda.is_available() else []
    here += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    if name not in ("auto", *here):
        raise UserError(f"--device {name}: not found on this machine: use --device cpu")
    return here[0] if name == "auto" else name


def pick_dtype(name: str, device: str) -> torch.dtype:
    """auto is bfloat16 where its matrix products run much faster than float32's."""
    if name != "auto":
        return getattr(torch, name)
    if device == "cuda":
        fast = torch.cuda.get_device_capability()[0] >= 8  # Ampere and later
    else:
        fast = device == "cpu" and bfloat16_wins()
    return torch.bfloat16 if fast else torch.float32


def bfloat16_wins() -> bool:
    """Whether 512 x 512 matrix products on this CPU take bfloat16 less than 0.6 of the time.

    A race needs no list of processors; the fast ones are 3 to 8 times faster, far from the bar.
    Twenty rounds, in turns, and the best of each: a busy machine must not decide.
    """
    matrices = [torch.ones(512, 512, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)]
    best = [math.inf, math.inf]
    for _ in range(20):
        for i, matrix in enumerate(matrices):
            start = time.perf_counter()
            matrix @ matrix
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] < 0.6 * best[1]


def read_checkpoint(path: Path, device: str = "cpu") -> dict:
    """What write_checkpoint of train.py wrote. Raises UserError for a missing or damaged file.

    The last bytes are the SHA-256 of those before; and with weights_only=True torch.load makes
    tensors and plain values only, so no code in a file ever runs.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: make one with train.py, or name another file")
    damaged = f"{path} is no whole checkpoint of this project: use another, or train again"
    digest, size = hashlib.sha256(), path.stat().st_size - DIGEST_SIZE
    with path.open("rb") as file:
        while block := file.read(min(1 << 20, max(0, size - file.tell()))):
            digest.update(block)
        if file.read() != digest.digest():
            raise UserError(damaged)
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than plain values: do not trust it") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, EOFError):
        raise UserError(damaged) from None
    if not isinstance(checkpoint, dict):
        raise UserError(damaged)
    return checkpoint


def load_checkpoint(path: Path, device: str = "cpu") -> tuple[Model, Tokenizer, dict]:
    """The model (in evaluation mode), its tokenizer and all else that train.py saved.

    Raises UserError if the file is missing, damaged, foreign or of another model.
    """
    checkpoint = read_checkpoint(path, device)
    try:
        kind = tuple(checkpoint[key] for key in ("format", "architecture", "version"))
        if kind[1] == "LoRA":
            raise UserError(f"{path} holds adapters only: merge them into a model with lora.py")
        if kind[1] not in MODELS or kind[::2] != (FORMAT, VERSION):
            raise UserError(f"{path} holds {kind}: run the script in the folder that made it")
        model = MODELS[kind[1]](**checkpoint["config"]).to(device)
        model.load_state_dict(checkpoint["model"])
        tokenizer = tokenizer_from_state_dict(checkpoint["tokenizer"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(
            f"{path} is no whole checkpoint of this project: use another, or train again"
        ) from None
    return model.eval(), tokenizer, checkpoint


def load(args: argparse.Namespace, device: str = "cpu") -> tuple[Model, Tokenizer, dict]:
    """The model that the command line names, as load_checkpoint gives it. Raises UserError."""
    if args.pretrained and args.checkpoint != CHECKPOINT:
        raise UserError("--checkpoint and --pretrained each name a model: give one of them")
    if args.pretrained:
        model, *rest = load_pretrained(args.pretrained, device)
    else:
        model, *rest = load_checkpoint(find(args.checkpoint), device)
    if args.dtype:
        model.to(getattr(torch, args.dtype))
    if args.quantize:
        quantize(model, args.quantize)
    return model, *rest


def sample(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator,
    min_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Draw one token from each row: logits (B, V) -> tokens (B, 1)

    temperature 0 takes the likeliest token, 1 draws from the model's own distribution, more
    makes it bolder. top_k > 0 keeps the k likeliest tokens only; top_p < 1 then keeps, of these,
    the likeliest that together reach probability p (nucleus sampling, Holtzman et al. 2020).
    min_p > 0 keeps those with at least that share of the likeliest one's (Nguyen et al. 2024).
    """
    logits = logits.cpu()  # drawn on the CPU: the same seed, the same text, on any device
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if 0 < top_k < logits.size(-1):  # finding a few is much faster than sorting all
        logits, tokens = logits.topk(top_k, dim=-1)
    else:
        logits, tokens = logits.sort(dim=-1, descending=True, stable=True)
    logits = (logits.double() - logits[:, :1]) / temperature  # at most 0: no overflow
    p = logits.softmax(dim=-1)
    p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0)  # those before already reach top_p
    p = p.masked_fill(p < min_p * p[:, :1], 0)
    p[:, 0] = p[:, 0].clamp(min=1e-9)  # the likeliest always stays, even with top_p 0
    return tokens.gather(-1, torch.multinomial(p, 1, generator=generator))


@torch.inference_mode()
def generate_batch(
    model: Model, prompt: list[int], length: int, temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0, seed: int = 0,
    never: int | None = None,  # a token not to draw, such as <unk>, which says nothing
    min_p: float = 0.0, repetition_penalty: float = 1.0, count: int = 1, ends: Sequence[int] = (),
) -> Iterator[list[int]]:  # fmt: skip
    """Yield `length` times one token of each of `count` texts that follow the prompt.

    ends: tokens after which a text is over; what follows in its row means nothing. It stops when
    all are over.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([prompt] * count, device=device)
    room = min(model.context, len(prompt) + length)  # a context may be larger than the memory
    logits, state = model(tokens, State(tokens[:, :0], Cache(model.kept, room)))
    over = torch.zeros(count, 1, dtype=torch.bool)
    for _ in range(length):
        scores = logits[:, -1]
        if never is not None:
            scores[:, never] = -torch.inf
        if repetition_penalty != 1:
            scores = penalize(scores, state.tokens, repetition_penalty)
        token = sample(scores, temperature, top_k, top_p, generator, min_p)  # (count, 1)
        yield token.flatten().tolist()
        over |= torch.isin(token, torch.tensor(ends, dtype=torch.long))
        if over.all():
            return
        with as_fast_as_memory(count == 1 and state.tokens.size(1) < model.context):
            logits, state = model(token.to(device), state)


def generate(model: Model, prompt: list[int], length: int, *options, **more) -> Iterator[int]:
    """Yield `length` tokens that follow the prompt (at least one token), each as it is drawn.

    The options are those of generate_batch; one of the `ends` is not yielded any more.
    """
    rows = generate_batch(model, prompt, length, *options, **more)
    return before((token for (token,) in rows), more.get("ends", ()))


def kind_of(model: Model) -> str:
    """The name of its architecture: processes that share a model give it another class."""
    return next(name for name, kind in MODELS.items() if isinstance(model, kind))


def name_of(config: dict) -> str:
    """What a model is called in pictures."""
    return "GPT" + {"none": "", "pointer": " + pointer", "words": " + word pointer"}[config["copy"]]


def remember(tokens: Iterator[int], written: list[int]) -> Iterator[int]:
    """The same tokens, each added to the list as it passes."""
    for token in tokens:
        written.append(token)
        yield token


def show(
    tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int], stops: Sequence[str] = ()
) -> None:
    """Print the tokens that follow a prompt, each as soon as it is drawn, up to a stop string.

    What a token looks like may depend on those before it: words have a space between them.
    """
    texts = tokenizer.decode_stream(chain(prompt, tokens))
    for text in until(without(texts, len(tokenizer.decode(prompt))), stops):
        print(text, end="", flush=True)


def opening(tokenizer: Tokenizer) -> list[int]:
    """The prompt where none is given: the start of a line, if the model knows line breaks."""
    for text in ("\n", "."):  # the end of a line, or, where lines are lost, of a sentence
        with contextlib.suppress(UserError):
            if tokens := tokenizer.encode(text):
                return tokens
    return [0]


def add_sampling_flags(parser: Arguments, length: int) -> None:
    parser.section("sampling")
    parser.number("--length", int, "tokens to write", 1, default=length)
    parser.number("--temperature", float, "0 is greedy, higher is bolder", 0, 100, default=0.8)
    parser.number("--top-k", int, "draw from the k likeliest tokens only; 0: all", 0, default=0)
    parser.number("--top-p", float, "draw from the likeliest up to probability p", 0, 1, default=1)
    parser.number(
        "--min-p", float, "least share of the likeliest one's probability", 0, 1, default=0
    )
    help = "makes tokens that stand there less likely; 1: does not"
    parser.number("--repetition-penalty", float, help, 0.01, 100, default=1)
    parser.text("--stop", "end where this text comes up; may be given often", action="append")
    parser.number("--seed", int, "same seed, same text (default: another each time)", 0, 2**31)


def add_model_flags(parser: Arguments) -> None:
    parser.text("--checkpoint", "what to write with", CHECKPOINT)
    help = "write with a published model: a name of the hub, such as gpt2, or a folder"
    parser.text("--pretrained", help, metavar="NAME")


def add_device_flag(parser: Arguments) -> None:
    parser.section("machine")
    parser.choice("--device", "a GPU if there is one", ["auto", "cpu", "cuda", "mps"], "auto")


def add_quantize_flag(parser: Arguments) -> None:
    help = "weights in fewer bits (as they are): int8 may write faster, the others slower"
    parser.choice("--quantize", help, list(SCHEMES))


def add_dtype_flag(parser: Arguments) -> None:
    # A token costs reading all weights once: half the bytes may be half the time, or less.
    help = "of the weights (that of the file); bfloat16 may write faster, and is less exact"
    parser.choice("--dtype", help, list(DTYPES))


def main() -> None:
    parser = Arguments("Write text with a trained model.", "generate.py")
    add_model_flags(parser)
    parser.text("--prompt", "text to continue (the start of a line)")
    parser.number("--num-samples", int, "texts to write", 1, 10_000, default=1)
    add_sampling_flags(parser, length=500)
    parser.text("--unk", "write <unk> as well", action="store_true", default=False)
    add_device_flag(parser)
    add_quantize_flag(parser)
    add_dtype_flag(parser)
    args = parser.parse()
    model, tokenizer, checkpoint = load(args, pick_device(args.device))
    begin, ends = edges(checkpoint)
    prompt = begin or opening(tokenizer)
    if args.prompt is not None:
        prompt = encode_prompt(tokenizer, args.prompt, begin)
    if not prompt:
        raise UserError("--prompt is empty: give it some text, or leave it out")
    seed = torch.seed() % 2**31 if args.seed is None else args.seed
    never = None if args.unk else tokenizer.unk_id
    options = args.temperature, args.top_k, args.top_p, seed, never, args.min_p
    more = dict(repetition_penalty=args.repetition_penalty, ends=ends)
    if args.num_samples > 1:
        rows = generate_batch(model, prompt, args.length, *options, count=args.num_samples, **more)
        bar = tqdm(rows, total=args.length, unit="token", leave=False, disable=None)
        for number, tokens in enumerate(zip(*bar, strict=True), start=1):
            print(f"--- {number}\n{args.prompt or ''}", end="")
            show(tokenizer, prompt, before(iter(tokens), ends), args.stop or ())
            print()
        return
    print(args.prompt or "", end="", flush=True)
    tokens = generate(model, prompt, args.length, *options, **more)
    show(tokenizer, prompt, tokens, args.stop or ())
    print()


if __name__ == "__main__":
    command(main)
