r"""Other people's tokenizer files: GPT-2's vocab.json and merges.txt, tokenizer.json, and
SentencePiece's tokenizer.model.

    vocab.json        {"!": 0, ..., "Ġ": 220, "Ġt": 256, "Ġa": 257, ..., "<|endoftext|>": 50256}
    merges.txt        #version: 0.2
                      Ġ t                   the merge of " " and "t", which makes token 256
                      Ġ a
    tokenizer.json    both of these, the pre-tokenization pattern, special tokens, how to decode
    tokenizer.model   pieces and their scores, in Google's binary format (Llama 2)

A tokenizer.json is the `tokenizers` library's and describes any kind. Two kinds are read here:
byte-level BPE (GPT-2, Llama 3, SmolLM, ...) and SentencePiece-style BPE with byte fall-back
(Llama 2, TinyLlama, Mistral, ...). Whatever else such a file asks for is refused, never passed
over, because the ids would be wrong. What surrounds the ids of a text is not read: truncation,
padding, and the template that puts <s> in front of them (add_special_tokens=True).

Written as tokenizer.json is every kind but words, whose spaces depend on what stands before them.

That library always takes special tokens in a text as such: its `encode(text)` is ours with
allowed_special="all".
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NoReturn

from shared import UserError
from shared.utils.tokenizers.base import Tokenizer
from shared.utils.tokenizers.bpe import BPETokenizer, check_special, merge_long
from shared.utils.tokenizers.char import CharTokenizer
from shared.utils.tokenizers.pretokenize import GPT2_PATTERN, compile_pattern
from shared.utils.tokenizers.sentencepiece import SPACE, SentencePieceBPE
from shared.utils.tokenizers.unigram import UnigramTokenizer
from shared.utils.tokenizers.wordpiece import GOES_ON, MAX_WORD, UNKNOWN, WordPieceTokenizer


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes.

    Tokens are bytes, but its files are text, where control characters and halves of a UTF-8
    character cannot stand and a space would end a token. So a byte that is a visible character
    in Latin-1 stands for itself, and the other 68, in their order, are U+0100 and on.

    >>> symbols = byte_symbols()
    >>> symbols[ord("a")], symbols[ord(" ")], symbols[ord("\\n")], "".join(symbols[:4])
    ('a', 'Ġ', 'Ċ', 'ĀāĂă')
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


SYMBOLS = byte_symbols()
BYTES = {symbol: byte for byte, symbol in enumerate(SYMBOLS)}
INVISIBLE = {symbol for symbol in SYMBOLS if symbol > "\xff"}


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its name") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: download it again") from None


def read_json(path: Path) -> dict:
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON: download it again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a tokenizer's file: it must begin with '{{'")
    return data


def write_text(path: Path, text: str) -> None:
    """The file is there as a whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): mend that") from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, data: dict) -> None:
    write_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------
# Vocabulary and merges
# ---------------------------------------------------------------------------------------------


def check_vocabulary(vocab: dict[str, int], path: Path) -> dict[str, int]:
    """The vocabulary in the order of its ids. Raises UserError unless these are 0, 1, 2, ..."""
    if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
        raise UserError(
            f"{path}: the vocabulary is not a list of tokens and ids: take another file"
        )
    ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
    for expected, (token, index) in enumerate(ordered.items()):
        if index != expected:
            raise UserError(
                f"{path}: the ids are not 0 to {len(vocab) - 1}, each once (see token {token!r}, "
                f"id {index}): take a whole file"
            )
    try:
        "".join(ordered).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: lone surrogates in a token: take a whole file") from None
    return ordered


def merge_ids(
    merges: list[tuple[str, str]], vocab: dict[str, int], special: dict[str, int], path: Path
) -> list[tuple[int, int]]:
    """Merges as pairs of ids, without those that would make a special token or from one.

    These never happen: a special token is cut out of the text before any merge.
    """
    pairs = []
    for first, second in merges:
        for token in (first, second, first + second):
            if token not in vocab:
                raise UserError(
                    f"{path}: the merge {first!r} {second!r} needs the token {token!r}, which is "
                    f"not in the vocabulary: take both from one tokenizer"
                )
        if special.keys().isdisjoint((first, second, first + second)):
            pairs.append((vocab[first], vocab[second]))
    return pairs


def byte_level(
    vocab: dict[str, int], merges: list[tuple[str, str]], special: dict[str, int], path: Path
) -> dict:
    """Tokens written in byte symbols -> arguments of BPETokenizer."""
    if missing := [symbol for symbol in SYMBOLS if symbol not in vocab]:
        raise UserError(
            f"{path}: {len(missing)} of the 256 bytes are not in the vocabulary, such as "
            f"{missing[0]!r}: take the file of a byte-level tokenizer"
        )
    tokens = []
    for token in vocab:
        try:
            tokens.append(
                token.encode() if token in special else bytes([BYTES[symbol] for symbol in token])
            )
        except KeyError:
            raise UserError(
                f"{path}: the token {token!r} is neither bytes nor a special token: take the file "
                f"of a byte-level tokenizer"
            ) from None
    return {
        "tokens": tokens,
        "merges": merge_ids(merges, vocab, special, path),
        "special_tokens": special,
    }


def written_vocabulary(tokenizer: BPETokenizer) -> dict[str, int]:
    """Tokens as such files have them, and their ids: the opposite of `byte_level`."""
    texts = {index: text for text, index in tokenizer.special_tokens.items()}
    vocab = {}
    for index, token in enumerate(tokenizer.tokens):
        text = texts.get(index) or written(token)
        if text in vocab:
            raise UserError(
                f"the tokens {vocab[text]} and {index} are both written {text!r} in this format: "
                f"choose another text for the special token"
            )
        vocab[text] = index
    return vocab


def written(token: bytes | str) -> str:
    """An ordinary token in such files.

    >>> written(b" low"), written("▁low")
    ('Ġlow', '▁low')
    """
    return token if isinstance(token, str) else "".join([SYMBOLS[byte] for byte in token])


def written_merges(tokenizer: BPETokenizer) -> list[str]:
    tokens = tokenizer.tokens
    return [f"{written(tokens[a])} {written(tokens[b])}" for a, b in tokenizer.merges]


# ---------------------------------------------------------------------------------------------
# GPT-2
# ---------------------------------------------------------------------------------------------


def read_gpt2(vocab_json: Path, merges_txt: Path) -> dict:
    """GPT-2's two files -> arguments of BPETokenizer.

    Tokens that are neither a byte nor made by a merge are special, such as <|endoftext|>.
    Raises UserError for missing, damaged and mismatched files.
    """
    vocab = check_vocabulary(read_json(vocab_json), vocab_json)
    lines = read_text(merges_txt).rstrip("\n").split("\n")
    comment = lines[0].startswith("#version")  # only here: a merge may begin with # as well
    merges = []
    for number, line in enumerate(lines[comment:], start=1 + comment):
        first, _, second = line.partition(" ")
        if not first or not second or " " in second:
            raise UserError(
                f"{merges_txt}, line {number}: {line[:60]!r} is not a merge, two tokens with a "
                f"space between: take a whole file"
            )
        merges.append((first, second))
    made = {first + second for first, second in merges}
    special = {text: i for text, i in vocab.items() if text not in made and text not in BYTES}
    for text in special:
        if not INVISIBLE.isdisjoint(text):  # an ordinary token, with a space or the like
            raise UserError(
                f"{merges_txt}: no merge makes the token {text!r} of {vocab_json}: take both "
                f"files from one tokenizer"
            )
    return byte_level(vocab, merges, special, merges_txt)


def write_gpt2(tokenizer: BPETokenizer, folder: Path) -> None:
    """Writes vocab.json and merges.txt into a folder. Raises UserError where they cannot tell all.

    The format knows one pre-tokenization pattern, and every token is a byte, made by merging, or
    special.
    """
    if tokenizer.patterns != (GPT2_PATTERN,) or tokenizer.prefix_space:
        raise UserError(
            "GPT-2's files are for GPT-2's pre-tokenization only: use save_huggingface instead"
        )
    vocab = written_vocabulary(tokenizer)
    for text in tokenizer.special_tokens:
        if not INVISIBLE.isdisjoint(text):
            raise UserError(
                f"GPT-2's files cannot hold the special token {text!r}, where "
                f"{min(INVISIBLE & set(text))!r} means a byte: use save_huggingface instead"
            )
    for token, index in tokenizer.index.items():
        ids = merge_long(
            [tokenizer.byte_ids[byte] for byte in token], tokenizer.ranks, tokenizer.merged
        )
        if ids != [index]:
            raise UserError(
                f"GPT-2's files cannot hold the token {token!r}, which no merge makes: use "
                f"save_huggingface instead"
            )
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: make it first")
    write_json(folder / "vocab.json", vocab)
    write_text(
        folder / "merges.txt", "\n".join(["#version: 0.2", *written_merges(tokenizer)]) + "\n"
    )


# ---------------------------------------------------------------------------------------------
# tokenizer.json: what its parts look like
# ---------------------------------------------------------------------------------------------

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {
    "type": "Sequence",
    "normalizers": [{"type": "Prepend", "prepend": SPACE}, REPLACE],
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}
CATEGORY = re.compile(r"L[ultmo]?|M[nce]?|N[dlo]?|P[cdseifo]?|S[mcko]?|Z[slp]?|C[cfson]?")
ADDED_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def metaspace(prefix: str) -> dict:
    """The pre-tokenizer that makes spaces visible and adds the dummy."""
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": prefix, "split": False}


def sentencepiece_decoder(prefix: str) -> dict:
    steps = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {"type": "Sequence", "decoders": steps[:3] if prefix == "never" else steps}


# ---------------------------------------------------------------------------------------------
# tokenizer.json: reading
# ---------------------------------------------------------------------------------------------


def refuse(path: Path, part: str, value: object) -> NoReturn:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 120 else f"{shown[:120]}..."
    raise UserError(f"{path}: {part} {shown} is not supported: take another tokenizer")


def read_huggingface(path: Path) -> BPETokenizer:
    """The tokenizer in a tokenizer.json: a BPETokenizer or a SentencePieceBPE.

    Raises UserError for a missing or damaged file, and for what is not supported.
    """
    data = read_json(path)
    try:
        model = data["model"]
        check_model(model, path)
        vocab, special = read_added_tokens(data["added_tokens"], model["vocab"], path)
        merges = [
            tuple(merge.split(" ") if isinstance(merge, str) else merge)
            for merge in model["merges"]
        ]
        normalizer, pre_tokenizer = data.get("normalizer"), data.get("pre_tokenizer")
        if normalizer == {"type": "Sequence", "normalizers": []}:
            normalizer = None
        if pre_tokenizer is not None and pre_tokenizer["type"] in ("ByteLevel", "Sequence"):
            if normalizer is not None:
                refuse(path, "normalizer", normalizer)
            if (decoder := data.get("decoder")) is not None and decoder["type"] != "ByteLevel":
                refuse(path, "decoder", decoder)
            return BPETokenizer(
                **byte_level(vocab, merges, special, path),
                **read_pre_tokenizer(pre_tokenizer, path),
                ignore_merges=model.get("ignore_merges", False),
            )
        prefix = read_prefix(normalizer, pre_tokenizer, path)
        if data.get("decoder") != sentencepiece_decoder(prefix):
            refuse(path, "decoder", data.get("decoder"))
        check_sentencepiece(data, vocab, special, path)
        return SentencePieceBPE(
            list(vocab), merge_ids(merges, vocab, special, path), special, prefix
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        raise UserError(f"{path} is damaged or no tokenizer.json: take a whole file") from None


def check_model(model: dict, path: Path) -> None:
    """Raises UserError unless it is BPE without extras."""
    if model.get("type", "BPE") != "BPE":
        refuse(path, "model", model["type"])
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            refuse(path, name, model[name])


def check_sentencepiece(
    data: dict, vocab: dict[str, int], special: dict[str, int], path: Path
) -> None:
    """Raises UserError for what only matters without a ByteLevel pre-tokenizer."""
    model = data["model"]
    if model.get("ignore_merges"):
        refuse(path, "ignore_merges", model["ignore_merges"])
    if not model.get("byte_fallback"):
        refuse(path, "byte_fallback", model.get("byte_fallback"))
    if missing := [t for t in SentencePieceBPE.BYTE_TOKENS if t not in vocab or t in special]:
        raise UserError(f"{path}: the byte token {missing[0]} is missing: take a whole file")
    for token in data["added_tokens"]:
        if token.get("normalized"):  # the library would look for it with a dummy in front
            refuse(path, "normalized added token", token["content"])


def read_added_tokens(
    added: list[dict], vocab: dict[str, int], path: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """-> all tokens, the special ones. They are special in the library whatever the file says."""
    known = len(check_vocabulary(vocab, path))
    special = {}
    for token in added:
        for name in ("single_word", "lstrip", "rstrip"):
            if token.get(name):
                refuse(path, f"added token with {name}:", token["content"])
        special[token["content"]] = token["id"]
    check_special(list(special))
    for text, index in special.items():
        if vocab.get(text, index) != index or (text not in vocab and index < known):
            raise UserError(f"{path}: the added token {text!r} has two ids: take a whole file")
    # The library takes those not marked first, wherever they are.
    texts = [[t["content"] for t in added if bool(t.get("normalized")) is b] for b in (True, False)]
    for one, other in product(*texts):
        if overlap(one, other):
            refuse(path, "normalized added token that overlaps with others:", one)
    return check_vocabulary({**vocab, **special}, path), special


def overlap(one: str, other: str) -> bool:
    """Can two tokens share characters of a text?

    >>> overlap("<s>", "s>x"), overlap("<s>", "<x>")
    (True, False)
    """
    ends = range(1, min(len(one), len(other)))
    return (
        one in other
        or other in one
        or any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in ends)
    )


def read_pre_tokenizer(node: dict, path: Path) -> dict:
    """ByteLevel, or a sequence that ends with it -> patterns and prefix_space."""
    steps = node["pretokenizers"] if node["type"] == "Sequence" else [node]
    patterns = []
    for step in steps[:-1]:
        if step["type"] == "Digits":
            patterns.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
        elif step["type"] == "Split" and "Regex" in step["pattern"]:
            for name, expected in {"behavior": "Isolated", "invert": False}.items():
                if step[name] != expected:
                    refuse(path, f"Split with {name}", step[name])
            patterns.append(check_pattern(step["pattern"]["Regex"], path))
        else:
            refuse(path, "pre_tokenizer", step)
    last = steps[-1]
    if last["type"] != "ByteLevel" or (last["add_prefix_space"] and patterns):
        refuse(path, "pre_tokenizer", last)
    if last.get("use_regex", True):
        patterns.append(GPT2_PATTERN)
    return {"patterns": patterns, "prefix_space": last["add_prefix_space"]}


def check_pattern(pattern: str, path: Path) -> str:
    r"""Raises UserError for what Python's `re` cannot read, or reads in another way.

    >>> check_pattern(r"\p{Han}+", Path("file"))
    Traceback (most recent call last):
    shared.UserError: file: pattern with "\\p{Han}" is not supported: take another tokenizer
    """
    brackets = re.findall(r"\[(?:\\.|[^]\\])*\]", pattern)
    outside = re.sub(r"\[(?:\\.|[^]\\])*\]", "[]", pattern)
    strange = [
        *(
            p
            for p in re.findall(r"\\[pP](?:\{\^?\w*\}|.)", pattern)
            if not CATEGORY.fullmatch(p[3:-1])
        ),
        *re.findall(r"\\[a-zA-Z0-9](?<!\\[pPsSdrnt])|(?<!\\)[\^$]|[?*+]\+|\d}\+", outside),
        *(set_ for set_ in brackets if re.search(r"\\[SDWwbh]|&&|.\[(?<!\\\[)|^\[\^?\]$", set_)),
    ]
    if strange:
        refuse(path, "pattern with", strange[0])
    try:
        compile_pattern(pattern)
    except UserError:
        refuse(path, "pattern", pattern)
    return pattern


def read_prefix(normalizer: dict | None, pre_tokenizer: dict | None, path: Path) -> str:
    """How a SentencePiece-style tokenizer treats spaces -> prefix of SentencePieceBPE."""
    if pre_tokenizer is None:
        if normalizer == PREPEND:
            return "prepend"
        if normalizer == REPLACE:
            return "never"
    elif normalizer is None:
        for prefix in ("always", "first", "never"):
            if pre_tokenizer == metaspace(prefix):
                return prefix
        refuse(path, "pre_tokenizer", pre_tokenizer)
    refuse(path, "normalizer", normalizer)


# ---------------------------------------------------------------------------------------------
# tokenizer.json: writing
# ---------------------------------------------------------------------------------------------


class InexpressibleError(UserError):
    """No tokenizer.json can say what this tokenizer does."""


def write_huggingface(tokenizer: Tokenizer, path: Path, begin: Sequence[int] = ()) -> None:
    """Writes a tokenizer.json. begin: special tokens that the library is to put before a text.

    Raises UserError for what the format cannot tell.
    """
    special: dict[str, int] = {}
    if isinstance(tokenizer, BPETokenizer):
        special, parts = tokenizer.special_tokens, written_bpe(tokenizer)
    elif isinstance(tokenizer, CharTokenizer):
        parts = written_characters(tokenizer)
    elif isinstance(tokenizer, UnigramTokenizer):
        parts = written_unigram(tokenizer)
    elif isinstance(tokenizer, WordPieceTokenizer):
        parts = written_wordpiece(tokenizer)
    else:
        raise InexpressibleError(
            "where spaces stand between words depends on the words before, which tokenizer.json "
            "cannot say: train with --tokenizer char, bpe, unigram or wordpiece"
        )
    added = [
        {"id": index, "content": text, **ADDED_TOKEN, "special": True}
        for text, index in sorted(special.items(), key=lambda item: item[1])
    ]
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    if begin:
        parts["post_processor"] = before_a_text([(text, i) for i in begin for text, j in
                                                 special.items() if i == j])  # fmt: skip
    write_json(path, {**head, "normalizer": None, "post_processor": None, **parts})


def before_a_text(tokens: list[tuple[str, int]]) -> dict:
    """The post-processor that puts these in front of a text, or of each of two."""
    texts = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    first, second = (
        [*({"SpecialToken": {"id": text, "type_id": number}} for text, _ in tokens), texts[number]]
        for number in range(2)
    )
    listed = {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in tokens}
    template = {"single": first, "pair": first + second, "special_tokens": listed}
    return {"type": "TemplateProcessing", **template}


def written_bpe(tokenizer: BPETokenizer) -> dict:
    """The parts of a tokenizer.json for both kinds of BPE."""
    sentencepiece = isinstance(tokenizer, SentencePieceBPE)
    if sentencepiece:
        prefix = tokenizer.prefix
        parts = {
            "normalizer": PREPEND if prefix == "prepend" else None,
            "pre_tokenizer": None if prefix == "prepend" else metaspace(prefix),
            "decoder": sentencepiece_decoder(prefix),
        }
    else:
        parts = {
            "pre_tokenizer": written_pre_tokenizer(tokenizer),
            "decoder": {**BYTE_LEVEL, "use_regex": True},
        }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": sentencepiece,
        "ignore_merges": tokenizer.ignore_merges,
        "vocab": written_vocabulary(tokenizer),
        "merges": written_merges(tokenizer),
    }
    return {**parts, "model": model}


def isolated(pattern: str) -> dict:
    """The pre-tokenizer that cuts out what a pattern finds."""
    split = {"type": "Split", "pattern": {"Regex": pattern}}
    return {**split, "behavior": "Isolated", "invert": False}


def written_characters(tokenizer: CharTokenizer) -> dict:
    """Characters: words of one letter. An unknown one is an error there as well."""
    vocab = {token: index for index, token in enumerate(tokenizer.tokens)}
    return {
        "pre_tokenizer": isolated(r"[\s\S]"),
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<no such character>"},
    }


def written_unigram(tokenizer: UnigramTokenizer) -> dict:
    """Only the text "<0x41>" itself has other ids there: that of a byte token."""
    vocab = [list(pair) for pair in zip(tokenizer.tokens, tokenizer.log_probs, strict=True)]
    fallback = bool(tokenizer.byte_ids)
    unk_id = tokenizer.unk_id  # the library wants one even where bytes stand in
    unk_id = tokenizer.byte_ids[0] if unk_id is None and fallback else unk_id
    steps = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "pre_tokenizer": isolated(GPT2_PATTERN),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": fallback},
    }


def written_wordpiece(tokenizer: WordPieceTokenizer) -> dict:
    basic, vocab = tokenizer.basic, {token: i for i, token in enumerate(tokenizer.tokens)}
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": basic.clean_text,
        "handle_chinese_chars": basic.handle_chinese_chars,
        "strip_accents": basic.strip_accents,
        "lowercase": basic.lowercase,
    }
    model = {
        "type": "WordPiece",
        "unk_token": UNKNOWN,
        "continuing_subword_prefix": GOES_ON,
        "max_input_chars_per_word": MAX_WORD,
        "vocab": vocab,
    }
    return {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": GOES_ON, "cleanup": True},
        "model": model,
    }


def written_pre_tokenizer(tokenizer: BPETokenizer) -> dict:
    """Patterns and prefix_space as `read_pre_tokenizer` reads them."""
    *patterns, last = tokenizer.patterns or [None]
    use_regex = last == GPT2_PATTERN
    if last and not use_regex:
        patterns.append(last)
    if patterns and tokenizer.prefix_space:
        raise UserError("tokenizer.json cannot hold prefix_space with these patterns: leave it out")
    steps = [DIGITS if pattern == r"\p{N}" else isolated(pattern) for pattern in patterns]
    steps.append({**BYTE_LEVEL, "add_prefix_space": tokenizer.prefix_space, "use_regex": use_regex})
    return {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]


# ---------------------------------------------------------------------------------------------
# tokenizer.model
# ---------------------------------------------------------------------------------------------

NORMAL, UNKNOWN_PIECE, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
SPECIAL = (UNKNOWN_PIECE, CONTROL, USER_DEFINED)


def fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a message of Google's protocol buffers: number, value.

    >>> list(fields(bytes([8, 150, 1, 18, 2, 104, 105])))
    [(1, 150), (2, b'hi')]
    """

    def varint() -> int:  # seven bits a byte, the lowest first; the eighth: there is more
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value

    at = 0
    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        value = data[at : at + size]
        if len(value) < size:
            raise ValueError
        at += size
        yield number, struct.unpack("<f", value)[0] if kind == 5 else value


def read_sentencepiece(path: Path) -> dict:
    """SentencePiece's tokenizer.model -> arguments of SentencePieceBPE.

    Raises UserError for a missing or damaged file, and for what is not supported: only BPE with
    bytes, on the text as it is, as Llama 2's. No merges are stored: any two pieces that make a
    third are one, and the third's score says when. Pieces that its user defined are special
    tokens here; with a dummy prefix, which they would get as well, they are refused.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its name") from None
    try:
        pieces, trainer, normalizer = [], {}, {}
        for number, value in fields(data):
            if number == 1:
                piece = {2: 0.0, 3: NORMAL, **dict(fields(value))}
                pieces.append((piece[1].decode(), piece[2], piece[3]))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(fields(value))
        vocab = {text: index for index, (text, _, _) in enumerate(pieces)}
        if len(vocab) != len(pieces) or not pieces:
            raise ValueError
    except (LookupError, ValueError, TypeError, AttributeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged or no tokenizer.model: take a whole file") from None
    kinds, dummy = {kind for *_, kind in pieces}, normalizer.get(3, 1)
    strange = trainer.get(24) or UNUSED in kinds or (dummy and USER_DEFINED in kinds)
    unchanged = not normalizer.get(2) and not normalizer.get(4, 1) and normalizer.get(5, 1)
    if trainer.get(3) != 2 or not trainer.get(35) or strange or not unchanged:
        raise UserError(
            f"{path}: only BPE with byte fall-back on unchanged text is supported: take another"
        )
    merges = []
    for text, score, kind in pieces:
        if kind == NORMAL:
            cuts = ((text[:at], text[at:]) for at in range(1, len(text)))
            pairs = [(vocab[a], vocab[b]) for a, b in cuts if a in vocab and b in vocab]
            merges += [(-score, pair) for pair in sorted(pairs)]
    merges.sort(key=lambda merge: merge[0])
    return {
        "tokens": list(vocab),
        "merges": [pair for _, pair in merges],
        "special_tokens": {text: vocab[text] for text, _, kind in pieces if kind in SPECIAL},
        "prefix": "prepend" if dummy else "never",
    }
