"""Tokens of a modality: delay pattern, token layout, text normalisation, tokenizer."""
