"""Codecs: waves to codes and back."""
