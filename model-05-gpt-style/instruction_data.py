r"""Instructions, and what becomes of them before a model reads them.

    instruction   Write a tale about a fox named Pip who lost a straw hat.
    template      ... ### Instruction:\nWrite a tale ... straw hat.\n\n### Response:\n

    input    Below  is   ...  Response:  \n   Pip  the  ...  bed  .   \n     0     0
    target   is     an   ...  \n         Pip  the  fox  ...  .    \n  END -100  -100
    masked   -100  -100  ...  -100       Pip  the  fox  ...  .    \n  END -100  -100
             `--------- prompt -----------'`--------- response ----'`--- padding --'

A language model that has read stories goes on with any text; that what stands before "Response:"
is to be obeyed, it learns from pairs of instruction and response (Wei et al. 2021, Ouyang et al.
2022). The template says where the instruction ends, the end mark where the response does, and the
mask keeps the loss to the response: to ask is not what it shall learn. Whether that is better than
to learn from all of it (--no-mask-instructions) is a question; README.md has both.

`tales` are stories whose facts are known, so instructions about them can be checked: `check` reads
the answer back with the grammar that wrote the stories, and where that fails looks for what was
asked in plain text. Nobody's taste is asked. Two stories that differ in one fact make a preference
pair. No (plot, kind, thing) of the training instructions is in those for validation or test.

Shapes: B batch, T time

    python instruction_data.py                                # some, with checks and pairs
    python instruction_data.py --base base.txt                # text for a model to start from
    python instruction_data.py --dataset instruct --template short
"""

from __future__ import annotations

import json
import math
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from generate import Arguments, command
from torch import Tensor
from tqdm import tqdm
from train import replacing, shown

from shared import UserError
from shared.data.download import DATASETS, ensure, sha256_of
from shared.data.tales import (
    KINDS,
    NAMES,
    THINGS,
    Facts,
    held_out,
    prefix_bits,
    read_tale,
    write_corpus,
    write_tale,
)
from shared.utils.tokenizers import BPETokenizer, Tokenizer

END = "<|endoftext|>"  # after a response, and between the documents of a base model
IGNORED = -100  # a target that does not count
TEMPLATES = {  # up to the first word of the response
    "alpaca": (  # Taori et al. 2023
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{instruction}{input}\n\n### Response:\n"
    ),
    "short": "<|user|>\n{instruction}{input}\n<|assistant|>\n",
}
INPUTS = {"alpaca": "\n\n### Input:\n", "short": "\n"}  # before an input, where there is one
REQUESTS = (  # each asks for what stands in braces
    "Write a tale about {a_kind} named {hero} {who}.",
    "Tell me a story of {a_kind} called {hero} {who}.",
    "Please write a story in which {hero} is {a_kind} {who}.",
    "I would like a tale about {hero} and {friend}. It is about somebody {who}.",
    "Write about {a_kind} {who}. The name of the {kind} is {hero}.",
    "Can you tell a story of {a_kind} called {hero} and a friend called {friend}?",
    "Tell a tale of {a_kind} {who}.",
    "Write a story about {hero}, {a_kind}, and {a_thing}.",
)
WHO = {  # what happens in each plot
    "lost": ("who lost {a_thing}", "who looks for {a_thing}"),
    "lent": ("who lent {a_thing} to a friend", "whose friend borrows {a_thing}"),
    "errand": ("who was sent shopping and got {a_thing}", "who ran an errand and got {a_thing}"),
    "count": ("who could not pay all of {a_thing}", "who wanted to buy {a_thing}"),
    "race": ("who won {a_thing} in a race", "who came last and still won {a_thing}"),
    "storm": ("who got {a_thing} after a storm", "whose guest in a storm left {a_thing}"),
    "present": ("who hid {a_thing} as a present", "with {a_thing} for a birthday"),
    "broken": ("who broke {a_thing}", "who was sorry about {a_thing} that broke"),
    "noise": ("who heard a noise and took {a_thing}", "who found a noise at night with {a_thing}"),
    "map": ("who dug up {a_thing}", "who found {a_thing} with a map"),
}
SIGNS = {  # words that stand in every tale of this plot, and in no other
    "lost": "Where was it last?", "lent": "I shall bring you some", "errand": ', please!"',
    "count": "The price is", "race": "The umpire", "storm": "It was signed", "present": "birthday.",
    "broken": "I broke it", "noise": "It came from the", "map": "had no spade",
}  # fmt: skip
# "a" or "an" is written before the thing is, and with one thing of 16 a model took "an" for chance,
# whatever was asked. In training a fifth of the tales get such a thing; held-out ones stay.
AN = [row["name"] for row in THINGS if row["fine"].startswith("an ")]
PARTS = ("train", "valid", "test")
SHARES = {"train": (0.0, 0.85), "test": (0.85, 0.95), "valid": (0.95, 1.0)}  # of a file


# ------------------------------------------------------------------------------------ the tales


class Example(NamedTuple):
    """An instruction and a response to it; what was asked, where that is known."""

    instruction: str
    input: str  # what it is about, or ""
    response: str
    asked: dict[str, str]  # facts of the tale; {} where nobody knows the right answer


def facts_of(tale: Facts) -> dict[str, str]:
    """What an instruction can ask for."""
    return {name: getattr(tale, name) for name in ("plot", "kind", "hero", "thing", "friend")}


def ask(facts: Facts, dice: random.Random) -> tuple[str, dict[str, str]]:
    """An instruction that the tale with these facts obeys, and the facts that it asks for."""
    request, who = dice.choice(REQUESTS), dice.choice(WHO[facts.plot])
    fine = next(row["fine"] for row in THINGS if row["name"] == facts.thing)  # "a straw hat"
    kind = f"{'an' if facts.kind[0] in 'aeiou' else 'a'} {facts.kind}"
    words = facts_of(facts) | {"who": who, "a_kind": kind, "a_thing": fine}
    wanted = set(re.findall(r"\{(?:a_)?(\w+)\}", request.replace("{who}", "{plot}{thing}")))
    asked = {name: word for name, word in facts_of(facts).items() if name in wanted}
    return request.replace("{who}", who).format(**words), asked


def base_text(characters: int, seed: int = 0) -> str:
    """A text for a base model: stories, each with an end mark, 90 % of them of the split `train`.

    Its first page is a list of the words in instructions and templates, so that a tokenizer of
    words knows them. What they are for, the base model cannot tell from that.
    """
    requests = "\n".join([*REQUESTS, *sum(WHO.values(), ())])
    words = re.sub(r"\{\w+\}", "", "\n".join([*TEMPLATES.values(), *INPUTS.values(), requests]))
    parts = [words]
    for split, share in (("train", 0.9), ("valid", 0.1)):
        parts += write_corpus(int(share * characters), seed, split)[0].strip().split("\n\n")
    return f"\n{END}\n".join(parts) + f"\n{END}\n"


def part_of(facts: Facts) -> str:
    """`train`, `valid` or `test`: by plot, kind and thing, so that they never share all three.

    What tales.py holds out, a tenth, is halved.
    """
    combination = facts.plot, facts.kind, facts.thing
    if not held_out(*combination):
        return "train"
    return PARTS[1 + zlib.crc32("/".join(combination).encode()) // 10 % 2]


def write_examples(part: str, count: int, seed: int) -> Iterator[tuple[Example, random.Random]]:
    """Instructions and the stories that obey them; and the dice, to go on with. See AN."""
    dice = random.Random(f"{seed} {part}")
    while count:
        tale = write_tale(dice, "train" if part == "train" else "valid")
        if part == "train" and dice.random() < 0.2:
            own = ("thing", tale.facts.thing)
            tale = read_tale(retold(tale.text, {own: dice.choice(AN)}))
        if tale and part_of(tale.facts) == part:
            instruction, asked = ask(tale.facts, dice)
            yield Example(instruction, "", tale.text, asked), dice
            count -= 1


# ----------------------------------------------------------------------------------- the checker


class Check(NamedTuple):
    """Whether a response does what was asked, and how that was found out."""

    right: dict[str, bool]  # for each fact that was asked
    read: bool  # by the grammar of the tales; otherwise by a look for words

    @property
    def obeyed(self) -> bool:
        return all(self.right.values())


def check(response: str, asked: dict[str, str]) -> Check:
    """Does the story have the facts that were asked for?"""
    tale = read_tale(response)
    found = facts_of(tale.facts) if tale else look_for_facts(response)
    return Check({name: found[name] == word for name, word in asked.items()}, tale is not None)


def before_a_slip(text: str) -> int:
    """As many characters at the beginning of a text as could begin some tale: all, or up to the
    first slip. Found by halving: what no tale begins with, it does not begin with if longer."""
    good, bad = 0, len(text) + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if math.isinf(prefix_bits(text[:middle])) else (middle, bad)
    return good


def look_for_facts(text: str) -> dict[str, str]:
    """What a text that no grammar can read seems to be about; "" where it does not say.

    The first name and kind, the second name, the first thing that is described as in its table ("a
    straw hat"), and the plot whose sign is there; of several signs none counts.
    """
    names = list(dict.fromkeys(mentions(text, NAMES, "name")))
    things = mentions(text, THINGS, "fine")
    signs = [plot for plot, sign in SIGNS.items() if sign in text]
    return {
        "plot": signs[0] if len(signs) == 1 else "",
        "kind": next(iter(mentions(text, KINDS, "name")), ""),
        "hero": names[0] if names else "",
        "thing": next((row["name"] for row in THINGS if row["fine"] in things[:1]), ""),
        "friend": names[1] if len(names) > 1 else "",
    }


def mentions(text: str, table: list[dict[str, str]], form: str) -> list[str]:
    """All words of this form that the text has of a table of tales.py, in their order."""
    return re.findall(rf"\b(?:{'|'.join(row[form] for row in table)})\b", text)


# ------------------------------------------------------------------------------------- the pairs


class Pair(NamedTuple):
    """An instruction with two responses, one of them better."""

    instruction: str
    input: str
    chosen: str
    rejected: str
    asked: dict[str, str]
    broken: str  # the fact that `rejected` has wrong, "" where nobody knows


def retold(text: str, changes: dict[tuple[str, str], str]) -> str:
    """The same story with other names, animals or things: {("kind", "fox"): "owl", ...}

    Every form of a word in its table is replaced: an animal has another home, too.
    """
    words = {"": ""}  # nothing changes
    for (name, old), new in changes.items():
        table = {"kind": KINDS, "thing": THINGS}.get(name, NAMES)
        before, after = (next(row for row in table if row["name"] == each) for each in (old, new))
        words |= {before[form]: after[form] for form in before}
    ordered = sorted(words, key=len, reverse=True)
    return re.sub(
        rf"\b(?:{'|'.join(map(re.escape, ordered))})\b", lambda found: words[found[0]], text
    )


def spoil(example: Example, dice: random.Random) -> Pair:
    """Beside the story that obeys, one that breaks one fact and keeps the others.

    It is read back, so that it is a story of the grammar; and training sees nothing held out.
    """
    facts = read_tale(example.response).facts
    while True:
        broken = dice.choice(sorted(example.asked))
        other, wanted = facts, dict(example.asked)
        text = example.response
        if broken == "plot":
            tale = write_tale(dice, facts.split)
            text, other = tale.text, tale.facts
        else:
            table = {"kind": KINDS, "thing": THINGS}.get(broken, NAMES)
            wanted[broken] = dice.choice(table)["name"]
        own = facts_of(other)
        changes = {(name, own[name]): word for name, word in wanted.items()
                   if name != "plot" and own[name] != word}  # fmt: skip
        text = retold(text, changes)
        tale = read_tale(text)
        if tale and (facts.split == "valid" or part_of(tale.facts) == "train"):
            right = check(text, example.asked).right
            if [name for name in right if not right[name]] == [broken]:
                return Pair(*example[:2], example.response, text, example.asked, broken)


# ------------------------------------------------------------------------------------- the files


class Dataset(NamedTuple):
    """Instructions of three parts, and what identifies them."""

    train: list
    valid: list
    test: list
    name: str
    sha256: str  # of the file; of what writes the tales, there is no need of one


def load(name: str, sizes: tuple[int, int, int], seed: int = 0, pairs: bool = False) -> Dataset:
    """Examples, or pairs, for training, validation and test. Raises UserError.

    name: `tales`, of which as many are written as `sizes` says; `instruct`; or a JSON file with a
    list of {"instruction", "input", "output"}, and "chosen" and "rejected" for pairs. Of a file
    the first 85 % are for training, 10 % for the test and the rest for validation, as in chapter 7
    of Raschka's "Build a large language model (from scratch)", and `sizes` are the most of each.
    """
    if name == "tales":
        parts = zip(PARTS, sizes, strict=True)
        return Dataset(*(list(_written(*part, seed, pairs)) for part in parts), name, "")
    path = Path(name).expanduser()
    if name in DATASETS:
        file = "instruction-data-with-preference.json" if pairs else "instruction-data.json"
        path = ensure(name, only=(file,))[0]
    rows = read_rows(path, pairs)
    parts = []
    for part, most in zip(PARTS, sizes, strict=True):
        low, high = (int(share * len(rows)) for share in SHARES[part])
        parts.append(rows[low:high][:most])
    if not all(parts):
        raise UserError(f"{path} has too few instructions: give at least 20")
    return Dataset(*parts, name, sha256_of(path))


def _written(part: str, count: int, seed: int, pairs: bool) -> Iterator[Example | Pair]:
    """Examples, or pairs, of `tales`."""
    rows = write_examples(part, count, seed)
    if not pairs:
        yield from (example for example, _ in rows)
        return
    bar = tqdm(rows, f"{part} pairs", count, leave=False, unit="pair", disable=None)
    yield from (spoil(example, dice) for example, dice in bar)


def read_rows(path: Path, pairs: bool) -> list[Example | Pair]:
    """The instructions of a JSON file. Raises UserError."""
    keys = ("instruction", "input", *(("chosen", "rejected") if pairs else ("output",)))
    wrong = f"{path} is no list of instructions: each needs {', '.join(keys)}, all of them text"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: give tales, instruct or a JSON file") from None
    except ValueError:  # no JSON, or not UTF-8
        raise UserError(wrong) from None
    if not isinstance(rows, list):
        raise UserError(wrong)
    found = []
    for row in rows:
        texts = [row.get(key, "" if key == "input" else None) if isinstance(row, dict) else None
                 for key in keys]  # fmt: skip
        if not all(isinstance(text, str) for text in texts):
            raise UserError(wrong)
        found.append(Pair(*texts, {}, "") if pairs else Example(*texts, {}))
    return found


# ------------------------------------------------------------------------------------ the tokens


class Row(NamedTuple):
    """A prompt and a response in tokens."""

    tokens: list[int]
    prompt: int  # as many of them are the prompt


def prompt_of(template: str, instruction: str, input: str = "") -> str:
    """All that stands before the response."""
    more = INPUTS[template] + input if input else ""
    return TEMPLATES[template].format(instruction=instruction, input=more)


def end_of(tokenizer: Tokenizer) -> list[int]:
    """The end mark in tokens: one, where the tokenizer has it as such."""
    special = isinstance(tokenizer, BPETokenizer) and END in tokenizer.special_tokens
    return tokenizer.encode(END, {END}) if special else tokenizer.encode(END)


def in_template(
    tokenizer: Tokenizer, template: str, said: list[int], line: str, room: int
) -> list[int]:
    """The latest exchanges that leave `room` tokens in all, then the line in its template."""
    end, new = end_of(tokenizer), tokenizer.encode(prompt_of(template, line))
    if said and said[-len(end) :] != end:  # it was interrupted
        said = said + end
    while said and len(said) + len(new) > room:  # forget the earliest exchange
        ends = [i for i in range(len(end), len(said) + 1) if said[i - len(end) : i] == end]
        said = said[ends[0] :]
    return said + new


def encode(tokenizer: Tokenizer, prompt: str, response: str, context: int) -> Row | None:
    """Prompt, response and end mark: at most `context` + 1 tokens, to read and to predict.

    What is too long is cut off behind, and with it the end mark: the response does not end there.
    None if the prompt leaves no room for a response.
    """
    first = tokenizer.encode(prompt)
    tokens = first + tokenizer.encode(response + "\n") + end_of(tokenizer)
    return Row(tokens[: context + 1], len(first)) if len(first) < context + 1 else None


def collate(
    rows: list[Row], mask: bool = True, device: str = "cpu", context: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows of different lengths -> inputs (B, T) and targets (B, T), each the token after.

    Targets are IGNORED where nothing is to be learned: in the padding, which stands behind and
    which no earlier token can see, and, with a mask, in the prompt. With a context, T is a
    multiple of 16 as far as that goes: few shapes are faster than many (see finetune_spam.pad).
    """
    longest = max(len(row.tokens) for row in rows) - 1
    T = min(max(context, longest), -(-longest // 16) * 16)
    inputs = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORED)
    for source, target, row in zip(inputs, targets, rows, strict=True):
        source[: len(row.tokens) - 1] = torch.tensor(row.tokens[:-1])
        start = row.prompt if mask else 1  # the last token of the prompt predicts the first
        target[start - 1 : len(row.tokens) - 1] = torch.tensor(row.tokens[start:])
    return inputs.to(device), targets.to(device)


def check_vocabulary(tokenizer: Tokenizer, template: str) -> None:
    """Raises UserError if the template or the end mark would become <unk>."""
    text = TEMPLATES[template].format(instruction="", input=INPUTS[template]) + END
    if tokenizer.unk_id is not None and tokenizer.unk_id in tokenizer.encode(text):
        raise UserError(
            f"this model's tokenizer lacks words of --template {template} or {END}: train the "
            "model on the text of `instruction_data.py --base`, or with --tokenizer bpe"
        )


# ------------------------------------------------------------------------------ the command line


def show(name: str, template: str, count: int, seed: int) -> None:
    """Print some examples, and, of tales, what the checker says of them and of spoiled ones."""
    for example in load(name, (count, 1, 1), seed).train:
        print(prompt_of(template, *example[:2]) + f"{example.response}\n{END}\n")
        if example.asked:
            pair = spoil(example, random.Random(seed))
            print(f"asked: {example.asked}")
            print(f"this one: {check(example.response, example.asked)}")
            print(f"{pair.broken} broken: {check(pair.rejected, example.asked)}\n")


def main() -> None:
    parser = Arguments("Show instructions, or write a base model's text.", "instruction_data.py")
    parser.text("--dataset", "tales, instruct or a JSON file", "tales")
    parser.choice("--template", "what stands around an instruction", list(TEMPLATES), "alpaca")
    parser.number("--examples", int, "to show", 1, 1e6, default=2)
    parser.text("--base", "write a text to train a base model on into this file", metavar="FILE")
    parser.number("--size", int, "its characters", 10_000, 1e9, default=5_000_000)
    parser.number("--seed", int, "of the tales", 0, 2**31, default=0)
    args = parser.parse()
    if not args.base:
        show(args.dataset, args.template, args.examples, args.seed)
        return
    path = Path(args.base)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(base_text(args.size, args.seed), encoding="utf-8", newline="\n")
    print(f"{path.stat().st_size:,} bytes in {shown(path)}")


if __name__ == "__main__":
    command(main)
