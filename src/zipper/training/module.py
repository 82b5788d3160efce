"""LightningModule of a training: losses, logging, optimiser."""

import json
import time
from dataclasses import fields, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from zipper.config import RunConfig, TrainConfig, from_dict, to_dict, with_overrides
from zipper.data.batches import Batch
from zipper.data.documents import directions
from zipper.data.statistics import DatasetStatistics
from zipper.errors import ConfigError, TrainingError
from zipper.generation.zipper import Zipper
from zipper.models.building import TrainedModel, build_untrained, exported_weights, idle_parts, set_trainable
from zipper.models.ctc import CtcHeads
from zipper.models.losses import mask_history, mask_prompt, not_finite, stream_loss, training_loss
from zipper.models.multimodal import MultimodalModel
from zipper.models.zipper import ZipperModel
from zipper.training.data import ZipperData
from zipper.training.engine import prepare_layers, shard
from zipper.training.fine_tuning import check_same, without_ctc
from zipper.training.optimiser import optimiser_of
from zipper.training.rounding import RestoreWeights, RoundedWeights, refuse_averages

NAMED = 8  # utterances in an error message
OWN = (  # settings of `train` that are the module's; the others are of the data or the Trainer
    "optimiser", "lr", "gate_lr", "betas", "weight_decay", "warmup", "schedule", "ctc", "guide", "mask",
    "mask_span", "history_mask", "history_mask_span", "quantise", "compile", "activation_checkpointing",
)  # fmt: skip


class ZipperModule(L.LightningModule):
    """LightningModule of a Zipper or a Single Decoder. A Zipper of one tower is plain pre-training."""

    def __init__(
        self,
        model: Zipper | TrainedModel,
        *,
        cfg: dict[str, Any] | None = None,
        statistics: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """model: its network is trained. settings: `train` settings of the optimiser and the loss (lr,
        warmup, mask, ...: OWN), which replace those of the model's config. cfg, statistics: those of a
        checkpoint, which replace the model's: Lightning's `load_from_checkpoint(FILE, model=model)` gives
        them, and loads the weights into the model.

        Checkpoints store config and statistics as plain dicts, so that they load with weights_only=True.
        Raises ConfigError on a setting that is unknown, out of range, or of the data or the Trainer.
        """
        super().__init__()
        if others := {one.name for one in fields(TrainConfig)} & {*settings} - {*OWN}:
            raise ConfigError(
                f"ZipperModule({min(others)}=...): that is no setting of the module. Give ZipperData "
                f"overrides=['train.{min(others)}=...'] if it is one of the data, or the Trainer an argument "
                "(clipping, precision, devices)."
            )
        if cfg is not None and statistics is not None and isinstance(model, Zipper):
            check_same(model, saved := from_dict(cfg), known := DatasetStatistics.from_dict(statistics))
            model.train_on(saved, known)
        overrides = [f"train.{name}={json.dumps(value)}" for name, value in settings.items()]
        self.cfg = with_overrides(model.config, overrides) if settings else model.config
        self.statistics, self.model = model.statistics, model.network
        if not self.cfg.train.ctc:  # heads that are not trained would read other states in the end
            self.model.ctc, self.cfg = None, without_ctc(self.cfg)
        if isinstance(model, Zipper):
            model.config = self.cfg
        self.lr = self.cfg.train.lr  # Lightning's LearningRateFinder sets it
        self.save_hyperparameters({"cfg": to_dict(self.cfg), "statistics": self.statistics.to_dict()})
        self._set_trainable()
        prepare_layers(self.model, self.cfg.train)
        self.sharded = False
        self.step_batches: list[Batch] = []  # micro-batches of the current step
        self.dev_wer: dict[str, float] = {}  # by task, errors capped per sentence, at the last validation
        self.figures: dict[str, Tensor] = {}  # sums over the micro-batches of the current step, to be logged
        self.latest: dict[str, Tensor] = {}  # loss of the last micro-batch, norm of the last gradient
        self.units = 0  # trained tokens, without padding
        self.seconds_before = 0.0  # of training, in earlier processes of this run
        self.started = time.monotonic()
        self.rounded = RoundedWeights([], self.cfg.export_bits)  # with train.quantise

    @classmethod
    def of(cls, cfg: RunConfig, statistics: DatasetStatistics) -> "ZipperModule":
        """Module with random weights, from a resolved config."""
        return cls(build_untrained(cfg, statistics))

    def start_from(self, network: MultimodalModel) -> None:
        """Start from the weights of a trained network of the same shape, and from its heads of CTC if the
        training has any."""
        self.model.ctc = network.ctc if self.cfg.train.ctc else None
        self.model.used = sorted({*self.model.used, *network.used})
        self._set_trainable()
        own = {*self.model.state_dict()}
        self.model.load_state_dict({name: x for name, x in network.state_dict().items() if name in own})

    def _set_trainable(self) -> None:
        set_trainable(self.model, self.cfg.model, directions(self.cfg.train.tasks))
        self.idle = idle_parts(self.model)

    def setup(self, stage: str) -> None:
        """Lightning hook: add the heads of CTC. Raises ConfigError if no task has letters to align, or the
        data is not `ZipperData`, which knows the letters, or was made later than this module."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ZipperData) and (
            self.statistics.fingerprint != data.dataset.fingerprint
            or self.cfg.train.tasks != data.cfg.train.tasks
        ):
            raise ConfigError(
                "ZipperModule has no settings and statistics of this ZipperData: make it after ZipperData, "
                "which gives them to the model, and after no other."
            )
        if self.cfg.train.ctc and self.model.ctc is None:
            if not isinstance(data, ZipperData):
                raise ConfigError(
                    f"train.ctc={self.cfg.train.ctc:g} needs the letters of the tokens: pass a "
                    "zipper.ZipperData to the Trainer's fit, or leave ctc out."
                )
            if self.cfg.train.guide and not isinstance(self.model, ZipperModel):
                raise ConfigError(
                    f"train.guide={self.cfg.train.guide:g} leads the attention of zips, and model.kind="
                    f"{self.cfg.model.kind} has none. Leave it out."
                )
            widths = {name: self.model.tower(name).cfg.width for name in self.model.names}
            heads = CtcHeads.of(widths, self.cfg.train.tasks, data.dataset.modalities)
            self.model.ctc = heads.to(next(self.model.parameters()).dtype)  # Lightning casts after loading
        if self.cfg.train.quantise:
            refuse_averages(self.trainer)
            weights = exported_weights(self.model, self.cfg.model)
            self.rounded = RoundedWeights(weights, self.cfg.export_bits)

    def configure_callbacks(self) -> list[L.Callback]:
        """Lightning hook."""
        return [RestoreWeights()] if self.cfg.train.quantise else []

    def configure_model(self) -> None:
        """Lightning hook: shard the model if the strategy does."""
        if self.device_mesh is not None and not self.sharded:
            shard(self.model, self.device_mesh["data_parallel"])
            self.sharded = True

    def on_fit_start(self) -> None:
        self.started = time.monotonic()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_seconds"] = self.train_seconds()
        checkpoint["directions"] = [*self.model.used]
        checkpoint["accumulate"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds_before = checkpoint.get("train_seconds", 0.0)
        self.model.trained = True
        known = [(query, source) for query, source in checkpoint.get("directions", [])]
        self.model.used = sorted({*self.model.used, *known})
        before, now = checkpoint.get("accumulate"), getattr(self._trainer, "accumulate_grad_batches", None)
        if before and now and before != now:
            raise ConfigError(
                f"Trainer(accumulate_grad_batches={now}), but the checkpoint is of a training with {before}: "
                "its micro-batches have other places in a step. Give the Trainer the same."
            )
        if self.model.ctc is None:  # without `setup`
            state = checkpoint["state_dict"].items()
            self.model.ctc = CtcHeads.from_state({name.removeprefix("model."): x for name, x in state})

    def train_seconds(self) -> float:
        """Seconds of training and validation, including those of earlier processes up to the resumed
        checkpoint."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_start(self) -> None:
        """Set frozen towers to eval mode (no dropout), and everything else to train mode."""
        self.model.trained = True
        self.train()
        for name in self.model.names:
            self.model.tower(name).train(not self.cfg.model.towers[name].frozen)

    def on_train_epoch_start(self) -> None:
        """Raises ConfigError if a callback changes the accumulation: each step's share of the data would be
        wrong."""
        data, trainer = getattr(self.trainer, "datamodule", None), self.trainer
        slices = trainer.world_size * trainer.accumulate_grad_batches
        if isinstance(data, ZipperData) and data.steps.slices != slices:
            raise ConfigError(
                "accumulate_grad_batches has changed since the batches were planned. Leave "
                "GradientAccumulationScheduler out, and give the Trainer one number."
            )

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Seed dropout by (seed, micro-batch, rank), so that a resumed run equals an uninterrupted one."""
        torch.manual_seed((self.cfg.seed * 1_000_003 + index) * 1_009 + self.global_rank)
        self.rounded.round()

    def on_after_backward(self) -> None:
        self.rounded.restore()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of this slice, scaled so that the mean over slices equals the mean over the whole step."""
        slices = self.trainer.world_size * self.trainer.accumulate_grad_batches
        train = self.cfg.train
        if train.history_mask:
            batch = mask_history(batch, self.model, train.history_mask, train.history_mask_span)
        if train.mask:
            batch = mask_prompt(batch, self.model, train.mask, train.mask_span)
        loss, parts = training_loss(self.model, batch, train, slices)
        for name, part in parts.items():
            self._add(f"loss_{name}", part)
        self._add("loss", loss)
        self._add("padding", loss.new_full((), batch.padding))
        self.latest["loss"] = loss.detach()
        self.step_batches.append(batch)
        self.units += batch.tokens
        return loss

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach()
        self.figures[name] = self.figures[name] + value if name in self.figures else value

    def _log_figures(self) -> None:
        """Log the means over micro-batches and processes. Several processes exchange them in one tensor, in
        steps that are written to the loggers alone."""
        names, sums = [*self.figures], [*self.figures.values()]
        self.figures = {}
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it elsewhere
        if self.trainer.world_size > 1 and (self.trainer.global_step + 1) % max(every, 1):
            return
        means = torch.stack([one.to(sums[0].dtype) for one in sums]) / self.trainer.accumulate_grad_batches
        means = self.trainer.strategy.reduce(means, reduce_op="mean")
        for name, mean in zip(names, means, strict=True):
            self.log(f"train/{name}", mean, prog_bar=name == "loss", batch_size=1)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Lightning hook, called once per step before the update. Raises TrainingError if the norm is not
        finite; weights and checkpoints stay unchanged. A scaler of 16-mixed skips such a step itself, unless
        the loss is not finite."""
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(p.grad for p in trained)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not norm.isfinite() and not (self._scaler and self.latest["loss"].isfinite()):
            raise TrainingError(self._not_finite(float(norm)))
        self.step_batches.clear()
        if gradient_clip_val and gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            nn.utils.clip_grad_value_(trained, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)
        self._log_figures()
        self.log("train/grad_norm", norm, batch_size=1)
        self.latest["grad_norm"] = norm

    def _not_finite(self, norm: float) -> str:
        """Error message for a loss or gradient norm that is not finite."""
        culprits = [one for batch in self.step_batches for one in not_finite(self.model, batch)]
        ids = culprits or [one for batch in self.step_batches for one in batch.ids]
        named = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
        what = "the loss is not finite in" if culprits else f"the gradient's norm is {norm} in the step of"
        return (
            f"step {self.trainer.global_step + 1}: {what} {named}. Weights and checkpoints are unchanged. "
            "The same command fails at the same step: check these utterances, or train under another name "
            f"(name=...) with train.lr below {self.cfg.train.lr:g}, train.clip below "
            f"{self.cfg.train.clip:g}, more train.warmup or train.precision=32-true."
        )

    def on_validation_epoch_start(self) -> None:
        self.rounded.round()
        self.dev = torch.zeros(
            len(self.model.names), 2, dtype=next(self.model.parameters()).dtype, device=self.device
        )

    def validation_step(self, batch: Batch, index: int) -> None:
        states = self.model(batch)
        for index, name in enumerate(self.model.names):
            stream = batch.streams[name]
            loss = stream_loss(self.model.tower(name), states[name], stream)
            weight = (stream.weight[..., None] * (stream.target != -100)).sum()
            self.dev[index] += torch.stack([loss, weight.to(loss)]).to(self.dev)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss over all scored tokens of the dev split, reduced over ranks."""
        mean = torch.zeros((), device=self.device)
        added = self.trainer.strategy.reduce(self.dev, reduce_op="sum")
        for name, (loss, weight) in zip(self.model.names, added, strict=True):
            if weight:
                self.log(f"dev/loss_{name}", loss / weight)
                mean = mean + loss / weight
        self.log("dev/loss", mean, prog_bar=True)
        self.rounded.restore()  # the callbacks, which decode, ran before

    @property
    def _scaler(self) -> Any:
        """Scaler of the loss, of precision 16-mixed."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        train = replace(self.cfg.train, lr=self.lr)
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else train.steps
        # A fused optimiser would be given the scaled gradients, which are clipped here.
        optimiser, schedule = optimiser_of(self.model, train, steps, not self._scaler)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
