"""Opens the corpora of a config."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from zipper.config import DataConfig, RunConfig, expanded, modalities_of
from zipper.corpora.librispeech import PUBLISHED, SUBSETS, index_librilight, index_librispeech
from zipper.corpora.lists import read_list, read_text
from zipper.corpora.pages import pages_corpus
from zipper.corpora.spoken import spoken_corpus
from zipper.corpora.utterance import SPLITS, Utterance, check_ids, check_names, hold_out
from zipper.errors import ConfigError, DataError
from zipper.modalities.audio import id_at
from zipper.modalities.base import modality_class
from zipper.processors import cores


def open_corpus(cfg: RunConfig, split: str | None = None) -> list[Utterance]:
    """Utterances of all corpora and splits; those of train once for each of data.speeds. Synthesizes the
    synthetic corpus first if it is missing. split: the only one that is needed; all of a corpus without
    splits of its own.

    Raises DataError if a corpus is not in data.folder, an id is not unique, or a split is empty.
    """
    published = {*cfg.data.corpora} & {*PUBLISHED}
    if cfg.data.splits and not published:  # of the config of a recipe, given another corpus
        print(f"data.splits names parts of LibriSpeech or LibriTTS: data.corpus={cfg.data.corpus} ignores it")
    found: list[Utterance] = []
    classes = [modality_class(name) for name in cfg.model.towers]
    # Columns of modalities that only manifests have, and whether they name files.
    other = {one.column: one.names_file for one in classes if one.column not in ("audio", "text")}
    for corpus in cfg.data.corpora:
        found += _open(corpus, cfg.data, Path(cfg.build), other, split)
    check_ids(found, f"data.corpus={cfg.data.corpus}")
    check_names(found)
    found = [u for u in found if split in (None, u.split)]
    needed = [split] if split else SPLITS
    if empty := [name for name in needed if not any(u.split == name for u in found)]:
        parts = (
            "Name parts for it in data.splits: a subset, or a piece of one as train-clean-100/26."
            if published
            else "Give it utterances (column split of a manifest), or leave that column out."
        )
        raise DataError(f"data.corpus={cfg.data.corpus}: split {empty[0]} is empty. {parts}")
    found = _without_empty(found, {one.name: one.column for one in classes}, cfg.train.tasks)
    return [copy for u in found for copy in _at_speeds(u, cfg.data.speeds)]


def _without_empty(
    utterances: list[Utterance], columns: dict[str, str], tasks: Iterable[str]
) -> list[Utterance]:
    """Utterances that lack a modality (an empty cell), but that a task can use without, have None of it. The
    others stay as they are, and will be rejected. Prints how many."""
    needs = [{columns[name] for name in modalities_of(task) if name in columns} for task in tasks]
    counts, out = Counter[str](), list[Utterance]()
    for u in utterances:
        empty = [column for column in columns.values() if u.raw(column) == ""]
        if empty and any(all(u.raw(column) for column in need) for need in needs):
            counts.update(empty)
            other = {key: raw for key, raw in u.other.items() if key not in empty}
            u = replace(u, audio=u.audio or None, text=u.text or None, other=other)
        out.append(u)
    for column, count in counts.items():
        print(f"{count} of {len(out)} utterances have no {column}: tasks that need it leave them out")
    return out


def _at_speeds(u: Utterance, speeds: list[float]) -> list[Utterance]:
    if u.split != "train" or not u.audio:
        return [u]
    return [replace(u, id=id_at(u.id, speed), speed=speed) for speed in speeds]


def _open(
    corpus: str, data: DataConfig, build: Path, other: dict[str, bool], split: str | None
) -> list[Utterance]:
    if corpus == "spoken":
        return spoken_corpus(data, build / "corpora", cores())
    if corpus in ("pages", "pages-spoken"):
        return pages_corpus(data, build / "corpora", cores(), spoken=corpus == "pages-spoken")
    if data.folder is None:
        raise ConfigError(f"data.corpus={corpus} needs data.folder: the folder that holds it.")
    folder = expanded(data.folder)
    if not folder.exists():
        what = "the file of the manifest" if corpus == "manifest" else f"the folder that holds {corpus}"
        raise DataError(f"data.folder={data.folder} does not exist. Name {what}.")
    # The link to a manifest, and not what it leads to, has the suffix, and the recordings beside it.
    folder = folder.parent.resolve() / folder.name if folder.is_file() else folder.resolve()
    if corpus in PUBLISHED:
        return index_librispeech(corpus, folder, data.splits or SUBSETS)
    if corpus == "librilight":
        return hold_out(index_librilight(folder, data.max_seconds), data.dev, data.test, data.seed, split)
    if corpus == "text":
        if {*data.corpora} & {*PUBLISHED} and not any(folder.glob("*.txt.gz")):
            raise DataError(
                f"data.corpus={data.corpus}: {folder} holds no librispeech-lm-norm.txt.gz (openslr.org/11), "
                "and its .txt files are transcripts, also of dev and test. Download it, or leave out text."
            )
        return read_text(folder, data.dev, data.test, data.seed, data.passages, split)
    return read_list(folder, data.dev, data.test, data.seed, other, split)
