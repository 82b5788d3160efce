"""The corpus that a config names, as utterances."""

import os
from pathlib import Path

from zipper.corpora.spoken import spoken_corpus
from zipper.corpora.utterance import Utterance
from zipper.schema import RunConfig


def open_corpus(cfg: RunConfig) -> list[Utterance]:
    """All utterances of all splits; what is not there yet is made first, on all cores."""
    return spoken_corpus(cfg.data, Path(cfg.build) / "corpora", os.cpu_count() or 1)
