"""What is watched during a training: recognition on dev, gates, throughput."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from zipper.evaluate.asr import recognise, total
from zipper.train.module import ZipperModule
from zipper.units.store import Row, Store

SHOWN = 5  # utterances printed at a validation
TABLE = 20  # utterances in a table of W&B, about 40 kB of audio each


class RecognitionMonitor(L.Callback):
    """Greedy WER on the first dev utterances at every validation, with a table of samples."""

    def __init__(self, store: Store, utterances: int, batch: int) -> None:
        self.store, self.batch = store, batch
        split = store.splits["dev"]
        self.rows: list[Row] = [split[i] for i in range(min(utterances, len(split)))]

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        found = recognise(module.model, self.store, self.rows, self.batch)
        wer = total(found).rate
        module.log("dev/wer", wer, prog_bar=True)  # every rank decodes the same utterances
        lines = [f"step {trainer.global_step}: dev WER {wer:.1%} on {len(found)} utterances"]
        for one in found[:SHOWN]:
            lines += [
                f"    reference  {one.reference}",
                f"    hypothesis {one.hypothesis or '(empty)'} [{one.stopped}]",
            ]
        _say("\n".join(lines))
        entries = [one.entry() for one in found]
        log_samples(trainer.loggers, "dev", entries, self.rows, trainer.global_step)


def log_samples(
    loggers: list[Logger],
    split: str,
    entries: list[dict[str, str | int | float]],
    rows: Iterable[Row],
    step: int,
) -> None:
    """A table of the first recognised utterances of a split, with their audio where it still is, for W&B.

    rows: those of the store, in the order of entries.
    """
    columns = ["id", "reference", "hypothesis", "errors", "stopped"]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            data = [
                [*(one[column] for column in columns), _audio(row)]
                for one, row in zip(entries[:TABLE], rows, strict=False)
            ]
            logger.log_table(f"{split}/recognised", columns=[*columns, "audio"], data=data, step=step)


def _audio(row: Row) -> wandb.Audio | None:
    return wandb.Audio(row["audio"]) if Path(row["audio"]).is_file() else None


def log_figures(loggers: list[Logger], files: list[Path], step: int) -> None:
    """The run's figures, for W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for file in files:
                logger.log_image(f"figures/{file.stem}", [str(file)], step=step)


class GateMonitor(L.Callback):
    """Logs how far each gate has opened. A run whose gates stay at 0 has learnt nothing across towers."""

    @rank_zero_only
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, ZipperModule)
        if trainer.global_step % module.cfg.log.every or not trainer.loggers:
            return
        gates = {
            f"gate/{name.removeprefix('model.')}": parameter.detach().tanh().item()
            for name, parameter in module.named_parameters()
            if parameter.ndim == 0 and parameter.requires_grad
        }
        for logger in trainer.loggers:
            logger.log_metrics(gates, step=trainer.global_step)


class Throughput(L.Callback):
    """Tokens a second since the last logging, padding left out."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        self.since, self.units = time.monotonic(), module.units

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.on_train_start(trainer, module)  # the validation's time is not the training's

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, ZipperModule)
        if trainer.global_step % module.cfg.log.every or module.units == self.units:
            return
        now = time.monotonic()
        module.log(
            "train/units_per_second",
            (module.units - self.units) / (now - self.since),
            prog_bar=True,
            rank_zero_only=True,
        )
        self.since, self.units = now, module.units


@rank_zero_only
def _say(text: str) -> None:
    print("\n" + text, flush=True)
