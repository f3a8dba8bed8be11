"""Model 03 on words against PyTorch's word_language_model example: the same text, words, minutes.

The first 90 % of a text are for training, the last 10 % for validation, cut as train.py cuts them;
the example gets both as files (and the validation text as its test text, too, so that it knows
the same words). Both are stopped after the same minutes of wall clock, start-up included, and the
best validation perplexity that each has reported until then counts.

    python tests/benchmarks/bench_words.py --example ../examples/word_language_model

It needs a checkout of github.com/pytorch/examples, and wikitext-2 in $LMFS_DATA_DIR.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.data.download import load_text  # noqa: E402
from shared.utils.tokenizers import WordTokenizer  # noqa: E402

TEXT = Path(os.environ.get("LMFS_DATA_DIR") or ROOT.parent / "shared/data") / "wikitext-2/valid.txt"


def run_for(command: list[str], folder: Path, minutes: float) -> str:
    """What a command has printed when it ends, or when its minutes are over."""
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        how = dict(cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        try:
            subprocess.run(command, check=False, timeout=60 * minutes, **how)
        except subprocess.TimeoutExpired:
            out.write("\nstopped: its time is over\n")
    return log.read_text(encoding="utf-8")


def theirs(example: Path, flags: list[str], folder: Path, minutes: float) -> list[float]:
    """The example's validation perplexities, epoch by epoch."""
    main = [sys.executable, "-u", str((example / "main.py").resolve())]
    log = run_for([*main, "--data", str(folder), *flags], folder, minutes)
    found = [float(ppl) for ppl in re.findall(r"end of epoch.*valid ppl +([\d.]+)", log)]
    if not found:
        sys.exit(f"error: the example reported nothing: {log[-300:]}")
    return found


def ours(text: Path, flags: list[str], folder: Path, minutes: float) -> list[float]:
    """Model 03's validation perplexities, evaluation by evaluation."""
    train = [sys.executable, str(ROOT / "model-03-lstm-attention/train.py"), "--dataset", str(text)]
    run_for([*train, "--minutes", f"{minutes}", "--out", str(folder), *flags], folder, minutes)
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [math.exp(float(r["val_loss"])) for r in csv.DictReader(file) if r["val_loss"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Model 03 against word_language_model.")
    parser.add_argument("--example", type=Path, required=True, help="its folder")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--minutes", type=float, default=4.0, help="each, a round")
    parser.add_argument("--rounds", type=int, default=1, help="in turns")
    parser.add_argument("--their-flags", default="", help="in quotes; its defaults")
    parser.add_argument("--our-flags", default="", help="in quotes; preset small")
    args = parser.parse_args()
    corpus = load_text(str(args.text))
    tokenizer = WordTokenizer.train(corpus.train + corpus.valid)
    vocabulary = {*(corpus.train + corpus.valid).split(), "<eos>"}
    print(f"vocabulary: ours {tokenizer.vocab_size}, the example's {len(vocabulary)}")
    print("model                 seconds  perplexities")
    for _ in range(args.rounds):
        for name in ("word_language_model", "model 03"):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                for file, part in (("train", corpus.train), ("valid", corpus.valid)):
                    (folder / f"{file}.txt").write_text(part, encoding="utf-8", newline="\n")
                (folder / "test.txt").write_text(corpus.valid, encoding="utf-8", newline="\n")
                start = time.perf_counter()
                if name == "model 03":
                    found = ours(args.text, args.our_flags.split(), folder, args.minutes)
                else:
                    found = theirs(args.example, args.their_flags.split(), folder, args.minutes)
                seconds = time.perf_counter() - start
            shown = " ".join(f"{each:.0f}" for each in found)
            print(f"{name:20}{seconds:9.0f}  best {min(found):.1f}: {shown}", flush=True)


if __name__ == "__main__":
    main()
