"""How much does LoRA cost, and what? Ranks against full fine-tuning: a table and a picture.

Each setting is a run of model 05's finetune_spam.py from the same checkpoint, one after the other,
in a process of its own, so that its memory can be told: the most that was resident at once. What
is learned: how many of the parameters; the file: what there is to keep of a fine-tuned model.
Learning rates were chosen on the validation split; the test split is read once, by each run.

    python tests/benchmarks/bench_lora.py --checkpoint model-05-gpt-style/checkpoints/best.pt
    python tests/benchmarks/bench_lora.py --checkpoint base.pt --ranks 8 --epochs 2

What has been measured into --out with the same flags is not measured again. --alpha stays 16.

Needs Linux or macOS, which tell a process's memory.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shared.utils import visualize

SCRIPT = Path(__file__).resolve().parents[2] / "model-05-gpt-style" / "finetune_spam.py"
MEGABYTES = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss: bytes there, else kilobytes


class Result(NamedTuple):
    """What a run came to."""

    name: str
    learned: int  # parameters
    share: float  # of all, in %
    valid: float  # accuracy in %, of the weights that were kept
    test: float
    f1: float  # of spam, on the test split
    memory: float  # MB
    seconds: float  # of training
    file: float  # MB


def measure(name: str, flags: list[str], out: Path) -> Result:
    """Run finetune_spam.py with these flags. Raises SystemExit if it fails."""
    command = [sys.executable, str(SCRIPT), *flags, "--out", str(out)]
    log = out.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    said = log.read_text(encoding="utf-8")
    if status:
        raise SystemExit(f"{name}: {said}")
    learned, share = re.search(r"([\d,]+) of [\d,]+ parameters learn \(([\d.]+)%\)", said).groups()
    test, f1 = re.search(r"this model, .*? ([\d.]+)% +[\d.]+ +[\d.]+ +([\d.]+) ", said).groups()
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = min(rows, key=lambda row: float(row["val_loss"]))  # what best.pt holds
    return Result(
        name, int(learned.replace(",", "")), float(share), 100 * float(kept["val_accuracy"]),
        float(test), float(f1), usage.ru_maxrss / MEGABYTES, float(rows[-1]["seconds"]),
        (out / "best.pt").stat().st_size / 1e6,
    )  # fmt: skip


def measured_before(name: str, flags: list[str], out: Path) -> Result:
    """The same, or, if these flags were measured into this folder before, what that came to."""
    file = out.with_suffix(".json")
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["flags"] == flags:
            return Result(**before["result"])
    result = measure(name, flags, out)
    text = json.dumps({"flags": flags, "result": result._asdict()}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    return result


def draw(results: list[Result], path: Path) -> None:
    """Accuracy over the number of parameters that learn; full fine-tuning is the last point."""
    figure, axes = visualize.new_figure()
    for label, colour, values in (
        ("validation", visualize.GREY, [each.valid for each in results]),
        ("test", visualize.BLUE, [each.test for each in results]),
    ):
        axes.plot([each.learned for each in results], values, "o-", color=colour, label=label)
    for each in results:
        axes.annotate(each.name, (each.learned, each.test), fontsize=8, xytext=(0, -14),
                      textcoords="offset points", ha="center")  # fmt: skip
    axes.legend(frameon=False, loc="upper left")
    axes.set(title="Spam: what rank does it take?", xlabel="parameters that learn",
             ylabel="accuracy, %", xscale="log")  # fmt: skip
    axes.margins(0.1, 0.25)
    figure.savefig(path, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranks of LoRA against full fine-tuning.")
    parser.add_argument("--checkpoint", required=True, help="a model of train.py")
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 16, 32, 128])
    parser.add_argument("--targets", default="qkv", help="layers that get adapters")
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--lr", default="0.005", help="of the adapters")
    parser.add_argument("--dataset", default="sms-spam")
    parser.add_argument("--out", default="lora-ranks", help="folder of the results")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    same = ["--checkpoint", args.checkpoint, "--dataset", args.dataset, "--epochs", args.epochs]
    adapters = ["--train", "lora", "--targets", args.targets, "--lr", args.lr]
    runs = {f"rank {rank}": [*adapters, "--rank", str(rank)] for rank in args.ranks}
    runs["all"] = ["--train", "all"]
    print("| | parameters that learn | validation | test | F1 | memory, MB | time, s | file, MB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    results = []
    for name, flags in runs.items():
        one = measured_before(name, [*same, *flags], out / name.replace(" ", "-"))
        print(f"| {name} | {one.learned:,} ({one.share:.1f} %) | {one.valid:.2f} % "
              f"| {one.test:.2f} % | {one.f1:.4f} | {one.memory:,.0f} | {one.seconds:.0f} "
              f"| {one.file:.2f} |", flush=True)  # fmt: skip
        results.append(one)
    draw(results, out / "ranks.png")
    print(f"picture: {out / 'ranks.png'}")


if __name__ == "__main__":
    main()
