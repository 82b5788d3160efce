"""`zipper prepare`: corpus, codec and tokenizer to an encoded dataset. Only missing parts are made."""

from pathlib import Path

from zipper.clock import Clock
from zipper.config import RunConfig
from zipper.corpora.open import open_corpus
from zipper.data.dataset import EncodedDataset
from zipper.data.encode import prepare_dataset
from zipper.disk import check_output_paths
from zipper.errors import DataError
from zipper.modalities.base import Modality, load_modalities


def prepare(
    cfg: RunConfig, clock: Clock, modalities: dict[str, Modality] | None = None, split: str | None = None
) -> EncodedDataset:
    """Open the dataset of a config, after making what is missing.

    modalities: default those of the config, which are checked first. A tokenizer that is not known is trained
    on the corpus. split: the only one that is needed (`open_corpus`).
    """
    check_output_paths(cfg)
    modalities = modalities or load_modalities(cfg)
    with clock.stage("speak"):
        utterances = open_corpus(cfg, split)
    train = [u for u in utterances if u.split == "train"]
    for modality in modalities.values():
        modality.fit(raw for u in train if (raw := u.raw(modality.column)))
    with clock.stage("encode"):
        dataset = prepare_dataset(
            Path(cfg.build) / "stores", utterances, modalities, cfg.data.max_seconds, cfg.train
        )
    counts = ", ".join(f"{name} {len(rows):,}" for name, rows in dataset.splits.items())
    print(f"{dataset.folder}: {counts} utterances")
    if dataset.info["skipped"]:
        print(
            f"{dataset.info['skipped']} utterances were skipped: {dataset.folder}/skipped.jsonl lists "
            "them with the reasons"
        )
    for name, count in dataset.info.get("repeated", {}).items():  # older datasets do not say
        if count:
            print(
                f"{count} of {len(dataset.splits[name])} utterances of {name} have a sentence of train: "
                "their WER is not that of new sentences"
            )
    if lost := {u.split for u in utterances} - {name for name, rows in dataset.splits.items() if len(rows)}:
        raise DataError(
            f"{dataset.folder}: all utterances of split {min(lost)} were skipped, for the reasons in "
            "skipped.jsonl. Correct them, or give that split others."
        )
    return dataset
