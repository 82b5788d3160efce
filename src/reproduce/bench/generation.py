"""Speed of speech generation: with and without cache, against transformers, and from text to waveform."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reproduce import ROOT
from zipper.config import SamplingConfig, TowerConfig
from zipper.data.batches import Batch, collate
from zipper.data.dataset import EncodedDataset
from zipper.data.documents import Document, Segment, document
from zipper.generation.generate import GREEDY, SegmentGenerator, generate, prefill
from zipper.generation.zipper import Zipper
from zipper.modalities.layout import FREE, TokenLayout
from zipper.models.multimodal import MultimodalModel

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FRAMES = 300
TURNS = 5  # after a warm-up
EVERY = 25  # the loop without cache is measured at multiples of this length
COMPILED = SamplingConfig(compile=True)
SPOKEN = 20  # sentences synthesized from text to waveform


class NeverEnds(TokenLayout):
    """Token layout without a free EOS, so that an untrained model generates up to the length limit."""

    def allowed(self) -> Tensor:
        allowed = super().allowed()
        allowed[FREE, self.eos] = False
        return allowed


def generation(
    model: MultimodalModel, dataset: EncodedDataset, llama: Callable[[TowerConfig], "LlamaForCausalLM"]
) -> dict[str, Any]:
    """Frames per second of an untrained Zipper, with ratios; real-time factor of the shipped model."""
    model.eval()
    model.used = model.pairs  # text-to-speech needs this direction, whatever the config trains
    dev = dataset.splits["dev"]
    rows = [dev[i % len(dev)] for i in range(64)]
    documents = [document(dataset, row, "tts", 0.0) for row in rows]
    prompts = [Document(doc.id, doc.segments[:-1], doc.multimodal) for doc in documents]
    found: dict[str, Any] = {}
    for batch in (1, 16, 64):
        runs = (
            partial(generate_speech, model, prompts[:batch]),
            partial(generate_speech, model, prompts[:batch], COMPILED),
            partial(generate_llama, llama(model.cfg.towers["speech"]), batch),
        )
        took = alternate(*(lambda _, run=run: run() for run in runs), turns=1 + TURNS)
        cached, native, theirs = (times[1:] for times in took)
        found[f"batch {batch}"] = {
            "frames_per_second": round(batch * FRAMES / statistics.median(cached), 1),
            "frames_per_second_compiled": round(batch * FRAMES / statistics.median(native), 1),
            "llama_frames_per_second": round(batch * FRAMES / statistics.median(theirs), 1),
            **compared("times_llama", theirs, cached),
            **compared("times_llama_compiled", theirs, native),
        }
        if batch <= 16:  # minutes for more
            uncached = uncached_seconds(model, prompts[:batch])
            found[f"batch {batch}"]["times_uncached"] = round(uncached / statistics.median(cached), 2)
    if (ROOT / "assets/zipped").is_dir():
        for suffix, sampling in (("", GREEDY), ("_compiled", COMPILED)):
            found[f"real_time_factor{suffix}"] = round(real_time_factor(dataset, sampling), 4)
        found |= from_the_shell(dataset.splits["dev"][0]["text"])
    return found


def fastest(*runs: Callable[[], None], turns: int = 5) -> list[float]:
    """Minimum seconds of each run."""
    return [min(times) for times in alternate(*(lambda _, run=run: run() for run in runs), turns=turns)]


def alternate(*runs: Callable[[int], object], turns: int) -> list[list[float]]:
    """Seconds of each run by turn. Runs alternate, so that a slowdown of the machine affects all."""
    took: list[list[float]] = [[] for _ in runs]
    for turn in range(turns):
        for run, kept in zip(runs, took, strict=True):
            started = time.perf_counter()
            run(turn)
            kept.append(time.perf_counter() - started)
    return took


def compared(name: str, theirs: list[float], ours: list[float], units: float = 1.0) -> dict[str, Any]:
    """Their median seconds in ours, times `units` (those of our run in one of theirs), and the least and the
    most of one turn."""
    turns = sorted(units * b / a for a, b in zip(ours, theirs, strict=True))
    ratio = units * statistics.median(theirs) / statistics.median(ours)
    return {name: round(ratio, 3), f"{name}_spread": [round(turns[0], 3), round(turns[-1], 3)]}


@torch.no_grad()
def generate_speech(
    model: MultimodalModel, prompts: list[Document], sampling: SamplingConfig = GREEDY
) -> None:
    """Generates FRAMES frames for each prompt with the cache."""
    generator = SegmentGenerator(prefill(model, prompts, {"speech"}), "speech", [])
    generator.layout = NeverEnds(*generator.layout)
    rows, ids = list(range(len(prompts))), [one.id for one in prompts]
    (first, *_) = generator.generate(rows, [FRAMES] * len(rows), sampling, ids, 0, append_last=False)
    assert first.content.shape[1] == FRAMES


@torch.no_grad()
def uncached_seconds(model: MultimodalModel, prompts: list[Document]) -> float:
    """Seconds without cache: a forward pass over whole documents for each new frame."""
    tower, total = model.cfg.towers["speech"], 0.0
    for length in range(EVERY, FRAMES + 1, EVERY):
        tokens = torch.randint(tower.vocabulary - 3, (length - EVERY // 2, tower.codebooks))
        speech = Segment("speech", tokens, tokens >= 0, 0.0)
        batch = collate(
            [Document(p.id, [*p.segments, speech], p.multimodal) for p in prompts], model.cfg.codebooks
        )
        total += EVERY * fastest(partial(one_forward, model, batch), turns=2)[0]
    return total


def one_forward(model: MultimodalModel, batch: Batch) -> None:
    """Computes the logits of the last timestep."""
    model.tower("speech").logits(model(batch)["speech"][:, -1])


@torch.no_grad()
def generate_llama(llama: "LlamaForCausalLM", batch: int) -> None:
    """Generates FRAMES tokens of one codebook with transformers and its static cache."""
    prompt = torch.zeros(batch, 1, dtype=torch.int64, device=llama.device)
    out = llama.generate(
        prompt, attention_mask=torch.ones_like(prompt),
        min_new_tokens=FRAMES, max_new_tokens=FRAMES, do_sample=False, cache_implementation="static",
        use_cache=True, pad_token_id=0,
    )  # fmt: skip
    assert out.shape[1] == FRAMES + 1


def real_time_factor(dataset: EncodedDataset, sampling: SamplingConfig) -> float:
    """Real-time factor of text to units to waveform, one sentence at a time."""
    model = Zipper.from_pretrained(ROOT / "assets/zipped")
    dev = dataset.splits["dev"]
    texts = [dev[i % len(dev)]["text"] for i in range(SPOKEN + 1)]
    work = sound = 0.0
    for turn, text in enumerate(texts):
        started = time.perf_counter()
        ((speech,),) = generate(
            model.network, [model.document(f"{turn}", {"text": text})], ["speech"], model.statistics,
            {"speech": sampling},
        )  # fmt: skip
        wave = model.modalities["speech"].decode(speech.content)
        if turn:  # the first sentence is a warm-up
            work += time.perf_counter() - started
            sound += len(wave) / model.sample_rate
    return work / sound


def from_the_shell(text: str) -> dict[str, float]:
    """Median seconds of `zipper generate` for a sentence, and of importing torch alone, in processes of their
    own. Their bytecode is kept, as Python does it."""
    with TemporaryDirectory() as folder:
        bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}

        def run(*words: str) -> Callable[[int], object]:
            command, environment = [sys.executable, *words], os.environ | bytecode
            return lambda _: subprocess.check_output(command, env=environment)

        model, out = str(ROOT / "assets/zipped"), str(Path(folder) / "a.wav")
        generate = ("generate", model, "--text", text, "--then", "speech", "--out", out, "--overwrite")
        took = alternate(run("-m", "zipper", *generate), run("-c", "import torch"), turns=1 + TURNS)
    shell, torch_alone = (statistics.median(times[1:]) for times in took)  # the first turn compiles
    return {"shell_seconds": round(shell, 2), "import_torch_seconds": round(torch_alone, 2)}
