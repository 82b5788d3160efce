"""Callbacks of a training: WER of its tasks on dev, gates, loss peaks, throughput."""

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor

from zipper.config import RunConfig, modalities_of
from zipper.data.dataset import EncodedDataset
from zipper.distributed import map_over_ranks
from zipper.evaluation.result import chosen_rows
from zipper.evaluation.samples import show_samples
from zipper.evaluation.task import answer_rows, entries
from zipper.modalities.scoring import Scorer, capped_rate, total_errors
from zipper.models.zip_block import is_gate
from zipper.training.engine import whole_weights
from zipper.training.module import ZipperModule

SHOWN = 5  # utterances printed at a validation


class TaskMonitor(L.Callback):
    """WER of a task on the first dev utterances at every validation, with a table of samples."""

    def __init__(
        self, task: str, dataset: EncodedDataset, cfg: RunConfig, scorers: Mapping[str, Scorer]
    ) -> None:
        self.task, self.dataset, self.cfg = task, dataset, cfg
        self.scorer = scorers[modalities_of(task)[-1]]
        count = cfg.evaluate.dev_spoken if self.scorer.costly else cfg.evaluate.dev_utterances
        self.rows = chosen_rows(dataset, cfg, task, "dev")[:count]

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        cfg = self.cfg
        with whole_weights(module.model):
            answers = map_over_ranks(
                self.rows,
                lambda rows: answer_rows(
                    module.model, self.dataset, module.statistics, self.scorer, rows,
                    modalities_of(self.task), cfg.evaluate.batch, cfg.decode, cfg.seed,
                ),
            )  # fmt: skip
        found = [score for _, score in answers]
        wer = total_errors(found).rate
        module.log(f"dev/{self.task}_wer", wer, prog_bar=True)
        module.dev_wer[self.task] = capped_rate(found)
        cut = sum(one.stopped != "stop" for one in found)
        lines = [
            f"step {trainer.global_step}: dev {self.task.upper()} WER {wer:.1%} on {len(found)} utterances, "
            f"{cut} without EOS"
        ]
        for one in found[:SHOWN]:
            lines += [
                f"    reference  {one.reference}",
                f"    hypothesis {one.hypothesis or '(empty)'} [{one.stopped}]",
            ]
        _print("\n".join(lines))
        if trainer.is_global_zero:
            last = [segments[-1] for segments, _ in answers]
            samples = cfg.run_dir / "samples"
            show_samples(
                trainer.loggers,
                samples,
                cfg,
                self.task,
                "dev",
                self.dataset,
                entries(self.rows, found),
                last,
                trainer.global_step,
            )


class MeanWer(L.Callback):
    """Logs dev/wer, which selects the best checkpoint: the mean over tasks of the WER with each sentence's
    errors capped at its words."""

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        module.log("dev/wer", sum(module.dev_wer.values()) / len(module.dev_wer))


class Patience(EarlyStopping):
    """Lightning's EarlyStopping. A run that it has stopped stays stopped after a resume."""

    def __init__(self, monitor: str, patience: int) -> None:
        """patience: validations without improvement."""
        super().__init__(monitor, patience=patience, check_on_train_epoch_end=False)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        trainer.should_stop = self.wait_count >= self.patience


class GateMonitor(L.Callback):
    """Logs tanh(a) and tanh(b) of every gate. At 0 the zip adds nothing."""

    logged = 0  # step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, ZipperModule)
        step = trainer.global_step
        if step % module.cfg.log.every or step == self.logged or not trainer.loggers:
            return  # several micro-batches have the same step
        self.logged = step
        gates = {
            f"gate/{name.removeprefix('model.')}": full_tensor(parameter).tanh().item()
            for name, parameter in module.named_parameters()
            if is_gate(name) and parameter.requires_grad
        }
        for logger in trainer.loggers:  # loggers write on rank 0 only
            logger.log_metrics(gates, step=step)


def full_tensor(parameter: Tensor) -> Tensor:
    """Full tensor of a possibly sharded parameter. Every rank must call it."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


class Spikes(L.Callback):
    """Logs the largest loss and the largest gradient norm since the last logging."""

    def __init__(self) -> None:
        self.peaks: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, ZipperModule)
        for name, value in module.latest.items():
            self.peaks[name] = torch.maximum(self.peaks.get(name, value), value)
        module.latest.clear()
        stepped = (index + 1) % trainer.accumulate_grad_batches == 0
        if stepped and trainer.global_step % module.cfg.log.every == 0:
            peaks = {f"train/{name}_max": float(value) for name, value in self.peaks.items()}
            for logger in trainer.loggers:
                logger.log_metrics(peaks, step=trainer.global_step)
            self.peaks.clear()

    def state_dict(self) -> dict[str, Any]:
        return {name: float(value) for name, value in self.peaks.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.peaks = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}


class Throughput(L.Callback):
    """Tokens per second of all processes since the last logging, without padding."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        self.since, self.units = time.monotonic(), module.units

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.on_train_start(trainer, module)  # exclude the time of validation

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, ZipperModule)
        if (index + 1) % trainer.accumulate_grad_batches or trainer.global_step % module.cfg.log.every:
            return
        now = time.monotonic()
        rate = torch.tensor((module.units - self.units) / (now - self.since), device=module.device)
        rate = trainer.strategy.reduce(rate, reduce_op="sum")
        module.log("train/units_per_second", rate, prog_bar=True, rank_zero_only=True)
        self.since, self.units = now, module.units


@rank_zero_only
def _print(text: str) -> None:
    print("\n" + text, flush=True)
