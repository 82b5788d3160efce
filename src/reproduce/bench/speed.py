"""`zipper bench`: training and decoding speed, as ratios within one run, on batches of the config.

Compared runs alternate, so that a slowdown of the machine affects both.
"""

import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reproduce.bench.generation import alternate, compared, generation
from reproduce.bench.record import record, show
from zipper.clock import Clock
from zipper.commit import commit
from zipper.config import RunConfig, TowerConfig, TrainConfig, modalities_of
from zipper.data.batches import Batch
from zipper.data.dataset import EncodedDataset
from zipper.data.prepare import prepare
from zipper.data.schedule import BatchSchedule
from zipper.data.statistics import measure_statistics
from zipper.distributed import check_trainer, encoding_settings
from zipper.errors import ConfigError
from zipper.evaluation.result import versions
from zipper.generation.rows import generate_rows
from zipper.models.losses import stream_loss
from zipper.models.multimodal import MultimodalModel
from zipper.models.resolve import resolve
from zipper.models.tower import Tower
from zipper.training.module import ZipperModule
from zipper.training.optimiser import parameter_groups
from zipper.training.precision import Products

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

WARM, TURNS = 3, 15  # warm-up steps and measured steps
DECODED = 100  # utterances


def bench(cfg: RunConfig, command: str) -> dict[str, Any]:
    """Runs the benchmark and writes its result. Takes three minutes on two cores."""
    if find_spec("transformers") is None:
        raise ConfigError(
            "bench compares with transformers, which is not installed here. Run `make bench`, or pip install "
            "-e '.[bench]'."
        )
    code = commit()
    torch.manual_seed(cfg.seed)
    check_trainer(encoding_settings(cfg.train))
    dataset = prepare(cfg, Clock())
    cfg = resolve(cfg, dataset)
    shares, tokens, prompt = cfg.train.tasks, cfg.train.tokens, cfg.train.prompt_weight
    steps = BatchSchedule(dataset, "train", shares, tokens, 1, cfg.seed, prompt)
    books = cfg.model.codebooks
    batches = [steps.batch(step, 0, books) for step in range(TURNS)]
    print("training, decoding, speaking ...", flush=True)
    zipper = zipper_against_llama(cfg, dataset, batches)
    model = ZipperModule.of(cfg, measure_statistics(dataset)).model
    figures = {
        "tower": tower_against_llama(cfg.model.towers["speech"], batches), "zipper": zipper,
        "decoding": decoding(cfg, dataset), "generation": generation(model, dataset, llama),
        "loader": loader(steps, books, zipper["seconds_a_step"]),
    }  # fmt: skip
    figures["floor"] = floor(model, figures)
    result = record(cfg, "bench", command, code, {
        "figures": figures,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "data_fingerprint": dataset.fingerprint,
        "versions": {**versions(), "transformers": version("transformers")},
    })  # fmt: skip
    show(cfg, "bench")
    return result


def tower_against_llama(shape: TowerConfig, batches: list[Batch]) -> dict[str, Any]:
    """Training speed of a tower and of Llama in the same shape, with one codebook, on the same tokens."""
    one_codebook = TowerConfig(
        layers=shape.layers, width=shape.width, heads=shape.heads, kv_heads=shape.kv_heads,
        hidden=shape.hidden, vocabulary=shape.vocabulary, codebooks=1,
    )  # fmt: skip
    ours, rough, theirs = Tower(one_codebook), Tower(one_codebook), llama(shape)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    steps = (
        language_model_step(ours, lambda x: tower_loss(ours, x), batches),
        in_bfloat16(language_model_step(rough, lambda x: tower_loss(rough, x), batches)),
        llama_step(theirs, batches),
    )
    float32, products, other = take_turns(*steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    float32_alone, products_alone, other_alone = take_turns(*steps)
    torch.set_num_threads(threads)
    units = sum(int(batch.streams["speech"].valid.sum()) for batch in batches) / len(batches)
    return {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "flops_a_step": step_flops(steps[0], len(batches)),
        "seconds_a_step": round(statistics.median(float32), 4),
        "units_per_second": round(units / statistics.median(float32)),
        "llama_units_per_second": round(units / statistics.median(other)),
        **compared("ratio", other, float32),
        **compared("ratio_bf16_products", other, products),
        **compared("ratio_one_thread", other_alone, float32_alone),
        **compared("ratio_bf16_products_one_thread", other_alone, products_alone),
    }


def tower_loss(tower: Tower, x: Tensor) -> Tensor:
    """Mean cross-entropy of the next units x int64 [B, S, 1], as a training computes it."""
    return tower.cross_entropy(tower(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)).mean()


def zipper_against_llama(cfg: RunConfig, dataset: EncodedDataset, batches: list[Batch]) -> dict[str, Any]:
    """Training speed of the config's model, against Llama in the shape of its speech tower.

    Units per second without padding: speech timesteps and subwords of Zipper, timesteps of Llama.
    """
    model, rough = (ZipperModule.of(cfg, measure_statistics(dataset)).model for _ in range(2))
    theirs = llama_step(llama(cfg.model.towers["speech"]), batches)
    ours = zipper_step(model, batches, cfg.train)
    float32, products, other = take_turns(ours, in_bfloat16(zipper_step(rough, batches, cfg.train)), theirs)
    columns = sum(int(batch.streams["speech"].valid.sum()) for batch in batches) / len(batches)
    units = sum(int(s.valid.sum()) for batch in batches for s in batch.streams.values()) / len(batches)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "units_per_second": round(units / statistics.median(float32)),
        "llama_units_per_second": round(columns / statistics.median(other)),
        **compared("ratio", other, float32, units / columns),
        **compared("ratio_bf16_products", other, products, units / columns),
        "flops_a_step": step_flops(ours, len(batches)),
        "seconds_a_step": round(statistics.median(float32), 4),
        "units_a_step": round(units, 1),
    }


def zipper_step(model: MultimodalModel, batches: list[Batch], train: TrainConfig) -> Callable[[int], None]:
    """Training step of a model: forward, backward, clipping and update."""
    optimiser = torch.optim.AdamW(
        parameter_groups(model, train.lr, train.gate_lr, train.weight_decay), fused=True
    )
    trained = [p for p in model.parameters() if p.requires_grad]

    def step(turn: int) -> None:
        batch = batches[turn % len(batches)]
        states = model(batch)
        losses = [
            stream_loss(model.tower(name), states[name], stream) / max(batch.total[name], 1.0)
            for name, stream in batch.streams.items()
        ]
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(trained, train.clip)
        optimiser.step()
        optimiser.zero_grad()

    return step


def llama(shape: TowerConfig) -> "LlamaForCausalLM":
    """Llama of transformers in the shape of a tower."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.hidden,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads, tie_word_embeddings=True, attn_implementation="sdpa",
            use_cache=False,
        )
    )  # fmt: skip


def llama_step(model: "LlamaForCausalLM", batches: list[Batch]) -> Callable[[int], None]:
    """Training step of a Llama, with its own loss."""
    return language_model_step(model, lambda x: model(input_ids=x[..., 0], labels=x[..., 0]).loss, batches)


def language_model_step(
    model: nn.Module, loss: Callable[[Tensor], Tensor], batches: list[Batch]
) -> Callable[[int], None]:
    """Training step of next-token prediction on the first codebook. loss: of units int64 [B, S, 1]."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step(turn: int) -> None:
        loss(batches[turn % len(batches)].streams["speech"].tokens[..., :1]).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def step_flops(step: Callable[[int], None], count: int) -> float:
    """Mean FLOPs of `count` training steps: all matrix products, forward and backward."""
    # Fused attention is not counted on a CPU; its products are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for turn in range(count):
            step(turn)
    return counter.get_total_flops() / count


def floor(model: MultimodalModel, figures: dict[str, Any]) -> dict[str, float]:
    """What this machine does in this run: float32 products, and reading memory; and the shares of them that a
    training step, and writing speech with compile=true, reach. Of the tower and its zips each weight is read
    once a frame."""
    square, long = torch.randn(2048, 2048), torch.zeros(2**26)
    products, reading = take_turns(lambda _: square @ square, lambda _: long.sum())
    peak = 2 * 2048**3 / statistics.median(products)
    bandwidth = 4 * 2**26 / statistics.median(reading)
    read = [model.tower("speech"), *(model.zip(s, "speech", "text") for s in range(model.stages))]
    weights = sum(4 * p.numel() for part in read for p in part.parameters())
    frames = figures["generation"]["batch 1"]["frames_per_second_compiled"]
    return {
        "gflops_per_second": round(peak / 1e9, 1),
        "gigabytes_per_second": round(bandwidth / 1e9, 1),
        **{
            f"{name}_share": round(figures[name]["flops_a_step"] / peak / figures[name]["seconds_a_step"], 3)
            for name in ("tower", "zipper")
        },
        "generation_share": round(weights * frames / bandwidth, 3),
    }


def decoding(cfg: RunConfig, dataset: EncodedDataset) -> dict[str, Any]:
    """Speed of greedy ASR with an untrained Zipper, and the share that hits the length limit."""
    module = ZipperModule.of(cfg, measure_statistics(dataset))
    rows = [dataset.splits["dev"][i] for i in range(min(DECODED, len(dataset.splits["dev"])))]
    transcribe = partial(generate_rows, module.model, dataset, module.statistics, order=modalities_of("asr"))
    transcribe(rows[:2], batch=2)
    found: dict[str, Any] = {}
    for batch, part in ((1, rows[:10]), (len(rows), rows)):
        started = time.monotonic()
        written = [text for (text,) in transcribe(part, batch=batch)]
        took = time.monotonic() - started
        found[f"batch {batch}"] = {
            "times_real_time": round(sum(row["seconds"] for row in part) / took, 1),
            "share_at_limit": sum(one.finish_reason == "length" for one in written) / len(written),
        }
    return found


def loader(steps: BatchSchedule, books: dict[str, int], seconds_a_step: float) -> dict[str, float]:
    """Share of padding in an epoch, and share of a step spent on loading its batch without workers."""
    count = steps.epoch_length(0)
    started = time.monotonic()
    made = [steps.batch(step, 0, books) for step in range(count)]
    wait = (time.monotonic() - started) / count
    return {
        "padding_share": round(statistics.fmean(batch.padding for batch in made), 4),
        "seconds_a_batch": round(wait, 5),
        "data_wait_share": round(wait / (wait + seconds_a_step), 4),
    }


def in_bfloat16(step: Callable[[int], None]) -> Callable[[int], None]:
    """A step with `train.precision=bf16-products`."""

    def inner(turn: int) -> None:
        with Products():
            step(turn)

    return inner


def take_turns(*steps: Callable[[int], object]) -> list[list[float]]:
    """Seconds of functions that are called in turn, by turn."""
    return [times[WARM:] for times in alternate(*steps, turns=WARM + TURNS)]
