"""`zipper bench-saving`: what it costs that a run cannot be lost."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger

from zipper.commit import commit
from zipper.config import to_dict
from zipper.data.module import ZipperData
from zipper.evaluate.result import versions, write_result
from zipper.report.clock import Clock
from zipper.schema import RunConfig
from zipper.train.callbacks import GateMonitor, Spikes, Throughput
from zipper.train.checkpoints import Save, WholeFiles
from zipper.train.module import ZipperModule
from zipper.train.resolve import resolve
from zipper.units.facts import facts_of
from zipper.units.prepare import prepare
from zipper.units.store import Store

STEPS, WARM, TURNS = 300, 20, 3  # steps of a training, of them not counted; trainings of each kind


class Stopwatch(L.Callback):
    """Seconds from the end of the warm-up to the end of the last step."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM:
            self.started = time.monotonic()
        self.seconds = time.monotonic() - getattr(self, "started", 0.0)


def bench_saving(cfg: RunConfig, command: str) -> dict[str, Any]:
    """Steps a second with a checkpoint every 100 steps, written aside and flushed, each step checked to be
    finite, signals listened to; against the same training that saves nothing and checks nothing. They take
    turns."""
    code = commit()
    store = prepare(cfg, Clock())
    cfg = resolve(cfg, store)
    rates: dict[str, list[float]] = {"exact": [], "bare": []}
    for turn in range(TURNS):
        for kind in rates:
            rates[kind].append(steps_a_second(cfg, store, kind == "bare"))
            print(f"turn {turn + 1}, {kind}: {rates[kind][-1]:.2f} steps/s", flush=True)
    exact, bare = (statistics.median(rates[kind]) for kind in ("exact", "bare"))
    result = {
        "name": cfg.name, "task": "bench-saving", "seed": cfg.seed, "commit": code, "command": command,
        "figures": {"exact": round(exact, 3), "bare": round(bare, 3), "ratio": round(exact / bare, 3)},
        "turns": {kind: [round(rate, 3) for rate in several] for kind, several in rates.items()},
        "steps": STEPS, "save_every": cfg.train.save_every, "data_fingerprint": store.fingerprint,
        "versions": versions(), "threads": torch.get_num_threads(), "config": to_dict(cfg),
    }  # fmt: skip
    print(f"with against without: {exact / bare:.3f} x")
    if cfg.result:
        write_result(result, Path(cfg.result))
    return result


class Bare(ZipperModule):
    """Clips as Lightning does, and looks at nothing."""

    def configure_gradient_clipping(self, optimizer: Any, *settings: Any, **named: Any) -> None:
        self.held.clear()
        L.LightningModule.configure_gradient_clipping(self, optimizer, *settings, **named)


def steps_a_second(cfg: RunConfig, store: Store, bare: bool) -> float:
    """Of one training, without its validation."""
    L.seed_everything(cfg.seed, verbose=False)
    module = (Bare if bare else ZipperModule).of(cfg, facts_of(store))
    with tempfile.TemporaryDirectory() as folder:
        watch = Stopwatch()
        exact = [] if bare else [Spikes(), Save(Path(folder), cfg.train.save_every, STEPS, cfg.log.every)]
        trainer = L.Trainer(
            max_steps=STEPS,
            gradient_clip_val=cfg.train.clip,
            accelerator=cfg.train.accelerator,
            limit_val_batches=0,
            log_every_n_steps=cfg.log.every,
            logger=CSVLogger(folder),
            callbacks=[GateMonitor(), Throughput(), watch, *exact],
            plugins=[WholeFiles()],
            enable_checkpointing=not bare,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, ZipperData(cfg, store))
    return (STEPS - WARM) / watch.seconds
