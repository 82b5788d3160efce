"""Evaluation of a codec: WER and speaker similarity of resynthesized speech, and speed."""

import hashlib
import time
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import soundfile as sf
import torch
import torchaudio
from torch import Tensor
from tqdm import tqdm

from zipper.codecs.codec import Codec, SemanticUnits
from zipper.codecs.load import load_codec
from zipper.commit import commit
from zipper.config import RunConfig, to_dict
from zipper.corpora.open import open_corpus
from zipper.corpora.utterance import Utterance
from zipper.data.dataset import corpus_hash
from zipper.disk import check_output_paths, file_name
from zipper.errors import ConfigError, DataError
from zipper.evaluation.figures import spectrograms
from zipper.evaluation.result import versions
from zipper.evaluation.result_file import write_result
from zipper.evaluation.speaker import RATE, speaker_encoder
from zipper.modalities.asr_scorer import AsrScorer, load_asr_scorer
from zipper.modalities.scoring import WordErrors

AUDIO_SAMPLES = 3  # utterances whose resynthesis is written as samples


def evaluate_codec(cfg: RunConfig, command: str) -> dict[str, Any]:
    """Measures the ASR scorer's WER on the resynthesis of cfg.evaluate.split, for every number of codebooks,
    and how near the speaker's embedding stays, if resemblyzer is installed.

    Writes result.json, samples/*.flac and samples/*.png to build/codecs/NAME. The original audio is scored at
    the codec's sample rate. Recordings without a transcript are left out. Raises ConfigError if that folder
    holds a result, DataError if no recording has a transcript.
    """
    check_output_paths(cfg)
    folder = Path(cfg.build) / "codecs" / cfg.name
    file = folder / "result.json"
    if file.exists():
        raise ConfigError(f"{folder} holds a finished evaluation. Choose another name (name=...).")
    codec = load_codec(cfg.codec)
    if isinstance(codec, SemanticUnits):
        raise ConfigError(
            f"codec.weights={cfg.codec.weights} has semantic units alone, and no decoder whose sound could "
            "be scored. Name a codec with sound."
        )
    asr_scorer = load_asr_scorer(cfg.asr_scorer, codec.semantic)
    speakers, code = speaker_encoder(), commit()
    listed = [u for u in open_corpus(cfg) if u.split == cfg.evaluate.split]
    chosen = [u for u in listed if u.text]
    if not chosen:
        raise DataError(
            f"evaluate.split={cfg.evaluate.split}: none of its {len(listed)} recordings has a transcript, "
            "against which words could be counted. Name another split, or add the column text."
        )
    if len(chosen) < len(listed):
        print(f"left out: {len(listed) - len(chosen)} of {len(listed)} recordings, without a transcript")
    waves = [u.wave(codec.sample_rate) for u in chosen]
    seconds = sum(map(len, waves)) / codec.sample_rate
    started = time.monotonic()
    codes = [codec.encode([wave])[0] for wave in tqdm(waves, desc="encode", mininterval=1.0)]
    encode = seconds / (time.monotonic() - started)
    rows = [{"codebooks": None, **score_waves(asr_scorer, codec, chosen, waves, "original")}]
    known = [speakers(at_rate(wave, codec)) for wave in waves] if speakers else []
    if speakers:
        rows[0]["speaker_similarity"] = between_speakers(chosen, known)
    for books in range(codec.codebooks, codec.silent, -1):
        started = time.monotonic()
        back = [codec.decode(code[:books], len(wave)) for code, wave in zip(codes, waves, strict=True)]
        decode = seconds / (time.monotonic() - started)
        rates = {"bits_per_second": codec.bit_rate(books)}
        rates["decode_times_real_time"] = round(decode, 1)
        scored = score_waves(asr_scorer, codec, chosen, back, f"{books} codebooks")
        rows.append({"codebooks": books, **rates, **scored})
        if speakers:
            cosines = [float(a @ speakers(at_rate(b, codec))) for a, b in zip(known, back, strict=True)]
            rows[-1]["speaker_similarity"] = round(fmean(cosines), 4)
    result = {
        "name": cfg.name,
        "task": "codec",
        "split": cfg.evaluate.split,
        "codec": codec.description,
        "sample_rate": codec.sample_rate,
        "frame_rate": codec.frame_rate,
        "seconds": round(seconds, 1),
        "utterances": len(chosen),
        "asr_scorer": asr_scorer.name,
        "speaker_encoder": speakers.name if speakers else None,
        "normaliser": asr_scorer.normaliser,
        "encode_times_real_time": round(encode, 1),
        "threads": torch.get_num_threads(),
        "rows": rows,
        "seed": cfg.seed,
        "commit": code,
        "command": command,
        "data_fingerprint": corpus_hash(chosen, cfg.build),
        "versions": versions(),
        "config": to_dict(cfg),
    }
    write_samples(folder / "samples", codec, chosen, waves, codes)
    write_result(result, file, *([Path(cfg.result)] if cfg.result else []))
    print(table(result))
    print(f"samples: {folder}/samples; result -> {file}")
    return result


def at_rate(wave: Tensor, codec: Codec) -> Tensor:
    """Wave at the rate of the speaker encoder."""
    return torchaudio.functional.resample(wave, codec.sample_rate, RATE)


def between_speakers(utterances: list[Utterance], embeddings: list[Tensor]) -> float | None:
    """Mean cosine of neighbouring recordings of different speakers, what a codec that loses the voice would
    have at best; None if there is one speaker."""
    pairs = zip(utterances, embeddings, strict=True)
    order = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].id.encode()).hexdigest())
    cosines = [float(x @ y) for (a, x), (b, y) in pairwise(order) if a.speaker != b.speaker]
    return round(fmean(cosines), 4) if cosines else None


def score_waves(
    asr_scorer: AsrScorer, codec: Codec, utterances: list[Utterance], waves: list[Tensor], what: str
) -> dict[str, Any]:
    """Total word errors of the ASR scorer on waves."""
    transcripts = asr_scorer.transcribe_waves(waves, codec.sample_rate, what)
    pairs = zip(utterances, transcripts, strict=True)
    counts = sum((asr_scorer.errors(u.text or "", transcript) for u, transcript in pairs), WordErrors())
    return {"wer": round(counts.rate, 6), "errors": counts.errors, "words": counts.words}


def write_samples(
    folder: Path, codec: Codec, utterances: list[Utterance], waves: list[Tensor], codes: list[Tensor]
) -> None:
    """Writes the first utterances, original and with every number of codebooks, as FLAC and spectrograms."""
    folder.mkdir(parents=True, exist_ok=True)
    for u, wave, code in list(zip(utterances, waves, codes, strict=True))[:AUDIO_SAMPLES]:
        waves_of = {"original": wave} | {
            f"{q}-codebooks": codec.decode(code[:q], len(wave))
            for q in range(codec.codebooks, codec.silent, -1)
        }
        stem = file_name(u.id)
        for name, samples in waves_of.items():
            sf.write(folder / f"{stem}-{name}.flac", samples.clamp(-1, 1).numpy(), codec.sample_rate)
        spectrograms(waves_of, codec.sample_rate, u.text or "", folder / f"{stem}.png")


def table(result: dict[str, Any]) -> str:
    """Table for the terminal."""
    lines = [f"{'':<12}{'bit/s':>8}{'WER':>9}{'speaker':>9}{'decode':>12}   ({result['asr_scorer']})"]
    for row in result["rows"]:
        name = "original" if row["codebooks"] is None else f"{row['codebooks']} codebooks"
        rate = f"{row['bits_per_second']:.0f}" if "bits_per_second" in row else ""
        speed = f"{row['decode_times_real_time']:.0f} x real" if "decode_times_real_time" in row else ""
        near = row.get("speaker_similarity")
        voice = "" if near is None else f"{near:.2f}"
        lines.append(f"{name:<12}{rate:>8}{100 * row['wer']:>8.1f}%{voice:>9}{speed:>12}")
    legend = (
        "speaker: cosine with the recording's speaker embedding; in the first line, of different speakers"
    )
    if not result["speaker_encoder"]:
        legend = "speaker similarity is not measured: `make setup-speaker` first"
    return "\n".join([*lines, f"encoding: {result['encode_times_real_time']:.0f} x real time", legend])
