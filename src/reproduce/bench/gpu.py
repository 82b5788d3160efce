"""`gpu`: training throughput with MFU, and decoding speed, on random tokens of LibriSpeech's lengths, against
Llama of transformers in the same run. One JSON file a stage; a stage can be left out.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from reproduce.bench.generation import FRAMES, alternate, fastest, generate_llama, generate_speech
from reproduce.bench.speed import llama, llama_step, zipper_step
from zipper.commit import commit
from zipper.config import ModelConfig, TowerConfig, TrainConfig, ZipConfig
from zipper.data.batches import collate
from zipper.data.documents import Document, Segment
from zipper.evaluation.result import versions
from zipper.modalities.layout import TokenLayout
from zipper.models.flops import document_flops
from zipper.models.zipper import ZipperModel
from zipper.training.engine import prepare_layers

FRAME_RATE, CODES, CODEBOOKS = 75, 1024, 2  # of EnCodec at 1.5 kbps
SUBWORDS_PER_SECOND = 4
SHORTEST, LONGEST, USUAL = 1.5, 16.5, 15.0  # seconds of LibriSpeech's utterances
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}  # dense bf16 FLOP/s, bytes/s (data sheets)
WARM = 3


def text_tower(layers: int, width: int, heads: int, kv_heads: int, hidden: int, interval: int) -> TowerConfig:
    """A SmolLM2, frozen."""
    return TowerConfig(
        layers, width, heads, kv_heads, hidden, interval=interval, frozen=True, vocabulary=49_152, codebooks=1
    )


def speech_tower(layers: int, width: int, heads: int, hidden: int, interval: int) -> TowerConfig:
    """A tower of EnCodec's units."""
    specials = [CODES, CODES + 1, CODES + 2]
    return TowerConfig(
        layers, width, heads, heads, hidden,
        interval=interval, vocabulary=CODES + 3, codebooks=CODEBOOKS, specials=specials,
    )  # fmt: skip


SIZES = {  # configs/tiny-128m.yaml and gecko-128m.yaml
    "135M + 128M": (text_tower(30, 576, 9, 3, 1536, 7), speech_tower(12, 896, 14, 2752, 3)),
    "362M + 125M": (text_tower(32, 960, 15, 5, 2560, 4), speech_tower(16, 768, 12, 2304, 2)),
}


def run(args: argparse.Namespace) -> None:
    """Run the stages, and write a JSON file of each."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32
    for stage in args.stages:
        found = {
            name: {"throughput": throughput, "decode": decode}[stage](model, args, peaks(card))
            for name, model in models(args.small, device)
        }
        origin = {"device": card, "commit": commit(), "versions": versions(), "command": vars(args)}
        file = args.out / f"{stage}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({**origin, "figures": found}, indent=2, default=str) + "\n", encoding="utf-8"
        )
        print(json.dumps(found, indent=2), f"-> {file}", sep="\n", flush=True)


def models(small: bool, device: torch.device) -> Iterator[tuple[str, ZipperModel]]:
    """Untrained models of all sizes, one at a time."""
    for name, (text, speech) in SIZES.items():
        towers = {"text": text, "speech": speech}
        if small:
            towers = {
                n: replace(t, layers=2, width=64, heads=8, kv_heads=8, hidden=128, interval=1)
                for n, t in towers.items()
            }
        cfg = ModelConfig(towers=towers, zip=ZipConfig(heads=8))
        torch.manual_seed(0)
        model = ZipperModel(cfg, {"text": SUBWORDS_PER_SECOND, "speech": FRAME_RATE}).to(device)
        model.tower("text").requires_grad_(False)
        yield name, model


def peaks(card: str) -> tuple[float, float] | None:
    """FLOP/s and bytes/s of a card, if they are known."""
    return next((values for name, values in PEAKS.items() if name in card), None)


def documents(model: ZipperModel, tokens: int) -> list[Document]:
    """Random utterances for ASR and TTS in turn, until they fill a step when padded."""
    draw, made, longest = random.Random(0), list[Document](), 0
    while True:
        seconds = draw.triangular(SHORTEST, LONGEST, USUAL)
        speech = torch.randint(CODES, (CODEBOOKS, round(seconds * FRAME_RATE)))
        text = torch.randint(2, 1000, (1, max(1, round(seconds * SUBWORDS_PER_SECOND))))
        parts: list[Segment] = []
        for name, content in (("speech", speech), ("text", text))[:: 1 if len(made) % 2 else -1]:
            layout = TokenLayout.of(model.cfg.towers[name])
            inside = layout.tokens(content)
            parts.append(Segment(name, inside, layout.scored(inside), float(len(parts))))
        longest = max(longest, *(len(part.tokens) for part in parts))
        if made and longest * (len(made) + 1) > tokens:
            return made
        made.append(Document(f"{len(made)}", parts, True))


def throughput(
    model: ZipperModel, args: argparse.Namespace, peak: tuple[float, float] | None
) -> dict[str, Any]:
    """Tokens a second and MFU of a training step with bfloat16 products, as it is and compiled."""
    device = next(model.parameters()).device
    made = documents(model, args.tokens)
    batch = collate(made, model.cfg.codebooks).on(device)
    work = sum(
        document_flops(
            model,
            {part.modality: len(part.tokens) for part in one.segments},
            {one.segments[-1].modality: len(one.segments[-1].tokens)},
        ).training
        for one in made
    )
    found: dict[str, Any] = {"tokens": batch.tokens, "padding": round(batch.padding, 4)}
    speech = batch.streams["speech"]
    theirs = llama(model.cfg.towers["speech"]).to(device)
    their_step = autocast(device, llama_step(theirs, [batch]))
    for name in ("eager",) if args.small else ("eager", "compiled"):  # compiling takes minutes
        prepare_layers(model, TrainConfig(compile=name == "compiled"))
        ours, other = alternate(
            autocast(device, zipper_step(model, [batch], TrainConfig())), their_step, turns=WARM + args.turns
        )
        seconds, reference = statistics.median(ours[WARM:]), statistics.median(other[WARM:])
        found[name] = {
            "seconds": round(seconds, 4),
            "spread": [round(min(ours[WARM:]), 4), round(max(ours[WARM:]), 4)],
            "tokens_per_second": round(batch.tokens / seconds),
            "tflops": round(work / seconds / 1e12, 4),
            "mfu": round(work / seconds / peak[0], 4) if peak else None,
            "llama_units_per_second": round(int(speech.valid.sum()) / reference),
        }
    if device.type == "cuda":
        found["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        found["kernels"] = kernels(autocast(device, zipper_step(model, [batch], TrainConfig())))
    return found


def autocast(device: torch.device, step: Callable[[int], None]) -> Callable[[int], None]:
    """A step with bfloat16 products that waits for the device."""

    def whole(turn: int) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            step(turn)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return whole


def kernels(step: Callable[[int], None]) -> list[str]:
    """The ten kernels that take the most time, with their share."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(0)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    return [f"{one.self_device_time_total / total:.1%} {one.key[:80]}" for one in events[:10]]


def decode(model: ZipperModel, args: argparse.Namespace, peak: tuple[float, float] | None) -> dict[str, Any]:
    """Frames a second of writing speech in bfloat16, and the share of the memory's bandwidth that reading the
    weights once a frame takes."""
    device = next(model.parameters()).device
    model = model.to(torch.bfloat16).eval()
    theirs = llama(model.cfg.towers["speech"]).to(device, torch.bfloat16).eval()
    read = [model.tower("speech"), *(model.zip(s, "speech", "text") for s in range(model.stages))]
    weight = sum(p.numel() * p.element_size() for part in read for p in part.parameters())
    found = {}
    for count in args.batches:
        spoken = [one for one in documents(model, 20_000) if one.segments[0].modality == "text"][:1] * count
        prompts = [Document(f"{i}", one.segments[:1], True) for i, one in enumerate(spoken)]
        seconds, reference = fastest(
            partial(generate_speech, model, prompts), partial(generate_llama, theirs, count), turns=4
        )
        found[f"batch {count}"] = {
            "frames_per_second": round(count * FRAMES / seconds, 1),
            "llama_frames_per_second": round(count * FRAMES / reference, 1),
            "bandwidth_share": round(weight * FRAMES / seconds / peak[1], 4) if peak else None,
        }
    return found
