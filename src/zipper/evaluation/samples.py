"""Samples of an evaluation: audio and image files in the run folder, tables in W&B."""

from pathlib import Path
from typing import Any, cast

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
    """Writes samples of generated waveforms or images to a folder, and logs a W&B table of the first answers
    of a task: what was generated, or the recordings of the prompts if they still exist."""
    rows = chosen_rows(dataset, cfg, task, split)
    modality = dataset.modalities[modalities_of(task)[-1]]
    target = ["target"] if "target" in entries[0] else []
    columns = ["id", "reference", "hypothesis", *target, "errors", "stopped"]
    files: list[tuple[Path, Path]] | None = None
    kind, shown = "recognised", ["audio"]
    if modality.sample_rate:
        kind, shown = "spoken", ["audio", "spectrogram"]
        files = write_samples(folder, cfg.evaluate.audio_samples, modality, rows, entries, segments)
    elif modality.suffix == ".png":
        kind, shown = "drawn", ["image", "target image"]
        files = write_samples(folder, TABLE, modality, rows, entries, segments)
    show = wandb.Image if kind == "drawn" else wandb.Audio
    for logger in _wandb(loggers):
        media: list[list[Any]] = (
            [[_audio(row)] for row in rows[:TABLE]]
            if files is None
            else [[show(str(one)), wandb.Image(str(beside))] for one, beside in files]
        )
        data = [
            [*(cast(dict[str, Any], one)[column] for column in columns), *own]
            for one, own in zip(entries, media, strict=False)
        ]
        logger.log_table(f"{split}/{kind}", columns=[*columns, *shown], data=data, step=step)


def write_samples(
    folder: Path,
    count: int,
    modality: Modality,
    rows: list[Row],
    entries: list[UtteranceResult],
    segments: list[GenerationOutput],
) -> list[tuple[Path, Path]]:
    """Writes the first `count` answers, ID.wav or ID.png, with ID-target, which is decoded from the row, and
    the spectrograms of a waveform, ID.png. Returns each answer's file with its spectrograms or its target.

    An unsafe ID is escaped (`file_name`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rate, out = modality.sample_rate, []
    for row, entry, segment in list(zip(rows, entries, segments, strict=False))[:count]:
        made, target = modality.decode(segment.content), modality.decode(modality.content(row))
        name = file_name(entry["id"])
        file = modality.write(made, folder / name)
        beside = modality.write(target, folder / f"{name}-target")
        assert file is not None
        assert beside is not None
        if rate:
            waves = {"model": made, "target": target} if len(made) >= rate // 10 else {"target": target}
            title = f"reference: {entry['reference']}\nASR transcript: {entry['hypothesis'] or '(empty)'}"
            beside = spectrograms(waves, rate, title, folder / f"{name}.png")
        out.append((file, beside))
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
