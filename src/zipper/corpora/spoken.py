"""Synthetic corpus: sentences of the grammar, or of a text folder, read by a small neural TTS voice.

Deterministic and resumable: rate, pitch and noise of a file depend on (seed, id) only, existing files are
kept, and the manifest is written last.
"""

import hashlib
import itertools
import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile as sf
import torch
import torchaudio.functional as AF
from tqdm import tqdm

from zipper.config import DataConfig, expanded
from zipper.corpora.grammar import sentences
from zipper.corpora.lists import MAX_WORDS, passages, sentences_of_folder
from zipper.corpora.utterance import FIRST, Utterance, read_manifest, write_manifest
from zipper.errors import DataError
from zipper.modalities.normalise import normaliser_of
from zipper.stop import ignore_group_signals

if TYPE_CHECKING:
    from hibari import Hibari

VOICE_RATE = 24_000  # Hz, sample rate of the voice
SILENCE = 0.01  # amplitude below which the edges of a recording are silent
MARGIN = 0.1  # seconds of silence kept at each edge
PITCHES = [round(0.88 + 0.02 * step, 2) for step in range(13)]  # steps of 2 % keep resampling cheap


def spoken_corpus(cfg: DataConfig, root: Path, workers: int) -> list[Utterance]:
    """Utterances of the synthetic corpus, by split and id; synthesizes missing files in `workers` processes.

    root: folder of all synthetic corpora; this one has a subfolder named by the hash of its recipe.
    Raises DataError if the text folder is missing or too small.
    """
    if find_spec("hibari") is None:
        raise DataError(
            "data.corpus=spoken needs the voice hibari-tts. Run `make setup`, or `pip install hibari-tts`."
        )
    folder = root / f"spoken-{recipe_hash(cfg)}"
    manifest = folder / "manifest.jsonl"
    if manifest.exists():
        found = read_manifest(manifest)  # its paths are those of the machine that made it
        here = [folder.joinpath(*Path(u.audio or "").parts[-2:]).resolve() for u in found]
        return [
            replace(u, subset=f"spoken/{u.split}", audio=str(file))
            for u, file in zip(found, here, strict=True)
        ]
    utterances = []
    for split, texts in spoken_texts(cfg).items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i, text in enumerate(texts):
            id = f"{split}-{i:05d}"
            audio = str((folder / split / f"{id}.flac").resolve())
            utterances.append(Utterance(id, audio, text, "heart", split, f"spoken/{split}"))
    synthesize(utterances, cfg, workers)
    write_manifest(manifest, utterances)
    return utterances


def synthesize(utterances: list[Utterance], cfg: DataConfig, workers: int) -> None:
    """Synthesize the recordings that are missing, in `workers` processes."""
    todo = [(u, cfg.seed, cfg.rates) for u in utterances if not Path(u.audio or "").exists()]
    pool = ProcessPoolExecutor(max(workers, 1), get_context("spawn"), initializer=ignore_group_signals)
    try:
        spoken = pool.map(_speak, todo, chunksize=16)
        for _ in tqdm(spoken, total=len(todo), desc="speak", unit="utterance", mininterval=1.0):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # cancels pending work on a signal


def spoken_texts(cfg: DataConfig) -> dict[str, list[str]]:
    """Normalised sentences of every split, all distinct.

    The stream of sentences gives FIRST training sentences, then dev and test, then more training sentences.
    Dev, test and the start of train are therefore the same for every data.train of at least FIRST.
    """
    total = cfg.train + cfg.dev + cfg.test
    if cfg.text_folder is None:
        pool = list(itertools.islice(sentences(cfg.seed), total))
    else:
        what, longest = ("passages", None) if cfg.passages else ("sentences", MAX_WORDS)
        texts = sentences_of_folder(expanded(cfg.text_folder), f"data.text_folder={cfg.text_folder}", longest)
        if cfg.passages:
            texts = {
                name: [*passages(one, cfg.passages, f"{cfg.seed} {name}")] for name, one in texts.items()
            }
        pool = list(dict.fromkeys(itertools.chain(*texts.values())))  # distinct, in order
        if len(pool) < total:
            raise DataError(
                f"data.text_folder={cfg.text_folder} holds {len(pool)} usable {what}, but data.train + "
                f"data.dev + data.test need {total}. Reduce them, or add text."
            )
        random.Random(cfg.seed).shuffle(pool)
    dev = min(cfg.train, FIRST)
    test = dev + cfg.dev
    more = test + cfg.test
    return {"train": pool[:dev] + pool[more:total], "dev": pool[dev:test], "test": pool[test:more]}


def recipe_hash(cfg: DataConfig) -> str:
    """Hash of what determines a synthetic corpus: sentences, rates, seed and voice."""
    voice = [version("hibari-tts"), VOICE_RATE, SILENCE, MARGIN, PITCHES]
    texts = spoken_texts(cfg)
    normaliser = normaliser_of(text for split in texts.values() for text in split)
    recipe = [texts, cfg.seed, cfg.rates, voice, normaliser]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]


@cache
def _voice() -> "Hibari":
    from hibari import Hibari

    torch.set_num_threads(1)
    return Hibari()


def drawn_voice(utterance: Utterance, seed: int, rates: tuple[float, float]) -> tuple[float, float, int]:
    """Pitch, speed and noise seed of an utterance: functions of (seed, id)."""
    draw = random.Random(f"{seed} {utterance.id}")
    pitch = draw.choice(PITCHES)
    return pitch, draw.uniform(*rates) / pitch, draw.randrange(2**31)


def _speak(job: tuple[Utterance, int, tuple[float, float]]) -> None:
    """Synthesizes one utterance and writes its file atomically."""
    utterance, seed, rates = job
    pitch, speed, noise = drawn_voice(utterance, seed, rates)
    assert utterance.text is not None
    assert utterance.audio is not None
    wave = _voice()(utterance.text + ".", speed=speed, seed=noise)
    start, end = edges(wave)
    # Playing it `pitch` times faster raises the voice and restores the sampled rate.
    resampled = AF.resample(torch.from_numpy(wave[start:end]), round(VOICE_RATE * pitch), VOICE_RATE).numpy()
    aside = Path(utterance.audio).with_suffix(f".{os.getpid()}.part")  # two processes may write the same file
    sf.write(aside, resampled, VOICE_RATE, format="FLAC", subtype="PCM_16")
    aside.rename(utterance.audio)


def edges(wave: np.ndarray) -> tuple[int, int]:
    """Samples between which MARGIN seconds of the voice's silence at the edges are left (of about 0.7)."""
    loud = np.flatnonzero(np.abs(wave) > SILENCE)
    margin = int(MARGIN * VOICE_RATE)
    return (max(int(loud[0]) - margin, 0), int(loud[-1]) + margin) if len(loud) else (0, len(wave))
