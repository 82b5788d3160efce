"""Continuous batching: prompts join a batch, and finished segments leave it, between two timesteps (as Orca,
OSDI 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from zipper.config import SamplingConfig
from zipper.data.documents import Document
from zipper.data.statistics import DatasetStatistics
from zipper.generation.cache import KVCache
from zipper.generation.cache_rows import join, select, trim
from zipper.generation.ctc import doubts
from zipper.generation.generate import GREEDY, GenerationOutput, content_cap, finished, prefill
from zipper.generation.guidance import next_logits
from zipper.generation.sampling import sample, uniform_noise
from zipper.generation.single_step import SingleStep
from zipper.generation.stopping import LogitsProcessor, StoppingCriteria
from zipper.modalities.layout import TokenLayout
from zipper.models.multimodal import MultimodalModel


@dataclass(eq=False)
class Running:
    """A segment that is being generated. tokens: int64 [Q] each, BOS first. output: once it has ended.
    wanted: False makes it leave unfinished."""

    noise: Tensor  # [timesteps, Q]
    tokens: list[Tensor]
    doubt: str  # of the output
    output: GenerationOutput | None = None
    wanted: bool = True


class ContinuousBatch:
    """Segments of modality `name`, each generated from the last segment of its prompt, as `generate` does it
    for the prompt alone. The model must not change."""

    def __init__(
        self,
        model: MultimodalModel,
        name: str,
        statistics: DatasetStatistics,
        decode: dict[str, SamplingConfig] | None = None,
        seed: int = 0,
    ) -> None:
        """Raises ConfigError on beam search and on candidates."""
        self.model, self.name, self.statistics, self.seed = model, name, statistics, seed
        self.sampling = (decode or {}).get(name, GREEDY)
        self.sampling.check_incremental(name)
        self.layout = TokenLayout.of(model.tower(name).cfg)
        self.processor = LogitsProcessor(self.layout, next(model.parameters()).device)
        self.max_repeats = statistics.max_repeats(name)
        self.rows: list[Running] = []
        self.single_steps: dict[str, SingleStep] = {}  # made once
        self.cache: KVCache | None = None
        self.criteria: StoppingCriteria

    @torch.no_grad()
    def add(self, prompts: Sequence[Document]) -> list[Running]:
        """Let prompts join. They must have passed `check_prompts`."""
        name, count = self.name, len(prompts)
        cache = prefill(self.model, prompts, {name}, guided=self.sampling.guided)
        caps = [content_cap(self.model, self.statistics, name, one.segments[-1]) for one in prompts]
        criteria = StoppingCriteria(self.layout, [*range(count)], np.array(caps), self.max_repeats)
        books = self.layout.codebooks
        noise = uniform_noise([f"{one.id}/0" for one in prompts], self.seed, max(caps) + books + 1, books)
        start = torch.full((books,), self.layout.bos)
        noise, doubted = noise.to(self.processor.forbidden.device), doubts(cache, name)[:: cache.rows_each]
        rows = [Running(own, [start], doubt) for own, doubt in zip(noise, doubted, strict=True)]
        if self.cache is None:
            self.cache, self.criteria, self.rows = cache, criteria, rows
            cache.single_steps = self.single_steps
            cache.set_compiled(self.sampling.compile)
            cache.graph = False  # rows come and go
        else:
            join(self.cache, cache)
            self.criteria.join(criteria)
            self.rows = [*self.rows, *rows]
        return rows

    @torch.no_grad()
    def step(self) -> list[Running]:
        """Generate one timestep of every row. Returns the rows that left."""
        assert self.cache is not None
        device = self.cache.multimodal.device
        tokens = torch.stack([row.tokens[-1] for row in self.rows]).to(device)
        here = torch.ones(len(self.rows), dtype=torch.bool, device=device)
        logits = next_logits(self.cache, self.name, tokens, here, self.sampling.guidance)
        logits = self.processor(logits, self.criteria.kinds())
        steps = self.criteria.timestep.tolist()
        uniform = torch.stack([row.noise[step] for row, step in zip(self.rows, steps, strict=True)])
        tokens = self.layout.with_fillers(sample(logits, self.sampling, uniform)).cpu()
        for row, latest in zip(self.rows, tokens, strict=True):
            row.tokens.append(latest)
        self.criteria.add(tokens[:, 0].numpy())
        stays = self.criteria.open_rows & np.array([row.wanted for row in self.rows])
        if stays.all():
            return []
        return self._leave(stays)

    def _leave(self, stays: np.ndarray) -> list[Running]:
        """Remove the rows that do not stay, bool [B]."""
        assert self.cache is not None
        for at in np.flatnonzero(~stays & ~self.criteria.open_rows).tolist():
            ended, looping, cap = (
                one[at] for one in (self.criteria.ended, self.criteria.looping, self.criteria.caps)
            )
            tokens = torch.stack(self.rows[at].tokens)
            output = finished(self.name, self.layout, tokens, int(ended), bool(looping), int(cap))
            self.rows[at].output = replace(output, doubt=self.rows[at].doubt)
        left = [row for row, keep in zip(self.rows, stays, strict=True) if not keep]
        kept = np.flatnonzero(stays)
        self.rows = [self.rows[at] for at in kept]
        if not self.rows:
            self.cache = None
            return left
        self.criteria.select(kept)
        each = self.cache.rows_each
        rows = torch.from_numpy(kept[:, None] * each + np.arange(each)).flatten()
        select(self.cache, rows.to(self.cache.multimodal.device))
        trim(self.cache)
        return left
