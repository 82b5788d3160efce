"""Autoregressive generation: prompts and an order of output modalities to segments (paper 3.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zipper.config import SamplingConfig
from zipper.data.batches import collate
from zipper.data.documents import Document, Segment
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError
from zipper.generation.beam import beam_search
from zipper.generation.cache import KVCache
from zipper.generation.candidates import generate_best
from zipper.generation.ctc import ctc_scorer, doubts
from zipper.generation.guidance import next_logits, with_unprompted
from zipper.generation.order import check_prompts
from zipper.generation.sampling import check_seed, sample, uniform_noise
from zipper.generation.stopping import LogitsProcessor, StoppingCriteria
from zipper.modalities.base import check_searches
from zipper.modalities.delay import extra_timesteps
from zipper.modalities.layout import TokenLayout
from zipper.models.multimodal import MultimodalModel

MAX_SEGMENTS = 8  # segments per prompt with order `auto`
FinishReason = Literal["stop", "length", "repetition"]
GREEDY = SamplingConfig()


@dataclass(frozen=True)
class GenerationOutput:
    """Generated segment.

    tokens int64 [S, Q] with BOS and EOS; content int64 [Q, F]: codes, or text ids with Q = 1. finish_reason:
    `stop` (EOS), `length` (its limit) or `repetition`. doubt: why a model with a head of CTC doubts it
    (`generation.ctc`); empty if it does not.
    """

    modality: str
    tokens: Tensor
    content: Tensor
    finish_reason: FinishReason
    doubt: str = ""

    def as_prompt(self) -> Segment:
        """The segment as a prompt for the next one. None of its tokens is scored."""
        return Segment(self.modality, self.tokens, torch.zeros_like(self.tokens, dtype=torch.bool), 0.0)


@torch.no_grad()
def generate(
    model: MultimodalModel,
    prompts: Sequence[Document],
    order: Sequence[str] | Literal["auto"],
    statistics: DatasetStatistics,
    decode: dict[str, SamplingConfig] | None = None,
    seed: int = 0,
) -> list[list[GenerationOutput]]:
    """Generate one segment of each modality of `order` after each prompt.

    order: modalities, or `auto`: after each segment the model chooses the next modality or stops, at most
    MAX_SEGMENTS times. decode: sampling settings by modality; default greedy. The output of a prompt depends
    on the prompt, its id and the seed, not on the rest of the batch.

    Each segment is generated from the preceding segment alone, with a new cache: training documents are pairs
    of segments, and a model does not generalise to more of them in one cache (LOG.md).

    Raises ConfigError as `check_prompts` and `check_searches`, on a negative seed, and on candidates with
    `auto`.
    """
    check_prompts(model, prompts, order)
    check_searches(decode or {}, model.cfg.codebooks)
    check_seed(seed)
    several = [name for name, how in (decode or {}).items() if how.candidates > 1]
    if order == "auto":
        _check_auto(decode or {})
    if decode and any(name in order for name in several):

        def sample(
            many: list[Document], name: str, single: dict[str, SamplingConfig]
        ) -> list[GenerationOutput]:
            return [one for [one] in generate(model, many, [name], statistics, single, seed)]

        return generate_best(model, prompts, order, decode, sample)
    out: list[list[GenerationOutput]] = [[] for _ in prompts]
    hops = {i: one.segments[-1] for i, one in enumerate(prompts)}  # source segment of each prompt
    chosen: dict[int, str] = {}  # next modality by prompt, with `auto`
    for turn in range(MAX_SEGMENTS if order == "auto" else len(order)):
        rows = list(hops)
        sources = [Document(prompts[i].id, [hops[i]], prompts[i].multimodal) for i in rows]
        answers = set(model.names) if order == "auto" else {order[turn]}
        guided = any((decode or {}).get(name, GREEDY).guided for name in answers)
        cache = prefill(model, sources, answers, guided)
        if order == "auto" and turn == 0:
            chosen = _next_modalities(cache, {i: hops[i].modality for i in rows}, rows)
        following = chosen if order == "auto" else dict.fromkeys(rows, order[turn])
        caps = {
            name: [content_cap(model, statistics, name, hops[i]) for i in rows]
            for name in {*following.values()}
        }
        ids = [f"{prompts[i].id}/{turn}" for i in rows]
        for name, most in caps.items():
            mine = [at for at, i in enumerate(rows) if following.get(i) == name]
            generator, sampling = (
                SegmentGenerator(cache, name, statistics.max_repeats(name)),
                (decode or {}).get(name, GREEDY),
            )
            doubted = doubts(cache, name)[:: cache.rows_each]
            segments = generator.generate(mine, most, sampling, ids, seed, append_last=order == "auto")
            for at, segment in zip(mine, segments, strict=True):
                out[rows[at]].append(replace(segment, doubt=doubted[at]))
                hops[rows[at]] = segment.as_prompt()
        if order == "auto":
            chosen = _next_modalities(cache, following, rows)
            hops = {i: hops[i] for i in chosen}
        if not hops:
            break
    return out


def _check_auto(decode: dict[str, SamplingConfig]) -> None:
    """Raises ConfigError on settings that need a given order."""
    guided = [name for name, how in decode.items() if how.guided]
    for name, how in decode.items():
        if how.candidates > 1:
            raise ConfigError(
                f"decode.{name}.candidates with order=auto: candidates are chosen for a given order. Leave "
                "it out, or name the modalities."
            )
        if how.searches and guided:
            raise ConfigError(
                f"decode.{name}: beam search with order=auto does not go with decode.{guided[0]}.guidance. "
                "Leave one of them out, or name the modalities."
            )


def _next_modalities(cache: KVCache, latest: dict[int, str], rows: list[int]) -> dict[int, str]:
    """Next modality of each row, by the next-modality head of its latest tower, restricted to trained
    directions. Rows that stop are left out.

    rows: prompt index of each prompt in the cache.
    """
    model, out = cache.model, dict[int, str]()
    for name in {*latest.values()}:
        trained = [(other, name) in model.used for other in model.names]
        forbidden = ~torch.tensor([*trained, True], device=cache.multimodal.device)  # the last choice: stop
        states = cache.last_states[name][:: cache.rows_each]
        logits = model.next_modality_heads[name](states).masked_fill(forbidden, float("-inf"))
        picks = logits.argmax(-1).tolist()
        for at, i in enumerate(rows):
            if latest.get(i) == name and picks[at] < len(model.names):
                out[i] = model.names[picks[at]]
    return dict(sorted(out.items()))


def content_cap(model: MultimodalModel, statistics: DatasetStatistics, name: str, source: Segment) -> int:
    """Maximum content length of a segment generated after `source`."""
    return statistics.cap(name, source.modality, _length(model, source.modality, source.tokens))


class SegmentGenerator:
    """Generates one segment of one modality for rows of a cache."""

    def __init__(self, cache: KVCache, name: str, max_repeats: list[int]) -> None:
        self.cache, self.name = cache, name
        self.tower = cache.model.tower(name)
        self.layout = TokenLayout.of(self.tower.cfg)
        self.device = cache.multimodal.device
        self.max_repeats = max_repeats

    def generate(
        self,
        rows: list[int],
        caps: list[int],
        sampling: SamplingConfig,
        ids: list[str],
        seed: int,
        append_last: bool,
    ) -> list[GenerationOutput]:
        """Generate a segment for each of `rows`.

        caps: maximum content length of every row of the cache. ids, seed: source of randomness. append_last:
        also append the last token to the cache, so that generation can continue from it.
        """
        self.cache.set_compiled(sampling.compile)
        if sampling.searches:
            ctc = (ctc_scorer(self.cache, self.name), sampling.ctc) if sampling.ctc else None
            tokens, ended = beam_search(
                self.cache, self.name, self.layout, rows, caps, sampling.beams, append_last, ctc
            )
            return self._segments(rows, tokens, ended, np.zeros(len(ended), dtype=bool), caps)
        criteria = StoppingCriteria(self.layout, rows, np.array(caps), self.max_repeats)
        fresh = criteria.open_rows
        outputs = []
        for tokens in self.timesteps(criteria, sampling, ids, seed):
            outputs.append(tokens)
            fresh = criteria.open_rows
        if append_last:
            next_logits(self.cache, self.name, tokens, self._flags(fresh), sampling.guidance)
        return self._segments(rows, torch.stack(outputs, 1), criteria.ended, criteria.looping, caps)

    def timesteps(
        self, criteria: StoppingCriteria, sampling: SamplingConfig, ids: list[str], seed: int
    ) -> Iterator[Tensor]:
        """Tokens int64 [B, Q] of one timestep after another, BOS first, until every row has ended.
        `criteria` know a timestep once the next one is asked for."""
        count, books = len(criteria.caps), self.layout.codebooks
        most = int(criteria.caps.max()) + books + 1  # timesteps
        self.cache.reserve(self.name, most)
        uniform = uniform_noise(ids, seed, most, books).to(self.device)
        processor = LogitsProcessor(self.layout, self.device)
        tokens = torch.full((count, books), self.layout.bos, device=self.device)
        fresh = criteria.open_rows
        yield tokens
        while criteria.open_rows.any():
            logits = next_logits(self.cache, self.name, tokens, self._flags(fresh), sampling.guidance)
            logits = processor(logits, criteria.kinds())  # [B, Q, V]
            tokens = self.layout.with_fillers(sample(logits, sampling, uniform[:, int(criteria.timestep[0])]))
            fresh = criteria.open_rows
            yield tokens
            criteria.add(tokens[:, 0].cpu().numpy())

    def _flags(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device)

    def _segments(
        self, rows: list[int], tokens: Tensor, ended: np.ndarray, looping: np.ndarray, caps: list[int]
    ) -> list[GenerationOutput]:
        tokens, name, layout = tokens.cpu(), self.name, self.layout
        return [
            finished(name, layout, tokens[row], int(ended[row]), bool(looping[row]), caps[row])
            for row in rows
        ]


def finished(
    name: str, layout: TokenLayout, tokens: Tensor, ended: int, looping: bool, cap: int
) -> GenerationOutput:
    """Segment of tokens int64 [S, Q], BOS first; those after its end are dropped. ended: timestep of its
    EOS."""
    own = tokens[: int(layout.last_timestep(np.array(ended))) + 1]
    reason: FinishReason = "repetition" if looping else "length" if ended == cap + 1 else "stop"
    return GenerationOutput(name, own, layout.content(own), reason)


def prefill(
    model: MultimodalModel,
    prompts: Sequence[Document],
    query_towers: set[str] | None = None,
    guided: bool = False,
) -> KVCache:
    """Cache filled with the last segment of each prompt. query_towers: towers that will attend to it;
    default all. guided: with a row after each that has no prompt, for guidance."""
    device = next(model.parameters()).device
    prompts = with_unprompted(prompts) if guided else prompts
    cache = KVCache(model, torch.tensor([prompt.multimodal for prompt in prompts], device=device))
    cache.query_towers = query_towers or cache.query_towers
    cache.rows_each = 2 if guided else 1
    for name in model.names:
        parts = [
            Document(p.id, [s for s in p.segments[-1:] if s.modality == name], p.multimodal) for p in prompts
        ]
        if any(part.segments for part in parts):
            stream = collate(parts, {name: model.cfg.towers[name].codebooks}).streams[name]
            valid = stream.valid.to(device)
            states = cache.extend(name, stream.tokens.to(device), valid)
            if model.ctc is not None:
                cache.states[name] = states, valid
    return cache


def _length(model: MultimodalModel, name: str, tokens: Tensor) -> int:
    """Content length of a segment in text tokens or frames; 0 for an incomplete one."""
    tower = model.cfg.towers[name]
    return max(0, len(tokens) - extra_timesteps(tower.codebooks, tower.pattern))
