"""The diff is the lesson: what must be the same to the letter in every folder, and what may not.

To mend something in SAME, mend every copy in one commit. A new function goes into one of the
lists; a reason says why a function may differ.
"""

from __future__ import annotations

import ast
import functools

import pytest
from conftest import MODELS, ROOT

SAME = {
    "generate.py": {
        *["Arguments", "command", "find", "pick_device", "pick_dtype", "bfloat16_wins"],
        *["add_device_flag", "read_checkpoint", "opening"],
    },
    "train.py": {
        *["settle", "autocast", "evaluate_and_sample", "replacing", "restore", "set_aside"],
        *["keep_memory", "Stop", "steps_that_fit", "log", "verdict", "shown", "type_next"],
        *["answers_of", "kept_dice", "evaluate_every", "write_checkpoint"],
        *["steps_per_epoch", "loss_of", "estimate_memory", "next_scores"],
    },
    "interactive.py": {"set_option"},
    "ngram.py": {"NGram", "unique_counts", "discounted", "ngram_loss"},
}
UP_TO = {  # the same in the first so many models
    3: {"train.py": {"learning_rate", "evaluate", "main"}, "interactive.py": {"main"}},
    4: {
        "generate.py": {"load_checkpoint", "sample", "show", "add_sampling_flags"},
        "train.py": {
            *["save_checkpoint", "write_results", "compiled", "new_model", "find_text"],
            *["fit_batch", "evaluate_first", "train", "introduce"],
        },
    },
}
MAY_DIFFER = {
    "generate.py": {
        "generate": "a transformer re-reads its context, a KV cache slides",
        "main": "from model 02 on, whether <unk> may be written",
        "name_of": "model 03 has variants, and pictures name them",
        "remember": "from model 04 on, a conversation is kept",
        "kind_of": "model 05 has two architectures",
        "load_checkpoint": "model 05 has two architectures",
        "sample": "model 05 has min-p",
        "generate_batch": "model 05 writes several texts at once",
        "show": "model 05 stops at strings",
        "add_sampling_flags": "model 05 has more of them",
        "add_quantize_flag": "model 05 can be quantized",
        "add_dtype_flag": "model 05 is large enough that reading its weights is what takes time",
        "load": "model 05 reads published models",
        "add_model_flags": "model 05 reads published models",
    },
    "train.py": {
        "Run": "the type of the tokenizer and what a stage adds to a run",
        "parse_args": "the flags of the model's size, and the name of the model",
        "prepare": "the tokenizer, and what a stage adds to a run",
        "fit_batch": "model 05 computes a batch in parts",
        "check_own": "model 05 has several kinds of checkpoints",
        "check": "from model 04 on, some settings do not go together",
        "new_tokenizer": "from model 04 on, there are five kinds",
        "new_optimizer": "from model 02 on, words that are never seen need an eps",
        "get_batch": "how the text is cut into batches",
        "learning_rate": "transformers are trained with a cosine",
        "loss_on": "model 05 compiles the loss with the model",
        "evaluate": "how much past each prediction may see",
        "write_sample": "the length of a good sample",
        "train_step": "a state to carry, or none",
        "train": "a stage may add to the loop",
        "measure_recall": "names of models; model 05 may run in several processes",
        "introduce": "what there is to say of a stage's data",
        "main": "the baseline of a stage",
        "new_model": "model 05 has two architectures",
        "find_text": "a text of model 05 may be too large to be read",
        "evaluate_first": "model 05 has more to do in its loop",
        "save_checkpoint": "model 05 gathers what its processes have",
        "write_results": "of the processes of model 05 one writes",
        "compiled": "of the processes of model 05 each has a share",
    },
    "interactive.py": {
        "reply": "what of a conversation is kept",
        "main": "from model 04 on, there are more commands",
    },
    "ngram.py": {"main": "what is counted depends on the tokenizer"},
}
FILES = sorted(SAME)


@functools.cache
def definitions(folder: str, file: str) -> dict[str, str]:
    """The source text of each function and class at the top of a file, decorators included."""
    text = (ROOT / folder / file).read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_definition_is_in_exactly_one_of_the_lists(file):
    listed = [*SAME[file], *MAY_DIFFER[file]]
    assert len(listed) == len(set(listed)), "in both lists"
    for model in MODELS:
        there = set(definitions(model.folder, file))
        assert there - set(listed) == set(), f"new in {model.folder}/{file}: put it into a list"
    everywhere = {name for model in MODELS for name in definitions(model.folder, file)}
    assert set(listed) - everywhere == set(), "listed, but nowhere to be found"


@pytest.mark.parametrize("file", FILES)
def test_what_must_be_the_same_is_the_same_to_the_letter(file):
    for name in SAME[file]:
        sources = {model.folder: definitions(model.folder, file)[name] for model in MODELS}
        first, *others = sources.items()
        for other in others:
            assert other[1] == first[1], f"{file}: {name} differs in {first[0]} and {other[0]}"


@pytest.mark.parametrize("count", sorted(UP_TO))
def test_the_earlier_models_have_more_in_common(count):
    for file, names in UP_TO[count].items():
        for name in names:
            assert name in MAY_DIFFER[file]
            sources = [definitions(model.folder, file)[name] for model in MODELS[:count]]
            assert len(set(sources)) == 1, f"{file}: {name}"


@pytest.mark.parametrize("file", FILES)
def test_every_permission_has_a_reason(file):
    assert all(len(reason) > 10 for reason in MAY_DIFFER[file].values())


def test_model_folders_hold_the_same_five_files():
    for model in MODELS:
        there = {path.name for path in (ROOT / model.folder).iterdir()}
        wanted = {"model.py", "generate.py", "train.py", "interactive.py", "README.md"}
        assert wanted <= there


def test_every_model_folder_is_in_the_list_of_models():
    folders = sorted(path.name for path in ROOT.glob("model-*") if path.is_dir())
    assert folders == [model.folder for model in MODELS]


def test_model_files_only_compute():
    """model.py reads like a paper's method section: no files, no arguments, no printing."""
    for model in MODELS:
        tree = ast.parse((ROOT / model.folder / "model.py").read_text(encoding="utf-8"))
        imports = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imports |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                imports.add(node.module.split(".")[0])
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "open", "input")
        assert imports <= {"__future__", "torch", "math", "typing", "cells"}, imports


@pytest.mark.parametrize("name", ["Recurrence", "RNNLayer"])
def test_the_recurrence_is_the_same_wherever_it_stands(name):
    places = [("model-01-char-rnn", "model.py"), ("model-02-word-rnn", "model.py")]
    places.append(("model-03-lstm-attention", "cells.py"))
    assert len({definitions(*place)[name] for place in places}) == 1
