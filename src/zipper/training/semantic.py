"""Fits a semantic encoder to recordings: its letter head, if it has one, by CTC of their transcripts, or else
the centroids of its units by k-means.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from zipper.checkpoint_files import LAST, read_checkpoint
from zipper.clusters import k_means
from zipper.codecs.semantic import HEAD, HOP, Convolutions, LetterHead, SemanticEncoder
from zipper.disk import write_atomic
from zipper.distributed import AtomicCheckpointIO
from zipper.errors import DataError, check_finite
from zipper.training.checkpoints import Save
from zipper.weight_files import as_kept

FITTED_STATES, KMEANS_ROUNDS = 200_000, 20  # of the centroids of semantic units
SMALLEST = 1e-3  # deviation of a state's dimension, which may be constant
BATCH_FRAMES = 4000  # of recordings of similar length, from which the head learns
RATE, WARMUP = 2e-3, 100  # learning rate of the head, which decays to 0, and its first steps
EVERY = 200  # steps from checkpoint to checkpoint of the head
KEPT = "semantic.safetensors"

LetterBatch = tuple[Tensor, Tensor, Tensor, Tensor]  # states [B, F, D], frames [B], letters [sum], counts [B]


def step_seed(seed: int, step: int) -> int:
    """Seed of what is drawn for a step of a training, so that a resumed one draws the same."""
    return seed * 1_000_003 + step


def semantic_units(
    semantic: SemanticEncoder,
    waves: Sequence[Tensor],
    texts: Sequence[str],
    steps: int,
    seed: int,
    folder: Path | None = None,
) -> list[Tensor]:
    """Units int64 [F] of each wave int16 [n]. Unless the encoder is fitted, fits it first.

    texts: their transcripts, and steps of the letter head. folder: an interrupted training on the same waves
    reads what it wrote there. Raises DataError if that is of another encoder, or no transcript has letters.
    """
    file = None if folder is None else folder / KEPT
    if file is not None and file.exists():
        return _read_units(semantic, waves, file)
    units = _fit(semantic, waves, texts, steps, seed, folder)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, save(semantic.fitted() | {"units": torch.cat(units).int()}))
    return units


def _read_units(semantic: SemanticEncoder, waves: Sequence[Tensor], file: Path) -> list[Tensor]:
    kept, lengths = load_file(file), [math.ceil(len(wave) / HOP) for wave in waves]
    units = kept.pop("units")
    if kept.keys() != semantic.fitted().keys():
        raise DataError(
            f"{file} is of another semantic encoder: it has {', '.join(sorted(kept))}, not "
            f"{', '.join(sorted(semantic.fitted()))}. Choose another name (name=...), or delete that folder."
        )
    semantic.load_state_dict(semantic.state_dict() | kept)
    return list(units.long().split(lengths))


def _fit(
    semantic: SemanticEncoder,
    waves: Sequence[Tensor],
    texts: Sequence[str],
    steps: int,
    seed: int,
    folder: Path | None,
) -> list[Tensor]:
    """See `semantic_units`. Mean, deviation and centroids are of FITTED_STATES or a little more, those of
    random waves. With a letter head, the states of all waves are in memory: 138 MB an hour of width 384."""
    bar = tqdm(total=len(waves), desc="semantic states", mininterval=1.0)

    def states(index: int) -> Tensor:
        bar.update()
        return semantic.states(waves[index].float() / 32767)

    kept: dict[int, Tensor] = {}
    if not semantic.get_buffer("centroids").any():
        draw, count = torch.Generator().manual_seed(seed), 0
        order = torch.randperm(len(waves), generator=draw).tolist()
        for index in order:
            if count >= FITTED_STATES:
                break
            kept[index] = states(index)
            count += len(kept[index])
        found, sample = torch.cat([*kept.values()]), [*kept]
        # All rounded as they will be saved.
        semantic.get_buffer("mean").copy_(found.mean(0).half())
        semantic.get_buffer("deviation").copy_(found.std(0).clamp(min=SMALLEST).half())
        if semantic.head is not None:
            for index in order[len(kept) :]:
                kept[index] = states(index)
            batches = LetterBatches(semantic, [kept[i] for i in range(len(waves))], texts, seed)
            train_head(semantic.head, batches, steps, folder)
        centroids = semantic.get_buffer("centroids")
        if semantic.head is None:
            clustered = torch.cat([semantic.features(kept[i]) for i in sample])
            centroids.copy_(k_means(clustered, len(centroids), KMEANS_ROUNDS).half())
        else:
            centroids.copy_(semantic.head.grid())
    with bar:
        return [semantic.units(kept[i] if i in kept else states(i)) for i in range(len(waves))]


class LetterBatches(IterableDataset):
    """States of recordings of similar length, at most BATCH_FRAMES with padding, and the letters of their
    transcripts: batches as a function of (seed, step), from step `start` on."""

    def __init__(
        self, semantic: SemanticEncoder, states: Sequence[Tensor], texts: Sequence[str], seed: int
    ) -> None:
        """Raises DataError if no transcript has letters."""
        self.semantic, self.states, self.texts, self.seed, self.start = semantic, states, texts, seed, 0
        self.letters = sorted({*"".join(texts)})
        if not self.letters:
            raise DataError(
                "train_codec.semantic_ctc learns from transcripts, but no training recording has one. Leave "
                "it out, or add them."
            )
        written = [i for i, text in enumerate(texts) if text]
        self.order = sorted(written, key=lambda i: len(states[i]))

    def __iter__(self) -> Iterator[LetterBatch]:
        for step in itertools.count(self.start):
            draw = torch.Generator().manual_seed(step_seed(self.seed, step))
            last = int(torch.randint(len(self.order), (1,), generator=draw))  # the longest
            count = max(1, BATCH_FRAMES // len(self.states[self.order[last]]))
            rows = self.order[max(0, last + 1 - count) : last + 1]
            states = [self.semantic.standardised(self.states[i]) for i in rows]
            letters = [[1 + self.letters.index(letter) for letter in self.texts[i]] for i in rows]
            yield (
                nn.utils.rnn.pad_sequence(states, batch_first=True),
                torch.tensor([len(one) for one in states]),
                torch.tensor([*itertools.chain(*letters)]),
                torch.tensor([len(one) for one in letters]),
            )


class HeadModule(L.LightningModule):
    """Trains a letter head, with convolutions that read letters from its units and are not kept."""

    def __init__(self, head: LetterHead, batches: LetterBatches, steps: int) -> None:
        super().__init__()
        self.head, self.batches, self.steps = head, batches, steps
        self.up = nn.Linear(len(head.levels), HEAD)
        self.reader = Convolutions(head.body.dropout)
        self.out = nn.Linear(HEAD, 1 + len(batches.letters))  # 0: blank

    def on_train_batch_start(self, batch: LetterBatch, index: int) -> None:
        """Seed dropout by the step."""
        torch.manual_seed(step_seed(self.batches.seed, self.global_step))

    def training_step(self, batch: LetterBatch, index: int) -> Tensor:
        states, frames, letters, counts = batch
        valid = torch.arange(states.shape[1], device=self.device) < frames[:, None]
        scalars = self.head(states, valid)
        rounded = scalars + (scalars.round() - scalars).detach()  # a straight-through gradient
        x = self.reader(self.up(rounded / (self.head.levels - 1) * 2 - 1), valid)
        scores = self.out(x).log_softmax(-1).transpose(0, 1)  # [F, B, letters + 1]
        loss = F.ctc_loss(scores, letters, frames, counts, zero_infinity=True)
        check_finite(float(loss.detach()), self.global_step, RATE)
        self.log("semantic/ctc", loss, prog_bar=True, batch_size=len(frames))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimiser = torch.optim.AdamW(self.parameters(), RATE, weight_decay=0.01)

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / WARMUP) * max(0.0, 1 - step / self.steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_head(head: LetterHead, batches: LetterBatches, steps: int, folder: Path | None) -> None:
    """Trains a letter head on the CPU, and rounds it as the codec's folder will hold it. folder: of the
    checkpoint from which an interrupted training goes on."""
    module = HeadModule(head.train().requires_grad_(True), batches, steps)
    last = None if folder is None else folder / "letters" / LAST
    saving: list[L.Callback] = []
    if last is not None:
        last.parent.mkdir(parents=True, exist_ok=True)
        saving += [Save(last.parent, EVERY, validate_every=steps + 1, log_every=steps + 1)]  # no log
    trainer = L.Trainer(
        max_steps=steps,
        logger=False,
        callbacks=saving,
        enable_checkpointing=last is not None,
        accelerator="cpu",
        gradient_clip_val=1.0,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
    )
    if going_on := last is not None and last.exists():
        batches.start = read_checkpoint(last)["global_step"]
    trainer.fit(
        module, DataLoader(batches, batch_size=None), ckpt_path=last if going_on else None, weights_only=True
    )
    head.eval().requires_grad_(False)
    head.load_state_dict({name: as_kept(weight) for name, weight in head.state_dict().items()})
