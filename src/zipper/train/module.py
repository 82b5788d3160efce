"""Training only: losses, logging, optimiser. The network itself knows nothing of Lightning."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from zipper.config import from_dict, to_dict
from zipper.data.batch import Batch, Stream
from zipper.data.document import looks
from zipper.errors import DataError, refusal
from zipper.generate.alphabet import Alphabet
from zipper.model.build import build_model
from zipper.model.lora import train_lora_alone
from zipper.model.multimodal import MultimodalModel
from zipper.model.tower import Tower
from zipper.model.zip_block import is_gate
from zipper.model.zipper import Zipper
from zipper.schema import RunConfig
from zipper.train.engine import shard
from zipper.units.facts import Facts


class ZipperModule(L.LightningModule):
    """A Zipper or a Single Decoder in training; a Zipper of one tower is plain pre-training."""

    def __init__(self, cfg: dict[str, Any], facts: dict[str, Any]) -> None:
        """cfg: of a resolved RunConfig, facts: of the store, both as plain dicts, so that checkpoints load
        with weights_only=True.
        """
        super().__init__()
        self.save_hyperparameters()
        self.cfg: RunConfig = from_dict(cfg)
        self.facts = Facts(**facts)
        self.model = build_model(self.cfg.model, self.facts.rates, self.facts.seconds)
        for name in self.model.names:
            if self.cfg.model.towers[name].frozen:
                self.model.tower(name).requires_grad_(False)
            elif self.cfg.model.towers[name].lora:
                train_lora_alone(self.model.tower(name))
        self.model.used = looks(self.cfg.train.tasks.shares())
        self.idle = idle_parts(self.model)
        for part in self.idle.values():
            part.requires_grad_(False)
        self.sharded = False
        self.units = 0  # tokens trained on, padding left out
        self.seconds_before, self.started = (
            0.0,
            time.monotonic(),
        )  # of training, in processes that were cut off

    @classmethod
    def of(cls, cfg: RunConfig, facts: Facts) -> "ZipperModule":
        """From a resolved config."""
        return cls(to_dict(cfg), facts.to_dict())

    def configure_model(self) -> None:
        """Lightning's hook, in every process before it trains: shards, where the strategy does."""
        if self.device_mesh is not None and not self.sharded:
            shard(self.model, self.device_mesh["data_parallel"])
            self.sharded = True

    def on_fit_start(self) -> None:
        self.started = time.monotonic()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_seconds"] = self.train_seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds_before = checkpoint.get("train_seconds", 0.0)

    def train_seconds(self) -> float:
        """Of training with its validations, also in processes before this one, up to the checkpoint that it
        went on from."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_start(self) -> None:
        """A frozen tower stays in eval (no dropout); all else trains, whatever state it was loaded in."""
        self.train()
        for name in self.model.names:
            self.model.tower(name).train(not self.cfg.model.towers[name].frozen)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Dropout follows from (seed, micro-batch, rank): a resumed run draws what the unbroken one does."""
        torch.manual_seed((self.cfg.seed * 1_000_003 + index) * 1_009 + self.global_rank)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of this slice, scaled so that all slices average to the mean over the whole step."""
        slices = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if self.cfg.train.hide:
            batch = hide_past(batch, self.model, self.cfg.train.hide, self.cfg.train.hide_span)
        states = self.model(batch)
        loss = states[self.model.names[0]].new_zeros(())
        for name, stream in batch.streams.items():
            books = self.cfg.train.codebook_weights if name == "speech" else []
            part = stream_loss(self.model.tower(name), states[name], stream, books)
            part = part * slices / max(batch.total[name], 1.0)
            if batch.total[name]:
                self.log(f"train/loss_{name}", part, batch_size=len(batch.ids), sync_dist=True)
            loss = loss + part
        if self.model.switches:
            switch = switch_loss(self.model, states, batch) * slices / max(batch.turns, 1)
            self.log("train/loss_switch", switch, batch_size=len(batch.ids), sync_dist=True)
            loss = loss + switch
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.ids), sync_dist=True)
        self.log("train/padding", padding(batch), batch_size=len(batch.ids))
        self.units += sum(int(stream.valid.sum()) for stream in batch.streams.values())
        return loss

    def on_validation_epoch_start(self) -> None:
        self.dev = {name: [0.0, 0.0] for name in self.model.names}

    def validation_step(self, batch: Batch, index: int) -> None:
        states = self.model(batch)
        for name, stream in batch.streams.items():
            self.dev[name][0] += float(stream_loss(self.model.tower(name), states[name], stream))
            self.dev[name][1] += float((stream.weight[..., None] * (stream.target != -100)).sum())

    def on_validation_epoch_end(self) -> None:
        """Mean over all scored tokens of the dev split, added up over ranks before it is divided."""
        mean = torch.zeros((), device=self.device)
        for name, counts in self.dev.items():
            loss, weight = self.trainer.strategy.reduce(
                torch.tensor(counts, device=self.device), reduce_op="sum"
            )
            if weight:
                self.log(f"dev/loss_{name}", loss / weight)
                mean = mean + loss / weight
        self.log("dev/loss", mean, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        train = self.cfg.train
        groups = parameter_groups(self.model, train.lr, train.gate_lr, train.weight_decay)
        optimiser: torch.optim.Optimizer
        if train.optimiser == "adafactor":
            optimiser = torch.optim.Adafactor(groups, lr=train.lr)
        else:
            optimiser = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / max(train.warmup, 1))
            fall = (
                0.5 * (1 + math.cos(math.pi * min(step / train.steps, 1.0)))
                if train.schedule == "cosine"
                else 1.0
            )
            return rise * fall

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_module(checkpoint: Path) -> ZipperModule:
    """A trained module, from tensors and plain dicts alone. Raises DataError where other code wrote it."""
    try:
        return ZipperModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    except RuntimeError as error:
        raise DataError(
            f"{checkpoint} cannot be loaded into this version's model ({refusal(error)}). "
            "Train it again, or use the version that wrote it."
        ) from error


def stream_loss(tower: Tower, states: Tensor, stream: Stream, books: Sequence[float] = ()) -> Tensor:
    """Weighted sum of cross-entropies over scored (token, codebook) pairs, in float32 or better: []

    books: a weight for each codebook; none: all alike.

    Logits are made only where something is scored: the head is a good part of a small tower's work.
    """
    due = (stream.target != -100).any(-1)  # [B, T]
    loss = tower.cross_entropy(states[due], stream.target[due])  # [N, Q]
    if books:
        loss = loss * loss.new_tensor(books)
    return (loss.sum(-1) * stream.weight[due]).sum()


def hide_past(batch: Batch, model: MultimodalModel, share: float, span: int) -> Batch:
    """The same batch with spans of the answers' columns turned into fillers, about `share` of them: what is
    still to be predicted, but not to be read. A speech tower that knows its own past by heart learns little
    from the text; this makes it ask. Towers without a filler (text) are left alone, begin always stays."""
    streams = dict(batch.streams)
    for name, stream in streams.items():
        alphabet = Alphabet.of(name, model.tower(name).cfg)
        if alphabet.filler is None:
            continue
        begun = torch.rand(stream.valid.shape, device=stream.valid.device) < 1 - (1 - share) ** (1 / span)
        spans = F.pad(begun[:, None].float(), (span - 1, 0))
        hidden = F.max_pool1d(spans, span, stride=1)[:, 0] > 0
        hidden &= (stream.weight > 0) & (stream.tokens[..., 0] != alphabet.begin)
        streams[name] = stream._replace(tokens=torch.where(hidden[..., None], alphabet.filler, stream.tokens))
    return batch._replace(streams=streams)


def switch_loss(model: MultimodalModel, states: dict[str, Tensor], batch: Batch) -> Tensor:
    """Sum of cross-entropies over what follows each segment. No gradient reaches the towers: []"""
    loss = states[model.names[0]].new_zeros(())
    for name, stream in batch.streams.items():
        due = stream.turn != -100
        logits = model.switches[name](states[name][due].detach())
        loss = loss + F.cross_entropy(logits, stream.turn[due], reduction="sum")
    return loss


def padding(batch: Batch) -> float:
    """Share of the batch's tokens that are padding, silent towers left out."""
    used = [stream for stream in batch.streams.values() if stream.valid.any()]
    return 1 - sum(int(s.valid.sum()) for s in used) / max(sum(s.valid.numel() for s in used), 1)


def idle_parts(model: MultimodalModel) -> dict[str, nn.Module]:
    """Zips whose direction no task of the run uses: not computed, no gradient, no weight decay."""
    if not isinstance(model, Zipper):
        return {}
    return {
        f"zips.{stage}.{asking}_from_{asked}": model.zip(stage, asking, asked)
        for stage in range(model.stages)
        for asking, asked in model.pairs
        if (asking, asked) not in model.used
    }


def parameter_groups(
    model: nn.Module, lr: float, gate_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and embeddings do not; gates neither, and they learn faster."""
    gates, decayed, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_gate(name):
            gates.append(parameter)
        elif parameter.ndim == 1 or name.endswith(("embedding.weight", ".head")):
            rest.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
        {"params": gates, "weight_decay": 0.0, "lr": lr * gate_lr},
    ]
    return [group for group in groups if group["params"]]
