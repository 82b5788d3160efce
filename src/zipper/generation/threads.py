"""Number of threads of generation on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zipper.models.multimodal import MultimodalModel

ROWS, PARAMETERS = 4, 20_000_000  # up to which a second thread gains nothing


@contextmanager
def few_threads(model: MultimodalModel, rows: int) -> Iterator[None]:
    """One thread for a few rows of a small model: more are no faster, and on a machine that does something
    else they wait for each other (ten times slower, LOG.md). rows: generated together."""
    threads = torch.get_num_threads()
    one = rows <= ROWS and sum(parameter.numel() for parameter in model.parameters()) <= PARAMETERS
    try:
        if one and threads > 1:
            torch.set_num_threads(1)
        yield
    finally:
        if one and threads > 1:
            torch.set_num_threads(threads)
