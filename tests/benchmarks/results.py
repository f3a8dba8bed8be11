"""All measured results: measure what is missing, and write docs/results.md from it.

    measure --> docs/results.json (one row a line) --> docs/results.md, its pictures, README's table

    python tests/benchmarks/results.py                            # what is missing, row by row
    python tests/benchmarks/results.py --only tiny --again        # rows whose name contains this
    python tests/benchmarks/results.py --render                   # measure nothing
    python tests/benchmarks/results.py --check                    # quick rows again: is it true?
    python tests/benchmarks/results.py --read recall-04 FOLDER    # a run that was made by hand

The file of measurements is written after each row, so that it can be stopped at any time. Rows
that take long (`by_hand`) are never measured here: run their command, then let --read take them.
Speeds of others need the packages of the [test] extra, and a clone of nanoGPT beside this one.
Data come from shared/data/cache, or $LMFS_DATA_DIR.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from results_page import render  # noqa: E402

from shared import UserError  # noqa: E402

STORE = ROOT / "docs" / "results.json"
SAME, OTHER = 1e-4, 0.01  # how far a loss may be off here, and on another machine: shares of it


class Row(NamedTuple):
    """Something that is measured by one command, typed in the root."""

    name: str
    kind: str  # how its output is read: a key of READ
    command: str
    quick: bool = False  # --check measures it again
    by_hand: bool = False  # too long: run by hand, then --read


FOLDERS = {
    "01": "model-01-char-rnn",
    "02": "model-02-word-rnn",
    "03": "model-03-lstm-attention",
    "04": "model-04-mini-transformer",
    "05": "model-05-gpt-style",
}
WORDS = (
    "--dataset tales --batch-size 32 --context 64 --lr 0.004 --dropout 0 --weight-decay 0.1 "
    "--eps 1e-8"
)
TRANSFORMER = (
    "--dataset tales --tokenizer word --context 320 --batch-size 8 --hidden-size 128 --dropout 0 "
    "--lr 0.006"
)
GPT = (
    "--dataset tales --tokenizer bpe --context 384 --batch-size 8 --lr 0.01 --weight-decay 0.2 "
    "--dropout 0"
)
STORIES = "--dataset tales-25mb --tokenizer bpe --vocab-size 4096 --context 512 --batch-size 4"
RECALL = {  # as the READMEs have it
    "recall-01": ("01", "--dataset tales --minutes 12"),
    "recall-02": ("02", f"{WORDS} --minutes 6"),
    "recall-03-gru": ("03", f"{WORDS} --cell gru --attention none --minutes 9"),
    "recall-03-lstm": ("03", f"{WORDS} --attention none --minutes 12"),
    "recall-03": ("03", f"{WORDS} --minutes 9"),
    "recall-04-plain": ("04", f"{TRANSFORMER} --minutes 8"),
    "recall-04": ("04", f"{TRANSFORMER} --steps 3000 --copy pointer"),
    "recall-05-plain": ("05", f"{GPT} --steps 1200 --eval-every 600"),
    "recall-05-short": ("05", f"{GPT} --steps 1200 --copy pointer --eval-every 400"),
    "recall-05-few": (
        "05",
        "--dataset tales --tokenizer bpe --vocab-size 4096 --context 256 --batch-size 8 "
        "--lr 0.01 --weight-decay 0.2 --dropout 0 --steps 1500 --eval-every 500 --copy pointer",
    ),
    "recall-05-more": (
        "05",
        f"{STORIES} --lr 0.006 --weight-decay 0.2 --steps 4800 --eval-every 1200 --copy pointer",
    ),
    "recall-05": (
        "05",
        f"{STORIES} --lr 0.01 --weight-decay 0.2 --steps 4800 --eval-every 1200 --copy words",
    ),
}


def all_rows() -> Iterator[Row]:
    """Every row, quick ones first."""
    for name, dataset, model, order in (
        ("shakespeare-ngram-chars", "tiny-shakespeare", "01", 7),
        ("shakespeare-ngram-words", "tiny-shakespeare", "02", 3),
        ("tales-ngram-chars", "tales", "01", 9),
        ("tales-ngram-words", "tales", "02", 5),
    ):
        command = f"python {FOLDERS[model]}/ngram.py --dataset {dataset} --order {order}"
        yield Row(name, "ngram", command, quick=True)
    for dataset, preset in (("tiny-shakespeare", "tiny"), ("tales", "tiny")):
        for model, folder in FOLDERS.items():
            name = f"{dataset.removeprefix('tiny-')}-{model}-{preset}"
            command = f"python {folder}/train.py --dataset {dataset} --preset {preset}"
            yield Row(name, "train", command, quick=dataset != "tales")
    for kind in ("train", "encode"):
        command = f"python tests/benchmarks/bench_tokenizers.py --only {kind}"
        yield Row(f"tokenizers-{kind}", "tokenizers", command)
    yield Row("compression", "compression", "python shared/utils/visualize.py compression")
    command = "python tests/benchmarks/bench_gpt.py --nanogpt ../nanoGPT --rounds 5"
    yield Row("generation", "generation", command)
    for model, folder in FOLDERS.items():
        command = f"python {folder}/train.py --dataset tiny-shakespeare"
        yield Row(f"shakespeare-{model}-small", "train", command)
    for name, (model, flags) in RECALL.items():
        yield Row(name, "train", f"python {FOLDERS[model]}/train.py {flags}", by_hand=True)


ROWS = {row.name: row for row in all_rows()}


# ----------------------------------------------------------------------------------- the machine


def machine(cores: int) -> dict:
    """What a figure was measured on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [re.search(rf"^{key}\s*: (.+)$", text, re.MULTILINE) for key in KEYS]
    name = ", family ".join(found[1] for found in names if found) or platform.processor()
    return {
        "cpu": name or platform.machine(),
        "cores": cores,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }


KEYS = ("model name", "cpu family")


def usable_cores() -> int:
    """As many as torch will use."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        return int(threads)
    there = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(there(0))


class Done(NamedTuple):
    """A command that has ended well."""

    out: str
    seconds: float  # wall clock, start-up included
    memory: int | None  # bytes at the peak, where the system tells (not on Windows)


def run(command: str, cores: int, *more: str) -> Done:
    """Run a command in the root. Raises UserError if it fails."""
    arguments = [*shlex.split(command)[1:], *more]
    env = {**os.environ, "OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
        )
        memory = None
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        else:
            process.wait()
        seconds = time.perf_counter() - began
        log.seek(0)
        out = log.read()
    if process.returncode:
        last = (out.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{command}: ended with {process.returncode}: {last}")
    return Done(out, seconds, memory)


# -------------------------------------------------------------------------------- how it is read


def found(pattern: str, text: str, command: str) -> re.Match:
    """The first match in the output of a command. Raises UserError if there is none."""
    match = re.search(pattern, text, re.MULTILINE)
    if not match:
        raise UserError(f"{command}: its output has no line like {pattern}: mend results.py")
    return match


def number(text: str) -> int:
    return int(text.replace(",", ""))


def measure_train(row: Row, cores: int) -> dict:
    """A training run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = run(row.command, cores, "--out", folder)
        about = found(
            r"^(\S+): ([\d,]+) tokens, vocabulary (\d+) \| (\w+): ([\d,]+) parameters, .*, (\w+) \|"
            r".* a (\d+)-gram ([\d.]+)$",
            done.out,
            row.command,
        )
        return {
            "preset": presets_of(row),
            "tokens": number(about[2]),
            "vocabulary": number(about[3]),
            "class": about[4],
            "parameters": number(about[5]),
            "dtype": about[6],
            "wall_seconds": round(done.seconds, 1),
            "memory": done.memory,
            **read_folder(Path(folder)),
        }


def presets_of(row: Row) -> dict:
    """What its preset holds in the code now, so that a test can see when the code has moved on."""
    script, *flags = shlex.split(row.command)[1:]
    preset = flags[flags.index("--preset") + 1] if "--preset" in flags else "small"
    code = f"import json, train; print(json.dumps(train.PRESETS[{preset!r}]))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = (ROOT / script).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, check=True, capture_output=True
    )
    return json.loads(done.stdout)


def read_folder(folder: Path) -> dict:
    """metrics.csv, samples.txt and, on tales, recall.csv of a finished run. Raises UserError."""
    try:
        with (folder / "metrics.csv").open(encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        text = (folder / "samples.txt").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename}: is no finished run: give its --out folder") from None
    kept = ("step", "tokens", "seconds", "val_loss", "bits_per_char")
    history = [[round(float(line[k]), 5) for k in kept] for line in lines if line["val_loss"]]
    best = min(history, key=lambda line: line[3])
    found = {
        "steps": int(lines[-1]["step"]),
        "seconds": float(lines[-1]["seconds"]),
        "nats": best[3],
        "bits": best[4],
        "history": history,
        "sample": re.split(r"^--- step \d+\n", text, flags=re.MULTILINE)[-1].rstrip("\n"),
    }
    if (folder / "recall.csv").exists():
        found["recall"] = read_recall(folder / "recall.csv")
    return found


def read_recall(path: Path) -> dict[str, dict[str, list[float]]]:
    """Model -> smallest distance of a doubling -> [right, asked, right by guessing]."""
    answers: dict = defaultdict(lambda: defaultdict(lambda: [0, 0, 0.0]))
    with path.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            doubling = 1 << max(int(line["distance"]), 1).bit_length() - 1
            cell = answers[line["model"]][str(doubling)]
            cell[0] += int(line["right"])
            cell[1] += 1
            cell[2] = round(cell[2] + 1 / int(line["choices"]), 5)
    order = {name: sorted(cells, key=int) for name, cells in answers.items()}
    return {name: {at: answers[name][at] for at in order[name]} for name in answers}


def measure_ngram(row: Row, cores: int) -> dict:
    """The line of the longest n-grams."""
    done = run(row.command, cores, "--length", "0")
    lines = re.findall(r"^ *(\d+) +([\d,]+) +([\d.]+) +[\d.]+ +([\d.]+)$", done.out, re.MULTILINE)
    if not lines:
        raise UserError(f"{row.command}: its output has no table: mend results.py")
    order, grams, nats, bits = lines[-1]
    measured = {"order": int(order), "parameters": number(grams)}
    measured |= {"nats": float(nats), "bits": float(bits)}
    if floor := re.search(r"^entropy floor: ([\d.]+)", done.out, re.MULTILINE):
        measured["floor"] = float(floor[1])
    return {**measured, "wall_seconds": round(done.seconds, 1), "memory": done.memory}


def measure_tokenizers(row: Row, cores: int) -> dict:
    """[what, million characters, our seconds, their seconds, who they are] for each line."""
    out = run(row.command, cores).out
    pattern = r"^(\S.{27}) *([\d.]+) +([\d.]+) +([\d.]+) +(\w+) +[\d.]+$"
    lines = re.findall(pattern, out, re.MULTILINE)
    races = [[what.strip(), *map(float, times), who] for what, *times, who in lines]
    return {"about": found(r"^Python .*$", out, row.command)[0], "races": races}


def measure_compression(row: Row, cores: int) -> dict:
    """[tokenizer, vocabulary, characters per token, share unknown, exact] for each line."""
    with tempfile.TemporaryDirectory() as folder:
        out = run(row.command, cores, "--out", str(Path(folder) / "picture.png")).out
    pattern = r"^(\w+) +([\d,]+) +([\d.]+) +([\d.]+) % +(yes|no)$"
    lines = re.findall(pattern, out, re.MULTILINE)
    return {"points": [[a, number(b), float(c), float(d), e] for a, b, c, d, e in lines]}


def measure_generation(row: Row, cores: int) -> dict:
    """Tokens a second of each program."""
    out = run(row.command, cores).out
    lines = re.findall(r"^(\S.{13}) *([\d.]+) tokens/s", out, re.MULTILINE)
    parameters = number(found(r"^([\d,]+) parameters$", out, row.command)[1])
    speeds = {name.strip(): float(speed) for name, speed in lines}
    return {"parameters": parameters, "speeds": speeds}


MEASURE: dict[str, Callable[[Row, int], dict]] = {
    "train": measure_train,
    "ngram": measure_ngram,
    "tokenizers": measure_tokenizers,
    "compression": measure_compression,
    "generation": measure_generation,
}


def measure(row: Row, cores: int) -> dict:
    """All that is kept of a row."""
    date = time.strftime("%Y-%m-%d")
    head = {"command": row.command, "date": date, "machine": machine(cores)}
    return {**head, **MEASURE[row.kind](row, cores)}


def read_by_hand(row: Row, folder: Path) -> dict:
    """A run that somebody made by its command; on what machine, its files do not say."""
    finished = read_folder(folder)
    date = time.strftime("%Y-%m-%d", time.localtime((folder / "metrics.csv").stat().st_mtime))
    head = {"command": row.command, "date": date, "read": True}
    return {**head, **inside(folder, row), **finished}


def inside(folder: Path, row: Row) -> dict:
    """What the checkpoint of a finished run tells of it. Raises UserError if it is another's."""
    import torch

    if not (folder / "best.pt").exists():
        return {}
    data = io.BytesIO((folder / "best.pt").read_bytes())  # a SHA-256 behind it does no harm
    checkpoint = torch.load(data, map_location="cpu", weights_only=True)
    settings, dataset = checkpoint["settings"], checkpoint["dataset"]["name"]
    if f"--dataset {dataset} " not in f"{row.command} ":
        raise UserError(f"{folder} was trained on {dataset}: give a run of {row.command}")
    weights = (each for each in checkpoint["model"].values() if each.is_floating_point())
    sizes = {each.data_ptr(): each.numel() for each in weights}
    found = {"parameters": sum(sizes.values()), "dtype": settings["dtype"]}
    if not row.by_hand:  # its settings are the preset's, and stay so until the code moves on
        found["preset"] = {k: settings.get(k, now) for k, now in presets_of(row).items()}
    return found


# ------------------------------------------------------------------------------------- the store


def load() -> dict[str, dict]:
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}


def save(store: dict[str, dict]) -> None:
    """One row a line, in the order of ROWS; all of it or nothing."""
    order = [name for name in ROWS if name in store]
    lines = [f"{json.dumps(n)}: {json.dumps(store[n], ensure_ascii=False)}" for n in order]
    temporary = STORE.with_name(f"{STORE.name}.part")
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")
    temporary.replace(STORE)


def write_pages(store: dict[str, dict]) -> None:
    for path, text in render(store, ROOT, pictures=True).items():
        path.write_text(text, encoding="utf-8", newline="\n")


def lies(store: dict[str, dict], names: list[str]) -> list[str]:
    """What is not so: pages that are not made of the store, figures that are not measured again."""
    wrong = [
        f"{path.relative_to(ROOT).as_posix()} is not what docs/results.json gives: use --render"
        for path, text in render(store, ROOT).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for name in names:
        old = store[name]
        new = measure(ROWS[name], old["machine"]["cores"])
        here = old["machine"] == new["machine"] and old.get("dtype") == new.get("dtype")
        far = abs(new["nats"] / old["nats"] - 1)
        exact = [key for key in EXACT if old.get(key) != new.get(key)]
        bits = old["nats"] / old["bits"] - new["nats"] / new["bits"]
        bad = far > (SAME if here else OTHER) or exact or abs(bits) > 0.001
        where = "this machine" if here else "another machine"
        line = f"{name}: {old['nats']:.4f} nats in the file ({where}), {new['nats']:.4f} now"
        print(f"{'WRONG' if bad else 'ok   '} {line}", flush=True)
        wrong += [f"{line}{''.join(f', {key} differ' for key in exact)}"] if bad else []
    return wrong


EXACT = ("command", "steps", "parameters", "vocabulary", "tokens", "preset", "order")


# ---------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}: see --help")


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Measure what is missing, and write docs/results.md.")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name contains this")
    parser.add_argument("--again", action="store_true", help="also rows that are there")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--check", action="store_true", help="quick rows again: is it true?")
    parser.add_argument("--read", nargs=2, metavar=("ROW", "FOLDER"), help="a run made by hand")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[Row]:
    """The rows that --only names. Raises UserError."""
    rows = [row for row in ROWS.values() if any(part in row.name for part in args.only)]
    if not rows:
        raise UserError(f"--only {' '.join(args.only)}: no such row: there are {', '.join(ROWS)}")
    return rows


def main() -> int:
    args, store = parse_args(), load()
    rows = chosen(args)
    if args.check:
        wrong = lies(store, [row.name for row in rows if row.quick and row.name in store])
        for line in wrong:
            print(f"WRONG {line}", file=sys.stderr)
        return 1 if wrong else 0
    if args.read:
        name, folder = args.read
        if name not in ROWS or ROWS[name].kind != "train":
            raise UserError(f"--read {name}: no such run: give the name of one in results.py")
        measured = read_by_hand(ROWS[name], Path(folder))
        store = {**load(), name: measured}
        save(store)
    elif not args.render:
        for row in rows:
            if not row.by_hand and (args.again or row.name not in store):
                print(f"{row.name}: {row.command}", flush=True)
                measured = measure(row, usable_cores())
                store = {**load(), row.name: measured}  # another run may have written meanwhile
                save(store)
    write_pages(store)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
