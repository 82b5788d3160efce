"""Cost of more towers: parameters, FLOPs, memory and time of a step for 2 to 4 towers, with tasks between all
pairs or with text alone, and with zips that no task uses but that are computed."""

import itertools
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from reproduce.bench.record import write_record
from zipper.config import ModelConfig, TowerConfig
from zipper.data.batches import Batch, collate
from zipper.data.documents import Document, Segment
from zipper.models.building import set_trainable
from zipper.models.flops import document_flops
from zipper.models.losses import stream_loss
from zipper.models.multimodal import Pair
from zipper.models.zipper import ZipperModel

NAMES = ("text", "speech", "image", "music")
LENGTH, DOCUMENTS, TURNS = 64, 24, 15
ADAM = 16  # bytes of a trained parameter: weight, gradient and two moments in float32


def bench_towers(out: Path, command: str) -> None:
    """Write the table."""
    rows = []
    for count in range(2, len(NAMES) + 1):
        names = NAMES[:count]
        hub = [pair for other in names[1:] for pair in ((NAMES[0], other), (other, NAMES[0]))]
        every = [*itertools.permutations(names, 2)]
        kinds: dict[str, tuple[list[Pair], list[Pair]]] = {"pairs with text": (hub, hub)}  # trained, computed
        if count > 2:
            kinds["pairs with text, all zips computed"] = (hub, every)
            kinds["all pairs"] = (every, every)
        for kind, (tasks, computed) in kinds.items():
            rows.append({"towers": count, "kind": kind, **measure(names, tasks, computed)})
            print(rows[-1], flush=True)
    settings = {"documents": DOCUMENTS, "tokens": LENGTH, "turns": TURNS, "threads": torch.get_num_threads()}
    content = {"rows": rows, **settings, "data_fingerprint": "random tokens"}
    write_record("bench-towers", command, content, out)


def measure(names: tuple[str, ...], tasks: list[Pair], computed: list[Pair]) -> dict[str, Any]:
    """A model of towers of 6 x 128, and a step on documents that take the tasks in turn."""
    torch.manual_seed(0)
    tower = TowerConfig(6, 128, 4, 4, 384, vocabulary=512, codebooks=1, specials=[0, 1])
    cfg = ModelConfig(modalities=[*names], towers=dict.fromkeys(names, tower))
    model = ZipperModel(cfg, dict.fromkeys(names, 10.0))
    model.used = computed
    set_trainable(model, cfg)
    documents = [_document(query, source) for query, source in tasks]
    batch = collate([*itertools.islice(itertools.cycle(documents), DOCUMENTS)], dict.fromkeys(names, 1))
    saved = _saved_bytes(model, batch)
    times = []
    for _ in range(TURNS):
        started = time.process_time()  # not what other processes take
        _loss(model, batch).backward()
        model.zero_grad()
        times.append(time.process_time() - started)
    flops = [
        document_flops(model, {source: LENGTH, query: LENGTH}, {query: LENGTH - 1}).training
        for query, source in tasks
    ]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": trained,
        "megaflops_per_document": round(sum(flops) / len(flops) / 1e6, 1),
        "state_mb": round(trained * ADAM / 1e6, 1),
        "activations_mb": round(saved / 1e6, 1),
        "seconds": round(median(times), 4),
    }


def _document(query: str, source: str) -> Document:
    tokens = torch.randint(2, 512, (LENGTH, 1))
    scored = torch.ones_like(tokens, dtype=torch.bool)
    return Document(
        f"{source}>{query}", [Segment(source, tokens, scored, 0.0), Segment(query, tokens, scored, 1.0)], True
    )


def _loss(model: ZipperModel, batch: Batch) -> torch.Tensor:
    states = model(batch)
    losses = [stream_loss(model.tower(name), states[name], stream) for name, stream in batch.streams.items()]
    return torch.stack(losses).sum()


def _saved_bytes(model: ZipperModel, batch: Batch) -> int:
    """Bytes that a step keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = _loss(model, batch)
    loss.backward()
    model.zero_grad()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for at, size in kept.items() if at not in own)
