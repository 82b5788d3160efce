"""Callbacks of a training: WER of recognition and speech on dev, gates, loss peaks, throughput."""

import time
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor

from zipper.config import RunConfig
from zipper.data.dataset import EncodedDataset
from zipper.distributed import map_over_ranks
from zipper.evaluation import asr, tts
from zipper.evaluation.result import chosen_rows
from zipper.evaluation.samples import log_speech, log_transcripts, write_samples
from zipper.evaluation.tts import SpeechScorer
from zipper.evaluation.wer import capped_rate
from zipper.models.zip_block import is_gate
from zipper.training.module import ZipperModule

SHOWN = 5  # utterances printed at a validation


class RecognitionMonitor(L.Callback):
    """ASR WER on the first dev utterances at every validation, with a table of samples."""

    def __init__(self, dataset: EncodedDataset, cfg: RunConfig) -> None:
        self.dataset, self.cfg = dataset, cfg
        self.rows = chosen_rows(dataset, cfg, "asr", "dev")[: cfg.evaluate.dev_utterances]

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        batch, how = self.cfg.evaluate.batch, self.cfg.decode.text
        found = map_over_ranks(
            self.rows,
            lambda rows: asr.transcribe_rows(module.model, self.dataset, module.statistics, rows, batch, how),
        )
        wer = asr.total_errors(found).rate
        module.log("dev/asr_wer", wer, prog_bar=True)
        module.dev_wer["asr"] = capped_rate(found)
        lines = [f"step {trainer.global_step}: dev ASR WER {wer:.1%} on {len(found)} utterances"]
        for one in found[:SHOWN]:
            lines += [
                f"    reference  {one.reference}",
                f"    hypothesis {one.hypothesis or '(empty)'} [{one.stopped}]",
            ]
        _print("\n".join(lines))
        entries = [one.entry() for one in found]
        log_transcripts(trainer.loggers, "dev", entries, self.rows, trainer.global_step)


class SpeechMonitor(L.Callback):
    """TTS WER on the first dev sentences at every validation, by the ASR scorer."""

    def __init__(self, dataset: EncodedDataset, cfg: RunConfig, speech_scorer: SpeechScorer) -> None:
        self.dataset, self.speech_scorer = dataset, speech_scorer
        self.rows = chosen_rows(dataset, cfg, "tts", "dev")[: cfg.evaluate.dev_spoken]
        self.cfg = replace(cfg, evaluate=replace(cfg.evaluate, split="dev"))

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        batch, how = self.cfg.evaluate.batch, self.cfg.decode.speech
        spoken = map_over_ranks(
            self.rows,
            lambda rows: tts.synthesize_rows(
                module.model,
                self.dataset,
                module.statistics,
                rows,
                self.speech_scorer,
                batch,
                how,
                self.cfg.seed,
            ),
        )
        written, found = [one for one, _ in spoken], [one for _, one in spoken]
        wer = tts.total_errors(found).rate
        module.log("dev/tts_wer", wer, prog_bar=True)
        module.dev_wer["tts"] = capped_rate(found)
        cut = sum(one.stopped != "end" for one in found)
        lines = [
            f"step {trainer.global_step}: dev TTS WER {wer:.1%} on {len(found)} sentences, {cut} without EOS"
        ]
        for one in found[:SHOWN]:
            lines += [
                f"    reference  {one.reference}",
                f"    transcript {one.hypothesis or '(empty)'} [{one.stopped}]",
            ]
        _print("\n".join(lines))
        if trainer.is_global_zero:
            entries = [one.entry() for one in found]
            shown = write_samples(
                self.cfg.run_dir / "samples", self.cfg, self.speech_scorer, self.dataset, entries, written
            )
            log_speech(trainer.loggers, "dev", entries, shown, trainer.global_step)


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

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, ZipperModule)
        if trainer.global_step % module.cfg.log.every or not trainer.loggers:
            return
        gates = {
            f"gate/{name.removeprefix('model.')}": full_tensor(parameter).tanh().item()
            for name, parameter in module.named_parameters()
            if is_gate(name) and parameter.requires_grad
        }
        for logger in trainer.loggers:  # loggers write on rank 0 only
            logger.log_metrics(gates, step=trainer.global_step)


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
    """Tokens per second since the last logging, without padding."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, ZipperModule)
        self.since, self.units = time.monotonic(), module.units

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.on_train_start(trainer, module)  # exclude the time of validation

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
def _print(text: str) -> None:
    print("\n" + text, flush=True)
