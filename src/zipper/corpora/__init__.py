"""Corpora: turn a folder or a recipe into utterances (id, audio file, text, speaker, split)."""
