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

TOKENIZERS = {"char": CharTokenizer, "bpe": BPETokenizer}

__all__ = ["BPETokenizer", "CharTokenizer", "tokenizer_from_state_dict"]


def tokenizer_from_state_dict(state: dict) -> Tokenizer:
    """The tokenizer whose `state_dict()` this is. Raises UserError for anything else."""
    kind = state.get("type") if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise UserError(f"unknown tokenizer {kind!r}: expected one of {known}")
    return TOKENIZERS[kind].from_state_dict(state)
