"""Published weights: the same numbers, text and ids as Hugging Face's libraries, in and out.

No weights can be downloaded here, so models with random weights are written by `transformers`, in
odd sizes, and read by us; and the other way round.
"""

from __future__ import annotations

import http.server
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, QUICK, ROOT, assert_one_line_error, environment, modules, run_script
from torch import Tensor, nn

from shared import UserError
from shared.data.tales import write_corpus
from shared.utils.tokenizers import (
    BPETokenizer,
    CharTokenizer,
    SentencePieceBPE,
    UnigramTokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    formats,
)
from shared.utils.tokenizers.pretokenize import LLAMA3_PATTERN

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SPEC = MODELS[4]
FOLDER = ROOT / SPEC.folder
VOCAB = 101
GPT2_FILES = Path(os.environ.get("LMFS_DATA_DIR") or ROOT.parent / "shared/data") / "gpt2"
SCALED = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def mods() -> SimpleNamespace:
    return modules(SPEC.folder)


def gpt2(**changes: object) -> nn.Module:
    sizes = dict(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=3, n_positions=256)
    edges = dict(bos_token_id=None, eos_token_id=None)
    config = transformers.GPT2Config(**sizes | edges | changes)
    return randomized(transformers.GPT2LMHeadModel(config))


def llama(**changes: object) -> nn.Module:
    sizes = dict(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=100, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return randomized(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)))


def randomized(model: nn.Module) -> nn.Module:
    """Weights that are not small, biases and norms too: nothing may cancel out."""
    dice = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        one = 1.0 if re.search(r"norm.*weight|ln_.*weight", name) else 0.0
        weight.data = one + 0.15 * torch.randn(weight.shape, generator=dice)
    model.tie_weights()
    return model.eval()


FAMILIES = {
    "gpt2": gpt2,
    "gpt2-medium's ratio": lambda: gpt2(n_embd=28, n_head=7, n_layer=3),
    "gpt2-large's ratio": lambda: gpt2(n_embd=30, n_head=2),
    "gpt2-xl's ratio": lambda: gpt2(n_embd=25, n_head=5, vocab_size=97),
    "gpt2, untied": lambda: gpt2(tie_word_embeddings=False),
    "llama 2, 7B": lambda: llama(rms_norm_eps=1e-5),
    "llama 2, 70B: 3 queries to a key": lambda: llama(num_key_value_heads=2),
    "tinyllama": lambda: llama(num_key_value_heads=1, intermediate_size=77, rms_norm_eps=1e-5),
    "smollm: tied": lambda: llama(
        hidden_size=36, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "llama 3": lambda: llama(num_key_value_heads=3, rope_theta=500_000.0),
    "llama 3.1: scaled": lambda: llama(
        num_key_value_heads=3, rope_theta=500_000.0, rope_scaling=SCALED
    ),
    "llama 3.2: scaled, tied, heads of their own size": lambda: llama(
        head_dim=10, num_key_value_heads=2, rope_scaling=SCALED | {"factor": 32.0},
        tie_word_embeddings=True,
    ),
    "biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "biases of attention only": lambda: llama(attention_bias=True, num_key_value_heads=2),
    "biases of the mlp only": lambda: llama(mlp_bias=True),
}  # fmt: skip


def some_tokens(*shape: int, vocab: int = 97) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(1))


def read(mods: SimpleNamespace, folder: Path) -> nn.Module:
    """The model of a folder that has no tokenizer."""
    published = mods.pretrained.read_config(folder)
    return mods.pretrained.build(published, mods.pretrained.open_weights(folder, published))


def assert_same_logits(ours: nn.Module, theirs: nn.Module, length: int = 60) -> None:
    tokens = some_tokens(2, length)
    with torch.inference_mode():
        expected, found = theirs(tokens).logits, ours(tokens)[0]
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# -------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_are_those_of_transformers(mods, family, tmp_path):
    theirs = FAMILIES[family]()
    theirs.save_pretrained(tmp_path)
    ours = read(mods, tmp_path)
    assert_same_logits(ours, theirs, 200)
    prompt = some_tokens(1, 7)
    expected = theirs.generate(prompt, max_new_tokens=200, do_sample=False, pad_token_id=0)
    found = mods.generate.generate(ours, prompt[0].tolist(), 200, temperature=0)
    assert list(found) == expected[0, 7:].tolist()
    untied = {id(p) for p in theirs.parameters()}
    assert len(list(ours.parameters())) <= len(untied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_stay_in_the_files_own_type_of_numbers(mods, tmp_path, dtype):
    theirs = llama(num_key_value_heads=2).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = read(mods, tmp_path)
    assert {weight.dtype for weight in ours.parameters()} == {dtype}
    exact = {name: weight.double() for name, weight in theirs.state_dict().items()}
    assert torch.equal(exact["model.norm.weight"], ours.norm.weight.double())
    with torch.inference_mode():
        logits, state = ours(some_tokens(1, 9))
        again, _ = ours(some_tokens(1, 1), state)
    assert logits.dtype == again.dtype == dtype and logits.isfinite().all()


def test_a_stream_of_large_numbers_is_normed_in_float16_too(mods):
    norm = mods.llama.RMSNorm(64, 1e-5).half()
    x = torch.full((1, 64), 1000.0)
    torch.testing.assert_close(norm(x.half()).float(), norm.float()(x), atol=1e-3, rtol=0)


def save_bin(model: nn.Module, folder: Path, **how: object) -> dict[str, Tensor]:
    """config.json and pytorch_model.bin, as transformers wrote them until 2023."""
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin", **how)
    return state


@pytest.mark.parametrize("family", ["gpt2", "llama 3.1: scaled"])
@pytest.mark.parametrize("form", ["safetensors in shards", "bin", "old bin", "bin in shards"])
def test_files_in_every_form(mods, tmp_path, family, form):
    theirs = FAMILIES[family]()
    if form == "safetensors in shards":
        theirs.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    else:
        state = save_bin(theirs, tmp_path, _use_new_zipfile_serialization=form != "old bin")
    if form == "bin in shards":
        (tmp_path / "pytorch_model.bin").unlink()
        names, files = list(state), {}
        for i, part in enumerate((names[::2], names[1::2]), start=1):
            files |= dict.fromkeys(part, f"pytorch_model-0000{i}-of-00002.bin")
            torch.save({name: state[name] for name in part}, tmp_path / files[part[0]])
        index = json.dumps({"metadata": {}, "weight_map": files})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert_same_logits(read(mods, tmp_path), theirs)


def test_the_first_gpt2_files_have_short_names_and_masks(mods, tmp_path):
    theirs = gpt2()
    state = {name.removeprefix("transformer."): weight for name, weight in
             save_bin(theirs, tmp_path).items() if name != "lm_head.weight"}  # fmt: skip
    for layer in range(2):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256).tril()
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    ours = read(mods, tmp_path)
    assert_same_logits(ours, theirs)
    assert ours.head.weight is ours.embedding.weight


def test_the_first_llama_files_name_the_rotation_otherwise(mods, tmp_path):
    theirs = FAMILIES["llama 3.1: scaled"]()
    state = save_bin(theirs, tmp_path)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    change(tmp_path, rope_parameters=None, rope_theta=500_000.0,
           rope_scaling={**SCALED, "type": "llama3"})  # fmt: skip
    assert_same_logits(read(mods, tmp_path), theirs)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("embedding_cut", [0, 1], ids=["as Llama 3", "as Llama 2"])
def test_metas_own_files(mods, tmp_path, parts, embedding_cut):
    theirs = llama(vocab_size=102, hidden_size=48, intermediate_size=144, num_key_value_heads=2)
    save_meta(theirs, tmp_path, parts, embedding_cut)
    ours = read(mods, tmp_path)
    assert ours.config["vocab_size"] == 102
    assert_same_logits(ours, theirs)


def save_meta(model: nn.Module, folder: Path, parts: int, embedding_cut: int = 1) -> None:
    """params.json and consolidated.*.pth: other names, pairs of channels, a slice to each GPU."""
    config = model.config
    columns, rows = ["gate_proj", "up_proj", "lm_head"], ["o_proj", "down_proj"]
    names = {"model.": "", "embed_tokens": "tok_embeddings", "self_attn": "attention",
             "q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "o_proj": "wo",
             "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
             "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "ffn_norm", "lm_head": "output"}  # fmt: skip
    files: list[dict] = [{"rope.freqs": torch.ones(4)} for _ in range(parts)]
    for name, tensor in model.state_dict().items():
        ours, weight = name, tensor
        for old, new in names.items():
            ours = ours.replace(old, new)
        if re.search(r"[qk]_proj", name):  # halves to pairs
            weight = weight.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2)
            weight = weight.reshape(-1, config.hidden_size)
        if "embed" in name:
            slices = weight.chunk(parts, dim=embedding_cut)
        elif any(part in name for part in rows):
            slices = weight.chunk(parts, dim=1)
        elif re.search(r"[qkv]_proj", name) or any(part in name for part in columns):
            slices = weight.chunk(parts)
        else:
            slices = [weight] * parts
        for file, piece in zip(files, slices, strict=True):
            file[ours] = piece.clone()
    for i, file in enumerate(files):
        torch.save(file, folder / f"consolidated.0{i}.pth")
    params = {"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": 6,
              "multiple_of": 48, "n_kv_heads": 2, "norm_eps": config.rms_norm_eps,
              "vocab_size": -1}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))


MEMORY = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import generate, pretrained
def memory(what):
    return int(Path("/proc/self/status").read_text().split(what)[1].split()[0]) * 1024
folder = Path(sys.argv[3])
Path("/proc/self/clear_refs").write_text("5")  # the peak is now
before = memory("VmRSS:")
published = pretrained.read_config(folder)
model = pretrained.build(published, pretrained.open_weights(folder, published))
print((memory("VmHWM:") - before) / sum(weight.nbytes for weight in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("form", ["safetensors", "bin", "pth"])
def test_loading_takes_little_more_memory_than_the_weights(mods, form, tmp_path):
    """130 MB in bfloat16, of GPT-2, whose matrices must all be transposed; and Meta's two files."""
    with torch.device("meta"):
        if form == "pth":
            sizes = dict(hidden_size=768, intermediate_size=2064, num_key_value_heads=2)
            config = transformers.LlamaConfig(
                **sizes, vocab_size=2000, num_hidden_layers=10, num_attention_heads=6
            )
            theirs = transformers.LlamaForCausalLM(config)
        else:
            theirs = mods.model.GPT(9000, hidden_size=768, layers=8, heads=12, context=256)
    theirs = theirs.bfloat16().to_empty(device="cpu")
    for weight in theirs.parameters():
        weight.data.fill_(0.01)
    if form == "pth":
        save_meta(theirs, tmp_path, 2)
        params = json.loads((tmp_path / "params.json").read_text())
        (tmp_path / "params.json").write_text(json.dumps(params | {"multiple_of": 2064}))
    else:
        theirs.head.weight = theirs.embedding.weight
        mods.pretrained.export(theirs, CharTokenizer("ab"), tmp_path)
        if "bin" in form:
            (tmp_path / "model.safetensors").unlink()
            state = {n: t.contiguous() for n, t in mods.pretrained.published_tensors(theirs)}
            torch.save(state, tmp_path / "pytorch_model.bin")
    command = [sys.executable, "-c", MEMORY, str(ROOT), str(FOLDER), str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    print(form, done.stdout)
    assert float(done.stdout) < 1.2


def change(folder: Path, **values: object) -> None:
    """Change values in config.json; None takes one out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# -------------------------------------------------------------------------------------- tokenizers


SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
CHAT = "<|start_header_id|>user\nTell me a tale, don't you?  1984<|eot_id|> and ünïcode 🦊"


def like_llama3(folder: Path) -> None:
    """A tokenizer.json as Llama 3 has it: its pattern, special tokens, one in front of a text."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, bytes_])
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([write_corpus(30_000, 1)[0]], trainer)
    library.add_special_tokens(SPECIAL)
    begin = (SPECIAL[0], library.token_to_id(SPECIAL[0]))
    template = tokenizers.processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[begin]
    )
    whole = tokenizers.processors.ByteLevel(trim_offsets=False)
    library.post_processor = tokenizers.processors.Sequence([whole, template])
    library.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0],
              "eos_token": SPECIAL[3], "model_max_length": 256}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def like_llama2() -> SentencePieceBPE:
    """SentencePiece's kind: bytes, the letters of a text, and merges of what is frequent."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz,.TOI"]
    pairs = ["▁t", "th", "he", "in", "▁a", "er", "▁the", "re", "on", "▁w", "at", "nd", "▁and"]
    tokens += [*letters, *pairs]
    index = {token: i for i, token in enumerate(tokens)}
    cuts = [(pair[:at], pair[at:]) for pair in pairs for at in range(1, len(pair))]
    merges = [(index[a], index[b]) for a, b in cuts if a in index and b in index]
    return SentencePieceBPE(tokens, merges, {"<unk>": 0, "<s>": 1, "</s>": 2})


def reference(folder: Path) -> object:
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same_ids(mods: SimpleNamespace, folder: Path, size: int, *more: str) -> None:
    tokenizer = mods.pretrained.read_tokenizer(folder, size)
    begin = mods.pretrained.first_tokens(folder, tokenizer)
    library = reference(folder)
    for text in [*write_corpus(5_000, 3)[0].splitlines(), "  two  spaces ", "a\n\nb", *more]:
        ids = library(text).input_ids
        assert mods.generate.encode_prompt(tokenizer, text, begin) in (ids, []), text
    assert tokenizer.vocab_size == size


def test_the_ids_of_a_tokenizer_like_llama_3s(mods, tmp_path):
    like_llama3(tmp_path)
    assert_same_ids(mods, tmp_path, len(reference(tmp_path)), CHAT)
    tokenizer = mods.pretrained.read_tokenizer(tmp_path, len(reference(tmp_path)))
    begin = mods.pretrained.first_tokens(tmp_path, tokenizer)
    whole = mods.generate.encode_prompt(tokenizer, SPECIAL[0] + "Once", begin)
    assert whole == reference(tmp_path)("Once").input_ids  # typed by hand: there is no second one


def test_the_ids_of_a_tokenizer_like_llama_2s(mods, tmp_path):
    tokenizer = like_llama2()
    formats.write_huggingface(tokenizer, tmp_path / "tokenizer.json", begin=[1])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert_same_ids(mods, tmp_path, tokenizer.vocab_size, "héllo 🦊", "the<s> and")


@pytest.mark.skipif(not GPT2_FILES.is_dir(), reason="GPT-2's two files are not there")
def test_the_ids_of_gpt2s_own_tokenizer(mods, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GPT2_FILES / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert_same_ids(mods, tmp_path, 50257, CHAT, "a<|endoftext|>b", "def f(x):\n\treturn  x")


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def message(*fields: tuple[int, object]) -> bytes:
    """Google's protocol buffers, as far as tokenizer.model needs them."""
    found = b""
    for number, value in fields:
        if isinstance(value, float):
            found += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            found += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            found += varint(number << 3 | 2) + varint(len(data)) + data
    return found


def tokenizer_model(tokenizer: SentencePieceBPE, dummy: int = 1) -> bytes:
    ranks = {tokenizer.merged[rank]: rank for rank in range(len(tokenizer.merges))}
    pieces = []
    for i, token in enumerate(tokenizer.tokens):
        kind = 2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1
        score = -float(ranks[i]) if i in ranks else -1e9 if i > 258 else 0.0
        pieces.append((1, message((1, token), (2, score), (3, kind))))
    trainer = (2, message((3, 2), (4, tokenizer.vocab_size), (35, 1)))
    normalizer = (3, message((1, "identity"), (2, ""), (3, dummy), (4, 0)))
    return message(*pieces, trainer, normalizer)


def test_sentencepieces_file_gives_the_tokenizer_it_was_made_of(tmp_path):
    tokenizer = like_llama2()
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model(tokenizer))
    found = SentencePieceBPE.from_sentencepiece(tmp_path / "tokenizer.model")
    assert found.tokens == tokenizer.tokens
    assert found.special_tokens == tokenizer.special_tokens
    for text in ["the other one, and then there", " a  b", "héllo\n🦊", ""]:
        assert found.encode(text) == tokenizer.encode(text)
    for damaged in (b"", b"\xff" * 40, tokenizer_model(tokenizer)[:-3], b"{}"):
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.model"):
            SentencePieceBPE.from_sentencepiece(tmp_path / "tokenizer.model")


def test_a_model_has_as_many_tokens_as_rows(mods, tmp_path):
    like_llama3(tmp_path)
    size = len(reference(tmp_path))
    more = mods.pretrained.read_tokenizer(tmp_path, size + 3)
    assert more.vocab_size == size + 3 and more.tokens[-1] == f"<|unused {size + 2}|>".encode()
    fewer = mods.pretrained.read_tokenizer(tmp_path, size - 2)
    assert fewer.vocab_size == size - 2 and list(fewer.special_tokens) == SPECIAL[:2]
    with pytest.raises(UserError, match="take both from one model"):
        mods.pretrained.read_tokenizer(tmp_path, size - 5)


# --------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def published(tmp_path_factory, mods) -> Path:
    """A whole Hugging Face folder: a Llama 3 with a tokenizer, and two tokens that end a text."""
    folder = tmp_path_factory.mktemp("published") / "llama"
    folder.mkdir()
    like_llama3(folder)
    size = len(reference(folder))
    model = llama(vocab_size=size, num_key_value_heads=2, rope_scaling=SCALED)
    model.generation_config.eos_token_id = [size - 1, size - 3]
    model.save_pretrained(folder)
    return folder


def test_a_prompt_with_special_tokens_and_the_start_of_a_text(mods, published, run_main):
    _, tokenizer, about = mods.pretrained.load_pretrained(str(published))
    library = reference(published)
    begin, ends = mods.generate.edges(about)
    assert mods.generate.encode_prompt(tokenizer, CHAT, begin) == library(CHAT).input_ids
    assert begin == [tokenizer.special_tokens[SPECIAL[0]]] and len(ends) == 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published)
    expected = theirs.generate(
        **library(CHAT, return_tensors="pt"), max_new_tokens=50, do_sample=False, pad_token_id=0
    )[0]
    text = library.decode(expected[1:])  # the first token is not shown
    flags = ["--pretrained", published, "--prompt", CHAT, "--length", "50", "--temperature", "0"]
    result = run_main(mods.generate, flags)
    assert result.status == 0, result
    assert result.out.rstrip("\n") == text.removesuffix(SPECIAL[3]).rstrip("\n")


def test_a_text_ends_at_any_of_its_end_tokens(mods):
    model = modules(SPEC.folder).model.GPT(20, hidden_size=16, layers=1, heads=2, context=64).eval()
    how = dict(temperature=1.0, seed=3)
    whole = list(mods.generate.generate(model, [1], 40, **how))
    ends = [whole[9], whole[14]]
    first = min(whole.index(end) for end in ends)
    assert list(mods.generate.generate(model, [1], 40, **how, ends=ends)) == whole[:first]
    rows = list(mods.generate.generate_batch(model, [1], 40, **how, count=3, ends=ends))
    texts = [list(mods.generate.before(iter(row), ends)) for row in zip(*rows, strict=True)]
    assert max(map(len, texts)) == len(rows) - 1 or len(rows) == 40
    alone = list(mods.generate.generate_batch(model, [1], 40, **how, count=3))
    assert texts == [
        list(mods.generate.before(iter(row), ends)) for row in zip(*alone, strict=True)
    ]


def test_the_cache_is_no_larger_than_the_text_will_be(mods, monkeypatch):
    kind, rooms = mods.generate.Cache, []
    monkeypatch.setattr(mods.generate, "Cache", lambda *a: rooms.append(a[1]) or kind(*a))
    sizes = dict(hidden_size=16, layers=1, heads=2)
    model = mods.llama.Llama(20, context=131_072, **sizes).eval()
    list(mods.generate.generate(model, [1, 2, 3], 20))
    model = mods.model.GPT(20, context=8, **sizes).eval()
    assert len(list(mods.generate.generate(model, [1, 2, 3], 20))) == 20
    assert rooms == [23, 8]


def test_the_end_of_a_prompt_in_bytes_is_not_written_twice(mods, capsys):
    """SentencePiece's bytes wait for the next token to become text."""
    tokenizer = like_llama2()
    for prompt in ("the\n", "🦊", "the", "é\n\n"):
        ids = tokenizer.encode(prompt)
        mods.generate.show(tokenizer, ids, iter(tokenizer.encode("the other")))
        assert prompt + capsys.readouterr().out == prompt + " the other"


def test_talking_with_a_published_model(mods, published, run_main, monkeypatch):
    lines = iter(["Once", "/undo", "upon", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    result = run_main(mods.interactive, "--pretrained", published, "--length 5 --seed 1")
    assert result.status == 0, result
    assert "Llama, published" in result.out and "nothing is left" in result.out
    assert SPECIAL[0] not in result.out.splitlines()[1]


@pytest.fixture
def script(mods, monkeypatch) -> SimpleNamespace:
    """pretrained.py's command line, for run_main: it takes what it needs from generate.py."""
    monkeypatch.setitem(sys.modules, "generate", mods.generate)
    parts = dict(main=mods.pretrained.main, command=mods.generate.command)
    return SimpleNamespace(__file__=mods.pretrained.__file__, **parts)


def test_the_table_of_a_published_model(script, published, run_main):
    result = run_main(script, "--pretrained", published)
    assert result.status == 0, result
    row = next(line for line in result.out.splitlines() if "attention.qkv" in line)
    names = [f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qkv"]
    assert row.split() == [
        *" + ".join(names).split(),
        "blocks.0.attention.qkv.weight",
        "(80,",
        "48)",
    ]


@pytest.mark.parametrize("source", ["published", "own"])
def test_training_goes_on_from_weights(mods, published, run_main, text_file, tmp_path, source):
    run = [*QUICK.split(), "--steps", "4", "--eval-every", "2", "--lr", "0.001", "--dataset"]
    start = published
    if source == "own":
        sizes = "--hidden-size 16 --layers 1 --heads 2 --tokenizer bpe --vocab-size 300"
        result = run_main(mods.train, run, text_file, sizes, "--out", tmp_path / "first")
        start = tmp_path / "first" / "best.pt"
    result = run_main(mods.train, run, text_file, "--init-from", start, "--out", tmp_path / "out")
    assert result.status == 0, result
    assert "Llama" in result.out
    model, _, saved = mods.generate.load_checkpoint(tmp_path / "out" / "best.pt")
    assert model.context == 8 and saved["settings"]["optimizer"] == "adamw"
    result = run_main(mods.train, "--resume", tmp_path / "out" / "last.pt", "--steps 6")
    assert result.status == 0, result
    flags = ["--checkpoint", tmp_path / "out" / "best.pt", "--length", "5", "--prompt", "Once"]
    assert run_main(mods.generate, flags).status == 0
    if source == "published":
        before, _, about = mods.pretrained.load_pretrained(str(published))
        assert mods.generate.edges(saved) == mods.generate.edges(about)
        change = (model.embedding.weight - before.embedding.weight).abs().max()
        assert 0 < change < 0.1  # 4 small steps away


def test_starting_from_weights_changes_nothing_before_the_first_step(
    mods, published, run_main, text_file, tmp_path
):
    run = [*QUICK.split(), "--steps", "1", "--lr", "0", "--dataset", text_file]
    assert run_main(mods.train, run, "--init-from", published, "--out", tmp_path).status == 0
    trained = mods.generate.load_checkpoint(tmp_path / "last.pt")[0]
    before, _, _ = mods.pretrained.load_pretrained(str(published))
    tokens = some_tokens(2, 8)
    with torch.inference_mode():
        assert torch.equal(trained(tokens)[0], before(tokens)[0])


@pytest.mark.parametrize(
    ("flags", "mentioned"),
    [
        ("--hidden-size 64", ["--hidden-size 64", "has 48"]),
        (
            "--layers 3 --tokenizer char --arch gpt",
            ["--layers 3", "--tokenizer char", "--arch gpt"],
        ),
        ("--context 999", ["--context 999", "has 256"]),
        ("--resume x.pt", ["--resume", "--init-from"]),
    ],
)
def test_flags_that_contradict_the_weights(
    mods, published, run_main, text_file, tmp_path, flags, mentioned
):
    run = ["--init-from", published, "--dataset", text_file, "--out", tmp_path / "out"]
    assert_one_line_error(run_main(mods.train, run, flags), *mentioned)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_and_a_published_model_at_once(mods, run_main):
    result = run_main(mods.generate, "--checkpoint a.pt --pretrained gpt2")
    assert_one_line_error(result, "--checkpoint", "--pretrained")


# ------------------------------------------------------------------------------------------ export


def ours(mods: SimpleNamespace, arch: str, vocab_size: int) -> nn.Module:
    sizes = dict(hidden_size=48, layers=2, heads=6, context=64)
    kinds = {
        "gpt": lambda: mods.model.GPT(vocab_size, **sizes),
        "gpt, untied": lambda: mods.model.GPT(vocab_size, **sizes, tied=False),
        "llama": lambda: mods.llama.Llama(vocab_size, **sizes, kv_heads=2),
        "llama, tied": lambda: mods.llama.Llama(vocab_size, **sizes, tied=True),
        "llama, published": lambda: mods.llama.Llama(
            vocab_size, **sizes, kv_heads=3, qk_norm=False, inner=50, head_size=10, biases=True,
            eps=1e-6, base=500_000.0, scaling=[8.0, 1.0, 4.0, 32.0],
        ),
    }  # fmt: skip
    model = kinds[arch]()
    dice = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.15 * torch.randn(weight.shape, generator=dice)
    return model.eval()


ARCHITECTURES = ["gpt", "gpt, untied", "llama", "llama, tied", "llama, published"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_transformers_computes_the_same_from_an_exported_folder(mods, arch, tmp_path):
    model, tokenizer = ours(mods, arch, VOCAB), CharTokenizer("abc")
    assert mods.pretrained.export(model, tokenizer, tmp_path / "out") == ""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_same_logits(model, theirs)
    again = read(mods, tmp_path / "out")
    assert {k: v for k, v in again.config.items() if k != "dropout"} == {
        k: v for k, v in model.config.items() if k != "dropout"
    }
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


TEXT = write_corpus(20_000, 1)[0]
KINDS: dict[str, Callable] = {
    "char": lambda: CharTokenizer.train(TEXT),
    "bpe": lambda: BPETokenizer.train(TEXT, 400, ["<|endoftext|>"]),
    "unigram": lambda: UnigramTokenizer.train(TEXT, 400),
    "wordpiece": lambda: WordPieceTokenizer.train(TEXT, 400),
    "sentencepiece": like_llama2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_tokenizer_has_the_same_ids(mods, kind, tmp_path):
    tokenizer = KINDS[kind]()
    model = ours(mods, "llama", tokenizer.vocab_size)
    assert mods.pretrained.export(model, tokenizer, tmp_path / "out") == ""
    library = reference(tmp_path / "out")
    assert len(library) == tokenizer.vocab_size
    for text in [*TEXT.splitlines()[:40], TEXT[:3000]]:
        ids = library(text).input_ids
        assert ids == tokenizer.encode(text)
        if kind in ("char", "bpe", "unigram"):
            assert library.decode(ids) == text


def test_words_have_no_tokenizer_json_and_one_line_says_so(mods, tmp_path):
    tokenizer = WordTokenizer.train(TEXT)
    model = ours(mods, "gpt", tokenizer.vocab_size)
    why = mods.pretrained.export(model, tokenizer, tmp_path / "out")
    assert "tokenizer.json cannot say" in why and "\n" not in why
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_what_was_published_comes_out_as_it_went_in(mods, script, published, run_main, tmp_path):
    out = tmp_path / "new" / "out"
    result = run_main(script, "--pretrained", published, "--export-hf", out)
    assert result.status == 0 and "written to" in result.out, result
    one, other = (transformers.AutoModelForCausalLM.from_pretrained(f) for f in (published, out))
    tokens = some_tokens(2, 30)
    with torch.inference_mode():
        torch.testing.assert_close(one(tokens).logits, other(tokens).logits, atol=1e-5, rtol=0)
    assert reference(out)(CHAT).input_ids == reference(published)(CHAT).input_ids
    assert reference(out).eos_token == SPECIAL[3]
    again = mods.pretrained.load_pretrained(str(out))
    assert mods.generate.edges(again[2]) == mods.generate.edges(
        mods.pretrained.load_pretrained(str(published))[2]
    )


def test_an_own_checkpoint_goes_out_and_comes_back(mods, script, text_file, run_main, tmp_path):
    """Train, export, write with what was exported."""
    flags = [*QUICK.split(), "--steps", "2", "--hidden-size", "16", "--layers", "1", "--heads", "2"]
    flags += ["--tokenizer", "bpe", "--vocab-size", "300", "--dataset", text_file]
    result = run_main(mods.train, flags, "--out", tmp_path / "run")
    assert result.status == 0, result
    best, out = tmp_path / "run" / "best.pt", tmp_path / "out"
    result = run_main(script, "--checkpoint", best, "--export-hf", out)
    assert result.status == 0 and result.err == "", result
    how = ["--prompt", "Once", "--length", "20", "--seed", "1"]
    texts = [
        run_main(mods.generate, flag, source, how)
        for flag, source in (("--checkpoint", best), ("--pretrained", out))
    ]
    assert texts[0] == texts[1] and texts[0].status == 0


@pytest.mark.slow
def test_the_command_line_is_a_script(published):
    result = run_script(FOLDER / "pretrained.py", "--pretrained", published)
    assert result.status == 0 and "parameters" in result.out, result
    assert_one_line_error(run_script(FOLDER / "pretrained.py"), "--export-hf")


def test_an_export_never_overwrites_and_leaves_nothing_half_written(mods, tmp_path, monkeypatch):
    model = ours(mods, "gpt", 5)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        mods.pretrained.export(model, CharTokenizer("abcde"), tmp_path / "there")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mods.pretrained, "write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        mods.pretrained.export(model, CharTokenizer("abcde"), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# ------------------------------------------------------------------------------------ what is wrong


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole folder to be damaged."""
    llama(num_key_value_heads=2).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def fails(mods: SimpleNamespace, folder: Path, *mentioned: str) -> str:
    """The one line that says why this folder cannot be loaded."""
    with pytest.raises(UserError) as error:
        mods.pretrained.load_pretrained(str(folder))
    text = str(error.value)
    assert "\n" not in text and ": " in text
    for each in mentioned:
        assert each in text, text
    return text


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, -1])
def test_a_truncated_file(mods, folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    fails(mods, folder, "model.safetensors", "download it again")


def test_a_header_that_lies(mods, folder):
    path = folder / "model.safetensors"
    header, body = header_of(path)
    name = next(n for n in header if "norm" in n)
    entry = header[name]
    for change_ in (
        {"shape": [-48]},
        {"shape": [10**12]},
        {"shape": "48"},
        {"data_offsets": [0, 192]},
        {"data_offsets": [entry["data_offsets"][0], 10**15]},
        {"data_offsets": [1.5, 3]},
        {"dtype": "F64"},
    ):
        write_header(path, header | {name: entry | change_}, body)
        fails(mods, folder, "model.safetensors", "download it again")
    for kind in ("F8_E4M3", "F4", 7):
        write_header(path, header | {name: entry | {"dtype": kind}}, body)
        fails(mods, folder, "not supported")
    write_header(path, header, body + b"surplus")
    fails(mods, folder, "model.safetensors", "download it again")
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    fails(mods, folder, "model.safetensors", "download it again")


def test_missing_extra_and_misshapen_tensors_are_listed_together(mods, folder):
    path = folder / "model.safetensors"
    header, body = header_of(path)
    header["surplus.weight"] = header.pop("model.norm.weight")
    shape = header["lm_head.weight"]["shape"]
    header["lm_head.weight"]["shape"] = shape[::-1]
    write_header(path, header, body)
    text = fails(mods, folder, "1 missing (model.norm.weight)", "1 not of this model", "surplus")
    assert "lm_head.weight [48, 101] instead of [101, 48]" in text


@pytest.mark.parametrize(
    ("values", "mentioned"),
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({"model_type": ["llama"]}, "not supported"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"hidden_size": -48}, "hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 4}, "heads"),
        ({"num_hidden_layers": 10**6}, "missing"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_a_config_of_another_kind(mods, folder, values, mentioned):
    change(folder, **values)
    fails(mods, folder, mentioned)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\udcff"])
def test_a_config_that_is_none(mods, folder, text):
    (folder / "config.json").write_text(text, errors="surrogateescape")
    fails(mods, folder, "config.json")


def test_gpt2_with_another_inside(mods, tmp_path):
    for values in ({"activation_function": "relu"}, {"n_inner": 50}, {"n_head": 5}):
        gpt2().save_pretrained(tmp_path)
        change(tmp_path, **values)
        fails(mods, tmp_path, next(iter(values)))


class Program:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["zip", "old", "bare"])
def test_a_program_in_a_file_of_weights_does_not_run(mods, folder, tmp_path, form):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    value = {"model.norm.weight": Program(tmp_path / "ran")}
    if form == "bare":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
    fails(mods, folder, "pytorch_model.bin", "do not trust it")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_bin(mods, folder):
    state = llama(num_key_value_heads=2).state_dict()
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(state, path)
    whole = path.read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2], whole[:-100], b"\x80\x02." * 9, b"text"):
        path.write_bytes(data)
        fails(mods, folder, "pytorch_model.bin")
    for value in ([], {}, {"a": 1}, {1: torch.ones(2)}, {"a": torch.ones(2).to_sparse()}):
        torch.save(value, path)
        fails(mods, folder, "pytorch_model.bin")


def test_an_index_that_leads_out_of_the_folder(mods, folder, tmp_path):
    shutil.move(folder / "model.safetensors", tmp_path / "model.safetensors")
    for name in ("../model.safetensors", str(tmp_path / "model.safetensors"), 7, "model.bin"):
        index = json.dumps({"weight_map": {"model.norm.weight": name}})
        (folder / "model.safetensors.index.json").write_text(index)
        fails(mods, folder, "model.safetensors.index.json")
    index = json.dumps({"weight_map": {"model.norm.weight": "a.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    fails(mods, folder, "a.safetensors is missing")


def test_a_folder_without_weights_or_tokenizer_says_what_belongs_there(mods, folder, tmp_path):
    fails(mods, folder, "holds no tokenizer", "tokenizer.json")
    (folder / "model.safetensors").unlink()
    fails(mods, folder, "holds no weights", "*.safetensors")
    (tmp_path / "empty").mkdir()
    fails(mods, tmp_path / "empty", "config.json", "params.json", "consolidated")
    fails(mods, folder / "config.json", "give the folder")


def test_qwen3_is_read_only_if_its_norms_are_not_learned(mods, tmp_path):
    model = ours(mods, "llama", VOCAB)
    mods.pretrained.export(model, CharTokenizer("a"), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    header, body = header_of(path)
    start, end = header["model.layers.1.self_attn.k_norm.weight"]["data_offsets"]
    write_header(path, header, body[:start] + b"\0" * (end - start) + body[end:])
    fails(mods, tmp_path / "out", "k_norm", "learned")


# ------------------------------------------------------------------------------------------ the hub


@pytest.fixture
def hub(tmp_path, published, monkeypatch) -> Iterator[SimpleNamespace]:
    """A stand-in for the hub that has the model me/llama, and a cache folder of its own."""
    found = SimpleNamespace(asked=[], status={}, cut={}, root=tmp_path / "hub")
    shutil.copytree(published, found.root / "me" / "llama" / "resolve" / "main")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            found.asked.append(name)
            path = found.root / self.path.lstrip("/")
            status = found.status.get(name, 200 if path.is_file() else 404)
            data = path.read_bytes() if status == 200 else b""
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else status)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", '"1"')
            if start:
                total = len(data)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            self.wfile.write(data[start : found.cut.pop(name, None)])

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("LMFS_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("shared.data.download.BACKOFF", 0.0)
    yield found
    server.shutdown()


def test_a_model_of_the_hub_is_fetched_once(mods, hub, published, tmp_path):
    model, _, about = mods.pretrained.load_pretrained("me/llama")
    expected, _, known = mods.pretrained.load_pretrained(str(published))
    assert torch.equal(model.embedding.weight, expected.embedding.weight)
    assert about["settings"] == known["settings"]
    folder = tmp_path / "cache" / "models" / "me" / "llama"
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    hub.asked.clear()
    mods.pretrained.load_pretrained("me/llama")
    assert hub.asked == []


def test_a_download_that_breaks_off_goes_on(mods, hub):
    hub.cut["model.safetensors"] = 70_000
    model, _, _ = mods.pretrained.load_pretrained("me/llama")
    assert hub.asked.count("model.safetensors") == 2 and model.config["layers"] == 2


def test_shards_and_bins_of_the_hub(mods, hub, published):
    there = hub.root / "me" / "llama" / "resolve" / "main"
    model = transformers.AutoModelForCausalLM.from_pretrained(published)
    (there / "model.safetensors").unlink()
    model.save_pretrained(there, max_shard_size="100KB")
    found, _, _ = mods.pretrained.load_pretrained("me/llama")
    assert_same_logits(found, model)
    assert len([name for name in hub.asked if re.search(r"-of-\d+\.safetensors", name)]) > 2


@pytest.mark.parametrize(
    ("status", "mentioned"),
    [(401, "licence"), (403, "licence"), (404, "no such"), (500, "500")],
)
def test_a_model_that_cannot_be_had(mods, hub, tmp_path, status, mentioned):
    hub.status["config.json"] = status
    text = fails(mods, Path("me/llama"), mentioned, "config.json", "*.safetensors", "by hand")
    assert str(tmp_path / "cache" / "models" / "me" / "llama") in text


def test_an_unsupported_model_is_refused_before_its_weights_are_fetched(mods, hub):
    change(hub.root / "me" / "llama" / "resolve" / "main", model_type="mamba")
    fails(mods, Path("me/llama"), "'mamba'")
    assert hub.asked == ["config.json"]


@pytest.mark.parametrize("flag", ["--pretrained", "--init-from"])
def test_without_a_network_one_line_names_the_folder_to_fill(
    mods, run_main, tmp_path, monkeypatch, flag
):
    monkeypatch.setenv("LMFS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    script = mods.generate if flag == "--pretrained" else mods.train
    result = run_main(script, flag, "gpt2")
    assert_one_line_error(result, "gpt2", "config.json", str(tmp_path / "models" / "gpt2"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert_one_line_error(run_main(script, flag, "gpt2"), "no connection", "by hand")


@pytest.mark.parametrize("name", ["../x", "a/b/c", "a b", "-x/..", "https://a.b/c"])
def test_names_that_are_none(mods, name):
    fails(mods, Path(name), "neither a folder nor a name")


def test_the_readme_has_the_table_of_the_code(mods):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")]
            for line in text.splitlines() if line.startswith("|")]  # fmt: skip
    start = rows.index(["ours", "GPT-2", "LLaMA", "Meta's own files"]) + 2
    tables = [mods.pretrained.GPT2_NAMES, mods.pretrained.LLAMA_NAMES, mods.pretrained.META_NAMES]
    shown = {row[0]: row[1:] for row in rows[start : start + 11]}
    assert set(shown) == set().union(*tables)
    for name, cells in shown.items():
        assert cells == [table.get(name, "") for table in tables]
