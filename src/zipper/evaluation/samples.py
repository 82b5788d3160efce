"""Samples of an evaluation: audio and image files in the run folder, tables in W&B."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from zipper.config import RunConfig, modalities_of
from zipper.data.dataset import EncodedDataset, Row
from zipper.disk import file_name
from zipper.errors import DataError
from zipper.evaluation.figures import spectrograms
from zipper.evaluation.result import chosen_rows
from zipper.evaluation.result_file import UtteranceResult
from zipper.generation.generate import GenerationOutput
from zipper.modalities.asr_scorer import SCORER_RATE
from zipper.modalities.base import Modality
from zipper.modalities.speech_scorer import recording

TABLE = 20  # utterances in a W&B table, about 40 kB of audio each


class SampleFiles(NamedTuple):
    """Files of one generated waveform."""

    wav: Path
    png: Path


def show_samples(
    loggers: list[Logger],
    folder: Path,
    cfg: RunConfig,
    task: str,
    split: str,
    dataset: EncodedDataset,
    entries: list[UtteranceResult],
    segments: list[GenerationOutput],
    step: int,
) -> None:
    """Writes samples of generated waveforms to a folder, and logs a W&B table of the first answers of a task:
    generated waveforms, or the recordings of the prompts if they still exist."""
    rows = chosen_rows(dataset, cfg, task, split)
    modality = dataset.modalities[modalities_of(task)[-1]]
    target = ["target"] if "target" in entries[0] else []
    columns = ["id", "reference", "hypothesis", *target, "errors", "stopped"]
    spoken = bool(modality.sample_rate)
    if spoken:
        files = write_samples(folder, cfg.evaluate.listened, modality, rows, entries, segments)
    drawn = modality.suffix == ".png"
    pictures = write_pictures(folder, modality, rows[:TABLE], segments) if drawn else []
    for logger in _wandb(loggers):
        media: list[list[Any]] = (
            [[wandb.Image(str(one)), wandb.Image(str(target))] for one, target in pictures]
            if drawn
            else [[_audio(row)] for row in rows[:TABLE]]
            if not spoken
            else [[wandb.Audio(str(one.wav)), wandb.Image(str(one.png))] for one in files]
        )
        data = [
            [*(cast(dict[str, Any], one)[column] for column in columns), *shown]
            for one, shown in zip(entries, media, strict=False)
        ]
        shown = ["image", "target image"] if drawn else ["audio", *(["spectrogram"] if spoken else [])]
        kind = "drawn" if drawn else "spoken" if spoken else "recognised"
        logger.log_table(f"{split}/{kind}", columns=[*columns, *shown], data=data, step=step)


def write_samples(
    folder: Path,
    count: int,
    modality: Modality,
    rows: list[Row],
    entries: list[UtteranceResult],
    segments: list[GenerationOutput],
) -> list[SampleFiles]:
    """Writes ID.wav, ID-target.wav (resynthesis of the recording) and ID.png of the first `count` answers.

    An unsafe ID is escaped (`file_name`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rate, out = modality.sample_rate or 0, []
    for row, entry, segment in list(zip(rows, entries, segments, strict=False))[:count]:
        made, target = modality.decode(segment.content), modality.decode(modality.content(row))
        name = file_name(entry["id"])
        wav = modality.write(made, folder / name)
        assert wav is not None
        modality.write(target, folder / f"{name}-target")
        waves = {"model": made, "target": target} if len(made) >= rate // 10 else {"target": target}
        title = f"reference: {entry['reference']}\nASR transcript: {entry['hypothesis'] or '(empty)'}"
        out.append(SampleFiles(wav, spectrograms(waves, rate, title, folder / f"{name}.png")))
    return out


def write_pictures(
    folder: Path, modality: Modality, rows: list[Row], segments: list[GenerationOutput]
) -> list[tuple[Path, Path]]:
    """Writes ID.png, the generated image, and ID-target.png, that of the row. Returns both files."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for row, segment in zip(rows, segments, strict=False):
        stem = folder / file_name(row["id"])
        made = modality.write(modality.decode(segment.content), stem)
        target = modality.write(modality.decode(modality.content(row)), folder / f"{stem.name}-target")
        assert made is not None
        assert target is not None
        out.append((made, target))
    return out


def log_figures(loggers: list[Logger], files: list[Path], step: int) -> None:
    """Logs figures to W&B."""
    for logger in _wandb(loggers):
        for file in files:
            logger.log_image(f"figures/{file.stem}", [str(file)], step=step)


def _wandb(loggers: list[Logger]) -> list[WandbLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]


def _audio(row: Row) -> wandb.Audio | None:
    try:
        return wandb.Audio(recording(row).numpy(), sample_rate=SCORER_RATE)
    except DataError:  # removed or changed since it was encoded
        return None
