"""Tokenizers: text to numbers and back, one lesson a file, one interface for all.

tokenizer = CharTokenizer.train(text)
ids = tokenizer.encode("To be")            # list[int]
text = tokenizer.decode(ids)               # str
tokenizer.vocab_size                       # ids run from 0 to vocab_size - 1
state = tokenizer.state_dict()             # plain types: travels inside a checkpoint
tokenizer = tokenizer_from_state_dict(state)
"""

from shared import UserError
from shared.utils.tokenizers.base import Tokenizer
from shared.utils.tokenizers.bpe import BPETokenizer
from shared.utils.tokenizers.char import CharTokenizer
from shared.utils.tokenizers.sentencepiece import SentencePieceBPE
from shared.utils.tokenizers.unigram import UnigramTokenizer
from shared.utils.tokenizers.word import WordTokenizer
from shared.utils.tokenizers.wordpiece import WordPieceTokenizer

TOKENIZERS = {
    "char": CharTokenizer,
    "word": WordTokenizer,
    "bpe": BPETokenizer,
    "sentencepiece-bpe": SentencePieceBPE,
    "wordpiece": WordPieceTokenizer,
    "unigram": UnigramTokenizer,
}

__all__ = [
    "BPETokenizer",
    "CharTokenizer",
    "SentencePieceBPE",
    "Tokenizer",
    "UnigramTokenizer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "tokenizer_from_state_dict",
]


def tokenizer_from_state_dict(state: dict) -> Tokenizer:
    """The tokenizer whose `state_dict()` this is. Raises UserError for anything else."""
    kind = state.get("type") if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise UserError(f"unknown tokenizer {kind!r}: expected one of {known}")
    return TOKENIZERS[kind].from_state_dict(state)
