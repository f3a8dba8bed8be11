"""docs/results.md and the table of the front page, made of docs/results.json.

What is not in that file comes from the READMEs' tables (runs longer than a few minutes) or is a
figure that somebody else has published, with its address.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from shared.utils import visualize

NAMES = {
    "01": "character RNN",
    "02": "word RNN",
    "03": "LSTM + attention",
    "04": "transformer",
    "05": "GPT-style",
}
NGRAMS = {
    "shakespeare-ngram-chars": "7-gram of characters",
    "shakespeare-ngram-words": "3-gram of words",
    "tales-ngram-chars": "9-gram of characters",
    "tales-ngram-words": "5-gram of words",
}
RUNS = {  # the runs on tales that were made by hand
    "recall-01": "character RNN",
    "recall-02": "word RNN",
    "recall-03-gru": "GRU",
    "recall-03-lstm": "LSTM",
    "recall-03": "LSTM + attention",
    "recall-04-plain": "transformer",
    "recall-04": "transformer + pointer",
    "recall-05-plain": "GPT-style",
    "recall-05-short": "GPT-style + pointer",
    "recall-05-few": "GPT-style + pointer, longer tokens",
    "recall-05-more": "GPT-style + pointer, more stories",
    "recall-05": "GPT-style + pointer to words",
}
EXPECTED = [  # the names of all rows
    *NGRAMS,
    *(f"shakespeare-{model}-{preset}" for preset in ("tiny", "small") for model in NAMES),
    *(f"tales-{model}-tiny" for model in NAMES),
    *("tokenizers-train", "tokenizers-encode", "compression", "generation"),
    *RUNS,
]
NANOGPT = "[nanoGPT's README](https://github.com/karpathy/nanoGPT#quick-start)"
ISSUE = "[a user's report](https://github.com/karpathy/nanoGPT/issues/211)"
PUBLISHED = [  # who, on what, nats per character, where it stands
    ("nanoGPT, 4 layers of 128", "CPU of a laptop, about 3 minutes", 1.88, NANOGPT),
    ("nanoGPT, 6 layers of 384", "one A100, about 3 minutes", 1.4697, NANOGPT),
    ("nanoGPT, 6 layers of 384", "not said; after 1,750 steps", 1.48, ISSUE),
    ("nanoGPT, 12 layers of 384", "not said; after 1,250 steps", 1.49, ISSUE),
    (
        "nanoGPT, 6 layers of 384",
        "one T4, float16; after 1,500 steps",
        1.4646,
        "[its model card](https://huggingface.co/codeby-hp/nanogpt-shakespeare)",
    ),
    (
        "tiny-lm, 6 layers of 192, 512 tokens of BPE",
        "not said",
        1.50,
        "[its model card](https://huggingface.co/lillycham/tiny-lm-shakespeare)",
    ),
]
BEGIN, END = "<!-- written by tests/benchmarks/results.py -->", "<!-- up to here -->"


def render(store: dict[str, dict], root: Path, pictures: bool = False) -> dict[Path, str]:
    """Path -> text of every page that holds results; the pictures beside them only if asked for."""
    if pictures:
        draw(store, root / "docs" / "images")
    parts = list(sections(store, root))
    front = root / "README.md"
    text = front.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    if found:
        _, end, after = rest.partition(END)
        text = f"{before}{BEGIN}\n\n{front_text(store)}\n\n{end}{after}"
    return {root / "docs" / "results.md": "\n\n".join(parts) + "\n", front: text}


def sections(store: dict[str, dict], root: Path) -> Iterator[str]:
    """The page, block by block; a section whose rows are not measured yet is left out."""
    yield INTRODUCTION.format(machines=machines(store.values()), dtypes=dtypes(store.values()))
    if missing := [f"`{name}`" for name in EXPECTED if name not in store]:
        yield f"Not measured yet: {', '.join(missing)}."
    yield SHAKESPEARE + made_by_hand(rows_of(store, "shakespeare"))
    yield train_table(store, "shakespeare")
    if rows_of(store, "shakespeare-01-small"):
        yield CURVES
    yield from (LONGER, longer_table(store, root))
    if floor := store.get("tales-ngram-chars", {}).get("floor"):
        yield from (TALES.format(floor=floor), train_table(store, "tales"))
        yield from (BY_HAND, train_table(store, "recall"), TALES_CURVES)
    yield from (SAMPLES, *samples(store))
    yield from (PEERS, peers_table(store, root))
    if rows_of(store, "recall"):
        yield from (RECALL, recall_table(store))
    if "tokenizers-train" in store and "tokenizers-encode" in store:
        yield from (TOKENIZERS.format(**about(store, "tokenizers-train")), tokenizer_table(store))
    if "compression" in store:
        yield COMPRESSION.format(command=store["compression"]["command"])
        yield compression_table(store)
    if "generation" in store:
        yield from (GENERATION.format(**about(store, "generation")), generation_table(store))
    yield MORE


# -------------------------------------------------------------------------------- parts of a table


def table(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def time_of(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def gigabytes(memory: int | None) -> str:
    return f"{memory / 1e9:.2f} GB" if memory else ""


def machines(rows: Iterable[dict]) -> str:
    """All machines that some rows were measured on, in words."""
    said = {}
    for row in rows:
        if "machine" in row:
            m = row["machine"]
            text = f"{m['cpu']}, {m['system']}, Python {m['python']}, PyTorch {m['torch']}"
            said.setdefault(text, set()).add(row["date"])
    return "; ".join(f"{text} ({', '.join(sorted(dates))})" for text, dates in said.items())


def dtypes(rows: Iterable[dict]) -> str:
    return " or ".join(sorted({row["dtype"] for row in rows if "dtype" in row}))


def cores_of(rows: Iterable[dict]) -> str:
    counts = sorted({row["machine"]["cores"] for row in rows if "machine" in row})
    return " or ".join("one core" if count == 1 else f"{count} cores" for count in counts)


def made_by_hand(rows: dict[str, dict]) -> str:
    """A sentence about runs whose files were read, if there are any."""
    names = [title(name).removesuffix(", default") for name, row in rows.items() if "read" in row]
    if not names:
        return ""
    return f" Made by hand with that command, on the same kind of machine: {', '.join(names)}."


def about(store: dict[str, dict], name: str) -> dict[str, object]:
    """Of a benchmark: its command, its cores and its size, for the text above its table."""
    row = store[name]
    cores = cores_of([row])
    parameters = f"{row.get('parameters', 0) / 1e6:.0f} M"
    return {"command": row["command"], "cores": cores, "parameters": parameters}


def title(name: str) -> str:
    """What a row is called on the page.

    >>> title("shakespeare-03-tiny"), title("shakespeare-01-small"), title("tales-ngram-words")
    ('LSTM + attention, tiny', 'character RNN, default', '5-gram of words')
    """
    if name in NGRAMS:
        return NGRAMS[name]
    _, model, preset = name.split("-")
    return f"{NAMES[model]}, {'default' if preset == 'small' else preset}"


def rows_of(store: dict[str, dict], start: str) -> dict[str, dict]:
    return {name: row for name, row in store.items() if name.startswith(start)}


# ---------------------------------------------------------------------------------------- tables


def train_table(store: dict[str, dict], start: str) -> str:
    header = [
        "model", "command", "parameters", "steps", "cores", "time", "of it training", "memory",
        "nats/token", "perplexity", "bits/char",
    ]  # fmt: skip
    rows = []
    for name, row in rows_of(store, start).items():
        wall = row.get("wall_seconds")
        rows.append([
            RUNS.get(name) or title(name), f"`{row['command']}`",
            f"{row['parameters']:,}" if "parameters" in row else "",
            f"{row['steps']:,}" if "steps" in row else "",
            row["machine"]["cores"] if "machine" in row else "",
            time_of(wall) if wall else "", time_of(row["seconds"]) if "steps" in row else "",
            gigabytes(row.get("memory")), f"{row['nats']:.4f}", f"{math.exp(row['nats']):.2f}",
            f"{row['bits']:.4f}",
        ])  # fmt: skip
    return table(header, rows)


def front_text(store: dict[str, dict]) -> str:
    """What README.md says of the defaults of the five models."""
    names = [f"shakespeare-{model}-small" for model in NAMES]
    rows = [store[name] for name in names if name in store]
    return (
        f"{FRONT} Measured on {cores_of(rows)}, {machines(rows)}, {dtypes(rows)}."
        f"{made_by_hand({name: store[name] for name in names if name in store})}\n\n"
        f"{front_table(store, ['shakespeare-ngram-chars', *names])}"
    )


def front_table(store: dict[str, dict], names: list[str]) -> str:
    return table(
        ["model", "command", "training", "nats/token", "perplexity", "bits/char"],
        (
            [
                title(name).removesuffix(", default"), f"`{row['command']}`",
                time_of(row.get("seconds") or row["wall_seconds"]), f"{row['nats']:.4f}",
                f"{math.exp(row['nats']):.1f}", f"{row['bits']:.3f}",
            ]
            for name, row in ((name, store[name]) for name in names if name in store)
        ),
    )  # fmt: skip


def tables_of(path: Path) -> list[list[dict[str, str]]]:
    """The tables of a Markdown file: lines as header -> cell."""
    found, rows = [], []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            found.append([dict(zip(rows[0], row, strict=False)) for row in rows[2:]])
            rows = []
    return found


def longer_table(store: dict[str, dict], root: Path) -> str:
    """Runs on Tiny Shakespeare in the models' READMEs that are not in this page's own table."""
    here = {row["command"].replace(" --dataset tiny-shakespeare", "") for row in store.values()}
    rows = []
    for folder in sorted(root.glob("model-*")):
        for line in (each for lines in tables_of(folder / "README.md") for each in lines):
            nats = line.get("nats/char") or line.get("nats/word")
            command = re.fullmatch(r"`python (train\.py[^`]*)`", line.get("command", ""))
            if not (nats and command and line.get("time")) or "--dataset tales" in command[1]:
                continue
            typed = f"python {folder.name}/{command[1]}"
            if typed.replace(" --dataset tiny-shakespeare", "") not in here:
                where = f"[model {folder.name[6:8]}'s README]({'../' + folder.name}/README.md)"
                cells = [line[""] if "" in line else line["model"], f"`{typed}`", line["time"]]
                rows.append([*cells, nats, line["bits/char"], where])
    return table(["model", "command", "time", "nats/token", "bits/char", "from"], rows)


def samples(store: dict[str, dict]) -> list[str]:
    """What each model wrote at the end of its training."""
    shown = {f"shakespeare-{model}-small": f"{NAMES[model]}, default" for model in NAMES}
    shown |= {name: f"{RUNS[name]}, on tales" for name in RUNS if name.count("-") == 1}
    blocks = []
    for name, heading in shown.items():
        if name in store:
            text = "\n".join(line.rstrip() for line in store[name]["sample"].splitlines())
            loss = f"{store[name]['bits']:.3f} bits/char"
            blocks.append(f"**{heading}** ({loss}):\n\n```text\n{text}\n```")
    return blocks


def peers_table(store: dict[str, dict], root: Path) -> str:
    header = ["model", "on", "nats/char", "bits/char", "", "source"]
    rows = [
        [who, where, nats, f"{nats / math.log(2):.3f}", "published", source]
        for who, where, nats, source in PUBLISHED
    ]
    text = (root / "model-05-gpt-style" / "README.md").read_text(encoding="utf-8")
    where = "[model 05's README](../model-05-gpt-style/README.md#beside-nanogpt)"
    if ran := re.search(r"took (\d+) s and ended at ([\d.]+) by its own estimate", text):
        bits = f"{float(ran[2]) / math.log(2):.3f}"
        source = f"{where}, not re-measured by this page's command"
        who = "nanoGPT, 4 layers of 128, its README's command"
        rows.append([who, f"two cores, {ran[1]} s", ran[2], bits, "measured here", source])
    for model in ("01", "04", "05"):  # those that read characters
        for preset in ("tiny", "small"):
            if row := store.get(f"shakespeare-{model}-{preset}"):
                on = f"{cores_of([row])} {time_of(row.get('wall_seconds') or row['seconds'])}"
                cells = [title(f"-{model}-{preset}"), on, f"{row['nats']:.4f}"]
                rows.append([*cells, f"{row['bits']:.3f}", "measured here", "this page"])
    return table(header, rows)


def recall_table(store: dict[str, dict]) -> str:
    """Right answers in % by distance, from each run's recall.csv."""
    chosen = {name: row for name, row in store.items() if name in RUNS and "recall" in row}
    answers = {}
    for name, row in chosen.items():
        own = next(label for label in row["recall"] if "gram" not in label)
        answers[RUNS[name]] = row["recall"][own], f"{row['bits']:.4f}"
        for label in set(row["recall"]) - {own}:
            kind = "characters" if name == "recall-01" else "words"
            if name in ("recall-01", "recall-03"):
                answers[f"{label} of {kind}"] = row["recall"][label], ""
    first = next(iter(answers.values()))[0]
    ends = [f"{at}-{2 * int(at) - 1}" for at in first]
    rows = [
        [name, bits, *(f"{100 * right / asked:.0f}" for right, asked, _ in cells.values())]
        for name, (cells, bits) in sorted(answers.items(), key=lambda item: order(item[0]))
    ]
    guess = [f"{100 * chance / asked:.0f}" for _, asked, chance in first.values()]
    asked = [asked for _, asked, _ in first.values()]
    rows += [["guessing", "", *guess], ["questions", "", *asked]]
    return table(["", "bits/char", *ends], rows)


def order(name: str) -> int:
    """Counting first, then as in RUNS."""
    names = list(RUNS.values())
    return names.index(name) if name in names else -1


def tokenizer_table(store: dict[str, dict]) -> str:
    rows = [
        [what, f"{size:.2f}", f"{ours:.3f}", f"{theirs:.3f}", who, f"{ours / theirs:.2f}"]
        for name in ("tokenizers-train", "tokenizers-encode")
        for what, size, ours, theirs, who in store[name]["races"]
    ]
    header = ["", "million characters", "ours, s", "theirs, s", "they", "ours / theirs"]
    return table(header, rows)


def compression_table(store: dict[str, dict]) -> str:
    rows = [
        [name, f"{size:,}", f"{per_token:.2f}", f"{unknown:.2f} %", exact]
        for name, size, per_token, unknown, exact in store["compression"]["points"]
    ]
    header = ["", "tokens in the vocabulary", "characters a token", "unknown", "comes back exactly"]
    return table(header, rows)


def generation_table(store: dict[str, dict]) -> str:
    speeds = store["generation"]["speeds"]
    names = {
        "in bfloat16": "model 05, `--dtype bfloat16`",
        "in int8": "model 05, `--dtype bfloat16 --quantize int8`",
        "Hugging Face": "Hugging Face generate",
        "its bfloat16": "Hugging Face generate, bfloat16",
    }
    ours = [speeds["model 05"], speeds["in bfloat16"], speeds["in int8"]]
    rows = [
        [names.get(name, name), f"{speed:.1f}", *(f"{own / speed:.2f}" for own in ours)]
        for name, speed in speeds.items()
    ]
    header = ["", "tokens/s", "model 05 is times as fast", "in bfloat16", "in int8"]
    return table(header, rows)


# ------------------------------------------------------------------------------------- pictures


def draw(store: dict[str, dict], folder: Path) -> None:
    """The loss of all five models on one scale: by time, and by text read."""
    curves = {}
    for model, name in NAMES.items():
        if row := store.get(f"shakespeare-{model}-small"):
            curves[name] = [(seconds, bits) for _, _, seconds, _, bits in row["history"]]
    lines = {NGRAMS[n]: row["bits"] for n, row in rows_of(store, "shakespeare-ngram").items()}
    heading = "Tiny Shakespeare: the five models' defaults"
    path = folder / "results-shakespeare.png"
    if curves:
        visualize.plot_curves(curves, path, heading, "seconds of training", lines)
    runs = {RUNS[n]: store[n]["history"] for n in RUNS if n in store and n.count("-") == 1}
    lines = {NGRAMS[n]: row["bits"] for n, row in rows_of(store, "tales-ngram").items()}
    lines |= {"entropy floor": row["floor"]} if (row := store.get("tales-ngram-chars")) else {}
    curves = {name: [(read(line), line[4]) for line in history] for name, history in runs.items()}
    path, label = folder / "results-tales.png", "characters of text read in training"
    if curves:
        visualize.plot_curves(curves, path, "Tales: the runs of the recall test", label, lines)
        draw_recall(store, folder / "recall.png")


def draw_recall(store: dict[str, dict], path: Path) -> None:
    """The front page's picture, from what the store has kept of each run's recall.csv."""
    answers = {}
    for name in RUNS:
        best = not name.endswith(("-plain", "-short", "-few", "-more"))  # of its kind
        if best and "recall" in store.get(name, {}):
            answers |= store[name]["recall"]
    answers.pop("7-gram", None)  # of several tokenizers
    answers = {name: answers[name] for name in sorted(answers, key=lambda n: "gram" not in n)}
    lines = ["model,kind,distance,choices,right"]
    for name, cells in answers.items():
        for at, (right, asked, chance) in cells.items():
            choices = round(asked / chance)
            lines += [f"{name},,{at},{choices},{int(i < right)}" for i in range(asked)]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "recall.csv"
        table.write_text("\n".join(lines), encoding="utf-8")
        visualize.plot_recall([table], path)


def read(line: list[float]) -> float:
    """Characters of text behind a line of the history: nats and bits tell how long a token is."""
    _, tokens, _, nats, bits = line
    return tokens * nats / (math.log(2) * bits)


# ------------------------------------------------------------------------------------- the texts

FRONT = """The defaults on Tiny Shakespeare; loss over the whole validation split. Models 02 and \
03 read words, the others characters: only bits per character compare them all."""

INTRODUCTION = """# Results

All results in one place. This page is written by `python tests/benchmarks/results.py` from the \
measurements in [results.json](results.json). Only the explanations are typed by hand.

## How to read it

- **nats/token** is the loss: minus the logarithm of the probability of the token that came, \
averaged over the whole validation split. **Perplexity** is its exponential. Both depend on what \
a token is, so compare them only among models that read characters, or among models that read \
words.
- **bits/char** is the cost of the validation text in bits, divided by its characters. It puts \
all models on one scale. One condition: a model of words knows the words of the validation text \
beforehand, as a model of characters knows the alphabet. That is a larger gift.
- **time** is wall clock, from start to end of the command. *Of it training* leaves out start-up, \
evaluations and samples.
- **memory** is the largest that the process has been, PyTorch's libraries included.
- **cores**: rows differ, so compare times only where they are equal. Other programs ran on the \
other cores where only one was used.

Machine: {machines}. Matrix products are in {dtypes} there (`--dtype auto`).

Each row has its command, typed in the root. `python tests/benchmarks/results.py --check` \
measures the tiny models on Tiny Shakespeare and the n-grams again, and fails if a loss is not \
what this page says: to four digits on the same machine, within 1 % on another. The defaults end \
by the clock, so that they depend on the machine; nobody checks times. Rows *from a README* and \
those of the recall test took too long for this command. It says where they come from."""

SHAKESPEARE = """## Tiny Shakespeare

The first 90 % of the text for training, the last 10 % for validation. \
Of n-grams, *parameters* are the n-grams that were counted."""

CURVES = """![Loss of all five models on Tiny Shakespeare](images/results-shakespeare.png)

*The five defaults, validation loss against seconds of training. Points are evaluations. \
Models 02 and 03 read words, the others characters: bits per character put them on one axis.*"""

LONGER = """### Longer runs, and other settings

From the tables of the models' READMEs, not re-measured by this page's command."""

TALES = """## Tales

Stories that the repository writes itself. Their entropy is known: **{floor} bits per character** \
of the validation split, and no model can go lower."""

BY_HAND = """### Longer

The runs of the [recall test](#who-remembers). They were made by hand with the command of the \
row, on machines of two cores, most while other programs ran there, so that their times say \
little. This page's command reads their files and does not measure them again. What the files do \
not say is left out."""

TALES_CURVES = """![Loss on tales](images/results-tales.png)

*The last of each kind in that table, against the text that was read in training.*"""

SAMPLES = """## What they write

The last lines of each run's `samples.txt`, written by the model at the end of its training, at \
temperature 0.8. 80 tokens: characters for models 01, 04 and 05, words for 02 and 03. The runs on \
tales are those of the recall test."""

PEERS = """## Beside published figures

Tiny Shakespeare, characters, validation loss. *Published* is what others say, as they say it: \
most estimate it on some batches, and take the best of many evaluations. *Measured here* is over \
the whole validation split, except for nanoGPT, which estimated its own. The table holds what we \
found with a source that can be looked up, and is no ranking."""

RECALL = """## Who remembers?

![Who remembers? Recall on tales](images/recall.png)

A story says something once and needs it later: is the right answer, of mostly eight, the one \
that the model finds likeliest? Right answers in %, by distance in characters, counted in each \
run's `recall.csv`. The runs are those of the [table above](#longer), not re-measured by this \
page's command. Groups are small, so differences of ten points mean little."""

TOKENIZERS = """## Tokenizers

How fast is our BPE, in plain Python, beside Rust's `tokenizers` and tiktoken? Seconds, on \
{cores}, one thread each, in turns, median of seven; below 1 ours is faster. `cold` is a \
tokenizer that has not seen any text yet. (`python tests/benchmarks/bench_tokenizers.py --only \
train` and `--only encode`; *large* are the data files, then the sources of Python's library.)"""

COMPRESSION = """### How much a token holds

Trained on a million characters of tales, measured on the validation split (`{command}`). The \
same [in a picture](../shared/utils/README.md#how-much-a-token-holds)."""

GENERATION = """## How fast it writes

A GPT of {parameters} parameters, context 512, one text of 500 tokens, equal weights, float32 \
where nothing else is said, on {cores}, in turns (`{command}`). What a token costs, by length: \
[model 04](../model-04-mini-transformer/README.md#what-length-costs), without a cache, and \
[model 05](../model-05-gpt-style/README.md#what-a-token-costs), with one."""

MORE = """## More tables

- Speed of the recurrent cells against PyTorch's: [model 03](\
../model-03-lstm-attention/README.md#speed-of-the-cells); its perplexity beside PyTorch's \
word-level example: [model 03](\
../model-03-lstm-attention/README.md#against-pytorchs-word-level-example).
- What each part of a transformer is worth: [model 04](\
../model-04-mini-transformer/README.md#take-it-apart); five ways to cut a text: [model 04](\
../model-04-mini-transformer/README.md#what-is-a-token).
- [Spam](../model-05-gpt-style/README.md#fine-tuning-spam), \
[LoRA](../model-05-gpt-style/README.md#lora), \
[quantization](../model-05-gpt-style/README.md#quantization), \
[instructions](../model-05-gpt-style/README.md#instructions) and \
[preferences](../model-05-gpt-style/README.md#preferences): model 05.
- The tokenizers' hardest cases and their memory: \
[shared/utils](../shared/utils/README.md#how-fast)."""
