"""Generation of one segment whose content is handed out while it is generated."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from zipper.config import SamplingConfig
from zipper.data.documents import Document
from zipper.data.statistics import DatasetStatistics
from zipper.generation.generate import GREEDY, SegmentGenerator, content_cap, prefill
from zipper.generation.order import check_prompts
from zipper.generation.sampling import check_seed
from zipper.generation.stopping import StoppingCriteria
from zipper.models.multimodal import MultimodalModel


@torch.no_grad()
def stream(
    model: MultimodalModel,
    prompt: Document,
    name: str,
    statistics: DatasetStatistics,
    decode: dict[str, SamplingConfig] | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Content int64 [Q, F] of the segment of modality `name` after a prompt, in pieces of one frame, as soon
    as all of its codebooks are known. Joined, they are what `generate` generates.

    Raises ConfigError as `check_prompts` and `check_seed`, and on beam search or candidates, the best of
    which is known at the end.
    """
    check_prompts(model, [prompt], [name])
    check_seed(seed)
    sampling = (decode or {}).get(name, GREEDY)
    sampling.check_incremental(name)
    source = prompt.segments[-1]
    cache = prefill(model, [prompt], {name}, guided=sampling.guided)
    cache.set_compiled(sampling.compile)
    generator = SegmentGenerator(cache, name, statistics.max_repeats(name))
    caps = np.array([content_cap(model, statistics, name, source)])
    criteria = StoppingCriteria(generator.layout, [0], caps, generator.max_repeats)
    outputs, sent = [], 0
    for tokens in generator.timesteps(criteria, sampling, [f"{prompt.id}/0"], seed):
        outputs.append(tokens[0].cpu())
        content = generator.layout.complete(torch.stack(outputs))
        if content.shape[1] > sent:
            yield content[:, sent:]
            sent = content.shape[1]
