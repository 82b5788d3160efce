"""Which run a config.yaml belongs to: that of the folder it lies in, wherever that was moved, whatever name
it has by now."""

from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from zipper.errors import ConfigError
from zipper.schema import RunConfig


def run_folder(config: Path, words: Sequence[str]) -> Path | None:
    """The folder of the run whose config.yaml is given; None where it is another config, or a word names
    another run (name=...)."""
    folder = config.resolve().parent
    named = any(word.startswith("name=") for word in words)
    ours = config.name == "config.yaml" and (folder / "checkpoints").is_dir()
    return folder if ours and not named else None


@contextmanager
def where_trained(cfg: RunConfig, folder: Path, words: Sequence[str]) -> Iterator[RunConfig]:
    """In the working directory that the run's relative paths were written for, where folder tells which; its
    config, with its folder's name. What the caller names is found from where he is."""
    with suppress(ConfigError):  # a folder whose name is no run's keeps the old one
        cfg = replace(cfg, name=folder.name)
    if any(word.startswith("build=") for word in words):
        yield cfg
        return
    if base := _base(cfg, folder):
        if cfg.result:
            cfg = replace(cfg, result=str(Path(cfg.result).absolute()))
        if cfg.judge.model and Path(cfg.judge.model).exists():
            cfg = replace(cfg, judge=replace(cfg.judge, model=str(Path(cfg.judge.model).absolute())))
        with chdir(base):
            yield cfg
        return
    beside = folder.parent.parent
    if folder.parent.name == "runs" and (beside / "stores").is_dir():
        cfg = replace(cfg, build=str(beside))
    yield cfg


def _base(cfg: RunConfig, folder: Path) -> Path | None:
    """That in which build/runs/NAME is folder; None where this is no such place, or the working directory."""
    below = Path(cfg.build, "runs").parts
    if Path(cfg.build).is_absolute() or ".." in below or folder.parent.parts[-len(below) :] != below:
        return None
    base = Path(*folder.parent.parts[: -len(below)])
    return None if base == Path.cwd().resolve() else base
