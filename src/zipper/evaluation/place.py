"""Finds the run of a config.yaml by its folder, also if the folder was moved or renamed."""

from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from zipper.config import RunConfig, expanded, load_config, overridden_keys, with_overrides
from zipper.errors import ConfigError

OUTPUT_KEYS = ("result", "export")  # settings of output paths
INPUT_KEYS = (
    "data.folder", "data.text_folder", "data.tokenizer", "codec.weights", "codec.semantic",
    "asr_scorer.model",
)  # fmt: skip


def evaluation_config(config: Path, overrides: Sequence[str]) -> RunConfig:
    """Config of a run with overrides.

    Output paths of the run itself are unset, so that only an override names one.
    """
    unset = [f"{key}=null" for key in OUTPUT_KEYS if key not in overridden_keys(overrides)]
    return with_overrides(load_config(config, overrides), unset)


def run_folder(config: Path, overrides: Sequence[str]) -> Path | None:
    """Run folder of a config.yaml; None for another config, or if an override sets another name."""
    folder = config.resolve().parent
    named = any(override.startswith("name=") for override in overrides)
    ours = config.name == "config.yaml" and (folder / "checkpoints").is_dir()
    return folder if ours and not named else None


@contextmanager
def training_directory(cfg: RunConfig, folder: Path, overrides: Sequence[str]) -> Iterator[RunConfig]:
    """Context in the working directory that the run's relative paths refer to, derived from its folder.

    Yields the config, named after the folder. Paths in overrides stay relative to the caller's directory.
    """
    with suppress(ConfigError):  # an invalid folder name keeps the old run name
        cfg = replace(cfg, name=folder.name)
    if any(override.startswith("build=") for override in overrides):
        yield cfg
        return
    if base := _base(cfg, folder):
        cfg = _with_absolute_paths(cfg, overrides)
        with chdir(base):
            yield cfg
        return
    beside = folder.parent.parent
    if folder.parent.name == "runs" and (beside / "stores").is_dir():
        cfg = replace(cfg, build=str(beside))
    yield cfg


def _with_absolute_paths(cfg: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Makes paths in overrides absolute. That of asr_scorer.model or codec.weights may also be a name."""
    absolute = []
    for key in overridden_keys(overrides) & {*OUTPUT_KEYS, *INPUT_KEYS}:
        section, _, setting = key.rpartition(".")
        value = getattr(getattr(cfg, section) if section else cfg, setting)
        if value and (key in (*OUTPUT_KEYS, "data.folder") or Path(value).exists()):
            absolute.append(f"{key}={expanded(value).absolute()}")
    return with_overrides(cfg, absolute)


def _base(cfg: RunConfig, folder: Path) -> Path | None:
    """Directory in which folder is build/runs/NAME; None if there is none, or it is the working directory."""
    below = Path(cfg.build, "runs").parts
    if Path(cfg.build).is_absolute() or ".." in below or folder.parent.parts[-len(below) :] != below:
        return None
    base = Path(*folder.parent.parts[: -len(below)])
    return None if base == Path.cwd().resolve() else base
