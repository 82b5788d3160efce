"""Samples of an evaluation: audio and image files in the run folder, tables in W&B."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import soundfile as sf
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from zipper.config import RunConfig
from zipper.data.dataset import EncodedDataset, Row
from zipper.disk import file_name
from zipper.errors import DataError
from zipper.evaluation.figures import spectrograms
from zipper.evaluation.result import chosen_rows
from zipper.evaluation.scorer import SCORER_RATE
from zipper.evaluation.transcripts import piece
from zipper.evaluation.tts import SpeechScorer
from zipper.generation.generate import GenerationOutput

TABLE = 20  # utterances in a W&B table, about 40 kB of audio each
Entry = dict[str, str | int | float]


class SampleFiles(NamedTuple):
    """Files of one synthesized sentence."""

    wav: Path
    png: Path


def write_samples(
    folder: Path,
    cfg: RunConfig,
    speech_scorer: SpeechScorer,
    dataset: EncodedDataset,
    entries: list[Entry],
    segments: list[GenerationOutput],
) -> list[SampleFiles]:
    """Writes ID.wav, ID-target.wav (codec resynthesis of the recording) and ID.png of the first sentences.

    An unsafe ID is escaped (`file_name`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rate, out = speech_scorer.codec.sample_rate, []
    rows = chosen_rows(dataset, cfg, "tts")
    for index in range(min(cfg.evaluate.listened, len(segments))):
        entry, row = entries[index], rows[index]
        made, target = speech_scorer.wave(segments[index]), speech_scorer.codec.decode(dataset.row_codes(row))
        name = file_name(str(entry["id"]))
        files = SampleFiles(folder / f"{name}.wav", folder / f"{name}.png")
        sf.write(files.wav, made.clamp(-1, 1).numpy(), rate)
        sf.write(folder / f"{name}-target.wav", target.clamp(-1, 1).numpy(), rate)
        waves = {"model": made, "target": target} if len(made) >= rate // 10 else {"target": target}
        title = f"reference: {entry['reference']}\nASR transcript: {entry['hypothesis'] or '(empty)'}"
        spectrograms(waves, rate, title, files.png)
        out.append(files)
    return out


def log_transcripts(
    loggers: list[Logger], split: str, entries: list[Entry], rows: Iterable[Row], step: int
) -> None:
    """Logs a W&B table of the first transcribed utterances, with their audio if it still exists.

    rows: rows of the encoded dataset, in the order of entries.
    """
    columns = ["id", "reference", "hypothesis", "errors", "stopped"]
    for logger in _wandb(loggers):
        data = [
            [*(one[column] for column in columns), _audio(row)]
            for one, row in zip(entries[:TABLE], rows, strict=False)
        ]
        logger.log_table(f"{split}/recognised", columns=[*columns, "audio"], data=data, step=step)


def log_speech(
    loggers: list[Logger], split: str, entries: list[Entry], shown: list[SampleFiles], step: int
) -> None:
    """Logs a W&B table of synthesized sentences with audio and spectrogram."""
    columns = ["id", "reference", "hypothesis", "target", "errors", "stopped"]
    for logger in _wandb(loggers):
        data = [
            [*(one[column] for column in columns), wandb.Audio(str(files.wav)), wandb.Image(str(files.png))]
            for one, files in zip(entries, shown, strict=False)
        ]
        names = [*columns, "audio", "spectrogram"]
        logger.log_table(f"{split}/spoken", columns=names, data=data, step=step)


def log_figures(loggers: list[Logger], files: list[Path], step: int) -> None:
    """Logs figures to W&B."""
    for logger in _wandb(loggers):
        for file in files:
            logger.log_image(f"figures/{file.stem}", [str(file)], step=step)


def _wandb(loggers: list[Logger]) -> list[WandbLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]


def _audio(row: Row) -> wandb.Audio | None:
    try:
        return wandb.Audio(piece(row).wave(SCORER_RATE).numpy(), sample_rate=SCORER_RATE)
    except DataError:  # removed or changed since it was encoded
        return None
