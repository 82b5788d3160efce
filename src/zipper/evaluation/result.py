"""Content of a result file: figures, and what is needed to reproduce them."""

import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch

from zipper.config import RunConfig, modalities_of, task_name, to_dict
from zipper.data.dataset import EncodedDataset, Row, limit_rows
from zipper.data.documents import eligible
from zipper.data.statistics import DatasetStatistics
from zipper.errors import DataError
from zipper.evaluation.result_file import LengthBin, Result, SubsetErrors
from zipper.modalities.scoring import Score, WordErrors, total_errors
from zipper.models.multimodal import MultimodalModel

BINS = 12  # maximum number of length bins


@dataclass(frozen=True)
class Origin:
    """Provenance of a result: command, commit, and the steps, seconds and seed of the training."""

    command: str
    commit: str
    steps: int
    wall_seconds: float
    seed: int


def describe_run(
    task: str, model: MultimodalModel, dataset: EncodedDataset, statistics: DatasetStatistics,
    cfg: RunConfig, origin: Origin,
) -> Result:  # fmt: skip
    """Metadata of a run and a task for a result file."""
    parameters = list(model.parameters())
    return {
        "name": cfg.name,
        "model": cfg.model.kind if len(model.names) > 1 else "tower",
        "parameters_total": sum(p.numel() for p in parameters),
        "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
        "steps": origin.steps,
        "wall_seconds": round(origin.wall_seconds, 1),
        "seed": origin.seed,
        "commit": origin.commit,
        "command": origin.command,
        "checkpoint": cfg.evaluate.checkpoint,
        "data_fingerprint": dataset.fingerprint,
        "data": dataset.info["fingerprint"],
        "towers": statistics.towers,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "config": to_dict(cfg),
        "task": task,
        "split": cfg.evaluate.split,
    }


def versions() -> dict[str, str]:
    """Versions of Python, PyTorch and Lightning."""
    found = {"torch": torch.__version__, "lightning": lightning.__version__}
    return {"python": platform.python_version(), **found}


def chosen_rows(dataset: EncodedDataset, cfg: RunConfig, task: str, split: str | None = None) -> list[Row]:
    """Rows of a split (None: cfg.evaluate.split) that a task or chain can use and whose corpus it takes.

    The training split is limited to data.only, as in training. Raises DataError if there is none.
    """
    split = split or cfg.evaluate.split
    rows = limit_rows(dataset.splits[split], cfg.data.only if split == "train" else None)
    last_hop = task_name(">".join(modalities_of(task)[-2:]))
    found = eligible(dataset, rows, task, cfg.data.tasks.get(last_hop, ()))
    if not found:
        raise DataError(
            f"{task}: no utterance of split {split} has {' and '.join(dict.fromkeys(modalities_of(task)))}. "
            "Name other tasks (evaluate.tasks=[...]), or other data."
        )
    return [rows[i] for i in found]


def by_column(column: str, counts: Sequence[tuple[Row, WordErrors]]) -> dict[str, SubsetErrors]:
    """Word errors of each corpus subset, such as LibriSpeech clean and other, or of each speaker; empty for a
    single one."""
    found: dict[str, list[WordErrors]] = {}
    for row, errors in counts:
        found.setdefault(row[column], []).append(errors)
    if len(found) < 2:
        return {}
    return {subset: error_rate(several) for subset, several in sorted(found.items())}


def by_length(found: Sequence[Score]) -> list[LengthBin]:
    """WER by length of the reference in characters (paper, Figure 2).

    Each entry is a bin: maximum characters, utterances, wer of the bin, wer_up_to of all shorter sentences.
    """
    longest = max([len(one.reference) for one in found] + [1])
    width = max(10, 10 * -(-longest // (10 * BINS)))
    out, upto = list[LengthBin](), WordErrors()
    for top in range(width, longest + width, width):
        inside = [one for one in found if top - width < max(len(one.reference), 1) <= top]
        if inside:
            upto += total_errors(inside)
            out.append(
                {
                    "characters": top,
                    "utterances": len(inside),
                    "wer": round(total_errors(inside).rate, 6),
                    "wer_up_to": round(upto.rate, 6),
                }
            )
    return out


def error_rate(counts: Sequence[WordErrors]) -> SubsetErrors:
    """WER and counts of utterances."""
    total = sum(counts, WordErrors())
    return {
        "wer": round(total.rate, 6), "errors": total.errors, "words": total.words, "utterances": len(counts),
    }  # fmt: skip


def finish_reasons(reasons: list[str]) -> Result:
    """Counts of finish reasons, and the shares that hit the length limit or ended in repetition."""
    counts, total = Counter(reasons), max(len(reasons), 1)
    return {
        "stopped": dict(counts),
        "share_at_limit": round(counts["length"] / total, 6),
        "share_repeated": round(counts["repetition"] / total, 6),
    }


def truncation_text(result: Result) -> str:
    """Shares of segments without EOS, as text."""
    total = max(sum(result["stopped"].values()), 1)
    cap, loop = (result["stopped"].get(reason, 0) / total for reason in ("length", "repetition"))
    return f"{cap:.1%} at the length limit, {loop:.1%} repetition"


def write_predictions(result: Result, file: Path) -> None:
    """Writes `per_utterance` of a result as a .tsv file, if it has any."""
    if "per_utterance" not in result:
        return
    rows = ["\t".join(result["per_utterance"][0])]
    rows += ["\t".join(map(str, one.values())) for one in result["per_utterance"]]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
