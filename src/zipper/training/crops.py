"""Crops of recordings that a codec is trained on, with their semantic units."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from tqdm import tqdm

from zipper.codecs.semantic import SemanticEncoder
from zipper.config import TrainCodecConfig
from zipper.corpora.utterance import Utterance
from zipper.data.skipped import Skipped, check_budget, list_skipped
from zipper.disk import write_atomic
from zipper.errors import DataError
from zipper.modalities.normalise import unreadable
from zipper.training.semantic import semantic_units, step_seed

GAIN = 10.0  # input scale: speech has an RMS near 0.05, the model's input near 0.5

RECORDINGS = "recordings.sha256"

Crop = tuple[Tensor, Tensor | None]  # waves float32 [B, n], multiplied by GAIN; semantic units int64 [B, F]


class Crops(IterableDataset):
    """Random crops of a corpus that is kept in memory as int16: batches as a function of (seed, step).

    semantic: encoder whose units the crops have too; they then start at whole frames. If it has no centroids,
    it is fitted to the corpus. folder: keeps that fit and the units, from which a later run goes on.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        cfg: TrainCodecConfig,
        seed: int,
        semantic: SemanticEncoder | None = None,
        folder: Path | None = None,
    ) -> None:
        self.cfg, self.seed, self.start = cfg, seed, 0
        self.length = round(cfg.seconds * cfg.sample_rate)
        found, skipped = list[tuple[str | None, Tensor]](), list[Skipped]()
        for u in tqdm(utterances, desc="read audio", mininterval=1.0):
            try:
                if cfg.semantic_ctc and (reason := unreadable(u.text or "")):
                    raise DataError(f"Utterance {u.id}: its text {reason}")
                wave = u.wave(cfg.sample_rate)
            except DataError as error:
                skipped.append(Skipped(id=u.id, reason=str(error)))
            else:
                if len(wave) >= self.length:
                    found.append((u.text, (wave.clamp(-1, 1) * 32767).round().to(torch.int16)))
        if skipped:
            folder = folder or Path()
            list_skipped(folder / "recordings.skipped", skipped)
            check_budget(folder, skipped, len(utterances))
            print(f"{len(skipped)} recordings were skipped: {folder}/recordings.skipped has the reasons")
        self.waves = [wave for _, wave in found]
        if not self.waves:
            raise DataError(f"All utterances are shorter than train_codec.seconds={cfg.seconds}.")
        if short := len(utterances) - len(skipped) - len(found):
            print(f"{short} recordings are shorter than train_codec.seconds={cfg.seconds}, and left out")
        if folder is not None:
            _check_same(folder / RECORDINGS, found, texts=bool(cfg.semantic_ctc))
        self.units: list[Tensor] = []
        if semantic is not None:
            texts = [text or "" for text, _ in found]
            self.units = semantic_units(semantic, self.waves, texts, cfg.semantic_ctc, seed, folder)

    def __iter__(self) -> Iterator[Crop]:
        return self.crops(self.seed, self.start)

    def crops(self, seed: int, start: int = 0) -> Iterator[Crop]:
        """Infinite batches from step `start` on."""
        hop = math.prod(self.cfg.ratios) if self.units else 1
        for step in itertools.count(start):
            draw = torch.Generator().manual_seed(step_seed(seed, step))
            rows, units = [], []
            for index in torch.randint(len(self.waves), (self.cfg.batch,), generator=draw).tolist():
                wave = self.waves[index]
                first = int(torch.randint(len(wave) - self.length + 1, (1,), generator=draw)) // hop * hop
                rows.append(wave[first : first + self.length])
                if self.units:
                    units.append(self.units[index][first // hop :][: self.length // hop])
            yield torch.stack(rows).float() * (GAIN / 32767), torch.stack(units) if units else None


def _check_same(file: Path, found: list[tuple[str | None, Tensor]], texts: bool) -> None:
    """Keeps the hash of the recordings (and texts) of a training, which goes on with the same alone."""
    content = hashlib.sha256()
    for text, wave in found:
        content.update(f"{len(wave)} {text if texts else ''}\n".encode())
        content.update(wave.numpy().tobytes())
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content.hexdigest().encode())
    elif file.read_text(encoding="utf-8") != content.hexdigest():
        raise DataError(
            f"{file.parent} holds the beginning of a training on other recordings or texts, or in another "
            "order. Restore them, choose another name (name=...), or delete that folder."
        )
