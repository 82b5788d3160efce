"""Corpora: from a folder or a recipe to utterances (id, audio file, text, speaker, split)."""
