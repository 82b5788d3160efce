"""Writing: prompts and an order of output modalities to segments, cached and batched, with a reason for every
stop (paper 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zipper.data.batch import collate
from zipper.data.document import Document
from zipper.errors import ConfigError
from zipper.generate.alphabet import Alphabet
from zipper.generate.beam import beam_search
from zipper.generate.cache import Memory
from zipper.generate.progress import Progress, Rules
from zipper.generate.sample import choose, randomness
from zipper.model.multimodal import MultimodalModel
from zipper.schema import SamplingConfig
from zipper.units.facts import Facts
from zipper.units.pattern import around

MOST = 8  # segments that `auto` may go on for
Stop = Literal["end", "cap", "loop"]
GREEDY = SamplingConfig()


@dataclass(frozen=True)
class Written:
    """A segment. columns int64 [S, Q], begin and end included; content int64 [Q, F]: codes, or subwords with
    Q = 1. stopped by: the model's own end, the length cap, or the loop detector."""

    modality: str
    columns: Tensor
    content: Tensor
    stopped: Stop


@torch.no_grad()
def write(
    model: MultimodalModel,
    prompts: Sequence[Document],
    order: Sequence[str] | Literal["auto"],
    facts: Facts,
    decode: dict[str, SamplingConfig] | None = None,
    seed: int = 0,
) -> list[list[Written]]:
    """One segment of each modality of `order` after each prompt, which may be any segments; `auto`: the model
    chooses after each segment which modality follows, or to stop, at most MOST times.

    decode: by modality; greedy where nothing is said. What is written for a prompt depends on the seed, its
    id and itself, not on its neighbours. Raises ConfigError on a modality that has no tower, on a prompt of
    nothing, and on `auto` where the model has no switch.
    """
    check(model, prompts, order)
    given = {segment.modality for one in prompts for segment in one.segments[1:]}
    memory = read_prompts(model, prompts, set(model.names) if order == "auto" else {*order, *given})
    latest = [{s.modality: _length(model, s.modality, s.tokens) for s in p.segments} for p in prompts]
    last = [p.segments[-1].modality for p in prompts]
    out: list[list[Written]] = [[] for _ in prompts]
    for turn in range(MOST if order == "auto" else len(order)):
        if order == "auto":
            coming = _chosen(memory, last, [len(done) == turn for done in out])
        else:
            coming = [order[turn]] * len(prompts)
            memory.awaited = set(order[turn:])
        for name in model.names:
            rows = [i for i, one in enumerate(coming) if one == name]
            if not rows:
                continue
            caps = [facts.cap(name, last[i], latest[i][last[i]]) for i in range(len(prompts))]
            how = (decode or {}).get(name, GREEDY)
            writer = Writer(memory, name, facts.patience(name))
            ids, keep = [f"{p.id}/{turn}" for p in prompts], order == "auto" or turn + 1 < len(order)
            for i, segment in zip(rows, writer.write(rows, caps, how, ids, seed, keep), strict=True):
                out[i].append(segment)
                last[i], latest[i][name] = name, segment.content.shape[1]
    return out


def check(model: MultimodalModel, prompts: Sequence[Document], order: Sequence[str]) -> None:
    """Raises ConfigError where `write` would have to."""
    asked = [] if order == "auto" else list(order)
    for name in {*asked, *(s.modality for p in prompts for s in p.segments)}:
        if name not in model.names:
            raise ConfigError(f"This model has no tower for {name!r}, only for {', '.join(model.names)}.")
    for one in prompts:
        given = {s.modality for s in one.segments}
        for name in asked:
            for other in sorted(given):
                if name != other and (name, other) not in model.used:
                    raise ConfigError(
                        f"This model was not trained to write {name} after {other}. Use one that was "
                        "(configs/joint.yaml learns both ways), or another order."
                    )
            given.add(name)
    if not all(prompt.segments for prompt in prompts):
        raise ConfigError("A prompt holds no segment: give it text or speech to go on from.")
    if order == "auto" and not model.switches:
        raise ConfigError(
            "This model was trained without model.switch=true: it cannot choose what follows. "
            "Name the order, for example `--then speech`."
        )


def _chosen(memory: Memory, last: list[str], still: list[bool]) -> list[str | None]:
    """What the switch of each row's last tower chooses to follow; None: nothing more."""
    names = memory.model.names
    out: list[str | None] = [None] * len(last)
    for name in set(last):
        choice = memory.model.switches[name](memory.last[name]).argmax(-1).tolist()
        for i, pick in enumerate(choice):
            if last[i] == name and still[i] and pick < len(names):
                out[i] = names[pick]
    return out


class Writer:
    """One segment of one modality, for every row of a memory."""

    def __init__(self, memory: Memory, name: str, patience: list[int]) -> None:
        self.memory, self.name = memory, name
        self.tower = memory.model.tower(name)
        self.alphabet = Alphabet.of(name, self.tower.cfg)
        self.device = memory.multimodal.device
        self.patience = patience

    def write(
        self, rows: list[int], caps: list[int], how: SamplingConfig, ids: list[str], seed: int, keep: bool
    ) -> list[Written]:
        """Of these rows, at most caps[i] of content in row i of all. Drawn by ids and seed. keep: the memory
        gets the last column too, to go on from."""
        self.memory.compile = how.compile
        if how.beams > 1:
            columns, ended = beam_search(self.memory, self.name, self.alphabet, rows, caps, how.beams, keep)
            return self._segments(rows, columns, ended, np.zeros(len(ended), dtype=bool), caps)
        count, books = len(caps), self.alphabet.codebooks
        uniform = randomness(ids, seed, max(caps) + books + 1, books).to(self.device)
        column = torch.full((count, books), self.alphabet.begin, device=self.device)
        written, rules = [column], Rules(self.alphabet, self.device)
        progress = Progress(self.alphabet, rows, np.array(caps), self.patience)
        fresh = progress.open_rows
        while progress.open_rows.any():
            states = self.memory.extend(self.name, column[:, None], self._flags(fresh))
            logits = rules(self.memory.logits(self.name, states[:, -1]), progress.kinds())  # [B, Q, V]
            column = self.alphabet.closed(choose(logits, how, uniform[:, len(written)]))
            written.append(column)
            fresh = progress.open_rows
            progress.add(column[:, 0].cpu().numpy())
        if keep:
            self.memory.extend(self.name, column[:, None], self._flags(fresh))
        return self._segments(rows, torch.stack(written, 1), progress.ended, progress.looping, caps)

    def _flags(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device)[:, None]

    def _segments(
        self, rows: list[int], columns: Tensor, ended: np.ndarray, looping: np.ndarray, caps: list[int]
    ) -> list[Written]:
        columns, last, out = columns.cpu(), self.alphabet.last_column(ended) + 1, []
        for row in rows:
            own = columns[row, : last[row]]
            stopped: Stop = "loop" if looping[row] else "cap" if ended[row] == caps[row] + 1 else "end"
            out.append(Written(self.name, own, self.alphabet.content(own), stopped))
        return out


def read_prompts(
    model: MultimodalModel, prompts: Sequence[Document], awaited: set[str] | None = None
) -> Memory:
    """A Memory that has read all segments of the prompts, each in its own order. awaited: towers that will
    read or write after another one; all of them, if not given."""
    device = next(model.parameters()).device
    memory = Memory(model, torch.tensor([prompt.multimodal for prompt in prompts], device=device))
    memory.awaited = awaited or memory.awaited
    for turn in range(max(len(prompt.segments) for prompt in prompts)):
        for name in model.names:
            parts = [
                Document(p.id, [s for s in p.segments[turn : turn + 1] if s.modality == name], p.multimodal)
                for p in prompts
            ]
            if any(part.segments for part in parts):
                stream = collate(parts, {name: model.cfg.towers[name].codebooks}).streams[name]
                memory.extend(name, stream.tokens.to(device), stream.valid.to(device))
    return memory


def _length(model: MultimodalModel, name: str, columns: Tensor) -> int:
    """Subwords or frames of a segment; none where it is shorter than an empty one."""
    tower = model.cfg.towers[name]
    return max(0, len(columns) - around(tower.codebooks, tower.pattern))
