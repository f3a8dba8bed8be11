"""Tales: exact probabilities, nothing ambiguous, things to remember, and readable English."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shared.data import tales
from shared.data.tales import (
    COMBINATIONS,
    NAMES,
    NUMBERS,
    PLOTS,
    PROBE_KINDS,
    SLOTS,
    Tale,
    held_out,
    prefix_bits,
    read_tale,
    recall_probes,
    write_corpus,
    write_tale,
    write_tales,
)

SCRIPT = Path(tales.__file__).resolve()
# Of write_corpus(100_000, seed=1): any change to a table, a rule or a plot changes it.
GOLDEN = "82b499a7fde0098ee5353b87f72b00ac8a3380cba366113e543299b6ce67d317"


@pytest.fixture(scope="module")
def sample() -> list[Tale]:
    """Six hundred tales, half of them validation."""
    both = [itertools.islice(write_tales(11, split), 300) for split in ("train", "valid")]
    return [*both[0], *both[1]]


@pytest.fixture(scope="module")
def megabyte() -> str:
    return write_corpus(10**6, seed=1)[0]


def command(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run tales.py as a user would, without the checkout on the module path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=60,
        check=False,
    )


# ------------------------------------------------------------------------------- the same for all


def test_the_same_seed_writes_the_same_bytes_on_every_machine() -> None:
    text, floor = write_corpus(100_000, seed=1)
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN
    assert write_corpus(100_000, seed=1) == (text, floor)
    assert write_corpus(100_000, seed=2)[0] != text


def test_a_longer_corpus_begins_with_the_shorter_one() -> None:
    short, long = write_corpus(5_000, 3)[0], write_corpus(20_000, 3)[0]
    assert long.startswith(short.rstrip("\n"))
    assert 5_000 <= len(short) < 7_000


def test_a_corpus_is_whole_tales_with_blank_lines_between() -> None:
    text, _ = write_corpus(20_000, 4, "valid")
    assert text.endswith("\n") and not text.endswith("\n\n")
    parts = text[:-1].split("\n\n")
    assert all(read_tale(part) for part in parts)
    assert parts == [t.text for t in itertools.islice(write_tales(4, "valid"), len(parts))]


# ------------------------------------------------------------------------------ exact probability


def test_each_tale_has_one_derivation_and_reading_it_gives_the_same_bits_and_facts(
    sample: list[Tale],
) -> None:
    for tale in sample:
        assert len(tales._readings(tale.text)) == 1
        again = read_tale(tale.text)
        assert again is not None
        assert again.bits == pytest.approx(tale.bits, abs=1e-6)
        assert again._replace(bits=0) == tale._replace(bits=0)


def test_the_chance_of_a_prefix_only_falls_and_ends_just_above_the_tale_s(
    sample: list[Tale],
) -> None:
    """A second route to the bits: what is left at the end is the choice to end there."""
    everything = sum(map(len, COMBINATIONS.values()))
    for tale in sample[::20]:
        prefixes = [prefix_bits(tale.text[:end]) for end in range(0, len(tale.text) + 1, 50)]
        assert prefixes[0] == 0 and prefixes == sorted(prefixes)
        whole = tale.bits - math.log2(len(COMBINATIONS[tale.facts.split]) / everything)
        assert 0 <= round(whole - prefix_bits(tale.text), 6) < 5


def test_the_chances_of_all_first_letters_add_up_to_one() -> None:
    for prompt in ("", "Once upon a time", sampled_prompt()):
        following = map(chr, range(32, 127))
        total = sum(2 ** -prefix_bits(prompt + letter) for letter in following)
        assert total == pytest.approx(2 ** -prefix_bits(prompt), rel=1e-9)


def sampled_prompt() -> str:
    text = write_tale(random.Random(5)).text.split("\n")[0]
    return text[: len(text) // 2]


def test_observed_frequencies_agree_with_the_stated_chances() -> None:
    openings = Counter(tale.text[:16] for tale in itertools.islice(write_tales(8), 3000))
    seen, total = openings["Once upon a time"], openings.total()
    stated = 2 ** -prefix_bits("Once upon a time")
    assert abs(seen - stated * total) < 4 * math.sqrt(total * stated)


def test_the_floor_is_the_sum_of_the_bits_over_all_characters() -> None:
    for split in ("train", "valid"):
        text, floor = write_corpus(30_000, 6, split)
        number = text.count("\n\n") + 1
        bits = sum(tale.bits for tale in itertools.islice(write_tales(6, split), number))
        assert floor == pytest.approx(bits / len(text), rel=1e-12)
        assert 0.2 < floor < 0.4


def test_reading_refuses_what_is_no_tale_and_never_fails(sample: list[Tale]) -> None:
    tale = sample[0].text
    changed = [tale[: len(tale) // 2], tale + " And so on.", tale.replace("e", "E", 1), tale * 2]
    assert [read_tale(text) for text in ["", " ", "\0", "Once upon a time", *changed]] == [None] * 8
    swapped = tale.replace(sample[0].facts.hero, "Zelda")
    assert read_tale(swapped) is None
    assert read_tale(f"\n{tale}\n") == read_tale(tale)


def test_no_choice_lists_the_same_way_twice() -> None:
    todo, seen = [tales._OPENING, *itertools.chain(*tales._PLOTS.values())], set()
    while todo:
        node = todo.pop()
        if isinstance(node, tales._OneOf) and id(node) not in seen:
            seen.add(id(node))
            shown = [repr(way) for way in node.ways]
            assert len(set(shown)) == len(shown), Counter(shown).most_common(1)
            todo.extend(itertools.chain(*node.ways))


# ------------------------------------------------------------------------------- nothing repeated


def test_a_megabyte_holds_no_tale_twice(megabyte: str) -> None:
    parts = megabyte[:-1].split("\n\n")
    assert len(set(parts)) == len(parts) > 800


@pytest.mark.slow
def test_five_megabytes_and_their_validation_hold_no_tale_twice() -> None:
    text = write_corpus(5 * 10**6, 1)[0][:-1] + "\n\n" + write_corpus(500_000, 1, "valid")[0][:-1]
    parts = text.split("\n\n")
    assert len(set(parts)) == len(parts)


# ------------------------------------------------------------------------------- the split


def test_a_tenth_of_the_combinations_is_held_out_and_the_splits_share_none() -> None:
    train, valid = map(set, (COMBINATIONS["train"], COMBINATIONS["valid"]))
    assert not train & valid
    assert 0.08 < len(valid) / len(train | valid) < 0.12
    assert len(train | valid) == len(PLOTS) * len(tales.KINDS) * len(tales.THINGS)
    for column in range(3):  # every plot, kind and thing occurs in both: only together are they new
        assert {each[column] for each in train} == {each[column] for each in valid}


def test_tales_keep_to_their_split(sample: list[Tale]) -> None:
    for number, tale in enumerate(sample):
        facts = tale.facts
        assert facts.split == ("train" if number < 300 else "valid")
        assert held_out(facts.plot, facts.kind, facts.thing) == (facts.split == "valid")


def test_the_held_out_tenth_does_not_depend_on_the_hash_seed() -> None:
    assert [held_out("lost", "fox", "bell"), held_out("race", "mole", "drum")] == [False, True]
    code = "from shared.data.tales import COMBINATIONS as c; print(c['valid'][:9])"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=SCRIPT.parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != b""


# ------------------------------------------------------------------------------- recall


def test_every_probe_s_answer_is_certain_from_the_text_before_it(sample: list[Tale]) -> None:
    for tale in sample[::4]:
        for probe in tale.probes:
            before, after = prefix_bits(probe.prompt), prefix_bits(probe.prompt + probe.answer)
            assert after == pytest.approx(before, abs=1e-9), probe
            wrong = next(c for c in probe.candidates if c != probe.answer)
            assert prefix_bits(probe.prompt + wrong) == math.inf


def test_probes_are_well_formed_and_their_distance_is_to_the_last_mention(
    sample: list[Tale],
) -> None:
    for tale in sample:
        assert tale.probes
        for probe in tale.probes:
            assert tale.text.startswith(probe.prompt + probe.answer)
            assert probe.answer in probe.candidates and 4 <= len(probe.candidates) <= 10
            assert len({c[1] for c in probe.candidates}) == len(probe.candidates)
            assert all(c[0] == " " and c.strip() == c[1:] for c in probe.candidates)
            assert 0 < probe.distance < len(probe.prompt)
            between = probe.prompt[len(probe.prompt) - probe.distance :]
            if probe.kind in ("hero", "friend"):
                assert probe.answer.strip() not in between
                assert probe.prompt[: -probe.distance].endswith(probe.answer.strip())


def test_the_other_named_character_is_always_a_candidate(sample: list[Tale]) -> None:
    for tale in sample:
        for probe in tale.probes:
            if probe.kind in ("hero", "friend"):
                assert {" " + tale.facts.hero, " " + tale.facts.friend} <= set(probe.candidates)


def test_recall_probes_cover_all_kinds_and_near_and_far() -> None:
    probes = recall_probes(300, seed=2)
    assert len(probes) == 300 and probes == recall_probes(300, seed=2)
    kinds = Counter(probe.kind for probe in probes)
    assert set(kinds) == set(PROBE_KINDS.values())
    assert max(kinds.values()) <= 2 * min(kinds.values())
    for kind in kinds:  # each kind has near ones and far ones
        distances = [probe.distance for probe in probes if probe.kind == kind]
        assert min(distances) <= 40 and max(distances) >= (100 if kind == "count" else 200), kind
    buckets = Counter(probe.distance.bit_length() for probe in probes)
    assert {b for b, n in buckets.items() if n >= 10} >= {6, 7, 8, 9, 10}  # 32 to over 512


def test_who_is_who_cannot_be_guessed_from_the_setting() -> None:
    """Names do not depend on kinds, plots or pronouns (chi-square, far out in the tail)."""
    facts = [tale.facts for tale in itertools.islice(write_tales(21), 4000)]
    for other in ("kind", "plot", "pronoun", "thing", "land"):
        pairs = Counter((f.hero, getattr(f, other)) for f in facts if getattr(f, other))
        names, others = Counter(), Counter()
        for (name, value), n in pairs.items():
            names[name] += n
            others[value] += n
        total = pairs.total()
        chi = sum(
            (pairs[n, o] - names[n] * others[o] / total) ** 2 / (names[n] * others[o] / total)
            for n in names
            for o in others
        )
        free = (len(names) - 1) * (len(others) - 1)
        assert chi < free + 5 * math.sqrt(2 * free), other


def test_letters_within_a_table_differ() -> None:
    for slot in PROBE_KINDS:
        if slot != "sum":
            first = [next(iter(row.values()))[0] for row in SLOTS[slot]]
            assert len(set(first)) == len(first), slot


# ------------------------------------------------------------------------------- the English


def test_counts_come_out_right(sample: list[Tale]) -> None:
    counted = [tale.facts for tale in sample if tale.facts.plot == "count"]
    assert counted
    for facts in counted:
        assert facts.had - facts.gave == facts.left >= 2
    left = Counter(row["left"] for row in tales.SUMS)
    assert set(left.values()) == {3} and set(left) == set(NUMBERS[2:10])


def test_spelling_of_articles_blanks_capitals_and_quotes(megabyte: str) -> None:
    assert not re.search(r"\ba [aeiou]", megabyte, re.IGNORECASE)
    assert not re.search(r"\ban [^aeiou]", megabyte, re.IGNORECASE)
    assert not re.search(r"  | \n|\n |\n\n\n|[ ][,.!?;]|[,.!?]{2}|\b(\w+) \1\b", megabyte)
    assert not re.search(r"[.!?] [a-z]", megabyte)
    assert set(megabyte) <= set(map(chr, range(32, 127))) | {"\n"}
    assert not set(megabyte) & set("[]{}<>|@^_")
    for paragraph in megabyte.split("\n"):
        assert paragraph.count('"') % 2 == 0
        assert not paragraph or (paragraph[0].isupper() or paragraph[0] == '"')
        assert not paragraph or paragraph[-1] in '.!?"'


def test_friend_and_hero_never_share_a_pronoun(sample: list[Tale]) -> None:
    for row in tales.PRONOUNS:
        assert row["he"] != row["she"] and row["his"] != row["hers"]


def test_there_are_many_plots_and_words(sample: list[Tale], megabyte: str) -> None:
    assert len({tale.facts.plot for tale in sample}) == len(PLOTS) >= 8
    words = set(re.findall(r"[a-z]+", megabyte.lower()))
    assert 1000 < len(words) <= 2300
    assert all(400 < len(tale.text) < 1150 for tale in sample)
    assert 600 < sum(len(tale.text) for tale in sample) / len(sample) < 950


def test_every_name_is_met(megabyte: str) -> None:
    assert all(row["name"] in megabyte for row in NAMES)


# ------------------------------------------------------------------------------- the command line


def test_command_prints_three_tales_from_any_folder(tmp_path: Path) -> None:
    done = command(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    parts = done.stdout[:-1].split("\n\n")
    assert parts == [tale.text for tale in itertools.islice(write_tales(0), 3)]


def test_command_writes_a_file_whole_and_tells_the_floor(tmp_path: Path) -> None:
    path = tmp_path / "tales.txt"
    path.write_text("old")
    done = command("--size", "50KB", "--seed", 7, "--split", "valid", "--out", path, "--floor")
    text, floor = write_corpus(50_000, 7, "valid")
    assert path.read_bytes().decode() == text
    assert done.stdout.startswith(f"{floor:.5f} bits per character")
    assert list(tmp_path.iterdir()) == [path]


def test_a_corpus_holds_one_tale_at_least() -> None:
    assert write_corpus(1, 3)[0] == next(write_tales(3)).text + "\n" == write_corpus(0, 3)[0]


def test_command_lists_probes() -> None:
    done = command("--probes", 5)
    assert done.returncode == 0 and done.stdout.count("answer ") == 5


@pytest.mark.parametrize(
    "words",
    [
        ["--tales", "many"],
        ["--tales", "0"],
        ["--size", "-5"],
        ["--size", "5parsecs"],
        ["--seed", "1.5"],
        ["--probes", "0"],
        ["--split", "test"],
        ["--unknown"],
        ["--out", "no/such/folder/tales.txt"],
        ["--out", "."],
    ],
)
def test_command_refuses_bad_values_in_one_line(words: list[str], tmp_path: Path) -> None:
    done = command(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+: [^\n]+\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_command_reports_all_bad_values_together() -> None:
    done = command("--tales", "x", "--size", "y", "--split", "z")
    assert all(flag in done.stderr for flag in ("--tales", "--size", "--split"))


def test_command_is_quiet_when_its_reader_has_seen_enough() -> None:
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--size", "5MB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        running.stdout.read(100)
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(30) == 0
