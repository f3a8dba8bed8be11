"""How fast does model 05 write? Against Hugging Face's `generate` and nanoGPT's, on equal weights.

    python tests/benchmarks/bench_gpt.py --nanogpt ../nanoGPT --rounds 5

30 M parameters, context 512, one text, from its first token to the last, in float32 (ours also as
`generate.py --dtype bfloat16` writes, and that with `--quantize int8`; theirs also in bfloat16), in
turns; the median counts. Needs transformers; nanoGPT (a clone of its repository) is left out if not
given.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[2] / "model-05-gpt-style"
sys.path.insert(0, str(FOLDER))

from generate import generate  # noqa: E402
from model import GPT  # noqa: E402
from quantize import quantize  # noqa: E402

SIZES = dict(hidden_size=512, layers=6, heads=8, context=512)
VOCAB = 20_000
TOKENS = 500


def hugging_face(gpt: GPT) -> torch.nn.Module:
    """The same model in transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=512, n_embd=512, n_layer=6, n_head=8, bos_token_id=0,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    twin = GPT2LMHeadModel(config).eval()
    twin.load_state_dict(renamed(gpt, "transformer.", transpose=True), strict=False)
    return twin


def nano_gpt(gpt: GPT, folder: Path) -> torch.nn.Module:
    """The same model in nanoGPT."""
    spec = importlib.util.spec_from_file_location("nano_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nano_model"] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=512, vocab_size=VOCAB, n_layer=6, n_head=8, n_embd=512, dropout=0.0, bias=True
    )
    twin = module.GPT(config).eval()
    twin.load_state_dict(renamed(gpt, "transformer.", transpose=False), strict=False)
    return twin


def renamed(gpt: GPT, prefix: str, transpose: bool) -> dict[str, torch.Tensor]:
    """Our weights under GPT-2's names; Hugging Face keeps its matrices lying down."""
    names = {
        "embedding": "wte", "places": "wpe", "blocks": "h", "norm1": "ln_1", "norm2": "ln_2",
        "norm": "ln_f", "attention": "attn", "qkv": "c_attn", "out": "c_proj", "up": "c_fc",
        "down": "c_proj",
    }  # fmt: skip
    found = {}
    for name, weight in gpt.state_dict().items():
        if name == "head.weight":
            found["lm_head.weight"] = weight
            continue
        parts = name.split(".")
        lying = transpose and parts[-2] in ("qkv", "out", "up", "down") and weight.dim() > 1
        renamed = ".".join(names.get(part, part) for part in parts)
        found[prefix + renamed] = weight.t().contiguous() if lying else weight
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast does model 05 write?")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    gpt = GPT(VOCAB, **SIZES).eval()
    for weight in gpt.parameters():  # so that a mistake in copying shows in the logits
        torch.nn.init.normal_(weight, std=0.05)
    tokens, start = torch.randint(VOCAB, (1, 64)), torch.zeros(1, 1, dtype=torch.int64)
    twin, small = hugging_face(gpt), copy.deepcopy(gpt).bfloat16()
    in_bytes = quantize(copy.deepcopy(small), "int8")
    small_twin = copy.deepcopy(twin).bfloat16()

    def theirs(twin: torch.nn.Module) -> None:
        twin.generate(
            start, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, top_k=200,
            temperature=0.8,
        )  # fmt: skip

    ways: dict[str, Callable[[], object]] = {
        "model 05": lambda: list(generate(gpt, [0], TOKENS, 0.8, 200)),
        "in bfloat16": lambda: list(generate(small, [0], TOKENS, 0.8, 200)),
        "in int8": lambda: list(generate(in_bytes, [0], TOKENS, 0.8, 200)),
        "Hugging Face": lambda: theirs(twin),
        "its bfloat16": lambda: theirs(small_twin),
    }
    with torch.inference_mode():
        expected = gpt(tokens)[0]
        torch.testing.assert_close(twin(tokens).logits, expected, atol=1e-4, rtol=1e-4)
        if args.nanogpt:
            nano = nano_gpt(gpt, args.nanogpt)
            torch.testing.assert_close(nano(tokens, tokens)[0], expected, atol=1e-4, rtol=1e-4)
            ways["nanoGPT"] = lambda: nano.generate(start, TOKENS, temperature=0.8, top_k=200)
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, write in ways.items():
                began = time.perf_counter()
                write()
                speeds[name].append(TOKENS / (time.perf_counter() - began))
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    print(f"{sum(p.numel() for p in gpt.parameters()):,} parameters")
    ours = list(ways)[:3]
    print(f"{'':31}times as fast:" + "".join(f"{name:>13}" for name in ours))
    for name, median in medians.items():
        times = "".join(f"{medians[own] / median:13.2f}" for own in ours)
        print(f"{name:14}{median:8.1f} tokens/s{'':14}{times}")


if __name__ == "__main__":
    main()
