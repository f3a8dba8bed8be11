"""Published weights: GPT-2 and LLaMA in, Hugging Face folders out.

    GPT-2                        ours                        LLaMA
    wte                          embedding                   embed_tokens
    wpe                          places                      (rotary positions)
    h.0.ln_1                     blocks.0.norm1              layers.0.input_layernorm
    h.0.attn.c_attn              blocks.0.attention.qkv      layers.0.self_attn.{q,k,v}_proj
    ...                          ...                         ...

A published model is our model with other names on its tensors: three tables below say which, and
four lines what else differs. GPT-2's matrices lie transposed; LLaMA's queries, keys and values lie
apart, and in Meta's own files also in another order of channels, and cut into several files.

First every name and shape is checked against the model that config.json describes, which costs no
memory (PyTorch's "meta" device knows shapes only). Then each tensor is read and becomes a weight,
in the type of numbers that the file has: no more memory than the weights and one tensor.

Sources: Radford et al. 2019 (GPT-2), Touvron et al. 2023 (LLaMA, Llama 2), Grattafiori et al. 2024
(Llama 3), Yang et al. 2025 (Qwen 3)

Shapes: C channels, D head size, V vocabulary

    python pretrained.py --pretrained gpt2                  # fetch it; show whose tensors are whose
    python pretrained.py --export-hf my-gpt --checkpoint checkpoints/best.pt
    python generate.py --pretrained gpt2 --prompt "Once upon a time"
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hub
import torch
from llama import Llama
from model import GPT
from tensors import Stored, open_tensors, write_safetensors
from torch import Tensor

from shared import UserError
from shared.utils.tokenizers import BPETokenizer, SentencePieceBPE, Tokenizer, formats

Model = GPT | Llama

# N is the number of a block. {q,k,v}: three tensors, one below the other in ours.
GPT2_NAMES = {
    "embedding": "transformer.wte",
    "places": "transformer.wpe",
    "blocks.N.norm1": "transformer.h.N.ln_1",
    "blocks.N.attention.qkv": "transformer.h.N.attn.c_attn",
    "blocks.N.attention.out": "transformer.h.N.attn.c_proj",
    "blocks.N.norm2": "transformer.h.N.ln_2",
    "blocks.N.mlp.up": "transformer.h.N.mlp.c_fc",
    "blocks.N.mlp.down": "transformer.h.N.mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "blocks.N.norm1": "model.layers.N.input_layernorm",
    "blocks.N.attention.qkv": "model.layers.N.self_attn.{q,k,v}_proj",
    "blocks.N.attention.out": "model.layers.N.self_attn.o_proj",
    "blocks.N.norm2": "model.layers.N.post_attention_layernorm",
    "blocks.N.mlp.gate": "model.layers.N.mlp.gate_proj",
    "blocks.N.mlp.up": "model.layers.N.mlp.up_proj",
    "blocks.N.mlp.down": "model.layers.N.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
META_NAMES = {
    "embedding": "tok_embeddings",
    "blocks.N.norm1": "layers.N.attention_norm",
    "blocks.N.attention.qkv": "layers.N.attention.w{q,k,v}",
    "blocks.N.attention.out": "layers.N.attention.wo",
    "blocks.N.norm2": "layers.N.ffn_norm",
    "blocks.N.mlp.gate": "layers.N.feed_forward.w1",
    "blocks.N.mlp.up": "layers.N.feed_forward.w3",
    "blocks.N.mlp.down": "layers.N.feed_forward.w2",
    "norm": "norm",
    "head": "output",
}
# Constants that old files hold beside the weights: masks, and the speeds of rotary positions.
CONSTANTS = re.compile(r".*\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq|rope\.freqs")
HEAD_NORMS = re.compile(r"model\.layers\.\d+\.self_attn\.[qk]_norm\.weight")  # of Qwen 3
SUPPORTED = "take a GPT-2 or a LLaMA model in float32, float16 or bfloat16"
MOST = 10_000_000  # of anything that a config.json counts


class Published(NamedTuple):
    """What a folder says of its model, before any weight is read."""

    kind: type[Model]
    sizes: dict[str, Any]  # arguments of the class
    names: dict[str, str]  # one of the tables above
    zeros: str = "-"  # in whose names the file has no biases, though others have
    head_norms: bool = False  # Qwen 3: norms of queries and keys, which must not be learned


class Part(NamedTuple):
    """A tensor in a published file that is a weight of ours, or some rows of one."""

    name: str
    shape: tuple[int, ...]
    turned: bool = False  # transposed: GPT-2 computes x W, and we, as all others, x W^T
    pairs: int = 0  # the head size, where channels lie as Meta has them (see `halves`)


# ------------------------------------------------------------------------------------ config.json


def read_config(folder: Path) -> Published:
    """What config.json, or Meta's params.json, says. Raises UserError: damaged, not supported."""
    if not (folder / "config.json").is_file() and (folder / "params.json").is_file():
        return read_params(folder / "params.json")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: it must hold {hub.LAYOUT}; or, as Meta has it, "
            "params.json, consolidated.*.pth and tokenizer.model"
        )
    config = Fields(folder / "config.json")
    kind = config.data.get("model_type")
    readers = {"gpt2": gpt2_config, "llama": llama_config, "qwen3": qwen3_config}
    if not isinstance(kind, str) or kind not in readers:
        raise UserError(f"{config.path}: models of type {kind!r} are not supported: {SUPPORTED}")
    config.only(quantization_config=None, is_decoder=None, add_cross_attention=False)
    return readers[kind](config)


class Fields:
    """The values of a config.json, each checked when it is asked for."""

    def __init__(self, path: Path, data: dict | None = None) -> None:
        self.path, self.data = path, formats.read_json(path) if data is None else data

    def number(self, key: str, default: float | None = None, kind: type = int) -> Any:
        """A number above 0; the default where there is none."""
        value = self.data.get(key)
        value = default if value is None else value
        types = int if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, types) or not 0 < value <= MOST:
            raise UserError(f"{self.path}: {key} is {str(value)[:40]!r}: take a whole file")
        return kind(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path}: {key} is {str(value)[:40]!r}: take a whole file")
        return value

    def only(self, **expected: object) -> None:
        """Raises UserError unless these have the one value that is supported, or are not there.

        A tuple lists several; None: whatever is not there, empty or false.
        """
        for key, value in expected.items():
            found = self.data.get(key) or None if value is None else self.data.get(key, value)
            if found != value and not (isinstance(value, tuple) and found in value):
                shown = json.dumps(found)[:80]
                raise UserError(f"{self.path}: {key} {shown} is not supported: {SUPPORTED}")


def gpt2_config(config: Fields) -> Published:
    C, heads = config.number("n_embd", 768), config.number("n_head", 12)
    config.only(
        activation_function=("gelu_new", "gelu_pytorch_tanh"), layer_norm_epsilon=1e-5,
        n_inner=(None, 4 * C), scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
    )  # fmt: skip
    if C % heads:
        raise UserError(
            f"{config.path}: n_embd {C} is no multiple of n_head {heads}: it is damaged"
        )
    sizes = dict(
        vocab_size=config.number("vocab_size", 50257), hidden_size=C, heads=heads,
        layers=min(1000, config.number("n_layer", 12)), context=config.number("n_positions", 1024),
        tied=config.flag("tie_word_embeddings", True),
    )  # fmt: skip
    return Published(GPT, sizes, GPT2_NAMES)


def llama_config(config: Fields) -> Published:
    C, heads = config.number("hidden_size"), config.number("num_attention_heads")
    base, scaling = rotary(config)
    biases = {name: config.flag(f"{name}_bias", False) for name in ("attention", "mlp")}
    config.only(hidden_act="silu")
    sizes = dict(
        vocab_size=config.number("vocab_size"), hidden_size=C, heads=heads,
        layers=min(1000, config.number("num_hidden_layers")),
        kv_heads=config.number("num_key_value_heads", heads),
        head_size=config.number("head_dim", C // heads), inner=config.number("intermediate_size"),
        context=config.number("max_position_embeddings", 2048), base=base, scaling=scaling,
        eps=config.number("rms_norm_eps", 1e-6, float), qk_norm=False,
        tied=config.flag("tie_word_embeddings", False), biases=any(biases.values()),
    )  # fmt: skip
    if heads % sizes["kv_heads"] or sizes["head_size"] % 2:
        raise UserError(f"{config.path}: the numbers of heads do not fit: it is damaged")
    without = [f".{name}." for name, has in biases.items() if not has]
    return Published(Llama, sizes, LLAMA_NAMES, without[0] if sizes["biases"] and without else "-")


def qwen3_config(config: Fields) -> Published:
    """Qwen 3 is LLaMA with normed queries and keys; what --export-hf writes of ours."""
    config.only(use_sliding_window=None)
    found = llama_config(config)
    return found._replace(sizes=found.sizes | {"qk_norm": True}, head_norms=True)


def rotary(config: Fields) -> tuple[float, list[float]]:
    """The base of rotary positions, and how they are scaled: [] or what Llama.turns takes.

    New files have both in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`.
    """
    data = config.data.get("rope_parameters") or config.data.get("rope_scaling") or {}
    if not isinstance(data, dict):
        raise UserError(f"{config.path}: rope_scaling is no list of values: take a whole file")
    rope = Fields(config.path, data)
    base = rope.number("rope_theta", config.number("rope_theta", 10_000.0, float), float)
    rope.only(partial_rotary_factor=1.0)
    kind = data.get("rope_type", data.get("type", "default"))
    if kind == "default":
        return base, []
    Fields(config.path, {"rope_type": kind}).only(rope_type="llama3")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, context = (rope.number(key, None, float) for key in keys)
    if low >= high:
        raise UserError(f"{config.path}: low_freq_factor is not below high_freq_factor: damaged")
    return base, [factor, low, high, context]


def read_params(path: Path) -> Published:
    """Meta's params.json. What it leaves out is Llama 2's; Llama 3's says so itself."""
    params = Fields(path)
    C, heads = params.number("dim"), params.number("n_heads")
    inner = int(8 * C / 3) * params.number("ffn_dim_multiplier", 1.0, float)
    inner = math.ceil(int(inner) / params.number("multiple_of", 256)) * params.number(
        "multiple_of", 256
    )
    scaled = params.flag("use_scaled_rope", False)
    vocab_size = params.data.get("vocab_size", -1)
    sizes = dict(
        vocab_size=0 if vocab_size == -1 else params.number("vocab_size"), hidden_size=C,
        heads=heads, layers=min(1000, params.number("n_layers")),
        kv_heads=params.number("n_kv_heads", heads), inner=inner,
        context=131_072 if scaled else 4096, tied=False, qk_norm=False,
        eps=params.number("norm_eps", 1e-5, float),
        base=params.number("rope_theta", 10_000.0, float),
        scaling=[8.0, 1.0, 4.0, 8192.0] if scaled else [],
    )  # fmt: skip
    return Published(Llama, sizes, META_NAMES)


# ---------------------------------------------------------------------------------------- weights


def parts_of(
    weight: str, shape: tuple[int, ...], names: dict[str, str], config: dict
) -> list[Part]:
    """The tensors of a published file that make up a weight of ours, from above.

    >>> parts_of("blocks.3.mlp.up.weight", (32, 8), GPT2_NAMES, {})
    [Part(name='transformer.h.3.mlp.c_fc.weight', shape=(8, 32), turned=True, pairs=0)]
    """
    module, _, kind = weight.rpartition(".")
    number = "".join(re.findall(r"\d+", module)[:1])
    theirs = names[re.sub(r"\d+", "N", module, count=1)].replace(".N.", f".{number}.")
    before, brace, after = theirs.partition("{")
    if not brace:
        turned = names is GPT2_NAMES and module.startswith("blocks.") and len(shape) == 2
        return [Part(f"{theirs}.{kind}", tuple(shape[::-1] if turned else shape), turned)]
    D, heads, kv_heads = config["head_size"], config["heads"], config["kv_heads"]
    letters, _, after = after.partition("}")
    parts = []
    for letter, count in zip(letters.split(","), (heads, kv_heads, kv_heads), strict=True):
        pairs = D if names is META_NAMES and letter != "v" else 0
        name = f"{before}{letter}{after}.{kind}"
        parts.append(Part(name, (count * D, *shape[1:]), pairs=pairs))
    return parts


def open_weights(folder: Path, published: Published) -> dict[str, list[Stored]]:
    """All tensors of a folder by their full names; of several Meta files, a slice from each."""
    meta = published.names is META_NAMES
    paths = sorted(folder.glob("consolidated.*.pth")) if meta else hub.weight_files(folder)
    if not paths:
        raise UserError(f"{folder} holds no weights: it must hold {hub.LAYOUT}")
    prefix = published.names["norm"].rpartition(".")[0]  # some files leave it out
    found: dict[str, list[Stored]] = {}
    for path in paths:
        there = open_tensors(path)
        bare = prefix and not any(name.startswith(f"{prefix}.") for name in there)
        for name, tensor in there.items():
            full = f"{prefix}.{name}" if bare and not name.startswith("lm_head.") else name
            if full in found and not meta:
                raise UserError(
                    f"{path}: {name} is in another file as well: take files of one model"
                )
            if not CONSTANTS.fullmatch(full):
                found.setdefault(full, []).append(tensor)
    return found


def split_along(slices: list[Stored], shape: tuple[int, ...]) -> int | None:
    """Along which dimension slices make up a tensor; -1 where each is all of it, None: they do not.

    Meta's files are for several GPUs at a time, each of which has some rows or some columns.
    """
    found = slices[0].shape
    if any(each.dtype is None or each.shape != found for each in slices):
        return None
    if found == shape:
        return -1
    for dim in range(min(len(found), len(shape))):
        if (*found[:dim], found[dim] * len(slices), *found[dim + 1 :]) == shape:
            return dim
    return None


def check_tensors(wanted: list[Part], there: dict[str, list[Stored]]) -> None:
    """Raises UserError that lists what is missing, what is too much and what has another shape."""
    shapes = {part.name: part.shape for part in wanted}
    misshapen = [
        f"{name} {list(there[name][0].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in there and split_along(there[name], shape) is None
    ]
    kinds = {
        "missing": [name for name in shapes if name not in there],
        "not of this model": [name for name in there if name not in shapes],
        "of another shape or kind": misshapen,
    }
    said = [
        f"{len(names)} {kind} ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if said:
        raise UserError(
            f"the tensors are not those that config.json describes: {'; '.join(said)}: take all "
            "files from one model"
        )


def design(published: Published, there: dict[str, list[Stored]]) -> Model:
    """The model without numbers, only shapes: on PyTorch's "meta" device."""
    kind, sizes, names = published[:3]
    sizes = dict(sizes)
    if f"{names['head']}.weight" in there:  # perhaps the embedding once more: see `build`
        sizes["tied"] = False
    embedding = there.get(f"{names['embedding']}.weight")
    if not sizes["vocab_size"] and embedding:  # Meta leaves it to the tokenizer
        rows, *columns = embedding[0].shape  # a slice has all rows (Llama 2) or all columns
        cut = columns == [sizes["hidden_size"]]
        sizes["vocab_size"] = rows * (len(embedding) if cut else 1)
    return shapes_of(kind, sizes)


class NoDice(torch.overrides.TorchFunctionMode):
    """Leaves out the random start: on the "meta" device it takes seconds to do nothing."""

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function.__name__ == "normal_":
            return kwargs.get("tensor", args[:1])
        return function(*args, **kwargs)


def shapes_of(kind: type[Model], sizes: dict[str, Any]) -> Model:
    """A model whose weights have shapes and no numbers, so they take no memory."""
    with torch.device("meta"), NoDice():
        return kind(**sizes)


def build(published: Published, there: dict[str, list[Stored]]) -> Model:
    """The model with the weights, in the type of numbers of its embedding. Raises UserError."""
    if published.head_norms:
        check_head_norms(there, published.sizes)
    model = design(published, there)
    names, tied = published.names, published.sizes["tied"]
    wanted = {
        name: parts_of(name, tuple(weight.shape), names, model.config)
        for name, weight in model.named_parameters()
        if not (name.endswith(".bias") and published.zeros in name)
    }
    check_tensors([part for parts in wanted.values() for part in parts], there)
    dtype = there[f"{names['embedding']}.weight"][0].dtype
    state = {
        name: assemble(weight.shape, dtype, wanted.get(name, []), there)
        for name, weight in model.named_parameters()
    }
    if tied and not model.config["tied"]:
        model.config["tied"] = torch.equal(state["head.weight"], state["embedding.weight"])
    if model.config["tied"]:
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, assign=True)
    if model.config["tied"]:
        model.head.weight = model.embedding.weight
    return model.eval()


def assemble(
    shape: tuple[int, ...], dtype: torch.dtype, parts: list[Part], there: dict[str, list[Stored]]
) -> Tensor:
    """A weight of ours, read from the published tensors that it is made of; zeros without any."""
    weight, start = torch.zeros(shape, dtype=dtype), 0
    for part in parts:
        end = start + part.shape[-1 if part.turned else 0]
        rows, slices = weight[start:end], there[part.name]
        dim = split_along(slices, part.shape)
        places = [rows] if dim == -1 else rows.chunk(len(slices), dim)
        for place, each in zip(places, slices, strict=False):  # of equal ones the first will do
            if part.pairs:
                given = torch.empty(each.shape, dtype=dtype)
                each.read(given)
                place.copy_(halves(given, part.pairs))
            else:
                each.read(place.T if part.turned else place)
        start = end
    return weight


def halves(tensor: Tensor, D: int) -> Tensor:
    """Meta turns neighbouring channels of a head together, 0 and 1, 2 and 3; we, as Hugging Face
    does, i and i + D / 2: (heads * D, C) with its rows in our order.

    >>> halves(torch.arange(8)[:, None], 4).flatten().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return tensor.unflatten(0, (-1, D // 2, 2)).transpose(1, 2).reshape(tensor.shape)


def check_head_norms(there: dict[str, list[Stored]], sizes: dict[str, Any]) -> None:
    """Takes Qwen 3's norms of queries and keys out of `there`. Raises UserError for learned ones.

    Ours have no weights, which is weights of 1.
    """
    for name in [name for name in there if HEAD_NORMS.fullmatch(name)]:
        (each,), weight = there.pop(name), torch.zeros(sizes["head_size"])
        if each.shape == weight.shape:
            each.read(weight)
        if not (weight == 1).all():
            raise UserError(
                f"{name}: learned norms of queries and keys are not supported: {SUPPORTED}"
            )


# -------------------------------------------------------------------------------------- tokenizers


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a folder, with as many tokens as the model has. Raises UserError."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = BPETokenizer.from_huggingface(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file():
        tokenizer = BPETokenizer.from_gpt2(folder / "vocab.json", folder / "merges.txt")
    elif (folder / "tokenizer.model").is_file():
        tokenizer = SentencePieceBPE.from_sentencepiece(folder / "tokenizer.model")
    else:
        raise UserError(f"{folder} holds no tokenizer: put {', '.join(hub.TOKENIZER)} there")
    state = tokenizer.state_dict()
    surplus = tokenizer.vocab_size - vocab_size
    if surplus > 0:  # tokens that were added, such as one to pad with, and no row for them
        special = {text: i for text, i in state["special_tokens"].items() if i < vocab_size}
        if len(state["special_tokens"]) - len(special) != surplus:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens and the model "
                f"{vocab_size}: take both from one model"
            )
        state["special_tokens"], state["tokens"] = special, state["tokens"][:vocab_size]
    for i in range(tokenizer.vocab_size, vocab_size):  # rows that no text uses
        state["tokens"].append(f"<|unused {i}|>")
        state["special_tokens"][f"<|unused {i}|>"] = i
    return type(tokenizer).from_state_dict(state)


def first_tokens(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """What the reference library puts in front of a text: Llama's <s> or <|begin_of_text|>.

    A tokenizer.json says so in a template, "<s> $A"; SentencePiece's programs always do it.
    """
    if not (folder / "tokenizer.json").is_file():
        is_gpt2 = (folder / "vocab.json").is_file()
        return [i for text, i in tokenizer.special_tokens.items() if text == "<s>" and not is_gpt2]
    post, found = formats.read_json(folder / "tokenizer.json").get("post_processor"), []
    try:
        steps = post.get("processors", [post]) if post else []
        for template in (step for step in steps if step["type"] == "TemplateProcessing"):
            for piece in template["single"]:
                if "SpecialToken" not in piece:
                    break
                found.append(tokenizer.special_tokens[piece["SpecialToken"]["id"]])
    except (LookupError, TypeError, AttributeError):
        raise UserError(
            f"{folder / 'tokenizer.json'}: its post_processor is damaged: take a whole file"
        ) from None
    return found


def last_tokens(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """The tokens after which a text is over, as the model's makers say. Raises UserError."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = formats.read_json(folder / name).get("eos_token_id")
            ids = found if isinstance(found, list) else [] if found is None else [found]
            if not all(type(i) is int for i in ids):
                raise UserError(f"{folder / name}: eos_token_id {found!r:.40}: take a whole file")
            if ids := [i for i in ids if 0 <= i < tokenizer.vocab_size]:
                return ids
    return [i for text, i in tokenizer.special_tokens.items() if text == "</s>"]


# ------------------------------------------------------------------------------------------ loading


def find_folder(name: str) -> Path:
    """A folder as it is; a name of the hub becomes the folder in which its files are."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(f"{name} is a file: give the folder it is in")
    return folder if folder.is_dir() else hub.fetch_model(name, read_config)


def load_pretrained(name: str, device: str = "cpu") -> tuple[Model, Tokenizer, dict]:
    """A published model (in evaluation mode), its tokenizer, and what a checkpoint tells as well.

    name: of the hub, or a folder. In `settings` stand `begin`, the tokens before a text, and
    `ends`, those after which it is over. Raises UserError: not there, damaged, not supported.
    """
    folder = find_folder(name)
    published = read_config(folder)
    model = build(published, open_weights(folder, published))
    tokenizer = read_tokenizer(folder, model.config["vocab_size"])
    settings = {
        "begin": first_tokens(folder, tokenizer),
        "ends": last_tokens(folder, tokenizer),
    }
    about = {
        "architecture": type(model).__name__,
        "dataset": {"name": name},
        "progress": {"step": 0},
        "settings": settings,
    }
    return model.to(device), tokenizer, about


# ------------------------------------------------------------------------------------------ export


def export(
    model: Model, tokenizer: Tokenizer, folder: Path, begin: Sequence[int] = (),
    ends: Sequence[int] = (),
) -> str:  # fmt: skip
    """Writes a Hugging Face folder, whole or not at all. Returns why it has no tokenizer, or "".

    A Llama with normed queries and keys is written as a Qwen 3 whose norms have weights of 1.
    begin, ends: the tokens before a text, and those after which it is over. Raises UserError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give the name of a new folder")
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # what an earlier attempt left
    unfinished.mkdir(parents=True)
    try:
        texts = [tokenizer.tokens[i] for i in (*begin, *ends)]
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
        config, about = published_config(model), {"model_max_length": model.context}
        if begin:
            config["bos_token_id"], about["bos_token"] = begin[0], texts[0]
        if ends:
            config["eos_token_id"] = list(ends) if len(ends) > 1 else ends[0]
            about["eos_token"] = texts[len(begin)]
        formats.write_json(unfinished / "config.json", config)
        write_safetensors(unfinished / "model.safetensors", dict(published_tensors(model)))
        about["tokenizer_class"] = "PreTrainedTokenizerFast"
        about["clean_up_tokenization_spaces"] = False
        formats.write_json(unfinished / "tokenizer_config.json", about)
        why = ""
        try:
            formats.write_huggingface(tokenizer, unfinished / "tokenizer.json", begin)
        except formats.InexpressibleError as error:
            why = str(error)
            (unfinished / "tokenizer_config.json").unlink()
        if folder.exists():
            folder.rmdir()
        unfinished.replace(folder)
        return why
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def published_config(model: Model) -> dict:
    """What `read_config` reads, of a model of ours."""
    config, dtype = model.config, str(model.embedding.weight.dtype).removeprefix("torch.")
    if config["copy"] != "none" or config["ngrams"] > 1:
        raise UserError(
            "no published architecture has a pointer or a table of n-grams: "
            "export a model without --copy and --ngrams"
        )
    both = {
        "vocab_size": config["vocab_size"], "tie_word_embeddings": config["tied"], "dtype": dtype,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if isinstance(model, GPT):
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **both,
            "n_embd": config["hidden_size"], "n_layer": config["layers"],
            "n_head": config["heads"], "n_positions": config["context"], "n_inner": None,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": config["base"]}
    if config["scaling"]:
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= {"rope_type": "llama3", **dict(zip(keys, config["scaling"], strict=True))}
        rope[keys[-1]] = int(rope[keys[-1]])
    name = "Qwen3" if config["qk_norm"] else "Llama"
    if config["qk_norm"] and config["biases"]:
        raise UserError("no published architecture has qk_norm and biases: export another model")
    return {
        "model_type": name.lower(), "architectures": [f"{name}ForCausalLM"], **both,
        "hidden_size": config["hidden_size"], "num_hidden_layers": config["layers"],
        "num_attention_heads": config["heads"], "num_key_value_heads": config["kv_heads"],
        "head_dim": config["head_size"], "intermediate_size": config["inner"],
        "max_position_embeddings": config["context"], "rms_norm_eps": config["eps"],
        "rope_theta": config["base"], "rope_parameters": rope, "hidden_act": "silu",
        "rope_scaling": rope if config["scaling"] else None,  # where older versions look
        "attention_bias": config["biases"], "mlp_bias": config["biases"],
    }  # fmt: skip


def published_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """A model's weights under their published names: views, where that is possible."""
    names = GPT2_NAMES if isinstance(model, GPT) else LLAMA_NAMES
    for name, weight in model.named_parameters():
        parts = parts_of(name, tuple(weight.shape), names, model.config)
        rows = [weight] if len(parts) == 1 else weight.split([part.shape[0] for part in parts])
        for part, tensor in zip(parts, rows, strict=True):
            yield part.name, tensor.T if part.turned else tensor
    for layer in range(model.config["layers"] if model.config.get("qk_norm") else 0):
        for kind in "qk":
            ones = torch.ones(model.config["head_size"], dtype=model.embedding.weight.dtype)
            yield f"model.layers.{layer}.self_attn.{kind}_norm.weight", ones


# ------------------------------------------------------------------------------------ command line


def mapping(model: Model) -> Iterator[tuple[str, str, str]]:
    """The table of the first block and all around it: theirs, ours, shape of ours."""
    names = GPT2_NAMES if isinstance(model, GPT) else LLAMA_NAMES
    for name, weight in model.named_parameters():
        if not re.search(r"blocks\.[1-9]", name):
            parts = parts_of(name, tuple(weight.shape), names, model.config)
            theirs = " + ".join(part.name for part in parts)
            yield theirs, name + " (transposed)" * parts[0].turned, str(tuple(weight.shape))


def main() -> None:
    """Show a published model, or write one of ours as such."""
    import generate  # which imports this file

    parser = generate.Arguments("Published weights, in and out.", "pretrained.py")
    parser.text("--pretrained", "a name of the hub, such as gpt2, or a folder", metavar="NAME")
    parser.text("--checkpoint", "a model of ours", "checkpoints/best.pt")
    help = "write the model as a Hugging Face folder, a new one"
    parser.text("--export-hf", help, metavar="FOLDER")
    generate.add_dtype_flag(parser)
    args = parser.parse()
    if not args.pretrained and not args.export_hf:
        raise UserError("nothing to do: give --pretrained, or --export-hf")
    args.quantize = None  # what that makes is a format of ours
    model, tokenizer, about = generate.load(args)
    size = sum(weight.nbytes for weight in model.parameters())
    number = sum(weight.numel() for weight in model.parameters())
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    if not args.export_hf:
        rows = list(mapping(model))
        wide = [max(len(row[i]) for row in rows) for i in range(2)]
        for theirs, ours, shape in rows:
            print(f"{theirs:{wide[0]}}  {ours:{wide[1]}}  {shape}")
        print(f"... and so on for {model.config['layers']} blocks")
    print(
        f"{about['architecture']}: {number:,} parameters, {size / 1e6:,.0f} MB in {dtype}, "
        f"context {model.context:,}, {tokenizer.vocab_size:,} tokens"
    )
    if args.export_hf:
        settings = about["settings"]
        texts = (settings.get("begin") or (), settings.get("ends") or ())
        if why := export(model, tokenizer, Path(args.export_hf), *texts):
            print(f"without its tokenizer: {why}")
        print(f"written to {args.export_hf}: AutoModelForCausalLM.from_pretrained loads it")


if __name__ == "__main__":
    from generate import command

    command(main)
