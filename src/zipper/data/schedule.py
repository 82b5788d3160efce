"""Batch schedule: every batch is a pure function of (seed, step), sliced by rank and accumulation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from zipper.config import modalities_of
from zipper.config.training import LossMean
from zipper.data.batches import Batch, collate
from zipper.data.dataset import EncodedDataset, column, limit_rows, read_rows
from zipper.data.documents import Document, document, eligible, scored_weight
from zipper.errors import ConfigError

JITTER = 0.1  # random share added to lengths before sorting, so that batches differ between epochs
Example = tuple[int, str]  # (row, task)


class BatchSchedule:
    """Steps of a training: `examples(step)`, and micro-batches as slices of them."""

    def __init__(
        self,
        dataset: EncodedDataset,
        split: str,
        tasks: dict[str, float],
        tokens: int,
        slices: int,
        seed: int,
        prompt_weight: float,
        only: int | None = None,
        codebook_weights: Sequence[float] = (),
        corpora: Mapping[str, Sequence[str]] | None = None,
        loss_mean: LossMean = "modality",
    ) -> None:
        """tokens: limit of the padded tokens of a step, in the longest tower. slices: ranks times
        accumulation; the examples of a step do not depend on it. loss_mean: see `train.loss_mean`.

        Raises ConfigError if an example exceeds the limit, a step is too small to be sliced, or a task has no
        example.
        """
        self.dataset, self.tasks, self.tokens, self.slices, self.seed = dataset, tasks, tokens, slices, seed
        self.prompt_weight = prompt_weight
        self.rows = limit_rows(dataset.splits[split], only)
        self.contents, self.lengths, self.books = {}, {}, {}  # by modality; lengths in timesteps
        for name, one in dataset.modalities.items():
            self.contents[name] = column(self.rows, one.length_column)
            self.lengths[name] = self.contents[name] + one.layout.extra_timesteps
            several = len(codebook_weights) == one.codebooks
            self.books[name] = list(codebook_weights) if several else [1.0] * one.codebooks
        self.eligible = {
            task: np.array(eligible(dataset, self.rows, task, (corpora or {}).get(task, ())))
            for task in tasks
        }
        for task, found in self.eligible.items():
            if not len(found):
                raise ConfigError(
                    f"train.tasks.{task}: no utterance of split {split} has "
                    f"{' and '.join(modalities_of(task))}. Choose another data.corpus (or data.tasks), or "
                    "leave the task out."
                )
        longest = max(int(self._lengths(found, task).max()) for task, found in self.eligible.items())
        if longest * slices > tokens:
            raise ConfigError(
                f"train.tokens={tokens} is less than {slices} slice(s) of the longest utterance ({longest} "
                f"tokens). Give at least {longest * slices}."
            )
        self.average = self._average_answers() if loss_mean == "document" else {}
        self._batches: dict[int, Batches] = {}  # of the most recent epoch
        self._starts = [0]  # first step of each known epoch

    def examples(self, step: int) -> list[Example]:
        """Examples of one step, the longest first."""
        epoch = 0
        while True:
            if epoch + 1 == len(self._starts):
                self._starts.append(self._starts[-1] + len(self._epoch(epoch)))
            if step < self._starts[epoch + 1]:
                return self._epoch(epoch).examples(step - self._starts[epoch])
            epoch += 1

    def epoch_length(self, epoch: int) -> int:
        """Steps of an epoch."""
        return len(self._epoch(epoch))

    def batch(self, step: int, part: int, codebooks: dict[str, int]) -> Batch:
        """Slice `part` of a step, with the totals of the whole step."""
        examples = self.examples(step)
        total: dict[str, float] = dict.fromkeys(codebooks, 0.0)
        for row, task in examples:
            counts = {name: int(count[row]) for name, count in self.contents.items()}
            weights = scored_weight(counts, self.books, task, self.prompt_weight)
            for name, weight in weights.items():
                total[name] += weight
        for name, weight in self.average.items():
            total[name] = weight * len(examples) / len(self.average)
        mine = examples[part :: self.slices]
        documents = self._documents(mine or examples[:1])
        segment_ends = sum(len(order) for _, task in examples if len(order := modalities_of(task)) > 1)
        batch = collate(documents, codebooks, total, segment_ends)
        return batch if mine else without_loss(batch)

    def first_documents(self, count: int) -> list[Document]:
        """About `count` documents from the start of the training, independent of slicing; more if a task is
        not yet among them."""
        found: list[Document] = []
        tasks = set[str]()
        for step in range(self.epoch_length(0)):
            if len(found) >= count and tasks == {*self.tasks}:
                break
            examples = self.examples(step)
            tasks |= {task for _, task in examples}
            found += self._documents(examples)
        return found

    def _documents(self, examples: list[Example]) -> list[Document]:
        columns = ["id", *(one.tokens_column for one in self.dataset.modalities.values())]
        rows = read_rows(self.rows, [row for row, _ in examples], columns)
        return [
            document(self.dataset, row, task, self.prompt_weight)
            for row, (_, task) in zip(rows, examples, strict=True)
        ]

    def _average_answers(self) -> dict[str, float]:
        """Mean loss weight of an answer by modality, over the rows of all tasks that end in it."""
        answers: dict[str, list[float]] = {}
        for task, rows in self.eligible.items():
            counts = {name: float(count[rows].mean()) for name, count in self.contents.items()}
            weights = scored_weight(counts, self.books, task, self.prompt_weight)
            answers.setdefault(modalities_of(task)[-1], []).append(weights[modalities_of(task)[-1]])
        return {name: sum(several) / len(several) for name, several in answers.items()}

    def _epoch(self, epoch: int) -> "Batches":
        if epoch not in self._batches:
            self._batches = {epoch: self._make_epoch(epoch)}
        return self._batches[epoch]

    def _make_epoch(self, epoch: int) -> "Batches":
        draw = np.random.default_rng([self.seed, epoch])
        drawn = [self._draw_rows(self.eligible[task], share, draw) for task, share in self.tasks.items()]
        names = [*self.tasks]
        lengths = np.concatenate([self._lengths(rows, task) for rows, task in zip(drawn, names, strict=True)])
        order = np.argsort(lengths * (1 + JITTER * draw.random(len(lengths))), kind="stable")[::-1]
        bounds = _cut(lengths[order], self.tokens)
        which = np.repeat(np.arange(len(names)), [len(rows) for rows in drawn])
        return Batches(
            np.concatenate(drawn)[order], which[order], names, bounds, draw.permutation(len(bounds) - 1)
        )

    def _draw_rows(self, rows: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
        """Rows of one task in an epoch: with share 1 every row once, with share 1.26 about a quarter of
        them twice."""
        whole, rest = divmod(share, 1.0)
        count = round(rest * len(rows)) or int(0 < share < 1)  # no task goes without
        return np.concatenate([rows] * int(whole) + [rows[draw.permutation(len(rows))[:count]]])

    def _lengths(self, rows: np.ndarray, task: str) -> np.ndarray:
        """Length of each row in its longest tower: int64 [N]"""
        order = modalities_of(task)
        lengths = [order.count(name) * self.lengths[name][rows] for name in dict.fromkeys(order)]
        return np.max(lengths, axis=0).astype(np.int64)


class Batches(NamedTuple):
    """Batches of an epoch, as arrays: examples in the order of their lengths, cut into batches."""

    rows: np.ndarray  # int64 [N]
    which: np.ndarray  # int64 [N], index in `tasks`
    tasks: list[str]
    bounds: np.ndarray  # int64 [S + 1]
    order: np.ndarray  # int64 [S], of the batches

    def __len__(self) -> int:
        return len(self.order)

    def examples(self, step: int) -> list[Example]:
        """Examples of one step of the epoch, the longest first."""
        start, end = self.bounds[self.order[step] :][:2]
        tasks = (self.tasks[which] for which in self.which[start:end].tolist())
        return list(zip(self.rows[start:end].tolist(), tasks, strict=True))


def _cut(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """Bounds int64 [S + 1] of the largest consecutive batches that are padded to at most `tokens`."""
    bounds, start, count = [0], 0, np.arange(1, tokens + 2)
    while start < len(lengths):
        most = tokens // max(int(lengths[start]), 1) + 1
        longest = np.maximum.accumulate(lengths[start : start + most])
        start += max(1, int(np.searchsorted(longest * count[: len(longest)], tokens, side="right")))
        bounds.append(start)
    return np.array(bounds)


def without_loss(batch: Batch) -> Batch:
    """Copy of a batch without loss, for a rank that gets no example in a small step but takes part in it."""
    streams = {
        name: s._replace(
            target=torch.full_like(s.target, -100), weight=torch.zeros_like(s.weight),
            next_modality=torch.full_like(s.next_modality, -100), loss_index=s.loss_index[:0],
            segment_ends=s.segment_ends[:0],
        )
        for name, s in batch.streams.items()
    }  # fmt: skip
    return batch._replace(streams=streams)


class MicroBatches(Dataset[Batch]):
    """Micro-batches of a rank: item i is slice rank + ranks * (i % accumulate) of step i // accumulate."""

    def __init__(
        self, steps: BatchSchedule, codebooks: dict[str, int], rank: int, ranks: int, accumulate: int
    ) -> None:
        self.steps, self.codebooks = steps, codebooks
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate

    def __len__(self) -> int:
        """Of one pass over the data."""
        return self.steps.epoch_length(0) * self.accumulate

    def __getitem__(self, index: int) -> Batch:
        step, micro = divmod(index, self.accumulate)
        return self.steps.batch(step, self.rank + self.ranks * micro, self.codebooks)


class ResumableSampler(DistributedSampler[int]):
    """Indices `start()` to `end`, also if an iteration begins again. Its length includes those before, as
    Lightning's progress bar expects. Lightning would replace any but a DistributedSampler by one that gives
    every process other steps."""

    def __init__(self, start: Callable[[], int], end: int) -> None:
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start(), self.end))

    def __len__(self) -> int:
        return self.end
