"""Zipper: pre-trained decoder towers, one a modality, joined by gated cross-attention (arXiv 2405.18669).

Shapes, everywhere in this package:

B batch, T tokens of a tower (Tq, Tk: of the asking and the asked one), Q codebooks (1 for text), D width,
C width of another tower, H heads, K head size, V vocabulary, F codec frames, n samples.
"""

__version__ = "0.1.0"
