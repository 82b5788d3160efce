"""The LightningDataModule over an opened store."""

from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from zipper.config import RunConfig
from zipper.corpora.utterance import SPLITS
from zipper.data.batches import Batch
from zipper.data.dataset import EncodedDataset
from zipper.data.schedule import BatchSchedule, MicroBatches, ResumableSampler
from zipper.errors import ConfigError
from zipper.stop import leave_to_parent


class ZipperData(L.LightningDataModule):
    """Batches of the training split by step, and of the dev split once through."""

    def __init__(self, cfg: RunConfig, dataset: EncodedDataset) -> None:
        super().__init__()
        self.cfg, self.dataset = cfg, dataset
        self.codebooks = {name: cfg.model.towers[name].codebooks for name in cfg.model.modalities}
        # Mistakes in the sizes show here, before a Trainer exists; those of the other splits too.
        for split in SPLITS[1:]:
            self._steps(split, cfg.train.tasks.shares(), 1)
        self.steps = self._steps(
            "train", cfg.train.tasks.shares(), cfg.train.devices * cfg.train.nodes * cfg.train.accumulate
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        trainer, train = self.trainer, self.cfg.train
        assert trainer is not None
        if trainer.world_size * train.accumulate != self.steps.slices:
            raise ConfigError(
                f"train.devices={train.devices} x train.nodes={train.nodes}, but Lightning runs "
                f"{trainer.world_size} processes: say both as they are."
            )
        batches = MicroBatches(
            self.steps, self.codebooks, trainer.global_rank, trainer.world_size, train.accumulate
        )
        sampler = ResumableSampler(trainer.global_step * train.accumulate, train.steps * train.accumulate)
        return DataLoader(
            batches,
            batch_size=None,
            collate_fn=whole,
            sampler=sampler,
            num_workers=train.workers,
            persistent_workers=train.workers > 0,
            worker_init_fn=leave_to_parent,
            pin_memory=trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        tasks = dict.fromkeys(self.cfg.train.tasks.shares(), 1.0)
        steps = self._steps("dev", tasks, self.trainer.world_size)
        batches = MicroBatches(steps, self.codebooks, self.trainer.global_rank, self.trainer.world_size, 1)
        return DataLoader(
            batches, batch_size=None, collate_fn=whole, sampler=ResumableSampler(0, steps.epoch_length(0))
        )

    def _steps(self, split: str, tasks: dict[str, float], slices: int) -> BatchSchedule:
        train, learnt = self.cfg.train, split == "train"
        return BatchSchedule(
            self.dataset, split, tasks, train.tokens, slices, self.cfg.seed, train.prompt_weight,
            self.cfg.data.only if learnt else None, train.codebook_weights if learnt else (),
            self.cfg.data.tasks, train.loss_mean,
        )  # fmt: skip


def whole(batch: Any) -> Any:
    """A batch leaves the dataset as it is to be; the loader's own conversion would turn tuples into lists."""
    return batch
