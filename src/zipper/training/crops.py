"""Crops of recordings that a codec is trained on, with their semantic units."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import IterableDataset
from tqdm import tqdm

from zipper.codecs.semantic import HOP, SemanticEncoder
from zipper.config import TrainCodecConfig
from zipper.corpora.utterance import Utterance
from zipper.disk import write_atomic
from zipper.errors import DataError
from zipper.training.codebooks import k_means

GAIN = 10.0  # input scale: speech has an RMS near 0.05, the model's input near 0.5
FITTED_STATES, KMEANS_ROUNDS = 200_000, 20  # of the centroids of semantic units
SMALLEST = 1e-3  # deviation of a state's dimension, which may be constant
FITTED = ("mean", "deviation", "centroids")  # buffers of a semantic encoder

Crop = tuple[Tensor, Tensor | None]  # waves float32 [B, n], multiplied by GAIN; semantic units int64 [B, F]


class Crops(IterableDataset):
    """Random crops of a corpus that is kept in memory as int16: batches as a function of (seed, step).

    semantic: encoder whose units the crops have too; they then start at whole frames. If it has no centroids,
    they are fitted to the corpus. kept: file of centroids and units, from which a later run reads them.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        cfg: TrainCodecConfig,
        seed: int,
        semantic: SemanticEncoder | None = None,
        kept: Path | None = None,
    ) -> None:
        self.cfg, self.seed, self.start = cfg, seed, 0
        self.length = int(cfg.seconds * cfg.sample_rate)
        waves = (u.wave(cfg.sample_rate) for u in tqdm(utterances, desc="read audio", mininterval=1.0))
        self.waves = [(w * 32767).round().to(torch.int16) for w in waves if len(w) > self.length]
        if not self.waves:
            raise DataError(f"No utterance is longer than train_codec.seconds={cfg.seconds}.")
        self.units: list[Tensor] = [] if semantic is None else _kept_units(semantic, self.waves, seed, kept)

    def __iter__(self) -> Iterator[Crop]:
        return self.crops(self.seed, self.start)

    def crops(self, seed: int, start: int = 0) -> Iterator[Crop]:
        """Infinite batches from step `start` on."""
        hop = math.prod(self.cfg.ratios) if self.units else 1
        for step in itertools.count(start):
            draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows, units = [], []
            for index in torch.randint(len(self.waves), (self.cfg.batch,), generator=draw).tolist():
                wave = self.waves[index]
                first = int(torch.randint(len(wave) - self.length, (1,), generator=draw)) // hop * hop
                rows.append(wave[first : first + self.length])
                if self.units:
                    units.append(self.units[index][first // hop :][: self.length // hop])
            yield torch.stack(rows).float() * (GAIN / 32767), torch.stack(units) if units else None


def _kept_units(
    semantic: SemanticEncoder, waves: Sequence[Tensor], seed: int, file: Path | None
) -> list[Tensor]:
    """`fitted_units`, once: an interrupted training reads what it wrote."""
    lengths = [math.ceil(len(wave) / HOP) for wave in waves]
    if file is not None and file.exists():
        kept = load_file(file)
        if len(kept["units"]) != sum(lengths):
            raise DataError(
                f"{file} holds {len(kept['units'])} units, but these recordings have {sum(lengths)}: it is "
                "of other training data. Choose another name (name=...), or delete that folder."
            )
        for name in FITTED:
            semantic.get_buffer(name).copy_(kept[name])
        return list(kept["units"].long().split(lengths))
    units = fitted_units(semantic, waves, seed)
    if file is not None:
        kept = {name: semantic.get_buffer(name) for name in FITTED} | {"units": torch.cat(units).int()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, save(kept))
    return units


def fitted_units(semantic: SemanticEncoder, waves: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Units int64 [F] of each wave int16 [n]. Unless they are known, fits the centroids by k-means first, to
    FITTED_STATES or a little more, those of random waves."""
    centroids = semantic.get_buffer("centroids")
    bar = tqdm(total=len(waves), desc="semantic states", mininterval=1.0)

    def states(index: int) -> Tensor:
        bar.update()
        return semantic.states(waves[index].float() / 32767)

    kept: dict[int, Tensor] = {}
    if not centroids.any():
        draw, count = torch.Generator().manual_seed(seed), 0
        for index in torch.randperm(len(waves), generator=draw).tolist():
            if count >= FITTED_STATES:
                break
            kept[index] = states(index)
            count += len(kept[index])
        found = torch.cat([*kept.values()])
        # All rounded as they will be saved.
        semantic.get_buffer("mean").copy_(found.mean(0).half())
        semantic.get_buffer("deviation").copy_(found.std(0).clamp(min=SMALLEST).half())
        centroids.copy_(k_means(semantic.standardised(found), len(centroids), KMEANS_ROUNDS).half())
    with bar:
        return [semantic.units(kept[i] if i in kept else states(i)) for i in range(len(waves))]
