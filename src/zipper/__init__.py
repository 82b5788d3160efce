"""Zipper: pre-trained decoder towers, one a modality, joined by gated cross-attention (arXiv 2405.18669).

>>> model = zipper.Zipper.from_pretrained("assets/zipped")
>>> speech = model.synthesize("why did helen give the blue wallet to the quiet singer", "helen.wav")
>>> model.transcribe("helen.wav")
'why did helen give the blue wallet to the quiet singer'

Training: `Zipper.from_towers`, `ZipperData`, `ZipperModule`, and a Trainer of your own. What is imported is
loaded when it is first used, so that inference needs no Lightning.

Shapes, everywhere in this package:

B batch, T tokens of a tower (Tq, Tk: of the query and the source tower), Q codebooks (1 for text), D width,
C width of another tower, H heads, K head size, V vocabulary, F codec frames, n samples.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zipper.errors import ConfigError, DataError, TrainingError, ZipperError
    from zipper.generation.generator import GeneratedSegment
    from zipper.generation.word_times import Word
    from zipper.generation.zipper import Zipper
    from zipper.modalities.base import Modality
    from zipper.modalities.layout import TokenLayout
    from zipper.training.data import ZipperData
    from zipper.training.module import ZipperModule

__version__ = "0.1.0"
_MODULES = {
    "ConfigError": "zipper.errors",
    "DataError": "zipper.errors",
    "TrainingError": "zipper.errors",
    "ZipperError": "zipper.errors",
    "Zipper": "zipper.generation.zipper",
    "GeneratedSegment": "zipper.generation.generator",
    "Word": "zipper.generation.word_times",
    "Modality": "zipper.modalities.base",
    "TokenLayout": "zipper.modalities.layout",
    "ZipperData": "zipper.training.data",
    "ZipperModule": "zipper.training.module",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'zipper' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
