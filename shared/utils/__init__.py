"""Tokenizers and plots."""
