"""`zipper bench`: speed of training and decoding, as ratios within one run, on the config's own batches.

Two things that are compared take turns, so that a machine that slows down slows both.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipper.bench.memory import pss_of_tree
from zipper.config import asset, to_dict
from zipper.data.batch import Batch
from zipper.data.order import Steps
from zipper.errors import ConfigError
from zipper.evaluate.asr import recognise
from zipper.evaluate.result import commit, versions, write_result
from zipper.model.pretrained import load_weights
from zipper.model.tower import Tower
from zipper.report.clock import Clock
from zipper.schema import RunConfig, TowerConfig
from zipper.train.module import ZipperModule, padding, parameter_groups, stream_loss
from zipper.train.resolve import rates, resolve
from zipper.units.prepare import prepare
from zipper.units.store import Store

WARM, TURNS = 3, 15  # steps that are not counted, and that are
DECODED = 100  # utterances


def bench(cfg: RunConfig, command: str) -> dict[str, Any]:
    """Measures and writes cfg.run_dir/result.json (and cfg.result). Takes about two minutes on two cores."""
    code = commit()
    store = prepare(cfg, Clock())
    cfg = resolve(cfg, store)
    steps = Steps(
        store, "train", cfg.train.tasks.shares(), cfg.train.tokens, 1, cfg.seed, cfg.train.prompt_weight
    )
    books = {name: cfg.model.towers[name].codebooks for name in cfg.model.modalities}
    batches = [steps.batch(step, 0, books) for step in range(TURNS)]
    figures: dict[str, Any] = {}
    print("a tower against transformers' Llama of the same shape ...", flush=True)
    figures["tower"] = tower_against_llama(cfg.model.towers["speech"], batches)
    print("Zipper against its towers unzipped ...", flush=True)
    figures["zipper"] = zipper_against_towers(cfg, store, batches)
    print("decoding ...", flush=True)
    figures["decoding"] = decoding(cfg, store)
    figures["loader"] = loader(cfg, store, steps, books, figures["zipper"]["seconds_a_step"])
    result = {
        "name": cfg.name,
        "task": "bench",
        "figures": figures,
        "threads": torch.get_num_threads(),
        "peak_pss_mb": round(pss_of_tree() / 1e6),
        "seed": cfg.seed,
        "commit": code,
        "command": command,
        "data_fingerprint": store.fingerprint,
        "versions": {**versions(), "transformers": _transformers_version()},
        "config": to_dict(cfg),
    }
    file = cfg.run_dir / "result.json"
    write_result(result, file, *([Path(cfg.result)] if cfg.result else []))
    print(table(figures))
    print(f"-> {file}")
    return result


def tower_against_llama(shape: TowerConfig, batches: list[Batch]) -> dict[str, Any]:
    """Forward, backward and AdamW of the speech tower's shape with one codebook, on the same tokens."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ConfigError(
            "bench compares with transformers, which is not installed here. "
            "Run `make bench`, or pip install -e '.[bench]'."
        ) from error
    one = TowerConfig(
        layers=shape.layers, width=shape.width, heads=shape.heads, kv_heads=shape.kv_heads,
        hidden=shape.hidden, vocabulary=shape.vocabulary, codebooks=1,
    )  # fmt: skip
    ours = Tower(one)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=one.vocabulary, hidden_size=one.width, intermediate_size=one.hidden,
            num_hidden_layers=one.layers, num_attention_heads=one.heads, num_key_value_heads=one.kv_heads,
            tie_word_embeddings=True, attn_implementation="sdpa", use_cache=False,
        )
    )  # fmt: skip
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    tokens = [batch.streams["speech"].tokens[..., :1] for batch in batches]

    def step_of(model: nn.Module, logits: Callable[[Tensor], Tensor]) -> Callable[[int], None]:
        optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

        def step(turn: int) -> None:
            x = tokens[turn % len(tokens)]
            out = logits(x)[:, :-1].flatten(0, 1).float()
            F.cross_entropy(out, x[:, 1:, 0].flatten()).backward()
            optimiser.step()
            optimiser.zero_grad()

        return step

    a, b = take_turns(
        step_of(ours, lambda x: ours.logits(ours(x))[:, :, 0]),
        step_of(theirs, lambda x: theirs(input_ids=x[..., 0]).logits),
    )
    units = sum(x.numel() for x in tokens) / len(tokens)
    return {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "units_per_second": round(units / a),
        "llama_units_per_second": round(units / b),
        "ratio": round(b / a, 3),
    }


def zipper_against_towers(cfg: RunConfig, store: Store, batches: list[Batch]) -> dict[str, Any]:
    """A step of the config (loss, backward, clip, AdamW), and the same towers trained without zips."""
    torch.manual_seed(cfg.seed)
    module = ZipperModule.of(cfg, rates(store), store.fingerprint)
    model = module.model
    for name in model.names:
        if init := cfg.model.towers[name].init:
            load_weights(model.tower(name), asset(init))
    units = sum(int(s.valid.sum()) for batch in batches for s in batch.streams.values()) / len(batches)
    optimiser = torch.optim.AdamW(
        parameter_groups(model, cfg.train.lr, cfg.train.gate_lr, cfg.train.weight_decay), fused=True
    )
    trained = [p for p in model.parameters() if p.requires_grad]

    def step(turn: int, zipped: bool) -> None:
        batch = batches[turn % len(batches)]
        if zipped:
            states = model(batch)
        else:  # each tower alone; a tower that nothing scores has no gradient, so its states are summed
            states = {name: model.tower(name)(batch.streams[name].tokens) for name in model.names}
        loss = sum(
            stream_loss(model.tower(name), states[name], stream)
            if batch.total[name]
            else 0 * states[name].sum()
            for name, stream in batch.streams.items()
        )
        assert isinstance(loss, Tensor)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, cfg.train.clip)
        optimiser.step()
        optimiser.zero_grad()

    a, b = take_turns(lambda turn: step(turn, True), lambda turn: step(turn, False))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in trained),
        "units_per_second": round(units / a),
        "towers_alone_units_per_second": round(units / b),
        "ratio": round(b / a, 3),
        "seconds_a_step": round(a, 4),
        "units_a_step": round(units, 1),
    }


def decoding(cfg: RunConfig, store: Store) -> dict[str, Any]:
    """Greedy recognition of dev utterances by an untrained Zipper, which writes to the cap: the worst."""
    module = ZipperModule.of(cfg, rates(store), store.fingerprint)
    rows = [store.splits["dev"][i] for i in range(min(DECODED, len(store.splits["dev"])))]
    seconds = sum(row["seconds"] for row in rows)
    found: dict[str, float] = {}
    for batch in (1, len(rows)):
        part = rows if batch > 1 else rows[:10]
        started = time.monotonic()
        recognise(module.model, store, part, batch)
        took = time.monotonic() - started
        share = seconds * len(part) / len(rows)
        found[f"times_real_time_batch_{batch}"] = round(share / took, 1)
    return found


def loader(
    cfg: RunConfig, store: Store, steps: Steps, books: dict[str, int], seconds_a_step: float
) -> dict[str, float]:
    """Padding over an epoch, and how long a step waits for its batch when no worker makes it ahead."""
    count = min(100, steps.epoch_length(0))
    started = time.monotonic()
    made = [steps.batch(step, 0, books) for step in range(count)]
    wait = (time.monotonic() - started) / count
    return {
        "padding_share": round(statistics.fmean(padding(batch) for batch in made), 4),
        "seconds_a_batch": round(wait, 5),
        "data_wait_share": round(wait / (wait + seconds_a_step), 4),
    }


def take_turns(a: Callable[[int], None], b: Callable[[int], None]) -> tuple[float, float]:
    """Median seconds of each, one turn after the other."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARM + TURNS):
        for one, kept in zip((a, b), times, strict=True):
            started = time.perf_counter()
            one(turn)
            if turn >= WARM:
                kept.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def table(figures: dict[str, Any]) -> str:
    """To be read in a terminal."""
    tower, zipper, wait = figures["tower"], figures["zipper"], figures["loader"]
    rows = [
        ("training, tower", f"{tower['units_per_second']} units/s", f"{tower['ratio']:.2f} x transformers"),
        (
            "training, Zipper",
            f"{zipper['units_per_second']} units/s",
            f"{zipper['ratio']:.2f} x towers unzipped",
        ),
        *(("decoding", f"{speed} x real time", name) for name, speed in figures["decoding"].items()),
        ("padding", f"{wait['padding_share']:.1%}", "of a step's tokens"),
        ("data wait", f"{wait['data_wait_share']:.1%}", "of a step's time"),
    ]
    return "\n".join(f"{a:<18} {b:>16}   {c}" for a, b, c in rows)


def _transformers_version() -> str:
    from importlib.metadata import version

    return version("transformers")
