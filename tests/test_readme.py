"""Every command in every README runs, and the tables say what the code says.

A command is a line of a fenced `bash` block, or a line that starts with `python ` in an indented
block. It runs as it stands, in a copy of the checkout, except for what would take long or need
a network; `quick` lists these substitutions.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MODELS, QUICK, ROOT, Spec, modules, run_script, words

from shared.data.download import text_names

READMES = [
    "README.md",
    *(f"{model.folder}/README.md" for model in MODELS),
    "shared/data/README.md",
    "shared/utils/README.md",
]
SKIPPED = {  # first words of a command: why it does not run here
    "git clone": "needs a network",
    "pip": "the suite runs in the environment that this makes",
    "python -m venv": "the suite runs in the environment that this makes",
    "python3 -m venv": "the suite runs in the environment that this makes",
    "uv": "the suite runs in the environment that this makes",
    "source": "the suite runs in the environment that this makes",
    "pytest": "this is it",
    "ruff": "not needed to use the repository",
}


def commands(readme: str) -> list[str]:
    """The command lines of a README, comments taken off."""
    found, fence = [], None
    for line in (ROOT / readme).read_text(encoding="utf-8").splitlines():
        if mark := re.match(r" *```(\w*)", line):
            fence = mark[1] if fence is None else None
        elif fence == "bash" or (fence is None and re.match(" {4,}python ", line)):
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            found += [part.strip() for part in command.split(" && ") if part.strip()]
    return found


CASES = [(readme, command) for readme in READMES for command in dict.fromkeys(commands(readme))]


def without(arguments: list[str], *flags: str) -> list[str]:
    """The arguments but for these flags and their values."""
    kept = list(arguments)
    for flag in flags:
        while flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    return kept


def quick(script: str, arguments: list[str], spec: Spec, text_file: Path) -> list[str]:
    """The same command, but short, on a small text, with a tiny model."""
    if script == "train.py":
        if "--dataset" in arguments:
            name = arguments[arguments.index("--dataset") + 1]
            assert name in text_names() or name.endswith(".txt"), f"no such dataset: {name}"
        resuming = "--resume" in arguments
        # The other commands need a base that knows more than this one will.
        arguments = ["checkpoints/new" if a == "checkpoints/base" else a for a in arguments]
        arguments = without(arguments, "--epochs", "--minutes", "--steps")
        if resuming:  # the small model in checkpoints/ has done 300 steps
            return [*arguments, "--steps", "305", "--eval-every", "305"]
        if "my_novel.txt" not in arguments:
            arguments = [*without(arguments, "--dataset"), "--dataset", str(text_file)]
        for flag, value in zip(*[iter(words(spec.flags, QUICK))] * 2, strict=True):
            arguments = [*without(arguments, flag), flag, value]
        return [*arguments, "--steps", "3", "--eval-every", "3"]
    if script in ("generate.py", "interactive.py"):
        return [*without(arguments, "--length"), "--length", "20"]
    if script == "instruction_data.py" and "--base" in arguments:
        return [*without(arguments, "--size"), "--size", "20000"]
    if script in ("finetune_instruct.py", "finetune_dpo.py", "finetune_grpo.py"):
        arguments = without(arguments, "--examples", "--test", "--steps")
        dataset = ["--dataset", "tales"] if "--dataset" in arguments else []
        arguments = [*without(arguments, "--dataset"), *dataset, "--preset", "tiny"]
        return [*arguments, *words("--test 2 --examples 8 --dtype float32")]
    if script == "finetune_spam.py" and "--ask" not in arguments:
        arguments = without(arguments, "--epochs", "--dataset", "--out")
        own = [] if "--checkpoint" in arguments else ["--preset", "tiny"]
        messages = text_file.parent / "messages.tsv"
        out = ["--out", str(messages.parent / "out")]
        return [*arguments, *own, "--epochs", "1", "--dataset", str(messages), *out]
    if script == "evaluate.py":
        spam = any("spam" in each for each in arguments)
        text = text_file.parent / "messages.tsv" if spam else text_file
        arguments = without(arguments, "--limit", "--dataset", "--test")
        if "--compare" in arguments:  # with itself: nothing can have become worse
            own = arguments[arguments.index("--checkpoint") + 1]
            arguments = [*without(arguments, "--compare"), "--compare", own]
        return [*arguments, "--dataset", str(text), *words("--limit 2 --dtype float32")]
    if script == "lora.py":
        return [each.replace("checkpoints/best.pt", "checkpoints/base.pt") for each in arguments]
    if script == "quantize.py":
        return [*without(arguments, "--dataset"), "--dataset", str(text_file)]
    if script == "ngram.py":
        name = ["--dataset", str(text_file)]
        return [*without(arguments, "--dataset"), *name]
    return arguments


def script_of(case: tuple[str, str]) -> str:
    """The file's name of what a case runs: train.py, say."""
    return Path(next((word for word in case[1].split() if word.endswith(".py")), case[1])).name


FIRST = {script_of(case): case for case in reversed(CASES)}  # these run in processes of their own


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES)
def test_every_command_in_a_readme_runs(readme, house, tmp_path, monkeypatch, run_main):
    """In their order: some need what others have made."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LMFS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for where, command in CASES:
        if where == readme and not command.startswith(tuple(SKIPPED)):
            follow(readme, command, house, monkeypatch, run_main)


def follow(
    readme: str, command: str, house: Path, monkeypatch: pytest.MonkeyPatch, run_main: Callable
) -> None:
    """Run one command, short, where a README says."""
    name, *arguments = shlex.split(command)
    cwd = (house / readme).parent if readme.startswith("model-") else house
    if name != "python":  # diff, ls, ...: diff ends with 1 where there is a difference
        done = subprocess.run(command, shell=True, cwd=cwd, check=False, capture_output=True)
        assert done.returncode == 0 or (name == "diff" and done.returncode == 1), done
        return
    if not (cwd / arguments[0]).exists():  # "from inside a model's folder"
        cwd = house / MODELS[0].folder
    script = (cwd / arguments[0]).resolve()
    assert script.exists(), f"{command}: {script} is not there"
    spec = next((model for model in MODELS if model.folder == script.parent.name), None)
    arguments = quick(script.name, arguments[1:], spec, house / "my_novel.txt")
    stdin = "Once\n/quit\n"
    module = spec and getattr(modules(str(script.parent)), script.stem)
    if FIRST[script.name] == (readme, command) or not hasattr(module, "command"):
        result = run_script(script, arguments, cwd=cwd, stdin=stdin)
    else:  # two seconds faster
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        result = run_main(module, arguments)
    hub = {"--pretrained", "--init-from"} & set(arguments)
    if (script.name == "download.py" or hub) and result.status == 2:  # offline: only that
        lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert lines and all("HF_HUB_OFFLINE is set" in line for line in lines), (command, lines)
        return
    assert result.status == 0 and result.err == "", (command, arguments, result.err)


def test_there_are_commands_to_run():
    assert len(CASES) > 8
    run = {command.split()[1] for _, command in CASES if command.startswith("python ")}
    scripts = {Path(script).name for script in run}
    assert scripts >= {"train.py", "generate.py", "interactive.py", "ngram.py", "download.py"}


# ------------------------------------------------------------------------------------ the tables


def tables(readme: str) -> list[list[list[str]]]:
    """The tables of a README: rows of cells, the header first, without its line of dashes."""
    found, rows = [], []
    for line in [*(ROOT / readme).read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip().strip("`*") for cell in line.strip().strip("|").split("|")])
        elif rows:
            found.append([rows[0], *rows[2:]])
            rows = []
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.folder)
def test_the_table_of_presets_says_what_the_code_does(model):
    presets = modules(model.folder).train.PRESETS
    found = [t for t in tables(f"{model.folder}/README.md") if t[0] == ["flag", *presets]]
    assert len(found) == 1, "one table with the columns flag, tiny, small, full"
    table = {row[0]: dict(zip(presets, row[1:], strict=True)) for row in found[0][1:]}
    flags = {"--" + name.replace("_", "-") for preset in presets.values() for name in preset}
    assert set(table) == flags
    for name, preset in presets.items():
        for flag in flags:
            cell, value = table[flag][name], preset.get(flag[2:].replace("-", "_"))
            if isinstance(value, str):
                assert cell == value, f"{flag} of {name}"
            elif value is None or value is False:
                assert not re.search(r"\d", cell), f"{flag} of {name}: {cell}, but it has none"
            else:
                assert float(cell.replace(",", "")) == value, f"{flag} of {name}"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.folder)
def test_flags_left_out_come_from_the_preset(model, monkeypatch):
    train = modules(model.folder).train
    for name, preset in train.PRESETS.items():
        monkeypatch.setattr(sys, "argv", ["train.py", "--preset", name])
        args = train.parse_args()
        train.settle(args, None)
        for flag, value in preset.items():
            assert getattr(args, flag) == value
        for flag in set(train.LENGTHS) - set(preset):
            assert getattr(args, flag) is None
    monkeypatch.setattr(sys, "argv", ["train.py"])
    args = train.parse_args()
    train.settle(args, None)
    assert args.preset == "small" and args.hidden_size == train.PRESETS["small"]["hidden_size"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.folder)
def test_help_shows_the_defaults_of_the_small_preset(model, monkeypatch, capsys):
    train = modules(model.folder).train
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        train.parse_args()
    shown = capsys.readouterr().out
    for name, value in train.PRESETS["small"].items():
        flag = name.replace("_", "-")
        line = re.search(rf"^ +--{flag}\b.*(\n {{20,}}.*)*$", shown, re.MULTILINE)
        if value is not False:
            assert f"({value if isinstance(value, str) else f'{value:g}'})" in line[0]


def unknown_flags(document: str) -> set[str]:
    """Flags that a document mentions and no script has: one that was renamed is found here."""
    known = {"--no-sync", "--cell", "--help"}  # of uv, and one that an exercise asks for
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}  # of torchrun
    folders = ("model-*", "shared/*", "tests/benchmarks")
    scripts = [path for folder in folders for path in ROOT.glob(f"{folder}/*.py")]
    for path in scripts:
        known |= set(re.findall(r"--[a-z][\w-]*", path.read_text(encoding="utf-8")))
    text = (ROOT / document).read_text(encoding="utf-8")
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known


@pytest.mark.parametrize("readme", READMES)
def test_flags_that_a_readme_mentions_exist(readme):
    assert unknown_flags(readme) == set()


@pytest.mark.parametrize("readme", READMES)
def test_files_that_a_readme_links_to_exist(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert ((ROOT / readme).parent / target).exists(), target


@pytest.mark.parametrize("readme", READMES)
def test_no_gap_is_left_in_a_readme(readme):
    assert "@@" not in (ROOT / readme).read_text(encoding="utf-8")


def layout() -> dict[str, set[str]]:
    """The root README's layout: folder -> the names beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Layout")[2]
    found: dict[str, set[str]] = {}
    for line in re.findall(r"^ {4}(.+)$", text, re.MULTILINE):
        if start := re.match(r"(\S+)/ ", line):
            found[folder := start[1]] = set()
        same = found[MODELS[0].folder] if "the same" in line else set()
        found[folder] |= same | set(re.findall(r"(?<= )[\w-]+(?:\.\w+|/)(?= |$)", line))
    return found


def test_the_layout_names_every_folder_and_file():
    found = layout()
    folders = {"shared/data", "shared/utils", "docs", "tests"}
    assert set(found) == folders | {model.folder for model in MODELS}
    for folder, named in found.items():
        assert all((ROOT / folder / name).exists() for name in named), (folder, named)
        scripts = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert scripts <= named or folder == "tests", f"{folder}: {scripts - named} not named"
