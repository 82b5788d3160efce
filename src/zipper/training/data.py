"""LightningDataModule of an encoded dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from zipper.clock import Clock
from zipper.config import RunConfig, check_list, is_section_file, with_overrides
from zipper.corpora.utterance import SPLITS
from zipper.data.batches import Batch
from zipper.data.dataset import EncodedDataset
from zipper.data.prepare import prepare
from zipper.data.schedule import BatchSchedule, MicroBatches, ResumableSampler
from zipper.data.shards import identity
from zipper.data.statistics import measure_statistics
from zipper.errors import ConfigError
from zipper.generation.extended import without_lost_towers
from zipper.generation.zipper import Zipper
from zipper.hashes import KEPT
from zipper.models.pretrained import tower_hashes
from zipper.models.resolve import resolve
from zipper.models.whiten import start_zips
from zipper.stop import ignore_group_signals
from zipper.training.fine_tuning import continued, for_new_training


class ZipperData(L.LightningDataModule):
    """Batches of the training split by step, and one pass over the dev split.

    A step's batch is a function of seed and step, and each process takes a slice of it.
    """

    def __init__(
        self,
        corpus: str,
        model: Zipper,
        *,
        tasks: Mapping[str, float] | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        """Encode a corpus with the model's tokenizer and codec, if that was not done before, and give the
        model its statistics. The zips of a new model are initialised from the data (model.zip.whiten,
        model.zip.rescale) and the seed.

        corpus: `data.corpus`, or the name of a section file (librispeech). tasks: shares of the tasks, by
        number of examples. overrides: `key=value` settings, as on the command line (data.folder=...,
        train.tokens=4096). Those of an earlier training of the model do not count, apart from its objective.

        Raises ConfigError on invalid settings, DataError on unusable data.

        >>> model = zipper.Zipper.from_towers(text="assets/text-tower", speech="assets/speech-tower")
        >>> settings = ["data.folder=mine.tsv", "train.tokens=1024"]
        >>> data = zipper.ZipperData("manifest", model, tasks={"asr": 1}, overrides=settings)
        encoded 0.01 hours of audio...
        >>> len(data.dataset.splits["train"])
        3
        """
        check_list(overrides)
        if Path(corpus).suffix in (".tsv", ".jsonl"):
            raise ConfigError(
                f'{corpus} is no corpus. Give "manifest", and overrides=["data.folder={corpus}"].'
            )
        section = "data" if is_section_file("data", corpus) else "data.corpus"
        if tasks is not None and not isinstance(tasks, Mapping):
            raise ConfigError(f"tasks={tasks!r}: give a dict of shares, such as {{'asr': 1}}.")
        shares = {**dict.fromkeys(model.config.train.tasks, 0.0), **tasks} if tasks else {}
        settings = [f"train.tasks.{task}={share}" for task, share in shares.items()]
        trained_before = model.joined is None or model.network.trained
        before = model.joined if model.joined and not trained_before else for_new_training(model.config)
        cfg = with_overrides(before, [f"{section}={corpus}", *settings, *overrides])
        if cfg.model != model.config.model:
            raise ConfigError("overrides change the model: give them to Zipper.from_towers.")
        if (cfg.codec, cfg.data.tokenizer) != (before.codec, before.data.tokenizer):
            raise ConfigError("overrides change the codec or tokenizer: give them to Zipper.from_towers.")
        dataset = prepare(cfg, Clock(), model.modalities)
        known = replace(cfg, model=without_lost_towers(cfg.model)) if trained_before else cfg
        found = resolve(known, dataset).model
        hashes = tower_hashes({n: found.towers[n] for n in found.modalities}, Path(cfg.build) / KEPT)
        statistics = measure_statistics(dataset, cfg.data.only, hashes)
        model.train_on(cfg, continued(model.statistics, statistics) if trained_before else statistics)
        self._open(cfg, dataset)
        if not trained_before:
            with torch.random.fork_rng():
                torch.manual_seed(cfg.seed)
                start_zips(model.network, cfg.model.zip, self.steps)

    @classmethod
    def of(cls, cfg: RunConfig, dataset: EncodedDataset) -> "ZipperData":
        """Data module of a resolved config and its dataset."""
        data = cls.__new__(cls)
        data._open(cfg, dataset)
        return data

    def _open(self, cfg: RunConfig, dataset: EncodedDataset) -> None:
        super().__init__()
        self.cfg, self.dataset = cfg, dataset
        self.codebooks = cfg.model.codebooks
        # Check the sizes of all splits before a Trainer exists.
        for split in SPLITS[1:]:
            self._steps(split, cfg.train.tasks, 1)
        self.steps = self._steps(
            "train", cfg.train.tasks, cfg.train.devices * cfg.train.nodes * cfg.train.accumulate
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches of the training split from the current step on; without a Trainer those of one
        process, from the first step on. Raises ConfigError on a Trainer that does not count steps."""
        trainer, train = self.trainer, self.cfg.train
        steps, cuda = train.steps, False
        rank, ranks, accumulate = 0, 1, 1
        if trainer is not None:
            if trainer.max_steps <= 0:
                raise ConfigError(
                    f"Trainer(max_epochs={trainer.max_epochs}): a training is counted in steps, and its "
                    "learning rate falls over them. Give the Trainer max_steps; one pass over the data has "
                    f"{self.steps.epoch_length(0)}."
                )
            steps, cuda = trainer.max_steps, isinstance(trainer.accelerator, CUDAAccelerator)
            rank, ranks = trainer.global_rank, trainer.world_size
            accumulate = trainer.accumulate_grad_batches
        if ranks * accumulate != self.steps.slices:
            self.steps = self._steps("train", train.tasks, ranks * accumulate)
        return DataLoader(
            MicroBatches(self.steps, self.codebooks, rank, ranks, accumulate),
            batch_size=None,
            collate_fn=identity,
            sampler=ResumableSampler(
                lambda: trainer.global_step * accumulate if trainer else 0, steps * accumulate
            ),
            num_workers=train.workers,
            persistent_workers=train.workers > 0,
            worker_init_fn=ignore_group_signals,
            pin_memory=cuda,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """One pass over the dev split."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        steps = self._steps("dev", dict.fromkeys(self.cfg.train.tasks, 1.0), ranks)
        batches = MicroBatches(steps, self.codebooks, rank, ranks, 1)
        sampler = ResumableSampler(lambda: 0, steps.epoch_length(0))
        return DataLoader(batches, batch_size=None, collate_fn=identity, sampler=sampler)

    def _steps(self, split: str, tasks: dict[str, float], slices: int) -> BatchSchedule:
        train, learnt = self.cfg.train, split == "train"
        return BatchSchedule(
            self.dataset, split, tasks, train.tokens, slices, self.cfg.seed, train.prompt_weight,
            self.cfg.data.only if learnt else None, train.codebook_weights if learnt else (),
            self.cfg.data.tasks, train.loss_mean,
        )  # fmt: skip
