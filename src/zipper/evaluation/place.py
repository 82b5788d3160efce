"""Which run a config.yaml belongs to: that of the folder it lies in, wherever that was moved, whatever name
it has by now."""

from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from zipper.config import RunConfig, load_config, overridden_keys, with_overrides
from zipper.errors import ConfigError

MADE = ("result", "export")  # settings of what is written
FOUND = ("data.folder", "data.text_folder", "data.tokenizer", "codec.weights", "judge.model")


def evaluation_config(config: Path, overrides: Sequence[str]) -> RunConfig:
    """A run's config with the caller's overrides. Where its own results went is not written over: only a override
    names such a place."""
    unnamed = [f"{key}=null" for key in MADE if key not in overridden_keys(overrides)]
    return with_overrides(load_config(config, overrides), unnamed)


def run_folder(config: Path, overrides: Sequence[str]) -> Path | None:
    """The folder of the run whose config.yaml is given; None where it is another config, or a override names
    another run (name=...)."""
    folder = config.resolve().parent
    named = any(override.startswith("name=") for override in overrides)
    ours = config.name == "config.yaml" and (folder / "checkpoints").is_dir()
    return folder if ours and not named else None


@contextmanager
def training_directory(cfg: RunConfig, folder: Path, overrides: Sequence[str]) -> Iterator[RunConfig]:
    """In the working directory that the run's relative paths were written for, where folder tells which; its
    config, with its folder's name. Paths among overrides are found from where the caller is."""
    with suppress(ConfigError):  # a folder whose name is no run's keeps the old one
        cfg = replace(cfg, name=folder.name)
    if any(override.startswith("build=") for override in overrides):
        yield cfg
        return
    if base := _base(cfg, folder):
        cfg = _from_here(cfg, overrides)
        with chdir(base):
            yield cfg
        return
    beside = folder.parent.parent
    if folder.parent.name == "runs" and (beside / "stores").is_dir():
        cfg = replace(cfg, build=str(beside))
    yield cfg


def _from_here(cfg: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The paths among overrides as absolute ones. A judge or a codec may have a name that is no path."""
    absolute = []
    for key in overridden_keys(overrides) & {*MADE, *FOUND}:
        section, _, setting = key.rpartition(".")
        value = getattr(getattr(cfg, section) if section else cfg, setting)
        if value and (key in (*MADE, "data.folder") or Path(value).exists()):
            absolute.append(f"{key}={Path(value).expanduser().absolute()}")
    return with_overrides(cfg, absolute)


def _base(cfg: RunConfig, folder: Path) -> Path | None:
    """That in which build/runs/NAME is folder; None where this is no such place, or the working directory."""
    below = Path(cfg.build, "runs").parts
    if Path(cfg.build).is_absolute() or ".." in below or folder.parent.parts[-len(below) :] != below:
        return None
    base = Path(*folder.parent.parts[: -len(below)])
    return None if base == Path.cwd().resolve() else base
